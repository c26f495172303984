// What clients rely on when they write and read records, each behaviour under its number: B66 to B81. Other people's codecs
// say what the bytes are.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { create as cidFrom, toString as textOf } from '@atcute/cid'
import * as dagCbor from '@ipld/dag-cbor'
import { records as schemas } from '@millisky/core/lexicon/gen/records'
import { asNsid, isTid } from '@millisky/core/syntax'
import { prepareRecord } from '@millisky/pds/records'
import { failure, type NetworkedPds, signUp, startNetworkedPds } from '@millisky/pds/testing-network'
import type { Answer, TestUser } from '@millisky/pds/testing-pds'
import { CID } from 'multiformats/cid'

const POST = 'app.bsky.feed.post'
const LIKE = 'app.bsky.feed.like'
const PROFILE = 'app.bsky.actor.profile'
const NOTE = 'com.example.note'
const TID = '3jui7kd54zh2y'
const STRANGER = 'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa'
const SOME_CID = 'bafyreidfayvfuwqa7qlnopdjiqrxzs6blmoeu4rujcjtnci5beludirz2a'
const SOME_BLOB = 'bafkreiclp443lavogvhj3d2ob2cxbfuscni2k5jk7bebjzg7khl3esabwq'
const createdAt = '2026-08-20T12:00:00.000Z'
const PNG = Buffer.from(
  'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==',
  'base64',
)

let pds: NetworkedPds
let alice: TestUser
const cleanups: (() => Promise<void>)[] = []
before(async () => {
  pds = await startNetworkedPds({ after: fn => cleanups.push(fn) })
  alice = await pds.user('alice')
})
after(async () => {
  for (const cleanup of cleanups.reverse()) await cleanup()
})

type Body = Record<string, unknown>
const repo = (name: string) => `com.atproto.repo.${name}`
const create = (body: Body, user = alice) =>
  pds.post(repo('createRecord'), { repo: user.did, collection: NOTE, record: {}, ...body }, user)
const put = (body: Body, user = alice) =>
  pds.post(repo('putRecord'), { repo: user.did, collection: NOTE, record: {}, ...body }, user)
const remove = (body: Body, user = alice) =>
  pds.post(repo('deleteRecord'), { repo: user.did, collection: NOTE, ...body }, user)
const apply = (writes: unknown, more: Body = {}, user = alice) =>
  pds.post(repo('applyWrites'), { repo: user.did, writes, ...more }, user)
const write = (kind: string, fields: Body) => ({
  $type: `com.atproto.repo.applyWrites#${kind}`,
  collection: NOTE,
  ...fields,
})
const post = (more: Body = {}, call: Body = {}) =>
  create({ collection: POST, record: { $type: POST, text: 'x', createdAt, ...more }, ...call })
const keyOf = ({ json }: Answer): string => json.uri.split('/').at(-1)
const read = (rkey: string, more: Body = {}) =>
  pds.get(repo('getRecord'), { repo: alice.did, collection: NOTE, rkey, ...more })
const list = (params: Body) => pds.get(repo('listRecords'), { repo: alice.did, collection: NOTE, ...params })
const headOf = async (did: string) => (await pds.get('com.atproto.sync.getLatestCommit', { did })).json
const upload = async (bytes: Uint8Array, type: string, user = alice) =>
  (await pds.post(repo('uploadBlob'), bytes, user, { 'content-type': type })).json.blob

/** Refused with 400, by name and message. */
function refused(answer: Answer, message: string | RegExp, error = 'InvalidRequest'): void {
  assert.deepEqual([answer.status, answer.json?.error], [400, error], JSON.stringify(answer.json))
  if (typeof message === 'string') assert.equal(answer.json.message, message)
  else assert.match(answer.json.message, message)
}

function accepted(answer: Answer, status?: string): Answer {
  assert.equal(answer.status, 200, JSON.stringify(answer.json))
  assert.equal(answer.json.validationStatus, status)
  return answer
}

/** CIDs as somebody else's code computes them. */
const cidOf = async (record: unknown) => textOf(await cidFrom(0x71, dagCbor.encode(record)))
const rawCidOf = async (bytes: Uint8Array) => textOf(await cidFrom(0x55, Uint8Array.from(bytes)))

test('B66 createRecord tells where the record is, what it is, the commit, and how it was checked', async () => {
  const record = { $type: POST, text: 'hello', createdAt, langs: ['en'] }
  const { json, status, headers } = await create({ collection: POST, record })
  assert.equal(status, 200)
  assert.match(headers.get('content-type')!, /^application\/json/)
  assert.deepEqual(Object.keys(json).sort(), ['cid', 'commit', 'uri', 'validationStatus'])
  assert.deepEqual(Object.keys(json.commit).sort(), ['cid', 'rev'])
  const [, , did, collection, rkey] = json.uri.split('/')
  assert.deepEqual([did, collection, isTid(rkey), isTid(json.commit.rev)], [alice.did, POST, true, true])
  assert.equal(json.cid, await cidOf(record))
  assert.equal(json.validationStatus, 'valid')
  assert.deepEqual(await headOf(alice.did), json.commit)
  const keys = []
  for (let i = 0; i < 5; i++) keys.push(keyOf(await create({})))
  assert.deepEqual(keys, [...new Set(keys)].sort())
  const byHandle = await create({ repo: 'alice.test', collection: NOTE, rkey: 'chosen', record: { a: 1 } })
  assert.equal(byHandle.json.uri, `at://${alice.did}/${NOTE}/chosen`)
})

test('B66 what is written is not for others, and not for nobody', async () => {
  const bob = await pds.user('bob')
  const body = { repo: alice.did, collection: NOTE, record: {} }
  for (const [name, fields] of [
    ['createRecord', {}],
    ['putRecord', { rkey: 'a' }],
    ['deleteRecord', { rkey: 'a' }],
    ['applyWrites', { writes: [] }],
  ] as const) {
    const nobody = await pds.post(repo(name), { ...body, ...fields })
    assert.deepEqual(failure(nobody), [401, 'AuthMissing', 'Authentication Required'], name)
    const other = await pds.post(repo(name), { ...body, ...fields }, bob)
    assert.deepEqual(failure(other), [401, 'AuthenticationRequired', 'Authentication Required'], name)
    const unknown = await pds.post(repo(name), { ...body, ...fields, repo: STRANGER }, bob)
    assert.deepEqual(failure(unknown), [403, 'AccountNotFound', 'Account not found'], name)
  }
})

/** Keys in the order of the bytes. */
const UNICODE = '{"":0,"b":3,"aa":2,"é":1,"🙂":"🙂","日本":"語"}'
const MEMBERS = '{"cid":"x","$foo":1,"toString":"x","constructor":1}'

test('B66 what JSON says is what the bytes hold, and comes back', async () => {
  const link = CID.parse(SOME_CID)
  const bytes = Uint8Array.of(1, 2, 253)
  const blocks: [json: string, value: unknown, back?: string][] = [
    ['[1.0,1e2,-0,0]', [1, 100, 0, 0], '[1,100,0,0]'],
    ['[9007199254740991,-9007199254740991]', [Number.MAX_SAFE_INTEGER, Number.MIN_SAFE_INTEGER]],
    ['[9223372036854775807,-9223372036854775808,9007199254740993]', [2n ** 63n - 1n, -(2n ** 63n), 2n ** 53n + 1n]],
    ['[null,true,false,"",[],{},[[]],{"a":{}}]', [null, true, false, '', [], {}, [[]], { a: {} }]],
    ['{"é":1,"aa":2,"b":3,"日本":"語","🙂":"🙂","":0}', { é: 1, aa: 2, b: 3, 日本: '語', '🙂': '🙂', '': 0 }, UNICODE],
    [
      '{"constructor":1,"toString":"x","$foo":1,"cid":"x"}',
      { constructor: 1, toString: 'x', $foo: 1, cid: 'x' },
      MEMBERS,
    ],
    ['"\\u0000\\ud83d\\ude42\\n"', '\u0000🙂\n', '"\\u0000🙂\\n"'],
    [`{"$link":"${SOME_CID}"}`, link],
    [`[{"$link":"${SOME_BLOB}"}]`, [CID.parse(SOME_BLOB)]],
    ['{"$bytes":"AQL9"}', bytes],
    ['{"$bytes":"AQ=="}', Uint8Array.of(1), '{"$bytes":"AQ"}'],
    ['{"$bytes":""}', new Uint8Array()],
    [`${'['.repeat(31)}${']'.repeat(31)}`, Array.from({ length: 30 }).reduce(inner => [inner], [])],
  ]
  for (const [given, value, back = given] of blocks) {
    const body = `{"repo":"${alice.did}","collection":"${NOTE}","record":{"v":${given}}}`
    const made = await pds.post(repo('createRecord'), Buffer.from(body), alice, { 'content-type': 'application/json' })
    assert.deepEqual([made.status, made.json.cid], [200, await cidOf({ $type: NOTE, v: value })], given)
    const text = Buffer.from((await read(keyOf(made))).bytes).toString()
    assert.ok(text.includes(`"value":{"v":${back},"$type":"${NOTE}"}`), `${given}: ${text}`)
  }
})

test('B66 what is not of the data model is not written', async () => {
  const bad = ['1.5', '1e-3', '1e400', '9223372036854775808', '1e300', '"\\ud800"', '{"\\udfff":1}']
  bad.push(
    '{"__proto__":{"a":1}}',
    `{"$link":"${SOME_CID}","a":1}`,
    '{"$link":"x"}',
    '{"$link":1}',
    `{"$link":"${SOME_CID.toUpperCase()}"}`,
  )
  bad.push(
    '{"$bytes":"AQ","a":1}',
    '{"$bytes":1}',
    '{"$bytes":"-_-_"}',
    '{"$bytes":"A Q"}',
    '{"$type":""}',
    '{"$type":1}',
  )
  bad.push(`${'['.repeat(32)}${']'.repeat(32)}`, `${'['.repeat(9_000)}${']'.repeat(9_000)}`)
  for (const value of bad) {
    for (const validate of ['false', 'true']) {
      const body = `{"repo":"${alice.did}","collection":"${NOTE}","validate":${validate},"record":{"v":${value}}}`
      refused(
        await pds.post(repo('createRecord'), Buffer.from(body), alice, { 'content-type': 'application/json' }),
        /./,
      )
    }
  }
  for (const record of ['x', 5, null, [], true, undefined]) refused(await create({ record }), /record/)
})

test('B67 validate: true must know the schema, false looks at nothing, absent does what it can', async () => {
  refused(await create({ validate: true }), `Unknown lexicon type: ${NOTE}`)
  accepted(await create({}), 'unknown')
  accepted(await create({ validate: false }), undefined)
  accepted(await post({}, { validate: true }), 'valid')
  accepted(await post({}), 'valid')
  accepted(await post({ text: 5 }, { validate: false }), undefined)
  const wrong = 'Invalid app.bsky.feed.post record: Expected string value type (got 5) at $.record.text'
  for (const validate of [true, undefined]) refused(await post({ text: 5 }, { validate }), wrong)
  refused(await post({}, { validate: 'true' }), 'Expected boolean value type (got "true") at $.validate')
})

test('B67 a record of a known kind fits its schema', async () => {
  const wrong: [string, Body, RegExp][] = [
    ['no text', { text: undefined }, /Missing required key "text" at \$\.record$/],
    ['301 graphemes', { text: 'a'.repeat(301) }, /\$\.record\.text/],
    ['3,001 bytes', { text: '👨‍👩‍👧‍👦'.repeat(121) }, /\$\.record\.text/],
    ['four languages', { langs: ['en', 'de', 'fr', 'it'] }, /\$\.record\.langs/],
    ['no language', { langs: ['english!'] }, /\$\.record\.langs\[0\]/],
    ['nine tags', { tags: Array(9).fill('a') }, /\$\.record\.tags/],
    [
      'half a reply',
      { reply: { root: { uri: `at://${STRANGER}/${POST}/x`, cid: SOME_CID } } },
      /"parent" at \$\.record/,
    ],
    ['a facet before the text', { facets: [{ index: { byteStart: -1, byteEnd: 1 }, features: [] }] }, /byteStart/],
    ['a union without a type', { embed: { a: 1 } }, /\$\.record\.embed/],
    ['null for nothing', { langs: null }, /\$\.record\.langs/],
  ]
  for (const bad of ['yesterday', '2026-08-20', '2026-08-20T12:00:00', '2026-08-20T12:00:00-00:00', 5])
    wrong.push([`created ${bad}`, { createdAt: bad }, /\$\.record\.createdAt/])
  for (const [what, fields, message] of wrong) {
    const answer = await post(fields)
    refused(answer, /^Invalid app\.bsky\.feed\.post record: /)
    assert.match(answer.json.message, message, what)
  }
  const right = [
    { embed: { $type: 'com.example.embed', any: 'thing' } },
    { text: '👨‍👩‍👧‍👦'.repeat(100) },
    { createdAt: '2026-08-20T12:00:00.123456+01:00' },
    { unheard: { of: [1, null, true] } },
  ]
  for (const fields of right) accepted(await post(fields), 'valid')
})

test('B67 B69 record keys follow the schemas of all known kinds', async () => {
  assert.equal(schemas.size, 27)
  const example: Record<string, string> = { tid: 'self', nsid: 'self', 'literal:self': 'other' }
  const right: Record<string, string> = { tid: TID, nsid: 'com.example.thing', 'literal:self': 'self' }
  for (const [collection, { key }] of schemas) {
    if (key === 'any') continue
    const wrong = await create({ collection, rkey: example[key] })
    refused(wrong, new RegExp(`^Invalid record key for ${collection.replaceAll('.', '\\.')}: .* at \\$$`))
    // With the right key it is the empty record that does not fit, unless it does.
    const answer = await create({ collection, rkey: right[key] })
    if (answer.status !== 200) refused(answer, new RegExp(`^Invalid ${collection} record: Missing required key`))
    assert.equal((await create({ collection, rkey: example[key], validate: false })).status, 200, collection)
  }
  refused(await put({ collection: PROFILE, rkey: 'other' }), /^Invalid record key for app\.bsky\.actor\.profile: /)
})

test('B68 $type is filled in, or must be the collection; legacy blobs are refused', async () => {
  const rkey = keyOf(await create({ record: { a: 1 } }))
  assert.deepEqual((await read(rkey)).json.value, { $type: NOTE, a: 1 })
  refused(await create({ record: { $type: POST } }), `Invalid $type: expected ${NOTE}, got ${POST}`)
  refused(await put({ rkey: 'a', record: { $type: POST } }), `Invalid $type: expected ${NOTE}, got ${POST}`)
  refused(await apply([write('create', { value: { $type: POST } })]), `Invalid $type: expected ${NOTE}, got ${POST}`)
  for (const $type of [null, '', 5]) refused(await create({ record: { $type } }), /\$type/)
  const legacy = { cid: SOME_BLOB, mimeType: 'image/png' }
  const message = `Legacy blobs are not allowed (${SOME_BLOB})`
  refused(await create({ record: { deep: [{ legacy }] } }), message)
  refused(await put({ rkey: 'l', record: { legacy } }), message)
  refused(await apply([write('create', { value: { legacy } })]), message)
  accepted(await create({ record: { legacy: { ...legacy, more: 1 } } }), 'unknown')
})

test('B69 keys are of the syntax of record keys', async () => {
  for (const rkey of ['', '.', '..', 'a/b', 'a b', 'a%20b', '#a', 'é', '@a', 'a'.repeat(513), 5, null]) {
    for (const answer of [await create({ rkey }), await put({ rkey }), await remove({ rkey })])
      refused(answer, /rkey|record key/)
    refused(await apply([write('create', { rkey, value: {} })]), /rkey|record key/)
  }
  for (const rkey of ['A', '_', '-', '~', ':', '...', 'a.b', 'a:b~c-d_e', 'a'.repeat(512), '1']) {
    assert.equal((await create({ rkey })).json.uri, `at://${alice.did}/${NOTE}/${rkey}`)
    assert.equal((await read(rkey)).status, 200)
  }
  refused(await create({ rkey: 'ch1nk' }), 'Unacceptable slur in record key')
  for (const collection of ['x', 'a.b', 'com.example.no-te', 'com.example.2note', '*', '', null])
    refused(await create({ collection }), /collection/)
  accepted(await create({ collection: 'com.example.note2' }), 'unknown')
  // The key that a schema fixes is filled in.
  const user = await pds.user('fixed')
  assert.match((await create({ collection: PROFILE }, user)).json.uri, /\/self$/)
})

test('B70 B71 a commit has 200 writes and 2 MB at most, a call 1,000,000 bytes', async () => {
  const many = (count: number) => Array.from({ length: count }, (_, n) => write('create', { value: { n } }))
  const all = await apply(many(200))
  assert.deepEqual([all.status, all.json.results.length], [200, 200])
  const checked = await apply([
    write('create', { rkey: 'batch', value: { a: 1 } }),
    write('create', { collection: POST, value: { text: 'x', createdAt } }),
    write('delete', { rkey: keyOf({ json: all.json.results[0] } as Answer) }),
  ])
  const kinds = checked.json.results.map((result: Body) => [
    result.$type,
    Object.keys(result).length,
    result.validationStatus,
  ])
  assert.deepEqual(kinds, [
    ['com.atproto.repo.applyWrites#createResult', 4, 'unknown'],
    ['com.atproto.repo.applyWrites#createResult', 4, 'valid'],
    ['com.atproto.repo.applyWrites#deleteResult', 1, undefined],
  ])
  assert.deepEqual(Object.keys(checked.json.commit).sort(), ['cid', 'rev'])
  const [updated] = (await apply([write('update', { rkey: 'batch', value: { a: 2 } })], { validate: false })).json
    .results
  const uri = `at://${alice.did}/${NOTE}/batch`
  const cid = await cidOf({ $type: NOTE, a: 2 })
  assert.deepEqual(updated, { $type: 'com.atproto.repo.applyWrites#updateResult', uri, cid })
  refused(await apply(many(201)), 'Too many writes. Max: 200')
  const large = Array.from({ length: 3 }, (_, i) => {
    const record = { text: `${i}`.repeat(700_000) }
    const asked = { collection: asNsid(NOTE), rkey: `large-${i}`, record, validate: false as const }
    return { action: 'create' as const, record: prepareRecord({ ...asked, nextRkey: () => pds.repos.nextRkey() }) }
  })
  assert.ok((await pds.repos.write(alice.did, large.slice(1))).commit)
  await remove({ rkey: 'large-1' })
  await remove({ rkey: 'large-2' })
  await assert.rejects(pds.repos.write(alice.did, large), {
    error: 'InvalidRequest',
    message: 'Too many writes. Max event size: 2MB',
  })
  const head = await headOf(alice.did)
  const body = (length: number) => {
    const empty = JSON.stringify({ repo: alice.did, collection: NOTE, record: { text: '' } })
    return { repo: alice.did, collection: NOTE, record: { text: 'a'.repeat(length - empty.length) } }
  }
  for (const name of ['createRecord', 'putRecord', 'applyWrites']) {
    const over = await pds.post(repo(name), body(1_000_001), alice)
    assert.deepEqual(failure(over), [413, 'PayloadTooLarge', 'request entity too large'], name)
  }
  assert.deepEqual(await headOf(alice.did), head)
  assert.equal((await pds.post(repo('createRecord'), body(1_000_000), alice)).status, 200)
})

test('B72 swaps: who believes something else of the head or the record is told what is there', async () => {
  const first = (await put({ rkey: 'swap', record: { a: 1 } })).json
  const atHead = async () => `Commit was at ${(await headOf(alice.did)).cid}`
  const swapCommit = SOME_CID
  for (const answer of [
    await create({ swapCommit }),
    await put({ rkey: 'swap', record: { a: 2 }, swapCommit }),
    await remove({ rkey: 'swap', swapCommit }),
    await apply([write('create', { value: {} })], { swapCommit }),
    await apply([], { swapCommit }),
    // The head is looked at first.
    await put({ rkey: 'swap', record: { a: 2 }, swapCommit, swapRecord: SOME_CID }),
    await remove({ rkey: 'swap', swapCommit, swapRecord: SOME_CID }),
  ])
    refused(answer, await atHead(), 'InvalidSwap')
  const atRecord = `Record was at ${first.cid}`
  for (const swapRecord of [SOME_CID, null])
    refused(await put({ rkey: 'swap', record: { a: 2 }, swapRecord }), atRecord, 'InvalidSwap')
  refused(await remove({ rkey: 'swap', swapRecord: SOME_CID }), atRecord, 'InvalidSwap')
  refused(await put({ rkey: 'absent', swapRecord: SOME_CID }), 'Record was at null', 'InvalidSwap')
  for (const field of ['swapCommit', 'swapRecord'])
    refused(await put({ rkey: 'swap', [field]: 'x' }), new RegExp(`Invalid CID string .*${field}`))
  assert.equal((await put({ rkey: 'fresh', swapRecord: null })).status, 200)
  const second = await put({
    rkey: 'swap',
    record: { a: 2 },
    swapRecord: first.cid,
    swapCommit: (await headOf(alice.did)).cid,
  })
  assert.equal(second.status, 200)
  const third = await apply([write('update', { rkey: 'swap', value: { a: 3 } })], {
    swapCommit: second.json.commit.cid,
  })
  assert.equal(third.status, 200)
  const { json } = await read('swap')
  const gone = await remove({ rkey: 'swap', swapRecord: json.cid, swapCommit: third.json.commit.cid })
  assert.deepEqual(await headOf(alice.did), gone.json.commit)
})

test('B72 of those who believe the same of the head or a record, one is right', async () => {
  const { json } = await put({ rkey: 'raced', record: { n: 0 } })
  const [swapCommit, swapRecord] = [json.commit.cid, json.cid]
  const races = [() => create({ swapCommit }), (n: number) => put({ rkey: 'raced', record: { n }, swapRecord })]
  for (const race of races) {
    const answers = await Promise.all([1, 2, 3, 4, 5].map(n => race(n)))
    const lost = answers.filter(({ status }) => status !== 200)
    assert.equal(lost.length, 4)
    for (const answer of lost) refused(answer, /^(Commit|Record) was at bafy/, 'InvalidSwap')
  }
})

test('B73 B74 deleting what is not there and putting what is there change nothing', async () => {
  const made = (await put({ rkey: 'same', record: { a: [1, { b: null }] } })).json
  const head = await headOf(alice.did)
  const { head: seq } = pds.store.log
  const again = await put({ rkey: 'same', record: { $type: NOTE, a: [1, { b: null }] } })
  assert.deepEqual(again.json, { uri: made.uri, cid: made.cid, validationStatus: 'unknown' })
  for (const fields of [{}, { swapCommit: SOME_CID }, { swapRecord: SOME_CID }])
    assert.deepEqual([(await remove({ rkey: 'nothing', ...fields })).json], [{}])
  for (const fields of [{ swapRecord: null }, { swapRecord: SOME_CID }, { swapCommit: SOME_CID }])
    assert.equal((await put({ rkey: 'same', record: { a: [1, { b: null }] }, ...fields })).json.commit, undefined)
  assert.deepEqual([await headOf(alice.did), pds.store.log.head], [head, seq])
  const gone = await remove({ rkey: 'same' })
  assert.deepEqual(Object.keys(gone.json), ['commit'])
})

test('B75 liking, reposting, following or blocking again takes the older record out in the same commit', async () => {
  const user = await pds.user('fan')
  const about = { uri: `at://${STRANGER}/${POST}/${TID}`, cid: SOME_CID }
  const subjects: [string, unknown, unknown][] = [
    [LIKE, about, { ...about, uri: `${about.uri}x` }],
    ['app.bsky.feed.repost', about, { ...about, uri: `${about.uri}x` }],
    ['app.bsky.graph.follow', STRANGER, alice.did],
    ['app.bsky.graph.block', STRANGER, alice.did],
  ]
  for (const [collection, subject, other] of subjects) {
    const make = (of: unknown, more = {}) => create({ collection, record: { subject: of, createdAt }, ...more }, user)
    const count = async () =>
      (await pds.get(repo('listRecords'), { repo: user.did, collection })).json.records.map(
        (r: { uri: string }) => r.uri,
      )
    const first = accepted(await make(subject), 'valid')
    const kept = accepted(await make(other), 'valid')
    const before = pds.store.log.head
    const second = accepted(await make(subject), 'valid')
    assert.equal(pds.store.log.head, before + 1, 'one commit')
    assert.deepEqual(await count(), [second.json.uri, kept.json.uri], collection)
    assert.notEqual(first.json.uri, second.json.uri)
    // Once more under the same key, as a client does that has not heard the answer.
    const again = accepted(await make(subject, { rkey: keyOf(second) }), 'valid')
    assert.deepEqual([again.json.uri, again.json.cid], [second.json.uri, second.json.cid])
    assert.deepEqual(await headOf(user.did), again.json.commit)
    const taken = await make(subject, { rkey: keyOf(kept) })
    assert.deepEqual(failure(taken).slice(0, 2), [409, 'RecordAlreadyExists'])
    accepted(await make(subject, { validate: false }), undefined)
    assert.equal((await count()).length, 3, 'unvalidated ones are let be')
  }
})

test('B76 records refer to blobs that are here, by the type and size that they have', async () => {
  const blob = await upload(PNG, 'text/plain')
  const embed = (image: unknown) => ({ embed: { $type: 'app.bsky.embed.images', images: [{ image, alt: '' }] } })
  const missing = { ...blob, ref: { $link: SOME_BLOB } }
  const notFound = `Could not find blob: ${SOME_BLOB}`
  refused(await post(embed(missing)), notFound, 'BlobNotFound')
  refused(await create({ record: { any: [{ where: missing }] }, validate: false }), notFound, 'BlobNotFound')
  refused(await put({ rkey: 'b', record: { missing } }), notFound, 'BlobNotFound')
  refused(await apply([write('create', { value: { missing } })]), notFound, 'BlobNotFound')
  const type = 'Referenced Mimetype does not match stored blob. Expected: image/png, Got: image/jpeg'
  refused(await post(embed({ ...blob, mimeType: 'image/jpeg' })), type, 'InvalidMimeType')
  const size = `Referenced Size does not match stored blob. Expected: ${PNG.length}, Got: 1`
  refused(await post(embed({ ...blob, size: 1 })), size, 'InvalidSize')
  // What the lexicon asks for.
  refused(await post(embed({ ...blob, mimeType: 'text/plain' })), /Expected "image\/\*"/, 'InvalidMimeType')
  refused(await post(embed({ ...blob, size: 2_000_001 })), /blob too big/, 'InvalidSize')
  const film = { video: await upload(PNG, 'image/png'), $type: 'app.bsky.embed.video' }
  refused(await post({ embed: film }), /video\/mp4/, 'InvalidMimeType')
  accepted(await post(embed(blob)), 'valid')
  refused(await post(embed({ ...blob, mimeType: 'image/jpeg' })), type, 'InvalidMimeType')
  const bob = await pds.user('borrower')
  refused(await create({ record: { blob } }, bob), `Could not find blob: ${blob.ref.$link}`, 'BlobNotFound')
  for (const broken of [
    { ref: SOME_BLOB },
    { ref: { $link: SOME_CID } },
    { size: '1' },
    { size: -1 },
    { mimeType: '' },
  ])
    refused(await create({ record: { x: { ...blob, ...broken } }, validate: false }), /blob/)
})

test('B77 getRecord of what is not there is 400 RecordNotFound; of a repository elsewhere it is somebody else’s', async () => {
  const { uri, cid } = (await put({ rkey: 'here', record: { a: 1 } })).json
  assert.deepEqual((await read('here')).json, { uri, cid, value: { $type: NOTE, a: 1 } })
  for (const params of [{ repo: 'alice.test' }, { repo: 'ALICE.test' }, { cid }])
    assert.deepEqual((await read('here', params)).json, { uri, cid, value: { $type: NOTE, a: 1 } })
  const none = `Could not locate record: at://${alice.did}/${NOTE}/none`
  refused(await read('none'), none, 'RecordNotFound')
  refused(await read('here', { cid: SOME_CID }), `Could not locate record: ${uri}`, 'RecordNotFound')
  for (const who of [STRANGER, 'nobody.test']) refused(await read('here', { repo: who }), 'Could not locate record')
  for (const [name, value] of [
    ['repo', '@alice.test'],
    ['collection', 'x'],
    ['rkey', 'a/b'],
    ['cid', 'x'],
  ])
    refused(await read('here', { [name!]: value }), /^Invalid com\.atproto\.repo\.getRecord params: /)
})

test('B78 listRecords: 50, newest key first, cursor of the last key', async () => {
  const user = await pds.user('lister')
  const keys = Array.from({ length: 60 }, (_, i) => `k${String(i).padStart(2, '0')}`)
  const odd = ['A', 'Z', 'a', 'a-b', 'a.b', 'ab', '1', ':', '_', '-', '~']
  const make = (collection: string) => (rkey: string) => write('create', { collection, rkey, value: { rkey } })
  await apply([...keys.map(make(NOTE)), ...odd.map(make('com.example.odd'))], {}, user)
  const page = async (params: Body): Promise<[string[], string | undefined]> => {
    const { json } = await list({ repo: user.did, ...params })
    return [json.records.map((r: { uri: string }) => r.uri.split('/').at(-1)), json.cursor]
  }
  const down = [...keys].reverse()
  assert.deepEqual(await page({}), [down.slice(0, 50), 'k10'])
  assert.deepEqual(await page({ cursor: 'k10' }), [down.slice(50), 'k00'])
  assert.deepEqual(await page({ cursor: 'k00' }), [[], undefined])
  assert.deepEqual(await page({ limit: 100 }), [down, 'k00'])
  assert.deepEqual(await page({ limit: 2, reverse: true }), [['k00', 'k01'], 'k01'])
  assert.deepEqual(await page({ limit: 2, reverse: true, cursor: 'k01' }), [['k02', 'k03'], 'k03'])
  assert.deepEqual(await page({ limit: 1, cursor: 'k055' }), [['k05'], 'k05'])
  const bytewise = [...odd].sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)))
  assert.deepEqual((await page({ collection: 'com.example.odd', reverse: true }))[0], bytewise)
  assert.deepEqual((await page({ collection: 'com.example.odd' }))[0], bytewise.reverse())
  const { json } = await list({ repo: 'lister.test', limit: 1 })
  assert.deepEqual(Object.keys(json.records[0]).sort(), ['cid', 'uri', 'value'])
  assert.deepEqual((await list({ repo: user.did, collection: 'com.example.not' })).json, { records: [] })
  refused(await list({ repo: 'nobody.test' }), 'Could not find repo: nobody.test')
  for (const limit of [0, 101, 'x', '1.5'])
    refused(await list({ limit }), /^Invalid com\.atproto\.repo\.listRecords params: /)
  refused(await list({ reverse: 'maybe' }), /^Invalid com\.atproto\.repo\.listRecords params: Expected boolean/)
})

test('B79 describeRepo names the account, its document and its collections', async () => {
  const dora = await signUp(pds, 'dora')
  for (const [collection, rkey] of [
    [NOTE, 'a'],
    [NOTE, 'b'],
    ['com.example.b', 'a'],
  ])
    await pds.post(repo('putRecord'), { repo: dora.did, collection, rkey, record: {} }, null, dora.auth)
  for (const who of [dora.did, 'dora.test']) {
    const { status, json } = await pds.get(repo('describeRepo'), { repo: who })
    assert.equal(status, 200)
    assert.deepEqual(Object.keys(json).sort(), ['collections', 'did', 'didDoc', 'handle', 'handleIsCorrect'])
    assert.deepEqual([json.did, json.handle, json.handleIsCorrect], [dora.did, 'dora.test', true])
    assert.deepEqual(json.collections, ['com.example.b', NOTE])
    assert.equal(json.didDoc.id, dora.did)
  }
  for (const who of ['nobody.test', STRANGER])
    refused(await pds.get(repo('describeRepo'), { repo: who }), `Could not find repo for DID: ${who}`, 'RepoNotFound')
})

test('B80 uploadBlob answers a reference; what the bytes are beats what is said', async () => {
  const cases: [Uint8Array, string, string][] = [
    [PNG, 'image/png', 'image/png'],
    [PNG, 'text/plain', 'image/png'],
    [PNG, '*/*', 'image/png'],
    [Buffer.from('hello'), 'text/plain; charset=utf-8', 'text/plain'],
    [Buffer.from('hello'), 'example/thing', 'example/thing'],
    [Buffer.from('{"a":1}'), 'application/json', 'application/json'],
    [Buffer.from('ffd8ffe000104a46494600010100000100010000ffd9', 'hex'), 'application/octet-stream', 'image/jpeg'],
    [Buffer.alloc(0), 'text/plain', 'text/plain'],
  ]
  for (const [bytes, type, mimeType] of cases) {
    const { status, json } = await pds.post(repo('uploadBlob'), bytes, alice, { 'content-type': type })
    const blob = { $type: 'blob', ref: { $link: await rawCidOf(bytes) }, mimeType, size: bytes.length }
    assert.deepEqual([status, json], [200, { blob }], type)
  }
  // The same bytes under another type: whatever is answered may be used.
  for (const type of ['example/one', 'example/two', 'example/three']) {
    const blob = await upload(Buffer.from('the same'), type)
    accepted(await create({ record: { blob } }), 'unknown')
  }
  const nobody = await pds.post(repo('uploadBlob'), PNG, null, { 'content-type': 'image/png' })
  assert.deepEqual(failure(nobody), [401, 'AuthMissing', 'Authentication Required'])
})

test('B81 an import wants one root, tells nobody, and what it lacks of blobs is listed', async () => {
  const CAR = { 'content-type': 'application/vnd.ipld.car' }
  const old = await pds.user('old-home')
  const pictures = await Promise.all([upload(PNG, 'image/png', old), upload(Buffer.from('two'), 'text/plain', old)])
  for (const [i, picture] of pictures.entries()) await put({ rkey: `p${i}`, record: { picture } }, old)
  const car = (await pds.get('com.atproto.sync.getRepo', { did: old.did })).bytes
  const fresh = await startNetworkedPds({ after: fn => cleanups.push(fn) })
  const here = await fresh.user('old-home', { deactivated: true })
  const { head } = fresh.store.log
  const imported = await fresh.post(repo('importRepo'), car, here, CAR)
  assert.deepEqual([imported.status, imported.bytes.length, fresh.store.log.head], [200, 0, head])
  const missing = async (params = {}) =>
    (await fresh.get(repo('listMissingBlobs'), params, { authorization: `Bearer ${here.token}` })).json
  const wanted = pictures
    .map((picture, i) => ({ cid: picture.ref.$link, recordUri: `at://${old.did}/${NOTE}/p${i}` }))
    .sort((a, b) => (a.cid < b.cid ? -1 : 1))
  assert.deepEqual(await missing(), { blobs: wanted, cursor: wanted[1]!.cid })
  assert.deepEqual(await missing({ limit: 1 }), { blobs: wanted.slice(0, 1), cursor: wanted[0]!.cid })
  assert.deepEqual((await missing({ limit: 1, cursor: wanted[0]!.cid })).blobs, wanted.slice(1))
  await fresh.post(repo('uploadBlob'), PNG, here, { 'content-type': 'image/png' })
  assert.deepEqual((await missing()).blobs.length, 1)
  const noRoot = Buffer.concat([Buffer.from([17]), dagCbor.encode({ roots: [], version: 1 })])
  refused(await fresh.post(repo('importRepo'), noRoot, here, CAR), 'expected one root')
  const nobody = await fresh.post(repo('importRepo'), car, null, CAR)
  assert.deepEqual(failure(nobody), [401, 'AuthMissing', 'Authentication Required'])
  for (const broken of [car.subarray(0, car.length - 9), Buffer.from('garbage'), Buffer.alloc(0)])
    refused(await fresh.post(repo('importRepo'), broken, here, CAR), /./)
})
