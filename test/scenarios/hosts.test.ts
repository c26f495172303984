// The states of hosts over time, and who may become one.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer } from 'node:http'
import { Writable } from 'node:stream'
import { test } from 'node:test'
import { encode } from '@millisky/core/cbor'
import { errorFrame } from '@millisky/core/event'
import { until } from '@millisky/server/testing-until'
import { createLog } from '@millisky/server/trace'
import { WebSocketServer } from 'ws'
import { FakePds } from '../e2e/fake-pds.ts'
import { PASSWORD, World, type WorldOptions } from './world.ts'

type After = { after(fn: () => Promise<unknown> | unknown): void }

async function start(t: After, options: WorldOptions = {}): Promise<World> {
  const world = await World.start(options)
  t.after(() => world.stop())
  return world
}

interface End {
  msg: string
  host: string
  reason: string
  retryMs: number
  failures: number
}

/** A log that remembers how connections to hosts ended. */
function watched() {
  const ends: End[] = []
  const destination = new Writable({
    write(chunk, _encoding, done) {
      for (const line of String(chunk).split('\n').filter(Boolean)) {
        const entry = JSON.parse(line) as End
        if (entry.msg === 'upstream ended') ends.push(entry)
      }
      done()
    },
  })
  return { ends, log: createLog({ name: 'relay', level: 'debug', destination }) }
}

/** A server that says it is a PDS; what it does with sockets is up to the caller. */
async function pretender(
  t: After,
  onSocket: (sockets: WebSocketServer) => void,
  describe: unknown = { did: 'did:web:x' },
) {
  const server = createServer((_request, reply) => {
    if (typeof describe === 'number') reply.writeHead(describe, { location: 'http://127.0.0.1:1/' }).end('{}')
    else reply.setHeader('content-type', 'application/json').end(JSON.stringify(describe))
  }).listen(0, '127.0.0.1')
  const sockets = new WebSocketServer({ server })
  onSocket(sockets)
  await once(server, 'listening')
  t.after(() => {
    for (const client of sockets.clients) client.terminate()
    server.closeAllConnections()
    server.close()
  })
  const { port } = server.address() as { port: number }
  return { server, sockets, hostname: `localhost:${port}` }
}

const crawl = (world: World, hostname: string) =>
  world.post<{ error?: string; message?: string }>('/xrpc/com.atproto.sync.requestCrawl', { hostname })

test('T33 back-off grows while a host accepts and closes at once, has jitter, and ends with progress', async t => {
  const { ends, log } = watched()
  const world = await start(t, { log, follow: { retryMinMs: 20, retryMaxMs: 200 } })
  let isCalm = false
  const host = await pretender(t, sockets => {
    sockets.on('connection', client => {
      if (!isCalm) return client.close(1011)
      // One event is progress, even one that nobody knows.
      client.send(Buffer.concat([encode({ op: 1, t: '#new' }), encode({ seq: 1 })]))
      setTimeout(() => client.close(1011), 20)
    })
  })
  assert.equal((await crawl(world, host.hostname)).status, 200)
  await until('it failed six times', () => ends.length >= 6)
  assert.deepEqual(
    ends.slice(0, 6).map(({ failures }) => failures),
    [1, 2, 3, 4, 5, 6],
  )
  for (const { failures, retryMs } of ends.slice(0, 6)) {
    const full = Math.min(200, 20 * 2 ** (failures - 1))
    assert.ok(retryMs >= full / 2 - 1 && retryMs <= full, `${retryMs} ms after failure ${failures}`)
  }
  isCalm = true
  const end = await until('it made progress', () => ends.find(({ failures }) => failures === 0))
  assert.ok(end.retryMs <= 20)
})

test('T31 T33 a host that answers FutureCursor to everything is a failing one, and its history is not flooded', async t => {
  const { ends, log } = watched()
  const world = await start(t, { log, follow: { retryMinMs: 10, retryMaxMs: 50 } })
  const host = await pretender(t, sockets => {
    sockets.on('connection', client => client.send(errorFrame('FutureCursor', 'Cursor in the future.')))
  })
  await crawl(world, host.hostname)
  await until('it is offline', () => world.relay.hosts.byName(host.hostname)?.record.status === 'offline')
  assert.ok(ends.at(-1)!.failures >= 8)
  const { history } = world.relay.hosts.byName(host.hostname)!.record
  assert.deepEqual(
    history.map(({ what }) => what),
    ['gap', 'offline'],
  )
})

test('T38 a host that is gone is offline with a reason, is tried for ever, and is active when it is back', async t => {
  const { ends, log } = watched()
  const world = await start(t, { log, follow: { retryMinMs: 5, retryMaxMs: 30, stableMs: 100 } })
  let isThere = true
  const host = await pretender(t, sockets => {
    sockets.on('connection', client => {
      if (!isThere) client.terminate()
    })
  })
  await crawl(world, host.hostname)
  const record = () => world.relay.hosts.byName(host.hostname)!.record
  await until('it is connected', () => world.relay.hosts.byName(host.hostname)?.connectedAt)
  isThere = false
  host.server.closeAllConnections()
  for (const client of host.sockets.clients) client.terminate()
  await until('it is offline', () => record().status === 'offline')
  assert.match(record().reason ?? '', /^(lost|closed|unreachable)/)
  const status = async () =>
    (await world.get<{ status: string }>(`/xrpc/com.atproto.sync.getHostStatus?hostname=${host.hostname}`)).body.status
  assert.equal(await status(), 'offline')
  const before = ends.length
  await until('it is tried on', () => ends.length > before + 5)
  await world.restart()
  assert.equal(await status(), 'offline')
  await until('it is tried after a restart', () => ends.length > before + 8)
  isThere = true
  await until('it is active', async () => (await status()) === 'active')
  assert.deepEqual(
    record().history.map(({ what }) => what),
    ['offline', 'active'],
  )
})

test('T38 a connected host of which nothing comes for a day is idle, and active with its next event', async t => {
  t.mock.timers.enable({ apis: ['setInterval'] })
  let ahead = 0
  const world = await start(t, { now: () => Date.now() + ahead })
  const { pds, accounts, name } = await world.host('alice')
  await until('it is connected', () => world.relay.hosts.byName(name)?.connectedAt)
  ahead = 25 * 3_600_000
  t.mock.timers.tick(60_000)
  assert.equal(world.relay.hosts.byName(name)?.record.status, 'idle')
  assert.match(world.relay.hosts.byName(name)?.record.reason ?? '', /nothing came/)
  pds.sendPost(accounts[0]!, 'still here')
  await until('it came', () => world.relay.hosts.byName(name)!.eventsSeen > 0)
  t.mock.timers.tick(60_000)
  assert.equal(world.relay.hosts.byName(name)?.record.status, 'active')
  t.mock.timers.reset()
})

test('T34 anybody may ask for a host that waits to be tried, but not have it dialled all the time', async t => {
  const { ends, log } = watched()
  const world = await start(t, { log, follow: { retryMinMs: 60_000, retryMaxMs: 60_000 } })
  let connections = 0
  const host = await pretender(t, sockets => {
    sockets.on('connection', client => {
      connections++
      client.close(1011)
    })
  })
  await crawl(world, host.hostname)
  await until('it waits', () => ends.length === 1)
  for (let i = 0; i < 5; i++) assert.equal((await crawl(world, host.hostname)).status, 200)
  await until('it was dialled once more', () => ends.length === 2)
  await crawl(world, host.hostname)
  assert.equal(connections, 2)
  // Administrators know what they do.
  assert.equal((await world.post('/admin/pds/requestCrawl', { hostname: host.hostname })).status, 200)
  await until('it was dialled for them', () => connections === 3)
})

test('T35 what does not describe itself as a PDS is no host, nor is what only a name could be', async t => {
  const world = await start(t)
  const silent = await pretender(t, () => {}, 404)
  const redirecting = await pretender(t, () => {}, 302)
  const strange = await pretender(t, () => {}, ['no server'])
  for (const { hostname } of [silent, redirecting, strange]) {
    const { status, body } = await crawl(world, hostname)
    assert.deepEqual([status, body.error], [400, 'HostNotFound'], `${body.message}`)
  }
  assert.equal((await crawl(world, 'user:secret@pds.example.com')).status, 400)
  assert.equal(world.relay.hosts.size, 0)
})

test('T35 without the development switch no loopback, no address, no port and no plain ws', async t => {
  const world = await start(t, { env: { RELAY_ALLOW_INSECURE_HOSTS: 'false' } })
  const pds = await FakePds.start()
  t.after(() => pds.close())
  for (const hostname of [
    new URL(pds.url).host,
    '127.0.0.1',
    '[::1]',
    '10.0.0.1',
    'localhost',
    'pds',
    'pds.example.com:8443',
    'http://pds.example.com',
    'ws://pds.example.com',
    'pds.example.com/path',
  ]) {
    const { status, body } = await crawl(world, hostname)
    assert.deepEqual([hostname, status, body.error], [hostname, 400, 'InvalidRequest'])
  }
  assert.deepEqual([world.relay.hosts.size, pds.connections], [0, 0])
})

test('T82 who names one unknown host after the other is asked to stop, and nobody else is', async t => {
  const world = await start(t, {
    env: { RELAY_ALLOW_INSECURE_HOSTS: 'false', RELAY_TRUST_PROXY: 'loopback', RELAY_NEW_HOSTS_PER_DAY_LIMIT: '1000' },
    lookup: (_hostname, _options, done) => done(null, [{ address: '127.0.0.1', family: 4 }]),
  })
  const ask = (hostname: string, address: string) =>
    fetch(`${world.relay.url}/xrpc/com.atproto.sync.requestCrawl`, {
      method: 'POST',
      headers: { 'content-type': 'application/json', 'x-forwarded-for': address },
      body: JSON.stringify({ hostname }),
    })
  for (let i = 0; i < 60; i++) assert.equal((await ask(`h${i}.example.com`, '203.0.113.5')).status, 400)
  const late = await ask('more.example.com', '203.0.113.5')
  assert.deepEqual([late.status, ((await late.json()) as { error: string }).error], [429, 'RateLimitExceeded'])
  assert.match(late.headers.get('retry-after') ?? '', /^\d+$/)
  const other = await ask('more.example.com', '203.0.113.6')
  assert.deepEqual([other.status, ((await other.json()) as { error: string }).error], [400, 'HostNotFound'])
})

test('T35 a name that leads to a private address is neither asked nor followed', async t => {
  const pds = await FakePds.start()
  t.after(() => pds.close())
  const asked: string[] = []
  const { ends, log } = watched()
  const world = await start(t, {
    log,
    env: { RELAY_ALLOW_INSECURE_HOSTS: 'false' },
    lookup: (hostname, _options, done) => {
      asked.push(hostname)
      done(null, [
        { address: '127.0.0.1', family: 4 },
        { address: '::ffff:10.0.0.1', family: 6 },
      ])
    },
  })
  const { status, body } = await crawl(world, 'inside.example.com')
  assert.deepEqual([status, body.error], [400, 'HostNotFound'])
  // Not even for an administrator who knows better: the address may be another one tomorrow.
  const unchecked = { hostname: 'inside.example.com', check: false }
  assert.equal((await world.post('/admin/pds/requestCrawl', { hostname: 'inside.example.com' })).status, 400)
  const reply = await fetch(`${world.relay.url}/xrpc/net.millisky.relay.admin.addHost`, {
    method: 'POST',
    headers: { authorization: `Bearer ${PASSWORD}`, 'content-type': 'application/json' },
    body: JSON.stringify(unchecked),
  })
  assert.equal(reply.status, 200)
  const end = await until('it was tried', () => ends[0])
  assert.equal(end.reason, 'forbidden')
  assert.deepEqual([new Set(asked), pds.connections], [new Set(['inside.example.com']), 0])
})

test('T36 a host that turns out to be a relay when it is connected is banned', async t => {
  const world = await start(t)
  const host = await pretender(t, sockets => {
    sockets.on('headers', headers => headers.push('Server: indigo (atproto-relay)'))
  })
  assert.equal((await crawl(world, host.hostname)).status, 200)
  await until('it is banned', () => world.relay.hosts.byName(host.hostname)?.record.status === 'banned')
  assert.match(world.relay.hosts.byName(host.hostname)?.record.reason ?? '', /relay itself/)
  assert.equal((await crawl(world, host.hostname)).body.error, 'HostBanned')
})

test('T37 bans of a host, of its domain and of one above it do not undo each other', async t => {
  const world = await start(t, {
    lookup: (_hostname, _options, done) => done(null, [{ address: '127.0.0.1', family: 4 }]),
  })
  const pds = await FakePds.start()
  t.after(() => pds.close())
  const hostname = `a.b.localhost:${new URL(pds.url).port}`
  assert.equal((await world.post('/admin/pds/requestCrawl', { hostname })).status, 200)
  await pds.connected()
  const state = () => {
    const { status, reason } = world.relay.hosts.byName(hostname)!.record
    return [status, reason]
  }
  const ban = (domain: string) => world.post('/admin/subs/banDomain', { domain })
  const unban = (domain: string) => world.post('/admin/subs/unbanDomain', { domain })
  await ban('b.localhost')
  await ban('localhost')
  assert.deepEqual(state(), ['banned', 'the domain b.localhost is banned'])
  const early = await world.post<{ error: string }>(`/admin/pds/unblock?host=${hostname}`)
  assert.deepEqual([early.status, early.body.error], [400, 'HostBanned'])
  await unban('b.localhost')
  assert.deepEqual(state(), ['banned', 'the domain localhost is banned'])
  await unban('localhost')
  assert.deepEqual(state(), ['active', null])
  await until('it is back', () => pds.connections === 2)
  await ban('localhost')
  await world.post(`/admin/pds/block?host=${hostname}&reason=itself`)
  await unban('localhost')
  assert.deepEqual(state(), ['banned', 'itself'])
  await ban('localhost')
  await unban('localhost')
  assert.deepEqual(state(), ['banned', 'itself'])
  await world.post(`/admin/pds/unblock?host=${hostname}`)
  await until('it is back again', () => pds.connections === 3)
})

test('T37 a domain that is banned while a host of it is being checked keeps it out', async t => {
  const world = await start(t)
  const { promise: asked, resolve: isAsked } = Promise.withResolvers<void>()
  const { promise: mayAnswer, resolve: answer } = Promise.withResolvers<void>()
  const server = createServer(async (_request, reply) => {
    isAsked()
    await mayAnswer
    reply.end('{"did":"did:web:x"}')
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.after(() => {
    server.closeAllConnections()
    server.close()
  })
  const crawled = crawl(world, `localhost:${(server.address() as { port: number }).port}`)
  await asked
  assert.equal((await world.post('/admin/subs/banDomain', { Domain: 'localhost' })).status, 200)
  answer()
  assert.equal((await crawled).body.error, 'HostBanned')
  assert.equal(world.relay.hosts.size, 0)
})
