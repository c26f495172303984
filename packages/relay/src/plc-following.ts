/** Wires the export of the did:plc directory to the Relay's identities, where the operator wants it. */
import type { Did } from '@millisky/core/syntax'
import type { Fetcher } from '@millisky/server/fetch'
import type { Identities } from '@millisky/server/identity'
import { PlcExport } from '@millisky/server/identity/plc-export'
import type { Logger, Metrics } from '@millisky/server/trace'
import type { RelaySettings } from './config.ts'
import type { KnownIdentities } from './known-identities.ts'
import { PlcFeed } from './plc-feed.ts'
import type { PlcStore } from './store/plc.ts'

export interface PlcFollowingParts {
  settings: Pick<RelaySettings, 'plcExport' | 'plcUrl'>
  store: { plc: PlcStore }
  known: KnownIdentities
  plcFetcher: Fetcher
  userAgent: string
  log: Logger
  metrics: Metrics
  now: () => number
}

export interface PlcFollowing {
  /** Knows how far it had come when this resolves, so that stored identities are believed at once. */
  start(): Promise<void>
  stop(): Promise<void>
}

export function followPlc(parts: PlcFollowingParts, identities: Identities): PlcFollowing {
  const { settings, store, known, plcFetcher, userAgent, log, metrics, now } = parts
  if (!settings.plcExport) return { start: async () => {}, stop: async () => {} }
  const origin = settings.plcUrl.replace(/\/+$/, '')
  const feed = new PlcFeed({
    origin,
    store: store.plc,
    identities,
    supersede: did => known.supersede(did),
    now,
    onRefused: refused =>
      log.error(refused, 'an operation of the directory breaks the rules; this DID is asked for from now on'),
  })
  const follower = new PlcExport({
    url: origin,
    fetcher: plcFetcher,
    userAgent,
    sink: feed,
    now,
    onTrouble: (problem, state) =>
      log[state === 'waiting' ? 'warn' : 'error']({ problem, state }, 'the export cannot be followed; trying again'),
    onState: state => log.info({ state, seq: follower.position.seq }, 'export of the directory'),
  })
  known.rely((did: Did) => (feed.covers(did) ? follower.trueAt : null))
  const plain = (name: string, help: string, read: () => number) =>
    metrics.gauge(name, help, { collect: gauge => gauge.set({}, read()) })
  plain('relay_plc_export_seq', 'Seq of the directory up to which its export was taken.', () => follower.position.seq)
  plain('relay_plc_export_refused', 'DIDs with an operation that broke the rules.', () => feed.refused)
  plain(
    'relay_plc_export_age_seconds',
    'How old what is known from the export may be; -1 before it is complete.',
    () => (follower.trueAt === null ? -1 : (now() - follower.trueAt) / 1_000),
  )
  return { start: () => follower.start(), stop: () => follower.stop() }
}
