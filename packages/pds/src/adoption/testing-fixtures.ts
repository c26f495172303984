/**
 * Data of other servers, written as those servers write them, for tests without them.
 *
 * Source: the migrations of `@atproto/pds` 0.5.35; pds.md §4.1 for millipds version 4.
 */
import { createECDH, createHash, createPrivateKey, scryptSync } from 'node:crypto'
import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { type Block, Blocks } from '@millisky/core/blocks'
import { base64url } from '@millisky/core/bytes'
import { encode, type Obj } from '@millisky/core/cbor'
import { Cid } from '@millisky/core/cid'
import type { Curve } from '@millisky/core/crypto'
import { SigningKey } from '@millisky/core/crypto'
import { apply, type Change, type Write } from '@millisky/core/repo'
import { asDatetime, type Did } from '@millisky/core/syntax'
import { testDid } from '@millisky/core/testing-repos'
import { encodeTid } from '@millisky/core/tid'

export interface FixtureRecord {
  path: string
  value: Obj
}

/** One person of the other server, with a repository of several commits. */
export interface FixturePerson {
  name: string
  did: Did
  secret: Uint8Array
  curve: Curve
  head: Change['head']
  commit: Block
  /** Every node and record with the rev that made it. */
  blocks: (Block & { rev: string })[]
  records: { path: string; cid: Cid; rev: string; bytes: Uint8Array }[]
  blobs: { bytes: Uint8Array; cid: Cid; mimeType: string }[]
}

export const PASSWORD = 'a password from before'
export const SALT = '00112233445566778899aabbccddeeff'
export const SCRYPT = `${SALT}:${scryptSync(PASSWORD, SALT, 64).toString('hex')}`
export const TIME = asDatetime('2025-03-04T05:06:07.000Z')
export const PICTURE = new TextEncoder().encode('a picture')

export function blobOf(bytes: Uint8Array, mimeType = 'image/png'): Obj {
  return { $type: 'blob', ref: Cid.ofRaw(bytes), mimeType, size: bytes.length }
}

/** @param count - Posts, one in each commit; the last is removed again. */
export function fixturePerson(name: string, { count = 30, curve = 'k256' as Curve } = {}): FixturePerson {
  const did = testDid(name)
  const secret = new Uint8Array(createHash('sha256').update(`secret of ${name}`).digest())
  const key = SigningKey.fromPrivate(curve, secret)
  const blocks = new Blocks()
  const revs = new Map<string, string>()
  const records = new Map<string, FixturePerson['records'][number]>()
  let head: Change['head'] | null = null
  let commit!: Block
  const write = (writes: Write[], n: number) => {
    const rev = encodeTid(1_700_000_000_000_000 + n * 1_000, 1)
    const change: Change = apply({ did, head, blocks, writes, rev, key })
    for (const node of change.nodes) {
      blocks.add(node)
      revs.set(node.cid.key, rev)
    }
    for (const cid of change.lost) blocks.delete(cid)
    for (const one of writes) {
      if (one.action === 'delete') records.delete(one.path)
      else records.set(one.path, { path: one.path, cid: one.cid, rev, bytes: one.bytes })
    }
    head = change.head
    commit = change.commit
  }
  const create = (path: string, value: Obj): Write => {
    const bytes = encode(value)
    return { action: 'create', path, bytes, cid: Cid.ofCbor(bytes) }
  }
  write([], 0)
  for (let i = 1; i <= count; i++) {
    const text = { $type: 'app.bsky.feed.post', text: `post ${i}`, createdAt: TIME }
    const value =
      i === 1
        ? { ...text, embed: { $type: 'app.bsky.embed.images', images: [{ alt: '', image: blobOf(PICTURE) }] } }
        : text
    write([create(`app.bsky.feed.post/${encodeTid(i * 1_000, 1)}`, value)], i)
  }
  const followed = { $type: 'app.bsky.graph.follow', subject: testDid('somebody'), createdAt: TIME }
  write([create('app.bsky.graph.follow/3kfollow22222', followed)], count + 1)
  write([{ action: 'delete', path: `app.bsky.feed.post/${encodeTid(count * 1_000, 1)}` }], count + 2)
  const nodes = [...blocks].map(block => ({ ...block, rev: revs.get(block.cid.key)! }))
  const kept = [...records.values()]
  return {
    name,
    did,
    secret,
    curve,
    head: head!,
    commit,
    blocks: [...nodes, ...kept.map(({ cid, bytes, rev }) => ({ cid, bytes, rev }))],
    records: kept,
    blobs: [{ bytes: PICTURE, cid: Cid.ofRaw(PICTURE), mimeType: 'image/png' }],
  }
}

const ACCOUNT_TABLES = `
  create table "app_password" ("did" varchar not null, "name" varchar not null, "passwordScrypt" varchar not null,
    "createdAt" varchar not null, "privileged" integer default 0 not null, constraint "app_password_pkey" primary key ("did", "name"));
  create table "invite_code" ("code" varchar primary key, "availableUses" integer not null, "disabled" int2 default 0,
    "forAccount" varchar not null, "createdBy" varchar not null, "createdAt" varchar not null);
  create table "invite_code_use" ("code" varchar not null, "usedBy" varchar not null, "usedAt" varchar not null,
    constraint "invite_code_use_pkey" primary key ("code", "usedBy"));
  create table "refresh_token" ("id" varchar primary key, "did" varchar not null, "expiresAt" varchar not null,
    "nextId" varchar, "appPasswordName" varchar);
  create table "repo_root" ("did" varchar primary key, "cid" varchar not null, "rev" varchar not null, "indexedAt" varchar not null);
  create table "actor" ("did" varchar primary key, "handle" varchar, "createdAt" varchar not null, "takedownRef" varchar,
    "deactivatedAt" varchar, "deleteAfter" varchar);
  create table "account" ("did" varchar primary key, "email" varchar not null, "passwordScrypt" varchar not null,
    "emailConfirmedAt" varchar, "invitesDisabled" int2 default 0 not null);
  create table "email_token" ("purpose" varchar not null, "did" varchar not null, "token" varchar not null,
    "requestedAt" varchar not null, constraint "email_token_pkey" primary key ("purpose", "did"));
  create table "token" ("id" integer primary key autoincrement, "did" varchar not null, "tokenId" varchar not null)`

const ACTOR_TABLES = `
  create table "repo_root" ("did" varchar primary key, "cid" varchar not null, "rev" varchar not null, "indexedAt" varchar not null);
  create table "repo_block" ("cid" varchar primary key, "repoRev" varchar not null, "size" integer not null, "content" blob not null);
  create table "record" ("uri" varchar primary key, "cid" varchar not null, "collection" varchar not null, "rkey" varchar not null,
    "repoRev" varchar not null, "indexedAt" varchar not null, "takedownRef" varchar);
  create table "blob" ("cid" varchar primary key, "mimeType" varchar not null, "size" integer not null, "tempKey" varchar,
    "width" integer, "height" integer, "createdAt" varchar not null, "takedownRef" varchar);
  create table "record_blob" ("blobCid" varchar not null, "recordUri" varchar not null,
    constraint "record_blob_pkey" primary key ("blobCid", "recordUri"));
  create table "backlink" ("uri" varchar not null, "path" varchar not null, "linkTo" varchar not null,
    constraint "backlinks_pkey" primary key ("uri", "path"));
  create table "account_pref" ("id" integer primary key autoincrement, "name" varchar not null, "valueJson" text not null)`

const SEQUENCER_TABLES = `
  create table "repo_seq" ("seq" integer primary key autoincrement, "did" varchar not null, "eventType" varchar not null,
    "event" blob not null, "invalidated" int2 default 0 not null, "sequencedAt" varchar not null)`

/** Where the reference keeps an account. */
export function actorFolder(folder: string, did: Did): string {
  return join(folder, 'actors', createHash('sha256').update(did).digest('hex').slice(0, 2), did)
}

/** Writes a data directory of the reference, with `pds.env` naming it `/pds` as in its container. */
export async function writeReference(folder: string, people: FixturePerson[]): Promise<void> {
  await mkdir(folder, { recursive: true })
  const accounts = new DatabaseSync(join(folder, 'account.sqlite'))
  accounts.exec('pragma journal_mode = wal')
  accounts.exec(ACCOUNT_TABLES)
  const insert = (db: DatabaseSync, table: string, ...values: (string | number | Uint8Array | null)[]) =>
    db.prepare(`insert into "${table}" values (${values.map(() => '?').join(', ')})`).run(...values)
  for (const person of people) {
    const { did, name } = person
    insert(accounts, 'actor', did, `${name}.test`, TIME, null, name === 'carol' ? TIME : null, null)
    insert(accounts, 'account', did, `${name}@example.com`, SCRYPT, name === 'alice' ? TIME : null, 0)
    insert(accounts, 'app_password', did, 'phone', SCRYPT, TIME, 1)
    insert(accounts, 'refresh_token', `token of ${name}`, did, '2100-01-01T00:00:00.000Z', null, null)
    await writeActor(folder, person, insert)
  }
  insert(accounts, 'invite_code', 'pds-test-abcde', 2, 0, 'admin', 'admin', TIME)
  insert(accounts, 'invite_code_use', 'pds-test-abcde', people[0]!.did, TIME)
  accounts.close()
  const sequencer = new DatabaseSync(join(folder, 'sequencer.sqlite'))
  sequencer.exec(SEQUENCER_TABLES)
  for (let seq = 1; seq <= 41; seq++)
    insert(sequencer, 'repo_seq', seq, people[0]!.did, 'append', new Uint8Array(1), 0, TIME)
  sequencer.exec('delete from repo_seq where seq > 20')
  sequencer.close()
  const env = {
    PDS_HOSTNAME: 'pds.example.com',
    PDS_DATA_DIRECTORY: '/pds',
    PDS_BLOBSTORE_DISK_LOCATION: '/pds/blocks',
    PDS_JWT_SECRET: 'jwt secret of before',
    PDS_ADMIN_PASSWORD: 'admin password of before',
    PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX: '33'.repeat(32),
  }
  await writeFile(
    join(folder, 'pds.env'),
    Object.entries(env)
      .map(line => line.join('='))
      .join('\n'),
  )
}

async function writeActor(
  folder: string,
  { did, secret, head, commit, blocks, records, blobs }: FixturePerson,
  insert: (db: DatabaseSync, table: string, ...values: (string | number | Uint8Array | null)[]) => void,
): Promise<void> {
  const actor = actorFolder(folder, did)
  await mkdir(actor, { recursive: true })
  await mkdir(join(folder, 'blocks', did), { recursive: true })
  await writeFile(join(actor, 'key'), secret)
  const store = new DatabaseSync(join(actor, 'store.sqlite'))
  store.exec(ACTOR_TABLES)
  insert(store, 'repo_root', did, head.commit.toString(), head.rev, TIME)
  const all = new Map([...blocks, { ...commit, rev: head.rev }].map(block => [block.cid.key, block]))
  for (const { cid, bytes, rev } of all.values()) insert(store, 'repo_block', cid.toString(), rev, bytes.length, bytes)
  for (const { path, cid, rev } of records) {
    const [collection, rkey] = path.split('/') as [string, string]
    insert(store, 'record', `at://${did}/${path}`, cid.toString(), collection, rkey, rev, TIME, null)
  }
  for (const { cid, bytes, mimeType } of blobs) {
    insert(store, 'blob', cid.toString(), mimeType, bytes.length, null, null, null, TIME, null)
    insert(store, 'record_blob', cid.toString(), `at://${did}/${records[0]!.path}`)
    await writeFile(join(folder, 'blocks', did, cid.toString()), bytes)
  }
  insert(
    store,
    'account_pref',
    1,
    'app.bsky.actor.defs#adultContentPref',
    JSON.stringify({ $type: 'app.bsky.actor.defs#adultContentPref', enabled: true }),
  )
  store.close()
}

const MILLIPDS_TABLES = `
  create table config (db_version integer not null, pds_pfx text, pds_did text, auth_pfx text, bsky_appview_pfx text,
    bsky_appview_did text, jwt_access_secret text not null) strict;
  create table user (id integer primary key not null, did text not null, handle text not null, prefs blob not null,
    pw_hash text not null, signing_key text not null, head blob not null, rev text not null, commit_bytes blob not null) strict;
  create unique index user_by_did on user (did);
  create unique index user_by_handle on user (handle);
  create table firehose (seq integer primary key autoincrement not null, timestamp integer not null, msg blob not null) strict;
  create table mst (repo integer not null, cid blob not null, since text not null, value blob not null,
    primary key (repo, cid)) strict, without rowid;
  create table record (repo integer not null, nsid text not null, rkey text not null, cid blob not null, since text not null,
    value blob not null, primary key (repo, nsid, rkey)) strict, without rowid;
  create table blob (id integer primary key not null, repo integer not null, cid blob, refcount integer not null, since text) strict;
  create unique index blob_by_cid on blob (repo, cid);
  create table blob_part (blob integer not null, idx integer not null, data blob not null, primary key (blob, idx)) strict, without rowid;
  create table did_cache (did text primary key not null, doc blob, created_at integer not null, expires_at integer not null) strict`

/** Writes a database of millipds. @param hash - Of everybody's password. */
export function writeMillipds(path: string, people: FixturePerson[], hash: string, version = 4): void {
  const db = new DatabaseSync(path)
  db.exec(MILLIPDS_TABLES)
  db.prepare('insert into config values (?, ?, ?, null, null, null, ?)').run(
    version,
    'https://pds.example.com',
    'did:web:pds.example.com',
    'jwt secret of before',
  )
  for (const [i, { did, name, secret, curve, head, commit, blocks, records, blobs }] of people.entries()) {
    const isRecord = new Set(records.map(record => record.cid.key))
    db.prepare('insert into user values (?, ?, ?, ?, ?, ?, ?, ?, ?)').run(
      i + 1,
      did,
      `${name}.test`,
      Buffer.from(JSON.stringify({ preferences: [{ $type: 'app.bsky.actor.defs#adultContentPref', enabled: true }] })),
      hash,
      pemOf(secret, curve),
      head.commit.bytes,
      head.rev,
      commit.bytes,
    )
    for (const { cid, bytes, rev } of blocks) {
      if (!isRecord.has(cid.key)) db.prepare('insert into mst values (?, ?, ?, ?)').run(i + 1, cid.bytes, rev, bytes)
    }
    for (const { path, cid, rev, bytes } of records) {
      db.prepare('insert into record values (?, ?, ?, ?, ?, ?)').run(
        i + 1,
        ...(path.split('/') as [string, string]),
        cid.bytes,
        rev,
        bytes,
      )
    }
    for (const [n, { cid, bytes }] of blobs.entries()) {
      const id = (i + 1) * 100 + n
      db.prepare('insert into blob values (?, ?, ?, 1, ?)').run(id, i + 1, cid.bytes, head.rev)
      for (let idx = 0; idx * 4 < bytes.length; idx++) {
        db.prepare('insert into blob_part values (?, ?, ?)').run(id, idx, bytes.slice(idx * 4, idx * 4 + 4))
      }
    }
  }
  for (let seq = 1; seq <= 41; seq++) db.prepare('insert into firehose values (?, 0, ?)').run(seq, new Uint8Array(1))
  db.close()
}

function pemOf(secret: Uint8Array, curve: Curve): string {
  const ecdh = createECDH(curve === 'k256' ? 'secp256k1' : 'prime256v1')
  ecdh.setPrivateKey(secret)
  const point = new Uint8Array(ecdh.getPublicKey())
  const [x, y] = [point.subarray(1, 33), point.subarray(33)].map(base64url) as [string, string]
  const jwk = { kty: 'EC', crv: curve === 'k256' ? 'secp256k1' : 'P-256', x, y, d: base64url(secret) }
  return createPrivateKey({ key: jwk, format: 'jwk' }).export({ type: 'pkcs8', format: 'pem' }) as string
}
