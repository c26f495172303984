// What consumers of the Relay's stream may count on. The numbers are those of the list of behaviours.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { test } from 'node:test'
import { until } from '@millisky/server/testing-until'
import { WebSocket } from 'ws'
import { World, type WorldOptions } from './world.ts'

async function start(t: { after(fn: () => Promise<void>): void }, options: WorldOptions = {}): Promise<World> {
  const world = await World.start(options)
  t.after(() => world.stop())
  return world
}
const streamOf = (world: World) => `${world.relay.url.replace('http', 'ws')}/xrpc/com.atproto.sync.subscribeRepos`

test('T10 what a consumer sends is ignored, T11 its pings are answered, T14 nobody asks who it is', async t => {
  const world = await start(t)
  const { pds, accounts } = await world.host('alice')
  const consumer = await world.consumer(0)
  for (const data of ['hello', new Uint8Array([1, 2, 3]), '']) consumer.socket.send(data)
  consumer.socket.ping('are you there')
  const [answer] = (await once(consumer.socket, 'pong')) as [Buffer]
  assert.equal(answer.toString(), 'are you there')
  pds.sendPost(accounts[0]!, 'hello')
  await until('it came', () => consumer.frames.length === 1)
  assert.equal(consumer.closeCode, null)
})

test('T11 silent consumers are pinged, and dropped when they do not answer', async t => {
  const world = await start(t, { subscribe: { pingMs: 40, deadMs: 200 } })
  const alive = await world.consumer()
  const dead = new WebSocket(streamOf(world), { autoPong: false })
  let pings = 0
  alive.socket.on('ping', () => pings++)
  await once(dead, 'close')
  await until('the other was pinged again and again', () => pings >= 3)
  assert.equal(alive.closeCode, null)
})

test('T13 an error after the handshake is a frame, then the end', async t => {
  const world = await start(t)
  const consumer = await world.consumer(7)
  await until('it is over', () => consumer.closeCode !== null)
  const [{ header, body } = { header: {}, body: {} }] = consumer.frames
  assert.deepEqual(header, { op: -1 })
  assert.deepEqual(Object.keys(body).sort(), ['error', 'message'])
  assert.equal(consumer.frames.length, 1)
})

test('T24 a new log starts where it is told to', async t => {
  const world = await start(t, { env: { RELAY_INITIAL_SEQ_NUMBER: '5000000000' } })
  const { pds, accounts } = await world.host('alice')
  const consumer = await world.consumer(0)
  pds.sendPost(accounts[0]!, 'hello')
  await until('it came', () => consumer.frames.length === 1)
  assert.deepEqual(consumer.seqs, [5_000_000_000])
})

test('T25 a consumer that does not read is told so and closed, and others do not notice', {
  timeout: 120_000,
}, async t => {
  const world = await start(t, { subscribe: { stallMs: 300, batchBytes: 65_536 } })
  const { pds, accounts, name } = await world.host('alice')
  await world.post('/admin/pds/changeLimits', { host: name, per_second: 10_000 })
  const [slow, quick] = [await world.consumer(0), await world.consumer(0)]
  slow.socket.pause()
  const text = 'x'.repeat(200_000)
  for (let i = 0; i < 120; i++) pds.sendPost(accounts[0]!, text)
  await until('the other has them all', () => quick.frames.length === 120)
  await until('it is given up', async () => (await world.get<unknown[]>('/admin/consumers/list')).body.length === 1)
  slow.socket.resume()
  await until('it is closed', () => slow.closeCode !== null)
  assert.ok(slow.frames.length < 120)
  assert.equal(quick.closeCode, null)
  const again = await world.consumer(slow.seqs.at(-1) ?? 0)
  await until('what it missed is there', () => again.seqs.at(-1) === quick.seqs.at(-1))
})

test('T18 T26 what is too old is no longer kept, and whoever asks for it is told', async t => {
  let ahead = 0
  const world = await start(t, { now: () => Date.now() + ahead, env: { RELAY_REPLAY_WINDOW: '2h' } })
  const { pds, accounts } = await world.host('alice')
  for (let i = 0; i < 5; i++) pds.sendPost(accounts[0]!, `old ${i}`)
  await world.settled(pds, 5)
  const reading = await world.consumer(0)
  await until('it has them', () => reading.frames.length === 5)
  ahead = 4 * 3_600_000
  pds.sendPost(accounts[0]!, 'new')
  await world.settled(pds, 6)
  await world.relay.prune()
  await until('it was not disturbed', () => reading.frames.length === 6)
  const [late, oldest, exact] = [await world.consumer(1), await world.consumer(0), await world.consumer(5)]
  await until('all have the rest', () => [late, oldest, exact].every(({ seqs }) => seqs.at(-1) === 6))
  assert.deepEqual(
    [late, oldest, exact].map(consumer => consumer.story.map(line => line.split(' ')[0])),
    [['#info', '#commit'], ['#commit'], ['#commit']],
  )
  assert.equal(late.frames[0]?.body.name, 'OutdatedCursor')
})
