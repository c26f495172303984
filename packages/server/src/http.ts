/**
 * The HTTP server both daemons stand on: Fastify with CORS, error replies, body limits, time limits and an orderly end.
 *
 * Handlers throw `Refused`, `Unavailable` or `Malformed` from core and need no try; see envelope.ts for what clients get.
 * Bodies of ordinary routes arrive parsed (JSON, forms) in `request.body`; a route with `config: { body: 'raw' }` reads
 * `request.raw` itself.
 */
import { chmodSync, rmSync } from 'node:fs'
import type { AddressInfo, Socket } from 'node:net'
import { fromUtf8 } from '@millisky/core/bytes'
import { Malformed, Unavailable } from '@millisky/core/errors'
import Fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest, type RouteOptions } from 'fastify'
import type { Logger } from 'pino'
import { readBody } from './body.ts'
import { envelopeOf } from './envelope.ts'
import type { Span, Trace } from './telemetry.ts'
import type { Metrics } from './trace.ts'

declare module 'fastify' {
  interface FastifyContextConfig {
    /** `raw`: the body is left unread in `request.raw`. */
    body?: 'raw'
    /** Largest body this route takes, after decompression; `bodyBytesMax` of the server if not said. */
    bodyBytesMax?: number
  }
}

export interface HttpOptions {
  readonly log: Logger
  readonly metrics?: Metrics
  /** Told of every request when it is answered. */
  readonly trace?: Trace | undefined
  /** What the `Server` header says, such as `millisky-relay/0.1.0`. */
  readonly product: string
  /** Whose `X-Forwarded-For` is believed: nobody, anybody, a number of hops, or addresses and CIDR ranges. */
  readonly trustProxy?: boolean | number | readonly string[]
  /** Which paths any web page may call. All, unless told. */
  readonly cors?: (path: string) => boolean
  /** Largest parsed body of ordinary routes. */
  readonly bodyBytesMax?: number
  /** From the connection to the last header. */
  readonly headersTimeoutMs?: number
  /** From the connection to the last byte of the body. 0 is unlimited; a sender that falls silent is given up anyway. */
  readonly requestTimeoutMs?: number
  readonly keepAliveTimeoutMs?: number
  /** Write a log line for every request. */
  readonly accessLog?: boolean
}

/** Headers of replies that scripts of web pages may read. Source: pds.md #9 and what clients use. */
export const EXPOSED_HEADERS = [
  'Accept-Ranges',
  'Atproto-Content-Labelers',
  'Atproto-Repo-Rev',
  'Atproto-Upstream-Lag',
  'Content-Range',
  'DPoP-Nonce',
  'ETag',
  'RateLimit-Limit',
  'RateLimit-Policy',
  'RateLimit-Remaining',
  'RateLimit-Reset',
  'Retry-After',
  'WWW-Authenticate',
].join(', ')

const PREFLIGHT_SECONDS = '86400'
const PREFLIGHT_METHODS = 'GET,HEAD,PUT,PATCH,POST,DELETE'
/** The reference's limit of JSON bodies. Source: pds.md, "Body limits". */
export const JSON_BODY_BYTES_MAX = 150 * 1024

/** A server without routes; add them, then {@link listen}. */
export function createHttp(options: HttpOptions): FastifyInstance {
  const cors = options.cors ?? (() => true)
  const http = Fastify({
    trustProxy: trustOf(options.trustProxy ?? false),
    // Fastify makes a logger for every request; errors and, if wanted, requests are logged below instead.
    logger: false,
    requestTimeout: options.requestTimeoutMs ?? 30 * 60_000,
    keepAliveTimeout: options.keepAliveTimeoutMs ?? 72_000,
    // A request that arrives while draining is still answered, on a connection that then closes.
    return503OnClosing: false,
    routerOptions: { ignoreTrailingSlash: true, maxParamLength: 2048 },
    http: {
      headersTimeout: options.headersTimeoutMs ?? 20_000,
      maxHeaderSize: 32 * 1024,
      // Clients that would like HTTP/2 offer it with every request; an offer may be passed over, and they are answered.
      shouldUpgradeCallback: request => request.headers.upgrade?.toLowerCase() === 'websocket',
    },
    clientErrorHandler: refuseConnection,
    genReqId: () => '',
    frameworkErrors: (error, request, reply) => {
      // What never came to a route.
      setHeaders(reply, options.product, cors(pathOf(request)))
      replyError(options.log, error, request, reply)
    },
  })
  http.addHook('onRoute', route => addHeaders(route, cors, options.product))
  if (options.metrics || options.accessLog || options.trace) http.addHook('onRoute', observer(options))
  parseBodies(http, options.bodyBytesMax ?? JSON_BODY_BYTES_MAX)
  http.setErrorHandler((error, request, reply) => replyError(options.log, error, request, reply))
  http.setNotFoundHandler((request, reply) => {
    setHeaders(reply, options.product, cors(pathOf(request)))
    return reply.code(404).send({ error: 'NotFound', message: 'Not Found' })
  })
  http.options('*', (request, reply) => {
    setHeaders(reply, options.product, cors(pathOf(request)))
    return preflight(request, reply, cors(pathOf(request)))
  })
  closeIdleWhileDraining(http)
  return http
}

function trustOf(trust: NonNullable<HttpOptions['trustProxy']>) {
  if (typeof trust === 'number') return (_address: string, hop: number) => hop < trust
  return typeof trust === 'object' ? [...trust] : trust
}

/** The path of the request, without the query. */
export function pathOf(request: FastifyRequest): string {
  const url = request.raw.url ?? '/'
  const query = url.indexOf('?')
  return query < 0 ? url : url.slice(0, query)
}

function setHeaders(reply: FastifyReply, product: string, cors: boolean): void {
  reply.header('server', product)
  if (!cors) return
  reply.header('access-control-allow-origin', '*')
  reply.header('access-control-expose-headers', EXPOSED_HEADERS)
}

/** Decided once for each route, so that a request pays for two or three assignments only. */
function addHeaders(route: RouteOptions, cors: (path: string) => boolean, product: string): void {
  const allowed = route.url !== '*' && cors(route.url)
  const own = route.onRequest
  route.onRequest = [
    (_request, reply, done) => {
      setHeaders(reply, product, allowed)
      done()
    },
    ...(own === undefined ? [] : Array.isArray(own) ? own : [own]),
  ]
}

function preflight(request: FastifyRequest, reply: FastifyReply, allowed: boolean): FastifyReply {
  if (!allowed) return reply.code(404).send({ error: 'NotFound', message: 'Not Found' })
  reply.header('access-control-allow-methods', PREFLIGHT_METHODS)
  reply.header('access-control-max-age', PREFLIGHT_SECONDS)
  reply.header('vary', 'Access-Control-Request-Headers')
  const asked = request.headers['access-control-request-headers']
  if (asked !== undefined) reply.header('access-control-allow-headers', asked)
  return reply.code(204).send()
}

function parseBodies(http: FastifyInstance, bytesMax: number): void {
  http.removeAllContentTypeParsers()
  http.addContentTypeParser('*', (request, _payload, done) => {
    const { config } = request.routeOptions
    if (config.body === 'raw') return done(null, undefined)
    const type = request.headers['content-type']?.split(';', 1)[0]?.trim().toLowerCase()
    Promise.resolve()
      .then(() => readBody(request.raw, config.bodyBytesMax ?? bytesMax))
      .then(bytes => done(null, bytes.length === 0 ? undefined : parseBody(type, bytes)), done)
      .catch(done)
  })
}

function parseBody(type: string | undefined, bytes: Buffer): unknown {
  if (type === 'application/x-www-form-urlencoded') return Object.fromEntries(new URLSearchParams(fromUtf8(bytes)))
  if (type?.startsWith('text/')) return fromUtf8(bytes)
  if (type === 'application/json' || type?.endsWith('+json')) return parseJsonBody(fromUtf8(bytes))
  return bytes
}

/** @throws Malformed with the parser's own words. */
export function parseJsonBody(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch (error) {
    throw new Malformed((error as Error).message)
  }
}

function replyError(log: Logger, error: unknown, request: FastifyRequest, reply: FastifyReply): FastifyReply {
  const envelope = envelopeOf(error)
  const { status, message } = envelope
  const about = { method: request.method, path: pathOf(request), status, error: envelope.error }
  if (envelope.isBug) log.error({ ...about, err: error }, 'request failed')
  // 501 is what the caller asked for, as often as it likes.
  else if (status >= 500 && status !== 501) log.warn({ ...about, err: error }, message)
  else log.debug(about, message)
  if (envelope.headers) reply.headers(envelope.headers)
  return reply
    .code(status)
    .type('application/json')
    .send(JSON.stringify({ error: envelope.error, message }))
}

const UNREADABLE: Readonly<Record<string, { line: string; error: string; message: string }>> = {
  ERR_HTTP_REQUEST_TIMEOUT: {
    line: '408 Request Timeout',
    error: 'RequestTimeout',
    message: 'the request did not arrive in time',
  },
  HPE_HEADER_OVERFLOW: {
    line: '431 Request Header Fields Too Large',
    error: 'HeadersTooLarge',
    message: 'the headers of the request are too large',
  },
}
const NOT_HTTP = { line: '400 Bad Request', error: 'InvalidRequest', message: 'this is not an HTTP request' }

/** Answers what never became a request, and closes the connection. */
function refuseConnection(cause: NodeJS.ErrnoException, socket: Socket): void {
  if (cause.code === 'ECONNRESET' || socket.destroyed) return
  const { line, error, message } = UNREADABLE[cause.code ?? ''] ?? NOT_HTTP
  if (socket.writable) {
    const body = JSON.stringify({ error, message })
    const headers = `content-type: application/json\r\ncontent-length: ${body.length}\r\nconnection: close`
    socket.write(`HTTP/1.1 ${line}\r\n${headers}\r\n\r\n${body}`)
  }
  socket.destroy(cause)
}

/** Counts and logs what was answered; the parts of it that a route fixes are made once. */
function observer({ metrics, log, accessLog, trace }: HttpOptions): (route: RouteOptions) => void {
  const seconds = metrics?.histogram('http_request_duration_seconds', 'Time to answer a request.', {
    labels: { method: METHODS, route: null, code: CODES },
    buckets: [0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10, 60],
  })
  return route => {
    const name = route.url.replace('/xrpc/', '')
    const own = route.onResponse
    route.onResponse = [
      (request, reply, done) => {
        const { statusCode: code, elapsedTime: ms } = reply
        seconds?.observe({ method: request.method, route: name, code: `${Math.floor(code / 100)}xx` }, ms / 1000)
        trace?.(spanOf(request, name, code, ms))
        if (accessLog) {
          log.info(
            { method: request.method, path: pathOf(request), status: code, ms: Math.round(ms), ip: request.ip },
            'request',
          )
        }
        done()
      },
      ...(own === undefined ? [] : Array.isArray(own) ? own : [own]),
    ]
  }
}

function spanOf(request: FastifyRequest, route: string, status: number, durationMs: number): Span {
  const attributes = {
    'http.request.method': request.method,
    'http.route': route,
    'url.path': pathOf(request).slice(0, 300),
    'http.response.status_code': status,
  }
  const { traceparent } = request.headers
  return {
    name: `${request.method} ${route}`,
    kind: 'server',
    durationMs,
    attributes,
    traceparent: typeof traceparent === 'string' ? traceparent : undefined,
    ...(status >= 500 ? { failure: `HTTP ${status}` } : {}),
  }
}

const METHODS = ['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS'] as const
const CODES = ['1xx', '2xx', '3xx', '4xx', '5xx'] as const

/** `server.close()` closes the connections that are idle then, not those that become idle after their last reply. */
function closeIdleWhileDraining(http: FastifyInstance): void {
  http.addHook('preClose', done => {
    const timer = setInterval(() => http.server.closeIdleConnections(), 50)
    http.server.once('close', () => clearInterval(timer))
    if (!http.server.listening) clearInterval(timer)
    done()
  })
}

/** Where to listen: a TCP port (0 is any free one) or a Unix socket. */
export type Address =
  | { readonly port: number; readonly host?: string }
  /** `mode` are the permissions of the socket file, such as 0o770. A file left over from before is replaced. */
  | { readonly socketPath: string; readonly mode?: number }

/** Starts listening and says the URL, without a slash at its end, or the path of the socket. */
export async function listen(http: FastifyInstance, address: Address): Promise<string> {
  if ('socketPath' in address) {
    rmSync(address.socketPath, { force: true })
    await http.listen({ path: address.socketPath })
    if (address.mode !== undefined) chmodSync(address.socketPath, address.mode)
    return address.socketPath
  }
  await http.listen({ port: address.port, host: address.host ?? '127.0.0.1' })
  const { address: ip, port, family } = http.server.address() as AddressInfo
  const host = ip === '::' || ip === '0.0.0.0' ? 'localhost' : family === 'IPv6' ? `[${ip}]` : ip
  return `http://${host}:${port}`
}

/**
 * Adds `GET /xrpc/_health`: `{version}`, or 503 with an error as well if `check` fails or takes longer than a second.
 *
 * @param check - Rejects if the service cannot serve. Called at most once at a time, however many ask.
 */
export function addHealth(http: FastifyInstance, version: string, check?: () => Promise<void>): void {
  let running: Promise<void> | undefined
  const checkOnce = () => {
    running ??= withTimeout(check!(), 1000).finally(() => {
      running = undefined
    })
    return running
  }
  http.get('/xrpc/_health', async (_request, reply) => {
    try {
      if (check) await checkOnce()
      return { version }
    } catch {
      return reply.code(503).send({ version, error: 'Service Unavailable' })
    }
  })
}

function withTimeout(work: Promise<void>, ms: number): Promise<void> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Unavailable('NotEnoughResources', 'no answer in time')), ms)
    work.then(resolve, reject).finally(() => clearTimeout(timer))
  })
}
