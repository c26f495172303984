import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { type Batch, Bell } from './log.ts'
import { type Mask, Ring } from './ring.ts'

/** One event as the slow twin keeps it; in the wire it is `size` times its seq. */
interface Plain {
  seq: number
  account: number
  size: number
}

const writes = fc.array(
  fc.array(
    fc.record({ gap: fc.integer({ min: 1, max: 3 }), account: fc.nat(3), size: fc.integer({ min: 1, max: 9 }) }),
    {
      minLength: 1,
      maxLength: 5,
    },
  ),
  { minLength: 1, maxLength: 12 },
)

function bytesOf(batch: Batch): number[] {
  return batch.wire.flatMap(part => [...part])
}

test('reads like a list of all events that is filtered and cut', () => {
  fc.assert(
    fc.property(
      writes,
      fc.integer({ min: 1, max: 200 }),
      fc.integer({ min: 1, max: 60 }),
      fc.subarray([0, 1, 2, 3]),
      (input, bytesMax, bytes, masked) => {
        const mask: Mask = { version: 1, accounts: new Set(masked) }
        const ring = new Ring(bytesMax, 10, () => mask)
        const all: Plain[] = []
        let seq = 10
        for (const write of input) {
          const after = ring.last
          const events = write.map(({ gap, account, size }) => ({ seq: (seq += gap), account, size }))
          let end = 0
          ring.push({
            after,
            seqs: Float64Array.from(events, event => event.seq),
            ends: Uint32Array.from(events, event => (end += event.size)),
            wire: Uint8Array.from(events.flatMap(event => Array(event.size).fill(event.seq))),
            accounts: Float64Array.from(events, event => event.account),
          })
          all.push(...events)
        }
        assert.equal(ring.last, seq)
        let reachable = false
        for (let after = 8; after <= seq + 1; after++) {
          const batch = ring.read(after, { bytes })
          if (batch === null) {
            // Once it reaches back to some cursor, it does to all later ones; and it always has the newest write.
            assert.ok(!reachable && after < seq)
            continue
          }
          reachable = true
          if (after >= seq) {
            assert.deepEqual(batch, { count: 0, last: after, wire: [] })
            continue
          }
          assert.ok(batch.last > after)
          const between = all.filter(event => event.seq > after && event.seq <= batch.last)
          const shown = between.filter(event => !mask.accounts.has(event.account))
          assert.equal(batch.count, shown.length)
          assert.deepEqual(
            bytesOf(batch),
            shown.flatMap(event => Array(event.size).fill(event.seq)),
          )
          assert.ok(bytesOf(batch).length <= bytes || shown.length === 1)
          if (mask.accounts.size === 0 && batch.last < seq) {
            const next = all.find(event => event.seq > batch.last)!
            assert.ok(bytesOf(batch).length + next.size > bytes, 'as much as fits')
          }
        }
        assert.ok(reachable)
        assert.ok(
          ring.bytes <= bytesMax || ring.read(all.at(-1 - input.at(-1)!.length)?.seq ?? 10, { bytes: 1e9 }) !== null,
        )
        assert.throws(() =>
          ring.push({
            after: seq - 1,
            seqs: new Float64Array(1),
            ends: new Uint32Array(1),
            wire: new Uint8Array(1),
            accounts: null,
          }),
        )
      },
    ),
    { numRuns: 300 },
  )
})

test('keeps no more than it may for long, and hands out its own buffers', () => {
  const ring = new Ring(1_000, 0)
  const wires: Uint8Array[] = []
  for (let seq = 1; seq <= 5_000; seq++) {
    const wire = new Uint8Array(100)
    wires.push(wire)
    ring.push({ after: seq - 1, seqs: Float64Array.of(seq), ends: Uint32Array.of(100), wire, accounts: null })
    assert.ok(ring.bytes <= 1_000)
  }
  const batch = ring.read(4_990, { bytes: 300 })!
  assert.deepEqual(
    batch.wire.map(part => wires.indexOf(part)),
    [4_990, 4_991, 4_992],
  )
  assert.equal(ring.read(4_989, { bytes: 1 }), null)
})

test('a bell wakes everyone who waits, and nobody twice', async () => {
  const bell = new Bell()
  bell.ring()
  let woken = 0
  const waiting = [bell.wait(), bell.wait(), bell.wait(new AbortController().signal)].map(wait =>
    wait.then(() => woken++),
  )
  await new Promise(setImmediate)
  assert.equal(woken, 0)
  bell.ring()
  await Promise.all(waiting)
  assert.equal(woken, 3)
  const stop = new AbortController()
  const aborted = bell.wait(stop.signal)
  stop.abort(new Error('enough'))
  await assert.rejects(aborted, /enough/)
  await assert.rejects(bell.wait(stop.signal), /enough/)
  bell.ring()
})
