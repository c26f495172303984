/**
 * Verification: what a relay must decide about an event before it passes it on.
 *
 * {@link judge} answers every question that bytes, prior state and identity can answer; it reads no clock and asks nobody.
 * Whatever a hostile producer sends ends as a verdict, in time proportional to the size of the frame.
 *
 * Source: atproto.com/specs/sync (validation and inversion), proposal 0006.
 */
import { type Block, type BlockSource, MissingBlock } from './blocks.ts'
import { readCar } from './car.ts'
import { check } from './cbor.ts'
import { Cid } from './cid.ts'
import { type Commit, decodeCommit, verifyCommit } from './commit.ts'
import type { PublicKey } from './crypto.ts'
import { Malformed } from './errors.ts'
import {
  type AccountBody,
  type CommitBody,
  type Frame,
  type IdentityBody,
  type RepoOp,
  readAccount,
  readCommit,
  readIdentity,
  readSync,
  type SyncBody,
} from './event.ts'
import {
  COMMIT_BLOCK_COUNT_MAX,
  COMMIT_BLOCKS_BYTES_MAX,
  COMMIT_OPS_MAX,
  FRAME_BYTES_MAX,
  RECORD_BYTES_MAX,
  REV_FUTURE_TOLERANCE_MS,
  SYNC_BLOCKS_BYTES_MAX,
} from './limits.ts'
import { HIGHEST, highOf, LOWEST, lowOf } from './mst/node.ts'
import { invert } from './mst/proof.ts'
import { Tree } from './mst/tree.ts'
import { undoOne } from './mst/undo.ts'
import { type Did, isPlcDid, isRepoPath, type Tid } from './syntax.ts'
import { decodeTid } from './tid.ts'

/** Every reason there is, each with what it says to the operator of the host. */
export const REASON_TEXT = {
  // The frame and its fields.
  'frame-too-large': 'the frame is larger than 5,000,000 bytes',
  'unknown-type': 'the type of the message is not one that is passed on',
  'bad-fields': 'a field is missing or of the wrong type',
  'unsupported-did': 'the DID is neither a did:plc nor a did:web',
  'blocks-too-large': 'blocks is larger than 2,000,000 bytes (#commit) or 10,000 bytes (#sync)',
  'too-many-ops': 'the commit has more than 200 operations',
  'too-big-flag': 'the deprecated flag tooBig is set',
  'rebase-flag': 'the deprecated flag rebase is set',
  // The account.
  'account-inactive': 'the account is inactive at its host, so it may not publish commits',
  'account-blocked': 'the account is taken down or throttled here',
  // Who speaks.
  unresolved: 'the identity of the account is not known yet',
  'no-pds': 'the DID document names no PDS, or the DID is gone',
  'no-key': 'the DID document has no signing key',
  'wrong-host': 'the DID document names another host as PDS',
  'bad-signature': 'the signature was not made with the key in the DID document',
  // Order.
  'rev-stale': 'the rev is not above the last one seen',
  'rev-reused': 'the rev is the last one seen, on a different commit',
  'rev-future': 'the rev lies more than five minutes in the future',
  'sync-unchanged': 'the #sync states what is known already',
  // Blocks and commit.
  'bad-car': 'blocks is not a CAR with a root',
  'too-many-blocks': 'blocks holds more blocks than any commit needs',
  'bad-block-hash': 'a block does not have the hash that its CID says',
  'commit-not-root': 'the root of the CAR is not the commit that the event names',
  'no-commit-block': 'the commit is not among the blocks',
  'bad-commit': 'the commit is malformed',
  'did-mismatch': 'the DID in the commit is not that of the event',
  'rev-mismatch': 'the rev in the commit is not that of the event',
  // Operations.
  'bad-op': 'an operation has a bad path, or fields that do not belong to its action',
  'duplicate-path': 'two operations have the same path',
  'record-too-large': 'a record is larger than 1,000,000 bytes',
  'bad-record': 'a record is not a DAG-CBOR map',
  'bad-tree': 'a node of the record tree is malformed or at a wrong place',
  'op-not-in-tree': 'the signed tree does not hold what an operation says',
  // What deployed hosts get wrong: dropped when strict, noted when observing.
  'record-missing': 'the block of a created or updated record is missing',
  'op-without-prev': 'an update or delete does not say what was there before',
  'no-prev-data': 'prevData is missing on a commit that is not the first of its repository',
  'tree-incomplete': 'blocks lacks tree nodes that are needed to undo the operations',
  'inversion-mismatch': 'undoing the operations does not lead to prevData',
  // Never a reason to drop.
  'prev-data-break': 'prevData is not the tree last seen: something in between was not seen here',
  'since-break': 'since is not the rev last seen: something in between was not seen here',
} as const

/** Why something was dropped, or what was noted about it; a label for counters. */
export type Reason = keyof typeof REASON_TEXT

/** The closed list of reasons. */
export const REASONS = Object.keys(REASON_TEXT) as readonly Reason[]

/**
 * How to treat commits that are properly signed but whose operations cannot be proven: note it, or drop them.
 * Nothing else depends on it.
 */
export type Policy = 'observe' | 'strict'

/** What is remembered about an account between its events. Plain values, so it can be stored and sent between threads. */
export interface AccountState {
  /** The last rev admitted; null before the first commit. */
  readonly rev: Tid | null
  /** Root of the tree at that rev, as {@link Cid.key}: of all forms the one that takes least memory and is compared at once. */
  readonly data: string | null
  /** The commit itself, in the same form. */
  readonly commit: string | null
  /** What the account's host said last; true until it says otherwise. */
  readonly active: boolean
  readonly status: string | null
  /** A status given here, such as `takendown` or `throttled`, which stops commits whatever the host says. Only passed on. */
  readonly local: string | null
  /** The host that last spoke with authority for this account. */
  readonly host: string | null
}

/** The state of an account of which nothing is known. */
export const UNKNOWN_ACCOUNT: AccountState = {
  rev: null,
  data: null,
  commit: null,
  active: true,
  status: null,
  local: null,
  host: null,
}

/** What an account's DID document says. */
export interface KnownIdentity {
  /** Origin of the PDS, such as `https://pds.example.com`; null if there is none, or the DID is gone. */
  readonly pds: string | null
  /** The `#atproto` key. */
  readonly key: PublicKey | null
  /** Whether it was looked up for this very event, so that asking again is no use. */
  readonly fresh?: boolean
}

export interface JudgeInput {
  frame: Frame
  /** Host name of the upstream, with its port unless that is the default: `pds.example.com`, `localhost:2583`. */
  host: string
  /** Milliseconds since 1970. */
  now: number
  policy: Policy
  prior: AccountState | null
  /** Null when nothing is known yet. */
  identity: KnownIdentity | null
}

export interface Admitted {
  kind: 'admit'
  /** What is not right but no reason to drop. */
  notes: Reason[]
  next: AccountState
}
export interface Dropped {
  kind: 'drop'
  reason: Reason
  /** More words, for people. */
  detail?: string
}
/** Look the identity up again and judge once more with `fresh: true`. */
export interface RetryIdentity {
  kind: 'retry-identity'
  reason: Reason
}
export type Verdict = Admitted | Dropped | RetryIdentity

/**
 * Decides about one event of one account.
 *
 * Signature, identity and structure must be right in either policy. A `retry-identity` means that the event would be
 * dropped, unless the identity that was given is out of date. Never throws on foreign data.
 */
export function judge(input: JudgeInput): Verdict {
  const { frame } = input
  if (frame.bytes.length > FRAME_BYTES_MAX) return drop('frame-too-large')
  try {
    switch (frame.t) {
      case '#commit':
        return judgeCommit(input)
      case '#sync':
        return judgeSync(input, readSync(frame.body))
      case '#identity':
        return judgeIdentity(input, readIdentity(frame.body))
      case '#account':
        return judgeAccount(input, readAccount(frame.body))
      default:
        return drop('unknown-type')
    }
  } catch (error) {
    // Everything else that can be malformed is caught where it is read.
    if (error instanceof Malformed) return drop('bad-fields', error.message)
    throw error
  }
}

function drop(reason: Reason, detail?: string): Dropped {
  return detail === undefined ? { kind: 'drop', reason } : { kind: 'drop', reason, detail }
}

// Checks that several kinds of event share. Each returns what is wrong, or null.

function checkDid(did: Did): Dropped | null {
  const supported = did.startsWith('did:plc:') ? isPlcDid(did) : did.startsWith('did:web:')
  return supported ? null : drop('unsupported-did')
}

/** Whether this account may publish, and this is news. */
function checkState(prior: AccountState | null, rev: Tid, now: number): Dropped | null {
  if (prior !== null) {
    if (prior.local !== null) return drop('account-blocked')
    if (!prior.active) return drop('account-inactive')
    if (prior.rev !== null && rev <= prior.rev) return drop('rev-stale')
  }
  return decodeTid(rev).micros / 1000 > now + REV_FUTURE_TOLERANCE_MS ? drop('rev-future') : null
}

/** Whether this host is the one that may speak for the account. */
function checkHost(identity: KnownIdentity | null, host: string): Dropped | RetryIdentity | null {
  if (identity === null) return { kind: 'retry-identity', reason: 'unresolved' }
  if (identity.pds === null) return doubted(identity, 'no-pds')
  return isHostOf(identity.pds, host) ? null : doubted(identity, 'wrong-host')
}

/** The verdict when identity and event do not fit together: one of them is wrong, and it may be the identity. */
function doubted(identity: KnownIdentity, reason: Reason): Dropped | RetryIdentity {
  return identity.fresh ? drop(reason) : { kind: 'retry-identity', reason }
}

function isHostOf(origin: string, host: string): boolean {
  // Mostly written the same way.
  const name = origin.slice(origin.indexOf('://') + 3)
  return name === host || name.toLowerCase() === host.toLowerCase()
}

function checkSignature({ commit, bytes }: Slice, identity: KnownIdentity): Dropped | RetryIdentity | null {
  if (identity.key === null) return doubted(identity, 'no-key')
  return verifyCommit(commit, identity.key, bytes) ? null : doubted(identity, 'bad-signature')
}

/** The blocks of an event: all of the hash they claim, with the commit that is the root. */
interface Slice {
  root: Cid
  blocks: SliceBlocks
  commit: Commit
  /** The block that `commit` was read from. */
  bytes: Uint8Array
}

/**
 * The blocks of one slice. An index costs more than it saves as long as they are as few as they mostly are, and mostly
 * they are wanted in the order in which they come.
 */
class SliceBlocks implements BlockSource {
  readonly #list: readonly Block[]
  #index: Map<string, Uint8Array> | undefined
  #next = 0

  constructor(list: readonly Block[]) {
    this.#list = list
    if (list.length > 32) this.#index = new Map(list.map(({ cid, bytes }) => [cid.key, bytes]))
  }

  get(cid: Cid): Uint8Array | undefined {
    if (this.#index !== undefined) return this.#index.get(cid.key)
    const list = this.#list
    for (let tried = 0; tried < list.length; tried++) {
      const block = list[this.#next]!
      this.#next = this.#next + 1 === list.length ? 0 : this.#next + 1
      if (block.cid.equals(cid)) return block.bytes
    }
    return undefined
  }
}

function openSlice(car: Uint8Array, expected: { did: Did; rev: Tid; commit: Cid | null }): Slice | Dropped {
  let root: Cid | undefined
  let blocks: SliceBlocks
  try {
    const { roots, blocks: list } = readCar(car, { verify: false })
    root = roots[0]
    if (root === undefined) return drop('bad-car', 'no root')
    if (list.length > COMMIT_BLOCK_COUNT_MAX) return drop('too-many-blocks')
    if (expected.commit !== null && !expected.commit.equals(root)) return drop('commit-not-root')
    for (const { cid, bytes } of list) if (!cid.matches(bytes)) return drop('bad-block-hash', `${cid}`)
    blocks = new SliceBlocks(list)
  } catch (error) {
    if (error instanceof Malformed) return drop('bad-car', error.message)
    throw error
  }
  const bytes = blocks.get(root)
  if (bytes === undefined) return drop('no-commit-block')
  try {
    const commit = decodeCommit(bytes)
    if (commit.did !== expected.did) return drop('did-mismatch')
    if (commit.rev !== expected.rev) return drop('rev-mismatch')
    return { root, blocks, commit, bytes }
  } catch (error) {
    if (error instanceof Malformed) return drop('bad-commit', error.message)
    throw error
  }
}

/** Keys are copies: what is remembered must not keep the whole frame alive. */
function stateAt(prior: AccountState | null, { root, commit }: Slice, host: string): AccountState {
  return {
    ...(prior ?? UNKNOWN_ACCOUNT),
    rev: commit.rev,
    data: commit.data.key,
    commit: root.key,
    host,
  }
}

// #sync, #identity, #account

function judgeSync({ host, now, prior, identity }: JudgeInput, body: SyncBody): Verdict {
  if (body.blocks.length > SYNC_BLOCKS_BYTES_MAX) return drop('blocks-too-large')
  const early = checkDid(body.did)
  if (early) return early
  const repeated = prior !== null && prior.rev === body.rev
  const stale = checkState(prior, body.rev, now)
  if (stale && !(repeated && stale.reason === 'rev-stale')) return stale
  const foreign = checkHost(identity, host)
  if (foreign) return foreign
  const slice = openSlice(body.blocks, { did: body.did, rev: body.rev, commit: null })
  if ('kind' in slice) return slice
  if (repeated) return drop(prior.commit === slice.root.key ? 'sync-unchanged' : 'rev-reused')
  const forged = checkSignature(slice, identity!)
  if (forged) return forged
  return { kind: 'admit', notes: [], next: stateAt(prior, slice, host) }
}

/** Anybody may say that an identity changed, as it only makes others look; from elsewhere, its handle is not believed. */
function judgeIdentity({ host, prior, identity }: JudgeInput, body: IdentityBody): Verdict {
  const early = checkDid(body.did)
  if (early) return early
  const authority = checkHost(identity, host)
  return { kind: 'admit', notes: authority ? [authority.reason] : [], next: prior ?? UNKNOWN_ACCOUNT }
}

/**
 * Only the account's host may say what it does with the account. When the DID document no longer names any, as after
 * the identity itself was deleted, the last host may still say that the account is gone.
 */
function judgeAccount({ host, prior, identity }: JudgeInput, body: AccountBody): Verdict {
  const early = checkDid(body.did)
  if (early) return early
  const foreign = checkHost(identity, host)
  if (foreign && !(foreign.kind === 'drop' && foreign.reason === 'no-pds' && !body.active && prior?.host === host)) {
    return foreign
  }
  const next = { ...(prior ?? UNKNOWN_ACCOUNT), active: body.active, status: body.status, host }
  return { kind: 'admit', notes: [], next }
}

// #commit

function judgeCommit({ frame, host, now, policy, prior, identity }: JudgeInput): Verdict {
  const { ops, blocks } = frame.body
  // Before anything is built from them.
  if (blocks instanceof Uint8Array && blocks.length > COMMIT_BLOCKS_BYTES_MAX) return drop('blocks-too-large')
  if (Array.isArray(ops) && ops.length > COMMIT_OPS_MAX) return drop('too-many-ops')
  const body = readCommit(frame.body)
  const early = checkDid(body.repo) ?? checkRev(prior, body, now) ?? checkHost(identity, host) ?? checkOps(body.ops)
  if (early) return early
  const notes: Reason[] = []
  if (body.tooBig) notes.push('too-big-flag')
  if (body.rebase) notes.push('rebase-flag')
  const slice = openSlice(body.blocks, { did: body.repo, rev: body.rev, commit: body.commit })
  if ('kind' in slice) return slice
  const wrong =
    checkRecords(body.ops, slice.blocks, notes) ??
    checkSignature(slice, identity!) ??
    checkTree(body, slice, prior, notes)
  if (wrong) return wrong
  if (policy === 'strict' && notes.length > 0) return drop(notes[0]!)
  noteBreaks(prior, body, notes)
  return { kind: 'admit', notes, next: stateAt(prior, slice, host) }
}

function checkRev(prior: AccountState | null, { rev, commit }: CommitBody, now: number): Dropped | null {
  const stale = checkState(prior, rev, now)
  const reused = stale?.reason === 'rev-stale' && prior?.rev === rev && prior.commit !== commit.key
  return reused ? drop('rev-reused') : stale
}

/** The shapes of operations, each for itself and as a set. A missing `prev` is left to {@link checkTree}. */
function checkOps(ops: RepoOp[]): Dropped | null {
  for (const { action, path, cid, prev } of ops) {
    if (!isRepoPath(path)) return drop('bad-op', 'bad path')
    if ((action === 'delete') !== (cid === null))
      return drop('bad-op', `${action} ${cid === null ? 'without' : 'with'} cid`)
    if (action === 'create' && prev !== null) return drop('bad-op', 'create with prev')
  }
  if (ops.length > 1 && new Set(ops.map(op => op.path)).size < ops.length) return drop('duplicate-path')
  return null
}

function checkRecords(ops: RepoOp[], blocks: BlockSource, notes: Reason[]): Dropped | null {
  // One large record at two hundred paths is looked at once.
  const seen = ops.length > 1 ? new Set<string>() : null
  for (const { cid, path } of ops) {
    if (cid === null || seen?.has(cid.key)) continue
    seen?.add(cid.key)
    const bytes = blocks.get(cid)
    if (bytes === undefined) {
      note(notes, 'record-missing')
      continue
    }
    if (bytes.length > RECORD_BYTES_MAX) return drop('record-too-large', path)
    if (!isRecord(cid, bytes)) return drop('bad-record', path)
  }
  return null
}

const FLOATS = { floats: true }

/** A map of DAG-CBOR. Floats and foreign CIDs inside are the producer's affair; so is a record under another codec. */
function isRecord(cid: Cid, bytes: Uint8Array): boolean {
  if (!cid.isCbor) return true
  if (bytes[0]! >> 5 !== 5) return false
  try {
    check(bytes, FLOATS)
    return true
  } catch (error) {
    if (error instanceof Malformed) return false
    throw error
  }
}

function note(notes: Reason[], reason: Reason): void {
  if (!notes.includes(reason)) notes.push(reason)
}

/**
 * Whether the signed tree says what the operations say, and undoing them leads to the tree before.
 *
 * Where the tree before is the one admitted last and undoing leads there, only the nodes on the way are looked at, and few
 * of their keys are hashed to see whether they are on their layer, which is most of the work: whatever is misplaced would
 * have to be in that tree too, or be put there by the operations, whose keys are always checked. In all other cases every
 * node is examined that the slice holds.
 */
function checkTree(body: CommitBody, slice: Slice, prior: AccountState | null, notes: Reason[]): Dropped | null {
  const { commit, blocks } = slice
  if (continues(prior, body)) {
    if (body.ops.length === 1 && isUndone(body.ops[0]!, body, slice)) return null
    const doubts: Reason[] = []
    if (undo(body, Tree.load(commit.data, blocks, { heights: 'root' }), doubts) === null && doubts.length === 0)
      return null
  }
  const tree = Tree.load(commit.data, blocks)
  return examine(tree, blocks) ?? undo(body, tree, notes)
}

/** The quick way for one operation; what it does not find right is not yet wrong. */
function isUndone(op: RepoOp, { prevData }: CommitBody, { commit, blocks }: Slice): boolean {
  // An update or delete that does not say what was there before could pass for a creation.
  if (prevData === null || (op.action !== 'create' && op.prev === null)) return false
  return undoOne(commit.data, blocks, op)?.equals(prevData) === true
}

/** Whether all nodes of the tree that are there are where they belong. No node is met twice, so this is bounded. */
function examine(tree: Tree, blocks: BlockSource): Dropped | null {
  if (blocks.get(tree.root) === undefined) return null
  try {
    const places = [{ node: tree.rootNode, low: LOWEST, high: HIGHEST }]
    for (let place = places.pop(); place !== undefined; place = places.pop()) {
      const { node, low, high } = place
      for (const [i, child] of node.children.entries()) {
        if (!(child instanceof Cid) || blocks.get(child) === undefined) continue
        const below = tree.loader.child(node, i, low, high)!
        places.push({ node: below, low: lowOf(node, i, low), high: highOf(node, i, high) })
      }
    }
    return null
  } catch (error) {
    if (error instanceof Malformed) return drop('bad-tree', error.message)
    throw error
  }
}

/** Without `prevData` the commit must be the first: undoing it has to lead to the empty tree. */
function undo({ ops, prevData }: CommitBody, tree: Tree, notes: Reason[]): Dropped | null {
  try {
    const silent = ops.some(op => op.action !== 'create' && op.prev === null)
    if (!silent) {
      const before = invert(tree, ops).root
      if (!before.equals(prevData ?? Tree.empty.root)) note(notes, prevData ? 'inversion-mismatch' : 'no-prev-data')
      return null
    }
    note(notes, 'op-without-prev')
    return contradicted(tree, ops)
  } catch (error) {
    if (error instanceof Malformed) return contradicted(tree, ops) ?? drop('bad-tree', error.message)
    if (!(error instanceof MissingBlock)) throw error
    note(notes, prevData ? 'tree-incomplete' : 'no-prev-data')
    return contradicted(tree, ops)
  }
}

/** Whether the tree holds something else than one of the operations says. What cannot be seen contradicts nothing. */
function contradicted(tree: Tree, ops: RepoOp[]): Dropped | null {
  for (const { path, cid } of ops) {
    try {
      const found = tree.get(path)
      if (cid === null ? found !== null : !cid.equals(found)) return drop('op-not-in-tree', path)
    } catch (error) {
      if (error instanceof Malformed) return drop('bad-tree', error.message)
      if (!(error instanceof MissingBlock)) throw error
    }
  }
  return null
}

/** Whether the tree before is said to be the one admitted last. */
function continues(prior: AccountState | null, { prevData }: CommitBody): boolean {
  return prior?.data != null && prior.data === (prevData ?? Tree.empty.root).key
}

/** Notes where a valid commit does not continue from what was seen last. */
function noteBreaks(prior: AccountState | null, body: CommitBody, notes: Reason[]): void {
  if (prior === null || prior.rev === null) return
  if (!continues(prior, body)) notes.push('prev-data-break')
  if (body.since !== null && body.since !== prior.rev) notes.push('since-break')
}
