import type { Batch, ReadLimit } from './log.ts'
import { type Mask, withoutMasked } from './ring.ts'
import { type OpenSegments, readAt, type Segment } from './segment-files.ts'
import { accountAt, endAt, offsetAt, RECORD_BYTES, recordPosition, seqAt } from './segment-index.ts'

/** Cursors whose place in the files is remembered. */
const POSITIONS_MAX = 10_000
const EMPTY: readonly Uint8Array[] = []

/** A place in a segment: the event that comes next and where its message starts. */
interface Position {
  readonly segment: Segment
  readonly event: number
  readonly offset: number
}

interface Chunk {
  readonly segment: Segment
  readonly batch: Batch
  readonly bytes: number
}

/**
 * Reads events from segment files, many at a time: one positional read of the data, one of its index.
 *
 * Reads end on a grid over the file, so that consumers who replay the same stretch soon stand at the same places; what they have in common is
 * read once and shared.
 */
export class SegmentReader {
  readonly #segments: readonly Segment[]
  readonly #open: OpenSegments
  readonly #mask: () => Mask
  readonly #cacheBytes: number
  /** Where reads ended, by the cursor they gave out; oldest first. */
  readonly #positions = new Map<number, Position>()
  readonly #chunks = new Map<string, Chunk>()
  readonly #reading = new Map<string, Promise<Batch>>()
  #cached = 0

  /** @param segments - the log's own list, oldest first, which changes as it is written and pruned. */
  constructor(segments: readonly Segment[], open: OpenSegments, mask: () => Mask, cacheBytes: number) {
    this.#segments = segments
    this.#open = open
    this.#mask = mask
    this.#cacheBytes = cacheBytes
  }

  /** What follows `after`; the log has made sure that there is something, as far as it knows. */
  async read(after: number, limit: ReadLimit): Promise<Batch> {
    const key = `${after}/${limit.bytes}/${this.#mask().version}`
    const chunk = this.#chunks.get(key)
    if (chunk) {
      this.#chunks.delete(key)
      this.#chunks.set(key, chunk)
      return chunk.batch
    }
    if (limit.into) return this.#read(key, after, limit)
    let reading = this.#reading.get(key)
    if (!reading) {
      reading = this.#read(key, after, limit).finally(() => this.#reading.delete(key))
      this.#reading.set(key, reading)
    }
    return reading
  }

  /** Forgets what it knows of a segment that has been dropped. */
  forget(segment: Segment): void {
    for (const [after, position] of this.#positions) if (position.segment === segment) this.#positions.delete(after)
    for (const [key, chunk] of this.#chunks) if (chunk.segment === segment) this.#drop(key, chunk)
  }

  async #read(key: string, after: number, limit: ReadLimit): Promise<Batch> {
    for (;;) {
      const segment = this.#find(after)
      if (!segment) return { count: 0, last: after, wire: EMPTY }
      try {
        return await this.#open.use(segment, async ({ data, index }) => {
          const position = await this.#locate(segment, index, after)
          return this.#readAt(key, data, index, position, { ...limit, bytes: Math.max(1, limit.bytes) })
        })
      } catch (error) {
        // Dropped between finding it and opening it: go on with the oldest there is.
        if (this.#segments.includes(segment)) throw error
      }
    }
  }

  async #readAt(
    key: string,
    data: number,
    index: number,
    from: Position,
    { bytes: limit, into }: ReadLimit,
  ): Promise<Batch> {
    const { segment, event, offset } = from
    const wanted = Math.min(segment.dataBytes, (Math.floor(offset / limit) + 1) * limit) - offset
    const mean = segment.dataBytes / segment.events
    const records = Math.min(segment.events - event, Math.ceil((wanted / mean) * 1.5) + 8)
    let [bytes, entries] = await Promise.all([
      readAt(data, offset, wanted, into),
      readAt(index, recordPosition(event), records * RECORD_BYTES),
    ])
    if (entries.length < records * RECORD_BYTES || offsetAt(entries, 0) !== offset) {
      throw new Error(`the index of segment ${segment.first} does not fit its data at event ${event}`)
    }
    let count = countEndingBy(entries, records, offset + wanted)
    if (count === 0) {
      count = 1
      bytes = await readAt(data, offset, endAt(entries, 0) - offset)
    }
    const end = endAt(entries, (count - 1) * RECORD_BYTES)
    const last = seqAt(entries, (count - 1) * RECORD_BYTES)
    if (bytes.length < end - offset)
      throw new Error(`segment ${segment.first} is cut short at byte ${offset + bytes.length}`)
    this.#remember(last, { segment, event: event + count, offset: end })
    const batch = { last, ...select(bytes.subarray(0, end - offset), entries, count, this.#mask()) }
    if (!into) this.#keep(key, { segment, batch, bytes: bytes.length })
    return batch
  }

  /** The oldest segment that holds something after `after`. */
  #find(after: number): Segment | undefined {
    let low = 0
    let high = this.#segments.length
    while (low < high) {
      const middle = (low + high) >> 1
      if (this.#segments[middle]!.last > after) high = middle
      else low = middle + 1
    }
    return this.#segments[low]
  }

  /** The place of the first event after `after`, which the segment has. */
  async #locate(segment: Segment, index: number, after: number): Promise<Position> {
    if (after < segment.first) return { segment, event: 0, offset: 0 }
    const known = this.#positions.get(after)
    if (known?.segment === segment && known.event < segment.events) return known
    let low = 0
    let high = segment.events
    // Mostly there are no gaps in seq, then the first two guesses are right.
    let guess = after - segment.first
    while (low < high) {
      const middle = guess >= low && guess < high ? guess : (low + high) >> 1
      const record = await readAt(index, recordPosition(middle), RECORD_BYTES)
      if (seqAt(record, 0) > after) high = middle
      else low = middle + 1
      guess = low
    }
    const record = await readAt(index, recordPosition(low), RECORD_BYTES)
    return { segment, event: low, offset: offsetAt(record, 0) }
  }

  #remember(after: number, position: Position): void {
    if (this.#positions.size >= POSITIONS_MAX) this.#positions.delete(this.#positions.keys().next().value!)
    this.#positions.delete(after)
    this.#positions.set(after, position)
  }

  #keep(key: string, chunk: Chunk): void {
    // What is being written to has more to give at the same place soon.
    if (chunk.segment === this.#segments.at(-1) || !this.#segments.includes(chunk.segment)) return
    this.#chunks.set(key, chunk)
    this.#cached += chunk.bytes
    for (const [oldest, old] of this.#chunks) {
      if (this.#cached <= this.#cacheBytes) break
      this.#drop(oldest, old)
    }
  }

  #drop(key: string, chunk: Chunk): void {
    if (this.#chunks.delete(key)) this.#cached -= chunk.bytes
  }
}

/** How many of the first `records` events end at or before `bound`. */
function countEndingBy(entries: Buffer, records: number, bound: number): number {
  let low = 0
  let high = records
  while (low < high) {
    const middle = (low + high) >> 1
    if (endAt(entries, middle * RECORD_BYTES) > bound) high = middle
    else low = middle + 1
  }
  return low
}

function select(
  wire: Buffer,
  entries: Buffer,
  count: number,
  mask: Mask,
): { count: number; wire: readonly Uint8Array[] } {
  if (mask.accounts.size === 0) return { count, wire: [wire] }
  const base = offsetAt(entries, 0)
  const startOf = (i: number) => (i === 0 ? 0 : endAt(entries, (i - 1) * RECORD_BYTES) - base)
  return withoutMasked(wire, 0, count, startOf, i => accountAt(entries, i * RECORD_BYTES), mask.accounts)
}
