/**
 * The tables of a PDS, on SQLite and PostgreSQL alike.
 *
 * Times are milliseconds since 1970, CIDs are binary, `rev` is text. Records and tree nodes lie in rowid tables: on SQLite
 * wide rows in a WITHOUT ROWID table cost three to four times as much.
 */
import type { PostgresDb, SqliteDb } from '@millisky/server/db/db'
import type { Migration } from '@millisky/server/db/migrate'
import { EVENT_LOG_MIGRATION } from '@millisky/server/log/sql'
import { RATE_MIGRATION } from '@millisky/server/rate-postgres'
import { type Generated, type RawBuilder, sql } from 'kysely'

export interface AccountTable {
  id: Generated<number>
  did: string
  handle: string | null
  email: string | null
  email_confirmed_at: number | null
  password: string | null
  created_at: number
  deactivated_at: number | null
  delete_after: number | null
  suspended_at: number | null
  takedown: string | null
  invites_disabled: number
  /** How many of its records are taken down. */
  record_takedowns: Generated<number>
}

/** One row for each account: where its repository stands, and the key that signs it. */
export interface RepoTable {
  account: number
  rev: string
  data: Uint8Array
  cid: Uint8Array
  /** The signed commit whose CID is `cid`. */
  bytes: Uint8Array
  key_curve: string
  key_secret: Uint8Array
}

export interface NodeTable {
  account: number
  cid: Uint8Array
  /** Which commit made it; a node that went and came back has the later one. */
  rev: string
  bytes: Uint8Array
}

export interface RecordTable {
  account: number
  /** `collection/rkey`, in the order of the tree. */
  path: string
  cid: Uint8Array
  rev: string
  bytes: Uint8Array
}

/** Records that are not shown, by the moderator's reference; their bytes and proofs stay. */
export interface RecordTakedownTable {
  account: number
  path: string
  reference: string
}

/** Which records like, follow or repost what. */
export interface RecordSubjectTable {
  account: number
  path: string
  subject: string
}

/** Which records refer to which blobs. */
export interface RecordBlobTable {
  account: number
  path: string
  cid: Uint8Array
  /** That of the record. */
  rev: string
}

export interface BlobTable {
  account: number
  cid: Uint8Array
  mime_type: string
  size: number
  loose_since: number | null
  takedown: string | null
}

export interface PreferenceTable {
  account: number
  position: number
  type: string
  json: string
}

export interface SessionTable {
  id: string
  account: number
  created_at: number
  expires_at: number
  next: string | null
  app_password: string | null
}

export interface AppPasswordTable {
  account: number
  name: string
  password: string
  privileged: number
  created_at: number
}

export interface InviteTable {
  code: string
  uses: number
  disabled: number
  for_account: string
  created_by: string
  created_at: number
}

export interface InviteUseTable {
  code: string
  did: string
  used_at: number
}

export interface EmailTokenTable {
  account: number
  purpose: string
  token: string
  requested_at: number
}

export interface ReservedKeyTable {
  did_key: string
  did: string | null
  curve: string
  secret: Uint8Array
  created_at: number
}

export interface SecretTable {
  name: string
  value: Uint8Array
}

export interface PdsSchema {
  account: AccountTable
  repo: RepoTable
  node: NodeTable
  record: RecordTable
  record_takedown: RecordTakedownTable
  record_subject: RecordSubjectTable
  record_blob: RecordBlobTable
  blob: BlobTable
  preference: PreferenceTable
  session: SessionTable
  app_password: AppPasswordTable
  invite: InviteTable
  invite_use: InviteUseTable
  email_token: EmailTokenTable
  reserved_key: ReservedKeyTable
  secret: SecretTable
}

/** The open database of a PDS. */
export type PdsDb = SqliteDb<PdsSchema> | PostgresDb<PdsSchema>

/** Tables whose rows belong to one account and go with it; `account` itself is not among them. */
export const ACCOUNT_TABLES = [
  'repo',
  'node',
  'record',
  'record_takedown',
  'record_subject',
  'record_blob',
  'blob',
  'preference',
  'session',
  'app_password',
  'email_token',
] as const satisfies readonly (keyof PdsSchema)[]

const tables: Migration = {
  name: 'accounts, repositories, sessions',
  async up(schema, c, kind) {
    // SQLite keeps types only when told to; small rows that are looked up by their key need no second tree.
    const wide = kind === 'sqlite' ? sql` strict` : sql``
    const narrow = kind === 'sqlite' ? sql` strict, without rowid` : sql``
    const run = (query: RawBuilder<unknown>) => query.execute(schema)
    await run(sql`create table account (
      id ${c.id}, did ${c.text} not null unique, handle ${c.text} unique, email ${c.text} unique,
      email_confirmed_at ${c.bigint}, password ${c.text}, created_at ${c.bigint} not null, deactivated_at ${c.bigint},
      delete_after ${c.bigint}, suspended_at ${c.bigint}, takedown ${c.text}, invites_disabled ${c.flag} not null)${wide}`)
    await run(sql`create table repo (
      account ${c.bigint} primary key, rev ${c.text} not null, data ${c.bytes} not null, cid ${c.bytes} not null,
      bytes ${c.bytes} not null, key_curve ${c.text} not null, key_secret ${c.bytes} not null)${wide}`)
    await run(sql`create table node (
      account ${c.bigint} not null, cid ${c.bytes} not null, rev ${c.text} not null, bytes ${c.bytes} not null,
      primary key (account, cid))${wide}`)
    await run(sql`create table record (
      account ${c.bigint} not null, path ${c.text} not null, cid ${c.bytes} not null, rev ${c.text} not null,
      bytes ${c.bytes} not null, primary key (account, path))${wide}`)
    await run(sql`create index record_cid on record (account, cid)`)
    await run(sql`create table record_subject (
      account ${c.bigint} not null, path ${c.text} not null, subject ${c.text} not null,
      primary key (account, path))${narrow}`)
    await run(sql`create index record_subject_subject on record_subject (account, subject)`)
    await run(sql`create table record_blob (
      account ${c.bigint} not null, path ${c.text} not null, cid ${c.bytes} not null, rev ${c.text} not null,
      primary key (account, path, cid))${narrow}`)
    await run(sql`create index record_blob_cid on record_blob (account, cid)`)
    await run(sql`create table blob (
      account ${c.bigint} not null, cid ${c.bytes} not null, mime_type ${c.text} not null, size ${c.bigint} not null,
      loose_since ${c.bigint}, takedown ${c.text}, primary key (account, cid))${narrow}`)
    await run(sql`create index blob_loose on blob (loose_since) where loose_since is not null`)
    await run(sql`create table preference (
      account ${c.bigint} not null, position ${c.integer} not null, type ${c.text} not null, json ${c.text} not null,
      primary key (account, position))${wide}`)
    await run(sql`create table session (
      id ${c.text} primary key, account ${c.bigint} not null, created_at ${c.bigint} not null,
      expires_at ${c.bigint} not null, next ${c.text}, app_password ${c.text})${narrow}`)
    await run(sql`create index session_account on session (account)`)
    await run(sql`create table app_password (
      account ${c.bigint} not null, name ${c.text} not null, password ${c.text} not null, privileged ${c.flag} not null,
      created_at ${c.bigint} not null, primary key (account, name))${narrow}`)
    await run(sql`create table invite (
      code ${c.text} primary key, uses ${c.integer} not null, disabled ${c.flag} not null, for_account ${c.text} not null,
      created_by ${c.text} not null, created_at ${c.bigint} not null)${narrow}`)
    await run(sql`create index invite_for on invite (for_account)`)
    await run(sql`create table invite_use (
      code ${c.text} not null, did ${c.text} not null, used_at ${c.bigint} not null, primary key (code, did))${narrow}`)
    await run(sql`create table email_token (
      account ${c.bigint} not null, purpose ${c.text} not null, token ${c.text} not null,
      requested_at ${c.bigint} not null, primary key (account, purpose))${narrow}`)
    await run(sql`create index email_token_token on email_token (purpose, token)`)
    await run(sql`create table reserved_key (
      did_key ${c.text} primary key, did ${c.text} unique, curve ${c.text} not null, secret ${c.bytes} not null,
      created_at ${c.bigint} not null)${narrow}`)
    await run(sql`create table secret (name ${c.text} primary key, value ${c.bytes} not null)${narrow}`)
  },
}

const takedowns: Migration = {
  name: 'takedowns of records',
  async up(schema, c, kind) {
    const narrow = kind === 'sqlite' ? sql` strict, without rowid` : sql``
    await sql`create table record_takedown (
      account ${c.bigint} not null, path ${c.text} not null, reference ${c.text} not null,
      primary key (account, path))${narrow}`.execute(schema)
    // Nearly nobody has one: so whoever has none pays for no look into the table.
    await sql`alter table account add column record_takedowns ${c.integer} not null default 0`.execute(schema)
  },
}

/** The history of the schema. */
export const migrations: readonly Migration[] = [EVENT_LOG_MIGRATION, tables, takedowns, RATE_MIGRATION]
