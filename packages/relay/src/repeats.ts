/**
 * What hosts say again after a crash. Cursors are saved a moment behind the log, so that a host may send once more what has
 * passed already. #commit and #sync are stale then by their rev; #account and #identity are known by their bytes, which
 * hold the time at which the host said it.
 */
import { peek, withSeq } from '@millisky/core/event'
import { sha256 } from '@millisky/core/hash'
import { framesOf } from '@millisky/server/log/frame-wire'
import type { Log } from '@millisky/server/log/log'

const READ_BYTES = 4 * 1_048_576
/** How far before the last save a host's cursor may have stood, in events of all hosts: some wait for identities. */
const LOOK_BACK = 2_000
const KEPT_MAX = 100_000

const keyOf = (frame: Uint8Array) => Buffer.from(sha256(withSeq(frame, 0))).toString('latin1')

/** Tells whether an #account or #identity, as it would be passed on, was in the end of the log when the process started. */
export class Repeats {
  readonly #told = new Set<string>()

  get size(): number {
    return this.#told.size
  }

  /** Reads the end of a log, from a little before the seq at which cursors were last saved. */
  static async of(log: Log, cursorsAt: number): Promise<Repeats> {
    const repeats = new Repeats()
    let after = Math.max(cursorsAt - LOOK_BACK, log.oldest - 1, 0)
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

  has(frame: Uint8Array): boolean {
    return this.#told.size > 0 && this.#told.has(keyOf(frame))
  }
}
