/**
 * Takes over the events of one relay as they are: its frames, its seqs. What is no event, or does not go on where the log
 * ends, is dropped and counted.
 *
 * Signatures are not verified here: that is what the other relay is for. What is checked is what the log and its readers
 * rely on: that a frame is whole and bounded, has a type, and a seq that rises.
 */
import { Malformed } from '@millisky/core/errors'
import { decodeFrame, isWhole, peek, readInfo } from '@millisky/core/event'
import { SEQ_MAX } from '@millisky/core/limits'
import type { SegmentEntry } from '@millisky/server/log/segments'
import { accountNumber } from '../accounts.ts'

/** Why a frame was not taken. */
export const MIRROR_DROPS = ['undecodable', 'no-type', 'no-seq', 'seq-not-rising'] as const
export type MirrorDrop = (typeof MIRROR_DROPS)[number]

/** Types are words. */
const TYPE_LENGTH_MAX = 64
/** The age of events is looked at this often. */
const LOOK_MS = 1_000

/** The other relay has come to events from before those it had sent already: it has begun anew. */
export class WentBackwards extends Error {
  constructor(seq: number, cursor: number) {
    super(`it sent event ${seq} to one who had asked for those after ${cursor}`)
    this.name = 'WentBackwards'
  }
}

export interface MirrorParts {
  log: { readonly head: number; append(entries: readonly SegmentEntry[]): Promise<number> }
  /** Milliseconds since 1970. */
  now: () => number
  observer?: {
    taken?(t: string): void
    dropped?(why: MirrorDrop): void
    /** An `#info` about the stream, such as that older events are no longer kept. */
    info?(name: string, message: string | null): void
  }
}

export class Mirror {
  readonly #parts: MirrorParts
  /** The cursor that this connection was asked with; null behind its first event. */
  #askedAfter: number | null = null
  #lookedAt = Number.NEGATIVE_INFINITY
  /** How old the last event was that was looked at, when it came; null before the first. */
  lagMs: number | null = null
  /** When the last event came; 0 before the first. */
  lastAt = 0

  constructor(parts: MirrorParts) {
    this.#parts = parts
  }

  /** The other relay is about to be asked for what follows `cursor`. */
  asked(cursor: number | null): void {
    this.#askedAfter = cursor
  }

  /**
   * Takes frames in order; resolves when they are in the log.
   * @throws WentBackwards, and what the log refuses with
   */
  async take(frames: readonly Uint8Array[]): Promise<void> {
    const { log, observer } = this.#parts
    const entries: SegmentEntry[] = []
    let head = log.head
    for (const frame of frames) {
      const read = this.#read(frame)
      if (read === null) continue
      const { t, did, seq } = read
      const asked = this.#askedAfter
      this.#askedAfter = null
      // Some relays send the event under the cursor once more; that is none of the past.
      if (asked !== null && seq < asked) throw new WentBackwards(seq, asked)
      if (seq <= head) {
        observer?.dropped?.('seq-not-rising')
        continue
      }
      head = seq
      observer?.taken?.(t)
      entries.push({ frame, seq, account: did === null ? 0 : accountNumber(did) })
    }
    if (entries.length === 0) return
    this.#look(entries.at(-1)!.frame)
    await log.append(entries)
  }

  #read(frame: Uint8Array): { t: string; did: string | null; seq: number } | null {
    const drop = (why: MirrorDrop) => {
      this.#parts.observer?.dropped?.(why)
      return null
    }
    let head: ReturnType<typeof peek>
    try {
      head = peek(frame)
    } catch (error) {
      if (error instanceof Malformed) return drop('undecodable')
      throw error
    }
    const { t, did, seq } = head
    if (!isWhole(frame)) return drop('undecodable')
    if (t === null || t.length > TYPE_LENGTH_MAX) return drop('no-type')
    if (t === '#info') return this.#info(frame)
    if (seq === null || !Number.isSafeInteger(seq) || seq < 1 || seq > SEQ_MAX) return drop('no-seq')
    return { t, did, seq }
  }

  #info(frame: Uint8Array): null {
    try {
      const { name, message } = readInfo(decodeFrame(frame).body)
      this.#parts.observer?.info?.(name, message)
    } catch (error) {
      if (!(error instanceof Malformed)) throw error
      this.#parts.observer?.dropped?.('undecodable')
    }
    return null
  }

  #look(frame: Uint8Array): void {
    const now = this.#parts.now()
    this.lastAt = now
    if (now - this.#lookedAt < LOOK_MS) return
    this.#lookedAt = now
    try {
      const time = Date.parse(String(decodeFrame(frame).body.time))
      if (!Number.isNaN(time)) this.lagMs = Math.max(0, now - time)
    } catch (error) {
      if (!(error instanceof Malformed)) throw error
    }
  }
}
