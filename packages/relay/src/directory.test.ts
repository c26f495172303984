import assert from 'node:assert/strict'
import { test } from 'node:test'
import { commitEvent, syncEvent } from '@millisky/core/event'
import { batches, create, frameOf, remove, TestRepo, TIME } from '@millisky/core/testing-repos'
import { openDb } from '@millisky/server/db/db'
import fc from 'fast-check'
import { accountNumber } from './accounts.ts'
import { Directory, WHOLE } from './directory.ts'
import { migrations, type RelaySchema } from './store/schema.ts'
import { createSqlStore } from './store/sql.ts'

const collectionOf = (path: string) => path.slice(0, path.indexOf('/'))
/** The slow way: list the whole repository. */
const collectionsOf = (repo: TestRepo) => [...new Set([...repo.records.keys()].map(collectionOf))].sort()

interface Head {
  rev: TestRepo['rev'] | null
  data: string | null
  status: string | null
}

/** A directory with what its changes come to, as the store would have it. */
class Listing {
  readonly directory: Directory
  readonly pairs = new Map<string, Set<string>>()
  readonly heads = new Map<string, Head>()
  changes = 0

  constructor(knownPairs: number) {
    this.directory = new Directory({ knownPairs })
  }

  take(repo: TestRepo, frame: Uint8Array, status: string | null = null): void {
    const after: Head = { rev: repo.head!.rev, data: repo.head!.data.key, status }
    const account = { did: repo.did, number: accountNumber(repo.did) }
    this.directory.take(account, frame, this.heads.get(repo.did) ?? null, after)
    this.heads.set(repo.did, after)
  }

  save(): void {
    for (const { did, emptied, pairs } of this.directory.drain()) {
      this.changes++
      const held = emptied ? new Set<string>() : (this.pairs.get(did) ?? new Set())
      for (const [name, isThere] of pairs) isThere ? held.add(name) : held.delete(name)
      this.pairs.set(did, held)
    }
  }

  of({ did }: TestRepo): string[] {
    return [...(this.pairs.get(did) ?? [])].sort()
  }
}

const commit = (repo: TestRepo, ...writes: Parameters<TestRepo['write']>) =>
  frameOf(commitEvent(repo.write(...writes), TIME))
const none = new Uint8Array(0)

test('for accounts seen from their beginning it is what listing their repositories gives', () => {
  fc.assert(
    fc.property(
      fc.array(batches({ size: 6, count: 20 }), { minLength: 1, maxLength: 3 }),
      fc.constantFrom(1, 7, 1_000),
      fc.array(fc.boolean(), { minLength: 20, maxLength: 20 }),
      (all, knownPairs, saves) => {
        const listing = new Listing(knownPairs)
        const repos = all.map((_, i) => new TestRepo(`dir${i}`))
        for (let round = 0; round < 20; round++) {
          for (const [i, writes] of all.entries()) {
            if (writes[round]) listing.take(repos[i]!, commit(repos[i]!, ...writes[round]))
          }
          if (saves[round]) listing.save()
        }
        listing.save()
        for (const repo of repos) if (repo.head) assert.deepEqual(listing.of(repo), [WHOLE, ...collectionsOf(repo)])
      },
    ),
    { numRuns: 60 },
  )
})

test('known pairs cost nothing; what could not be saved is tried again', () => {
  const listing = new Listing(1_000)
  const repo = new TestRepo('steady')
  listing.take(repo, commit(repo, create('a.b.c/1', 'x')))
  listing.save()
  assert.equal(listing.changes, 1)
  for (let i = 2; i < 50; i++) listing.take(repo, commit(repo, create(`a.b.c/${i}`, 'x')))
  listing.take(repo, commit(repo, remove('a.b.c/7')))
  assert.equal(listing.directory.size, 0)
  listing.take(repo, commit(repo, create('a.b.d/1', 'x')))
  const failed = listing.directory.drain()
  listing.take(repo, commit(repo, remove('a.b.d/1'), create('a.b.e/1', 'x')))
  listing.directory.restore(failed)
  listing.save()
  assert.deepEqual(listing.of(repo), [WHOLE, 'a.b.c', 'a.b.e'])
})

test('an account met in the middle is not whole, and what its proofs show is listed', () => {
  const listing = new Listing(1_000)
  const repo = new TestRepo('middle')
  repo.write(create('a.b.c/1', 'x'), create('a.b.d/1', 'x'), create('a.b.e/1', 'x'))
  listing.take(repo, commit(repo, create('a.b.d/2', 'x')))
  listing.save()
  const seen = listing.of(repo)
  assert.ok(!seen.includes(WHOLE) && seen.includes('a.b.d'))
  assert.ok(seen.every(name => collectionsOf(repo).includes(name)))
  // Deleted to the last record it is known to be empty, and so is whole from here.
  listing.take(repo, commit(repo, ...[...repo.records.keys()].map(remove)))
  listing.save()
  assert.deepEqual(listing.of(repo), [WHOLE])
  listing.take(repo, commit(repo, create('a.b.c/9', 'x')))
  listing.save()
  assert.deepEqual(listing.of(repo), [WHOLE, 'a.b.c'])
})

test('a gap and a #sync end wholeness; deletion empties, and what comes then counts anew', () => {
  const listing = new Listing(1_000)
  const [alice, bob] = [new TestRepo('alice'), new TestRepo('bob')]
  for (const repo of [alice, bob]) listing.take(repo, commit(repo, create('a.b.c/1', 'x')))
  alice.write(create('a.b.d/1', 'x'))
  listing.take(alice, commit(alice, create('a.b.c/2', 'x')))
  const { head, commit: block } = bob.write(create('a.b.d/1', 'x'))
  listing.take(bob, frameOf(syncEvent({ did: bob.did, rev: head.rev, commit: block }, TIME)))
  listing.save()
  for (const repo of [alice, bob]) assert.ok(!listing.of(repo).includes(WHOLE))
  assert.ok(listing.of(alice).includes('a.b.c') && listing.of(bob).includes('a.b.c'))
  listing.take(alice, none, 'deleted')
  assert.equal(listing.directory.drain()[0]!.emptied, true)
  listing.take(alice, commit(alice, create('a.b.c/3', 'x')))
  const [again] = listing.directory.drain()
  assert.equal(again!.pairs.get('a.b.c'), true)
})

test('names that are no collections are not kept', () => {
  const listing = new Listing(1_000)
  const repo = new TestRepo('names')
  const frame = commit(repo, create('a.b.c/1', 'x'))
  const at = Buffer.from(frame).indexOf('a.b.c/1')
  frame.set(Buffer.from('a..bc'), at)
  listing.take(repo, frame)
  listing.save()
  // The operation lies, the tree does not.
  assert.deepEqual(listing.of(repo), [WHOLE])
})

test('one account cannot fill the table', async t => {
  const store = createSqlStore(await openDb<RelaySchema>(':memory:', { migrations }))
  t.after(() => store.close())
  const { did } = new TestRepo('many')
  for (let part = 0; part < 3; part++) {
    const pairs = new Map(Array.from({ length: 600 }, (_, i) => [`a.b.c${part}x${i}`, true] as const))
    await store.fold.save({ watermark: part, accounts: [], hosts: [], directory: [{ did, emptied: false, pairs }] })
  }
  let count = 0
  for (let part = 0; part < 3; part++)
    for (let i = 0; i < 600; i++) count += await store.directory.count(`a.b.c${part}x${i}`)
  assert.equal(count, 1_000)
})
