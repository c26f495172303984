import assert from 'node:assert/strict'
import { test } from 'node:test'
import { parseCid } from '@atproto/lex-data'
import * as reference from '@atproto/repo'
import fc from 'fast-check'
import { type Block, type BlockSource, Blocks, MissingBlock } from './blocks.ts'
import { utf8 } from './bytes.ts'
import { readCar, writeCar } from './car.ts'
import { encode } from './cbor.ts'
import { Cid, hashMatches } from './cid.ts'
import { decodeCommit, signCommit, unsignedBytes, verifyCommit } from './commit.ts'
import { Malformed, Refused } from './errors.ts'
import { commitEvent, encodeFrame } from './event.ts'
import { COMMIT_BLOCKS_BYTES_MAX, COMMIT_OPS_MAX, FRAME_BYTES_MAX, RECORD_BYTES_MAX } from './limits.ts'
import { decodeNode } from './mst/encoding.ts'
import { Tree } from './mst/tree.ts'
import {
  apply,
  type Change,
  exportOrder,
  missing,
  type RepoRecord,
  verifyRepo,
  type Write,
  writesBetween,
} from './repo.ts'
import type { Tid } from './syntax.ts'
import { batches, create, remove, TestRepo, TIME, testDid, testKey, testRecord, update } from './testing-repos.ts'

const path = 'app.bsky.feed.post/1'

function refused(fn: () => unknown, error: string, message: RegExp, status = 400): void {
  assert.throws(fn, (thrown: unknown) => {
    assert.ok(thrown instanceof Refused, `${thrown}`)
    assert.deepEqual([thrown.error, thrown.status], [error, status])
    assert.match(thrown.message, message)
    return true
  })
}

/** Records as a tree made from all of them at once. */
const twin = (records: Map<string, Cid>) => Tree.build([...records].sort(([a], [b]) => (a < b ? -1 : 1)))
const texts = (cids: Iterable<Cid | Block>) => [...cids].map(c => (c instanceof Cid ? c : c.cid).toString())

const without = (a: Set<string>, b: Set<string>) => new Set([...a].filter(x => !b.has(x)))

// apply

test('the first commit has no past', () => {
  const repo = new TestRepo('a')
  const change = repo.write(create(path, 'hello'))
  assert.equal(change.prev, null)
  assert.equal(change.head.did, repo.did)
  const { cid } = testRecord('hello')
  assert.deepEqual(change.ops, [{ action: 'create', path, cid, prev: null }])
  assert.deepEqual(change.lost, [])
  const commit = decodeCommit(change.commit.bytes)
  assert.deepEqual([commit.did, commit.rev], [repo.did, change.head.rev])
  assert.ok(verifyCommit(commit, repo.key.publicKey))
  assert.ok(commit.data.equals(change.head.data))
})

test('a repository may begin empty', () => {
  const change = new TestRepo('a').write()
  assert.ok(change.head.data.equals(Tree.empty.root))
  assert.deepEqual(texts(change.nodes), [Tree.empty.root.toString()])
  assert.deepEqual(texts(readCar(change.car).blocks), texts([change.commit, change.head.data]))
})

test('no writes make a new rev over the same tree', () => {
  const repo = new TestRepo('a')
  const first = repo.write(create(path, 'hello'))
  const change = repo.write()
  assert.ok(change.head.data.equals(first.head.data))
  assert.ok(change.head.rev > first.head.rev)
  assert.deepEqual([change.nodes, change.lost, change.ops], [[], [], []])
  assert.deepEqual(texts(readCar(change.car).blocks)[0], change.commit.cid.toString())
})

test('a new key signs over the same tree', () => {
  const repo = new TestRepo('a')
  repo.write(create(path, 'hello'))
  repo.key = testKey('rotated')
  assert.ok(verifyCommit(decodeCommit(repo.write().commit.bytes), testKey('rotated').publicKey))
})

test('the slice begins with the commit and holds every record written, once', () => {
  const repo = new TestRepo('a')
  repo.write(create('app.bsky.feed.post/x', 'same'))
  const change = repo.write(
    create(path, 'same'),
    create('app.bsky.feed.post/2', 'same'),
    update('app.bsky.feed.post/x', 'y'),
  )
  const { roots, blocks } = readCar(change.car)
  assert.deepEqual(texts(roots), texts([change.commit]))
  assert.ok(blocks[0]!.cid.equals(change.commit.cid))
  const found = texts(blocks)
  assert.equal(new Set(found).size, found.length)
  assert.ok(found.includes(testRecord('same').cid.toString()))
  assert.ok(found.includes(testRecord('y').cid.toString()))
})

test('a block that comes back is sent again', () => {
  const repo = new TestRepo('a')
  repo.write(create(path, 'one'))
  repo.write(remove(path))
  const again = repo.write(create('app.bsky.feed.post/2', 'one'), create(path, 'one'))
  assert.ok(texts(readCar(again.car).blocks).includes(testRecord('one').cid.toString()))
  const moved = repo.write(remove(path), create('app.bsky.feed.post/3', 'one'))
  assert.ok(texts(readCar(moved.car).blocks).includes(testRecord('one').cid.toString()))
  // The tree is one that was there before, and its node is told of again.
  const back = repo.write(remove('app.bsky.feed.post/3'), create(path, 'one'))
  assert.deepEqual(texts(back.nodes), texts([repo.head!.data]))
  assert.ok(texts(readCar(back.car).blocks).includes(repo.head!.data.toString()))
})

test('what is deleted is not sent', () => {
  const repo = new TestRepo('a')
  repo.write(create(path, 'old'), create('app.bsky.feed.post/2', 'other'))
  const change = repo.write(remove(path), update('app.bsky.feed.post/2', 'new'))
  const found = texts(readCar(change.car).blocks)
  assert.ok(!found.includes(testRecord('old').cid.toString()))
  assert.ok(!found.includes(testRecord('other').cid.toString()))
})

test('writes that do not fit are refused', () => {
  const repo = new TestRepo('a')
  repo.write(create(path, 'one'))
  refused(() => repo.write(create(path, 'two')), 'RecordAlreadyExists', /app\.bsky\.feed\.post\/1/, 409)
  refused(() => repo.write(update('app.bsky.feed.post/2', 'two')), 'RecordNotFound', /post\/2/)
  refused(() => repo.write(remove('app.bsky.feed.post/2')), 'RecordNotFound', /post\/2/)
  refused(() => repo.write(create('a.b.c/1', ''), remove('a.b.c/1')), 'InvalidRequest', /Two writes.*a\.b\.c\/1/)
  for (const bad of [
    '',
    'post',
    'app.bsky.feed.post/',
    'app.bsky.feed.post/a/b',
    'app.bsky.feed.post/ä',
    'x/1',
    '/1',
  ]) {
    refused(() => repo.write(create(bad, '')), 'InvalidRequest', /Not a record path/)
  }
})

test('the limits hold before anything is returned', () => {
  const repo = new TestRepo('a')
  const many = (n: number, text = '') => Array.from({ length: n }, (_, i) => create(`a.b.c/${i}`, `${i}${text}`))
  refused(() => repo.write(...many(COMMIT_OPS_MAX + 1)), 'InvalidRequest', /^Too many writes\. Max: 200$/)
  const sized = (size: number): Write => {
    const bytes = encode({ text: 'x'.repeat(size - 11) })
    assert.equal(bytes.length, size)
    return { action: 'create', path, cid: Cid.ofCbor(bytes), bytes }
  }
  refused(() => repo.write(sized(RECORD_BYTES_MAX + 1)), 'InvalidRequest', /^Record too large: .*1000000 bytes/)
  assert.equal(repo.head, null)
  assert.ok(repo.write(sized(RECORD_BYTES_MAX)).car.length > RECORD_BYTES_MAX)
  assert.equal(repo.write(...many(COMMIT_OPS_MAX)).ops.length, COMMIT_OPS_MAX)
})

test('the size of the slice counts all that is in it', () => {
  const rev = '3mtgomcsgzc2b' as Tid
  const with2 = (rest: number) => {
    const writes = [900_000, 900_000, rest].map((size, i): Write => {
      const bytes = encode({ text: String(i).repeat(size) })
      return { action: 'create', path: `a.b.c/${i}`, cid: Cid.ofCbor(bytes), bytes }
    })
    return apply({ did: testDid('a'), head: null, blocks: new Blocks(), writes, rev, key: testKey('a') })
  }
  const overhead = with2(100_000).car.length - 1_900_000
  const change = with2(COMMIT_BLOCKS_BYTES_MAX - 1_800_000 - overhead)
  assert.equal(change.car.length, COMMIT_BLOCKS_BYTES_MAX)
  refused(
    () => with2(COMMIT_BLOCKS_BYTES_MAX - 1_800_000 - overhead + 1),
    'InvalidRequest',
    /^Too many writes\. Max event size: 2MB$/,
  )
})

test('the largest commit makes a frame below the limit', () => {
  const repo = new TestRepo('a')
  const nsid = `${'a'.repeat(60)}.${'b'.repeat(60)}.${'c'.repeat(60)}.${'d'.repeat(60)}.${'e'.repeat(60)}`
  const paths = Array.from({ length: COMMIT_OPS_MAX }, (_, i) => `${nsid}/${String(i).padStart(512, 'k')}`)
  repo.write(...paths.map(path => create(path, 'old')))
  const change = repo.write(...paths.map(path => update(path, 'new')))
  const rest = encodeFrame(commitEvent(change, TIME)).length - change.car.length
  assert.ok(rest + COMMIT_BLOCKS_BYTES_MAX < FRAME_BYTES_MAX, `${rest}`)
})

test('mistakes of the caller are not refusals', () => {
  const repo = new TestRepo('a')
  repo.write(create(path, 'one'))
  const { did, head, blocks, key } = repo
  const writes: Write[] = []
  const fine = { did, head, blocks, writes, rev: repo.nextRev(), key }
  const mistakes = [
    { ...fine, rev: head!.rev },
    { ...fine, rev: '2222222222222' as Tid },
    { ...fine, did: testDid('b') },
    { ...fine, writes: [{ ...create('a.b.c/1', 'x'), cid: testRecord('y').cid } as Write] },
  ]
  for (const mistake of mistakes) {
    assert.throws(
      () => apply(mistake),
      (error: Error) => !(error instanceof Refused),
    )
  }
  assert.throws(() => apply({ ...fine, blocks: new Blocks(), writes: [create('a.b.c/1', '')] }), MissingBlock)
})

/** Plays batches on a repository and checks everything that `apply` says against slow and obvious answers. */
function play(batchList: Write[][], look: (repo: TestRepo, change: Change, before: Map<string, Cid>) => void): void {
  const repo = new TestRepo('world')
  for (const writes of batchList) {
    const before = new Map(repo.records)
    look(repo, repo.write(...writes), before)
  }
}

test('a change is the difference of two trees built from scratch', () => {
  fc.assert(
    fc.property(batches(), list => {
      play(list, (repo, change, before) => {
        const [old, now] = [twin(before), twin(repo.records)]
        assert.equal(change.head.data.toString(), now.root.toString())
        const oldNodes = new Set(change.prev === null ? [] : texts(old.nodes()))
        const newNodes = new Set(texts(now.nodes()))
        assert.deepEqual(new Set(texts(change.nodes)), without(newNodes, oldNodes))
        assert.deepEqual(new Set(texts(change.lost)), without(oldNodes, newNodes))
        for (const op of change.ops) {
          assert.equal(op.prev?.toString(), before.get(op.path)?.toString())
          assert.equal(op.cid?.toString(), repo.records.get(op.path)?.toString())
        }
        const slice = readCar(change.car).blocks
        const sent = new Set(texts(slice))
        for (const node of change.nodes) assert.ok(sent.has(node.cid.toString()))
        for (const op of change.ops) if (op.cid) assert.ok(sent.has(op.cid.toString()))
        for (const name of sent) {
          const expected = newNodes.has(name) || change.ops.some(op => op.cid?.toString() === name)
          assert.ok(expected || name === change.commit.cid.toString(), 'nothing else is sent')
        }
      })
    }),
    { numRuns: 60 },
  )
})

test('keeping what is gained and dropping what is lost keeps the tree’s nodes and no others', () => {
  fc.assert(
    fc.property(batches(), list => {
      const kept = new Blocks()
      play(list, (repo, change) => {
        for (const cid of change.lost) assert.ok(kept.delete(cid))
        for (const node of change.nodes) kept.add(node)
        assert.deepEqual(texts(kept).sort(), texts(twin(repo.records).nodes()).sort())
      })
    }),
    { numRuns: 40 },
  )
})

test('the nodes that missing names are enough', () => {
  fc.assert(
    fc.property(batches({ size: 6 }), list => {
      const repo = new TestRepo('sparse')
      for (const writes of list) {
        const loaded = new Blocks()
        const { did, head, key } = repo
        const rev = repo.nextRev()
        let rounds = 0
        for (let more = missing(head, loaded, writes); more.length > 0; more = missing(head, loaded, writes)) {
          for (const cid of more) {
            assert.ok(!loaded.has(cid))
            loaded.add({ cid, bytes: repo.blocks.get(cid)! })
          }
          assert.ok(++rounds < 12)
        }
        const change = apply({ did, head, blocks: loaded, writes, rev, key })
        assert.deepEqual(change.head.data.toString(), repo.write(...writes).head.data.toString())
      }
    }),
    { numRuns: 40 },
  )
  assert.deepEqual(missing(null, new Blocks(), [create(path, '')]), [])
})

// Whole repositories

function world(records: number): { repo: TestRepo; car: Uint8Array; blocks: Block[] } {
  const repo = new TestRepo('whole')
  for (let i = 0; i < records; i += 50) {
    repo.write(
      ...Array.from({ length: Math.min(50, records - i) }, (_, j) =>
        create(`a.b.c/${(i + j) * 7919}`, `${(i + j) % 40}`),
      ),
    )
  }
  const blocks = [...exported(repo)]
  return { repo, car: writeCar([repo.head!.commit], blocks), blocks }
}

function exported(repo: TestRepo): Iterable<Block> {
  const { commit, data } = repo.head!
  const record = (cid: Cid) => repo.blocks.get(cid)!
  return exportOrder({ cid: commit, bytes: repo.blocks.get(commit)! }, Tree.load(data, repo.blocks), record)
}

const all = (source: { root: Cid; blocks: BlockSource }) => {
  const repo = verifyRepo(source)
  return { ...repo, records: [...repo.records], nodes: [...repo.nodes] }
}

test('a whole repository is read back', () => {
  const { repo, blocks } = world(300)
  const source = { root: repo.head!.commit, blocks: new Blocks(blocks.toReversed()) }
  const found = verifyRepo(source, { did: repo.did, key: repo.key.publicKey })
  assert.deepEqual(found.head, repo.head)
  const records = [...found.records]
  assert.deepEqual(
    records.map(r => r.path),
    [...repo.records.keys()].sort(),
  )
  for (const { path, cid, bytes } of records) {
    assert.ok(cid.equals(repo.records.get(path)!))
    assert.ok(hashMatches(cid, bytes))
  }
  assert.deepEqual(texts(found.nodes), texts(twin(repo.records).nodes()))
})

test('blocks that do not belong there are not looked at', () => {
  const { repo, blocks } = world(20)
  const stray = { cid: testRecord('stray').cid, bytes: utf8('not even its bytes') }
  assert.equal(all({ root: repo.head!.commit, blocks: new Blocks([stray, ...blocks]) }).records.length, 20)
})

test('a repository with any block missing or changed is malformed', () => {
  const { repo, blocks } = world(60)
  const unique = [...new Blocks(blocks)]
  const root = repo.head!.commit
  for (const block of unique) {
    const others = unique.filter(other => other !== block)
    assert.throws(() => all({ root, blocks: new Blocks(others) }), Malformed)
    const bytes = block.bytes.slice()
    bytes[bytes.length >> 1]! ^= 1
    assert.throws(() => all({ root, blocks: new Blocks([...others, { cid: block.cid, bytes }]) }), Malformed)
  }
})

test('whose it is and who signed it must be as expected', () => {
  const { repo, blocks } = world(1)
  const source = { root: repo.head!.commit, blocks: new Blocks(blocks) }
  assert.throws(() => verifyRepo(source, { did: testDid('other') }), Malformed)
  assert.throws(() => verifyRepo(source, { key: testKey('other').publicKey }), Malformed)
  assert.throws(() => verifyRepo({ ...source, root: testRecord('no').cid }), Malformed)
})

test('records must be maps of at most 1 MiB, at proper paths', () => {
  const wrap = (pairs: [string, Uint8Array][]) => {
    const blocks = new Blocks(pairs.map(([, bytes]) => ({ cid: Cid.ofCbor(bytes), bytes })))
    const tree = Tree.build(pairs.map(([path, bytes]) => [path, Cid.ofCbor(bytes)] as const))
    for (const node of tree.nodes()) blocks.add(node)
    const { block } = signCommit({ did: testDid('a'), data: tree.root, rev: '3mtgomcsgzc2b' as Tid }, testKey('a'))
    blocks.add(block)
    return { root: block.cid, blocks }
  }
  const fine = encode({ text: 'x' })
  assert.equal(all(wrap([['a.b.c/1', fine]])).records.length, 1)
  assert.throws(() => all(wrap([['a.b.c/1', encode([])]])), Malformed)
  assert.throws(() => all(wrap([['a.b.c/1', utf8('text')]])), Malformed)
  assert.throws(() => all(wrap([['a.b.c/1', Uint8Array.of(0xa1, 0x61)]])), Malformed)
  assert.throws(() => all(wrap([['a.b.c/1', new Uint8Array(0)]])), Malformed)
  assert.throws(() => all(wrap([['abc/1', fine]])), Malformed)
  assert.equal(all(wrap([['a.b.c/1', encode({ t: 'x'.repeat(1_048_568) })]])).records.length, 1)
  assert.throws(() => all(wrap([['a.b.c/1', encode({ t: 'x'.repeat(1_048_569) })]])), Malformed)
})

test('a repository of version 2 is read', () => {
  const tree = Tree.empty
  const unsigned = { did: testDid('a'), version: 2, data: tree.root, rev: '3mtgomcsgzc2b' as Tid, prev: null } as const
  const bytes = encode({ ...unsigned, sig: testKey('a').sign(unsignedBytes(unsigned)) })
  const block = { cid: Cid.ofCbor(bytes), bytes }
  const found = verifyRepo(
    { root: block.cid, blocks: new Blocks([block, ...tree.nodes()]) },
    { key: testKey('a').publicKey },
  )
  assert.deepEqual([[...found.records], found.commit.version], [[], 2])
})

test('an export is the commit, then the tree with each record where it is named', () => {
  const { repo, blocks } = world(200)
  const expected = texts([repo.head!.commit])
  const visit = (cid: Cid): void => {
    expected.push(cid.toString())
    const { links, values } = decodeNode(repo.blocks.get(cid)!)
    for (const [i, link] of links.entries()) {
      if (link) visit(link)
      if (i < values.length) expected.push(values[i]!.toString())
    }
  }
  visit(repo.head!.data)
  assert.deepEqual(texts(blocks), expected)
  // Some records are equal, and each is written where it is named.
  assert.ok(new Blocks(blocks).size < blocks.length)
})

test('records of an export are asked for in order of path', () => {
  const { repo } = world(50)
  const { commit, data } = repo.head!
  const asked: string[] = []
  const record = (cid: Cid, path: string) => {
    asked.push(path)
    return repo.blocks.get(cid)!
  }
  const blocks = exportOrder({ cid: commit, bytes: repo.blocks.get(commit)! }, Tree.load(data, repo.blocks), record)
  assert.equal([...blocks].length > 50, true)
  assert.deepEqual(asked, [...repo.records.keys()].sort())
})

test('the writes between two sets of records lead from one to the other', () => {
  const sets = fc.uniqueArray(fc.tuple(fc.integer({ min: 0, max: 30 }), fc.integer({ min: 0, max: 2 })), {
    selector: ([n]) => n,
  })
  const sorted = (set: [number, number][]): RepoRecord[] =>
    set.map(([n, v]) => ({ path: `a.b.c/${n}`, ...testRecord(`${v}`) })).sort((a, b) => (a.path < b.path ? -1 : 1))
  fc.assert(
    fc.property(sets, sets, (a, b) => {
      const [from, to] = [sorted(a), sorted(b)]
      const result = new Map(from.map(({ path, cid }) => [path, cid]))
      const writes = [
        ...writesBetween(
          from.map(({ path, cid }) => [path, cid] as const),
          to,
        ),
      ]
      for (const write of writes) {
        assert.equal(result.has(write.path), write.action !== 'create')
        if (write.action === 'delete') result.delete(write.path)
        else {
          assert.ok(!result.get(write.path)?.equals(write.cid))
          result.set(write.path, write.cid)
        }
      }
      assert.deepEqual(
        new Map(to.map(({ path, cid }) => [path, cid])),
        new Map([...result].sort(([x], [y]) => (x < y ? -1 : 1))),
      )
      assert.deepEqual(
        writes.map(w => w.path),
        writes.map(w => w.path).sort(),
      )
    }),
  )
})

// The reference implementation

test('the reference reads and verifies what is exported', async () => {
  const { repo, car } = world(120)
  const { creates, commit } = await reference.verifyRepoCar(car, repo.did, repo.key.publicKey.didKey)
  assert.equal(commit.cid.toString(), repo.head!.commit.toString())
  const found = creates.map(c => `${c.collection}/${c.rkey} ${c.cid}`).sort()
  assert.deepEqual(found, [...repo.records].map(([path, cid]) => `${path} ${cid}`).sort())
})

test('we read what the reference exports', async () => {
  const storage = new reference.MemoryBlockstore()
  const keypair = {
    did: () => testKey('x').publicKey.didKey,
    jwtAlg: 'ES256K',
    sign: async (m: Uint8Array) => testKey('x').sign(m),
  }
  const create = Array.from({ length: 60 }, (_, i) => ({
    action: reference.WriteOpAction.Create as const,
    collection: 'app.bsky.feed.post',
    rkey: `${i}`,
    record: { $type: 'app.bsky.feed.post', text: `${i}` },
  }))
  const theirs = await reference.Repo.create(storage, testDid('x'), keypair as never, create as never)
  const blocks = new Blocks()
  const chunks: Uint8Array[] = []
  for await (const chunk of reference.getFullRepo(storage, theirs.cid)) chunks.push(chunk)
  const car = readCar(new Uint8Array(Buffer.concat(chunks)))
  for (const block of car.blocks) blocks.add(block)
  const found = verifyRepo({ root: car.roots[0]!, blocks }, { did: testDid('x'), key: testKey('x').publicKey })
  assert.deepEqual(
    [...found.records].map(r => r.path),
    create.map(c => `${c.collection}/${c.rkey}`).sort(),
  )
})

test('the reference follows our slices, and believes each operation', async () => {
  await fc.assert(
    fc.asyncProperty(batches({ size: 8, count: 6 }), async list => {
      const repo = new TestRepo('followed')
      const storage = new reference.MemoryBlockstore()
      let theirs: reference.Repo | null = null
      for (const writes of list) {
        const change = repo.write(...writes)
        const didKey = repo.key.publicKey.didKey
        const update = await reference.verifyDiffCar(theirs, change.car, repo.did, didKey)
        assert.equal(update.writes.length, change.ops.filter(op => !op.prev?.equals(op.cid)).length)
        await storage.applyCommit(update.commit)
        theirs = await reference.Repo.load(storage, update.commit.cid)
        assert.equal(theirs.commit.data.toString(), change.head.data.toString())
        const claims = change.ops.map(op => {
          const [collection, rkey] = op.path.split('/') as [string, string]
          return { collection, rkey, cid: op.cid && parseCid(op.cid.toString()) }
        })
        const { unverified } = await reference.verifyProofs(change.car, claims as never, repo.did, didKey)
        assert.deepEqual(unverified, [])
      }
    }),
    { numRuns: 8 },
  )
})
