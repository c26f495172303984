/**
 * Takes over the events of one relay as they are: its frames, its seqs. What is no event, or does not go on where the log
 * ends, is dropped and counted.
 *
 * Signatures are not verified here: that is what the other relay is for. What is checked is what the log and its readers
 * rely on: that a frame is whole and bounded, has a type, and a seq that rises.
 *
 * Each connection asks for the last event once more. If it is another one now, the other relay has begun anew, also where its
 * new seqs have long passed the old ones. If it does not come, and the next seq is not the one that follows, events may
 * have been missed.
 */
import { equal } from '@millisky/core/bytes'
import { Malformed } from '@millisky/core/errors'
import { decodeFrame, type Frame, isWhole, peek, readInfo } from '@millisky/core/event'
import { SEQ_MAX } from '@millisky/core/limits'
import { framesOf } from '@millisky/server/log/frame-wire'
import type { Log } from '@millisky/server/log/log'
import type { SegmentEntry } from '@millisky/server/log/segments'
import { accountNumber } from '../accounts.ts'

/** Why a frame was not taken. */
export const MIRROR_DROPS = ['undecodable', 'no-type', 'no-seq', 'seq-not-rising'] as const
export type MirrorDrop = (typeof MIRROR_DROPS)[number]

/** Types are words. */
const TYPE_LENGTH_MAX = 64
/** The age of events is looked at this often. */
const LOOK_MS = 1_000

/** The other relay sends other events than those it had sent already: it has begun anew. */
export class BegunAnew extends Error {
  override name = 'BegunAnew'
}

/** A stretch of seqs of which nothing came, although it was asked for. */
export interface MirrorGap {
  /** The last event before it, and the first one behind it. */
  after: number
  next: number
}

export interface MirrorParts {
  log: Pick<Log, 'head' | 'read'> & { append(entries: readonly SegmentEntry[]): Promise<number> }
  /** Milliseconds since 1970. */
  now: () => number
  observer?: {
    taken?(t: string): void
    dropped?(why: MirrorDrop): void
    /** An `#info` about the stream, such as that older events are no longer kept. */
    info?(name: string, message: string | null): void
    /** A connection went on further ahead than the last one had come. */
    gap?(gap: MirrorGap): void
  }
}

export class Mirror {
  readonly #parts: MirrorParts
  /** The cursor that this connection was asked with; null once it has shown how it goes on. */
  #askedAfter: number | null = null
  #lookedAt = Number.NEGATIVE_INFINITY
  /** How old the last event was that was looked at, when it came; null before the first. */
  lagMs: number | null = null
  /** When the last event came; 0 before the first. */
  lastAt = 0

  constructor(parts: MirrorParts) {
    this.#parts = parts
  }

  /** The cursor to ask the other relay with: the event under the log's head comes once more. */
  ask(whenEmpty: number | null): number | null {
    const { head } = this.#parts.log
    this.#askedAfter = head > 0 ? head - 1 : null
    return this.#askedAfter ?? whenEmpty
  }

  /**
   * Takes frames in order; resolves when they are in the log.
   * @throws BegunAnew, and what the log refuses with
   */
  async take(frames: readonly Uint8Array[]): Promise<void> {
    const { log, observer } = this.#parts
    const entries: SegmentEntry[] = []
    let head = log.head
    for (const frame of frames) {
      const read = this.#read(frame)
      if (read === null) continue
      const { t, did, seq } = read
      if (this.#askedAfter !== null && (await this.#isKnown(frame, seq, this.#askedAfter))) continue
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

  /** Looks at the first events of a connection: true for those that the log has. @throws BegunAnew */
  async #isKnown(frame: Uint8Array, seq: number, asked: number): Promise<boolean> {
    const { log, observer } = this.#parts
    if (seq < asked) throw new BegunAnew(`it sent event ${seq} to one who had asked for those after ${asked}`)
    // Some relays send the event under the cursor as well.
    if (seq === asked) return true
    this.#askedAfter = null
    if (seq > log.head) {
      if (seq > log.head + 1) observer?.gap?.({ after: log.head, next: seq })
      return false
    }
    const [own] = framesOf((await log.read(asked, { bytes: 1 })).wire)
    if (own && !isSameEvent(own, frame)) throw new BegunAnew(`its event ${seq} is not the one that it was`)
    return true
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

/** Whether two frames tell of the same, perhaps in another encoding: a newer version of the other relay may have others. */
function isSameEvent(one: Uint8Array, other: Uint8Array): boolean {
  if (equal(one, other)) return true
  const facts = ({ t, body }: Frame) => [t, body.repo ?? body.did, body.rev, body.time].join(' ')
  try {
    return facts(decodeFrame(one)) === facts(decodeFrame(other))
  } catch (error) {
    if (!(error instanceof Malformed)) throw error
    // Nothing can be said about it, and much would be thrown away.
    return true
  }
}
