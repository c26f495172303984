// Two PDSs at one PostgreSQL database and one folder of blobs, one stopped where the other could get in between.
import assert from 'node:assert/strict'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { setTimeout as wait } from 'node:timers/promises'
import { testDatabases } from '@millisky/server/db/testing'
import { createDiskBlobs } from './blobs/disk.ts'
import { startTestPds, type TestPds } from './testing-pds.ts'

const postgres = testDatabases().find(({ name }) => name === 'postgres')!
const HOUR = 3_600_000

interface Cleanup {
  after(fn: () => Promise<void>): void
}

/** Where the first of the two stops before it removes bytes, until told to go on. */
interface Gate {
  reached: Promise<void>
  open(): void
}

async function startTwo(t: Cleanup, now?: () => number): Promise<{ one: TestPds; two: TestPds; gate: Gate }> {
  const last: (() => Promise<void>)[] = []
  const folder = await mkdtemp(join(tmpdir(), 'millisky-several-'))
  const url = await postgres.url({ after: fn => last.push(fn) })
  const driver = createDiskBlobs({ root: join(folder, 'blobs'), staging: join(folder, 'staging') })
  const reached = Promise.withResolvers<void>()
  const opened = Promise.withResolvers<void>()
  const slow: typeof driver = {
    ...driver,
    // Files do not know the clock of this test.
    stale: async () => [],
    async remove(did, cids) {
      reached.resolve()
      await opened.promise
      await driver.remove(did, cids)
    },
  }
  const env = { PDS_DATABASE_URL: url, PDS_SERVICE_DID: 'did:web:pds.example', PDS_BLOB_GRACE: '1h' }
  const closing = { after: (fn: () => Promise<void>) => last.unshift(fn) }
  t.after(async () => {
    for (const fn of last) await fn()
    await rm(folder, { recursive: true, force: true })
  })
  const parts = now ? { now } : {}
  const one = await startTestPds(closing, env, { ...parts, blobs: slow })
  const two = await startTestPds(closing, env, { ...parts, blobs: driver })
  return { one, two, gate: { reached: reached.promise, open: () => opened.resolve() } }
}

describe('two PDSs at one database', { skip: postgres.skip }, () => {
  test('an upload waits for the collection of the same blob in another process', async t => {
    let time = Date.now()
    const { one, two, gate } = await startTwo(t, () => time)
    const alice = await one.user('alice')
    const text = () => new TextEncoder().encode('some text')
    const upload = () => two.post('com.atproto.repo.uploadBlob', text(), alice, { 'content-type': 'text/plain' })
    const { blob } = (await upload()).json
    time += 1.5 * HOUR
    const collecting = one.blobs.collect()
    await gate.reached
    let isDone = false
    const again = upload().finally(() => {
      isDone = true
    })
    await wait(100)
    assert.equal(isDone, false)
    gate.open()
    assert.equal((await collecting).blobs, 1)
    assert.equal((await again).status, 200)
    const record = { blob }
    await two.post('com.atproto.repo.createRecord', { repo: alice.did, collection: 'com.example.file', record }, alice)
    const served = await one.get('com.atproto.sync.getBlob', { did: alice.did, cid: blob.ref.$link })
    assert.deepEqual(served.bytes, text())
  })

  test('a record is refused while its blob is being collected, and holds one that is not', async t => {
    let time = Date.now()
    const { one, two, gate } = await startTwo(t, () => time)
    const alice = await one.user('alice')
    const upload = async (text: string) =>
      (
        await two.post('com.atproto.repo.uploadBlob', new TextEncoder().encode(text), alice, {
          'content-type': 'text/plain',
        })
      ).json.blob
    const [gone, held] = [await upload('gone'), await upload('held')]
    const write = (blob: unknown) =>
      two.post(
        'com.atproto.repo.createRecord',
        { repo: alice.did, collection: 'com.example.file', record: { blob } },
        alice,
      )
    time += 1.5 * HOUR
    assert.equal((await write(held)).status, 200)
    const collecting = one.blobs.collect()
    await gate.reached
    const writing = write(gone)
    gate.open()
    assert.equal((await writing).json.error, 'BlobNotFound')
    assert.equal((await collecting).blobs, 1)
    assert.equal((await two.get('com.atproto.sync.getBlob', { did: alice.did, cid: held.ref.$link })).status, 200)
  })

  test('who comes back in one process is not deleted by the other', async t => {
    const { one, two } = await startTwo(t)
    const { did } = await one.user('alice')
    const { did: leaving } = await one.user('bob')
    for (const each of [did, leaving]) await one.lifecycle.deactivate(each, 1)
    const { accounts } = one.store
    const due = accounts.dueForDeletion
    accounts.dueForDeletion = async (...args) => {
      const found = await due(...args)
      await two.lifecycle.activate(did)
      return found
    }
    assert.equal(await one.departures.removeDue(Date.now()), 1)
    assert.equal((await two.store.accounts.byDid(did))?.deactivatedAt, null)
    assert.equal(await two.store.accounts.byDid(leaving), null)
    assert.equal(await two.departures.removeDue(Date.now()), 0, 'nothing is left for the other')
  })
})
