/** `com.atproto.server.*`: a forgotten password, and the end of an account. Both begin with a mail. */
import { Refused } from '@millisky/core/errors'
import { main as deleteAccount } from '@millisky/core/lexicon/gen/com/atproto/server/deleteAccount'
import { main as requestAccountDelete } from '@millisky/core/lexicon/gen/com/atproto/server/requestAccountDelete'
import { main as requestPasswordReset } from '@millisky/core/lexicon/gen/com/atproto/server/requestPasswordReset'
import { main as resetPassword } from '@millisky/core/lexicon/gen/com/atproto/server/resetPassword'
import type { Xrpc } from '@millisky/server/xrpc'
import type { PdsAccess } from '../access.ts'
import type { Credentials } from '../credentials.ts'
import type { Departures } from '../departures.ts'
import type { Mailer } from '../mail.ts'
import type { MailCodes } from '../mail-codes.ts'
import { accountDeleteMail, passwordResetMail } from '../mail-texts.ts'
import { assertPasswordLength } from '../passwords.ts'
import { type Limits, perAccount, perAddress } from '../rates.ts'
import type { Store } from '../store/store.ts'
import { ownAccount } from './availability.ts'
import { mailboxOf } from './server-email.ts'

export interface RecoveryApiParts {
  store: Store
  access: PdsAccess
  mailer: Mailer
  codes: MailCodes
  credentials: Credentials
  departures: Departures
  limits: Limits | undefined
}

/** Adds the methods. */
export function addRecoveryApi(xrpc: Xrpc, parts: RecoveryApiParts): void {
  addPasswordReset(xrpc, parts)
  addDeletion(xrpc, parts)
}

function addPasswordReset(xrpc: Xrpc, { store, mailer, codes, credentials, limits }: RecoveryApiParts): void {
  xrpc.procedure(requestPasswordReset, { rates: perAddress(limits?.resetMails) }, ({ input }) => {
    // Neither the answer nor its time tells whether somebody of this address has an account here.
    mailer.sendUnseen(async () => {
      const account = await store.accounts.byEmail(input.email.trim())
      if (!account?.email) return null
      const token = await codes.issue(account, 'reset_password')
      const name = account.handle === null ? account.email : `@${account.handle}`
      return { to: account.email, ...passwordResetMail({ name, token }) }
    })
  })
  xrpc.procedure(resetPassword, { rates: perAddress(limits?.resets) }, async ({ input }) => {
    const { token, password } = input
    credentials.checkNew(password)
    const account = await codes.ownerOf('reset_password', token)
    await codes.take(account.id, 'reset_password', token)
    await credentials.setPassword(account, password)
  })
}

function addDeletion(xrpc: Xrpc, parts: RecoveryApiParts): void {
  const { store, access, mailer, codes, credentials, departures, limits } = parts
  const auth = access.session({ full: true, unlessTakendown: true })
  xrpc.procedure(requestAccountDelete, { auth, rates: perAccount(limits?.deletionMails) }, async ({ auth }) => {
    const account = await ownAccount(store, auth.did)
    const to = mailboxOf(account)
    const token = await codes.issue(account, 'delete_account')
    await mailer.send({ to, ...accountDeleteMail({ token }) })
  })
  xrpc.procedure(deleteAccount, { rates: perAddress(limits?.deletions) }, async ({ input }) => {
    assertPasswordLength(input.password)
    const account = await store.accounts.byDid(input.did)
    if (!account) throw new Refused('InvalidRequest', 'account not found')
    if (!(await credentials.isPassword(account, input.password))) {
      throw new Refused('AuthenticationRequired', 'Invalid did or password', 401)
    }
    await codes.take(account.id, 'delete_account', input.token)
    await departures.remove(account.did)
  })
}
