// The Merkle Search Tree vectors that all implementations of atproto share, and the implementations themselves.
import assert from 'node:assert/strict'
import { existsSync, readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { test } from 'node:test'
import * as atcute from '@atcute/mst'
import { parseCid } from '@atproto/lex-data'
import { BlockMap, MemoryBlockstore, MST } from '@atproto/repo'
import { type Block, Blocks } from '@millisky/core/blocks'
import { Cid } from '@millisky/core/cid'
import { diff } from '@millisky/core/mst/diff'
import { commonPrefix, keyHeight } from '@millisky/core/mst/key'
import { coveringProof, invert, type Op, prove, verifyProof } from '@millisky/core/mst/proof'
import { recordCid } from '@millisky/core/mst/testing-trees'
import { Tree } from '@millisky/core/mst/tree'
import fc from 'fast-check'

const vectors = resolve(import.meta.dirname, '../../../shared/fixtures/atproto-interop')
const skip = existsSync(vectors) ? false : 'the interop vectors are not beside this checkout'
const read = (path: string) => readFileSync(join(vectors, path), 'utf8')
const json = <T>(path: string): T[] => JSON.parse(read(path))

test('key_heights', { skip }, () => {
  const fixtures = json<{ key: string; height: number }>('mst/key_heights.json')
  assert.ok(fixtures.length > 0)
  for (const { key, height } of fixtures) assert.equal(keyHeight(key), height, key)
})

test('common_prefix', { skip }, () => {
  const fixtures = json<{ left: string; right: string; len: number }>('mst/common_prefix.json')
  assert.ok(fixtures.length > 0)
  for (const { left, right, len } of fixtures) assert.equal(commonPrefix(left, right), len)
})

test('example_keys: the digit in each key is its height', { skip }, () => {
  const keys = read('mst/example_keys.txt').trim().split('\n')
  assert.equal(keys.length, 156)
  for (const key of keys) assert.equal(keyHeight(key), Number(/^[A-Z](\d)/.exec(key)?.[1]), key)
  const tree = Tree.build(keys.toSorted().map(key => [key, recordCid(1)] as const))
  assert.deepEqual(
    tree
      .list()
      .map(([key]) => key)
      .toArray(),
    keys.toSorted(),
  )
})

interface CommitFixture {
  comment: string
  leafValue: string
  keys: string[]
  adds: string[]
  dels: string[]
  rootBeforeCommit: string
  rootAfterCommit: string
  blocksInProof: string[]
}

test('commit-proof-fixtures', { skip }, () => {
  const fixtures = json<CommitFixture>('firehose/commit-proof-fixtures.json')
  assert.equal(fixtures.length, 6)
  for (const { comment, leafValue, keys, adds, dels, ...expected } of fixtures) {
    const value = Cid.parse(leafValue)
    const before = Tree.build(keys.toSorted().map(key => [key, value] as const))
    assert.equal(before.root.toString(), expected.rootBeforeCommit, comment)
    let after = before
    for (const key of adds) after = after.put(key, value)
    for (const key of dels) after = after.delete(key)
    assert.equal(after.root.toString(), expected.rootAfterCommit, comment)
    const proof = coveringProof(after, [...adds, ...dels])
    assert.deepEqual(proof.map(({ cid }) => cid.toString()).sort(), expected.blocksInProof.toSorted(), comment)
    const ops = [
      ...adds.map(path => ({ path, cid: value, prev: null })),
      ...dels.map(path => ({ path, cid: null, prev: value })),
    ]
    const undone = invert(Tree.load(after.root, new Blocks(proof)), ops)
    assert.equal(undone.root.toString(), expected.rootBeforeCommit, comment)
  }
})

// Keys dense enough that deletes hit and that trees have four layers.
const key = fc.nat(299).map(n => `app.bsky.feed.${n % 2 ? 'post' : 'like'}/3l${n.toString(32).padStart(4, '2')}`)
const edits = fc.array(fc.record({ key, n: fc.nat(3) }), { maxLength: 25 })
const size = fc.constantFrom(0, 1, 5, 40, 250)

interface Run {
  before: Tree
  after: Tree
  ops: Op[]
}

/** A tree and what some edits make of it; the operations are as a commit tells them, one for each key. */
function run(size: number, edits: { key: string; n: number }[]): Run {
  const old = new Map<string, Cid>()
  for (let i = 0; i < size; i++) {
    const n = (i * 7) % 300
    old.set(`app.bsky.feed.${n % 2 ? 'post' : 'like'}/3l${n.toString(32).padStart(4, '2')}`, recordCid(9))
  }
  const before = Tree.build([...old].sort(([a], [b]) => (a < b ? -1 : 1)))
  const now = new Map<string, Cid | null>(old)
  for (const { key, n } of edits) now.set(key, n === 0 ? null : recordCid(n))
  let after = before
  const ops: Op[] = []
  for (const [path, cid] of now) {
    const prev = old.get(path) ?? null
    if (cid === prev) continue
    after = cid === null ? after.delete(path) : after.put(path, cid)
    ops.push({ path, cid, prev })
  }
  return { before, after, ops }
}

const names = (blocks: Iterable<Block>) => [...blocks].map(({ cid }) => cid.toString()).sort()

/** The reference's tree after the same operations. */
async function reference({ before, ops }: Run): Promise<MST> {
  let mst = await MST.create(new MemoryBlockstore())
  for (const [path, value] of before.list()) mst = await mst.add(path, parseCid(value.toString()))
  for (const { path, cid, prev } of ops) {
    if (cid === null) mst = await mst.delete(path)
    else if (prev === null) mst = await mst.add(path, parseCid(cid.toString()))
    else mst = await mst.update(path, parseCid(cid.toString()))
  }
  return mst
}

test('@atproto/repo makes the same trees, and its covering proofs can be undone', async () => {
  await fc.assert(
    fc.asyncProperty(size, edits, async (size, edits) => {
      const made = run(size, edits)
      const { before, after, ops } = made
      const mst = await reference(made)
      assert.equal((await mst.getPointer()).toString(), after.root.toString())
      const { blocks } = await mst.getUnstoredBlocks()
      assert.deepEqual(
        blocks
          .entries()
          .map(({ cid }) => cid.toString())
          .sort(),
        names(after.nodes()),
      )
      const proof = new BlockMap()
      for (const { path } of ops) proof.addMap(await mst.getCoveringProof(path))
      const slice = new Blocks(diff(before, after).gained)
      for (const { cid, bytes } of proof.entries()) slice.add({ cid: Cid.parse(cid.toString()), bytes })
      assert.equal(invert(Tree.load(after.root, slice), ops).root.toString(), before.root.toString())
    }),
    { numRuns: 60 },
  )
})

test('@atcute/mst makes the same trees, diffs and proofs', async () => {
  await fc.assert(
    fc.asyncProperty(size, edits, async (size, edits) => {
      const { before, after, ops } = run(size, edits)
      const store = new atcute.MemoryBlockStore()
      const nodes = new atcute.NodeStore(store)
      const wrangler = new atcute.NodeWrangler(nodes)
      for (const { cid, bytes } of before.nodes()) await store.put(cid.toString(), bytes.slice())
      let root = before.root.toString()
      for (const { path, cid } of ops) {
        root = await (cid === null
          ? wrangler.deleteRecord(root, path)
          : wrangler.putRecord(root, path, { $link: cid.toString() }))
      }
      assert.equal(root, after.root.toString())
      const { gained, lost, changes } = diff(before, after)
      const [created, deleted] = await atcute.mstDiff(nodes, before.root.toString(), root)
      assert.deepEqual([...created].sort(), names(gained))
      assert.deepEqual([...deleted].sort(), lost.map(String).sort())
      const theirs: string[] = []
      for await (const { path } of atcute.recordDiff(nodes, created, deleted)) theirs.push(path)
      assert.deepEqual(
        theirs.sort(),
        changes.map(({ key }) => key),
      )
      for (const { path } of ops.slice(0, 3)) {
        const [value, proof] = await atcute.findRpathAndBuildProof(nodes, root, path)
        assert.equal(value?.$link, after.get(path)?.toString())
        const blocks: Block[] = []
        for (const cid of proof) blocks.push({ cid: Cid.parse(cid), bytes: await (await nodes.get(cid)).serialize() })
        assert.equal(verifyProof(after.root, blocks, path)?.key, after.get(path)?.key)
        // Theirs of an absent key ends on its layer; ours goes on to the bottom, as the reference wants it.
        assert.deepEqual([...proof].sort(), names(prove(after, path).slice(0, proof.size)))
      }
    }),
    { numRuns: 60 },
  )
})
