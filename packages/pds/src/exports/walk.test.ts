// The walk that reads ahead against one that reads what it stands on.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { Block } from '@millisky/core/blocks'
import { Cid } from '@millisky/core/cid'
import { decodeNode } from '@millisky/core/mst/encoding'
import { Tree } from '@millisky/core/mst/tree'
import type { Did, RepoPath, Tid } from '@millisky/core/syntax'
import fc from 'fast-check'
import { LEFT_OUT, OLD, type RepoSnapshot } from '../store/store.ts'
import { type Range, Walk } from './walk.ts'

const LARGE = 300

interface World {
  root: Cid
  nodes: Map<string, Block & { rev: Tid }>
  records: Map<string, Block & { rev: Tid; path: RepoPath }>
}

/** Records of the paths, those below `old` in a first commit and all others in a second one. */
function worldOf(paths: readonly string[], old: number): World {
  const records = paths.map((path, i) => {
    const bytes = new Uint8Array(path.length % 3 === 0 ? LARGE + 1 : 5).fill(i)
    return { path: path as RepoPath, bytes, cid: Cid.ofCbor(bytes), rev: (i < old ? 'a' : 'b') as Tid }
  })
  const treeOf = (of: typeof records) => Tree.build(of.map(({ path, cid }) => [path, cid] as const))
  const sorted = records.toSorted((a, b) => (a.path < b.path ? -1 : 1))
  const before = new Set([...treeOf(sorted.filter(({ rev }) => rev === 'a')).nodes()].map(({ cid }) => cid.key))
  const tree = treeOf(sorted)
  const nodes = [...tree.nodes()].map(({ cid, bytes }) => {
    return [cid.key, { cid, bytes, rev: (before.has(cid.key) ? 'a' : 'b') as Tid }] as const
  })
  return { root: tree.root, nodes: new Map(nodes), records: new Map(sorted.map(record => [record.path, record])) }
}

function viewOf({ root, nodes, records }: World, answer: <T>(value: T) => T | Promise<T>): RepoSnapshot {
  const pack = (of: { cid: Cid; bytes: Uint8Array; isOld?: boolean }[]) => {
    const sizes = of.map(({ bytes, isOld }) => (isOld ? OLD : bytes.length > LARGE ? LEFT_OUT : bytes.length))
    const parts = of.flatMap(({ cid, bytes }, i) => (sizes[i]! < 0 ? [cid.bytes] : [cid.bytes, bytes]))
    return { sizes, bytes: new Uint8Array(Buffer.concat(parts)) }
  }
  const commit = { cid: root, bytes: new Uint8Array(0) }
  const view: Pick<RepoSnapshot, 'commit' | 'head' | 'node' | 'nodes' | 'page' | 'record'> = {
    commit,
    head: { did: 'did:web:x' as Did, commit: root, rev: 'b' as Tid, data: root },
    node: cid => answer(nodes.get(cid.key)!),
    record: path => answer(records.get(path) ?? null),
    nodes(cids, since) {
      assert.ok(cids.length > 0 && cids.length <= 36 * 32)
      const asked = Array.from({ length: cids.length / 36 }, (_, i) => nodes.get(Cid.view(cids, i * 36, 36).key))
      return answer(pack(asked.filter(node => node !== undefined).map(node => ({ ...node, isOld: node.rev <= since }))))
    },
    page(after, below) {
      const rows = [...records.values()].filter(({ path }) => path > after && path < below).slice(0, 3)
      return answer({ ...pack(rows), last: rows.at(-1)?.path ?? '' })
    },
  }
  return view as RepoSnapshot
}

/** The obvious way. */
function expected({ root, nodes, records }: World, { above, below }: Range, since = ''): string[] {
  const found: string[] = []
  const go = (cid: Cid) => {
    const { rev, bytes } = nodes.get(cid.key)!
    if (rev <= since) return
    found.push(cid.toString())
    const { keys, links } = decodeNode(bytes)
    for (const [i, link] of links.entries()) {
      const [left, right] = [keys[i - 1] ?? '', keys[i] ?? '~~']
      if (link && right > above && left < below) go(link)
      const record = records.get(right)
      if (record && right > above && right < below && record.rev > since) found.push(record.cid.toString())
    }
  }
  go(root)
  return found
}

async function walked(view: RepoSnapshot, range: Range, since?: string): Promise<string[]> {
  const walk = new Walk(view, range, since)
  const found: string[] = []
  for (let block = await walk.next(); block; block = await walk.next()) {
    const { cid, bytes } = 'cid' in block ? block : { cid: Cid.view(block, 0, 36), bytes: block.subarray(36) }
    assert.ok(cid.matches(bytes))
    found.push(cid.toString())
  }
  return found
}

const ranges = [
  { above: '', below: '~' },
  { above: 'a/', below: 'a0' },
  { above: 'b/', below: 'b0' },
]
const collection = fc.constantFrom('a', 'b', 'c')
const rkey = fc.oneof(
  fc.nat(5_000).map(String),
  fc.nat(50).map(n => `${n}${'x'.repeat(200)}`),
)
const paths = fc.uniqueArray(
  fc.tuple(collection, rkey).map(([collection, rkey]) => `${collection}/${rkey}`),
  { minLength: 1, maxLength: 120 },
)

test('reading ahead gives the same blocks in the same order', async () => {
  const later = <T>(value: T) => Promise.resolve(value)
  await fc.assert(
    fc.asyncProperty(paths, fc.nat(120), fc.boolean(), async (paths, old, isLater) => {
      const world = worldOf(paths, old)
      const view = viewOf(world, isLater ? later : value => value)
      for (const range of ranges) {
        for (const since of [undefined, 'a']) {
          assert.deepEqual(await walked(view, range, since), expected(world, range, since))
        }
      }
    }),
    { numRuns: 60 },
  )
})

test('a row that is missing or another ends the walk', async () => {
  const world = worldOf(
    Array.from({ length: 400 }, (_, i) => `a/${1_000 + i}`),
    400,
  )
  const view = viewOf(world, value => value)
  const [whole] = ranges
  assert.equal((await walked(view, whole!)).length, world.nodes.size + 400)
  for (const path of ['a/1000', 'a/1234', 'a/1399'] as RepoPath[]) {
    const records = new Map(world.records)
    records.delete(path)
    await assert.rejects(
      walked(
        viewOf({ ...world, records }, value => value),
        whole!,
      ),
      /is not what the tree says/,
    )
    const other = { ...world.records.get('a/1001')!, path }
    const changed = new Map(world.records).set(path, other)
    await assert.rejects(
      walked(
        viewOf({ ...world, records: changed }, value => value),
        whole!,
      ),
      /is not what the tree/,
    )
  }
  for (const key of [...world.nodes.keys()].filter((_, i) => i % 20 === 7)) {
    const nodes = new Map(world.nodes)
    nodes.delete(key)
    await assert.rejects(
      walked(
        viewOf({ ...world, nodes }, value => value),
        whole!,
      ),
      /is not in the database/,
    )
  }
})
