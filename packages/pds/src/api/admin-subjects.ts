/** What may be seen of subjects: takedowns of accounts, records and blobs, and suspensions of accounts. */
import { Cid } from '@millisky/core/cid'
import { Malformed, Refused } from '@millisky/core/errors'
import { main as getSubjectStatus } from '@millisky/core/lexicon/gen/com/atproto/admin/getSubjectStatus'
import { main as updateSubjectStatus } from '@millisky/core/lexicon/gen/com/atproto/admin/updateSubjectStatus'
import { main as updateSuspension } from '@millisky/core/lexicon/gen/net/millisky/pds/updateSuspension'
import { type Did, isDid, parseAtUri } from '@millisky/core/syntax'
import type { Call, Output, Xrpc } from '@millisky/server/xrpc'
import type { PdsAccess } from '../access.ts'
import type { Blobs } from '../blobs.ts'
import type { Credentials } from '../credentials.ts'
import type { DidUpdates } from '../did-updates.ts'
import type { Lifecycle } from '../lifecycle.ts'
import { datetime } from '../repos.ts'
import type { Account, Store } from '../store/store.ts'

export interface AdminSubjectApiParts {
  store: Store
  blobs: Blobs
  access: PdsAccess
  lifecycle: Lifecycle
  credentials: Credentials
  didUpdates: DidUpdates
  /** Milliseconds since 1970. */
  now: () => number
}

type Parts = AdminSubjectApiParts
type Wanted = Call<typeof updateSubjectStatus>['input']
/** Of the kinds that are known; others are refused. */
type Subject = Extract<Wanted['subject'], { did: Did } | { cid: string }>
type Status = Exclude<Output<typeof getSubjectStatus>, undefined>

const REPO = 'com.atproto.admin.defs#repoRef'
const BLOB = 'com.atproto.admin.defs#repoBlobRef'
const RECORD = 'com.atproto.repo.strongRef'

/** Adds the methods. */
export function addAdminSubjectApi(xrpc: Xrpc, parts: AdminSubjectApiParts): void {
  const auth = parts.access.moderator
  xrpc.procedure(updateSubjectStatus, { auth }, async ({ input }) => {
    const { takedown, deactivated } = input
    const subject = input.subject as Subject
    if (takedown?.applied && deactivated && !deactivated.applied) {
      throw new Refused('InvalidRequest', 'Cannot activate and takedown an account at the same time')
    }
    if (subject.$type === REPO) await updateAccount(subject.did, input, parts)
    else if (takedown === undefined) return { subject, takedown }
    else if (subject.$type === RECORD) await takeDownRecord(subject.uri, reference(takedown, parts), parts.store)
    else if (subject.$type === BLOB) await takeDownBlob(subject.did, subject.cid, reference(takedown, parts), parts)
    else throw new Refused('InvalidRequest', `Invalid subject (${input.subject.$type})`)
    return { subject, takedown }
  })
  xrpc.procedure(updateSuspension, { auth }, async ({ input }) => {
    await accountAt(input.did, parts.store)
    await parts.lifecycle.suspend(input.did, input.suspended)
  })
  xrpc.query(getSubjectStatus, { auth }, async ({ params }) => {
    const { did, uri, blob } = params
    if (blob !== undefined) {
      if (did === undefined) throw new Refused('InvalidRequest', 'Must provide a did to request blob state')
      return blobStatus(did, blob, parts.store)
    }
    if (uri !== undefined) return recordStatus(uri, parts.store)
    if (did !== undefined) return accountStatus(did, parts.store)
    throw new Refused('InvalidRequest', 'No provided subject')
  })
}

function notFound(): Refused {
  return new Refused('NotFound', 'Subject not found')
}

/** What is kept of a takedown; null for lifting it. */
function reference(takedown: NonNullable<Wanted['takedown']>, { now }: Parts): string | null {
  return takedown.applied ? (takedown.ref ?? datetime(now())) : null
}

async function accountAt(did: Did, { accounts }: Store): Promise<Account> {
  const account = await accounts.byDid(did)
  if (!account) throw notFound()
  return account
}

async function updateAccount(did: Did, { takedown, deactivated }: Wanted, parts: Parts): Promise<void> {
  const { store, lifecycle, credentials, didUpdates } = parts
  const account = await accountAt(did, store)
  if (takedown) {
    await lifecycle.takedown(did, reference(takedown, parts))
    // Whatever is lifted later: whoever had a session signs in again.
    await credentials.endSessions(account)
  }
  if (deactivated?.applied) await lifecycle.deactivate(did)
  else if (deactivated) await didUpdates.activate(did)
  if (!takedown && !deactivated) await lifecycle.announceStatus(did)
}

async function recordAt(uri: string, store: Store): Promise<{ account: Account; path: string }> {
  const { authority, collection, rkey } = parseAtUri(uri)
  if (collection === undefined || rkey === undefined)
    throw new Refused('InvalidRequest', `Not the URI of a record: ${uri}`)
  const account = await (isDid(authority) ? store.accounts.byDid(authority) : store.accounts.byHandle(authority))
  if (!account) throw notFound()
  return { account, path: `${collection}/${rkey}` }
}

async function takeDownRecord(uri: string, ref: string | null, store: Store): Promise<void> {
  const { account, path } = await recordAt(uri, store)
  if (ref !== null && !(await store.repos.record(account.id, path))) throw notFound()
  await store.takedowns.set(account.id, path, ref)
}

async function takeDownBlob(did: Did, cid: string, ref: string | null, { store, blobs }: Parts): Promise<void> {
  const account = await accountAt(did, store)
  if (!(await blobs.takedown(account, cidOf(cid), ref))) throw notFound()
}

async function accountStatus(did: Did, store: Store): Promise<Status> {
  const { takedown, deactivatedAt } = await accountAt(did, store)
  const subject = { $type: REPO, did } as const
  return { subject, takedown: statusOf(takedown), deactivated: { applied: deactivatedAt !== null } }
}

async function recordStatus(uri: string, store: Store): Promise<Status> {
  const { account, path } = await recordAt(uri, store)
  const record = await store.repos.record(account.id, path)
  if (!record) throw notFound()
  const subject = { $type: RECORD, uri: `at://${account.did}/${path}`, cid: record.cid.toString() } as const
  return { subject: subject as Status['subject'], takedown: statusOf(await store.takedowns.get(account.id, path)) }
}

async function blobStatus(did: Did, text: string, store: Store): Promise<Status> {
  const cid = cidOf(text)
  const { id } = await accountAt(did, store)
  const blob = await store.blobs.get(id, cid)
  if (!blob) throw notFound()
  return { subject: { $type: BLOB, did, cid: text } as Status['subject'], takedown: statusOf(blob.takedown) }
}

function statusOf(ref: string | null) {
  return ref === null ? { applied: false } : { applied: true, ref }
}

function cidOf(text: string): Cid {
  try {
    return Cid.parse(text)
  } catch (error) {
    if (!(error instanceof Malformed)) throw error
    throw new Refused('InvalidRequest', `Not a CID: ${text.slice(0, 100)}`)
  }
}
