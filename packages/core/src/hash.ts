/** SHA-256, the one hash of the protocol. */
import { hash } from 'node:crypto'
import { fromLatin1 } from './bytes.ts'

/**
 * The SHA-256 digest, 32 bytes.
 *
 * Taken as text and written into bytes because a Buffer made by the hash itself costs two to four times the hashing
 * of a typical block.
 */
export function sha256(bytes: Uint8Array): Uint8Array {
  return fromLatin1(hash('sha256', bytes, 'latin1'))
}

/** The SHA-256 digest as a string of 32 chars, one for each byte: the cheapest form to compare. */
export function sha256Latin1(bytes: Uint8Array): string {
  return hash('sha256', bytes, 'latin1')
}

/** The SHA-256 digest in lowercase hexadecimal, 64 chars. */
export function sha256Hex(bytes: Uint8Array): string {
  return hash('sha256', bytes, 'hex')
}
