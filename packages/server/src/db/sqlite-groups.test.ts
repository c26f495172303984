import assert from 'node:assert/strict'
import { after, before, beforeEach, describe, test } from 'node:test'
import fc from 'fast-check'
import { sql } from 'kysely'
import { isUniqueViolation, openDb, type SqliteDb, type SyncTx } from './db.ts'
import type { Migration } from './migrate.ts'
import type { Statement } from './statement.ts'

interface Schema {
  item: { id: number; name: string }
}

const MIGRATIONS: Migration[] = [
  {
    name: 'items',
    async up({ schema }, { bigint, text }) {
      const table = schema.createTable('item').addColumn('id', bigint, c => c.primaryKey())
      await table.addColumn('name', text, c => c.notNull()).execute()
    },
  },
]

describe('transactions of SQLite that share a commit', () => {
  let db: SqliteDb<Schema>
  let put: Statement<[id: number, name: string], unknown>
  let all: Statement<[], { name: string }>
  const names = () => db.allSync(all, []).map(({ name }) => name)

  before(async () => {
    db = (await openDb<Schema>(':memory:', { migrations: MIGRATIONS })) as SqliteDb<Schema>
    put = db.prepare((id: number, name: string) => db.kysely.insertInto('item').values({ id, name }))
    all = db.prepare(db.kysely.selectFrom('item').select('name').orderBy('name'))
  })
  beforeEach(async () => {
    await db.kysely.deleteFrom('item').execute()
  })
  after(() => db.close())

  test('when one fails halfway, all of them are run once more, and none of it is left', async () => {
    const runs: number[] = []
    const hooks: number[] = []
    const early = new Error('before its first change')
    const late = new Error('halfway')
    const job = (i: number, failure?: Error) =>
      db.transactionGrouped(tx => {
        runs.push(i)
        tx.onCommit(() => hooks.push(i))
        if (failure === early) throw failure
        tx.run(put, [i, `n${i}`])
        if (failure) throw failure
        return tx.all(all, []).length
      })
    const jobs = [job(0), job(1, early), job(2, late), job(3), db.run(put, [0, 'again'])]
    const results = (await Promise.allSettled(jobs)).map(r => (r.status === 'fulfilled' ? r.value : r.reason))
    assert.ok(isUniqueViolation(results.pop()))
    assert.deepEqual(results, [1, early, late, 2])
    // One that fails before it has changed anything has its answer at once.
    assert.deepEqual(runs, [0, 1, 2, 0, 2, 3])
    assert.deepEqual(hooks, [0, 3])
    assert.deepEqual(names(), ['n0', 'n3'])
  })

  test('rows that cannot be read take with them what was written for them', async () => {
    const add = db.prepare(
      (id: number) => sql<{ n: number }>`insert into item values (${id}, 'many') returning 9007199254740993 as n`,
    )
    const results = await Promise.allSettled([
      db.run(put, [1, 'one']),
      db.get(add, [2]),
      db.transactionGrouped(tx => tx.all(add, [3])),
      sql`insert into item values (4, 'four') returning 9007199254740993 as n`.execute(db.kysely),
      db.run(put, [5, 'five']),
    ])
    assert.deepEqual(
      results.map(({ status }) => status === 'fulfilled'),
      [true, false, false, false, true],
    )
    assert.deepEqual(names(), ['five', 'one'])
  })

  test('any mixture leaves what the same jobs leave one by one', async () => {
    const job = fc.record({
      key: fc.nat(7),
      fails: fc.constantFrom('early', 'late', 'never'),
      within: fc.constantFrom('transaction', 'group', 'savepoint'),
    })
    await fc.assert(
      fc.asyncProperty(fc.array(job, { maxLength: 12 }), async jobs => {
        await db.kysely.deleteFrom('item').execute()
        const body = (tx: SyncTx, i: number) => {
          const { key, fails } = jobs[i]!
          if (fails === 'early') throw new Error('early')
          tx.run(put, [100 + i, `job ${i}`])
          tx.run(put, [key, `key of ${i}`])
          if (fails === 'late') throw new Error('late')
        }
        const run = ({ within }: { within: string }, i: number): Promise<void> => {
          if (within === 'transaction') return db.transaction(async tx => body(tx as unknown as SyncTx, i))
          if (within === 'group') return db.transactionGrouped(tx => body(tx, i))
          return db.transactionGrouped(tx => {
            tx.run(put, [200 + i, `outside ${i}`])
            try {
              tx.savepoint(() => body(tx, i))
            } catch {}
          })
        }
        const results = await Promise.allSettled(jobs.map(run))
        const taken = new Set<number>()
        const expected: string[] = []
        const wentWell = jobs.map(({ key, fails, within }, i) => {
          const isFine = fails === 'never' && !taken.has(key)
          if (within === 'savepoint') expected.push(`outside ${i}`)
          if (isFine) {
            taken.add(key)
            expected.push(`job ${i}`, `key of ${i}`)
          }
          return isFine || within === 'savepoint'
        })
        assert.deepEqual(
          results.map(({ status }) => status === 'fulfilled'),
          wentWell,
        )
        assert.deepEqual(names(), expected.sort())
      }),
      { numRuns: 100 },
    )
  })
})
