/** `com.atproto.server.*`: the server, its accounts and their sessions. */

import { Refused } from '@millisky/core/errors'
import { main as createAccount } from '@millisky/core/lexicon/gen/com/atproto/server/createAccount'
import { main as createSession } from '@millisky/core/lexicon/gen/com/atproto/server/createSession'
import { main as deleteSession } from '@millisky/core/lexicon/gen/com/atproto/server/deleteSession'
import { main as describeServer } from '@millisky/core/lexicon/gen/com/atproto/server/describeServer'
import { main as getSession } from '@millisky/core/lexicon/gen/com/atproto/server/getSession'
import { main as refreshSession } from '@millisky/core/lexicon/gen/com/atproto/server/refreshSession'
import { type Did, HANDLE_INVALID } from '@millisky/core/syntax'
import { addressKey, type RateRule } from '@millisky/server/rate'
import type { Call, Xrpc } from '@millisky/server/xrpc'
import type { PdsAccess } from '../access.ts'
import type { Accounts } from '../accounts.ts'
import type { PdsSettings, ServiceNames } from '../config.ts'
import { type Limits, perAddress } from '../rates.ts'
import type { Sessions } from '../sessions.ts'
import { type Account, type Store, statusOf } from '../store/store.ts'

export interface ServerApiParts {
  settings: PdsSettings
  names: ServiceNames
  store: Store
  access: PdsAccess
  accounts: Accounts
  sessions: Sessions
  limits: Limits | undefined
}

/** Adds the methods. */
export function addServerApi(xrpc: Xrpc, parts: ServerApiParts): void {
  addDescription(xrpc, parts)
  addAccounts(xrpc, parts)
  addSessions(xrpc, parts)
}

function addDescription(xrpc: Xrpc, { settings, names }: ServerApiParts): void {
  const { privacyPolicyUrl, termsOfServiceUrl, contactEmail } = settings
  const links = {
    ...(privacyPolicyUrl ? { privacyPolicy: privacyPolicyUrl as `${string}:${string}` } : {}),
    ...(termsOfServiceUrl ? { termsOfService: termsOfServiceUrl as `${string}:${string}` } : {}),
  }
  const description = {
    did: names.did as Did,
    availableUserDomains: [...names.handleDomains],
    inviteCodeRequired: settings.inviteRequired,
    blobUploadLimit: settings.blobUploadLimit,
    links,
    contact: contactEmail ? { email: contactEmail } : {},
  }
  xrpc.query(describeServer, () => description)
}

function addAccounts(xrpc: Xrpc, parts: ServerApiParts): void {
  const { access, accounts, sessions } = parts
  const rates = perAddress(parts.limits?.signUps)
  xrpc.procedure(createAccount, { auth: access.service, rates }, async ({ input, auth }) => {
    const { handle, email, password, inviteCode, recoveryKey, did, plcOp } = input
    // Where the server has a key, it makes the operation.
    if (plcOp !== undefined && parts.settings.plcRotationKey !== undefined)
      throw new Refused('InvalidRequest', 'Unsupported input: "plcOp"')
    const account = await accounts.create({
      handle,
      provenBy: auth,
      ...(email !== undefined ? { email } : {}),
      ...(password !== undefined ? { password } : {}),
      ...(inviteCode !== undefined ? { inviteCode } : {}),
      ...(recoveryKey ? { recoveryKey } : {}),
      ...(did !== undefined ? { did } : {}),
      ...(plcOp !== undefined ? { plcOperation: plcOp } : {}),
    })
    const tokens = await sessions.open(account)
    // Whoever moves here has changed it lately, or is about to.
    const didDoc = (await accounts.document(account.did, { fresh: did !== undefined })) as object | undefined
    return { handle: account.handle!, did: account.did, didDoc, ...tokens }
  })
}

function addSessions(xrpc: Xrpc, parts: ServerApiParts): void {
  const { access, limits, sessions, store } = parts
  const rates = (limits?.logins ?? []).map((limit): RateRule<Call<typeof createSession, undefined>> => {
    return {
      limit,
      key: ({ input, request }) => `${input.identifier.trim().toLowerCase().slice(0, 256)} ${addressKey(request.ip)}`,
    }
  })
  xrpc.procedure(createSession, { rates }, async ({ input }) => {
    const { identifier, password, allowTakendown = false } = input
    const { account, ...tokens } = await sessions.login(identifier, password, { allowTakendown })
    return { ...(await describe(account, parts)), ...tokens }
  })
  xrpc.procedure(refreshSession, { auth: access.refresh }, async ({ auth }) => {
    const { account, ...tokens } = await sessions.refresh(auth)
    return { ...(await describe(account, parts)), ...tokens }
  })
  xrpc.procedure(deleteSession, { auth: access.ended }, async ({ auth }) => {
    await sessions.close(auth)
  })
  xrpc.query(getSession, { auth: access.user }, async ({ auth }) => {
    const account = await store.accounts.byDid(auth.did)
    if (!account || statusOf(account) === 'takendown') {
      throw new Refused('InvalidRequest', `Could not find user info for account: ${auth.did}`)
    }
    return describe(account, parts)
  })
}

async function describe(account: Account, parts: ServerApiParts) {
  const { did, handle, email, emailConfirmedAt } = account
  const status = statusOf(account)
  return {
    did,
    handle: handle ?? HANDLE_INVALID,
    email: email ?? undefined,
    emailConfirmed: emailConfirmedAt !== null,
    active: status === 'active',
    status: status === 'active' ? undefined : status,
    didDoc: await documentOf(account, parts),
  }
}

async function documentOf({ did }: Account, { settings, accounts }: ServerApiParts) {
  return settings.didDocWithSession ? ((await accounts.document(did)) as object | undefined) : undefined
}
