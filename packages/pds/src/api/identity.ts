/** `com.atproto.identity.*`: handles and DIDs, of accounts here and of everybody. */
import { Refused, Unavailable } from '@millisky/core/errors'
import { parseJson } from '@millisky/core/json'
import { main as getRecommendedDidCredentials } from '@millisky/core/lexicon/gen/com/atproto/identity/getRecommendedDidCredentials'
import { main as refreshIdentity } from '@millisky/core/lexicon/gen/com/atproto/identity/refreshIdentity'
import { main as requestPlcOperationSignature } from '@millisky/core/lexicon/gen/com/atproto/identity/requestPlcOperationSignature'
import { main as resolveDid } from '@millisky/core/lexicon/gen/com/atproto/identity/resolveDid'
import { main as resolveHandle } from '@millisky/core/lexicon/gen/com/atproto/identity/resolveHandle'
import { main as resolveIdentity } from '@millisky/core/lexicon/gen/com/atproto/identity/resolveIdentity'
import { main as signPlcOperation } from '@millisky/core/lexicon/gen/com/atproto/identity/signPlcOperation'
import { main as submitPlcOperation } from '@millisky/core/lexicon/gen/com/atproto/identity/submitPlcOperation'
import { main as updateHandle } from '@millisky/core/lexicon/gen/com/atproto/identity/updateHandle'
import type { PlcData } from '@millisky/core/plc'
import { asNsid, type Did, type Handle, isDid, normalizeHandle } from '@millisky/core/syntax'
import type { ConfirmedIdentity, Identities } from '@millisky/server/identity'
import type { Xrpc } from '@millisky/server/xrpc'
import type { PdsAccess } from '../access.ts'
import type { DidUpdates } from '../did-updates.ts'
import { type HandleRules, isOwnName } from '../handles.ts'
import type { Mailer } from '../mail.ts'
import type { MailCodes } from '../mail-codes.ts'
import { plcOperationMail } from '../mail-texts.ts'
import type { ServiceProxy } from '../proxy.ts'
import { type Limits, perAccount } from '../rates.ts'
import type { Store } from '../store/store.ts'
import { ownAccount } from './availability.ts'
import { mailboxOf } from './server-email.ts'

export interface IdentityApiParts {
  store: Store
  access: PdsAccess
  identities: Identities
  handles: HandleRules
  /** Asks the app view. */
  proxy: ServiceProxy
  didUpdates: DidUpdates
  mailer: Mailer
  codes: MailCodes
  limits: Limits | undefined
}

/** Adds the methods. */
export function addIdentityApi(xrpc: Xrpc, parts: IdentityApiParts): void {
  addResolution(xrpc, parts)
  addUpdates(xrpc, parts)
  addOperations(xrpc, parts)
}

/** What the app view knows of a handle that could not be resolved from here; null if it does not either. */
async function appViewSays(handle: Handle, proxy: ServiceProxy): Promise<Did | null> {
  const { appView } = proxy.targets.services
  if (!appView) return null
  try {
    const answer = parseJson(await proxy.ask(null, appView, asNsid(resolveHandle.nsid), { handle }))
    const { did } = answer as { did?: unknown }
    return isDid(did) ? did : null
  } catch {
    return null
  }
}

function addResolution(xrpc: Xrpc, { store, identities, handles, proxy }: IdentityApiParts): void {
  xrpc.query(resolveHandle, async ({ params }) => {
    const handle: Handle = normalizeHandle(params.handle)
    const account = await store.accounts.byHandle(handle)
    if (account) return { did: account.did }
    if (isOwnName(handle, handles)) throw new Refused('HandleNotFound', 'Unable to resolve handle')
    try {
      return { did: await identities.resolveHandle(handle) }
    } catch (error) {
      if (!(error instanceof Refused || error instanceof Unavailable)) throw error
      const did = await appViewSays(handle, proxy)
      if (did) return { did }
      // Why it failed is in the message; to the caller it is not found either way.
      throw new Refused('InvalidRequest', 'Unable to resolve handle')
    }
  })
  xrpc.query(resolveDid, async ({ params }) => {
    const { doc } = await identities.resolveDid(params.did)
    return { didDoc: doc as object }
  })
  const view = ({ did, handle, doc }: ConfirmedIdentity) => ({ did, handle, didDoc: doc as object })
  xrpc.query(resolveIdentity, async ({ params }) => view(await identities.resolve(params.identifier)))
  xrpc.procedure(refreshIdentity, async ({ input }) =>
    view(await identities.resolve(input.identifier, { fresh: true })),
  )
}

function addUpdates(xrpc: Xrpc, { store, access, didUpdates, limits }: IdentityApiParts): void {
  const auth = access.session({ unlessTakendown: true })
  const rates = perAccount(limits?.handleUpdates)
  xrpc.procedure(updateHandle, { auth, rates }, ({ input, auth }) => didUpdates.changeHandle(auth.did, input.handle))
  xrpc.query(getRecommendedDidCredentials, { auth: access.user }, async ({ auth }) =>
    didUpdates.recommended(await ownAccount(store, auth.did)),
  )
}

function addOperations(xrpc: Xrpc, { store, access, didUpdates, mailer, codes }: IdentityApiParts): void {
  const auth = access.session({ full: true, takendown: true })
  xrpc.procedure(requestPlcOperationSignature, { auth }, async ({ auth }) => {
    const account = await ownAccount(store, auth.did)
    const to = mailboxOf(account)
    const token = await codes.issue(account, 'plc_operation')
    await mailer.send({ to, ...plcOperationMail({ token }) })
  })
  xrpc.procedure(signPlcOperation, { auth }, async ({ input, auth }) => {
    const { token, rotationKeys, alsoKnownAs, verificationMethods, services } = input
    if (!token) throw new Refused('InvalidRequest', 'email confirmation token required to sign PLC operations')
    const account = await ownAccount(store, auth.did)
    await codes.check(account.id, 'plc_operation', token)
    // What is wrong with the wish, or the directory, does not cost the code.
    const operation = await didUpdates.sign(account.did, {
      ...(rotationKeys ? { rotationKeys } : {}),
      ...(alsoKnownAs ? { alsoKnownAs } : {}),
      ...(verificationMethods ? { verificationMethods: verificationMethods as PlcData['verificationMethods'] } : {}),
      ...(services ? { services: services as unknown as PlcData['services'] } : {}),
    })
    await codes.take(account.id, 'plc_operation', token)
    return { operation }
  })
  xrpc.procedure(submitPlcOperation, { auth: access.user }, async ({ input, auth }) =>
    didUpdates.submit(await ownAccount(store, auth.did), input.operation),
  )
}
