import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import * as ws from 'ws'
import { emptyWire, framesOf, joinWire, scanWire, toWire, toWireBatch, wireHeaderSize } from './frame-wire.ts'

const SIZES = [0, 1, 125, 126, 127, 128, 255, 256, 65_535, 65_536, 65_537, 200_000]

/** What the package does not declare. */
const { Sender } = ws as unknown as { Sender: { frame(data: Buffer, options: object): Buffer[] } }

test('headers are those of the ws package', () => {
  for (const size of SIZES) {
    const frame = new Uint8Array(size).fill(size)
    const parts = Sender.frame(Buffer.from(frame), {
      fin: true,
      rsv1: false,
      opcode: 2,
      mask: false,
      readOnly: false,
    })
    assert.deepEqual(Buffer.from(toWire(frame)), Buffer.concat(parts))
    assert.equal(wireHeaderSize(size), toWire(frame).length - size)
  }
})

test('what is wrapped is found again, whole messages only', () => {
  fc.assert(
    fc.property(
      fc.array(fc.oneof(fc.constantFrom(...SIZES.slice(0, 10)), fc.nat(300)), { maxLength: 6 }),
      fc.nat(),
      (sizes, cut) => {
        const frames = sizes.map((size, i) => Buffer.alloc(size, i))
        const { wire, ends } = toWireBatch(frames)
        assert.deepEqual([...framesOf(wire)], frames)
        const filled = frames.map(frame => {
          const message = emptyWire(frame.length)
          message.frame.set(frame)
          return message.wire
        })
        assert.deepEqual(joinWire(filled), { wire, ends })
        assert.deepEqual([...framesOf([wire, wire])], [...frames, ...frames])
        assert.deepEqual(Buffer.concat(frames.map(toWire)), wire)
        const short = wire.subarray(0, cut % (wire.length + 1))
        let at = 0
        let found = 0
        for (;;) {
          const span = scanWire(short, at)
          if (span === null || span === 'bad') {
            assert.equal(span, null)
            break
          }
          assert.equal(span.end, ends[found])
          at = span.end
          found++
        }
        assert.equal(found, [...ends].filter(end => end <= short.length).length)
      },
    ),
    { numRuns: 100 },
  )
})

test('anything else than our own headers is bad', () => {
  const bad = [
    [0x81, 0],
    [0x02, 0],
    [0x00],
    [0x82, 0x80],
    [0x82, 126, 0, 125],
    [0x82, 127, 0, 0, 0, 0, 0, 0, 0xff, 0xff],
    [0x82, 127, 0, 0, 0, 1, 0, 0, 0, 0],
  ]
  for (const bytes of bad) assert.equal(scanWire(Uint8Array.from(bytes), 0), 'bad', String(bytes))
  assert.throws(() => [...framesOf(Uint8Array.of(0x82, 2, 1))], /byte 0/)
})
