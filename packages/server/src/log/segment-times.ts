/**
 * When events were taken into a segment log, as numbers that can serve as cursors: microseconds that never fall from one event to the next.
 */
import type { Ring, RingBatch } from './ring.ts'
import { type OpenSegments, readAt, type Segment } from './segment-files.ts'
import { RECORD_BYTES, recordPosition, seqAt, timeAt } from './segment-index.ts'

/** Events of one millisecond that get a stamp of their own; any further ones share the last. */
const STAMPS_PER_MS = 1_000

/** The events of a stretch in order: `micros[i]` (microseconds since the epoch) belongs to `seqs[i]`. */
export interface Stamps {
  readonly seqs: readonly number[]
  readonly micros: readonly number[]
}

/**
 * A log that knows when each event came.
 *
 * A stamp is the millisecond in which the event was written, and in the digits below it how many events of that millisecond came before it. It
 * is the same whenever and from wherever it is read, it never falls, and it is unique up to 1,000 events a millisecond.
 */
export interface Stamped {
  /** Stamps of the events held of `after` (excluded) to `last`, also of masked ones. */
  stamps(after: number, last: number): Stamps | Promise<Stamps>
  /** The greatest seq below all events written at `time` (milliseconds) or later: the cursor to read those. The head when there are none. */
  seqBefore(time: number): Promise<number>
}

const stampOf = (time: number, before: number): number => time * 1_000 + Math.min(before, STAMPS_PER_MS - 1)

/** Stamps from memory, or null when it does not reach back that far. */
export function stampsOfRing(ring: Ring, after: number, last: number): Stamps | null {
  const [seqs, micros]: [number[], number[]] = [[], []]
  let known = true
  const add = ({ seqs: all, stamp }: RingBatch) => {
    if (!stamp) {
      known = false
      return
    }
    for (const [i, seq] of all.entries()) {
      if (seq <= after || seq > last) continue
      seqs.push(seq)
      micros.push(stampOf(stamp.time, stamp.before + i))
    }
  }
  return ring.scan(after, last, add) && known ? { seqs, micros } : null
}

/** Reads times from the index files. */
export class SegmentTimes {
  readonly #segments: readonly Segment[]
  readonly #open: OpenSegments

  /** @param segments - the log's own list, oldest first, which changes as it is written and pruned. */
  constructor(segments: readonly Segment[], open: OpenSegments) {
    this.#segments = segments
    this.#open = open
  }

  async stamps(after: number, last: number): Promise<Stamps> {
    const [seqs, micros]: [number[], number[]] = [[], []]
    for (const segment of this.#segments.filter(segment => segment.last > after && segment.first <= last)) {
      const records = await this.#use(segment, index => recordsOf(index, segment, after, last))
      if (!records) continue
      let [time, before] = [0, 0]
      for (let at = 0; at < records.length; at += RECORD_BYTES) {
        const its = timeAt(records, at)
        before = its === time ? before + 1 : 0
        time = its
        const seq = seqAt(records, at)
        if (seq <= after || seq > last) continue
        seqs.push(seq)
        micros.push(stampOf(time, before))
      }
    }
    return { seqs, micros }
  }

  async seqBefore(time: number, head: number): Promise<number> {
    const segment = this.#segments.find(({ lastTime }) => lastTime >= time)
    if (!segment) return head
    const found = await this.#use(segment, async index => {
      const n = await firstWhere(index, segment.events, record => timeAt(record, 0) >= time)
      if (n === segment.events) return segment.last
      return seqAt(await readAt(index, recordPosition(n), RECORD_BYTES), 0) - 1
    })
    // Dropped meanwhile: what is left is all newer.
    return found ?? (this.#segments[0]?.first ?? head + 1) - 1
  }

  async #use<T>(segment: Segment, work: (index: number) => Promise<T>): Promise<T | null> {
    try {
      return await this.#open.use(segment, ({ index }) => work(index))
    } catch (error) {
      if (this.#segments.includes(segment)) throw error
      return null
    }
  }
}

/** The index records of the events after `after` up to `last`, and of as many before as it takes to count a millisecond's. */
async function recordsOf(index: number, segment: Segment, after: number, last: number): Promise<Buffer> {
  const { events } = segment
  const from = await firstWhere(index, events, record => seqAt(record, 0) > after, after + 1 - segment.first)
  const to = await firstWhere(index, events, record => seqAt(record, 0) > last, last + 1 - segment.first)
  const start = Math.max(0, from - STAMPS_PER_MS)
  return readAt(index, recordPosition(start), (to - start) * RECORD_BYTES)
}

/** The first record for which `is` holds, as it does for all behind it; around `guess` is looked first. */
async function firstWhere(
  index: number,
  events: number,
  is: (record: Buffer) => boolean,
  guess?: number,
): Promise<number> {
  const probes = guess === undefined ? [] : [guess - 1, guess]
  for (let [low, high] = [0, events]; ; ) {
    if (low >= high) return low
    const probe = probes.shift() ?? (low + high) >> 1
    if (probe < low || probe >= high) continue
    if (is(await readAt(index, recordPosition(probe), RECORD_BYTES))) high = probe
    else low = probe + 1
  }
}
