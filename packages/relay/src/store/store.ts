/**
 * What the Relay keeps besides its log, as named operations: hosts, accounts, bans, settings.
 *
 * - A resolved promise of a writing operation means durable.
 * - Accounts and host cursors are a fold over the log: {@link FoldStore.save} writes them together with the seq up to which
 *   they are folded, in one transaction. What the log does not tell (bans, takedowns, pins) is written at once.
 * - Times are milliseconds since 1970 and come from the caller.
 */
import type { Did, Tid } from '@millisky/core/syntax'
import type { Policy } from '@millisky/core/verify'
import type { Awaitable } from '@millisky/server/db/db'
import type { DirectoryChange } from '../directory.ts'
import type { PlcStore } from './plc.ts'

/** Number of a host in this database; never used twice. */
export type HostId = number

/** Source: lexicon com.atproto.sync.defs#hostStatus. */
export const HOST_STATUSES = ['active', 'idle', 'offline', 'throttled', 'banned'] as const
export type HostStatus = (typeof HOST_STATUSES)[number]

/** Something that happened to a host, for its history. */
export interface HostNote {
  at: number
  /** A status it came to, or `gap`: events of it that were never seen here. */
  what: HostStatus | 'gap'
  detail: string
}

/** The notes kept for each host, the newest last. */
export const HOST_HISTORY_MAX = 20

export interface HostRecord {
  id: HostId
  /** Lower case; with its port where that is not the scheme's own. */
  hostname: string
  /** Plain ws: and http:, for development. */
  noTls: boolean
  status: HostStatus
  reason: string | null
  statusAt: number
  createdAt: number
  /** Added by an administrator, so outside the daily limit. */
  byAdmin: boolean
  /** Every event of the host up to this seq has its verdict, and is durable if admitted; null is "begin at the live tail". */
  cursor: number | null
  policy: Policy
  /** The policy was set by an administrator and stays. */
  pinned: boolean
  /** Commits in a row that were right also by the strict policy. */
  streak: number
  /** Accounts that live there and are not deleted. */
  accounts: number
  /** Accounts it may have, set by an administrator; null for what it has come to. */
  accountLimit: number | null
  /** Events it may send, set by an administrator; null for what it has come to. */
  perSecond: number | null
  perHour: number | null
  perDay: number | null
  /** How often its limits have doubled, and when they last did or could not. */
  growth: number
  growthAt: number
  history: HostNote[]
}

export type NewHost = Omit<HostRecord, 'id'>
/** What an administrator or the state machine changes. */
export type HostPatch = Partial<Omit<HostRecord, 'id' | 'hostname' | 'createdAt' | 'accounts' | 'streak'>>

export interface HostStore {
  all(): Promise<HostRecord[]>
  /** @throws Error when the host name is there already. */
  create(host: NewHost): Promise<HostRecord>
  update(id: HostId, patch: HostPatch): Promise<void>
  /** Hosts that were added since then, not by administrators. */
  countSince(time: number): Promise<number>
}

export interface StoredAccount {
  did: Did
  /** The host that last spoke with authority for it. */
  host: HostId | null
  rev: Tid | null
  /** CID of the tree's root, as `Cid.key`. */
  data: string | null
  /** CID of the commit, in the same form. */
  commit: string | null
  /** What its host says. */
  active: boolean
  status: string | null
  /** What is said here, which is stronger: `takendown`. */
  local: string | null
}

export interface AccountStore {
  /** Those of the given ones that there are, in any order. */
  load(dids: readonly Did[]): Awaitable<StoredAccount[]>
  /** Of an account that may not be known yet. */
  setLocal(did: Did, local: string | null): Promise<void>
  /** In order of DID, `after` excluded. */
  list(after: string, limit: number): Promise<StoredAccount[]>
  /** Those with this status of ours, in order of DID. */
  listLocal(local: string, after: string, limit: number): Promise<StoredAccount[]>
}

/** What of a host is a fold over its events. */
export type FoldedHost = Pick<HostRecord, 'id' | 'cursor' | 'streak' | 'accounts'>

export interface FoldStore {
  /** The seq up to which everything is folded; 0 in the beginning. */
  watermark(): Promise<number>
  /**
   * The seq behind which hosts may say again, after the cursors that are saved, what is in the log already; 0 in the
   * beginning. The watermark runs ahead of it after a crash, when the log is folded, which does not tell cursors.
   */
  cursorsAt(): Promise<number>
  /** Takes the state of some accounts (their `local` excepted) and hosts as of `watermark`, all in one transaction. */
  save(fold: {
    watermark: number
    /** Given when `hosts` are all whose cursors have moved. */
    cursorsAt?: number
    accounts: readonly StoredAccount[]
    hosts: readonly FoldedHost[]
    directory?: readonly DirectoryChange[]
  }): Promise<void>
}

export interface DirectoryStore {
  /** Accounts with records of a collection, in order of DID, `after` excluded. Whether they are active is not looked at. */
  list(collection: string, after: string, limit: number): Promise<Did[]>
  /** How many accounts a collection has. Counts them. */
  count(collection: string): Promise<number>
}

/** A checkpoint as it was signed. */
export interface StoredCheckpoint {
  last: number
  /** Binary CID. */
  cid: Uint8Array
  bytes: Uint8Array
}

export interface CheckpointStore {
  /** @throws Error when there is one with this `last`. */
  add(checkpoint: StoredCheckpoint): Promise<void>
  latest(): Promise<StoredCheckpoint | null>
  /** Those whose `last` is greater than `after`, in order of it. */
  list(after: number, limit: number): Promise<StoredCheckpoint[]>
}

export interface DomainBanStore {
  all(): Promise<string[]>
  /** False when it is there already. */
  add(domain: string, at: number): Promise<boolean>
  /** False when there is none. */
  remove(domain: string): Promise<boolean>
}

/** Settings that administrators change while it runs. */
export interface SettingStore {
  get(name: string): Promise<string | null>
  set(name: string, value: string): Promise<void>
}

/** What an administrator changed, or tried to. */
export interface AuditEntry {
  id: number
  at: number
  /** From where. */
  address: string
  /** The route without `/admin/`. */
  action: string
  /** Its parameters as JSON, perhaps cut. */
  params: string
  /** HTTP status of the answer. */
  status: number
}

export interface AuditStore {
  add(entry: Omit<AuditEntry, 'id'>): Promise<void>
  /** The newest first, `before` excluded. */
  list(before: number | null, limit: number): Promise<AuditEntry[]>
  /** Forgets what is older than `before`, and all but the newest `entriesMax`; says how many that were. */
  prune(before: number, entriesMax: number): Promise<number>
}

/** A request that a sibling relay is to get. */
export interface OutboxItem {
  id: number
  /** Origin of the sibling. */
  sibling: string
  /** Path and query of the request, which is a POST. */
  path: string
  /** JSON, or empty for none. */
  body: string
  at: number
  attempts: number
  /** Not to be tried before. */
  nextAt: number
  /** Why the last attempt failed. */
  error: string | null
}

export interface OutboxStore {
  /** All of them or none. */
  add(items: readonly Pick<OutboxItem, 'sibling' | 'path' | 'body' | 'at'>[]): Promise<void>
  /** The oldest one that waits for a sibling. */
  first(sibling: string): Promise<OutboxItem | null>
  failed(id: number, failure: Pick<OutboxItem, 'attempts' | 'nextAt' | 'error'>): Promise<void>
  remove(id: number): Promise<void>
  /** In order of id, `after` excluded. */
  list(after: number, limit: number): Promise<OutboxItem[]>
  /** How many wait for each sibling. */
  count(): Promise<Map<string, number>>
  /** Forgets what is older; says how many that were. */
  expire(before: number): Promise<number>
}

/** What verification needs of an identity. */
export interface StoredIdentity {
  did: Did
  /** When it was true. */
  at: number
  /** `did:key:…` */
  key: string | null
  /** Origin of the PDS. */
  pds: string | null
  handle: string | null
}

export interface IdentityStore {
  /** Whether `load` answers at once. */
  readonly isImmediate: boolean
  /** Those of the given ones that there are, in any order. */
  load(dids: readonly Did[]): Awaitable<StoredIdentity[]>
  /** An older answer than the one that is there is passed over. Times are kept in whole seconds. */
  put(identities: readonly StoredIdentity[]): Promise<void>
  delete(did: Did): Promise<void>
}

export interface RelayStore {
  plc: PlcStore
  identities: IdentityStore
  audit: AuditStore
  outbox: OutboxStore
  hosts: HostStore
  accounts: AccountStore
  fold: FoldStore
  directory: DirectoryStore
  checkpoints: CheckpointStore
  bans: DomainBanStore
  settings: SettingStore
  /** Rejects when the database does not answer. */
  ping(): Promise<void>
  close(): Promise<void>
}
