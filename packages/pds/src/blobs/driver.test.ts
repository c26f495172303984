// The contract of a blob driver, run over every driver there is.
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { mkdtemp, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { buffer } from 'node:stream/consumers'
import { after, describe, test } from 'node:test'
import { ListObjectsV2Command, S3Client } from '@aws-sdk/client-s3'
import { utf8 } from '@millisky/core/bytes'
import { Cid } from '@millisky/core/cid'
import { Unavailable } from '@millisky/core/errors'
import { asDid } from '@millisky/core/syntax'
import type { BlobDriver } from '../blobs.ts'
import { createDiskBlobs } from './disk.ts'
import { createS3Blobs } from './s3.ts'
import { startS3 } from './testing-s3.ts'

interface Cleanup {
  after(fn: () => Promise<void>): void
}

interface Subject {
  driver: BlobDriver
  /** Names of all that is staged. */
  staged(): Promise<string[]>
}

const DRIVERS: Record<string, (t: Cleanup) => Promise<Subject>> = {
  async disk(t) {
    const folder = await mkdtemp(join(tmpdir(), 'millisky-blobs-'))
    t.after(() => rm(folder, { recursive: true, force: true }))
    const staging = join(folder, 'staging')
    const driver = createDiskBlobs({ root: join(folder, 'blobs'), staging })
    return { driver, staged: () => readdir(staging) }
  },
  async s3() {
    const driver = createS3Blobs(await s3)
    return { driver, staged: () => driver.stale(Date.now() + 60_000) }
  },
}

/** One server for all tests; what they write does not meet. */
const s3 = startS3({ after: fn => after(fn) })

const alice = asDid('did:plc:ewvi7nxzyoun6zhxrhs64oiz')
const bob = asDid('did:web:bob.example%3A8080')

async function* parts(...chunks: (Uint8Array | Error)[]): AsyncGenerator<Uint8Array> {
  for (const chunk of chunks) {
    if (chunk instanceof Error) throw chunk
    // The driver may free what it is given.
    yield Uint8Array.from(chunk)
  }
}

async function read(driver: BlobDriver, did: typeof alice, cid: Cid, range?: { start: number; end: number }) {
  const stream = await driver.open(did, cid, range)
  return stream && new Uint8Array(await buffer(stream))
}

for (const [name, make] of Object.entries(DRIVERS)) {
  describe(`blob driver ${name}`, () => {
    test('keeps what was staged, whole and in parts', async t => {
      const { driver, staged } = await make(t)
      const bytes = new Uint8Array(randomBytes(700_000))
      const cid = Cid.ofRaw(bytes)
      const at = await driver.stage(parts(bytes.subarray(0, 300_000), bytes.subarray(300_000)))
      assert.equal(await driver.open(alice, cid), null)
      await driver.keep(at, alice, cid)
      assert.deepEqual(await staged(), [])
      await driver.discard(at)
      assert.deepEqual(await read(driver, alice, cid), bytes)
      assert.deepEqual(await read(driver, alice, cid, { start: 10, end: 400_000 }), bytes.slice(10, 400_001))
      assert.deepEqual(await read(driver, alice, cid, { start: 699_999, end: 699_999 }), bytes.slice(699_999))
      assert.deepEqual(await staged(), [])
    })

    test('holds each account apart', async t => {
      const { driver } = await make(t)
      const bytes = utf8('shared')
      const cid = Cid.ofRaw(bytes)
      for (const did of [alice, bob]) await driver.keep(await driver.stage(parts(bytes)), did, cid)
      await driver.remove(alice, [cid])
      assert.equal(await driver.open(alice, cid), null)
      assert.deepEqual(await read(driver, bob, cid), bytes)
      await driver.removeAll(bob)
      await driver.removeAll(bob)
      assert.equal(await driver.open(bob, cid), null)
    })

    test('takes empty blobs, and the same one twice', async t => {
      const { driver } = await make(t)
      const cid = Cid.ofRaw(new Uint8Array())
      for (let i = 0; i < 2; i++) {
        const at = await driver.stage(parts())
        await driver.keep(at, alice, cid)
        await driver.discard(at)
      }
      assert.deepEqual(await read(driver, alice, cid), new Uint8Array())
    })

    test('leaves nothing of an upload that fails', async t => {
      const { driver, staged } = await make(t)
      await assert.rejects(driver.stage(parts(utf8('half'), new Error('gone'))), /gone/)
      assert.deepEqual(await staged(), [])
    })

    test('names what a crash has left', async t => {
      const { driver } = await make(t)
      assert.deepEqual(await driver.stale(Date.now() + 60_000), [])
      // Larger than what a driver may hold in memory, where nothing outlives a crash.
      const at = await driver.stage(parts(new Uint8Array(6_000_000)))
      assert.deepEqual(await driver.stale(Date.now() - 60_000), [])
      assert.deepEqual(await driver.stale(Date.now() + 60_000), [at])
      await driver.discard(at)
      assert.deepEqual(await driver.stale(Date.now() + 60_000), [])
    })

    test('removes what is not there without a word', async t => {
      const { driver } = await make(t)
      await driver.remove(alice, [Cid.ofRaw(utf8('never'))])
      await driver.discard('never')
    })

    test('puts blobs into quarantine and back', async t => {
      const { driver } = await make(t)
      const bytes = utf8('bad')
      const cid = Cid.ofRaw(bytes)
      await driver.quarantine(bob, cid)
      await driver.restore(bob, cid)
      await driver.keep(await driver.stage(parts(bytes)), bob, cid)
      for (let i = 0; i < 2; i++) await driver.quarantine(bob, cid)
      assert.equal(await driver.open(bob, cid), null)
      for (let i = 0; i < 2; i++) await driver.restore(bob, cid)
      assert.deepEqual(await read(driver, bob, cid), bytes)
      await driver.quarantine(bob, cid)
      await driver.removeAll(bob)
      await driver.restore(bob, cid)
      assert.equal(await driver.open(bob, cid), null)
    })

    test('takes what is larger than a part, and lets go of it when the rest does not come', async t => {
      const { driver, staged } = await make(t)
      const bytes = new Uint8Array(randomBytes(11_000_000))
      const cid = Cid.ofRaw(bytes)
      const chunks = Array.from({ length: 11 }, (_, i) => bytes.subarray(i * 1_000_000, (i + 1) * 1_000_000))
      await assert.rejects(driver.stage(parts(...chunks, new Error('gone'))), /gone/)
      assert.deepEqual(await staged(), [])
      const at = await driver.stage(parts(...chunks))
      assert.deepEqual(await staged(), [at])
      await driver.keep(at, bob, cid)
      assert.deepEqual(await read(driver, bob, cid), bytes)
      assert.deepEqual(await staged(), [])
    })

    test('removes many at once', async t => {
      const { driver } = await make(t)
      const cids: Cid[] = []
      for (let i = 0; i < 5; i++) {
        const bytes = utf8(`blob ${i}`)
        cids.push(Cid.ofRaw(bytes))
        await driver.keep(await driver.stage(parts(bytes)), alice, cids[i]!)
      }
      await driver.remove(alice, cids.slice(0, 4))
      assert.deepEqual(
        await Promise.all(cids.map(async cid => (await driver.open(alice, cid))?.destroy() !== undefined)),
        [false, false, false, false, true],
      )
    })
  })
}

test('the bucket is laid out as the reference does it', async () => {
  const place = await s3
  const driver = createS3Blobs(place)
  const client = new S3Client({
    region: 'us-east-1',
    endpoint: place.endpoint,
    forcePathStyle: true,
    credentials: place.credentials!,
  })
  const bytes = utf8('laid out')
  const cid = Cid.ofRaw(bytes)
  const keys = async () => {
    const { Contents = [] } = await client.send(new ListObjectsV2Command({ Bucket: place.bucket }))
    return Contents.map(({ Key }) => Key).filter(key => key!.endsWith(cid.toString()))
  }
  await driver.keep(await driver.stage(parts(bytes)), bob, cid)
  assert.deepEqual(await keys(), [`blocks/${bob}/${cid}`])
  await driver.quarantine(bob, cid)
  assert.deepEqual(await keys(), [`quarantine/${bob}/${cid}`])
  client.destroy()
})

test('a bucket that does not answer is nobody’s bug', async () => {
  const place = await s3
  const away = createS3Blobs({ ...place, endpoint: 'http://127.0.0.1:1' })
  await assert.rejects(away.open(alice, Cid.ofRaw(utf8('x'))), Unavailable)
  const denied = createS3Blobs({ ...place, bucket: 'another' })
  await assert.rejects(denied.stage(parts(new Uint8Array(6_000_000))), /bucket does not exist/)
})
