import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Blocks } from '@millisky/core/blocks'
import { readCar } from '@millisky/core/car'
import { Cid } from '@millisky/core/cid'
import { decodeCommit } from '@millisky/core/commit'
import { verifyProof } from '@millisky/core/mst/proof'
import { Tree } from '@millisky/core/mst/tree'
import { exportOrder, verifyRepo } from '@millisky/core/repo'
import { basic, bearer, startTestPds, type TestPds, type TestUser } from '../testing-pds.ts'

const createdAt = '2026-01-02T03:04:05.678Z'
const collection = 'app.bsky.feed.post'

async function write(pds: TestPds, user: TestUser, text: string): Promise<{ uri: string; cid: string; rev: string }> {
  const body = { repo: user.did, collection, record: { text, createdAt } }
  const { status, json } = await pds.post('com.atproto.repo.createRecord', body, user)
  assert.equal(status, 200, JSON.stringify(json))
  return { uri: json.uri, cid: json.cid, rev: json.commit.rev }
}

const octets = { 'content-type': 'application/octet-stream' }
const rkeyOf = (uri: string) => uri.split('/').at(-1)!

test('a whole repository verifies, and its order can be streamed', async t => {
  const pds = await startTestPds(t)
  const alice = await pds.user('alice')
  for (let i = 0; i < 120; i++) await write(pds, alice, `post ${i % 7}`)
  const { status, headers, bytes } = await pds.get('com.atproto.sync.getRepo', { did: alice.did })
  assert.equal(status, 200)
  assert.equal(headers.get('content-type'), 'application/vnd.ipld.car')
  const { roots, blocks } = readCar(bytes)
  const state = (await pds.store.repos.state(alice.did))!
  assert.deepEqual(roots.map(String), [state.head.commit.toString()])
  const repo = verifyRepo(
    { root: roots[0]!, blocks: new Blocks(blocks) },
    { did: alice.did, key: pds.repos.signingKey(state.key).publicKey },
  )
  assert.equal([...repo.records].length, 120)
  assert.equal(repo.head.rev, state.head.rev)
  const source = new Blocks(blocks)
  const tree = Tree.load(state.head.data, source)
  const order = [...exportOrder(blocks[0]!, tree, cid => source.get(cid)!)]
  assert.deepEqual(
    blocks.map(block => block.cid.toString()),
    order.map(block => block.cid.toString()),
  )
})

test('since gives what came after a rev and nothing else', async t => {
  const pds = await startTestPds(t)
  const alice = await pds.user('alice')
  const revs: string[] = []
  for (let i = 0; i < 60; i++) revs.push((await write(pds, alice, `post ${i}`)).rev)
  const full = readCar((await pds.get('com.atproto.sync.getRepo', { did: alice.did })).bytes).blocks
  const namesOf = (blocks: Iterable<{ cid: Cid }>) => new Set([...blocks].map(block => block.cid.toString()))
  for (const at of [0, 1, 30, 57, 58]) {
    const before = new Set<string>()
    const { bytes } = await pds.get('com.atproto.sync.getRepo', { did: alice.did, since: revs[at] })
    const since = namesOf(readCar(bytes).blocks)
    for (const name of namesOf(full)) if (!since.has(name)) before.add(name)
    const records = await pds.store.repos.records(alice.account.id, { collection: collection as never, limit: 100 })
    for (const record of records) {
      assert.equal(since.has(record.cid.toString()), record.rev > revs[at]!, record.path)
    }
    // With what there was at `since`, it makes the whole repository: so nothing new is among what was left out.
    for (const name of before) {
      const [block] = await pds.store.repos.nodes(alice.account.id, [Cid.parse(name)])
      if (!block) continue
      const made = await pds.store.repos.snapshot(alice.account.id, async view => (await view.node(block.cid)).rev)
      assert.ok(made <= revs[at]!)
    }
  }
  const none = await pds.get('com.atproto.sync.getRepo', { did: alice.did, since: revs.at(-1) })
  assert.equal(readCar(none.bytes).blocks.length, 0)
  const unknown = await pds.get('com.atproto.sync.getRepo', { did: alice.did, since: '2222222222222' })
  assert.equal(readCar(unknown.bytes).blocks.length, full.length)
})

test('an export is of one moment, whatever is written meanwhile', async t => {
  const pds = await startTestPds(t)
  const alice = await pds.user('alice')
  for (let i = 0; i < 30; i++) await write(pds, alice, `post ${i}`)
  const exporting = Promise.all(
    Array.from({ length: 6 }, () => pds.get('com.atproto.sync.getRepo', { did: alice.did })),
  )
  for (let i = 0; i < 30; i++) await write(pds, alice, `later ${i}`)
  for (const { bytes } of await exporting) {
    const { roots, blocks } = readCar(bytes)
    const repo = verifyRepo({ root: roots[0]!, blocks: new Blocks(blocks) }, { did: alice.did })
    const count = [...repo.records].length
    assert.ok(count >= 30 && count <= 60)
  }
})

test('proofs of a record and of its absence', async t => {
  const pds = await startTestPds(t)
  const alice = await pds.user('alice')
  let last = await write(pds, alice, 'first')
  for (let i = 0; i < 40; i++) last = await write(pds, alice, `post ${i}`)
  const { head } = (await pds.store.repos.state(alice.did))!
  for (const rkey of [rkeyOf(last.uri), '2222222222222']) {
    const { bytes } = await pds.get('com.atproto.sync.getRecord', { did: alice.did, collection, rkey })
    const { roots, blocks } = readCar(bytes)
    const source = new Blocks(blocks)
    assert.ok(roots[0]!.equals(head.commit))
    const { data } = decodeCommit(source.get(roots[0]!)!)
    const found = verifyProof(data, source, `${collection}/${rkey}`)
    assert.equal(found?.toString(), rkey === rkeyOf(last.uri) ? last.cid : undefined)
    assert.equal(source.has(Cid.parse(last.cid)), found !== null)
  }
})

test('blocks by CID, the head, the status', async t => {
  const pds = await startTestPds(t)
  const alice = await pds.user('alice')
  const { cid, rev } = await write(pds, alice, 'x')
  const { head } = (await pds.store.repos.state(alice.did))!
  const { did } = alice
  const cids = [head.commit.toString(), head.data.toString(), cid, cid]
  const { bytes } = await pds.get('com.atproto.sync.getBlocks', { did, cids })
  assert.deepEqual(new Set(readCar(bytes).blocks.map(block => block.cid.toString())), new Set(cids))
  const unknown = Cid.ofCbor(new Uint8Array([1])).toString()
  const lacking = await pds.get('com.atproto.sync.getBlocks', { did, cids: [cid, unknown] })
  assert.deepEqual([lacking.status, lacking.json.message], [400, `Could not find cids: ${unknown}`])
  assert.deepEqual((await pds.get('com.atproto.sync.getLatestCommit', { did })).json, { cid: cids[0], rev })
  assert.deepEqual((await pds.get('com.atproto.sync.getHead', { did })).json, { root: cids[0] })
  assert.deepEqual((await pds.get('com.atproto.sync.getRepoStatus', { did })).json, { did, active: true, rev })
  const checkout = await pds.get('com.atproto.sync.getCheckout', { did })
  assert.ok(readCar(checkout.bytes).blocks.length >= 3)
})

test('every status answers in its way, owner and admin excepted', async t => {
  const pds = await startTestPds(t)
  const alice = await pds.user('alice')
  const { did } = alice
  const { uri } = await write(pds, alice, 'x')
  const { head } = (await pds.store.repos.state(did))!
  const blob = (await pds.post('com.atproto.repo.uploadBlob', new Uint8Array([1, 2, 3]), alice, octets)).json.blob
  await pds.post(
    'com.atproto.repo.createRecord',
    { repo: did, collection: 'com.example.file', record: { file: blob } },
    alice,
  )
  const reads: [string, object][] = [
    ['com.atproto.sync.getRepo', { did }],
    ['com.atproto.sync.getCheckout', { did }],
    ['com.atproto.sync.getRecord', { did, collection, rkey: rkeyOf(uri) }],
    ['com.atproto.sync.getBlocks', { did, cids: [head.data.toString()] }],
    ['com.atproto.sync.getLatestCommit', { did }],
    ['com.atproto.sync.getHead', { did }],
    ['com.atproto.sync.listBlobs', { did }],
    ['com.atproto.sync.getBlob', { did, cid: blob.ref.$link }],
  ]
  const bob = await pds.user('bob')
  const check = async (error: string | null, message?: string) => {
    for (const [method, params] of reads) {
      if (method.endsWith('getBlocks') && error === null) continue
      for (const headers of [{}, bearer(bob)]) {
        const { status, json } = await pds.get(method, params as Record<string, unknown>, headers)
        if (error === null) assert.equal(status, 200, method)
        else assert.deepEqual([status, json.error, json.message], [400, error, message], method)
      }
      for (const headers of [bearer(alice), basic()]) {
        if (method.endsWith('getBlocks')) continue
        assert.equal((await pds.get(method, params as Record<string, unknown>, headers)).status, 200, method)
      }
    }
  }
  const status = async () => (await pds.get('com.atproto.sync.getRepoStatus', { did })).json
  const listed = async () => {
    const { json } = await pds.get('com.atproto.sync.listRepos')
    return json.repos.find((repo: { did: string }) => repo.did === did)
  }
  await check(null)
  await pds.lifecycle.deactivate(did)
  await check('RepoDeactivated', `Repo has been deactivated: ${did}`)
  assert.deepEqual(await status(), { did, active: false, status: 'deactivated' })
  assert.equal((await listed()).status, 'deactivated')
  await pds.lifecycle.suspend(did, true)
  await check('RepoSuspended', `Repo has been suspended: ${did}`)
  await pds.lifecycle.takedown(did, 'ref')
  await check('RepoTakendown', `Repo has been takendown: ${did}`)
  assert.deepEqual(await status(), { did, active: false, status: 'takendown' })
  await pds.lifecycle.takedown(did, null)
  await pds.lifecycle.suspend(did, false)
  await pds.lifecycle.activate(did)
  await check(null)
  assert.equal((await listed()).active, true)
  await pds.lifecycle.remove(did)
  for (const [method, params] of [...reads, ['com.atproto.sync.getRepoStatus', { did }] as const]) {
    const { status, json } = await pds.get(method, params as Record<string, unknown>, basic())
    const error = method.endsWith('getHead') ? 'HeadNotFound' : 'RepoNotFound'
    assert.deepEqual([status, json.error], [400, error], method)
  }
  assert.equal(await listed(), undefined)
})

test('listRepos pages through all accounts', async t => {
  const pds = await startTestPds(t)
  const dids: string[] = []
  for (let i = 0; i < 7; i++) dids.push((await pds.user(`user${i}`)).did)
  const found: string[] = []
  for (let cursor: string | undefined, first = true; first || cursor !== undefined; first = false) {
    const { json } = await pds.get('com.atproto.sync.listRepos', { limit: 3, cursor })
    found.push(...json.repos.map((repo: { did: string }) => repo.did))
    cursor = json.cursor
  }
  assert.deepEqual(found, dids)
  const bad = await pds.get('com.atproto.sync.listRepos', { cursor: 'x' })
  assert.deepEqual([bad.status, bad.json], [400, { error: 'InvalidRequest', message: 'Malformed cursor' }])
})

test('listReposByCollection pages through accounts in use that have records of a collection', async t => {
  const pds = await startTestPds(t)
  const list = (params: { collection?: string; limit?: number; cursor?: string }) =>
    pds.get('com.atproto.sync.listReposByCollection', { collection, ...params })
  const users: TestUser[] = []
  for (let i = 0; i < 6; i++) users.push(await pds.user(`user${i}`))
  const uris: string[] = []
  for (const i of [0, 2, 3, 5]) uris.push((await write(pds, users[i]!, 'hello')).uri)
  await pds.post('com.atproto.server.deactivateAccount', {}, users[3]!)
  const paged = async (limit: number) => {
    const found: string[] = []
    for (let cursor: string | undefined, first = true; first || cursor !== undefined; first = false) {
      const { json } = await list({ limit, ...(cursor ? { cursor } : {}) })
      found.push(...json.repos.map((repo: { did: string }) => repo.did))
      cursor = json.cursor
    }
    return found
  }
  for (const limit of [1, 2, 500]) {
    assert.deepEqual(
      await paged(limit),
      [0, 2, 5].map(i => users[i]!.did),
    )
  }
  await pds.post(
    'com.atproto.repo.deleteRecord',
    { repo: users[2]!.did, collection, rkey: rkeyOf(uris[1]!) },
    users[2]!,
  )
  assert.deepEqual(
    await paged(500),
    [0, 5].map(i => users[i]!.did),
  )
  // A name that begins the same is another collection.
  assert.deepEqual((await list({ collection: 'app.bsky.feed.pos' })).json.repos, [])
  for (const bad of [{ collection: 'no nsid' }, { limit: 2_001 }, { limit: 0 }, { cursor: 'x' }]) {
    assert.equal((await list(bad)).status, 400, JSON.stringify(bad))
  }
})

test('the event stream as plain HTTP says what it is', async t => {
  const pds = await startTestPds(t)
  const get = await pds.get('com.atproto.sync.subscribeRepos')
  assert.equal(get.status, 426)
  assert.match(get.json.message, /WebSocket/)
  assert.equal((await pds.post('com.atproto.sync.subscribeRepos', {})).status, 405)
})
