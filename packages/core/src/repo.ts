/**
 * Repositories: computing a change and the blocks that prove it, checking a whole one, and writing one out.
 *
 * Source: atproto.com/specs/repository, atproto.com/specs/sync.
 */
import { type Block, type BlockSource, Blocks } from './blocks.ts'
import { writeCar } from './car.ts'
import { decode } from './cbor.ts'
import { Cid, hashMatches } from './cid.ts'
import { type Commit, decodeCommit, signCommit, verifyCommit } from './commit.ts'
import type { PublicKey, SigningKey } from './crypto.ts'
import { Malformed, Refused } from './errors.ts'
import type { RepoOp } from './event.ts'
import { COMMIT_BLOCKS_BYTES_MAX, COMMIT_OPS_MAX, RECORD_BYTES_MAX, RECORD_BYTES_READ_MAX } from './limits.ts'
import { diff } from './mst/diff.ts'
import { coveringProof } from './mst/proof.ts'
import { Tree } from './mst/tree.ts'
import { type Did, isRepoPath, type Tid } from './syntax.ts'

/** Where a repository stands. */
export interface Head {
  did: Did
  commit: Cid
  rev: Tid
  /** Root of the record tree. */
  data: Cid
}

/** One record to be written or removed. `path` is `collection/rkey`, `cid` that of `bytes`. */
export type Write =
  | { action: 'create' | 'update'; path: string; cid: Cid; bytes: Uint8Array }
  | { action: 'delete'; path: string }

/** Everything that a set of writes changes: what to store, and what to tell. */
export interface Change {
  head: Head
  /** Null when this is the first commit. */
  prev: Head | null
  commit: Block
  /** Tree nodes that the new tree has and the old one had not. */
  nodes: Block[]
  /** Tree nodes that the old tree had and the new one has not; the old commit is not among them. */
  lost: Cid[]
  /** One for each write, in the order of the writes. */
  ops: RepoOp[]
  /** The slice for the event: commit first, new nodes, the nodes that let others undo the operations, the records. */
  car: Uint8Array
}

/** Nodes out of one's own storage are not checked as strangers' are. */
const OWN = { heights: 'root' } as const

/**
 * Which tree nodes {@link apply} needs and `blocks` lacks. Load them and ask again, until there are none: each round goes
 * one layer deeper, for all writes together.
 */
export function missing(head: Head | null, blocks: BlockSource, writes: readonly Write[]): Cid[] {
  if (head === null) return []
  if (blocks.get(head.data) === undefined) return [head.data]
  return Tree.load(head.data, blocks, OWN).missing(
    writes.map(write => write.path),
    { neighbours: true },
  )
}

/**
 * Computes the commit that applies writes to a repository. Nothing is stored; nothing changes in what was given.
 *
 * No writes make an empty commit: a new rev and signature over the same tree, told with the root node, which some
 * consumers want to see. The first commit has `head` null.
 *
 * @param change.blocks holds the nodes that {@link missing} names; the old tree's nodes are not verified again
 * @param change.rev must be above that of `head`
 * @throws Refused when a record to be created exists, one to be changed does not, a path is written twice, or a limit of
 *   the sync specification would be broken: 200 operations, 1,000,000 bytes in a record, 2,000,000 in the slice
 * @throws MissingBlock
 */
export function apply(change: {
  did: Did
  head: Head | null
  blocks: BlockSource
  writes: readonly Write[]
  rev: Tid
  key: SigningKey
}): Change {
  const { did, head, writes, rev } = change
  if (head !== null && head.did !== did) throw new Error(`head of ${head.did} given for ${did}`)
  if (head !== null && rev <= head.rev) throw new Error(`rev ${rev} of ${did} is not above ${head.rev}`)
  checkWrites(writes)
  const old = head === null ? Tree.empty : Tree.load(head.data, change.blocks, OWN)
  let tree = old
  const ops: RepoOp[] = []
  const records = new Blocks()
  for (const write of writes) {
    const { action, path } = write
    const prev = tree.get(path)
    checkExists(write, prev !== null)
    if (action === 'delete') {
      tree = tree.delete(path)
      ops.push({ action, path, cid: null, prev })
    } else {
      tree = tree.put(path, write.cid)
      ops.push({ action, path, cid: write.cid, prev })
      records.add(write)
    }
  }
  const { commit, block } = signCommit({ did, data: tree.root, rev }, change.key)
  const { gained, lost } = diff(head === null ? null : old, tree)
  const proof = coveringProof(
    tree,
    ops.map(op => op.path),
  )
  const slice = new Blocks([block, ...gained, ...proof, ...records])
  const car = writeCar([block.cid], slice)
  if (car.length > COMMIT_BLOCKS_BYTES_MAX) throw new Refused('InvalidRequest', 'Too many writes. Max event size: 2MB')
  // The frame around this is below its own limit by far: 200 operations take 300 kB at most.
  return {
    head: { did, commit: block.cid, rev, data: commit.data },
    prev: head,
    commit: block,
    nodes: gained,
    lost,
    ops,
    car,
  }
}

function checkWrites(writes: readonly Write[]): void {
  if (writes.length > COMMIT_OPS_MAX) throw new Refused('InvalidRequest', `Too many writes. Max: ${COMMIT_OPS_MAX}`)
  const paths = new Set<string>()
  for (const write of writes) {
    const { path } = write
    if (!isRepoPath(path)) throw new Refused('InvalidRequest', `Not a record path: ${path}`)
    if (paths.has(path)) throw new Refused('InvalidRequest', `Two writes to the same record: ${path}`)
    paths.add(path)
    if (write.action === 'delete') continue
    if (write.bytes.length > RECORD_BYTES_MAX) {
      throw new Refused('InvalidRequest', `Record too large: ${path}. Max: ${RECORD_BYTES_MAX} bytes`)
    }
    if (!Cid.ofCbor(write.bytes).equals(write.cid)) throw new Error(`CID of ${path} is not that of its bytes`)
  }
}

/** @throws Refused when what is to be created is there, or what is to be changed is not */
export function checkExists({ action, path }: Pick<Write, 'action' | 'path'>, isThere: boolean): void {
  if (action === 'create' && isThere) {
    throw new Refused('RecordAlreadyExists', `Record already exists: ${path}`, 409)
  }
  if (action !== 'create' && !isThere) {
    throw new Refused('RecordNotFound', `Could not find record: ${path}`)
  }
}

// Whole repositories

/** One record of a repository. `path` is `collection/rkey`. */
export interface RepoRecord {
  path: string
  cid: Cid
  bytes: Uint8Array
}

/** A repository out of foreign blocks, to be gone through once or more often. */
export interface VerifiedRepo {
  head: Head
  commit: Commit
  block: Block
  /**
   * All records in order of path. Having gone through them is having verified the whole repository; each step may
   * throw Malformed, so nothing may be kept of it before the end.
   */
  records: Iterable<RepoRecord>
  /** All tree nodes in pre-order, equally verified, but for the records. */
  nodes: Iterable<Block>
}

/**
 * Opens a whole repository out of blocks that somebody else put together, and verifies it: the commit at once, the rest
 * while going through it. Only what is reachable from the root is ever looked at, so stray blocks do no harm.
 *
 * Checked are hashes, the commit (also of version 2, when it has a `rev`), the structure of the tree, and that each record
 * is there, at most 1 MiB, and a DAG-CBOR map. Memory is that of one path in the tree, whatever the size.
 *
 * @param source.root first root of the CAR
 * @param expected.did whose repository it must be
 * @param expected.key what it must be signed with
 * @throws Malformed
 */
export function verifyRepo(
  source: { root: Cid; blocks: BlockSource },
  expected: { did?: Did; key?: PublicKey } = {},
): VerifiedRepo {
  const blocks = checked(source.blocks)
  const block = { cid: source.root, bytes: blocks.get(source.root) }
  const commit = decodeCommit(block.bytes, { allowVersion2: true })
  if (expected.did !== undefined && commit.did !== expected.did) {
    throw new Malformed(`repository of ${commit.did} instead of ${expected.did}`)
  }
  if (expected.key !== undefined && !verifyCommit(commit, expected.key)) {
    throw new Malformed('commit is not signed with the key of the account')
  }
  const { did, rev, data } = commit
  const tree = () => Tree.load(data, blocks)
  return {
    head: { did, commit: block.cid, rev, data },
    commit,
    block,
    records: { [Symbol.iterator]: () => records(tree(), blocks) },
    nodes: { [Symbol.iterator]: () => tree().nodes() },
  }
}

/** Blocks that are there and are what their CIDs say, or Malformed. */
function checked(blocks: BlockSource): { get(cid: Cid): Uint8Array } {
  return {
    get(cid) {
      const bytes = blocks.get(cid)
      if (bytes === undefined) throw new Malformed(`repository without its block ${cid}`)
      if (!hashMatches(cid, bytes)) throw new Malformed(`block is not what ${cid} says`)
      return bytes
    },
  }
}

function* records(tree: Tree, blocks: { get(cid: Cid): Uint8Array }): Generator<RepoRecord> {
  for (const [path, cid] of tree) {
    if (!isRepoPath(path)) throw new Malformed(`not a record path: ${path}`)
    const bytes = blocks.get(cid)
    if (bytes.length > RECORD_BYTES_READ_MAX) throw new Malformed(`record too large: ${path}`)
    if (bytes[0]! >> 5 !== 5) throw new Malformed(`record is not a map: ${path}`)
    decode(bytes)
    yield { path, cid, bytes }
  }
}

/**
 * What to write so that one set of records becomes another: for imports and resynchronization. Both come in order of path,
 * and so do the writes. Holds none of them, so either side may be as large as it likes.
 */
export function* writesBetween(
  from: Iterable<readonly [path: string, cid: Cid]>,
  to: Iterable<RepoRecord>,
): Generator<Write> {
  const old = from[Symbol.iterator]()
  let have = old.next()
  for (const { path, cid, bytes } of to) {
    for (; !have.done && have.value[0] < path; have = old.next()) yield { action: 'delete', path: have.value[0] }
    if (have.done || have.value[0] !== path) yield { action: 'create', path, cid, bytes }
    else {
      if (!have.value[1].equals(cid)) yield { action: 'update', path, cid, bytes }
      have = old.next()
    }
  }
  for (; !have.done; have = old.next()) yield { action: 'delete', path: have.value[0] }
}

/**
 * The blocks of a whole repository in the order in which it can be read as a stream: the commit, then the tree in
 * pre-order with each record at its place. A block that several places name comes at each of them.
 *
 * `record` is asked in order of path, so it may read from a list that it walks along.
 *
 * Source: atproto.com/specs/repository, streamable CAR order.
 * @throws MissingBlock, or whatever `record` throws
 */
export function* exportOrder(
  commit: Block,
  tree: Tree,
  record: (cid: Cid, path: string) => Uint8Array,
): Generator<Block> {
  yield commit
  for (const { node, key, value } of tree.walk()) {
    if (node !== null) yield { cid: node.cid, bytes: node.bytes }
    else yield { cid: value, bytes: record(value, key) }
  }
}
