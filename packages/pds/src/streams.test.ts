import assert from 'node:assert/strict'
import { once } from 'node:events'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { decodeFrame } from '@millisky/core/event'
import { WebSocket } from 'ws'
import { startTestPds, type TestPds, type TestUser } from './testing-pds.ts'

const PATH = '/xrpc/com.atproto.sync.subscribeRepos'

async function write(pds: TestPds, user: TestUser, collection: string, record: object): Promise<void> {
  const { status, json } = await pds.post('com.atproto.repo.createRecord', { repo: user.did, collection, record }, user)
  assert.equal(status, 200, JSON.stringify(json))
}

test('consumers of the PDS may choose collections and JSON', async t => {
  const pds = await startTestPds(t)
  const alice = await pds.user('alice')
  const createdAt = '2026-01-02T03:04:05.678Z'
  await write(pds, alice, 'app.bsky.feed.post', { text: 'one', createdAt })
  await write(pds, alice, 'app.bsky.graph.follow', { subject: alice.did, createdAt })
  await write(pds, alice, 'app.bsky.feed.post', { text: 'two', createdAt })
  const url = `${pds.url.replace('http', 'ws')}${PATH}?cursor=0&wantedKinds=commit&wantedCollections=app.bsky.feed.*`
  const [cbor, json] = [new WebSocket(`${url}&compress=true`), new WebSocket(url, ['xrpc.v1.json'])]
  const [frames, texts]: [Buffer[], Buffer[]] = [[], []]
  cbor.on('message', data => frames.push(data as Buffer))
  json.on('message', data => texts.push(data as Buffer))
  t.after(() => [cbor, json].map(socket => socket.terminate()))
  for (let i = 0; i < 10_000 && (frames.length < 2 || texts.length < 2); i++) await sleep(2)
  const collections = frames.map(frame => (decodeFrame(frame).body.ops as { path: string }[])[0]?.path.split('/')[0])
  assert.deepEqual(collections, ['app.bsky.feed.post', 'app.bsky.feed.post'])
  const seqs = texts.map(text => JSON.parse(text.toString()).message.seq)
  assert.deepEqual(
    seqs,
    frames.map(frame => decodeFrame(frame).body.seq),
  )
})

test('the operator can switch the choices off', async t => {
  const pds = await startTestPds(t, { PDS_STREAM_EXTRAS: 'false' })
  const socket = new WebSocket(`${pds.url.replace('http', 'ws')}${PATH}?wantedKinds=commit`)
  socket.on('error', () => {})
  const [, response] = await once(socket, 'unexpected-response')
  assert.equal(response.statusCode, 400)
  socket.terminate()
})
