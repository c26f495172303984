/**
 * Service-auth tokens: short-lived JWTs by which an account's key vouches for one request to another service.
 *
 * Reading, checking the claims and checking the signature are three steps, because the key has to be looked up by the
 * issuer in between, and should be for no token that is refused anyway:
 *
 * ```ts
 * const jwt = readServiceJwt(token)
 * const { iss, keyId } = checkServiceClaims(jwt, { aud: [ownDid], lxm: 'com.atproto.…', now })
 * checkServiceSignature(jwt, keyOf(iss, keyId)) // on BadJwtSignature refresh the identity and try once more
 * ```
 *
 * Failures are {@link Refused} with status 401 and the reference's names: `BadJwt`, `BadJwtType`, `JwtExpired`,
 * `BadJwtAudience`, `BadJwtLexiconMethod`, `BadJwtIss`, `BadJwtSignature`.
 *
 * Source: atproto.com/specs/xrpc, "Inter-Service Authentication"; error names and their order from the reference.
 */
import { base64url, fromUtf8, unbase64url, utf8 } from './bytes.ts'
import type { PublicKey, SigningKey } from './crypto.ts'
import { Refused } from './errors.ts'
import { JWT_LENGTH_MAX } from './limits.ts'
import { type Did, isDid } from './syntax.ts'

/** Claims to sign. Times are seconds since 1970. */
export interface ServiceClaims {
  iss: Did
  /** The DID of the receiving service, with or without `#id` of the service: to a receiver these are two audiences. */
  aud: string
  /** NSID of the one method it is good for; a token without is refused by nearly everyone. */
  lxm?: string
  iat: number
  exp: number
  /** Random, different in every token. */
  jti: string
}

/** A token taken apart; nothing in it has been proven. */
export interface ServiceJwt {
  header: { alg: string; typ?: string; kid?: string }
  payload: { iss: string; aud: string; exp: number; iat?: number; lxm?: string; jti?: string }
  /** The bytes that are signed: the token up to its second dot. */
  signed: Uint8Array
  sig: Uint8Array
}

function refuse(error: string, message: string): never {
  throw new Refused(error, message, 401)
}

function encodeJson(value: object): string {
  return base64url(utf8(JSON.stringify(value)))
}

/** Signs a service-auth token by the issuer's `#atproto` key. Lifetime and audience are for the caller to bound. */
export function signServiceJwt(claims: ServiceClaims, key: SigningKey): string {
  const { iat, iss, aud, exp, lxm, jti } = claims
  const signed = `${encodeJson({ typ: 'JWT', alg: key.publicKey.jwtAlg })}.${encodeJson({ iat, iss, aud, exp, lxm, jti })}`
  return `${signed}.${base64url(key.sign(utf8(signed)))}`
}

function decodeJson(text: string): { [claim: string]: unknown } {
  const value: unknown = JSON.parse(fromUtf8(unbase64url(text)))
  if (typeof value !== 'object' || value === null) throw new SyntaxError('not an object')
  return value as { [claim: string]: unknown }
}

/** Types of token that are signed by or for the same keys and must never stand in for this one. */
const FOREIGN_TYPES: ReadonlySet<string> = new Set(['at+jwt', 'refresh+jwt', 'dpop+jwt'])

/**
 * Takes a token apart and checks its form.
 * @throws {@link Refused} `BadJwt`, `BadJwtType`
 */
export function readServiceJwt(token: string): ServiceJwt {
  const parts = token.length <= JWT_LENGTH_MAX ? token.split('.') : []
  if (parts.length !== 3) refuse('BadJwt', 'poorly formatted jwt')
  let header: { [claim: string]: unknown }
  let payload: { [claim: string]: unknown }
  let sig: Uint8Array
  try {
    header = decodeJson(parts[0]!)
    payload = decodeJson(parts[1]!)
    sig = unbase64url(parts[2]!)
  } catch {
    return refuse('BadJwt', 'poorly formatted jwt')
  }
  const optional = (value: unknown, type: string) => value === undefined || typeof value === type
  const soundHeader = typeof header.alg === 'string' && optional(header.typ, 'string') && optional(header.kid, 'string')
  // RFC 7515 §4.1.11: extensions named by `crit` must be understood, and none is.
  if (!soundHeader || header.crit !== undefined) refuse('BadJwt', 'poorly formatted jwt')
  if (typeof header.typ === 'string' && FOREIGN_TYPES.has(header.typ.toLowerCase().replace(/^application\//, ''))) {
    refuse('BadJwtType', `Invalid jwt type "${header.typ}"`)
  }
  const soundPayload =
    typeof payload.iss === 'string' &&
    typeof payload.aud === 'string' &&
    Number.isFinite(payload.exp) &&
    optional(payload.iat, 'number') &&
    optional(payload.lxm, 'string') &&
    optional(payload.jti, 'string')
  if (!soundPayload) refuse('BadJwt', 'poorly formatted jwt')
  const { iss, aud, exp, iat, lxm, jti } = payload as unknown as ServiceJwt['payload']
  return {
    header: {
      alg: header.alg as string,
      ...(header.typ !== undefined && { typ: header.typ as string }),
      ...(header.kid !== undefined && { kid: header.kid as string }),
    },
    payload: {
      iss,
      aud,
      exp,
      ...(iat !== undefined && { iat }),
      ...(lxm !== undefined && { lxm }),
      ...(jti !== undefined && { jti }),
    },
    signed: utf8(token.slice(0, token.lastIndexOf('.'))),
    sig,
  }
}

/** What a receiver demands of a token. */
export interface ServiceExpectation {
  /** Its own audiences, compared exactly: a bare DID does not stand for its services. */
  aud: readonly string[]
  /** The method being called; null if any will do. */
  lxm: string | null
  /** Milliseconds since 1970. */
  now: number
  /** Keys of the issuer that may sign; `#atproto` alone if left out. */
  keyIds?: readonly string[]
}

/** Who claims to have signed a token. */
export interface ServiceIssuer {
  iss: Did
  /** The id, with `#`, of the verification method in the issuer's DID document that has to verify it. */
  keyId: string
  /** To be remembered until `exp` against replay; old issuers leave it out. */
  jti: string | null
  /** Seconds since 1970. */
  exp: number
}

/** `iss` was once allowed to name a service; labelers still do, and sign by their label key. */
const LABELER = '#atproto_labeler'

/**
 * Checks everything about a token except its signature.
 * @throws {@link Refused} `JwtExpired`, `BadJwtAudience`, `BadJwtLexiconMethod`, `BadJwtIss`, and `BadJwtSignature` for a key
 *   that may not sign
 */
export function checkServiceClaims(jwt: ServiceJwt, expect: ServiceExpectation): ServiceIssuer {
  const { iss, aud, exp, lxm, jti } = jwt.payload
  if (expect.now / 1000 > exp) refuse('JwtExpired', 'jwt expired')
  if (!expect.aud.includes(aud)) refuse('BadJwtAudience', 'jwt audience does not match service did')
  if (expect.lxm !== null && lxm !== expect.lxm) {
    const fault = lxm === undefined ? 'missing' : 'bad'
    refuse('BadJwtLexiconMethod', `${fault} jwt lexicon method ("lxm"). must match: ${expect.lxm}`)
  }
  const labeler = iss.endsWith(LABELER)
  const did = labeler ? iss.slice(0, -LABELER.length) : iss
  if (!isDid(did)) refuse('BadJwtIss', 'jwt iss is not a valid did')
  const keyId = jwt.header.kid ?? (labeler ? '#atproto_label' : '#atproto')
  if (!(expect.keyIds ?? ['#atproto']).includes(keyId)) refuse('BadJwtSignature', 'jwt is signed by an unexpected key')
  return { iss: did, keyId, jti: jti ?? null, exp }
}

/**
 * Checks a token's signature by the key that {@link checkServiceClaims} asked for.
 * @throws {@link Refused} `BadJwtSignature`; a caller that used a cached key should then fetch the key once more
 */
export function checkServiceSignature(jwt: ServiceJwt, key: PublicKey): void {
  if (jwt.header.alg !== key.jwtAlg || !key.verify(jwt.signed, jwt.sig)) {
    refuse('BadJwtSignature', 'jwt signature does not match jwt issuer')
  }
}

/** Claims and signature at once, where the key is already at hand. @throws {@link Refused} as the two do. */
export function checkServiceJwt(jwt: ServiceJwt, expect: ServiceExpectation, key: PublicKey): ServiceIssuer {
  const issuer = checkServiceClaims(jwt, expect)
  checkServiceSignature(jwt, key)
  return issuer
}
