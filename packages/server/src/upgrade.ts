/** Which WebSocket endpoint an HTTP upgrade request is for, and how one is refused before the handshake. */
import type { IncomingMessage, Server } from 'node:http'
import type { Duplex } from 'node:stream'
import { Refused, type Unavailable } from '@millisky/core/errors'
import type { FastifyInstance } from 'fastify'

/** Takes over the socket. Whatever it throws as `Refused` or `Unavailable` is answered as JSON. */
export type UpgradeHandler = (request: IncomingMessage, socket: Duplex, head: Buffer, url: URL) => void

const routesOf = new WeakMap<Server, Map<string, UpgradeHandler>>()
const REASONS: Record<number, string> = {
  400: 'Bad Request',
  404: 'Not Found',
  405: 'Method Not Allowed',
  426: 'Upgrade Required',
  429: 'Too Many Requests',
  501: 'Not Implemented',
  503: 'Service Unavailable',
}

/**
 * Sends upgrade requests for `path` to `handler`; the returned function takes that back. From the first call on, upgrade
 * requests for other paths of this server are answered with 501 (below `/xrpc/`) or 404.
 */
export function onUpgrade(server: Server, path: string, handler: UpgradeHandler): () => void {
  let routes = routesOf.get(server)
  if (!routes) {
    const added = (routes = new Map<string, UpgradeHandler>())
    routesOf.set(server, added)
    server.on('upgrade', (request, socket, head) => route(added, request, socket, head))
  }
  if (routes.has(path)) throw new Error(`two handlers for upgrades of ${path}`)
  routes.set(path, handler)
  return () => routes.delete(path)
}

function route(routes: Map<string, UpgradeHandler>, request: IncomingMessage, socket: Duplex, head: Buffer): void {
  // A peer that vanishes now is nobody's error.
  const ignore = () => {}
  socket.on('error', ignore)
  try {
    const url = URL.parse(request.url ?? '', 'http://host')
    if (!url) throw new Refused('InvalidRequest', 'The request target is not a URL')
    // As in paths of other requests.
    const handler = routes.get(url.pathname.length > 1 ? url.pathname.replace(/\/$/, '') : url.pathname)
    if (!handler) {
      if (url.pathname.startsWith('/xrpc/')) throw new Refused('MethodNotImplemented', 'Method Not Implemented', 501)
      throw new Refused('NotFound', 'No WebSocket endpoint here', 404)
    }
    assertHandshake(request)
    handler(request, socket, head, url)
    socket.off('error', ignore)
  } catch (error) {
    refuseUpgrade(socket, error)
  }
}

/**
 * The answer to a request for an event stream that does not ask for a WebSocket: 405 unless it is a GET, else 426.
 *
 * Source: event-stream spec, "errors before the upgrade".
 */
export function notWebSocket(method: string | undefined): Refused {
  if (method !== 'GET' && method !== 'HEAD') {
    return new Refused('InvalidRequest', `Incorrect HTTP method (${method}) expected GET`, 405, { allow: 'GET' })
  }
  const message = 'This is an event stream: connect to it with a WebSocket client (a wss:// URL)'
  // No `Connection: upgrade` along with it, as RFC 9110 wants: Node's HTTP client then takes the answer for a handshake.
  return new Refused('UpgradeRequired', message, 426, { upgrade: 'websocket' })
}

/** Answers requests at an event stream's path that ask for no WebSocket. Preflights of browsers are answered as elsewhere. */
export function refusePlain(http: FastifyInstance, path: string): void {
  http.route({
    method: ['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE'],
    url: path,
    exposeHeadRoute: false,
    handler: request => {
      throw notWebSocket(request.method)
    },
  })
}

function assertHandshake(request: IncomingMessage): void {
  if (request.method !== 'GET') throw notWebSocket(request.method)
  if (request.headers.upgrade?.toLowerCase() !== 'websocket') throw notWebSocket('GET')
  if (request.headers['sec-websocket-version'] !== '13') {
    const headers = { 'sec-websocket-version': '13' }
    throw new Refused('InvalidRequest', 'WebSocket version 13 is expected', 426, headers)
  }
  if (!/^[+/0-9A-Za-z]{22}==$/.test(request.headers['sec-websocket-key'] ?? '')) {
    throw new Refused('InvalidRequest', 'The Sec-WebSocket-Key header is missing or invalid')
  }
}

/** Answers an upgrade request with a JSON error and closes the connection. */
export function refuseUpgrade(socket: Duplex, error: unknown): void {
  const known = isAnswer(error) ? error : null
  const status = known?.status ?? 500
  const body = Buffer.from(
    JSON.stringify({
      error: known?.error ?? 'InternalServerError',
      message: known?.message ?? 'Internal Server Error',
    }),
  )
  const headers: Record<string, string> = {
    connection: 'close',
    ...(known && 'headers' in known ? known.headers : {}),
    ...(known && 'retryAfter' in known ? { 'retry-after': String(known.retryAfter ?? 5) } : {}),
    'content-type': 'application/json; charset=utf-8',
    'content-length': String(body.byteLength),
  }
  const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`)
  socket.write(`HTTP/1.1 ${status} ${REASONS[status] ?? 'Error'}\r\n${lines.join('')}\r\n`)
  socket.end(body, () => socket.destroy())
}

function isAnswer(error: unknown): error is Refused | Unavailable {
  return error instanceof Error && 'status' in error && 'error' in error
}
