import assert from 'node:assert/strict'
import { type IncomingHttpHeaders, request } from 'node:http'
import { buffer } from 'node:stream/consumers'
import { test } from 'node:test'
import { gunzipSync, zstdDecompressSync } from 'node:zlib'
import { readCar } from '@millisky/core/car'
import { startTestPds, type TestPds, type TestUser } from '../testing-pds.ts'

interface Got {
  status: number
  headers: IncomingHttpHeaders
  bytes: Uint8Array
}

/** Without what `fetch` adds and undoes. */
function get(pds: TestPds, query: string, headers: Record<string, string> = {}, method = 'GET'): Promise<Got> {
  return new Promise((resolve, reject) => {
    const url = `${pds.url}/xrpc/com.atproto.sync.getRepo?${query}`
    const sent = request(url, { method, headers }, async reply => {
      resolve({ status: reply.statusCode!, headers: reply.headers, bytes: new Uint8Array(await buffer(reply)) })
    })
    sent.on('error', reject).end()
  })
}

async function withRecords(pds: TestPds): Promise<TestUser> {
  const alice = await pds.user('alice')
  const writes = Array.from({ length: 60 }, (_, n) => {
    const collection = `com.example.${'ab'[n % 2]}`
    return { $type: 'com.atproto.repo.applyWrites#create', collection, value: { text: `the same text, number ${n}` } }
  })
  await pds.post('com.atproto.repo.applyWrites', { repo: alice.did, writes }, alice)
  return alice
}

test('an export is compressed for those who ask for it', async t => {
  const pds = await startTestPds(t)
  const { did } = await withRecords(pds)
  const plain = await get(pds, `did=${did}`)
  assert.deepEqual([plain.status, plain.headers['content-encoding']], [200, undefined])
  assert.equal(plain.headers['content-type'], 'application/vnd.ipld.car')
  assert.equal(plain.headers['atproto-car-block-order'], 'mst-preorder')
  assert.equal(plain.headers.vary, 'Authorization, Accept-Encoding')
  const unpack = { gzip: gunzipSync, zstd: zstdDecompressSync }
  for (const [accepted, encoding] of [
    ['gzip', 'gzip'],
    ['gzip, deflate, br', 'gzip'],
    ['gzip;q=0.9, zstd;q=0.1', 'zstd'],
    ['zstd;q=0, GZIP', 'gzip'],
  ] as const) {
    const { headers, bytes } = await get(pds, `did=${did}`, { 'accept-encoding': accepted })
    assert.equal(headers['content-encoding'], encoding, accepted)
    assert.ok(bytes.length < plain.bytes.length * 0.8)
    assert.deepEqual(new Uint8Array(unpack[encoding](bytes)), plain.bytes)
    assert.notEqual(headers.etag, plain.headers.etag)
  }
  for (const accepted of ['', 'identity', '*', 'br', 'gzip;q=0']) {
    const { headers, bytes } = await get(pds, `did=${did}`, { 'accept-encoding': accepted })
    assert.deepEqual([headers['content-encoding'], bytes], [undefined, plain.bytes], accepted)
  }
})

test('who has the latest is told so, and who asks for the head gets no more', async t => {
  const pds = await startTestPds(t)
  const alice = await withRecords(pds)
  const { did } = alice
  const { cid } = (await pds.get('com.atproto.sync.getLatestCommit', { did })).json
  const first = await get(pds, `did=${did}`)
  assert.equal(first.headers.etag, `"${cid}"`)
  for (const tag of [`"${cid}"`, `W/"${cid}"`, `"x", "${cid}"`, '*']) {
    const { status, bytes, headers } = await get(pds, `did=${did}`, { 'if-none-match': tag })
    assert.deepEqual([status, bytes.length, headers.etag], [304, 0, `"${cid}"`], tag)
  }
  assert.equal((await get(pds, `did=${did}`, { 'if-none-match': `"${cid}-gzip"` })).status, 200)
  const zipped = { 'if-none-match': `"${cid}-gzip"`, 'accept-encoding': 'gzip' }
  assert.equal((await get(pds, `did=${did}`, zipped)).status, 304)
  const head = await get(pds, `did=${did}`, {}, 'HEAD')
  assert.deepEqual([head.status, head.bytes.length, head.headers.etag], [200, 0, `"${cid}"`])
  const record = { repo: did, collection: 'com.example.a', record: {} }
  await pds.post('com.atproto.repo.createRecord', record, alice)
  assert.equal((await get(pds, `did=${did}`, { 'if-none-match': `"${cid}"` })).status, 200)
  await pds.lifecycle.deactivate(did)
  assert.equal((await get(pds, `did=${did}`, { 'if-none-match': '*' })).status, 400)
})

test('one collection, whole and since a rev', async t => {
  const pds = await startTestPds(t)
  const alice = await withRecords(pds)
  const { did } = alice
  const { rev } = (await pds.get('com.atproto.sync.getLatestCommit', { did })).json
  const all = readCar((await get(pds, `did=${did}`)).bytes).blocks.length
  const part = readCar((await get(pds, `did=${did}&collection=com.example.a`)).bytes).blocks.length
  assert.ok(part > 30 && part < all - 25)
  const record = { repo: did, record: { text: 'new' } }
  const create = (collection: string) => pds.post('com.atproto.repo.createRecord', { ...record, collection }, alice)
  await create('com.example.a')
  const made = (await create('com.example.b')).json
  const fresh = readCar((await get(pds, `did=${did}&collection=com.example.b&since=${rev}`)).bytes)
  const { cid } = (await pds.get('com.atproto.sync.getLatestCommit', { did })).json
  assert.equal(String(fresh.roots[0]), cid)
  assert.ok(fresh.blocks.some(block => String(block.cid) === made.cid))
  assert.ok(fresh.blocks.length < part)
  for (const query of ['collection=', 'collection=a', 'collection=com.example.a&collection=com.example.b']) {
    const { status, bytes } = await get(pds, `did=${did}&${query}`)
    assert.deepEqual([status, JSON.parse(Buffer.from(bytes).toString()).error], [400, 'InvalidRequest'], query)
  }
})
