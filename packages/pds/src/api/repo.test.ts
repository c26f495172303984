import assert from 'node:assert/strict'
import { test } from 'node:test'
import { isTid } from '@millisky/core/syntax'
import { encodeTid } from '@millisky/core/tid'
import { startTestPds, type TestUser } from '../testing-pds.ts'

const createdAt = '2026-01-02T03:04:05.678Z'
const post = (text: string) => ({ $type: 'app.bsky.feed.post', text, createdAt })
const create = (user: TestUser, record: object, more: object = {}) => ({
  repo: user.did,
  collection: 'app.bsky.feed.post',
  record,
  ...more,
})

test('a record is created, read, changed and deleted', async t => {
  const pds = await startTestPds(t)
  const alice = await pds.user('alice')
  const made = await pds.post('com.atproto.repo.createRecord', create(alice, post('hello')), alice)
  assert.equal(made.status, 200, JSON.stringify(made.json))
  const { uri, cid, commit, validationStatus } = made.json
  assert.equal(validationStatus, 'valid')
  const rkey = uri.split('/').at(-1)
  assert.ok(isTid(rkey) && isTid(commit.rev))
  const where = { repo: alice.did, collection: 'app.bsky.feed.post', rkey }
  const read = await pds.get('com.atproto.repo.getRecord', where)
  assert.deepEqual(read.json, { uri, cid, value: post('hello') })
  for (const repo of ['alice.test', 'Alice.TEST']) {
    assert.deepEqual((await pds.get('com.atproto.repo.getRecord', { ...where, repo })).json, read.json)
    assert.equal(
      (await pds.post('com.atproto.repo.createRecord', create(alice, post('hi'), { repo }), alice)).status,
      200,
    )
  }

  const changed = await pds.post('com.atproto.repo.putRecord', { ...where, record: post('bye') }, alice)
  assert.notEqual(changed.json.cid, cid)
  assert.ok(changed.json.commit.rev > commit.rev)
  const same = await pds.post('com.atproto.repo.putRecord', { ...where, record: post('bye') }, alice)
  assert.equal(same.json.cid, changed.json.cid)
  assert.equal(same.json.commit, undefined)
  assert.equal((await pds.get('com.atproto.repo.getRecord', { ...where, cid })).json.error, 'RecordNotFound')

  const gone = await pds.post('com.atproto.repo.deleteRecord', where, alice)
  assert.ok(gone.json.commit.rev > changed.json.commit.rev)
  const again = await pds.post('com.atproto.repo.deleteRecord', where, alice)
  assert.deepEqual([again.status, again.json], [200, {}])
  const missing = await pds.get('com.atproto.repo.getRecord', where)
  assert.deepEqual(
    [missing.status, missing.json],
    [400, { error: 'RecordNotFound', message: `Could not locate record: ${uri}` }],
  )
})

test('what is not ours to write or read', async t => {
  const pds = await startTestPds(t)
  const [alice, bob] = [await pds.user('alice'), await pds.user('bob')]
  const nobody = await pds.post('com.atproto.repo.createRecord', create(alice, post('x')))
  assert.deepEqual([nobody.status, nobody.json.error], [401, 'AuthMissing'])
  const carol = await pds.user('carol', { deactivated: true })
  const refusals = {
    [alice.did]: [401, 'AuthenticationRequired'],
    'alice.test': [401, 'AuthenticationRequired'],
    [carol.did]: [401, 'AccountDeactivated'],
    'did:plc:ewvi7nxzyoun6zhxrhs64oiz': [403, 'AccountNotFound'],
    'nobody.test': [403, 'AccountNotFound'],
  }
  for (const [repo, expected] of Object.entries(refusals)) {
    const other = await pds.post('com.atproto.repo.createRecord', create(alice, post('x'), { repo }), bob)
    assert.deepEqual([other.status, other.json.error], expected, repo)
  }
  const foreign = { repo: 'did:plc:ewvi7nxzyoun6zhxrhs64oiz', collection: 'app.bsky.feed.post', rkey: 'a' }
  const elsewhere = await pds.get('com.atproto.repo.getRecord', foreign)
  assert.deepEqual(
    [elsewhere.status, elsewhere.json],
    [400, { error: 'InvalidRequest', message: 'Could not locate record' }],
  )
  const repo = await pds.get('com.atproto.repo.listRecords', { repo: 'nobody.test', collection: 'a.b.c' })
  assert.deepEqual(
    [repo.status, repo.json],
    [400, { error: 'InvalidRequest', message: 'Could not find repo: nobody.test' }],
  )
})

test('compare and swap', async t => {
  const pds = await startTestPds(t)
  const alice = await pds.user('alice')
  const first = (await pds.post('com.atproto.repo.createRecord', create(alice, post('1')), alice)).json
  const second = (
    await pds.post('com.atproto.repo.createRecord', create(alice, post('2'), { swapCommit: first.commit.cid }), alice)
  ).json
  assert.ok(second.commit)
  const late = await pds.post(
    'com.atproto.repo.createRecord',
    create(alice, post('3'), { swapCommit: first.commit.cid }),
    alice,
  )
  assert.deepEqual(
    [late.status, late.json],
    [400, { error: 'InvalidSwap', message: `Commit was at ${second.commit.cid}` }],
  )
  const where = { repo: alice.did, collection: 'app.bsky.actor.profile', rkey: 'self' }
  const profile = (displayName: string, swapRecord?: string | null) =>
    pds.post('com.atproto.repo.putRecord', { ...where, swapRecord, record: { displayName } }, alice)
  const mustBe = await profile('A', first.cid)
  assert.deepEqual([mustBe.status, mustBe.json], [400, { error: 'InvalidSwap', message: 'Record was at null' }])
  const made = await profile('A', null)
  assert.equal(made.status, 200)
  const mustNotBe = await profile('B', null)
  assert.deepEqual([mustNotBe.status, mustNotBe.json.message], [400, `Record was at ${made.json.cid}`])
  const swapped = await profile('B', made.json.cid)
  assert.equal(swapped.status, 200)
  const wrongDelete = await pds.post('com.atproto.repo.deleteRecord', { ...where, swapRecord: made.json.cid }, alice)
  assert.deepEqual([wrongDelete.status, wrongDelete.json.error], [400, 'InvalidSwap'])
  const right = await pds.post('com.atproto.repo.deleteRecord', { ...where, swapRecord: swapped.json.cid }, alice)
  assert.ok(right.json.commit)
})

test('one wins when many swap at once', async t => {
  const pds = await startTestPds(t)
  const alice = await pds.user('alice')
  const cid = (await pds.store.repos.state(alice.did))!.head.commit.toString()
  const answers = await Promise.all(
    Array.from({ length: 20 }, (_, i) =>
      pds.post('com.atproto.repo.createRecord', create(alice, post(`${i}`), { swapCommit: cid }), alice),
    ),
  )
  assert.equal(answers.filter(answer => answer.status === 200).length, 1)
  assert.ok(answers.every(answer => answer.status === 200 || answer.json.error === 'InvalidSwap'))
  assert.equal((await pds.store.repos.counts(alice.account.id)).records, 1)
})

test('applyWrites is one commit, whole or not at all', async t => {
  const pds = await startTestPds(t)
  const alice = await pds.user('alice')
  const collection = 'app.bsky.feed.post'
  const creates = (rkeys: string[]) =>
    rkeys.map(rkey => ({ $type: 'com.atproto.repo.applyWrites#create', collection, rkey, value: post(rkey) }))
  const rkeys = ['3jzfcijpj2aaa', '3jzfcijpj2aab']
  const two = creates(rkeys)
  const made = await pds.post('com.atproto.repo.applyWrites', { repo: alice.did, writes: two }, alice)
  assert.equal(made.status, 200, JSON.stringify(made.json))
  assert.deepEqual(
    made.json.results.map((result: { $type: string; uri: string }) => [result.$type, result.uri]),
    rkeys.map(rkey => ['com.atproto.repo.applyWrites#createResult', `at://${alice.did}/${collection}/${rkey}`]),
  )
  const mixed = await pds.post(
    'com.atproto.repo.applyWrites',
    {
      repo: alice.did,
      writes: [
        { $type: 'com.atproto.repo.applyWrites#update', collection, rkey: rkeys[0], value: post('changed') },
        { $type: 'com.atproto.repo.applyWrites#delete', collection, rkey: rkeys[1] },
      ],
    },
    alice,
  )
  assert.deepEqual(
    mixed.json.results.map((result: { $type: string }) => result.$type),
    ['com.atproto.repo.applyWrites#updateResult', 'com.atproto.repo.applyWrites#deleteResult'],
  )
  const half = await pds.post(
    'com.atproto.repo.applyWrites',
    {
      repo: alice.did,
      writes: [
        { $type: 'com.atproto.repo.applyWrites#create', collection, rkey: rkeys[1], value: post('new') },
        { $type: 'com.atproto.repo.applyWrites#delete', collection, rkey: '3jzfcijpj2zzz' },
      ],
    },
    alice,
  )
  assert.equal(half.status, 400)
  assert.equal((await pds.store.repos.counts(alice.account.id)).records, 1)
  const writes = creates(Array.from({ length: 201 }, (_, i) => encodeTid(i, 0)))
  const many = await pds.post('com.atproto.repo.applyWrites', { repo: alice.did, writes }, alice)
  assert.deepEqual([many.status, many.json.message], [400, 'Too many writes. Max: 200'])
  const nothing = await pds.post('com.atproto.repo.applyWrites', { repo: alice.did, writes: [] }, alice)
  assert.deepEqual([nothing.status, nothing.json], [200, { results: [] }])
})

test('a commit that would be too large for an event is refused', async t => {
  const pds = await startTestPds(t)
  const alice = await pds.user('alice')
  const big = 'x'.repeat(240_000)
  const writes = Array.from({ length: 4 }, (_, i) => ({
    $type: 'com.atproto.repo.applyWrites#create',
    collection: 'com.example.big',
    rkey: `r${i}`,
    value: { $type: 'com.example.big', a: big },
  }))
  assert.equal((await pds.post('com.atproto.repo.applyWrites', { repo: alice.did, writes }, alice)).status, 200)
  const large = await pds.post(
    'com.atproto.repo.createRecord',
    create(alice, { a: 'x'.repeat(1_000_001) }, { collection: 'com.example.big' }),
    alice,
  )
  assert.deepEqual([large.status, large.json.error], [413, 'PayloadTooLarge'])
})

test('liking, reposting and following again replaces the older record', async t => {
  const pds = await startTestPds(t)
  const [alice, bob] = [await pds.user('alice'), await pds.user('bob')]
  const target = (await pds.post('com.atproto.repo.createRecord', create(bob, post('like me')), bob)).json
  const like = { subject: { uri: target.uri, cid: target.cid }, createdAt }
  const add = (collection: string, record: object, more: object = {}) =>
    pds.post('com.atproto.repo.createRecord', create(alice, record, { collection, ...more }), alice)
  const list = async (collection: string) =>
    (await pds.get('com.atproto.repo.listRecords', { repo: alice.did, collection })).json.records
  for (const [collection, record] of [
    ['app.bsky.feed.like', like],
    ['app.bsky.feed.repost', like],
    ['app.bsky.graph.follow', { subject: bob.did, createdAt }],
  ] as const) {
    await add(collection, record)
    const second = await add(collection, record)
    assert.equal(second.status, 200, JSON.stringify(second.json))
    assert.deepEqual(
      (await list(collection)).map((found: { uri: string }) => found.uri),
      [second.json.uri],
    )
    await add(collection, record, { validate: false })
    assert.equal((await list(collection)).length, 2)
    const third = await add(collection, record)
    assert.deepEqual(
      (await list(collection)).map((found: { uri: string }) => found.uri),
      [third.json.uri],
    )
  }
})

test('listRecords pages through a collection in both directions', async t => {
  const pds = await startTestPds(t)
  const alice = await pds.user('alice')
  const collection = 'com.example.thing'
  const rkeys = Array.from({ length: 7 }, (_, i) => `r${i}`)
  for (const rkey of rkeys)
    await pds.post('com.atproto.repo.createRecord', create(alice, { n: 1 }, { collection, rkey }), alice)
  for (const other of ['com.example.thin', 'com.example.thing.more', 'com.example.things', 'com.example-x.thing']) {
    const body = create(alice, { n: 1 }, { collection: other, rkey: 'x' })
    assert.equal((await pds.post('com.atproto.repo.createRecord', body, alice)).status, 200)
  }
  const all = async (reverse: boolean) => {
    const found: string[] = []
    for (let cursor: string | undefined; ; ) {
      const { json } = await pds.get('com.atproto.repo.listRecords', {
        repo: alice.did,
        collection,
        limit: 3,
        reverse,
        cursor,
      })
      if (json.records.length === 0) {
        assert.equal(json.cursor, undefined)
        return found
      }
      assert.equal(json.cursor, json.records.at(-1).uri.split('/').at(-1))
      found.push(...json.records.map((record: { uri: string }) => record.uri.split('/').at(-1)))
      cursor = json.cursor
    }
  }
  assert.deepEqual(await all(true), rkeys)
  assert.deepEqual(await all(false), rkeys.toReversed())
  assert.deepEqual(await pds.store.repos.collections(alice.account.id), [
    'com.example-x.thing',
    'com.example.thin',
    'com.example.thing',
    'com.example.thing.more',
    'com.example.things',
  ])
})

test('inactive accounts write nothing and show nothing', async t => {
  const pds = await startTestPds(t)
  const alice = await pds.user('alice')
  const { uri } = (await pds.post('com.atproto.repo.createRecord', create(alice, post('x')), alice)).json
  const where = { repo: alice.did, collection: 'app.bsky.feed.post', rkey: uri.split('/').at(-1) }
  const expectations = [
    ['AccountDeactivated', () => pds.lifecycle.deactivate(alice.did)],
    ['AccountSuspended', () => pds.lifecycle.suspend(alice.did, true)],
    ['AccountTakedown', () => pds.lifecycle.takedown(alice.did, 'ref')],
  ] as const
  for (const [error, change] of expectations) {
    const { head } = pds.store.log
    await change()
    assert.equal(pds.store.log.head, head + 1)
    const write = await pds.post('com.atproto.repo.createRecord', create(alice, post('y')), alice)
    assert.deepEqual([write.status, write.json.error], [401, error])
    for (const wrong of await badWrites(pds, alice)) assert.equal(wrong, `401 ${error}`, 'before what is wrong with it')
    assert.equal((await pds.get('com.atproto.repo.getRecord', where)).json.message, 'Could not locate record')
    assert.equal((await pds.get('com.atproto.repo.listRecords', where)).status, 400)
    assert.equal(pds.store.log.head, head + 1)
  }
  await pds.lifecycle.takedown(alice.did, null)
  await pds.lifecycle.suspend(alice.did, false)
  await pds.lifecycle.activate(alice.did)
  assert.equal((await pds.post('com.atproto.repo.createRecord', create(alice, post('y')), alice)).status, 200)
})

/** What is said to writes that no account could make. */
async function badWrites(pds: Awaited<ReturnType<typeof startTestPds>>, user: TestUser): Promise<string[]> {
  const at = { repo: user.did, collection: 'app.bsky.feed.post', rkey: 'no-tid' }
  const value = { $type: 'app.bsky.feed.post', text: 5 }
  const writes = [{ $type: 'com.atproto.repo.applyWrites#create', collection: at.collection, rkey: at.rkey, value }]
  const said: string[] = []
  for (const [method, body] of [
    ['createRecord', { ...at, record: value }],
    ['putRecord', { ...at, record: value }],
    ['applyWrites', { repo: user.did, writes }],
  ] as const) {
    const { status, json } = await pds.post(`com.atproto.repo.${method}`, body, user)
    said.push(`${status} ${json.error}`)
  }
  return said
}

test('data that JSON cannot hold survives', async t => {
  const pds = await startTestPds(t)
  const alice = await pds.user('alice')
  const collection = 'com.example.data'
  const record = {
    link: { $link: 'bafyreidfayvfuwqa7qlnopdjiqrxzs6blmoeu4rujcjtnci5beludirz2a' },
    bytes: { $bytes: 'AAEC/w' },
    nested: [{ list: [null, true, -5, 'é'] }],
    legacy: { cid: 'not a cid', mimeType: 'image/png' },
  }
  const made = await pds.post('com.atproto.repo.createRecord', create(alice, record, { collection, rkey: 'a' }), alice)
  assert.equal(made.status, 200, JSON.stringify(made.json))
  const read = await pds.get('com.atproto.repo.getRecord', { repo: alice.did, collection, rkey: 'a' })
  assert.deepEqual(read.json.value, { $type: collection, ...record })
  for (const bad of [{ a: 1.5 }, { a: { $link: 'x' } }, [], 'text', 5]) {
    const body = create(alice, bad as object, { collection })
    const refused = await pds.post('com.atproto.repo.createRecord', body, alice)
    assert.deepEqual([refused.status, refused.json.error], [400, 'InvalidRequest'], JSON.stringify(bad))
  }
})

test('a taken key is not written over', async t => {
  const pds = await startTestPds(t)
  const alice = await pds.user('alice')
  const body = create(alice, { n: 1 }, { collection: 'com.example.thing', rkey: 'a' })
  const made = await pds.post('com.atproto.repo.createRecord', body, alice)
  const again = await pds.post('com.atproto.repo.createRecord', { ...body, record: { n: 2 } }, alice)
  assert.ok(again.status >= 400 && again.status < 500)
  const where = { repo: alice.did, collection: 'com.example.thing', rkey: 'a' }
  assert.equal((await pds.get('com.atproto.repo.getRecord', where)).json.cid, made.json.cid)
})
