/** What another server's data look like to {@link Adoption}, whichever program wrote them. */
import type { Readable } from 'node:stream'
import type { BlockSource } from '@millisky/core/blocks'
import type { Cid } from '@millisky/core/cid'
import type { Did, Tid } from '@millisky/core/syntax'
import type { Arrival, InviteCode, StoredBlob, StoredKey } from '../store/store.ts'

/** One account's blob as the other server knows it. */
export interface ForeignBlob extends Omit<StoredBlob, 'looseSince'> {
  /** Uploaded, and no record has referred to it yet. */
  isLoose: boolean
}

/** A repository as it lies in the other server's database. */
export interface ForeignRepo {
  /** CID of the signed commit at the head. */
  root: Cid
  /** The head's rev as the database says beside the commit. */
  rev: string
  /** Commit, nodes and records. Nothing is checked. */
  blocks: BlockSource
  /** Which rev made a node; null if unknown. */
  nodeRev(cid: Cid): string | null
  /** What the server's own list of records, beside the tree, has of one. */
  record(path: string): { cid: string; rev: string } | null
  /** How many that list has. */
  recordCount(): number
}

/** What of an account is known before its repository is looked at. */
export type ForeignAccount = Omit<Arrival, 'head' | 'commit' | 'key' | 'blobs' | 'nodes' | 'records'>

/** One account, open. Close it before the next is opened. */
export interface OpenForeignAccount {
  account: ForeignAccount
  key: StoredKey
  repo: ForeignRepo
  blobs(): Iterable<ForeignBlob>
  /** The bytes, or null if they are not there. */
  blob(blob: ForeignBlob): Promise<Readable | null>
  close(): void
}

/** Another server's data, at rest. */
export interface ForeignServer {
  /** What it is, for people. */
  readonly name: string
  /** Of this server, as it was. Null where the data do not tell. */
  readonly did: string | null
  /** The last seq that its event stream has given; asked again, it tells whether the server still runs. */
  lastSeq(): number
  dids(): Did[]
  /** @throws Error when it cannot be read */
  open(did: Did): OpenForeignAccount
  invites(): InviteCode[]
  /** Keys that were reserved for accounts to come. */
  reservedKeys(): { did: Did | null; key: StoredKey }[]
  /** Sentences about what is not taken over, and what is to be done by hand. No secrets. */
  readonly remarks: readonly string[]
  close(): void
}

/** A rev that a database gives, if it can be one of a repository at `head`; else the head's own. */
export function revWithin(rev: string | null, head: Tid): Tid {
  return rev !== null && rev.length === head.length && rev <= head ? (rev as Tid) : head
}
