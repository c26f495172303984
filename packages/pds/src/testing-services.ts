/** Stand-ins for the services a PDS passes requests on to: real servers on loopback that say what they were asked. */
import { createServer, type IncomingHttpHeaders, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { readServiceJwt, type ServiceJwt } from '@millisky/core/jwt'
import type { Did } from '@millisky/core/syntax'
import { startTestPds, type TestPds } from './testing-pds.ts'

interface Cleanup {
  after(fn: () => Promise<void>): void
}

/** A request as the service got it. */
export interface Asked {
  method: string
  /** With the query. */
  path: string
  headers: IncomingHttpHeaders
  body: Buffer
  /** The caller's token; null without one. */
  token: ServiceJwt | null
}

export interface StandIn {
  url: string
  did: Did
  /** What it was asked, apart from its DID document. */
  asked: Asked[]
  /** What it says; set by tests. The body has been read. */
  answer: (asked: Asked, response: ServerResponse) => void
  /** In its place, to be done with as it is: nothing has been read. */
  raw: ((request: IncomingMessage, response: ServerResponse) => void) | null
}

/** Starts one whose DID is a did:web of its own, with the service ids given. */
export async function startStandIn(t: Cleanup, services: Record<string, string> = {}): Promise<StandIn> {
  const server = createServer((request, response) => {
    if (request.url === '/.well-known/did.json') return json(response, document(standIn, services))
    if (standIn.raw) return standIn.raw(request, response)
    const chunks: Buffer[] = []
    request.on('data', chunk => chunks.push(chunk))
    request.on('end', () => {
      const { method, url, headers } = request
      const bearer = /^Bearer (.*)$/.exec(headers.authorization ?? '')?.[1]
      const token = bearer === undefined ? null : readServiceJwt(bearer)
      const asked = { method: method!, path: url!, headers, body: Buffer.concat(chunks), token }
      standIn.asked.push(asked)
      standIn.answer(asked, response)
    })
  })
  await new Promise<void>(resolve => server.listen(0, 'localhost', resolve))
  t.after(async () => {
    server.closeAllConnections()
    await new Promise(resolve => server.close(resolve))
  })
  const { port } = server.address() as AddressInfo
  const standIn: StandIn = {
    url: `http://localhost:${port}`,
    did: `did:web:localhost%3A${port}` as Did,
    asked: [],
    answer: (_asked, response) => json(response, { ok: true }),
    raw: null,
  }
  return standIn
}

function document({ did, url }: StandIn, services: Record<string, string>): object {
  const all = { bsky_appview: 'BskyAppView', ...services }
  return {
    id: did,
    service: Object.entries(all).map(([id, type]) => ({ id: `#${id}`, type, serviceEndpoint: url })),
  }
}

/** Answers JSON, with headers besides. */
export function json(response: ServerResponse, body: object, headers: Record<string, string> = {}, status = 200): void {
  response.writeHead(status, { 'content-type': 'application/json', ...headers })
  response.end(JSON.stringify(body))
}

/** A PDS with an app view. */
export async function startPdsWithAppView(
  t: Cleanup,
  env: Record<string, string> = {},
  parts: Parameters<typeof startTestPds>[2] = {},
): Promise<{ pds: TestPds; appView: StandIn }> {
  const appView = await startStandIn(t)
  const settings = { PDS_BSKY_APP_VIEW_URL: appView.url, PDS_BSKY_APP_VIEW_DID: appView.did }
  return { pds: await startTestPds(t, { ...settings, ...env }, parts), appView }
}
