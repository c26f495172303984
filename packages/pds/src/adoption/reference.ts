/**
 * The data directory of the reference PDS: `pds.env`, `account.sqlite`, `sequencer.sqlite`, and for each account
 * `actors/<2>/<did>/{store.sqlite,key}`; blobs in files `<did>/<cid>`.
 *
 * Source: migrations of `@atproto/pds` 0.5.35; columns that older versions lack are done without.
 */
import { createHash } from 'node:crypto'
import { createReadStream, existsSync, readdirSync, readFileSync } from 'node:fs'
import { isAbsolute, join, relative, resolve } from 'node:path'
import type { Readable } from 'node:stream'
import { parseEnv } from 'node:util'
import { Cid } from '@millisky/core/cid'
import { type Did, type Handle, isDid, isHandle, normalizeHandle } from '@millisky/core/syntax'
import { ForeignSqlite } from '@millisky/server/db/foreign-sqlite'
import type { InviteCode, StoredKey } from '../store/store.ts'
import { REFRESH_MS } from '../tokens.ts'
import type { ForeignAccount, ForeignBlob, ForeignRepo, ForeignServer, OpenForeignAccount } from './source.ts'

const KEY_BYTES = 32

export interface ReferencePaths {
  /** The folder with `account.sqlite`. */
  folder: string
  /** Default: `pds.env` in the folder. */
  envFile?: string | undefined
  /** Folder of blobs, if not where the settings say. */
  blobs?: string | undefined
}

type Env = Record<string, string | undefined>

interface AccountRow {
  handle: string | null
  createdAt: string
  takedownRef: string | null
  deactivatedAt: string | null
  deleteAfter: string | null
  email: string | null
  passwordScrypt: string | null
  emailConfirmedAt: string | null
  invitesDisabled: number | null
}

/** Whether a folder looks like one. */
export const isReferenceFolder = (folder: string): boolean => existsSync(join(folder, 'account.sqlite'))

/** @throws Error when the databases are not there */
export function openReference({ folder, envFile, blobs }: ReferencePaths): ForeignServer {
  const env = readEnv(envFile ?? join(folder, 'pds.env'), envFile !== undefined)
  const place = (variable: string, otherwise: string) => placed(env, folder, variable) ?? join(folder, otherwise)
  const accounts = new ForeignSqlite(place('PDS_ACCOUNT_DB_LOCATION', 'account.sqlite'))
  const sequencer = new ForeignSqlite(place('PDS_SEQUENCER_DB_LOCATION', 'sequencer.sqlite'))
  const actors = place('PDS_ACTOR_STORE_DIRECTORY', 'actors')
  const blobFolder = blobs ?? placed(env, folder, 'PDS_BLOBSTORE_DISK_LOCATION') ?? guessedBlobs(folder)
  const staged = placed(env, folder, 'PDS_BLOBSTORE_DISK_TMP_LOCATION') ?? join(blobFolder, 'tempt')
  return {
    name: 'the reference PDS',
    did: env.PDS_SERVICE_DID ?? (env.PDS_HOSTNAME ? `did:web:${env.PDS_HOSTNAME}` : null),
    lastSeq: () => sequencer.get<{ seq: number }>(LAST_SEQ)!.seq,
    dids: () => accounts.all<{ did: string }>('select did from actor order by did').map(row => row.did as Did),
    open: did => openAccount(did, accounts, actors, { kept: blobFolder, staged }),
    invites: () => invitesIn(accounts),
    reservedKeys: () => reservedIn(join(actors, 'reserved_keys')),
    remarks: remarksOn(env, accounts),
    close() {
      accounts.close()
      sequencer.close()
    },
  }
}

// The rows may have been pruned, the counter goes on.
const LAST_SEQ = `select max(coalesce((select max(seq) from repo_seq), 0),
  coalesce((select max(seq) from sqlite_sequence where name = 'repo_seq'), 0)) as seq`

function readEnv(path: string, isRequired: boolean): Env {
  if (!isRequired && !existsSync(path)) return {}
  return parseEnv(readFileSync(path, 'utf8')) as Env
}

/** Where a setting points: a path below the old data directory is looked for below the folder, wherever that lies now. */
function placed(env: Env, folder: string, variable: string): string | undefined {
  const path = env[variable]
  if (!path) return undefined
  const old = env.PDS_DATA_DIRECTORY
  const inside = old === undefined ? '..' : relative(resolve(old), resolve(path))
  if (inside.startsWith('..') || isAbsolute(inside)) return path
  return join(folder, inside)
}

function guessedBlobs(folder: string): string {
  return ['blocks', 'blobs'].map(name => join(folder, name)).find(existsSync) ?? join(folder, 'blobs')
}

function remarksOn(env: Env, accounts: ForeignSqlite): string[] {
  const remarks: string[] = []
  const wanted = ['PDS_JWT_SECRET', 'PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX', 'PDS_ADMIN_PASSWORD', 'PDS_HOSTNAME']
  const set = [...wanted, 'PDS_SERVICE_DID', 'PDS_RECOVERY_DID_KEY'].filter(name => env[name])
  if (set.length > 0) {
    remarks.push(`keep these variables as they are in pds.env, so that tokens and DIDs stay valid: ${set.join(', ')}`)
  } else {
    remarks.push(`no pds.env was found: set ${wanted.join(', ')} to what the old server had`)
  }
  if (env.PDS_PLC_ROTATION_KEY_KMS_KEY_ID) {
    remarks.push(
      'the PLC rotation key lies in a key service (KMS), which this server does not ask: DIDs are changed by hand',
    )
  }
  if (env.PDS_BLOBSTORE_S3_BUCKET) {
    remarks.push(
      'blobs lie in S3: with the same PDS_BLOBSTORE_S3_* settings they are verified where they lie; others are to be fetched into a folder <did>/<cid> first, named with --blobs',
    )
  }
  const tables = accounts.tables()
  const { n } = tables.has('token') ? accounts.get<{ n: number }>('select count(*) as n from token')! : { n: 0 }
  if (n > 0) remarks.push(`${n} OAuth sessions are not taken over: their people sign in again`)
  return remarks
}

function openAccount(
  did: Did,
  accounts: ForeignSqlite,
  actors: string,
  blobs: { kept: string; staged: string },
): OpenForeignAccount {
  if (!isDid(did) || did.includes('/')) throw new Error('not a DID')
  const folder = join(actors, createHash('sha256').update(did).digest('hex').slice(0, 2), did)
  const secret = new Uint8Array(readFileSync(join(folder, 'key')))
  if (secret.length !== KEY_BYTES) throw new Error(`the signing key has ${secret.length} bytes`)
  const store = new ForeignSqlite(join(folder, 'store.sqlite'))
  try {
    return {
      account: accountOf(did, accounts, store),
      key: { curve: 'k256', secret },
      repo: repoOf(did, store),
      blobs: () => blobsOf(store),
      blob: ({ cid, isLoose }) => openBlob(did, cid, isLoose ? stagedName(store, cid) : null, blobs),
      close: () => store.close(),
    }
  } catch (error) {
    store.close()
    throw error
  }
}

function accountOf(did: Did, accounts: ForeignSqlite, store: ForeignSqlite): ForeignAccount {
  const has = accounts.columns('actor')
  const ifThere = (column: string) => (has.has(column) ? `actor.${column}` : `null as ${column}`)
  const row = accounts.get<AccountRow>(
    `select actor.handle, actor.createdAt, actor.takedownRef, ${ifThere('deactivatedAt')}, ${ifThere('deleteAfter')},
      account.email, account.passwordScrypt, account.emailConfirmedAt, account.invitesDisabled
      from actor left join account on account.did = actor.did where actor.did = ?`,
    did,
  )!
  const handle = row.handle?.toLowerCase() ?? null
  return {
    did,
    handle: handle !== null && isHandle(handle) ? normalizeHandle(handle as Handle) : null,
    email: row.email?.toLowerCase() ?? null,
    emailConfirmedAt: timeOf(row.emailConfirmedAt),
    password: row.passwordScrypt,
    createdAt: timeOf(row.createdAt) ?? 0,
    deactivatedAt: timeOf(row.deactivatedAt),
    deleteAfter: timeOf(row.deleteAfter),
    takedown: row.takedownRef,
    invitesDisabled: row.invitesDisabled === 1,
    ...credentialsOf(did, accounts),
    preferences: store
      .all<{ name: string; valueJson: string }>('select name, valueJson from account_pref order by id')
      .map(({ name, valueJson }) => ({ type: name, json: valueJson })),
    recordTakedowns: store
      .all<{ path: string; reference: string }>(
        "select collection || '/' || rkey as path, takedownRef as reference from record where takedownRef is not null",
      )
      .map(({ path, reference }) => ({ path, reference })),
  }
}

function credentialsOf(did: Did, accounts: ForeignSqlite): Pick<ForeignAccount, 'appPasswords' | 'sessions'> {
  const privileged = accounts.columns('app_password').has('privileged') ? 'privileged' : '0 as privileged'
  const passwords = accounts.all<{ name: string; passwordScrypt: string; createdAt: string; privileged: number }>(
    `select name, passwordScrypt, createdAt, ${privileged} from app_password where did = ?`,
    did,
  )
  const tokens = accounts.all<{ id: string; expiresAt: string; nextId: string | null; appPasswordName: string | null }>(
    'select id, expiresAt, nextId, appPasswordName from refresh_token where did = ?',
    did,
  )
  return {
    appPasswords: passwords.map(({ name, passwordScrypt, createdAt, privileged }) => {
      return { name, password: passwordScrypt, privileged: privileged === 1, createdAt: timeOf(createdAt) ?? 0 }
    }),
    sessions: tokens.map(({ id, expiresAt, nextId, appPasswordName }) => {
      const end = timeOf(expiresAt) ?? 0
      return { id, createdAt: end - REFRESH_MS, expiresAt: end, next: nextId, appPassword: appPasswordName }
    }),
  }
}

function repoOf(did: Did, store: ForeignSqlite): ForeignRepo {
  const root = store.get<{ cid: string; rev: string }>('select cid, rev from repo_root')
  if (!root) throw new Error('there is no repository')
  return {
    root: Cid.parse(root.cid),
    rev: root.rev,
    blocks: {
      get: cid =>
        store.get<{ content: Uint8Array }>('select content from repo_block where cid = ?', cid.toString())?.content,
    },
    nodeRev: cid =>
      store.get<{ rev: string }>('select repoRev as rev from repo_block where cid = ?', `${cid}`)?.rev ?? null,
    record: path =>
      store.get<{ cid: string; rev: string }>(
        'select cid, repoRev as rev from record where uri = ?',
        `at://${did}/${path}`,
      ) ?? null,
    recordCount: () => store.get<{ n: number }>('select count(*) as n from record')!.n,
  }
}

function* blobsOf(store: ForeignSqlite): Generator<ForeignBlob> {
  type Row = { cid: string; mimeType: string; size: number; tempKey: string | null; takedownRef: string | null }
  // Read at once: each row is followed by other questions to the same database.
  for (const row of store.all<Row>('select cid, mimeType, size, tempKey, takedownRef from blob order by cid')) {
    const { mimeType, size } = row
    yield { cid: Cid.parse(row.cid), mimeType, size, takedown: row.takedownRef, isLoose: row.tempKey !== null }
  }
}

function stagedName(store: ForeignSqlite, cid: Cid): string | null {
  return store.get<{ name: string | null }>('select tempKey as name from blob where cid = ?', `${cid}`)?.name ?? null
}

async function openBlob(
  did: Did,
  cid: Cid,
  stagedName: string | null,
  { kept, staged }: { kept: string; staged: string },
): Promise<Readable | null> {
  const places = [join(kept, did, cid.toString()), join(kept, 'quarantine', did, cid.toString())]
  if (stagedName !== null && /^[a-z0-9]+$/i.test(stagedName)) places.unshift(join(staged, did, stagedName))
  const place = places.find(existsSync)
  return place === undefined ? null : createReadStream(place, { highWaterMark: 256 * 1024 })
}

function invitesIn(accounts: ForeignSqlite): InviteCode[] {
  type Row = Pick<InviteCode, 'code' | 'forAccount' | 'createdBy'> & {
    uses: number
    disabled: number
    createdAt: string
  }
  const uses = Map.groupBy(
    accounts.all<{ code: string; usedBy: string; usedAt: string }>('select code, usedBy, usedAt from invite_code_use'),
    use => use.code,
  )
  const rows = accounts.all<Row>(
    'select code, availableUses as uses, disabled, forAccount, createdBy, createdAt from invite_code order by createdAt',
  )
  return rows.map(({ code, uses: total, disabled, forAccount, createdBy, createdAt }) => {
    const usedBy = (uses.get(code) ?? []).map(({ usedBy, usedAt }) => ({ did: usedBy as Did, at: timeOf(usedAt) ?? 0 }))
    const common = { code, uses: total, disabled: disabled === 1, forAccount, createdBy }
    return { ...common, createdAt: timeOf(createdAt) ?? 0, usedBy }
  })
}

function reservedIn(folder: string): { did: Did | null; key: StoredKey }[] {
  if (!existsSync(folder)) return []
  const keys = readdirSync(folder).map(name => {
    const key: StoredKey = { curve: 'k256', secret: new Uint8Array(readFileSync(join(folder, name))) }
    return { did: isDid(name) && !name.startsWith('did:key:') ? name : null, key }
  })
  return keys.filter(({ key }) => key.secret.length === KEY_BYTES)
}

function timeOf(text: string | null): number | null {
  const time = text === null ? Number.NaN : Date.parse(text)
  return Number.isNaN(time) ? null : time
}
