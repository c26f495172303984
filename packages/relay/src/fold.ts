/** Account state as a fold over the log: kept up to date in the store, and made up for after a crash. */
import { readCar } from '@millisky/core/car'
import { decodeCommit } from '@millisky/core/commit'
import { decodeFrame, type Frame, readAccount, readCommit, readIdentity, readSync } from '@millisky/core/event'
import type { Did } from '@millisky/core/syntax'
import { framesOf } from '@millisky/server/log/frame-wire'
import type { Log } from '@millisky/server/log/log'
import { type Account, accountNumber } from './accounts.ts'
import type { Admitted } from './appender.ts'
import { Directory } from './directory.ts'
import type { Host, Hosts } from './hosts.ts'
import type { FoldedHost, HostId, HostRecord, RelayStore, StoredAccount } from './store/store.ts'

const READ_BYTES = 4 * 1_048_576

export interface FoldParts {
  store: Pick<RelayStore, 'fold'>
  hosts: Hosts
  directory?: Directory
  /** Last seq that is durable. */
  head: () => number
  /** Seq behind which hosts may say again what is in the log, should all end now. See `Repeats.from`. */
  cursorsAt: () => Promise<number>
  onError: (error: unknown) => void
}

/** Collects what the log says of accounts and writes it to the store from time to time. */
export class Fold<E> {
  readonly #parts: FoldParts
  #changed = new Set<Account<E>>()
  #watermark = -1
  #saving: Promise<void> | null = null

  constructor(parts: FoldParts) {
    this.#parts = parts
  }

  /** Accounts that wait to be saved. */
  get size(): number {
    return this.#changed.size
  }

  /** Takes an event that is durable. */
  take({ account, state, hostId, frame }: Admitted<E>): void {
    const before = account.durable
    const { rev, data, commit, active, status, local } = state
    account.durable = { did: account.did, host: hostId, rev, data, commit, active, status, local }
    this.#count(before, account.durable)
    this.#parts.directory?.take(account, frame, before, account.durable)
    if (this.#changed.has(account)) account.pins--
    else this.#changed.add(account)
  }

  /** Saves what has changed; calls while a save is under way share the next one. */
  async save(): Promise<void> {
    while (this.#saving) await this.#saving
    this.#saving = this.#save().finally(() => {
      this.#saving = null
    })
    return this.#saving
  }

  #count(before: StoredAccount | null, after: StoredAccount): void {
    const [from, to] = [countedFor(before), countedFor(after)]
    if (from === to) return
    if (from !== null) this.#parts.hosts.countAccounts(from, -1)
    if (to !== null) this.#parts.hosts.countAccounts(to, 1)
  }

  async #save(): Promise<void> {
    const { hosts, store, head, directory } = this.#parts
    const changed = this.#changed
    const unsaved = hosts.list().filter(host => host.isUnsaved)
    const watermark = head()
    if (changed.size === 0 && unsaved.length === 0 && watermark === this.#watermark) return
    this.#changed = new Set()
    for (const host of unsaved) host.isUnsaved = false
    const pairs = directory?.drain() ?? []
    const cursors = unsaved.map(folded)
    const accounts = Array.from(changed, account => account.durable!)
    try {
      const cursorsAt = await this.#parts.cursorsAt()
      await store.fold.save({ watermark, cursorsAt, accounts, hosts: cursors, directory: pairs })
      this.#watermark = watermark
      for (const account of changed) account.pins--
    } catch (error) {
      directory?.restore(pairs)
      for (const host of unsaved) host.isUnsaved = true
      for (const account of changed) {
        if (this.#changed.has(account)) account.pins--
        else this.#changed.add(account)
      }
      this.#parts.onError(error)
    }
  }
}

/** The host whose number of accounts an account is part of. */
function countedFor(account: StoredAccount | null): HostId | null {
  return account === null || account.status === 'deleted' ? null : account.host
}

function folded({ record, window }: Host): FoldedHost {
  return { id: record.id, cursor: window.cursor, streak: record.streak, accounts: record.accounts }
}

/**
 * Folds what the log holds beyond the watermark, as after a crash. Cursors of hosts are not in the log: hosts send what
 * follows the saved ones again, and what is known from here is dropped as stale.
 *
 * @returns how many events there were
 */
export async function foldTail(log: Log, store: RelayStore): Promise<number> {
  const changed = new Map<Did, StoredAccount>()
  const directory = new Directory()
  /** What each host's number of accounts changes by. The log does not tell to which host new accounts belong. */
  const counts = new Map<HostId, number>()
  let count = 0
  let after = Math.max(await store.fold.watermark(), log.oldest - 1)
  while (after < log.head) {
    const batch = await log.read(after, { bytes: READ_BYTES })
    if (batch.last === after) break
    after = batch.last
    const frames = Array.from(framesOf(batch.wire), bytes => decodeFrame(bytes))
    const dids = new Set(frames.map(didOf).filter(did => !changed.has(did)))
    for (const account of await store.accounts.load([...dids])) changed.set(account.did, account)
    for (const frame of frames) {
      const did = didOf(frame)
      const before = changed.get(did) ?? unknown(did)
      const after = next(before, frame)
      changed.set(did, after)
      for (const [host, by] of [[countedFor(before), -1] as const, [countedFor(after), 1] as const]) {
        if (host !== null) counts.set(host, (counts.get(host) ?? 0) + by)
      }
      directory.take({ did, number: accountNumber(did) }, frame.bytes, before, after)
      count++
    }
  }
  if (count === 0) return 0
  const hosts = recounted(await store.hosts.all(), counts)
  const accounts = [...changed.values()]
  await store.fold.save({ watermark: after, accounts, hosts, directory: directory.drain() })
  return count
}

function recounted(hosts: readonly HostRecord[], counts: ReadonlyMap<HostId, number>): FoldedHost[] {
  return hosts.flatMap(({ id, cursor, streak, accounts }) => {
    const by = counts.get(id) ?? 0
    return by === 0 ? [] : [{ id, cursor, streak, accounts: Math.max(0, accounts + by) }]
  })
}

function didOf({ t, body }: Frame): Did {
  if (t === '#commit') return readCommit(body).repo
  if (t === '#sync') return readSync(body).did
  return t === '#account' ? readAccount(body).did : readIdentity(body).did
}

function unknown(did: Did): StoredAccount {
  return { did, host: null, rev: null, data: null, commit: null, active: true, status: null, local: null }
}

function next(account: StoredAccount, { t, body }: Frame): StoredAccount {
  if (t === '#commit' || t === '#sync') {
    const { rev, blocks } = t === '#commit' ? readCommit(body) : readSync(body)
    const car = readCar(blocks, { verify: false })
    const root = car.roots[0]!
    const { data } = decodeCommit(car.blocks.find(({ cid }) => cid.equals(root))!.bytes)
    return { ...account, rev, data: data.key, commit: root.key }
  }
  // With a status of our own, what is in the log is that one; the host says its own again.
  if (t !== '#account' || account.local !== null) return account
  const { active, status } = readAccount(body)
  return { ...account, active, status }
}
