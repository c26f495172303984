/** Tokens by which another account or service proves itself to this server, checked against its DID document. */
import { PublicKey } from '@millisky/core/crypto'
import { Refused } from '@millisky/core/errors'
import { checkServiceClaims, checkServiceSignature, readServiceJwt } from '@millisky/core/jwt'
import type { Did, Nsid } from '@millisky/core/syntax'
import type { Identities } from '@millisky/server/identity'

export interface ServiceAuthParts {
  identities: Pick<Identities, 'resolveDid'>
  /** DIDs and service references that this server answers to. */
  audiences: string[]
  /** Milliseconds since 1970. */
  now: () => number
}

/**
 * Who signed the token, if it is meant for this server and this method.
 *
 * @throws Refused 401 BadJwt, BadJwtAudience, BadJwtSignature …
 */
export async function verifyServiceToken(token: string, lxm: Nsid, parts: ServiceAuthParts): Promise<Did> {
  const jwt = readServiceJwt(token)
  const { iss } = checkServiceClaims(jwt, { aud: parts.audiences, lxm, now: parts.now() })
  try {
    checkServiceSignature(jwt, await keyOf(iss, false, parts))
  } catch (error) {
    if (!(error instanceof Refused)) throw error
    // The key may have changed since the document was read.
    checkServiceSignature(jwt, await keyOf(iss, true, parts))
  }
  return iss
}

async function keyOf(did: Did, fresh: boolean, { identities }: ServiceAuthParts): Promise<PublicKey> {
  const { signingKey } = await identities.resolveDid(did, { fresh })
  if (signingKey === null) throw new Refused('BadJwtSignature', 'could not find signing key of issuer', 401)
  return PublicKey.parseDidKey(signingKey)
}
