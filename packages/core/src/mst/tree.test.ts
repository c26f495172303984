import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { Blocks, MissingBlock } from '../blocks.ts'
import { Cid } from '../cid.ts'
import { Malformed } from '../errors.ts'
import {
  Asked,
  allTrees,
  type Entries,
  keyOfHeight,
  keysOfHeights,
  names,
  recordCid,
  SlowTree,
  sorted,
} from './testing-trees.ts'
import { keyHeight, type Range, Tree } from './tree.ts'

const one = recordCid(1)
const two = recordCid(2)
/** Layouts in which puts split and deletes join subtrees over several layers, also ones without keys between. */
const layouts = [
  [0, 1, 0, 3, 0, 2, 1],
  [2, 0, 0, 3, 0, 0, 2],
  [0, 3, 1, 0, 0, 2, 0],
]

const plain = (entries: Iterable<readonly [string, Cid]>) => [...entries].map(([key, value]) => `${key} ${value}`)
const load = (slow: SlowTree) => Tree.load(slow.root, slow.blocks)

test('the empty tree is one empty node', () => {
  assert.equal(Tree.empty.root.toString(), 'bafyreie5737gdxlw5i64vzichcalba3z2v5n6icifvx5xytvske7mr3hpm')
  assert.deepEqual([...Tree.empty.list()], [])
  assert.equal([...Tree.empty.nodes()].length, 1)
  assert.equal(Tree.empty.get('a/b'), null)
  assert.equal(Tree.empty.delete('a/b'), Tree.empty)
  assert.equal(Tree.build([]).root.toString(), Tree.empty.root.toString())
})

for (const heights of layouts) {
  test(`in all trees over keys of heights ${heights}, put and delete lead where the definition says`, () => {
    const keys = keysOfHeights(heights)
    const all = allTrees(keys, [one])
    const nodesOf = new Map(allTrees(keys, [one, two]).map(slow => [plain(slow.entries).join(), slow.names]))
    const namesOf = (entries: Entries) => nodesOf.get(plain(sorted(entries)).join())
    for (const slow of all) {
      const built = Tree.build(slow.entries)
      assert.deepEqual(names(built.nodes()), slow.names)
      const tree = load(slow)
      assert.deepEqual(plain(tree.list()), plain(slow.entries))
      assert.deepEqual(names(tree.nodes()), slow.names)
      for (const key of keys) {
        const others = slow.entries.filter(([k]) => k !== key)
        const isIn = slow.map.has(key)
        assert.equal(tree.get(key)?.key, slow.map.get(key)?.key)
        for (const before of [tree, built]) {
          const put = before.put(key, two)
          assert.deepEqual(names(put.nodes()), namesOf([...others, [key, two]]))
          assert.equal(put.get(key), two)
          const deleted = before.delete(key)
          assert.deepEqual(names(deleted.nodes()), namesOf(others))
          assert.equal(deleted.get(key), null)
          assert.equal(deleted === before, !isIn, 'no change, no new tree')
          if (isIn) assert.equal(before.put(key, one), before)
          assert.equal(before.root.key, slow.root.key, 'the tree before stays')
        }
      }
    }
  })
}

test('the order of edits does not matter, nor whether roots are computed in between', () => {
  const key = fc.constantFrom(...keysOfHeights([0, 0, 1, 2, 0, 1, 0, 3, 0, 4, 0, 0]))
  const edits = fc.array(fc.record({ key, n: fc.nat(3), look: fc.boolean() }), { maxLength: 60 })
  fc.assert(
    fc.property(edits, list => {
      const map = new Map<string, Cid>()
      let tree = Tree.empty
      for (const { key, n, look } of list) {
        if (n === 0) map.delete(key)
        else map.set(key, recordCid(n))
        tree = n === 0 ? tree.delete(key) : tree.put(key, recordCid(n))
        if (look) assert.ok(tree.root.isCbor)
      }
      assert.deepEqual(names(tree.nodes()), new SlowTree(sorted(map)).names)
    }),
  )
})

test('a large tree is the same built, put together in any order, and cut down', () => {
  const entries: [string, Cid][] = []
  for (let i = 0; i < 3000; i++)
    entries.push([`app.bsky.feed.post/3l${i.toString(36).padStart(4, '0')}`, recordCid(i % 7)])
  const root = Tree.build(entries).root.toString()
  assert.equal(new SlowTree(entries).root.toString(), root)
  let tree = Tree.empty
  for (let i = 0; i < entries.length; i++) tree = tree.put(...entries[(i * 1009) % entries.length]!)
  assert.equal(tree.root.toString(), root)
  const left = entries.filter((_, i) => i % 100 === 0)
  for (let i = 0; i < entries.length; i++) {
    const at = (i * 1013) % entries.length
    if (at % 100 !== 0) tree = tree.delete(entries[at]![0])
  }
  assert.equal(tree.root.toString(), new SlowTree(left).root.toString())
})

const rangesOf = (keys: readonly string[]): Range[] => {
  const marks = [undefined, 'test.world/', keys[0]!, `${keys[2]!}-`, keys[3]!, keys[6]!, '~']
  const ranges: Range[] = []
  for (const low of marks) {
    for (const high of marks) {
      ranges.push(
        { after: low, before: high },
        { from: low, to: high },
        { after: low, to: high, prefix: 'test.world/' },
      )
    }
  }
  ranges.push({ prefix: keys[3]!.slice(0, 12) }, { prefix: 'test.' }, { prefix: 'x' }, { prefix: '' })
  return ranges
}

function slowList(entries: Entries, { after, before, from, to, prefix = '', reverse }: Range): Entries {
  const inside = entries.filter(
    ([key]) =>
      (after === undefined || key > after) &&
      (before === undefined || key < before) &&
      (from === undefined || key >= from) &&
      (to === undefined || key <= to) &&
      key.startsWith(prefix),
  )
  return reverse ? inside.toReversed() : inside
}

test('lists any range in both directions', () => {
  const keys = keysOfHeights(layouts[0]!)
  for (const { entries } of allTrees(keys, [one])) {
    const tree = Tree.build(entries)
    for (const range of rangesOf(keys)) {
      for (const reverse of [false, true]) {
        assert.deepEqual(plain(tree.list({ ...range, reverse })), plain(slowList(entries, { ...range, reverse })))
      }
    }
  }
})

test('a list loads only what its range touches, and can be left and taken up again', () => {
  const entries: [string, Cid][] = []
  for (let i = 0; i < 500; i++) entries.push([`w.test/${String(i).padStart(3, '0')}`, one])
  const slow = new SlowTree(entries)
  const asked = new Asked(slow.blocks)
  const tree = Tree.load(slow.root, asked)
  const seen: string[] = []
  for (let after: string | undefined; ; ) {
    const page = tree.list({ after, prefix: 'w.test/' }).take(7).toArray()
    if (page.length === 0) break
    for (const [key] of page) seen.push(key)
    after = seen.at(-1)
  }
  assert.deepEqual(
    seen,
    entries.map(([key]) => key),
  )
  asked.asked.length = 0
  assert.equal([...tree.list({ prefix: 'w.test/25' })].length, 10)
  assert.ok(asked.asked.length < 20, `${asked.asked.length} nodes for ten keys`)
})

test('walks in pre-order: a node, then its subtrees and entries by turns', () => {
  const keys = keysOfHeights([0, 1, 0, 2, 0])
  const tree = load(new SlowTree(keys.map(key => [key, one])))
  const steps = [...tree.walk()].map(({ node, key }) => (node === null ? key : node.layer))
  const [a, b, c, d, e] = keys
  assert.deepEqual(steps, [2, 1, 0, a, b, 0, c, d, 1, 0, e])
})

test('missing names what is to be loaded, level by level, for editing and for the covering proof', () => {
  const keys = keysOfHeights(layouts[1]!)
  for (const slow of allTrees(keys, [one])) {
    const whole = load(slow)
    for (const key of keys) {
      const here = new Blocks()
      const tree = Tree.load(slow.root, here)
      let rounds = 0
      for (let missing = tree.missing([key]); missing.length > 0; missing = tree.missing([key])) {
        for (const cid of missing) {
          assert.ok(!here.has(cid))
          here.add({ cid, bytes: slow.blocks.get(cid)! })
        }
        assert.ok(++rounds <= 4)
      }
      assert.equal(tree.delete(key).root.key, whole.delete(key).root.key)
      assert.equal(tree.put(key, two).root.key, whole.put(key, two).root.key)
    }
  }
})

test('missing without neighbours names the nodes on the way only', () => {
  const keys = keysOfHeights([0, 0, 0, 3, 0, 0, 0])
  const { nodes } = new SlowTree(keys.map(key => [key, one]))
  const tree = Tree.load(nodes[0]!.cid, new Blocks([nodes[0]!]))
  assert.deepEqual(tree.missing([keys[3]!], { neighbours: false }), [])
  assert.equal(tree.missing([keys[3]!]).length, 2)
  assert.equal(tree.missing(keys).length, 2)
  assert.equal(tree.put(keys[3]!, two).get(keys[3]!), two)
  assert.throws(() => tree.delete(keys[3]!), MissingBlock)
})

test('a key is an ASCII path, a value a blessed CID', () => {
  for (const key of ['', 'a', 'a/', '/b', 'a/b/c', 'a/b ', 'a/ü', 'a/b\n', `a/${'b'.repeat(1023)}`]) {
    assert.throws(() => Tree.empty.put(key, one), Malformed, key)
    assert.throws(() => Tree.build([[key, one]]), Malformed, key)
    assert.equal(Tree.empty.get(key), null)
  }
  assert.ok(Tree.empty.put(`a/${'b'.repeat(1022)}`, one))
  const legacy = Cid.parse('QmdfTbBqBPQ7VNxZEYEj14VmRuZBkqFbiwReogJgS1zR1n')
  assert.throws(() => Tree.empty.put('a/b', legacy), Malformed)
  assert.throws(() => Tree.build([['a/b', legacy]]), Malformed)
  assert.throws(() => Tree.load(legacy, new Blocks()), Malformed)
  assert.throws(() => Tree.load(Cid.ofRaw(Uint8Array.of(1)), new Blocks()), Malformed)
})

test('build wants its entries sorted, each key once', () => {
  const [a, b] = keysOfHeights([0, 0]) as [string, string]
  assert.throws(
    () =>
      Tree.build([
        [b, one],
        [a, one],
      ]),
    Malformed,
  )
  assert.throws(
    () =>
      Tree.build([
        [a, one],
        [a, one],
      ]),
    Malformed,
  )
})

test('a node cannot grow beyond what readers take', () => {
  const flat: [string, Cid][] = []
  for (let i = 0; flat.length < 10_000; i++) {
    const key = `w.test/${String(i).padStart(6, '0')}`
    if (keyHeight(key) === 0) flat.push([key, one])
  }
  const tree = Tree.build(flat)
  assert.equal([...tree.nodes()].length, 1)
  assert.throws(() => tree.put(keyOfHeight('z', 0), one), Malformed)
  assert.ok(tree.put(keyOfHeight('z', 1), one).root.isCbor)
})

test('has a picture of itself', () => {
  const [a, b] = keysOfHeights([0, 1]) as [string, string]
  const tree = Tree.build([
    [a, one],
    [b, two],
  ])
  const leaf = new SlowTree([[a, one]]).root
  assert.equal(`${tree}`, `1: ${tree.root}\n  0: ${leaf}\n  - ${a} → ${one}\n- ${b} → ${two}`)
  assert.equal(`${Tree.load(tree.root, new Blocks())}`, `(${tree.root})`)
})
