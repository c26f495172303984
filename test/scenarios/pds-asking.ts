// Requests to a PDS as they stand on the wire: what `fetch` would not send as it is said.
import { type IncomingHttpHeaders, request } from 'node:http'

export interface Ask {
  method?: string
  /** A body as it is; none for none at all, not even an empty one. */
  body?: string | Uint8Array
  headers?: Record<string, string>
  /** Sent in chunks and without a length. */
  isChunked?: boolean
}

export interface Told {
  status: number
  headers: IncomingHttpHeaders
  text: string
  // biome-ignore lint/suspicious/noExplicitAny: tests look into it freely
  json: any
}

export const JSON_TYPE = { 'content-type': 'application/json' }

/** @param path - From the root, or an NSID. */
export function ask(base: string, path: string, { method = 'GET', body, headers = {}, isChunked }: Ask = {}) {
  const { hostname, port } = new URL(base)
  return new Promise<Told>((resolve, reject) => {
    const length = isChunked
      ? { 'transfer-encoding': 'chunked' }
      : body === undefined
        ? {}
        : { 'content-length': body.length }
    const options = {
      hostname,
      port,
      method,
      path: path.startsWith('/') ? path : `/xrpc/${path}`,
      headers: { ...length, ...headers },
      agent: false as const,
    }
    const sent = request(options, response => {
      const chunks: Buffer[] = []
      response.on('data', chunk => chunks.push(chunk))
      response.once('error', reject)
      response.once('end', () => {
        const text = Buffer.concat(chunks).toString()
        const isJson = response.headers['content-type']?.startsWith('application/json') && text !== ''
        resolve({
          status: response.statusCode!,
          headers: response.headers,
          text,
          json: isJson ? JSON.parse(text) : null,
        })
      })
    })
    sent.once('error', reject)
    if (body === undefined && !isChunked && headers['content-length'] === undefined) {
      // Node sends the length of an empty body, or none in chunks, for methods that usually have one.
      sent.removeHeader('content-length')
      sent.removeHeader('transfer-encoding')
    }
    sent.end(body)
  })
}

/** Posts JSON. */
export function post(base: string, path: string, body: unknown, headers: Record<string, string> = {}) {
  return ask(base, path, {
    method: 'POST',
    body: Buffer.from(JSON.stringify(body)),
    headers: { ...JSON_TYPE, ...headers },
  })
}

/** What a client makes of a failure. */
export const failure = ({ status, json }: Pick<Told, 'status' | 'json'>) => [status, json?.error, json?.message]

export const bearer = (token: string) => ({ authorization: `Bearer ${token}` })
