/**
 * Byte strings: joining, comparing, and the text forms the protocol writes them in.
 *
 * Everything here takes any `Uint8Array` (a Node `Buffer` too) and returns plain `Uint8Array`s that own their memory.
 */
import { Buffer, isUtf8 } from 'node:buffer'
import { Malformed } from './errors.ts'

/** Node's own conversions between bytes and text. They work on any Uint8Array and make no intermediate Buffer. */
interface TextMethods {
  latin1Slice(this: Uint8Array, start: number, end: number): string
  utf8Slice(this: Uint8Array, start: number, end: number): string
  hexSlice(this: Uint8Array, start: number, end: number): string
  base64Slice(this: Uint8Array, start: number, end: number): string
  base64urlSlice(this: Uint8Array, start: number, end: number): string
  latin1Write(this: Uint8Array, text: string, at: number, length: number): number
  utf8Write(this: Uint8Array, text: string, at: number, length: number): number
  hexWrite(this: Uint8Array, text: string, at: number, length: number): number
  base64Write(this: Uint8Array, text: string, at: number, length: number): number
  base64urlWrite(this: Uint8Array, text: string, at: number, length: number): number
}
const native = Buffer.prototype as unknown as TextMethods
const { latin1Slice, utf8Slice, hexSlice, base64Slice, base64urlSlice } = native
const { latin1Write, hexWrite, base64Write, base64urlWrite } = native

const encoder = new TextEncoder()

/** Joins byte strings into one new one. */
export function concat(parts: readonly Uint8Array[]): Uint8Array {
  let length = 0
  for (const part of parts) length += part.length
  const joined = new Uint8Array(length)
  let at = 0
  for (const part of parts) {
    joined.set(part, at)
    at += part.length
  }
  return joined
}

/** Whether two byte strings are the same. Not constant-time: do not compare secrets with it. */
export function equal(a: Uint8Array, b: Uint8Array): boolean {
  const length = a.length
  if (length !== b.length) return false
  if (length > 128) return Buffer.compare(a, b) === 0
  for (let i = 0; i < length; i++) if (a[i] !== b[i]) return false
  return true
}

/** Orders byte strings bytewise: negative, zero or positive, a prefix before what it is a prefix of. */
export function compare(a: Uint8Array, b: Uint8Array): number {
  return Buffer.compare(a, b)
}

/** The bytes of a string in UTF-8. @throws Malformed when the string holds a lone surrogate. */
export function utf8(text: string): Uint8Array {
  if (!text.isWellFormed()) throw new Malformed('text holds a lone surrogate')
  return encoder.encode(text)
}

/** The string that the bytes spell in UTF-8; a leading byte order mark is kept. @throws Malformed when they are not UTF-8. */
export function fromUtf8(bytes: Uint8Array): string {
  if (!isUtf8(bytes)) throw new Malformed('bytes are not UTF-8')
  return utf8Slice.call(bytes, 0, bytes.length)
}

/** The string with one char (0-255) for each byte in `[start, end)`: a cheap key for maps. */
export function latin1(bytes: Uint8Array, start = 0, end = bytes.length): string {
  return latin1Slice.call(bytes, start, end)
}

/** The bytes of a string whose chars are all 0-255; the inverse of {@link latin1}, unchecked. */
export function fromLatin1(text: string): Uint8Array {
  const { length } = text
  const bytes = new Uint8Array(length)
  // Short ones lie in V8's own memory, until the runtime writes into them, which gives them memory of their own.
  if (length <= 64) for (let i = 0; i < length; i++) bytes[i] = text.charCodeAt(i)
  else latin1Write.call(bytes, text, 0, length)
  return bytes
}

/** Lowercase hexadecimal. */
export function hex(bytes: Uint8Array): string {
  return hexSlice.call(bytes, 0, bytes.length)
}

const HEX = /^(?:[0-9a-fA-F]{2})*$/

/** Reads hexadecimal of either case. @throws Malformed on any other character or an odd length. */
export function unhex(text: string): Uint8Array {
  if (!HEX.test(text)) throw new Malformed('not hexadecimal')
  const bytes = new Uint8Array(text.length / 2)
  hexWrite.call(bytes, text, 0, bytes.length)
  return bytes
}

const BASE32 = 'abcdefghijklmnopqrstuvwxyz234567'
const base32Value = new Int8Array(128).fill(-1)
for (let i = 0; i < 32; i++) base32Value[BASE32.charCodeAt(i)] = i

/** Two characters at a time: the text of each ten bits. */
const base32Pairs: string[] = Array.from({ length: 1024 }, (_, i) => BASE32[i >> 5]! + BASE32[i & 31]!)

/** Base32, lowercase and unpadded. Source: RFC 4648 §6. */
export function base32(bytes: Uint8Array): string {
  const whole = bytes.length - (bytes.length % 5)
  let text = ''
  let i = 0
  for (; i < whole; i += 5) {
    const high = (bytes[i]! << 12) | (bytes[i + 1]! << 4) | (bytes[i + 2]! >> 4)
    const low = ((bytes[i + 2]! & 15) << 16) | (bytes[i + 3]! << 8) | bytes[i + 4]!
    text += base32Pairs[high >> 10]! + base32Pairs[high & 1023]! + base32Pairs[low >> 10]! + base32Pairs[low & 1023]!
  }
  let held = 0
  let bits = 0
  for (; i < bytes.length; i++) {
    held = ((held << 8) | bytes[i]!) & 0xfff
    bits += 8
    for (; bits >= 5; bits -= 5) text += BASE32[(held >> (bits - 5)) & 31]
  }
  return bits > 0 ? text + BASE32[(held << (5 - bits)) & 31] : text
}

/** Reads lowercase unpadded base32. @throws Malformed on another character, an impossible length or bits left over. */
export function unbase32(text: string): Uint8Array {
  const bytes = new Uint8Array(Math.floor((text.length * 5) / 8))
  let at = 0
  let held = 0
  let bits = 0
  for (let i = 0; i < text.length; i++) {
    const code = text.charCodeAt(i)
    const value = code < 128 ? base32Value[code]! : -1
    if (value < 0) throw new Malformed('not base32', i)
    held = ((held << 5) | value) & 0xfff
    bits += 5
    if (bits >= 8) {
      bits -= 8
      bytes[at++] = held >> bits
    }
  }
  if (bits >= 5 || (held & ((1 << bits) - 1)) !== 0) throw new Malformed('base32 with bits left over')
  return bytes
}

const BASE58 = '123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz'
const base58Value = new Int8Array(128).fill(-1)
for (let i = 0; i < 58; i++) base58Value[BASE58.charCodeAt(i)] = i
/** Base58 takes quadratic time; keys and CIDs are far below this. */
const BASE58_LENGTH_MAX = 1_024

/** Base58 in the Bitcoin alphabet, for keys and other short things (time is quadratic). */
export function base58(bytes: Uint8Array): string {
  let zeros = 0
  while (zeros < bytes.length && bytes[zeros] === 0) zeros++
  const digits: number[] = []
  for (let i = zeros; i < bytes.length; i++) {
    let carry = bytes[i]!
    for (let j = 0; j < digits.length; j++) {
      carry += digits[j]! << 8
      digits[j] = carry % 58
      carry = (carry / 58) | 0
    }
    for (; carry > 0; carry = (carry / 58) | 0) digits.push(carry % 58)
  }
  let text = '1'.repeat(zeros)
  for (let i = digits.length - 1; i >= 0; i--) text += BASE58[digits[i]!]
  return text
}

/** Reads base58 (Bitcoin alphabet) of at most 1,024 characters. @throws Malformed on anything else. */
export function unbase58(text: string): Uint8Array {
  if (text.length > BASE58_LENGTH_MAX) throw new Malformed('base58 too long')
  let zeros = 0
  while (zeros < text.length && text[zeros] === '1') zeros++
  const digits: number[] = []
  for (let i = zeros; i < text.length; i++) {
    const code = text.charCodeAt(i)
    let carry = code < 128 ? base58Value[code]! : -1
    if (carry < 0) throw new Malformed('not base58', i)
    for (let j = 0; j < digits.length; j++) {
      carry += digits[j]! * 58
      digits[j] = carry & 255
      carry >>= 8
    }
    for (; carry > 0; carry >>= 8) digits.push(carry & 255)
  }
  const bytes = new Uint8Array(zeros + digits.length)
  for (let i = 0; i < digits.length; i++) bytes[bytes.length - 1 - i] = digits[i]!
  return bytes
}

/** Base64 in the standard alphabet, unpadded, as atproto writes `$bytes`. Source: RFC 4648 §4. */
export function base64(bytes: Uint8Array): string {
  const text = base64Slice.call(bytes, 0, bytes.length)
  const spare = bytes.length % 3
  return spare === 0 ? text : text.slice(0, spare - 3)
}

const BASE64 = /^[A-Za-z0-9+/]*={0,2}$/

/**
 * Reads base64 in the standard alphabet; padding may be left out, but not be wrong. Bits left over are ignored, as
 * other implementations of atproto do.
 * @throws Malformed on any other character (blanks too) and on impossible lengths.
 */
export function unbase64(text: string): Uint8Array {
  if (!BASE64.test(text)) throw new Malformed('not base64')
  let length = text.length
  while (length > 0 && text.charCodeAt(length - 1) === 0x3d) length--
  const spare = length % 4
  if (spare === 1 || (length !== text.length && text.length % 4 !== 0))
    throw new Malformed('base64 of impossible length')
  const bytes = new Uint8Array(Math.floor((length * 3) / 4))
  base64Write.call(bytes, text, 0, bytes.length)
  return bytes
}

/** Base64 in the URL-safe alphabet, unpadded. Source: RFC 4648 §5. */
export function base64url(bytes: Uint8Array): string {
  return base64urlSlice.call(bytes, 0, bytes.length)
}

const BASE64URL = /^[A-Za-z0-9_-]*$/

/**
 * Reads unpadded URL-safe base64, only in its canonical form: what it accepts, {@link base64url} writes again.
 * @throws Malformed on padding, any other character, impossible lengths, and bits left over that are not zero.
 */
export function unbase64url(text: string): Uint8Array {
  if (!BASE64URL.test(text) || text.length % 4 === 1) throw new Malformed('not base64url')
  const bytes = new Uint8Array(Math.floor((text.length * 3) / 4))
  base64urlWrite.call(bytes, text, 0, bytes.length)
  if (text.length % 4 !== 0 && !base64url(bytes.subarray(bytes.length - (bytes.length % 3))).endsWith(text.slice(-1))) {
    throw new Malformed('base64url with bits left over')
  }
  return bytes
}

/** An unsigned LEB128 varint, minimal. `n` is an integer in 0..2^53-1. */
export function encodeVarint(n: number): Uint8Array {
  if (!Number.isSafeInteger(n) || n < 0) throw new Malformed('varint out of range')
  const bytes: number[] = []
  while (n >= 128) {
    bytes.push((n % 128) | 128)
    n = Math.floor(n / 128)
  }
  bytes.push(n)
  return Uint8Array.from(bytes)
}

/**
 * Reads an unsigned LEB128 varint of at most 2^53-1 at offset `at`; `next` is the offset behind it.
 * @throws Malformed when the bytes end in it, when it is too large, or not minimal. Source: multiformats unsigned-varint.
 */
export function readVarint(bytes: Uint8Array, at: number): { value: number; next: number } {
  let value = 0
  let scale = 1
  for (let i = at; i < bytes.length; i++) {
    const byte = bytes[i]!
    value += (byte & 127) * scale
    if (value > Number.MAX_SAFE_INTEGER) throw new Malformed('varint too large', at)
    if (byte < 128) {
      if (byte === 0 && i > at) throw new Malformed('varint not minimal', at)
      return { value, next: i + 1 }
    }
    scale *= 128
    if (i - at >= 8) throw new Malformed('varint too large', at)
  }
  throw new Malformed('varint cut short', at)
}
