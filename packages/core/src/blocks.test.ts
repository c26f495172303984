import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Blocks, MissingBlock, overlay } from './blocks.ts'
import { Cid } from './cid.ts'

const block = (...bytes: number[]) => ({ cid: Cid.ofRaw(Uint8Array.from(bytes)), bytes: Uint8Array.from(bytes) })

test('a set of blocks, counted in blocks and bytes', () => {
  const [a, b] = [block(1), block(2, 2)]
  const blocks = new Blocks([a, b, block(1)])
  assert.equal(blocks.size, 2)
  assert.equal(blocks.byteSize, 3)
  assert.equal(blocks.get(a.cid), a.bytes)
  assert.equal(blocks.get(Cid.fromBytes(b.cid.bytes.slice())), b.bytes)
  assert.deepEqual([...blocks], [a, b])
  assert.equal(blocks.delete(a.cid), true)
  assert.equal(blocks.delete(a.cid), false)
  assert.equal(blocks.has(a.cid), false)
  assert.equal(blocks.get(a.cid), undefined)
  assert.equal(blocks.byteSize, 2)
  assert.equal(blocks.add(a).add(a).byteSize, 3)
})

test('overlay looks above before below', () => {
  const [a, b, c] = [block(1), block(2), block(3)]
  const above = { cid: b.cid, bytes: Uint8Array.of(2) }
  const source = overlay(new Blocks([above]), new Blocks([a, b]))
  assert.equal(source.get(b.cid), above.bytes)
  assert.equal(source.get(a.cid), a.bytes)
  assert.equal(source.get(c.cid), undefined)
})

test('a missing block says which', () => {
  const { cid } = block(1)
  const error = new MissingBlock(cid)
  assert.equal(error.cid, cid)
  assert.match(error.message, new RegExp(String(cid)))
})
