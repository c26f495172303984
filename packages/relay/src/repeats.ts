/**
 * What hosts say again after a crash. Cursors are saved a moment behind the log, so that a host may send once more what has
 * passed already. #commit and #sync are stale then by their rev; #account and #identity are known by their bytes, which
 * hold the time at which the host said it.
 */
import { peek, withSeq } from '@millisky/core/event'
import { sha256 } from '@millisky/core/hash'
import { framesOf } from '@millisky/server/log/frame-wire'
import type { Log } from '@millisky/server/log/log'
import type { SegmentLog } from '@millisky/server/log/segments'

const READ_BYTES = 4 * 1_048_576
/** How long an event may keep its host's cursor back, and a host may take to say again what it said before a crash. */
const CATCH_UP_MS = 30_000
/** However often it crashes, no more than this is read. */
const CATCH_UP_MAX_MS = 120_000
const KEPT_MAX = 100_000

type RepeatsLog = Log & Pick<SegmentLog, 'seqBefore'>

const keyOf = (frame: Uint8Array) => Buffer.from(sha256(withSeq(frame, 0))).toString('latin1')

/** Tells whether an #account or #identity, as it would be passed on, was in the end of the log when the process started. */
export class Repeats {
  readonly #told = new Set<string>()
  readonly #log: RepeatsLog
  readonly #now: () => number
  readonly #startedAt: number
  readonly #cursorsAt: number

  private constructor(log: RepeatsLog, cursorsAt: number, now: () => number) {
    this.#log = log
    this.#now = now
    this.#startedAt = now()
    this.#cursorsAt = cursorsAt
  }

  get size(): number {
    return this.#told.size
  }

  /** Reads the end of a log, behind what {@link from} gave when cursors were last saved. */
  static async of(log: RepeatsLog, cursorsAt: number, now: () => number): Promise<Repeats> {
    const repeats = new Repeats(log, cursorsAt, now)
    let after = Math.max(cursorsAt, log.oldest - 1, 0)
    while (after < log.head) {
      const batch = await log.read(after, { bytes: READ_BYTES })
      if (batch.last === after) break
      after = batch.last
      for (const frame of framesOf(batch.wire)) {
        const { t } = peek(frame)
        if ((t === '#account' || t === '#identity') && repeats.size < KEPT_MAX) repeats.#told.add(keyOf(frame))
      }
    }
    return repeats
  }

  /**
   * Seq behind which hosts may say again what is in the log, if they go on from the cursors of now. In the beginning they
   * are still busy with what was said before the start, which seqs do not tell: the log has gaps where it was not closed.
   */
  async from(): Promise<number> {
    const now = this.#now()
    if (now - this.#startedAt >= CATCH_UP_MS) return this.#log.seqBefore(now - CATCH_UP_MS)
    return Math.max(this.#cursorsAt, await this.#log.seqBefore(now - CATCH_UP_MAX_MS))
  }

  has(frame: Uint8Array): boolean {
    return this.#told.size > 0 && this.#told.has(keyOf(frame))
  }
}
