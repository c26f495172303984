/**
 * The guard against falling out of step with relays: asks each one how far it has followed us, compares that with our own
 * events, asks to be crawled where that may help, and tells the operator what only an operator can mend.
 *
 * Source: pds.md §3 #1: posts that no relay carries, after a restore or an outage, are the most frequent complaint about
 * PDSs, and nothing on the PDS shows it.
 */
import { setTimeout as systemSleep } from 'node:timers/promises'
import type { FetchBytes } from '@millisky/server/fetch'
import type { Logger, Metrics } from '@millisky/server/trace'
import {
  asked,
  type EarlierLook,
  judge,
  type RelayAnswer,
  type RelayFindings,
  VERDICTS,
  type Verdict,
} from './relay-verdict.ts'

/** One relay as it was found the last time it was asked. */
export interface RelayState extends RelayFindings {
  /** Its URL, as in the settings. */
  relay: string
  /** Milliseconds since 1970; null before the first time. */
  checkedAt: number | null
  /** Since when the verdict is what it is. */
  since: number | null
  /** Our own last seq when it was asked. */
  ownSeq: number
  /** When the guard last had it asked to crawl. */
  announcedAt: number | null
}

export interface RelayWatchParts {
  /** URLs of relays. */
  relays: readonly string[]
  /** The name this server is crawled under. */
  publicHost: string
  /** Seq of our last event. */
  head: () => number
  /** Has one relay asked to crawl; within the limits of {@link Crawlers.notify}. */
  announce: (relay: string) => void
  fetch: FetchBytes
  log: Logger
  metrics?: Metrics | undefined
  /** Milliseconds since 1970. */
  now: () => number
  /** Between two looks at each relay; 0 for never. */
  intervalMs: number
  sleep?: (ms: number, signal: AbortSignal) => Promise<unknown>
}

/** The first look comes after relays have had time to answer the announcement at the start. */
const FIRST_MS = 30_000
const TIMEOUT_MS = 10_000
/** Events that another process has just written are known here after a second. */
const SECOND_LOOK_MS = 2_000
/** What was there is with a relay that follows after this. */
const SETTLE_MS = 60_000
/** Asking again and again changes nothing where the first times did not. */
const ANNOUNCE_MIN_MS = 20 * 60_000
const ANNOUNCE_MAX_MS = 6 * 3_600_000

/** Where another request to be crawled may help: a relay that bans or throttles us knows us well enough. */
const MENDABLE: readonly Verdict[] = ['unknown', 'offline', 'stuck']

type DatedLook = EarlierLook & { at: number }

interface Watched {
  state: RelayState
  /** What the next look is compared with if that comes late enough, and what it is compared with otherwise. */
  before: DatedLook | null
  older: DatedLook | null
  nextAnnounceAt: number
  announceWaitMs: number
}

export class RelayWatch {
  readonly #parts: RelayWatchParts
  readonly #stop = new AbortController()
  readonly #relays: Watched[]
  readonly #sleep: (ms: number, signal: AbortSignal) => Promise<unknown>
  #round: Promise<void> | null = null
  #running: Promise<void> = Promise.resolve()

  constructor(parts: RelayWatchParts) {
    this.#parts = parts
    this.#sleep = parts.sleep ?? ((ms, signal) => systemSleep(ms, undefined, { signal, ref: false }))
    this.#relays = parts.relays.map(relay => ({
      state: { relay, checkedAt: null, since: null, ownSeq: 0, announcedAt: null, ...unasked },
      before: null,
      older: null,
      nextAnnounceAt: 0,
      announceWaitMs: ANNOUNCE_MIN_MS,
    }))
    this.#addMetrics()
  }

  /** What was found, in the order of the settings. */
  get relays(): RelayState[] {
    return this.#relays.map(({ state }) => ({ ...state }))
  }

  /** Begins to look from time to time. */
  start(): void {
    const { intervalMs, relays } = this.#parts
    if (intervalMs > 0 && relays.length > 0) this.#running = this.#run(intervalMs)
  }

  /** Looks at every relay now, or waits for the look that is under way. */
  check(): Promise<void> {
    this.#round ??= Promise.all(this.#relays.map(watched => this.#look(watched)))
      .then(() => {})
      .finally(() => {
        this.#round = null
      })
    return this.#round
  }

  async close(): Promise<void> {
    this.#stop.abort()
    await Promise.allSettled([this.#running, this.#round])
  }

  async #run(intervalMs: number): Promise<void> {
    const { signal } = this.#stop
    let wait = Math.min(FIRST_MS, intervalMs)
    while (!signal.aborted) {
      await this.#sleep(wait, signal).catch(() => {})
      wait = intervalMs
      if (!signal.aborted) await this.check()
    }
  }

  async #look(watched: Watched): Promise<void> {
    const { head, now, log } = this.#parts
    const { state } = watched
    const answer = await this.#ask(state.relay)
    if (this.#stop.signal.aborted) return
    // Read after the answer: what a relay has seen by then is in our log.
    let ownSeq = head()
    const at = now()
    const { before } = watched
    // Whoever asks twice in a row must not find a relay stuck that had no time to move.
    const isLate = before !== null && at - before.at >= SETTLE_MS
    const earlier = isLate ? before : watched.older
    let findings = judge(answer, ownSeq, earlier)
    if (findings.verdict === 'ahead') {
      await this.#sleep(SECOND_LOOK_MS, this.#stop.signal).catch(() => {})
      ownSeq = head()
      findings = judge(answer, ownSeq, earlier)
    }
    // A relay that does not answer now has not moved either way.
    if (answer.kind === 'status' && (before === null || isLate)) {
      const { seq } = answer
      watched.older = before
      watched.before = {
        at,
        seq,
        ownSeq,
        ownSeqAtFirst: before === null || seq !== null ? ownSeq : before.ownSeqAtFirst,
      }
    }
    const isNews = findings.verdict !== state.verdict
    watched.state = { ...state, ...findings, ownSeq, checkedAt: at, since: isNews ? at : state.since }
    if (isNews) tell(log, watched.state)
    this.#announce(watched, at)
  }

  #announce(watched: Watched, at: number): void {
    if (!MENDABLE.includes(watched.state.verdict)) {
      watched.nextAnnounceAt = 0
      watched.announceWaitMs = ANNOUNCE_MIN_MS
      return
    }
    if (at < watched.nextAnnounceAt) return
    watched.nextAnnounceAt = at + watched.announceWaitMs
    watched.announceWaitMs = Math.min(ANNOUNCE_MAX_MS, watched.announceWaitMs * 2)
    watched.state.announcedAt = at
    this.#parts.announce(watched.state.relay)
  }

  async #ask(relay: string): Promise<RelayAnswer> {
    const { fetch, publicHost } = this.#parts
    try {
      const url = new URL('/xrpc/com.atproto.sync.getHostStatus', relay)
      url.searchParams.set('hostname', publicHost)
      return asked(await fetch(url, { timeoutMs: TIMEOUT_MS, bytesMax: 65_536, signal: this.#stop.signal }))
    } catch (error) {
      return { kind: 'none', problem: (error as Error).message }
    }
  }

  #addMetrics(): void {
    const { metrics, head } = this.#parts
    if (!metrics || this.#relays.length === 0) return
    const labels = { relay: this.#relays.map(({ state }) => hostOf(state.relay)) }
    metrics.gauge('pds_log_head_seq', 'Seq of the last event.', { collect: gauge => gauge.set({}, head()) })
    metrics.gauge('pds_relay_seq', 'Seq of ours up to which a relay has followed; -1 where it does not say.', {
      labels,
      collect: gauge => {
        for (const { state } of this.#relays) gauge.set({ relay: hostOf(state.relay) }, state.seq ?? -1)
      },
    })
    metrics.gauge('pds_relay_verdict', 'How we stand with a relay: 1 for what applies.', {
      labels: { ...labels, verdict: VERDICTS },
      collect: gauge => {
        for (const { state } of this.#relays) {
          for (const verdict of VERDICTS) {
            gauge.set({ relay: hostOf(state.relay), verdict }, state.verdict === verdict ? 1 : 0)
          }
        }
      },
    })
  }
}

const unasked = {
  verdict: 'unchecked',
  severity: 'fine',
  seq: null,
  status: null,
  accounts: null,
  advice: null,
} as const
const hostOf = (relay: string) => URL.parse(relay)?.host ?? relay

function tell(log: Logger, state: RelayState): void {
  const { relay, verdict, severity, seq, ownSeq, advice } = state
  const about = { relay, verdict, seq, ownSeq }
  if (severity === 'critical') log.error(about, advice!)
  else if (severity === 'warning') log.warn(about, advice!)
  else log.info(about, advice ?? 'the relay follows')
}
