import assert from 'node:assert/strict'
import { test } from 'node:test'
import { utf8 } from '@millisky/core/bytes'
import { Cid, CODEC_CBOR } from '@millisky/core/cid'
import { BlockPlaces } from './block-places.ts'

test('places are what a map would hold, however many there are', () => {
  const places = new BlockPlaces()
  const twin = new Map<string, number>()
  const cids = Array.from({ length: 5_000 }, (_, i) => Cid.ofRaw(utf8(String(i % 4_000))))
  for (const [i, cid] of cids.entries()) {
    const place = i * 2 ** 33
    assert.equal(places.add(cid, place), !twin.has(cid.key))
    if (!twin.has(cid.key)) twin.set(cid.key, place)
  }
  assert.equal(places.size, 4_000)
  for (const cid of cids) assert.equal(places.get(cid), twin.get(cid.key))
  for (let i = 0; i < 1_000; i++) assert.equal(places.get(Cid.ofRaw(utf8(`other ${i}`))), undefined)
})

test('hashes that begin and end alike stay apart or are known once, and the table never runs full', () => {
  const places = new BlockPlaces()
  const cidOf = (i: number, end: number) => {
    const digest = new Uint8Array(32)
    new DataView(digest.buffer).setUint32(24, i)
    new DataView(digest.buffer).setUint32(28, end)
    return Cid.fromDigest(CODEC_CBOR, digest)
  }
  for (let i = 0; i < 2_000; i++) assert.equal(places.add(cidOf(i, 7), i), true)
  for (let i = 0; i < 2_000; i++) assert.equal(places.get(cidOf(i, 7)), i)
  const other = new Uint8Array(32).fill(9, 0, 24)
  new DataView(other.buffer).setUint32(28, 7)
  assert.equal(places.add(Cid.fromDigest(CODEC_CBOR, other), 5), false, 'the same eight bytes')
})
