import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { test } from 'node:test'
import { latin1, unhex, utf8 } from './bytes.ts'
import { sha256, sha256Hex, sha256Latin1 } from './hash.ts'

test('SHA-256 in its three forms', () => {
  const abc = 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'
  assert.equal(sha256Hex(utf8('abc')), abc)
  assert.deepEqual(sha256(utf8('abc')), unhex(abc))
  assert.equal(sha256Latin1(utf8('abc')), latin1(unhex(abc)))
  for (const length of [0, 63, 64, 5000]) {
    const bytes = new Uint8Array(length).map((_, i) => i)
    assert.deepEqual(sha256(bytes), new Uint8Array(createHash('sha256').update(bytes).digest()))
  }
})

test('a view is hashed, not what it is a view of', () => {
  assert.equal(sha256Hex(utf8('xabcx').subarray(1, 4)), sha256Hex(utf8('abc')))
})
