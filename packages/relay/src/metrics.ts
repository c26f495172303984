/** What a Relay counts. Host names are labels of nothing, for there is no end of them; per host there is the admin API. */
import { REASONS } from '@millisky/core/verify'
import type { Metrics } from '@millisky/server/trace'
import type { Host, Hosts } from './hosts.ts'
import type { Ingest, IngestParts } from './ingest.ts'
import { DELAYS, type Delay } from './quotas.ts'
import { REJECT_REASONS } from './rejects.ts'
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
  return {
    received: (_host, type) => received.inc({ type }),
    admitted: (_host, type, notes) => {
      admitted.inc({ type })
      for (const note of notes) noted.inc({ note })
    },
    rejected: (_host, reason) => rejected.inc({ reason }),
  }
}

/** Counts how often hosts are read later than they could be. */
export function observeDelays(metrics: Metrics): (host: unknown, delay: Delay) => void {
  const delayed = metrics.counter('relay_hosts_delayed_total', 'Times that a host had to wait, by what for.', {
    why: DELAYS,
  })
  return (_host, why) => delayed.inc({ why })
}

export interface Observed {
  hosts: Hosts
  ingest: Ingest
  verifiers: Verifiers
  isConnected: (host: ReturnType<Hosts['list']>[number]) => boolean
  log: { readonly head: number; readonly oldest: number }
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
