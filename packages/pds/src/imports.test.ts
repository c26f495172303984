import assert from 'node:assert/strict'
import { randomBytes, randomUUID } from 'node:crypto'
import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { Blocks } from '@millisky/core/blocks'
import { readCar, writeCar } from '@millisky/core/car'
import { encode, type Obj } from '@millisky/core/cbor'
import { Cid } from '@millisky/core/cid'
import { signCommit } from '@millisky/core/commit'
import { SigningKey } from '@millisky/core/crypto'
import { decodeFrame } from '@millisky/core/event'
import { Tree } from '@millisky/core/mst/tree'
import { verifyRepo } from '@millisky/core/repo'
import { encodeTid } from '@millisky/core/tid'
import { framesOf } from '@millisky/server/log/frame-wire'
import { Imports } from './imports.ts'
import { bearer, startTestPds, type TestPds, type TestUser } from './testing-pds.ts'
import { SCOPES, Tokens } from './tokens.ts'

const CAR = { 'content-type': 'application/vnd.ipld.car' }
const collection = 'com.example.thing'

const put = async (pds: TestPds, user: TestUser, rkey: string, record: object) => {
  const answer = await pds.post('com.atproto.repo.putRecord', { repo: user.did, collection, rkey, record }, user)
  assert.equal(answer.status, 200, JSON.stringify(answer.json))
  return answer.json
}
const remove = (pds: TestPds, user: TestUser, rkey: string) =>
  pds.post('com.atproto.repo.deleteRecord', { repo: user.did, collection, rkey }, user)
const fetchCar = async (pds: TestPds, user: TestUser, since?: string) =>
  (await pds.get('com.atproto.sync.getRepo', { did: user.did, since }, bearer(user))).bytes
const importCar = (pds: TestPds, user: TestUser, car: Uint8Array) =>
  pds.post('com.atproto.repo.importRepo', car, user, CAR)

/** The new home, where the account arrives with another key. */
async function arrive(pds: TestPds, name: string, options = { deactivated: true }): Promise<TestUser> {
  const user = await pds.user(name, options)
  const key = { curve: 'p256' as const, secret: new Uint8Array(randomBytes(32)) }
  await pds.store.accounts.update(user.account.id, { key }, [])
  return user
}

/** Verifies a repository with the account's key here, and that records, nodes and references are those of its tree. */
async function holds(pds: TestPds, user: TestUser): Promise<Map<string, string>> {
  const state = (await pds.store.repos.state(user.did))!
  const { roots, blocks } = readCar(await fetchCar(pds, user))
  const key = pds.repos.signingKey(state.key).publicKey
  const repo = verifyRepo({ root: roots[0]!, blocks: new Blocks(blocks) }, { did: user.did, key })
  assert.equal(repo.head.rev, state.head.rev)
  const nodes = [...repo.nodes].length
  const records = new Map([...repo.records].map(({ path, cid }) => [path as string, cid.toString()]))
  assert.deepEqual(await pds.store.repos.counts(user.account.id), { nodes, records: records.size })
  return records
}

test('an account moves in, again and again, by whole files and by what is new', async t => {
  const [old, fresh] = [await startTestPds(t), await startTestPds(t)]
  const there = await old.user('alice')
  const here = await arrive(fresh, 'alice')
  for (let i = 0; i < 80; i++) await put(old, there, `r${i}`, { i: i % 9 })
  const { head } = fresh.store.log
  const first = await importCar(fresh, here, await fetchCar(old, there))
  assert.deepEqual([first.status, first.bytes.length], [200, 0], JSON.stringify(first.json))
  assert.deepEqual(await holds(fresh, here), await holds(old, there))
  const before = (await old.store.repos.state(there.did))!.head
  const after = (await fresh.store.repos.state(here.did))!.head
  assert.ok(after.rev > before.rev)
  assert.equal(String(after.data), String(before.data))
  assert.notEqual(String(after.commit), String(before.commit))

  for (let i = 0; i < 80; i += 7) await remove(old, there, `r${i}`)
  for (let i = 3; i < 80; i += 11) await put(old, there, `r${i}`, { i: `changed ${i}` })
  await put(old, there, 'z', { new: true })
  assert.equal((await importCar(fresh, here, await fetchCar(old, there, before.rev))).status, 200)
  assert.deepEqual(await holds(fresh, here), await holds(old, there))
  await put(old, there, 'zz', { new: true })
  assert.equal((await importCar(fresh, here, await fetchCar(old, there))).status, 200)
  assert.deepEqual(await holds(fresh, here), await holds(old, there))
  assert.equal(fresh.store.log.head, head, 'nothing is told of an account that is not active')

  await fresh.lifecycle.activate(here.did)
  await put(fresh, here, 'here', { new: true })
  assert.equal((await holds(fresh, here)).size, (await holds(old, there)).size + 1)
})

test('an import on a live account is told by #sync', async t => {
  const [old, fresh] = [await startTestPds(t), await startTestPds(t)]
  const there = await old.user('alice')
  const here = await arrive(fresh, 'alice', { deactivated: false })
  await put(fresh, here, 'gone', { here: true })
  await put(old, there, 'a', { there: true })
  const { head } = fresh.store.log
  assert.equal((await importCar(fresh, here, await fetchCar(old, there))).status, 200)
  assert.deepEqual([...(await holds(fresh, here)).keys()], [`${collection}/a`])
  const batch = await fresh.store.log.read(head, { bytes: 1 << 20 })
  const told = [...framesOf(batch.wire)].map(decodeFrame)
  assert.deepEqual(
    told.map(frame => [frame.t, frame.body.rev]),
    [['#sync', (await fresh.store.repos.state(here.did))!.head.rev]],
  )
})

test('blobs are asked for, and held when they come', async t => {
  const [old, fresh] = [await startTestPds(t), await startTestPds(t)]
  const there = await old.user('alice')
  const here = await arrive(fresh, 'alice')
  const bytes = new Uint8Array(randomBytes(50))
  const octets = { 'content-type': 'application/octet-stream' }
  const { blob } = (await old.post('com.atproto.repo.uploadBlob', bytes, there, octets)).json
  await put(old, there, 'a', { blob })
  await importCar(fresh, here, await fetchCar(old, there))
  const missing = async () => (await fresh.get('com.atproto.repo.listMissingBlobs', {}, bearer(here))).json.blobs
  assert.deepEqual(await missing(), [{ cid: blob.ref.$link, recordUri: `at://${here.did}/${collection}/a` }])
  await fresh.post('com.atproto.repo.uploadBlob', bytes, here, octets)
  assert.deepEqual(await missing(), [])
  await fresh.lifecycle.activate(here.did)
  const got = await fresh.get('com.atproto.sync.getBlob', { did: here.did, cid: blob.ref.$link })
  assert.deepEqual(got.bytes, bytes)
})

/** A repository made by hand. */
function craft(did: string, records: Record<string, Obj>, revMs = Date.now()) {
  const key = SigningKey.fromPrivate('k256', new Uint8Array(randomBytes(32)))
  const blocks = Object.entries(records).map(([path, record]) => {
    const bytes = encode(record)
    return { path, cid: Cid.ofCbor(bytes), bytes }
  })
  const sorted = blocks.toSorted((a, b) => (a.path < b.path ? -1 : 1))
  const tree = Tree.build(sorted.map(({ path, cid }) => [path, cid]))
  const rev = encodeTid(revMs * 1000, 1)
  const { block } = signCommit({ did: did as never, data: tree.root, rev }, key)
  return { commit: block, nodes: [...tree.nodes()], records: blocks, rev }
}

test('what was written elsewhere by older rules is taken as it is', async t => {
  const pds = await startTestPds(t)
  const alice = await arrive(pds, 'alice')
  const [legacy, typed] = ['legacy', 'typed'].map(text => Cid.ofRaw(Buffer.from(text))) as [Cid, Cid]
  const { commit, nodes, records } = craft(alice.did, {
    [`${collection}/a`]: { image: { cid: legacy.toString(), mimeType: 'image/png' } },
    [`${collection}/b`]: { image: { $type: 'blob', ref: typed, mimeType: '', size: -1 }, odd: { $type: 'blob' } },
  })
  const stray = { cid: Cid.ofCbor(encode({ stray: true })), bytes: encode({ stray: true }) }
  const car = writeCar([commit.cid], [stray, ...records, ...nodes.toReversed(), commit])
  assert.equal((await importCar(pds, alice, car)).status, 200)
  const { json } = await pds.get('com.atproto.repo.listMissingBlobs', {}, bearer(alice))
  assert.deepEqual(
    new Set(json.blobs.map((blob: { cid: string }) => blob.cid)),
    new Set([legacy.toString(), typed.toString()]),
  )
  assert.equal(await pds.store.repos.snapshot(alice.account.id, view => Promise.resolve(view.has(stray.cid))), false)
})

test('a profile from elsewhere can be changed, whatever it says of its pictures', async t => {
  const pds = await startTestPds(t)
  const alice = await arrive(pds, 'alice')
  const type = 'app.bsky.actor.profile'
  const [old, told] = ['avatar', 'banner'].map(text => Buffer.from(text)) as [Buffer, Buffer]
  const avatar = { cid: Cid.ofRaw(old).toString(), mimeType: 'image/jpeg' }
  // Said to be of another type than is kept here, and of a size of its own.
  const banner = { $type: 'blob', ref: Cid.ofRaw(told), mimeType: 'image/jpeg', size: 7 }
  const { commit, nodes, records } = craft(alice.did, { [`${type}/self`]: { $type: type, avatar, banner } })
  await importCar(pds, alice, writeCar([commit.cid], [commit, ...nodes, ...records]))
  await pds.lifecycle.activate(alice.did)
  const where = { repo: alice.did, collection: type, rkey: 'self' }
  const save = (record: object) => pds.post('com.atproto.repo.putRecord', { ...where, record }, alice)
  const { value } = (await pds.get('com.atproto.repo.getRecord', where)).json
  const unknown = await save({ ...value, displayName: 'Alice' })
  assert.deepEqual([unknown.status, unknown.json.error], [400, 'BlobNotFound'])
  for (const bytes of [old, told])
    await pds.post('com.atproto.repo.uploadBlob', bytes, alice, { 'content-type': 'image/png' })
  const saved = await save({ ...value, displayName: 'Alice' })
  assert.equal(saved.status, 200, JSON.stringify(saved.json))
  const renewed = { $type: 'blob', ref: { $link: avatar.cid }, mimeType: 'image/png', size: old.length }
  assert.deepEqual((await pds.get('com.atproto.repo.getRecord', where)).json.value, {
    ...value,
    avatar: renewed,
    displayName: 'Alice',
  })
  // Only what stood there already is let be.
  const changed = await save({ ...value, banner: { ...value.banner, size: 8 } })
  assert.deepEqual([changed.status, changed.json.error], [400, 'InvalidMimeType'])
  const elsewhere = await pds.post(
    'com.atproto.repo.putRecord',
    { ...where, collection, record: { banner: value.banner } },
    alice,
  )
  assert.deepEqual([elsewhere.status, elsewhere.json.error], [400, 'InvalidMimeType'])
})

test('a rev from the future is passed over', async t => {
  const pds = await startTestPds(t)
  const alice = await arrive(pds, 'alice')
  for (const [ahead, taken] of [
    [60_000, true],
    [3_600_000, false],
  ] as const) {
    const { commit, nodes, records, rev } = craft(alice.did, { [`${collection}/a`]: { ahead } }, Date.now() + ahead)
    assert.equal((await importCar(pds, alice, writeCar([commit.cid], [commit, ...nodes, ...records]))).status, 200)
    assert.equal((await pds.store.repos.state(alice.did))!.head.rev > rev, taken)
  }
})

test('what does not fit is refused, and changes nothing', async t => {
  const pds = await startTestPds(t)
  const [alice, bob] = [await pds.user('alice', { deactivated: true }), await pds.user('bob')]
  const good = craft(
    alice.did,
    Object.fromEntries(Array.from({ length: 50 }, (_, i) => [`${collection}/r${i}`, { i }])),
  )
  const { commit, nodes, records } = good
  const whole = [commit, ...nodes, ...records]
  const car = writeCar([commit.cid], whole)
  const tampered = car.slice()
  tampered[tampered.length - 1]! ^= 1
  const foreign = craft(bob.did, { [`${collection}/a`]: {} })
  const noMap = craft(alice.did, { [`${collection}/a`]: 5 as never })
  const cases: [string, Uint8Array, RegExp][] = [
    ['another account', writeCar([foreign.commit.cid], [foreign.commit, ...foreign.nodes]), /instead of/],
    ['two roots', writeCar([commit.cid, commit.cid], whole), /expected one root/],
    ['no root', writeCar([], whole), /expected one root/],
    ['a wrong hash', tampered, /does not match/],
    ['cut short', car.subarray(0, car.length - 3), /cut short/],
    ['no commit', writeCar([commit.cid], nodes), /lacks its commit/],
    ['no node', writeCar([commit.cid], [commit, ...nodes.slice(0, -1), ...records]), /lacks the block/],
    ['no record', writeCar([commit.cid], [commit, ...nodes, ...records.slice(1)]), /lacks the block/],
    ['no commit but a record', writeCar([records[0]!.cid], records), /commit/],
    ['not a map', writeCar([noMap.commit.cid], [noMap.commit, ...noMap.nodes, ...noMap.records]), /not a map/],
    ['nothing', new Uint8Array(), /cut short/],
    ['noise', new Uint8Array(randomBytes(500)), /./],
  ]
  const before = (await pds.store.repos.state(alice.did))!
  for (const [name, bytes, message] of cases) {
    const { status, json } = await importCar(pds, alice, bytes)
    assert.deepEqual([status, json.error], [400, 'InvalidRequest'], name)
    assert.match(json.message, message, name)
  }
  assert.deepEqual(await pds.store.repos.state(alice.did), before)
  assert.equal((await holds(pds, alice)).size, 0)
  assert.equal((await importCar(pds, alice, car)).status, 200)
  assert.equal((await holds(pds, alice)).size, 50)
})

test('a block that is named over and over counts each time', async t => {
  const pds = await startTestPds(t, { PDS_MAX_REPO_IMPORT_SIZE: '200000' })
  const alice = await pds.user('alice', { deactivated: true })
  const paths = Array.from({ length: 9 }, (_, i) => `${collection}/r${i}`)
  const give = (bytes: number) => {
    const value = { text: 'x'.repeat(bytes) }
    const { commit, nodes, records } = craft(alice.did, Object.fromEntries(paths.map(path => [path, value])))
    return importCar(pds, alice, writeCar([commit.cid], [commit, ...nodes, records[0]!]))
  }
  const { status, json } = await give(30_000)
  assert.deepEqual([status, json.message], [400, 'the records come to more than 200000 bytes'])
  assert.equal((await holds(pds, alice)).size, 0)
  assert.equal((await give(20_000)).status, 200)
  assert.equal((await holds(pds, alice)).size, 9)
})

test('who may import, and where', async t => {
  const pds = await startTestPds(t)
  const alice = await arrive(pds, 'alice')
  const { commit, nodes } = craft(alice.did, {})
  const car = writeCar([commit.cid], [commit, ...nodes])
  const tokens = new Tokens('a secret of tests', pds.names.did, Date.now)
  const app = { ...alice, token: await tokens.access(alice.did, SCOPES.appPass) }
  assert.equal((await importCar(pds, app, car)).json.error, 'InvalidToken')
  assert.equal((await pds.post('com.atproto.repo.importRepo', car, null, CAR)).json.error, 'AuthMissing')
  await pds.lifecycle.takedown(alice.did, 'ref')
  assert.equal((await importCar(pds, alice, car)).json.error, 'AccountTakedown')
  const closed = await startTestPds(t, { PDS_ACCEPTING_REPO_IMPORTS: 'false' })
  const message = (await importCar(closed, await arrive(closed, 'alice'), car)).json.message
  assert.equal(message, 'Service is not accepting repo imports')
  const small = await startTestPds(t, { PDS_MAX_REPO_IMPORT_SIZE: '100' })
  assert.equal((await importCar(small, await arrive(small, 'alice'), new Uint8Array(101))).status, 413)
})

test('names that a crash has left are removed at the start, other files stay', async t => {
  const folder = await mkdtemp(join(tmpdir(), 'millisky-imports-'))
  t.after(() => rm(folder, { recursive: true }))
  await writeFile(join(folder, `${randomUUID()}.import`), '')
  await writeFile(join(folder, 'upload'), '')
  new Imports(null as never, folder, 1)
  new Imports(null as never, join(folder, 'absent'), 1)
  assert.deepEqual(await readdir(folder), ['upload'])
})
