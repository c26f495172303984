/** Pages outside XRPC: who this is, whose handle that is. Source: pds.md #13-#15. */
import type { FastifyInstance } from 'fastify'
import type { ServiceNames } from '../config.ts'
import type { Store } from '../store/store.ts'

export interface WellKnownParts {
  store: Store
  names: ServiceNames
  version: string
}

const TEXT = 'text/plain; charset=utf-8'

function greeting(names: ServiceNames, version: string): string {
  return `
  millisky ${version}

  This is an AT Protocol Personal Data Server: it keeps people's posts and files under their own names.

  Server   ${names.did}
  XRPC     ${names.publicUrl}/xrpc/
`
}

/** A host name without the port. */
function hostOf(header: string | undefined): string {
  return (header ?? '').toLowerCase().replace(/:\d+$/, '')
}

/** Adds the routes. */
export function addWellKnown(http: FastifyInstance, { store, names, version }: WellKnownParts): void {
  const page = greeting(names, version)
  http.get('/', (_request, reply) => reply.type(TEXT).send(page))
  http.get('/robots.txt', (_request, reply) =>
    reply.type(TEXT).send('# Crawling the public API is allowed\nUser-agent: *\nAllow: /\n'),
  )
  http.get('/.well-known/atproto-did', async (request, reply) => {
    const account = await store.accounts.byHandle(hostOf(request.host) as never)
    reply.type(TEXT)
    if (!account) return reply.code(404).send('User not found')
    return reply.send(account.did)
  })
  http.get('/.well-known/did.json', (request, reply) => {
    const host = names.did.slice('did:web:'.length).replace(/%3a\d+$/i, '')
    if (!names.did.startsWith('did:web:') || hostOf(request.host) !== host) {
      return reply.code(404).send({ error: 'NotFound', message: 'Not Found' })
    }
    return reply.send({
      '@context': ['https://www.w3.org/ns/did/v1'],
      id: names.did,
      service: [{ id: '#atproto_pds', type: 'AtprotoPersonalDataServer', serviceEndpoint: names.publicUrl }],
    })
  })
  // Asked by Caddy before it gets a certificate for a name.
  http.get<{ Querystring: { domain?: unknown } }>('/tls-check', async (request, reply) => {
    // A list, if it was given twice.
    const { domain: asked } = request.query
    const domain = typeof asked === 'string' ? hostOf(asked) : ''
    if (domain === '') {
      return reply.code(400).send({ error: 'InvalidRequest', message: 'bad or missing domain query param' })
    }
    const isOurs = domain === hostOf(names.publicHost) || (await store.accounts.byHandle(domain as never)) !== null
    if (!isOurs) return reply.code(404).send({ error: 'NotFound', message: 'handle not found for this domain' })
    return reply.send({ success: true })
  })
}
