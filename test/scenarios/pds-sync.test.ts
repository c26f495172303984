// What consumers of a PDS rely on when they read repositories and blobs, each behaviour under its number: B82 to B88. Other
// people's code says what the bytes are.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { readCarWithRoot, verifyProofs, verifyRepoCar } from '@atproto/repo'
import { type Answer, basic, bearer, startTestPds, type TestPds, type TestUser } from '@millisky/pds/testing-pds'

const NOTE = 'com.example.note'
const STRANGER = 'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa'
const SOME_CID = 'bafyreidfayvfuwqa7qlnopdjiqrxzs6blmoeu4rujcjtnci5beludirz2a'
const SOME_BLOB = 'bafkreiclp443lavogvhj3d2ob2cxbfuscni2k5jk7bebjzg7khl3esabwq'
const CAR = 'application/vnd.ipld.car'

let pds: TestPds
let alice: TestUser
const cleanups: (() => Promise<void>)[] = []
const later = { after: (fn: () => Promise<void>) => void cleanups.push(fn) }
before(async () => {
  pds = await startTestPds(later)
  alice = await pds.user('alice')
})
after(async () => {
  for (const cleanup of cleanups.reverse()) await cleanup()
})

type Body = Record<string, unknown>
const sync = (name: string, params: Body = {}, headers = {}) => pds.get(`com.atproto.sync.${name}`, params, headers)
const put = async (rkey: string, record: Body = { rkey }, user = alice, on = pds) => {
  const body = { repo: user.did, collection: NOTE, rkey, record }
  const { status, json } = await on.post('com.atproto.repo.putRecord', body, user)
  assert.equal(status, 200, JSON.stringify(json))
  return json as { uri: string; cid: string; commit: { cid: string; rev: string } }
}
const upload = async (bytes: Uint8Array, type: string, user = alice) =>
  (await pds.post('com.atproto.repo.uploadBlob', bytes, user, { 'content-type': type })).json.blob

/** Refused with 400, by name and message. */
function refused(answer: Answer, error: string, message: string | RegExp): void {
  assert.deepEqual([answer.status, answer.json?.error], [400, error], JSON.stringify(answer.json))
  if (typeof message === 'string') assert.equal(answer.json.message, message)
  else assert.match(answer.json.message, message)
}

/** The key that an account signs with. */
const keyOf = async (did: string, on = pds) =>
  on.repos.signingKey((await on.store.repos.state(did as never))!.key).publicKey.didKey

const UNREADABLE = [
  'getRepo',
  'getRecord',
  'getBlocks',
  'getLatestCommit',
  'listBlobs',
  'getBlob',
  'getHead',
  'getCheckout',
]
const paramsOf = (did: string) => ({ did, collection: NOTE, rkey: 'a', cids: SOME_CID, cid: SOME_BLOB })

test('B82 repositories that are not here, taken down or paused are named so; owners and admins read on', async () => {
  for (const name of UNREADABLE) {
    const answer = await sync(name, paramsOf(STRANGER))
    if (name === 'getHead') refused(answer, 'HeadNotFound', `Could not find root for DID: ${STRANGER}`)
    else refused(answer, 'RepoNotFound', `Could not find repo for DID: ${STRANGER}`)
  }
  refused(await sync('getRepoStatus', { did: STRANGER }), 'RepoNotFound', `Could not find repo for DID: ${STRANGER}`)
  const carol = await pds.user('carol')
  const { cid } = await put('a', { blob: await upload(Buffer.from('carol'), 'text/plain', carol) }, carol)
  const dan = await pds.user('dan')
  const reads = async (error: string, message: string) => {
    for (const name of UNREADABLE) {
      const own = { ...paramsOf(carol.did), cids: cid, cid: (await blobsOf()).cids[0] }
      for (const headers of [{}, bearer(dan)]) refused(await sync(name, own, headers), error, message)
      for (const headers of [bearer(carol), basic()]) assert.equal((await sync(name, own, headers)).status, 200, name)
    }
  }
  const blobsOf = async () => (await sync('listBlobs', { did: carol.did }, basic())).json
  await pds.post('com.atproto.server.deactivateAccount', {}, carol)
  await reads('RepoDeactivated', `Repo has been deactivated: ${carol.did}`)
  await pds.lifecycle.activate(carol.did)
  const subject = { $type: 'com.atproto.admin.defs#repoRef', did: carol.did }
  const takedown = (applied: boolean) =>
    pds.post('com.atproto.admin.updateSubjectStatus', { subject, takedown: { applied } }, null, basic())
  assert.equal((await takedown(true)).status, 200)
  await reads('RepoTakendown', `Repo has been takendown: ${carol.did}`)
  for (const [status, name] of [['takendown', 'listRecords']] as const) {
    const { json } = await pds.get(`com.atproto.repo.${name}`, { repo: carol.did, collection: NOTE })
    assert.deepEqual(json, { error: 'InvalidRequest', message: `Could not find repo: ${carol.did}` }, status)
  }
  await takedown(false)
  assert.equal((await sync('getRepo', { did: carol.did })).status, 200)
})

test('B83 a blob comes with what keeps browsers from harm', async () => {
  const html = Buffer.from('<html><script>alert(1)</script></html>')
  const { ref, mimeType, size } = await upload(html, 'text/html')
  const where = { did: alice.did, cid: ref.$link }
  refused(await sync('getBlob', where), 'InvalidRequest', 'Blob not found')
  for (const [more, status] of [
    [{}, 200],
    [{ 'if-none-match': '*' }, 304],
  ] as const) {
    const own = await sync('getBlob', where, { ...bearer(alice), ...more })
    assert.deepEqual([own.status, own.headers.get('cache-control')], [status, 'private, no-store'])
  }
  assert.deepEqual((await sync('listBlobs', { did: alice.did })).json.cids, [])
  await put('blob', { blob: { $type: 'blob', ref, mimeType, size } })
  const { status, headers, bytes } = await sync('getBlob', where)
  assert.deepEqual([status, Buffer.from(bytes).toString()], [200, html.toString()])
  const expected = {
    'content-type': mimeType,
    'content-length': String(html.length),
    'x-content-type-options': 'nosniff',
    'content-security-policy': "default-src 'none'; sandbox",
    'content-disposition': `attachment; filename="${ref.$link}"`,
    'accept-ranges': 'bytes',
    'access-control-allow-origin': '*',
    etag: `"${ref.$link}"`,
  }
  for (const [name, value] of Object.entries(expected)) assert.equal(headers.get(name), value, name)
  // Players in web pages fetch parts.
  for (const name of ['ETag', 'Accept-Ranges', 'Content-Range'])
    assert.ok(headers.get('access-control-expose-headers')!.split(', ').includes(name))
  const url = `${pds.url}/xrpc/com.atproto.sync.getBlob?${new URLSearchParams(where)}`
  const head = await fetch(url, { method: 'HEAD' })
  for (const [name, value] of Object.entries(expected)) assert.equal(head.headers.get(name), value, name)
  const same = await sync('getBlob', where, { 'if-none-match': expected.etag })
  assert.deepEqual([same.status, same.bytes.length], [304, 0])
  assert.equal(same.headers.get('cache-control'), 'public, max-age=86400, immutable')
  const parts: [range: string, content: string, text: string][] = [
    ['bytes=0-5', `bytes 0-5/${html.length}`, '<html>'],
    ['bytes=31-', `bytes 31-37/${html.length}`, '</html>'],
    ['bytes=-7', `bytes 31-37/${html.length}`, '</html>'],
    ['bytes=31-999', `bytes 31-37/${html.length}`, '</html>'],
  ]
  for (const [range, content, text] of parts) {
    const part = await sync('getBlob', where, { range })
    assert.deepEqual([part.status, part.headers.get('content-range')], [206, content])
    assert.equal(Buffer.from(part.bytes).toString(), text)
    assert.equal(part.headers.get('content-security-policy'), expected['content-security-policy'])
  }
  const beyond = await sync('getBlob', where, { range: 'bytes=99-' })
  assert.deepEqual([beyond.status, beyond.headers.get('content-range')], [416, `bytes */${html.length}`])
  const bob = await pds.user('bob')
  for (const other of [{ cid: SOME_BLOB }, { cid: SOME_CID }, { did: bob.did }])
    refused(await sync('getBlob', { ...where, ...other }), 'InvalidRequest', 'Blob not found')
  for (const bad of [{ cid: 'x' }, { did: 'alice.test' }])
    refused(
      await sync('getBlob', { ...where, ...bad }),
      'InvalidRequest',
      /^Invalid com\.atproto\.sync\.getBlob params: /,
    )
  const list = await sync('listBlobs', { did: alice.did })
  assert.deepEqual(list.json, { cids: [ref.$link], cursor: ref.$link })
  assert.deepEqual((await sync('listBlobs', { did: alice.did, cursor: ref.$link })).json, { cids: [] })
  const { rev } = (await sync('getLatestCommit', { did: alice.did })).json
  assert.deepEqual((await sync('listBlobs', { did: alice.did, since: rev })).json, { cids: [] })
  // It is public for as long as a record refers to it.
  await put('blob', { nothing: true })
  assert.deepEqual((await sync('listBlobs', { did: alice.did })).json, { cids: [] })
  refused(await sync('getBlob', where), 'InvalidRequest', 'Blob not found')
})

test('B84 getRepo gives a CAR of everything, or of what came after a rev that need not be one', async () => {
  const user = await pds.user('exporter')
  const revs: string[] = []
  for (let i = 0; i < 25; i++) revs.push((await put(`k${i}`, { i }, user)).commit.rev)
  const car = async (params: Body = {}) => {
    const { status, headers, bytes } = await sync('getRepo', { did: user.did, ...params })
    assert.deepEqual([status, headers.get('content-type')], [200, CAR])
    return readCarWithRoot(bytes)
  }
  const { cid, rev } = (await sync('getLatestCommit', { did: user.did })).json
  const full = await car()
  assert.equal(full.root.toString(), cid)
  const { creates } = await verifyRepoCar(
    (await sync('getRepo', { did: user.did })).bytes,
    user.did,
    await keyOf(user.did),
  )
  assert.equal(creates.length, 25)
  const sizes = await Promise.all(
    [...revs, '2222222222222', '7zzzzzzzzzzzz'].map(async since => (await car({ since })).blocks.size),
  )
  assert.equal(sizes.at(-2), full.blocks.size)
  for (let i = 1; i < 25; i++) assert.ok(sizes[i]! <= sizes[i - 1]!)
  const between = `${revs[10]!.slice(0, -1)}z`
  assert.equal((await car({ since: between })).blocks.size, sizes[10])
  const last = await car({ since: revs[23] })
  assert.ok(last.blocks.has(full.root), 'the commit is newer than any rev before it')
  assert.equal((await sync('getLatestCommit', { did: user.did })).json.rev, rev)
  refused(await sync('getRepo', { did: user.did, since: 'x' }), 'InvalidRequest', /Invalid TID string \(got "x"\)/)
  refused(await sync('getRepo', {}), 'InvalidRequest', /Missing required key "did"/)
})

test('B84 what came after a rev completes what was there at it, whatever happened between', async () => {
  const user = await pds.user('turbulent')
  const blocksOf = async (since?: string) => {
    const { bytes } = await sync('getRepo', { did: user.did, since })
    return new Set((await readCarWithRoot(bytes)).blocks.cids().map(String))
  }
  const history: [rev: string, blocks: Set<string>][] = []
  const there = new Set<string>()
  for (let n = 0; n < 30; n++) {
    // Keys come and go, and with them what was there before, also under other keys.
    const keys = [0, 1, 2].map(i => `k${(n * 7 + i * 5) % 23}`)
    const writes = keys.map(rkey => {
      const kind = !there.has(rkey) ? 'create' : n % 3 === 0 ? 'update' : 'delete'
      const value = kind === 'delete' ? {} : { value: { n: n % 4 } }
      there[kind === 'delete' ? 'delete' : 'add'](rkey)
      return { $type: `com.atproto.repo.applyWrites#${kind}`, collection: NOTE, rkey, ...value }
    })
    const { json } = await pds.post('com.atproto.repo.applyWrites', { repo: user.did, writes }, user)
    history.push([json.commit.rev, await blocksOf()])
  }
  const now = history.at(-1)![1]
  for (const [rev, before] of history) {
    const since = await blocksOf(rev)
    assert.deepEqual(
      [...now].filter(cid => !before.has(cid) && !since.has(cid)),
      [],
      `missing since ${rev}`,
    )
    assert.deepEqual(
      [...since].filter(cid => !now.has(cid)),
      [],
      `too much since ${rev}`,
    )
  }
})

test('B81 B84 each export comes back as the same tree in another server', async () => {
  const other = await startTestPds(later)
  const user = await pds.user('mover')
  const there = await other.user('mover', { deactivated: true })
  for (let round = 0; round < 4; round++) {
    for (let i = 0; i < 20; i++) await put(`${i}-${round % 2}`, { round, i: i % 3 }, user)
    await pds.post('com.atproto.repo.deleteRecord', { repo: user.did, collection: NOTE, rkey: `${round}-0` }, user)
    const { bytes } = await sync('getRepo', { did: user.did })
    const { status } = await other.post('com.atproto.repo.importRepo', bytes, there, { 'content-type': CAR })
    assert.equal(status, 200)
    const [ours, theirs] = [await pds.store.repos.state(user.did), await other.store.repos.state(user.did)]
    assert.equal(String(theirs!.head.data), String(ours!.head.data))
    assert.ok(theirs!.head.rev > ours!.head.rev)
    const again = (await other.get('com.atproto.sync.getRepo', { did: user.did }, bearer(there))).bytes
    const recordsOf = async (car: Uint8Array, on: TestPds) =>
      (await verifyRepoCar(car, user.did, await keyOf(user.did, on))).creates.map(({ rkey, cid }) => `${rkey} ${cid}`)
    assert.deepEqual(await recordsOf(again, other), await recordsOf(bytes, pds))
  }
})

test('B84 sync.getRecord proves that a record is there, and that one is not', async () => {
  const { cid } = await put('proven', { text: 'here' })
  const key = await keyOf(alice.did)
  for (const [rkey, claimed] of [
    ['proven', cid],
    ['absent', null],
  ] as const) {
    const { status, headers, bytes } = await sync('getRecord', { did: alice.did, collection: NOTE, rkey })
    assert.deepEqual([status, headers.get('content-type')], [200, CAR])
    const claim = {
      collection: NOTE,
      rkey,
      cid: claimed && (await readCarWithRoot(bytes)).blocks.cids().find(c => `${c}` === claimed)!,
    }
    const { unverified } = await verifyProofs(bytes, [claim as never], alice.did, key)
    assert.deepEqual(unverified, [])
  }
  for (const bad of [{ rkey: 'a/b' }, { collection: 'x' }, { did: 'x' }])
    refused(
      await sync('getRecord', { did: alice.did, collection: NOTE, rkey: 'a', ...bad }),
      'InvalidRequest',
      /^Invalid com\.atproto\.sync/,
    )
})

test('B85 B86 getRepoStatus and listRepos tell who is here and how they are', async () => {
  const on = await startTestPds(later)
  const users: TestUser[] = []
  for (const name of ['ann', 'ben', 'cas']) users.push(await on.user(name))
  const [ann, ben, cas] = users as [TestUser, TestUser, TestUser]
  await put('a', {}, ann, on)
  await on.post('com.atproto.server.deactivateAccount', {}, ben)
  const subject = { $type: 'com.atproto.admin.defs#repoRef', did: cas.did }
  await on.post('com.atproto.admin.updateSubjectStatus', { subject, takedown: { applied: true } }, null, basic())
  const statusOf = async (did: string) => (await on.get('com.atproto.sync.getRepoStatus', { did })).json
  const latest = async (did: string) => (await on.get('com.atproto.sync.getLatestCommit', { did }, basic())).json
  const { rev } = await latest(ann.did)
  assert.deepEqual(await statusOf(ann.did), { did: ann.did, active: true, rev })
  assert.deepEqual(await statusOf(ben.did), { did: ben.did, active: false, status: 'deactivated' })
  assert.deepEqual(await statusOf(cas.did), { did: cas.did, active: false, status: 'takendown' })
  const states = [{ active: true }, { active: false, status: 'deactivated' }, { active: false, status: 'takendown' }]
  const entries = []
  for (const [i, { did }] of users.entries()) {
    const { cid, rev } = await latest(did)
    entries.push({ did, head: cid, rev, ...states[i] })
  }
  const list = (params: Body) => on.get('com.atproto.sync.listRepos', params)
  assert.deepEqual((await list({})).json.repos, entries)
  const paged = []
  for (let cursor: string | undefined, page = 0; page === 0 || cursor; page++) {
    const { json } = await list({ limit: 1, cursor })
    paged.push(...json.repos)
    cursor = json.cursor
  }
  assert.deepEqual(paged, entries)
  for (const cursor of ['x', 'x::did:plc:x']) refused(await list({ cursor }), 'InvalidRequest', 'Malformed cursor')
  for (const limit of [0, 1_001, 'x'])
    refused(await list({ limit }), 'InvalidRequest', /^Invalid com\.atproto\.sync\.listRepos/)
  const byCollection = await on.get('com.atproto.sync.listReposByCollection', { collection: NOTE })
  assert.deepEqual(byCollection.json, { repos: [{ did: ann.did }] })
})

test('B86 what only relays serve is not implemented here', async () => {
  const hostname = 'a.example'
  const answers = [
    await sync('listHosts'),
    await sync('getHostStatus', { hostname }),
    await pds.post('com.atproto.sync.requestCrawl', { hostname }),
    await pds.post('com.atproto.sync.notifyOfUpdate', { hostname }),
  ]
  for (const { status, json } of answers)
    assert.deepEqual([status, json], [501, { error: 'MethodNotImplemented', message: 'Method Not Implemented' }])
})

test('B87 B88 getBlocks names what it lacks; getHead is still answered', async () => {
  const [one, two] = [await put('one'), await put('two')]
  const blocks = (cids: string[], did = alice.did) => sync('getBlocks', { did, cids })
  const { status, headers, bytes } = await blocks([one.cid, two.cid, one.cid, two.commit.cid])
  assert.deepEqual([status, headers.get('content-type')], [200, CAR])
  for (const { cid } of [one, two]) assert.ok(Buffer.from(bytes).includes(bytesOf(cid)))
  const lacking = await blocks([one.cid, SOME_CID, SOME_BLOB])
  refused(lacking, 'InvalidRequest', `Could not find cids: ${SOME_CID},${SOME_BLOB}`)
  refused(await blocks([one.commit.cid]), 'InvalidRequest', `Could not find cids: ${one.commit.cid}`)
  const bob = await pds.user('bystander')
  refused(await blocks([one.cid], bob.did), 'InvalidRequest', `Could not find cids: ${one.cid}`)
  refused(await blocks(['x']), 'InvalidRequest', /^Invalid com\.atproto\.sync\.getBlocks params: Invalid CID string/)
  refused(await blocks([]), 'InvalidRequest', /Missing required key "cids"/)
  assert.deepEqual((await sync('getHead', { did: alice.did })).json, { root: two.commit.cid })
})

const bytesOf = (cid: string) => Buffer.from(base32(cid.slice(1)))

function base32(text: string): number[] {
  let bits = ''
  for (const char of text) bits += 'abcdefghijklmnopqrstuvwxyz234567'.indexOf(char).toString(2).padStart(5, '0')
  return (bits.match(/.{8}/g) ?? []).map(byte => Number.parseInt(byte, 2))
}
