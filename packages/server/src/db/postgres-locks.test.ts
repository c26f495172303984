import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { setTimeout as wait } from 'node:timers/promises'
import { Unavailable } from '@millisky/core/errors'
import { Lanes } from '../lanes.ts'
import { createLocks, type NamedLocks } from './postgres-locks.ts'
import { testDatabases } from './testing.ts'

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

describe('locks by name', { skip: postgres.skip }, () => {
  test('lanes of two processes run one task of a key at a time, and each its turn', async t => {
    const [one, two] = await openTwo(t)
    const lanes = [one, two].map(locks => new Lanes({ hold: name => locks.acquire(name) }))
    const running = new Map<string, number>()
    const order: number[] = []
    const task = (key: string, which: number) => async () => {
      running.set(key, (running.get(key) ?? 0) + 1)
      assert.equal(running.get(key), 1)
      await wait(1)
      if (key === 'a') order.push(which)
      running.set(key, 0)
    }
    // Both know the database, and have waited there once.
    await Promise.all([...lanes, ...lanes].map(each => each.run('first', () => wait(20))))
    const keys = ['a', 'b', 'c']
    await Promise.all(Array.from({ length: 90 }, (_, n) => lanes[n % 2]!.run(keys[n % 3]!, task(keys[n % 3]!, n % 2))))
    assert.equal(order.length, 30)
    assert.ok(order.slice(0, 12).includes(0) && order.slice(0, 12).includes(1), 'neither waits for all of the other')
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

  test('a database that does not answer is unavailable', async () => {
    const locks = createLocks('postgres://nobody@127.0.0.1:1/none')
    await assert.rejects(locks.acquire('a'), Unavailable)
    await locks.close()
  })
})
