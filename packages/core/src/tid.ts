/**
 * Timestamp identifiers: 53 bits of microseconds since 1970 and 10 bits of clock id, written so that they sort as text.
 *
 * Source: atproto.com/specs/tid.
 */
import { Malformed } from './errors.ts'
import type { Tid } from './syntax.ts'

const ALPHABET = '234567abcdefghijklmnopqrstuvwxyz'
const VALUE = new Uint8Array(128)
for (let i = 0; i < 32; i++) VALUE[ALPHABET.charCodeAt(i)] = i

/** The largest time a TID can carry; the year is 2255. */
export const TID_MICROS_MAX = Number.MAX_SAFE_INTEGER

/**
 * Writes a TID.
 * @param micros microseconds since 1970, an integer from 0 to 2^53 - 1
 * @param clockId an integer from 0 to 1023
 * @throws RangeError outside of these
 */
export function encodeTid(micros: number, clockId: number): Tid {
  if (!Number.isSafeInteger(micros) || micros < 0) throw new RangeError(`not a time a TID can carry: ${micros}`)
  if (!Number.isInteger(clockId) || clockId < 0 || clockId > 1023) throw new RangeError(`not a clock id: ${clockId}`)
  // The clock id is exactly the two last characters, so the time is eleven of its own: five in the low 25 bits,
  // six in the rest, each part small enough for 32-bit arithmetic.
  const high = Math.floor(micros / 2 ** 25)
  const low = micros % 2 ** 25
  let text = ''
  for (let shift = 25; shift >= 0; shift -= 5) text += ALPHABET[(high >>> shift) & 31]
  for (let shift = 20; shift >= 0; shift -= 5) text += ALPHABET[(low >>> shift) & 31]
  return (text + ALPHABET[clockId >>> 5] + ALPHABET[clockId & 31]) as Tid
}

/**
 * Reads a TID. Foreign ones may have the top bit set, which no generator does: `micros` is then 2^53 or more and rounded.
 */
export function decodeTid(tid: Tid): { micros: number; clockId: number } {
  let micros = 0
  for (let i = 0; i < 11; i++) micros = micros * 32 + VALUE[tid.charCodeAt(i)]!
  return { micros, clockId: (VALUE[tid.charCodeAt(11)]! << 5) | VALUE[tid.charCodeAt(12)]! }
}

/**
 * Makes TIDs that strictly increase, however fast they are asked for and wherever the wall clock steps.
 * Those asked for with `after` are greater than it; only they may lie ahead of the results that follow.
 */
export class TidClock {
  readonly #now: () => number
  readonly #clockId: number
  #last = -1

  /**
   * @param parts.now milliseconds since 1970, fractions welcome
   * @param parts.clockId 0 to 1023, drawn at random once per process so that two processes rarely collide
   */
  constructor(parts: { now: () => number; clockId: number }) {
    this.#now = parts.now
    this.#clockId = parts.clockId
  }

  /**
   * The next TID: now, or the earliest possible one if this clock has already passed that point.
   *
   * @param after the result is greater than this one too, such as the `rev` a repository stands at. It moves this one
   *   result only: a `rev` from the future in one repository does not drag the others there.
   * @throws {@link Malformed} when nothing sorts after `after` (a foreign TID at the end of time)
   */
  next(after?: Tid): Tid {
    const now = Math.max(0, Math.floor(this.#now() * 1000))
    this.#last = Math.max(now, this.#last + 1)
    if (after === undefined) return encodeTid(this.#last, this.#clockId)
    const floor = decodeTid(after).micros + 1
    if (floor > TID_MICROS_MAX) throw new Malformed('no TID sorts after this one')
    return encodeTid(Math.max(this.#last, floor), this.#clockId)
  }
}
