/** A `did:key` of K-256 or P-256 in 33 bytes, for stores that hold very many. The point itself is not checked. */
import { base58, concat, unbase58 } from './bytes.ts'

const CODECS = [
  { prefix: Uint8Array.of(0xe7, 0x01), mark: 0x00 },
  { prefix: Uint8Array.of(0x80, 0x24), mark: 0x10 },
] as const

/** The compressed point, with the curve in an unused bit of its first byte; null for a text that is no such key. */
export function packDidKey(text: string): Uint8Array | null {
  if (!/^did:key:z[1-9A-HJ-NP-Za-km-z]{46,52}$/.test(text)) return null
  const bytes = unbase58(text.slice('did:key:z'.length))
  const codec = CODECS.find(({ prefix }) => bytes[0] === prefix[0] && bytes[1] === prefix[1])
  if (codec === undefined || bytes.length !== 35 || (bytes[2] !== 2 && bytes[2] !== 3)) return null
  const packed = bytes.slice(2)
  packed[0]! |= codec.mark
  return packed
}

/** @param packed as {@link packDidKey} gives it */
export function unpackDidKey(packed: Uint8Array): string {
  const { prefix, mark } = packed[0]! & 0x10 ? CODECS[1] : CODECS[0]
  const point = packed.slice()
  point[0]! &= ~mark
  return `did:key:z${base58(concat([prefix, point]))}`
}
