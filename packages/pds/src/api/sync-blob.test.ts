import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { test } from 'node:test'
import { Cid } from '@millisky/core/cid'
import { bearer, startTestPds, type TestPds, type TestUser } from '../testing-pds.ts'

const png = new Uint8Array([
  0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a, 0, 0, 0, 0x0d, 0x49, 0x48, 0x44, 0x52, 0, 0, 0, 1, 0, 0, 0, 1, 8, 6,
  0, 0, 0,
])
const collection = 'com.example.file'

const upload = (pds: TestPds, user: TestUser, bytes: Uint8Array, type = 'application/octet-stream') =>
  pds.post('com.atproto.repo.uploadBlob', bytes, user, { 'content-type': type })
const put = (pds: TestPds, user: TestUser, rkey: string, record: object) =>
  pds.post('com.atproto.repo.putRecord', { repo: user.did, collection, rkey, record }, user)
const remove = (pds: TestPds, user: TestUser, rkey: string) =>
  pds.post('com.atproto.repo.deleteRecord', { repo: user.did, collection, rkey }, user)
const get = (pds: TestPds, user: TestUser, cid: string, headers: Record<string, string> = {}) =>
  pds.get('com.atproto.sync.getBlob', { did: user.did, cid }, headers)
const list = async (pds: TestPds, user: TestUser, params: object = {}): Promise<string[]> =>
  (await pds.get('com.atproto.sync.listBlobs', { did: user.did, ...params })).json.cids

test('the type in the bytes beats the one that was said', async t => {
  const pds = await startTestPds(t)
  const alice = await pds.user('alice')
  const { json } = await upload(pds, alice, png, 'text/html')
  const ref = { $link: Cid.ofRaw(png).toString() }
  assert.deepEqual(json, { blob: { $type: 'blob', ref, mimeType: 'image/png', size: png.length } })
  const text = await upload(pds, alice, new TextEncoder().encode('plain'), 'text/plain')
  assert.equal(text.json.blob.mimeType, 'text/plain')
  const star = await upload(pds, alice, new TextEncoder().encode('any'), '*/*')
  assert.equal(star.json.blob.mimeType, 'application/octet-stream')
  const empty = await upload(pds, alice, new Uint8Array(), 'text/plain')
  assert.equal(empty.json.blob.size, 0)
})

test('a blob is private until a record refers to it, and again after', async t => {
  const pds = await startTestPds(t)
  const alice = await pds.user('alice')
  const { blob } = (await upload(pds, alice, png)).json
  const cid = blob.ref.$link
  const hidden = async () => {
    const { status, json } = await get(pds, alice, cid)
    assert.deepEqual([status, json], [400, { error: 'InvalidRequest', message: 'Blob not found' }])
    assert.deepEqual(await list(pds, alice), [])
  }
  await hidden()
  const own = await get(pds, alice, cid, bearer(alice))
  assert.equal(own.status, 200)
  assert.equal(own.headers.get('cache-control'), 'private, no-store')

  const first = (await put(pds, alice, 'a', { file: blob })).json
  await put(pds, alice, 'b', { file: blob, more: [blob] })
  assert.deepEqual((await get(pds, alice, cid)).bytes, png)
  assert.deepEqual(await list(pds, alice), [cid])
  assert.deepEqual(await list(pds, alice, { since: first.commit.rev }), [cid])
  await remove(pds, alice, 'a')
  assert.deepEqual(await list(pds, alice), [cid])
  await put(pds, alice, 'b', { file: null })
  await hidden()
  assert.equal((await put(pds, alice, 'b', { file: blob })).status, 200)
  assert.deepEqual(await list(pds, alice), [cid])
})

test('what a record says of a blob must be so', async t => {
  const pds = await startTestPds(t)
  const [alice, bob] = [await pds.user('alice'), await pds.user('bob')]
  const { blob } = (await upload(pds, alice, png)).json
  const cases = [
    [{ ...blob, ref: { $link: Cid.ofRaw(new Uint8Array([9])).toString() } }, 'BlobNotFound'],
    [{ ...blob, mimeType: 'image/jpeg' }, 'InvalidMimeType'],
    [{ ...blob, size: 1 }, 'InvalidSize'],
    [{ cid: blob.ref.$link, mimeType: 'image/png' }, 'InvalidRequest'],
  ] as const
  for (const [file, error] of cases) {
    const { status, json } = await put(pds, alice, 'a', { file })
    assert.deepEqual([status, json.error], [400, error])
  }
  assert.equal((await put(pds, bob, 'a', { file: blob })).json.error, 'BlobNotFound')
  const { json } = await pds.post(
    'com.atproto.repo.putRecord',
    {
      repo: alice.did,
      collection: 'app.bsky.actor.profile',
      rkey: 'self',
      record: { avatar: { ...blob, mimeType: 'text/html' } },
    },
    alice,
  )
  assert.equal(json.error, 'InvalidMimeType')
})

test('headers that keep browsers from harm, and that caches need', async t => {
  const pds = await startTestPds(t)
  const alice = await pds.user('alice')
  const { blob } = (await upload(pds, alice, png)).json
  const cid = blob.ref.$link
  await put(pds, alice, 'a', { file: blob })
  const { headers } = await get(pds, alice, cid)
  assert.equal(headers.get('content-type'), 'image/png')
  assert.equal(headers.get('content-length'), String(png.length))
  assert.equal(headers.get('x-content-type-options'), 'nosniff')
  assert.equal(headers.get('content-security-policy'), "default-src 'none'; sandbox")
  assert.equal(headers.get('content-disposition'), `attachment; filename="${cid}"`)
  assert.equal(headers.get('etag'), `"${cid}"`)
  assert.match(headers.get('cache-control')!, /public.*immutable/)
  assert.equal(headers.get('vary'), null)
  const fresh = await get(pds, alice, cid, { 'if-none-match': `W/"x", "${cid}"` })
  assert.deepEqual([fresh.status, fresh.bytes.length], [304, 0])
  const url = `${pds.url}/xrpc/com.atproto.sync.getBlob?did=${alice.did}&cid=${cid}`
  const head = await fetch(url, { method: 'HEAD' })
  assert.deepEqual([head.status, head.headers.get('content-length')], [200, String(png.length)])
  assert.equal((await head.arrayBuffer()).byteLength, 0)
})

test('parts of a blob', async t => {
  const pds = await startTestPds(t)
  const alice = await pds.user('alice')
  const bytes = new Uint8Array(randomBytes(1000))
  const { blob } = (await upload(pds, alice, bytes)).json
  await put(pds, alice, 'a', { file: blob })
  const cid = blob.ref.$link
  const part = (range: string, more: Record<string, string> = {}) => get(pds, alice, cid, { range, ...more })
  for (const [range, start, end] of [
    ['bytes=0-0', 0, 0],
    ['bytes=10-19', 10, 19],
    ['bytes=990-', 990, 999],
    ['bytes=990-5000', 990, 999],
    ['bytes=-10', 990, 999],
    ['bytes=-5000', 0, 999],
  ] as const) {
    const { status, headers, bytes: got } = await part(range)
    assert.equal(status, 206, range)
    assert.equal(headers.get('content-range'), `bytes ${start}-${end}/1000`)
    assert.equal(headers.get('content-length'), String(end - start + 1))
    assert.deepEqual(got, bytes.slice(start, end + 1))
  }
  for (const range of ['bytes=1000-', 'bytes=-0']) {
    const { status, headers } = await part(range)
    assert.deepEqual([status, headers.get('content-range')], [416, 'bytes */1000'])
  }
  for (const range of ['bytes=5-1', 'bytes=0-1,3-4', 'lines=1-2', 'bytes=-', 'bytes=a-b']) {
    assert.deepEqual([(await part(range)).status, (await part(range)).bytes.length], [200, 1000], range)
  }
  assert.equal((await part('bytes=0-1', { 'if-range': `"${cid}"` })).status, 206)
  assert.equal((await part('bytes=0-1', { 'if-range': '"other"' })).status, 200)
})

test('an upload that is too large leaves nothing', async t => {
  const pds = await startTestPds(t, { PDS_BLOB_UPLOAD_LIMIT: '1000' })
  const alice = await pds.user('alice')
  const { status, json } = await upload(pds, alice, new Uint8Array(1001))
  assert.deepEqual([status, json.error], [413, 'PayloadTooLarge'])
  async function* endless() {
    for (let i = 0; i < 100; i++) yield new Uint8Array(100)
  }
  const chunked = await fetch(`${pds.url}/xrpc/com.atproto.repo.uploadBlob`, {
    method: 'POST',
    body: endless() as never,
    duplex: 'half',
    headers: { ...bearer(alice), 'content-type': 'application/octet-stream' },
  } as RequestInit)
  assert.equal(chunked.status, 413)
  assert.equal((await upload(pds, alice, new Uint8Array(1000))).status, 200)
})

test('blobs that nothing refers to are collected after the grace, and only those', async t => {
  let time = Date.now()
  const pds = await startTestPds(t, { PDS_BLOB_GRACE: '90m' }, { now: () => time })
  const alice = await pds.user('alice')
  const kept = (await upload(pds, alice, png)).json.blob
  const loose = (await upload(pds, alice, new Uint8Array(5))).json.blob
  const looseCid = Cid.parse(loose.ref.$link)
  await put(pds, alice, 'a', { file: kept })
  time += 90 * 60_000 - 1_000
  assert.deepEqual(await pds.blobs.collect(), { blobs: 0, bytes: 0, staged: 0 })
  time += 2_000
  assert.deepEqual(await pds.blobs.collect({ dryRun: true }), { blobs: 1, bytes: 5, staged: 0 })
  assert.ok(await pds.store.blobs.get(alice.account.id, looseCid))
  assert.deepEqual(await pds.blobs.collect(), { blobs: 1, bytes: 5, staged: 0 })
  assert.equal(await pds.store.blobs.get(alice.account.id, looseCid), null)
  assert.equal(await pds.blobs.open(alice.did, looseCid), null)
  assert.deepEqual((await get(pds, alice, kept.ref.$link)).bytes, png)
  // Uploading again what is referred to changes nothing.
  assert.equal((await upload(pds, alice, png)).status, 200)
  time += 100 * 60_000
  assert.deepEqual(await pds.blobs.collect(), { blobs: 0, bytes: 0, staged: 0 })
})

test('uploads while deactivated are for those who move in, not for those taken down', async t => {
  const pds = await startTestPds(t)
  const alice = await pds.user('alice', { deactivated: true })
  assert.equal((await upload(pds, alice, png)).status, 200)
  await pds.lifecycle.takedown(alice.did, 'ref')
  const { status, json } = await upload(pds, alice, png)
  assert.deepEqual([status, json.error], [401, 'AccountTakedown'])
})

test('listBlobs pages', async t => {
  const pds = await startTestPds(t)
  const alice = await pds.user('alice')
  const files = []
  for (let i = 0; i < 5; i++) files.push((await upload(pds, alice, new Uint8Array([i]))).json.blob)
  await put(pds, alice, 'a', { files })
  const all = await list(pds, alice)
  assert.equal(all.length, 5)
  const found: string[] = []
  for (let cursor: string | undefined; ; ) {
    const { json } = await pds.get('com.atproto.sync.listBlobs', { did: alice.did, limit: 2, cursor })
    found.push(...json.cids)
    if (json.cids.length === 0) break
    cursor = json.cursor
  }
  assert.deepEqual(found, all)
})
