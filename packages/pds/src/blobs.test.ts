import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { mkdtemp, readdir, rm } from 'node:fs/promises'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { Cid } from '@millisky/core/cid'
import { createDiskBlobs } from './blobs/disk.ts'
import type { BlobDriver } from './blobs.ts'
import type { PdsParts } from './main.ts'
import { basic, bearer, startTestPds, type TestPds, type TestUser } from './testing-pds.ts'

const collection = 'com.example.file'
const MB = 1024 * 1024

const upload = (pds: TestPds, user: TestUser, bytes: Uint8Array) =>
  pds.post('com.atproto.repo.uploadBlob', bytes, user, { 'content-type': 'application/octet-stream' })
const put = (pds: TestPds, user: TestUser, rkey: string, file: unknown) =>
  pds.post('com.atproto.repo.putRecord', { repo: user.did, collection, rkey, record: { file } }, user)
const get = (pds: TestPds, user: TestUser, cid: unknown) =>
  pds.get('com.atproto.sync.getBlob', { did: user.did, cid: String(cid) })
const takeDown = (pds: TestPds, user: TestUser, cid: string, applied: boolean) =>
  pds.post(
    'com.atproto.admin.updateSubjectStatus',
    { subject: { $type: 'com.atproto.admin.defs#repoBlobRef', did: user.did, cid }, takedown: { applied } },
    null,
    basic(),
  )

interface Disk {
  driver: BlobDriver
  staged(): Promise<string[]>
  kept(user: TestUser): Promise<string[]>
  quarantined(user: TestUser): Promise<string[]>
}

async function disk(t: { after(fn: () => Promise<void>): void }): Promise<Disk> {
  const folder = await mkdtemp(join(tmpdir(), 'millisky-blobs-'))
  t.after(() => rm(folder, { recursive: true, force: true }))
  const [root, staging] = [join(folder, 'blobs'), join(folder, 'staging')]
  const list = (path: string) => readdir(path).catch(() => [])
  return {
    driver: createDiskBlobs({ root, staging }),
    staged: () => list(staging),
    kept: ({ did }) => list(join(root, did)),
    quarantined: ({ did }) => list(join(root, 'quarantine', did)),
  }
}

const withDisk = (blobs: Disk, more: PdsParts = {}): PdsParts => ({ blobs: blobs.driver, ...more })

test('an account has so much room and no more', async t => {
  const blobs = await disk(t)
  const pds = await startTestPds(t, { PDS_BLOB_QUOTA: '1000' }, withDisk(blobs))
  const [alice, bob] = [await pds.user('alice'), await pds.user('bob')]
  const first = new Uint8Array(600).fill(1)
  assert.equal((await upload(pds, alice, first)).status, 200)
  const { status, json } = await upload(pds, alice, new Uint8Array(401))
  assert.deepEqual(
    [status, json],
    [
      400,
      {
        error: 'BlobQuotaExceeded',
        message: 'Blobs of this account take 600 of 1000 bytes; another 401 do not fit',
      },
    ],
  )
  // Of several at a time only as many as fit, also when their length is not announced.
  const chunked = async (fill: number) => {
    const response = await fetch(`${pds.url}/xrpc/com.atproto.repo.uploadBlob`, {
      method: 'POST',
      body: Readable.toWeb(Readable.from([new Uint8Array(150).fill(fill)])) as never,
      duplex: 'half',
      headers: { ...bearer(alice), 'content-type': 'application/octet-stream' },
    } as RequestInit)
    return response.status
  }
  const statuses = await Promise.all([2, 3, 4, 5].map(chunked))
  assert.deepEqual(statuses.sort(), [200, 200, 400, 400])
  assert.deepEqual((await blobs.kept(alice)).length, 3)
  assert.deepEqual(await blobs.staged(), [])
  // What is here already takes no room, and others have their own.
  assert.equal((await upload(pds, alice, first)).status, 400)
  assert.equal((await upload(pds, bob, new Uint8Array(1000))).status, 200)
})

test('the report says who has how much', async t => {
  let time = Date.now()
  const pds = await startTestPds(t, { PDS_BLOB_QUOTA: '1MB' }, { now: () => time })
  const [alice, bob] = [await pds.user('alice'), await pds.user('bob')]
  const kept = (await upload(pds, alice, new Uint8Array(300))).json.blob
  await put(pds, alice, 'a', kept)
  await upload(pds, alice, new Uint8Array(20))
  await upload(pds, bob, new Uint8Array(100))
  const report = async (params: object) =>
    (await pds.get('net.millisky.pds.getStorageReport', { ...params }, basic())).json
  const ofAlice = {
    did: alice.did,
    handle: 'alice.test',
    usage: { blobs: 2, bytes: 320, looseBlobs: 1, looseBytes: 20, takenDown: 0 },
  }
  const ofBob = {
    did: bob.did,
    handle: 'bob.test',
    usage: { blobs: 1, bytes: 100, looseBlobs: 1, looseBytes: 100, takenDown: 0 },
  }
  assert.deepEqual(await report({}), {
    total: { blobs: 3, bytes: 420, looseBlobs: 2, looseBytes: 120, takenDown: 0 },
    collectable: { blobs: 0, bytes: 0, uploads: 0 },
    accountBytesMax: 1_000_000,
    accounts: [ofAlice, ofBob],
  })
  time += 7 * 3_600_000
  assert.deepEqual((await report({ limit: 1 })).accounts, [ofAlice])
  const { accounts, collectable } = await report({ did: bob.did })
  assert.deepEqual(accounts, [{ ...ofBob, missingBlobs: 0 }])
  assert.deepEqual(collectable, { blobs: 2, bytes: 120, uploads: 0 })
  assert.equal((await report({ did: 'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa' })).error, 'RepoNotFound')
  assert.equal((await pds.get('net.millisky.pds.getStorageReport', {}, bearer(alice))).status, 401)
})

test('what is taken down lies in quarantine, is shown to nobody, and is not forgotten', async t => {
  let time = Date.now()
  const blobs = await disk(t)
  const pds = await startTestPds(t, {}, withDisk(blobs, { now: () => time }))
  const alice = await pds.user('alice')
  const bytes = new Uint8Array(randomBytes(100))
  const { blob } = (await upload(pds, alice, bytes)).json
  const cid = blob.ref.$link
  await put(pds, alice, 'a', blob)
  await takeDown(pds, alice, cid, true)
  await takeDown(pds, alice, cid, true)
  assert.deepEqual([await blobs.kept(alice), await blobs.quarantined(alice)], [[], [cid]])
  const own = await pds.get('com.atproto.sync.getBlob', { did: alice.did, cid }, bearer(alice))
  assert.deepEqual([own.status, own.json.message], [400, 'Blob not found'])
  await takeDown(pds, alice, cid, false)
  assert.deepEqual((await get(pds, alice, cid)).bytes, bytes)
  // Without a record and long after it is known still.
  await takeDown(pds, alice, cid, true)
  await put(pds, alice, 'a', null)
  time += 30 * 86_400_000
  assert.equal((await pds.blobs.collect()).blobs, 0)
  time -= 30 * 86_400_000
  assert.equal((await upload(pds, alice, bytes)).json.message, 'Blob has been takendown, cannot re-upload')
})

test('the same bytes at the same time are one blob', async t => {
  const blobs = await disk(t)
  const pds = await startTestPds(t, {}, withDisk(blobs))
  const alice = await pds.user('alice')
  const bytes = new Uint8Array(randomBytes(300_000))
  const answers = await Promise.all(Array.from({ length: 8 }, () => upload(pds, alice, bytes)))
  for (const { status, json } of answers) assert.deepEqual([status, json], [200, answers[0]!.json])
  assert.deepEqual([await blobs.kept(alice), await blobs.staged()], [[Cid.ofRaw(bytes).toString()], []])
})

test('an upload whose sender goes away leaves nothing', async t => {
  const blobs = await disk(t)
  const pds = await startTestPds(t, {}, withDisk(blobs))
  const alice = await pds.user('alice')
  const { port } = new URL(pds.url)
  for (const length of ['content-length: 1000000', 'transfer-encoding: chunked']) {
    const socket = connect(Number(port), '127.0.0.1')
    const headers = `authorization: Bearer ${alice.token}\r\ncontent-type: text/plain\r\n${length}`
    socket.write(`POST /xrpc/com.atproto.repo.uploadBlob HTTP/1.1\r\nhost: pds\r\n${headers}\r\n\r\n`)
    socket.write(`186a0\r\n${'x'.repeat(70_000)}`)
    while ((await blobs.staged()).length === 0) await sleep(5)
    socket.destroy()
    while ((await blobs.staged()).length > 0) await sleep(5)
  }
  assert.deepEqual(await blobs.kept(alice), [])
  assert.equal((await pds.store.blobs.usage(alice.account.id)).blobs, 0)
})

test('a blob that is about to be collected and is written into a record stays', async t => {
  const pds = await startTestPds(t)
  const alice = await pds.user('alice')
  for (let round = 0; round < 12; round++) {
    const bytes = new Uint8Array(randomBytes(50))
    const { blob } = (await upload(pds, alice, bytes)).json
    const described = { cid: Cid.ofRaw(bytes), mimeType: blob.mimeType, size: blob.size }
    await pds.store.blobs.put(alice.account.id, described, Date.now() - 7 * 3_600_000)
    // Either one may win: the write is refused, or the blob is there.
    const [, written] = await Promise.all([
      sleep(round % 4).then(() => pds.blobs.collect()),
      sleep((round >> 2) % 4).then(() => put(pds, alice, `r${round}`, blob)),
    ])
    const found = await get(pds, alice, blob.ref.$link)
    if (written.status === 200) assert.deepEqual(found.bytes, bytes)
    else assert.deepEqual([written.json.error, found.status], ['BlobNotFound', 400])
  }
})

test('fifty megabytes pass through, and are never held', async t => {
  const blobs = await disk(t)
  const size = 50 * MB
  let sent = 0
  let sentWhileStalled = 0
  let read = 0
  const stalling: BlobDriver = {
    ...blobs.driver,
    stage: body =>
      blobs.driver.stage(
        (async function* () {
          for await (const chunk of body) {
            if (sentWhileStalled === 0) {
              await sleep(200)
              sentWhileStalled = sent
            }
            yield chunk
          }
        })(),
      ),
    async open(did, cid, range) {
      const stream = await blobs.driver.open(did, cid, range)
      return stream!
        .on('data', chunk => {
          read += chunk.length
        })
        .pause()
    },
  }
  const pds = await startTestPds(t, {}, { blobs: stalling })
  const alice = await pds.user('alice')
  async function* file() {
    for (; sent < size; sent += MB) yield new Uint8Array(MB).fill(sent / MB)
  }
  const response = await fetch(`${pds.url}/xrpc/com.atproto.repo.uploadBlob`, {
    method: 'POST',
    body: Readable.toWeb(Readable.from(file(), { highWaterMark: 1 })) as never,
    duplex: 'half',
    headers: { ...bearer(alice), 'content-type': 'application/octet-stream' },
  } as RequestInit)
  const { blob } = (await response.json()) as { blob: { ref: { $link: string }; size: number } }
  assert.equal(blob.size, size)
  assert.ok(sentWhileStalled > 0 && sentWhileStalled < size / 2, `${sentWhileStalled} bytes were taken in advance`)

  await put(pds, alice, 'a', blob)
  const got = await fetch(`${pds.url}/xrpc/com.atproto.sync.getBlob?did=${alice.did}&cid=${blob.ref.$link}`)
  const reader = got.body!.getReader()
  let bytes = (await reader.read()).value!.length
  await sleep(200)
  assert.ok(read < size / 2, `${read} bytes were read in advance`)
  for (let part = await reader.read(); !part.done; part = await reader.read()) bytes += part.value.length
  assert.equal(bytes, size)
})
