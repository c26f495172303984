import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { decode, encode, type Obj, type Value } from '../cbor.ts'
import { Cid } from '../cid.ts'
import { Malformed } from '../errors.ts'
import { decodeNode, encodeNode, findCids, withLink } from './encoding.ts'
import { commonPrefix, isKey } from './key.ts'
import { recordCid } from './testing-trees.ts'

const text = new TextEncoder()
const someKey = fc.oneof(
  fc.stringMatching(/^[ab.]{1,3}\/[ab~:]{1,4}$/),
  fc.stringMatching(/^app\.bsky\.feed\.(post|like)\/3l[a-c2-4]{1,3}$/),
  fc.nat(300).map(n => `w.test/${'x'.repeat(n)}y`),
)
const someCid = fc.nat(5).map(recordCid)
const rawCid = fc.nat(5).map(n => Cid.ofRaw(Uint8Array.of(n)))
const someLink = fc.option(someCid)
const someNode = fc.uniqueArray(someKey, { maxLength: 30 }).chain(keys =>
  fc.record({
    keys: fc.constant(keys.toSorted()),
    values: fc.array(fc.oneof(someCid, rawCid), { minLength: keys.length, maxLength: keys.length }),
    links: fc.array(someLink, { minLength: keys.length + 1, maxLength: keys.length + 1 }),
  }),
)

/** The node as data, for the generic codec. */
function slowEncode(keys: string[], values: Cid[], links: (Cid | null)[]): Uint8Array {
  const e = keys.map((key, i) => {
    const p = commonPrefix(keys[i - 1] ?? '', key)
    return { p, k: text.encode(key.slice(p)), v: values[i]!, t: links[i + 1]! }
  })
  return encode({ l: links[0]!, e })
}

/** What a node's bytes have to be, by way of the generic codec. */
function slowAccepts(bytes: Uint8Array): boolean {
  let node: Value
  try {
    node = decode(bytes)
  } catch {
    return false
  }
  const isLink = (v: Value | undefined) => v === null || (v instanceof Cid && v.isCbor)
  const fields = (v: Value | undefined, names: string): v is Obj =>
    typeof v === 'object' && v !== null && Object.keys(v).sort().join() === names
  if (!fields(node, 'e,l') || !Array.isArray(node.e) || !isLink(node.l) || node.e.length > 10_000) return false
  let previous = ''
  for (const entry of node.e) {
    if (!fields(entry, 'k,p,t,v') || typeof entry.p !== 'number' || !(entry.k instanceof Uint8Array)) return false
    if (!(entry.v instanceof Cid) || !entry.v.isBlessed || !isLink(entry.t)) return false
    if (entry.p < 0 || entry.p > previous.length) return false
    const key = previous.slice(0, entry.p) + String.fromCharCode(...entry.k)
    if (!isKey(key) || key <= previous || commonPrefix(previous, key) !== entry.p) return false
    previous = key
  }
  return true
}

function accepts(bytes: Uint8Array): boolean {
  try {
    decodeNode(bytes)
    return true
  } catch (error) {
    if (error instanceof Malformed) return false
    throw error
  }
}

test('nodes are encoded as the generic codec does it, and decoded to what they were', () => {
  fc.assert(
    fc.property(someNode, ({ keys, values, links }) => {
      const bytes = encodeNode(keys, values, links)
      assert.deepEqual(bytes, slowEncode(keys, values, links))
      const back = decodeNode(bytes)
      assert.deepEqual(back.keys, keys)
      assert.deepEqual(back.values.map(String), values.map(String))
      assert.deepEqual(back.links.map(String), links.map(String))
      assert.ok(slowAccepts(bytes))
    }),
  )
})

test('the CIDs of a node are found among other bytes', () => {
  fc.assert(
    fc.property(someNode, fc.nat(40), fc.nat(40), ({ keys, values, links }, before, behind) => {
      const node = encodeNode(keys, values, links)
      const bytes = new Uint8Array(before + node.length + behind).fill(0xf6)
      bytes.set(node, before)
      const to = before + node.length
      const found = [7]
      findCids(bytes, before, to, found)
      const expected = links.flatMap((link, i) => (i < keys.length ? [link, values[i]!] : [link]))
      const read = found.slice(1).map(at => (at === -1 ? null : Cid.view(bytes, at, 36)))
      assert.deepEqual(read.map(String), expected.map(String))
      for (const other of [to - 1, to + 1]) assert.throws(() => findCids(bytes, before, other, []), Malformed)
    }),
  )
})

test('a link is replaced in place', () => {
  fc.assert(
    fc.property(someNode, ({ keys, values, links }) => {
      const bytes = encodeNode(keys, values, links)
      const other = recordCid(99)
      for (const [i, link] of links.entries()) {
        if (link === null) continue
        assert.deepEqual(withLink(bytes, i, other), encodeNode(keys, values, links.with(i, other)))
      }
      assert.deepEqual(bytes, encodeNode(keys, values, links), 'the old node stays')
    }),
  )
})

test('changed bytes are taken or refused as a check by way of the generic codec says', () => {
  const edit = fc.record({
    at: fc.nat(),
    byte: fc.nat(255),
    how: fc.constantFrom('set', 'flip', 'cut', 'drop', 'insert'),
  })
  let taken = 0
  fc.assert(
    fc.property(someNode, fc.array(edit, { maxLength: 3 }), ({ keys, values, links }, edits) => {
      let bytes = [...encodeNode(keys, values, links)]
      for (const { at, byte, how } of edits) {
        const i = at % (bytes.length + 1)
        if (how === 'set') bytes[i] = byte
        else if (how === 'flip') bytes[i] = (bytes[i] ?? 0) ^ (1 << (byte & 7))
        else if (how === 'cut') bytes = bytes.slice(0, i)
        else if (how === 'drop') bytes.splice(i, 1)
        else bytes.splice(i, 0, byte)
      }
      const changed = Uint8Array.from(bytes)
      const accepted = accepts(changed)
      assert.equal(accepted, slowAccepts(changed))
      if (!accepted) return
      taken++
      const { keys: k, values: v, links: l } = decodeNode(changed)
      assert.deepEqual(encodeNode(k, v, l), changed)
    }),
    { numRuns: 1000 },
  )
  assert.ok(taken > 100)
})

test('every byte of a node matters', () => {
  const bytes = encodeNode(['a/b', 'a/bc'], [recordCid(1), recordCid(2)], [null, recordCid(4), null])
  for (let i = 0; i < bytes.length; i++) {
    for (let byte = 0; byte < 256; byte++) {
      const changed = bytes.with(i, byte)
      assert.equal(accepts(changed), slowAccepts(changed), `byte ${i} = ${byte}`)
    }
    assert.ok(!accepts(bytes.subarray(0, i)))
  }
})

const entry = (p: number, k: string, more: Obj = {}): Obj => ({
  k: text.encode(k),
  p,
  t: null,
  v: recordCid(1),
  ...more,
})
const cases: [what: string, node: Value][] = [
  ['not a map', []],
  ['a missing field', { e: [] }],
  ['a field too many', { e: [], l: null, x: 1 }],
  ['an undefined shape', { e: {}, l: null }],
  ['an entry with a field too many', { e: [entry(0, 'a/b', { x: 1 })], l: null }],
  ['an entry without value', { e: [entry(0, 'a/b', { v: null })], l: null }],
  ['a key out of order', { e: [entry(0, 'a/c'), entry(2, 'b')], l: null }],
  ['a key twice', { e: [entry(0, 'a/c'), entry(3, '')], l: null }],
  ['less compression than possible', { e: [entry(0, 'a/b'), entry(1, '/c')], l: null }],
  ['no compression', { e: [entry(0, 'a/b'), entry(0, 'a/c')], l: null }],
  ['a prefix longer than the key before', { e: [entry(0, 'a/b'), entry(4, 'c')], l: null }],
  ['a prefix of the first key', { e: [entry(1, '/b')], l: null }],
  ['a negative prefix', { e: [entry(-1, 'a/b')], l: null }],
  ['a key without slash', { e: [entry(0, 'ab')], l: null }],
  ['a key with two slashes', { e: [entry(0, 'a/b/c')], l: null }],
  ['a second slash behind a shared prefix', { e: [entry(0, 'a/b'), entry(3, '/c')], l: null }],
  ['a slash lost with the prefix', { e: [entry(0, 'a/b'), entry(1, 'b')], l: null }],
  ['a key that begins with the slash', { e: [entry(0, '/b')], l: null }],
  ['a key that ends with the slash', { e: [entry(0, 'a/')], l: null }],
  ['a key that is not ASCII', { e: [entry(0, 'a/ü')], l: null }],
  ['a key with a space', { e: [entry(0, 'a/ b')], l: null }],
  ['a key too long', { e: [entry(0, `a/${'b'.repeat(1023)}`)], l: null }],
  ['a key too long by its prefix', { e: [entry(0, `a/${'b'.repeat(1021)}`), entry(1023, 'cc')], l: null }],
  ['a subtree that is raw', { e: [], l: Cid.ofRaw(text.encode('x')) }],
  [
    'a subtree of another hash',
    {
      e: [],
      l: Cid.parse(
        'bafkrgqhhyivzstcz3hhswshfjgy6ertgmnqeleynhwt4dlfsthi4hn7zgh4uvlsb5xncykzapi3ocd4lzogukir6ksdy6wzrnz6ohnv4aglcs',
      ),
    },
  ],
  [
    'a value of CID version 0',
    { e: [entry(0, 'a/b', { v: Cid.parse('QmdfTbBqBPQ7VNxZEYEj14VmRuZBkqFbiwReogJgS1zR1n') })], l: null },
  ],
]
for (const [what, node] of cases) {
  test(`refuses ${what}`, () => assert.throws(() => decodeNode(encode(node)), Malformed))
}

test('takes the longest key, and shared prefixes of any length', () => {
  const long = `a/${'b'.repeat(1022)}`
  const keys = ['a/b', `a/${'b'.repeat(30)}`, `a/${'b'.repeat(300)}`, long]
  const node = encodeNode(
    keys,
    keys.map((_, i) => recordCid(i)),
    [null, recordCid(7), null, null, null],
  )
  assert.deepEqual(decodeNode(node).keys, keys)
  assert.deepEqual(
    withLink(node, 1, recordCid(8)),
    encodeNode(
      keys,
      keys.map((_, i) => recordCid(i)),
      [null, recordCid(8), null, null, null],
    ),
  )
})

test('refuses more entries than a node may have', () => {
  const keys = Array.from({ length: 10_001 }, (_, i) => `w.test/${String(i).padStart(5, '0')}`)
  const links = [null, ...keys.map(() => null)]
  const values = keys.map(() => recordCid(1))
  assert.throws(() => decodeNode(encodeNode(keys, values, links)), Malformed)
  assert.equal(decodeNode(encodeNode(keys.slice(1), values.slice(1), links.slice(1))).keys.length, 10_000)
})
