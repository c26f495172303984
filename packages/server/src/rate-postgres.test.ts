import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { sql } from 'kysely'
import { openDb, type PostgresDb } from './db/db.ts'
import { testDatabases } from './db/testing.ts'
import { type CounterStore, inMemory, RateLimit } from './rate.ts'
import { createSharedCounters, RATE_MIGRATION } from './rate-postgres.ts'

interface Cleanup {
  after(fn: () => Promise<void>): void
}

const postgres = testDatabases().find(({ name }) => name === 'postgres')!
const MIGRATIONS = [RATE_MIGRATION]

/** Two processes' worth of counters at one database. */
async function openTwo(t: Cleanup, now: () => number = Date.now) {
  const ends: (() => Promise<void>)[] = []
  const url = await postgres.url({ after: fn => ends.push(fn) })
  const warnings: string[] = []
  const log = { warn: (_: object, message: string) => warnings.push(message) }
  const open = async () => (await openDb<unknown>(url, { migrations: MIGRATIONS })) as PostgresDb<unknown>
  const [one, two] = [await open(), await open()]
  t.after(async () => {
    await Promise.all([one.close(), two.close()])
    for (const end of ends) await end()
  })
  const [first, second] = [createSharedCounters(one, { log, now }), createSharedCounters(two, { log, now })]
  return { one, two, first, second, warnings }
}

const stores: { name: string; skip: string | false; open: (t: Cleanup) => Promise<CounterStore> }[] = [
  { name: 'memory', skip: false, open: async () => inMemory },
  { name: 'postgres', skip: postgres.skip, open: async t => (await openTwo(t)).first.store },
]

for (const { name, skip, open } of stores) {
  describe(`counters: ${name}`, { skip }, () => {
    for (const points of [3, 1_000]) {
      test(`all of ${points} points, no more, and a fresh start`, async t => {
        const limit = new RateLimit('writes', { points, windowMs: 300_000 }, await open(t))
        const other = new RateLimit('logins', { points, windowMs: 300_000 }, await open(t))
        for (let left = points - 1; left >= 0; left--) {
          const { remaining, isExceeded, resetMs, ...rest } = await limit.take('alice')
          assert.deepEqual({ remaining, isExceeded }, { remaining: left, isExceeded: false })
          assert.ok(resetMs > 290_000 && resetMs <= 300_000, String(resetMs))
          assert.deepEqual(rest, { points, windowSeconds: 300 })
        }
        for (let more = 0; more < 2; more++) {
          const { remaining, isExceeded, resetMs } = await limit.take('alice')
          assert.deepEqual({ remaining, isExceeded }, { remaining: 0, isExceeded: true })
          assert.ok(resetMs > 290_000 && resetMs <= 300_000, String(resetMs))
        }
        assert.equal((await limit.take('bob')).remaining, points - 1)
        assert.equal((await other.take('alice')).remaining, points - 1)
        await limit.reset('alice')
        assert.equal((await limit.take('alice')).remaining, points - 1)
      })
    }

    test('a call of many points, and one of more than are left', async t => {
      const limit = new RateLimit('writes', { points: 100, windowMs: 60_000 }, await open(t))
      assert.equal((await limit.take('alice', 60)).remaining, 40)
      assert.equal((await limit.take('alice', 1)).remaining, 39)
      assert.equal((await limit.take('alice', 40)).isExceeded, true)
      assert.equal((await limit.take('alice', 1)).isExceeded, true, 'a refused call counts too')
    })

    test('calls at once are all counted', async t => {
      const limit = new RateLimit('all', { points: 500, windowMs: 60_000 }, await open(t))
      const told = await Promise.all(Array.from({ length: 600 }, () => limit.take('alice')))
      assert.equal(told.filter(({ isExceeded }) => !isExceeded).length, 500)
    })

    test('a window ends', async t => {
      const limit = new RateLimit('short', { points: 1, windowMs: 1_000 }, await open(t))
      // A second may be over between two calls, on a machine that is busy.
      let allowance = await limit.take('alice')
      while (!allowance.isExceeded) allowance = await limit.take('alice')
      await new Promise(done => setTimeout(done, allowance.resetMs + 20))
      assert.equal((await limit.take('alice')).isExceeded, false)
    })
  })
}

describe('counters of several processes', { skip: postgres.skip }, () => {
  test('count together, and never grant more than the limit', async t => {
    const { first, second } = await openTwo(t)
    const size = { points: 1_000, windowMs: 300_000 }
    const limits = [new RateLimit('all', size, first.store), new RateLimit('all', size, second.store)]
    let granted = 0
    const call = async (n: number) => {
      if (!(await limits[n % 2]!.take('alice')).isExceeded) granted++
    }
    for (let n = 0; n < 1_200; n += 10) await Promise.all(Array.from({ length: 10 }, (_, i) => call(n + i)))
    assert.ok(granted <= 1_000 && granted > 970, String(granted))
    const strict = { points: 5, windowMs: 300_000 }
    const logins = [new RateLimit('login', strict, first.store), new RateLimit('login', strict, second.store)]
    const told = []
    for (let n = 0; n < 7; n++) told.push((await logins[n % 2]!.take('alice')).remaining)
    assert.deepEqual(told, [4, 3, 2, 1, 0, 0, 0], 'small limits are exact')
  })

  test('a fresh start in one is known to the other soon', async t => {
    let now = Date.now()
    const { first, second } = await openTwo(t, () => now)
    const size = { points: 2, windowMs: 300_000 }
    const [one, two] = [new RateLimit('login', size, first.store), new RateLimit('login', size, second.store)]
    for (let n = 0; n < 3; n++) await two.take('alice')
    await one.reset('alice')
    assert.equal((await two.take('alice')).isExceeded, true)
    now += 5_001
    assert.equal((await two.take('alice')).isExceeded, false)
  })

  test('without the database each counts alone, and says so once', async t => {
    const { one, first, warnings } = await openTwo(t)
    const limit = new RateLimit('login', { points: 3, windowMs: 300_000 }, first.store)
    await limit.take('alice')
    await sql`alter table rate rename to gone`.execute(one.kysely)
    const told = []
    for (let n = 0; n < 5; n++) told.push((await limit.take('bob')).isExceeded)
    assert.deepEqual(told, [false, false, false, true, true])
    assert.equal(warnings.length, 1)
  })

  test('what has expired is removed', async t => {
    const { one, first } = await openTwo(t)
    const limit = new RateLimit('login', { points: 3, windowMs: 300_000 }, first.store)
    await limit.take('alice')
    await limit.take('bob')
    await sql`update rate set expires_at = 1 where key = 'login alice'`.execute(one.kysely)
    await first.prune()
    const { rows } = await sql<{ key: string }>`select key from rate`.execute(one.kysely)
    assert.deepEqual(rows, [{ key: 'login bob' }])
  })
})
