import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { test } from 'node:test'
import { inspect } from 'node:util'
import { isCid } from '@atproto/lex-data'
import fc from 'fast-check'
import { CID } from 'multiformats/cid'
import { base58, concat, equal, unhex } from './bytes.ts'
import { Cid, CODEC_CBOR, CODEC_RAW, cidEnd, hashMatches, isCidSyntax } from './cid.ts'
import { Malformed } from './errors.ts'
import { sha256 } from './hash.ts'
import { anyCid, runs } from './testing-values.ts'

const EMPTY_NODE = unhex('a2616580616cf6')
const EMPTY_NODE_CID = 'bafyreie5737gdxlw5i64vzichcalba3z2v5n6icifvx5xytvske7mr3hpm'
const refuses = (fn: () => unknown) => assert.throws(fn, Malformed)

test('known blocks have their known CIDs', () => {
  assert.equal(String(Cid.ofCbor(EMPTY_NODE)), EMPTY_NODE_CID)
  assert.equal(String(Cid.ofRaw(new Uint8Array())), 'bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku')
})

test('all ways to the same CID end in the same', () => {
  const cids = [
    Cid.ofCbor(EMPTY_NODE),
    Cid.parse(EMPTY_NODE_CID),
    Cid.fromBytes(Cid.ofCbor(EMPTY_NODE).bytes),
    Cid.fromDigest(CODEC_CBOR, sha256(EMPTY_NODE)),
    Cid.view(concat([new Uint8Array(5), Cid.ofCbor(EMPTY_NODE).bytes, new Uint8Array(3)]), 5, 36),
    Cid.view(Buffer.from(concat([new Uint8Array(5), Cid.ofCbor(EMPTY_NODE).bytes])), 5, 36).detach(),
  ]
  for (const a of cids) {
    for (const b of cids) {
      assert.ok(a.equals(b))
      assert.equal(a.key, b.key)
      assert.deepEqual(a.bytes, b.bytes)
      assert.deepEqual(a, b)
    }
    assert.equal(a.toString(), EMPTY_NODE_CID)
    assert.equal(a.code, CODEC_CBOR)
    assert.equal(a.version, 1)
    assert.equal(a.length, 36)
    assert.ok(a.isBlessed && a.isCbor)
    assert.deepEqual(a.digest, sha256(EMPTY_NODE))
    assert.deepEqual(a.multihash, { code: 0x12, digest: sha256(EMPTY_NODE) })
    const copy = new Uint8Array(40)
    a.copyTo(copy, 2)
    assert.ok(equal(copy.subarray(2, 38), a.bytes))
  }
})

test('different CIDs differ, for every way to compare', () => {
  const cbor = Cid.ofCbor(EMPTY_NODE)
  const raw = Cid.ofRaw(EMPTY_NODE)
  const viewed = Cid.fromBytes(raw.bytes)
  for (const other of [raw, viewed]) {
    assert.ok(!cbor.equals(other))
    assert.ok(!Cid.fromBytes(cbor.bytes).equals(other))
    assert.notEqual(cbor.key, other.key)
    assert.throws(() => assert.deepEqual({ a: [cbor] }, { a: [other] }))
  }
  assert.ok(!cbor.equals(null) && !cbor.equals(undefined))
  assert.ok(raw.isBlessed && !raw.isCbor)
})

test('prints as what it is', () => {
  assert.match(inspect(Cid.ofCbor(EMPTY_NODE)), /bafyreie5737/)
  assert.equal(JSON.stringify({ a: Cid.ofCbor(EMPTY_NODE) }), `{"a":{"$link":"${EMPTY_NODE_CID}"}}`)
})

test('agrees with multiformats about any CID, in binary and text', () => {
  fc.assert(
    fc.property(anyCid, cid => {
      const theirs = CID.decode(cid.bytes)
      assert.equal(cid.toString(), theirs.toString())
      assert.equal(cid.code, theirs.code)
      assert.deepEqual(cid.multihash, { code: theirs.multihash.code, digest: theirs.multihash.digest })
      assert.ok(Cid.parse(cid.toString()).equals(cid))
      assert.ok(cid.equals(theirs))
      assert.deepEqual(Cid.fromBytes(cid.bytes.slice()).key, cid.key)
    }),
    runs(200),
  )
})

test("passes for a CID with the SDK's check", () => {
  assert.ok(isCid(Cid.ofCbor(EMPTY_NODE), { flavor: 'cbor' }))
  assert.ok(isCid(Cid.fromBytes(Cid.ofRaw(EMPTY_NODE).bytes), { flavor: 'raw' }))
  assert.ok(!isCid(Cid.ofRaw(EMPTY_NODE), { flavor: 'cbor' }))
})

test('foreign CIDs are kept exactly and are not blessed', () => {
  const long = Cid.fromBytes(Uint8Array.from([1, 0x71, 0x13, 64, ...new Uint8Array(64).fill(3)]))
  const short = Cid.fromBytes(Uint8Array.from([1, 0x71, 0x12, 20, ...new Uint8Array(20).fill(3)]))
  const twoByteCodec = Cid.fromBytes(Uint8Array.from([1, 0x81, 0x01, 0x12, 32, ...new Uint8Array(32)]))
  const version0 = Cid.fromBytes(Uint8Array.from([0x12, 32, ...new Uint8Array(32).fill(9)]))
  for (const cid of [long, short, twoByteCodec, version0]) {
    assert.equal(cid.isBlessed, false)
    assert.ok(Cid.parse(cid.toString()).equals(cid))
    assert.ok(cid.detach().equals(cid))
  }
  assert.equal(twoByteCodec.code, 0x81)
  assert.equal(version0.version, 0)
  assert.equal(version0.code, 0x70)
  assert.match(String(version0), /^Qm/)
  assert.ok(Cid.parse(`z${base58(long.bytes)}`).equals(long))
})

test('what is not a CID is refused', () => {
  const { bytes } = Cid.ofCbor(EMPTY_NODE)
  const bad = {
    empty: new Uint8Array(),
    'cut short': bytes.subarray(0, 35),
    'a byte behind': concat([bytes, new Uint8Array(1)]),
    'version 2': concat([Uint8Array.of(2), bytes.subarray(1)]),
    'digest cut short': Uint8Array.from([1, 0x71, 0x13, 64, 1, 2, 3]),
    'over 100 bytes': Uint8Array.from([1, 0x71, 0x13, 97, ...new Uint8Array(97)]),
    'codec not minimal': concat([Uint8Array.of(1, 0xf1, 0), bytes.subarray(2)]),
  }
  for (const [why, b] of Object.entries(bad)) assert.throws(() => Cid.fromBytes(b), Malformed, why)
  refuses(() => Cid.view(bytes, 1, 36))
  refuses(() => Cid.fromDigest(0x70, new Uint8Array(32)))
  refuses(() => Cid.fromDigest(CODEC_RAW, new Uint8Array(31)))
  const texts = ['', 'b', '.', '12345', EMPTY_NODE_CID.toUpperCase(), ` ${EMPTY_NODE_CID}`, `${EMPTY_NODE_CID}=`]
  texts.push(
    EMPTY_NODE_CID.slice(1),
    `z${EMPTY_NODE_CID}`,
    'Qm',
    `b${'a'.repeat(300)}`,
    `${EMPTY_NODE_CID.slice(0, -1)}n`,
  )
  for (const text of texts) assert.throws(() => Cid.parse(text), Malformed, text)
})

test('hashMatches: SHA-256, SHA-512, and false for what it cannot check', () => {
  const other = Uint8Array.of(1)
  const digest512 = new Uint8Array(createHash('sha512').update(EMPTY_NODE).digest())
  const cid512 = Cid.fromBytes(Uint8Array.from([1, 0x55, 0x13, 64, ...digest512]))
  const foreign = Cid.fromBytes(Uint8Array.from([1, 0x70, 0x12, 32, ...sha256(EMPTY_NODE)]))
  for (const cid of [Cid.ofCbor(EMPTY_NODE), Cid.fromBytes(Cid.ofRaw(EMPTY_NODE).bytes), cid512, foreign]) {
    assert.equal(hashMatches(cid, EMPTY_NODE), true)
    assert.equal(hashMatches(cid, other), false)
  }
  // The check leaves the right key behind.
  const viewed = Cid.fromBytes(Cid.ofRaw(EMPTY_NODE).bytes)
  hashMatches(viewed, EMPTY_NODE)
  assert.equal(viewed.key, Cid.ofRaw(EMPTY_NODE).key)
  const truncated = Uint8Array.from([1, 0x71, 0x12, 20, ...sha256(EMPTY_NODE).subarray(0, 20)])
  assert.equal(hashMatches(Cid.fromBytes(truncated), EMPTY_NODE), false)
  assert.equal(hashMatches(Cid.fromBytes(Uint8Array.of(1, 0x71, 0, 0)), new Uint8Array()), false)
})

test('cidEnd finds the end of every kind, within its bounds', () => {
  fc.assert(
    fc.property(anyCid, fc.nat(8), fc.nat(8), (cid, before, behind) => {
      const bytes = concat([new Uint8Array(before), cid.bytes, new Uint8Array(behind)])
      assert.equal(cidEnd(bytes, before, bytes.length), before + cid.length)
      refuses(() => cidEnd(bytes, before, before + cid.length - 1))
    }),
    runs(100),
  )
})

test('the lexicon format asks less than parsing', () => {
  assert.ok(isCidSyntax(EMPTY_NODE_CID))
  assert.ok(isCidSyntax('mBcDxtdWx0aWhhc2g+'))
  assert.ok(!isCidSyntax('QmbWqxBEKC3P8tqsKc98xmWNzrzDtRLMiMPL8wBuTGsMnR'))
  assert.ok(!isCidSyntax('12345'))
})
