import assert from 'node:assert/strict'
import { test } from 'node:test'
import { decode as ipldDecode } from '@ipld/dag-cbor'
import { concat, utf8 } from './bytes.ts'
import { decode, encode, type Obj } from './cbor.ts'
import { Cid } from './cid.ts'
import { decodeCommit, signCommit, unsignedBytes, verifyCommit } from './commit.ts'
import type { PublicKey } from './crypto.ts'
import { Malformed } from './errors.ts'
import { Tree } from './mst/tree.ts'
import type { Tid } from './syntax.ts'
import { testDid, testKey } from './testing-repos.ts'

const did = testDid('alice')
const rev = '3mtgomcsgzc2b' as Tid
const data = Tree.empty.root
const key = testKey('alice')
const { commit, block } = signCommit({ did, data, rev }, key)
const fields = decode(block.bytes) as Obj

test('a commit reads back as it was signed', () => {
  assert.deepEqual(decodeCommit(block.bytes), commit)
  assert.deepEqual(commit, { did, version: 3, data, rev, prev: null, sig: commit.sig })
  assert.ok(Cid.ofCbor(block.bytes).equals(block.cid))
})

test('fields stand in canonical order, an explicit null among them', () => {
  assert.deepEqual(Object.keys(fields), ['did', 'rev', 'sig', 'data', 'prev', 'version'])
  assert.deepEqual(Object.keys(ipldDecode(block.bytes) as object), ['did', 'rev', 'sig', 'data', 'prev', 'version'])
  assert.equal(fields.prev, null)
})

test('the signature covers the same map without sig', () => {
  const { sig, ...unsigned } = fields
  assert.deepEqual(unsignedBytes(commit), encode(unsigned))
  assert.ok(key.publicKey.verify(encode(unsigned), sig as Uint8Array))
})

test('what is signed is the same, cut out of the block or encoded', () => {
  const verified: Uint8Array[] = []
  const spy = { verify: (message: Uint8Array) => verified.push(message) > 0 } as unknown as PublicKey
  const old = encode({ ...fields, prev: block.cid, version: 2 })
  for (const bytes of [block.bytes, old, encode({ ...fields, did: `did:web:${'x'.repeat(300)}.com` })]) {
    // Inside of a larger buffer, as in a CAR.
    const view = concat([utf8('before'), bytes, utf8('behind')]).subarray(6, 6 + bytes.length)
    const read = decodeCommit(view, { allowVersion2: true })
    verifyCommit(read, spy, view)
    verifyCommit(read, spy)
    const [cut, encoded] = verified.splice(0)
    assert.deepEqual(cut, encoded)
    assert.deepEqual(view, bytes, 'the block stays')
  }
})

for (const curve of ['k256', 'p256'] as const) {
  test(`a signature on ${curve} verifies with its key and for its fields only`, () => {
    const key = testKey('bob', curve)
    const { commit } = signCommit({ did, data, rev }, key)
    assert.ok(verifyCommit(commit, key.publicKey))
    assert.ok(!verifyCommit(commit, testKey('eve', curve).publicKey))
    assert.ok(!verifyCommit(commit, testKey('bob', curve === 'k256' ? 'p256' : 'k256').publicKey))
    assert.ok(!verifyCommit({ ...commit, did: testDid('eve') }, key.publicKey))
    assert.ok(!verifyCommit({ ...commit, rev: '3mtgomcsgzd2b' as Tid }, key.publicKey))
    assert.ok(!verifyCommit({ ...commit, data: Cid.ofCbor(utf8('x')) }, key.publicKey))
    assert.ok(!verifyCommit({ ...commit, prev: data }, key.publicKey))
    assert.ok(!verifyCommit({ ...commit, version: 2 }, key.publicKey))
  })
}

test('a commit that names a previous one is read, as old repositories have such', () => {
  const bytes = encode({ ...fields, prev: block.cid })
  assert.ok(block.cid.equals(decodeCommit(bytes).prev))
})

test('version 2 is read when asked for', () => {
  const unsigned = { did, version: 2, data, rev, prev: null } as const
  const sig = key.sign(unsignedBytes(unsigned))
  const bytes = encode({ ...unsigned, sig })
  assert.throws(() => decodeCommit(bytes), Malformed)
  const commit = decodeCommit(bytes, { allowVersion2: true })
  assert.equal(commit.version, 2)
  assert.ok(verifyCommit(commit, key.publicKey))
  const { rev: _, ...withoutRev } = { ...unsigned, sig }
  assert.throws(() => decodeCommit(encode(withoutRev), { allowVersion2: true }), Malformed)
})

test('anything else is malformed', () => {
  const bad: [string, Obj | Uint8Array][] = [
    ...Object.keys(fields).map((name): [string, Obj] => {
      const { [name]: _, ...rest } = fields
      return [`without ${name}`, rest]
    }),
    ...Object.keys(fields).map((name): [string, Obj] => [`${name} of another type`, { ...fields, [name]: [] }]),
    ['one field more', { ...fields, extra: null }],
    ['version 1', { ...fields, version: 1 }],
    ['version 4', { ...fields, version: 4 }],
    ['version as bigint', { ...fields, version: 2n ** 60n }],
    ['not a DID', { ...fields, did: 'alice.test' }],
    ['not a TID', { ...fields, rev: '2026-01-01' }],
    ['tree as text', { ...fields, data: data.toString() }],
    ['tree of raw codec', { ...fields, data: Cid.ofRaw(utf8('x')) }],
    ['prev of raw codec', { ...fields, prev: Cid.ofRaw(utf8('x')) }],
    ['signature too short', { ...fields, sig: commit.sig.subarray(1) }],
    ['signature too long', { ...fields, sig: new Uint8Array(65) }],
    ['signature empty', { ...fields, sig: new Uint8Array(0) }],
    ['bytes behind', Uint8Array.of(...block.bytes, 0)],
    ['cut short', block.bytes.subarray(0, -1)],
    ['nothing', new Uint8Array(0)],
    ['a list', encode([])],
    ['null', encode(null)],
    ['a text', encode('commit')],
    ['a link', encode(data)],
    ['bytes', encode(new Uint8Array(9))],
  ]
  for (const [what, value] of bad) {
    const bytes = value instanceof Uint8Array ? value : encode(value)
    assert.throws(() => decodeCommit(bytes), Malformed, what)
  }
})
