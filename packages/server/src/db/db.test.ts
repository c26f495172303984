import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { describe, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { Unavailable } from '@millisky/core/errors'
import { sql } from 'kysely'
import { type Db, isUniqueViolation, openDb, type PostgresDb, type SqliteDb } from './db.ts'
import type { Migration } from './migrate.ts'
import { testDatabases } from './testing.ts'

interface Schema {
  item: { id: number; name: string; size: number; body: Uint8Array | null; note: string | null }
  numbered: { id: number; word: string }
}

const MIGRATIONS: Migration[] = [
  {
    name: 'items',
    async up(schema, column) {
      await schema.schema
        .createTable('item')
        .addColumn('id', column.bigint, c => c.primaryKey())
        .addColumn('name', column.text, c => c.notNull().unique())
        .addColumn('size', column.bigint, c => c.notNull())
        .addColumn('body', column.bytes)
        .addColumn('note', column.json)
        .execute()
    },
  },
  {
    name: 'numbered',
    async up(schema, column) {
      await sql`create table numbered (id ${column.id}, word ${column.text} not null)`.execute(schema)
    },
  },
]

function statements(db: Db<Schema>) {
  const { kysely } = db
  return {
    put: db.prepare((id: number, name: string, size: number, body: Uint8Array | null) =>
      kysely.insertInto('item').values({ id, name, size, body, note: null }),
    ),
    byId: db.prepare((id: number) => kysely.selectFrom('item').selectAll().where('id', '=', id)),
    names: db.prepare(kysely.selectFrom('item').select('name').orderBy('name')),
    count: db.prepare(sql<{ n: number }>`select count(*) as n from item`),
    grow: db.prepare((id: number, by: number) =>
      kysely
        .updateTable('item')
        .set(eb => ({ size: eb('size', '+', by) }))
        .where('id', '=', id)
        .returning('size'),
    ),
    between: db.prepare((low: number, high: number) =>
      kysely
        .selectFrom('item')
        .select('id')
        .where('size', '>=', low)
        .where('size', '<=', high)
        .where('name', '!=', 'constant')
        .where(eb => eb.or([eb('id', '>=', low), eb('id', '<', low)]))
        .orderBy('id'),
    ),
    remove: db.prepare((id: number) => kysely.deleteFrom('item').where('id', '=', id)),
    word: db.prepare((word: string) =>
      kysely
        .insertInto('numbered')
        .values({ word } as never)
        .returning('id'),
    ),
  }
}

for (const { name, skip, url } of testDatabases()) {
  describe(`database contract: ${name}`, { skip }, () => {
    const withDb = (
      fn: (db: SqliteDb<Schema> | PostgresDb<Schema>, q: ReturnType<typeof statements>) => Promise<void>,
    ) => {
      return async (t: { after(fn: () => Promise<void>): void }) => {
        const db = await openDb<Schema>(await url(t), { migrations: MIGRATIONS })
        try {
          await fn(db, statements(db))
        } finally {
          await db.close()
        }
      }
    }

    test(
      'values come back as they went in',
      withDb(async (db, q) => {
        const body = Uint8Array.of(0, 1, 255, 0)
        assert.equal(await db.run(q.put, [1, 'ä"\'\\ \u{1f600}', Number.MAX_SAFE_INTEGER, body]), 1)
        const row = await db.get(q.byId, [1])
        assert.deepEqual(row, { id: 1, name: 'ä"\'\\ \u{1f600}', size: Number.MAX_SAFE_INTEGER, body, note: null })
        assert.ok(row!.body instanceof Uint8Array)
        await db.kysely
          .updateTable('item')
          .set({ note: '{"b": 1,  "a":2}', body: new Uint8Array(0) })
          .execute()
        assert.deepEqual(await db.kysely.selectFrom('item').select(['note', 'body']).execute(), [
          { note: '{"b": 1,  "a":2}', body: new Uint8Array(0) },
        ])
        await db.run(q.put, [2, 'view', 1, Uint8Array.of(9, 8, 7, 6).subarray(1, 3)])
        assert.deepEqual((await db.get(q.byId, [2]))!.body, Uint8Array.of(8, 7))
        assert.equal(await db.get(q.byId, [3]), undefined)
        assert.deepEqual(await db.get(q.count, []), { n: 2 })
      }),
    )

    test(
      'an integer that cannot be exact is an error, never rounded',
      withDb(async (db, q) => {
        await db.run(q.put, [1, 'a', 0, null])
        await sql`update item set size = 9007199254740993`.execute(db.kysely)
        await assert.rejects(async () => db.get(q.byId, [1]), RangeError)
      }),
    )

    test(
      'parameters repeat, mix with constants and keep their places',
      withDb(async (db, q) => {
        for (const id of [1, 2, 3, 4]) await db.run(q.put, [id, id === 3 ? 'constant' : `n${id}`, id * 10, null])
        assert.deepEqual(await db.all(q.between, [20, 40]), [{ id: 2 }, { id: 4 }])
        assert.deepEqual(await db.all(q.between, [40, 40]), [{ id: 4 }])
        assert.equal(await db.run(q.remove, [1]), 1)
        assert.equal(await db.run(q.remove, [1]), 0)
        assert.deepEqual(await db.all(q.grow, [2, 5]), [{ size: 25 }])
        assert.deepEqual(await db.get(q.grow, [99, 5]), undefined)
      }),
    )

    test(
      'what has no meaning as a parameter is refused',
      withDb(async (db, q) => {
        await assert.rejects(async () => db.get(q.byId, [undefined as unknown as number]))
        await assert.rejects(async () => db.get(q.byId, [true as unknown as number]))
        assert.throws(() => db.prepare((a: number, b: number) => db.kysely.selectFrom('item').where('id', '=', a + b)))
        assert.throws(
          () => db.prepare((_a: number, b: number) => db.kysely.selectFrom('item').selectAll().where('id', '=', b)),
          /parameter 1 is not used/,
        )
      }),
    )

    test(
      'text sorts by bytes',
      withDb(async (db, q) => {
        const names = ['b', 'B', 'a', '_', 'é', 'Z', '-', '~', 'aa', 'a-', 'a_']
        for (const [id, text] of names.entries()) await db.run(q.put, [id, text, 0, null])
        const sorted = [...names].sort((x, y) => Buffer.compare(Buffer.from(x), Buffer.from(y)))
        assert.deepEqual(
          (await db.all(q.names, [])).map(row => row.name),
          sorted,
        )
      }),
    )

    test(
      'generated keys rise and are not used again',
      withDb(async (db, q) => {
        const first = (await db.get(q.word, ['a']))!.id
        const second = (await db.get(q.word, ['b']))!.id
        assert.ok(second > first)
        await db.kysely.deleteFrom('numbered').execute()
        assert.ok((await db.get(q.word, ['c']))!.id > second)
      }),
    )

    test(
      'a unique violation is known as one, other errors are not',
      withDb(async (db, q) => {
        await db.run(q.put, [1, 'a', 0, null])
        const caught = async (fn: () => unknown) => {
          try {
            await fn()
          } catch (error) {
            return error
          }
        }
        assert.ok(isUniqueViolation(await caught(() => db.run(q.put, [1, 'b', 0, null]))))
        assert.ok(isUniqueViolation(await caught(() => db.run(q.put, [2, 'a', 0, null]))))
        const kysely = () =>
          db.kysely.insertInto('item').values({ id: 1, name: 'c', size: 0, body: null, note: null }).execute()
        assert.ok(isUniqueViolation(await caught(kysely)))
        const missing = await caught(() => db.run(q.put, [3, null as unknown as string, 0, null]))
        assert.ok(missing instanceof Error)
        assert.ok(!isUniqueViolation(missing))
        assert.ok(!isUniqueViolation(undefined))
      }),
    )

    test(
      'a transaction is all or nothing, and its hooks run only when it is all',
      withDb(async (db, q) => {
        const seen: string[] = []
        const value = await db.transaction(async tx => {
          await tx.run(q.put, [1, 'a', 1, null])
          await tx.kysely.updateTable('item').set({ size: 2 }).execute()
          tx.onCommit(() => seen.push('kept'))
          assert.equal((await tx.get(q.byId, [1]))!.size, 2)
          return 'done'
        })
        assert.equal(value, 'done')
        await assert.rejects(
          db.transaction(async tx => {
            tx.onCommit(() => seen.push('lost'))
            await tx.run(q.put, [2, 'b', 1, null])
            throw new Error('no')
          }),
          /^Error: no$/,
        )
        assert.deepEqual(await db.all(q.names, []), [{ name: 'a' }])
        assert.deepEqual(seen, ['kept'])
      }),
    )

    test(
      'a failed statement inside a transaction fails it, unless a savepoint was set',
      withDb(async (db, q) => {
        await db.run(q.put, [1, 'a', 1, null])
        await assert.rejects(
          db.transaction(async tx => {
            await tx.run(q.put, [2, 'b', 1, null])
            await tx.run(q.put, [1, 'c', 1, null])
          }),
          isUniqueViolation,
        )
        const hooks: number[] = []
        await db.transaction(async tx => {
          await tx.run(q.put, [3, 'd', 1, null])
          const failed = tx.savepoint(async () => {
            tx.onCommit(() => hooks.push(1))
            await tx.run(q.put, [4, 'e', 1, null])
            await tx.run(q.put, [1, 'f', 1, null])
          })
          await assert.rejects(failed, isUniqueViolation)
          await tx.savepoint(async () => {
            tx.onCommit(() => hooks.push(2))
            await tx.savepoint(async () => void (await tx.run(q.put, [5, 'g', 1, null])))
          })
        })
        assert.deepEqual(
          (await db.all(q.names, [])).map(row => row.name),
          ['a', 'd', 'g'],
        )
        assert.deepEqual(hooks, [2])
      }),
    )

    test(
      'nobody sees an open transaction, and it sees only itself',
      withDb(async (db, q) => {
        await db.run(q.put, [1, 'a', 1, null])
        const wrote = Promise.withResolvers<void>()
        const go = Promise.withResolvers<void>()
        const open = db.transaction(async tx => {
          await tx.run(q.put, [2, 'b', 1, null])
          wrote.resolve()
          await go.promise
          assert.equal((await tx.get(q.count, []))!.n, 2)
        })
        await wrote.promise
        assert.equal((await db.get(q.count, []))!.n, 1)
        assert.equal((await db.kysely.selectFrom('item').select('id').execute()).length, 1)
        go.resolve()
        await open
        assert.equal((await db.get(q.count, []))!.n, 2)
      }),
    )

    test(
      'concurrent transactions lose no update, and each fails alone',
      withDb(async (db, q) => {
        await db.run(q.put, [1, 'a', 0, null])
        const results = await Promise.allSettled(
          Array.from({ length: 60 }, (_, i) =>
            db.transaction(
              async tx => {
                const row = (await tx.get(q.byId, [1]))!
                if (i % 3 === 0) await sleep(1)
                if (i % 10 === 9) throw new Error(`refused ${i}`)
                await tx.kysely
                  .updateTable('item')
                  .set({ size: row.size + 1 })
                  .where('id', '=', 1)
                  .execute()
                return i
              },
              { isolation: 'serializable' },
            ),
          ),
        )
        const kept = results.filter(result => result.status === 'fulfilled')
        const failed = results.filter(result => result.status === 'rejected')
        assert.equal((await db.get(q.byId, [1]))!.size, kept.length)
        // Serialization failures may outlast the retries on PostgreSQL; on SQLite there are none.
        if (db.kind === 'sqlite') assert.equal(failed.length, 6)
        assert.ok(kept.length > 5)
      }),
    )

    test(
      'a write on the database inside a transaction is an error, not a deadlock',
      withDb(async (db, q) => {
        await assert.rejects(
          db.transaction(async () => void (await db.run(q.put, [1, 'a', 1, null]))),
          /use the transaction for writes/,
        )
        await assert.rejects(
          db.transaction(() => db.transaction(() => 1)),
          /use the transaction for writes/,
        )
        let later: Promise<unknown> | undefined
        await db.transaction(async tx => {
          await tx.run(q.put, [1, 'a', 1, null])
          later = sleep(5).then(() => db.run(q.put, [2, 'b', 1, null]))
        })
        assert.equal(await later, 1)
      }),
    )

    test(
      'a transaction that has ended takes no more statements',
      withDb(async (db, q) => {
        let late: (() => Promise<unknown>)[] = []
        await db.transaction(tx => {
          const { kysely } = tx
          late = [
            async () => tx.run(q.put, [1, 'a', 1, null]),
            async () => kysely.deleteFrom('item').execute(),
            async () => tx.savepoint(() => 1),
          ]
        })
        for (const fn of late) await assert.rejects(fn(), /has ended/)
      }),
    )

    test(
      "Kysely's own transactions are refused",
      withDb(async db => {
        await assert.rejects(
          db.kysely.transaction().execute(async () => {}),
          /use the transaction method/,
        )
      }),
    )

    test(
      'a snapshot stays the same while others write',
      withDb(async (db, q) => {
        await db.run(q.put, [1, 'a', 1, null])
        await db.snapshot(async view => {
          assert.equal((await view.get(q.count, []))!.n, 1)
          await db.run(q.put, [2, 'b', 1, null])
          assert.equal((await db.get(q.count, []))!.n, 2)
          assert.equal((await view.get(q.count, []))!.n, 1)
          assert.equal((await view.kysely.selectFrom('item').select('id').execute()).length, 1)
          await assert.rejects(async () => view.run(q.put, [3, 'c', 1, null]))
        })
      }),
    )

    test(
      'rows can be streamed while others write',
      withDb(async (db, q) => {
        await db.transaction(async tx => {
          for (let id = 0; id < 250; id++) await tx.run(q.put, [id, `n${id}`, 0, null])
        })
        let n = 0
        for await (const row of db.kysely
          .selectFrom('item')
          .select('id')
          .where('id', '>=', 10)
          .orderBy('id')
          .stream(20)) {
          assert.equal(row.id, n + 10)
          if (n % 50 === 0) await db.run(q.put, [1000 + n, `more${n}`, 0, null])
          n++
        }
        assert.equal(n, 240)
        for await (const _row of db.kysely.selectFrom('item').select('id').stream(20)) break
        assert.equal(await db.run(q.remove, [0]), 1)
      }),
    )

    test('migrations: applied once, in order, also by many at once, and never backwards', async t => {
      const where = await url(t)
      const open = (migrations: Migration[]) => openDb<Schema>(where, { migrations })
      const many = await Promise.all(Array.from({ length: 4 }, () => open(MIGRATIONS)))
      for (const db of many) await db.close()
      const steps = await open(MIGRATIONS)
      const applied = await sql<{ name: string }>`select name from millisky_migration order by version`.execute(
        steps.kysely,
      )
      await steps.close()
      assert.deepEqual(applied.rows, [{ name: 'items' }, { name: 'numbered' }])
      await assert.rejects(open(MIGRATIONS.slice(0, 1)), /schema version 2, newer than this program knows \(1\)/)
      await assert.rejects(open([{ ...MIGRATIONS[0]!, name: 'other' }, MIGRATIONS[1]!]), /made by another program/)
      const failing: Migration = {
        name: 'fails half way',
        async up(schema, column) {
          await schema.schema.createTable('half').addColumn('x', column.text).execute()
          throw new Error('half way')
        },
      }
      await assert.rejects(open([...MIGRATIONS, failing]), /half way/)
      const again = await open(MIGRATIONS)
      await assert.rejects(sql`select * from half`.execute(again.kysely))
      await again.close()
    })

    test('read-only: sees everything, changes nothing, and wants a migrated database', async t => {
      const where = await url(t)
      await assert.rejects(openDb<Schema>(where, { migrations: MIGRATIONS, readonly: true }))
      const db = await openDb<Schema>(where, { migrations: MIGRATIONS.slice(0, 1) })
      await db.kysely.insertInto('item').values({ id: 1, name: 'a', size: 1, body: null, note: null }).execute()
      await assert.rejects(openDb<Schema>(where, { migrations: MIGRATIONS, readonly: true }), /start the service once/)
      const reader = await openDb<Schema>(db.url, { migrations: MIGRATIONS.slice(0, 1), readonly: true })
      const count = reader.prepare(sql<{ n: number }>`select count(*) as n from item`)
      assert.equal((await reader.get(count, []))!.n, 1)
      await db.kysely.insertInto('item').values({ id: 2, name: 'b', size: 1, body: null, note: null }).execute()
      assert.equal((await reader.get(count, []))!.n, 2)
      await assert.rejects(async () => reader.kysely.deleteFrom('item').execute(), /for reading only/)
      await assert.rejects(async () => reader.transaction(() => {}), /for reading only/)
      await reader.close()
      await db.close()
    })
  })
}

describe('SQLite alone', () => {
  const open = (url = ':memory:') => openDb<Schema>(url, { migrations: MIGRATIONS }) as Promise<SqliteDb<Schema>>

  test('synchronous transactions: kept at once, undone on a throw, and no promises', async () => {
    const db = await open()
    const q = statements(db)
    const hooks: string[] = []
    const size = db.transactionSync(tx => {
      tx.run(q.put, [1, 'a', 5, null])
      tx.onCommit(() => hooks.push('kept'))
      return tx.get(q.byId, [1])!.size
    })
    assert.equal(size, 5)
    assert.deepEqual(hooks, ['kept'])
    assert.equal(db.getSync(q.count, [])!.n, 1)
    assert.throws(() => {
      db.transactionSync(tx => {
        tx.run(q.put, [2, 'b', 5, null])
        throw new Error('no')
      })
    }, /^Error: no$/)
    assert.throws(() => db.transactionSync(async tx => tx.run(q.put, [2, 'b', 5, null])), /cannot wait for a promise/)
    await assert.rejects(
      db.transactionGrouped(async tx => tx.run(q.put, [2, 'b', 5, null])),
      /cannot wait for a promise/,
    )
    assert.throws(() => db.transactionSync(() => db.transactionSync(() => 1)), /under way/)
    assert.equal(db.getSync(q.count, [])!.n, 1)
    assert.throws(() => db.getSync(q.grow, [1, 1]), /not a select/)
    db.transactionSync(tx => {
      assert.throws(() => {
        tx.savepoint(() => {
          tx.run(q.put, [3, 'c', 5, null])
          throw new Error('inner')
        })
      }, /inner/)
      tx.savepoint(() => tx.run(q.put, [4, 'd', 5, null]))
    })
    assert.deepEqual(db.allSync(q.names, []), [{ name: 'a' }, { name: 'd' }])
    await db.close()
  })

  test('a synchronous transaction never runs inside a pending one, and a read never sees half of one', async () => {
    const db = await open()
    const q = statements(db)
    const wrote = Promise.withResolvers<void>()
    const go = Promise.withResolvers<void>()
    const pending = db.transaction(async tx => {
      await tx.run(q.put, [1, 'a', 1, null])
      wrote.resolve()
      await go.promise
    })
    await wrote.promise
    assert.throws(() => db.transactionSync(tx => tx.run(q.put, [2, 'b', 1, null])), /use transactionGrouped/)
    assert.equal(db.getSync(q.count, [])!.n, 0)
    const order: string[] = []
    const grouped = db.transactionGrouped(tx => {
      order.push('grouped')
      return tx.get(q.count, [])!.n
    })
    await sleep(5)
    assert.deepEqual(order, [])
    go.resolve()
    await pending
    assert.equal(await grouped, 1)
    db.transactionSync(tx => tx.run(q.put, [2, 'b', 1, null]))
    assert.equal(db.getSync(q.count, [])!.n, 2)
    await db.close()
  })

  test('transactions that wait together share a commit, and one that fails takes nobody along', async () => {
    const db = await open()
    const q = statements(db)
    const results = await Promise.allSettled(
      Array.from({ length: 20 }, (_, i) =>
        i % 2
          ? db.transactionGrouped(tx => {
              tx.run(q.put, [i, `n${i}`, 0, null])
              if (i === 7) throw new Error('seven')
            })
          : db.transaction(async tx => {
              await tx.run(q.put, [i, `n${i}`, 0, null])
              if (i === 8) throw new Error('eight')
            }),
      ),
    )
    assert.deepEqual(
      results.map(result => result.status === 'fulfilled'),
      Array.from({ length: 20 }, (_, i) => i !== 7 && i !== 8),
    )
    assert.equal(db.getSync(q.count, [])!.n, 18)
    await db.close()
  })

  test('a commit that fails fails everyone in it', async () => {
    const db = await open()
    const q = statements(db)
    await sql`create table child (item integer references item (id) deferrable initially deferred)`.execute(db.kysely)
    const orphan = db.prepare((item: number) => sql`insert into child values (${item})`)
    const kept: string[] = []
    const results = await Promise.allSettled([
      db.transaction(async tx => {
        await tx.run(q.put, [1, 'a', 0, null])
        tx.onCommit(() => kept.push('hook'))
      }),
      db.transactionGrouped(tx => tx.run(orphan, [99])),
    ])
    assert.deepEqual(
      results.map(result => result.status),
      ['rejected', 'rejected'],
    )
    assert.deepEqual(kept, [])
    assert.equal(db.getSync(q.count, [])!.n, 0)
    assert.equal(await db.run(q.put, [1, 'a', 0, null]), 1)
    await db.close()
  })

  test('another process that holds the lock makes the database unavailable, not the process stuck for ever', async t => {
    const folder = await mkdtemp(join(tmpdir(), 'millisky-test-'))
    t.after(() => rm(folder, { recursive: true, force: true }))
    const db = await open(join(folder, 'deep', 'er', 'a.sqlite'))
    const other = await open(`sqlite=${join(folder, 'deep', 'er', 'a.sqlite')}`)
    const q = statements(db)
    await other.kysely.executeQuery(sql`pragma busy_timeout = 0`.compile(other.kysely)).catch(() => {})
    db.transactionSync(() => {
      assert.throws(() => other.transactionSync(() => 1), Unavailable)
    })
    await db.run(q.put, [1, 'a', 0, null])
    await db.close()
    await other.close()
  })

  test(':memory: is private, survives connections, and leaves nothing behind', async () => {
    const one = await open('sqlite::memory:')
    const two = await open('sqlite://:memory:')
    await one.run(statements(one).put, [1, 'a', 0, null])
    assert.equal(two.getSync(statements(two).count, [])!.n, 0)
    const folder = dirname(one.path)
    assert.ok(existsSync(folder))
    await one.close()
    await two.close()
    assert.ok(!existsSync(folder))
  })

  test('a URL of something else is refused without showing it', async () => {
    await assert.rejects(open('mysql://user:secret@host/db'), error => !String(error).includes('secret'))
  })
})
