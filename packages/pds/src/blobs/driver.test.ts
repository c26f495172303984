// The contract of a blob driver, run over every driver there is.
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { mkdtemp, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { buffer } from 'node:stream/consumers'
import { describe, test } from 'node:test'
import { utf8 } from '@millisky/core/bytes'
import { Cid } from '@millisky/core/cid'
import { asDid } from '@millisky/core/syntax'
import type { BlobDriver } from '../blobs.ts'
import { createDiskBlobs } from './disk.ts'

interface Subject {
  driver: BlobDriver
  /** Names of all that is staged. */
  staged(): Promise<string[]>
}

const DRIVERS: { name: string; make(t: { after(fn: () => Promise<void>): void }): Promise<Subject> }[] = [
  {
    name: 'disk',
    async make(t) {
      const folder = await mkdtemp(join(tmpdir(), 'millisky-blobs-'))
      t.after(() => rm(folder, { recursive: true, force: true }))
      const staging = join(folder, 'staging')
      const driver = createDiskBlobs({ root: join(folder, 'blobs'), staging })
      return { driver, staged: () => readdir(staging) }
    },
  },
]

const alice = asDid('did:plc:ewvi7nxzyoun6zhxrhs64oiz')
const bob = asDid('did:web:bob.example%3A8080')

async function* parts(...chunks: (Uint8Array | Error)[]): AsyncGenerator<Uint8Array> {
  for (const chunk of chunks) {
    if (chunk instanceof Error) throw chunk
    yield chunk
  }
}

async function read(driver: BlobDriver, did: typeof alice, cid: Cid, range?: { start: number; end: number }) {
  const stream = await driver.open(did, cid, range)
  return stream && new Uint8Array(await buffer(stream))
}

for (const { name, make } of DRIVERS) {
  describe(`blob driver ${name}`, () => {
    test('keeps what was staged, whole and in parts', async t => {
      const { driver, staged } = await make(t)
      const bytes = new Uint8Array(randomBytes(700_000))
      const cid = Cid.ofRaw(bytes)
      const at = await driver.stage(parts(bytes.subarray(0, 300_000), bytes.subarray(300_000)))
      assert.equal(await driver.open(alice, cid), null)
      await driver.keep(at, alice, cid)
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
      await driver.remove(alice, cid)
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
      const at = await driver.stage(parts(utf8('left')))
      assert.deepEqual(await driver.stale(Date.now() - 60_000), [])
      assert.deepEqual(await driver.stale(Date.now() + 60_000), [at])
      await driver.discard(at)
      assert.deepEqual(await driver.stale(Date.now() + 60_000), [])
    })

    test('removes what is not there without a word', async t => {
      const { driver } = await make(t)
      await driver.remove(alice, Cid.ofRaw(utf8('never')))
      await driver.discard('never')
    })
  })
}
