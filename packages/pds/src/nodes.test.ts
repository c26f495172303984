import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { Block } from '@millisky/core/blocks'
import { Cid } from '@millisky/core/cid'
import { NodeCache } from './nodes.ts'

const block = (n: number, size = 750): Block => {
  const bytes = new Uint8Array(size).fill(n)
  return { cid: Cid.ofCbor(bytes), bytes }
}
const keep = (cache: NodeCache, account: number, ...nodes: Block[]) => cache.apply(account, { nodes, lost: [] })

test('follows changes of an account', () => {
  const cache = new NodeCache(1_000_000)
  const [a, b, c] = [block(1), block(2), block(3)]
  cache.add(1, [a!])
  cache.apply(1, { nodes: [b!, c!], lost: [a!.cid] })
  assert.equal(cache.of(1).get(a!.cid), undefined)
  assert.deepEqual(cache.of(1).get(b!.cid), b!.bytes)
  assert.equal(cache.of(2).get(b!.cid), undefined)
  assert.equal(cache.bytes, 2_000)
  cache.forget(1)
  assert.equal(cache.bytes, 0)
})

test('forgets the accounts that were used least recently', () => {
  const cache = new NodeCache(16_000)
  for (let account = 1; account <= 16; account++) keep(cache, account, block(account))
  assert.equal(cache.bytes, 16_000)
  cache.of(1)
  keep(cache, 17, block(17))
  assert.equal(cache.of(1).size, 1)
  assert.equal(cache.of(2).size, 0)
  assert.ok(cache.bytes <= 16_000)
})

test('keeps no more memory than it counts', () => {
  const cache = new NodeCache(16_000)
  const slab = new Uint8Array(1_000_000)
  const { cid, bytes } = block(1)
  slab.set(bytes)
  keep(cache, 1, { cid, bytes: slab.subarray(0, bytes.length) })
  assert.equal(cache.of(1).get(cid)!.buffer.byteLength, bytes.length)
})

test('one account cannot take all the room', () => {
  const cache = new NodeCache(16_000)
  keep(cache, 1, block(1))
  for (let n = 2; n < 20; n++) keep(cache, 2, block(n))
  assert.equal(cache.of(1).size, 1)
  assert.ok(cache.of(2).size <= 2)
})
