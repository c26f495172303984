// What hosts and accounts may send, and how they get out again by themselves.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { accountEvent, identityEvent, syncEvent } from '@millisky/core/event'
import { until } from '@millisky/server/testing-until'
import { type FakeAccount, now } from '../e2e/fake-pds.ts'
import { World, type WorldOptions } from './world.ts'

async function start(t: { after(fn: () => Promise<void>): void }, options: WorldOptions = {}): Promise<World> {
  const world = await World.start(options)
  t.after(() => world.stop())
  return world
}

const statusOf = async (world: World, name: string) =>
  (await world.get<{ status: string }>(`/xrpc/com.atproto.sync.getHostStatus?hostname=${name}`)).body.status

test('T38 accounts beyond the number of a host are refused, the host is throttled, and a deletion makes room', async t => {
  const world = await start(t, { env: { RELAY_DEFAULT_ACCOUNT_LIMIT: '2' } })
  const { pds, accounts, name } = await world.host('one', 'two', 'three')
  const [one, two, three] = accounts as [FakeAccount, FakeAccount, FakeAccount]
  const consumer = await world.consumer(0)
  for (const account of [one, two, three]) {
    pds.announce(account)
    pds.sendPost(account, 'hello')
  }
  await world.settled(pds, 9)
  // An #identity may come before the host is full: nobody is asked where the account lives for that.
  assert.ok((await world.rejects(name))['account-quota']! >= 2)
  assert.deepEqual(
    consumer.kindsOf(three.did).filter(kind => kind !== '#identity'),
    [],
  )
  assert.deepEqual([await statusOf(world, name), world.relay.hosts.byName(name)?.record.accounts], ['throttled', 2])
  assert.match(world.relay.hosts.byName(name)?.record.reason ?? '', /2 accounts/)
  pds.sendPost(two, 'those that are in go on')
  await until('it came', () => consumer.pathsOf(two.did).length === 2)
  pds.send(accountEvent({ did: one.did, active: false, status: 'deleted' }, now()))
  await until('there is room', () => world.relay.hosts.byName(name)?.record.accounts === 1)
  pds.sendPost(three, 'now I am in')
  await until('it came', () => consumer.pathsOf(three.did).length === 1)
  await until('it is active', async () => (await statusOf(world, name)) === 'active')
})

test('an account that moves to a full host is refused there, and one taken off it counts for the new one', async t => {
  const world = await start(t)
  const { pds, accounts, name } = await world.host('one', 'two')
  const [one, two] = accounts as [FakeAccount, FakeAccount]
  assert.equal((await world.post('/admin/pds/changeLimits', { host: name, repo_limit: 1 })).status, 200)
  for (const account of [one, two]) pds.sendPost(account, 'hello')
  await world.settled(pds, 2)
  assert.deepEqual(await world.rejects(name), { 'account-quota': 1 })
  assert.equal(await statusOf(world, name), 'throttled')
  assert.equal((await world.post('/admin/pds/changeLimits', { host: name, repo_limit: 2 })).status, 200)
  // At once, not when it is next looked at.
  assert.equal(await statusOf(world, name), 'active')
  pds.sendPost(two, 'again')
  await until('both are in', () => world.relay.hosts.byName(name)?.record.accounts === 2)
})

test('a host above its rate is read more slowly, loses nothing, and is let go by itself', async t => {
  let time = Date.now()
  const world = await start(t, { now: () => time })
  const { pds, accounts, name } = await world.host('alice')
  const alice = accounts[0] as FakeAccount
  const consumer = await world.consumer(0)
  const changed = await world.post('/admin/pds/changeLimits', { host: name, per_second: 5 })
  assert.equal(changed.status, 200)
  for (let i = 0; i < 55; i++) pds.sendPost(alice, `${i}`)
  // The burst; five have to wait for a second in all.
  const host = world.relay.hosts.byName(name)
  await until('it waits', () => (host?.delays['per-second'] ?? 0) > 0)
  await until('what it may has come', () => consumer.pathsOf(alice.did).length === 50)
  time += 600
  await until('three more came', () => consumer.pathsOf(alice.did).length === 53)
  time += 400
  await until('all came', () => consumer.pathsOf(alice.did).length === 55)
  assert.deepEqual(await world.rejects(name), {})
  await world.post('/admin/pds/changeLimits', { host: name, per_hour: 1 })
  for (let i = 0; i < 5; i++) pds.sendPost(alice, `more ${i}`)
  await until('it is throttled', async () => (await statusOf(world, name)) === 'throttled')
  assert.match(host?.record.reason ?? '', /1 events it may send per hour/)
  await world.post('/admin/pds/changeLimits', { host: name, per_hour: 1_000, per_second: 1_000 })
  await until('all came', () => consumer.pathsOf(alice.did).length === 60)
})

test('a waiting host can be disconnected, and what was not read comes again', async t => {
  const world = await start(t)
  const { pds, accounts, name } = await world.host('alice')
  const alice = accounts[0] as FakeAccount
  const consumer = await world.consumer(0)
  await world.post('/admin/pds/changeLimits', { host: name, per_hour: 2 })
  for (let i = 0; i < 6; i++) pds.sendPost(alice, `${i}`)
  await until('it waits', async () => (await statusOf(world, name)) === 'throttled')
  assert.equal((await world.post(`/admin/subs/killUpstream?host=${name}`)).status, 200)
  await until('what it may has come', () => consumer.pathsOf(alice.did).length === 2)
  await world.post('/admin/pds/changeLimits', { host: name, per_hour: 1_000 })
  assert.equal((await pds.requestCrawl(world.relay.url)).status, 200)
  await until('the rest came', () => consumer.pathsOf(alice.did).length === 6)
})

test('T68 an account that floods is throttled but active, and heard again by itself', async t => {
  let time = Date.now()
  const world = await start(t, { now: () => time })
  const { pds, accounts, name } = await world.host('alice', 'bob')
  const [alice, bob] = accounts as [FakeAccount, FakeAccount]
  await world.post('/admin/pds/changeLimits', { host: name, per_second: 10_000 })
  const consumer = await world.consumer(0)
  for (let i = 0; i < 2_200; i++) pds.sendPost(alice, `${i}`)
  pds.sendPost(bob, 'undisturbed')
  await until('the other one came', () => consumer.pathsOf(bob.did).length === 1)
  const told = await until('it is told', () => consumer.of(alice.did).find(({ t }) => t === '#account'))
  assert.deepEqual([told.body.active, told.body.status], [true, 'throttled'])
  const { body } = await world.get(`/xrpc/com.atproto.sync.getRepoStatus?did=${alice.did}`)
  assert.deepEqual([body.active, body.status], [true, 'throttled'])
  const heard = consumer.pathsOf(alice.did).length
  assert.equal(heard, 2_000)
  time += 10 * 60_000
  await until('it is heard again', () => consumer.of(alice.did).filter(({ t }) => t === '#account').length === 2)
  assert.equal(consumer.of(alice.did).at(-1)?.body.status, undefined)
  pds.sendPost(alice, 'calm')
  await until('it came', () => consumer.pathsOf(alice.did).length === heard + 1)
})

test('a flood of #sync or of #identity about others is cut off, with its reason', async t => {
  const time = Date.now()
  const world = await start(t, { now: () => time })
  const { pds, accounts, name } = await world.host('alice')
  const alice = accounts[0] as FakeAccount
  await world.post('/admin/pds/changeLimits', { host: name, per_second: 10_000 })
  const { accounts: others, pds: home } = await world.host('bob')
  const bob = others[0] as FakeAccount
  home.sendPost(bob, 'hello')
  await home.connected()
  for (let i = 0; i < 70; i++) {
    const { head, commit } = alice.post(`${i}`)
    pds.send(syncEvent({ did: alice.did, rev: head.rev, commit }, now()))
  }
  for (let i = 0; i < 510; i++) pds.send(identityEvent({ did: bob.did }, now()))
  await world.settled(pds, 580)
  const rejects = await world.rejects(name)
  assert.deepEqual([rejects['account-rate'], rejects['identity-rate']], [10, 10])
})

test('accounts of a trusted host may send what the host lets them', async t => {
  const world = await start(t, { env: { RELAY_TRUSTED_DOMAINS: 'localhost', RELAY_DEFAULT_ACCOUNT_LIMIT: '1' } })
  const { pds, accounts, name } = await world.host('alice', 'bob')
  const [alice, bob] = accounts as [FakeAccount, FakeAccount]
  pds.sendPost(bob, 'a second account')
  for (let i = 0; i < 70; i++) {
    const { head, commit } = alice.post(`${i}`)
    pds.send(syncEvent({ did: alice.did, rev: head.rev, commit }, now()))
  }
  await world.settled(pds, 71)
  assert.deepEqual(await world.rejects(name), {})
})

test('limits that were set outlive a restart', async t => {
  const world = await start(t)
  const { name } = await world.host('alice')
  await world.post('/admin/pds/changeLimits', { host: name, repo_limit: 7, per_day: 9 })
  await world.restart()
  const listed = await world.get<{ RepoLimit: number; DailyEventLimit: number }[]>('/admin/pds/list')
  assert.deepEqual([listed.body[0]?.RepoLimit, listed.body[0]?.DailyEventLimit], [7, 9])
})

test('the policy of a host can be pinned and left to itself again', async t => {
  const world = await start(t)
  const { name } = await world.host('alice')
  const set = async (policy: string) => {
    const { status } = await world.post('/admin/pds/changeLimits', { host: name, policy })
    const { record } = world.relay.hosts.byName(name)!
    return [status, record.policy, record.pinned]
  }
  assert.deepEqual(await set('observe'), [200, 'observe', true])
  assert.deepEqual(await set('auto'), [200, 'observe', false])
  assert.deepEqual(await set('lenient'), [400, 'observe', false])
})
