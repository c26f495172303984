import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { Malformed } from './errors.ts'
import * as syntax from './syntax.ts'

/** The patterns as the specifications print them, with their length limits: the slow twins. */
const TWINS: [guard: (value: unknown) => boolean, pattern: RegExp, lengthMax: number][] = [
  [syntax.isDid, /^did:[a-z]+:[a-zA-Z0-9._:%-]*[a-zA-Z0-9._-]$/, 2048],
  [syntax.isHandle, /^([a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?\.)+[a-zA-Z]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?$/, 253],
  [
    syntax.isNsid,
    /^[a-zA-Z]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)+(\.[a-zA-Z]([a-zA-Z0-9]{0,62})?)$/,
    317,
  ],
  [syntax.isTid, /^[234567abcdefghij][234567abcdefghijklmnopqrstuvwxyz]{12}$/, 13],
  [syntax.isRkey, /^(?!\.{1,2}$)[A-Za-z0-9._:~-]{1,512}$/, 512],
]

const GUARDS = [
  [syntax.isDid, syntax.asDid],
  [syntax.isHandle, syntax.asHandle],
  [syntax.isAtIdentifier, syntax.asAtIdentifier],
  [syntax.isNsid, syntax.asNsid],
  [syntax.isRkey, syntax.asRkey],
  [syntax.isTid, syntax.asTid],
  [syntax.isAtUri, syntax.asAtUri],
  [syntax.isDatetime, syntax.asDatetime],
  [syntax.isLanguage, syntax.asLanguage],
  [syntax.isUri, syntax.asUri],
  [syntax.isRepoPath, syntax.parseRepoPath],
  [syntax.isAtUri, syntax.parseAtUri],
  [syntax.isHandle, syntax.normalizeHandle],
] as [(value: unknown) => boolean, (value: unknown) => unknown][]

const nearly = (alphabet: string, maxLength = 40) =>
  fc.string({ unit: fc.constantFrom(...alphabet), maxLength }).map(s => s.replaceAll('D', 'did:plc:'))

test('the hand-written scans agree with the printed patterns', () => {
  const soup = fc.oneof(nearly('aZ09-.'), nearly('aD:%.-_~'), nearly('2ajkz7', 14), fc.string())
  for (const [guard, pattern, lengthMax] of TWINS) {
    fc.assert(
      fc.property(soup, text => {
        assert.equal(guard(text), text.length <= lengthMax && pattern.test(text), JSON.stringify(text))
      }),
      { numRuns: 1000 },
    )
  }
})

test('label and length edges agree with the printed patterns', () => {
  const labels = fc.array(fc.constantFrom(1, 2, 62, 63, 64), { minLength: 1, maxLength: 6 })
  fc.assert(
    fc.property(labels, lengths => {
      const text = lengths.map(n => 'a'.repeat(n)).join('.')
      const [, , nsid] = TWINS
      const handle = TWINS[1]!
      assert.equal(syntax.isHandle(text), text.length <= 253 && handle[1].test(text))
      const authorityLength = text.lastIndexOf('.')
      assert.equal(syntax.isNsid(text), text.length <= 317 && authorityLength <= 253 && nsid![1].test(text))
    }),
  )
})

test('anything at all ends in true, false or Malformed', () => {
  const anything = fc.oneof(
    fc.anything(),
    fc.uint16Array({ maxLength: 20 }).map(codes => String.fromCharCode(...codes)),
    nearly('aD/:.-%'),
    nearly('at:/D.b'),
  )
  fc.assert(
    fc.property(anything, value => {
      for (const [guard, parse] of GUARDS) {
        if (guard(value)) parse(value)
        else assert.throws(() => (typeof value === 'string' ? parse(value) : parse(String(Symbol.iterator))), Malformed)
      }
    }),
    { numRuns: 100 },
  )
})

test('hostile lengths are refused at once', () => {
  for (const unit of ['a', 'a.', 'a-', 'did:', '-', 'a.-', 'x-', 'en-1901-', '.', '/', ':']) {
    const long = unit.repeat(1_000_000)
    for (const [guard] of GUARDS) assert.equal(guard(long), false)
  }
})

test('handles of reserved domains have the syntax but never resolve', () => {
  for (const text of ['a.local', 'laptop.ARPA', 'x.onion', 'handle.invalid', 'a.b.alt', 'a.internal', 'a.localhost']) {
    assert.equal(syntax.isResolvableHandle(syntax.asHandle(text)), false, text)
  }
  assert.equal(syntax.isResolvableHandle(syntax.asHandle('alice.example')), false)
  assert.equal(syntax.isResolvableHandle(syntax.asHandle('alice.test')), false)
  assert.equal(syntax.isResolvableHandle(syntax.asHandle('alice.test'), { allowTest: true }), true)
  assert.equal(syntax.isResolvableHandle(syntax.asHandle('alice.example.com')), true)
  assert.equal(syntax.normalizeHandle('Alice.Example.COM'), 'alice.example.com')
  assert.ok(syntax.isHandle(syntax.HANDLE_INVALID))
})

test('AT-URIs and repository paths come apart and together', () => {
  const did = syntax.asDid('did:plc:44ybard66vv44zksje25o7dz')
  const collection = syntax.asNsid('app.bsky.feed.post')
  const rkey = syntax.asRkey('3jzfcijpj2z2a')
  const uri = syntax.makeAtUri(did, collection, rkey)
  assert.equal(uri, 'at://did:plc:44ybard66vv44zksje25o7dz/app.bsky.feed.post/3jzfcijpj2z2a')
  assert.deepEqual(syntax.parseAtUri(uri), { authority: did, collection, rkey })
  assert.deepEqual(syntax.parseAtUri(syntax.makeAtUri(did)), { authority: did })
  assert.deepEqual(syntax.parseAtUri(syntax.makeAtUri(did, collection)), { authority: did, collection })
  assert.deepEqual(syntax.parseRepoPath('app.bsky.feed.post/self:1'), { collection, rkey: 'self:1' })
  for (const bad of ['app.bsky.feed.post', 'app.bsky.feed.post/', '/self', 'a.b.c/d/e', 'a.b.c/..', 'a.b/c', '']) {
    assert.equal(syntax.isRepoPath(bad), false, bad)
  }
})

test('datetimes must exist', () => {
  const good = [
    '2024-02-29T00:00:00Z',
    '2000-02-29T23:59:59.9+23:59',
    '0000-01-01T00:00:00-01:00',
    '9999-12-31T23:59:59+01:00',
  ]
  const bad = [
    '2023-02-29T00:00:00Z',
    '1900-02-29T00:00:00Z',
    '2024-04-31T00:00:00Z',
    '2024-01-01T24:00:00Z',
    '2016-12-31T23:59:60Z',
    '2024-01-01T00:00:00+24:00',
    '0000-01-01T00:59:59+01:00',
    '9999-12-31T23:00:00-01:00',
    `2024-01-01T00:00:00.${'0'.repeat(50)}Z`,
    '2024-01-01T00:00:00Z\n',
  ]
  for (const text of good) assert.equal(syntax.isDatetime(text), true, text)
  for (const text of bad) assert.equal(syntax.isDatetime(text), false, text)
})

test('every moment that Date writes is a datetime', () => {
  fc.assert(
    fc.property(
      fc.date({ min: new Date('0000-01-01T00:00:00Z'), max: new Date('9999-12-31T23:59:59Z'), noInvalidDate: true }),
      d => assert.ok(syntax.isDatetime(d.toISOString())),
    ),
  )
})

test('Z is short for an offset of nothing, whatever stands before it', () => {
  const two = (max: number) => fc.nat({ max }).map(n => String(n).padStart(2, '0'))
  const fractions = fc.constantFrom('', '.', '.0', '.123456')
  const parts = fc.tuple(fc.nat({ max: 9999 }), two(13), two(32), two(24), two(60), two(60), fractions)
  fc.assert(
    fc.property(parts, ([year, month, day, hour, minute, second, fraction]) => {
      const text = `${String(year).padStart(4, '0')}-${month}-${day}T${hour}:${minute}:${second}${fraction}`
      assert.equal(syntax.isDatetime(`${text}Z`), syntax.isDatetime(`${text}+00:00`))
    }),
  )
})

test('did:plc identifiers have 24 characters of base32', () => {
  assert.equal(syntax.isPlcDid('did:plc:44ybard66vv44zksje25o7dz'), true)
  assert.equal(syntax.isPlcDid('did:plc:44ybard66vv44zksje25o7d1'), false)
  assert.equal(syntax.isPlcDid('did:plc:44ybard66vv44zksje25o7d'), false)
  assert.equal(syntax.isPlcDid('did:web:44ybard66vv44zksje25o7dz'), false)
})
