import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { type Block, Blocks, MissingBlock } from '../blocks.ts'
import type { Cid } from '../cid.ts'
import { Malformed } from '../errors.ts'
import { diff } from './diff.ts'
import { coveringProof, invert, type Op, prove, verifyProof } from './proof.ts'
import { allEntries, allTrees, keyOfHeight, keysOfHeights, names, recordCid } from './testing-trees.ts'
import { keyHeight, Tree } from './tree.ts'

const one = recordCid(1)
const two = recordCid(2)

/** The operations that lead from one map to another. */
function opsBetween(before: ReadonlyMap<string, Cid>, after: ReadonlyMap<string, Cid>): Op[] {
  return [...new Set([...before.keys(), ...after.keys()])].sort().flatMap(path => {
    const prev = before.get(path) ?? null
    const cid = after.get(path) ?? null
    return prev === cid ? [] : [{ path, cid, prev }]
  })
}

function apply(tree: Tree, ops: readonly Op[]): Tree {
  let after = tree
  for (const { path, cid } of ops) after = cid === null ? after.delete(path) : after.put(path, cid)
  return after
}

test('proves presence and absence of every key in all small trees, and not with a node less', () => {
  const keys = keysOfHeights([0, 1, 0, 3, 0, 2, 1])
  const wanted = [...keys, keyOfHeight('A', 0), keyOfHeight('cc', 0), keyOfHeight('x', 3)]
  for (const slow of allTrees(keys, [one])) {
    const tree = Tree.load(slow.root, slow.blocks)
    for (const key of wanted) {
      const proof = prove(tree, key)
      assert.deepEqual(names(proof), slow.path(key))
      assert.equal(verifyProof(tree.root, proof, key)?.toString(), slow.map.get(key)?.toString())
      // Verifiers that do not hash the key go to the bottom; below its own layer this one does not have to.
      const needed = tree.path(key, keyHeight(key)).length
      for (let i = 0; i < proof.length; i++) {
        const verify = () => verifyProof(tree.root, proof.toSpliced(i, 1), key)
        if (i < needed) assert.throws(verify, MissingBlock)
        else assert.equal(verify(), null)
      }
    }
  }
})

test('a proof with a changed node is refused', () => {
  const [a, b, c] = keysOfHeights([0, 1, 0]) as [string, string, string]
  const tree = Tree.build([
    [a, one],
    [b, one],
    [c, one],
  ])
  const proof = prove(tree, c)
  const other = prove(tree.put(c, two), c)
  assert.equal(verifyProof(tree.root, new Blocks(proof), c)?.toString(), one.toString())
  assert.throws(() => verifyProof(tree.root, [proof[0]!, { cid: proof[1]!.cid, bytes: other[1]!.bytes }], c), Malformed)
  assert.throws(() => verifyProof(tree.root, [{ cid: proof[0]!.cid, bytes: proof[1]!.bytes }], c), Malformed)
})

/** The nodes a commit's event holds: those the new tree gained, and the covering proof. */
const slice = (before: Tree, after: Tree, ops: readonly Op[]): Block[] => [
  ...diff(before, after).gained,
  ...coveringProof(
    after,
    ops.map(op => op.path),
  ),
]

const worlds: [heights: number[], values: Cid[]][] = [
  [[0, 1, 0, 3, 0, 2, 1], [one]],
  [[2, 0, 0, 3, 0, 0, 2], [one]],
  [[3, 0, 1, 0, 3, 0], [one]],
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
  test(`the covering proof suffices to undo any change over heights ${heights} and ${values.length} values`, () => {
    const all = allTrees(keysOfHeights(heights), values).map(({ entries, map }) => ({ map, tree: Tree.build(entries) }))
    for (const before of all) {
      for (const after of all) {
        const ops = opsBetween(before.map, after.map)
        const proof = coveringProof(
          after.tree,
          ops.map(op => op.path),
        )
        for (const heights of ['all', 'root'] as const) {
          const partial = Tree.load(after.tree.root, new Blocks(proof), { heights })
          assert.equal(invert(partial, ops).root.key, before.tree.root.key)
        }
      }
    }
  })
}

test('the covering proof is the paths to the changed keys and their neighbours, in pre-order', () => {
  const keys = keysOfHeights([0, 1, 0, 3, 0, 2])
  for (const slow of allTrees(keys, [one])) {
    const tree = Tree.build(slow.entries)
    for (const subset of allEntries(keys, [one])) {
      const changed = subset.map(([key]) => key)
      const wanted = slow.cover(changed)
      assert.deepEqual(
        names(coveringProof(tree, changed.toReversed())),
        slow.names.filter(name => wanted.has(name)),
      )
    }
  }
})

test('what missing names suffices to apply any change and to prove it', () => {
  const all = allTrees(keysOfHeights([0, 2, 0, 1, 3, 0]), [one])
  for (const before of all) {
    for (const after of all) {
      if (before === after) continue
      const ops = opsBetween(before.map, after.map)
      const paths = ops.map(op => op.path)
      const here = new Blocks()
      const tree = Tree.load(before.root, here)
      for (let missing = tree.missing(paths); missing.length > 0; missing = tree.missing(paths)) {
        for (const cid of missing) here.add({ cid, bytes: before.blocks.get(cid)! })
      }
      const changed = apply(tree, ops)
      const partial = Tree.load(after.root, new Blocks(slice(tree, changed, ops)))
      assert.equal(invert(partial, ops).root.key, tree.root.key)
    }
  }
})

test('undoes any change of large trees from the slice alone', () => {
  const key = (i: number) => `w.test/${String(i).padStart(4, '0')}`
  const edits = fc.uniqueArray(fc.record({ at: fc.nat(999), n: fc.nat(3) }), {
    maxLength: 60,
    selector: ({ at }) => at,
  })
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 9 }), edits, (step, list) => {
      const old = new Map<string, Cid>()
      for (let i = 0; i < 1000; i += step) old.set(key(i), one)
      const before = Tree.build(old)
      const now = new Map(old)
      for (const { at, n } of list) {
        if (n === 0) now.delete(key(at))
        else now.set(key(at), recordCid(n))
      }
      const ops = opsBetween(old, now)
      const after = apply(before, ops)
      const partial = Tree.load(after.root, new Blocks(slice(before, after, ops)))
      assert.equal(invert(partial, ops).root.key, before.root.key)
      assert.equal(invert(after, ops.toReversed()).root.key, before.root.key)
    }),
    { numRuns: 30 },
  )
})

test('operations that did not lead to the tree are refused', () => {
  const [a, b, c, d] = keysOfHeights([0, 1, 0, 2]) as [string, string, string, string]
  const tree = Tree.build([
    [a, one],
    [b, one],
    [d, two],
  ])
  const refused: [what: string, ops: Op[]][] = [
    ['created, but it is not there', [{ path: c, cid: one, prev: null }]],
    ['created, with another value', [{ path: a, cid: two, prev: null }]],
    ['updated, with another value', [{ path: a, cid: two, prev: one }]],
    ['updated, but it is not there', [{ path: c, cid: two, prev: one }]],
    ['deleted, but it is there', [{ path: a, cid: null, prev: two }]],
    ['neither before nor after', [{ path: c, cid: null, prev: null }]],
    [
      'one path twice',
      [
        { path: a, cid: one, prev: null },
        { path: a, cid: one, prev: null },
      ],
    ],
    ['a path that is none', [{ path: 'a', cid: null, prev: one }]],
  ]
  for (const [what, ops] of refused) assert.throws(() => invert(tree, ops), Malformed, what)
})

test('no operations need no blocks', () => {
  const tree = Tree.load(Tree.build([[keyOfHeight('a', 0), one]]).root, new Blocks())
  assert.equal(invert(tree, []), tree)
})

test('a slice with a node too few is incomplete', () => {
  const keys = keysOfHeights([0, 2, 0, 3, 0, 1])
  const tree = Tree.build(keys.map(key => [key, one]))
  for (const key of keys) {
    const ops = [{ path: key, cid: one, prev: null }]
    const proof = coveringProof(tree, [key])
    // The node of a neighbour may sit beside the one that is merged; those that are needed are never all of a smaller set.
    const needed = proof.filter(({ cid }) => {
      const blocks = new Blocks(proof)
      blocks.delete(cid)
      try {
        return invert(Tree.load(tree.root, blocks), ops).root.key !== tree.delete(key).root.key
      } catch (error) {
        assert.ok(error instanceof MissingBlock)
        return true
      }
    })
    assert.ok(needed.length > 0)
  }
})
