/**
 * Writing to repositories: from wishes to a stored commit and its event.
 *
 * Everything that changes an account runs in that account's lane, one after the other. A write reads the head, checks the
 * swaps against it, has core compute the change, and stores all of it in one transaction; its promise resolves when that
 * is durable.
 */
import { type Blocks, MissingBlock } from '@millisky/core/blocks'
import { decode, type Obj } from '@millisky/core/cbor'
import type { Cid } from '@millisky/core/cid'
import { SigningKey } from '@millisky/core/crypto'
import { Refused, Unavailable } from '@millisky/core/errors'
import { commitEvent, type Event, encodeFrame } from '@millisky/core/event'
import { apply, type Change, checkExists, type Head, missing, type Write } from '@millisky/core/repo'
import type { Datetime, Did, Nsid, Tid } from '@millisky/core/syntax'
import type { TidClock } from '@millisky/core/tid'
import type { Lanes } from '@millisky/server/lanes'
import { NodeCache } from './nodes.ts'
import { Plan } from './plan.ts'
import { type PreparedRecord, refersTo } from './records.ts'
import {
  type AccountId,
  HeadMoved,
  type PendingEvent,
  type RecordWrite,
  type RepoState,
  type Status,
  type Store,
  type StoredKey,
} from './store/store.ts'

/** One write as a caller wishes it. */
export type WantedWrite =
  /** `unique`: an older record of the collection about the same subject is removed in the same commit, or changed if it has the key. */
  | { action: 'create'; record: PreparedRecord; unique?: boolean }
  | { action: 'update'; record: PreparedRecord }
  /** Creates or updates; nothing happens if the record is there already, byte for byte. */
  | { action: 'put'; record: PreparedRecord; swapRecord?: Cid | null }
  /** `ifPresent`: nothing happens, whatever `swapRecord` says, if there is no such record. */
  | { action: 'delete'; path: string; swapRecord?: Cid; ifPresent?: boolean }

export interface WriteResult {
  /** Null when there was nothing to change. */
  commit: { cid: Cid; rev: Tid } | null
}

export interface ReposParts {
  store: Store
  /** Shared with everything else that changes accounts; keyed by DID. */
  lanes: Lanes
  tids: TidClock
  /** Milliseconds since 1970. */
  now: () => number
  nodeCacheBytes?: number
  /** Told after each commit, for asking relays to come. */
  onCommit?: () => void
}

/** Another process may have moved the head; each attempt computes anew. */
const ATTEMPTS_MAX = 4
const KEYS_MAX = 2_000

export class Repos {
  readonly store: Store
  readonly lanes: Lanes
  readonly #tids: TidClock
  readonly #now: () => number
  readonly #nodes: NodeCache
  readonly #keys = new Map<string, SigningKey>()
  readonly #onCommit: (() => void) | undefined

  constructor({ store, lanes, tids, now, nodeCacheBytes = 32 * 1024 * 1024, onCommit }: ReposParts) {
    this.store = store
    this.lanes = lanes
    this.#tids = tids
    this.#now = now
    this.#nodes = new NodeCache(nodeCacheBytes)
    this.#onCommit = onCommit
  }

  now(): number {
    return this.#now()
  }

  /** A fresh record key. */
  nextRkey(): Tid {
    return this.#tids.next()
  }

  /** A fresh rev above what a repository stands at. */
  nextRev(after?: Tid): Tid {
    return this.#tids.next(after)
  }

  /**
   * Applies writes in one commit.
   *
   * @param options.swapCommit the commit the caller believes to be the head
   * @throws Refused InvalidSwap, BlobNotFound, InvalidMimeType, InvalidSize, AccountNotFound, AccountDeactivated …
   */
  write(did: Did, wanted: readonly WantedWrite[], options: { swapCommit?: Cid } = {}): Promise<WriteResult> {
    return this.lanes.run(did, () => this.#writeInLane(did, wanted, options.swapCommit))
  }

  /** An empty commit: a new rev and signature over the same records, as after a change of key. */
  resign(did: Did): Promise<WriteResult> {
    return this.lanes.run(did, () => this.#attempt(did, state => this.#commit(state, [])))
  }

  /** Lets go of what is remembered of a repository, after it has been replaced. */
  forget(account: AccountId): void {
    this.#nodes.forget(account)
  }

  /** The key that an account's commits are signed with. */
  signingKey({ curve, secret }: StoredKey): SigningKey {
    const name = `${curve} ${Buffer.from(secret).toString('latin1')}`
    let key = this.#keys.get(name)
    if (!key) {
      key = SigningKey.fromPrivate(curve, secret)
      for (const oldest of this.#keys.keys()) {
        if (this.#keys.size < KEYS_MAX) break
        this.#keys.delete(oldest)
      }
      this.#keys.set(name, key)
    }
    return key
  }

  #writeInLane(did: Did, wanted: readonly WantedWrite[], swapCommit: Cid | undefined): Promise<WriteResult> {
    return this.#attempt(did, async state => {
      const writes = await this.#plan(state, wanted, swapCommit)
      return writes.length === 0 ? { commit: null } : await this.#commit(state, writes)
    })
  }

  async #attempt<T>(did: Did, attempt: (state: RepoState) => Promise<T>): Promise<T> {
    for (let left = ATTEMPTS_MAX; ; left--) {
      const state = await this.store.repos.state(did)
      if (!state) throw new Refused('AccountNotFound', 'Account not found', 403)
      assertWritable(state.status)
      try {
        return await attempt(state)
      } catch (error) {
        if (!(error instanceof HeadMoved)) throw error
        if (left === 1) throw new Unavailable('NotEnoughResources', 'Others write to this account', 503, 1)
      }
    }
  }

  /** What the wishes come to in the present state. */
  async #plan(state: RepoState, wanted: readonly WantedWrite[], swapCommit: Cid | undefined): Promise<RecordWrite[]> {
    const plan = new Plan()
    if (wanted.length === 0) assertHead(state, swapCommit)
    for (const want of wanted) {
      const path = want.action === 'delete' ? want.path : want.record.path
      const current = looksAt(want) ? await this.store.repos.record(state.account, path) : null
      // An identical put or a delete of nothing is done already, whatever the swaps say: so a retry of it succeeds.
      if (isDone(want, current)) continue
      assertHead(state, swapCommit)
      assertSwap(want, current)
      if (want.action === 'delete') {
        plan.add({ action: 'delete', path })
        continue
      }
      let action = want.action === 'put' ? (current ? 'update' : 'create') : want.action
      if (want.action === 'create' && want.unique) action = await this.#removeOlder(state, plan, want.record)
      await this.#checkBlobs(state, want.record)
      plan.add(recordWrite(action, want.record))
    }
    for (const path of plan.fleeting) {
      checkExists({ action: 'create', path }, (await this.store.repos.record(state.account, path)) !== null)
    }
    return plan.writes
  }

  /** An older one under the very key is changed: who likes something again by a key of their own may not have heard the first answer. */
  async #removeOlder(state: RepoState, plan: Plan, { path, subject }: PreparedRecord): Promise<'create' | 'update'> {
    if (subject === null) return 'create'
    const collection = path.slice(0, path.indexOf('/')) as Nsid
    const found = await this.store.repos.recordsAbout(state.account, collection, subject)
    for (const older of found) if (older !== path) plan.add({ action: 'delete', path: older })
    return found.includes(path as (typeof found)[number]) ? 'update' : 'create'
  }

  async #checkBlobs({ account }: RepoState, { path, blobs }: PreparedRecord): Promise<void> {
    for (const use of blobs) {
      const { cid, mimeType, size } = use
      const stored = await this.store.blobs.get(account, cid)
      if (!stored || stored.takedown !== null) throw new Refused('BlobNotFound', `Could not find blob: ${cid}`)
      if (stored.mimeType === mimeType && stored.size === size) continue
      // What came from another server may say it differently, and must not keep people from changing the rest.
      const current = await this.store.repos.record(account, path)
      if (current && refersTo(decode(current.bytes) as Obj, use)) continue
      if (stored.mimeType !== mimeType) {
        const message = `Referenced Mimetype does not match stored blob. Expected: ${stored.mimeType}, Got: ${mimeType}`
        throw new Refused('InvalidMimeType', message)
      }
      const message = `Referenced Size does not match stored blob. Expected: ${stored.size}, Got: ${size}`
      throw new Refused('InvalidSize', message)
    }
  }

  async #commit(state: RepoState, writes: RecordWrite[]): Promise<WriteResult> {
    const { account, did, head } = state
    const now = this.#now()
    const key = this.signingKey(state.key)
    const asked = { did, head, blocks: this.#nodes.of(account), writes, rev: this.#tids.next(head.rev), key }
    const change = applyIfLoaded(asked) ?? apply({ ...asked, blocks: await this.#load(state, writes) })
    await this.#store(account, head, change, writes, now)
    this.#nodes.apply(account, change)
    this.#onCommit?.()
    return { commit: { cid: change.head.commit, rev: change.head.rev } }
  }

  /** Reads what a write needs of the tree and is not in memory, layer by layer. */
  async #load({ account, head }: RepoState, writes: Write[]): Promise<Blocks> {
    let blocks = this.#nodes.of(account)
    for (let wanted = missing(head, blocks, writes); wanted.length > 0; wanted = missing(head, blocks, writes)) {
      const found = await this.store.repos.nodes(account, wanted)
      // Somebody else has moved the tree on while it was read.
      if (found.length < wanted.length) throw new HeadMoved()
      // Forgotten meanwhile, they are read once more.
      blocks = this.#nodes.add(account, found)
    }
    return blocks
  }

  #store(account: number, prev: Head, change: Change, records: RecordWrite[], now: number): Promise<void> {
    const { head, commit, nodes, lost } = change
    const events = [pending(head.did, commitEvent(change, datetime(now)))]
    return this.store.repos.commit({ account, prev, head, commit, gained: nodes, lost, records, events, now })
  }
}

/** Mostly the last write has left everything in memory, and to ask first would cost more than to be wrong at times. */
function applyIfLoaded(asked: Parameters<typeof apply>[0]): Change | null {
  try {
    return apply(asked)
  } catch (error) {
    if (error instanceof MissingBlock) return null
    throw error
  }
}

function recordWrite(action: 'create' | 'update', record: PreparedRecord): RecordWrite {
  const { path, cid, bytes, blobs, subject } = record
  return { action, path, cid, bytes, blobs: blobs.map(blob => blob.cid), subject }
}

/** Whether what comes of a wish depends on the record that is there. */
function looksAt(want: WantedWrite): boolean {
  return want.action === 'put' || (want.action === 'delete' && (want.ifPresent || want.swapRecord !== undefined))
}

function isDone(want: WantedWrite, current: { cid: Cid } | null): boolean {
  if (want.action === 'put') return current?.cid.equals(want.record.cid) ?? false
  return want.action === 'delete' && want.ifPresent === true && current === null
}

/** @throws Refused InvalidSwap unless the head is what the caller believes */
function assertHead({ head }: RepoState, believed: Cid | undefined): void {
  if (believed && !head.commit.equals(believed)) throw new Refused('InvalidSwap', `Commit was at ${head.commit}`)
}

/** @throws Refused InvalidSwap unless the record is what the caller believes; null is none. */
function assertSwap(want: WantedWrite, current: { cid: Cid } | null): void {
  const believed = want.action === 'put' || want.action === 'delete' ? want.swapRecord : undefined
  if (believed === undefined) return
  if (current === null ? believed === null : believed !== null && current.cid.equals(believed)) return
  throw new Refused('InvalidSwap', `Record was at ${current?.cid ?? 'null'}`)
}

/** @throws Refused 401: no commits while inactive */
export function assertWritable(status: Status): void {
  if (status === 'active') return
  if (status === 'deactivated') throw new Refused('AccountDeactivated', 'Account is deactivated', 401)
  if (status === 'suspended') throw new Refused('AccountSuspended', 'Account is suspended', 401)
  throw new Refused('AccountTakedown', 'Account has been taken down', 401)
}

/** An event ready for the log. */
export function pending(did: Did, event: Event): PendingEvent {
  return { did, frame: encodeFrame(event as { t: string; body: Obj }) }
}

export function datetime(ms: number): Datetime {
  return new Date(ms).toISOString() as Datetime
}
