/**
 * Who is calling, found out from the `Authorization` header; the `auth` functions of the methods.
 *
 * Source: pds.md #16-#37; names and messages as the reference's clients see them.
 */
import { timingSafeEqual } from 'node:crypto'
import { utf8 } from '@millisky/core/bytes'
import { Refused } from '@millisky/core/errors'
import { sha256 } from '@millisky/core/hash'
import { readServiceJwt } from '@millisky/core/jwt'
import { type Did, isDid, type Nsid } from '@millisky/core/syntax'
import { Guesses } from '@millisky/server/guesses'
import type { Auth } from '@millisky/server/xrpc'
import type { FastifyRequest } from 'fastify'
import type { Access, User, Viewer } from './callers.ts'
import type { ServiceTokens } from './service-auth.ts'
import { type AccountStore, statusOf } from './store/store.ts'
import { type AccessToken, type RefreshToken, SCOPES, type Tokens } from './tokens.ts'

/** A session of an account, with what it may do. */
export interface SessionUser extends User {
  /** Signed in with the account's own password, so that the account itself may be changed. */
  readonly isFull: boolean
  /** Whether private things such as personal details and chats are within reach. */
  readonly isPrivileged: boolean
  /** The account was taken down when this session began: its owner may look and leave. */
  readonly isTakendown: boolean
}

export interface SessionDemands {
  /** The account's own password, no app password. */
  readonly full?: boolean
  /** Also a session that was opened after a takedown. */
  readonly takendown?: boolean
  /** The account must exist and not be taken down now. Costs a look into the database. */
  readonly unlessTakendown?: boolean
}

/** All ways to require a caller. */
export interface PdsAccess extends Access {
  /** Any session, unless more is demanded. */
  user: Auth<SessionUser>
  session(demands: SessionDemands): Auth<SessionUser>
  /** The refresh token; `ended` accepts one whose time is over. */
  refresh: Auth<RefreshToken>
  ended: Auth<RefreshToken>
  /** Basic, user `admin`. */
  admin: Auth<{ isAdmin: true }>
  /** The admin, or the moderation service by a token of its own. */
  moderator: Auth<{ isAdmin: boolean }>
  /** A session, or whom a service token of the account's own key proves: for services that upload in its name, such as of video. */
  uploader: Auth<User>
  /** A session as demanded, or the moderation service, which then acts for the account in the parameter `did`. */
  sessionOrModService(demands: SessionDemands): Auth<SessionUser>
  /** The DID that a service token proves, as for moving an account here; null without a token. */
  service: Auth<Did | null>
}

export interface AccessParts {
  tokens: Tokens
  serviceTokens: ServiceTokens
  accounts: Pick<AccountStore, 'byDid'>
  /** Without one, nobody is the admin. */
  adminPassword: string | undefined
  /** DID of the service whose moderators act here. */
  modServiceDid: string | undefined
}

const NOBODY: Viewer = { sees: () => false }
const ADMIN: Viewer = { sees: () => true }

/** Makes the `auth` functions. */
export function createAccess(parts: AccessParts): PdsAccess {
  const { tokens, accounts } = parts
  const checkAdmin = adminCheck(parts.adminPassword)
  const session =
    ({ full = false, takendown = false, unlessTakendown = false }: SessionDemands): Auth<SessionUser> =>
    async request => {
      const token = await tokens.readAccess(sessionToken(request))
      const { scope } = token
      const isFit = scope === SCOPES.takendown ? takendown && !unlessTakendown : !full || scope === SCOPES.access
      if (!isFit) throw new Refused('InvalidToken', 'Bad token scope')
      if (unlessTakendown) await assertNotTakendown(accounts, token.did)
      return sessionUser(token)
    }
  return {
    session,
    user: session({}),
    async viewer(request) {
      const credentials = credentialsOf(request)
      if (credentials === null) return NOBODY
      if (credentials.type === 'basic') {
        checkAdmin(request)
        return ADMIN
      }
      const { did } = await tokens.readAccess(sessionToken(request))
      return { sees: (asked: Did) => asked === did }
    },
    refresh: request => tokens.readRefresh(bearerOf(request)),
    ended: request => tokens.readRefresh(bearerOf(request), { expired: true }),
    admin(request) {
      checkAdmin(request)
      return { isAdmin: true }
    },
    async moderator(request, { nsid }) {
      const credentials = credentialsOf(request)
      if (credentials?.type === 'bearer') {
        await checkModService(parts, credentials.value, nsid)
        return { isAdmin: false }
      }
      checkAdmin(request)
      return { isAdmin: true }
    },
    async uploader(request, call) {
      const token = serviceTokenOf(request)
      if (token === null) return session({})(request, call)
      const did = await parts.serviceTokens.verify(token, call.nsid)
      return { did, mayWrite: () => {}, mayUpload: () => {} }
    },
    sessionOrModService: demands => async (request, call) => {
      const token = serviceTokenOf(request)
      if (token === null) return session(demands)(request, call)
      await checkModService(parts, token, call.nsid)
      const did = new URLSearchParams(request.raw.url!.split('?')[1]).get('did')
      if (!isDid(did)) throw new Refused('InvalidRequest', 'Invalid or missing did parameter')
      return sessionUser({ did, scope: SCOPES.access })
    },
    async service(request, { nsid }) {
      const credentials = credentialsOf(request)
      if (credentials?.type === 'bearer') return parts.serviceTokens.verify(credentials.value, nsid)
      if (credentials === null) return null
      throw new Refused('AuthenticationRequired', 'Invalid authorization header', 401)
    },
  }
}

/** Throws unless the request bears the admin's password; who guesses has to wait. */
function adminCheck(password: string | undefined): (request: FastifyRequest) => void {
  const digest = password === undefined ? null : sha256(utf8(password))
  const guesses = new Guesses()
  return request => {
    const given = basicPassword(request)
    // Hashes are of equal length, which the comparison in constant time asks for.
    if (digest && given && guesses.check(request, sha256(given), found => timingSafeEqual(found, digest))) return
    throw new Refused('AuthenticationRequired', 'Authentication Required', 401)
  }
}

async function checkModService({ serviceTokens, modServiceDid }: AccessParts, token: string, nsid: Nsid) {
  const untrusted = new Refused('UntrustedIss', 'Untrusted issuer', 401)
  if (modServiceDid === undefined) throw untrusted
  const isTrusted = (did: Did) => {
    if (did !== modServiceDid) throw untrusted
  }
  await serviceTokens.verify(token, nsid, { isTrusted, keyIds: ['#atproto', '#atproto_label'] })
}

async function assertNotTakendown(accounts: AccessParts['accounts'], did: Did): Promise<void> {
  const account = await accounts.byDid(did)
  if (!account) throw new Refused('AccountNotFound', 'Account not found', 403)
  if (statusOf(account) === 'takendown') throw new Refused('AccountTakedown', 'Account has been taken down', 401)
}

function sessionUser({ did, scope }: AccessToken): SessionUser {
  const isFull = scope === SCOPES.access
  return {
    did,
    isFull,
    isPrivileged: isFull || scope === SCOPES.appPassPrivileged,
    isTakendown: scope === SCOPES.takendown,
    // Sessions by password write whatever the account may; granular permissions come with OAuth.
    mayWrite: () => {},
    mayUpload: () => {},
  }
}

interface Credentials {
  type: 'basic' | 'bearer' | 'dpop'
  value: string
}

/** Null without the header. @throws Refused 400 InvalidToken */
function credentialsOf({ headers: { authorization } }: FastifyRequest): Credentials | null {
  if (!authorization) return null
  const [scheme, value, more] = authorization.split(' ')
  if (value === undefined || more !== undefined) throw new Refused('InvalidToken', 'Malformed authorization header')
  const type = scheme!.toLowerCase()
  if (type !== 'basic' && type !== 'bearer' && type !== 'dpop') {
    throw new Refused('InvalidToken', `Unsupported authorization type: ${scheme!.slice(0, 50)}`)
  }
  return { type, value }
}

function missing(): Refused {
  return new Refused('AuthMissing', 'Authentication Required', 401)
}

function sessionToken(request: FastifyRequest): string {
  const credentials = credentialsOf(request)
  if (credentials === null) throw missing()
  if (credentials.type !== 'bearer') throw new Refused('InvalidToken', 'Unexpected authorization type')
  return credentials.value
}

function bearerOf(request: FastifyRequest): string {
  const credentials = credentialsOf(request)
  if (credentials?.type !== 'bearer') throw missing()
  return credentials.value
}

/** The bearer token if it is one of a service, which names the method that it is good for; nothing of it is proven yet. */
function serviceTokenOf(request: FastifyRequest): string | null {
  const credentials = credentialsOf(request)
  if (credentials?.type !== 'bearer') return null
  try {
    const { payload } = readServiceJwt(credentials.value)
    return payload.lxm !== undefined ? credentials.value : null
  } catch {
    return null
  }
}

/** Null for anything but the user `admin` with some password, which may hold colons. */
function basicPassword({ headers: { authorization = '' } }: FastifyRequest): Uint8Array | null {
  const match = /^basic +([A-Za-z0-9+/=_-]+)$/i.exec(authorization)
  if (!match) return null
  const decoded = Buffer.from(match[1]!, 'base64')
  const prefix = Buffer.from('admin:')
  return decoded.subarray(0, prefix.length).equals(prefix) ? decoded.subarray(prefix.length) : null
}
