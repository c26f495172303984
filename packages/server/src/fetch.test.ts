import assert from 'node:assert/strict'
import { createServer, type RequestListener, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { after, test } from 'node:test'
import { gzipSync } from 'node:zlib'
import { Refused, Unavailable } from '@millisky/core/errors'
import { checkUrl, Fetcher, guardedLookup, isPublicAddress, type LookupAll } from './fetch.ts'

const cleanups: (() => unknown)[] = []
after(async () => {
  for (const cleanup of cleanups) await cleanup()
})

async function serve(listener: RequestListener): Promise<{ origin: string; port: number; server: Server }> {
  const server = createServer(listener)
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  cleanups.push(() => {
    server.closeAllConnections()
    server.close()
  })
  const { port } = server.address() as AddressInfo
  return { origin: `http://127.0.0.1:${port}`, port, server }
}

function fetcher(options: { allowPrivate: boolean; lookup?: LookupAll; ports?: number[] }): Fetcher {
  const made = new Fetcher({ userAgent: 'test', ...options })
  cleanups.push(() => made.close())
  return made
}

const answering =
  (...rounds: string[][]): LookupAll =>
  (_hostname, _options, callback) => {
    const addresses = (rounds.length > 1 ? rounds.shift() : rounds[0]) ?? []
    callback(
      null,
      addresses.map(address => ({ address, family: address.includes(':') ? 6 : 4 })),
    )
  }

test('addresses of the public internet, and none else', () => {
  for (const address of ['1.1.1.1', '93.184.216.34', '2606:4700:4700::1111', '::ffff:8.8.8.8']) {
    assert.equal(isPublicAddress(address), true, address)
  }
  const special = `127.0.0.1 127.255.0.9 10.0.0.1 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0 224.0.0.1
    255.255.255.255 192.0.2.1 198.18.0.1 240.0.0.1 ::1 :: fe80::1 fe80::1%eth0 fc00::1 fd12::1 ff02::1 ::ffff:127.0.0.1
    ::ffff:10.0.0.1 ::ffff:7f00:1 64:ff9b::7f00:1 2002:7f00:1:: 2001::1 2001:db8::1 ::7f00:1 100::1 4000::1 nonsense 1.2.3`
  for (const address of special.split(/\s+/)) assert.equal(isPublicAddress(address), false, address)
})

test('a URL is judged before DNS', () => {
  const reach = { allowPrivate: false }
  const accepted = [
    'https://pds.example/x',
    'https://pds.example:443/',
    'https://pds.example:80/',
    'https://localhost/',
  ]
  for (const url of accepted) assert.equal(checkUrl(url, reach).protocol, 'https:', url)
  const refused = [
    'http://pds.example/',
    'https://pds.example:8443/',
    'https://user:pw@pds.example/',
    'https://127.0.0.1/',
    'https://0x7f.1/',
    'https://[::1]/',
    'https://1.1.1.1/',
    'file:///etc/passwd',
    'ftp://pds.example/',
    'not a url',
    '',
  ]
  for (const url of refused) assert.throws(() => checkUrl(url, reach), Refused, url)
  assert.equal(checkUrl('https://pds.example:8443/', { allowPrivate: false, ports: [8443] }).port, '8443')
  assert.equal(checkUrl('http://127.0.0.1:2583/', { allowPrivate: true }).port, '2583')
  assert.throws(() => checkUrl('ftp://127.0.0.1/', { allowPrivate: true }), Refused)
  assert.equal(checkUrl('wss://relay.example/', reach, ['wss:', 'ws:']).protocol, 'wss:')
})

test('a name that resolves to a private address is refused where the connection is made', async () => {
  let asked = 0
  const { port } = await serve((_request, response) => {
    asked++
    response.end('secret')
  })
  for (const addresses of [['127.0.0.1'], ['::1'], ['10.0.0.1', '::ffff:127.0.0.1'], ['169.254.169.254']]) {
    const guarded = fetcher({ allowPrivate: false, ports: [port], lookup: answering(addresses) })
    await assert.rejects(
      guarded.fetch(`https://rebound.example:${port}/`),
      error => error instanceof Refused && error.error === 'ForbiddenAddress' && /rebound\.example/.test(error.message),
    )
  }
  assert.equal(asked, 0)
})

test('a name that changes its answer between two requests gains nothing', async () => {
  const asked: string[][] = []
  const lookup = guardedLookup({ allowPrivate: false, lookup: answering(['93.184.216.34'], ['127.0.0.1']) })
  const ask = (all: boolean) =>
    new Promise<string>(resolve =>
      lookup('rebound.example', { all }, (error, found) => {
        asked.push(Array.isArray(found) ? found.map(entry => entry.address) : [found])
        resolve(error ? error.message : 'ok')
      }),
    )
  assert.equal(await ask(false), 'ok')
  assert.match(await ask(true), /not an address of the public internet/)
  assert.deepEqual(asked, [['93.184.216.34'], []])
})

test('of several addresses only the public ones are tried', async () => {
  const lookup = guardedLookup({ allowPrivate: false, lookup: answering(['127.0.0.1', '1.1.1.1', '::1']) })
  const found = await new Promise(resolve => lookup('mixed.example', { all: true }, (_error, list) => resolve(list)))
  assert.deepEqual(found, [{ address: '1.1.1.1', family: 4 }])
})

test('the dispatcher alone refuses an address that a caller forgot to check', async () => {
  const { origin } = await serve((_request, response) => response.end('secret'))
  const { request } = await import('undici')
  const guarded = fetcher({ allowPrivate: false })
  await assert.rejects(request(origin, { dispatcher: guarded.dispatcher }), /not an address of the public internet/)
})

test('an answer of any status comes whole, decoded', async () => {
  const { origin } = await serve((request, response) => {
    assert.equal(request.headers['user-agent'], 'test')
    response.writeHead(404, { 'content-encoding': 'gzip', 'x-tag': 'a' }).end(gzipSync('hello'))
  })
  const answer = await fetcher({ allowPrivate: true }).fetch(origin)
  assert.equal(answer.status, 404)
  assert.equal(answer.headers.get('x-tag'), 'a')
  assert.equal(new TextDecoder().decode(answer.bytes), 'hello')
})

test('a body can be sent, as text or bytes, and is not sent on to where a redirect points', async () => {
  const { origin } = await serve(async (request, response) => {
    if (request.url === '/moved') return response.writeHead(307, { location: '/' }).end()
    const chunks: Buffer[] = []
    for await (const chunk of request) chunks.push(chunk as Buffer)
    response.end(`${request.method} ${request.headers['content-type']} ${Buffer.concat(chunks)}`)
  })
  const { fetch } = fetcher({ allowPrivate: true })
  const headers = { 'content-type': 'application/json' }
  for (const body of ['{"a":1}', Buffer.from('{"a":1}')]) {
    const answer = await fetch(origin, { method: 'POST', headers, body })
    assert.equal(Buffer.from(answer.bytes).toString(), 'POST application/json {"a":1}')
  }
  const moved = fetch(`${origin}/moved`, { method: 'POST', headers, body: '{}', redirectsMax: 3 })
  await assert.rejects(moved, /redirect, which is not followed/)
})

test('a body past the bound fails: told, untold, and inflating', async () => {
  const { origin } = await serve((request, response) => {
    if (request.url === '/told') return response.writeHead(200, { 'content-length': 5000 }).end(Buffer.alloc(5000))
    if (request.url === '/inflating') {
      return response.writeHead(200, { 'content-encoding': 'gzip' }).end(gzipSync(Buffer.alloc(50_000_000)))
    }
    const more = (): void => {
      if (response.write(Buffer.alloc(1000))) setImmediate(more)
      else response.once('drain', more)
    }
    response.on('close', () => response.destroy())
    more()
  })
  const { fetch } = fetcher({ allowPrivate: true })
  for (const path of ['/told', '/untold', '/inflating']) {
    await assert.rejects(
      fetch(origin + path, { bytesMax: 4096 }),
      error => error instanceof Unavailable && error.status === 502 && /more than 4096 bytes/.test(error.message),
      path,
    )
  }
})

test('too slow is 504, nobody there is 502', async () => {
  const silent = await serve(() => {})
  const { fetch } = fetcher({ allowPrivate: true })
  await assert.rejects(
    fetch(silent.origin, { timeoutMs: 50 }),
    error => error instanceof Unavailable && error.status === 504 && error.error === 'UpstreamTimeout',
  )
  const trickle = await serve((_request, response) => void response.write('x'))
  await assert.rejects(
    fetch(trickle.origin, { timeoutMs: 50 }),
    error => error instanceof Unavailable && error.status === 504,
  )
  const gone = await serve(() => {})
  gone.server.close()
  await assert.rejects(
    fetch(gone.origin),
    error => error instanceof Unavailable && error.status === 502 && /ECONNREFUSED/.test(error.message),
  )
})

test('redirects are followed when asked, each hop checked, credentials left behind', async () => {
  const seen: (string | undefined)[] = []
  const target = await serve((request, response) => {
    seen.push(request.headers.authorization)
    response.end('there')
  })
  const origin = await serve((request, response) => {
    const to = { '/away': `${target.origin}/`, '/scheme': 'file:///etc/passwd', '/loop': '/loop' }[request.url ?? '']
    response.writeHead(302, { location: to }).end()
  })
  const { fetch } = fetcher({ allowPrivate: true })
  await assert.rejects(fetch(`${origin.origin}/away`), /redirect, which is not followed/)
  const answer = await fetch(`${origin.origin}/away`, { redirectsMax: 1, headers: { Authorization: 'Bearer x' } })
  assert.equal(answer.url, `${target.origin}/`)
  assert.deepEqual(seen, [undefined])
  await assert.rejects(fetch(`${origin.origin}/loop`, { redirectsMax: 3 }), /redirect, which is not followed/)
  await assert.rejects(fetch(`${origin.origin}/scheme`, { redirectsMax: 3 }), Refused)
})

test('a stream is read as it comes, bounded, and can be dropped', async () => {
  const { origin } = await serve((_request, response) => void response.write(Buffer.alloc(3000)))
  const made = fetcher({ allowPrivate: true })
  const answer = await made.stream(origin, { bytesMax: 2000 })
  assert.equal(answer.status, 200)
  await assert.rejects(async () => {
    for await (const _ of answer.body);
  }, /more than 2000 bytes/)
  const dropped = await made.stream(origin)
  await dropped.cancel()
})

test('an exchange passes on what comes as it comes, and follows nothing', async () => {
  const packed = gzipSync('packed')
  const { origin, port } = await serve((request, response) => {
    if (request.url === '/away') return void response.writeHead(302, { location: '/' }).end('moved')
    const headers = { 'content-encoding': 'gzip', 'content-length': packed.length, 'x-method': request.method }
    response.writeHead(418, headers).end(packed)
  })
  const bounds = { bytesMax: 100, headersTimeoutMs: 30_000, bodyTimeoutMs: 30_000, headers: {} }
  const made = fetcher({ allowPrivate: true })
  const read = async (body: AsyncIterable<Uint8Array>) => {
    const chunks: Uint8Array[] = []
    for await (const chunk of body) chunks.push(chunk)
    return Buffer.concat(chunks)
  }
  const answer = await made.exchange(`${origin}/`, { method: 'POST', body: 'x', ...bounds })
  assert.deepEqual([answer.status, answer.headers['x-method']], [418, 'POST'])
  assert.deepEqual(await read(answer.body), packed)
  const moved = await made.exchange(`${origin}/away`, { method: 'GET', ...bounds })
  assert.deepEqual([moved.status, (await read(moved.body)).toString()], [302, 'moved'])
  await assert.rejects(made.exchange(`${origin}/`, { method: 'GET', ...bounds, bytesMax: 5 }), /more than 5 bytes/)
  const guarded = fetcher({ allowPrivate: false, ports: [port], lookup: answering(['127.0.0.1']) })
  await assert.rejects(
    guarded.exchange(`https://rebound.example:${port}/`, { method: 'GET', ...bounds }),
    error => error instanceof Refused && error.error === 'ForbiddenAddress',
  )
})

test('what fails in the body of an exchange is told in the words of whoever asked', async () => {
  const { origin } = await serve((_request, response) => void response.write('x'))
  const made = fetcher({ allowPrivate: true })
  const failure = (cause: unknown) => new Error('gone', { cause })
  const bounds = { bytesMax: 100, headersTimeoutMs: 30_000, bodyTimeoutMs: 100, headers: {}, failure }
  const { body } = await made.exchange(origin, { method: 'GET', ...bounds })
  await assert.rejects(
    async () => {
      for await (const _ of body);
    },
    error => error instanceof Error && error.message === 'gone' && error.cause instanceof Unavailable,
  )
})
