import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { Malformed } from './errors.ts'
import { asTid, isTid, type Tid } from './syntax.ts'
import { decodeTid, encodeTid, TID_MICROS_MAX, TidClock } from './tid.ts'

const micros = fc.maxSafeNat()
const clockId = fc.integer({ min: 0, max: 1023 })

/** The specification's own words in big integers: one 64-bit number, five bits a character. */
function slowEncode(time: number, clock: number): string {
  let n = (BigInt(time) << 10n) | BigInt(clock)
  let text = ''
  for (let i = 0; i < 13; i++, n >>= 5n) text = '234567abcdefghijklmnopqrstuvwxyz'[Number(n & 31n)] + text
  return text
}

test('a TID is what the specification says, and reads back', () => {
  fc.assert(
    fc.property(micros, clockId, (time, clock) => {
      const tid = encodeTid(time, clock)
      assert.equal(tid, slowEncode(time, clock))
      assert.ok(isTid(tid))
      assert.deepEqual(decodeTid(tid), { micros: time, clockId: clock })
    }),
  )
  assert.equal(encodeTid(0, 0), '2222222222222')
  assert.deepEqual(decodeTid(asTid('3jzfcijpj2z2a')), { micros: 1688137381887007, clockId: 6 })
  assert.equal(encodeTid(TID_MICROS_MAX, 1023), 'bzzzzzzzzzzzz')
})

test('TIDs sort by time, then by clock', () => {
  fc.assert(
    fc.property(micros, clockId, micros, clockId, (t1, c1, t2, c2) => {
      const order = t1 - t2 || c1 - c2
      const a = encodeTid(t1, c1)
      const b = encodeTid(t2, c2)
      assert.equal(a < b ? -1 : a > b ? 1 : 0, Math.sign(order))
    }),
  )
})

test('every TID text decodes without an exception', () => {
  fc.assert(
    fc.property(fc.stringMatching(/^[2-7a-j][2-7a-z]{12}$/), text => {
      const { micros: time, clockId: clock } = decodeTid(asTid(text))
      assert.ok(time >= 0 && time <= 2 ** 54)
      if (time <= TID_MICROS_MAX) assert.equal(encodeTid(time, clock), text)
    }),
  )
})

test('times and clock ids out of range are a bug of the caller', () => {
  for (const time of [-1, 0.5, Number.NaN, 2 ** 53]) assert.throws(() => encodeTid(time, 0), RangeError)
  for (const clock of [-1, 1024, 0.5]) assert.throws(() => encodeTid(0, clock), RangeError)
})

test('a clock strictly increases, whatever the wall clock does', () => {
  fc.assert(
    fc.property(fc.array(fc.double({ min: 0, max: 4e12, noNaN: true }), { minLength: 1 }), clockId, (times, clock) => {
      let now = 0
      const tids = new TidClock({ now: () => now, clockId: clock })
      let last = ''
      for (const time of times) {
        now = time
        for (let i = 0; i < 3; i++) {
          const tid: Tid = tids.next()
          assert.ok(tid > last)
          assert.ok(decodeTid(tid).micros >= Math.floor(time * 1000))
          last = tid
        }
      }
    }),
  )
})

test('a clock passes a given TID, and is not dragged along by one from the future', () => {
  fc.assert(
    fc.property(
      fc.nat({ max: 4e12 }),
      fc.integer({ min: 0, max: 2 ** 53 - 2 }),
      clockId,
      clockId,
      (now, time, a, b) => {
        const tids = new TidClock({ now: () => now, clockId: a })
        const after = encodeTid(time, b)
        assert.ok(tids.next(after) > after)
        assert.ok(decodeTid(tids.next()).micros <= now * 1000 + 2)
      },
    ),
  )
})

test('a clock starts from the time it is given', () => {
  const tids = new TidClock({ now: () => 1_700_000_000_000.5, clockId: 7 })
  assert.deepEqual(decodeTid(tids.next()), { micros: 1_700_000_000_000_500, clockId: 7 })
  assert.deepEqual(decodeTid(tids.next()), { micros: 1_700_000_000_000_501, clockId: 7 })
})

test('nothing sorts after the end of time', () => {
  const tids = new TidClock({ now: () => 0, clockId: 0 })
  assert.throws(() => tids.next(asTid('bzzzzzzzzzzzz')), Malformed)
  assert.throws(() => tids.next(asTid('jzzzzzzzzzzzz')), Malformed)
})
