import assert from 'node:assert/strict'
import { request as rawRequest } from 'node:http'
import { Readable } from 'node:stream'
import { after, test } from 'node:test'
import { gzipSync } from 'node:zlib'
import { l } from '@atproto/lex-schema'
import { decode, encode, type Obj } from '@millisky/core/cbor'
import { Cid } from '@millisky/core/cid'
import { Malformed, Refused } from '@millisky/core/errors'
import { main as getTimeline } from '@millisky/core/lexicon/gen/app/bsky/feed/getTimeline'
import { main as createRecord } from '@millisky/core/lexicon/gen/com/atproto/repo/createRecord'
import { main as getRecord } from '@millisky/core/lexicon/gen/com/atproto/repo/getRecord'
import { main as uploadBlob } from '@millisky/core/lexicon/gen/com/atproto/repo/uploadBlob'
import { main as getRepo } from '@millisky/core/lexicon/gen/com/atproto/sync/getRepo'
import type { Did } from '@millisky/core/syntax'
import { createHttp, listen } from './http.ts'
import { RateLimit } from './rate.ts'
import { silentLog } from './trace.ts'
import { raw, Xrpc } from './xrpc.ts'

const http = createHttp({ log: silentLog, product: 'test' })
after(() => http.close())
const limit = new RateLimit('all', { points: 1_000_000, windowMs: 60_000 })
const xrpc = new Xrpc(http, {
  log: silentLog,
  checkReplies: true,
  challenge: 'Bearer',
  rates: [{ limit, key: request => request.ip }],
  bypass: request => request.headers['x-free'] === 'yes',
})

const ping = l.query(
  'io.example.ping',
  l.params({
    message: l.string(),
    count: l.optional(l.withDefault(l.integer({ minimum: 1, maximum: 100 }), 50)),
    loud: l.optional(l.boolean()),
    tags: l.optional(l.array(l.string())),
    did: l.optional(l.string({ format: 'did' })),
  }),
  l.jsonPayload({ params: l.lexMap() }),
)
xrpc.query(ping, ({ params }) => {
  // The types come from the schema, in core's brands: this compiles.
  const count: number = params.count
  const did: Did | undefined = params.did
  return { params: { ...params, count, did } }
})

const elsewhere = l.procedure('io.example.elsewhere', l.params(), l.jsonPayload({ name: l.string() }), l.payload())
xrpc.procedure(
  elsewhere,
  {
    auth: () => 'somebody',
    instead: ({ headers }, _reply, nsid) => {
      if (headers['x-elsewhere'] === 'refused') throw new Refused('NotThere', 'no')
      return headers['x-elsewhere'] ? Promise.resolve(raw('text/plain', nsid, {}, 202)) : undefined
    },
  },
  () => {},
)

const nothing = l.procedure('io.example.nothing', l.params(), l.payload(), l.payload())
xrpc.procedure(nothing, () => {})

const echo = l.procedure(
  'io.example.echo',
  l.params(),
  l.jsonPayload({ name: l.string({ maxLength: 5 }), inner: l.optional(l.object({ size: l.integer() })) }),
  l.jsonPayload({ name: l.string() }),
)
xrpc.procedure(echo, ({ input }) => ({ name: input.name }))

let received: Obj | undefined
xrpc.procedure(createRecord, { bodyBytesMax: 1_000_000 }, ({ input }) => {
  received = input.record
  const block = encode(input.record)
  return { uri: `at://${input.repo}/${input.collection}/self`, cid: Cid.ofCbor(block).toString() }
})
const everything = {
  link: Cid.ofRaw(Uint8Array.of(1)),
  bytes: Uint8Array.of(1, 2, 3),
  big: 2n ** 60n,
  list: [null, -1],
}
xrpc.query(getRecord, () => ({ uri: 'at://did:web:example.com/a.b.c/self', value: decode(encode(everything)) as Obj }))

xrpc.procedure(uploadBlob, { bodyBytesMax: 100_000 }, async ({ input }) => {
  if (input.encoding === 'image/refused') throw new Refused('NoImage', 'unread')
  const chunks: Buffer[] = []
  for await (const chunk of input.body) chunks.push(chunk)
  const bytes = Buffer.concat(chunks)
  if (input.size !== undefined) assert.equal(input.size, bytes.length)
  return { blob: { $type: 'blob', ref: Cid.ofRaw(bytes), mimeType: input.encoding, size: bytes.length } }
})

let aborted: Promise<unknown> | undefined
let exported: Readable | undefined
xrpc.query(getRepo, ({ params, signal }) => {
  if (params.since === undefined) return raw('application/vnd.ipld.car', Uint8Array.of(1, 2, 3))
  if (params.since === '3jzfcijpj2z2a') {
    exported = Readable.from([Buffer.from('ab'), Buffer.from('c')])
    return raw('application/vnd.ipld.car', exported)
  }
  aborted = new Promise(resolve => signal.addEventListener('abort', resolve))
  return new Promise(() => {})
})

const whoami = l.query('io.example.whoami', l.params(), l.jsonPayload({ did: l.string() }))
xrpc.query(
  whoami,
  {
    auth: (request, { nsid, reply }) => {
      reply.header('dpop-nonce', 'fresh')
      if (!request.headers.authorization) throw new Refused('AuthMissing', 'Authentication Required', 401)
      if (request.headers.authorization === 'x') {
        throw new Refused('Bad', 'bad', 401, { 'www-authenticate': 'DPoP error="x"' })
      }
      return { did: `did:web:${nsid}` }
    },
  },
  ({ auth }) => ({ did: auth.did }),
)

const wrong = l.query('io.example.wrong', l.params(), l.jsonPayload({ size: l.integer() }))
xrpc.query(wrong, () => ({ size: 'large' }) as never)
const bad = l.query('io.example.bad', l.params(), l.jsonPayload({ size: l.integer() }))
xrpc.query(bad, () => {
  throw new Malformed('what is this')
})
const costly = l.procedure('io.example.costly', l.params(), l.jsonPayload({ who: l.string() }), l.payload())
const few = new RateLimit('few', { points: 2, windowMs: 60_000 })
xrpc.procedure(costly, { rates: [{ limit: few, key: ({ input }) => input.who }] }, () => {})
const preferences = l.procedure('io.example.preferences', l.params(), l.jsonPayload({ all: l.lexMap() }), l.payload())
let preferred: unknown
xrpc.procedure(preferences, { plainInput: true }, ({ input }) => {
  preferred = input.all
})

const url = `${await listen(http, { port: 0 })}/xrpc`
const get = (path: string, headers: Record<string, string> = {}) => fetch(`${url}/${path}`, { headers })
const post = (path: string, body?: RequestInit['body'], headers: Record<string, string> = {}) =>
  fetch(`${url}/${path}`, { method: 'POST', body, headers, duplex: 'half' } as RequestInit)
const postJson = (path: string, body: unknown) =>
  post(path, typeof body === 'string' ? body : JSON.stringify(body), { 'content-type': 'application/json' })
const errorOf = async (reply: Response | Promise<Response>) => {
  const got = await reply
  const { error, message } = (await got.json()) as { error: string; message: string }
  return [got.status, error, message]
}
const chunked = (...texts: string[]) => Readable.toWeb(Readable.from(texts.map(text => Buffer.from(text)))) as never

test('parameters are parsed, checked, and have their defaults', async () => {
  const params = async (query: string) =>
    ((await (await get(`io.example.ping?${query}`)).json()) as { params: unknown }).params
  assert.deepEqual(await params('message=h%C3%BC%20+x'), { message: 'hü  x', count: 50 })
  assert.deepEqual(await params('message=a&count=7&loud=true&tags=a&tags=b&did=did:web:x.y'), {
    message: 'a',
    count: 7,
    loud: true,
    tags: ['a', 'b'],
    did: 'did:web:x.y',
  })
  assert.deepEqual(await params('message=a&tags=one&loud=false&count='), {
    message: 'a',
    tags: ['one'],
    loud: false,
    count: 50,
  })
  assert.deepEqual(await params('message=a&tags[]=x&tags%5B%5D=y&tags[7]=z'), {
    message: 'a',
    tags: ['x', 'y', 'z'],
    count: 50,
  })
  assert.deepEqual(await params('message=a&other=1'), { message: 'a', other: '1', count: 50 })
  // Every object has members of these names.
  assert.deepEqual(await params('message=a&constructor=1&toString=2'), { message: 'a', count: 50 })
})

test('parameters that will not do are said with their path', async () => {
  const refusal = (query: string) => errorOf(get(`io.example.ping?${query}`))
  assert.deepEqual(await refusal(''), [
    400,
    'InvalidRequest',
    'Invalid io.example.ping params: Missing required key "message" at $',
  ])
  for (const [query, text] of [
    ['message=a&count=many', /integer.*many.*\$\.count/],
    ['message=a&count=1.5', /\$\.count/],
    ['message=a&count=1000', /integer too big \(maximum 100, got 1000\) at \$\.count/],
    ['message=a&loud=maybe', /boolean.*\$\.loud/],
    ['message=a&did=bob', /Invalid DID.*\$\.did/],
    ['message=a&message=b', /\$\.message/],
  ] as const) {
    const [status, error, message] = await refusal(query)
    assert.deepEqual([status, error], [400, 'InvalidRequest'], query)
    assert.match(message as string, text)
  }
  for (const key of ['__proto__', '__proto__[]', '%5F_proto__']) {
    const [status, error, message] = await refusal(`message=a&${key}=1`)
    assert.deepEqual(
      [status, error, message],
      [400, 'InvalidQueryParameter', 'Invalid query parameter: __proto__'],
      key,
    )
  }
})

test('unknown methods, wrong verbs, and paths that are none', async () => {
  const unknown = [501, 'MethodNotImplemented', 'Method Not Implemented']
  assert.deepEqual(await errorOf(get('io.example.unknown')), unknown)
  assert.deepEqual(await errorOf(post('io.example.unknown', 'x')), unknown)
  const verb = (given: string, expected: string) => [
    400,
    'InvalidRequest',
    `Incorrect HTTP method (${given}) expected ${expected}`,
  ]
  assert.deepEqual(await errorOf(post('io.example.ping', '{}')), verb('POST', 'GET'))
  assert.deepEqual(await errorOf(get('io.example.echo')), verb('GET', 'POST'))
  assert.deepEqual(await errorOf(fetch(`${url}/io.example.echo`, { method: 'PUT' })), verb('PUT', 'POST'))
  // Known by name, though not served.
  assert.deepEqual(await errorOf(post('app.bsky.feed.getTimeline')), verb('POST', 'GET'))
  assert.deepEqual(await errorOf(get('chat.bsky.convo.sendMessage')), verb('GET', 'POST'))
  for (const path of ['', 'nonsense', 'a..b.c', 'io.example.ping/more', '%00']) {
    const [status, error] = await errorOf(get(path))
    assert.deepEqual([status, error], [400, 'InvalidRequest'], path)
  }
  assert.equal((await get('io.example.ping/?message=a')).status, 200, 'a slash at the end is fine')
})

test('every XRPC reply is open to pages', async () => {
  for (const path of ['io.example.unknown', 'nonsense', '%zz', 'io.example.whoami', 'io.example.ping?message=a']) {
    assert.equal((await get(path)).headers.get('access-control-allow-origin'), '*', path)
  }
})

test('HEAD of a query has the headers of GET and no body', async () => {
  const reply = await fetch(`${url}/io.example.ping?message=a`, { method: 'HEAD' })
  assert.equal(reply.status, 200)
  assert.equal(reply.headers.get('content-type'), 'application/json; charset=utf-8')
  assert.equal(await reply.text(), '')
})

test('a procedure without input takes an empty body and no other', async () => {
  for (const reply of [
    await post('io.example.nothing'),
    await post('io.example.nothing', ''),
    await post('io.example.nothing', chunked()),
    await post('io.example.nothing', undefined, { 'content-type': 'application/json' }),
  ]) {
    assert.equal(reply.status, 200)
    assert.equal(reply.headers.get('content-type'), null)
    assert.equal(await reply.text(), '')
  }
  const refusal = [400, 'InvalidRequest', 'A request body was provided when none was expected']
  assert.deepEqual(await errorOf(postJson('io.example.nothing', {})), refusal)
  assert.deepEqual(await errorOf(post('io.example.nothing', chunked('{}'))), refusal)
})

test('a query takes no body', async () => {
  const reply = await new Promise<number | undefined>((resolve, reject) => {
    const headers = { 'content-length': '2', 'content-type': 'application/json' }
    const asked = rawRequest(`${url}/io.example.ping?message=a`, { method: 'GET', headers }, got => {
      got.resume()
      resolve(got.statusCode)
    })
    asked.on('error', reject)
    asked.end('{}')
  })
  assert.equal(reply, 400)
})

test('input that will not do', async () => {
  const echoed = (body: RequestInit['body'], type?: string) =>
    errorOf(post('io.example.echo', body, type === undefined ? {} : { 'content-type': type }))
  const json = 'application/json'
  assert.deepEqual(
    await errorOf(fetch(`${url}/io.example.echo`, { method: 'POST', headers: { 'content-type': json } })),
    [400, 'InvalidRequest', 'Missing required key "name" at $'],
  )
  assert.deepEqual((await echoed(Buffer.from('{}')))[2], 'Request encoding (Content-Type) required but not provided')
  assert.deepEqual((await echoed('{}', 'text/plain'))[2], 'Wrong request encoding (Content-Type): text/plain')
  assert.deepEqual(await echoed('{}', 'nonsense'), [
    400,
    'InvalidRequest',
    'Request encoding (Content-Type) required but not provided',
  ])
  assert.deepEqual((await echoed('{}', json))[2], 'Missing required key "name" at $')
  assert.match(
    (await echoed('{"name":"toolong"}', json))[2] as string,
    /string too big \(maximum 5, got 7\) at \$\.name/,
  )
  assert.match((await echoed('{"name":"a","inner":{"size":"x"}}', json))[2] as string, /integer.*\$\.inner\.size/)
  for (const body of ['[]', '"x"', 'null', '{"name":', '{"name":"\xff"}']) {
    const bytes = Buffer.from(body, 'latin1')
    const [status, error] = await echoed(bytes, json)
    assert.deepEqual([status, error], [400, 'InvalidRequest'], body)
  }
})

test('a body in JSON with charset, compressed, or in chunks', async () => {
  for (const [body, headers] of [
    ['{"name":"a"}', { 'content-type': 'application/json; charset=utf-8' }],
    ['{"name":"a"}', { 'content-type': 'Application/JSON' }],
    [gzipSync('{"name":"a"}'), { 'content-type': 'application/json', 'content-encoding': 'gzip' }],
    [chunked('{"na', 'me":"a"}'), { 'content-type': 'application/json' }],
    ['\ufeff{"name":"a"}', { 'content-type': 'application/json;charset="UTF8"' }],
  ] as [RequestInit['body'], Record<string, string>][]) {
    assert.deepEqual(await (await post('io.example.echo', body, headers)).json(), { name: 'a' })
  }
  for (const charset of ['latin1', 'utf-16', 'nonsense']) {
    const headers = { 'content-type': `application/json; charset=${charset}` }
    const expected = [415, 'UnsupportedMediaType', `unsupported charset "${charset.toUpperCase()}"`]
    assert.deepEqual(await errorOf(post('io.example.echo', '{"name":"a"}', headers)), expected)
  }
})

test('JSON bodies have their limit, records a larger one', async () => {
  const refusal = [413, 'PayloadTooLarge', 'request entity too large']
  assert.deepEqual(await errorOf(postJson('io.example.echo', { name: 'a'.repeat(150 * 1024) })), refusal)
  const record = (size: number) =>
    postJson('com.atproto.repo.createRecord', {
      repo: 'did:web:x.y',
      collection: 'a.b.c',
      record: { text: 'a'.repeat(size) },
    })
  assert.equal((await record(900_000)).status, 200)
  assert.deepEqual(await errorOf(record(1_000_000)), refusal)
})

test('records reach handlers as data and leave them as JSON', async () => {
  const json = `{"link":{"$link":"${everything.link}"},"bytes":{"$bytes":"AQID"},"big":1152921504606846976,"list":[null,-1]}`
  const body = `{"repo":"did:web:x.y","collection":"a.b.c","record":${json}}`
  const created = await postJson('com.atproto.repo.createRecord', body)
  assert.equal(created.status, 200)
  assert.ok(received?.link instanceof Cid && received.link.equals(everything.link))
  assert.deepEqual(received, everything)
  const { cid } = (await created.json()) as { cid: string }
  assert.equal(cid, Cid.ofCbor(encode(everything)).toString())

  const text = await (await get('com.atproto.repo.getRecord?repo=did:web:x.y&collection=a.b.c&rkey=self')).text()
  assert.deepEqual(JSON.parse(text).value, JSON.parse(json))
  assert.ok(text.includes('"big":1152921504606846976'), 'no digit is lost')
  for (const broken of ['{"$link":"nonsense"}', '1.5', '{"$bytes":"%"}']) {
    const [status, error] = await errorOf(postJson('com.atproto.repo.createRecord', body.replace('[null,-1]', broken)))
    assert.deepEqual([status, error], [400, 'InvalidRequest'], broken)
  }
})

test('a record as deep as the data model allows passes, deeper does not bring anything down', async () => {
  const deep = (n: number) => '['.repeat(n) + ']'.repeat(n)
  const send = (n: number) =>
    postJson('com.atproto.repo.createRecord', `{"repo":"did:web:x.y","collection":"a.b.c","record":{"a":${deep(n)}}}`)
  assert.equal((await send(30)).status, 200)
  assert.equal((await send(50)).status, 400)
  assert.equal((await send(200_000)).status, 400)
})

test('bodies that are no data keep their JSON', async () => {
  const all = { half: 0.5, link: { $link: 'nonsense' } }
  const reply = await postJson('io.example.preferences', { all })
  // "any object" of the schema still means the data model: only unions and the like let fractions pass.
  assert.equal(reply.status, 400)
  assert.equal((await postJson('io.example.preferences', { all: { link: all.link } })).status, 200)
  assert.deepEqual(preferred, { link: all.link })
})

test('bytes come in as a stream', async () => {
  const bytes = Buffer.alloc(80_000, 'x')
  for (const [body, headers] of [
    [bytes, {}],
    [gzipSync(bytes), { 'content-encoding': 'gzip' }],
    [Readable.toWeb(Readable.from([bytes.subarray(0, 5), bytes.subarray(5)])) as never, {}],
  ] as [RequestInit['body'], Record<string, string>][]) {
    const reply = await post('com.atproto.repo.uploadBlob', body, { 'content-type': 'image/PNG; x=y', ...headers })
    assert.deepEqual(await reply.json(), {
      blob: { $type: 'blob', ref: { $link: Cid.ofRaw(bytes).toString() }, mimeType: 'image/png', size: 80_000 },
    })
  }
  const image = { 'content-type': 'image/png' }
  const refusal = [413, 'PayloadTooLarge', 'request entity too large']
  assert.deepEqual(await errorOf(post('com.atproto.repo.uploadBlob', Buffer.alloc(100_001), image)), refusal)
  assert.deepEqual(await errorOf(post('com.atproto.repo.uploadBlob', chunked('x'.repeat(100_001)), image)), refusal)
  assert.deepEqual(
    (
      await errorOf(fetch(`${url}/com.atproto.repo.uploadBlob`, { method: 'POST', headers: { 'content-length': '0' } }))
    )[1],
    'InvalidRequest',
  )
})

test('a handler may leave a body unread', async () => {
  for (let i = 0; i < 3; i++) {
    const reply = await post('com.atproto.repo.uploadBlob', Buffer.alloc(99_000), { 'content-type': 'image/refused' })
    assert.deepEqual([reply.status, ((await reply.json()) as { error: string }).error], [400, 'NoImage'])
  }
})

test('bytes and streams go out', async () => {
  const whole = await get('com.atproto.sync.getRepo?did=did:web:x.y')
  assert.equal(whole.headers.get('content-type'), 'application/vnd.ipld.car')
  assert.equal(whole.headers.get('content-length'), '3')
  assert.deepEqual(new Uint8Array(await whole.arrayBuffer()), Uint8Array.of(1, 2, 3))
  const stream = await get('com.atproto.sync.getRepo?did=did:web:x.y&since=3jzfcijpj2z2a')
  assert.equal(await stream.text(), 'abc')
  const head = await fetch(`${url}/com.atproto.sync.getRepo?did=did:web:x.y&since=3jzfcijpj2z2a`, { method: 'HEAD' })
  assert.equal(head.headers.get('content-type'), 'application/vnd.ipld.car')
  assert.ok(exported?.destroyed && !exported.readableDidRead)
})

test('a caller that goes away is noticed', async () => {
  const leaving = new AbortController()
  const reply = fetch(`${url}/com.atproto.sync.getRepo?did=did:web:x.y&since=3jzfcijpj2z2b`, { signal: leaving.signal })
  while (!aborted) await new Promise(resolve => setTimeout(resolve, 5))
  leaving.abort()
  await assert.rejects(reply)
  await aborted
})

test('authenticated replies are private, refusals carry a challenge', async () => {
  const served = await get('io.example.whoami', { authorization: 'yes' })
  assert.deepEqual(await served.json(), { did: 'did:web:io.example.whoami' })
  assert.equal(served.headers.get('www-authenticate'), null)
  const missing = await get('io.example.whoami')
  assert.equal(missing.status, 401)
  assert.equal(missing.headers.get('www-authenticate'), 'Bearer')
  assert.deepEqual(await missing.json(), { error: 'AuthMissing', message: 'Authentication Required' })
  const own = await get('io.example.whoami', { authorization: 'x' })
  assert.equal(own.headers.get('www-authenticate'), 'DPoP error="x"')
  for (const { headers } of [served, missing, own]) {
    assert.equal(headers.get('cache-control'), 'private')
    assert.equal(headers.get('vary'), 'Authorization')
    assert.equal(headers.get('dpop-nonce'), 'fresh')
  }
  assert.equal((await get('io.example.ping?message=a')).headers.get('cache-control'), null)
})

test('a reply that breaks its lexicon is a bug, a Malformed is the request’s fault', async () => {
  assert.deepEqual(await errorOf(get('io.example.wrong')), [500, 'InternalServerError', 'Internal Server Error'])
  assert.deepEqual(await errorOf(get('io.example.bad')), [400, 'InvalidRequest', 'what is this'])
})

test('something else may answer in place of a method, before it looks at anything', async () => {
  const ask = (body: string, where = '') =>
    post('io.example.elsewhere', body, { 'content-type': 'application/json', 'x-elsewhere': where })
  const other = await ask('not json', 'there')
  assert.deepEqual([other.status, await other.text()], [202, 'io.example.elsewhere'])
  assert.deepEqual(await errorOf(ask('{}', 'refused')), [400, 'NotThere', 'no'])
  assert.equal((await ask('not json')).status, 400)
  assert.equal((await ask('{"name":"a"}')).status, 200)
})

test('limits of a method come after its input, and there is a way past them', async () => {
  const pay = (who: string) => postJson('io.example.costly', { who })
  assert.equal((await pay('a')).headers.get('ratelimit-policy'), '2;w=60')
  assert.equal((await pay('a')).status, 200)
  assert.deepEqual(await errorOf(pay('a')), [429, 'RateLimitExceeded', 'Rate Limit Exceeded'])
  assert.equal((await pay('b')).status, 200)
  const free = await post('io.example.costly', '{"who":"a"}', { 'content-type': 'application/json', 'x-free': 'yes' })
  assert.equal(free.status, 200)
  assert.equal(free.headers.get('ratelimit-limit'), null)
  assert.equal((await get('io.example.unknown')).headers.get('ratelimit-limit'), '1000000')
})

test('calls of other methods go to the fallback, unread', async () => {
  const server = createHttp({ log: silentLog, product: 'x' })
  const proxy = new Xrpc(server, {
    log: silentLog,
    fallback: async (request, _reply, nsid) => {
      const chunks: Buffer[] = []
      for await (const chunk of request.raw) chunks.push(chunk)
      const { method } = request
      return raw(
        'text/plain',
        [Buffer.concat(chunks).toString(), method, nsid].join(' '),
        { 'atproto-repo-rev': 'r' },
        203,
      )
    },
  })
  proxy.query(getTimeline, () => raw('text/plain', 'mine'))
  const base = `${await listen(server, { port: 0 })}/xrpc`
  try {
    const reply = await fetch(`${base}/io.example.send?x=1`, { method: 'POST', body: 'hello' })
    assert.equal(reply.status, 203)
    assert.equal(reply.headers.get('atproto-repo-rev'), 'r')
    assert.equal(await reply.text(), 'hello POST io.example.send')
    assert.equal(await (await fetch(`${base}/app.bsky.feed.getFeed`)).text(), ' GET app.bsky.feed.getFeed')
    assert.equal((await fetch(`${base}/app.bsky.feed.getFeed`, { method: 'HEAD' })).status, 203)
    assert.equal((await fetch(`${base}/app.bsky.feed.getFeed`, { method: 'POST' })).status, 400)
    assert.equal(await (await fetch(`${base}/app.bsky.feed.getTimeline`)).text(), 'mine')
  } finally {
    await server.close()
  }
})

test('what is registered can be listed', () => {
  assert.ok([...xrpc.methods].includes('io.example.ping'))
})
