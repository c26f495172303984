// Trees that no honest writer makes: each has to end in an error, soon.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { type Block, Blocks, MissingBlock } from '../blocks.ts'
import { Cid } from '../cid.ts'
import { Malformed } from '../errors.ts'
import { diff } from './diff.ts'
import { encodeNode } from './encoding.ts'
import { Node } from './node.ts'
import { coveringProof, invert, prove } from './proof.ts'
import { Asked, allTrees, keyOfHeight, keysOfHeights, recordCid, SlowTree } from './testing-trees.ts'
import { Tree } from './tree.ts'

const one = recordCid(1)

/** A node of whatever content as a block. */
function block(keys: string[], links: (Block | null)[]): Block {
  const bytes = encodeNode(
    keys,
    keys.map(() => one),
    links.map(link => link?.cid ?? null),
  )
  return { cid: Cid.ofCbor(bytes), bytes }
}

const [a, b, c, d, e] = keysOfHeights([0, 1, 0, 2, 0]) as [string, string, string, string, string]
const leafA = block([a], [null, null])
const leafC = block([c], [null, null])
const leafE = block([e], [null, null])
const hollow = (below: Block) => block([], [below])

const malformed: [what: string, blocks: Block[]][] = [
  ['a root that only points', [hollow(leafA), leafA]],
  ['an empty node below the root', [block([b], [block([], [null]), null]), block([], [null])]],
  ['a hollow node on the bottom layer', [block([b], [hollow(leafA), null]), hollow(leafA), leafA]],
  ['a subtree below the bottom layer', [block([a], [null, leafC]), leafC]],
  ['a layer left out', [block([d], [leafA, null]), leafA]],
  [
    'a child on its parent’s layer',
    [block([b], [null, block([keyOfHeight('c', 1)], [null, null])]), block([keyOfHeight('c', 1)], [null, null])],
  ],
  ['a child above its parent', [block([b], [null, block([d], [null, null])]), block([d], [null, null])]],
  ['keys of different heights', [block([a, b], [null, null, null])]],
  ['keys beyond the parent’s on the left', [block([b], [leafC, null]), leafC]],
  ['keys beyond the parent’s on the right', [block([b], [null, leafA]), leafA]],
  ['the parent’s own key again', [block([b], [null, block([b], [null, null])]), block([b], [null, null])]],
  ['keys beyond the grandparent’s', [block([d], [null, hollow(leafA)]), hollow(leafA), leafA]],
  ['one subtree in two places', [block([b], [leafA, leafA]), leafA]],
  ['one hollow subtree in two places', [block([d], [hollow(leafE), hollow(leafE)]), hollow(leafE), leafE]],
  ['a block that is no node', [{ cid: one, bytes: Uint8Array.of(0xa0) }]],
]
for (const [what, [root, ...rest]] of malformed) {
  test(`refuses ${what} wherever it is met`, () => {
    const load = () => Tree.load(root!.cid, new Blocks([root!, ...rest]))
    assert.throws(() => [...load().nodes()], Malformed)
    assert.throws(() => [...load().list()], Malformed)
    assert.throws(() => [...load().list({ reverse: true })], Malformed)
    assert.throws(() => [...load().walk()], Malformed)
    assert.throws(() => diff(null, load()), Malformed)
    assert.throws(() => coveringProof(load(), [a, b, c, d, e]), Malformed)
    assert.throws(() => [a, b, c, d, e].map(key => prove(load(), key)), Malformed)
    assert.throws(() => load().missing([a, b, c, d, e]), Malformed)
  })
}

test('an absent block is told from a wrong one', () => {
  const root = block([b], [leafA, leafC])
  const tree = Tree.load(root.cid, new Blocks([root, leafC]))
  assert.throws(
    () => [...tree.nodes()],
    (error: unknown) => error instanceof MissingBlock && error.cid.equals(leafA.cid),
  )
  assert.equal(tree.get(c)?.toString(), one.toString())
  assert.throws(() => tree.get(a), MissingBlock)
  assert.deepEqual(tree.missing([a, c]).map(String), [leafA.cid.toString()])
  assert.throws(() => Tree.load(root.cid, new Blocks()).get(a), MissingBlock)
  assert.deepEqual(Tree.load(root.cid, new Blocks()).missing([a]).map(String), [root.cid.toString()])
})

test('a tree that refers to the same nodes again and again is left at the second time', () => {
  const top = Array.from({ length: 200 }, (_, i) => keyOfHeight(`k${String(i).padStart(3, '0')}`, 4))
  const bush = hollow(hollow(hollow(leafA)))
  const nodes = [hollow(hollow(leafA)), hollow(leafA), leafA, bush]
  const root = block(top, [bush, ...top.map(() => bush)])
  const asked = new Asked(new Blocks([root, ...nodes]))
  assert.throws(() => [...Tree.load(root.cid, asked).nodes()], Malformed)
  assert.ok(asked.asked.length <= 10)
})

test('a chain of hollow nodes ends at the bottom layer', () => {
  const key = keyOfHeight('x', 5)
  let chain = leafA
  for (let i = 0; i < 100; i++) chain = hollow(chain)
  const blocks = new Blocks([leafA])
  let link = leafA
  for (let i = 0; i < 100; i++) blocks.add((link = hollow(link)))
  const root = block([key], [chain, null])
  const asked = new Asked(blocks.add(root))
  assert.throws(() => [...Tree.load(root.cid, asked).nodes()], Malformed)
  assert.ok(asked.asked.length <= 6)
})

test('with heights of the root only, an edited key on a wrong layer is still refused', () => {
  // b belongs one layer up; a commit that creates it there must not pass.
  const wrong = block([a, b, c], [null, null, null, null])
  const load = (heights: 'all' | 'root') => Tree.load(wrong.cid, new Blocks([wrong]), { heights })
  assert.throws(() => load('all').get(b), Malformed)
  assert.throws(() => invert(load('root'), [{ path: b, cid: one, prev: null }]), Malformed)
  assert.throws(() => invert(load('root'), [{ path: b, cid: one, prev: recordCid(2) }]), Malformed)
  assert.throws(() => load('root').put(b, one), Malformed)
  const below = block([a, b], [null, null, null])
  const above = block([d], [below, null])
  const tree = Tree.load(above.cid, new Blocks([above, below]), { heights: 'root' })
  assert.throws(() => tree.put(a, recordCid(2)), Malformed)
  assert.throws(() => tree.delete(a), Malformed)
})

test('with heights of the root only, no wrong tree can be undone to a right one', () => {
  const keys = keysOfHeights([1, 0, 2, 0])
  const right = allTrees(keys, [one])
  const roots = new Set(right.map(({ root }) => root.key))
  let refused = 0
  // Each key is absent or stands on a layer from 0 to 3.
  for (let n = 0; n < 5 ** keys.length; n++) {
    const layers = new Map(keys.map((key, i) => [key, (Math.floor(n / 5 ** i) % 5) - 1]))
    const present = keys.filter(key => layers.get(key)! >= 0)
    const after = new SlowTree(
      present.map(key => [key, one]),
      key => layers.get(key)!,
    )
    for (const before of right) {
      const paths = keys.filter(key => before.map.has(key) !== after.map.has(key))
      const ops = paths.map(path => ({ path, cid: after.map.get(path) ?? null, prev: before.map.get(path) ?? null }))
      try {
        const undone = invert(Tree.load(after.root, after.blocks, { heights: 'root' }), ops)
        assert.ok(roots.has(after.root.key) || undone.root.key !== before.root.key, `${undone}`)
      } catch (error) {
        assert.ok(error instanceof Malformed)
        refused++
      }
    }
  }
  assert.ok(refused > 0)
})

test('whatever stands in the blocks, nothing but Malformed and MissingBlock comes of it', () => {
  const keys = Array.from({ length: 60 }, (_, i) => `w.test/${String(i * 37).padStart(4, '0')}`)
  const good = new SlowTree(keys.map(key => [key, one]))
  const spot = fc.record({ node: fc.nat(), at: fc.nat(), byte: fc.nat(255), from: fc.option(fc.nat()) })
  const attempts: ((tree: Tree) => unknown)[] = [
    tree => [...tree.nodes()],
    tree => [...tree.list({ reverse: true })],
    tree => diff(Tree.load(good.root, good.blocks), tree),
    tree => diff(tree, Tree.load(good.root, good.blocks)),
    tree => coveringProof(tree, keys.slice(10, 13)),
    tree => tree.missing(keys),
    tree => keys.reduce((t, key) => t.delete(key), tree).root,
    tree => keys.reduce((t, key) => t.put(`${key}x`, one), tree).root,
    tree =>
      invert(
        tree,
        keys.map(path => ({ path, cid: one, prev: null })),
      ).root,
  ]
  let failed = 0
  fc.assert(
    fc.property(fc.array(spot, { minLength: 1, maxLength: 4 }), fc.constantFrom('all', 'root'), (spots, heights) => {
      const bytes = new Map(good.nodes.map(({ cid, bytes }) => [cid.key, bytes]))
      for (const { node, at, byte, from } of spots) {
        // A changed byte, or another node's bytes, under a CID that stays.
        const { cid, bytes: old } = good.nodes[node % good.nodes.length]!
        const other = from === null ? old.with(at % old.length, byte) : good.nodes[from % good.nodes.length]!.bytes
        bytes.set(cid.key, other)
      }
      const blocks = { get: (cid: Cid) => bytes.get(cid.key) }
      for (const attempt of attempts) {
        try {
          attempt(Tree.load(good.root, blocks, { heights }))
        } catch (error) {
          if (!(error instanceof Malformed || error instanceof MissingBlock)) throw error
          failed++
        }
      }
    }),
  )
  assert.ok(failed > 100)
})

test('a node knows its bytes, and reads them back', () => {
  const tree = Tree.build([
    [a, one],
    [b, one],
    [c, one],
  ])
  const node = tree.rootNode
  assert.equal(node.layer, 1)
  assert.deepEqual([...node.keys], [b])
  assert.equal(node.link(0)?.toString(), leafA.cid.toString())
  const back = Node.decode(node.bytes)
  assert.equal(back.cid.toString(), tree.root.toString())
  assert.equal(back.layer, 1)
  assert.ok(Node.empty.isEmpty && !back.isEmpty)
  assert.throws(() => Node.decode(node.bytes, { layer: 2 }), Malformed)
  assert.throws(() => Node.decode(hollow(leafA).bytes), Malformed)
  assert.equal(Node.decode(hollow(leafA).bytes, { layer: 1 }).layer, 1)
})
