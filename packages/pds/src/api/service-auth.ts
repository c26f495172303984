/** `com.atproto.server.getServiceAuth` and `reserveSigningKey`: what accounts' keys do for them elsewhere. */
import { randomBytes } from 'node:crypto'
import { SigningKey } from '@millisky/core/crypto'
import { Refused } from '@millisky/core/errors'
import { signServiceJwt } from '@millisky/core/jwt'
import { main as getServiceAuth } from '@millisky/core/lexicon/gen/com/atproto/server/getServiceAuth'
import { main as reserveSigningKey } from '@millisky/core/lexicon/gen/com/atproto/server/reserveSigningKey'
import { isDid, isPlcDid } from '@millisky/core/syntax'
import type { Xrpc } from '@millisky/server/xrpc'
import type { PdsAccess, SessionUser } from '../access.ts'
import { isPrivilegedMethod, isProtectedMethod } from '../protected-methods.ts'
import { type Limits, perAddress } from '../rates.ts'
import type { Repos } from '../repos.ts'
import type { Store } from '../store/store.ts'

const LIFETIME_SECONDS = 60
const LIFETIME_SECONDS_MAX = 3_600
/** Of a token that is good for any method. */
const METHODLESS_SECONDS_MAX = 60
const CREATE_ACCOUNT = 'com.atproto.server.createAccount'

export interface ServiceAuthApiParts {
  store: Store
  repos: Repos
  access: PdsAccess
  limits: Limits | undefined
  /** Milliseconds since 1970. */
  now: () => number
}

/** Adds the methods. */
export function addServiceAuthApi(xrpc: Xrpc, { store, repos, access, limits, now }: ServiceAuthApiParts): void {
  const auth = access.session({ takendown: true })
  xrpc.query(getServiceAuth, { auth }, async ({ params, auth }) => {
    const { aud, exp, lxm } = params
    const iat = Math.floor(now() / 1000)
    if (!isAudience(aud)) {
      throw new Refused('InvalidRequest', 'aud must be a valid atproto DID or did#serviceId reference')
    }
    checkMethodAccess(lxm, auth)
    if (exp !== undefined) checkExpiration(exp * 1000 - now(), lxm)
    if (lxm !== undefined && isProtectedMethod(lxm)) {
      const message = `cannot request a service auth token for the following protected method: ${lxm}`
      throw new Refused('InvalidRequest', message)
    }
    const state = await store.repos.state(auth.did)
    if (!state) throw new Refused('AccountNotFound', 'Account not found', 403)
    const claims = { iss: auth.did, aud, iat, exp: exp ?? iat + LIFETIME_SECONDS, jti: randomBytes(16).toString('hex') }
    return { token: signServiceJwt({ ...claims, ...(lxm ? { lxm } : {}) }, repos.signingKey(state.key)) }
  })
  xrpc.procedure(reserveSigningKey, { rates: perAddress(limits?.keyReservations) }, async ({ input }) => {
    const secret = randomBytes(32)
    const { didKey } = SigningKey.fromPrivate('k256', secret)
    const key = { curve: 'k256' as const, secret }
    return { signingKey: await store.tickets.reserveKey(didKey, input.did ?? null, key, now()) }
  })
}

/** A DID as accounts and services have them, alone or with the id of a service. */
function isAudience(aud: string): boolean {
  const [did, id, more] = aud.split('#')
  if (!isPlcDid(did) && !isHostDid(did)) return false
  return more === undefined && (id === undefined || /^[A-Za-z0-9._~-]+$/.test(id))
}

/** A did:web of a whole host; ports are for development on this machine. */
function isHostDid(did: string | undefined): boolean {
  if (!isDid(did)) return false
  const host = /^did:web:(?:localhost(?:%3A\d{1,5})?|([^:%]+))$/.exec(did)
  return host !== null && (host[1] === undefined || URL.canParse(`https://${host[1]}`))
}

function checkMethodAccess(lxm: string | undefined, auth: SessionUser): void {
  if (auth.isTakendown && lxm !== CREATE_ACCOUNT) throw new Refused('InvalidToken', 'Bad token scope')
  // Whose account is taken down may still take it elsewhere.
  if (lxm === undefined || auth.isPrivileged || auth.isTakendown || !isPrivilegedMethod(lxm)) return
  const message = `insufficient access to request a service auth token for the following method: ${lxm}`
  throw new Refused('InvalidRequest', message)
}

function checkExpiration(aheadMs: number, lxm: string | undefined): void {
  const refuse = (message: string) => {
    throw new Refused('BadExpiration', message)
  }
  if (aheadMs < 0) refuse('expiration is in past')
  if (aheadMs > LIFETIME_SECONDS_MAX * 1000) {
    refuse('cannot request a token with an expiration more than an hour in the future')
  }
  if (lxm === undefined && aheadMs > METHODLESS_SECONDS_MAX * 1000) {
    refuse('cannot request a method-less token with an expiration more than a minute in the future')
  }
}
