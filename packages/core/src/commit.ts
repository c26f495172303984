/**
 * Commits: the signed object at the top of a repository.
 *
 * Source: atproto.com/specs/repository.
 */
import type { Block } from './blocks.ts'
import { decode, encode, type Obj } from './cbor.ts'
import { Cid } from './cid.ts'
import type { PublicKey, SigningKey } from './crypto.ts'
import { Malformed } from './errors.ts'
import { type Did, isDid, isTid, type Tid } from './syntax.ts'

/** The commit version this code writes; the one before it can be read. */
export const COMMIT_VERSION = 3
/** Bytes of a signature: r and s, 32 each. */
const SIGNATURE_BYTES = 64
const UNSIGNED = new Uint8Array(SIGNATURE_BYTES)
/** What stands behind the signature in what is written here: `data` and its link, `prev` and null, `version` and its number. */
const BEHIND_SIGNATURE_BYTES = 5 + 41 + 5 + 1 + 8 + 1

/** One commit as it is signed. `prev` is a relic: a key that must be there and is null in every repository of today. */
export interface Commit {
  did: Did
  /** 3; 2 only when {@link decodeCommit} was asked to read those too. */
  version: 2 | 3
  /** Root of the record tree. */
  data: Cid
  rev: Tid
  prev: Cid | null
  /** 64 bytes over the SHA-256 of {@link unsignedBytes}. */
  sig: Uint8Array
}

/** What a commit says before it is signed. */
export type UnsignedCommit = Omit<Commit, 'sig'>

/** Signs a version 3 commit. The CID of the returned block is that of the signed bytes. */
export function signCommit(
  fields: { did: Did; data: Cid; rev: Tid },
  key: SigningKey,
): { commit: Commit; block: Block } {
  const { did, rev, data } = fields
  const bytes = encode({ did, rev, sig: UNSIGNED, data, prev: null, version: COMMIT_VERSION })
  const end = bytes.length - BEHIND_SIGNATURE_BYTES
  const sig = bytes.subarray(end - SIGNATURE_BYTES, end)
  sig.set(key.sign(cutSignature(bytes, sig)))
  const commit: Commit = { did, version: COMMIT_VERSION, data, rev, prev: null, sig }
  return { commit, block: { cid: Cid.ofCbor(bytes), bytes } }
}

/** The bytes a commit's signature is made over: the same map without `sig`. */
export function unsignedBytes({ did, rev, data, prev, version }: UnsignedCommit): Uint8Array {
  return encode({ did, rev, data, prev, version })
}

/**
 * Whether the signature was made with this key. A malleable (high-S) one is refused.
 * @param block the bytes that {@link decodeCommit} made this very commit of, if at hand: cutting is cheaper than encoding
 */
export function verifyCommit(commit: Commit, key: PublicKey, block?: Uint8Array): boolean {
  return key.verify(block === undefined ? unsignedBytes(commit) : cutSignature(block, commit.sig), commit.sig)
}

/** What stands before a signature in a commit: its name, four bytes with their head, and the head of a byte string. */
const SIGNATURE_HEAD_BYTES = 6

/** Commits are small and checked one after the other: memory of its own would cost each more than the cutting. */
const scratch = new Uint8Array(1_024)

/**
 * {@link unsignedBytes} of a block that is a commit, `sig` being the view of its signature: all is canonical already. Good
 * until the next call.
 */
function cutSignature(block: Uint8Array, sig: Uint8Array): Uint8Array {
  const end = sig.byteOffset - block.byteOffset + SIGNATURE_BYTES
  const at = end - SIGNATURE_BYTES - SIGNATURE_HEAD_BYTES
  const length = block.length - (end - at)
  const unsigned = length <= scratch.length ? scratch.subarray(0, length) : new Uint8Array(length)
  unsigned.set(block.subarray(0, at))
  unsigned.set(block.subarray(end), at)
  unsigned[0] = block[0]! - 1
  return unsigned
}

/**
 * Reads a commit block strictly: exactly the six fields, each of its type, canonical bytes. The signature is not checked.
 *
 * @param options.allowVersion2 read the previous version too, which differs in its number only as long as it has a `rev`;
 *   one without cannot be ordered and is malformed
 * @throws Malformed
 */
export function decodeCommit(bytes: Uint8Array, options: { allowVersion2?: boolean } = {}): Commit {
  const value = decode(bytes)
  if (value === null || Object.getPrototypeOf(value) !== Object.prototype) throw new Malformed('commit is not a map')
  const { did, version, data, rev, prev, sig, ...rest } = value as Obj
  for (const name in rest) throw new Malformed(`commit has the unknown field ${JSON.stringify(name.slice(0, 64))}`)
  if (version !== COMMIT_VERSION && !(version === 2 && options.allowVersion2)) {
    throw new Malformed('commit is not of version 3')
  }
  if (!isDid(did)) throw new Malformed('did of the commit is not a DID')
  if (!isTid(rev)) throw new Malformed('rev of the commit is not a TID')
  if (!(data instanceof Cid && data.isCbor)) throw new Malformed('data of the commit is not a link to a tree')
  if (prev !== null && !(prev instanceof Cid && prev.isCbor)) {
    throw new Malformed(prev === undefined ? 'commit has no prev' : 'prev of the commit is neither null nor a commit')
  }
  if (!(sig instanceof Uint8Array && sig.length === SIGNATURE_BYTES)) throw new Malformed('sig is not 64 bytes')
  return { did, version, data, rev, prev, sig }
}
