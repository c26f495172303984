/** Tokens by which another account or service proves itself to this server, checked against its DID document. */
import type { PublicKey } from '@millisky/core/crypto'
import { verificationKey } from '@millisky/core/did'
import { Refused, Unavailable } from '@millisky/core/errors'
import { checkServiceClaims, checkServiceSignature, readServiceJwt } from '@millisky/core/jwt'
import type { Did, Nsid } from '@millisky/core/syntax'
import type { Identities } from '@millisky/server/identity'

export interface ServiceTokensParts {
  identities: Pick<Identities, 'resolveDid'>
  /** DIDs and service references that this server answers to. */
  audiences: readonly string[]
  /** Milliseconds since 1970. */
  now: () => number
}

export interface ServiceTokenDemands {
  /** Throws for an issuer that is not wanted, before anything is asked of the world. */
  isTrusted?: (did: Did) => void
  /** Keys of the issuer that may sign; `#atproto` alone unless told. */
  keyIds?: readonly string[]
}

/** Checks service tokens. */
export class ServiceTokens {
  readonly #parts: ServiceTokensParts

  constructor(parts: ServiceTokensParts) {
    this.#parts = parts
  }

  /**
   * Who signed the token, if it is meant for this server and this method.
   *
   * @throws Refused 401 BadJwt, BadJwtAudience, BadJwtSignature …
   */
  async verify(token: string, lxm: Nsid, { isTrusted, keyIds }: ServiceTokenDemands = {}): Promise<Did> {
    const { audiences, now } = this.#parts
    const jwt = readServiceJwt(token)
    const expected = { aud: audiences, lxm, now: now(), ...(keyIds ? { keyIds } : {}) }
    const { iss, keyId } = checkServiceClaims(jwt, expected)
    isTrusted?.(iss)
    try {
      checkServiceSignature(jwt, await this.#key(iss, keyId, false))
    } catch (error) {
      if (!(error instanceof Refused)) throw error
      // The key may have changed since the document was read.
      checkServiceSignature(jwt, await this.#key(iss, keyId, true))
    }
    return iss
  }

  async #key(did: Did, keyId: string, fresh: boolean): Promise<PublicKey> {
    const identity = await this.#parts.identities.resolveDid(did, { fresh }).catch(error => {
      if (error instanceof Unavailable) throw error
      throw new Refused('AuthenticationRequired', 'could not resolve iss did', 401)
    })
    const key = verificationKey(identity.doc, did, keyId)
    if (!key) throw new Refused('AuthenticationRequired', 'missing or bad key in did doc', 401)
    return key
  }
}
