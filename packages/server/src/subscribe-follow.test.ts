// The two ends of an event stream against each other, over a real log, with connections that keep breaking.
import assert from 'node:assert/strict'
import { mkdtemp, rm } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { decodeFrame, peek, withSeq } from '@millisky/core/event'
import { openDb } from './db/db.ts'
import { Follow } from './follow.ts'
import { openSegmentLog } from './log/segments.ts'
import { EVENT_LOG_MIGRATION, openSqlLog } from './log/sql.ts'
import { testDid, testFrame } from './log/testing.ts'
import { Subscription } from './subscribe.ts'

const PATH = '/xrpc/com.atproto.sync.subscribeRepos'
const EVENTS = 1_500

/** The same numbers every time. */
function chance(seed: number): () => number {
  let state = seed
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    return state / 2 ** 32
  }
}

test('followers get every event once, in order, though connections break and the server restarts', async () => {
  const random = chance(42)
  const db = await openDb<unknown>(':memory:', { migrations: [EVENT_LOG_MIGRATION] })
  // A small ring, so that some of it is read from the database.
  const log = await openSqlLog(db, { withSeq, now: () => 1000, ringBytes: 20_000 })
  const server = createServer()
  const settings = { closeMs: 200, batchBytes: 8_000 }
  let subscription = new Subscription({ log, settings })
  subscription.attach(server, PATH)
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  const url = `ws://127.0.0.1:${(server.address() as AddressInfo).port}${PATH}`

  let [stalled, breaks] = [false, 0]
  const followers = [0, 0, 3, 20].map((slowMs, i) => {
    const seqs: number[] = []
    const follow = new Follow({
      url,
      cursor: () => seqs.at(-1) ?? 0,
      reach: { allowPrivate: true },
      userAgent: `follower ${i}`,
      settings: { retryMinMs: 1, retryMaxMs: 10, waitingBytes: 5_000 },
      random,
      onFrames: async frames => {
        if (slowMs > 0) await sleep(slowMs)
        // Now and then a consumer fails with half of what it was given done.
        const taken = random() < 0.05 ? frames.slice(0, frames.length / 2) : frames
        for (const frame of taken) seqs.push(peek(frame).seq ?? -1)
        if (taken !== frames) throw new Error('half done')
      },
      onEnd: () => breaks++,
    })
    return { seqs, follow }
  })
  const writing = (async () => {
    for (let n = 0; n < EVENTS; ) {
      const count = Math.min(EVENTS - n, 1 + Math.floor(random() * 30))
      const entries = Array.from({ length: count }, (_, i) => ({
        did: testDid(i % 5),
        frame: testFrame({ n: n + i, who: i % 5, size: Math.floor(random() * 2_000) }),
      }))
      await db.transaction(tx => log.append(tx, entries))
      n += count
      await sleep(Math.floor(random() * 4))
    }
  })()
  const breaking = (async () => {
    while (!stalled) {
      const consumers = subscription.list()
      const unlucky = consumers[Math.floor(random() * consumers.length)]
      if (unlucky) subscription.kick(unlucky.id)
      if (random() < 0.2) {
        await subscription.close()
        subscription = new Subscription({ log, settings })
        subscription.attach(server, PATH)
      }
      await sleep(10)
    }
  })()
  await writing
  stalled = true
  await breaking
  const expected = Array.from({ length: log.head }, (_, i) => i + 1)
  for (let i = 0; followers.some(({ seqs }) => seqs.length < expected.length); i++) {
    if (i > 4_000) assert.fail(`${followers.map(({ seqs }) => seqs.length)} of ${expected.length}`)
    await sleep(5)
  }
  for (const { seqs } of followers) assert.deepEqual(seqs, expected)
  assert.equal(expected.length, EVENTS)
  assert.ok(breaks > 10, `only ${breaks} connections broke`)
  await Promise.all(followers.map(({ follow }) => follow.stop()))
  await subscription.close()
  server.close()
  await log.close()
  await db.close()
})

test('a replay from files arrives byte for byte, though memory is used again and consumers stall', async t => {
  const random = chance(7)
  const folder = await mkdtemp(join(tmpdir(), 'millisky-replay-'))
  const log = await openSegmentLog(folder, {
    withSeq,
    recover: () => null,
    now: () => 1000,
    fsync: 'none',
    ringBytes: 1,
    segmentBytes: 5_000_000,
  })
  const server = createServer()
  const subscription = new Subscription({ log, settings: { closeMs: 200, batchBytes: 100_000 } })
  subscription.attach(server, PATH)
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  const url = `ws://127.0.0.1:${(server.address() as AddressInfo).port}${PATH}`
  t.after(async () => {
    await subscription.close()
    server.close()
    await log.close()
    await rm(folder, { recursive: true })
  })
  const total = 2_000
  for (let n = 0; n < total; n += 100) {
    // Mostly of a usual size, some longer than a whole batch.
    const size = () => Math.floor(random() < 0.01 ? random() * 300_000 : random() * 16_000)
    const entries = Array.from({ length: 100 }, (_, i) => ({
      frame: testFrame({ n: n + i, who: 1, size: size() }),
      account: 1,
    }))
    await log.append(entries)
  }
  const read = async (stallMs: number) => {
    let next = 0
    const done = Promise.withResolvers<void>()
    const follow = new Follow({
      url,
      cursor: () => next,
      reach: { allowPrivate: true },
      userAgent: 'test',
      settings: { waitingBytes: 50_000 },
      onFrames: async frames => {
        for (const frame of frames) {
          const { body } = decodeFrame(frame)
          const pad = body.pad as Uint8Array
          assert.equal(body.seq, next + 1)
          assert.equal(body.n, next)
          assert.ok(Buffer.alloc(pad.length, next).equals(pad), `event ${next} is damaged`)
          next++
        }
        // First long enough to fill every buffer on the way, then now and then.
        if (next < 100 && stallMs > 0) await sleep(300)
        else if (random() < 0.1) await sleep(random() * stallMs)
        if (next === total) done.resolve()
      },
      onEnd: end => done.reject(new Error(`${end.reason}: ${end.detail}`)),
    })
    await done.promise.finally(() => follow.stop())
  }
  await Promise.all([read(0), read(10), read(30)])
})
