/**
 * Session tokens: signed statements about who is calling, valid for a while.
 *
 * Source: pds.md #17-#23; the claims and types are those of the reference, so that its clients read them.
 */
import { createSecretKey, type KeyObject } from 'node:crypto'
import { Refused } from '@millisky/core/errors'
import { type Did, isDid } from '@millisky/core/syntax'
import { errors, type JWTPayload, jwtVerify, SignJWT } from 'jose'

export const SCOPES = {
  access: 'com.atproto.access',
  appPass: 'com.atproto.appPass',
  appPassPrivileged: 'com.atproto.appPassPrivileged',
  refresh: 'com.atproto.refresh',
  takendown: 'com.atproto.takendown',
} as const
export type AccessScope = Exclude<(typeof SCOPES)[keyof typeof SCOPES], 'com.atproto.refresh'>

const ACCESS_SECONDS = 120 * 60
const REFRESH_SECONDS = 90 * 24 * 3600
export const REFRESH_MS = REFRESH_SECONDS * 1000
/** Verified tokens that are remembered; each is some 400 bytes. */
const KNOWN_MAX = 10_000

export interface AccessToken {
  did: Did
  scope: AccessScope
}

export interface RefreshToken {
  did: Did
  /** The `jti`. */
  id: string
}

interface Known extends AccessToken {
  /** Seconds since 1970. */
  exp: number
}

const ACCESS_SCOPES: readonly string[] = Object.values(SCOPES).filter(scope => scope !== SCOPES.refresh)

/** Makes and reads the tokens of one server. */
export class Tokens {
  readonly #key: KeyObject
  readonly #service: string
  readonly #now: () => number
  // A client sends the same token with every call: verifying it once is enough, until it expires.
  readonly #known = new Map<string, Known>()

  /**
   * @param service - DID of this server, the audience of its tokens.
   * @param now - Milliseconds since 1970.
   */
  constructor(secret: string, service: string, now: () => number) {
    this.#key = createSecretKey(Buffer.from(secret, 'utf8'))
    this.#service = service
    this.#now = now
  }

  access(did: Did, scope: AccessScope): Promise<string> {
    return this.#sign('at+jwt', { scope }, did, ACCESS_SECONDS)
  }

  /** @param id - The session's, becomes the `jti`. */
  refresh({ did, id }: RefreshToken): Promise<string> {
    return this.#sign('refresh+jwt', { scope: SCOPES.refresh, jti: id }, did, REFRESH_SECONDS)
  }

  /** @throws Refused 400 ExpiredToken, InvalidToken */
  async readAccess(token: string): Promise<AccessToken> {
    const known = this.#known.get(token)
    if (known) {
      if (known.exp * 1000 > this.#now()) return known
      this.#known.delete(token)
    }
    const claims = await this.#verify(token, 'at+jwt', false)
    const { scope, exp } = claims
    if (typeof scope !== 'string' || !ACCESS_SCOPES.includes(scope)) throw invalid('Bad token scope')
    const read: Known = { did: claims.sub as Did, scope: scope as AccessScope, exp: exp! }
    if (this.#known.size >= KNOWN_MAX) this.#known.delete(this.#known.keys().next().value!)
    this.#known.set(token, read)
    return read
  }

  /** @param expired - Accept it also after its time, for ending the session. @throws Refused 400 ExpiredToken, InvalidToken */
  async readRefresh(token: string, { expired = false } = {}): Promise<RefreshToken> {
    const { scope, jti, sub } = await this.#verify(token, 'refresh+jwt', expired)
    if (scope !== SCOPES.refresh) throw invalid('Bad token scope')
    if (jti !== undefined && typeof jti !== 'string') throw invalid('Malformed token')
    if (!jti) throw new Refused('MissingTokenId', 'Unexpected missing refresh token id', 401)
    return { did: sub as Did, id: jti }
  }

  #sign(typ: string, claims: JWTPayload, did: Did, seconds: number): Promise<string> {
    const iat = Math.floor(this.#now() / 1000)
    return new SignJWT(claims)
      .setProtectedHeader({ typ, alg: 'HS256' })
      .setSubject(did)
      .setAudience(this.#service)
      .setIssuedAt(iat)
      .setExpirationTime(iat + seconds)
      .sign(this.#key)
  }

  async #verify(token: string, typ: string, expired: boolean): Promise<JWTPayload> {
    // With a clock at zero nothing has expired.
    const currentDate = new Date(expired ? 0 : this.#now())
    let claims: JWTPayload
    try {
      const { payload } = await jwtVerify(token, this.#key, {
        audience: this.#service,
        algorithms: ['HS256'],
        typ,
        currentDate,
      })
      claims = payload
    } catch (error) {
      if (error instanceof errors.JWTExpired) throw new Refused('ExpiredToken', 'Token has expired')
      throw invalid('Token could not be verified')
    }
    // A DPoP-bound token or a service token is none of ours, whoever signed it.
    if ('cnf' in claims || 'lxm' in claims) throw invalid('Malformed token')
    if (!isDid(claims.sub) || claims.exp === undefined || typeof claims.aud !== 'string')
      throw invalid('Malformed token')
    return claims
  }
}

function invalid(message: string): Refused {
  return new Refused('InvalidToken', message)
}
