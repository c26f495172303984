import assert from 'node:assert/strict'
import { buffer } from 'node:stream/consumers'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { readCar } from '@millisky/core/car'
import { Unavailable } from '@millisky/core/errors'
import { Exports } from './exports.ts'
import { startTestPds, type TestPds } from './testing-pds.ts'

/** An account whose repository is larger than what streams and sockets hold. */
async function large(pds: TestPds): Promise<number> {
  const alice = await pds.user('alice')
  const value = { $type: 'com.example.big', text: 'x'.repeat(200_000) }
  for (let i = 0; i < 5; i++) {
    const writes = Array.from({ length: 4 }, (_, n) => {
      return { $type: 'com.atproto.repo.applyWrites#create', collection: 'com.example.big', rkey: `r${i}${n}`, value }
    })
    const answer = await pds.post('com.atproto.repo.applyWrites', { repo: alice.did, writes }, alice)
    assert.equal(answer.status, 200)
  }
  return alice.account.id
}

test('a reader that stalls is given up, and its place is free again', async t => {
  const pds = await startTestPds(t)
  const account = await large(pds)
  const exports = new Exports(pds.store, { atOnceMax: 1, stallMs: 150 })
  const stalled = exports.stream(account)
  const ended = new Promise<Error>(resolve => stalled.once('error', resolve))
  await sleep(20)
  assert.throws(() => exports.stream(account), Unavailable)
  assert.match((await ended).message, /stalled/)
  await sleep(20)
  const { blocks } = readCar(await buffer(exports.stream(account)))
  assert.ok(blocks.length >= 21)
})

test('a reader that leaves frees its place', async t => {
  const pds = await startTestPds(t)
  const account = await large(pds)
  const exports = new Exports(pds.store, { atOnceMax: 1, stallMs: 60_000 })
  for (let i = 0; i < 3; i++) {
    const stream = exports.stream(account)
    await new Promise(resolve => stream.once('readable', resolve))
    stream.destroy()
    await sleep(20)
  }
})
