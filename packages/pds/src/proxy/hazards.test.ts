import assert from 'node:assert/strict'
import { once } from 'node:events'
import { request as httpRequest, type IncomingMessage } from 'node:http'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'
import { type TestContext, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { gzipSync } from 'node:zlib'
import { silentLog } from '@millisky/server/trace'
import fc from 'fast-check'
import { bearer, startTestPds, type TestPds, type TestUser } from '../testing-pds.ts'
import { json, startPdsWithAppView, startStandIn } from '../testing-services.ts'

const METHOD = 'app.bsky.graph.getFollows'
const UNREACHABLE = [502, 'UpstreamFailure', 'Upstream service unreachable']
const QUICK = { PDS_PROXY_HEADERS_TIMEOUT: '400', PDS_PROXY_BODY_TIMEOUT: '150' }

/** A service that speaks, or does not, by hand. Answers begin when the request's header has come. */
async function startRaw(t: TestContext, speak: (socket: Socket) => void): Promise<Record<string, string>> {
  const sockets = new Set<Socket>()
  const server = createServer(socket => {
    sockets.add(socket)
    socket.on('error', () => {})
    socket.on('data', data => {
      if (data.includes('\r\n\r\n')) speak(socket)
    })
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  t.after(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  const { port } = server.address() as AddressInfo
  return { PDS_BSKY_APP_VIEW_URL: `http://127.0.0.1:${port}`, PDS_BSKY_APP_VIEW_DID: 'did:web:app.example' }
}

async function askRaw(t: TestContext, speak: (socket: Socket) => void, env: Record<string, string> = {}) {
  const pds = await startTestPds(t, { ...(await startRaw(t, speak)), ...env })
  const alice = await pds.user('alice')
  const ask = async () => {
    const { status, json, headers } = await pds.get(METHOD, {}, bearer(alice))
    return { said: [status, json?.error, json?.message], headers, json }
  }
  return { pds, alice, ask }
}

/** Writes one byte after the other, for as long as somebody listens. */
function dribble(socket: Socket, byte: string): void {
  const timer = setInterval(() => socket.write(byte), 30)
  socket.once('close', () => clearInterval(timer))
}

test('nobody there', async t => {
  const pds = await startTestPds(t, {
    PDS_BSKY_APP_VIEW_URL: 'http://127.0.0.1:1',
    PDS_BSKY_APP_VIEW_DID: 'did:web:a.b',
  })
  const { status, json } = await pds.get(METHOD, {}, bearer(await pds.user('alice')))
  assert.deepEqual([status, json.error, json.message], UNREACHABLE)
})

test('a service that says nothing, hangs up, talks nonsense or never ends its headers', async t => {
  const silent = await askRaw(t, () => {}, QUICK)
  assert.deepEqual((await silent.ask()).said, UNREACHABLE)
  const rude = await askRaw(t, socket => socket.destroy())
  assert.deepEqual((await rude.ask()).said, UNREACHABLE)
  const confused = await askRaw(t, socket => socket.end('SMTP ready\r\n\r\n'))
  assert.deepEqual((await confused.ask()).said, UNREACHABLE)
  const begin = (socket: Socket) => {
    socket.write('HTTP/1.1 200 OK\r\nx-slow: ')
    dribble(socket, 'a')
  }
  const slow = await askRaw(t, begin, QUICK)
  assert.deepEqual((await slow.ask()).said, UNREACHABLE)
})

test('queries are tried again if the operator wishes, what changes something never', async t => {
  let calls = 0
  const env = { PDS_PROXY_MAX_RETRIES: '2' }
  const flaky = (socket: Socket) => {
    if (++calls % 3 !== 0) return socket.destroy()
    socket.write('HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}')
  }
  const { pds, alice, ask } = await askRaw(t, flaky, env)
  assert.equal((await ask()).said[0], 200)
  assert.equal(calls, 3)
  assert.equal((await pds.post('com.example.put', {}, alice)).status, 502)
  assert.equal(calls, 4)
})

test('a service with huge headers', async t => {
  const { ask } = await askRaw(t, socket => {
    socket.write(`HTTP/1.1 200 OK\r\ncontent-length: 2\r\natproto-repo-rev: ${'a'.repeat(200_000)}\r\n\r\n{}`)
  })
  assert.deepEqual((await ask()).said, UNREACHABLE)
})

test('headers of a service that would begin others, or that nobody can read', async t => {
  const split = await askRaw(t, socket => {
    socket.write('HTTP/1.1 200 OK\r\ncontent-length: 2\r\natproto-repo-rev: a\rset-cookie: b=c\r\n\r\n{}')
  })
  const { headers } = await split.ask()
  assert.equal(headers.get('set-cookie'), null)
  const foreign = await askRaw(t, socket => {
    socket.write(
      'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\ncontent-language: \u{1f600}\r\n' +
        'connection: keep-alive, x-hop\r\nx-hop: 1\r\natproto-content-labelers: a\r\natproto-content-labelers: b\r\n\r\n{}',
    )
  })
  const reply = await foreign.ask()
  assert.equal(reply.said[0], 200)
  assert.equal(reply.headers.get('x-hop'), null)
  assert.equal(reply.headers.get('atproto-content-labelers'), 'a, b')
  assert.equal(reply.headers.get('x-content-type-options'), 'nosniff')
})

test('an answer that is larger than allowed, announced or not', async t => {
  const env = { PDS_PROXY_MAX_RESPONSE_SIZE: '1000' }
  const announced = await askRaw(t, socket => socket.write('HTTP/1.1 200 OK\r\ncontent-length: 1001\r\n\r\n'), env)
  assert.deepEqual((await announced.ask()).said, UNREACHABLE)
  const grown = await askRaw(
    t,
    socket =>
      socket.write(`HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n7d0\r\n${'a'.repeat(2000)}\r\n0\r\n\r\n`),
    env,
  )
  // Nothing of it had gone out yet.
  assert.deepEqual((await grown.ask()).said, UNREACHABLE)
})

test('an answer that stops or dribbles is cut off, and whoever asked notices', async t => {
  const start = 'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 5000\r\n\r\n{'
  const quick = { PDS_PROXY_BODY_TIMEOUT: QUICK.PDS_PROXY_BODY_TIMEOUT }
  const stopping = await askRaw(t, socket => socket.write(start), quick)
  await assert.rejects(stopping.ask())
  const closed = Promise.withResolvers<void>()
  const speak = (socket: Socket) => {
    socket.write(start)
    socket.once('close', () => closed.resolve())
    dribble(socket, ' ')
  }
  const dribbling = await askRaw(t, speak, quick)
  await assert.rejects(dribbling.ask())
  await closed.promise
})

test('one account cannot have any number of requests wait for a service of its choice', async t => {
  const pds = await startTestPds(t)
  const [alice, bob] = [await pds.user('alice'), await pds.user('bob')]
  const slow = await startStandIn(t)
  const waiting: (() => void)[] = []
  slow.raw = (_request, response) => waiting.push(() => json(response, {}))
  const ask = async (user: TestUser) => {
    const { status } = await pds.get(METHOD, {}, { ...bearer(user), 'atproto-proxy': `${slow.did}#bsky_appview` })
    return status
  }
  const held = Array.from({ length: 65 }, () => ask(alice))
  // One is refused, whichever comes last.
  assert.equal(await Promise.race(held), 429)
  // Connections to one host are fewer, so not all of the others have arrived there.
  while (waiting.length < 32) await sleep(10)
  const other = ask(bob)
  slow.raw = (_request, response) => json(response, {})
  for (const go of waiting) go()
  assert.equal(await other, 200)
  const statuses = await Promise.all(held)
  assert.deepEqual([statuses.filter(status => status === 200).length, statuses.includes(429)], [64, true])
  assert.equal(await ask(alice), 200)
})

test('a redirect leads nowhere', async t => {
  const canary = await startStandIn(t)
  const { pds, appView } = await startPdsWithAppView(t)
  const alice = await pds.user('alice')
  for (const status of [301, 302, 303, 307, 308]) {
    appView.answer = (_asked, response) => response.writeHead(status, { location: `${canary.url}/secret` }).end()
    const { json, headers } = await pds.get(METHOD, {}, bearer(alice))
    assert.deepEqual([json.error, headers.get('location')], ['UpstreamFailure', null], String(status))
  }
  assert.equal(canary.asked.length, 0)
})

test('what inflates without end is passed on small, as it came', async t => {
  const { pds, appView } = await startPdsWithAppView(t)
  const alice = await pds.user('alice')
  const bomb = gzipSync(Buffer.alloc(80_000_000))
  appView.answer = (_asked, response) => response.writeHead(200, { 'content-encoding': 'gzip' }).end(bomb)
  const response = await get(pds, alice, METHOD)
  assert.deepEqual([response.statusCode, response.headers['content-encoding']], [200, 'gzip'])
  let size = 0
  for await (const chunk of response) size += chunk.length
  assert.equal(size, bomb.length)
})

function get(pds: TestPds, user: TestUser, method: string): Promise<IncomingMessage> {
  return new Promise((resolve, reject) => {
    const headers = { ...bearer(user), 'accept-encoding': 'gzip' }
    httpRequest(new URL(`/xrpc/${method}`, pds.url), { headers }, resolve)
      .on('error', reject)
      .end()
  })
}

test('a service is heard no faster than the caller listens, and no longer', async t => {
  const { pds, appView } = await startPdsWithAppView(t, { PDS_PROXY_MAX_RESPONSE_SIZE: '1GB' })
  const alice = await pds.user('alice')
  const total = 400
  let sent = 0
  const closed = Promise.withResolvers<void>()
  appView.raw = (_request, response) => {
    response.on('close', () => closed.resolve())
    const more = () => {
      while (sent < total && response.write(Buffer.alloc(1_000_000))) sent++
      if (sent < total) response.once('drain', more)
    }
    more()
  }
  const response = await get(pds, alice, METHOD)
  response.pause()
  for (let before = -1; before !== sent; ) {
    before = sent
    await sleep(200)
  }
  assert.ok(sent < total / 2, `${sent} MB were taken from the service`)
  response.destroy()
  await closed.promise
})

test('a caller who leaves before the answer takes the question back', async t => {
  const { pds, appView } = await startPdsWithAppView(t)
  const alice = await pds.user('alice')
  const asked = Promise.withResolvers<void>()
  const closed = Promise.withResolvers<void>()
  appView.raw = (_request, response) => {
    response.on('close', () => closed.resolve())
    asked.resolve()
  }
  const request = httpRequest(new URL(`/xrpc/${METHOD}`, pds.url), { headers: bearer(alice) })
  request.on('error', () => {})
  request.end()
  await asked.promise
  request.destroy()
  await closed.promise
})

test('a body that is too large, and one that the service does not want to hear', async t => {
  const { pds, appView } = await startPdsWithAppView(t, { PDS_BLOB_UPLOAD_LIMIT: '1000' })
  const alice = await pds.user('alice')
  const large = await pds.post('com.example.put', new Uint8Array(1001), alice, { 'content-type': 'text/plain' })
  assert.deepEqual([large.status, large.json.error], [413, 'PayloadTooLarge'])
  assert.equal(appView.asked.length, 0)

  const { pds: roomy, appView: deaf } = await startPdsWithAppView(t)
  const bob = await roomy.user('bob')
  deaf.raw = (_request, response) => json(response, { error: 'NotNow', message: 'Go away' }, {}, 400)
  const refused = await roomy.post('com.example.put', new Uint8Array(5_000_000), bob, { 'content-type': 'text/plain' })
  assert.deepEqual([refused.status, refused.json.error], [400, 'NotNow'])
})

test('a body that is cut short reaches the service as that', async t => {
  const { pds, appView } = await startPdsWithAppView(t)
  const alice = await pds.user('alice')
  const ended = Promise.withResolvers<boolean>()
  const asked = Promise.withResolvers<void>()
  appView.raw = request => {
    asked.resolve()
    request.resume()
    request.on('close', () => ended.resolve(request.complete))
    request.on('error', () => {})
  }
  const { port, hostname } = new URL(pds.url)
  const socket = connect(Number(port), hostname)
  socket.write(
    `POST /xrpc/com.example.put HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${alice.token}\r\ncontent-length: 100\r\n\r\nabc`,
  )
  await asked.promise
  socket.destroy()
  assert.equal(await ended.promise, false)
})

test('requests that two servers might read differently are refused', async t => {
  const { pds, appView } = await startPdsWithAppView(t)
  const alice = await pds.user('alice')
  const { port, hostname } = new URL(pds.url)
  const say = async (head: string): Promise<string> => {
    const socket = connect(Number(port), hostname)
    const chunks: Buffer[] = []
    socket.on('data', chunk => chunks.push(chunk as Buffer))
    socket.on('error', () => {})
    socket.write(
      `${head}authorization: Bearer ${alice.token}\r\nconnection: close\r\n\r\n${head.startsWith('POST') ? '0\r\n\r\n' : ''}`,
    )
    await once(socket, 'close')
    return Buffer.concat(chunks).toString().slice(9, 12)
  }
  const post = 'POST /xrpc/com.example.put HTTP/1.1\r\nhost: x\r\n'
  assert.equal(await say(`${post}content-length: 5\r\ntransfer-encoding: chunked\r\n`), '400')
  assert.equal(await say(`${post}content-length: 5\r\ncontent-length: 6\r\n`), '400')
  assert.equal(await say(`${post}transfer-encoding: chunked, identity\r\n`), '400')
  assert.equal(await say('GET /xrpc/com.example.get/../../secret HTTP/1.1\r\nhost: x\r\n'), '400')
  assert.equal(await say('GET /xrpc/com.example.get%0d%0ax: HTTP/1.1\r\nhost: x\r\n'), '400')
  assert.equal(appView.asked.length, 0)
  assert.equal(await say('GET /xrpc/com.example.get?a=%0d%0ax:%20y&b=http://c/#d HTTP/1.1\r\nhost: x\r\n'), '200')
  assert.equal(appView.asked[0]!.headers.x, undefined)
})

test('services that lie where only this machine can reach are not reached', async t => {
  const canary = await startStandIn(t)
  const port = new URL(canary.url).port
  const endpoints = [
    `http://127.0.0.1:${port}`,
    `https://127.0.0.1:${port}`,
    `https://localhost:${port}`,
    'https://127.0.0.1',
    'https://[::1]',
    'https://[::ffff:127.0.0.1]',
    'https://0x7f000001',
    'https://10.0.0.1',
    'https://169.254.169.254',
    'https://rebound.example',
    'https://mapped.example',
    'https://localhost',
  ]
  const plc = await startStandIn(t)
  plc.answer = ({ path }, response) => {
    const id = decodeURIComponent(path.slice(1))
    const services = endpoints.map((serviceEndpoint, i) => ({ id: `#s${i}`, type: 'X', serviceEndpoint }))
    json(response, { id, service: services })
  }
  const causes: unknown[] = []
  const log = Object.assign(Object.create(silentLog), {
    warn: ({ err }: { err?: Error }) => causes.push((err?.cause as { error?: string } | undefined)?.error),
  })
  const env = {
    PDS_DEV_MODE: 'false',
    PDS_BIND: '127.0.0.1',
    PDS_DISABLE_SSRF_PROTECTION: 'false',
    PDS_DID_PLC_URL: plc.url,
  }
  const addresses: Record<string, string> = { 'rebound.example': '127.0.0.1', 'mapped.example': '::ffff:10.0.0.1' }
  const pds = await startTestPds(t, env, {
    log,
    lookup: (name, _options, callback) => {
      const address = addresses[name] ?? '127.0.0.1'
      callback(null, [{ address, family: address.includes(':') ? 6 : 4 }])
    },
  })
  const alice = await pds.user('alice')
  for (const [i, endpoint] of endpoints.entries()) {
    const header = { 'atproto-proxy': `did:plc:aaaaaaaaaaaaaaaaaaaaaaaa#s${i}` }
    const { status, json } = await pds.get(METHOD, {}, { ...bearer(alice), ...header })
    assert.deepEqual([status, json.error, json.message], UNREACHABLE, endpoint)
    assert.match(String(causes.at(-1)), /^(ForbiddenAddress|InvalidUrl)$/, endpoint)
  }
  assert.deepEqual([causes.length, canary.asked.length], [endpoints.length, 0])
})

test('whatever a service sends, this server does not break', async t => {
  const answers: Buffer[] = []
  const { pds, alice } = await askRaw(t, socket => socket.end(answers.shift()!))
  const line = fc.oneof(
    fc.integer({ min: 100, max: 999 }).map(status => `HTTP/1.1 ${status} Whatever`),
    fc.string().map(text => `HTTP/1.1 ${text}`),
  )
  const value = fc.oneof(
    fc.constantFrom(
      '0',
      '2',
      '5',
      '-1',
      '9999999999',
      'gzip',
      'br, gzip',
      'chunked',
      'application/json',
      'a/b; c="',
      '3kzz',
    ),
    fc.string({ unit: 'binary', maxLength: 20 }),
  )
  const name = fc.constantFrom(
    ...[
      'content-length',
      'content-encoding',
      'content-type',
      'transfer-encoding',
      'atproto-repo-rev',
      'retry-after',
      'upgrade',
    ],
    ...['connection', 'location', 'trailer', 'content-language'],
  )
  const headers = fc.array(
    fc.tuple(name, value).map(pair => pair.join(': ')),
    { maxLength: 4 },
  )
  const body = fc.oneof(fc.constantFrom('{}', '{"error":"A"}', '{"error":7}', '[]', ''), fc.string({ unit: 'binary' }))
  const methods = fc.constantFrom(METHOD, 'app.bsky.feed.getTimeline', 'app.bsky.actor.getProfile?actor=a.test')
  await fc.assert(
    fc.asyncProperty(line, headers, body, methods, async (line, headers, body, method) => {
      answers[0] = Buffer.from(`${[line, ...headers].join('\r\n')}\r\n\r\n${body}`)
      const status = await new Promise<number>((resolve, reject) => {
        const options = { headers: bearer(alice), agent: false }
        const request = httpRequest(new URL(`/xrpc/${method}`, pds.url), options, response => {
          // A body that breaks off after its beginning is nobody's fault here.
          response.on('error', () => {})
          response.on('close', () => resolve(response.statusCode!)).resume()
        })
        request.on('error', reject).end()
      })
      assert.notEqual(status, 500)
      assert.ok((status >= 200 && status <= 299) || (status >= 400 && status <= 599), String(status))
    }),
    { numRuns: 120 },
  )
})
