/**
 * What the PDS keeps, as named operations. Everything durable passes through here: one database, whichever driver.
 *
 * - A resolved promise of a writing operation means durable.
 * - Operations that take `events` append them to the event log in the same transaction, in the order given, and in the
 *   order of commit among accounts.
 * - Writers of one account's state must hold that account's lane (see `repos.ts`): the store checks the head, not the rest.
 * - Times are milliseconds since 1970 and come from the caller.
 */
import type { Block } from '@millisky/core/blocks'
import type { Cid } from '@millisky/core/cid'
import type { Curve } from '@millisky/core/crypto'
import type { Head } from '@millisky/core/repo'
import type { Did, Handle, Nsid, RepoPath, Tid } from '@millisky/core/syntax'
import type { Awaitable } from '@millisky/server/db/db'
import type { Log } from '@millisky/server/log/log'
import type { Pack } from './packs.ts'

/** The number of an account in this database; never used twice, also not after deletion. */
export type AccountId = number

/** Why an account is not served, or that it is. Source: account spec. */
export type Status = 'active' | 'deactivated' | 'suspended' | 'takendown'

/** One hosted account without its secrets. */
export interface Account {
  id: AccountId
  did: Did
  /** Lowercase; null while the account has none. */
  handle: Handle | null
  /** Lowercase. */
  email: string | null
  emailConfirmedAt: number | null
  createdAt: number
  /** The owner paused it, or it has arrived by migration and was not activated yet. */
  deactivatedAt: number | null
  /** When the owner wished it to be deleted, given with the deactivation. */
  deleteAfter: number | null
  suspendedAt: number | null
  /** The moderator's reference of a takedown; null if not taken down. */
  takedown: string | null
  invitesDisabled: boolean
  /** Whether any of its records is taken down, see {@link TakedownStore}. */
  hasRecordTakedowns: boolean
}

/** The status that others are told: the strictest of those that apply. */
export function statusOf(account: Pick<Account, 'takedown' | 'suspendedAt' | 'deactivatedAt'>): Status {
  if (account.takedown !== null) return 'takendown'
  if (account.suspendedAt !== null) return 'suspended'
  return account.deactivatedAt !== null ? 'deactivated' : 'active'
}

/** A private key as it is kept: 32 bytes. */
export interface StoredKey {
  curve: Curve
  secret: Uint8Array
}

/** A complete event frame whose seq is still open, and the account it is about. */
export interface PendingEvent {
  did: Did
  frame: Uint8Array
}

/** A unique value is in use: nothing was written. */
export class Taken extends Error {
  readonly what: 'did' | 'handle' | 'email' | 'name'

  constructor(what: 'did' | 'handle' | 'email' | 'name') {
    super(`${what} is taken`)
    this.name = 'Taken'
    this.what = what
  }
}

/** The head was not what the write was computed on: nothing was written; read again and compute anew. */
export class HeadMoved extends Error {
  constructor() {
    super('the repository has moved on')
    this.name = 'HeadMoved'
  }
}

export interface NewAccount {
  did: Did
  handle: Handle | null
  email: string | null
  /** PHC string. */
  password: string | null
  createdAt: number
  deactivatedAt: number | null
  key: StoredKey
  /** Used up in the same transaction. @throws Refused InvalidInviteCode if it has no use left */
  invite?: string
  /** The empty repository, made by `core/repo`. */
  repo: { head: Head; commit: Block; nodes: Block[] }
}

/** What of an account can be changed; absent fields stay. */
export type AccountPatch = Partial<Omit<Account, 'id' | 'did' | 'createdAt' | 'hasRecordTakedowns'>> & {
  password?: string | null
  key?: StoredKey
}

export interface AccountStore {
  byId(id: AccountId): Promise<Account | null>
  byDid(did: Did): Promise<Account | null>
  byHandle(handle: Handle): Promise<Account | null>
  /** Compares without regard to case. */
  byEmail(email: string): Promise<Account | null>
  /** The PHC string of the account's password. */
  password(id: AccountId): Promise<string | null>
  /** Another hash of the same password. Nothing happens if the password has been changed meanwhile. */
  rehash(id: AccountId, before: string, after: string): Promise<void>
  /** In one transaction: account, key, repository, invite use, events. @throws Taken */
  create(account: NewAccount, events: PendingEvent[]): Promise<Account>
  /** @throws Taken */
  update(id: AccountId, patch: AccountPatch, events: PendingEvent[]): Promise<void>
  /** Deletes the account and all it has; its blobs' bytes are left to the caller. Events about it that are older go too. */
  remove(id: AccountId, events: PendingEvent[]): Promise<void>
  /** Deletes an account that nobody was told of, as if it had never been: its invite may be used again. */
  withdraw(id: AccountId): Promise<void>
  /** In order of id, `after` excluded. */
  list(after: AccountId, limit: number): Promise<Account[]>
  /** Whose address holds this text, without regard to case; in order of id, `after` excluded. */
  searchByEmail(text: string, after: AccountId, limit: number): Promise<Account[]>
  count(): Promise<number>
  /** Deactivated, with a time of deletion that is over by `now`. */
  dueForDeletion(now: number, limit: number): Promise<Account[]>
  preferences(id: AccountId): Promise<Preference[]>
  setPreferences(id: AccountId, preferences: Preference[]): Promise<void>
}

/** One preference object of an app; order is kept. */
export interface Preference {
  /** Its `$type`. */
  type: string
  /** The whole object as JSON text. */
  json: string
}

/** One refresh token's life. Source: pds.md's rule that a reused token within the grace gives the same successor. */
export interface Session {
  /** The `jti`. */
  id: string
  account: AccountId
  createdAt: number
  expiresAt: number
  /** The `jti` of the token it was exchanged for. */
  next: string | null
  /** Name of the app password it was opened with. */
  appPassword: string | null
}

export interface AppPassword {
  name: string
  /** PHC string. */
  password: string
  privileged: boolean
  createdAt: number
}

export interface SessionStore {
  add(session: Session): Promise<void>
  byId(id: string): Promise<Session | null>
  /**
   * Exchanges a refresh token: `next` is added and the old one ends at `graceUntil` if that is sooner. If it was exchanged
   * before, nothing changes and the earlier successor's id comes back; null if `id` is unknown or its successor was ended.
   */
  rotate(id: string, next: Session, graceUntil: number): Promise<string | null>
  /** With all that it was exchanged from and for. */
  remove(id: string): Promise<void>
  /** Of one account: all, or only those of one app password. */
  removeOf(account: AccountId, appPassword?: string): Promise<void>
  /** Returns how many. */
  removeExpired(now: number): Promise<number>
  /** @throws Taken (`name`) */
  addAppPassword(account: AccountId, password: AppPassword): Promise<void>
  /** In order of creation. */
  appPasswords(account: AccountId): Promise<AppPassword[]>
  /** With its sessions. Returns whether there was one. */
  removeAppPassword(account: AccountId, name: string): Promise<boolean>
}

export interface InviteCode {
  code: string
  /** How often it may be used in all. */
  uses: number
  disabled: boolean
  /** Who may hand it out: a DID, or `admin`. */
  forAccount: string
  createdBy: string
  createdAt: number
  usedBy: { did: Did; at: number }[]
}

/** A one-time code sent by mail. One for each purpose and account. */
export interface EmailToken {
  token: string
  requestedAt: number
}

/** What accounts need beside themselves: invitations, mail codes, reserved keys, the server's own secrets. */
export interface TicketStore {
  addInvites(codes: Omit<InviteCode, 'usedBy' | 'disabled'>[]): Promise<void>
  /** Codes that one account makes for itself. Nothing is added, and false comes back, if it would have more than `total`. */
  addOwnInvites(codes: Omit<InviteCode, 'usedBy'>[], total: number): Promise<boolean>
  invite(code: string): Promise<InviteCode | null>
  /** In order of creation. */
  invitesFor(account: string): Promise<InviteCode[]>
  /** The one that an account came by. */
  invitedBy(did: Did): Promise<InviteCode | null>
  /** All, the newest or the most used first; `after` is the last of the page before: its time or uses, and its code. */
  listInvites(list: {
    sort: 'recent' | 'usage'
    limit: number
    after?: { primary: number; code: string }
  }): Promise<InviteCode[]>
  /** By code, and all of an account's. */
  disableInvites(codes: string[], accounts: string[]): Promise<void>
  /** Replaces the one there was. */
  putEmailToken(account: AccountId, purpose: string, token: EmailToken): Promise<void>
  emailToken(account: AccountId, purpose: string): Promise<EmailToken | null>
  /** Finds who was sent it. */
  accountOfEmailToken(purpose: string, token: string): Promise<AccountId | null>
  removeEmailToken(account: AccountId, purpose: string): Promise<void>
  /** Removes it if it is this one; returns whether it did. */
  takeEmailToken(account: AccountId, purpose: string, token: string): Promise<boolean>
  /** All of an account. */
  removeEmailTokens(account: AccountId): Promise<void>
  /** Keeps a key for a coming account; if this DID has one reserved already, that comes back instead. */
  reserveKey(didKey: string, did: Did | null, key: StoredKey, now: number): Promise<string>
  /** By the did:key or by the DID it was reserved for. */
  reservedKey(didKeyOrDid: string): Promise<StoredKey | null>
  removeReservedKey(didKeyOrDid: string): Promise<void>
  /** Those reserved before that time; anybody may reserve. Returns how many. */
  removeReservedKeysBefore(time: number): Promise<number>
  /** A secret of this server that outlives restarts, made on first use. */
  secret(name: string, make: () => Uint8Array): Promise<Uint8Array>
}

/** Where a repository stands, with the key that signs it. */
export interface RepoState {
  account: AccountId
  did: Did
  status: Status
  head: Head
  key: StoredKey
}

export interface StoredRecord {
  path: RepoPath
  cid: Cid
  rev: Tid
  bytes: Uint8Array
}

/** One record's change. */
export type RecordWrite =
  | { action: 'delete'; path: string }
  | {
      action: 'create' | 'update'
      path: string
      cid: Cid
      bytes: Uint8Array
      /** Blobs it refers to, each once. */
      blobs: Cid[]
      /** What it likes, follows or reposts, for finding the older one. */
      subject: string | null
    }

export interface RepoWrite {
  account: AccountId
  /** The head this was computed on. */
  prev: Head
  head: Head
  commit: Block
  /** Nodes that came. */
  gained: Block[]
  /** Nodes that went. */
  lost: Cid[]
  records: RecordWrite[]
  events: PendingEvent[]
  /** When blobs that lose their last reference became loose. */
  now: number
}

/** A whole repository in place of what there was. The two iterables are made anew for each attempt. */
export interface RepoImport extends Omit<RepoWrite, 'gained' | 'lost' | 'records'> {
  /** Every node of the new tree. What it throws undoes the whole. */
  nodes(): Iterable<Block>
  /** What changes. Equally. */
  records(): Iterable<RecordWrite>
  /**
   * Nobody sees the repository, its tree is empty, and both iterables have been gone through before. SQLite then takes the
   * rows in many short transactions, so that others' writes come between, and the head in the last. Cut short, it leaves
   * rows that the tree at the head does not have; the next import finds and replaces them.
   */
  hidden?: boolean
}

export interface ListRecords {
  collection: Nsid
  limit: number
  /** Newest rkey first unless true. */
  reverse?: boolean
  /** Exclusive, in the direction of the listing. */
  cursor?: string
}

export interface RepoStore {
  /** By DID. */
  state(did: Did): Promise<RepoState | null>
  /**
   * One transaction, shared with other accounts' writes that arrive together: head compare-and-set, records, nodes, blob
   * references, events. @throws HeadMoved
   */
  commit(write: RepoWrite): Promise<void>
  /** One transaction too, however large, and others' writes wait for it; unless it is hidden. @throws HeadMoved */
  import(given: RepoImport): Promise<void>
  /** All records by path, in order of path. */
  paths(account: AccountId): Promise<[RepoPath, Cid][]>
  record(account: AccountId, path: string): Promise<StoredRecord | null>
  records(account: AccountId, list: ListRecords): Promise<StoredRecord[]>
  /** In byte order. */
  collections(account: AccountId): Promise<Nsid[]>
  /** Paths of records of this collection with this subject, see {@link RecordWrite}. */
  recordsAbout(account: AccountId, collection: Nsid, subject: string): Promise<RepoPath[]>
  /** Every node of the tree. */
  allNodes(account: AccountId): Promise<Block[]>
  /** Nodes of the tree by CID; those that are not there are left out. */
  nodes(account: AccountId, cids: Cid[]): Promise<Block[]>
  /** The signed commit at the head. */
  commitBlock(account: AccountId): Promise<Block | null>
  counts(account: AccountId): Promise<{ nodes: number; records: number }>
  /** Accounts with their heads in order of id, `after` excluded. */
  listHeads(after: AccountId, limit: number): Promise<{ account: Account; commit: Cid; rev: Tid }[]>
  /**
   * Accounts in use that have a record in a collection, in order of id, `after` excluded. Looks at no more than `look`
   * accounts, so there may be fewer than `limit` and yet more to come: `last` is where to go on, null at the end.
   */
  listByCollection(
    collection: Nsid,
    after: AccountId,
    bounds: { limit: number; look: number },
  ): Promise<{ found: { id: AccountId; did: Did }[]; last: AccountId | null }>
  /** Calls `read` with a frozen view of one repository, for long reads that hold up nobody's writes. */
  snapshot<T>(account: AccountId, read: (view: RepoSnapshot) => Promise<T>): Promise<T>
}

export const NODES_AT_ONCE_MAX = 32

/** An account that has no more nodes than this can have all of them read at once. */
export const FEW_NODES = 2_000

/** One repository as it was when the snapshot was taken, whatever is written meanwhile. */
export interface RepoSnapshot {
  commit: Block
  head: Head
  /** With the rev that made it. @throws Error if it is not there */
  node(cid: Cid): Awaitable<{ rev: Tid; bytes: Uint8Array }>
  record(path: string): Awaitable<StoredRecord | null>
  /** In path order, `after` excluded. */
  records(after: string, limit: number): Awaitable<StoredRecord[]>
  /** The next records in path order, from `from` and below `below`; large ones are left out, see {@link record}. */
  page(from: string, below: string): Awaitable<Pack>
  /**
   * Nodes in the order asked for, without those that are not there. `cids` are their CIDs one after the other, of
   * {@link NODES_AT_ONCE_MAX} at most. Large ones are left out, see {@link node}, and those whose rev is not above `since`.
   */
  nodes(cids: Uint8Array, since: string): Awaitable<Pack>
  /** All nodes in any order, large ones left out; null if there are more than {@link FEW_NODES}. */
  fewNodes(): Awaitable<Pack | null>
  /** Whether this is the commit, a node or a record. */
  has(cid: Cid): Awaitable<boolean>
  /** Commit, node or record; null if it is not there. */
  block(cid: Cid): Awaitable<Uint8Array | null>
}

/** A blob whose bytes are in the blob store. */
export interface StoredBlob {
  cid: Cid
  mimeType: string
  size: number
  /** Since when no record refers to it; null while one does. Loose blobs are private and are collected in time. */
  looseSince: number | null
  takedown: string | null
}

/** Rows about blobs; the bytes are the blob store's, see `blobs.ts`. */
export interface BlobStore {
  get(account: AccountId, cid: Cid): Promise<StoredBlob | null>
  /** Adds it as loose, or refreshes the time of a loose one; one that is referred to stays as it is. */
  put(account: AccountId, blob: { cid: Cid; mimeType: string; size: number }, now: number): Promise<StoredBlob>
  /** CIDs records refer to, in order of CID, `after` excluded; with `since` only those of records written after that rev. */
  referenced(account: AccountId, list: { since?: string; after?: Cid; limit: number }): Promise<Cid[]>
  /** Referred to, but not here. In order of CID, `after` excluded. */
  missing(account: AccountId, list: { after?: Cid; limit: number }): Promise<{ cid: Cid; path: RepoPath }[]>
  counts(account: AccountId): Promise<{ referenced: number; present: number }>
  /** The moderator's reference, or null for lifting it; returns whether there is such a blob. */
  takedown(account: AccountId, cid: Cid, reference: string | null): Promise<boolean>
  /** Loose since before `cutoff`, and not taken down: what was must not come again. */
  loose(cutoff: number, limit: number): Promise<{ account: AccountId; did: Did; blob: StoredBlob }[]>
  /** Removes the rows of those that are still loose since before `cutoff` and not taken down; returns which it did. */
  removeLoose(account: AccountId, cids: readonly Cid[], cutoff: number): Promise<Cid[]>
  /** What one account's blobs come to. */
  usage(account: AccountId): Promise<BlobUsage>
  /** What all come to, and the accounts whose blobs take most. Reads every row. */
  usageOfAll(limit: number): Promise<{ total: BlobUsage; accounts: (BlobUsage & { account: Account })[] }>
}

/** Blobs and their bytes; `loose` and `takenDown` are among them. */
export interface BlobUsage {
  blobs: number
  bytes: number
  looseBlobs: number
  looseBytes: number
  takenDown: number
}

/** Records that moderators have taken down. They are not shown by `com.atproto.repo.*`; what is written there next is not either. */
export interface TakedownStore {
  /** The moderator's reference, or null for lifting it. */
  set(account: AccountId, path: string, reference: string | null): Promise<void>
  /** The reference, or null. */
  get(account: AccountId, path: string): Promise<string | null>
  /** All paths of an account. */
  paths(account: AccountId): Promise<Set<string>>
}

/** A record as it comes from another server's database. */
export interface ArrivingRecord extends Omit<Extract<RecordWrite, { action: 'create' | 'update' }>, 'action'> {
  rev: Tid
}

/** An account as another server's database has it: all of it. E-mail and handle are lowercase. */
export interface Arrival extends Omit<Account, 'id' | 'suspendedAt' | 'hasRecordTakedowns'> {
  /** As the other server kept it, if `passwords.ts` can read that. */
  password: string | null
  key: StoredKey
  head: Head
  commit: Block
  preferences: Preference[]
  appPasswords: AppPassword[]
  sessions: Omit<Session, 'account'>[]
  recordTakedowns: { path: string; reference: string }[]
  /** Those whose bytes are in the blob store; `looseSince` counts where no record refers to it. */
  blobs: (Omit<StoredBlob, 'looseSince'> & { looseSince: number })[]
  /** Every node of the tree with the rev that made it; the iterables are made anew for each attempt. */
  nodes(): Iterable<Block & { rev: Tid }>
  records(): Iterable<ArrivingRecord>
}

/** Taking over what another server had, without events: its followers know it already. */
export interface ArrivalStore {
  /** One transaction: an account is here wholly or not at all. @throws Taken */
  add(arrival: Arrival): Promise<AccountId>
  /** Codes and uses that are here already stay as they are. */
  addInvites(codes: InviteCode[]): Promise<void>
}

export interface Store {
  accounts: AccountStore
  arrivals: ArrivalStore
  sessions: SessionStore
  tickets: TicketStore
  repos: RepoStore
  blobs: BlobStore
  takedowns: TakedownStore
  /** What subscribers read. */
  log: Log
  /** Throws if the database does not answer. */
  ping(): Promise<void>
  close(): Promise<void>
}
