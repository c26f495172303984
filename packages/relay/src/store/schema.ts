/** The tables of a Relay, on SQLite and PostgreSQL alike. */
import type { Migration } from '@millisky/server/db/migrate'
import { type Generated, type RawBuilder, sql } from 'kysely'

export interface HostTable {
  id: Generated<number>
  hostname: string
  no_tls: number
  status: string
  reason: string | null
  status_at: number
  created_at: number
  by_admin: number
  cursor: number | null
  policy: string
  pinned: number
  streak: number
  accounts: number
  account_limit: number | null
  per_second: number | null
  per_hour: number | null
  per_day: number | null
  growth: Generated<number>
  growth_at: Generated<number>
  /** JSON array of notes. */
  history: string
}

/** About 150 bytes an account, keyed by the DID itself so that there is one tree and no second index. */
export interface AccountTable {
  did: string
  host: number | null
  rev: string | null
  data: Uint8Array | null
  cid: Uint8Array | null
  active: number
  status: string | null
  local: string | null
}

export interface DomainBanTable {
  domain: string
  created_at: number
}

export interface SettingTable {
  name: string
  value: string
}

export interface AuditTable {
  id: Generated<number>
  at: number
  address: string
  action: string
  params: string
  status: number
}

/** See `identities.ts` for the forms. */
export interface KnownIdentityTable {
  did: Uint8Array
  /** Seconds since 1970. */
  at: number
  key: Uint8Array | null
  origin: number | null
  handle: string | null
}

/** Origins of PDSs that identities name. */
export interface OriginTable {
  id: Generated<number>
  origin: string
}

/** What is needed to judge the next operation of a did:plc; see `plc.ts`. */
export interface PlcChainTable {
  did: Uint8Array
  chain: Uint8Array
}

/** DIDs with an operation that a directory took and that breaks the rules. */
export interface PlcRefusedTable {
  did: string
  seq: number
  reason: string
}

/** What sibling relays are still to be told, the oldest first. */
export interface OutboxTable {
  id: Generated<number>
  sibling: string
  path: string
  body: string
  at: number
  attempts: Generated<number>
  next_at: Generated<number>
  error: string | null
}

/** Which accounts have records of which collections; see `directory.ts`. */
export interface CollectionTable {
  collection: string
  did: string
}

/** What this relay has signed of its log; see `checkpoints.ts`. */
export interface CheckpointTable {
  last: number
  cid: Uint8Array
  /** DAG-CBOR. */
  bytes: Uint8Array
}

export interface RelaySchema {
  checkpoint: CheckpointTable
  collection: CollectionTable
  outbox: OutboxTable
  known_identity: KnownIdentityTable
  origin: OriginTable
  plc_chain: PlcChainTable
  plc_refused: PlcRefusedTable
  audit: AuditTable
  host: HostTable
  account: AccountTable
  domain_ban: DomainBanTable
  setting: SettingTable
}

const tables: Migration = {
  name: 'hosts, accounts, bans, settings',
  async up(schema, c, kind) {
    const wide = kind === 'sqlite' ? sql` strict` : sql``
    const narrow = kind === 'sqlite' ? sql` strict, without rowid` : sql``
    const run = (query: RawBuilder<unknown>) => query.execute(schema)
    await run(sql`create table host (
      id ${c.id}, hostname ${c.text} not null unique, no_tls ${c.flag} not null, status ${c.text} not null,
      reason ${c.text}, status_at ${c.bigint} not null, created_at ${c.bigint} not null, by_admin ${c.flag} not null,
      cursor ${c.bigint}, policy ${c.text} not null, pinned ${c.flag} not null, streak ${c.integer} not null,
      accounts ${c.integer} not null, account_limit ${c.integer}, history ${c.json} not null)${wide}`)
    await run(sql`create table account (
      did ${c.text} primary key, host ${c.bigint}, rev ${c.text}, data ${c.bytes}, cid ${c.bytes},
      active ${c.flag} not null, status ${c.text}, local ${c.text})${narrow}`)
    await run(sql`create index account_local on account (did) where local is not null`)
    await run(sql`create table domain_ban (domain ${c.text} primary key, created_at ${c.bigint} not null)${narrow}`)
    await run(sql`create table setting (name ${c.text} primary key, value ${c.text} not null)${narrow}`)
  },
}

const quotas: Migration = {
  name: 'limits of hosts',
  async up(schema, c) {
    const run = (query: RawBuilder<unknown>) => query.execute(schema)
    for (const column of ['per_second', 'per_hour', 'per_day']) {
      await run(sql`alter table host add column ${sql.ref(column)} ${c.bigint}`)
    }
    await run(sql`alter table host add column growth ${c.integer} not null default 0`)
    await run(sql`alter table host add column growth_at ${c.bigint} not null default 0`)
  },
}

const audit: Migration = {
  name: 'what administrators did',
  async up(schema, c, kind) {
    const wide = kind === 'sqlite' ? sql` strict` : sql``
    await sql`create table audit (
      id ${c.id}, at ${c.bigint} not null, address ${c.text} not null, action ${c.text} not null,
      params ${c.text} not null, status ${c.integer} not null)${wide}`.execute(schema)
  },
}

const identities: Migration = {
  name: 'identities',
  async up(schema, c, kind) {
    const narrow = kind === 'sqlite' ? sql` strict, without rowid` : sql``
    await sql`create table identity (
      did ${c.text} primary key, at ${c.bigint} not null, key ${c.text}, pds ${c.text}, handle ${c.text})${narrow}`.execute(
      schema,
    )
  },
}

const outbox: Migration = {
  name: 'outbox for siblings',
  async up(schema, c, kind) {
    const wide = kind === 'sqlite' ? sql` strict` : sql``
    await sql`create table outbox (
      id ${c.id}, sibling ${c.text} not null, path ${c.text} not null, body ${c.text} not null, at ${c.bigint} not null,
      attempts ${c.integer} not null default 0, next_at ${c.bigint} not null default 0, error ${c.text})${wide}`.execute(
      schema,
    )
    await sql`create index outbox_sibling on outbox (sibling, id)`.execute(schema)
    await sql`create index audit_at on audit (at)`.execute(schema)
  },
}

const directory: Migration = {
  name: 'collections of accounts, checkpoints of the log',
  async up(schema, c, kind) {
    const narrow = kind === 'sqlite' ? sql` strict, without rowid` : sql``
    await sql`create table collection (
      collection ${c.text} not null, did ${c.text} not null, primary key (collection, did))${narrow}`.execute(schema)
    await sql`create index collection_did on collection (did)`.execute(schema)
    await sql`create table checkpoint (
      last ${c.bigint} primary key, cid ${c.bytes} not null, bytes ${c.bytes} not null)${narrow}`.execute(schema)
  },
}

/** Those from before are asked for again: they are only what others know. */
const compactIdentities: Migration = {
  name: 'identities in a hundred bytes, chains of did:plc',
  async up(schema, c, kind) {
    const wide = kind === 'sqlite' ? sql` strict` : sql``
    const narrow = kind === 'sqlite' ? sql` strict, without rowid` : sql``
    const run = (query: RawBuilder<unknown>) => query.execute(schema)
    await run(sql`drop table identity`)
    await run(sql`create table origin (id ${c.id}, origin ${c.text} not null unique)${wide}`)
    await run(sql`create table known_identity (
      did ${c.bytes} primary key, at ${c.bigint} not null, key ${c.bytes}, origin ${c.bigint}, handle ${c.text})${narrow}`)
    await run(sql`create table plc_chain (did ${c.bytes} primary key, chain ${c.bytes} not null)${narrow}`)
    await run(
      sql`create table plc_refused (did ${c.text} primary key, seq ${c.bigint} not null, reason ${c.text} not null)${narrow}`,
    )
  },
}

export const migrations: readonly Migration[] = [
  tables,
  quotas,
  audit,
  identities,
  outbox,
  directory,
  compactIdentities,
]
