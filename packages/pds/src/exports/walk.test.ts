// The walk that reads ahead against one that reads what it stands on.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { Block } from '@millisky/core/blocks'
import { Cid } from '@millisky/core/cid'
import { decodeNode } from '@millisky/core/mst/encoding'
import { Tree } from '@millisky/core/mst/tree'
import type { Did, RepoPath, Tid } from '@millisky/core/syntax'
import fc from 'fast-check'
import { LEFT_OUT, OLD, Pack } from '../store/packs.ts'
import type { RepoSnapshot } from '../store/store.ts'
import type { Range } from './nodes.ts'
import { startWalk } from './walk.ts'

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

type Answer = <T>(value: T) => T | Promise<T>

function viewOf({ root, nodes, records }: World, answer: Answer, areFew: boolean): RepoSnapshot {
  const pack = (of: { cid: Cid; bytes: Uint8Array; isOld?: boolean }[]) => {
    const parts = of.flatMap(({ cid, bytes, isOld }) => {
      const lacks = isOld ? OLD : bytes.length > LARGE ? LEFT_OUT : null
      return [Buffer.from(lacks ?? String(bytes.length)), cid.bytes, ...(lacks ? [] : [bytes]), Buffer.from(',')]
    })
    return new Pack(Buffer.concat(parts).subarray(0, -1))
  }
  const commit = { cid: root, bytes: new Uint8Array(0) }
  const view: Pick<RepoSnapshot, 'commit' | 'head' | 'node' | 'nodes' | 'fewNodes' | 'page' | 'record'> = {
    commit,
    head: { did: 'did:web:x' as Did, commit: root, rev: 'b' as Tid, data: root },
    node(cid) {
      const node = nodes.get(cid.key)
      if (!node) throw new Error(`tree node ${cid} is not in the database`)
      return answer(node)
    },
    record: path => answer(records.get(path) ?? null),
    nodes(cids, since) {
      assert.ok(cids.length > 0 && cids.length <= 36 * 32)
      const asked = Array.from({ length: cids.length / 36 }, (_, i) => nodes.get(Cid.view(cids, i * 36, 36).key))
      return answer(pack(asked.filter(node => node !== undefined).map(node => ({ ...node, isOld: node.rev <= since }))))
    },
    // Some with others behind them that begin with the same hash.
    fewNodes: () => answer(areFew ? pack([...nodes.values()].flatMap(node => [node, likeOf(node)])) : null),
    page(from, below) {
      return answer(pack([...records.values()].filter(({ path }) => path >= from && path < below).slice(0, 3)))
    },
  }
  return view as RepoSnapshot
}

function likeOf({ cid, bytes }: Block): Block {
  const like = Uint8Array.from(cid.bytes)
  like[35]! ^= 1
  return { cid: bytes.length % 2 === 0 ? cid : Cid.fromBytes(like), bytes }
}

/** The obvious way. */
function expected({ root, nodes, records }: World, range: Range | null, since = ''): string[] {
  const { above, below } = range ?? { above: '', below: '~' }
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

async function walked(view: RepoSnapshot, range: Range | null, since?: string): Promise<string[]> {
  const walk = await startWalk(view, range, since)
  const found: string[] = []
  while (await walk.next()) {
    const section = walk.bytes.subarray(walk.from, walk.to)
    const { cid, bytes } = walk.large ?? { cid: Cid.view(section, 0, 36), bytes: section.subarray(36) }
    assert.ok(cid.matches(bytes))
    found.push(cid.toString())
  }
  return found
}

const ranges = [null, { above: 'a/', below: 'a0' }, { above: 'b/', below: 'b0' }]
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
    fc.asyncProperty(paths, fc.nat(120), fc.boolean(), fc.boolean(), async (paths, old, isLater, areFew) => {
      const world = worldOf(paths, old)
      const view = viewOf(world, isLater ? later : value => value, areFew)
      for (const range of ranges) {
        for (const since of [undefined, 'a']) {
          assert.deepEqual(await walked(view, range, since), expected(world, range, since))
        }
      }
    }),
    { numRuns: 80 },
  )
})

for (const areFew of [false, true]) {
  test(`a row that is missing or another ends the walk${areFew ? ', also when nodes are at hand' : ''}`, async () => {
    const world = worldOf(
      Array.from({ length: 400 }, (_, i) => `a/${1_000 + i}`),
      400,
    )
    const walkedWith = (changed: Partial<World>) =>
      walked(
        viewOf({ ...world, ...changed }, value => value, areFew),
        null,
      )
    assert.equal((await walkedWith({})).length, world.nodes.size + 400)
    for (const path of ['a/1000', 'a/1234', 'a/1399'] as RepoPath[]) {
      const records = new Map(world.records)
      records.delete(path)
      await assert.rejects(walkedWith({ records }), /is not what the tree says/)
      const other = { ...world.records.get('a/1001')!, path }
      const changed = new Map(world.records).set(path, other)
      await assert.rejects(walkedWith({ records: changed }), /is not what the tree says/)
    }
    for (const key of [...world.nodes.keys()].filter((_, i) => i % 20 === 7)) {
      const nodes = new Map(world.nodes)
      nodes.delete(key)
      await assert.rejects(walkedWith({ nodes }), /is not in the database/)
    }
  })
}
