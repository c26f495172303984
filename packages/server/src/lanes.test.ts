import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import { Unavailable } from '@millisky/core/errors'
import fc from 'fast-check'
import { Lanes } from './lanes.ts'

test('one key runs in order, one at a time', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.tuple(fc.integer({ min: 0, max: 3 }), fc.integer({ min: 0, max: 4 })), { maxLength: 40 }),
      async tasks => {
        const lanes = new Lanes()
        const running = new Map<number, number>()
        const order = new Map<number, number[]>()
        const results = tasks.map(([key, turns], i) =>
          lanes.run(`k${key}`, async () => {
            assert.ok(!running.has(key))
            running.set(key, i)
            order.set(key, [...(order.get(key) ?? []), i])
            for (let n = 0; n < turns; n++) await turn()
            running.delete(key)
            if (turns === 3) throw new Error(`task ${i}`)
            return i
          }),
        )
        const settled = await Promise.allSettled(results)
        for (const [i, result] of settled.entries()) {
          assert.equal(result.status, tasks[i]![1] === 3 ? 'rejected' : 'fulfilled')
          if (result.status === 'fulfilled') assert.equal(result.value, i)
        }
        for (const seen of order.values())
          assert.deepEqual(
            seen,
            seen.toSorted((a, b) => a - b),
          )
        await lanes.idle()
        assert.equal(lanes.busy, 0)
        assert.equal(lanes.waiting, 0)
      },
    ),
    { numRuns: 60 },
  )
})

test('a slow key holds up no other', async () => {
  const lanes = new Lanes()
  const gate = Promise.withResolvers<string>()
  const slow = lanes.run('a', () => gate.promise)
  assert.equal(await lanes.run('b', () => 'b'), 'b')
  gate.resolve('a')
  assert.equal(await slow, 'a')
})

test('a free lane starts at once, and is gone when it is done', async () => {
  const lanes = new Lanes()
  let started = false
  const done = lanes.run('a', () => {
    started = true
    return 7
  })
  assert.ok(started)
  assert.equal(lanes.busy, 1)
  assert.equal(await done, 7)
  await lanes.idle()
  assert.equal(lanes.busy, 0)
})

test('a full lane and full lanes refuse without calling, and take again later', async () => {
  const lanes = new Lanes({ perKeyMax: 2, waitingMax: 3 })
  const gate = Promise.withResolvers<void>()
  let calls = 0
  const task = () => {
    calls++
    return gate.promise
  }
  const accepted = [lanes.run('a', task), lanes.run('a', task), lanes.run('a', task)]
  await assert.rejects(
    lanes.run('a', task),
    (error: Unavailable) => error instanceof Unavailable && error.status === 503,
  )
  accepted.push(lanes.run('b', task), lanes.run('b', task))
  assert.equal(lanes.waiting, 3)
  await assert.rejects(lanes.run('b', task), Unavailable)
  // A free lane needs no place in a queue.
  accepted.push(lanes.run('c', task))
  assert.equal(calls, 3)
  gate.resolve()
  await Promise.all(accepted)
  assert.equal(calls, 6)
  assert.equal(await lanes.run('a', () => 1), 1)
})

test('idle waits for what is waiting too', async () => {
  const lanes = new Lanes()
  await lanes.idle()
  let done = 0
  for (let i = 0; i < 5; i++) {
    void lanes.run('a', async () => {
      await turn()
      done++
    })
  }
  await lanes.idle()
  assert.equal(done, 5)
})
