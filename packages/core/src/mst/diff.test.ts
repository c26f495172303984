import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { Blocks } from '../blocks.ts'
import type { Cid } from '../cid.ts'
import { type Diff, diff } from './diff.ts'
import { Asked, allTrees, keysOfHeights, names, recordCid, SlowTree, sorted } from './testing-trees.ts'
import { Tree } from './tree.ts'

const one = recordCid(1)
const two = recordCid(2)

/** Set difference of all nodes, and of all entries. */
function slowDiff(a: SlowTree | null, b: SlowTree) {
  const before = new Set(a?.names)
  const after = new Set(b.names)
  const keys = [...new Set([...(a?.map.keys() ?? []), ...b.map.keys()])].sort()
  return {
    gained: b.names.filter(name => !before.has(name)),
    lost: a?.names.filter(name => !after.has(name)) ?? [],
    changes: keys.flatMap(key => {
      const from = a?.map.get(key)?.toString() ?? null
      const to = b.map.get(key)?.toString() ?? null
      return from === to ? [] : [{ key, from, to }]
    }),
  }
}

const plain = ({ gained, lost, changes }: Diff) => ({
  gained: names(gained),
  lost: lost.map(String),
  changes: changes.map(({ key, from, to }) => ({ key, from: from?.toString() ?? null, to: to?.toString() ?? null })),
})

const load = (slow: SlowTree) => Tree.load(slow.root, slow.blocks)

function checkPair(before: SlowTree, after: SlowTree): void {
  const left = new Asked(before.blocks)
  const right = new Asked(after.blocks)
  const found = diff(Tree.load(before.root, left), Tree.load(after.root, right))
  const wanted = slowDiff(before, after)
  assert.deepEqual(plain(found), wanted)
  for (const { cid, bytes } of found.gained) assert.equal(bytes, after.blocks.get(cid))
  // Equal subtrees are passed, but where a key next to them changed.
  const keys = wanted.changes.map(({ key }) => key)
  const besideLost = before.cover(keys)
  for (const cid of left.asked) assert.ok(besideLost.has(`${cid}`) || wanted.lost.includes(`${cid}`))
  const besideGained = after.cover(keys)
  for (const cid of right.asked) assert.ok(besideGained.has(`${cid}`) || wanted.gained.includes(`${cid}`))
}

const worlds: [heights: number[], values: Cid[]][] = [
  [[0, 1, 0, 3, 0, 2], [one]],
  [[2, 0, 0, 2, 0, 3, 0], [one]],
  [
    [0, 2, 0, 1],
    [one, two],
  ],
  [
    [1, 0, 3, 0],
    [one, two],
  ],
]
for (const [heights, values] of worlds) {
  test(`is the set difference for all pairs of trees over heights ${heights} and ${values.length} values`, () => {
    const all = allTrees(keysOfHeights(heights), values)
    for (const before of all) for (const after of all) checkPair(before, after)
  })
}

test('is the set difference for large trees', () => {
  const edit = fc.record({ at: fc.nat(999), n: fc.nat(3) })
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 1000 }), fc.array(edit, { maxLength: 40 }), (size, edits) => {
      const key = (i: number) => `w.test/${String((i * 7919) % 1000).padStart(4, '0')}`
      const map = new Map<string, Cid>()
      for (let i = 0; i < size; i++) map.set(key(i), one)
      const before = new SlowTree(sorted(map))
      const old = Tree.build(before.entries)
      let tree = old
      for (const { at, n } of edits) {
        if (n === 0) map.delete(key(at))
        else map.set(key(at), recordCid(n))
        tree = n === 0 ? tree.delete(key(at)) : tree.put(key(at), recordCid(n))
      }
      const after = new SlowTree(sorted(map))
      const wanted = slowDiff(before, after)
      assert.deepEqual(plain(diff(old, tree)), wanted)
      assert.deepEqual(plain(diff(load(before), load(after))), wanted)
      assert.deepEqual(plain(diff(old, load(after))), wanted)
    }),
    { numRuns: 20 },
  )
})

test('everything is gained where there was no tree', () => {
  const some = new SlowTree(keysOfHeights([0, 2, 0]).map(key => [key, one]))
  const none = new SlowTree([])
  assert.deepEqual(plain(diff(null, load(some))), slowDiff(null, some))
  assert.deepEqual(plain(diff(null, Tree.empty)), slowDiff(null, none))
  assert.deepEqual(plain(diff(Tree.empty, load(some))), slowDiff(none, some))
})

test('equal trees are not even loaded', () => {
  const { root } = Tree.build(keysOfHeights([0, 1]).map(key => [key, one]))
  const a = Tree.load(root, new Blocks())
  assert.deepEqual(diff(a, Tree.load(root, new Blocks())), { gained: [], lost: [], changes: [] })
})
