/**
 * The Merkle Search Tree against those of other projects: single inserts with a root after each, as a PDS makes them;
 * bulk building; reading a whole tree from its blocks; comparing two; undoing a commit from its slice.
 *
 * Keys are those of a real repository: a few collections, record keys that are TIDs.
 */
import * as atcute from '@atcute/mst'
import { type Cid as LexCid, parseCid } from '@atproto/lex-data'
import { BlockMap, DataDiff, MemoryBlockstore, MST } from '@atproto/repo'
import { Blocks } from '@millisky/core/blocks'
import { Cid } from '@millisky/core/cid'
import { diff } from '@millisky/core/mst/diff'
import { coveringProof, invert } from '@millisky/core/mst/proof'
import { Tree } from '@millisky/core/mst/tree'
import { encodeTid } from '@millisky/core/tid'
import { type Case, compare, type Measured, machine, printTable } from './measure.ts'

type Report = (title: string, rows: Measured[]) => void

const COUNT = 10_000
const COLLECTIONS = ['app.bsky.feed.like', 'app.bsky.feed.like', 'app.bsky.feed.post', 'app.bsky.graph.follow']
const START = Date.parse('2026-08-20T12:00:00.000Z') * 1000

/** Keys in the order in which a person's records come to be. */
function keysOf(count: number): string[] {
  return Array.from({ length: count }, (_, i) => {
    const collection = COLLECTIONS[(Math.imul(i, 0x9e3779b1) >>> 30) & 3]
    return `${collection}/${encodeTid(START + i * 61_000_000 + ((i * 7919) % 1_000_003), 7)}`
  })
}

/** The same in no order, but in the same one every time. */
function shuffled(keys: readonly string[]): string[] {
  const copy = [...keys]
  let state = 1
  for (let i = copy.length - 1; i > 0; i--) {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0
    const j = (state >>> 8) % (i + 1)
    ;[copy[i], copy[j]] = [copy[j]!, copy[i]!]
  }
  return copy
}

const value = Cid.ofCbor(Uint8Array.of(0xa0))
const other = Cid.ofCbor(Uint8Array.of(0xf6))
const lexCid = (cid: Cid): LexCid => parseCid(cid.toString())

function inserts(keys: readonly string[]): Case[] {
  const link = { $link: value.toString() }
  const lex = lexCid(value)
  return [
    {
      name: 'millisky',
      count: keys.length,
      fn: () => {
        let tree = Tree.empty
        for (const key of keys) {
          tree = tree.put(key, value)
          tree.root
        }
        return tree
      },
    },
    {
      name: '@atcute/mst',
      count: keys.length,
      fn: async () => {
        const wrangler = new atcute.NodeWrangler(new atcute.NodeStore(new atcute.MemoryBlockStore()))
        let root: string | null = null
        for (const key of keys) root = await wrangler.putRecord(root, key, link)
      },
    },
    {
      name: '@atproto/repo',
      count: keys.length,
      fn: async () => {
        let tree = await MST.create(new MemoryBlockstore())
        for (const key of keys) {
          tree = await tree.add(key, lex)
          await tree.getPointer()
        }
      },
    },
  ]
}

function builds(keys: readonly string[]): Case[] {
  const pairs = keys.toSorted().map(key => [key, value] as const)
  const lex = lexCid(value)
  return [
    { name: 'millisky, build', count: keys.length, fn: () => Tree.build(pairs).root },
    {
      name: 'millisky, puts',
      count: keys.length,
      fn: () => pairs.reduce((tree, [key, cid]) => tree.put(key, cid), Tree.empty).root,
    },
    {
      name: '@atproto/repo',
      count: keys.length,
      fn: async () => {
        let tree = await MST.create(new MemoryBlockstore())
        for (const [key] of pairs) tree = await tree.add(key, lex)
        await tree.getPointer()
      },
    },
  ]
}

/** A tree as the storage of each project holds it. */
async function stores(...trees: Tree[]) {
  const blocks = new Blocks()
  const theirs = new atcute.MemoryBlockStore()
  const map = new BlockMap()
  for (const tree of trees) {
    for (const { cid, bytes } of tree.nodes()) {
      const copy = bytes.slice()
      blocks.add({ cid, bytes: copy })
      await theirs.put(cid.toString(), copy)
      map.set(lexCid(cid), copy)
    }
  }
  return { blocks, theirs, reference: new MemoryBlockstore(map) }
}

async function readings(tree: Tree): Promise<Case[]> {
  const { blocks, theirs, reference } = await stores(tree)
  const root = tree.root.toString()
  const lex = lexCid(tree.root)
  return [
    { name: 'millisky', count: COUNT, fn: () => Tree.load(tree.root, blocks).list().toArray() },
    {
      name: 'millisky, heights unchecked',
      count: COUNT,
      fn: () => Tree.load(tree.root, blocks, { heights: 'root' }).list().toArray(),
    },
    {
      name: '@atcute/mst',
      count: COUNT,
      fn: async () => {
        const walker = await atcute.NodeWalker.create(new atcute.NodeStore(theirs), root)
        for await (const _ of walker.entries());
      },
    },
    { name: '@atproto/repo, heights unchecked', count: COUNT, fn: () => MST.load(reference, lex).leaves() },
  ]
}

async function diffs(before: Tree, after: Tree): Promise<Case[]> {
  const { blocks, theirs, reference } = await stores(before, after)
  const [a, b] = [lexCid(before.root), lexCid(after.root)]
  return [
    { name: 'millisky', fn: () => diff(Tree.load(before.root, blocks), Tree.load(after.root, blocks)) },
    {
      name: '@atcute/mst',
      fn: () => atcute.mstDiff(new atcute.NodeStore(theirs), before.root.toString(), after.root.toString()),
    },
    { name: '@atproto/repo', fn: () => DataDiff.of(MST.load(reference, b), MST.load(reference, a)) },
  ]
}

/** Undoing the creation of one record, from what a commit's event holds; another commit each time. */
function inversions(tree: Tree, keys: readonly string[]): Case[] {
  const commits = keys.map(path => {
    const after = tree.put(path, value)
    const slice = [...diff(tree, after).gained, ...coveringProof(after, [path])]
    const blocks = new Blocks(slice.map(({ cid, bytes }) => ({ cid, bytes: bytes.slice() })))
    return { blocks, root: after.root, ops: [{ path, cid: value, prev: null }] }
  })
  const one = (heights: 'all' | 'root') => {
    let i = 0
    return () => {
      const { root, blocks, ops } = commits[i++ % commits.length]!
      return invert(Tree.load(root, blocks, { heights }), ops).root
    }
  }
  return [
    { name: 'millisky', fn: one('all') },
    { name: 'millisky, heights unchecked', fn: one('root') },
  ]
}

export async function run(report: Report): Promise<void> {
  const keys = keysOf(COUNT)
  const slow = { seconds: 1, rounds: 3 }
  report(`${COUNT} single inserts in no order, a root after each`, await compare(inserts(shuffled(keys)), slow))
  report(`${COUNT} single inserts in order of time, a root after each`, await compare(inserts(keys), slow))
  report(`a tree of ${COUNT} sorted entries, one root`, await compare(builds(keys), slow))
  const tree = Tree.build(keys.toSorted().map(key => [key, value] as const))
  report(`entries of a tree of ${COUNT} read from blocks`, await compare(await readings(tree), slow))
  const after = keys.filter((_, i) => i % 100 === 0).reduce((t, key) => t.put(key, other), tree)
  report(`diff of two trees of ${COUNT}, 100 changes`, await compare(await diffs(tree, after), slow))
  const more = keysOf(COUNT + 100).slice(COUNT)
  report(`undo a commit to a tree of ${COUNT}`, await compare(inversions(tree, more)))
}

if (import.meta.main) {
  console.log(machine())
  await run((title, rows) => printTable(title, rows))
}
