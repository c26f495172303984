/**
 * Keys of the Merkle Search Tree: paths `collection/rkey` in ASCII, so that JavaScript's `<` on strings is the bytewise
 * order of the protocol.
 */
import { hash } from 'node:crypto'
import { Malformed } from '../errors.ts'
import { MST_HEIGHT_MAX, MST_KEY_BYTES_MAX } from '../limits.ts'

const KEY = /^[A-Za-z0-9._~:-]+\/[A-Za-z0-9._~:-]+$/

/**
 * Whether a string can be a key: one slash with something on both sides, characters `A-Za-z0-9._~:-`, at most 1,024 of
 * them. Narrower rules (an NSID, a record key) are `parseRepoPath`'s.
 */
export function isKey(text: string): boolean {
  return text.length <= MST_KEY_BYTES_MAX && KEY.test(text)
}

/** Bytes that may stand in a key, the slash excepted: index is the byte. */
export const KEY_CHARS = Uint8Array.from({ length: 256 }, (_, byte) =>
  /[A-Za-z0-9._~:-]/.test(String.fromCharCode(byte)) ? 1 : 0,
)

/**
 * The layer a key lives on: leading zero bits of its SHA-256, halved. A quarter of all keys reach each next layer.
 *
 * Costs a hash; whoever has the node a key stands in reads `node.layer` instead.
 *
 * Source: atproto.com/specs/repository (MST Structure); interop vectors key_heights.json.
 */
export function keyHeight(key: string): number {
  const digest = hash('sha256', key, 'latin1')
  let zeros = 0
  for (let i = 0; i < digest.length; i++) {
    const byte = digest.charCodeAt(i)
    zeros += byte === 0 ? 8 : Math.clz32(byte) - 24
    if (byte !== 0) break
  }
  return zeros >> 1
}

/** {@link keyHeight} of what must be a key. @throws Malformed when it is none, or is higher than trees may be. */
export function heightOfKey(key: string): number {
  if (!isKey(key)) throw new Malformed(`not a key of a repository: ${JSON.stringify(key.slice(0, 80))}`)
  const height = keyHeight(key)
  if (height > MST_HEIGHT_MAX) throw new Malformed('key is higher than a tree may be')
  return height
}

/** Number of leading characters two strings share. */
export function commonPrefix(a: string, b: string): number {
  const length = Math.min(a.length, b.length)
  let i = 0
  while (i < length && a.charCodeAt(i) === b.charCodeAt(i)) i++
  return i
}
