/**
 * Undoing one operation on the bytes of the nodes: what most commits need, at a fraction of what `invert` costs.
 *
 * A relay does this for every commit. Nodes are checked as strictly as when they are loaded, but no keys, values and links
 * are made of them but those on the way to the one key, and no nodes but as bytes that are hashed and forgotten.
 */
import type { BlockSource } from '../blocks.ts'
import { latin1 } from '../bytes.ts'
import { CID_BYTES, Cid } from '../cid.ts'
import { Malformed } from '../errors.ts'
import { sha256Latin1 } from '../hash.ts'
import { MST_HEIGHT_MAX, MST_KEY_BYTES_MAX } from '../limits.ts'
import { keyBytes, LINK_BYTES, type NodeVisitor, NULL, readNode, writeHead } from './encoding.ts'
import { keyHeight } from './key.ts'
import type { Op } from './proof.ts'

/** Larger nodes are left to the general way. */
const ENTRIES_MAX = 256
const NODE_BYTES_MAX = 65_536
/** Of a binary CID, what stands before its digest. */
const DIGEST_AT = 4
/** Of a link, what stands before its CID. */
const LINK_HEAD = LINK_BYTES - CID_BYTES
/** Instead of a node's length: nothing is left of it. */
const GONE = -1

/** Where the entries of a node stand in its bytes, and where the target belongs among them. */
class Sketch implements NodeVisitor {
  bytes!: Uint8Array
  count = 0
  /** Of each entry: where it begins, its key's head of shared bytes, the rest of it, its value, the subtree behind it (or -1). */
  readonly at = new Int32Array(ENTRIES_MAX + 1)
  readonly prefix = new Int32Array(ENTRIES_MAX)
  readonly restAt = new Int32Array(ENTRIES_MAX)
  readonly keyLength = new Int32Array(ENTRIES_MAX)
  readonly valueAt = new Int32Array(ENTRIES_MAX)
  readonly linkBehind = new Int32Array(ENTRIES_MAX)
  /** The subtree before all entries, or -1. */
  firstLink = -1
  hasLinks = false
  /** Number of the first entry not below the target; `count` if all are. */
  place = 0
  isFound = false
  /** Leading bytes that the last entry below the target has in common with it. */
  #shared = 0

  /** @throws Malformed also where there are too many entries for this way */
  read(bytes: Uint8Array): void {
    this.bytes = bytes
    this.count = this.#shared = 0
    this.place = -1
    this.hasLinks = this.isFound = false
    readNode(bytes, this)
  }

  entry(at: number, keyLength: number, prefix: number, restAt: number, linkAt: number, valueAt: number): void {
    const i = this.count++
    if (i === ENTRIES_MAX) throw new Malformed('too many entries')
    if (i === 0 && !isBelow(low, lowLength, keyBytes, keyLength)) throw misplaced()
    this.at[i] = at
    this.prefix[i] = prefix
    this.restAt[i] = restAt
    this.keyLength[i] = keyLength
    this.valueAt[i] = valueAt
    this.linkBehind[i] = linkAt
    if (linkAt !== -1) this.hasLinks = true
    if (this.place === -1) this.#compare(i, keyLength, prefix)
  }

  end(linkAt: number, at: number): void {
    const { count } = this
    if (count > 0 && !isBelow(keyBytes, this.keyLength[count - 1]!, high, highLength)) throw misplaced()
    this.at[count] = at
    this.firstLink = linkAt
    if (linkAt !== -1) this.hasLinks = true
    if (this.place === -1) this.place = count
  }

  /** A key that has more in common with the one before it than that has with the target is on the same side of it. */
  #compare(i: number, keyLength: number, prefix: number): void {
    if (prefix > this.#shared) return
    if (prefix === this.#shared) {
      const length = Math.min(keyLength, targetLength)
      let shared = prefix
      while (shared < length && keyBytes[shared] === target[shared]) shared++
      this.#shared = shared
      this.isFound = shared === targetLength && shared === keyLength
      if (shared < targetLength && (shared === keyLength || keyBytes[shared]! < target[shared]!)) return
    }
    this.place = i
  }

  /** The subtree in which the target lies if it is not here. */
  get link(): number {
    return this.place === 0 ? this.firstLink : this.linkBehind[this.place - 1]!
  }

  /** Writes the key of entry `i`; gives its length. */
  copyKey(i: number, to: Uint8Array): number {
    const { bytes, prefix, restAt, keyLength } = this
    for (let k = 0; k <= i; k++) {
      const from = restAt[k]! - prefix[k]!
      for (let j = prefix[k]!; j < keyLength[k]!; j++) to[j] = bytes[from + j]!
    }
    return keyLength[i]!
  }
}

const misplaced = () => new Malformed('MST keys outside their place in the tree')

function isBelow(a: Uint8Array, aLength: number, b: Uint8Array, bLength: number): boolean {
  const length = Math.min(aLength, bLength)
  for (let i = 0; i < length; i++) if (a[i] !== b[i]) return a[i]! < b[i]!
  return aLength < bLength
}

/** The nodes on the way, the root first. */
const way: Sketch[] = []
let rootLayer = 0
/** The nodes on both sides of the target below its own, the upper ones first, and what the keys next to it have in common. */
const lefts: Sketch[] = []
const rights: Sketch[] = []
const shares: number[] = []
const target = new Uint8Array(MST_KEY_BYTES_MAX)
let targetLength = 0
/** What the keys of the next node have to lie between. */
const low = new Uint8Array(MST_KEY_BYTES_MAX)
let lowLength = 0
const high = new Uint8Array(MST_KEY_BYTES_MAX)
let highLength = 0
/** The node being made. */
const made = new Uint8Array(NODE_BYTES_MAX)

/**
 * The root of the tree before this operation, by the tree after it; null when it takes more than this to tell, or when
 * anything is wrong: then `invert` has the answer. Where there is one, `invert` gives the same of a tree that is loaded with
 * `heights: 'root'`, and throws nothing.
 *
 * Undone are changes of a value, and creations of all keys but the first of a root.
 */
export function undoOne(root: Cid, blocks: BlockSource, { path, cid, prev }: Op): Cid | null {
  if (cid === null || !root.isCbor || path.length > MST_KEY_BYTES_MAX || prev?.isBlessed === false) return null
  try {
    const depth = find(root, blocks, path)
    if (depth === -1) return null
    const node = way[depth]!
    if (!cid.equals(Cid.view(node.bytes, node.valueAt[node.place]!, CID_BYTES))) return null
    let length = prev === null ? withoutEntry(node, depth, blocks) : withValue(node, prev)
    for (let i = depth - 1; i >= 0 && length !== 0; i--) {
      length = length === GONE ? withoutLink(way[i]!) : withDigest(way[i]!, length)
    }
    return length > 0 ? Cid.ofCbor(made.subarray(0, length)) : null
  } catch (error) {
    if (error instanceof Malformed) return null
    throw error
  }
}

/** Goes down to the node with the key; gives its depth, -1 when it is not there or not where it belongs. */
function find(root: Cid, blocks: BlockSource, path: string): number {
  for (let i = 0; i < path.length; i++) target[i] = path.charCodeAt(i)
  targetLength = path.length
  lowLength = 0
  high[0] = 0x7f
  highLength = 1
  let cid = root
  for (let depth = 0; depth <= MST_HEIGHT_MAX; depth++) {
    const bytes = blocks.get(cid)
    if (bytes === undefined) return -1
    const node = (way[depth] ??= new Sketch())
    node.read(bytes)
    const { count, place, isFound, link } = node
    if (depth === 0) {
      if (count === 0) return -1
      rootLayer = keyHeight(rootKey(node))
      if (rootLayer > MST_HEIGHT_MAX) return -1
    }
    if (rootLayer === depth && node.hasLinks) return -1
    if (isFound) return keyHeight(path) === rootLayer - depth ? depth : -1
    if (link === -1) return -1
    if (place > 0) lowLength = node.copyKey(place - 1, low)
    if (place < count) highLength = node.copyKey(place, high)
    cid = Cid.view(bytes, link, CID_BYTES)
  }
  return -1
}

function rootKey({ bytes, restAt, keyLength }: Sketch): string {
  return latin1(bytes, restAt[0]!, restAt[0]! + keyLength[0]!)
}

/** Makes the node with another value at the place; gives its length, 0 when it is too large. */
function withValue({ bytes, valueAt, place }: Sketch, value: Cid): number {
  if (bytes.length > NODE_BYTES_MAX) return 0
  made.set(bytes)
  value.copyTo(made, valueAt[place]!)
  return bytes.length
}

/** Makes the node without the entry at the place; gives its length, 0 when that is not all there is to it. */
function withoutEntry(node: Sketch, depth: number, blocks: BlockSource): number {
  const { bytes, count, place, at, valueAt, linkBehind, link: left } = node
  const right = linkBehind[place]!
  // A root's first key told on which layer the root is.
  if ((depth === 0 && place === 0) || bytes.length > NODE_BYTES_MAX - 2 * MST_KEY_BYTES_MAX) return 0
  const digest = left !== -1 && right !== -1 ? joinAround(node, depth, blocks) : null
  if (digest === '') return 0
  if (count === 1) return withoutEntries(bytes, left === -1 ? right : left, digest)
  const begin = writeHead(made, 3, 0x80, count - 1)
  const shift = begin - at[0]!
  made.set(bytes.subarray(0, 3))
  made.set(bytes.subarray(at[0]!, at[place]!), begin)
  const length = withoutKey(node, at[place]! + shift)
  // The subtree on the left is linked by the last entry before, or by the node itself, at its end.
  if (digest !== null) writeDigest(digest, place === 0 ? length - CID_BYTES : left + shift)
  if (left !== -1 || right === -1) return length
  return fillLink(place === 0 ? length - 1 : nullBefore(valueAt[place - 1]!) + shift, length, bytes, right)
}

/** Makes what is left of a node with one entry. */
function withoutEntries(bytes: Uint8Array, link: number, digest: string | null): number {
  if (link === -1) return GONE
  made.set(NO_ENTRIES)
  copyLink(bytes, link, NO_ENTRIES.length)
  if (digest !== null) writeDigest(digest, NO_ENTRIES.length + LINK_HEAD)
  return NO_ENTRIES.length + LINK_BYTES
}

/** How an entry begins, up to its key's rest. */
const ENTRY_KEY = Uint8Array.of(0xa4, 0x61, 0x6b)
/** How a node without entries begins, up to its link. */
const NO_ENTRIES = Uint8Array.of(0xa2, 0x61, 0x65, 0x80, 0x61, 0x6c)

function copyLink(bytes: Uint8Array, cidAt: number, to: number): void {
  made.set(bytes.subarray(cidAt - LINK_HEAD, cidAt + CID_BYTES), to)
}

/** Puts the link where there is none in the node being made; gives the node's length. */
function fillLink(nullAt: number, length: number, bytes: Uint8Array, cidAt: number): number {
  made.copyWithin(nullAt + LINK_BYTES, nullAt + 1, length)
  copyLink(bytes, cidAt, nullAt)
  return length + LINK_BYTES - 1
}

/** Of an entry without a subtree behind it, where that would be linked, by where its value's CID is. */
const nullBefore = (valueAt: number) => valueAt - LINK_HEAD - 3

function writeDigest(digest: string, cidAt: number): void {
  for (let i = 0; i < 32; i++) made[cidAt + DIGEST_AT + i] = digest.charCodeAt(i)
}

/** Writes what is behind the entry at the place, from `to` on; gives the offset behind it. */
function withoutKey({ bytes, count, place, at, prefix, restAt, keyLength }: Sketch, to: number): number {
  if (place === count - 1) {
    made.set(bytes.subarray(at[count]!), to)
    return to + bytes.length - at[count]!
  }
  // The next key shares less with the key before than with the one that goes, whose rest it may have relied on.
  const next = place + 1
  const shared = Math.min(prefix[place]!, prefix[next]!)
  const lent = prefix[next]! - shared
  const rest = keyLength[next]! - prefix[next]!
  made.set(ENTRY_KEY, to)
  to = writeHead(made, to + ENTRY_KEY.length, 0x40, lent + rest)
  made.set(bytes.subarray(restAt[place]!, restAt[place]! + lent), to)
  made.set(bytes.subarray(restAt[next]!, restAt[next]! + rest), to + lent)
  to += lent + rest
  made[to] = 0x61
  made[to + 1] = 0x70
  to = writeHead(made, to + 2, 0x00, shared)
  // What follows the number of shared bytes stays.
  const from = restAt[next]! + rest + 2
  const behind = from + (prefix[next]! < 24 ? 1 : prefix[next]! < 256 ? 2 : 3)
  made.set(bytes.subarray(behind), to)
  return to + bytes.length - behind
}

/** Makes the node whose subtree is the one just made. */
function withDigest({ bytes, link }: Sketch, length: number): number {
  if (bytes.length > NODE_BYTES_MAX) return 0
  const digest = sha256Latin1(made.subarray(0, length))
  made.set(bytes)
  writeDigest(digest, link)
  return bytes.length
}

/** Makes the node without the subtree that is gone; gives its length. */
function withoutLink({ bytes, count, link }: Sketch): number {
  if (count === 0) return GONE
  if (bytes.length > NODE_BYTES_MAX) return 0
  const at = link - LINK_HEAD
  made.set(bytes.subarray(0, at))
  made[at] = NULL
  made.set(bytes.subarray(at + LINK_BYTES), at + 1)
  return bytes.length - LINK_BYTES + 1
}

/** Joins the subtrees around the entry at the place; gives the digest of what they were one of, empty when they cannot be joined. */
function joinAround({ bytes, place, link, linkBehind }: Sketch, depth: number, blocks: BlockSource): string {
  narrow(way[depth]!, place - 1, way[depth]!, place + 1)
  let [leftCid, rightCid] = [Cid.view(bytes, link, CID_BYTES), Cid.view(bytes, linkBehind[place]!, CID_BYTES)]
  let pairs = 0
  for (let layer = rootLayer - depth - 1; ; layer--) {
    const left = (lefts[pairs] ??= new Sketch())
    const right = (rights[pairs] ??= new Sketch())
    if (!readBelow(left, blocks.get(leftCid), layer) || left.place !== left.count) return ''
    if (!readBelow(right, blocks.get(rightCid), layer) || right.place !== 0 || right.isFound) return ''
    if (left.bytes.length + right.bytes.length > NODE_BYTES_MAX - MST_KEY_BYTES_MAX) return ''
    narrow(left, left.count - 1, right, 0)
    shares[pairs++] = left.count > 0 ? sharedOf(low, lowLength, high, highLength) : 0
    if (left.link === -1 || right.link === -1) break
    leftCid = Cid.view(left.bytes, left.link, CID_BYTES)
    rightCid = Cid.view(right.bytes, right.link, CID_BYTES)
  }
  let digest = ''
  for (let i = pairs - 1; i >= 0; i--) {
    digest = sha256Latin1(made.subarray(0, joined(lefts[i]!, rights[i]!, shares[i]!, digest)))
  }
  return digest
}

/** Sets what the keys of the next nodes have to lie between, where these entries exist. */
function narrow(left: Sketch, before: number, right: Sketch, behind: number): void {
  if (before >= 0) lowLength = left.copyKey(before, low)
  if (behind < right.count) highLength = right.copyKey(behind, high)
}

/** Whether there is such a node, and it may be on this layer. */
function readBelow(node: Sketch, bytes: Uint8Array | undefined, layer: number): boolean {
  if (bytes === undefined) return false
  node.read(bytes)
  return layer === 0 ? node.count > 0 && !node.hasLinks : node.count > 0 || node.hasLinks
}

function sharedOf(a: Uint8Array, aLength: number, b: Uint8Array, bLength: number): number {
  const length = Math.min(aLength, bLength)
  let shared = 0
  while (shared < length && a[shared] === b[shared]) shared++
  return shared
}

/** Makes one node of two; the digest is that of the subtrees between them if both have one there. Gives the length. */
function joined(left: Sketch, right: Sketch, shared: number, digest: string): number {
  const { bytes, count, at, valueAt, link } = left
  let to = writeHead(made, 3, 0x80, count + right.count)
  const shift = to - at[0]!
  made.set(bytes.subarray(0, 3))
  made.set(bytes.subarray(at[0]!, at[count]!), to)
  to += at[count]! - at[0]!
  if (link === -1 && right.link !== -1) {
    to = fillLink(nullBefore(valueAt[count - 1]!) + shift, to, right.bytes, right.link)
  }
  if (right.count > 0) to = copyEntries(right, shared, to)
  made.set(bytes.subarray(at[count]!), to)
  to += bytes.length - at[count]!
  if (digest !== '') writeDigest(digest, count === 0 ? to - CID_BYTES : link + shift)
  return to
}

/** Writes all entries, the first of which shares so many bytes with the key before; gives the offset behind them. */
function copyEntries({ bytes, count, at, restAt, keyLength }: Sketch, shared: number, to: number): number {
  const rest = keyLength[0]! - shared
  made.set(ENTRY_KEY, to)
  to = writeHead(made, to + ENTRY_KEY.length, 0x40, rest)
  // A first entry shares nothing, which takes a byte behind the two of the name.
  const keyEnd = restAt[0]! + keyLength[0]!
  made.set(bytes.subarray(keyEnd - rest, keyEnd + 2), to)
  to = writeHead(made, to + rest + 2, 0x00, shared)
  made.set(bytes.subarray(keyEnd + 3, at[count]!), to)
  return to + at[count]! - keyEnd - 3
}
