/** Requests that a fan-out cannot answer itself, passed on to the relay that it follows. */
import type { Readable } from 'node:stream'
import { Refused, Unavailable } from '@millisky/core/errors'
import type { Fetcher } from '@millisky/server/fetch'
import { raw } from '@millisky/server/xrpc'
import type { FastifyRequest } from 'fastify'

type RawReply = ReturnType<typeof raw>

/** Those that a relay has, with the verb that the caller has been held to. */
const PASSED: Readonly<Record<string, 'GET' | 'POST'>> = {
  'com.atproto.sync.getHostStatus': 'GET',
  'com.atproto.sync.getLatestCommit': 'GET',
  'com.atproto.sync.getRepo': 'GET',
  'com.atproto.sync.getRepoStatus': 'GET',
  'com.atproto.sync.listHosts': 'GET',
  'com.atproto.sync.listRepos': 'GET',
  'com.atproto.sync.listReposByCollection': 'GET',
  'com.atproto.sync.requestCrawl': 'POST',
  'net.millisky.relay.getCheckpointEvents': 'GET',
  'net.millisky.relay.getDirectoryStatus': 'GET',
  'net.millisky.relay.getHostReport': 'GET',
  'net.millisky.relay.listCheckpoints': 'GET',
}
const ANSWER_HEADERS = ['cache-control', 'content-encoding', 'content-length', 'location', 'retry-after']
const BODY_BYTES_MAX = 16_384
/** A relay answers with a redirect to the PDS instead of a repository; a mirror may not. */
const ANSWER_BYTES_MAX = 5_000_000_000
const HEADERS_TIMEOUT_MS = 10_000
const BODY_TIMEOUT_MS = 30_000
const UNDER_WAY_MAX = 100

/** @returns the `fallback` of an `Xrpc`. Redirects are passed on, not followed. */
export function passOn(fetcher: Pick<Fetcher, 'exchange'>, origin: string) {
  let underWay = 0
  return async (request: FastifyRequest, nsid: string): Promise<RawReply> => {
    const method = PASSED[nsid]
    if (!method) throw new Refused('MethodNotImplemented', 'Method Not Implemented', 501)
    if (underWay >= UNDER_WAY_MAX)
      throw new Unavailable('NotEnoughResources', 'Too many requests are under way', 503, 1)
    underWay++
    try {
      const { status, headers, body } = await fetcher.exchange(`${origin}${request.raw.url}`, {
        method: request.method as 'GET' | 'HEAD' | 'POST',
        headers: forwarded(request, method),
        ...(method === 'POST' ? { body: await bounded(request.raw) } : {}),
        bytesMax: ANSWER_BYTES_MAX,
        headersTimeoutMs: HEADERS_TIMEOUT_MS,
        bodyTimeoutMs: BODY_TIMEOUT_MS,
      })
      body.once('close', () => underWay--)
      const kept: Record<string, string> = {}
      for (const name of ANSWER_HEADERS) {
        const value = headers[name]
        if (typeof value === 'string') kept[name] = value
      }
      const type = headers['content-type']
      return raw(typeof type === 'string' ? type : undefined, body, kept, status)
    } catch (error) {
      underWay--
      throw error
    }
  }
}

function forwarded({ headers, ip }: FastifyRequest, method: 'GET' | 'POST'): Record<string, string> {
  const kept: Record<string, string> = { 'x-forwarded-for': ip }
  for (const name of ['accept', 'accept-encoding', 'accept-language', ...(method === 'POST' ? ['content-type'] : [])]) {
    const value = headers[name]
    if (typeof value === 'string') kept[name] = value
  }
  return kept
}

async function bounded(body: Readable): Promise<Uint8Array> {
  const chunks: Uint8Array[] = []
  let size = 0
  for await (const chunk of body as AsyncIterable<Uint8Array>) {
    size += chunk.length
    if (size > BODY_BYTES_MAX) throw new Refused('PayloadTooLarge', 'request entity too large', 413)
    chunks.push(chunk)
  }
  return Buffer.concat(chunks)
}
