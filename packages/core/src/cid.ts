/**
 * Content identifiers: the hash of a block with a few bytes that say how to read it.
 *
 * Source: atproto.com/specs/data-model, dasl.ing/cid.html; multiformats CID for foreign ones.
 */
import { hash } from 'node:crypto'
import { base32, base58, fromLatin1, hex, latin1, readVarint, unbase32, unbase58 } from './bytes.ts'
import { Malformed } from './errors.ts'
import { sha256Latin1 } from './hash.ts'
import { CID_BYTES_MAX } from './limits.ts'

/** Codec of DAG-CBOR blocks: commits, MST nodes, records. */
export const CODEC_CBOR = 0x71
/** Codec of raw blocks: blobs. */
export const CODEC_RAW = 0x55
/** Multihash code of SHA-256. */
export const HASH_SHA256 = 0x12
/** Length of a blessed CID in binary. */
export const CID_BYTES = 36

const HASH_SHA512 = 0x13
const CBOR_PREFIX = '\x01\x71\x12\x20'
const RAW_PREFIX = '\x01\x55\x12\x20'

/**
 * One CID, immutable, kept exactly as it came.
 *
 * atproto blesses one kind only: version 1, codec DAG-CBOR or raw, SHA-256 (see {@link Cid.isBlessed}). Any other
 * well-formed CID of up to 100 bytes is representable, since foreign records may link to such. What `fromBytes` and
 * `view` are given is not copied: its owner must not change it, and it is kept alive as a whole (see {@link Cid.detach}).
 * `assert.deepEqual` and `console.log` see the value, through `Symbol.toStringTag`.
 */
export class Cid {
  // A decoder makes many CIDs of which few are ever looked at, so every form is made when first asked for.
  // Either #source or #key is set from the start.
  #source: Uint8Array | undefined
  readonly #at: number
  readonly #length: number
  #key: string | undefined
  #bytes: Uint8Array | undefined
  #text: string | undefined

  private constructor(source: Uint8Array | undefined, at: number, length: number, key: string | undefined) {
    this.#source = source
    this.#at = at
    this.#length = length
    this.#key = key
  }

  /** The CID that is exactly these bytes (not copied). @throws Malformed */
  static fromBytes(bytes: Uint8Array): Cid {
    return Cid.view(bytes, 0, bytes.length)
  }

  /** The CID at `[at, at + length)` of a larger byte string (not copied). @throws Malformed */
  static view(source: Uint8Array, at: number, length: number): Cid {
    if (length !== CID_BYTES || at + length > source.length || !blessedAt(source, at)) {
      if (at + length > source.length) throw new Malformed('CID cut short', at)
      if (length > CID_BYTES_MAX) throw new Malformed('CID too long', at)
      if (cidEnd(source, at, at + length) !== at + length) throw new Malformed('bytes behind the CID', at)
    }
    return new Cid(source, at, length, undefined)
  }

  /**
   * Reads a CID as text: `b` + lowercase base32 as atproto writes it; base58 (`z…`, and `Qm…` of version 0) is
   * understood too.
   * @throws Malformed
   */
  static parse(text: string): Cid {
    if (text.length > 2 * CID_BYTES_MAX) throw new Malformed('CID too long')
    let bytes: Uint8Array
    if (text.startsWith('b')) bytes = unbase32(text.slice(1))
    else if (text.startsWith('z')) bytes = unbase58(text.slice(1))
    else if (text.startsWith('Qm')) bytes = unbase58(text)
    else throw new Malformed('not a CID')
    if ((bytes[0] === 1) === text.startsWith('Qm')) throw new Malformed('not a CID')
    return Cid.fromBytes(bytes)
  }

  /** The CID that has this {@link key}; not checked. */
  static fromKey(key: string): Cid {
    return new Cid(undefined, 0, key.length, key)
  }

  /** The CID of a DAG-CBOR block: hashes it. */
  static ofCbor(block: Uint8Array): Cid {
    return new Cid(undefined, 0, CID_BYTES, CBOR_PREFIX + sha256Latin1(block))
  }

  /** The CID of a raw block (a blob): hashes it. */
  static ofRaw(block: Uint8Array): Cid {
    return new Cid(undefined, 0, CID_BYTES, RAW_PREFIX + sha256Latin1(block))
  }

  /** The blessed CID with this codec (0x71 or 0x55) and SHA-256 digest (32 bytes, copied). */
  static fromDigest(codec: number, digest: Uint8Array): Cid {
    if ((codec !== CODEC_CBOR && codec !== CODEC_RAW) || digest.length !== 32) throw new Malformed('not a blessed CID')
    return new Cid(undefined, 0, CID_BYTES, (codec === CODEC_CBOR ? CBOR_PREFIX : RAW_PREFIX) + latin1(digest))
  }

  /** The binary form, 36 bytes if blessed. Shared, not to be changed. */
  get bytes(): Uint8Array {
    if (this.#bytes === undefined) {
      const source = this.#source
      if (source === undefined) this.#bytes = fromLatin1(this.#key!)
      else this.#bytes = new Uint8Array(source.buffer, source.byteOffset + this.#at, this.#length)
    }
    return this.#bytes
  }

  /** The binary form as a string with one char for each byte: what maps and sets are keyed by. */
  get key(): string {
    return (this.#key ??= latin1(this.#source!, this.#at, this.#at + this.#length))
  }

  /** Thirty bits from its end, which are of the hash: a much cheaper key than {@link key}, but two CIDs can be made that share it. */
  get short(): number {
    const end = this.#length
    return (
      (this.#byte(end - 4) << 22) |
      (this.#byte(end - 3) << 14) |
      (this.#byte(end - 2) << 6) |
      (this.#byte(end - 1) >> 2)
    )
  }

  /** 0 or 1; always 1 in atproto. */
  get version(): 0 | 1 {
    return this.#byte(0) === 1 ? 1 : 0
  }

  /** The multicodec of the block, {@link CODEC_CBOR} or {@link CODEC_RAW} if blessed. */
  get code(): number {
    if (this.version === 0) return 0x70
    return readVarint(this.bytes, 1).value
  }

  /** Hash function and digest. */
  get multihash(): { code: number; digest: Uint8Array } {
    const bytes = this.bytes
    const code = readVarint(bytes, this.version === 0 ? 0 : readVarint(bytes, 1).next)
    return { code: code.value, digest: bytes.subarray(readVarint(bytes, code.next).next) }
  }

  /** The digest of the block, 32 bytes if blessed. */
  get digest(): Uint8Array {
    return this.isBlessed ? this.bytes.subarray(4) : this.multihash.digest
  }

  /** Whether atproto allows it everywhere: version 1, codec DAG-CBOR or raw, SHA-256, 36 bytes. */
  get isBlessed(): boolean {
    if (this.#length !== CID_BYTES) return false
    if (this.#source !== undefined) return blessedAt(this.#source, this.#at)
    return this.#key!.startsWith(CBOR_PREFIX) || this.#key!.startsWith(RAW_PREFIX)
  }

  /** Whether it names a block of DAG-CBOR and {@link isBlessed}: the kind of commits, MST nodes and records. */
  get isCbor(): boolean {
    return this.#byte(1) === CODEC_CBOR && this.isBlessed
  }

  /** Whether both are the same, byte for byte. */
  equals(other: { readonly bytes: Uint8Array } | null | undefined): boolean {
    if (this === other) return true
    if (!(other instanceof Cid)) return other?.bytes instanceof Uint8Array && latin1(other.bytes) === this.key
    if (this.#length !== other.#length) return false
    if (other.#source !== undefined) return this.standsAt(other.#source, other.#at)
    return this.#source === undefined ? this.#key === other.#key : other.standsAt(this.#source, this.#at)
  }

  /** Whether its binary form stands at offset `at` of `bytes`. */
  standsAt(bytes: Uint8Array, at: number): boolean {
    const source = this.#source
    const key = this.#key
    const length = this.#length
    if (source !== undefined) {
      const shift = this.#at - at
      for (let i = at; i < at + length; i++) if (bytes[i] !== source[i + shift]) return false
    } else for (let i = 0; i < length; i++) if (bytes[at + i] !== key!.charCodeAt(i)) return false
    return true
  }

  /** Whether it is the CID of this block; see {@link hashMatches}. */
  matches(block: Uint8Array): boolean {
    if (!this.isBlessed) {
      const { code, digest } = this.multihash
      if (code === HASH_SHA256) return digest.length === 32 && latin1(digest) === sha256Latin1(block)
      return code === HASH_SHA512 && hex(digest) === hash('sha512', block, 'hex')
    }
    const digest = sha256Latin1(block)
    if (this.#key !== undefined) return this.#key.endsWith(digest)
    const source = this.#source!
    const from = this.#at + 4
    for (let i = 0; i < 32; i++) if (digest.charCodeAt(i) !== source[from + i]) return false
    // With the digest in hand as text the key comes for next to nothing.
    this.#key = (source[this.#at + 1] === CODEC_CBOR ? CBOR_PREFIX : RAW_PREFIX) + digest
    return true
  }

  /** The same CID without the larger byte string it may have been a view of: for what is kept long. */
  detach(): Cid {
    return this.#source === undefined ? this : new Cid(undefined, 0, this.#length, this.key)
  }

  /** Copies the binary form to offset `at` of `target`, which has room. */
  copyTo(target: Uint8Array, at: number): void {
    const source = this.#source
    const key = this.#key
    if (source !== undefined) for (let i = 0; i < this.#length; i++) target[at + i] = source[this.#at + i]!
    else for (let i = 0; i < this.#length; i++) target[at + i] = key!.charCodeAt(i)
  }

  /** Length of the binary form. */
  get length(): number {
    return this.#length
  }

  /** The text form: `b` and base32 (59 chars if blessed); base58 for version 0. */
  toString(): string {
    return (this.#text ??= this.version === 0 ? base58(this.bytes) : `b${base32(this.bytes)}`)
  }

  /** The JSON form of a link. Source: atproto.com/specs/data-model. */
  toJSON(): { $link: string } {
    return { $link: this.toString() }
  }

  get [Symbol.toStringTag](): string {
    return this.toString()
  }

  #byte(i: number): number {
    return this.#source === undefined ? this.#key!.charCodeAt(i) : this.#source[this.#at + i]!
  }
}

/**
 * Whether a block has the hash its CID says. False also for hash functions that are not checked here
 * (all but SHA-256 and SHA-512).
 */
export function hashMatches(cid: Cid, block: Uint8Array): boolean {
  return cid.matches(block)
}

/**
 * The offset behind the CID that begins at `at` and lies before `end`, whatever its kind.
 * @throws Malformed when there is none, or it is longer than 100 bytes.
 */
export function cidEnd(bytes: Uint8Array, at: number, end: number): number {
  if (end - at >= CID_BYTES && blessedAt(bytes, at)) return at + CID_BYTES
  if (end - at >= 34 && bytes[at] === HASH_SHA256 && bytes[at + 1] === 32) return at + 34
  const here = end < bytes.length ? bytes.subarray(0, end) : bytes
  const version = readVarint(here, at)
  if (version.value !== 1) throw new Malformed('CID of unknown version', at)
  const codec = readVarint(here, version.next)
  const hashCode = readVarint(here, codec.next)
  const length = readVarint(here, hashCode.next)
  const behind = length.next + length.value
  if (behind > end) throw new Malformed('CID cut short', at)
  if (behind - at > CID_BYTES_MAX) throw new Malformed('CID too long', at)
  return behind
}

/** Whether a blessed CID's first four bytes stand at `at`. */
function blessedAt(bytes: Uint8Array, at: number): boolean {
  const codec = bytes[at + 1]
  return (
    bytes[at] === 1 &&
    (codec === CODEC_CBOR || codec === CODEC_RAW) &&
    bytes[at + 2] === HASH_SHA256 &&
    bytes[at + 3] === 32
  )
}

const CID_SYNTAX = /^[a-zA-Z0-9+=]{8,256}$/

/**
 * Whether a string passes as the lexicon string format `cid`, which asks less than {@link Cid.parse}: some multibase
 * text that is not version 0.
 */
export function isCidSyntax(text: string): boolean {
  return CID_SYNTAX.test(text) && !text.startsWith('Qmb')
}
