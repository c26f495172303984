import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Slabs } from './slabs.ts'

const KIB = 1024

function keep(slabs: Slabs, length: number, fill: number) {
  const bytes = slabs.reserve(length)
  bytes.fill(fill)
  return { bytes, held: slabs.keep(length) }
}

test('stretches lie one behind the other, and what is reserved is not taken before it is kept', () => {
  const slabs = new Slabs()
  const first = keep(slabs, 100, 1)
  const wished = slabs.reserve(500)
  const second = keep(slabs, 50, 2)
  assert.equal(wished.byteOffset, second.bytes.byteOffset)
  assert.equal(second.bytes.byteOffset, first.bytes.byteOffset + 100)
  assert.equal(first.bytes.buffer, second.bytes.buffer)
  assert.ok(first.bytes.every(byte => byte === 1))
})

test('a slab is used again when all is let go, however often it was held, and not while one holds it', () => {
  const slabs = new Slabs()
  const pieces = Array.from({ length: 4 }, (_, i) => keep(slabs, 200 * KIB, i))
  assert.equal(new Set(pieces.map(({ bytes }) => bytes.buffer)).size, 4)
  const [first, second] = pieces as [(typeof pieces)[0], (typeof pieces)[0]]
  first.held.hold()
  first.held.letGo()
  second.held.letGo()
  const next = keep(slabs, 200 * KIB, 9)
  assert.equal(next.bytes.buffer, second.bytes.buffer)
  assert.ok(first.bytes.every(byte => byte === 0))
  first.held.letGo()
  assert.equal(keep(slabs, 200 * KIB, 8).bytes.buffer, first.bytes.buffer)
})

test('what is let go while it is written to is used again only behind what was kept', () => {
  const slabs = new Slabs()
  const first = keep(slabs, 100 * KIB, 1)
  first.held.letGo()
  const second = keep(slabs, 100 * KIB, 2)
  assert.equal(second.bytes.byteOffset, first.bytes.byteOffset + 100 * KIB)
  second.held.letGo()
  // Full, and nobody holds it.
  const third = keep(slabs, 100 * KIB, 3)
  assert.notEqual(third.bytes.buffer, first.bytes.buffer)
  assert.equal(keep(slabs, 250 * KIB, 4).bytes.buffer, first.bytes.buffer)
})

test('large stretches have slabs of their size, which smaller ones may use later', () => {
  const slabs = new Slabs()
  const large = keep(slabs, 3_000 * KIB, 1)
  large.held.letGo()
  const small = keep(slabs, 256 * KIB, 2)
  assert.equal(small.bytes.length, 256 * KIB)
  const again = keep(slabs, 2_900 * KIB, 3)
  assert.equal(again.bytes.buffer, large.bytes.buffer)
})
