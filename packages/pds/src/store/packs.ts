/**
 * Blocks that the database has joined to one byte string, with a comma between. Each is its length in decimal digits, its CID and
 * its bytes; in place of both length and bytes stands a sign where a block is not here.
 */
import { CID_BYTES } from '@millisky/core/cid'

/** In place of the length of a block that is large and has to be asked for by itself. */
export const LEFT_OUT = '-'
/** In place of the length of a node that is older than wanted. */
export const OLD = '='

const DIGIT_0 = 0x30

/** Stands before its first block, and goes from one to the next. */
export class Pack {
  readonly bytes: Buffer
  /** Where the CID of the present block begins, and where the block ends. */
  from = 0
  to = 0
  /** Why the present block is not here. */
  lacks: typeof LEFT_OUT | typeof OLD | null = null
  readonly #view: DataView

  constructor({ buffer, byteOffset, byteLength }: Uint8Array) {
    this.bytes = Buffer.from(buffer as ArrayBuffer, byteOffset, byteLength)
    this.#view = new DataView(buffer, byteOffset, byteLength)
  }

  /** Goes to the next block; false at the end. */
  next(): boolean {
    const { bytes } = this
    let at = this.to === 0 ? 0 : this.to + 1
    if (at >= bytes.length) return false
    let digit = bytes[at]! - DIGIT_0
    let length = 0
    if (digit >= 0 && digit <= 9) {
      this.lacks = null
      // A CID begins with 1, which is no digit.
      for (; digit >= 0; digit = bytes[++at]! - DIGIT_0) length = length * 10 + digit
    } else this.lacks = bytes[at++] === OLD.charCodeAt(0) ? OLD : LEFT_OUT
    this.from = at
    this.to = at + CID_BYTES + length
    return true
  }

  /**
   * Gives the memory back at once, if it is of nobody else: what waits for a collection makes collections come sooner, of
   * which each looks at all there is.
   */
  free(): void {
    const { buffer, byteLength } = this.bytes
    if (byteLength === buffer.byteLength && byteLength > 0) (buffer as ArrayBuffer).transfer(0)
  }

  /** Four bytes of the hash in the CID at an offset: enough to tell nearly all apart. */
  hashAt(at: number): number {
    return this.#view.getInt32(at + 4)
  }

  /** Whether the same CID stands at an offset here and at one of another pack. */
  isSame(at: number, other: Pack, otherAt: number): boolean {
    const view = this.#view
    const otherView = other.#view
    for (let i = 0; i < CID_BYTES; i += 4) {
      if (view.getInt32(at + i) !== otherView.getInt32(otherAt + i)) return false
    }
    return true
  }
}
