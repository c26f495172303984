/** `com.atproto.server.*Email*`: proving that a mailbox is the account's, and changing which it is. */
import { Refused } from '@millisky/core/errors'
import { main as confirmEmail } from '@millisky/core/lexicon/gen/com/atproto/server/confirmEmail'
import { main as requestEmailConfirmation } from '@millisky/core/lexicon/gen/com/atproto/server/requestEmailConfirmation'
import { main as requestEmailUpdate } from '@millisky/core/lexicon/gen/com/atproto/server/requestEmailUpdate'
import { main as updateEmail } from '@millisky/core/lexicon/gen/com/atproto/server/updateEmail'
import type { Lanes } from '@millisky/server/lanes'
import type { Xrpc } from '@millisky/server/xrpc'
import type { PdsAccess } from '../access.ts'
import { changeEmail, checkEmail } from '../emails.ts'
import type { Mailer } from '../mail.ts'
import type { MailCodes } from '../mail-codes.ts'
import { confirmEmailMail, updateEmailMail } from '../mail-texts.ts'
import { type Limits, perAccount } from '../rates.ts'
import type { Account, Store } from '../store/store.ts'
import { ownAccount } from './availability.ts'

export interface EmailApiParts {
  store: Store
  lanes: Lanes
  access: PdsAccess
  mailer: Mailer
  codes: MailCodes
  limits: Limits | undefined
  /** Confirmation mails point to the Bluesky app. */
  confirmationLink: boolean
  /** Milliseconds since 1970. */
  now: () => number
}

/** Where the account is to be written to. @throws Refused */
export function mailboxOf({ email }: Account): string {
  if (email === null) throw new Refused('InvalidRequest', 'account does not have an email address')
  return email
}

/** Adds the methods. */
export function addEmailApi(xrpc: Xrpc, parts: EmailApiParts): void {
  addConfirmation(xrpc, parts)
  addUpdate(xrpc, parts)
}

function addConfirmation(xrpc: Xrpc, parts: EmailApiParts): void {
  const { store, lanes, access, mailer, codes, now } = parts
  const auth = access.session({ unlessTakendown: true })
  const rates = perAccount(parts.limits?.confirmationMails)
  xrpc.procedure(requestEmailConfirmation, { auth, rates }, async ({ auth }) => {
    const account = await ownAccount(store, auth.did)
    const to = mailboxOf(account)
    const token = await codes.issue(account, 'confirm_email')
    await mailer.send({ to, ...confirmEmailMail({ token, link: parts.confirmationLink }) })
  })
  xrpc.procedure(confirmEmail, { auth }, ({ input, auth }) =>
    lanes.run(auth.did, async () => {
      const account = await ownAccount(store, auth.did)
      if (account.email !== input.email.toLowerCase()) throw new Refused('InvalidEmail', 'invalid email')
      await codes.take(account.id, 'confirm_email', input.token)
      await store.accounts.update(account.id, { emailConfirmedAt: now() }, [])
    }),
  )
}

function addUpdate(xrpc: Xrpc, { store, lanes, access, mailer, codes, limits }: EmailApiParts): void {
  const auth = access.session({ full: true, unlessTakendown: true })
  const rates = perAccount(limits?.updateMails)
  xrpc.procedure(requestEmailUpdate, { auth, rates }, async ({ auth }) => {
    const account = await ownAccount(store, auth.did)
    const to = mailboxOf(account)
    // A mailbox that nobody has proven to own protects nothing.
    const tokenRequired = account.emailConfirmedAt !== null
    if (tokenRequired) {
      const token = await codes.issue(account, 'update_email')
      await mailer.send({ to, ...updateEmailMail({ token }) })
    }
    return { tokenRequired }
  })
  xrpc.procedure(updateEmail, { auth }, async ({ input, auth }) => {
    const email = checkEmail(input.email)
    await lanes.run(auth.did, async () => {
      const account = await ownAccount(store, auth.did)
      const { token } = input
      if (!token && account.emailConfirmedAt !== null) {
        throw new Refused('TokenRequired', 'confirmation token required')
      }
      if (token) await codes.check(account.id, 'update_email', token)
      await changeEmail(store, account, email)
    })
  })
}
