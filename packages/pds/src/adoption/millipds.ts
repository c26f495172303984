/**
 * The database of millipds, version 4: one SQLite file with everything in it.
 *
 * Source: pds.md §4.1 for the tables. Its CIDs are binary; a `since` is the rev that made a row.
 */
import { createPrivateKey } from 'node:crypto'
import { Readable } from 'node:stream'
import { type Block, Blocks } from '@millisky/core/blocks'
import { latin1, unbase64url } from '@millisky/core/bytes'
import { decode, type Obj } from '@millisky/core/cbor'
import { Cid } from '@millisky/core/cid'
import { type Did, type Handle, isHandle, normalizeHandle } from '@millisky/core/syntax'
import { ForeignSqlite } from '@millisky/server/db/foreign-sqlite'
import { type BlobUse, findBlobs } from '../records.ts'
import type { Preference, StoredKey } from '../store/store.ts'
import type { ForeignBlob, ForeignRepo, ForeignServer, OpenForeignAccount } from './source.ts'

const VERSION = 4
const CURVES = { secp256k1: 'k256', 'P-256': 'p256' } as const

interface UserRow {
  id: number
  handle: string
  prefs: Uint8Array
  pw_hash: string
  signing_key: string
  rev: string
  commit_bytes: Uint8Array
}

/** Whether a file looks like one. */
export function isMillipds(path: string): boolean {
  const db = new ForeignSqlite(path)
  try {
    const tables = db.tables()
    return ['config', 'user', 'mst', 'record', 'firehose'].every(name => tables.has(name))
  } finally {
    db.close()
  }
}

/** @throws Error when it is of another version */
export function openMillipds(path: string): ForeignServer {
  const db = new ForeignSqlite(path)
  const config = db.get<{ db_version: number; pds_did: string | null; pds_pfx: string | null }>(
    'select db_version, pds_did, pds_pfx from config',
  )
  if (config?.db_version !== VERSION) {
    db.close()
    throw new Error(`a millipds database of version ${config?.db_version}: let millipds bring it to version ${VERSION}`)
  }
  return {
    name: 'millipds',
    did: config.pds_did,
    lastSeq: () => db.get<{ seq: number }>(LAST_SEQ)!.seq,
    dids: () => db.all<{ did: string }>('select did from user order by id').map(row => row.did as Did),
    open: did => openAccount(db, did),
    invites: () => [],
    reservedKeys: () => [],
    remarks: [
      `the old server was ${config.pds_pfx ?? 'nowhere'} (${config.pds_did ?? 'without a DID'}): set PDS_HOSTNAME and PDS_SERVICE_DID to the same`,
      'set no PLC rotation key if its accounts hold their own: then this server signs commits only',
      'its sessions are not taken over: its people sign in again, with the passwords they have',
      'its accounts have no e-mail addresses: set them with: millisky account update <did> --email <address>',
    ],
    close: () => db.close(),
  }
}

const LAST_SEQ = `select max(coalesce((select max(seq) from firehose), 0),
  coalesce((select max(seq) from sqlite_sequence where name = 'firehose'), 0)) as seq`

function openAccount(db: ForeignSqlite, did: Did): OpenForeignAccount {
  const user = db.get<UserRow>(
    'select id, handle, prefs, pw_hash, signing_key, rev, commit_bytes from user where did = ?',
    did,
  )!
  const handle = user.handle.toLowerCase()
  return {
    account: {
      did,
      handle: isHandle(handle) ? normalizeHandle(handle as Handle) : null,
      email: null,
      emailConfirmedAt: null,
      password: user.pw_hash,
      // It does not keep when; the first events are as near as can be.
      createdAt: 0,
      deactivatedAt: null,
      deleteAfter: null,
      takedown: null,
      invitesDisabled: false,
      preferences: preferencesIn(user.prefs),
      appPasswords: [],
      sessions: [],
      recordTakedowns: [],
    },
    key: keyIn(user.signing_key),
    repo: repoOf(db, user),
    blobs: () => blobsOf(db, user.id),
    blob: async ({ cid }) => openBlob(db, user.id, cid),
    close() {},
  }
}

/** `{"preferences":[…]}`, as getPreferences answers it; or the list itself. */
function preferencesIn(bytes: Uint8Array): Preference[] {
  type Item = { $type?: string }
  const json = JSON.parse(Buffer.from(bytes).toString('utf8')) as { preferences?: Item[] } | Item[]
  const items = Array.isArray(json) ? json : (json.preferences ?? [])
  return items.map(item => ({ type: item.$type ?? '', json: JSON.stringify(item) }))
}

function keyIn(pem: string): StoredKey {
  const { crv, d } = createPrivateKey(pem).export({ format: 'jwk' })
  const curve = CURVES[crv as keyof typeof CURVES]
  if (curve === undefined || d === undefined) throw new Error('the signing key is of no curve that repositories use')
  return { curve, secret: unbase64url(d) }
}

function repoOf(db: ForeignSqlite, { id, rev, commit_bytes }: UserRow): ForeignRepo {
  const commit: Block = { cid: Cid.ofCbor(commit_bytes), bytes: commit_bytes }
  const top = new Blocks([commit])
  // Records have no index by CID.
  const records = new Map<string, { nsid: string; rkey: string }>()
  for (const row of db.each<{ nsid: string; rkey: string; cid: Uint8Array }>(
    'select nsid, rkey, cid from record where repo = ?',
    id,
  )) {
    records.set(latin1(row.cid), { nsid: row.nsid, rkey: row.rkey })
  }
  const record = (nsid: string, rkey: string) =>
    db.get<{ cid: Uint8Array; since: string; value: Uint8Array }>(
      'select cid, since, value from record where repo = ? and nsid = ? and rkey = ?',
      id,
      nsid,
      rkey,
    )
  const node = (cid: Cid) =>
    db.get<{ since: string; value: Uint8Array }>(
      'select since, value from mst where repo = ? and cid = ?',
      id,
      cid.bytes,
    )
  return {
    root: commit.cid,
    rev,
    blocks: {
      get(cid) {
        const found = top.get(cid) ?? node(cid)?.value
        if (found) return found
        const at = records.get(latin1(cid.bytes))
        return at && record(at.nsid, at.rkey)?.value
      },
    },
    nodeRev: cid => node(cid)?.since ?? null,
    record(path) {
      const slash = path.indexOf('/')
      const found = record(path.slice(0, slash), path.slice(slash + 1))
      return found ? { cid: Cid.fromBytes(found.cid).toString(), rev: found.since } : null
    },
    recordCount: () => db.get<{ n: number }>('select count(*) as n from record where repo = ?', id)!.n,
  }
}

/** millipds keeps no type of a blob: what a record says of it is taken. */
function* blobsOf(db: ForeignSqlite, id: number): Generator<ForeignBlob> {
  const types = new Map<string, string>()
  for (const { value } of db.each<{ value: Uint8Array }>('select value from record where repo = ?', id)) {
    for (const { cid, mimeType } of blobsIn(value)) types.set(cid.key, mimeType)
  }
  const blobs = db.all<{ cid: Uint8Array; size: number; refcount: number }>(
    `select cid, refcount, coalesce((select sum(length(data)) from blob_part where blob = blob.id), 0) as size
      from blob where repo = ? and cid is not null order by cid`,
    id,
  )
  for (const { cid: bytes, size, refcount } of blobs) {
    const cid = Cid.fromBytes(bytes)
    const mimeType = types.get(cid.key) ?? 'application/octet-stream'
    yield { cid, mimeType, size, takedown: null, isLoose: refcount === 0 }
  }
}

/** What is wrong with a record is found where the repository is verified. */
function blobsIn(record: Uint8Array): BlobUse[] {
  try {
    return findBlobs(decode(record) as Obj)
  } catch {
    return []
  }
}

function openBlob(db: ForeignSqlite, id: number, cid: Cid): Readable {
  function* parts(): Generator<Uint8Array> {
    const rows = db.each<{ data: Uint8Array }>(
      'select data from blob_part join blob on blob.id = blob_part.blob where repo = ? and cid = ? order by idx',
      id,
      cid.bytes,
    )
    for (const { data } of rows) yield data
  }
  return Readable.from(parts())
}
