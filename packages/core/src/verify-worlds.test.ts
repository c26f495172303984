import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { Blocks } from './blocks.ts'
import { readCar, writeCar } from './car.ts'
import type { Obj } from './cbor.ts'
import type { Cid } from './cid.ts'
import { Malformed } from './errors.ts'
import { decodeFrame, type Frame, type RepoOp } from './event.ts'
import { SlowTree } from './mst/testing-trees.ts'
import { Tree } from './mst/tree.ts'
import type { Change, Head, Write } from './repo.ts'
import type { Tid } from './syntax.ts'
import {
  batches,
  commitFrame,
  create,
  createOp,
  dropped,
  handmade,
  judgeFrame,
  pathsOfHeights,
  TestRepo,
  tampered,
  testRecord,
} from './testing-repos.ts'

/** Plays batches, and shows each commit with the head before it and the records before and after. */
type Look = (at: { repo: TestRepo; prior: Head | null; change: Change; before: Map<string, Cid> }) => void
function play(list: Write[][], look: Look): void {
  const repo = new TestRepo('world')
  for (const writes of list) {
    const prior = repo.head
    const before = new Map(repo.records)
    look({ repo, prior, change: repo.write(...writes), before })
  }
}

test('what apply makes, judge admits, with the state it stands at', () => {
  fc.assert(
    fc.property(batches(), list => {
      play(list, ({ repo, prior, change }) => {
        const verdict = judgeFrame(repo, commitFrame(change), prior)
        assert.deepEqual(verdict, { kind: 'admit', notes: [], next: repo.stateAt(change.head) })
        // Also without knowing anything, where more is checked.
        assert.equal(judgeFrame(repo, commitFrame(change), null).kind, 'admit')
      })
    }),
    { numRuns: 60 },
  )
})

/** The blocks of a frame without their CIDs: the codec of one that is not needed may change. */
const contents = (frame: Frame) => readCar(frame.body.blocks as Uint8Array).blocks.map(block => block.bytes)

test('no flipped bit gets through, except in what nobody vouches for', () => {
  fc.assert(
    fc.property(batches({ count: 3 }), fc.array(fc.nat(), { minLength: 20, maxLength: 20 }), (list, places) => {
      play(list, ({ repo, prior, change }) => {
        const original = commitFrame(change)
        const { seq: _, time: __, since: ___, blobs: ____, ...vouched } = original.body
        // To say nothing of the tree before is to say that it was empty.
        if (prior?.data.equals(Tree.empty.root)) delete vouched.prevData
        for (const place of places) {
          const bytes = original.bytes.slice()
          bytes[(place >> 3) % bytes.length]! ^= 1 << (place & 7)
          let frame: Frame
          try {
            frame = decodeFrame(bytes)
          } catch (error) {
            assert.ok(error instanceof Malformed)
            continue
          }
          if (judgeFrame(repo, frame, prior).kind !== 'admit') continue
          for (const [name, value] of Object.entries(vouched)) {
            if (typeof value === 'boolean') continue
            if (name !== 'blocks') assert.deepEqual(frame.body[name], value, `${name} changed unnoticed`)
            else assert.deepEqual(contents(frame), contents(original), 'blocks changed unnoticed')
          }
        }
      })
    }),
    { numRuns: 25 },
  )
})

test('no block that is needed can be left out', () => {
  fc.assert(
    fc.property(batches({ count: 5, size: 5 }), list => {
      play(list, ({ repo, prior, change }) => {
        const frame = commitFrame(change)
        const { roots, blocks } = readCar(change.car)
        for (const block of blocks) {
          const less = tampered(frame, { blocks: writeCar(roots, dropped(blocks, block.cid)) })
          const kind = judgeFrame(repo, less, prior).kind
          const isNode = new Blocks(Tree.load(change.head.data, repo.blocks).nodes()).has(block.cid)
          if (!isNode) assert.equal(kind, 'drop')
        }
      })
    }),
    { numRuns: 25 },
  )
})

/** Whether operations tell the truth, on whole maps: undoing them on the records after gives the tree before. */
function isTrue(ops: RepoOp[], after: Map<string, Cid>, prevData: Cid): boolean {
  const records = new Map(after)
  if (new Set(ops.map(op => op.path)).size < ops.length) return false
  for (const { action, path, cid, prev } of ops) {
    if ((action === 'create') !== (prev === null) || (action === 'delete') !== (cid === null)) return false
    if (cid === null ? after.has(path) : !cid.equals(after.get(path))) return false
    if (prev === null) records.delete(path)
    else records.set(path, prev)
  }
  return Tree.build([...records].sort(([a], [b]) => (a < b ? -1 : 1))).root.equals(prevData)
}

test('strictness admits the truth and nothing but the truth about operations', () => {
  const edits = fc.array(
    fc.tuple(fc.constantFrom('drop', 'cid', 'prev', 'action', 'add', 'path'), fc.nat(), fc.nat(5)),
    {
      minLength: 1,
      maxLength: 2,
    },
  )
  let lies = 0
  fc.assert(
    fc.property(batches({ count: 6, size: 6 }), edits, fc.nat(9), (list, edits, older) => {
      const roots: Cid[] = [Tree.empty.root]
      play(list, ({ repo, prior, change }) => {
        const ops = change.ops.map(op => ({ ...op }))
        for (const [edit, at, text] of edits) {
          const op = ops[at % Math.max(1, ops.length)]
          const { cid } = testRecord(`${text}`)
          if (edit === 'add') ops.push({ action: 'create', path: `app.bsky.feed.post/${at % 90}`, cid, prev: null })
          else if (!op) continue
          else if (edit === 'drop') ops.splice(ops.indexOf(op), 1)
          else if (edit === 'cid') op.cid = op.cid === null ? cid : null
          else if (edit === 'prev') op.prev = cid
          else if (edit === 'path') op.path = `app.bsky.feed.like/${at % 90}`
          else op.action = (['create', 'update', 'delete'] as const)[at % 3]!
        }
        const prevData = older === 0 ? roots[at(older, roots)]! : (prior?.data ?? Tree.empty.root)
        roots.push(change.head.data)
        const truth = isTrue(ops, repo.records, prevData)
        if (!truth) lies++
        const frame = tampered(commitFrame(change), {
          ops: ops.map(({ prev, ...op }): Obj => (prev ? { ...op, prev } : op)),
          prevData,
        })
        const verdict = judgeFrame(repo, frame, prior)
        assert.equal(verdict.kind, truth ? 'admit' : 'drop', JSON.stringify(verdict))
      })
    }),
    { numRuns: 60 },
  )
  assert.ok(lies > 50)
})
const at = (n: number, list: unknown[]) => n % list.length

test('trees of the wrong shape are dropped', () => {
  // Every small tree whose keys stand on layers of somebody's choosing.
  const honest = [0, 1, 2]
  const keys = pathsOfHeights(...honest)
  const { cid, bytes } = testRecord('x')
  for (let n = 0; n < 27; n++) {
    const layers = [n % 3, Math.floor(n / 3) % 3, Math.floor(n / 9)]
    const heightOf = (key: string) => layers[keys.indexOf(key)]!
    const tree = new SlowTree(
      keys.map(key => [key, cid] as const),
      heightOf,
    )
    const parts = { tree: tree.nodes, root: tree.nodes[0]!.cid, records: [{ cid, bytes }] }
    const right = layers.every((layer, i) => layer === honest[i])
    const first = handmade({ ...parts, ops: keys.map(key => createOp(key, cid)) })
    assert.equal(first.kind, right ? 'admit' : 'drop')
    // The operations touch one key only; the others came from somewhere else.
    for (const [i, key] of keys.entries()) {
      const others = keys.filter(other => other !== key).map(other => [other, cid] as const)
      const before = new SlowTree(others, heightOf)
      const prevData = before.nodes[0]!.cid
      const verdict = handmade({ ...parts, ops: [createOp(key, cid)], prevData })
      assert.equal(verdict.kind, right ? 'admit' : 'drop', `${layers} ${i}`)
    }
  }
})

test('a commit that continues a right tree cannot make a wrong one of it', () => {
  const honest = [0, 1, 2, 0]
  const keys = pathsOfHeights(...honest)
  const { cid, bytes } = testRecord('x')
  const other = testRecord('y')
  for (let n = 0; n < 81; n++) {
    const layers = [n % 3, Math.floor(n / 3) % 3, Math.floor(n / 9) % 3, Math.floor(n / 27)]
    const after = new SlowTree(
      keys.map(key => [key, cid] as const),
      key => layers[keys.indexOf(key)]!,
    )
    const right = layers.every((layer, i) => layer === honest[i])
    const parts = { tree: after.nodes, root: after.root, records: [{ cid, bytes }] }
    for (const key of keys) {
      const before: [Cid | null, SlowTree][] = [
        [null, new SlowTree(keys.filter(other => other !== key).map(other => [other, cid] as const))],
        [other.cid, new SlowTree(keys.map(k => [k, k === key ? other.cid : cid] as const))],
      ]
      for (const [prev, tree] of before) {
        const op: RepoOp = { action: prev ? 'update' : 'create', path: key, cid, prev }
        const prior = { ...new TestRepo('mallory').stateAt(null), rev: '2222222222222' as Tid }
        const more = { prior: { ...prior, data: tree.root.key, commit: cid.key } }
        const verdict = handmade({ ...parts, ops: [op], prevData: tree.root }, more)
        assert.equal(verdict.kind, right ? 'admit' : 'drop', `${layers} ${key}`)
        assert.deepEqual(verdict.kind === 'admit' && verdict.notes, right ? [] : false)
      }
    }
  }
})

test('a creation that is called an update without prev is dropped, wherever its key lies', () => {
  const repo = new TestRepo('world')
  for (let i = 0; i < 24; i++) {
    const prior = repo.head
    const change = repo.write(create(`app.bsky.feed.post/${i}`, `${i}`))
    const [op] = commitFrame(change).body.ops as Obj[]
    const verdict = judgeFrame(repo, tampered(commitFrame(change), { ops: [{ ...op!, action: 'update' }] }), prior)
    assert.equal(verdict.kind === 'drop' && verdict.reason, 'op-without-prev')
  }
})
