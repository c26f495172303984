import assert from 'node:assert/strict'
import { test } from 'node:test'
import { equal, utf8 } from '@millisky/core/bytes'
import { Refused } from '@millisky/core/errors'
import { sha256 } from '@millisky/core/hash'
import type { FastifyRequest } from 'fastify'
import { Guesses } from './guesses.ts'

const RIGHT = sha256(utf8('right'))
const isRight = (digest: Uint8Array) => equal(digest, RIGHT)
const from = (ip: string, forwarded?: string) =>
  ({ ip, headers: forwarded === undefined ? {} : { 'x-forwarded-for': forwarded } }) as unknown as FastifyRequest

function setUp(settings: { max?: number; addressesMax?: number } = {}) {
  const clock = { now: 1_000 }
  const guesses = new Guesses({ max: 3, windowMs: 60_000, ...settings, now: () => clock.now })
  /** Seconds to wait where there is a 429. */
  const ask = (request: FastifyRequest, password: string): boolean | string => {
    try {
      return guesses.check(request, sha256(utf8(password)), isRight)
    } catch (error) {
      assert.ok(error instanceof Refused && error.error === 'RateLimitExceeded' && error.status === 429)
      return error.headers?.['retry-after'] ?? ''
    }
  }
  return { clock, guesses, ask }
}

test('who guesses waits, also when it guesses right, and nobody else does', () => {
  const { clock, ask } = setUp()
  const [guesser, admin] = [from('192.0.2.1'), from('198.51.100.7')]
  assert.deepEqual(
    ['a', 'b', 'c'].map(guess => ask(guesser, guess)),
    [false, false, false],
  )
  clock.now += 20_500
  assert.deepEqual([ask(guesser, 'd'), ask(guesser, 'right'), ask(admin, 'right')], ['40', '40', true])
  clock.now += 39_500
  assert.deepEqual([ask(guesser, 'right'), ask(guesser, 'e')], [true, false])
})

test('the same wrong password counts once, and the right one ends the counting', () => {
  const { ask } = setUp()
  const script = from('192.0.2.1')
  for (let i = 0; i < 50; i++) assert.equal(ask(script, 'old'), false)
  assert.equal(ask(script, 'older'), false)
  assert.equal(ask(script, 'right'), true)
  for (const guess of ['a', 'b', 'c']) assert.equal(ask(script, guess), false)
  assert.equal(ask(script, 'right'), '60')
})

test('addresses are those of the outside, and IPv6 is counted by its /64', () => {
  const { ask } = setUp({ max: 1 })
  // A proxy that the settings do not tell of: its last word counts, what strangers have written before does not.
  assert.equal(ask(from('127.0.0.1', '203.0.113.9, 192.0.2.1'), 'a'), false)
  assert.equal(ask(from('127.0.0.1', '203.0.113.77, 192.0.2.1'), 'right'), '60')
  for (const other of [from('127.0.0.1'), from('127.0.0.1', '203.0.113.9'), from('172.17.0.1', 'nonsense')]) {
    assert.equal(ask(other, 'right'), true)
  }
  // Who comes from outside is not believed.
  assert.equal(ask(from('198.51.100.7', '203.0.113.1'), 'a'), false)
  assert.equal(ask(from('198.51.100.7', '203.0.113.2'), 'right'), '60')
  assert.equal(ask(from('2001:db8:1:2::1'), 'a'), false)
  assert.equal(ask(from('2001:db8:1:2:3::1'), 'right'), '60')
  assert.equal(ask(from('2001:db8:1:3::1'), 'right'), true)
})

test('what is remembered is bounded', () => {
  const { guesses, ask } = setUp({ max: 1, addressesMax: 100 })
  for (let i = 0; i < 1_000; i++) ask(from(`203.0.${i >> 8}.${i & 255}`), `${i}`)
  assert.equal(guesses.size, 100)
  assert.equal(ask(from('203.0.3.231'), 'right'), '60')
  assert.equal(ask(from('203.0.0.1'), 'right'), true)
})
