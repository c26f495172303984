/**
 * HTTP to hosts that strangers name: DID documents, well-known files, other servers' repositories.
 *
 * A stranger's URL must not reach what only this machine can reach. So the address is checked where the connection is
 * made, after DNS (a name that answers differently the second time gains nothing), and every redirect starts over.
 * The development switch `allowPrivate` lifts the rules about addresses, plain http and ports; size and time stay bounded.
 */
import { type LookupAddress, type LookupAllOptions, lookup as systemLookup } from 'node:dns'
import type { IncomingHttpHeaders } from 'node:http'
import { isIP, type LookupFunction } from 'node:net'
import { type Readable, Transform } from 'node:stream'
import { Malformed, Refused, Unavailable } from '@millisky/core/errors'
import ipaddr from 'ipaddr.js'
import { Agent, buildConnector, type Dispatcher, type Response, request, fetch as undiciFetch } from 'undici'

/** Ports that a stranger's URL may name. Source: deployed relays dial 80 and 443 only. */
const PORTS_PUBLIC: readonly number[] = [80, 443]
const BODY_BYTES_DEFAULT = 1_048_576
const TIMEOUT_DEFAULT_MS = 10_000

/** How `dns.lookup` is called here; replaced in tests. */
export type LookupAll = (
  hostname: string,
  options: LookupAllOptions,
  callback: (error: NodeJS.ErrnoException | null, addresses: LookupAddress[]) => void,
) => void

/** What may be reached. */
export interface Reach {
  /** Development only: private and loopback addresses, `http:`, any port, IP addresses as host. */
  allowPrivate: boolean
  /** Ports allowed besides the scheme's own; default 80 and 443. Ignored with `allowPrivate`. */
  ports?: readonly number[]
  /** Address lookup; default the system's. */
  lookup?: LookupAll
}

export interface FetchOptions {
  method?: 'GET' | 'HEAD' | 'POST' | 'PUT'
  headers?: Record<string, string>
  body?: string | Uint8Array
  /** The decoded body may have this many bytes; default 1 MiB. */
  bytesMax?: number
  /** Whole exchange, body included; default 10 s. For {@link Fetcher.stream} until the headers. */
  timeoutMs?: number
  /** Redirects to follow, each one checked; default none. Only GET and HEAD follow. */
  redirectsMax?: number
  signal?: AbortSignal
}

/** A whole answer, of any status. */
export interface Answer {
  status: number
  headers: Headers
  /** Where it came from, after redirects. */
  url: string
  bytes: Uint8Array
}

/** An answer whose body is still to be read; reading fails with `Unavailable` past `bytesMax` bytes. */
export interface StreamAnswer {
  status: number
  headers: Headers
  url: string
  body: AsyncIterable<Uint8Array>
  /** Drops the connection of a body that is not wanted. */
  cancel(): Promise<void>
}

/** A request that is passed on. */
export interface ExchangeOptions {
  method: 'GET' | 'HEAD' | 'POST'
  /** Sent as they are, with the fetcher's user agent. `content-length` of a stream is held to. */
  headers: Record<string, string>
  /** A stream is read as fast as the other side takes it, and destroyed if that wants no more. */
  body?: Readable | Uint8Array | string
  /** The body of the answer may have this many bytes, as they come over the wire. */
  bytesMax: number
  /** From the end of the request to the end of the answer's headers. */
  headersTimeoutMs: number
  /** Silence of the other side within the body. All of the body may take ten times this. */
  bodyTimeoutMs: number
  /** Gives up waiting for the headers; later, destroy the body. */
  signal?: AbortSignal
  /** What failures of the answer's body are turned into. */
  failure?: (cause: unknown) => Error
}

/** An answer that is passed on: any status, nothing decoded. The caller reads or destroys the body. */
export interface Exchange {
  status: number
  headers: IncomingHttpHeaders
  body: Readable
}

/** The part of {@link Fetcher} that most callers need; tests give a function of their own. */
export type FetchBytes = (url: string | URL, options?: FetchOptions) => Promise<Answer>

type Headers = Response['headers']

/**
 * Tells whether an IP address belongs to the public internet: no loopback, private, link-local, carrier NAT, multicast,
 * documentation or transition range, also not as IPv4 inside IPv6.
 */
export function isPublicAddress(address: string): boolean {
  if (isIP(address) === 0) return false
  const parsed = ipaddr.process(address)
  if (parsed.range() !== 'unicast') return false
  // Only 2000::/3 has been given out; what lies outside is either special or nobody's.
  return parsed.kind() === 'ipv4' || ((parsed as ipaddr.IPv6).parts[0]! & 0xe000) === 0x2000
}

/**
 * Parses a stranger's URL and checks all that can be checked before DNS: scheme, userinfo, port, IP address as host.
 * `schemes` are the secure ones and, second, the plain ones that only the development switch allows.
 *
 * @throws {Refused} `InvalidUrl` or `ForbiddenAddress`
 */
export function checkUrl(
  url: string | URL,
  reach: Reach,
  [secure, plain]: readonly [string, string] = ['https:', 'http:'],
): URL {
  const parsed = typeof url === 'string' ? URL.parse(url) : url
  if (!parsed) throw new Refused('InvalidUrl', `Not a URL: ${String(url).slice(0, 200)}`)
  if (parsed.protocol !== secure && !(reach.allowPrivate && parsed.protocol === plain)) {
    throw new Refused('InvalidUrl', `${secure}// expected, not ${parsed.protocol}//`)
  }
  if (parsed.username !== '' || parsed.password !== '') {
    throw new Refused('InvalidUrl', 'A URL with a user name or password is not accepted')
  }
  if (reach.allowPrivate) return parsed
  if (parsed.port !== '' && !(reach.ports ?? PORTS_PUBLIC).includes(Number(parsed.port))) {
    throw new Refused('InvalidUrl', `Port ${parsed.port} is not accepted`)
  }
  if (isIP(parsed.hostname) !== 0 || parsed.hostname.startsWith('[')) {
    throw new Refused('ForbiddenAddress', `A host name is expected, not the address ${parsed.hostname}`)
  }
  return parsed
}

/** An address lookup for `net.connect` and `tls.connect` that hides what {@link Reach} does not allow. */
export function guardedLookup(reach: Reach): LookupFunction {
  const lookup: LookupAll = reach.lookup ?? systemLookup
  return (hostname, options, callback) => {
    lookup(hostname, { ...options, all: true }, (error, addresses) => {
      if (error) return callback(error, [])
      const usable = reach.allowPrivate ? addresses : addresses.filter(found => isPublicAddress(found.address))
      const first = usable[0]
      if (!first) return callback(forbidden(hostname, addresses[0]?.address), [])
      if (options.all) callback(null, usable)
      else callback(null, first.address, first.family)
    })
  }
}

/** Refuses a host given as an IP address that {@link Reach} does not allow; names are left to {@link guardedLookup}. */
export function checkHost(hostname: string, reach: Reach): void {
  const bare = hostname.startsWith('[') ? hostname.slice(1, -1) : hostname
  if (!reach.allowPrivate && isIP(bare) !== 0 && !isPublicAddress(bare)) throw forbidden(hostname, bare)
}

function forbidden(hostname: string, address: string | undefined): Refused {
  const where = address === undefined || address === hostname ? '' : ` (${address})`
  return new Refused('ForbiddenAddress', `${hostname}${where} is not an address of the public internet`)
}

export interface FetcherOptions extends Reach {
  userAgent: string
  /** Connections to one host at a time; default 32. */
  connectionsPerHost?: number
  connectTimeoutMs?: number
}

/** Fetches from strangers within the bounds of {@link Reach}. Close it to drop pooled connections. */
export class Fetcher {
  readonly reach: Reach
  /** For callers that talk to undici themselves: it refuses forbidden addresses when it connects. */
  readonly dispatcher: Dispatcher
  readonly #userAgent: string

  constructor(options: FetcherOptions) {
    this.reach = options
    this.#userAgent = options.userAgent
    const connect = buildConnector({
      lookup: guardedLookup(options),
      timeout: options.connectTimeoutMs ?? 5_000,
      allowH2: false,
    })
    this.dispatcher = new Agent({
      allowH2: false,
      connections: options.connectionsPerHost ?? 32,
      bodyTimeout: 60_000,
      connect: (target, callback) => {
        try {
          checkHost(target.hostname, options)
        } catch (error) {
          return callback(error as Error, null)
        }
        connect(target, callback)
      },
    })
  }

  /**
   * Fetches a whole answer. Any status is an answer, except that a redirect beyond `redirectsMax` is a failure.
   *
   * @throws {Refused} the URL, or one it redirects to, is not acceptable
   * @throws {Unavailable} no connection, too slow (504), too big, broken encoding
   */
  readonly fetch: FetchBytes = async (url, options = {}) => {
    const timeout = AbortSignal.timeout(options.timeoutMs ?? TIMEOUT_DEFAULT_MS)
    const signal = options.signal ? AbortSignal.any([options.signal, timeout]) : timeout
    const { response, at } = await this.#follow(url, options, signal)
    const chunks: Uint8Array[] = []
    for await (const chunk of bounded(response, at, options.bytesMax ?? BODY_BYTES_DEFAULT)) chunks.push(chunk)
    return { status: response.status, headers: response.headers, url: at.href, bytes: Buffer.concat(chunks) }
  }

  /**
   * Fetches headers now and the body as it is read; a body that stalls for a minute fails.
   *
   * @throws as {@link fetch}
   */
  async stream(url: string | URL, options: FetchOptions = {}): Promise<StreamAnswer> {
    const headersInTime = new AbortController()
    const timer = setTimeout(
      () => headersInTime.abort(new DOMException('timeout', 'TimeoutError')),
      options.timeoutMs ?? TIMEOUT_DEFAULT_MS,
    )
    const signal = options.signal ? AbortSignal.any([options.signal, headersInTime.signal]) : headersInTime.signal
    try {
      const { response, at } = await this.#follow(url, options, signal)
      return {
        status: response.status,
        headers: response.headers,
        url: at.href,
        body: bounded(response, at, options.bytesMax ?? BODY_BYTES_DEFAULT),
        cancel: async () => headersInTime.abort(),
      }
    } finally {
      clearTimeout(timer)
    }
  }

  async #follow(url: string | URL, options: FetchOptions, signal: AbortSignal) {
    const method = options.method ?? 'GET'
    let at = checkUrl(url, this.reach)
    let headers: Record<string, string> = { 'user-agent': this.#userAgent, ...options.headers }
    for (let hops = 0; ; hops++) {
      const response = await this.#once(at, { method, headers, body: options.body, signal })
      const location = response.headers.get('location')
      if (response.status < 300 || response.status > 399 || response.status === 304 || !location)
        return { response, at }
      await response.body?.cancel()
      if (hops >= (options.redirectsMax ?? 0) || (method !== 'GET' && method !== 'HEAD')) {
        throw new Unavailable('UpstreamFailure', `${at.origin} answers with a redirect, which is not followed`, 502)
      }
      const next = URL.parse(location, at)
      if (!next) throw new Unavailable('UpstreamFailure', `${at.origin} redirects to something that is no URL`, 502)
      if (next.origin !== at.origin) headers = withoutCredentials(headers)
      at = checkUrl(next, this.reach)
    }
  }

  async #once(
    url: URL,
    init: {
      method: string
      headers: Record<string, string>
      body: string | Uint8Array | undefined
      signal: AbortSignal
    },
  ): Promise<Response> {
    try {
      return await undiciFetch(url, { ...init, redirect: 'manual', dispatcher: this.dispatcher })
    } catch (error) {
      throw translate(error, url)
    }
  }

  /**
   * Passes a request on and gives what comes back, as it comes: no redirect is followed, no encoding undone.
   *
   * @throws as {@link fetch}, and what the request's own body fails with if that is `Refused` or `Malformed`
   */
  async exchange(url: string | URL, options: ExchangeOptions): Promise<Exchange> {
    const { method, headers, body = null, bytesMax, headersTimeoutMs, bodyTimeoutMs, signal } = options
    const failure = options.failure ?? ((cause: unknown) => cause as Error)
    const target = checkUrl(url, this.reach)
    try {
      const response = await request(target, {
        method,
        headers: { 'user-agent': this.#userAgent, ...headers },
        body,
        headersTimeout: headersTimeoutMs,
        bodyTimeout: bodyTimeoutMs,
        dispatcher: this.dispatcher,
        ...(signal ? { signal } : {}),
      })
      const { statusCode: status, headers: answered } = response
      if (method !== 'HEAD' && Number(answered['content-length'] ?? 0) > bytesMax) {
        response.body.on('error', () => {}).destroy()
        throw tooBig(target, bytesMax)
      }
      return {
        status,
        headers: answered,
        body: metered(response.body, target, { bytesMax, timeoutMs: bodyTimeoutMs * 10, failure }),
      }
    } catch (error) {
      throw translate(error, target)
    }
  }

  async close(): Promise<void> {
    await this.dispatcher.destroy()
  }
}

function withoutCredentials(headers: Record<string, string>): Record<string, string> {
  return Object.fromEntries(
    Object.entries(headers).filter(([name]) => !/^(authorization|cookie|dpop|proxy-authorization)$/i.test(name)),
  )
}

const tooBig = (url: URL, bytesMax: number) =>
  new Unavailable('UpstreamFailure', `${url.origin} sent more than ${bytesMax} bytes`, 502)

/** The body as it comes, up to its bounds of size and time; destroying it drops the connection. */
function metered(
  body: Readable,
  url: URL,
  { bytesMax, timeoutMs, failure }: { bytesMax: number; timeoutMs: number; failure: (cause: unknown) => Error },
): Readable {
  let size = 0
  const meter = new Transform({
    transform(chunk: Uint8Array, _encoding, done) {
      size += chunk.byteLength
      if (size > bytesMax) done(failure(tooBig(url, bytesMax)))
      else done(null, chunk)
    },
  })
  const timer = setTimeout(() => meter.destroy(failure(tooSlow(url))), timeoutMs)
  // Whoever reads it finds the error then; until that nobody listens, and Node would end the process.
  meter.on('error', () => {})
  meter.once('close', () => {
    clearTimeout(timer)
    body.destroy()
  })
  body.on('error', error => meter.destroy(failure(translate(error, url))))
  return body.pipe(meter)
}

const tooSlow = (url: URL) => new Unavailable('UpstreamTimeout', `${url.origin} did not answer in time`, 504)

/** The body after decoding: a small answer that inflates without end stops at the bound, a chunk later at most. */
async function* bounded(response: Response, url: URL, bytesMax: number): AsyncGenerator<Uint8Array> {
  if (!response.body) return
  const encoded = response.headers.has('content-encoding')
  if (!encoded && Number(response.headers.get('content-length') ?? 0) > bytesMax) {
    await response.body.cancel()
    throw tooBig(url, bytesMax)
  }
  let size = 0
  try {
    for await (const chunk of response.body as AsyncIterable<Uint8Array>) {
      size += chunk.byteLength
      if (size > bytesMax) throw tooBig(url, bytesMax)
      yield chunk
    }
  } catch (error) {
    throw translate(error, url)
  }
}

/** undici wraps what went wrong in one or two `cause`s; ours may be among them. */
function translate(error: unknown, url: URL): Refused | Unavailable | Malformed {
  let code = ''
  let message = ''
  for (let cause = error; cause instanceof Error; cause = cause.cause) {
    if (cause instanceof Refused || cause instanceof Unavailable || cause instanceof Malformed) return cause
    if (cause.name === 'TimeoutError' || /TIMEOUT|TIMEDOUT/.test(codeOf(cause))) {
      return tooSlow(url)
    }
    code = codeOf(cause) || code
    message = cause.message
    if (cause instanceof AggregateError && cause.errors[0] instanceof Error) message = cause.errors[0].message
  }
  return new Unavailable('UpstreamFailure', `${url.origin} cannot be reached: ${code || message || 'unknown'}`, 502)
}

function codeOf(error: Error): string {
  return 'code' in error && typeof error.code === 'string' ? error.code : ''
}
