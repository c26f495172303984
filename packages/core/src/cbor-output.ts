/** The writing side of {@link ./cbor.ts}: heads, texts, byte strings and links, each in its one allowed form. */
import { Buffer } from 'node:buffer'
import type { Cid } from './cid.ts'
import { Malformed } from './errors.ts'

const { utf8Write } = Buffer.prototype as unknown as {
  utf8Write(this: Uint8Array, text: string, at: number, length: number): number
}
const BYTES_FIRST = 16_384

/** CBOR being written, into a buffer that grows as needed; the first `at` bytes count. */
export class Output {
  bytes: Uint8Array<ArrayBuffer> = new Uint8Array(BYTES_FIRST)
  at = 0

  room(length: number): void {
    if (this.at + length <= this.bytes.length) return
    const grown = new Uint8Array(Math.max(this.bytes.length * 2, this.at + length))
    grown.set(this.bytes.subarray(0, this.at))
    this.bytes = grown
  }

  byte(byte: number): void {
    this.room(1)
    this.bytes[this.at++] = byte
  }

  /** A major type (in its place, the top three bits) and the number that goes with it, in its shortest form. */
  head(major: number, arg: number): void {
    this.room(9)
    const { bytes } = this
    if (arg < 24) bytes[this.at++] = major | arg
    else if (arg < 0x100) {
      bytes[this.at++] = major | 24
      bytes[this.at++] = arg
    } else if (arg < 0x10000) {
      bytes[this.at++] = major | 25
      bytes[this.at++] = arg >> 8
      bytes[this.at++] = arg
    } else if (arg < 0x1_0000_0000) {
      bytes[this.at++] = major | 26
      this.#write32(arg)
    } else {
      bytes[this.at++] = major | 27
      this.#write32(Math.floor(arg / 0x1_0000_0000))
      this.#write32(arg % 0x1_0000_0000)
    }
  }

  #write32(n: number): void {
    const { bytes, at } = this
    bytes[at] = n >>> 24
    bytes[at + 1] = n >>> 16
    bytes[at + 2] = n >>> 8
    bytes[at + 3] = n
    this.at = at + 4
  }

  big(n: bigint): void {
    const major = n < 0n ? 0x20 : 0x00
    const arg = n < 0n ? -1n - n : n
    if (arg > 0xffff_ffff_ffff_ffffn) throw new Malformed('integer beyond 64 bits')
    if (arg < 0x1_0000_0000n) this.head(major, Number(arg))
    else {
      this.room(9)
      this.bytes[this.at++] = major | 27
      this.#write32(Number(arg >> 32n))
      this.#write32(Number(arg & 0xffff_ffffn))
    }
  }

  float(n: number): void {
    if (!Number.isFinite(n)) throw new Malformed('float not finite')
    this.room(9)
    this.bytes[this.at] = 0xfb
    new DataView(this.bytes.buffer).setFloat64(this.at + 1, n)
    this.at += 9
  }

  byteString(value: Uint8Array): void {
    this.head(0x40, value.length)
    this.room(value.length)
    this.bytes.set(value, this.at)
    this.at += value.length
  }

  link(cid: Cid): void {
    this.room(cid.length + 9)
    this.bytes[this.at++] = 0xd8
    this.bytes[this.at++] = 42
    this.head(0x40, cid.length + 1)
    this.room(cid.length + 1)
    this.bytes[this.at++] = 0
    cid.copyTo(this.bytes, this.at)
    this.at += cid.length
  }

  /** Writes a text and returns its length in bytes. */
  text(text: string): number {
    const { length } = text
    this.room(length * 3 + 9)
    const start = this.at
    if (length < 32) {
      const { bytes } = this
      const from = start + (length < 24 ? 1 : 2)
      let i = 0
      for (; i < length; i++) {
        const code = text.charCodeAt(i)
        if (code > 127) break
        bytes[from + i] = code
      }
      if (i === length) {
        this.head(0x60, length)
        this.at += length
        return length
      }
    }
    return this.#utf8(text, start)
  }

  /** Writes the bytes where they belong if all are ASCII, and moves them where the head turns out longer. */
  #utf8(text: string, start: number): number {
    this.head(0x60, text.length)
    const from = this.at
    const length = utf8Write.call(this.bytes, text, from, text.length * 3)
    if (length !== text.length) {
      if (!text.isWellFormed()) throw new Malformed('text holds a lone surrogate')
      this.at = start
      this.head(0x60, length)
      if (this.at !== from) {
        // The head that was written over the first bytes is longer than guessed: encode again behind it.
        utf8Write.call(this.bytes, text, this.at, length)
      }
    }
    this.at += length
    return length
  }
}
