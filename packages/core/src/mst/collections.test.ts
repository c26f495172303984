import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { Blocks } from '../blocks.ts'
import { readCar } from '../car.ts'
import { readCommit, sketchCommit } from '../event.ts'
import { batches, commitFrame, create, remove, TestRepo } from '../testing-repos.ts'
import { collectionsSeen, lacksCollection } from './collections.ts'
import { Tree } from './tree.ts'

const collectionOf = (path: string) => path.slice(0, path.indexOf('/'))
/** The slow way: look at everything. */
const collectionsOf = (repo: TestRepo) => new Set([...repo.records.keys()].map(collectionOf))
const same = (a: Iterable<string>, b: Iterable<string>) => assert.deepEqual([...a].sort(), [...b].sort())

test('the proof of a commit tells exactly which collections ended with it, and of no collection that is not there', () => {
  fc.assert(
    fc.property(batches({ size: 8, count: 30 }), writes => {
      const repo = new TestRepo('collections')
      repo.write()
      for (const batch of writes) {
        const { bytes, body } = commitFrame(repo.write(...batch))
        const sketch = sketchCommit(bytes)!
        const commit = readCommit(body)
        const paths = (deleted: boolean) => commit.ops.filter(op => (op.action === 'delete') === deleted)
        same(sketch.put, new Set(paths(false).map(op => collectionOf(op.path))))
        same(sketch.deleted, new Set(paths(true).map(op => collectionOf(op.path))))
        assert.equal(sketch.prevData, commit.prevData!.key)
        assert.deepEqual([sketch.hasSince, Buffer.compare(sketch.blocks, commit.blocks)], [true, 0])
        const tree = Tree.load(repo.head!.data, new Blocks(readCar(sketch.blocks).blocks), { heights: 'root' })
        const there = collectionsOf(repo)
        const seen = collectionsSeen(tree)
        assert.ok([...seen].every(name => there.has(name)))
        assert.ok(sketch.put.every(name => seen.has(name)))
        for (const name of sketch.deleted) assert.equal(lacksCollection(tree, name), !there.has(name), name)
      }
    }),
    { numRuns: 60 },
  )
})

test('what cannot be seen is not claimed', () => {
  const repo = new TestRepo('partial')
  const paths = Array.from({ length: 190 }, (_, i) => `app.test.${i % 2 ? 'a' : 'b'}/${i}`)
  repo.write(...paths.map(path => create(path, path)))
  const { data } = repo.head!
  const nothing = Tree.load(data, new Blocks())
  same(collectionsSeen(nothing), [])
  assert.equal(lacksCollection(nothing, 'app.test.a'), false)
  const root = { cid: data, bytes: repo.blocks.get(data)! }
  const top = Tree.load(data, new Blocks([root]))
  assert.equal(lacksCollection(top, 'app.test.a'), false)
  const whole = Tree.load(data, repo.blocks)
  same(collectionsSeen(whole), ['app.test.a', 'app.test.b'])
  assert.equal(lacksCollection(whole, 'app.test'), true)
  repo.write(...paths.filter(path => path.startsWith('app.test.a')).map(remove))
  assert.equal(lacksCollection(Tree.load(repo.head!.data, repo.blocks), 'app.test.a'), true)
})

test('a first commit is told from others, and other frames are none', () => {
  const sketch = sketchCommit(commitFrame(new TestRepo('first').write(create('a.b.c/1', 'x'))).bytes)!
  assert.deepEqual([sketch.put, sketch.deleted, sketch.prevData, sketch.hasSince], [['a.b.c'], [], null, false])
})
