/**
 * Requests that are for other services, passed on in the account's name.
 *
 * Everything streams: the caller's body to the service as fast as that takes it, the service's answer back as fast as the
 * caller takes that. Of the caller's headers a few go on, with a token signed by the account's key for this method alone;
 * what the caller proved itself with stays here. Errors of the service become errors of this server, with their own names.
 *
 * Source: pds.md #57-#63, protocol.md §5.2 and §5.3.
 */
import { randomBytes } from 'node:crypto'
import { Readable } from 'node:stream'
import { Refused, Unavailable } from '@millisky/core/errors'
import { signServiceJwt } from '@millisky/core/jwt'
import { asNsid, type Did, type Nsid } from '@millisky/core/syntax'
import { bodyStream, hasBody } from '@millisky/server/body'
import type { Exchange, ExchangeOptions } from '@millisky/server/fetch'
import { addressKey } from '@millisky/server/rate'
import { type RawReply, raw } from '@millisky/server/xrpc'
import type { FastifyReply, FastifyRequest } from 'fastify'
import type { PdsAccess, SessionUser } from './access.ts'
import type { PdsSettings } from './config.ts'
import { isPrivilegedMethod, isProtectedMethod } from './protected-methods.ts'
import { refusalOf, unreachable } from './proxy/failures.ts'
import { answeredHeaders, askedHeaders, sharedEncodings } from './proxy/headers.ts'
import { decode, readAll, readObject } from './proxy/reading.ts'
import type { Service } from './proxy/services.ts'
import type { Targets } from './proxy/targets.ts'
import type { Repos } from './repos.ts'
import type { RepoState } from './store/store.ts'

/** How requests leave; that of a `Fetcher`. */
export type SendOn = (url: string, options: ExchangeOptions) => Promise<Exchange>

type ProxySettings = Pick<
  PdsSettings,
  | 'proxyAudience'
  | 'proxyHeadersTimeoutMs'
  | 'proxyBodyTimeoutMs'
  | 'proxyAnswerBytesMax'
  | 'proxyRetriesMax'
  | 'proxyPreferCompressed'
  | 'blobUploadLimit'
>

export interface ProxyParts {
  targets: Targets
  repos: Repos
  access: PdsAccess
  /** To services that callers name: guarded. */
  strangers: SendOn
  /** To services that the operator names. */
  trusted: SendOn
  settings: ProxySettings
  /** Milliseconds since 1970. */
  now: () => number
}

/** In whose name, and what differs from passing the request on as it came. */
export interface Passing {
  request: FastifyRequest
  nsid: Nsid
  user: Pick<SessionUser, 'did' | 'isPrivileged'>
  /** Instead of what the request asks for. */
  service?: Service
  /** Instead of the service's audience and the method. */
  token?: { aud: string; lxm: string }
  /** JSON text instead of the caller's body. */
  json?: string
  /** The answer may be read here, so only encodings known here are asked for. */
  isRead?: boolean
  /** Also for accounts that were taken down. */
  isAppeal?: boolean
  /** Gives up when the caller has gone. */
  signal?: AbortSignal
}

/** A service's answer of status 200 to 299. The body is to be read or destroyed. */
export interface Passed {
  status: number
  /** Those that may be passed on; lower case. */
  headers: Record<string, string>
  body: Readable
}

const TOKEN_SECONDS = 60
const GET_RECORD = asNsid('com.atproto.repo.getRecord')
const READ_BYTES_MAX = 2_000_000
/** Requests to services of the callers' choice that one caller may have under way: such a service may be slow on purpose. */
const UNDER_WAY_MAX = 64

/** Passes requests on. */
export class ServiceProxy {
  readonly targets: Targets
  readonly #parts: ProxyParts
  /** By account, or address of those who are nobody here. */
  readonly #underWay = new Map<string, number>()

  constructor(parts: ProxyParts) {
    this.#parts = parts
    this.targets = parts.targets
  }

  /** Serves methods that this server does not have itself; `fallback` of the XRPC server. */
  readonly serve = async (request: FastifyRequest, reply: FastifyReply, nsid: Nsid): Promise<RawReply> => {
    const { method } = request
    if (method !== 'GET' && method !== 'HEAD' && method !== 'POST') {
      throw new Refused('InvalidRequest', 'XRPC requests only supports GET and POST')
    }
    if (isProtectedMethod(nsid)) throw badMethod()
    if (!this.targets.wanted(request, nsid)) throw notImplemented()
    reply.header('cache-control', 'private')
    reply.header('vary', 'Authorization')
    const user = await this.#parts.access.user(request, { nsid, params: {}, reply })
    return passedReply(await this.pass({ request, nsid, user, signal: leaving(request, reply) }))
  }

  /** For methods of this server's own app view: passes on what names another service, whatever this server has. */
  readonly elsewhere = (request: FastifyRequest, reply: FastifyReply, nsid: Nsid): Promise<RawReply> | undefined =>
    this.targets.isOwnAppView(request, nsid) ? undefined : this.serve(request, reply, nsid)

  /** For methods that cannot do without a service. @throws Refused 501 if there is none */
  readonly unlessServed = (request: FastifyRequest, _reply: FastifyReply, nsid: Nsid): undefined => {
    if (!this.targets.wanted(request, nsid)) throw notImplemented()
  }

  /** The service that a request is for. @throws Refused */
  async serviceOf(request: FastifyRequest, nsid: Nsid): Promise<Service> {
    const wanted = this.targets.wanted(request, nsid)
    if (!wanted) throw notImplemented()
    return this.targets.resolve(wanted)
  }

  /**
   * Passes a request on in the name of an account.
   *
   * @throws Refused what the service refuses, by the service's own name; 501 if there is no service for this method
   * @throws Unavailable 502 UpstreamFailure
   */
  async pass(passing: Passing): Promise<Passed> {
    const { request, nsid, user, isAppeal = false } = passing
    if (isPrivilegedMethod(nsid) && !user.isPrivileged) throw badMethod()
    const state = await this.#accountState(user.did, isAppeal)
    const service = passing.service ?? (await this.serviceOf(request, nsid))
    const token = this.#sign(state, passing.token ?? { aud: this.#audienceOf(service), lxm: nsid })
    return this.#send(service, { ...this.#asked(passing), token }, user.did)
  }

  /** Asks for a record of a repository that is not here, as {@link pass} but in nobody's name. @throws as {@link pass} */
  readonly foreignRecord = async (request: FastifyRequest, reply: FastifyReply): Promise<RawReply> => {
    const wanted = this.targets.wanted(request, GET_RECORD)
    if (!wanted) throw new Refused('InvalidRequest', 'Could not locate record')
    const service = await this.targets.resolve(wanted)
    const asked = this.#asked({ request, nsid: GET_RECORD, signal: leaving(request, reply) })
    return passedReply(await this.#send(service, { ...asked, token: null }, addressKey(request.ip)))
  }

  /** Passes on what is answered by one JSON object: nothing else is an answer. @throws as {@link pass} */
  async passWhole(passing: Passing): Promise<RawReply> {
    const { status, headers, body } = await this.pass({ ...passing, isRead: true })
    const bytes = await readAll(body, READ_BYTES_MAX)
    await readObject(bytes, headers['content-encoding'], READ_BYTES_MAX)
    const { 'content-type': type = 'application/json', ...others } = headers
    return raw(type, bytes, others, status)
  }

  /** A query of the server's own, in the name of an account or nobody: the JSON text of the answer. @throws as {@link pass} */
  async ask(did: Did | null, service: Service, nsid: Nsid, params: Record<string, string>): Promise<string> {
    const state = did === null ? null : await this.#accountState(did, false)
    const token = state && this.#sign(state, { aud: this.#audienceOf(service), lxm: nsid })
    const path = `/xrpc/${nsid}?${new URLSearchParams(params)}`
    const { body, headers } = await this.#send(service, { method: 'GET', path, headers: {}, token })
    const bytes = await decode(await readAll(body, READ_BYTES_MAX), headers['content-encoding'], READ_BYTES_MAX)
    return bytes.toString()
  }

  #audienceOf({ did, id }: Service): string {
    return this.#parts.settings.proxyAudience === 'service' ? `${did}#${id}` : did
  }

  #sign({ did, key }: RepoState, claims: { aud: string; lxm: string }): string {
    const { now, repos } = this.#parts
    const iat = Math.floor(now() / 1000)
    const jti = randomBytes(16).toString('hex')
    return signServiceJwt({ iss: did, ...claims, iat, exp: iat + TOKEN_SECONDS, jti }, repos.signingKey(key))
  }

  async #accountState(did: Did, isAppeal: boolean): Promise<RepoState> {
    const state = await this.#parts.repos.store.repos.state(did)
    if (!state) throw new Refused('AccountNotFound', 'Account not found', 403)
    if (isAppeal) return state
    if (state.status === 'takendown') throw new Refused('AccountTakedown', 'Account has been taken down', 401)
    if (state.status === 'suspended') throw new Refused('AccountSuspended', 'Account is suspended', 401)
    return state
  }

  /** What goes on of a request. */
  #asked({ request, nsid, json, isRead, signal }: Omit<Passing, 'user'>): Omit<Sending, 'token'> {
    const { method, raw: source } = request
    const query = source.url!.indexOf('?')
    const path = `/xrpc/${nsid}${query < 0 ? '' : source.url!.slice(query)}`
    const shared = signal ? { signal } : {}
    const withBody = json === undefined && method === 'POST' && hasBody(source)
    const headers = askedHeaders(source.headers, withBody)
    if (isRead)
      headers['accept-encoding'] = sharedEncodings(
        source.headers['accept-encoding'] as string,
        this.#parts.settings.proxyPreferCompressed,
      )
    if (json !== undefined)
      return {
        method: 'POST',
        path,
        headers: { ...headers, 'content-type': 'application/json' },
        body: json,
        ...shared,
      }
    const verb = method as 'GET' | 'HEAD' | 'POST'
    if (!withBody) return { method: verb, path, headers, ...shared }
    return {
      method: verb,
      path,
      headers,
      body: bodyStream(source, this.#parts.settings.blobUploadLimit, { asIs: true }),
      ...shared,
    }
  }

  /** Counts one request of a caller, until what it returns is called. @throws Refused 429 */
  #enter(caller: string): () => void {
    const count = this.#underWay.get(caller) ?? 0
    if (count >= UNDER_WAY_MAX) {
      throw new Refused('RateLimitExceeded', 'Too many requests to other services at once', 429, {
        'retry-after': '10',
      })
    }
    this.#underWay.set(caller, count + 1)
    return () => {
      const left = this.#underWay.get(caller)! - 1
      if (left > 0) this.#underWay.set(caller, left)
      else this.#underWay.delete(caller)
    }
  }

  /** @param asking - Whose requests are counted; nobody's if the server asks for itself. */
  async #send(service: Service, sending: Sending, asking?: string): Promise<Passed> {
    let leave: (() => void) | undefined
    let exchange: Exchange
    try {
      if (asking !== undefined && !service.isTrusted) leave = this.#enter(asking)
      exchange = await this.#exchange(service, sending)
    } catch (error) {
      leave?.()
      if (sending.body instanceof Readable) sending.body.destroy()
      throw error
    }
    if (leave) exchange.body.once('close', leave)
    const { status, headers, body } = exchange
    if (status >= 200 && status <= 299) return { status, headers: answeredHeaders(headers, true), body }
    throw await refusalOf(exchange)
  }

  async #exchange(service: Service, { method, path, headers, body, token, signal }: Sending): Promise<Exchange> {
    const { settings, strangers, trusted } = this.#parts
    const send = service.isTrusted ? trusted : strangers
    const options: ExchangeOptions = {
      method,
      headers: token === null ? headers : { ...headers, authorization: `Bearer ${token}` },
      bytesMax: settings.proxyAnswerBytesMax,
      headersTimeoutMs: settings.proxyHeadersTimeoutMs,
      bodyTimeoutMs: settings.proxyBodyTimeoutMs,
      failure: unreachable,
      ...(body !== undefined ? { body } : {}),
      ...(signal ? { signal } : {}),
    }
    for (let left = method === 'POST' ? 0 : settings.proxyRetriesMax; ; left--) {
      try {
        return await send(service.origin + path, options)
      } catch (error) {
        if (left > 0 && error instanceof Unavailable && !signal?.aborted) continue
        throw unreachable(error)
      }
    }
  }
}

interface Sending {
  method: 'GET' | 'HEAD' | 'POST'
  /** With the query. */
  path: string
  headers: Record<string, string>
  body?: string | Readable
  /** Null for asking without a name. */
  token: string | null
  signal?: AbortSignal
}

/** The answer as a reply of this server's. */
export function passedReply({ status, headers, body }: Passed): RawReply {
  const { 'content-type': type, ...others } = headers
  return raw(type, body, others, status)
}

const badMethod = () => new Refused('InvalidToken', 'Bad token method')
const notImplemented = () => new Refused('MethodNotImplemented', 'Method Not Implemented', 501)

/** Aborted when the caller of a query goes away. What changes something runs to its end. */
function leaving({ method }: FastifyRequest, { raw }: FastifyReply): AbortSignal {
  const aborter = new AbortController()
  if (method !== 'POST') raw.once('close', () => raw.writableFinished || aborter.abort())
  return aborter.signal
}
