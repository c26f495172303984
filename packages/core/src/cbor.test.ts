import assert from 'node:assert/strict'
import { test } from 'node:test'
import * as atcute from '@atcute/cbor'
import * as dagCbor from '@ipld/dag-cbor'
import fc from 'fast-check'
import { concat, hex, unhex } from './bytes.ts'
import {
  type CborOptions,
  check,
  decodeAll,
  decode as decodeAlone,
  decodeFirst,
  encode,
  Float,
  type Value,
} from './cbor.ts'
import { Cid } from './cid.ts'
import { Malformed } from './errors.ts'
import { slowDecode } from './testing-slow-cbor.ts'
import { anyDamage, anyInteger, anyText, anyValue, damaged, objectOf, runs } from './testing-values.ts'

const bytes = (text: string) => unhex(text.replaceAll(' ', ''))
/** `decode`; `check` has to end in the same way. */
function decode(input: Uint8Array, options?: CborOptions): Value {
  const problem = problemOf(() => check(input, options))
  assert.deepEqual(
    problem,
    problemOf(() => decodeAlone(input, options)),
    hex(input.subarray(0, 100)),
  )
  return decodeAlone(input, options)
}

function problemOf(work: () => unknown): string | null {
  try {
    work()
    return null
  } catch (error) {
    return `${error} at ${(error as Malformed).at}`
  }
}

const decoded = (text: string, options?: CborOptions) => decode(bytes(text), options)
const CID_HEX = `0171122066${'11'.repeat(31)}`

const good: [string, Value][] = [
  ['00', 0],
  ['17', 23],
  ['1818', 24],
  ['18ff', 255],
  ['190100', 256],
  ['19ffff', 65_535],
  ['1a00010000', 65_536],
  ['1affffffff', 2 ** 32 - 1],
  ['1b0000000100000000', 2 ** 32],
  ['1b001fffffffffffff', Number.MAX_SAFE_INTEGER],
  ['1b0020000000000000', 2n ** 53n],
  ['1b0020000000000001', 2n ** 53n + 1n],
  ['1bffffffffffffffff', 2n ** 64n - 1n],
  ['20', -1],
  ['3818', -25],
  ['3b001ffffffffffffe', Number.MIN_SAFE_INTEGER],
  ['3b001fffffffffffff', -(2n ** 53n)],
  ['3bffffffffffffffff', -(2n ** 64n)],
  ['40', new Uint8Array()],
  ['43010203', Uint8Array.of(1, 2, 3)],
  ['60', ''],
  ['63616263', 'abc'],
  ['63e282ac', '€'],
  ['64f09f9880', '😀'],
  ['63efbfbd', '\ufffd'],
  ['63efbbbf', '\ufeff'],
  ['80', []],
  ['83010203', [1, 2, 3]],
  ['a0', {}],
  ['a161610a', { a: 10 }],
  ['a2616101626161 02', { a: 1, aa: 2 }],
  ['a1 60 01', { '': 1 }],
  ['f4', false],
  ['f5', true],
  ['f6', null],
  [`d82a582500${CID_HEX}`, Cid.fromBytes(unhex(CID_HEX))],
  ['d82a4500 01700000', Cid.fromBytes(unhex('01700000'))],
]

test('known bytes and values, both ways', () => {
  for (const [text, value] of good) {
    assert.deepEqual(decoded(text), value, text)
    assert.equal(hex(encode(value)), text.replaceAll(' ', ''))
  }
})

const bad: Record<string, string> = {
  'no bytes': '',
  'int below 24 in two bytes': '1817',
  'int below 256 in three': '1900ff',
  'int below 65536 in five': '1a0000ffff',
  'int below 2^32 in nine': '1b00000000ffffffff',
  'negative not minimal': '3800',
  'text length not minimal': '780161',
  'bytes length not minimal': '580101',
  'array length not minimal': '980101',
  'map length not minimal': 'b801616101',
  'tag not minimal': 'd9002a582500',
  'link length not minimal': `d82a59002500${CID_HEX}`,
  'head cut short': '1901',
  'reserved info 28': '1c',
  'reserved info 30': 'fe',
  'indefinite bytes': '5f4101ff',
  'indefinite text': '7f6161ff',
  'indefinite array': '9f01ff',
  'indefinite map': 'bf616101ff',
  'break alone': 'ff',
  'keys unsorted': 'a2616201616101',
  'keys twice': 'a2616101616101',
  'keys longer first': 'a262616101616201',
  'keys twice, empty': 'a260016001',
  'key twice, not side by side': 'a3616101616201616101',
  'integer key': 'a10101',
  'bytes key': 'a1416101',
  'link key': `a1d82a582500${CID_HEX}01`,
  'key that is not UTF-8': 'a161ff01',
  'map without its last value': 'a16161',
  'map without its last key': 'a2616101',
  'text cut short': '6261',
  'bytes cut short': '4201',
  'array cut short': '820101 '.slice(0, 4),
  'length of 2^53': '5b0020000000000000',
  'length of 2^64-1': '7bffffffffffffffff',
  'array claiming 2^32-1 items': '9affffffff01',
  'map claiming 2^32-1 entries': 'baffffffff616101',
  undefined: 'f7',
  'simple 0': 'e0',
  'simple 19': 'f3',
  'simple 32': 'f820',
  'simple true in two bytes': 'f815',
  float16: 'f93e00',
  float32: 'fa3fc00000',
  float64: 'fb3ff8000000000000',
  'float NaN': 'fb7ff8000000000000',
  'tag 0': 'c06161',
  'tag 2, bignum': 'c249010000000000000000',
  'tag 41': 'd8294100',
  'tag 43': `d82b582500${CID_HEX}`,
  'link to text': 'd82a6100',
  'link without zero byte': `d82a5824${CID_HEX}`,
  'link with one for zero': `d82a582501${CID_HEX}`,
  'link of nothing': 'd82a40',
  'link of zero byte only': 'd82a4100',
  'link to no CID': 'd82a4400020304',
  'link with bytes behind the CID': `d82a582600${CID_HEX}00`,
  'link over 100 bytes': `d82a586600017113 61${'00'.repeat(97)}`,
  'tag 42 and the end': 'd82a',
  'trailing byte': '0000',
  'UTF-8 overlong': '62c080',
  'UTF-8 surrogate': '63eda080',
  'UTF-8 cut short': '62e282',
  'UTF-8 stray byte': '6180',
  'UTF-8 beyond Unicode': '64f4908080',
  'UTF-8 wrong, with a replacement character beside it': '64efbfbd80',
}

test('whatever breaks a rule is refused', () => {
  for (const [why, text] of Object.entries(bad)) {
    assert.throws(() => decoded(text), Malformed, why)
    assert.equal(slowDecode(bytes(text)), undefined, why)
  }
})

test('errors say where', () => {
  assert.throws(() => decoded('83 01 02 f7'), { at: 3 })
  assert.throws(() => decoded('0000'), { at: 1 })
})

test('floats only when asked for, only of 64 bits, only finite; integral ones stay floats', () => {
  const floats = { floats: true }
  assert.equal(decoded('fb3ff8000000000000', floats), 1.5)
  assert.equal(decoded('fb7e37e43c8800759c', floats), 1e300)
  const one = decoded('fb3ff0000000000000', floats)
  assert.ok(one instanceof Float && Number(one) === 1)
  for (const text of ['fb3ff8000000000000', 'fb7e37e43c8800759c', 'fb3ff0000000000000', 'fb8000000000000000', '01']) {
    assert.equal(hex(encode(decoded(text, floats), floats)), text)
  }
  for (const text of [
    'f93e00',
    'fa3fc00000',
    'fb7ff8000000000000',
    'fb7ff0000000000000',
    'fbfff0000000000000',
    'fb3ff8',
  ]) {
    assert.throws(() => decoded(text, floats), Malformed)
  }
  for (const value of [Number.NaN, Infinity, -Infinity]) assert.throws(() => encode(value, floats), Malformed)
  assert.throws(() => encode(new Float(1) as unknown as Value), Malformed)
})

test('what has no encoding is refused', () => {
  class Thing {
    a = 1
  }
  const values: unknown[] = [undefined, Number.NaN, Infinity, 1.5, 2 ** 53, -(2 ** 53), 2n ** 64n, -(2n ** 64n) - 1n]
  values.push('\ud800', `${'x'.repeat(50)}\udfff`, { '\ud800': 1 }, { a: undefined }, [undefined], new Array(1))
  values.push(() => 1, Symbol('a'), new Date(0), new Map(), new Set(), /a/, new Thing(), new Uint16Array(1))
  values.push(new ArrayBuffer(1), new DataView(new ArrayBuffer(1)), Object(1), new Error('a'), Promise.resolve(1))
  for (const value of values) {
    assert.throws(() => encode(value as Value), Malformed)
    assert.throws(() => encode({ a: [value as Value] }), Malformed)
  }
})

test('numbers have one encoding, however they are held', () => {
  assert.equal(hex(encode(5n)), '05')
  assert.equal(hex(encode(-1n)), '20')
  assert.equal(hex(encode(2n ** 32n)), hex(encode(2 ** 32)))
  assert.equal(hex(encode(-(2n ** 32n) - 1n)), hex(encode(-(2 ** 32) - 1)))
  assert.equal(hex(encode(-0)), '00')
})

test('the order of keys is that of their bytes, not of their making nor of UTF-16', () => {
  const byLength = { version: 3, data: 1, did: 2, rev: 3, sig: 4, prev: null }
  assert.deepEqual(Object.keys(decode(encode(byLength)) as object), ['did', 'rev', 'sig', 'data', 'prev', 'version'])
  // U+FF61 sorts before U+1F600 in UTF-8 (ef… before f0…) and behind it in UTF-16 (ff61 behind d83d).
  const keys = Object.keys(decode(encode({ '😀': 1, '｡a': 2, '｡': 3, abcd: 4 })) as object)
  assert.deepEqual(keys, ['｡', 'abcd', '｡a', '😀'])
  const many = objectOf(Array.from({ length: 200 }, (_, i) => [`k${(i * 7919) % 200}`, i]))
  assert.deepEqual(decode(encode(many)), many)
})

test('__proto__ is a key like others', () => {
  const text = 'a1695f5f70726f746f5f5fa161780a'
  const value = decoded(text) as Record<string, Value>
  assert.deepEqual(Object.keys(value), ['__proto__'])
  assert.equal(Object.getPrototypeOf(value), Object.prototype)
  assert.equal(value.x, undefined)
  assert.equal(hex(encode(value)), text)
  assert.equal(hex(encode(Object.assign(Object.create(null), { a: 1 }))), 'a1616101')
})

test('byte strings and links are views of the input; what encode gives is not', () => {
  const input = Buffer.from('8243010203d82a582500'.concat(CID_HEX), 'hex')
  const [view, cid] = decode(input) as [Uint8Array, Cid]
  assert.equal(view.constructor, Uint8Array)
  assert.equal(view.buffer, input.buffer)
  assert.equal(cid.bytes.buffer, input.buffer)
  assert.equal(encode(view).byteLength, encode(view).buffer.byteLength)
})

test('prefixes and concatenated items', () => {
  const frame = concat([encode({ t: '#commit', op: 1 }), encode({ seq: 5 }), encode(1)])
  const first = decodeFirst(frame)
  assert.deepEqual(first, { value: { t: '#commit', op: 1 }, end: 15 })
  assert.deepEqual(decodeFirst(frame, first.end), { value: { seq: 5 }, end: 21 })
  assert.deepEqual(decodeAll(frame), [{ t: '#commit', op: 1 }, { seq: 5 }, 1])
  assert.deepEqual(decodeAll(new Uint8Array()), [])
  assert.throws(() => decodeAll(frame.subarray(0, 20)), Malformed)
  assert.throws(() => decodeFirst(frame, frame.length), Malformed)
})

test('depth: 32 containers by default, any other limit, none', () => {
  const nested = (depth: number) => unhex(`${'81'.repeat(depth - 1)}80`)
  assert.deepEqual(encode(decode(nested(32))), nested(32))
  assert.throws(() => decode(nested(33)), Malformed)
  assert.throws(() => encode(decode(nested(33), { depthMax: 33 })), Malformed)
  assert.equal(decode(bytes('01'), { depthMax: 0 }), 1)
  assert.throws(() => decode(bytes('80'), { depthMax: 0 }), Malformed)
  const unlimited = { depthMax: Infinity }
  const deep = nested(100_000)
  assert.deepEqual(hex(encode(decode(deep, unlimited), unlimited)), hex(deep))
  const maps = unhex(`${'a16161'.repeat(50_000)}a0`)
  assert.equal(hex(encode(decode(maps, unlimited), unlimited)), hex(maps))
})

test('a cycle is refused, whatever the limit of depth', () => {
  const list: Value[] = []
  list.push(list)
  const map: Record<string, Value> = { a: 1 }
  map.b = [1, { c: [2, map] }]
  const behindLongWay: Value[] = [[[[[[[[[[list]]]]]]]]]]
  for (const value of [list, map, behindLongWay]) {
    for (const depthMax of [32, 1000, Infinity]) assert.throws(() => encode(value, { depthMax }), Malformed)
  }
  // The same thing twice is no cycle.
  const twice = { x: [1] }
  assert.deepEqual(decode(encode([twice, twice, [twice]])), [twice, twice, [twice]])
})

test('limits on items and keys hold both ways and can be moved', () => {
  const list = new Array<Value>(131_073).fill(0)
  assert.throws(() => encode(list), Malformed)
  const long = encode(list, { itemsMax: Infinity })
  assert.throws(() => decode(long), Malformed)
  assert.equal((decode(long, { itemsMax: 131_073 }) as Value[]).length, 131_073)
  assert.throws(() => decoded('a2616101616202', { itemsMax: 1 }), Malformed)
  assert.throws(() => encode({ a: 1, b: 2 }, { itemsMax: 1 }), Malformed)
  const key = 'k'.repeat(8193)
  assert.throws(() => encode({ [key]: 1 }), Malformed)
  const withKey = encode({ [key]: 1 }, { keyBytesMax: 8193 })
  assert.throws(() => decode(withKey), Malformed)
  assert.deepEqual(decode(withKey, { keyBytesMax: 8193 }), { [key]: 1 })
})

test('output larger than the buffer it is made in', () => {
  for (const size of [10_000, 16_384, 100_000, 3_000_000]) {
    const value = { text: 'é'.repeat(size), bytes: new Uint8Array(size).fill(7), list: ['x'.repeat(size), size] }
    assert.deepEqual(decode(encode(value)), value)
  }
  assert.deepEqual(decode(encode('after')), 'after')
})

test('text of every length, ASCII and not', () => {
  for (let length = 0; length < 300; length++) {
    for (const text of ['a'.repeat(length), 'é'.repeat(length), `${'a'.repeat(length)}😀`, `€${'b'.repeat(length)}`]) {
      assert.deepEqual(encode(text).slice(-Buffer.byteLength(text) || Infinity), new Uint8Array(Buffer.from(text)))
      assert.equal(decode(encode(text)), text)
      assert.deepEqual(decode(encode({ [text]: 1 })), { [text]: 1 })
    }
  }
})

test('every value comes back, and its bytes are those of two other libraries', () => {
  fc.assert(
    fc.property(anyValue, value => {
      const encoded = encode(value)
      assert.deepEqual(decode(encoded), value)
      assert.deepEqual(slowDecode(encoded), value)
      assert.deepEqual(encode(decode(encoded)), encoded)
      if (!isPeculiar(value)) {
        assert.equal(hex(dagCbor.encode(dagCbor.decode(encoded))), hex(encoded))
        assert.equal(hex(atcute.encode(atcute.decode(encoded) as never)), hex(encoded))
      }
    }),
    runs(500),
  )
})

/** What the other libraries refuse, or read as something else (a byte order mark as nothing). */
function isPeculiar(value: Value): boolean {
  if (typeof value === 'string') return value.startsWith('\ufeff')
  if (typeof value === 'bigint') return true
  if (value instanceof Cid) return !value.isBlessed
  if (value === null || typeof value !== 'object' || value instanceof Uint8Array) return false
  if (Object.keys(value).some(key => key === '__proto__' || key === 'constructor' || key.startsWith('\ufeff')))
    return true
  return Object.values(value).some(isPeculiar)
}

test('integers and texts in numbers', () => {
  fc.assert(
    fc.property(fc.array(anyInteger), fc.array(anyText), (integers, texts) => {
      assert.deepEqual(decode(encode([integers, texts])), [integers, texts])
    }),
    runs(500),
  )
})

/** Ends in a value whose encoding is the input, or in Malformed; never otherwise, and as the slow reading says. */
function sameVerdict(input: Uint8Array): void {
  let value: Value
  try {
    value = decode(input)
  } catch (error) {
    assert.ok(error instanceof Malformed, `${hex(input)}: ${error}`)
    assert.equal(slowDecode(input), undefined, `refused wrongly: ${hex(input)}`)
    return
  }
  assert.deepEqual(value, slowDecode(input), hex(input))
  assert.equal(hex(encode(value)), hex(input))
}

test('all inputs of two bytes, and all short ones made of telling bytes', () => {
  for (let i = 0; i < 256; i++) sameVerdict(Uint8Array.of(i))
  for (let i = 0; i < 65_536; i++) sameVerdict(Uint8Array.of(i >> 8, i & 255))
  const telling = unhex('0017181b2038404158606162788081829899a0a1a2b8d82af4f6f7fbff')
  for (const a of telling) for (const b of telling) for (const c of telling) sameVerdict(Uint8Array.of(a, b, c))
  const few = unhex('0018416061628182a1a2d82af6')
  const four = new Uint8Array(4)
  for (let n = 0; n < few.length ** 4; n++) {
    for (let i = 0, rest = n; i < 4; i++, rest = Math.floor(rest / few.length)) four[i] = few[rest % few.length]!
    sameVerdict(four)
  }
})

test('damaged bytes end in a value that encodes to them, or in Malformed', () => {
  fc.assert(
    fc.property(anyValue, anyDamage, (value, damage) => sameVerdict(damaged(encode(value), damage))),
    runs(1500),
  )
  fc.assert(fc.property(fc.uint8Array({ maxLength: 40 }), sameVerdict), runs(1000))
})

test('what is accepted, the lenient library accepts too, as the same', () => {
  fc.assert(
    fc.property(anyValue, anyDamage, (value, damage) => {
      const input = damaged(encode(value), damage)
      const ours = slowDecode(input)
      if (ours === undefined || isPeculiar(ours)) return
      assert.equal(hex(dagCbor.encode(dagCbor.decode(input))), hex(encode(ours)))
    }),
    runs(500),
  )
})
