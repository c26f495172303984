import type { Batch, ReadLimit } from './log.ts'
import type { Held } from './slabs.ts'

/** Events that became visible together, as they were written. */
export interface RingBatch {
  /** Where a reader of the whole batch stands: the `last` of the batch before it. */
  readonly after: number
  /** Seq of each event, rising; all greater than `after`. */
  readonly seqs: Float64Array
  /** Where in `wire` each event's message ends. */
  readonly ends: Uint32Array
  readonly wire: Uint8Array
  /** Account of each event, where events can be masked by account. */
  readonly accounts: Float64Array | null
  /** When it was written, where that is known. */
  readonly stamp?: BatchStamp
  /** What `wire` lies in, where that is used again; held for the ring. */
  readonly memory?: Held
}

/** When a batch was written: milliseconds since the epoch, and how many events of its segment before it have the same. */
export interface BatchStamp {
  readonly time: number
  readonly before: number
}

interface Kept extends RingBatch {
  readonly last: number
  /** The batch without the events masked at `version`. */
  unmasked: { version: number; batch: Batch } | null
}

/** Accounts whose events are withheld; `version` changes whenever the set does. */
export interface Mask {
  readonly version: number
  readonly accounts: ReadonlySet<number>
}

export const NO_MASK: Mask = { version: 0, accounts: new Set() }

/**
 * The newest events in memory, for readers at or near the head: all get views of the very same buffers.
 *
 * Finding one's place is a binary search over batches; a batch that fits the limit is handed out whole, without a look at its events.
 */
export class Ring {
  readonly #bytesMax: number
  readonly #mask: () => Mask
  #batches: Kept[] = []
  /** Index of the oldest batch in `#batches`; those before it are gone. */
  #start = 0
  #bytes = 0
  #last: number

  /** @param last - the head of the log when the ring starts empty. */
  constructor(bytesMax: number, last: number, mask: () => Mask = () => NO_MASK) {
    this.#bytesMax = bytesMax
    this.#last = last
    this.#mask = mask
  }

  /** Seq of the newest event, or where the next one follows. */
  get last(): number {
    return this.#last
  }

  /** The bytes held. */
  get bytes(): number {
    return this.#bytes
  }

  /** Adds the events that follow {@link last}. */
  push(batch: RingBatch): void {
    if (batch.after !== this.#last) throw new Error(`batch after ${batch.after} does not follow ${this.#last}`)
    this.#last = batch.seqs[batch.seqs.length - 1]!
    this.#batches.push({ ...batch, last: this.#last, unmasked: null })
    this.#bytes += batch.wire.length
    // The newest batch stays, however large.
    while (this.#bytes > this.#bytesMax && this.#start < this.#batches.length - 1) {
      const { wire, memory } = this.#batches[this.#start]!
      this.#bytes -= wire.length
      memory?.letGo()
      this.#batches[this.#start] = undefined as unknown as Kept
      this.#start++
    }
    if (this.#start > 64 && this.#start > this.#batches.length / 2) {
      this.#batches = this.#batches.slice(this.#start)
      this.#start = 0
    }
  }

  /** Forgets everything; what follows is expected after `last`. */
  reset(last: number): void {
    this.#batches = []
    this.#start = 0
    this.#bytes = 0
    this.#last = last
  }

  /** What follows `after`, or null when the ring does not reach back that far. */
  read(after: number, limit: ReadLimit): Batch | null {
    if (after >= this.#last) return { count: 0, last: after, wire: [] }
    let at = this.#find(after)
    const first = this.#batches[at]
    if (!first || first.after > after) return null
    const mask = this.#mask()
    const wire: Uint8Array[] = []
    const memory: Held[] = []
    let count = 0
    let bytes = 0
    let last = after
    for (; at < this.#batches.length; at++) {
      const batch = this.#batches[at]!
      const whole = last <= batch.after && bytes + batch.wire.length <= limit.bytes
      const part = whole ? wholeOf(batch, mask) : partOf(batch, last, limit.bytes - bytes, bytes === 0, mask)
      if (part === null) break
      if (batch.memory !== undefined && batch.memory !== memory.at(-1)) {
        batch.memory.hold()
        memory.push(batch.memory)
      }
      for (const piece of part.wire) {
        wire.push(piece)
        bytes += piece.length
      }
      count += part.count
      last = part.last
      if (last < batch.last) break
    }
    return { count, last, wire, memory }
  }

  /** Calls `each` with the batches that hold something of `after` to `last`, masked events included; false when some are gone. */
  scan(after: number, last: number, each: (batch: RingBatch) => void): boolean {
    let at = this.#find(after)
    const first = this.#batches[at]
    if (!first || first.after > after) return false
    for (; at < this.#batches.length && this.#batches[at]!.after < last; at++) each(this.#batches[at]!)
    return true
  }

  /** Index of the first batch that holds something after `after`. */
  #find(after: number): number {
    let low = this.#start
    let high = this.#batches.length - 1
    while (low < high) {
      const middle = (low + high) >> 1
      if (this.#batches[middle]!.last > after) high = middle
      else low = middle + 1
    }
    return low
  }
}

function wholeOf(batch: Kept, mask: Mask): Batch {
  if (mask.accounts.size === 0 || !batch.accounts) {
    return { count: batch.seqs.length, last: batch.last, wire: [batch.wire] }
  }
  if (batch.unmasked?.version !== mask.version) {
    batch.unmasked = { version: mask.version, batch: select(batch, 0, batch.seqs.length, mask) }
  }
  return batch.unmasked.batch
}

/** As many events after `after` as fit into `bytes`, at least one if `atLeastOne`; null when none do. */
function partOf(batch: Kept, after: number, bytes: number, atLeastOne: boolean, mask: Mask): Batch | null {
  const from = firstAbove(batch.seqs, after)
  const start = from === 0 ? 0 : batch.ends[from - 1]!
  let to = firstAbove(batch.ends, start + bytes)
  if (to <= from) {
    if (!atLeastOne) return null
    to = from + 1
  }
  return select(batch, from, to, mask)
}

/** Events `from` to `to` (excluded) of a batch, without the masked ones. */
function select(batch: RingBatch, from: number, to: number, mask: Mask): Batch {
  const { ends, accounts, wire } = batch
  const last = batch.seqs[to - 1]!
  const startOf = (i: number) => (i === 0 ? 0 : ends[i - 1]!)
  if (mask.accounts.size === 0 || !accounts) {
    return { count: to - from, last, wire: [wire.subarray(startOf(from), ends[to - 1]!)] }
  }
  return { ...withoutMasked(wire, from, to, startOf, i => accounts[i]!, mask.accounts), last }
}

/** The runs of events between the masked ones, as views. `startOf(to)` must be the end of the last event. */
export function withoutMasked(
  wire: Uint8Array,
  from: number,
  to: number,
  startOf: (i: number) => number,
  accountOf: (i: number) => number,
  masked: ReadonlySet<number>,
): { count: number; wire: Uint8Array[] } {
  const runs: Uint8Array[] = []
  let count = 0
  for (let i = from; i < to; ) {
    if (masked.has(accountOf(i))) {
      i++
      continue
    }
    const begin = i
    while (i < to && !masked.has(accountOf(i))) i++
    runs.push(wire.subarray(startOf(begin), startOf(i)))
    count += i - begin
  }
  return { count, wire: runs }
}

/** Index of the first value greater than `bound` in a rising array. */
function firstAbove(values: Float64Array | Uint32Array, bound: number): number {
  let low = 0
  let high = values.length
  while (low < high) {
    const middle = (low + high) >> 1
    if (values[middle]! > bound) high = middle
    else low = middle + 1
  }
  return low
}
