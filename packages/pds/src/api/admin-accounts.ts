/** `com.atproto.admin.*`: looking at accounts and changing them in their owners' stead. */
import { Refused } from '@millisky/core/errors'
import { main as deleteAccount } from '@millisky/core/lexicon/gen/com/atproto/admin/deleteAccount'
import { main as getAccountInfo } from '@millisky/core/lexicon/gen/com/atproto/admin/getAccountInfo'
import { main as getAccountInfos } from '@millisky/core/lexicon/gen/com/atproto/admin/getAccountInfos'
import { main as searchAccounts } from '@millisky/core/lexicon/gen/com/atproto/admin/searchAccounts'
import { main as sendEmail } from '@millisky/core/lexicon/gen/com/atproto/admin/sendEmail'
import { main as updateAccountEmail } from '@millisky/core/lexicon/gen/com/atproto/admin/updateAccountEmail'
import { main as updateAccountHandle } from '@millisky/core/lexicon/gen/com/atproto/admin/updateAccountHandle'
import { main as updateAccountPassword } from '@millisky/core/lexicon/gen/com/atproto/admin/updateAccountPassword'
import { main as updateAccountSigningKey } from '@millisky/core/lexicon/gen/com/atproto/admin/updateAccountSigningKey'
import { type AtIdentifier, type Did, HANDLE_INVALID, isDid, normalizeHandle } from '@millisky/core/syntax'
import type { Lanes } from '@millisky/server/lanes'
import type { Xrpc } from '@millisky/server/xrpc'
import type { PdsAccess } from '../access.ts'
import type { Credentials } from '../credentials.ts'
import type { Departures } from '../departures.ts'
import type { DidUpdates } from '../did-updates.ts'
import { changeEmail, checkEmail } from '../emails.ts'
import type { Mailer } from '../mail.ts'
import { writtenMail } from '../mail-texts.ts'
import { datetime } from '../repos.ts'
import type { Account, Store } from '../store/store.ts'
import { mailboxOf } from './server-email.ts'
import { inviteView } from './server-invites.ts'

const SUBJECT = 'Message via your PDS'

export interface AdminAccountApiParts {
  store: Store
  lanes: Lanes
  access: PdsAccess
  credentials: Credentials
  didUpdates: DidUpdates
  departures: Departures
  moderationMailer: Mailer
}

type Parts = AdminAccountApiParts

/** The account of that name. @throws Refused */
export async function namedAccount({ accounts }: Store, name: AtIdentifier): Promise<Account> {
  const account = await (isDid(name) ? accounts.byDid(name) : accounts.byHandle(normalizeHandle(name)))
  if (!account) throw new Refused('InvalidRequest', `Account does not exist: ${name}`)
  return account
}

/** Adds the methods. */
export function addAdminAccountApi(xrpc: Xrpc, parts: AdminAccountApiParts): void {
  addViews(xrpc, parts)
  addChanges(xrpc, parts)
}

function addViews(xrpc: Xrpc, { store, access }: Parts): void {
  const auth = access.moderator
  xrpc.query(getAccountInfo, { auth }, async ({ params }) => {
    const account = await store.accounts.byDid(params.did)
    if (!account) throw new Refused('NotFound', 'Account not found')
    return accountView(store, account)
  })
  xrpc.query(getAccountInfos, { auth }, async ({ params }) => {
    const accounts = await Promise.all([...new Set(params.dids)].map(did => store.accounts.byDid(did)))
    const found = accounts.filter(account => account !== null)
    return { infos: await Promise.all(found.map(account => accountView(store, account))) }
  })
  xrpc.query(searchAccounts, { auth }, async ({ params }) => {
    const { email = '', limit = 50, cursor } = params
    const after = cursor === undefined ? 0 : Number(cursor)
    if (!Number.isSafeInteger(after) || after < 0) throw new Refused('InvalidRequest', 'Malformed cursor')
    const found = await store.accounts.searchByEmail(email, after, limit)
    const accounts = await Promise.all(found.map(account => accountView(store, account)))
    return { accounts, cursor: found.length < limit ? undefined : String(found.at(-1)!.id) }
  })
}

async function accountView({ tickets }: Store, account: Account) {
  const { did, handle, email, emailConfirmedAt, createdAt, deactivatedAt, invitesDisabled } = account
  const [invites, invitedBy] = await Promise.all([tickets.invitesFor(did), tickets.invitedBy(did)])
  return {
    did,
    handle: handle ?? HANDLE_INVALID,
    email: email ?? undefined,
    indexedAt: datetime(createdAt),
    emailConfirmedAt: emailConfirmedAt === null ? undefined : datetime(emailConfirmedAt),
    invitedBy: invitedBy ? inviteView(invitedBy) : undefined,
    invites: invites.map(inviteView),
    invitesDisabled,
    deactivatedAt: deactivatedAt === null ? undefined : datetime(deactivatedAt),
  }
}

function addChanges(xrpc: Xrpc, parts: Parts): void {
  const { store, lanes, access, credentials, didUpdates, departures } = parts
  const auth = access.admin
  xrpc.procedure(updateAccountEmail, { auth }, async ({ input }) => {
    const account = await namedAccount(store, input.account)
    const email = checkEmail(input.email)
    await lanes.run(account.did, () => changeEmail(store, account, email))
  })
  xrpc.procedure(updateAccountHandle, { auth }, ({ input }) =>
    didUpdates.changeHandle(input.did, input.handle, { anyValid: true }),
  )
  xrpc.procedure(updateAccountPassword, { auth }, async ({ input }) => {
    credentials.checkNew(input.password)
    await credentials.setPassword(await namedAccount(store, input.did), input.password)
  })
  xrpc.procedure(updateAccountSigningKey, { auth }, async ({ input }) => {
    const { did } = await namedAccount(store, input.did)
    await didUpdates.changeKey(did, input.signingKey)
  })
  xrpc.procedure(deleteAccount, { auth }, ({ input }) => departures.remove(input.did as Did))
  xrpc.procedure(sendEmail, { auth: access.moderator }, async ({ input }) => {
    const account = await store.accounts.byDid(input.recipientDid)
    if (!account) throw new Refused('InvalidRequest', 'Recipient not found')
    const { content, subject = SUBJECT } = input
    await parts.moderationMailer.send({ to: mailboxOf(account), ...writtenMail({ subject, content }) })
    return { sent: true }
  })
}
