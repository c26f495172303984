// The methods of administrators, their older forms as routes, and what sibling relays are told.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { GUESS_DEFAULTS } from '@millisky/server/guesses'
import { until } from '@millisky/server/testing-until'
import { FakePds } from '../e2e/fake-pds.ts'
import { PASSWORD, World, type WorldOptions } from './world.ts'

async function start(t: { after(fn: () => Promise<void>): void }, options: WorldOptions = {}): Promise<World> {
  const world = await World.start(options)
  t.after(() => world.stop())
  return world
}

type Json = Record<string, unknown>
type Auth = 'bearer' | 'basic' | 'wrong' | 'none'
const AUTH: Record<Auth, string> = {
  bearer: `Bearer ${PASSWORD}`,
  basic: `Basic ${Buffer.from(`admin:${PASSWORD}`).toString('base64')}`,
  wrong: 'Bearer guess',
  none: '',
}

async function call(url: string, init: { auth?: Auth; body?: unknown; post?: boolean; via?: string } = {}) {
  const { auth = 'basic', body, post = body !== undefined, via } = init
  const reply = await fetch(url, {
    method: post ? 'POST' : 'GET',
    headers: {
      ...(auth === 'none' ? {} : { authorization: AUTH[auth] }),
      ...(body === undefined ? {} : { 'content-type': 'application/json' }),
      ...(via === undefined ? {} : { via }),
    },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  })
  const text = await reply.text()
  return { status: reply.status, headers: reply.headers, body: (text === '' ? {} : JSON.parse(text)) as Json }
}

/** One method, by its last word. */
const method = (world: World, name: string, body?: unknown, auth: Auth = 'basic') =>
  call(`${world.relay.url}/xrpc/net.millisky.relay.admin.${name}`, { auth, ...(body === undefined ? {} : { body }) })

test('T81 every method and every route wants the password, in either form, and pages may not call them', async t => {
  const world = await start(t)
  const { name } = await world.host('alice')
  const urls = [
    [`${world.relay.url}/xrpc/net.millisky.relay.admin.listHosts`, undefined],
    [`${world.relay.url}/xrpc/net.millisky.relay.admin.blockHost`, { hostname: name }],
    [`${world.relay.url}/admin/pds/list`, undefined],
    [`${world.relay.url}/admin/pds/block?host=${name}`, {}],
  ] as const
  for (const [url, body] of urls) {
    for (const auth of ['none', 'wrong'] as const) {
      const { status, body: answer, headers } = await call(url, { auth, body })
      assert.deepEqual([url, status, answer.error], [url, 401, 'AuthenticationRequired'])
      assert.match(headers.get('www-authenticate') ?? '', /^Basic/)
    }
    for (const auth of ['bearer', 'basic'] as const) {
      const { status, headers } = await call(url, { auth, body })
      assert.deepEqual([url, status, headers.get('access-control-allow-origin')], [url, 200, null])
    }
  }
  // Whoever is no administrator leaves no trace in the log of what they did.
  const { body } = await method(world, 'getAuditLog')
  assert.equal((body.entries as Json[]).length, 4)
})

test('T81 there may be several passwords, with spaces, and a word of one opens nothing', async t => {
  const world = await start(t, { env: { RELAY_ADMIN_PASSWORD: 'correct horse, battery: staple' } })
  const statusOf = async (authorization: string) =>
    (await fetch(`${world.relay.url}/admin/subs/getEnabled`, { headers: { authorization } })).status
  const basic = (password: string) => `Basic ${Buffer.from(`admin:${password}`).toString('base64')}`
  for (const password of ['correct horse', 'battery: staple']) {
    assert.deepEqual([await statusOf(`Bearer ${password}`), await statusOf(basic(password))], [200, 200], password)
  }
  for (const password of ['correct', 'horse', 'battery:']) {
    assert.deepEqual([await statusOf(`Bearer ${password}`), await statusOf(basic(password))], [401, 401], password)
  }
})

test('T81 who guesses passwords has to wait, and nobody else does', async t => {
  const world = await start(t)
  const ask = (password: string, address: string, path = '/admin/subs/getEnabled') =>
    fetch(`${world.relay.url}${path}`, {
      headers: { authorization: `Bearer ${password}`, 'x-forwarded-for': address },
    })
  // Routes and methods count together.
  for (let i = 0; i < GUESS_DEFAULTS.max; i++) {
    const path = i % 2 ? '/admin/subs/getEnabled' : '/xrpc/net.millisky.relay.admin.getSettings'
    assert.equal((await ask(`guess-${i}`, '203.0.113.5', path)).status, 401)
  }
  const late = await ask(PASSWORD, '203.0.113.5')
  assert.deepEqual([late.status, ((await late.json()) as { error: string }).error], [429, 'RateLimitExceeded'])
  assert.match(late.headers.get('retry-after') ?? '', /^(300|29\d)$/)
  assert.equal((await ask(PASSWORD, '203.0.113.6')).status, 200)
  assert.equal((await call(`${world.relay.url}/admin/subs/getEnabled`)).status, 200)
  // What the public may ask it may go on asking.
  assert.equal((await ask('x', '203.0.113.5', '/xrpc/com.atproto.sync.listHosts')).status, 200)
})

test('a host is added, seen, limited, pinned, blocked with a reason, let in again and disconnected', async t => {
  const world = await start(t)
  const pds = await FakePds.start()
  t.after(() => pds.close())
  const hostname = new URL(pds.url).host
  assert.equal((await method(world, 'getHost?hostname=nobody.example.com')).status, 404)
  const added = await method(world, 'addHost', { hostname })
  assert.deepEqual([added.status, added.body.status, added.body.byAdmin], [200, 'active', true])
  await pds.connected()
  const changed = await method(world, 'updateHost', { hostname, accounts: 7, perDay: 9, policy: 'observe' })
  assert.deepEqual(
    [changed.body.setLimits, changed.body.policy, changed.body.pinned],
    [{ accounts: 7, perDay: 9 }, 'observe', true],
  )
  const back = await method(world, 'updateHost', { hostname, accounts: null, policy: 'auto' })
  assert.deepEqual([back.body.setLimits, back.body.pinned], [{ perDay: 9 }, false])
  assert.equal((await method(world, 'updateHost', { hostname, policy: 'lenient' })).status, 400)
  assert.equal((await method(world, 'updateHost', { hostname, perDay: 0 })).status, 400)
  const blocked = await method(world, 'blockHost', { hostname, reason: 'spam of the worst kind' })
  assert.deepEqual(
    [blocked.body.status, blocked.body.reason, blocked.body.connected],
    ['banned', 'spam of the worst kind', false],
  )
  assert.deepEqual((await method(world, 'listHosts?status=active')).body.hosts, [])
  assert.equal(((await method(world, `listHosts?search=${hostname}`)).body.hosts as Json[]).length, 1)
  assert.equal((await method(world, 'disconnectHost', { hostname })).body.error, 'NotConnected')
  assert.equal((await method(world, 'unblockHost', { hostname })).body.status, 'active')
  await until('it is back', () => world.relay.hosts.byName(hostname)?.connectedAt)
  assert.equal((await method(world, 'disconnectHost', { hostname })).body.connected, false)
  const { entries } = (await method(world, 'getAuditLog?limit=1')).body as { entries: Json[]; cursor?: string }
  assert.deepEqual(
    [entries[0]?.action, entries[0]?.params, entries[0]?.status],
    ['net.millisky.relay.admin.disconnectHost', JSON.stringify({ hostname }), 200],
  )
})

test('hosts are listed in pages', async t => {
  const world = await start(t)
  for (const name of ['a', 'b', 'c']) await world.host(name)
  const names: unknown[] = []
  let cursor: unknown = 0
  for (let pages = 0; cursor !== undefined; pages++) {
    const { body } = await method(world, `listHosts?limit=2&cursor=${cursor}`)
    names.push(...(body.hosts as Json[]).map(({ hostname }) => hostname))
    cursor = body.cursor
    assert.ok(pages < 2)
  }
  assert.deepEqual(
    names,
    world.relay.hosts.list().map(({ hostname }) => hostname),
  )
  assert.equal((await method(world, 'listHosts?cursor=x')).status, 400)
})

test('a host may be added without a check, and is then followed when it comes', async t => {
  const world = await start(t)
  const hostname = 'localhost:1'
  const { body, status } = await method(world, 'addHost', { hostname })
  assert.deepEqual([status, body.error], [400, 'HostNotFound'])
  assert.equal((await method(world, 'addHost', { hostname, check: false })).status, 200)
  assert.equal(world.relay.hosts.byName(hostname)?.record.status, 'active')
})

test('T64 T65 lists of accounts are taken down and let go, also those that were never heard of', async t => {
  const world = await start(t)
  const { pds, accounts } = await world.host('alice', 'bob')
  const [alice, bob] = accounts as [(typeof accounts)[0], (typeof accounts)[0]]
  const consumer = await world.consumer(0)
  pds.sendPost(alice!, 'one')
  await until('it came', () => consumer.frames.length === 1)
  const nobody = 'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa'
  const dids = [alice!.did, bob!.did, nobody]
  const first = await method(world, 'takeDownAccounts', { dids })
  assert.deepEqual(first.body, { changed: 1, notFound: [bob!.did, nobody] })
  const second = await method(world, 'takeDownAccounts', { dids, unknown: true })
  assert.deepEqual(second.body, { changed: 2, notFound: [] })
  assert.deepEqual(new Set((await method(world, 'listTakedowns')).body.dids as string[]), new Set(dids))
  assert.equal(((await method(world, 'listTakedowns?limit=1')).body.dids as string[]).length, 1)
  pds.sendPost(bob!, 'not to be heard')
  await world.settled(pds, 2)
  await world.restart()
  pds.sendPost(bob!, 'nor now')
  await world.settled(pds, 3)
  const view = await method(world, `getAccount?did=${bob!.did}`)
  assert.deepEqual(
    [view.body.active, view.body.status, view.body.localStatus, view.body.hostActive],
    [false, 'takendown', 'takendown', true],
  )
  const late = await world.consumer(0)
  assert.deepEqual((await method(world, 'restoreAccounts', { dids })).body, { changed: 3, notFound: [] })
  assert.deepEqual((await method(world, 'restoreAccounts', { dids })).body, { changed: 0, notFound: [] })
  pds.sendPost(bob!, 'heard')
  await until('it came', () => late.pathsOf(bob!.did).length === 1)
  assert.equal((await method(world, 'getAccount?did=did:web:nobody.example.com')).status, 404)
  assert.equal((await method(world, 'takeDownAccounts', { dids: [] })).status, 400)
})

test('domains, consumers and settings', async t => {
  const world = await start(t)
  assert.equal((await method(world, 'banDomain', { domain: '*.Noisy.example.com' })).status, 200)
  assert.equal((await method(world, 'banDomain', { domain: 'noisy.example.com' })).body.error, 'AlreadyBanned')
  assert.equal((await method(world, 'trustDomain', { domain: '*.good.example.com' })).status, 200)
  assert.deepEqual((await method(world, 'listDomains')).body, {
    banned: ['noisy.example.com'],
    trusted: ['*.good.example.com', '*.host.bsky.network'],
  })
  assert.equal((await method(world, 'unbanDomain', { domain: 'noisy.example.com' })).status, 200)
  assert.equal((await method(world, 'unbanDomain', { domain: 'noisy.example.com' })).body.error, 'NotBanned')
  assert.equal((await method(world, 'untrustDomain', { domain: '*.good.example.com' })).status, 200)
  assert.equal((await method(world, 'untrustDomain', { domain: '*.good.example.com' })).body.error, 'NotTrusted')
  assert.equal((await method(world, 'untrustDomain', { domain: '*.host.bsky.network' })).status, 400)
  const consumer = await world.consumer()
  const { consumers } = (await method(world, 'listConsumers')).body as { consumers: Json[] }
  assert.deepEqual([consumers.length, consumers[0]?.seq, consumers[0]?.lag], [1, 0, 0])
  assert.equal((await method(world, 'kickConsumer', { id: consumers[0]?.id })).status, 200)
  await until('it is gone', () => consumer.closeCode !== null)
  assert.equal((await method(world, 'kickConsumer', { id: 99 })).body.error, 'ConsumerNotFound')
  const changed = await method(world, 'updateSettings', { newHostsPerDay: 3, consumersMax: 5 })
  assert.deepEqual(
    [changed.body.newHostsPerDay, changed.body.consumersMax, changed.body.requestCrawlEnabled],
    [3, 5, true],
  )
  await world.restart()
  assert.deepEqual((await method(world, 'getSettings')).body, changed.body)
})

test('the audit log is pruned by number', async t => {
  const world = await start(t, { env: { RELAY_AUDIT_ENTRIES_MAX: '2' } })
  for (const newHostsPerDay of [1, 2, 3]) await method(world, 'updateSettings', { newHostsPerDay })
  await world.relay.prune()
  const { entries } = (await method(world, 'getAuditLog')).body as { entries: Json[] }
  assert.deepEqual(
    entries.map(({ params }) => params),
    ['{"newHostsPerDay":3}', '{"newHostsPerDay":2}'],
  )
})

test('siblings are told what administrators do and which hosts come, and do not tell it on', async t => {
  // Each is the other's sibling; the second one is not there at first.
  const second = await start(t)
  const siblingUrl = second.relay.url
  const world = await start(t, { env: { RELAY_SIBLING_RELAYS: siblingUrl } })
  const { name, pds } = await world.host('alice')
  await until('the sibling follows it too', () => second.relay.hosts.byName(name)?.connectedAt)
  assert.equal(pds.connections, 2)
  await method(world, 'updateHost', { hostname: name, accounts: 5, policy: 'observe' })
  await call(`${world.relay.url}/admin/pds/changeLimits`, { body: { host: name, per_day: 11 } })
  await method(world, 'blockHost', { hostname: name, reason: 'for both' })
  await until('it is blocked there', () => second.relay.hosts.byName(name)?.record.status === 'banned')
  const there = second.relay.hosts.byName(name)!.record
  assert.deepEqual(
    [there.reason, there.accountLimit, there.perDay, there.policy, there.pinned],
    ['for both', 5, 11, 'observe', true],
  )
  await until('all is told', async () => ((await method(world, 'getOutbox')).body.items as Json[]).length === 0)
  assert.deepEqual((await method(world, 'getOutbox')).body.siblings, [siblingUrl])
  const metrics = await (await fetch(`${world.relay.url}/metrics`, { headers: { authorization: AUTH.bearer } })).text()
  assert.match(metrics, /^relay_sibling_requests_total\{end="delivered"\} 4$/m)
  assert.match(metrics, /^relay_sibling_outbox\{sibling="http:[^"]+"\} 0$/m)
  // What comes from a relay stays here.
  const url = `${world.relay.url}/admin/subs/banDomain`
  assert.equal((await call(url, { body: { Domain: 'x.example.com' }, via: '1.1 atproto-relay' })).status, 200)
  assert.deepEqual((await method(world, 'getOutbox')).body.items, [])
  assert.deepEqual(second.relay.hosts.bannedDomains(), [])
})

test('what a sibling missed waits for it over a restart', async t => {
  const world = await start(t, { env: { RELAY_SIBLING_RELAYS: 'http://localhost:1' } })
  await method(world, 'banDomain', { domain: 'x.example.com' })
  await world.restart()
  const { items } = (await method(world, 'getOutbox')).body as { items: Json[] }
  assert.deepEqual(
    items.map(({ path, body }) => [path, body]),
    [['/admin/subs/banDomain', '{"Domain":"x.example.com"}']],
  )
  await until('it was tried', async () => {
    const [item] = (await method(world, 'getOutbox')).body.items as Json[]
    return typeof item?.error === 'string' && Number(item.attempts) > 0
  })
})

test('hosts of the settings are taken up at the start', async t => {
  const pds = await FakePds.start()
  t.after(() => pds.close())
  const hostname = new URL(pds.url).host
  const world = await start(t, { env: { RELAY_SEED_HOSTS: `localhost:1,${hostname}` } })
  await pds.connected()
  await until('it is known', () => world.relay.hosts.byName(hostname)?.record.byAdmin)
  assert.equal(world.relay.hosts.size, 1)
})
