/**
 * XRPC methods on the HTTP server: `GET /xrpc/<query>` and `POST /xrpc/<procedure>`, checked against their lexicons.
 *
 * ```ts
 * import { main as getRecord } from '@millisky/core/lexicon/gen/com/atproto/repo/getRecord'
 *
 * const xrpc = new Xrpc(http, { log, challenge: 'Bearer' })
 * xrpc.query(getRecord, async ({ params }) => {
 *   const found = await repos.record(params.repo, params.collection, params.rkey)
 *   if (!found) throw new Refused('RecordNotFound', `Could not locate record: …`)
 *   return { uri: found.uri, cid: found.cid.toString(), value: decode(found.bytes) }
 * })
 * xrpc.procedure(createRecord, { auth: access, bodyBytesMax: 1_000_000 }, async ({ input, auth }) => …)
 * ```
 *
 * **Values.** Handlers live in core's data model, both ways, and never meet `$link` or `$bytes`:
 * - `params` are parsed, checked, and have their defaults; strings with a format come in core's branded types.
 * - `input` of a JSON method is the body itself. Links in it are `Cid`, bytes `Uint8Array`, integers beyond 2^53
 *   `bigint`; where the schema says "any object" (`record`) it is an `Obj` that `encode` of core/cbor takes as it is. The
 *   body is read by core/json, so what is not of the data model (fractions, bad links) is refused before the handler.
 * - `input` of a method that takes other bytes (`uploadBlob`, `importRepo`) is a {@link RawInput}: a stream.
 * - The returned object is written with the same forms: `Cid` → `$link`, `Uint8Array` → `$bytes`; members that are
 *   `undefined` are left out. A value that is JSON already (a DID document) passes unchanged.
 * - {@link raw} is for replies that are not the schema's JSON: CAR files, blobs, proxied answers, prepared text.
 *
 * **Errors** are thrown: `Refused`, `Unavailable`, `Malformed`; see envelope.ts.
 *
 * **Order**: limits of all methods, parameters, `auth`, body, limits of the method, handler.
 */
import { Readable } from 'node:stream'
import { l } from '@atproto/lex-schema'
import { Refused, Unavailable } from '@millisky/core/errors'
import { jsonToValue } from '@millisky/core/json'
import { check } from '@millisky/core/lexicon/check'
import { procedures, queries, subscriptions } from '@millisky/core/lexicon/gen/methods'
import { DATA_DEPTH_MAX } from '@millisky/core/limits'
import { isNsid, type Nsid } from '@millisky/core/syntax'
import type { FastifyInstance, FastifyReply, FastifyRequest, HTTPMethods } from 'fastify'
import { bodyStream, hasBody, readBody, readText } from './body.ts'
import { JSON_BODY_BYTES_MAX, parseJsonBody, pathOf } from './http.ts'
import { type Allowance, applyRates, type RateRule } from './rate.ts'
import type { Logger } from './trace.ts'
import { paramsReader, queryOf } from './xrpc/params.ts'
import { holdsData, type Method, type Parsed, replyJson, type Written } from './xrpc/schema.ts'

/** A body that is not JSON. The handler consumes what it wants of the stream before it returns. */
export interface RawInput {
  /** Media type of the body, lower case, without parameters. */
  readonly encoding: string
  /** Decompressed; errors with `Refused` 413 when it grows beyond the method's limit. */
  readonly body: Readable
  /** Bytes as announced, if they are and are not compressed. */
  readonly size: number | undefined
}

type Chunks = Readable | AsyncIterable<Uint8Array>

/** A reply that is not the JSON object of the schema; made by {@link raw}. */
export class RawReply {
  readonly encoding: string | undefined
  readonly body: Uint8Array | string | Chunks | undefined
  readonly headers: Readonly<Record<string, string>>
  readonly status: number

  constructor(
    encoding: string | undefined,
    body: Uint8Array | string | Chunks | undefined,
    headers: Readonly<Record<string, string>>,
    status: number,
  ) {
    this.encoding = encoding
    this.body = body
    this.headers = headers
    this.status = status
  }
}

/**
 * A reply of bytes, text, or a stream of bytes under a media type of its own. Not checked against the schema.
 *
 * @param headers - In lower case; `content-length` where the size of a stream is known.
 */
export function raw(
  encoding: string | undefined,
  body: Uint8Array | string | Chunks | undefined,
  headers: Readonly<Record<string, string>> = {},
  status = 200,
): RawReply {
  return new RawReply(encoding, body, headers, status)
}

export type Params<M extends Method> = Parsed<l.InferMethodParams<M>>
export type Input<M extends Method> = M extends l.Procedure ? InputOf<l.InferMethodInputBody<M, RawInput>> : undefined
type InputOf<B> = B extends RawInput ? RawInput : Parsed<B>
export type Output<M extends Method> = Replied<l.InferMethodOutputBody<M, RawReply>>
// biome-ignore lint/suspicious/noConfusingVoidType: a handler of a method without output returns nothing
type Replied<B> = B extends undefined ? void : B extends RawReply ? RawReply : Written<B>

/** One call of a method, as its handler and its rate rules see it. */
export class Call<M extends Method = Method, A = unknown> {
  readonly params: Params<M>
  readonly input: Input<M>
  readonly auth: A
  readonly request: FastifyRequest
  /** For headers. The status and body are the handler's result. */
  readonly reply: FastifyReply
  #aborter: AbortController | undefined

  constructor(params: Params<M>, input: Input<M>, auth: A, request: FastifyRequest, reply: FastifyReply) {
    this.params = params
    this.input = input
    this.auth = auth
    this.request = request
    this.reply = reply
  }

  /** Aborted when a caller of a query goes away. A procedure always runs to its end: half of it would be worse. */
  get signal(): AbortSignal {
    if (this.#aborter === undefined) {
      const aborter = new AbortController()
      this.#aborter = aborter
      const { raw } = this.reply
      if (this.request.method !== 'POST') {
        if (raw.destroyed) aborter.abort()
        else raw.once('close', () => raw.writableFinished || aborter.abort())
      }
    }
    return this.#aborter.signal
  }
}

/** What is known of a call before its caller is. */
export interface Unproven {
  /** The method, as in `lxm` of service tokens. */
  readonly nsid: Nsid
  /** Checked parameters; a method that is shared by many has to check their types again. */
  readonly params: unknown
  /** For headers of success and failure alike, such as `DPoP-Nonce`. */
  readonly reply: FastifyReply
}

/** Who is calling. @throws Refused if the credentials will not do. */
export type Auth<A> = (request: FastifyRequest, call: Unproven) => A | Promise<A>

export interface MethodOptions<M extends Method, A> {
  /** Its result is `auth` of the call. Its presence makes replies private to caches. */
  readonly auth?: Auth<A>
  /** Largest body, after decompression: 150 KiB of JSON, 5 MB of anything else, unless told. */
  readonly bodyBytesMax?: number
  /** Limits besides those of all methods. */
  readonly rates?: readonly RateRule<Call<M, A>>[]
  /** The limits of all methods do not apply. */
  readonly exempt?: boolean
  /** Answers in place of the method, before parameters, caller and body are looked at; undefined lets the method answer. */
  readonly instead?: (request: FastifyRequest, reply: FastifyReply, nsid: Nsid) => Promise<RawReply> | undefined
  /** The body is kept as JSON and not as data: `$link` and `$bytes` in it stay as they are, fractions are allowed. */
  readonly plainInput?: boolean
}

export type Handler<M extends Method, A> = (call: Call<M, A>) => Output<M> | RawReply | Promise<Output<M> | RawReply>

export interface XrpcOptions {
  readonly log: Logger
  /** Check replies against their schemas; for development and tests. A reply that fails becomes a 500. */
  readonly checkReplies?: boolean
  /** `WWW-Authenticate` of 401 replies that do not set their own. */
  readonly challenge?: string
  /** Limits of all calls together, taken before anything is read. */
  readonly rates?: readonly RateRule<FastifyRequest>[]
  readonly bypass?: (request: FastifyRequest) => boolean
  /** Serves calls of methods that are not registered, such as by proxying. The body is unread in `request.raw`. */
  readonly fallback?: (request: FastifyRequest, reply: FastifyReply, nsid: Nsid) => Promise<RawReply>
}

/** A record of the greatest depth may stand in an input, itself some objects deep. */
const BODY_DEPTH_MAX = DATA_DEPTH_MAX + 4
const RAW_BODY_BYTES_MAX = 5_000_000
const TEXT_BODY_BYTES_MAX = 100 * 1024
const FALLBACK_METHODS: HTTPMethods[] = ['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE']
const JSON_TYPE = 'application/json; charset=utf-8'

/** The methods of one server. Register them all before it listens. */
export class Xrpc {
  readonly #http: FastifyInstance
  readonly #options: XrpcOptions
  readonly #kinds = new Map<string, 'GET' | 'POST'>()

  constructor(http: FastifyInstance, options: XrpcOptions) {
    this.#http = http
    this.#options = options
    for (const url of ['/xrpc', '/xrpc/*']) {
      http.route({
        method: FALLBACK_METHODS,
        url,
        exposeHeadRoute: false,
        config: { body: 'raw' },
        handler: (request, reply) => this.#fallback(request, reply),
      })
    }
  }

  /** NSIDs of what is registered. */
  get methods(): Iterable<string> {
    return this.#kinds.keys()
  }

  /** Serves a query: `GET`, and `HEAD` without the body. */
  query<M extends l.Query>(schema: M, handler: Handler<M, undefined>): void
  query<M extends l.Query, A>(schema: M, options: MethodOptions<M, A>, handler: NoInfer<Handler<M, A>>): void
  query<M extends l.Query, A>(
    schema: M,
    options: MethodOptions<M, A> | Handler<M, undefined>,
    handler?: Handler<M, A>,
  ): void {
    if (handler) this.#add(schema, 'GET', options as MethodOptions<M, A>, handler)
    else this.#add(schema, 'GET', {}, options as Handler<M, undefined>)
  }

  /** Serves a procedure: `POST`. */
  procedure<M extends l.Procedure>(schema: M, handler: Handler<M, undefined>): void
  procedure<M extends l.Procedure, A>(schema: M, options: MethodOptions<M, A>, handler: NoInfer<Handler<M, A>>): void
  procedure<M extends l.Procedure, A>(
    schema: M,
    options: MethodOptions<M, A> | Handler<M, undefined>,
    handler?: Handler<M, A>,
  ): void {
    if (handler) this.#add(schema, 'POST', options as MethodOptions<M, A>, handler)
    else this.#add(schema, 'POST', {}, options as Handler<M, undefined>)
  }

  #add<M extends Method, A>(schema: M, verb: 'GET' | 'POST', options: MethodOptions<M, A>, handler: Handler<M, A>) {
    const nsid = schema.nsid as string as Nsid
    const { auth, instead, rates } = options
    const { bypass, log, rates: common } = this.#options
    const readParams = paramsReader(schema)
    const readInput = inputReader(schema, options)
    const send = this.#sender(schema)
    const takesRaw = schema instanceof l.Procedure && schema.input.encoding !== undefined && !isJson(schema.input)
    const limited = common !== undefined && common.length > 0 && !options.exempt
    this.#kinds.set(nsid, verb)
    this.#http.route({
      method: verb,
      url: `/xrpc/${nsid}`,
      config: { body: 'raw' },
      handler: async (request, reply) => {
        const free = (limited || rates !== undefined) && bypass !== undefined && bypass(request)
        let allowance: Allowance | undefined
        if (limited && !free) allowance = await applyRates(common, request, reply)
        const other = instead?.(request, reply, nsid)
        if (other) return sendRaw(reply, await other, log)
        const params = readParams(queryOf(request.raw.url!)) as Params<M>
        const caller = (auth ? await this.#authenticate(auth, request, { nsid, params, reply }) : undefined) as A
        const input = (verb === 'POST' || hasBody(request.raw) ? await readInput(request) : undefined) as Input<M>
        const call = new Call<M, A>(params, input, caller, request, reply)
        try {
          if (rates && !free) await applyRates(rates, call, reply, allowance)
          return send(reply, await handler(call))
        } finally {
          if (takesRaw) (input as RawInput).body.destroy()
        }
      },
    })
  }

  async #authenticate<A>(auth: Auth<A>, request: FastifyRequest, call: Unproven): Promise<A> {
    const { reply } = call
    reply.header('cache-control', 'private')
    reply.header('vary', 'Authorization')
    try {
      return await auth(request, call)
    } catch (error) {
      const { challenge } = this.#options
      if (challenge && error instanceof Refused && error.status === 401 && !reply.hasHeader('www-authenticate')) {
        reply.header('www-authenticate', challenge)
      }
      throw error
    }
  }

  /** Writes what a handler returned. */
  #sender(schema: Method): (reply: FastifyReply, output: unknown) => FastifyReply {
    const { output } = schema
    const mayHoldData = holdsData(output.schema)
    const { checkReplies, log } = this.#options
    return (reply, value) => {
      if (value instanceof RawReply) return sendRaw(reply, value, log)
      const json = value === undefined ? undefined : replyJson(value, mayHoldData)
      if (checkReplies) assertReply(schema, json)
      if (json === undefined) return reply.send()
      reply.header('content-type', JSON_TYPE)
      return reply.send(json)
    }
  }

  async #fallback(request: FastifyRequest, reply: FastifyReply): Promise<FastifyReply> {
    const { bypass, fallback, log, rates } = this.#options
    const nsid = pathOf(request).slice('/xrpc/'.length).replace(/\/$/, '')
    if (!isNsid(nsid)) throw new Refused('InvalidRequest', 'invalid xrpc path')
    if (rates && !bypass?.(request)) await applyRates(rates, request, reply)
    const expected = this.#kinds.get(nsid) ?? knownVerb(nsid)
    const { method } = request
    if (expected !== undefined && method !== expected && !(method === 'HEAD' && expected === 'GET')) {
      throw new Refused('InvalidRequest', `Incorrect HTTP method (${method}) expected ${expected}`)
    }
    if (!fallback) throw new Refused('MethodNotImplemented', 'Method Not Implemented', 501)
    return sendRaw(reply, await fallback(request, reply, nsid), log)
  }
}

/** The verb of methods that are known by name only. */
function knownVerb(nsid: string): 'GET' | 'POST' | undefined {
  if (queries.has(nsid) || subscriptions.has(nsid)) return 'GET'
  return procedures.has(nsid) ? 'POST' : undefined
}

function sendRaw(reply: FastifyReply, { encoding, body, headers, status }: RawReply, log: Logger): FastifyReply {
  reply.code(status)
  reply.headers(headers)
  if (encoding !== undefined) reply.header('content-type', encoding)
  if (body === undefined || typeof body === 'string' || body instanceof Uint8Array) return reply.send(body)
  const stream = body instanceof Readable ? body : Readable.from(body, { objectMode: false })
  if (reply.request.method === 'HEAD') {
    // Nobody reads it, and an export is not made for nothing.
    stream.destroy()
    return reply.send(Readable.from([]))
  }
  stream.once('error', error => {
    // A caller that went away is no failure of ours.
    if (reply.raw.destroyed) return
    // Nor is another service's that was passed on.
    const level = error instanceof Unavailable ? 'warn' : 'error'
    log[level]({ err: error, method: pathOf(reply.request) }, 'reply stream failed')
  })
  return reply.send(stream)
}

/** @throws Error, a bug, if a reply is not what the lexicon promises. */
function assertReply({ nsid, output }: Method, json: string | undefined): void {
  if (output.encoding === undefined) {
    if (json !== undefined) throw new Error(`${nsid}: a reply was given where none is promised`)
    return
  }
  if (!isJson(output) || json === undefined) throw new Error(`${nsid}: a reply of ${output.encoding} is promised`)
  const result = output.schema && check(output.schema, jsonToValue(json, { depthMax: Number.POSITIVE_INFINITY }))
  if (result && 'problem' in result) throw new Error(`${nsid}: the reply breaks the lexicon: ${result.problem}`)
}

const isJson = ({ encoding }: l.Payload) => encoding === 'application/json'

/** Makes the reader of one method's body. */
function inputReader(
  schema: Method,
  { bodyBytesMax, plainInput }: Pick<MethodOptions<Method, unknown>, 'bodyBytesMax' | 'plainInput'>,
): (request: FastifyRequest) => Promise<unknown> {
  const input = schema instanceof l.Procedure ? schema.input : undefined
  if (input?.encoding === undefined) return refuseBody
  const { encoding, schema: shape } = input
  const expectsJson = isJson(input)
  const keepsData = !plainInput && (shape === undefined || holdsData(shape))
  const limit =
    bodyBytesMax ??
    (expectsJson ? JSON_BODY_BYTES_MAX : encoding.startsWith('text/') ? TEXT_BODY_BYTES_MAX : RAW_BODY_BYTES_MAX)
  return async request => {
    const { headers } = request.raw
    if (headers['transfer-encoding'] === undefined && headers['content-length'] === undefined) {
      throw new Refused('InvalidRequest', 'A request body is expected but none was provided')
    }
    const type = headers['content-type']?.split(';', 1)[0]?.trim().toLowerCase()
    if (!type) throw new Refused('InvalidRequest', 'Request encoding (Content-Type) required but not provided')
    if (!input.matchesEncoding(type)) {
      throw new Refused('InvalidRequest', `Wrong request encoding (Content-Type): ${type}`)
    }
    if (!expectsJson) return rawInput(request, type, limit)
    const text = await readText(request.raw, limit)
    // Clients say that they send JSON and then send nothing where everything is optional.
    const json = text === '' ? '{}' : text
    const value = keepsData ? jsonToValue(json, { depthMax: BODY_DEPTH_MAX }) : parseJsonBody(json)
    if (shape === undefined) return value
    const checked = check(shape, value)
    if ('problem' in checked) throw new Refused('InvalidRequest', checked.problem)
    return checked.value
  }
}

function rawInput(request: FastifyRequest, encoding: string, limit: number): RawInput {
  const { headers } = request.raw
  const known = headers['content-length'] !== undefined && headers['content-encoding'] === undefined
  return {
    encoding,
    body: bodyStream(request.raw, limit),
    size: known ? Number(headers['content-length']) : undefined,
  }
}

/** Methods without input take an empty body, also one sent as chunks. */
async function refuseBody(request: FastifyRequest): Promise<undefined> {
  if (!hasBody(request.raw)) return undefined
  const refused = new Refused('InvalidRequest', 'A request body was provided when none was expected')
  if (request.raw.headers['transfer-encoding'] === undefined) throw refused
  const body = await readBody(request.raw, 0).catch(() => {
    throw refused
  })
  if (body.length > 0) throw refused
  return undefined
}
