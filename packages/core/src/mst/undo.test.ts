import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { type BlockSource, Blocks } from '../blocks.ts'
import type { Cid } from '../cid.ts'
import { coveringProof, invert, type Op } from './proof.ts'
import { allTrees, keyOfHeight, keysOfHeights, recordCid, SlowTree, sorted } from './testing-trees.ts'
import { Tree } from './tree.ts'
import { undoOne } from './undo.ts'

const one = recordCid(1)
const two = recordCid(2)

/** The slow twin. */
const slowly = (root: Cid, blocks: BlockSource, op: Op): Cid =>
  invert(Tree.load(root, blocks, { heights: 'root' }), [op]).root

/** Gives whether there was an answer; if so it must be the twin's. */
function agrees(root: Cid, blocks: BlockSource, op: Op): boolean {
  const undone = undoOne(root, blocks, op)
  if (undone !== null) assert.equal(undone.toString(), slowly(root, blocks, op).toString())
  return undone !== null
}

test('every creation, change and deletion in all small trees is undone as invert does it, or left to it', () => {
  const keys = keysOfHeights([0, 1, 0, 0, 2, 0, 1])
  let [answers, questions] = [0, 0]
  for (const { root, blocks, map } of allTrees(keys, [one])) {
    for (const path of keys) {
      const cid = map.get(path) ?? null
      for (const op of [
        { path, cid: cid ?? one, prev: null },
        { path, cid: cid ?? one, prev: two },
        { path, cid: null, prev: one },
        { path, cid: two, prev: null },
      ]) {
        const isTrue = op.cid !== null && cid?.equals(op.cid) === true
        const answered = agrees(root, blocks, op)
        if (!isTrue) assert.equal(answered, false)
        // A value is always put back.
        else if (op.prev !== null) assert.equal(answered, true)
        questions += Number(isTrue)
        answers += Number(answered)
      }
    }
  }
  assert.ok(answers > questions / 2, `${answers} of ${questions}`)
})

const name = fc.stringMatching(/^[a-c]{1,4}$/)
const heights = fc.constantFrom(0, 0, 0, 1, 1, 2)

test('in large trees, from the blocks that a commit carries', () => {
  fc.assert(
    fc.property(
      fc.uniqueArray(fc.tuple(name, heights), { minLength: 1, maxLength: 60, selector: ([n, h]) => `${n} ${h}` }),
      fc.nat(),
      fc.boolean(),
      (names, pick, isChange) => {
        const keys = [...new Set(names.map(([n, height]) => keyOfHeight(n, height)))].sort()
        const path = keys[pick % keys.length]!
        const tree = Tree.build(keys.map(key => [key, one]))
        const blocks = new Blocks(coveringProof(tree, [path]))
        const answered = agrees(tree.root, blocks, { path, cid: one, prev: isChange ? two : null })
        const node = tree.path(path).at(-1)!
        const place = node.keys.indexOf(path)
        // A creation is, too, but of the key that tells the root's layer.
        assert.equal(answered, isChange || place > 0 || !node.cid.equals(tree.root))
      },
    ),
    { numRuns: 300 },
  )
})

test('keys with long shared prefixes are compressed anew, over each length of their heads', () => {
  const flat = [0, 0, 0, 0]
  const high = [0, 1, 0, 2]
  for (const length of [1, 22, 23, 24, 25, 254, 255, 256, 257, 900].flatMap(length => [length, -length])) {
    const heights = length > 0 ? flat : high
    const stem = 'p'.repeat(Math.abs(length))
    const keys = ['a', 'b', 'c', 'd'].flatMap((end, i) => [
      keyOfHeight(`${stem}${end}`, heights[i]!),
      keyOfHeight(`q${end}${stem}`, heights[i]!),
    ])
    const { root, blocks } = new SlowTree(sorted(keys.map(key => [key, one] as const)))
    const answered = keys.filter(path => agrees(root, blocks, { path, cid: one, prev: null }))
    // Only the first key, which tells the root's layer, is left to invert.
    assert.equal(answered.length, keys.length - 1)
  }
})

test('a node that is damaged, missing or misplaced has no answer that invert does not give', () => {
  const keys = keysOfHeights([0, 1, 0, 0, 2, 0, 1])
  const { root, nodes } = new SlowTree(sorted(keys.map(key => [key, one] as const)))
  for (const path of keys) {
    for (const op of [
      { path, cid: one, prev: two },
      { path, cid: one, prev: null },
    ]) {
      const good = undoOne(root, new Blocks(nodes), op)
      for (const [n, node] of nodes.entries()) {
        agrees(root, new Blocks(nodes.toSpliced(n, 1)), op)
        for (let at = 0; at < node.bytes.length; at++) {
          const bytes = node.bytes.slice()
          bytes[at]! ^= 1
          agrees(root, new Blocks(nodes.with(n, { cid: node.cid, bytes })), op)
        }
        // Another node of the same tree in its place.
        for (const other of nodes) agrees(root, new Blocks(nodes.with(n, { cid: node.cid, bytes: other.bytes })), op)
      }
      assert.ok(good !== null || op.prev === null)
    }
  }
})

test('keys on a layer that is not theirs have no answer', () => {
  const keys = keysOfHeights([0, 1, 0, 0, 2])
  const wrong = keys[3]!
  const heightOf = (key: string) => (key === wrong ? 1 : [0, 1, 0, 0, 2][keys.indexOf(key)]!)
  const { root, blocks } = new SlowTree(sorted(keys.map(key => [key, one] as const)), heightOf)
  for (const prev of [null, two]) assert.equal(undoOne(root, blocks, { path: wrong, cid: one, prev }), null)
})
