import assert from 'node:assert/strict'
import { test } from 'node:test'
import { AwakeClock } from './awake.ts'

test('time goes on as usual, and stands still while nobody looks', () => {
  let now = 5_000
  const clock = new AwakeClock(() => now, 100)
  assert.equal(clock.ms, 1)
  now += 100
  assert.equal(clock.ms, 101)
  assert.equal(clock.look(), 101)
  now += 130
  assert.deepEqual([clock.ms, clock.look()], [231, 231])
  now += 60_000
  assert.deepEqual([clock.ms, clock.look(), clock.ms], [431, 431, 431])
  now += 10
  assert.equal(clock.ms, 441)
  // The machine's clock was set back.
  now -= 3_600_000
  assert.deepEqual([clock.ms, clock.look()], [431, 431])
  now += 7
  assert.equal(clock.ms, 438)
})
