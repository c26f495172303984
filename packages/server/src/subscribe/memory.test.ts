// Memory of events is used again by hand: nobody may ever see other bytes in it than those it was sent for.
import assert from 'node:assert/strict'
import { afterEach, test } from 'node:test'
import { decodeFrame, type Event } from '@millisky/core/event'
import { testDid } from '../log/testing.ts'
import { JETSTREAM_PATH, REPOS_PATH, type StreamClient, type StreamStage, streamStage } from './testing-stream.ts'

const EVENTS = 6_000
const BYTES = 4_000
const DID = testDid(1)

let stage: StreamStage | null = null
afterEach(async () => {
  await stage?.close()
  stage = null
})

/** Tells its number in its first and last characters, and between them. */
const text = (n: number) => `${n}.`.repeat(BYTES / 8)
const event = (n: number): Event => ({
  t: '#identity',
  body: { seq: 0, did: DID, time: '2026-08-20T12:00:00Z', handle: text(n) },
})

/** In `xrpc.v1.json`, and in Jetstream's form. */
const said = ({ message, identity }: Record<string, { seq: number; handle: string }>) => (message ?? identity)!

/** The numbers of what came, each looked at from end to end. */
function numbersOf({ messages, binary }: StreamClient): number[] {
  return messages.map((message, i) => {
    const { seq, handle } = binary[i] ? decodeFrame(message).body : said(JSON.parse(message.toString()))
    assert.equal(handle, text(Number(seq)), `message ${i}`)
    return Number(seq)
  })
}

test('consumers of all kinds, fast, slow and stalled, see each event as it was written', async () => {
  const { log, client, append } = (stage = await streamStage({ ringBytes: 300_000 }))
  const crowd = await Promise.all(Array.from({ length: 5 }, () => client(REPOS_PATH)))
  const others = await Promise.all([
    client(`${REPOS_PATH}?wantedKinds=identity`),
    client(REPOS_PATH, { protocols: ['xrpc.v1.json'] }),
    client(JETSTREAM_PATH),
  ])
  const stalled = await Promise.all([client(REPOS_PATH), client(`${REPOS_PATH}?wantedKinds=identity`)])
  for (const { socket } of stalled) socket.pause()
  for (let n = 1; n <= EVENTS; ) {
    const batch = Array.from({ length: Math.min(1 + (n % 23), EVENTS - n + 1) }, () => event(n++))
    await append(...batch)
    // One of them takes its turn only now and then.
    const { socket } = crowd[0]!
    if (n % 5 === 0) socket.isPaused ? socket.resume() : socket.pause()
  }
  assert.equal(log.head, EVENTS)
  for (const { socket } of [crowd[0]!, ...stalled]) socket.resume()
  const all = Array.from({ length: EVENTS }, (_, i) => i + 1)
  for (const each of [...crowd, ...others, ...stalled]) assert.deepEqual(numbersOf(await each.until(EVENTS)), all)
})
