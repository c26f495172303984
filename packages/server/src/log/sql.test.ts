import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { withSeq } from '@millisky/core/event'
import { type Db, openDb, type SqliteDb } from '../db/db.ts'
import { testDatabases } from '../db/testing.ts'
import { EVENT_LOG_MIGRATION, openSqlLog, type SqlLog } from './sql.ts'
import {
  eventsOf,
  logContract,
  readAll,
  type TestEvent,
  type TestLog,
  type TestLogOptions,
  testDid,
  testFrame,
} from './testing.ts'

type Cleanup = { after(fn: () => unknown): void }
const entries = (events: readonly TestEvent[]) =>
  events.map(event => ({ frame: testFrame(event), did: testDid(event.who) }))
const event = (n: number, who = 0): TestEvent => ({ n, who, size: 100 })

interface Opened extends TestLog {
  db: Db<unknown>
  log: SqlLog
}

async function openAt(
  url: string,
  t: Cleanup,
  options: TestLogOptions & { now?: () => number; pollMs?: number },
): Promise<Opened> {
  const db = await openDb<unknown>(url, { migrations: [EVENT_LOG_MIGRATION] })
  const log = await openSqlLog(db, { withSeq, now: () => 1000, pollMs: 20, ...options })
  let open = true
  const close = async () => {
    if (!open) return
    open = false
    await log.close()
    await db.close()
  }
  t.after(close)
  return {
    db,
    log,
    append: events =>
      db
        .transaction(tx => log.append(tx, entries(events)))
        .then(async last => {
          while (log.head < last) await log.bell.wait()
          return last
        }),
    restart: async () => {
      await close()
      return openAt(url, t, options)
    },
  }
}

for (const { name, skip, url } of testDatabases()) {
  // Cleanups run in order of registration: the log must be closed before its database is removed.
  const late = (t: Cleanup) => {
    const last: (() => unknown)[] = []
    const first: (() => unknown)[] = []
    t.after(async () => {
      for (const fn of [...first, ...last]) await fn()
    })
    return {
      closes: { after: (fn: () => unknown) => first.push(fn) },
      removes: { after: (fn: () => Promise<void>) => last.push(fn) },
    }
  }
  const openFresh = async (t: Cleanup, options: Parameters<typeof openAt>[2]) => {
    const { closes, removes } = late(t)
    const where = await url(removes)
    return { ...(await openAt(where, closes as Cleanup, options)), where, closes: closes as Cleanup }
  }

  logContract(`sql on ${name}`, skip, openFresh)

  describe(`sql log: ${name}`, { skip }, () => {
    test('what is rolled back was never there', async t => {
      const { log, db, append } = await openFresh(t, {})
      await append([event(0)])
      await assert.rejects(
        db.transaction(async tx => {
          await log.append(tx, entries([event(1), event(2)]))
          throw new Error('no')
        }),
      )
      await db.transaction(async tx => {
        await assert.rejects(
          tx.savepoint(async () => {
            await log.append(tx, entries([event(3)]))
            throw new Error('inner')
          }),
        )
        await log.append(tx, entries([event(4, 1)]))
        await log.append(tx, entries([event(5, 2)]))
      })
      await append([event(6, 3)])
      assert.deepEqual(
        (await readAll(log)).map(seen => seen.who),
        [0, 1, 2, 3],
      )
    })

    test('forgetting an account removes its events, and never lets a seq come twice', async t => {
      const opened = await openFresh(t, {})
      const { log, db, append } = opened
      await append([event(0, 1), event(1, 2), event(2, 1)])
      await append([event(3, 2), event(4, 1)])
      await db.transaction(async tx => {
        await log.forget(tx, testDid(1))
        await log.append(tx, entries([event(5, 1)]))
      })
      while (log.head < 6) await log.bell.wait()
      assert.deepEqual(
        (await readAll(log)).map(seen => [seen.seq, seen.who]),
        [
          [2, 2],
          [4, 2],
          [6, 1],
        ],
      )
      await db.transaction(tx => log.forget(tx, testDid(1)))
      await db.transaction(tx => log.forget(tx, testDid(2)))
      assert.deepEqual(await readAll(log), [])
      assert.equal((await log.read(0, { bytes: 1000 })).last, log.head)
      const again = await opened.restart()
      assert.equal(again.log.head, 6)
      assert.equal(again.log.oldest, 7)
      assert.ok((await again.append([event(6)])) > 6)
    })

    test('pruning drops what is older, from the oldest on, and keeps count', async t => {
      let now = 1000
      const { log, append, restart } = await openFresh(t, { now: () => now, ringBytes: 1 })
      for (let i = 0; i < 1_200; i += 100) {
        await append(Array.from({ length: 100 }, (_, k) => event(i + k)))
        now += 10
      }
      // Events carry the times 1000, 1010 … 1110.
      assert.equal(await log.prune({ ageMs: 50, now: 1120 }), 700)
      assert.equal(log.oldest, 701)
      assert.equal((await readAll(log)).length, 500)
      assert.equal((await readAll(log, 900)).length, 300)
      assert.equal(await log.prune({ ageMs: 0, now: 5000 }), 500)
      assert.equal(log.oldest, 1201)
      const again = await restart()
      assert.equal(again.log.head, 1200)
      assert.equal(await again.append([event(0)]), 1201)
    })

    test('a higher first seq is a floor at any start', async t => {
      const opened = await openFresh(t, {})
      await opened.append([event(0)])
      const raised = await openAt(opened.where, opened.closes, { firstSeq: 1000 })
      assert.equal(await raised.append([event(1)]), 1000)
      const lower = await openAt(opened.where, opened.closes, { firstSeq: 5 })
      assert.equal(await lower.append([event(2)]), 1001)
    })

    test('two that share the database see each other, in one order', async t => {
      const one = await openFresh(t, {})
      const two = await openAt(one.where, one.closes, {})
      const total = 200
      const write = async (opened: Opened, who: number) => {
        await Promise.all(
          Array.from({ length: 10 }, async (_, k) => {
            for (let i = 0; i < 10; i++)
              await opened.db.transaction(tx => opened.log.append(tx, entries([event(k * 10 + i, who)])))
          }),
        )
      }
      await Promise.all([write(one, 1), write(two, 2)])
      for (const { log } of [one, two]) while (log.head < total) await log.bell.wait()
      const seen = await readAll(one.log)
      assert.equal(seen.length, total)
      assert.equal(seen.filter(s => s.who === 1).length, total / 2)
      assert.deepEqual(await readAll(two.log), seen)
    })

    test('a reader never passes an event that is still uncommitted', async t => {
      const one = await openFresh(t, {})
      const two = await openAt(one.where, one.closes, {})
      const seen: number[] = []
      let stop = false
      const reader = (async () => {
        for (let after = 0; !stop || after < two.log.head; ) {
          if (two.log.head <= after) await two.log.bell.wait()
          const batch = await two.log.read(after, { bytes: 1 << 20 })
          seen.push(...eventsOf(batch).map(s => s.seq))
          after = batch.last
        }
      })()
      const slow = async (opened: Opened, pause: number) =>
        opened.db.transaction(async tx => {
          await opened.log.append(tx, entries([event(0)]))
          await new Promise(done => setTimeout(done, pause))
        })
      await Promise.all(
        Array.from({ length: 12 }, (_, i) => slow(i % 2 && name === 'postgres' ? two : one, (i * 7) % 13)),
      )
      while (two.log.head < 12) await two.log.bell.wait()
      stop = true
      two.log.bell.ring()
      await reader
      assert.deepEqual(
        seen,
        [...Array(12).keys()].map(i => i + 1),
      )
    })

    test('who has committed sees it in the log at once, whatever others append', async t => {
      const one = await openFresh(t, { pollMs: 0 })
      const two = name === 'postgres' ? await openAt(one.where, one.closes, { pollMs: 0 }) : one
      const shown = new Map([
        [one, [] as boolean[]],
        [two, [] as boolean[]],
      ])
      const write = async (opened: Opened, n: number) => {
        const last = await opened.db.transaction(tx => opened.log.append(tx, entries([event(n), event(n, 1)])))
        shown.get(opened)!.push(opened.log.head >= last)
      }
      for (let round = 0; round < 10; round++) await Promise.all([one, two, one, two].map(each => write(each, round)))
      assert.ok([...shown.values()].flat().every(Boolean))
      while (one.log.head < 80) await one.log.bell.wait()
      assert.deepEqual(
        (await readAll(one.log)).map(({ seq }) => seq),
        Array.from({ length: 80 }, (_, i) => i + 1),
      )
    })

    test('what one forgets the others do not show from memory', async t => {
      const one = await openFresh(t, { pollMs: 0 })
      const two = name === 'postgres' ? await openAt(one.where, one.closes, { pollMs: 0 }) : one
      await one.append([event(0), event(1, 1), event(2)])
      while (two.log.head < 3) await two.log.bell.wait()
      await one.db.transaction(tx => one.log.forget(tx, testDid(0)))
      const left = async () => (await readAll(two.log)).length
      for (let tries = 0; (await left()) > 1 && tries < 5_000; tries++) await new Promise(done => setTimeout(done, 5))
      assert.equal(await left(), 1)
    })
  })
}

test('sql log on SQLite appends in synchronous transactions too', async t => {
  const sqlite = testDatabases()[0]!
  const db = (await openDb<unknown>(await sqlite.url(t as never), {
    migrations: [EVENT_LOG_MIGRATION],
  })) as SqliteDb<unknown>
  const log = await openSqlLog(db, { withSeq, now: () => 1, pollMs: 0 })
  const last = db.transactionSync(tx => log.appendSync(tx, entries([event(0), event(1)])))
  assert.equal(last, 2)
  assert.equal(log.head, 2)
  assert.throws(() =>
    db.transactionSync(tx => {
      log.appendSync(tx, entries([event(2)]))
      throw new Error('no')
    }),
  )
  assert.equal(log.head, 2)
  assert.equal((await readAll(log)).length, 2)
  await log.close()
  await db.close()
})
