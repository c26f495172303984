/** `com.atproto.repo.*`: records of the repositories hosted here. */
import { decode, type Obj } from '@millisky/core/cbor'
import { Cid } from '@millisky/core/cid'
import type { Identity } from '@millisky/core/did'
import { Refused } from '@millisky/core/errors'
import { main as applyWrites } from '@millisky/core/lexicon/gen/com/atproto/repo/applyWrites'
import { main as createRecord } from '@millisky/core/lexicon/gen/com/atproto/repo/createRecord'
import { main as deleteRecord } from '@millisky/core/lexicon/gen/com/atproto/repo/deleteRecord'
import { main as describeRepo } from '@millisky/core/lexicon/gen/com/atproto/repo/describeRepo'
import { main as getRecord } from '@millisky/core/lexicon/gen/com/atproto/repo/getRecord'
import { main as importRepo } from '@millisky/core/lexicon/gen/com/atproto/repo/importRepo'
import { main as listMissingBlobs } from '@millisky/core/lexicon/gen/com/atproto/repo/listMissingBlobs'
import { main as listRecords } from '@millisky/core/lexicon/gen/com/atproto/repo/listRecords'
import { main as putRecord } from '@millisky/core/lexicon/gen/com/atproto/repo/putRecord'
import { main as uploadBlob } from '@millisky/core/lexicon/gen/com/atproto/repo/uploadBlob'
import { COMMIT_OPS_MAX } from '@millisky/core/limits'
import { type AtIdentifier, type Did, HANDLE_INVALID, isDid, type Nsid, normalizeHandle } from '@millisky/core/syntax'
import type { RateLimit, RateRule } from '@millisky/server/rate'
import type { Call, RawReply, Xrpc } from '@millisky/server/xrpc'
import type { FastifyReply, FastifyRequest } from 'fastify'
import type { PdsAccess } from '../access.ts'
import type { Blobs } from '../blobs.ts'
import type { User } from '../callers.ts'
import type { Imports } from '../imports.ts'
import { type PreparedRecord, prepareRecord, renewPictures, type ValidateMode } from '../records.ts'
import { assertWritable, type Repos, type WantedWrite, type WriteResult } from '../repos.ts'
import { type Account, type Store, statusOf } from '../store/store.ts'
import { assertAvailable } from './availability.ts'

/** The reference's limit of JSON bodies of record writes. */
const WRITE_BODY_BYTES_MAX = 1_000_000

export interface RepoApiParts {
  store: Store
  repos: Repos
  blobs: Blobs
  access: PdsAccess
  identities: { resolveDid(did: Did): Promise<Identity> }
  /** Null if repositories are not taken over here. */
  imports: Imports | null
  /** Largest repository that is taken over. */
  importBytesMax: number
  /** Points of record writes per account: create 3, update 2, delete 1. */
  writeLimits?: readonly RateLimit[]
  uploadLimits?: readonly RateLimit[]
  /** Asks somebody else for a record of a repository that is not hosted here, such as the app view. */
  elsewhere?: (request: FastifyRequest, reply: FastifyReply) => Promise<RawReply>
}

type Parts = RepoApiParts

/** Adds the methods. */
export function addRepoApi(xrpc: Xrpc, parts: RepoApiParts): void {
  addWrites(xrpc, parts)
  addReads(xrpc, parts)
  addBlobs(xrpc, parts)
  addImport(xrpc, parts)
}

function addWrites(xrpc: Xrpc, parts: Parts): void {
  const auth = parts.access.user
  const bodyBytesMax = WRITE_BODY_BYTES_MAX
  xrpc.procedure(createRecord, { auth, bodyBytesMax, rates: writeRates(parts, () => 3) }, async ({ input, auth }) => {
    const { collection, rkey, validate } = input
    const did = await ownRepo(parts, input.repo, auth)
    auth.mayWrite('create', collection)
    const record = await told(parts, did, () => prepare(parts, collection, rkey, input.record, validate))
    const { commit } = await parts.repos.write(
      did,
      [{ action: 'create', record, unique: validate !== false }],
      swap(input),
    )
    return written(did, record, commit)
  })
  xrpc.procedure(putRecord, { auth, bodyBytesMax, rates: writeRates(parts, () => 2) }, async ({ input, auth }) => {
    const { collection, rkey, validate, swapRecord } = input
    const did = await ownRepo(parts, input.repo, auth)
    auth.mayWrite('create', collection)
    auth.mayWrite('update', collection)
    if (collection === PROFILE) await renewProfile(parts.store, did, rkey, input.record)
    const record = await told(parts, did, () => prepare(parts, collection, rkey, input.record, validate))
    const put: WantedWrite = { action: 'put', record }
    if (swapRecord !== undefined) put.swapRecord = swapRecord === null ? null : Cid.parse(swapRecord)
    const { commit } = await parts.repos.write(did, [put], swap(input))
    return written(did, record, commit)
  })
  xrpc.procedure(deleteRecord, { auth, bodyBytesMax, rates: writeRates(parts, () => 1) }, async ({ input, auth }) => {
    const { collection, rkey, swapRecord } = input
    const did = await ownRepo(parts, input.repo, auth)
    auth.mayWrite('delete', collection)
    const gone: WantedWrite = { action: 'delete', path: `${collection}/${rkey}`, ifPresent: true }
    if (swapRecord !== undefined) gone.swapRecord = Cid.parse(swapRecord)
    const { commit } = await parts.repos.write(did, [gone], swap(input))
    return { commit: commitMeta(commit) }
  })
  const rates = writeRates(parts, (call: Call<typeof applyWrites, User>) => pointsOf(call.input.writes))
  xrpc.procedure(applyWrites, { auth, bodyBytesMax, rates }, ({ input, auth }) => applyAll(parts, input, auth))
}

const PROFILE = 'app.bsky.actor.profile'

/** A profile that is here already may be written back as clients have read it. */
async function renewProfile({ accounts, blobs, repos }: Store, did: Did, rkey: string, record: Obj): Promise<void> {
  const account = await accounts.byDid(did)
  if (!account || !(await repos.record(account.id, `${PROFILE}/${rkey}`))) return
  await renewPictures(record, cid => blobs.get(account.id, cid))
}

type ApplyWrites = Call<typeof applyWrites, User>['input']

async function applyAll(parts: Parts, input: ApplyWrites, auth: User) {
  const did = await ownRepo(parts, input.repo, auth)
  if (input.writes.length > COMMIT_OPS_MAX) {
    throw new Refused('InvalidRequest', `Too many writes. Max: ${COMMIT_OPS_MAX}`)
  }
  const { writes, validate } = input
  const planned = await told(parts, did, () =>
    writes.map((write, i) => planWrite(parts, did, write, i, validate, auth)),
  )
  const { commit } = await parts.repos.write(
    did,
    planned.map(plan => plan.want),
    swap(input),
  )
  return { commit: commitMeta(commit), results: planned.map(plan => plan.result) }
}

function planWrite(
  parts: Parts,
  did: Did,
  write: ApplyWrites['writes'][number],
  index: number,
  validate: ValidateMode,
  auth: User,
) {
  const { collection, rkey } = write
  if (write.$type === 'com.atproto.repo.applyWrites#delete') {
    auth.mayWrite('delete', collection)
    const want: WantedWrite = { action: 'delete', path: `${collection}/${rkey}` }
    return { want, result: { $type: 'com.atproto.repo.applyWrites#deleteResult' as const } }
  }
  const action = write.$type === 'com.atproto.repo.applyWrites#create' ? 'create' : 'update'
  auth.mayWrite(action, collection)
  // Not `value`, which it is: the reference says so.
  const record = prepare(parts, collection, rkey, write.value, validate, `writes[${index}].record`)
  const { path, cid, validationStatus } = record
  const result = {
    $type: `com.atproto.repo.applyWrites#${action}Result` as const,
    uri: `at://${did}/${path}`,
    cid: cid.toString(),
    validationStatus,
  }
  const want: WantedWrite = { action, record }
  return { want, result }
}

function addReads(xrpc: Xrpc, parts: Parts): void {
  const { store } = parts
  xrpc.query(getRecord, async ({ params, request, reply }) => {
    const { repo, collection, rkey, cid } = params
    const account = await activeAccount(store, repo)
    if (!account) {
      if (parts.elsewhere) return parts.elsewhere(request, reply)
      throw new Refused('InvalidRequest', 'Could not locate record')
    }
    const uri = `at://${account.did}/${collection}/${rkey}`
    const record = await shownRecord(store, account, `${collection}/${rkey}`)
    if (!record || (cid !== undefined && record.cid.toString() !== cid)) {
      throw new Refused('RecordNotFound', `Could not locate record: ${uri}`)
    }
    return { uri, cid: record.cid.toString(), value: decode(record.bytes) as Obj }
  })
  xrpc.query(listRecords, async ({ params }) => {
    const { repo, collection, limit = 50, cursor, reverse = false } = params
    const account = await activeAccount(store, repo)
    if (!account) throw new Refused('InvalidRequest', `Could not find repo: ${repo}`)
    const found = await store.repos.records(account.id, { collection, limit, reverse, ...(cursor ? { cursor } : {}) })
    const hidden = account.hasRecordTakedowns ? await store.takedowns.paths(account.id) : null
    const shown = hidden ? found.filter(({ path }) => !hidden.has(path)) : found
    const records = shown.map(({ path, cid, bytes }) => {
      return { uri: `at://${account.did}/${path}`, cid: cid.toString(), value: decode(bytes) as Obj }
    })
    return { records, cursor: found.at(-1)?.path.slice(collection.length + 1) }
  })
  xrpc.query(describeRepo, async ({ params }) => {
    const account = assertAvailable(await accountOf(store, params.repo), params.repo)
    const { did, handle } = account
    const identity = await parts.identities.resolveDid(did).catch(cause => {
      const refused = new Refused('InvalidRequest', `Could not resolve DID: ${did}`)
      refused.cause = cause
      throw refused
    })
    return {
      handle: handle ?? HANDLE_INVALID,
      did,
      didDoc: identity.doc as object,
      collections: await store.repos.collections(account.id),
      handleIsCorrect: handle !== null && identity.handle === handle,
    }
  })
}

function addBlobs(xrpc: Xrpc, parts: Parts): void {
  const { access, blobs, store } = parts
  const rates = (parts.uploadLimits ?? []).map((limit): RateRule<Call<typeof uploadBlob, User>> => {
    return { limit, key: ({ auth }) => auth.did }
  })
  xrpc.procedure(
    uploadBlob,
    { auth: access.uploader, bodyBytesMax: blobs.bytesMax, rates },
    async ({ input, auth }) => {
      auth.mayUpload(input.encoding)
      const { cid, mimeType, size } = await blobs.upload(auth.did, input)
      return { blob: { $type: 'blob' as const, ref: cid, mimeType, size } }
    },
  )
  xrpc.query(listMissingBlobs, { auth: access.user }, async ({ params, auth }) => {
    const { limit = 500, cursor } = params
    const account = await accountOf(store, auth.did)
    if (!account) throw new Refused('AccountNotFound', 'Account not found', 403)
    const after = cursor === undefined ? {} : { after: parseCursor(cursor) }
    const missing = await store.blobs.missing(account.id, { limit, ...after })
    const found = missing.map(({ cid, path }) => ({ cid: cid.toString(), recordUri: `at://${auth.did}/${path}` }))
    return { blobs: found, cursor: found.at(-1)?.cid }
  })
}

function addImport(xrpc: Xrpc, { access, imports, importBytesMax }: Parts): void {
  const options = { auth: access.session({ full: true, unlessTakendown: true }), bodyBytesMax: importBytesMax }
  xrpc.procedure(importRepo, options, async ({ input, auth }) => {
    if (!imports) throw new Refused('InvalidRequest', 'Service is not accepting repo imports')
    await imports.import(auth.did, input.body)
  })
}

/** @throws Refused */
export function parseCursor(cursor: string): Cid {
  try {
    return Cid.parse(cursor)
  } catch {
    throw new Refused('InvalidRequest', 'Malformed cursor')
  }
}

function prepare(
  { repos }: Parts,
  collection: Nsid,
  rkey: string | undefined,
  record: Obj,
  validate: ValidateMode,
  at?: string,
): PreparedRecord {
  return prepareRecord({ collection, rkey, record, validate, nextRkey: () => repos.nextRkey(), ...(at && { at }) })
}

/** What `attempt` gives, or else what is wrong with the account, before what is wrong with the record. */
async function told<T>({ store }: Parts, did: Did, attempt: () => T): Promise<T> {
  try {
    return attempt()
  } catch (problem) {
    // Only now: an account is looked at again where a good record is written.
    const account = await store.accounts.byDid(did)
    if (!account) throw new Refused('AccountNotFound', 'Account not found', 403)
    assertWritable(statusOf(account))
    throw problem
  }
}

function swap({ swapCommit }: { swapCommit?: string }): { swapCommit?: Cid } {
  return swapCommit === undefined ? {} : { swapCommit: Cid.parse(swapCommit) }
}

const commitMeta = (commit: WriteResult['commit']) =>
  (commit && { cid: commit.cid.toString(), rev: commit.rev }) || undefined

function written(did: Did, { path, cid, validationStatus }: PreparedRecord, commit: WriteResult['commit']) {
  return { uri: `at://${did}/${path}`, cid: cid.toString(), commit: commitMeta(commit), validationStatus }
}

/** The caller's DID if that is the repository meant. @throws Refused 403 AccountNotFound, 401 */
async function ownRepo({ store }: Parts, repo: AtIdentifier, { did }: User): Promise<Did> {
  if (repo === did) return did
  const account = await accountOf(store, repo)
  if (!account) throw new Refused('AccountNotFound', 'Account not found', 403)
  assertWritable(statusOf(account))
  if (account.did !== did) throw new Refused('AuthenticationRequired', 'Authentication Required', 401)
  return did
}

/** The record, unless it is taken down. */
async function shownRecord(store: Store, { id, hasRecordTakedowns }: Account, path: string) {
  if (hasRecordTakedowns && (await store.takedowns.get(id, path)) !== null) return null
  return store.repos.record(id, path)
}

function accountOf(store: Store, repo: AtIdentifier): Promise<Account | null> {
  return isDid(repo) ? store.accounts.byDid(repo) : store.accounts.byHandle(normalizeHandle(repo))
}

async function activeAccount(store: Store, repo: AtIdentifier): Promise<Account | null> {
  const account = await accountOf(store, repo)
  return account && statusOf(account) === 'active' ? account : null
}

function writeRates<C extends { auth: User }>({ writeLimits = [] }: Parts, points: (call: C) => number): RateRule<C>[] {
  return writeLimits.map(limit => ({ limit, key: ({ auth }) => auth.did, points }))
}

function pointsOf(writes: ApplyWrites['writes']): number {
  const points = { create: 3, update: 2, delete: 1 }
  let sum = 0
  for (const { $type } of writes) sum += points[$type.slice($type.indexOf('#') + 1) as keyof typeof points]
  return sum
}
