/** One connection to each host: where it begins, what its ends mean, and when a host counts as offline. */
import type { IncomingHttpHeaders } from 'node:http'
import { setTimeout as systemSleep } from 'node:timers/promises'
import { Malformed } from '@millisky/core/errors'
import { decodeFrame, readInfo } from '@millisky/core/event'
import type { Reach } from '@millisky/server/fetch'
import { Follow, type FollowEnd, type FollowSettings } from '@millisky/server/follow'
import type { Host, Hosts } from './hosts.ts'
import { BrokenFrame } from './ingest.ts'

/** In the `Server` header of relays. Source: relay practice (T36). */
export const RELAY_MARKER = 'atproto-relay'
/** Attempts in a row, after about two minutes, that make a host offline. It goes on being tried. */
const FAILURES_OFFLINE = 8
/** The longest wait between two attempts. */
const RETRY_MAX_MS = 3_600_000
/** A host that was offline and is connected for this long is active again, also when nothing comes. */
const PROOF_MS = 5_000
/** A connected host of which nothing came for this long is idle. */
const IDLE_MS = 24 * 3_600_000
/** How many connections are begun at once in the beginning, and the time until the next ones. */
const START_BURST = 40
const START_PAUSE_MS = 50

export interface UpstreamsParts {
  hosts: Hosts
  /** Takes frames; see `Ingest.take`. */
  take(host: Host, frames: readonly Uint8Array[]): Promise<void> | undefined
  /** Ends what `take` waits for: nobody listens to the host any more. */
  release?(host: Host): void
  reach: Reach
  userAgent: string
  now: () => number
  settings?: Partial<FollowSettings>
  onEnd?(host: Host, end: FollowEnd): void
}

/** One host being followed. */
interface Upstream {
  follow: Follow
  /** Connections in a row that ended with a broken frame, without progress in between. */
  broken: number
  brokenAt: number | null
  /** Until a host that was offline has proven that it is back. */
  proof: NodeJS.Timeout | null
}

export class Upstreams {
  readonly #parts: UpstreamsParts
  readonly #upstreams = new Map<Host, Upstream>()
  readonly #sweep: NodeJS.Timeout
  #closed = false

  constructor(parts: UpstreamsParts) {
    this.#parts = parts
    this.#sweep = setInterval(() => this.#noteIdle(), 60_000)
    this.#sweep.unref()
  }

  /** Connects to all hosts that are not banned, those that were active first, a few at a time. */
  async start(): Promise<void> {
    const rank = ({ record }: Host) => (record.status === 'active' ? 0 : record.status === 'offline' ? 2 : 1)
    const hosts = this.#parts.hosts.list().filter(host => !this.#isUnwanted(host))
    let begun = 0
    for (const host of hosts.sort((a, b) => rank(a) - rank(b))) {
      if (this.#closed) return
      this.connect(host)
      if (++begun % START_BURST === 0) await systemSleep(START_PAUSE_MS)
    }
  }

  /** Follows a host, or tries at once if it waits to try again. */
  connect(host: Host): void {
    if (this.#closed) return
    const known = this.#upstreams.get(host)
    if (known) {
      known.follow.retryNow()
      return
    }
    const upstream: Upstream = { follow: null as never, broken: 0, brokenAt: null, proof: null }
    const url = `${host.record.noTls ? 'ws' : 'wss'}://${host.hostname}/xrpc/com.atproto.sync.subscribeRepos`
    upstream.follow = new Follow({
      url,
      cursor: () => host.resumeAt,
      reach: this.#parts.reach,
      userAgent: this.#parts.userAgent,
      now: this.#parts.now,
      settings: { retryMaxMs: RETRY_MAX_MS, ...this.#parts.settings },
      onOpen: headers => this.#opened(host, upstream, headers),
      onFrames: frames => {
        if (upstream.proof !== null) this.#prove(host, upstream)
        return this.#parts.take(host, frames)
      },
      onEnd: end => this.#ended(host, upstream, end),
    })
    this.#upstreams.set(host, upstream)
  }

  isConnected(host: Host): boolean {
    return this.#upstreams.get(host)?.follow.state === 'open'
  }

  /** Stops following a host. */
  async disconnect(host: Host): Promise<void> {
    const upstream = this.#upstreams.get(host)
    if (!upstream) return
    this.#upstreams.delete(host)
    this.#unprove(upstream)
    host.connectedAt = null
    this.#parts.release?.(host)
    await upstream.follow.stop()
  }

  /** Ends the connection of a host that sent a frame which is none; it is dialled again from behind that frame. */
  broken(host: Host, detail: string): void {
    this.#upstreams.get(host)?.follow.drop(detail)
  }

  /** An `#info`, which is about the stream itself. */
  info(host: Host, frame: Uint8Array): void {
    try {
      const { name, message } = readInfo(decodeFrame(frame).body)
      if (name === 'OutdatedCursor') {
        const detail = `events after seq ${host.resumeAt} are no longer kept there (${message ?? name})`
        this.#parts.hosts.noteGap(host, detail, { goesOn: true })
      }
    } catch (error) {
      if (!(error instanceof Malformed)) throw error
    }
  }

  /** Stops them all. */
  async close(): Promise<void> {
    this.#closed = true
    clearInterval(this.#sweep)
    await Promise.all([...this.#upstreams.keys()].map(host => this.disconnect(host)))
  }

  #isUnwanted(host: Host): boolean {
    return host.record.status === 'banned' || this.#parts.hosts.bannedDomain(host.hostname) !== null
  }

  #opened(host: Host, upstream: Upstream, headers: IncomingHttpHeaders): void {
    if (String(headers.server ?? '').includes(RELAY_MARKER)) {
      this.#parts.hosts.noteStatus(host, 'banned', 'it is a relay itself')
      void this.disconnect(host)
      return
    }
    host.socketSeq = -1
    host.connectedAt = this.#parts.now()
    host.lastEventAt ||= host.connectedAt
    if (host.record.status === 'offline') {
      // If it has gone while nothing ran here, that is heard first.
      const prove = () => setImmediate(() => this.#prove(host, upstream))
      upstream.proof = setTimeout(prove, this.#parts.settings?.stableMs ?? PROOF_MS).unref()
    }
  }

  /** A host that was offline is back with what it sends, or when it stays for a while: opening alone proves nothing. */
  #prove(host: Host, upstream: Upstream): void {
    if (upstream.proof === null) return
    this.#unprove(upstream)
    if (host.record.status === 'offline') this.#parts.hosts.noteStatus(host, 'active', null)
  }

  #unprove(upstream: Upstream): void {
    clearTimeout(upstream.proof ?? undefined)
    upstream.proof = null
  }

  #ended(host: Host, upstream: Upstream, end: FollowEnd): void {
    const { hosts } = this.#parts
    this.#unprove(upstream)
    host.connectedAt = null
    host.lastEnd = end.error ? `${end.reason}: ${end.error} ${end.detail}` : `${end.reason}: ${end.detail}`
    // Without a cursor there is nothing to give up: it is a failure like any other.
    if (end.error === 'FutureCursor' && host.resumeAt !== null) {
      hosts.noteGap(host, `it has not come as far as seq ${host.resumeAt}: its events begin anew`, { goesOn: true })
      host.resumeAt = null
      upstream.follow.retryNow()
    } else if (end.cause instanceof BrokenFrame) this.#stepPastBroken(host, upstream)
    if (end.failures >= FAILURES_OFFLINE && host.record.status !== 'offline' && !this.#isUnwanted(host)) {
      hosts.noteStatus(host, 'offline', host.lastEnd)
    }
    this.#parts.onEnd?.(host, end)
  }

  /**
   * The host would send the same broken frame again after the same cursor. The first time it may have been broken on the
   * way; then it is taken to be the next seq; and if that does not help, only the live tail does.
   */
  #stepPastBroken(host: Host, upstream: Upstream): void {
    const { hosts } = this.#parts
    const at = host.resumeAt
    upstream.broken = upstream.brokenAt === at ? upstream.broken + 1 : 1
    if (at !== null && upstream.broken === 2) {
      hosts.noteGap(host, `the event after seq ${at} is no frame; skipped`)
      host.resumeAt = at + 1
    } else if (at !== null && upstream.broken > 2) {
      hosts.noteGap(host, `the events after seq ${at} are no frames; skipped to the live tail`, { goesOn: true })
      host.resumeAt = null
    }
    upstream.brokenAt = host.resumeAt
  }

  #noteIdle(): void {
    const now = this.#parts.now()
    for (const host of this.#upstreams.keys()) {
      const { status } = host.record
      if (host.connectedAt === null) continue
      const isQuiet = now - Math.max(host.lastEventAt, host.connectedAt) > IDLE_MS
      if (status === 'active' && isQuiet) this.#parts.hosts.noteStatus(host, 'idle', 'nothing came for a day')
      else if (status === 'idle' && !isQuiet) this.#parts.hosts.noteStatus(host, 'active', null)
    }
  }
}
