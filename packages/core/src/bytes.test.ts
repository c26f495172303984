import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import * as b from './bytes.ts'
import { Malformed } from './errors.ts'
import { anyBytes, runs } from './testing-values.ts'

const of = (...bytes: number[]) => Uint8Array.from(bytes)
const refuses = (fn: () => unknown) => assert.throws(fn, Malformed)

test('concat, equal and compare', () => {
  assert.deepEqual(b.concat([]), of())
  assert.deepEqual(b.concat([of(1), of(), of(2, 3)]), of(1, 2, 3))
  assert.equal(b.equal(of(1, 2), of(1, 2)), true)
  assert.equal(b.equal(of(1, 2), of(1, 3)), false)
  assert.equal(b.equal(of(1), of(1, 0)), false)
  const long = new Uint8Array(500).fill(7)
  assert.equal(b.equal(long, long.slice()), true)
  assert.equal(
    b.equal(
      long,
      long.map((x, i) => (i === 499 ? 0 : x)),
    ),
    false,
  )
  assert.ok(b.compare(of(1), of(1, 0)) < 0)
  assert.ok(b.compare(of(2), of(1, 0)) > 0)
  assert.equal(b.compare(of(1), of(1)), 0)
})

test('UTF-8 both ways, and nothing that is not', () => {
  for (const text of ['', 'abc', 'é😀', '\ufeffmarked', '\u0000', '\ufffd'])
    assert.equal(b.fromUtf8(b.utf8(text)), text)
  for (const text of ['\ud800', 'a\udc00', '\udc00\ud800']) refuses(() => b.utf8(text))
  // Overlong, surrogate, beyond U+10FFFF, cut short, stray continuation.
  for (const bytes of [of(0xc0, 0x80), of(0xed, 0xa0, 0x80), of(0xf4, 0x90, 0x80, 0x80), of(0xe2, 0x82), of(0x80)]) {
    refuses(() => b.fromUtf8(bytes))
  }
})

test('every text form gives back the bytes it was made of', () => {
  const forms = [
    [b.hex, b.unhex],
    [b.base32, b.unbase32],
    [b.base58, b.unbase58],
    [b.base64, b.unbase64],
    [b.base64url, b.unbase64url],
    [(x: Uint8Array) => b.latin1(x), b.fromLatin1],
  ] as const
  fc.assert(
    fc.property(anyBytes, bytes => {
      for (const [write, read] of forms) assert.deepEqual(read(write(bytes)), bytes)
    }),
    runs(300),
  )
})

test('results are plain byte arrays that own their memory', () => {
  for (const bytes of [b.unhex('00ff'), b.unbase32('aa'), b.unbase64('aaaa'), b.unbase64url('aaaa'), b.utf8('abc')]) {
    assert.equal(bytes.constructor, Uint8Array)
    assert.equal(bytes.byteLength, bytes.buffer.byteLength)
  }
})

test('hexadecimal of either case, and nothing else', () => {
  assert.deepEqual(b.unhex('00FfaB'), of(0, 255, 0xab))
  for (const text of ['0', 'gg', '0x00', ' 00', '00 ', '0\u0130']) refuses(() => b.unhex(text))
})

test('base32: RFC 4648 vectors, lowercase, no padding, no bits left over', () => {
  const vectors = {
    '': '',
    f: 'my',
    fo: 'mzxq',
    foo: 'mzxw6',
    foob: 'mzxw6yq',
    fooba: 'mzxw6ytb',
    foobar: 'mzxw6ytboi',
  }
  for (const [text, encoded] of Object.entries(vectors)) {
    assert.equal(b.base32(b.utf8(text)), encoded)
    assert.equal(b.fromUtf8(b.unbase32(encoded)), text)
  }
  for (const text of ['MY', 'my======', 'm', 'mz', 'mzx', 'mzxw6y', 'my1', 'mé', 'm\u2c1c'])
    refuses(() => b.unbase32(text))
})

test('base58: leading zeros, the Bitcoin alphabet, a limit', () => {
  assert.equal(b.base58(of(0, 0, 1)), '112')
  assert.equal(b.base58(b.utf8('Hello World!')), '2NEpo7TZRRrLZSi2U')
  assert.deepEqual(b.unbase58('112'), of(0, 0, 1))
  for (const text of ['0', 'O', 'I', 'l', 'é', '2'.repeat(1025)]) refuses(() => b.unbase58(text))
})

test('base64: written without padding, read with or without', () => {
  assert.equal(b.base64(of(0xfb, 0xff)), '+/8')
  for (const text of ['+/8', '+/8=']) assert.deepEqual(b.unbase64(text), of(0xfb, 0xff))
  for (const text of ['YQ', 'YQ==']) assert.deepEqual(b.unbase64(text), of(97))
  for (const text of ['Y', 'YQ=', 'YQ===', '-_8', 'YQ==YQ==', 'Y Q=', 'YQ\n', 'Yé', '=', '====']) {
    refuses(() => b.unbase64(text))
  }
})

test('base64url: only the canonical form', () => {
  assert.equal(b.base64url(of(0xfb, 0xff)), '-_8')
  for (const text of ['-_8=', '+/8', 'Y', 'YR', '-_9', 'YQ=', 'Y Q', 'aaaab']) refuses(() => b.unbase64url(text))
})

test('varints', () => {
  for (const n of [0, 1, 127, 128, 16_383, 16_384, 2 ** 32, Number.MAX_SAFE_INTEGER]) {
    const bytes = b.encodeVarint(n)
    assert.deepEqual(b.readVarint(b.concat([of(9), bytes, of(9)]), 1), { value: n, next: 1 + bytes.length })
  }
  for (const n of [-1, 1.5, 2 ** 53]) refuses(() => b.encodeVarint(n))
  const bad = {
    short: '80',
    empty: '',
    'not minimal': '8000',
    'beyond 2^53': '8080808080808010',
    'ten bytes': '80808080808080808001',
  }
  for (const [why, text] of Object.entries(bad)) assert.throws(() => b.readVarint(b.unhex(text), 0), Malformed, why)
})
