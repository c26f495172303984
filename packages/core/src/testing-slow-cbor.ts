// A second reading of the DRISL rules: recursive, one rule a line, for comparing with. It is never fast.
import type { Value } from './cbor.ts'
import { Cid } from './cid.ts'
import { objectOf } from './testing-values.ts'

class Stop extends Error {}

function must(condition: boolean, rule: string): asserts condition {
  if (!condition) throw new Stop(rule)
}

/** The one item that the bytes hold, or undefined when they hold none that the rules allow. */
export function slowDecode(bytes: Uint8Array): Value | undefined {
  try {
    const { value, end } = item(bytes, 0, 0)
    must(end === bytes.length, 'no trailing bytes')
    return value
  } catch (error) {
    if (error instanceof Stop) return undefined
    throw error
  }
}

function head(bytes: Uint8Array, at: number): { major: number; info: number; arg: bigint; next: number } {
  must(at < bytes.length, 'a head')
  const major = bytes[at]! >> 5
  const info = bytes[at]! & 31
  must(info < 28, 'definite lengths')
  const size = info < 24 ? 0 : 2 ** (info - 24)
  must(at + 1 + size <= bytes.length, 'a whole head')
  let arg = info < 24 ? BigInt(info) : 0n
  for (const byte of bytes.subarray(at + 1, at + 1 + size)) arg = arg * 256n + BigInt(byte)
  const least = [0n, 24n, 0x100n, undefined, 0x10000n, undefined, undefined, undefined, 0x100000000n][size]!
  must(major === 7 || arg >= least, 'shortest form')
  return { major, info, arg, next: at + 1 + size }
}

function slice(bytes: Uint8Array, at: number, length: bigint): Uint8Array {
  must(BigInt(at) + length <= BigInt(bytes.length), 'as many bytes as announced')
  return bytes.subarray(at, at + Number(length))
}

function integer(n: bigint): number | bigint {
  return Number.isSafeInteger(Number(n)) ? Number(n) : n
}

function item(bytes: Uint8Array, at: number, depth: number): { value: Value; end: number } {
  const { major, info, arg, next } = head(bytes, at)
  if (major === 0) return { value: integer(arg), end: next }
  if (major === 1) return { value: integer(-1n - arg), end: next }
  if (major === 2) return { value: slice(bytes, next, arg).slice(), end: next + Number(arg) }
  if (major === 3) return { value: text(slice(bytes, next, arg)), end: next + Number(arg) }
  if (major === 4) return list(bytes, next, arg, depth + 1)
  if (major === 5) return map(bytes, next, arg, depth + 1)
  if (major === 6) {
    must(arg === 42n, 'tag 42')
    const inner = head(bytes, next)
    must(inner.major === 2, 'a byte string')
    const content = slice(bytes, inner.next, inner.arg)
    must(content[0] === 0, 'a zero byte')
    return { value: cid(content.slice(1)), end: inner.next + content.length }
  }
  must(info >= 20 && info <= 22, 'false, true or null')
  return { value: [false, true, null][info - 20]!, end: next }
}

function text(bytes: Uint8Array): string {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
  } catch {
    throw new Stop('UTF-8')
  }
}

function cid(bytes: Uint8Array): Cid {
  try {
    return Cid.fromBytes(bytes)
  } catch {
    throw new Stop('a CID')
  }
}

function list(bytes: Uint8Array, at: number, count: bigint, depth: number): { value: Value; end: number } {
  must(depth <= 32, 'depth')
  must(count <= 131_072n, 'items')
  const value: Value[] = []
  for (let i = 0n; i < count; i++) {
    const child = item(bytes, at, depth)
    value.push(child.value)
    at = child.end
  }
  return { value, end: at }
}

function map(bytes: Uint8Array, at: number, count: bigint, depth: number): { value: Value; end: number } {
  must(depth <= 32, 'depth')
  must(count <= 131_072n, 'items')
  const entries: [string, Value][] = []
  let before: Buffer | undefined
  for (let i = 0n; i < count; i++) {
    const key = head(bytes, at)
    must(key.major === 3, 'text keys')
    must(key.arg <= 8_192n, 'key length')
    const content = Buffer.from(slice(bytes, key.next, key.arg))
    must(
      !before || before.length < content.length || (before.length === content.length && before.compare(content) < 0),
      'canonical order',
    )
    before = content
    const child = item(bytes, key.next + content.length, depth)
    entries.push([text(content), child.value])
    at = child.end
  }
  return { value: objectOf(entries), end: at }
}
