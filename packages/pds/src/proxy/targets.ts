/** Whom a request is for: what `atproto-proxy` says, else the default of the method's namespace. */
import { originOf, serviceEndpoint } from '@millisky/core/did'
import { Refused, Unavailable } from '@millisky/core/errors'
import { type Did, isDid, type Nsid } from '@millisky/core/syntax'
import type { Identities } from '@millisky/server/identity'
import type { FastifyRequest } from 'fastify'
import { defaultService, type Service, type Services } from './services.ts'

/** A service by name; `service` is set where nobody has to be asked for it. */
export interface Wanted {
  did: string
  /** Without `#`. */
  id: string
  service: Service | null
}

export interface TargetsParts {
  services: Services
  identities: Pick<Identities, 'resolveDid'>
}

const invalid = (message: string) => new Refused('InvalidRequest', message)

/** Finds services. */
export class Targets {
  readonly services: Services
  readonly #identities: TargetsParts['identities']

  constructor({ services, identities }: TargetsParts) {
    this.services = services
    this.#identities = identities
  }

  /** The service meant; null if the caller names none and there is no default. @throws Refused for a bad header */
  wanted(request: FastifyRequest, nsid: Nsid): Wanted | null {
    const header = request.headers['atproto-proxy']
    if (header !== undefined && header !== '') return this.#named(String(header))
    const service = defaultService(nsid, this.services)
    return service && { did: service.did, id: service.id, service }
  }

  /** Whether the request is for the server's own app view. @throws Refused for a bad header */
  isOwnAppView(request: FastifyRequest, nsid: Nsid): boolean {
    const wanted = this.wanted(request, nsid)
    return wanted === null || (wanted.service !== null && wanted.service === this.services.appView)
  }

  #named(header: string): Wanted {
    const { did, id } = parseProxyHeader(header)
    const { appView, moderation, reports } = this.services
    const own = [appView, moderation, reports].find(service => service?.did === did && service.id === id)
    return { did, id, service: own ?? null }
  }

  /** Where it is. @throws Refused 400 if that cannot be found out */
  async resolve({ did, id, service }: Wanted): Promise<Service> {
    const found = service ?? (isDid(did) ? await this.find({ did, id }) : 'no-document')
    if (found === 'no-document') throw invalid('could not resolve proxy did')
    if (found === 'no-service') throw invalid('could not resolve proxy did service url')
    return found
  }

  /** A service by the DID document that it stands in, or what is missing. */
  async find({
    did,
    id,
    type,
  }: {
    did: Did
    id: string
    type?: string
  }): Promise<Service | 'no-document' | 'no-service'> {
    try {
      const { doc } = await this.#identities.resolveDid(did)
      const origin = originOf(serviceEndpoint(doc, did, id, type))
      return origin === null ? 'no-service' : { did, id, origin, isTrusted: false }
    } catch (error) {
      if (error instanceof Refused || error instanceof Unavailable) return 'no-document'
      throw error
    }
  }
}

/** Takes `did#id` apart. Source: messages and their order are the reference's. @throws Refused */
export function parseProxyHeader(header: string): { did: string; id: string } {
  const hash = header.indexOf('#')
  if (hash === 0) throw invalid('no did specified in proxy header')
  if (hash < 0 || hash === header.length - 1) throw invalid('no service id specified in proxy header')
  if (header.includes('#', hash + 1)) throw invalid('invalid proxy header format')
  if (header.includes(' ')) throw invalid('proxy header cannot contain spaces')
  return { did: header.slice(0, hash), id: header.slice(hash + 1) }
}
