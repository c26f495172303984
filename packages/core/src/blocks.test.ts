import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { type Block, Blocks, MissingBlock, overlay } from './blocks.ts'
import { Cid, CODEC_RAW } from './cid.ts'

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

test('blocks whose CIDs end alike are not mistaken for each other', () => {
  const cids = Array.from({ length: 8 }, (_, i) =>
    Cid.fromDigest(CODEC_RAW, new Uint8Array(32).fill(i >> 2, 28).fill(i, 0, 8)),
  )
  assert.equal(cids[0]!.short, cids[3]!.short)
  assert.notEqual(cids[0]!.short, cids[4]!.short)
  const step = fc.tuple(fc.constantFrom('add', 'delete'), fc.nat(7))
  fc.assert(
    fc.property(fc.array(step, { maxLength: 40 }), steps => {
      const blocks = new Blocks()
      const slow = new Map<string, Block>()
      for (const [kind, i] of steps) {
        const cid = Cid.fromBytes(cids[i]!.bytes)
        if (kind === 'delete') assert.equal(blocks.delete(cid), slow.delete(cid.key))
        else {
          const added = { cid, bytes: new Uint8Array(i) }
          blocks.add(added)
          if (!slow.has(cid.key)) slow.set(cid.key, added)
        }
        for (const cid of cids) assert.equal(blocks.get(cid), slow.get(cid.key)?.bytes)
        assert.deepEqual([...blocks], [...slow.values()])
      }
      assert.equal(
        blocks.byteSize,
        [...slow.values()].reduce((sum, { bytes }) => sum + bytes.length, 0),
      )
    }),
  )
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
