/** What a Relay counts. Host names are labels of nothing, for there is no end of them; per host there is the admin API. */
import { REASONS } from '@millisky/core/verify'
import type { FollowEnd } from '@millisky/server/follow'
import type { Trace } from '@millisky/server/telemetry'
import type { Metrics } from '@millisky/server/trace'
import type { DirectoryObserver } from './directory.ts'
import type { Host, Hosts } from './hosts.ts'
import type { Ingest, IngestParts } from './ingest.ts'
import { DELAYS, type Delay } from './quotas.ts'
import { REJECT_REASONS } from './rejects.ts'
import { DELIVERIES, type Delivery, type Siblings } from './siblings.ts'
import { HOST_STATUSES } from './store/store.ts'
import type { Verifiers } from './verifiers.ts'

const TYPES = ['#commit', '#sync', '#identity', '#account', '#info'] as const

/** Counters of intake. Names of their kind as in deployed relays, where there is one of that meaning. */
export function observeIngest(metrics: Metrics): NonNullable<IngestParts['observer']> {
  const received = metrics.counter('events_received_counter', 'Events that came from hosts.', { type: TYPES })
  const admitted = metrics.counter('relay_events_admitted_total', 'Events that passed.', { type: TYPES })
  const rejected = metrics.counter('relay_events_rejected_total', 'Events that did not pass.', {
    reason: REJECT_REASONS,
  })
  const noted = metrics.counter('relay_events_noted_total', 'What was not right with events that passed.', {
    note: REASONS,
  })
  const discovered = metrics.counter('relay_new_users_discovered', 'Accounts that were heard for the first time.')
  const commits = metrics.counter('repo_commits_received_counter', 'Commits that came from hosts.')
  const syncs = metrics.counter('repo_sync_received_counter', 'Events of type #sync that came from hosts.')
  const verify = metrics.histogram(
    'relay_verify_seconds',
    'Time until a group of events of one account has verdicts.',
    {
      buckets: LATENCIES,
    },
  )
  const age = metrics.histogram('relay_commit_age_seconds', 'How old commits were, by their rev, when they passed.', {
    labels: { hosts: HOST_CLASSES },
    buckets: [0.1, 0.5, 1, 2, 5, 15, 60, 300, 3_600, 86_400],
  })
  return {
    received: (_host, type) => {
      received.inc({ type })
      if (type === '#commit') commits.inc({})
      else if (type === '#sync') syncs.inc({})
    },
    discovered: () => discovered.inc({}),
    verified: ms => verify.observe({}, ms / 1_000),
    admitted: (host, type, notes) => {
      admitted.inc({ type })
      if (type === '#commit' && host.lagMs !== null) age.observe({ hosts: classOf(host) }, host.lagMs / 1_000)
      for (const note of notes) noted.inc({ note })
    },
    rejected: (_host, reason) => rejected.inc({ reason }),
  }
}

const HOST_CLASSES = ['trusted', 'other'] as const
/** The lag that so many of the hosts are within. */
const LAG_OF = ['half', 'nine tenths', 'all'] as const
const LATENCIES = [0.000_5, 0.001, 0.002, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10]
const classOf = (host: Host) => (host.isTrusted ? 'trusted' : 'other')

/** Measures what it takes to make events durable. */
export function observeAppends(metrics: Metrics, trace?: Trace): (events: number, ms: number) => void {
  const seconds = metrics.histogram('relay_append_seconds', 'Time until a batch of events is durable.', {
    buckets: LATENCIES,
  })
  const sizes = metrics.histogram('relay_append_events', 'Events that became durable together.', {
    buckets: [1, 2, 5, 10, 50, 200, 1_000],
  })
  return (events, ms) => {
    seconds.observe({}, ms / 1_000)
    sizes.observe({}, events)
    trace?.({ name: 'append events', kind: 'internal', durationMs: ms, attributes: { events } })
  }
}

/** Counts what is no longer kept for replay. */
export function observePrunes(metrics: Metrics): (segments: number) => void {
  const pruned = metrics.counter(
    'relay_log_pruned_segments_total',
    'Files of the log that were dropped, too old or too much.',
  )
  return segments => pruned.inc({}, segments)
}

/** Counts how connections to hosts end. */
export function observeEnds(metrics: Metrics, trace?: Trace): (hostname: string, end: FollowEnd) => void {
  const ends = metrics.counter(
    'relay_upstream_ends_total',
    'Connections to hosts that ended or were not made, by why.',
    {
      reason: 32,
    },
  )
  return (hostname, { reason, openMs, frames }) => {
    ends.inc({ reason })
    const attributes = { 'server.address': hostname, reason, frames }
    trace?.({ name: 'follow host', kind: 'internal', durationMs: openMs, attributes })
  }
}

/** Tells how far the log is signed. */
export function observeCheckpoints(metrics: Metrics, checkpoints: { readonly last: number }): void {
  metrics.gauge('relay_checkpoint_seq', 'Last seq of the log that is signed; 0 until it was looked.', {
    collect: gauge => gauge.set({}, checkpoints.last),
  })
}

/** Counts what the directory of collections learns. */
export function observeDirectory(metrics: Metrics): DirectoryObserver {
  const changes = metrics.counter('relay_directory_changes_total', 'Collections of accounts that came or went.', {
    change: ['added', 'removed', 'kept'],
  })
  return { changed: change => changes.inc({ change }) }
}

/** Counts how often hosts are read later than they could be. */
export function observeDelays(metrics: Metrics): (host: unknown, delay: Delay) => void {
  const delayed = metrics.counter('relay_hosts_delayed_total', 'Times that a host had to wait, by what for.', {
    why: DELAYS,
  })
  return (_host, why) => delayed.inc({ why })
}

/** Counts what siblings are told. Their names come from the settings, so there are few. */
export function observeSiblings(metrics: Metrics, siblings: Siblings): (delivery: Delivery) => void {
  const requests = metrics.counter('relay_sibling_requests_total', 'Requests to sibling relays, by how they ended.', {
    end: DELIVERIES,
  })
  metrics.gauge('relay_sibling_outbox', 'Requests that wait for a sibling relay.', {
    labels: { sibling: siblings.origins },
    collect: gauge => {
      for (const sibling of siblings.origins) gauge.set({ sibling }, siblings.waiting.get(sibling) ?? 0)
    },
  })
  return end => requests.inc({ end })
}

/** Counts what identities cost: what had to be asked for, and how long events waited for it. */
export function observeIdentities(metrics: Metrics) {
  const asked = metrics.counter(
    'relay_identity_questions_total',
    'Documents that directories and sites were asked for.',
    {
      method: ['plc', 'web', 'handle'],
      outcome: 16,
    },
  )
  const seconds = metrics.histogram(
    'relay_identity_wait_seconds',
    'Time that events of an account waited for its document.',
    {
      labels: { outcome: ['found', 'nobody', 'unavailable'] },
      buckets: LATENCIES,
    },
  )
  return {
    asked: (method: string, outcome: string) => asked.inc({ method, outcome }),
    waited: (outcome: 'found' | 'nobody' | 'unavailable', ms: number) => seconds.observe({ outcome }, ms / 1_000),
  }
}

/** Counts bytes that come from hosts. */
export function observeBytes(metrics: Metrics): (frames: readonly Uint8Array[]) => void {
  const bytes = metrics.counter('relay_bytes_received_total', 'Bytes of frames that came from hosts.')
  return frames => {
    let sum = 0
    for (const frame of frames) sum += frame.length
    bytes.inc({}, sum)
  }
}

export interface Observed {
  hosts: Hosts
  ingest: Ingest
  verifiers: Verifiers
  isConnected: (host: ReturnType<Hosts['list']>[number]) => boolean
  log: { readonly head: number; readonly oldest: number; readonly size: { bytes: number; segments: number } }
  now: () => number
  accountsInMemory: () => number
  accountsThrottled: () => number
}

/** Gauges that are read at each scrape. */
export function observeRelay(metrics: Metrics, parts: Observed): void {
  const { hosts, ingest, verifiers, log } = parts
  metrics.gauge('relay_hosts', 'Hosts by status.', {
    labels: { status: HOST_STATUSES },
    collect: gauge => {
      for (const status of HOST_STATUSES) {
        gauge.set({ status }, hosts.list().filter(host => host.record.status === status).length)
      }
    },
  })
  const plain = (name: string, help: string, read: () => number) =>
    metrics.gauge(name, help, { collect: gauge => gauge.set({}, read()) })
  plain('relay_connected_inbound', 'Hosts that are connected.', () => hosts.list().filter(parts.isConnected).length)
  plain('disk_persister_current_seq', 'Last seq of the log, by the name that deployed relays give it.', () => log.head)
  metrics.gauge('relay_hosts_used_day_max', 'Largest part of its daily events that a host has used, 0 to 1.', {
    labels: { hosts: HOST_CLASSES },
    collect: gauge => {
      for (const kind of HOST_CLASSES) {
        const used = hosts.list().flatMap(host => (classOf(host) === kind ? [host.quota.used(parts.now()).day] : []))
        gauge.set(
          { hosts: kind },
          used.reduce((most, part) => Math.max(most, part), 0),
        )
      }
    },
  })
  metrics.gauge(
    'relay_hosts_lag_seconds',
    'How old the last commit of hosts was when it passed, of those heard today.',
    {
      labels: { hosts: HOST_CLASSES, of: LAG_OF },
      collect: gauge => {
        const since = parts.now() - 86_400_000
        for (const kind of HOST_CLASSES) {
          const heard = hosts.list().filter(host => classOf(host) === kind && host.lastEventAt > since)
          const lags = heard.flatMap(({ lagMs }) => (lagMs === null ? [] : [lagMs])).sort((a, b) => a - b)
          const at = (part: number) => (lags[Math.ceil(part * lags.length) - 1] ?? 0) / 1_000
          gauge.set({ hosts: kind, of: 'half' }, at(0.5))
          gauge.set({ hosts: kind, of: 'nine tenths' }, at(0.9))
          gauge.set({ hosts: kind, of: 'all' }, at(1))
        }
      },
    },
  )
  plain('relay_log_bytes', 'Size of the log on disk.', () => log.size.bytes)
  plain('relay_log_segments', 'Files of the log.', () => log.size.segments)
  plain('relay_log_head_seq', 'Last seq of the log.', () => log.head)
  plain('relay_log_oldest_seq', 'First seq that is still kept.', () => log.oldest)
  plain('relay_ingest_events', 'Events under way.', () => ingest.load.events)
  plain('relay_ingest_bytes', 'Bytes of events under way.', () => ingest.load.bytes)
  plain('relay_verify_pending', 'Groups of events that wait for a verdict.', () => verifiers.pending)
  plain('relay_accounts_in_memory', 'Accounts in memory.', parts.accountsInMemory)
  plain('relay_accounts', 'Accounts that are not deleted.', () => sum(hosts, host => host.record.accounts))
  plain('relay_accounts_throttled', 'Accounts that flooded and are not heard for a while.', parts.accountsThrottled)
  plain('relay_accounts_refused', 'Accounts beyond the number of their hosts, as far as they are remembered.', () =>
    sum(hosts, host => host.refused.size),
  )
}

function sum(hosts: Hosts, read: (host: Host) => number): number {
  return hosts.list().reduce((total, host) => total + read(host), 0)
}
