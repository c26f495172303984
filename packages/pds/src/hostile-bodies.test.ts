// Bodies made to harm: repositories that are none, data that is none, and little that unpacks to much.
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { mkdtemp, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { brotliCompressSync, constants, deflateSync, gzipSync, zstdCompressSync } from 'node:zlib'
import type { Block } from '@millisky/core/blocks'
import { writeCar } from '@millisky/core/car'
import { encode, type Obj } from '@millisky/core/cbor'
import { Cid } from '@millisky/core/cid'
import { signCommit } from '@millisky/core/commit'
import { SigningKey } from '@millisky/core/crypto'
import { Tree } from '@millisky/core/mst/tree'
import { encodeTid } from '@millisky/core/tid'
import fc from 'fast-check'
import { bearer, startTestPds, type TestPds, type TestUser } from './testing-pds.ts'

const CAR = { 'content-type': 'application/vnd.ipld.car' }
const key = SigningKey.fromPrivate('k256', new Uint8Array(32).fill(7))
const collection = 'com.example.thing'
const block = (value: Obj): Block => of(encode(value))
const of = (bytes: Uint8Array): Block => ({ cid: Cid.ofCbor(bytes), bytes })
const record = block({ $type: collection, text: 'hello' })

interface Entry {
  p: number
  k: string | Uint8Array
  v?: Cid | undefined
  t?: Cid | null
}

const node = (l: Cid | null, entries: Entry[]): Block => {
  const e = entries.map(({ p, k, v, t = null }) => {
    return { p, k: typeof k === 'string' ? new TextEncoder().encode(k) : k, v: v ?? record.cid, t }
  })
  return block({ l, e } as unknown as Obj)
}

function carOf(user: TestUser, root: Block, others: readonly Block[] = []): Uint8Array {
  const rev = encodeTid(Date.now() * 1000, 1)
  const { block: commit } = signCommit({ did: user.did, data: root.cid, rev }, key)
  return writeCar([commit.cid], [commit, root, ...others, record])
}

const giveCar = (pds: TestPds, user: TestUser, bytes: Uint8Array, headers: Record<string, string> = {}) =>
  pds.post('com.atproto.repo.importRepo', bytes, user, { ...CAR, ...headers })

test('a tree that is none is refused, whatever is wrong with it', async t => {
  const pds = await startTestPds(t)
  const alice = await pds.user('alice', { deactivated: true })
  const key = (n: number) => `${collection}/${String(n).padStart(8, '0')}`
  const leaf = Tree.build([[key(1), record.cid]])
  const leafBlock = [...leaf.nodes()][0]!
  let chain = node(null, [])
  const deep = [chain]
  for (let i = 0; i < 3_000; i++) {
    chain = node(chain.cid, [])
    deep.push(chain)
  }
  // Each level names the one below twice: two to the fortieth leaves, if anybody counted.
  let twice = leafBlock
  const doubled = [twice]
  for (let i = 0; i < 40; i++) {
    twice = node(twice.cid, [{ p: 0, k: key(i + 2), t: twice.cid }])
    doubled.push(twice)
  }
  const raw = Cid.ofRaw(record.bytes)
  const trees: Record<string, [Block, Block[]?]> = {
    'a long way down': [chain, deep],
    'the same below twice': [twice, doubled],
    'keys out of order': [
      node(null, [
        { p: 0, k: key(2) },
        { p: 0, k: key(1) },
      ]),
    ],
    'a key twice': [
      node(null, [
        { p: 0, k: key(1) },
        { p: key(1).length, k: '' },
      ]),
    ],
    'more of the key before than there is': [
      node(null, [
        { p: 0, k: key(1) },
        { p: 200, k: '2' },
      ]),
    ],
    'something of a key before the first': [node(null, [{ p: 3, k: key(1) }])],
    'less than nothing of the key before': [node(null, [{ p: -1, k: key(1) }])],
    'a key of no path': [node(null, [{ p: 0, k: 'nothing' }])],
    'a key of two slashes': [node(null, [{ p: 0, k: `${collection}/a/b` }])],
    'a key that climbs': [node(null, [{ p: 0, k: `${collection}/..` }])],
    'a key that is no text': [node(null, [{ p: 0, k: new Uint8Array([0xff, 0xfe, 0x2f, 0x61]) }])],
    'a key with a NUL': [node(null, [{ p: 0, k: `${collection}/a\0b` }])],
    'a key without end': [node(null, [{ p: 0, k: `${collection}/${'a'.repeat(2_000)}` }])],
    'an empty key': [node(null, [{ p: 0, k: '' }])],
    'a key on the wrong level': [node(null, [{ p: 0, k: key(1), t: leafBlock.cid }]), [leafBlock]],
    'a tree whose top is empty': [node(leafBlock.cid, []), [leafBlock]],
    'a value that is bytes': [node(null, [{ p: 0, k: key(1), v: raw }]), [{ cid: raw, bytes: record.bytes }]],
    'a value that is not there': [node(null, [{ p: 0, k: key(1), v: Cid.ofCbor(new Uint8Array(9)) }])],
    'a record for a tree': [record],
    'a list for a tree': [of(encode([] as never))],
    'entries that are no list': [block({ l: null, e: {} })],
    'entries that are nothing': [block({ l: null, e: [null] })],
    'more fields than there are': [block({ l: null, e: [], x: 1 })],
  }
  const before = await pds.store.repos.state(alice.did)
  for (const [what, [root, others]] of Object.entries(trees)) {
    const { status, json } = await giveCar(pds, alice, carOf(alice, root, others))
    assert.deepEqual([status, json?.error], [400, 'InvalidRequest'], `${what}: ${JSON.stringify(json)}`)
  }
  // Data that no encoder makes: as a record, as a commit, as a node, as the header of the file.
  for (const hex of [
    'a2616101616101', // a key twice
    'a2616201616101', // keys out of order
    'bf616101ff', // no length
    'a16161fb7ff8000000000000', // no number
    'a16161f97c00', // infinity
    'a16161190001', // a number longer than need be
    'a161615bffffffffffffffff', // more bytes than there are
    'a161619b00000000ffffffff', // more members than there are
    'a16161d82a4100', // a link that is none
    'a16161c100', // another tag
    'a10102', // a key that is no text
    'a16161a1'.padEnd(60_000, '6161a1'), // without bottom
    `${'81'.repeat(50_000)}80`,
    'f7', // undefined
    '',
  ]) {
    const bad = of(Buffer.from(hex, 'hex'))
    const asRecord = node(null, [{ p: 0, k: `${collection}/a`, v: bad.cid }])
    for (const [what, car] of Object.entries({
      record: carOf(alice, asRecord, [bad]),
      node: carOf(alice, bad),
      commit: writeCar([bad.cid], [bad, record]),
      header: Buffer.concat([Buffer.from([Math.min(bad.bytes.length, 127)]), bad.bytes]),
    })) {
      const { status, json } = await giveCar(pds, alice, car)
      assert.deepEqual(
        [status, json?.error],
        [400, 'InvalidRequest'],
        `${hex.slice(0, 40)} as ${what}: ${json?.message}`,
      )
    }
  }
  assert.deepEqual(await pds.store.repos.state(alice.did), before)
})

test('a file with any byte changed, cut anywhere or sewn together is refused or right', async t => {
  const folder = await mkdtemp(join(tmpdir(), 'millisky-pds-'))
  t.after(() => rm(folder, { recursive: true, force: true }))
  const pds = await startTestPds(t, { PDS_DATA_DIRECTORY: folder })
  const alice = await pds.user('alice', { deactivated: true })
  const tree = Tree.build(
    Array.from({ length: 40 }, (_, i) => [`${collection}/${String(i).padStart(3, '0')}`, record.cid]),
  )
  const [root, ...others] = [...tree.nodes()].sort(
    (a, b) => Number(b.cid.equals(tree.root)) - Number(a.cid.equals(tree.root)),
  )
  const good = carOf(alice, root!, others)
  const place = fc.nat(good.length - 1)
  const cuts = fc.oneof(
    fc.tuple(place, fc.integer({ min: 1, max: 255 })).map(([at, bits]) => {
      const bytes = good.slice()
      bytes[at]! ^= bits
      return bytes
    }),
    place.map(at => good.slice(0, at)),
    fc.tuple(place, place).map(([a, b]) => Buffer.concat([good.subarray(0, a), good.subarray(b)])),
    fc.tuple(place, fc.uint8Array({ minLength: 1, maxLength: 20 })).map(([at, noise]) => {
      return Buffer.concat([good.subarray(0, at), noise, good.subarray(at)])
    }),
  )
  await fc.assert(
    fc.asyncProperty(cuts, async bytes => {
      const { status } = await giveCar(pds, alice, bytes)
      assert.ok(status === 400 || status === 200, String(status))
      if (status === 200) {
        // It may have been a repetition, or the whole of it; never a part.
        const { records } = await pds.store.repos.counts(alice.account.id)
        assert.equal(records, 40)
      }
    }),
    { numRuns: 150 },
  )
  assert.equal((await giveCar(pds, alice, good)).status, 200)
  const left = await readdir(join(folder, 'blobs', '.staging'))
  assert.deepEqual(left, [], 'nothing is left of what was put aside')
})

test('little that unpacks to much is stopped, in whatever it is wrapped', async t => {
  const pds = await startTestPds(t, { PDS_BLOB_UPLOAD_LIMIT: '1000000', PDS_MAX_REPO_IMPORT_SIZE: '1000000' })
  const alice = await pds.user('alice', { deactivated: false })
  const zeros = Buffer.alloc(20_000_000)
  const brotli = (bytes: Buffer) => brotliCompressSync(bytes, { params: { [constants.BROTLI_PARAM_QUALITY]: 4 } })
  const gzipped = gzipSync(zeros)
  const bombs: Record<string, Buffer> = {
    gzip: gzipped,
    deflate: deflateSync(zeros),
    br: brotli(zeros),
    'gzip, gzip': gzipSync(gzipped),
    'gzip, br': brotli(gzipped),
    'gzip,,identity, gzip': gzipSync(gzipped),
    zstd: zstdCompressSync(zeros),
    'gzip, gzip, gzip': gzipSync(gzipSync(gzipped)),
    'gzip;q=1': gzipped,
  }
  for (const [encoding, bytes] of Object.entries(bombs)) {
    for (const [method, type] of [
      ['com.atproto.repo.uploadBlob', 'image/png'],
      ['com.atproto.repo.importRepo', 'application/vnd.ipld.car'],
      ['com.atproto.repo.createRecord', 'application/json'],
      ['com.atproto.server.createSession', 'application/json'],
      ['com.atproto.repo.applyWrites', 'application/json'],
    ] as const) {
      const headers = { ...bearer(alice), 'content-type': type, 'content-encoding': encoding }
      const { status } = await pds.post(method, bytes, null, headers)
      const wrapped = encoding.includes('zstd') || encoding.includes('gzip, gzip, gzip') || encoding.includes(';')
      // A file that begins with zeros is no CAR before it is too large.
      const expected = wrapped ? [415] : method.endsWith('importRepo') ? [400, 413] : [413]
      assert.ok(expected.includes(status), `${method} ${encoding}: ${status}`)
    }
  }
  assert.equal((await pds.store.blobs.usage(alice.account.id)).blobs, 0)
})

test('a record made to harm is refused, or kept as it is and nothing more', async t => {
  const pds = await startTestPds(t)
  const alice = await pds.user('alice')
  const nested = (depth: number, open: string, close: string) => `${open.repeat(depth)}1${close.repeat(depth)}`
  const values: Record<string, string> = {
    'deep lists': `{"$type":"${collection}","a":${nested(10_000, '[', ']')}}`,
    'deep objects': `{"$type":"${collection}","a":${nested(5_000, '{"a":', '}')}}`,
    'a proto': `{"$type":"${collection}","__proto__":{"isAdmin":true},"constructor":{"prototype":{"x":1}}}`,
    'a number that is none': `{"$type":"${collection}","a":1e999}`,
    'a fraction': `{"$type":"${collection}","a":0.1}`,
    'a number too large': `{"$type":"${collection}","a":${'9'.repeat(400)}}`,
    'half a letter': `{"$type":"${collection}","a":"\\ud800"}`,
    'a key twice': `{"$type":"${collection}","a":1,"a":2}`,
    'a link that is none': `{"$type":"${collection}","a":{"$link":"x"}}`,
    'a link and more': `{"$type":"${collection}","a":{"$link":"bafyreidfayvfuwqa7qlnopdjiqrxzs6blmoeu4rujcjtnci5beludirz2a","x":1}}`,
    'bytes that are none': `{"$type":"${collection}","a":{"$bytes":"!"}}`,
    'very many keys': `{"$type":"${collection}",${Array.from({ length: 9_000 }, (_, i) => `"k${i}":0`).join()}}`,
    'very many lists': `{"$type":"${collection}","a":[${'[],'.repeat(40_000)}[]]}`,
    'a key of a megabyte': `{"$type":"${collection}","${'k'.repeat(140_000)}":1}`,
    'a blob of nobody': `{"$type":"${collection}","a":{"$type":"blob","ref":{"$link":"bafkreidfayvfuwqa7qlnopdjiqrxzs6blmoeu4rujcjtnci5beludirz2a"},"mimeType":"a/b","size":1}}`,
    'a blob without sense': `{"$type":"${collection}","a":{"$type":"blob","ref":1,"mimeType":{},"size":"x"}}`,
    'no object': '[]',
    nothing: 'null',
  }
  const headers = { ...bearer(alice), 'content-type': 'application/json' }
  for (const [what, value] of Object.entries(values)) {
    const create = `{"repo":"${alice.did}","collection":"${collection}","validate":false,"record":${value}}`
    const created = await pds.post('com.atproto.repo.createRecord', Buffer.from(create), null, headers)
    const write = `{"$type":"com.atproto.repo.applyWrites#create","collection":"${collection}","value":${value}}`
    const writes = `{"repo":"${alice.did}","validate":false,"writes":[${write}]}`
    const applied = await pds.post('com.atproto.repo.applyWrites', Buffer.from(writes), null, headers)
    assert.equal(created.status, applied.status, what)
    assert.ok([200, 400, 413].includes(created.status), `${what}: ${created.status}`)
    if (created.status !== 200) continue
    const { status } = await pds.get('com.atproto.repo.listRecords', { repo: alice.did, collection })
    assert.equal(status, 200, what)
  }
  assert.equal(({} as { isAdmin?: boolean }).isAdmin, undefined)
  const many = Array.from({ length: 201 }, () => {
    return { $type: 'com.atproto.repo.applyWrites#create', collection, value: { $type: collection } }
  })
  const tooMany = await pds.post(
    'com.atproto.repo.applyWrites',
    { repo: alice.did, writes: many, validate: false },
    alice,
  )
  assert.equal(tooMany.status, 400)
  const noise = await pds.post('com.atproto.repo.applyWrites', new Uint8Array(randomBytes(1_000)), null, headers)
  assert.equal(noise.status, 400)
})
