import assert from 'node:assert/strict'
import { test } from 'node:test'
import { l } from '@atproto/lex-schema'
import { decode, encode, type Obj } from '../cbor.ts'
import { Cid } from '../cid.ts'
import { Refused } from '../errors.ts'
import { jsonToValue } from '../json.ts'
import { check } from './check.ts'
import { procedures, queries, subscriptions } from './gen/methods.ts'
import { checkRecord, recordSchema } from './records.ts'

const image = Cid.ofRaw(Uint8Array.of(1))
const strong = { uri: 'at://did:plc:aaaaaaaaaaaaaaaaaaaaaaaa/app.bsky.feed.post/3jzfcijpj2z2a', cid: image.toString() }
const post = {
  $type: 'app.bsky.feed.post',
  text: 'hello',
  createdAt: '2024-01-01T00:00:00.000Z',
  langs: ['en'],
  reply: { root: strong, parent: strong },
  embed: {
    $type: 'app.bsky.embed.images',
    images: [{ alt: '', image: { $type: 'blob', ref: image, mimeType: 'image/png', size: 5 } }],
  },
  unknown: { link: image, bytes: Uint8Array.of(1, 2), list: [null, true] },
}
const schema = recordSchema('app.bsky.feed.post')
assert.ok(schema)
const TID = '3jzfcijpj2z2a'
const refusalOf = (record: Obj, rkey = TID) => {
  try {
    checkRecord(schema, record, rkey)
  } catch (error) {
    assert.ok(error instanceof Refused && error.error === 'InvalidRequest')
    return error.message
  }
  return undefined
}

test('records in core’s data model are taken as they are, from CBOR and from JSON', () => {
  for (const record of [
    post,
    decode(encode(post)) as Obj,
    jsonToValue(JSON.stringify({ ...post, unknown: 1 })) as Obj,
  ]) {
    assert.equal(refusalOf(record), undefined)
  }
})

test('what is wrong is said with its place', () => {
  const { text: _, ...textless } = post
  assert.equal(refusalOf(textless), 'Invalid app.bsky.feed.post record: Missing required key "text" at $')
  assert.match(
    refusalOf({ ...post, text: 'a'.repeat(3001) }) ?? '',
    /string too big \(maximum 3000, got 3001\) at \$\.text/,
  )
  assert.match(refusalOf({ ...post, text: '👩‍👩‍👧‍👧'.repeat(301).slice(0, 3000) }) ?? '', /./)
  assert.match(refusalOf({ ...post, createdAt: 'yesterday' }) ?? '', /datetime.*\$\.createdAt/)
  assert.match(
    refusalOf({ ...post, $type: 'app.bsky.feed.like' }) ?? '',
    /app\.bsky\.feed\.post.*\$\.?(\$type|\["\$type"\])?/,
  )
  const bigImage = { $type: 'blob', ref: image, mimeType: 'image/png', size: 50_000_000 }
  const embed = { $type: 'app.bsky.embed.images', images: [{ alt: '', image: bigImage }] }
  assert.match(refusalOf({ ...post, embed }) ?? '', /blob too big.*\$\.embed\.images\[0\]\.image/)
  // A link to a record is none to a blob.
  const recordRef = { ...bigImage, size: 5, ref: Cid.ofCbor(Uint8Array.of(0xa0)) }
  const linked = { ...embed, images: [{ alt: '', image: recordRef }] }
  assert.match(refusalOf({ ...post, embed: linked }) ?? '', /blob/)
})

test('keys follow the schema', () => {
  assert.match(refusalOf(post, 'self') ?? '', /^Invalid record key for app\.bsky\.feed\.post: "self"$/)
  const profile = recordSchema('app.bsky.actor.profile')
  assert.ok(profile)
  checkRecord(profile, { $type: 'app.bsky.actor.profile' }, 'self')
  assert.throws(() => checkRecord(profile, { $type: 'app.bsky.actor.profile' }, TID), Refused)
})

test('types without a lexicon here are not known', () => {
  assert.equal(recordSchema('com.example.thing'), undefined)
  assert.equal(recordSchema('__proto__'), undefined)
  assert.ok(recordSchema('com.atproto.lexicon.schema') && recordSchema('chat.bsky.actor.declaration'))
})

test('integers beyond 2^53 pass and keep their digits, also beside defaults', () => {
  const limited = l.object({ any: l.lexMap(), small: l.optional(l.withDefault(l.integer({ maximum: 5 }), 3)) })
  const any = { big: 2n ** 60n, list: [-(2n ** 63n), { a: 1n }], link: image, bytes: Uint8Array.of(1) }
  assert.deepEqual(check(limited, { any }), { value: { any, small: 3 } })
  const problem = check(limited, { any, small: 2n ** 60n })
  assert.ok('problem' in problem && problem.problem.includes('$.small'))
  assert.deepEqual(problem.issues.length, 1)
})

test('what a check gives is what parsing gives, wherever defaults stand', () => {
  const three = l.withDefault(l.integer(), 3)
  const plain = l.object({ a: l.optional(l.string()), n: l.optional(l.integer({ maximum: 9 })) })
  const own: l.Schema<unknown> = l.object({ next: l.optional(l.ref((() => other) as never)) })
  const other: l.Schema<unknown> = l.object({ back: l.optional(l.ref((() => own) as never)), n: l.optional(three) })
  const schemas = [
    plain,
    own,
    other,
    l.object({ list: l.array(plain), n: l.optional(three) }),
    l.object({ list: l.array(l.object({ n: l.optional(three) })) }),
    l.object({
      in: l.nullable(l.typedUnion([l.typedRef((() => l.typedObject('a.b.c', 'x', other as never)) as never)], true)),
    }),
  ]
  const values = [
    {},
    { a: 'a', more: 1 },
    { n: 5 },
    { n: 50 },
    { next: {} },
    { back: { next: { n: 4 } } },
    { next: { back: { next: {} } } },
    { list: [{}, { a: 'b' }] },
    { list: [{ n: '1' }] },
    { in: { $type: 'a.b.c#x' } },
    { in: null },
  ]
  for (const schema of schemas) {
    for (const value of values) {
      const parsed = schema.safeParse(value)
      const wanted = parsed.success
        ? { value: parsed.value }
        : { problem: parsed.reason.message, issues: parsed.reason.issues.map(String) }
      for (let i = 0; i < 2; i++) assert.deepEqual(check(schema, value), wanted)
    }
  }
})

test('methods are known by name and kind', () => {
  assert.ok(queries.has('app.bsky.feed.getTimeline') && !queries.has('com.atproto.repo.createRecord'))
  assert.ok(procedures.has('chat.bsky.convo.sendMessage') && procedures.has('com.atproto.repo.createRecord'))
  assert.ok(subscriptions.has('com.atproto.sync.subscribeRepos'))
})
