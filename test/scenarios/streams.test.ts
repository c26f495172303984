// How the Relay treats the streams of hosts, and its own. The numbers are those of the list of behaviours.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import type { IncomingMessage } from 'node:http'
import { connect } from 'node:net'
import { test } from 'node:test'
import { commitEvent, encodeFrame, errorFrame, identityEvent, infoFrame, withSeq } from '@millisky/core/event'
import { until } from '@millisky/server/testing-until'
import { WebSocket } from 'ws'
import { type FakeAccount, FakePds, now } from '../e2e/fake-pds.ts'
import { World, type WorldOptions } from './world.ts'

interface Report {
  history: { what: string; detail: string }[]
}

async function start(t: { after(fn: () => Promise<void>): void }, options: WorldOptions = {}): Promise<World> {
  const world = await World.start(options)
  t.after(() => world.stop())
  return world
}

/** A host with one account that has been heard. */
async function hostWith(world: World, ...names: string[]) {
  const { pds, accounts, name } = await world.host(...names)
  for (const account of accounts) pds.announce(account)
  return { pds, accounts: accounts as FakeAccount[], alice: accounts[0] as FakeAccount, name }
}

test('T1 T2 T3 T22 T23 every consumer gets the same bytes in the same order, live and in replay', async t => {
  const world = await start(t)
  const live = await world.consumer()
  const { pds, alice } = await hostWith(world, 'alice')
  for (let i = 0; i < 20; i++) pds.sendPost(alice, `${i}`)
  await until('all are there', () => live.frames.length === 22)
  const [replayed, again] = [await world.consumer(0), await world.consumer(10)]
  await until('replays are there', () => replayed.frames.length === 22 && again.frames.length === 12)
  assert.deepEqual(replayed.raw, live.raw)
  assert.deepEqual(again.raw, live.raw.slice(10))
  assert.deepEqual(
    live.seqs,
    Array.from({ length: 22 }, (_, i) => i + 1),
  )
  assert.ok(live.frames.every(({ op, body }) => op === 1 && body.$type === undefined))
})

test('T5 unknown types are skipped, T6 unknown fields are kept, the connection stands', async t => {
  const world = await start(t)
  const { pds, alice, name } = await hostWith(world, 'alice')
  const consumer = await world.consumer(0)
  pds.sendRaw(withSeq(encodeFrame({ t: '#tomorrow', body: { seq: 0, did: alice.did } }), 3))
  const event = commitEvent(alice.post('hello'), now())
  pds.send({ ...event, body: { ...event.body, tomorrow: { kept: [1, 2] } } })
  await until('it came', () => consumer.frames.length === 3)
  assert.deepEqual(consumer.frames[2]!.body.tomorrow, { kept: [1, 2] })
  assert.deepEqual(await world.rejects(name), { 'unknown-op': 1 })
  assert.equal(pds.connections, 1)
})

for (const [what, data] of [
  ['T7 a text frame', 'hello'],
  ['T8 a frame of more than 5,000,000 bytes', new Uint8Array(5_000_001)],
  ['T9 garbage', Uint8Array.from({ length: 300 }, (_, i) => (i * 37) & 255)],
  ['T9 nothing', new Uint8Array(0)],
] as const) {
  test(`${what} costs the host its connection once, and nothing else`, async t => {
    const world = await start(t)
    const { pds, alice, name } = await hostWith(world, 'alice')
    const { pds: steady, alice: bob } = await hostWith(world, 'bob')
    const consumer = await world.consumer(0)
    pds.sendPost(alice, 'before')
    pds.sendRaw(data, { once: true })
    steady.sendPost(bob, 'undisturbed')
    await until('others are undisturbed', () => consumer.pathsOf(bob.did).length === 1)
    pds.sendPost(alice, 'after')
    await until('it is back', () => consumer.pathsOf(alice.did).length === 2)
    assert.equal(pds.connections, 2)
    assert.equal(steady.connections, 1)
    assert.equal(world.relay.hosts.byName(name)?.record.status, 'active')
  })
}

test('T4 T9 a frame that is well formed only at first sight is dropped and passed over', async t => {
  const world = await start(t)
  const { pds, alice, name } = await hostWith(world, 'alice')
  const consumer = await world.consumer(0)
  // Its seq is written in more bytes than it needs.
  const frame = withSeq(encodeFrame(commitEvent(alice.post('not minimal', { keep: false }), now())), 3)
  const at = Buffer.from(frame).indexOf(Buffer.from([0x63, 0x73, 0x65, 0x71, 3]))
  pds.sendRaw(Buffer.concat([frame.subarray(0, at + 4), Buffer.from([0x18, 3]), frame.subarray(at + 5)]))
  await until('it is noticed', async () => (await world.rejects(name)).undecodable === 1)
  pds.sendPost(alice, 'good')
  await until('the next one comes', () => consumer.pathsOf(alice.did).length === 1)
  const report = await world.get<{ latestRejects: { reason: string; seq: number; text: string }[] }>(
    `/admin/pds/report?host=${name}`,
  )
  assert.deepEqual(
    report.body.latestRejects.map(({ reason, seq }) => [reason, seq]),
    [['undecodable', 3]],
  )
})

test('T9 a host that repeats a broken frame is followed again from behind it', { timeout: 120_000 }, async t => {
  const world = await start(t)
  const { pds, alice, name } = await hostWith(world, 'alice')
  const consumer = await world.consumer(0)
  pds.sendRaw(new Uint8Array([0xff, 0xff]))
  pds.sendPost(alice, 'behind it')
  await until('it comes through', () => consumer.pathsOf(alice.did).length === 1)
  const { history } = world.relay.hosts.byName(name)!.record
  assert.equal(history.filter(({ what }) => what === 'gap').length, 1)
})

test('T29 within a connection, a seq that does not rise is dropped', async t => {
  const world = await start(t)
  const { pds, alice, name } = await hostWith(world, 'alice')
  const consumer = await world.consumer(0)
  pds.sendRaw(withSeq(encodeFrame(commitEvent(alice.post('one'), now())), 10))
  pds.sendRaw(withSeq(encodeFrame(commitEvent(alice.post('two'), now())), 10))
  pds.sendRaw(withSeq(encodeFrame(commitEvent(alice.post('three'), now())), 11))
  await until('it came', () => consumer.frames.length === 4)
  assert.deepEqual(await world.rejects(name), { 'seq-not-rising': 1 })
})

test('T30 a host whose seq went back is heard all the same, and the gap is remembered', async t => {
  const world = await start(t)
  const { pds, alice, name } = await hostWith(world, 'alice')
  const consumer = await world.consumer(0)
  const again = commitEvent(alice.post('one'), now())
  pds.sendRaw(withSeq(encodeFrame(again), 1_000))
  await world.settled(pds, 1_000)
  pds.sendRaw('drops the connection', { once: true })
  await until('it is back', () => pds.connections === 2)
  pds.sendRaw(withSeq(encodeFrame(again), 5))
  pds.sendRaw(withSeq(encodeFrame(commitEvent(alice.post('two'), now())), 6))
  await until('it came', () => consumer.pathsOf(alice.did).length === 2)
  assert.deepEqual(await world.rejects(name), { 'rev-stale': 1 })
  assert.deepEqual(
    world.relay.hosts.byName(name)?.record.history.map(({ what }) => what),
    ['gap'],
  )
})

test('T31 a host that has fallen behind our cursor is resumed live, and the gap is remembered', async t => {
  const world = await start(t)
  const { pds, alice, name } = await hostWith(world, 'alice')
  const consumer = await world.consumer(0)
  pds.sendRaw(errorFrame('FutureCursor', 'Cursor in the future.'), { once: true })
  await until('it is noted', () => world.relay.hosts.byName(name)?.record.history.some(({ what }) => what === 'gap'))
  await until('it is back', () => pds.connections === 2)
  pds.sendRaw(withSeq(encodeFrame(commitEvent(alice.post('anew'), now())), 1))
  await until('it came', () => consumer.pathsOf(alice.did).length === 1)
  await world.settled(pds, 1)
  // With both seqs, for everybody to see, also after a restart.
  const expected = 'it has not come as far as seq 2: its events begin anew; they go on with seq 1'
  await world.restart()
  const { body } = await world.get<Report>(`/xrpc/net.millisky.relay.getHostReport?hostname=${name}`)
  assert.deepEqual(
    body.history.map(({ what, detail }) => [what, detail]),
    [['gap', expected]],
  )
  assert.match(await (await fetch(`${world.relay.url}/hosts/${name}`)).text(), new RegExp(expected))
})

test('T32 an OutdatedCursor of a host is a gap', async t => {
  const world = await start(t)
  const { pds, alice, name } = await hostWith(world, 'alice')
  pds.sendRaw(infoFrame('OutdatedCursor'), { once: true })
  const history = () => world.relay.hosts.byName(name)?.record.history ?? []
  await until('it is noted', () => history().some(({ what }) => what === 'gap'))
  pds.sendRaw(withSeq(encodeFrame(commitEvent(alice.post('much later'), now())), 500))
  await world.settled(pds, 500)
  const detail = 'events after seq 2 are no longer kept there (OutdatedCursor); they go on with seq 500'
  assert.deepEqual(
    history().map(note => note.detail),
    [detail],
  )
})

test('T15-T20 cursors', async t => {
  const world = await start(t)
  const { pds, alice } = await hostWith(world, 'alice')
  pds.sendPost(alice, 'old')
  await world.settled(pds, 3)
  const [none, head, future, bad] = [
    await world.consumer(),
    await world.consumer(3),
    await world.consumer(99),
    await fetch(`${world.relay.url}/xrpc/com.atproto.sync.subscribeRepos?cursor=x`),
  ]
  await until('the future is refused', () => future.closeCode !== null)
  assert.deepEqual(future.story, ['error FutureCursor'])
  assert.equal(bad.status, 426)
  pds.sendPost(alice, 'new')
  await until('both have it', () => none.frames.length === 1 && head.frames.length === 1)
  assert.deepEqual([none.seqs, head.seqs], [[4], [4]])
})

test('T12 T20 what is no right handshake is told so by HTTP', async t => {
  const world = await start(t)
  const path = '/xrpc/com.atproto.sync.subscribeRepos'
  assert.equal((await world.get(path)).status, 426)
  assert.equal((await world.post(path, {})).status, 405)
  const { port } = new URL(world.relay.url)
  const socket = connect(Number(port), '127.0.0.1')
  const key = 'dGhlIHNhbXBsZSBub25jZQ=='
  socket.write(
    `GET ${path}?cursor=-1 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ${key}\r\n\r\n`,
  )
  const [answer] = (await once(socket, 'data')) as [Buffer]
  assert.match(answer.toString(), /^HTTP\/1.1 400 [\s\S]*"InvalidRequest"/)
  socket.destroy()
  const preflight = await fetch(`${world.relay.url}${path}`, { method: 'OPTIONS' })
  assert.deepEqual([preflight.status, preflight.headers.get('access-control-allow-origin')], [204, '*'])
})

test('T36 T83 a relay is known as one by its handshakes, too, with or without a slash at the end', async t => {
  const world = await start(t)
  for (const path of [
    '/xrpc/com.atproto.sync.subscribeRepos',
    '/xrpc/com.atproto.sync.subscribeRepos/',
    '/subscribe',
  ]) {
    const socket = new WebSocket(`${world.relay.url.replace('http', 'ws')}${path}`)
    const [answer] = (await once(socket, 'upgrade')) as [IncomingMessage]
    assert.match(String(answer.headers.server), /atproto-relay/, path)
    socket.terminate()
  }
})

test('T27 T28 T84 a restart goes on where it was: for hosts, for consumers, for accounts', async t => {
  const world = await start(t, { env: { RELAY_VERIFY_WORKERS: '1' } })
  const { pds, alice, name } = await hostWith(world, 'alice')
  const consumer = await world.consumer(0)
  for (let i = 0; i < 10; i++) pds.sendPost(alice, `${i}`)
  await until('all came', () => consumer.frames.length === 12)
  await world.restart()
  await until('the consumer was told', () => consumer.closeCode !== null)
  assert.equal(consumer.closeCode, 1012)
  const next = await world.consumer(12)
  for (let i = 0; i < 10; i++) pds.sendPost(alice, `more ${i}`)
  await until('the rest came', () => next.frames.length === 10)
  assert.deepEqual(next.seqs, [13, 14, 15, 16, 17, 18, 19, 20, 21, 22])
  assert.deepEqual(await world.rejects(name), {})
  const again = await world.consumer(0)
  await until('all of it is there', () => again.frames.length === 22)
  assert.deepEqual(again.raw.slice(0, 12), consumer.raw)
  assert.equal(world.relay.hosts.byName(name)?.record.accounts, 1)
})

test('identities outlive a restart, so that nobody has to be asked', async t => {
  const world = await start(t)
  const { pds, alice } = await hostWith(world, 'alice')
  const consumer = await world.consumer(0)
  pds.sendPost(alice, 'before')
  await until('it came', () => consumer.pathsOf(alice.did).length === 1)
  await world.plc.close()
  await world.restart()
  const next = await world.consumer()
  pds.sendPost(alice, 'after')
  await until('it came', () => next.pathsOf(alice.did).length === 1)
})

test('T34 asking for a known host is fine, and dials it again', async t => {
  const world = await start(t)
  const { pds, name } = await hostWith(world, 'alice')
  for (let i = 0; i < 3; i++) assert.equal((await pds.requestCrawl(world.relay.url)).status, 200)
  assert.equal(pds.connections, 1)
  assert.equal((await world.post(`/admin/subs/killUpstream?host=${name}`)).status, 200)
  assert.equal((await world.post(`/admin/subs/killUpstream?host=${name}`)).status, 400)
  assert.equal((await pds.requestCrawl(world.relay.url)).status, 200)
  await until('it is dialled again', () => pds.connections === 2)
})

test('T61 T62 a flood of one host does not keep others waiting, and each account stays in order', async t => {
  const world = await start(t, { env: { RELAY_VERIFY_WORKERS: '1' } })
  const { pds: flood, accounts } = await hostWith(world, 'f1', 'f2')
  const { pds: quiet, alice } = await hostWith(world, 'quiet')
  const consumer = await world.consumer(0)
  await until('all are known', () => consumer.frames.length === 6)
  const frames: (() => void)[] = []
  for (let i = 0; i < 400; i++) {
    const event = commitEvent((accounts[i & 1] as FakeAccount).post(`${i}`), now())
    frames.push(() => flood.send(event))
  }
  const event = commitEvent(alice.post('hello'), now())
  for (const send of frames) send()
  quiet.send(event)
  await until('all came', () => consumer.frames.length === 407)
  const place = consumer.frames.findIndex(({ t, body }) => t === '#commit' && body.repo === alice.did)
  assert.ok(place < 6 + 300, `came as number ${place} of 407`)
  assert.deepEqual(consumer.kindsOf(alice.did), ['#identity', '#account', '#commit'])
  for (const { did } of accounts) {
    const revs = consumer.of(did).flatMap(({ body }) => (body.rev === undefined ? [] : [body.rev as string]))
    assert.deepEqual([revs.length, revs], [200, revs.toSorted()])
  }
})

test('T62 what strangers say of an account does not keep its own host waiting', async t => {
  const world = await start(t)
  const { pds, alice } = await hostWith(world, 'alice')
  const { pds: stranger } = await world.host()
  const consumer = await world.consumer(0)
  await until('she is known', () => consumer.frames.length === 2)
  for (let i = 0; i < 400; i++) stranger.send(identityEvent({ did: alice.did }, now()))
  const { ops } = pds.sendPost(alice, 'hello')
  await until('all came', () => consumer.frames.length === 403)
  const place = consumer.frames.findIndex(({ t }) => t === '#commit')
  assert.deepEqual(consumer.pathsOf(alice.did), [ops[0]!.path])
  assert.ok(place < 50, `came as number ${place} of 403`)
})

test('T36 a relay is no host', async t => {
  const world = await start(t)
  const other = await start(t)
  const hostname = new URL(other.relay.url).host
  const { status } = await world.post('/xrpc/com.atproto.sync.requestCrawl', { hostname })
  assert.equal(status, 400)
  assert.equal(world.relay.hosts.size, 0)
})

test('T37 a ban of a host or its domain disconnects at once and keeps it away', async t => {
  const world = await start(t)
  const { pds, name, alice } = await hostWith(world, 'alice')
  const consumer = await world.consumer(0)
  await until('it is heard', () => consumer.frames.length === 2)
  assert.equal((await world.post(`/admin/pds/block?host=${name}`)).status, 200)
  assert.equal(world.relay.hosts.byName(name)?.connectedAt, null)
  const refused = await pds.requestCrawl(world.relay.url)
  assert.deepEqual([refused.status, ((await refused.json()) as { error: string }).error], [400, 'HostBanned'])
  assert.equal((await world.post(`/admin/pds/unblock?host=${name}`)).status, 200)
  await until('it is back', () => pds.connections === 2)
  assert.equal((await world.post('/admin/subs/banDomain', { Domain: 'localhost' })).status, 200)
  assert.equal((await world.post('/admin/subs/banDomain', { Domain: 'localhost' })).status, 400)
  assert.deepEqual((await world.get('/admin/subs/listDomainBans')).body, { banned_domains: ['localhost'] })
  const status = await world.get<{ status: string }>(`/xrpc/com.atproto.sync.getHostStatus?hostname=${name}`)
  assert.equal(status.body.status, 'banned')
  pds.sendPost(alice, 'unheard')
  await world.restart()
  assert.equal((await pds.requestCrawl(world.relay.url)).status, 400)
  assert.equal(pds.connections, 2)
  assert.equal((await world.post('/admin/subs/unbanDomain', { Domain: 'localhost' })).status, 200)
  await until('it is back again', () => pds.connections === 3)
})

test('T82 more new hosts than a day may bring are refused by name', async t => {
  const world = await start(t, { env: { RELAY_NEW_HOSTS_PER_DAY_LIMIT: '1' } })
  await hostWith(world, 'alice')
  const more = await FakePds.start()
  t.after(() => more.close())
  const reply = await more.requestCrawl(world.relay.url)
  assert.deepEqual([reply.status, ((await reply.json()) as { error: string }).error], [429, 'RateLimitExceeded'])
  assert.ok(Number(reply.headers.get('retry-after')) > 0)
  const hostname = new URL(more.url).host
  assert.equal((await world.post('/admin/pds/requestCrawl', { hostname })).status, 200)
})
