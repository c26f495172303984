import assert from 'node:assert/strict'
import { test } from 'node:test'
import { createSlab } from './slab.ts'

test('byte strings of a slab do not overlap, and what is too large has memory of its own', () => {
  const allocate = createSlab(64)
  const lengths = [8, 0, 1, 8, 9, 8, 8, 8, 8, 8, 8, 8, 64, 3]
  const made = lengths.map(allocate)
  for (const [i, bytes] of made.entries()) {
    assert.equal(bytes.length, lengths[i])
    assert.ok(
      bytes.every(byte => byte === 0),
      'zeroed, and nobody wrote into it',
    )
    bytes.fill(i + 1)
  }
  for (const [i, bytes] of made.entries()) assert.ok(bytes.every(byte => byte === i + 1))
  assert.equal(made[0]!.buffer, made[2]!.buffer)
  assert.equal(made[4]!.buffer.byteLength, 9)
})
