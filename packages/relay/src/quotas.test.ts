import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import {
  AccountQuota,
  Bucket,
  EventQuota,
  GROWTH_MAX,
  growthOf,
  limitsOf,
  TRUSTED_LIMITS,
  WEIGHT_BYTES,
} from './quotas.ts'
import type { HostRecord } from './store/store.ts'

const HOUR = 3_600_000
const record = (more: Partial<HostRecord> = {}) =>
  ({
    accountLimit: null,
    perSecond: null,
    perHour: null,
    perDay: null,
    growth: 0,
    growthAt: 0,
    accounts: 0,
    ...more,
  }) as HostRecord

test('a new host has the limits that deployed relays give it', () => {
  assert.deepEqual(limitsOf(record(), 100, false), { perSecond: 50, perHour: 2_600, perDay: 21_000, accounts: 100 })
  assert.deepEqual(limitsOf(record(), 100, true), TRUSTED_LIMITS)
})

test('limits double with each growth, and those that were set stay', () => {
  const grown = limitsOf(record({ growth: 3, perHour: 7 }), 100, false)
  assert.deepEqual(grown, { perSecond: 400, perHour: 7, perDay: 168_000, accounts: 800 })
  assert.equal(limitsOf(record({ growth: 3, accountLimit: 0 }), 100, false).accounts, 0)
  assert.equal(limitsOf(record({ growth: GROWTH_MAX }), 100, false).perDay, 64 * 20_000 + 10 * 1_638_400)
})

describe('a bucket', () => {
  test('gives no more than its burst and its rate, however it is asked', () => {
    const steps = fc.array(fc.record({ ms: fc.integer({ min: -5, max: 500 }), count: fc.integer({ min: 1, max: 20 }) }))
    fc.assert(
      fc.property(steps, steps => {
        const bucket = new Bucket(50, 0.02, 1_000)
        let [now, latest, taken] = [1_000, 1_000, 0]
        for (const { ms, count } of steps) {
          now += ms
          latest = Math.max(latest, now)
          const waitMs = bucket.waitMs(now, count)
          const isTaken = bucket.take(now, count)
          if (isTaken) taken += count
          assert.equal(isTaken, waitMs === 0)
          assert.ok(taken <= 50 + (latest - 1_000) * 0.02 + 1e-6)
        }
      }),
    )
  })

  test('says how long to wait, and is right', () => {
    const bucket = new Bucket(10, 0.01, 0)
    assert.ok(bucket.take(0, 10))
    assert.equal(bucket.waitMs(0), 100)
    assert.equal(bucket.take(99), false)
    assert.equal(bucket.take(100), true)
    assert.equal(bucket.waitMs(100, 11), Number.POSITIVE_INFINITY)
  })

  test('keeps what was used when its size changes', () => {
    const bucket = new Bucket(10, 1, 0)
    bucket.take(0, 8)
    bucket.resize(100, 1, 0)
    assert.equal(bucket.left(0), 92)
    bucket.resize(5, 1, 0)
    assert.equal(bucket.left(0), 0)
  })
})

test('a host waits for the limit that is used up', () => {
  const quota = new EventQuota({ perSecond: 100, perHour: 3_000, perDay: 4_000, accounts: 1 }, 0)
  assert.equal(quota.take(0, 1_001), false)
  assert.equal(quota.take(0, 1_000), true)
  assert.deepEqual(quota.wait(0), { ms: 10, delay: 'per-second' })
  for (const now of [10_000, 20_000]) assert.equal(quota.take(now, 1_000), true)
  assert.equal(quota.wait(40_000).ms, 0)
  assert.equal(quota.take(40_000, 100), false)
  assert.equal(quota.take(HOUR, 900), true)
  assert.ok(quota.used(HOUR).day > 0.9)
  assert.equal(quota.take(HOUR + 60_000, 300), false)
  assert.equal(quota.wait(HOUR + 60_000).ms, 0)
  quota.take(HOUR + 60_000, 1)
  const used = new EventQuota({ perSecond: 100, perHour: 9, perDay: 9, accounts: 1 }, 0)
  used.take(0, 9)
  assert.deepEqual(used.wait(0), { ms: 86_400_000 / 9, delay: 'per-day' })
})

test('events that are large count for more in a second, and for no more in an hour', () => {
  const quota = new EventQuota({ perSecond: 10, perHour: 1_000, perDay: 1_000, accounts: 1 }, 0)
  assert.equal(quota.take(0, 1), true)
  quota.weigh(0, WEIGHT_BYTES - 1)
  assert.equal(quota.take(0, 1), true)
  quota.weigh(0, 108 * WEIGHT_BYTES)
  assert.deepEqual(quota.wait(0), { ms: 1_100, delay: 'per-second' })
  assert.deepEqual([quota.take(1_000, 1), quota.take(1_100, 1)], [false, true])
  assert.equal(quota.used(1_100).hour < 0.01, true)
})

test('an account has one allowance for commits and a small one for all else', () => {
  const quota = new AccountQuota(0)
  const count = (t: string) => {
    let taken = 0
    while (quota.take(t, 0)) taken++
    return taken
  }
  assert.deepEqual([count('#sync'), count('#account'), count('#commit')], [60, 0, 2_000])
  assert.equal(quota.take('#commit', 200), true)
})

test('limits grow with clean history that needs them, and only then', () => {
  const limits = limitsOf(record(), 100, false)
  const use = { limits, hour: 0, day: 0 }
  const clean = { admitted: 500, wrong: 0 }
  const ask = (more: Partial<HostRecord>, conduct = clean, now = HOUR, used = use) =>
    growthOf(record(more), conduct, used, now)
  assert.equal(ask({ accounts: 50 }), 'grow')
  assert.equal(ask({ accounts: 50 }, clean, HOUR - 1), 'wait')
  assert.equal(ask({ accounts: 49 }), 'wait')
  assert.equal(ask({ accounts: 0 }, clean, HOUR, { ...use, day: 0.5 }), 'grow')
  assert.equal(ask({ accounts: 50, growth: 3 }), 'wait')
  assert.equal(ask({ accounts: 50, growth: 3 }, clean, 24 * HOUR), 'grow')
  assert.equal(ask({ accounts: 50, growth: GROWTH_MAX }, clean, 24 * HOUR), 'wait')
  assert.equal(ask({ accounts: 50 }, { admitted: 500, wrong: 6 }), 'again')
  assert.equal(ask({ accounts: 50 }, { admitted: 500, wrong: 5 }), 'grow')
  assert.equal(ask({ accounts: 50 }, { admitted: 49, wrong: 0 }), 'wait')
})
