import assert from 'node:assert/strict'
import { PassThrough, Writable } from 'node:stream'
import { buffer } from 'node:stream/consumers'
import { finished } from 'node:stream/promises'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { Blocks } from '@millisky/core/blocks'
import { readCar } from '@millisky/core/car'
import { Cid } from '@millisky/core/cid'
import { Unavailable } from '@millisky/core/errors'
import { verifyProof } from '@millisky/core/mst/proof'
import { Tree } from '@millisky/core/mst/tree'
import { asNsid } from '@millisky/core/syntax'
import { CHUNK_BYTES } from './exports/chunks.ts'
import { EXPORT_LIMITS, type ExportOptions, Exports } from './exports.ts'
import { prepareRecord } from './records.ts'
import type { Store } from './store/store.ts'
import { startTestPds, type TestPds } from './testing-pds.ts'

/** An account whose repository is larger than what streams and sockets hold. */
async function large(pds: TestPds, { count = 4, length = 200_000 } = {}): Promise<number> {
  const alice = await pds.user('alice')
  for (let i = 0; i < 5; i++) {
    const writes = Array.from({ length: count }, (_, n) => {
      const value = { $type: 'com.example.big', text: `${i} ${n} `.padEnd(length, 'x') }
      return { $type: 'com.atproto.repo.applyWrites#create', collection: 'com.example.big', rkey: `r${i}${n}`, value }
    })
    const answer = await pds.post('com.atproto.repo.applyWrites', { repo: alice.did, writes }, alice)
    assert.equal(answer.status, 200)
  }
  return alice.account.id
}

const whole = async (exports: Exports, account: number, options: ExportOptions = {}) =>
  buffer((await exports.open(account, options)).body)

test('a reader that stalls is given up, and its place is free again', async t => {
  const pds = await startTestPds(t)
  const account = await large(pds)
  const exports = new Exports(pds.store, { ...EXPORT_LIMITS, atOnceMax: 1, stallMs: 150 })
  const stalled = (await exports.open(account)).body
  const ended = new Promise<Error>(resolve => stalled.once('error', resolve))
  assert.throws(() => exports.open(account), Unavailable)
  assert.match((await ended).message, /stalled/)
  await until(() => exports.running === 0)
  const { blocks } = readCar(await whole(exports, account))
  assert.ok(blocks.length >= 21)
})

test('a reader that is only slow keeps its place, unless it is too slow', async t => {
  const pds = await startTestPds(t)
  const account = await large(pds)
  const read = async (pauseMs: number, stallMs: number) => {
    const exports = new Exports(pds.store, { ...EXPORT_LIMITS, stallMs })
    let bytes = 0
    for await (const chunk of (await exports.open(account)).body) {
      bytes += chunk.length
      await sleep(pauseMs)
    }
    return bytes
  }
  assert.ok((await read(5, 10_000)) > 4_000_000)
  // Never 300 ms without a chunk, and yet far from a chunk in 19 ms.
  await assert.rejects(read(100, 300), /stalled/)
})

test('a server that was held up itself does not take it for the reader', async t => {
  const pds = await startTestPds(t)
  const account = await large(pds)
  const exports = new Exports(pds.store, { ...EXPORT_LIMITS, stallMs: 150 })
  let [bytes, chunks] = [0, 0]
  for await (const chunk of (await exports.open(account)).body) {
    if (chunks++ < 3) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 200)
    bytes += chunk.length
    await sleep(1)
  }
  assert.ok(bytes > 1_000_000)
})

test('a reader that leaves frees its place', async t => {
  const pds = await startTestPds(t)
  const account = await large(pds)
  const exports = new Exports(pds.store, { ...EXPORT_LIMITS, atOnceMax: 1 })
  for (const encoding of [undefined, 'gzip', 'zstd'] as const) {
    const { body } = await exports.open(account, { encoding })
    await new Promise(resolve => body.once('readable', resolve))
    body.destroy()
    await until(() => exports.running === 0)
  }
})

test('one reader does not take the places of all', async t => {
  const pds = await startTestPds(t)
  const account = await large(pds)
  const exports = new Exports(pds.store, { ...EXPORT_LIMITS, perReaderMax: 2 })
  const open = (reader: string) => exports.open(account, { reader })
  const own = [await open('a'), await open('a')]
  assert.throws(() => open('a'), /Too many exports at a time/)
  own.push(await open('b'))
  own[0]!.body.destroy()
  await until(() => exports.running === 2)
  own.push(await open('a'))
  for (const { body } of own) body.destroy()
  await until(() => exports.running === 0)
})

test('what nobody reads is not read from the database', async t => {
  const pds = await startTestPds(t)
  const { did, account } = await pds.user('alice')
  // Small ones first, so that pages are long when the large ones come.
  for (const [count, length] of [
    [100, 10],
    [2, 900_000],
    [2, 900_000],
    [2, 900_000],
  ] as const) {
    const value = { $type: 'com.example.big', text: 'x'.repeat(length) }
    const records = Array.from({ length: count }, () =>
      prepareRecord({
        collection: asNsid('com.example.big'),
        record: value,
        validate: undefined,
        nextRkey: () => pds.repos.nextRkey(),
      }),
    )
    await pds.repos.write(
      did,
      records.map(record => ({ action: 'create', record })),
    )
  }
  let read = 0
  const counting: Store = {
    ...pds.store,
    repos: {
      ...pds.store.repos,
      snapshot: (account, fn) =>
        pds.store.repos.snapshot(account, view =>
          fn({
            ...view,
            async page(from, below) {
              const page = await view.page(from, below)
              read += page.bytes.length
              return page
            },
            async record(path) {
              const record = await view.record(path)
              read += record!.bytes.length
              return record
            },
          }),
        ),
    },
  }
  const exports = new Exports(counting)
  const { body } = await exports.open(account.id)
  await sleep(100)
  assert.ok(read < 1_000_000, `${read} bytes were read`)
  assert.ok(body.readableLength <= 2 * CHUNK_BYTES)
  assert.equal(readCar(await buffer(body)).blocks.filter(block => block.bytes.length > 900_000).length, 6)
})

test('one collection comes with what proves that it is all', async t => {
  const pds = await startTestPds(t)
  const { did, account } = await pds.user('alice')
  const collections = ['com.example.a', 'com.example.a.b', 'com.example.ab', 'com.example.b'].map(asNsid)
  for (let i = 0; i < 6; i++) {
    const records = Array.from({ length: 40 }, (_, n) =>
      prepareRecord({
        collection: collections[(i + n) % 4]!,
        record: { n: i * 40 + n },
        validate: undefined,
        nextRkey: () => pds.repos.nextRkey(),
      }),
    )
    await pds.repos.write(
      did,
      records.map(record => ({ action: 'create', record })),
    )
  }
  const exports = new Exports(pds.store)
  const all = readCar(await whole(exports, account.id)).blocks
  const every = [...Tree.load((await pds.store.repos.state(did))!.head.data, new Blocks(all)).list()]
  for (const collection of [...collections, asNsid('com.example.aa'), asNsid('zz.example.none')]) {
    const { head, body } = await exports.open(account.id, { collection })
    const { roots, blocks } = readCar(await buffer(body))
    assert.deepEqual(roots, [head.commit])
    const source = new Blocks(blocks)
    const wanted = every.filter(([key]) => key.startsWith(`${collection}/`))
    const keys = wanted.map(([key]) => key)
    for (const key of [`${collection}/-`, ...keys, `${collection}/${'~'.repeat(9)}`]) {
      const value = wanted.find(([wanted]) => wanted === key)?.[1] ?? null
      assert.deepEqual(verifyProof(head.data, source, key), value)
    }
    // Each in its place of the whole export, and no record of others.
    const positions = blocks.map(({ cid }) => all.findIndex(block => block.cid.equals(cid)))
    assert.deepEqual(
      positions,
      positions.toSorted((a, b) => a - b),
    )
    const records = blocks.filter(({ cid }) => every.some(([, value]) => value.equals(cid)))
    assert.deepEqual(
      records.map(({ cid }) => cid),
      wanted.map(([, cid]) => cid),
    )
    assert.ok(wanted.length === 0 || blocks.length < all.length / 2)
  }
})

test('memory of chunks is used again as soon as what takes them has let go of them, and not before', async t => {
  const pds = await startTestPds(t)
  // Packed into chunks, where large ones go as they are.
  const account = await large(pds, { count: 150, length: 1_500 })
  const exports = new Exports(pds.store)
  const expected = await whole(exports, account)
  for (const highWaterMark of [1, CHUNK_BYTES, 20 * CHUNK_BYTES]) {
    const buffers = new Set<ArrayBufferLike>()
    const got: Buffer[] = []
    let number = 0
    const taker = new Writable({
      highWaterMark,
      write(chunk: Buffer, _encoding, done) {
        const take = () => {
          if (chunk.buffer.byteLength === CHUNK_BYTES) buffers.add(chunk.buffer)
          // Looked at as late as may be.
          got.push(Buffer.from(chunk))
          done()
        }
        if (number++ % 3 === 0) take()
        else setTimeout(take, number % 5)
      },
    })
    const { body } = await exports.open(account, { taker })
    body.pipe(taker)
    await finished(taker)
    assert.ok(Buffer.concat(got).equals(expected))
    if (highWaterMark === 1) assert.ok(buffers.size < 5, `${buffers.size} of ${got.length}`)
    // With something between, nobody knows.
    const through = new PassThrough({ highWaterMark: 100 * CHUNK_BYTES })
    const other = await exports.open(account, { taker: new Writable() })
    assert.ok((await buffer(other.body.pipe(through))).equals(expected))
  }
})

test('many large blocks are not held at a time', async t => {
  const pds = await startTestPds(t)
  const account = await large(pds)
  const exports = new Exports(pds.store)
  const { blocks: all } = readCar(await whole(exports, account))
  const cids = all.map(({ cid }) => cid)
  const { body } = await exports.openBlocks(account, cids, {})
  await sleep(50)
  assert.ok(body.readableLength <= 2 * CHUNK_BYTES)
  assert.equal(exports.running, 1)
  const { roots, blocks } = readCar(await buffer(body))
  assert.deepEqual([roots, blocks.map(({ cid }) => cid)], [[], cids])
  const missing = Cid.ofRaw(new Uint8Array(1))
  await assert.rejects(exports.openBlocks(account, [...cids, missing], {}), new RegExp(`find cids: ${missing}$`))
  await until(() => exports.running === 0)
})

async function until(isSo: () => boolean): Promise<void> {
  while (!isSo()) await sleep(5)
}
