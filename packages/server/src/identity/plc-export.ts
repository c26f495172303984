/**
 * Follows the export of a did:plc directory: its pages up to the present, then its stream, and again from there whenever
 * that ends. Lines come in order of their seq and once each; whether an operation may stand is for the sink to judge.
 *
 * Source: did:plc specification v0.3.0 (`/export?after=<seq>`, `/export/stream?cursor=<seq>`).
 */
import { setTimeout as systemSleep } from 'node:timers/promises'
import { Malformed, Unavailable } from '@millisky/core/errors'
import { type PlcEntry, parsePlcEntry } from '@millisky/core/plc'
import { type Did, isPlcDid } from '@millisky/core/syntax'
import type { Fetcher } from '../fetch.ts'
import { Follow, type FollowEnd } from '../follow.ts'

const PAGE = 1_000
/** A page of the largest operations, with blanks. */
const PAGE_BYTES = 32 * 1_048_576
const LINE_BYTES = 65_536
const PAGE_TIMEOUT_MS = 60_000
const RETRY_AFTER_MAX_S = 3_600
/** While the stream is open and silent, nothing older than this can be missing: it is pinged twice as often. */
const LIVE_LAG_MS = 90_000
/** Attempts in a row that found another directory, about half a minute, before a sink is told to begin anew. */
const CLEAR_AFTER = 5
/** How often a sink is told that nothing has changed. */
const NOTE_MS = 30_000

/** An operation that a directory has accepted. Its CID is right, nothing else has been checked. */
export interface ExportedOperation {
  readonly seq: number
  readonly entry: PlcEntry
}

/** A line with a seq that holds no operation. */
export interface UnreadableLine {
  readonly seq: number
  readonly did: Did | null
  readonly problem: string
}

export type ExportLine = ExportedOperation | UnreadableLine

/** How far a sink has come. */
export interface ExportPosition {
  /** Of the last line taken; 0 in the beginning. */
  readonly seq: number
  /** Its CID, to know the directory again; null when it had none. */
  readonly cid: string | null
  /** What was taken is everything up to this time, milliseconds; null before that was ever so. */
  readonly trueAt: number | null
}

export interface PlcExportSink {
  position(): Promise<ExportPosition>
  /** Takes lines in order, perhaps none. Durable together with the position when it resolves. `isLive`: they are news. */
  take(lines: readonly ExportLine[], position: ExportPosition, isLive: boolean): Promise<void>
  /** Forgets everything, to begin at 0: the directory was put back in time and stays so. Without it nothing goes on then. */
  clear?(): Promise<void>
}

/**
 * - `reading` pages; `live` on the stream; `waiting` to try again
 * - `behind` the directory has not come as far as we have; `diverged` it holds another operation where we stood: either it
 *   was put back in time or it is another directory. Tried again all the same.
 */
export type PlcExportState = 'reading' | 'live' | 'waiting' | 'behind' | 'diverged' | 'stopped'

export interface PlcExportParts {
  /** Origin of the directory. */
  url: string
  fetcher: Pick<Fetcher, 'fetch' | 'reach'>
  userAgent: string
  sink: PlcExportSink
  now: () => number
  /** Told why a connection, page or check failed. */
  onTrouble?: (problem: string, state: PlcExportState) => void
  onState?: (state: PlcExportState) => void
  settings?: Partial<PlcExportSettings>
}

export interface PlcExportSettings {
  /** First wait after a failure; doubled with each. Default 1 s. */
  retryMinMs: number
  /** Default 5 min. */
  retryMaxMs: number
  /** Operations asked for at a time; default 1,000. */
  page: number
}

/** The directory is not the one, or not as far, as it was. */
class WrongDirectory extends Error {
  readonly state: PlcExportState

  constructor(state: 'behind' | 'diverged', message: string) {
    super(message)
    this.state = state
  }
}

export class PlcExport {
  readonly #parts: PlcExportParts
  readonly #settings: PlcExportSettings
  readonly #stop = new AbortController()
  #position: ExportPosition = { seq: 0, cid: null, trueAt: null }
  #state: PlcExportState = 'waiting'
  /** What the sink is doing, one thing after the other. */
  #taking: Promise<void> | null = null
  #failures = 0
  /** How long the directory wants to be left alone. */
  #pauseMs = 0
  /** The stream begins later than where we stand: what is between has to come in pages to the last. */
  #isOutdated = false
  #running: Promise<void> | null = null

  constructor(parts: PlcExportParts) {
    this.#parts = parts
    this.#settings = { retryMinMs: 1_000, retryMaxMs: 300_000, page: PAGE, ...parts.settings }
  }

  get state(): PlcExportState {
    return this.#state
  }

  get position(): ExportPosition {
    return this.#position
  }

  /** Everything up to this time has been taken; null when that cannot be said. */
  get trueAt(): number | null {
    const { trueAt } = this.#position
    if (this.#state !== 'live' || this.#taking !== null || trueAt === null) return trueAt
    return Math.max(trueAt, this.#parts.now() - LIVE_LAG_MS)
  }

  /** Reads the position; then follows until {@link stop}. */
  async start(): Promise<void> {
    this.#position = await this.#parts.sink.position()
    this.#running ??= this.#run()
  }

  async stop(): Promise<void> {
    this.#stop.abort()
    await this.#running
    this.#become('stopped')
  }

  async #run(): Promise<void> {
    const { signal } = this.#stop
    while (!signal.aborted) {
      const { seq } = this.#position
      try {
        this.#become('reading')
        await this.#check()
        await this.#read()
        await this.#stream()
      } catch (error) {
        if (signal.aborted) return
        this.#become(error instanceof WrongDirectory ? error.state : 'waiting')
        this.#parts.onTrouble?.(error instanceof Error ? error.message : String(error), this.#state)
      }
      this.#failures = this.#position.seq > seq ? 0 : this.#failures + 1
      const { retryMinMs, retryMaxMs } = this.#settings
      const backOffMs = Math.min(retryMaxMs, retryMinMs * 2 ** Math.min(30, Math.max(0, this.#failures - 1)))
      const ms = Math.max(backOffMs, this.#pauseMs)
      this.#pauseMs = 0
      await systemSleep(ms, undefined, { signal }).catch(() => {})
    }
  }

  #become(state: PlcExportState): void {
    if (this.#state === state) return
    this.#state = state
    this.#parts.onState?.(state)
  }

  /** Whether the line that was taken last is still there. */
  async #check(): Promise<void> {
    const { seq, cid } = this.#position
    if (seq === 0) return
    const { lines } = await this.#page(seq - 1, 1)
    const [there] = lines
    if (there === undefined) throw new WrongDirectory('behind', `the directory has nothing at seq ${seq} yet`)
    const its = 'entry' in there ? there.entry.cid : null
    if (there.seq !== seq || its !== cid) {
      if (this.#failures >= CLEAR_AFTER && this.#parts.sink.clear) {
        await this.#parts.sink.clear()
        this.#position = await this.#parts.sink.position()
        return
      }
      throw new WrongDirectory('diverged', `the directory holds another operation at seq ${seq} than it did`)
    }
  }

  async #read(): Promise<void> {
    for (;;) {
      this.#stop.signal.throwIfAborted()
      const askedAt = this.#parts.now()
      const { lines, isCut } = await this.#page(this.#position.seq, this.#settings.page)
      const isLast = !isCut && lines.length < (this.#isOutdated ? 1 : this.#settings.page)
      await this.#take(lines, isLast ? askedAt : this.#position.trueAt, false)
      if (isCut && lines.length === 0) throw new Unavailable('UpstreamFailure', 'a page of the export is cut off')
      if (isLast) break
    }
    this.#isOutdated = false
  }

  async #page(after: number, count: number): Promise<{ lines: ExportLine[]; isCut: boolean }> {
    const { fetcher, url } = this.#parts
    const answer = await fetcher.fetch(`${url}/export?after=${after}&count=${count}`, {
      timeoutMs: PAGE_TIMEOUT_MS,
      bytesMax: PAGE_BYTES,
      signal: this.#stop.signal,
    })
    if (answer.status !== 200) {
      // Directories let one reader have so many pages in some minutes.
      this.#pauseMs = Math.min(RETRY_AFTER_MAX_S, Number(answer.headers.get('retry-after')) || 0) * 1_000
      throw new Unavailable('UpstreamFailure', `/export answered ${answer.status}`, 502)
    }
    const lines: ExportLine[] = []
    let last = after
    for (const text of Buffer.from(answer.bytes).toString().split('\n')) {
      if (text === '') continue
      const line = readLine(text)
      if (line === null) return { lines, isCut: true }
      if (line.seq <= last) throw new Unavailable('UpstreamFailure', `/export is not in order at seq ${line.seq}`, 502)
      last = line.seq
      lines.push(line)
    }
    return { lines, isCut: false }
  }

  /** Follows the stream until it ends; always throws, since there is no end. */
  async #stream(): Promise<never> {
    const { url, fetcher, userAgent, now } = this.#parts
    const ended = Promise.withResolvers<FollowEnd>()
    const follow = new Follow({
      url: `${url.replace(/^http/, 'ws')}/export/stream`,
      cursor: () => this.#position.seq,
      reach: fetcher.reach,
      userAgent,
      isText: true,
      now,
      settings: { frameBytes: LINE_BYTES },
      onOpen: () => this.#become('live'),
      onFrames: frames => this.#takeLive(frames),
      onEnd: ended.resolve,
    })
    const { signal } = this.#stop
    const stopped = () => void follow.stop()
    signal.addEventListener('abort', stopped)
    const notes = setInterval(() => this.#note(), NOTE_MS)
    try {
      const end = await ended.promise
      if (end.detail === 'OutdatedCursor') this.#isOutdated = true
      if (end.detail === 'FutureCursor') throw new WrongDirectory('behind', 'the directory has not come this far')
      throw new Unavailable('UpstreamFailure', `the stream ended: ${end.reason} ${end.detail}`.trim())
    } finally {
      clearInterval(notes)
      signal.removeEventListener('abort', stopped)
      // What it has handed over is taken to the end before anything else is asked for.
      await follow.stop()
    }
  }

  async #takeLive(frames: readonly Uint8Array[]): Promise<void> {
    const { seq: before, trueAt } = this.#position
    const lines: ExportLine[] = []
    let last = before
    for (const frame of frames) {
      const line = readLine(Buffer.from(frame).toString())
      if (line === null) throw new Malformed('a message of the stream is no line of an export')
      if (line.seq <= last) throw new Malformed(`the stream went back from seq ${last} to ${line.seq}`)
      last = line.seq
      lines.push(line)
    }
    await this.#take(lines, trueAt === null ? null : Math.max(trueAt, this.#parts.now() - LIVE_LAG_MS), true)
  }

  async #take(lines: readonly ExportLine[], trueAt: number | null, isLive: boolean): Promise<void> {
    while (this.#taking) await this.#taking.catch(() => {})
    const last = lines.at(-1)
    const { seq, cid } = this.#position
    const at = last ? { seq: last.seq, cid: 'entry' in last ? last.entry.cid : null } : { seq, cid }
    this.#taking = this.#parts.sink.take(lines, { ...at, trueAt }, isLive)
    try {
      await this.#taking
      this.#position = { ...at, trueAt }
    } finally {
      this.#taking = null
    }
  }

  /** Saves that nothing has changed for a while. */
  #note(): void {
    if (this.#taking) return
    this.#take([], this.trueAt, true).catch(error => this.#parts.onTrouble?.(String(error), this.#state))
  }
}

/** Null when a text is no JSON, or has no seq and so no place. */
function readLine(text: string): ExportLine | null {
  let json: unknown
  try {
    json = JSON.parse(text)
  } catch {
    return null
  }
  if (typeof json !== 'object' || json === null) return null
  const { seq, did } = json as { seq?: unknown; did?: unknown }
  if (!Number.isSafeInteger(seq) || (seq as number) < 1) return null
  try {
    return { seq: seq as number, entry: parsePlcEntry(json) }
  } catch (error) {
    if (!(error instanceof Malformed)) throw error
    return { seq: seq as number, did: isPlcDid(did) ? did : null, problem: error.message }
  }
}
