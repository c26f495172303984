import assert from 'node:assert/strict'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { accountEvent, commitEvent, encodeFrame, identityEvent, syncEvent, withSeq } from '@millisky/core/event'
import { create, frameOf, NOW, TestRepo, TIME, testDid } from '@millisky/core/testing-repos'
import { openDb } from '@millisky/server/db/db'
import { openSegmentLog } from '@millisky/server/log/segments'
import { accountNumber } from './accounts.ts'
import { foldTail } from './fold.ts'
import { recoverFrame } from './recover.ts'
import { migrations, type RelaySchema } from './store/schema.ts'
import { createSqlStore } from './store/sql.ts'

async function open(t: { after(fn: () => Promise<void>): void }) {
  const folder = await mkdtemp(join(tmpdir(), 'millisky-fold-'))
  const log = await openSegmentLog(folder, { withSeq, recover: recoverFrame, now: () => NOW, fsync: 'none' })
  const store = createSqlStore(await openDb<RelaySchema>(':memory:', { migrations }))
  t.after(async () => {
    await log.close()
    await store.close()
    await rm(folder, { recursive: true })
  })
  const append = (...frames: Uint8Array[]) => log.append(frames.map(frame => ({ frame, account: 0 })))
  return { log, store, append }
}

test('what a crash has kept from the store is found in the log', async t => {
  const { log, store, append } = await open(t)
  const [alice, bob, carol] = ['alice', 'bob', 'carol'].map(name => new TestRepo(name)) as [
    TestRepo,
    TestRepo,
    TestRepo,
  ]
  const post = (repo: TestRepo) => repo.write(create(`app.bsky.feed.post/${repo.nextRev()}`, 'hello'))
  const commit = (repo: TestRepo) => frameOf(commitEvent(post(repo), TIME))
  await append(commit(alice), encodeFrame(identityEvent({ did: bob.did }, TIME)), commit(bob))
  assert.equal(await foldTail(log, store), 3)
  assert.equal(await store.fold.watermark(), 3)
  await store.accounts.setLocal(carol.did, 'takendown')
  const last = post(bob)
  await append(
    commit(alice),
    frameOf(syncEvent({ did: bob.did, rev: last.head.rev, commit: last.commit }, TIME)),
    frameOf(accountEvent({ did: alice.did, active: false, status: 'deactivated' }, TIME)),
    frameOf(accountEvent({ did: carol.did, active: false, status: 'takendown' }, TIME)),
  )
  assert.equal(await foldTail(log, store), 4)
  assert.equal(await foldTail(log, store), 0)
  const stored = async (repo: TestRepo) => (await store.accounts.load([repo.did]))[0]!
  for (const repo of [alice, bob]) {
    const { rev, data, commit } = await stored(repo)
    assert.deepEqual([rev, data, commit], [repo.head!.rev, repo.head!.data.key, repo.head!.commit.key])
  }
  assert.deepEqual([(await stored(alice)).active, (await stored(alice)).status], [false, 'deactivated'])
  const { active, status, local } = await stored(carol)
  assert.deepEqual([active, status, local], [true, null, 'takendown'])
})

test('what the index of the log knew of a frame is read back from it', () => {
  const repo = new TestRepo('indexed')
  const change = repo.write(create('app.bsky.feed.post/3kaaaaaaaaa2a', 'hello'))
  const frame = frameOf(commitEvent(change, TIME), 77)
  assert.deepEqual(recoverFrame(frame), { seq: 77, account: accountNumber(repo.did), time: Date.parse(TIME) })
  assert.equal(recoverFrame(frame.subarray(0, frame.length - 1)), null)
  const damaged = frame.slice()
  damaged[Buffer.from(frame).indexOf('hello')]! ^= 1
  assert.equal(recoverFrame(damaged), null)
  assert.equal(recoverFrame(withSeq(encodeFrame({ t: '#info', body: { seq: 0, name: 'x' } }), 1)), null)
})

test('numbers of accounts are whole and apart', () => {
  const numbers = Array.from({ length: 1_000 }, (_, n) => accountNumber(testDid(n)))
  assert.equal(new Set(numbers).size, 1_000)
  assert.ok(numbers.every(number => Number.isSafeInteger(number) && number >= 0 && number < 2 ** 52))
})
