/**
 * What is known of accounts, in memory over the store.
 *
 * Each account in memory has two states. `state` is what the last verdict left, so that the next event can be judged
 * before this one is on disk. The durable one is what the log holds, which alone may go to the store.
 */
import { utf8 } from '@millisky/core/bytes'
import { sha256 } from '@millisky/core/hash'
import type { Did } from '@millisky/core/syntax'
import { type AccountState, UNKNOWN_ACCOUNT } from '@millisky/core/verify'
import type { AccountQuota } from './quotas.ts'
import type { AccountStore, HostId, StoredAccount } from './store/store.ts'

/**
 * The number by which the log knows an account: 52 bits of a hash of its DID, so that a frame alone tells it. Nobody can
 * make a DID with the number of another one on purpose.
 */
export function accountNumber(did: string): number {
  const digest = sha256(utf8(did))
  let number = digest[0]! & 15
  for (let i = 1; i < 7; i++) number = number * 256 + digest[i]!
  return number
}

/** One account in memory; `E` is an event that waits for its turn. */
export class Account<E> {
  readonly did: Did
  /** False until the store was asked. */
  isLoaded = false
  state: AccountState = UNKNOWN_ACCOUNT
  /** Whose it is by `state`. */
  hostId: HostId | null = null
  /** As of the log, which is what the next save writes. */
  durable: StoredAccount | null = null
  /** How much of it is neither in the log yet nor in the store: until then it may not be forgotten. */
  pins = 0
  /** One event or group of events is being looked at; the others wait. */
  isBusy = false
  waiting: E[] = []
  /** When its host was last asked whether it is active after all. */
  askedAt = 0
  /** What is left of what it may send; made with its first event. */
  quota: AccountQuota | null = null
  #number: number | undefined

  constructor(did: Did) {
    this.did = did
  }

  /** See {@link accountNumber}. */
  get number(): number {
    return (this.#number ??= accountNumber(this.did))
  }

  /** Whether anything was ever admitted or said about it. */
  get isKnown(): boolean {
    return this.durable !== null
  }
}

export interface AccountsParts {
  store: AccountStore
  hostname: (id: HostId) => string | null
  /** Accounts in memory that are not in use. */
  entriesMax: number
}

export class Accounts<E> {
  readonly #parts: AccountsParts
  /** The oldest first. */
  readonly #entries = new Map<Did, Account<E>>()
  #toLoad: { account: Account<E>; resolve: () => void; reject: (error: unknown) => void }[] = []

  constructor(parts: AccountsParts) {
    this.#parts = parts
  }

  get size(): number {
    return this.#entries.size
  }

  /** The account, perhaps not loaded yet. Use it before anything else happens, or mark it busy: it may be forgotten. */
  get(did: Did): Account<E> {
    let account = this.#entries.get(did)
    if (account === undefined) {
      account = new Account<E>(did)
      this.#entries.set(did, account)
      if (this.#entries.size > this.#parts.entriesMax) this.#forgetSome()
    }
    return account
  }

  /** Whether the DID has an entry already, so is known to be one. */
  has(did: string): did is Did {
    return this.#entries.has(did as Did)
  }

  /** Asks the store; those who ask in the same moment share one question. */
  load(account: Account<E>): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#toLoad.push({ account, resolve, reject })
      if (this.#toLoad.length === 1) queueMicrotask(() => void this.#loadAll())
    })
  }

  /** The account as stored here, loaded. */
  async find(did: Did): Promise<Account<E>> {
    const account = this.get(did)
    if (!account.isLoaded) await this.load(account)
    return account
  }

  /** What is durable of an account, where memory knows more than the store. */
  current(stored: StoredAccount): StoredAccount {
    return this.#entries.get(stored.did)?.durable ?? stored
  }

  async #loadAll(): Promise<void> {
    const asked = this.#toLoad
    this.#toLoad = []
    try {
      const stored = new Map<Did, StoredAccount>()
      const dids = [...new Set(asked.map(({ account }) => account.did))]
      for (const found of await this.#parts.store.load(dids)) stored.set(found.did, found)
      for (const { account } of asked) this.#fill(account, stored.get(account.did) ?? null)
      for (const { resolve } of asked) resolve()
    } catch (error) {
      for (const { reject } of asked) reject(error)
    }
  }

  #fill(account: Account<E>, stored: StoredAccount | null): void {
    if (account.isLoaded) return
    account.isLoaded = true
    if (stored === null) return
    const { rev, data, commit, active, status, local, host } = stored
    account.durable = stored
    account.hostId = host
    account.state = {
      rev,
      data,
      commit,
      active,
      status,
      local,
      host: host === null ? null : this.#parts.hostname(host),
    }
  }

  /** The oldest in memory go, used or not: an order of use would cost a move at each use. Busy and unsaved ones are spared. */
  #forgetSome(): void {
    let looked = 0
    for (const [did, account] of this.#entries) {
      if (looked++ > 64) return
      this.#entries.delete(did)
      if (account.isBusy || account.pins > 0 || !account.isLoaded) this.#entries.set(did, account)
      else if (this.#entries.size <= this.#parts.entriesMax) return
    }
  }
}
