/**
 * Nodes of the Merkle Search Tree as bytes.
 *
 * A node is DAG-CBOR of one fixed shape, `{e: [{k, p, t, v}], l}`, so both directions work on the bytes directly: the
 * same bytes as the generic codec, and as strict, several times as fast. Links are blessed CIDs and hence 41 bytes each.
 *
 * Source: atproto.com/specs/repository (MST Structure, CBOR Schema).
 */
import { latin1 } from '../bytes.ts'
import { CID_BYTES, Cid, CODEC_CBOR, CODEC_RAW, HASH_SHA256 } from '../cid.ts'
import { Malformed } from '../errors.ts'
import { MST_KEY_BYTES_MAX, MST_NODE_ENTRIES_MAX } from '../limits.ts'
import { createSlab } from '../slab.ts'
import { commonPrefix, KEY_CHARS } from './key.ts'

/** What the bytes of one node say: `links[i]` is the subtree before `keys[i]`, the last one follows all keys. */
export interface Content {
  readonly keys: string[]
  readonly values: Cid[]
  readonly links: (Cid | null)[]
}

/** A link, its CID last. */
export const LINK_BYTES = CID_BYTES + 5
/** Instead of a link: no subtree. */
export const NULL = 0xf6
const SLASH = 0x2f

/** Nodes are small and many. */
const allocate = createSlab(32_768)

let prefixes = new Uint16Array(64)

/** The bytes of a node. Unchecked: keys ascend, all CIDs are blessed, there is one link more than keys. */
export function encodeNode(
  keys: readonly string[],
  values: readonly Cid[],
  links: readonly (Cid | null)[],
): Uint8Array {
  const count = keys.length
  if (count > prefixes.length) prefixes = new Uint16Array(2 * count)
  let length = 3 + headLength(count) + 2 + linkLength(links[0]!)
  let previous = ''
  for (let i = 0; i < count; i++) {
    const key = keys[i]!
    const prefix = commonPrefix(previous, key)
    prefixes[i] = prefix
    const rest = key.length - prefix
    length += 9 + headLength(rest) + rest + headLength(prefix) + linkLength(links[i + 1]!) + LINK_BYTES
    previous = key
  }
  const out = allocate(length)
  out[0] = 0xa2
  out[1] = 0x61
  out[2] = 0x65
  let at = writeHead(out, 3, 0x80, count)
  for (let i = 0; i < count; i++) {
    const key = keys[i]!
    const prefix = prefixes[i]!
    out[at] = 0xa4
    out[at + 1] = 0x61
    out[at + 2] = 0x6b
    at = writeHead(out, at + 3, 0x40, key.length - prefix)
    for (let j = prefix; j < key.length; j++) out[at++] = key.charCodeAt(j)
    out[at] = 0x61
    out[at + 1] = 0x70
    at = writeHead(out, at + 2, 0x00, prefix)
    out[at] = 0x61
    out[at + 1] = 0x74
    at = writeLink(out, at + 2, links[i + 1]!)
    out[at] = 0x61
    out[at + 1] = 0x76
    at = writeLink(out, at + 2, values[i]!)
  }
  out[at] = 0x61
  out[at + 1] = 0x6c
  writeLink(out, at + 2, links[0]!)
  return out
}

/** The same node with its link number `i` leading elsewhere: what most nodes of a changed path come to. */
export function withLink(bytes: Uint8Array, i: number, link: Cid): Uint8Array {
  const out = allocate(bytes.length)
  out.set(bytes)
  link.copyTo(out, linkAt(bytes, i))
  return out
}

/** Where the CID of link number `i`, which is not null, stands in the (trusted) bytes of a node. */
function linkAt(bytes: Uint8Array, i: number): number {
  if (i === 0) return bytes.length - CID_BYTES
  let at = 3 + 1 + argumentLength(bytes[3]!)
  for (let entry = 1; ; entry++) {
    at += 4 + argumentLength(bytes[at + 3]!) + argumentAt(bytes, at + 3) + 2
    at += 1 + argumentLength(bytes[at]!) + 2
    if (entry === i) return at + LINK_BYTES - CID_BYTES
    at += (bytes[at] === NULL ? 1 : LINK_BYTES) + 2 + LINK_BYTES
  }
}

/**
 * Adds to `found` where the CIDs stand that a node names, as offsets of `bytes`, in which the node lies from `from` to `to`: that of
 * its first subtree, its first record, the subtree behind that and so on, one subtree more than records; -1 for no subtree.
 * For nodes of our own, which are not checked but for where they end.
 * @throws Malformed
 */
export function findCids(bytes: Uint8Array, from: number, to: number, found: number[]): void {
  const first = found.length
  found.push(-1)
  let at = from + 3
  let left = argumentAt(bytes, at)
  at += 1 + argumentLength(bytes[at]!)
  for (; left > 0 && at < to; left--) {
    at += 4 + argumentLength(bytes[at + 3]!) + argumentAt(bytes, at + 3) + 2
    at += 1 + argumentLength(bytes[at]!) + 2
    const isLinked = bytes[at] !== NULL
    const link = isLinked ? at + LINK_BYTES - CID_BYTES : -1
    at += (isLinked ? LINK_BYTES : 1) + 2 + LINK_BYTES
    found.push(at - CID_BYTES, link)
  }
  at += 2
  const isLinked = bytes[at] !== NULL
  if (isLinked) found[first] = at + LINK_BYTES - CID_BYTES
  at += isLinked ? LINK_BYTES : 1
  if (left > 0 || at !== to) throw new Malformed('not an MST node', from)
}

/** The argument, below 65,536, of the (trusted) head at `at`. */
function argumentAt(bytes: Uint8Array, at: number): number {
  const low = bytes[at]! & 0x1f
  return low < 24 ? low : low === 24 ? bytes[at + 1]! : (bytes[at + 1]! << 8) | bytes[at + 2]!
}

const argumentLength = (head: number): number => ((head & 0x1f) < 24 ? 0 : (head & 0x1f) - 23)
const headLength = (n: number): number => (n < 24 ? 1 : n < 256 ? 2 : 3)
const linkLength = (link: Cid | null): number => (link === null ? 1 : LINK_BYTES)

/** Writes the head of an item; gives the offset behind it. `n` is below 65,536. */
export function writeHead(out: Uint8Array, at: number, major: number, n: number): number {
  if (n < 24) {
    out[at] = major | n
    return at + 1
  }
  if (n < 256) {
    out[at] = major | 24
    out[at + 1] = n
    return at + 2
  }
  out[at] = major | 25
  out[at + 1] = n >> 8
  out[at + 2] = n
  return at + 3
}

function writeLink(out: Uint8Array, at: number, link: Cid | null): number {
  if (link === null) {
    out[at] = NULL
    return at + 1
  }
  out[at] = 0xd8
  out[at + 1] = 0x2a
  out[at + 2] = 0x58
  out[at + 3] = CID_BYTES + 1
  out[at + 4] = 0
  link.copyTo(out, at + 5)
  return at + LINK_BYTES
}

/** The key being read: a prefix stays from the one before. */
export const keyBytes = new Uint8Array(MST_KEY_BYTES_MAX)
/** End of what the last head read was, and its argument. */
let headEnd = 0
let headValue = 0

/** What {@link readNode} finds, in order. Offsets are those of the node's bytes; what a visitor throws passes through. */
export interface NodeVisitor {
  /**
   * An entry from `at` on, whose key is now in the first `keyLength` of {@link keyBytes}: `prefix` bytes of the key before
   * and what stands at `restAt`. Its value's CID is at `valueAt`; that of the subtree behind it at `linkAt`, -1 for none.
   */
  entry(at: number, keyLength: number, prefix: number, restAt: number, linkAt: number, valueAt: number): void
  /** The subtree before all keys, and the offset behind all entries. */
  end(linkAt: number, at: number): void
}

/**
 * Reads a node strictly: canonical DAG-CBOR, nothing behind it, valid keys in ascending order, maximal prefix
 * compression, blessed links, the limits of `limits.ts`. What needs the key's hashes or the tree around is not checked
 * here (see `Node.decode`).
 * @throws Malformed
 */
export function readNode(bytes: Uint8Array, visitor: NodeVisitor): void {
  if (bytes[0] !== 0xa2 || bytes[1] !== 0x61 || bytes[2] !== 0x65) throw new Malformed('not an MST node', 0)
  readHead(bytes, 3, 4)
  const count = headValue
  if (count > MST_NODE_ENTRIES_MAX) throw new Malformed('MST node with too many entries', 3)
  let at = headEnd
  let keyLength = 0
  let slashAt = -1
  for (let i = 0; i < count; i++) {
    const entryAt = at
    if (bytes[at] !== 0xa4 || bytes[at + 1] !== 0x61 || bytes[at + 2] !== 0x6b)
      throw new Malformed('not an MST entry', at)
    readHead(bytes, at + 3, 2)
    const restAt = headEnd
    const rest = headValue
    at = restAt + rest
    if (bytes[at] !== 0x61 || bytes[at + 1] !== 0x70) throw new Malformed('not an MST entry', at)
    readHead(bytes, at + 2, 0)
    const prefix = headValue
    if (rest === 0 || prefix > keyLength || (prefix < keyLength && bytes[restAt]! <= keyBytes[prefix]!)) {
      throw new Malformed('MST keys out of order or not compressed', at)
    }
    keyLength = prefix + rest
    if (keyLength > MST_KEY_BYTES_MAX) throw new Malformed('MST key too long', at)
    if (slashAt >= prefix) slashAt = -1
    for (let j = prefix; j < keyLength; j++) {
      const byte = bytes[restAt + j - prefix]!
      if (KEY_CHARS[byte] === 0) {
        if (byte !== SLASH || slashAt !== -1 || j === 0) throw new Malformed('MST key is not a path', restAt)
        slashAt = j
      }
      keyBytes[j] = byte
    }
    if (slashAt === -1 || slashAt === keyLength - 1) throw new Malformed('MST key is not a path', restAt)
    at = headEnd
    if (bytes[at] !== 0x61 || bytes[at + 1] !== 0x74) throw new Malformed('not an MST entry', at)
    const linkAt = findLink(bytes, at + 2)
    at += linkAt === -1 ? 3 : 2 + LINK_BYTES
    if (bytes[at] !== 0x61 || bytes[at + 1] !== 0x76) throw new Malformed('not an MST entry', at)
    const valueAt = findCid(bytes, at + 2)
    at += 2 + LINK_BYTES
    visitor.entry(entryAt, keyLength, prefix, restAt, linkAt, valueAt)
  }
  if (bytes[at] !== 0x61 || bytes[at + 1] !== 0x6c) throw new Malformed('not an MST node', at)
  const linkAt = findLink(bytes, at + 2)
  const end = at + (linkAt === -1 ? 3 : 2 + LINK_BYTES)
  if (end !== bytes.length) throw new Malformed('bytes behind the MST node', end)
  visitor.end(linkAt, at)
}

/** Collects what the bytes of one node say. */
class Collector implements NodeVisitor, Content {
  readonly keys: string[] = []
  readonly values: Cid[] = []
  readonly links: (Cid | null)[] = [null]
  readonly #bytes: Uint8Array

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes
  }

  entry(_at: number, keyLength: number, _prefix: number, _restAt: number, linkAt: number, valueAt: number): void {
    const bytes = this.#bytes
    this.keys.push(latin1(keyBytes, 0, keyLength))
    this.links.push(linkAt === -1 ? null : Cid.view(bytes, linkAt, CID_BYTES))
    this.values.push(Cid.view(bytes, valueAt, CID_BYTES))
  }

  end(linkAt: number): void {
    if (linkAt !== -1) this.links[0] = Cid.view(this.#bytes, linkAt, CID_BYTES)
  }
}

/** What a node says, as {@link readNode} reads it. The CIDs are views of `bytes`. @throws Malformed */
export function decodeNode(bytes: Uint8Array): Content {
  const content = new Collector(bytes)
  readNode(bytes, content)
  return content
}

/** Reads a head of the wanted major type with a minimal argument below 2^16 into headEnd and headValue. */
function readHead(bytes: Uint8Array, at: number, major: number): void {
  const head = bytes[at]!
  const low = head & 0x1f
  if (head >> 5 !== major || low > 25) throw new Malformed('not an MST node', at)
  if (low < 24) {
    headValue = low
    headEnd = at + 1
    return
  }
  headValue = low === 24 ? bytes[at + 1]! : (bytes[at + 1]! << 8) | bytes[at + 2]!
  headEnd = at + low - 22
  if (headEnd > bytes.length || headValue < (low === 24 ? 24 : 256)) throw new Malformed('not a minimal integer', at)
}

/** The offset of the CID of the link at `at`, -1 where there is none. */
function findLink(bytes: Uint8Array, at: number): number {
  if (bytes[at] === NULL) return -1
  if (bytes[at + 6] !== CODEC_CBOR) throw new Malformed('MST link is not to DAG-CBOR', at)
  return findCid(bytes, at)
}

/** The offset of the CID in the link at `at`, which is a blessed one and lies within `bytes` as a whole. */
function findCid(bytes: Uint8Array, at: number): number {
  const isBlessed =
    bytes[at] === 0xd8 &&
    bytes[at + 1] === 0x2a &&
    bytes[at + 2] === 0x58 &&
    bytes[at + 3] === CID_BYTES + 1 &&
    bytes[at + 4] === 0 &&
    bytes[at + 5] === 1 &&
    (bytes[at + 6] === CODEC_CBOR || bytes[at + 6] === CODEC_RAW) &&
    bytes[at + 7] === HASH_SHA256 &&
    bytes[at + 8] === 32
  if (!isBlessed || at + LINK_BYTES > bytes.length) throw new Malformed('not a blessed link', at)
  return at + 5
}
