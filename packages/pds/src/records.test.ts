import assert from 'node:assert/strict'
import { test } from 'node:test'
import { utf8 } from '@millisky/core/bytes'
import { decode, type Obj } from '@millisky/core/cbor'
import { Cid } from '@millisky/core/cid'
import { Malformed, Refused } from '@millisky/core/errors'
import { asNsid, type Rkey } from '@millisky/core/syntax'
import { findBlobs, prepareRecord, subjectOf, type ValidateMode } from './records.ts'

const POST = asNsid('app.bsky.feed.post')
const PROFILE = asNsid('app.bsky.actor.profile')
const UNKNOWN = asNsid('com.example.thing')
const RKEY = '3jzfcijpj2z2a' as Rkey
const createdAt = '2026-01-02T03:04:05.678Z'
const raw = Cid.ofRaw(utf8('blob'))
const blob = (fields: Obj = {}): Obj => ({ $type: 'blob', ref: raw, mimeType: 'image/png', size: 4, ...fields })

const prepare = (collection: typeof POST, record: Obj, validate?: ValidateMode, rkey?: string) =>
  prepareRecord({ collection, record, validate, rkey, nextRkey: () => RKEY })

function refusal(run: () => unknown): { error: string; message: string } {
  try {
    run()
  } catch (error) {
    assert.ok(error instanceof Refused, `${error}`)
    assert.equal(error.status, 400)
    return { error: error.error, message: error.message }
  }
  return assert.fail('not refused')
}

test('a record gets its type and a key', () => {
  const prepared = prepare(POST, { text: 'hello', createdAt })
  assert.equal(prepared.path, `app.bsky.feed.post/${RKEY}`)
  assert.equal(prepared.validationStatus, 'valid')
  assert.deepEqual(decode(prepared.bytes), { $type: 'app.bsky.feed.post', text: 'hello', createdAt })
  assert.ok(Cid.ofCbor(prepared.bytes).equals(prepared.cid))
  assert.deepEqual(
    refusal(() => prepare(POST, { $type: 'app.bsky.feed.like', text: '', createdAt })),
    {
      error: 'InvalidRequest',
      message: 'Invalid $type: expected app.bsky.feed.post, got app.bsky.feed.like',
    },
  )
})

test('validation modes', () => {
  const wrong = { text: 5, createdAt }
  assert.match(refusal(() => prepare(POST, wrong)).message, /^Invalid app\.bsky\.feed\.post record: .*\$\.record\.text/)
  assert.match(refusal(() => prepare(POST, wrong, true)).message, /^Invalid app\.bsky\.feed\.post record/)
  assert.equal(prepare(POST, wrong, false).validationStatus, undefined)
  assert.equal(prepare(UNKNOWN, { anything: 1 }).validationStatus, 'unknown')
  assert.equal(prepare(UNKNOWN, { anything: 1 }, false).validationStatus, undefined)
  assert.deepEqual(
    refusal(() => prepare(UNKNOWN, { anything: 1 }, true)),
    {
      error: 'InvalidRequest',
      message: 'Unknown lexicon type: com.example.thing',
    },
  )
})

test('record keys follow syntax and schema', () => {
  assert.equal(prepare(PROFILE, { displayName: 'A' }).rkey, 'self')
  assert.equal(prepare(PROFILE, { displayName: 'A' }, undefined, 'self').rkey, 'self')
  assert.notEqual(prepare(PROFILE, { displayName: 'A' }, false).rkey, 'self', 'the schema counts for nothing')
  const other = refusal(() => prepare(PROFILE, { displayName: 'A' }, undefined, 'other'))
  assert.match(other.message, /^Invalid record key for app\.bsky\.actor\.profile/)
  assert.equal(prepare(PROFILE, { displayName: 'A' }, false, 'other').rkey, 'other')
  assert.match(
    refusal(() => prepare(POST, { text: '', createdAt }, undefined, 'not-a-tid')).message,
    /Invalid record key for/,
  )
  // The key is looked at before the record, as a client that got both wrong has always been told.
  assert.match(refusal(() => prepare(POST, { text: 5 }, undefined, 'self')).message, /^Invalid record key for/)
  for (const bad of ['.', '..', 'a b', 'a/b', '', 'é', 'x'.repeat(513)]) {
    assert.match(refusal(() => prepare(UNKNOWN, {}, false, bad)).message, /Invalid record key/, bad)
  }
})

test('blobs are found wherever they are', () => {
  const other = Cid.ofRaw(utf8('other'))
  const found = findBlobs({ a: [{ b: blob() }, { c: [blob({ ref: other, size: 5 })] }], d: blob(), e: raw })
  assert.deepEqual(
    new Map(found.map(use => [use.cid.toString(), use.size])),
    new Map([
      [raw.toString(), 4],
      [other.toString(), 5],
    ]),
  )
  const depth = 31
  let nested: Obj = blob()
  for (let i = 0; i < depth; i++) nested = { nested }
  assert.equal(findBlobs(nested).length, 1)
})

test('what is not quite a blob is refused in every mode', () => {
  const bad = [
    blob({ size: '4' }),
    blob({ size: -1 }),
    blob({ mimeType: '' }),
    blob({ mimeType: false }),
    blob({ ref: raw.toString() }),
    blob({ ref: Cid.ofCbor(utf8('x')) }),
    { $type: 'blob' },
    { cid: raw.toString(), mimeType: 'image/png' },
  ]
  for (const image of bad) {
    const refused = refusal(() => prepare(UNKNOWN, { image }, false))
    assert.match(refused.message, /blob reference|Legacy blobs are not allowed/i)
  }
  assert.equal(
    findBlobs({ x: { cid: raw.toString(), mimeType: 'a/b', more: 1 }, y: { cid: 'no', mimeType: 'a/b' } }).length,
    0,
  )
})

test('what a schema has against a blob has a name', () => {
  const avatar = (fields: Obj) => ({ displayName: 'A', avatar: blob(fields) })
  assert.equal(prepare(PROFILE, avatar({})).blobs.length, 1)
  assert.equal(refusal(() => prepare(PROFILE, avatar({ mimeType: 'text/plain' }))).error, 'InvalidMimeType')
  assert.equal(refusal(() => prepare(PROFILE, avatar({ size: 50_000_000 }))).error, 'InvalidSize')
  assert.equal(refusal(() => prepare(PROFILE, { displayName: 5 })).error, 'InvalidRequest')
  const legacy = refusal(() => prepare(PROFILE, { avatar: { cid: raw.toString(), mimeType: 'image/png' } }))
  assert.match(legacy.message, /^Invalid app\.bsky\.actor\.profile record: Expected blob .* at \$\.record\.avatar$/)
})

test('where in the call a record is wrong', () => {
  const input = { collection: POST, rkey: undefined, record: { text: 5, createdAt }, nextRkey: () => RKEY }
  const refused = refusal(() => prepareRecord({ ...input, validate: true, at: 'writes[1].record' }))
  assert.match(refused.message, /Expected string value type \(got 5\) at \$\.writes\[1\]\.record\.text$/)
})

test('what is not of the data model cannot be written', () => {
  assert.throws(() => prepare(UNKNOWN, { x: 1.5 }, false), Malformed)
  for (const whole of [2n ** 63n - 1n, -(2n ** 63n)]) assert.ok(prepare(UNKNOWN, { x: [{ whole }] }, false).bytes)
  for (const beyond of [2n ** 63n, -(2n ** 63n) - 1n]) {
    assert.match(refusal(() => prepare(UNKNOWN, { x: [{ beyond }] }, false)).message, /^Integer beyond 64 bits: -?\d+$/)
  }
  const proto = JSON.parse('{"x":[{"__proto__":{"a":1}}]}') as Obj
  assert.equal(refusal(() => prepare(UNKNOWN, proto, false)).message, 'Invalid key: __proto__')
  let nested: Obj = {}
  for (let i = 0; i < 40; i++) nested = { nested }
  assert.throws(() => prepare(UNKNOWN, nested, false), Malformed)
})

test('likes, reposts, follows and blocks have a subject', () => {
  const uri = 'at://did:plc:ewvi7nxzyoun6zhxrhs64oiz/app.bsky.feed.post/3jzfcijpj2z2a'
  const did = 'did:plc:ewvi7nxzyoun6zhxrhs64oiz'
  assert.equal(subjectOf(asNsid('app.bsky.feed.like'), { subject: { uri, cid: raw.toString() } }), uri)
  assert.equal(subjectOf(asNsid('app.bsky.feed.repost'), { subject: { uri } }), uri)
  assert.equal(subjectOf(asNsid('app.bsky.graph.follow'), { subject: did }), did)
  assert.equal(subjectOf(asNsid('app.bsky.graph.block'), { subject: did }), did)
  assert.equal(subjectOf(asNsid('app.bsky.graph.follow'), { subject: 'nobody' }), null)
  assert.equal(subjectOf(asNsid('app.bsky.feed.like'), { subject: [] }), null)
  assert.equal(subjectOf(asNsid('app.bsky.feed.like'), {}), null)
  assert.equal(subjectOf(POST, { subject: did }), null)
})
