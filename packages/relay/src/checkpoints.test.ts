import assert from 'node:assert/strict'
import { existsSync, mkdtempSync, readdirSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { EventList, fromJson, linkOf, Replay } from '@millisky/core/checkpoint'
import { encodeFrame, identityEvent, peek, withSeq } from '@millisky/core/event'
import { NOW, TIME, testDid } from '@millisky/core/testing-repos'
import { openDb } from '@millisky/server/db/db'
import { framesOf } from '@millisky/server/log/frame-wire'
import { openSegmentLog, type SegmentLog, type SegmentLogOptions } from '@millisky/server/log/segments'
import { Checkpoints } from './checkpoints.ts'
import { recoverFrame } from './recover.ts'
import { migrations, type RelaySchema } from './store/schema.ts'
import { createSqlStore } from './store/sql.ts'

type Cleanup = { after(fn: () => unknown): void }

async function open(t: Cleanup, { eventsMax = 7, ...more }: Partial<SegmentLogOptions> & { eventsMax?: number } = {}) {
  const folder = mkdtempSync(join(tmpdir(), 'millisky-checkpoints-'))
  const log = await openSegmentLog(join(folder, 'log'), {
    withSeq,
    recover: recoverFrame,
    now: () => NOW,
    fsync: 'none',
    segmentBytes: 1_000,
    ...more,
  })
  const store = createSqlStore(await openDb<RelaySchema>(':memory:', { migrations }))
  const parts = { log, store: store.checkpoints, folder: join(folder, 'signed'), now: () => NOW, eventsMax }
  t.after(async () => {
    await log.close()
    await store.close()
    rmSync(folder, { recursive: true })
  })
  let n = 0
  const append = async (count: number) => {
    for (let i = 0; i < count; i++, n++) {
      await log.append([{ frame: encodeFrame(identityEvent({ did: testDid(n) }, TIME)), account: 1 + (n % 5) }])
    }
  }
  return { log, append, parts, checkpoints: new Checkpoints(parts) }
}

/** What somebody finds who replays all of the log and compares. */
async function verify(log: SegmentLog, checkpoints: Checkpoints, from = 0) {
  const found = { matched: 0, withheld: [] as number[], wrong: 0 }
  for (const json of await checkpoints.list(from, 1_000)) {
    const checkpoint = fromJson(json)
    assert.equal(checkpoint.key, checkpoints.key)
    const replay = new Replay(new EventList(checkpoint, (await checkpoints.events(checkpoint.last))!), from)
    for (let after = Math.max(from, checkpoint.after); after < checkpoint.last; ) {
      const { wire, last } = await log.read(after, { bytes: 500 })
      if (last === after) break
      for (const frame of framesOf(wire)) {
        const { seq } = peek(frame)
        if (seq! <= checkpoint.last) replay.take(seq!, frame)
      }
      after = last
    }
    const { matched, withheld, altered, unsigned } = replay.finish()
    found.matched += matched
    found.withheld.push(...withheld)
    found.wrong += altered.length + unsigned.length
  }
  return found
}

test('everything in the log is signed once, in a chain, and a replay proves to be complete', async t => {
  const { log, append, checkpoints } = await open(t)
  assert.equal(await checkpoints.run(), 0)
  await append(17)
  const [made, shared] = await Promise.all([checkpoints.run(), checkpoints.run()])
  assert.deepEqual([made, shared], [3, 3])
  await append(3)
  assert.equal(await checkpoints.run(), 1)
  assert.equal(await checkpoints.run(), 0)
  const all = (await checkpoints.list(0, 100)).map(fromJson)
  assert.deepEqual(
    all.map(({ after, last, count }) => [after, last, count]),
    [
      [0, 7, 7],
      [7, 14, 7],
      [14, 17, 3],
      [17, 20, 3],
    ],
  )
  assert.equal(all[0]!.prev, null)
  for (let i = 1; i < all.length; i++) assert.equal(linkOf(all[i - 1]!, all[i]!), 'follows')
  assert.deepEqual(await verify(log, checkpoints), { matched: 20, withheld: [], wrong: 0 })
  assert.deepEqual(await verify(log, checkpoints, 9), { matched: 11, withheld: [], wrong: 0 })
})

test('events that are taken down, before or after they were signed, stay proven', async t => {
  const { log, append, checkpoints } = await open(t, { masked: [1] })
  await append(10)
  await checkpoints.run()
  log.mask(3)
  assert.deepEqual(await verify(log, checkpoints), { matched: 6, withheld: [1, 3, 6, 8], wrong: 0 })
})

test('after a restart the chain goes on under the same key, which only its owner can read', async t => {
  const { log, append, parts, checkpoints } = await open(t)
  await append(5)
  await checkpoints.run()
  await checkpoints.close()
  const again = new Checkpoints(parts)
  assert.equal(again.key, checkpoints.key)
  assert.equal(statSync(join(parts.folder, 'key')).mode & 0o777, 0o600)
  await append(5)
  await again.run()
  const [first, second] = (await again.list(0, 10)).map(fromJson)
  assert.equal(linkOf(first!, second!), 'follows')
  assert.deepEqual(await verify(log, again), { matched: 10, withheld: [], wrong: 0 })
  await again.close()
  await append(1)
  assert.equal(await again.run(), 0)
})

test('what was dropped unsigned shows as a hole, and lists go when their events do', async t => {
  const { log, append, parts, checkpoints } = await open(t)
  await append(20)
  await checkpoints.run()
  const lists = () => readdirSync(parts.folder).filter(name => name.endsWith('.events')).length
  assert.equal(lists(), 3)
  await append(30)
  await log.prune({ ageMs: 1e12, bytes: 2_000, now: NOW })
  const { oldest } = log
  assert.ok(oldest > 21)
  await checkpoints.run()
  const all = (await checkpoints.list(0, 100)).map(fromJson)
  assert.equal(all[3]!.after, oldest - 1)
  assert.equal(linkOf(all[2]!, all[3]!), 'hole')
  assert.equal(lists(), all.length - 3)
  assert.equal(await checkpoints.events(all[0]!.last), null)
  assert.ok(existsSync(join(parts.folder, 'key')))
})
