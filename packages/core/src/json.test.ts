import assert from 'node:assert/strict'
import { test } from 'node:test'
import { jsonToLex } from '@atproto/lex'
import fc from 'fast-check'
import { decode, encode, Float, type Obj, type Value } from './cbor.ts'
import { Cid } from './cid.ts'
import { Malformed } from './errors.ts'
import * as j from './json.ts'
import { anyValue, runs } from './testing-values.ts'

const cid = Cid.ofRaw(new Uint8Array())
const link = { $link: cid.toString() }
const blob = { $type: 'blob', ref: link, mimeType: 'image/png', size: 5 }
const refuses = (json: unknown, options?: j.JsonOptions) =>
  assert.throws(() => j.fromJson(json as j.JsonValue, options), Malformed, JSON.stringify(json))

test('links and bytes both ways', () => {
  const value = { a: cid, b: [Uint8Array.of(0xfb, 0xff)], c: { d: null, e: true, f: 'x', g: -1 } }
  const json = { a: link, b: [{ $bytes: '+/8' }], c: { d: null, e: true, f: 'x', g: -1 } }
  assert.deepEqual(j.toJson(value), json)
  assert.deepEqual(j.fromJson(json), value)
  assert.deepEqual(j.fromJson({ $bytes: '+/8=' }), Uint8Array.of(0xfb, 0xff))
  assert.deepEqual(j.fromJson({ $bytes: '' }), new Uint8Array())
})

test('$link and $bytes stand alone and hold what they should', () => {
  const bad: unknown[] = [{ ...link, other: 1 }, { other: 1, ...link }, { $link: 1 }, { $link: null }, { $link: '.' }]
  bad.push({ $link: '' }, { $link: { ...link } }, { $bytes: [1] }, { $bytes: 1 }, { $bytes: 'a' }, { $bytes: '-_8' })
  bad.push({ $bytes: '', other: 1 }, { ...link, $bytes: '' })
  for (const json of bad) {
    refuses(json)
    refuses({ a: [json] })
  }
})

test('numbers are integers', () => {
  assert.equal(j.fromJson(123.0), 123)
  assert.ok(Object.is(j.fromJson(-0), 0))
  for (const json of [123.456, 0.1, Number.NaN, Infinity, 2 ** 53, 1e300]) refuses([json])
  assert.equal(j.fromJson(1.5, { floats: true }), 1.5)
  assert.equal(j.toJson(new Float(2) as unknown as Value), 2)
})

test('integers beyond 2^53 survive text both ways', () => {
  const text = '{"a":9007199254740993,"b":[-9007199254740993,18446744073709551615,-18446744073709551616],"c":1}'
  const value = { a: 9007199254740993n, b: [-9007199254740993n, 2n ** 64n - 1n, -(2n ** 64n)], c: 1 }
  assert.deepEqual(j.jsonToValue(text), value)
  assert.equal(j.valueToJson(value), text)
  // Digits in strings are not numbers; a long integer that is safe stays a number.
  assert.deepEqual(j.parseJson('["1234567890123456789",9007199254740991]'), ['1234567890123456789', 2 ** 53 - 1])
  assert.deepEqual(j.parseJson('{"__proto__":9007199254740993}'), proto(2n ** 53n + 1n))
  for (const bad of ['18446744073709551616', '-18446744073709551617', '123456789012345678901234', '1e17']) {
    assert.throws(() => j.jsonToValue(bad), Malformed, bad)
  }
  assert.equal(j.jsonToValue('9007199254740991.0'), 2 ** 53 - 1)
})

const proto = (value: unknown) =>
  Object.defineProperty({}, '__proto__', { value, enumerable: true, configurable: true, writable: true })

test('__proto__ is a key like others', () => {
  const value = j.jsonToValue('{"__proto__":{"x":[1]}}') as Obj
  assert.equal(Object.getPrototypeOf(value), Object.prototype)
  assert.equal(j.valueToJson(value), '{"__proto__":{"x":[1]}}')
})

test('text that is not JSON, and values that JSON cannot hold', () => {
  for (const text of ['', '{', '{"a":1,}', "{'a':1}", 'undefined', '\ufeff1', '[1]2', '{"n":1234567890123456', '01']) {
    assert.throws(() => j.parseJson(text), Malformed)
  }
  const cycle: Value[] = []
  cycle.push(cycle)
  assert.throws(() => j.toJson(cycle), Malformed)
  assert.throws(() => j.stringifyJson(cycle as j.JsonValue), Malformed)
  assert.throws(() => j.toJson({ a: undefined } as unknown as Value), Malformed)
  assert.throws(() => j.fromJson({ a: undefined } as unknown as j.JsonValue), Malformed)
})

test('depth is limited, and never by the stack', () => {
  const nested = (depth: number) => `${'['.repeat(depth)}${']'.repeat(depth)}`
  assert.equal(j.valueToJson(j.jsonToValue(nested(32))), nested(32))
  assert.throws(() => j.jsonToValue(nested(33)), Malformed)
  const deep = j.jsonToValue(nested(50_000), { depthMax: Infinity })
  assert.throws(() => j.toJson(deep), Malformed)
  assert.deepEqual(
    encode(j.fromJson(j.toJson(deep, { depthMax: Infinity }), { depthMax: Infinity }), { depthMax: Infinity }).length,
    50_000,
  )
  assert.throws(() => j.parseJson(`${'['.repeat(1e6)}9007199254740993`), Malformed)
  assert.throws(() => j.checkData(deep), Malformed)
  j.checkData(deep, { depthMax: Infinity })
  j.checkData(decode(encode(j.jsonToValue(nested(32)))))
})

test('$type and blobs are checked at any depth, in JSON and in values', () => {
  const good: j.JsonValue[] = [
    { $type: 'a' },
    blob,
    { ...blob, size: 0 },
    { ...blob, more: 1 },
    { $type: 'x.y', ref: 1 },
  ]
  // The old form of a blob has no $type, and is no concern here.
  good.push({ cid: cid.toString(), mimeType: 'image/png' })
  for (const json of good) j.checkData(j.fromJson({ deep: [json] }))
  const bad: j.JsonValue[] = [{ $type: null }, { $type: 1 }, { $type: '' }, { $type: ['a'] }]
  bad.push({ ...blob, size: '5' }, { ...blob, size: -1 }, { ...blob, size: null }, { ...blob, mimeType: '' })
  bad.push(
    { ...blob, mimeType: false },
    { ...blob, ref: 'x' },
    { ...blob, ref: { $link: Cid.ofCbor(cid.bytes).toString() } },
  )
  for (const key of ['ref', 'size', 'mimeType']) {
    const { [key]: _, ...rest } = blob as j.JsonObject
    bad.push(rest)
  }
  for (const json of bad) {
    refuses({ deep: [json] })
    const { ref, ...rest } = json as j.JsonObject
    const value = { ...rest, ref: j.fromJson(ref ?? null) } as Obj
    assert.throws(() => j.checkData([{ value }]), Malformed)
  }
})

test('a record is an object', () => {
  assert.deepEqual(j.recordFromJson({ a: 1 }), { a: 1 })
  for (const json of ['blah', 1, null, true, [], link, { $bytes: '' }]) {
    assert.throws(() => j.recordFromJson(json as j.JsonValue), Malformed)
  }
})

test('what is given is not touched nor shared', () => {
  const value: Obj = { a: [1], b: { c: cid } }
  const json = j.toJson(value) as { a: number[] }
  json.a.push(2)
  assert.deepEqual(value, { a: [1], b: { c: cid } })
})

test('every value comes back by way of JSON text, and the SDK reads it the same', () => {
  fc.assert(
    fc.property(anyValue.filter(isJsonable), value => {
      const text = j.valueToJson(value, { depthMax: 40 })
      assert.deepEqual(j.jsonToValue(text), value)
      assert.deepEqual(encode(j.jsonToValue(text)), encode(value))
    }),
    runs(500),
  )
  const json = { a: [{ b: link }], c: { $bytes: 'AAEC' }, d: blob }
  const ours = j.fromJson(json) as unknown as { a: { b: Cid }[]; c: Uint8Array }
  const theirs = jsonToLex(json, { strict: true }) as unknown as typeof ours
  assert.ok(ours.a[0]!.b.equals(theirs.a[0]!.b))
  assert.deepEqual(ours.c, theirs.c)
})

/** Reserved keys with another meaning than their own do not come back, and need not. */
function isJsonable(value: Value): boolean {
  if (Array.isArray(value)) return value.every(isJsonable)
  if (!j.isObj(value)) return true
  return !Object.keys(value).some(key => key.startsWith('$')) && Object.values(value).every(isJsonable)
}
