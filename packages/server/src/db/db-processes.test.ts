/** What only shows with more than one process, thread or connection at work. */
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { Worker } from 'node:worker_threads'
import { sql } from 'kysely'
import { type Db, openDb, type PostgresDb } from './db.ts'
import type { Migration } from './migrate.ts'
import { testDatabases } from './testing.ts'

interface Schema {
  item: { id: number; size: number }
}

const MIGRATIONS: Migration[] = [
  {
    name: 'items',
    async up(schema, column) {
      await schema.schema
        .createTable('item')
        .addColumn('id', column.bigint, c => c.primaryKey())
        .addColumn('size', column.bigint, c => c.notNull())
        .execute()
    },
  },
  {
    name: 'first items',
    async up(schema) {
      // Long enough for the others to arrive meanwhile.
      await sleep(50)
      await sql`insert into item values (1, 0), (2, 0)`.execute(schema)
    },
  },
]

const DB = JSON.stringify(join(import.meta.dirname, 'db.ts'))
/** Opens the database with the migrations above, in a process or thread of its own, and says how many items there are. */
const PROGRAM = (url: string, readonly: boolean) => `
  import { openDb } from ${DB}
  import { sql } from 'kysely'
  const migrations = [
    { name: 'items', up: s => sql\`create table item (id bigint primary key, size bigint not null)\`.execute(s) },
    { name: 'first items', up: s => sql\`insert into item values (1, 0), (2, 0)\`.execute(s) },
  ]
  const db = await openDb(${JSON.stringify(url)}, { migrations, readonly: ${readonly} })
  const count = db.prepare(sql\`select count(*) as n from item\`)
  export const found = (await db.get(count, [])).n
  await db.close()
`

for (const { name, skip, url } of testDatabases()) {
  describe(`several at a database: ${name}`, { skip }, () => {
    test('processes that start at once migrate it once', async t => {
      const where = await url(t)
      const run = () =>
        promisify(execFile)(
          process.execPath,
          ['--input-type=module', '-e', `${PROGRAM(where, false)}; console.log(found)`],
          {
            cwd: import.meta.dirname,
          },
        )
      const results = await Promise.all([run(), run(), run()])
      for (const { stdout, stderr } of results) {
        assert.equal(stderr, '')
        assert.equal(stdout, '2\n')
      }
    })

    test('a worker reads while the main thread has a transaction open', async t => {
      const where = await url(t)
      const db = await openDb<Schema>(where, { migrations: MIGRATIONS })
      const found = await db.transaction(async tx => {
        await tx.kysely.insertInto('item').values({ id: 3, size: 0 }).execute()
        const source = `${PROGRAM(db.url, true)}; import { parentPort } from 'node:worker_threads'; parentPort.postMessage(found)`
        const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(inFolder(source))}`))
        return await new Promise((resolve, reject) => {
          worker.once('message', resolve)
          worker.once('error', reject)
        })
      })
      assert.equal(found, 2)
      await db.close()
    })
  })
}

/** A data URL has no folder to resolve packages from. */
function inFolder(source: string): string {
  return source
    .replace(DB, JSON.stringify(new URL('db.ts', import.meta.url).href))
    .replace("'kysely'", JSON.stringify(import.meta.resolve('kysely')))
}

const postgres = testDatabases().find(({ name }) => name === 'postgres')!

describe('PostgreSQL alone', { skip: postgres.skip }, () => {
  const withDb =
    (fn: (db: PostgresDb<Schema>) => Promise<void>) => async (t: { after(fn: () => Promise<void>): void }) => {
      const db = (await openDb<Schema>(await postgres.url(t), { migrations: MIGRATIONS })) as PostgresDb<Schema>
      try {
        await fn(db)
      } finally {
        await db.close()
      }
    }
  const grow = (on: Pick<Db<Schema>, 'kysely'>, id: number) =>
    on.kysely
      .updateTable('item')
      .set(eb => ({ size: eb('size', '+', 1) }))
      .where('id', '=', id)
      .execute()

  test(
    'a deadlock is tried again, and its hooks run once',
    withDb(async db => {
      const attempts: number[] = []
      const hooks: number[] = []
      const both = Promise.withResolvers<void>()
      let arrived = 0
      const crossing = (first: number, second: number) =>
        db.transaction(async tx => {
          attempts.push(first)
          tx.onCommit(() => hooks.push(first))
          await grow(tx, first)
          if (++arrived === 2) both.resolve()
          await both.promise
          await grow(tx, second)
        })
      await Promise.all([crossing(1, 2), crossing(2, 1)])
      const sizes = await db.kysely.selectFrom('item').select('size').execute()
      assert.deepEqual(sizes, [{ size: 2 }, { size: 2 }])
      assert.equal(attempts.length, 3)
      assert.deepEqual(hooks.toSorted(), [1, 2])
    }),
  )

  test(
    'a serialization failure is tried again',
    withDb(async db => {
      let attempts = 0
      const [read, wrote] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()]
      const slow = db.transaction(
        async tx => {
          attempts++
          const { size } = await tx.kysely
            .selectFrom('item')
            .select('size')
            .where('id', '=', 1)
            .executeTakeFirstOrThrow()
          read.resolve()
          await wrote.promise
          await tx.kysely
            .updateTable('item')
            .set({ size: size + 10 })
            .where('id', '=', 1)
            .execute()
        },
        { isolation: 'repeatable read' },
      )
      await read.promise
      await grow(db, 1)
      wrote.resolve()
      await slow
      assert.equal(attempts, 2)
      assert.deepEqual(await db.kysely.selectFrom('item').select('size').where('id', '=', 1).execute(), [{ size: 11 }])
    }),
  )

  test(
    'a transaction that goes on after a failed statement is not said to be kept',
    withDb(async db => {
      const lost = db.transaction(async tx => {
        await grow(tx, 1)
        await sql`select 1 / 0`.execute(tx.kysely).catch(() => {})
        tx.onCommit(() => assert.fail('not kept'))
      })
      await assert.rejects(lost, /nothing was kept/)
      assert.deepEqual(await db.kysely.selectFrom('item').select('size').execute(), [{ size: 0 }, { size: 0 }])
    }),
  )

  test(
    'notices are heard, also after the connection was lost',
    withDb(async db => {
      const bell = { rung: 0, next: Promise.withResolvers<void>() }
      const heard = async (count: number) => {
        while (bell.rung < count) await bell.next.promise
      }
      const channel = `Some channel ${process.pid}`
      const stop = await db.listen(channel, () => {
        bell.rung++
        bell.next.resolve()
        bell.next = Promise.withResolvers()
      })
      const notify = () => sql`select pg_notify(${channel}, '')`.execute(db.kysely)
      await notify()
      await heard(1)
      await sql`select pg_terminate_backend(pid) from pg_stat_activity
        where query = ${`listen "${channel}"`}`.execute(db.kysely)
      // Comes back, and says that something may have been missed.
      await heard(2)
      await notify()
      await heard(3)
      await stop()
      await notify()
      await sleep(20)
      assert.equal(bell.rung, 3)
    }),
  )

  test(
    'a connection lost in the middle is Unavailable, and the next one works',
    withDb(async db => {
      const lost = db.transaction(async tx => {
        await sql`select pg_terminate_backend(pg_backend_pid())`.execute(tx.kysely)
      })
      await assert.rejects(lost, { name: 'Unavailable', status: 503 })
      assert.equal((await db.kysely.selectFrom('item').select('id').execute()).length, 2)
    }),
  )

  test('a server that is not there is Unavailable', async () => {
    await assert.rejects(openDb('postgres://nobody:secret@127.0.0.1:1/x', { migrations: [] }), error => {
      assert.equal((error as Error).name, 'Unavailable')
      return !String(error).includes('secret')
    })
  })
})
