import assert from 'node:assert/strict'
import { statSync } from 'node:fs'
import { request as rawRequest } from 'node:http'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { after, test } from 'node:test'
import { brotliCompressSync, deflateSync, gzipSync } from 'node:zlib'
import { Malformed, Refused, Unavailable } from '@millisky/core/errors'
import { bodyStream } from './body.ts'
import { addHealth, createHttp, listen, pathOf } from './http.ts'
import { until } from './testing-until.ts'
import { createMetrics, silentLog } from './trace.ts'
import { onUpgrade } from './upgrade.ts'

const metrics = createMetrics()
const http = createHttp({
  log: silentLog,
  metrics,
  product: 'millisky-test/1',
  cors: path => !path.startsWith('/admin'),
  bodyBytesMax: 1000,
  trustProxy: 1,
})
after(() => http.close())

const errors: Record<string, unknown> = {
  refused: new Refused('NoGood', 'that will not do', 403, { 'www-authenticate': 'Basic' }),
  unavailable: new Unavailable('UpstreamFailure', 'they are gone', 502, 2.5),
  malformed: new Malformed('not a thing', 7),
  bug: new TypeError('secret detail'),
  string: 'secret detail',
}
http.get<{ Params: { kind: string } }>('/throw/:kind', async request => {
  throw errors[request.params.kind]
})
http.post('/echo', async request => ({ body: request.body ?? null }))
http.post('/small', { config: { bodyBytesMax: 10 } }, async request => ({ body: request.body }))
http.get('/admin/thing', async () => ({ ok: true }))
http.get('/ip', async request => ({ ip: request.ip, path: pathOf(request) }))
http.post('/count', { config: { body: 'raw' } }, async request => {
  let bytes = 0
  for await (const chunk of bodyStream(request.raw, 100_000)) bytes += chunk.length
  return { bytes }
})
let health: () => Promise<void> = async () => {}
addHealth(http, '1.2.3', () => health())
const url = await listen(http, { port: 0 })

type Body = NonNullable<RequestInit['body']>
const post = (path: string, body: Body, headers: Record<string, string> = {}) =>
  fetch(url + path, { method: 'POST', body, headers, duplex: 'half' } as RequestInit)
const errorOf = async (reply: Response) => [reply.status, await reply.json()]

/** Sends text and gives all that comes back until the other side closes. */
function talk(text: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect(Number(new URL(url).port), '127.0.0.1', () => socket.write(text))
    let got = ''
    socket.on('data', data => {
      got += data
    })
    socket.on('close', () => resolve(got))
    socket.on('error', reject)
  })
}

test('errors become {error, message}, and bugs keep their text to themselves', async () => {
  const get = (kind: string) => fetch(`${url}/throw/${kind}`)
  const refused = await get('refused')
  assert.equal(refused.headers.get('www-authenticate'), 'Basic')
  assert.equal(refused.headers.get('content-type'), 'application/json; charset=utf-8')
  assert.deepEqual(await errorOf(refused), [403, { error: 'NoGood', message: 'that will not do' }])
  const unavailable = await get('unavailable')
  assert.equal(unavailable.headers.get('retry-after'), '3')
  assert.deepEqual(await errorOf(unavailable), [502, { error: 'UpstreamFailure', message: 'they are gone' }])
  const invalid = { error: 'InvalidRequest', message: 'not a thing (at byte 7)' }
  assert.deepEqual(await errorOf(await get('malformed')), [400, invalid])
  const hidden = { error: 'InternalServerError', message: 'Internal Server Error' }
  assert.deepEqual(await errorOf(await get('bug')), [500, hidden])
  assert.deepEqual(await errorOf(await get('string')), [500, hidden])
})

test('what is not there, and paths that are none', async () => {
  assert.deepEqual(await errorOf(await fetch(`${url}/nothing`)), [404, { error: 'NotFound', message: 'Not Found' }])
  const [status, body] = await errorOf(await fetch(`${url}/%zz`))
  assert.equal(status, 400)
  assert.equal((body as { error: string }).error, 'InvalidRequest')
})

test('every page may call, except what is kept from pages', async () => {
  for (const path of ['/ip', '/nothing', '/throw/bug']) {
    const { headers } = await fetch(url + path)
    assert.equal(headers.get('access-control-allow-origin'), '*', path)
    const exposed = headers.get('access-control-expose-headers')?.toLowerCase().split(', ') ?? []
    for (const name of [
      'atproto-repo-rev',
      'atproto-content-labelers',
      'dpop-nonce',
      'www-authenticate',
      'retry-after',
    ])
      assert.ok(exposed.includes(name), `${path}: ${name}`)
    assert.equal(headers.get('server'), 'millisky-test/1')
  }
  for (const path of ['/admin/thing', '/admin/nothing']) {
    const { headers } = await fetch(url + path)
    assert.equal(headers.get('access-control-allow-origin'), null, path)
    assert.equal(headers.get('server'), 'millisky-test/1')
  }
})

test('preflight', async () => {
  const ask = (path: string) =>
    fetch(url + path, {
      method: 'OPTIONS',
      headers: {
        origin: 'https://example.com',
        'access-control-request-method': 'POST',
        'access-control-request-headers': 'authorization,atproto-proxy',
      },
    })
  const reply = await ask('/xrpc/com.example.any')
  assert.equal(reply.status, 204)
  assert.equal(reply.headers.get('access-control-allow-origin'), '*')
  assert.equal(reply.headers.get('access-control-max-age'), '86400')
  assert.equal(reply.headers.get('access-control-allow-headers'), 'authorization,atproto-proxy')
  assert.match(reply.headers.get('access-control-allow-methods') ?? '', /POST/)
  assert.equal((await ask('/admin/thing')).status, 404)
  assert.equal((await ask('/admin/thing')).headers.get('access-control-allow-origin'), null)
})

test('bodies of ordinary routes are parsed', async () => {
  const body = async (reply: Promise<Response>) => ((await (await reply).json()) as { body: unknown }).body
  assert.deepEqual(await body(post('/echo', '{"a":[1]}', { 'content-type': 'application/json' })), { a: [1] })
  assert.deepEqual(await body(post('/echo', new URLSearchParams({ a: 'ü' }))), { a: 'ü' })
  assert.equal(await body(post('/echo', 'text', { 'content-type': 'text/plain' })), 'text')
  assert.equal(await body(fetch(`${url}/echo`, { method: 'POST' })), null)
  const broken = await post('/echo', '{', { 'content-type': 'application/json' })
  assert.equal(broken.status, 400)
  assert.equal(((await broken.json()) as { error: string }).error, 'InvalidRequest')
})

test('large bodies are refused, announced or not, and the caller gets to read it', async () => {
  const refusal = [413, { error: 'PayloadTooLarge', message: 'request entity too large' }]
  const json = { 'content-type': 'application/json' }
  assert.deepEqual(await errorOf(await post('/echo', `"${'x'.repeat(1000)}"`, json)), refusal)
  assert.deepEqual(await errorOf(await post('/small', '"123456789"', json)), refusal)
  assert.equal((await post('/small', '"12345678"', json)).status, 200)
  const chunks = Readable.toWeb(Readable.from(Array.from({ length: 50 }, () => Buffer.alloc(100, 'x'))))
  assert.deepEqual(await errorOf(await post('/echo', chunks as Body, json)), refusal)
  const stream = Readable.toWeb(Readable.from(Array.from({ length: 50 }, () => Buffer.alloc(10_000))))
  assert.deepEqual(await errorOf(await post('/count', stream as Body)), refusal)
})

test('compressed bodies', async () => {
  const text = Buffer.from(JSON.stringify({ a: 'b'.repeat(900) }))
  const encoders = {
    gzip: gzipSync,
    'x-gzip': gzipSync,
    deflate: deflateSync,
    br: brotliCompressSync,
    identity: Buffer.from,
  }
  for (const [name, encode] of Object.entries(encoders)) {
    const headers = { 'content-type': 'application/json', 'content-encoding': name }
    const reply = await post('/echo', encode(text) as Body, headers)
    assert.deepEqual(await reply.json(), { body: JSON.parse(text.toString()) }, name)
  }
  const twice = { 'content-type': 'application/json', 'content-encoding': 'gzip, br' }
  assert.equal((await post('/echo', brotliCompressSync(gzipSync(text)) as Body, twice)).status, 200)
})

test('a small body that unpacks to a huge one is stopped early', async () => {
  const bomb = gzipSync(Buffer.alloc(50_000_000))
  for (const path of ['/count', '/echo']) {
    const reply = await post(path, bomb.subarray(0, path === '/echo' ? 990 : undefined) as Body, {
      'content-encoding': 'gzip',
      'content-type': 'application/json',
    })
    assert.equal(reply.status, 413, path)
  }
})

test('unknown encodings are 415, broken ones 400', async () => {
  for (const path of ['/echo', '/count']) {
    for (const name of ['zip', 'gzip, gzip, gzip']) {
      const reply = await post(path, 'x', { 'content-encoding': name, 'content-type': 'application/json' })
      assert.deepEqual(await errorOf(reply), [
        415,
        { error: 'UnsupportedMediaType', message: `unsupported content encoding "${name}"` },
      ])
    }
  }
  const broken = await post('/echo', 'nonsense', { 'content-encoding': 'gzip', 'content-type': 'application/json' })
  assert.deepEqual(await errorOf(broken), [
    400,
    { error: 'InvalidRequest', message: 'request body does not decompress' },
  ])
})

test('the address before the trusted proxy', async () => {
  const reply = await fetch(`${url}/ip?x=1`, { headers: { 'x-forwarded-for': '6.6.6.6, 9.9.9.9' } })
  assert.deepEqual(await reply.json(), { ip: '9.9.9.9', path: '/ip' })
})

test('health', async () => {
  const get = () => fetch(`${url}/xrpc/_health`)
  assert.deepEqual(await errorOf(await get()), [200, { version: '1.2.3' }])
  health = () => Promise.reject(new Error('no database'))
  assert.deepEqual(await errorOf(await get()), [503, { version: '1.2.3', error: 'Service Unavailable' }])
  let asked = 0
  let finish: (() => void) | undefined
  health = () => {
    asked++
    return new Promise<void>(resolve => {
      finish = resolve
    })
  }
  let arrived = 0
  const arrive = () => arrived++
  http.server.on('request', arrive)
  const many = Promise.all([get(), get(), get()])
  await until('all have come', () => arrived === 3 && finish)
  // And have asked.
  for (let turn = 0; turn < 3; turn++) await new Promise(setImmediate)
  http.server.off('request', arrive)
  finish?.()
  assert.deepEqual(
    (await many).map(reply => reply.status),
    [200, 200, 200],
  )
  assert.equal(asked, 1)
})

test('requests are counted by route', async () => {
  await fetch(`${url}/throw/refused`)
  const text = await metrics.text()
  assert.match(text, /http_request_duration_seconds_count\{method="GET",route="\/throw\/:kind",code="4xx"\} [1-9]/)
  assert.ok(!text.includes('nothing'), 'paths from outside are no labels')
})

test('a request under way is answered while draining, and then its connection closes', async () => {
  const draining = createHttp({ log: silentLog, product: 'x' })
  let finish: ((value: string) => void) | undefined
  draining.get('/slow', () => {
    return new Promise(resolve => {
      finish = resolve
    })
  })
  const base = await listen(draining, { port: 0 })
  const reply = new Promise<number>((resolve, reject) => {
    const asked = rawRequest(`${base}/slow`, { headers: { connection: 'keep-alive' } }, got => {
      got.resume()
      resolve(got.statusCode ?? 0)
    })
    asked.on('error', reject)
    asked.end()
  })
  while (!finish) await new Promise(resolve => setTimeout(resolve, 5))
  const closed = draining.close()
  await new Promise(resolve => setTimeout(resolve, 20))
  finish('done')
  assert.equal(await reply, 200)
  await closed
})

test('a Unix socket with its permissions, also where one was left over', async () => {
  const socketPath = join(tmpdir(), `millisky-http-${process.pid}.sock`)
  for (let i = 0; i < 2; i++) {
    const server = createHttp({ log: silentLog, product: 'x' })
    server.get('/', async () => ({ ok: true }))
    assert.equal(await listen(server, { socketPath, mode: 0o660 }), socketPath)
    assert.equal(statSync(socketPath).mode & 0o777, 0o660)
    const status = await new Promise<number | undefined>((resolve, reject) => {
      rawRequest({ socketPath, path: '/', agent: false }, reply => {
        reply.resume()
        resolve(reply.statusCode)
      })
        .on('error', reject)
        .end()
    })
    assert.equal(status, 200)
    await server.close()
  }
})

test('a request that is not HTTP gets 400 and a closed connection', async () => {
  for (const [text, status, error] of [
    ['nonsense\r\n\r\n', 400, 'InvalidRequest'],
    ['POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n', 400, 'InvalidRequest'],
    [`GET /ip HTTP/1.1\r\nhost: x\r\nx: ${'x'.repeat(40_000)}\r\n\r\n`, 431, 'HeadersTooLarge'],
  ] as const) {
    const reply = await talk(text)
    const [head = '', body = ''] = reply.split('\r\n\r\n', 2)
    assert.match(head, new RegExp(`^HTTP/1\\.1 ${status} `))
    assert.deepEqual(Object.keys(JSON.parse(body)), ['error', 'message'])
    assert.equal(JSON.parse(body).error, error)
  }
})

test('an offer to speak another protocol is passed over', async () => {
  const server = createHttp({ log: silentLog, product: 'x' })
  server.get('/thing', async () => ({ ok: true }))
  onUpgrade(server.server, '/stream', () => {})
  const { port } = new URL(await listen(server, { port: 0 }))
  const status = await new Promise(resolve => {
    const headers = {
      connection: 'Upgrade, HTTP2-Settings',
      upgrade: 'h2c',
      'http2-settings': 'AAMAAABkAAQAoAAAAAIAAAAA',
    }
    rawRequest({ port, path: '/thing', headers }, reply => resolve(reply.resume().statusCode)).end()
  })
  assert.equal(status, 200)
  await server.close()
})

test('callers of what is not there do not fill the log', async () => {
  const logged: string[] = []
  const level = (name: string) => (_about: object, text: string) => logged.push(`${name}: ${text}`)
  const log = { ...silentLog, warn: level('warn'), error: level('error'), debug: level('debug') } as never
  const server = createHttp({ log, product: 'x' })
  server.get('/none', async () => {
    throw new Refused('MethodNotImplemented', 'Method Not Implemented', 501)
  })
  server.get('/away', async () => {
    throw new Unavailable('UpstreamFailure', 'they are gone', 502)
  })
  assert.deepEqual([(await server.inject('/none')).statusCode, (await server.inject('/away')).statusCode], [501, 502])
  assert.deepEqual(logged, ['debug: Method Not Implemented', 'warn: they are gone'])
  await server.close()
})

test('a body may come along with its head, behind it, or in pieces, and the next request behind it', async () => {
  const head = 'POST /echo HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n'
  const pieces = [
    [`${head}content-length: 7\r\n\r\n{"a":1}${head}content-length: 7\r\n\r\n`, '{"a":', '2}'],
    [`${head}transfer-encoding: chunked\r\n\r\n3\r\n{"a\r\n4\r\n":3}\r\n0\r\n\r\n`],
    [`${head}transfer-encoding: chunked\r\n\r\n3\r\n{"a\r\n`, '4\r\n":4}\r\n0\r\n\r\n'],
    [`${head}transfer-encoding: chunked\r\n\r\n3e9\r\n${'1'.repeat(1001)}\r\n0\r\n\r\n`],
  ]
  const socket = connect(Number(new URL(url).port), '127.0.0.1')
  let got = ''
  socket.setEncoding('utf8').on('data', data => {
    got += data
  })
  const closed = new Promise(resolve => socket.once('close', resolve))
  for (const piece of pieces.flat()) {
    socket.write(piece)
    await new Promise(resolve => setTimeout(resolve, 10))
  }
  await closed
  const bodies = [...got.matchAll(/\r\n\r\n(\{.*?\})(?=HTTP|$)/gs)].map(match => JSON.parse(match[1]!))
  assert.deepEqual(bodies, [
    { body: { a: 1 } },
    { body: { a: 2 } },
    { body: { a: 3 } },
    { body: { a: 4 } },
    { error: 'PayloadTooLarge', message: 'request entity too large' },
  ])
})

test('a body cut short does no harm', async () => {
  const socket = connect(Number(new URL(url).port), '127.0.0.1')
  socket.write('POST /echo HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{"a"')
  await new Promise(resolve => setTimeout(resolve, 30))
  socket.destroy()
  assert.equal((await fetch(`${url}/ip`)).status, 200)
})
