/**
 * Who is calling, found out from the `Authorization` header; the `auth` functions of the methods.
 *
 * Source: pds.md #16-#37.
 */
import { timingSafeEqual } from 'node:crypto'
import { utf8 } from '@millisky/core/bytes'
import { Refused } from '@millisky/core/errors'
import { sha256 } from '@millisky/core/hash'
import type { Did } from '@millisky/core/syntax'
import type { Auth } from '@millisky/server/xrpc'
import type { FastifyRequest } from 'fastify'
import type { Access, User, Viewer } from './callers.ts'
import { type AccessToken, type RefreshToken, SCOPES, type Tokens } from './tokens.ts'

/** A session of an account, with what it may do. */
export interface SessionUser extends User {
  /** Signed in with the account's own password, so that the account itself may be changed. */
  readonly isFull: boolean
  /** Whether private things such as personal details and chats are within reach. */
  readonly isPrivileged: boolean
}

/** All ways to require a caller. */
export interface PdsAccess extends Access {
  user: Auth<SessionUser>
  /** Also of an account that is taken down, whose owner may still look and leave. */
  anyUser: Auth<SessionUser>
  /** The refresh token; `ended` accepts one whose time is over. */
  refresh: Auth<RefreshToken>
  ended: Auth<RefreshToken>
  /** Basic, user `admin`. */
  admin: Auth<{ isAdmin: true }>
}

export interface AccessParts {
  tokens: Tokens
  /** Without one, nobody is the admin. */
  adminPassword: string | undefined
}

const NOBODY: Viewer = { sees: () => false }
const ADMIN: Viewer = { sees: () => true }

/** Makes the `auth` functions. */
export function createAccess({ tokens, adminPassword }: AccessParts): PdsAccess {
  const adminDigest = adminPassword === undefined ? null : sha256(utf8(adminPassword))
  const anyUser = async (request: FastifyRequest) => sessionUser(await tokens.readAccess(bearerOf(request)))
  const checkAdmin = (request: FastifyRequest) => {
    const password = basicPassword(request)
    // Hashes are of equal length, which the comparison in constant time asks for.
    if (!adminDigest || password === null || !timingSafeEqual(sha256(password), adminDigest)) {
      throw new Refused('AuthenticationRequired', 'Authentication Required', 401, { 'www-authenticate': 'Basic' })
    }
  }
  return {
    anyUser,
    async user(request) {
      const token = await tokens.readAccess(bearerOf(request))
      if (token.scope === SCOPES.takendown) throw new Refused('InvalidToken', 'Bad token scope')
      return sessionUser(token)
    },
    async viewer(request) {
      const { authorization } = request.headers
      if (authorization === undefined) return NOBODY
      if (/^basic /i.test(authorization)) {
        checkAdmin(request)
        return ADMIN
      }
      const { did } = await tokens.readAccess(bearerOf(request))
      return { sees: (asked: Did) => asked === did }
    },
    refresh: request => tokens.readRefresh(bearerOf(request)),
    ended: request => tokens.readRefresh(bearerOf(request), { expired: true }),
    admin(request) {
      if (request.headers.authorization === undefined) throw missing()
      checkAdmin(request)
      return { isAdmin: true }
    },
  }
}

function sessionUser({ did, scope }: AccessToken): SessionUser {
  const isFull = scope === SCOPES.access
  return {
    did,
    isFull,
    isPrivileged: isFull || scope === SCOPES.appPassPrivileged,
    // Sessions by password write whatever the account may; granular permissions come with OAuth.
    mayWrite: () => {},
    mayUpload: () => {},
  }
}

function missing(): Refused {
  return new Refused('AuthMissing', 'Authentication Required', 401)
}

function bearerOf(request: FastifyRequest): string {
  const { authorization } = request.headers
  if (authorization === undefined || authorization === '') throw missing()
  const match = /^bearer +([^\s]+)$/i.exec(authorization)
  if (!match) {
    if (/^(bearer|dpop) /i.test(authorization)) throw new Refused('InvalidToken', 'Malformed token')
    throw missing()
  }
  return match[1]!
}

function basicPassword(request: FastifyRequest): Uint8Array | null {
  const match = /^basic +([A-Za-z0-9+/=_-]+)$/i.exec(request.headers.authorization ?? '')
  if (!match) return null
  const decoded = Buffer.from(match[1]!, 'base64')
  const prefix = Buffer.from('admin:')
  return decoded.subarray(0, prefix.length).equals(prefix) ? decoded.subarray(prefix.length) : null
}
