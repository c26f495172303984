import { ftruncate, mkdirSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { promisify } from 'node:util'
import { crc32 } from 'node:zlib'
import { Unavailable } from '@millisky/core/errors'
import { lockFolder } from './folder-lock.ts'
import { writeWireHeader } from './frame-wire.ts'
import { type Batch, Bell, type Log, type ReadLimit } from './log.ts'
import { type BatchStamp, type Mask, NO_MASK, Ring, type RingBatch } from './ring.ts'
import {
  closeFile,
  dataPath,
  indexPath,
  OpenSegments,
  openFile,
  type Segment,
  syncFile,
  syncFolder,
  writeAt,
} from './segment-files.ts'
import { encodeHeader, HEADER_BYTES, LAG_UNKNOWN, RECORD_BYTES, recordPosition, writeRecord } from './segment-index.ts'
import { SegmentReader } from './segment-reader.ts'
import { LogDamaged, type Recover, type Repair, recoverSegments } from './segment-recovery.ts'
import { readState, skipAfter, writeState } from './segment-state.ts'
import { SegmentTimes, type Stamped, type Stamps, stampsOfRing } from './segment-times.ts'
import { Slabs } from './slabs.ts'

/**
 * When appended events count as safe.
 *
 * - `batch`: before anyone sees them or is told; appends that arrive while the disk is busy share the next write. Nothing acknowledged or sent
 *   is ever lost, and no seq is used twice.
 * - `{ intervalMs }` and `none`: they are visible at once and reach the disk later. A killed process loses nothing, a crash of the machine may;
 *   so after any unclean end the log goes on far above what may have been sent (`SKIP`).
 */
export type FsyncPolicy = 'batch' | 'none' | { readonly intervalMs: number }

export interface SegmentEntry {
  /** Its seq may be anything; it is replaced. Copied, and not needed after the append has resolved. */
  readonly frame: Uint8Array
  /** The relay's number for the account, 0 to 2^53-1; 0 when it has none. */
  readonly account: number
  /** Keeps the frame as it is, under this seq, which is the one in it and greater than all before. */
  readonly seq?: number
}

export interface SegmentLogOptions {
  /** Gives the same frame with this seq. */
  withSeq: (frame: Uint8Array, seq: number, room?: (length: number) => Uint8Array) => Uint8Array
  /** Reads a frame of our own back when its index record is lost. */
  recover: Recover
  /** Milliseconds since the epoch. */
  now: () => number
  fsync?: FsyncPolicy
  /** Every append says its seq ({@link SegmentEntry.seq}): what a crash has lost comes again under the same, so none is skipped. */
  seqsGiven?: boolean
  /** The first seq of a new log, or a floor to continue from after a loss. Default 1. */
  firstSeq?: number
  /** A segment is followed by the next when it has this many bytes; below 4 GiB. Default 256 MiB. */
  segmentBytes?: number
  /** … or is this old. Default one hour. */
  segmentMs?: number
  /** Newest events kept in memory. Default 32 MiB. */
  ringBytes?: number
  /** Older events kept in memory because several consumers may replay the same. Default 32 MiB. */
  cacheBytes?: number
  /** Appends waiting for the disk, at most. Default 64 MiB. */
  pendingBytesMax?: number
  /** Segments open for reading, at most. Default 64. */
  openMax?: number
  /** Accounts whose events are withheld from the start. */
  masked?: Iterable<number>
  /** Told of what was repaired while opening. */
  repaired?: (repair: Repair) => void
  /** Told once when the disk has failed such that nothing more can be appended. */
  failed?: (error: unknown) => void
}

interface Append {
  readonly entries: readonly SegmentEntry[]
  readonly bytes: number
  readonly resolve: (last: number) => void
  readonly reject: (error: unknown) => void
}

/** A write: what became of several appends together. */
interface Built {
  readonly wire: Buffer
  readonly index: Buffer
  readonly batch: RingBatch
  readonly time: number
  readonly done: { readonly append: Append; readonly last: number }[]
}

/** The segment being written. */
interface Active {
  readonly segment: Segment
  readonly data: number
  readonly index: number
  /** Events known to be on disk. */
  synced: number
}

const WRITE_BYTES_MAX = 16 << 20
/**
 * A clock that goes back is held for so long, so that times do not fall. One that goes back further was wrong before: then a new segment begins
 * with the right time, so that within each times do not fall.
 */
const HOLD_MS = 60_000
/** What an event is longer by in the file: a header of up to 10 bytes, and a seq that may need 8 bytes more. */
const GROWTH_BYTES_MAX = 18
const truncateFile = promisify(ftruncate)

/** Opens the segment log of a folder, which is made if need be. @throws LogDamaged, or Error when the folder is in use. */
export async function openSegmentLog(folder: string, options: SegmentLogOptions): Promise<SegmentLog> {
  mkdirSync(folder, { recursive: true })
  const unlock = lockFolder(folder)
  try {
    const log = new SegmentLog(folder, options, unlock)
    await log.start()
    return log
  } catch (error) {
    unlock()
    throw error
  }
}

/**
 * An event log in append-only files that hold the WebSocket messages as they are sent, each with a sidecar index.
 *
 * Replay is reading a file and writing a socket. See {@link FsyncPolicy} for what survives what.
 */
export class SegmentLog implements Log, Stamped {
  readonly bell = new Bell()
  readonly #folder: string
  readonly #options: SegmentLogOptions
  readonly #unlock: () => void
  readonly #fsync: FsyncPolicy
  readonly #segments: Segment[]
  readonly #open: OpenSegments
  readonly #reader: SegmentReader
  readonly #slabs = new Slabs()
  readonly #unmasked: SegmentReader
  readonly #ring: Ring
  readonly #times: SegmentTimes
  #mask: Mask
  #active: Active | null = null
  #pending: Append[] = []
  #pendingBytes = 0
  /** The greatest seq that was given with an append under way. */
  #lastPending = 0
  #flushing: Promise<void> | null = null
  #syncing: Promise<void> | null = null
  #syncTimer: NodeJS.Timeout | null = null
  #failure: unknown = null
  #closed: Promise<void> | null = null

  constructor(folder: string, options: SegmentLogOptions, unlock: () => void) {
    this.#folder = folder
    this.#options = options
    this.#unlock = unlock
    this.#fsync = options.fsync ?? 'batch'
    const state = readState(folder)
    this.#segments = recoverSegments(folder, options.recover, options.repaired ?? (() => {}))
    const last = this.#segments.at(-1)?.last ?? 0
    if (state?.clean && last < state.last)
      throw new LogDamaged(folder, `it ends at event ${last}, but was closed at ${state.last}`)
    const skip = options.seqsGiven ? 0 : skipAfter(state, this.#segments.length > 0)
    const head = Math.max(Math.max(last, state?.head ?? 0) + skip, (options.firstSeq ?? 1) - 1)
    this.#mask = { version: 0, accounts: new Set(options.masked) }
    this.#ring = new Ring(options.ringBytes ?? 32 << 20, head, () => this.#mask)
    this.#open = new OpenSegments(folder, options.openMax ?? 64)
    this.#reader = new SegmentReader(this.#segments, this.#open, () => this.#mask, options.cacheBytes ?? 32 << 20)
    this.#unmasked = new SegmentReader(this.#segments, this.#open, () => NO_MASK, 0)
    this.#times = new SegmentTimes(this.#segments, this.#open)
  }

  /** For {@link openSegmentLog}. */
  async start(): Promise<void> {
    await this.#writeState(false)
    if (typeof this.#fsync === 'object') {
      this.#syncTimer = setInterval(() => this.#syncNow(), this.#fsync.intervalMs).unref()
    }
  }

  get head(): number {
    return this.#ring.last
  }

  get oldest(): number {
    return this.#segments[0]?.first ?? this.head + 1
  }

  /** Bytes on disk, visible segments and events. */
  get size(): { bytes: number; segments: number; events: number } {
    let [bytes, events] = [0, 0]
    for (const segment of this.#segments) {
      bytes += bytesOf(segment)
      events += segment.events
    }
    return { bytes, segments: this.#segments.length, events }
  }

  /**
   * Adds events in the order given, after all earlier appends. Resolves with the seq of the last one when all of them are as safe as the
   * fsync policy says, and visible.
   *
   * @throws Unavailable when more is waiting for the disk than allowed; the error of the disk when it refuses (nothing is kept then, and
   *   later appends may succeed again unless `failed` was told); Malformed when a frame has no seq. Always as a rejection.
   */
  append(entries: readonly SegmentEntry[]): Promise<number> {
    if (this.#closed) return Promise.reject(new Error('the log is closed'))
    if (this.#failure) return Promise.reject(this.#failure)
    if (entries.length === 0) return Promise.resolve(this.head)
    if (!this.#noteSeqs(entries)) return Promise.reject(new RangeError('seq does not rise'))
    let bytes = 0
    for (const { frame } of entries) bytes += frame.length + GROWTH_BYTES_MAX
    if (this.#pendingBytes > 0 && this.#pendingBytes + bytes > (this.#options.pendingBytesMax ?? 64 << 20)) {
      return Promise.reject(new Unavailable('NotEnoughResources', 'The disk does not keep up', 503, 1))
    }
    const { promise, resolve, reject } = Promise.withResolvers<number>()
    this.#pending.push({ entries, bytes, resolve, reject })
    this.#pendingBytes += bytes
    this.#flushing ??= this.#flush()
    return promise
  }

  read(after: number, limit: ReadLimit): Promise<Batch> | Batch {
    const live = this.#ring.read(after, limit)
    if (live) return live
    const last = this.#segments.at(-1)?.last ?? 0
    // Beyond the last event there may be a skipped stretch up to the head.
    if (after >= last) return { count: 0, last: this.head, wire: [] }
    if (this.#closed) return { count: 0, last: after, wire: [] }
    return this.#reader.read(after, limit)
  }

  stamps(after: number, last: number): Stamps | Promise<Stamps> {
    return stampsOfRing(this.#ring, after, last) ?? this.#times.stamps(after, last)
  }

  seqBefore(time: number): Promise<number> {
    return this.#times.seqBefore(time, this.head)
  }

  /** Like {@link read}, with masked events: for proving what the log holds, not for consumers. */
  readUnmasked(after: number, limit: ReadLimit): Promise<Batch> | Batch {
    const last = this.#segments.at(-1)?.last ?? 0
    if (after >= last || this.#closed) return { count: 0, last: after, wire: [] }
    return this.#unmasked.read(after, limit)
  }

  /** Accounts whose events are withheld. */
  get masked(): ReadonlySet<number> {
    return this.#mask.accounts
  }

  /** Withholds an account's events from all readers, also those already stored. The caller remembers it over restarts. */
  mask(account: number): void {
    this.#setMask(new Set(this.#mask.accounts).add(account))
  }

  unmask(account: number): void {
    const accounts = new Set(this.#mask.accounts)
    accounts.delete(account)
    this.#setMask(accounts)
  }

  /**
   * Drops the oldest segments whose events are all older than `ageMs`, and further ones while the log has more than `bytes`.
   *
   * The segment being written stays. Readers in a dropped segment go on with the oldest event there is.
   * @returns the number of segments dropped.
   */
  async prune({ ageMs, bytes, now }: { ageMs: number; bytes: number; now: number }): Promise<number> {
    let total = this.size.bytes
    let count = 0
    for (const segment of this.#segments.slice(0, -1)) {
      if (segment.lastTime >= now - ageMs && total <= bytes) break
      total -= bytesOf(segment)
      count++
    }
    for (const segment of this.#segments.splice(0, count)) await this.#remove(segment)
    if (count > 0) await syncFolder(this.#folder)
    return count
  }

  async #remove(segment: Segment): Promise<void> {
    this.#open.forget(segment.first)
    this.#reader.forget(segment)
    this.#unmasked.forget(segment)
    // Data before index, oldest first: what a crash leaves in between is recognized.
    await rm(dataPath(this.#folder, segment.first), { force: true })
    await rm(indexPath(this.#folder, segment.first), { force: true })
  }

  /** Makes everything appended so far durable, whatever the policy. */
  async sync(): Promise<void> {
    await this.#flushing
    if (this.#active) await this.#syncActive(this.#active)
  }

  close(): Promise<void> {
    this.#closed ??= this.#close()
    return this.#closed
  }

  async #close(): Promise<void> {
    if (this.#syncTimer) clearInterval(this.#syncTimer)
    await this.#flushing
    await this.#syncing
    try {
      if (this.#active && !this.#failure) await this.#syncActive(this.#active)
      if (!this.#failure) await this.#writeState(true)
    } finally {
      await this.#closeActive()
      await this.#open.close()
      this.#unlock()
      this.bell.ring()
    }
  }

  #setMask(accounts: ReadonlySet<number>): void {
    this.#mask = { version: this.#mask.version + 1, accounts }
  }

  /** Whether the seqs that are given rise above all before, also above those that still wait. */
  #noteSeqs(entries: readonly SegmentEntry[]): boolean {
    let last = Math.max(this.head, this.#lastPending)
    for (const { seq } of entries) {
      if (seq === undefined) continue
      if (!Number.isSafeInteger(seq) || seq <= last) return false
      last = seq
    }
    this.#lastPending = last
    return true
  }

  async #flush(): Promise<void> {
    // Let what arrives in the same turn join.
    await Promise.resolve()
    while (this.#pending.length > 0 && !this.#failure) {
      const appends = this.#take()
      let done: Built['done'] = []
      let failure: unknown = null
      try {
        done = await this.#write(appends)
      } catch (error) {
        failure = error
      }
      for (const append of appends) this.#pendingBytes -= append.bytes
      if (failure) for (const append of appends) append.reject(failure)
      for (const { append, last } of done) append.resolve(last)
    }
    this.#flushing = null
    this.#lastPending = 0
    for (const append of this.#pending.splice(0)) append.reject(this.#failure)
  }

  #take(): Append[] {
    let bytes = 0
    let count = 0
    for (const append of this.#pending) {
      if (count > 0 && bytes + append.bytes > WRITE_BYTES_MAX) break
      bytes += append.bytes
      count++
    }
    return this.#pending.splice(0, count)
  }

  async #write(appends: readonly Append[]): Promise<Built['done']> {
    const bytes = appends.reduce((sum, append) => sum + append.bytes, 0)
    const active = await this.#writable(bytes, appends[0]!.entries[0]!.seq ?? this.head + 1)
    const built = this.#build(active, appends)
    if (built.done.length === 0) return []
    const { segment, data, index } = active
    try {
      await settle([
        writeAt(data, built.wire, segment.dataBytes),
        writeAt(index, built.index, recordPosition(segment.events)),
      ])
    } catch (error) {
      await this.#undo(active)
      throw error
    }
    const events = segment.events + built.batch.seqs.length
    if (this.#fsync === 'batch') {
      try {
        await settle([syncFile(data), syncFile(index)])
      } catch (error) {
        // After a failed fsync nobody knows what is on disk, and asking again would not tell.
        this.#fail(error)
        throw error
      }
      active.synced = events
    }
    this.#publish(active, built, events)
    return built.done
  }

  #publish({ segment }: Active, { wire, batch, time }: Built, events: number): void {
    if (segment.events === 0) this.#segments.push(segment)
    segment.last = batch.seqs[batch.seqs.length - 1]!
    segment.events = events
    segment.dataBytes += wire.length
    segment.lastTime = time
    segment.lastTimeEvents = batch.stamp!.before + batch.seqs.length
    this.#ring.push(batch)
    this.bell.ring()
  }

  /** Numbers the events and lays them out as they are stored. An append with a frame that cannot be numbered is refused alone. */
  #build({ segment, synced }: Active, appends: readonly Append[]): Built {
    const { withSeq, now } = this.#options
    const accounts: number[] = []
    const seqs: number[] = []
    const ends: number[] = []
    const done: Built['done'] = []
    const after = this.head
    // Written where it stays: what is written twice costs as much again, and is garbage. Each may become a little longer.
    const space = this.#slabs.reserve(appends.reduce((sum, append) => sum + append.bytes, 0))
    let size = 0
    const room = (length: number) => {
      const start = writeWireHeader(space, size, length)
      size = start + length
      return space.subarray(start, size)
    }
    for (const append of appends) {
      const [eventsBefore, sizeBefore] = [seqs.length, size]
      try {
        for (const { frame, account, seq } of append.entries) {
          const number = seq ?? (seqs.at(-1) ?? after) + 1
          const before = size
          const numbered = seq === undefined ? withSeq(frame, number, room) : frame
          if (size === before) room(numbered.length).set(numbered)
          seqs.push(number)
          ends.push(size)
          accounts.push(account)
        }
        done.push({ append, last: seqs.at(-1)! })
      } catch (error) {
        ends.length = accounts.length = seqs.length = eventsBefore
        size = sizeBefore
        append.reject(error)
      }
    }
    const { time, before } = stampNext(segment, now())
    const wire = space.subarray(0, size)
    const index = Buffer.allocUnsafe(seqs.length * RECORD_BYTES)
    for (let i = 0; i < seqs.length; i++) {
      const start = i === 0 ? 0 : ends[i - 1]!
      const end = ends[i]!
      writeRecord(index, i * RECORD_BYTES, {
        seq: seqs[i]!,
        offset: segment.dataBytes + start,
        length: end - start,
        account: accounts[i]!,
        time,
        lag: Math.min(LAG_UNKNOWN, segment.events + i - synced),
        crc: crc32(wire.subarray(start, end)),
      })
    }
    const batch = {
      after,
      seqs: Float64Array.from(seqs),
      ends: Uint32Array.from(ends),
      wire,
      accounts: Float64Array.from(accounts),
      stamp: { time, before },
      memory: this.#slabs.keep(size),
    }
    return { wire, index, time, done, batch }
  }

  /** The segment to write the next bytes to, which begin with event `first`. */
  async #writable(bytes: number, first: number): Promise<Active> {
    const { segmentBytes = 256 << 20, segmentMs = 3_600_000, now } = this.#options
    const current = this.#active
    if (current) {
      const { segment } = current
      const full = segment.events > 0 && segment.dataBytes + bytes > segmentBytes
      const old = segment.events > 0 && now() - segment.firstTime >= segmentMs
      const fell = segment.events > 0 && now() < segment.lastTime - HOLD_MS
      const misnamed = segment.events === 0 && segment.first !== first
      if (!full && !old && !fell && !misnamed) return current
      await this.#syncActive(current).catch(error => {
        this.#fail(error)
        throw error
      })
      await this.#closeActive()
      if (misnamed) await this.#remove(segment)
    }
    const last = this.#segments.at(-1)
    this.#active = await this.#create({ first, previous: last?.first ?? 0 })
    return this.#active
  }

  async #create({ first, previous }: { first: number; previous: number }): Promise<Active> {
    const index = await openFile(indexPath(this.#folder, first), 'w')
    let data = -1
    try {
      await writeAt(index, encodeHeader({ first, previous }), 0)
      data = await openFile(dataPath(this.#folder, first), 'w')
      if (this.#fsync !== 'none') await syncFolder(this.#folder)
    } catch (error) {
      await closeFile(index)
      if (data >= 0) await closeFile(data)
      throw error
    }
    // Times rise from one segment to the next, so that an event's stamp can be told from its own segment.
    const before = this.#segments.at(-1)?.lastTime ?? -1
    const now = this.#options.now()
    const time = now < before - HOLD_MS ? now : Math.max(now, before + 1)
    const segment = {
      first,
      previous,
      last: first - 1,
      events: 0,
      dataBytes: 0,
      firstTime: time,
      lastTime: time,
      lastTimeEvents: 0,
    }
    return { segment, data, index, synced: 0 }
  }

  /** Takes back what a failed write may have left, so that the next one can try again. */
  async #undo({ segment, data, index }: Active): Promise<void> {
    try {
      await truncateFile(data, segment.dataBytes)
      await truncateFile(index, recordPosition(segment.events))
    } catch (error) {
      this.#fail(error)
    }
  }

  #fail(error: unknown): void {
    if (this.#failure) return
    this.#failure = error ?? new Error('the log has failed')
    this.#options.failed?.(error)
  }

  async #syncActive(active: Active): Promise<void> {
    const { events } = active.segment
    await settle([syncFile(active.data), syncFile(active.index)])
    active.synced = Math.max(active.synced, events)
  }

  #syncNow(): void {
    const active = this.#active
    if (!active || this.#syncing || active.synced === active.segment.events) return
    this.#syncing = this.#syncActive(active)
      .catch(error => {
        if (this.#active === active) this.#fail(error)
      })
      .finally(() => {
        this.#syncing = null
      })
  }

  async #closeActive(): Promise<void> {
    const active = this.#active
    if (!active) return
    this.#active = null
    await this.#syncing
    await closeFile(active.data)
    await closeFile(active.index)
  }

  #writeState(clean: boolean): Promise<void> {
    const fsync = this.#fsync === 'batch' ? 'batch' : 'other'
    return writeState(this.#folder, { clean, fsync, head: this.head, last: this.#segments.at(-1)?.last ?? 0 })
  }
}

/** Waits for all, also when one fails, so that nothing is still writing afterwards. @throws the first error. */
async function settle(work: readonly Promise<void>[]): Promise<void> {
  for (const result of await Promise.allSettled(work)) if (result.status === 'rejected') throw result.reason
}

/** The time of the next write to a segment: never before that of the last one. */
function stampNext({ lastTime, lastTimeEvents }: Segment, now: number): BatchStamp {
  return now > lastTime ? { time: now, before: 0 } : { time: lastTime, before: lastTimeEvents ?? 0 }
}

function bytesOf(segment: Segment): number {
  return segment.dataBytes + HEADER_BYTES + segment.events * RECORD_BYTES
}
