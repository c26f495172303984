// Where a consumer of the Relay's stream begins and goes on. The numbers are those of the list of behaviours.
import assert from 'node:assert/strict'
import { cpSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { SKIP } from '@millisky/server/log/segment-state'
import { until } from '@millisky/server/testing-until'
import { Consumer, PASSWORD, startRelay, World, type WorldOptions } from './world.ts'

async function start(t: { after(fn: () => Promise<void>): void }, options: WorldOptions = {}): Promise<World> {
  const world = await World.start(options)
  t.after(() => world.stop())
  return world
}

const HOUR_MS = 3_600_000
const range = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, i) => from + i)

/** A host that may send as much as it likes. */
async function fastHost(world: World) {
  const { pds, accounts, name } = await world.host('alice')
  await world.post('/admin/pds/changeLimits', { host: name, per_second: 10_000 })
  return { pds, alice: accounts[0]! }
}

test('T16 whoever comes with a cursor while events pour in misses none and gets none twice', async t => {
  const world = await start(t, { subscribe: { batchBytes: 4_096 } })
  const { pds, alice } = await fastHost(world)
  const consumers: { after: number; consumer: Consumer }[] = []
  for (let i = 0; i < 200; i++) {
    pds.sendPost(alice, `${i}`)
    if (i % 10 !== 9) continue
    await sleep(1)
    const after = Math.floor(world.relay.hosts.list()[0]!.window.cursor ?? 0) >> 1
    consumers.push({ after, consumer: await world.consumer(after) })
  }
  await until('all have all', () => consumers.every(({ consumer }) => consumer.seqs.at(-1) === 200))
  for (const { after, consumer } of consumers) assert.deepEqual(consumer.seqs, range(after + 1, 200))
})

test('T17 zero is the oldest event kept, and nobody is told that others are gone', async t => {
  let ahead = 0
  const world = await start(t, { now: () => Date.now() + ahead, env: { RELAY_REPLAY_WINDOW: '2h' } })
  const { pds, alice } = await fastHost(world)
  for (let i = 0; i < 3; i++) pds.sendPost(alice, `old ${i}`)
  await world.settled(pds, 3)
  ahead = 4 * HOUR_MS
  pds.sendPost(alice, 'new')
  await world.settled(pds, 4)
  await world.relay.prune()
  const consumer = await world.consumer(0)
  await until('it came', () => consumer.frames.length > 0)
  assert.deepEqual(consumer.story, [`#commit ${alice.did}`])
  assert.deepEqual(consumer.seqs, [4])
})

test('T19 a cursor beyond the head is an error and the end; the head itself is live', async t => {
  const world = await start(t)
  const { pds, alice } = await fastHost(world)
  pds.sendPost(alice, 'one')
  await world.settled(pds, 1)
  const [future, head] = [await world.consumer(2), await world.consumer(1)]
  await until('it is over', () => future.closeCode !== null)
  assert.deepEqual(future.story, ['error FutureCursor'])
  pds.sendPost(alice, 'two')
  await until('it came', () => head.frames.length === 1)
  assert.deepEqual(head.seqs, [2])
})

for (const fsync of ['batch', 'none']) {
  test(`T21 no seq is used twice after the Relay was killed, fsync ${fsync}`, async t => {
    const env = { RELAY_FSYNC: fsync }
    const world = await start(t, { env })
    const { pds, alice } = await fastHost(world)
    const before = await world.consumer(0)
    for (let i = 0; i < 5; i++) pds.sendPost(alice, `${i}`)
    await until('they came', () => before.seqs.length === 5)
    // What is on disk while it runs is what a kill would leave.
    const left = mkdtempSync(join(tmpdir(), 'millisky-killed-'))
    cpSync(world.folder, left, { recursive: true })
    const second = await startRelay(left, world.plc.url, { env })
    const after = await new Consumer(second.url, 5).opened()
    t.after(async () => {
      await after.close()
      await second.close()
      rmSync(left, { recursive: true, force: true })
    })
    await pds.requestCrawl(second.url)
    await until('it is connected', () => pds.connections >= 2)
    pds.sendPost(alice, 'after')
    await until('it came', () => after.seqs.length > 0)
    assert.deepEqual(before.seqs.slice(0, 5), [1, 2, 3, 4, 5])
    const [next = 0] = after.seqs
    assert.ok(next > 5 && Number.isSafeInteger(next))
    assert.equal(next > SKIP, fsync === 'none', 'what may have been sent and lost is skipped')
    const replay = await new Consumer(second.url, 0).opened()
    await until('history is the same', () => replay.raw.length >= 5)
    assert.deepEqual(replay.raw.slice(0, 5), before.raw.slice(0, 5))
    await replay.close()
  })
}

test('T26 too much is dropped as well as too old, and a replay under way stays whole', async t => {
  let ahead = 0
  const world = await start(t, {
    now: () => Date.now() + ahead,
    env: { RELAY_REPLAY_BYTES: '1000000' },
    subscribe: { batchBytes: 65_536 },
  })
  const { pds, alice } = await fastHost(world)
  const text = 'x'.repeat(30_000)
  // A segment ends after an hour.
  for (let hour = 0; hour < 4; hour++) {
    for (let i = 0; i < 20; i++) pds.sendPost(alice, text)
    await world.settled(pds, 20 * (hour + 1))
    ahead += HOUR_MS + 1
  }
  const replaying = await world.consumer(0)
  await until('it has begun', () => replaying.frames.length > 0)
  await world.relay.prune()
  pds.sendPost(alice, 'last')
  await until('it is through', () => replaying.seqs.at(-1) === 81 || replaying.closeCode !== null)
  // Had it been slower than the pruning, it would have been told so, not been given less.
  assert.deepEqual(replaying.seqs, range(1, replaying.seqs.length))
  if (replaying.closeCode !== null) assert.equal(replaying.story.at(-1), 'error ConsumerTooSlow')
  const late = await world.consumer(0)
  await until('the rest came', () => late.seqs.at(-1) === 81)
  const bytes = late.raw.reduce((sum, frame) => sum + frame.length, 0)
  assert.ok((late.seqs[0] ?? 0) > 20 && bytes < 1_100_000, `${late.seqs[0]}, ${bytes} bytes`)
  assert.deepEqual(late.seqs, range(late.seqs[0]!, 81))
  const reply = await fetch(`${world.relay.url}/metrics`, { headers: { authorization: `Bearer ${PASSWORD}` } })
  assert.match(await reply.text(), /^relay_log_pruned_segments_total [1-9]/m)
})
