import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { setTimeout as wait } from 'node:timers/promises'
import { Unavailable } from '@millisky/core/errors'
import pg from 'pg'
import { Lanes } from '../lanes.ts'
import { until } from '../testing-until.ts'
import { createLocks, type NamedLocks } from './postgres-locks.ts'
import { OTHER_CONNECTIONS, testDatabases } from './testing.ts'

interface Cleanup {
  after(fn: () => Promise<void>): void
}

const postgres = testDatabases().find(({ name }) => name === 'postgres')!

async function openTwo(t: Cleanup): Promise<[NamedLocks, NamedLocks]> {
  const ends: (() => Promise<void>)[] = []
  const url = await postgres.url({ after: fn => ends.push(fn) })
  const locks = [createLocks(url), createLocks(url)] as const
  t.after(async () => {
    for (const each of locks) await each.close()
    for (const end of ends) await end()
  })
  return [...locks]
}

/** A database, and a connection to look at it. */
async function openAdmin(t: Cleanup): Promise<{ url: string; admin: pg.Client }> {
  const ends: (() => Promise<void>)[] = []
  const url = await postgres.url({ after: fn => ends.push(fn) })
  const admin = new pg.Client(url)
  await admin.connect()
  t.after(async () => {
    await admin.end()
    for (const end of ends) await end()
  })
  return { url, admin }
}

describe('locks by name', { skip: postgres.skip }, () => {
  test('lanes of two processes run one task of a key at a time', async t => {
    const [one, two] = await openTwo(t)
    const lanes = [one, two].map(locks => new Lanes({ hold: name => locks.acquire(name) }))
    const running = new Map<string, number>()
    let done = 0
    const task = (key: string) => async () => {
      running.set(key, (running.get(key) ?? 0) + 1)
      assert.equal(running.get(key), 1)
      await wait(1)
      done++
      running.set(key, 0)
    }
    const keys = ['a', 'b', 'c']
    await Promise.all(Array.from({ length: 90 }, (_, n) => lanes[n % 2]!.run(keys[n % 3]!, task(keys[n % 3]!))))
    assert.equal(done, 90)
  })

  test('who waits in another process comes before who asks later', async t => {
    const { url, admin } = await openAdmin(t)
    const locks = [createLocks(url), createLocks(url)] as const
    const [one, two] = locks.map(each => new Lanes({ hold: name => each.acquire(name) })) as [Lanes, Lanes]
    const order: string[] = []
    const [begun, gate] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()]
    const first = one.run('a', () => {
      begun.resolve()
      return gate.promise
    })
    await begun.promise
    const others = two.run('a', () => void order.push('two'))
    const waiters = `select 1 from pg_locks where locktype = 'advisory' and not granted
      and pid in (select pid from pg_stat_activity where ${OTHER_CONNECTIONS})`
    await until('it waits', async () => (await admin.query(waiters)).rowCount === 1)
    const later = one.run('a', () => void order.push('one'))
    gate.resolve()
    await Promise.all([first, others, later])
    assert.deepEqual(order, ['two', 'one'])
    for (const each of locks) await each.close()
  })

  test('a task that fails lets go', async t => {
    const [one, two] = await openTwo(t)
    const [first, second] = [one, two].map(locks => new Lanes({ hold: name => locks.acquire(name) }))
    await assert.rejects(
      first!.run('a', () => {
        throw new Error('x')
      }),
      /x/,
    )
    assert.equal(await second!.run('a', () => 1), 1)
  })

  test('who is gone holds nothing', async t => {
    const [one, two] = await openTwo(t)
    await one.acquire('a')
    let isHeld = false
    const waiting = two.acquire('a').then(release => {
      isHeld = true
      release()
    })
    await wait(30)
    assert.equal(isHeld, false)
    await one.close()
    await waiting
  })

  test('connections that are lost are replaced by one, and none is left open', async t => {
    const { url, admin } = await openAdmin(t)
    const locks = createLocks(url)
    const open = async () =>
      (await admin.query(`select pid from pg_stat_activity where ${OTHER_CONNECTIONS}`)).rowCount ?? 0
    let stop = false
    // Some are always about to ask, so that a new connection is made before the old one is gone for good.
    const asking = Array.from({ length: 8 }, async (_, n) => {
      while (!stop) {
        await locks.acquire(`key ${n}`).then(
          release => release(),
          error => assert.ok(error instanceof Unavailable),
        )
        await new Promise(setImmediate)
      }
    })
    for (let cut = 0; cut < 10; cut++) {
      await until('there is a connection', open)
      await admin.query(`select pg_terminate_backend(pid) from pg_stat_activity where ${OTHER_CONNECTIONS}`)
    }
    const works = () =>
      locks.acquire('after').then(
        release => {
          release()
          return true
        },
        () => false,
      )
    await until('it works again', works)
    stop = true
    await Promise.all(asking)
    await locks.close()
    await until('none is left', async () => (await open()) === 0)
  })

  test('a database that does not answer is unavailable', async () => {
    const locks = createLocks('postgres://nobody@127.0.0.1:1/none')
    await assert.rejects(locks.acquire('a'), Unavailable)
    await locks.close()
  })
})
