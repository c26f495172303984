/**
 * Follows another server's event stream: connects, hands over its frames, and connects again when it ends.
 *
 * Frames are not looked into, except that one which says "error" ends the connection. The caller keeps the cursor and is
 * asked for it before every attempt; what it has taken counts as progress and resets the back-off.
 */
import type { IncomingHttpHeaders, IncomingMessage } from 'node:http'
import { connect as connectPlain, isIP, type LookupFunction, type TcpNetConnectOpts } from 'node:net'
import { setTimeout as systemSleep } from 'node:timers/promises'
import { connect as connectTls } from 'node:tls'
import { Refused } from '@millisky/core/errors'
import { decodeFrame, readError } from '@millisky/core/event'
import { FRAME_BYTES_MAX } from '@millisky/core/limits'
import { type ClientOptions, WebSocket } from 'ws'
import { AwakeClock } from './awake.ts'
import { checkHost, checkUrl, guardedLookup, type Reach } from './fetch.ts'
import { ReceiveMemory } from './receive-memory.ts'

/**
 * Why a connection ended, or was not made:
 * - `unreachable` no connection (DNS, refused, TLS, too slow); `forbidden` the URL or address is not to be reached
 * - `refused` an HTTP status instead of a handshake; `redirected` the same with a redirect, which is never followed
 * - `rejected` the caller threw on what it was given; `error-frame` the other side said so, `error` tells what
 * - `text-frame`, `frame-too-big`, `protocol` the other side broke the rules
 * - `closed` by the other side with a closing frame; `lost` without one; `silent` no answer to a ping
 * - `dropped` by {@link Follow.drop}; `stopped` by {@link Follow.stop}
 */
export type FollowEndReason =
  | 'unreachable'
  | 'forbidden'
  | 'refused'
  | 'redirected'
  | 'rejected'
  | 'error-frame'
  | 'text-frame'
  | 'frame-too-big'
  | 'protocol'
  | 'closed'
  | 'lost'
  | 'silent'
  | 'dropped'
  | 'stopped'

export interface FollowEnd {
  reason: FollowEndReason
  /** For people; may quote the other side. */
  detail: string
  /** HTTP status of `refused` and `redirected`. */
  status?: number
  /** Name of `error-frame`, such as `FutureCursor`. */
  error?: string
  /** Closing code of `closed`. */
  code?: number
  /** What the caller threw, of `rejected`. */
  cause?: unknown
  /** How long the connection was open; 0 when it never was. */
  openMs: number
  /** Frames received over this connection. */
  frames: number
  /** Attempts without progress up to now, this one included; 0 after progress. */
  failures: number
  /** Time until the next attempt. */
  retryMs: number
}

export interface FollowSettings {
  /** Until the handshake is done; default 10 s. */
  handshakeMs: number
  /** The other side is pinged when it was silent for this long; default 30 s. */
  pingMs: number
  /** And given up when it stays silent for this long after the ping; default 30 s. */
  deadMs: number
  /** First wait between attempts; doubled with each failure. The actual wait is 50 to 100 % of it. Default 1 s. */
  retryMinMs: number
  /** Longest wait between attempts; default 5 min. */
  retryMaxMs: number
  /** A connection that stayed open for this long counts as progress, also without a frame; default 60 s. */
  stableMs: number
  /** Frames waiting while the caller is busy, with what holding each costs; above that the socket is not read. Default 1 MiB. */
  waitingBytes: number
  /** Longest frame; default that of the protocol. */
  frameBytes: number
}

/** What a frame that waits takes beside its bytes. */
const FRAME_OVERHEAD_BYTES = 256

export const FOLLOW_DEFAULTS: Readonly<FollowSettings> = {
  handshakeMs: 10_000,
  pingMs: 30_000,
  deadMs: 30_000,
  retryMinMs: 1_000,
  retryMaxMs: 300_000,
  stableMs: 60_000,
  waitingBytes: 1_048_576,
  frameBytes: FRAME_BYTES_MAX,
}

export interface FollowParts {
  /** `wss://host/xrpc/…`, or `ws:` with the development switch. May have parameters. */
  url: string | URL
  /** Asked before each attempt; added as parameter `cursor`. Null and undefined leave it out: start at the live tail. */
  cursor?: () => number | null | undefined
  reach: Reach
  userAgent: string
  /** Messages are text, as in streams of JSON, rather than binary; no error frames are looked for then. */
  isText?: boolean
  /**
   * Takes frames in order, one call at a time. While a returned promise is pending, few more are read off the socket.
   * The frames are views into receive buffers: copy one to keep it for long, or `release` it (`receive-memory.ts`) as soon as
   * it is done with, if there are very many. Throwing ends the connection as `rejected`.
   */
  onFrames(frames: Uint8Array[]): void | Promise<void>
  /** The handshake is done; `headers` are those of the answer. Throwing ends the connection as `rejected`. */
  onOpen?(headers: IncomingHttpHeaders): void
  /** Told after the caller has taken the last frame. May call {@link Follow.stop}. */
  onEnd?(end: FollowEnd): void
  settings?: Partial<FollowSettings>
  /** Milliseconds. */
  now?: () => number
  /** From 0 to below 1. */
  random?: () => number
  /** Waits between attempts; has to end when the signal is aborted, by rejection or not. */
  sleep?: (ms: number, signal: AbortSignal) => Promise<void>
}

export type FollowState = 'connecting' | 'open' | 'waiting' | 'stopped'

/** Pings and pongs that may come at once, and in a second in the long run; the other side that sends more is up to no good. */
const CONTROL_BURST = 100
const CONTROL_PER_SECOND = 10

/** A stream being followed; it goes on until {@link stop}. */
export class Follow {
  readonly #parts: FollowParts
  readonly #settings: FollowSettings
  readonly #now: () => number
  readonly #stop = new AbortController()
  readonly #done: Promise<void>
  #connection: Connection | null = null
  #waiting: AbortController | null = null
  #failures = 0

  constructor(parts: FollowParts) {
    this.#parts = parts
    this.#settings = { ...FOLLOW_DEFAULTS, ...parts.settings }
    this.#now = parts.now ?? Date.now
    this.#done = this.#run()
  }

  get state(): FollowState {
    if (this.#stop.signal.aborted) return 'stopped'
    if (this.#waiting) return 'waiting'
    return this.#connection?.openedAt == null ? 'connecting' : 'open'
  }

  /** Attempts in a row without progress. */
  get failures(): number {
    return this.#failures
  }

  /** Ends the connection if there is one, and tries again after the usual wait. */
  drop(detail: string): void {
    this.#connection?.end({ reason: 'dropped', detail })
  }

  /** Ends the wait between attempts and forgets the failures; does nothing while connected. */
  retryNow(): void {
    this.#failures = 0
    this.#waiting?.abort()
  }

  /**
   * Ends it. When this resolves the caller has returned from its last frames and is given no more; so do not await it
   * inside `onFrames`.
   */
  async stop(): Promise<void> {
    this.#stop.abort()
    this.#waiting?.abort()
    this.#connection?.end({ reason: 'stopped', detail: '' })
    await this.#done
  }

  async #run(): Promise<void> {
    const sleep = this.#parts.sleep ?? ((ms, signal) => systemSleep(ms, undefined, { signal }))
    // The caller gets its Follow before it gets a callback.
    await null
    while (!this.#stop.signal.aborted) {
      const connection = (this.#connection = new Connection(this.#parts, this.#settings, this.#now))
      const ended = await connection.run()
      this.#connection = null
      const progressed = connection.taken > 0 || ended.openMs >= this.#settings.stableMs
      this.#failures = progressed && ended.reason !== 'rejected' ? 0 : this.#failures + 1
      const retryMs = this.#retryMs()
      this.#parts.onEnd?.({ ...ended, failures: this.#failures, retryMs })
      if (this.#stop.signal.aborted) return
      const waiting = (this.#waiting = new AbortController())
      await sleep(retryMs, waiting.signal).catch(() => {})
      this.#waiting = null
    }
  }

  #retryMs(): number {
    const { retryMinMs, retryMaxMs } = this.#settings
    const full = Math.min(retryMaxMs, retryMinMs * 2 ** Math.min(40, Math.max(0, this.#failures - 1)))
    return Math.round(full * (0.5 + (this.#parts.random ?? Math.random)() / 2))
  }
}

type Ended = Omit<FollowEnd, 'failures' | 'retryMs'>
type EndWhy = Pick<FollowEnd, 'reason' | 'detail'> & Partial<Pick<FollowEnd, 'status' | 'error' | 'code' | 'cause'>>

/** One attempt and, if it succeeds, the connection that comes of it. */
class Connection {
  openedAt: number | null = null
  /** Frames that the caller took. */
  taken = 0
  #frames = 0
  readonly #parts: FollowParts
  readonly #settings: FollowSettings
  readonly #now: () => number
  readonly #over = Promise.withResolvers<void>()
  #socket: WebSocket | null = null
  readonly #memory = new ReceiveMemory()
  #why: EndWhy | null = null
  #endedAt = 0
  #waiting: Uint8Array[] = []
  #waitingBytes = 0
  #delivering: Promise<void> | null = null
  readonly #awake: AwakeClock
  readonly #watchMs: number
  /** By the awake clock. */
  #heardAt = 0
  #pinged = false
  #controls = 0

  constructor(parts: FollowParts, settings: FollowSettings, now: () => number) {
    this.#parts = parts
    this.#settings = settings
    this.#now = now
    this.#watchMs = Math.max(5, Math.min(settings.pingMs, settings.deadMs) / 4)
    this.#awake = new AwakeClock(now, this.#watchMs)
  }

  /** Resolves when the connection is gone and the caller has taken what came over it. */
  async run(): Promise<Ended> {
    const { handshakeMs } = this.#settings
    const timer = setTimeout(() => {
      if (this.openedAt === null) this.end({ reason: 'unreachable', detail: 'The handshake took too long' })
    }, handshakeMs)
    const watch = setInterval(() => this.#watch(), this.#watchMs)
    try {
      this.#connect()
      await this.#over.promise
      await this.#delivering
    } catch (error) {
      this.end(whyNot(error))
    } finally {
      clearTimeout(timer)
      clearInterval(watch)
    }
    const openMs = this.openedAt === null ? 0 : Math.max(0, this.#endedAt - this.openedAt)
    return { ...(this.#why ?? { reason: 'lost', detail: '' }), openMs, frames: this.#frames }
  }

  /** The first reason stands. */
  end(why: EndWhy): void {
    if (this.#why !== null) return
    this.#why = why
    this.#endedAt = this.#now()
    const { reason } = why
    if (reason === 'stopped' || reason === 'rejected' || reason === 'dropped') this.#waiting = []
    const socket = this.#socket
    // The rest of what the other side has to say is of no interest, so no closing handshake is waited for.
    if (socket?.readyState === WebSocket.OPEN) socket.close(reason === 'stopped' ? 1000 : 1008)
    socket?.terminate()
    this.#over.resolve()
  }

  #connect(): void {
    const { reach, cursor, userAgent } = this.#parts
    const url = new URL(checkUrl(this.#parts.url, reach, ['wss:', 'ws:']))
    const after = cursor?.()
    if (typeof after === 'number') url.searchParams.set('cursor', String(after))
    const socket = (this.#socket = new WebSocket(url, {
      headers: { 'user-agent': userAgent },
      perMessageDeflate: false,
      followRedirects: false,
      maxPayload: this.#settings.frameBytes,
      createConnection: guardedConnect(url.protocol === 'wss:', reach),
    }))
    this.#memory.watch(socket)
    socket.on('upgrade', response => this.#opened(response))
    socket.on('unexpected-response', (request, response) => {
      this.end(whyNoHandshake(response))
      request.destroy()
    })
    socket.on('message', (data, isBinary) => this.#received(data as Buffer, isBinary))
    const control = () => this.#control()
    socket.on('ping', control).on('pong', control)
    socket.on('error', error => this.end(this.openedAt === null ? whyNot(error) : whyBroken(error)))
    socket.on('close', (code, reason) => {
      if (code === 1006) this.end({ reason: 'lost', detail: 'The connection was lost' })
      else this.end({ reason: 'closed', detail: reason.toString(), code })
    })
  }

  #opened(response: IncomingMessage): void {
    this.openedAt = this.#now()
    this.#heardAt = this.#awake.ms
    try {
      this.#parts.onOpen?.(response.headers)
    } catch (error) {
      this.end({ reason: 'rejected', detail: messageOf(error), cause: error })
    }
  }

  #heard(): void {
    this.#heardAt = this.#awake.ms
    this.#pinged = false
  }

  /** Frames have their limits elsewhere; these cost the caller nothing but time. */
  #control(): void {
    this.#heard()
    const openMs = this.#now() - (this.openedAt ?? this.#now())
    if (++this.#controls <= CONTROL_BURST + (openMs / 1_000) * CONTROL_PER_SECOND) return
    this.end({ reason: 'protocol', detail: 'Far too many pings or pongs' })
  }

  #received(frame: Buffer, isBinary: boolean): void {
    if (this.#why !== null) return
    this.#heard()
    this.#frames++
    this.#memory.read(frame)
    const isWanted = isBinary !== (this.#parts.isText ?? false)
    const wrong = !isWanted ? (isBinary ? BINARY : TEXT) : isBinary ? errorOf(frame) : null
    if (wrong) {
      this.end(wrong)
      return
    }
    this.#waiting.push(frame)
    this.#waitingBytes += frame.byteLength + FRAME_OVERHEAD_BYTES
    this.#delivering ??= this.#deliver()
    if (this.#waitingBytes > this.#settings.waitingBytes) this.#socket?.pause()
  }

  async #deliver(): Promise<void> {
    // What one round of the event loop brings is handed over at once.
    await new Promise(setImmediate)
    while (this.#waiting.length > 0) {
      const frames = this.#waiting
      this.#waiting = []
      this.#waitingBytes = 0
      try {
        await this.#parts.onFrames(frames)
        this.taken += frames.length
      } catch (error) {
        this.end({ reason: 'rejected', detail: messageOf(error), cause: error })
        // Also when it had ended already: these were the frames before the end, and they are what was wrong.
        if (this.#why?.reason !== 'stopped') this.#why = { reason: 'rejected', detail: messageOf(error), cause: error }
        this.#waiting = []
      }
      if (this.#socket?.isPaused) {
        this.#heard()
        this.#socket.resume()
      }
    }
    this.#delivering = null
  }

  #watch(): void {
    const now = this.#awake.look()
    const socket = this.#socket
    if (this.openedAt === null || !socket || socket.readyState !== socket.OPEN || socket.isPaused) return
    const silentMs = now - this.#heardAt
    if (silentMs > this.#settings.pingMs + this.#settings.deadMs) {
      this.end({ reason: 'silent', detail: `Nothing came for ${silentMs} ms, not even the answer to a ping` })
    } else if (silentMs > this.#settings.pingMs && !this.#pinged) {
      this.#pinged = true
      socket.ping()
    }
  }
}

/** How a socket is opened for a URL that a stranger named: no address but those in {@link Reach}. */
function guardedConnect(secure: boolean, reach: Reach): NonNullable<ClientOptions['createConnection']> {
  const lookup: LookupFunction = guardedLookup(reach)
  const open = (options: TcpNetConnectOpts & { host: string }) => {
    checkHost(options.host, reach)
    const target = { ...options, path: undefined, lookup }
    if (!secure) return connectPlain(target)
    return connectTls({ ...target, servername: isIP(options.host) === 0 ? options.host : '' })
  }
  return open as unknown as NonNullable<ClientOptions['createConnection']>
}

const BINARY: EndWhy = { reason: 'protocol', detail: 'A binary message came where only text ones may' }
const TEXT: EndWhy = { reason: 'text-frame', detail: 'A text message came where only binary ones may' }

/** Headers of ordinary frames are maps of two entries; what else there is gets decoded. */
function errorOf(frame: Uint8Array): EndWhy | null {
  if (frame[0] === 0xa2) return null
  try {
    const { op, body } = decodeFrame(frame)
    if (op !== -1) return null
    const { error, message } = readError(body)
    return { reason: 'error-frame', detail: message ?? '', error }
  } catch {
    // Not for here to judge: the caller sees it.
    return null
  }
}

function whyNoHandshake(response: IncomingMessage): EndWhy {
  const status = response.statusCode ?? 0
  const detail = `HTTP ${status} ${response.statusMessage ?? ''}`.trim()
  return { reason: status >= 300 && status < 400 ? 'redirected' : 'refused', detail, status }
}

function whyNot(error: unknown): EndWhy {
  if (error instanceof Refused) return { reason: 'forbidden', detail: error.message, cause: error }
  const first = error instanceof AggregateError ? error.errors[0] : error
  return { reason: 'unreachable', detail: messageOf(first), cause: error }
}

function whyBroken(error: Error & { code?: string }): EndWhy {
  const { code = '', message } = error
  if (code === 'WS_ERR_UNSUPPORTED_MESSAGE_LENGTH') return { reason: 'frame-too-big', detail: message }
  return { reason: code.startsWith('WS_ERR_') ? 'protocol' : 'lost', detail: message, cause: error }
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
