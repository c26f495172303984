import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { inflateRawSync } from 'node:zlib'
import { accountEvent, commitEvent, decodeFrame, type Event, identityEvent, syncEvent } from '@millisky/core/event'
import { jsonToValue } from '@millisky/core/json'
import { create, remove, TIME, update } from '@millisky/core/testing-repos'
import { framesOf } from '../log/frame-wire.ts'
import type { Batch } from '../log/log.ts'
import { until } from '../testing-until.ts'
import { digestOf, Entries, entriesOf } from './digest.ts'
import { NO_EXTRAS } from './repos.ts'
import { REPOS_PATH, repo, type StageOptions, type StreamClient, streamStage } from './testing-stream.ts'

async function start(t: { after(fn: () => Promise<void>): void }, options?: StageOptions) {
  const stage = await streamStage(options)
  t.after(() => stage.close())
  return stage
}

const [alice, bob] = [repo('alice'), repo('bob')]

/** Seqs 1 to 7. */
function story(): Event[] {
  const [a, b] = [repo('alice'), repo('bob')]
  const head = a.write(create('app.bsky.feed.post/1', 'x'.repeat(2_000)))
  return [
    commitEvent(head, TIME),
    commitEvent(b.write(create('app.bsky.graph.follow/1', 'follow'), create('com.example.thing/1', 'thing')), TIME),
    identityEvent({ did: a.did, handle: 'alice.example' as never }, TIME),
    accountEvent({ did: b.did, active: false, status: 'deactivated' }, TIME),
    commitEvent(a.write(update('app.bsky.feed.post/1', 'changed')), TIME),
    commitEvent(a.write(remove('app.bsky.feed.post/1')), TIME),
    syncEvent({ did: b.did, rev: b.rev, commit: head.commit }, TIME),
  ]
}

const seqs = ({ messages }: StreamClient) => messages.map(message => decodeFrame(message).body.seq)
const query = (params: [string, string][]) => new URLSearchParams([['cursor', '0'], ...params])

test('filters let whole frames through, in history and live', async t => {
  const stage = await start(t)
  await stage.append(...story())
  const cases: [[string, string][], number[]][] = [
    [[['wantedCollections', 'app.bsky.feed.post']], [1, 3, 4, 5, 6, 7]],
    [[['wantedCollections', 'com.example.*']], [2, 3, 4, 7]],
    [[['wantedDids', alice.did]], [1, 3, 5, 6]],
    [[['wantedKinds', 'account']], [4]],
    [
      [
        ['wantedKinds', '#commit'],
        ['wantedKinds', 'sync'],
        ['wantedDids', bob.did],
      ],
      [2, 7],
    ],
    [
      [
        ['wantedKinds', 'commit'],
        ['wantedCollections', 'app.bsky.graph.*'],
        ['wantedCollections', 'app.bsky.feed.post'],
      ],
      [1, 2, 5, 6],
    ],
  ]
  const plain = await (await stage.client(`${REPOS_PATH}?cursor=0`)).until(7)
  for (const [params, expected] of cases) {
    const client = await stage.client(`${REPOS_PATH}?${query(params)}`)
    await client.until(expected.length)
    assert.deepEqual(seqs(client), expected)
    for (const [i, seq] of expected.entries()) {
      assert.ok(client.messages[i]!.equals(plain.messages[seq - 1]!), 'the frame is as everybody gets it')
    }
  }
  const live = await stage.client(`${REPOS_PATH}?wantedKinds=identity&wantedKinds=account`)
  await stage.append(...story())
  await live.until(2)
  assert.deepEqual(seqs(live), [10, 11])
})

test('a consumer whose filter matches nothing stays connected, is pinged, and its place moves on', async t => {
  const stage = await start(t, { settings: { pingMs: 20, deadMs: 2_000 } })
  const client = await stage.client(`${REPOS_PATH}?cursor=0&wantedDids=did:plc:nobody`)
  let pings = 0
  client.socket.on('ping', () => pings++)
  await stage.append(...story())
  await until('it was pinged', () => pings >= 2)
  const info = await until('its place has moved', () => stage.subscription.list().find(({ cursor }) => cursor === 7))
  assert.deepEqual([info?.cursor, info?.lag, info?.events, info?.form], [7, 0, 0, 'cbor, filtered'])
  assert.equal(client.messages.length, 0)
})

test('cursors mean the same with a filter', async t => {
  const stage = await start(t)
  await stage.append(...story())
  const future = await stage.client(`${REPOS_PATH}?cursor=99&wantedKinds=sync`)
  assert.equal((await future.closed).code, 1008)
  assert.equal(decodeFrame(future.messages[0]!).body.error, 'FutureCursor')
  const later = await stage.client(`${REPOS_PATH}?cursor=5&wantedDids=${alice.did}`)
  await later.until(1)
  assert.deepEqual(seqs(later), [6])
})

test('what cannot be meant is refused before the handshake, with a sentence', async t => {
  const stage = await start(t)
  for (const [params, message] of [
    ['wantedCollections=feed', /not a collection/],
    ['wantedDids=alice', /not a DID/],
    ['wantedKinds=commit&wantedKinds=likes', /not a kind/],
    ['wantedCollection=app.bsky.feed.post', /no such filter: wantedCollection;/],
    ['compress=yes', /compress must be true or false/],
    ['compress=true&compress=true', /compress must be/],
  ] as const) {
    const { refused } = await stage.client(`${REPOS_PATH}?${params}`)
    assert.equal(refused?.status, 400, params)
    assert.match(refused.message, message)
  }
  const { refused } = await stage.client(`${REPOS_PATH}?compress=true`, { perMessageDeflate: false })
  assert.match(refused?.message ?? '', /permessage-deflate/)
})

test('what is switched off is refused when it is asked for', async t => {
  const stage = await start(t, { extras: NO_EXTRAS })
  await stage.append(...story())
  for (const params of ['wantedKinds=commit', 'compress=true']) {
    assert.equal((await stage.client(`${REPOS_PATH}?${params}`)).refused?.status, 400)
  }
  const client = await stage.client(`${REPOS_PATH}?cursor=0&other=1`, { protocols: ['xrpc.v1.json', 'xrpc.v0.cbor'] })
  assert.equal(client.socket.protocol, 'xrpc.v0.cbor')
  await client.until(7)
  assert.deepEqual(seqs(client), [1, 2, 3, 4, 5, 6, 7])
})

test('a client that offers compression but does not ask gets the bytes of the log', async t => {
  const stage = await start(t)
  await stage.append(...story())
  const client = await stage.client(`${REPOS_PATH}?cursor=0`, { perMessageDeflate: true })
  await client.until(7)
  assert.equal(client.socket.extensions, '')
  const batch = await stage.log.read(0, { bytes: 1 << 20 })
  assert.deepEqual(
    client.messages.map(message => message.toString('hex')),
    [...framesOf(batch.wire)].map(frame => Buffer.from(frame).toString('hex')),
  )
  assert.equal(
    stage.subscription.list()[0]?.bytes,
    batch.wire.reduce((sum, part) => sum + part.length, 0),
  )
})

test('compressed messages are the same events in fewer bytes, also filtered and live', async t => {
  const stage = await start(t)
  await stage.append(...story())
  const [plain, packed, posts] = await Promise.all([
    stage.client(`${REPOS_PATH}?cursor=0`),
    stage.client(`${REPOS_PATH}?cursor=0&compress=true`),
    stage.client(`${REPOS_PATH}?cursor=0&compress=true&wantedCollections=app.bsky.feed.post&wantedKinds=commit`),
  ])
  await stage.append(...story())
  await Promise.all([plain.until(14), packed.until(14), posts.until(6)])
  assert.match(packed.socket.extensions, /permessage-deflate/)
  assert.deepEqual(packed.messages, plain.messages)
  assert.deepEqual(seqs(posts), [1, 5, 6, 8, 12, 13])
  const [first, second] = stage.subscription.list()
  assert.ok(second!.bytes < first!.bytes * 0.8, `${second!.bytes} of ${first!.bytes} bytes`)
})

test('a message is made once for all who want it so', async t => {
  const stage = await start(t)
  await stage.append(...story())
  const batch = (await stage.log.read(0, { bytes: 1 << 20 })) as Batch
  const digest = digestOf(batch, entriesOf(stage.log))
  assert.equal(digestOf(batch, entriesOf(stage.log)), digest)
  for (const packing of ['cbor', 'json', 'cbor+deflate', 'json+deflate'] as const) {
    for (const entry of digest.entries) assert.equal(entry.as(packing), entry.as(packing), packing)
  }
  // Each message stands alone: it needs no window of those before.
  for (const [i, frame] of [...framesOf(batch.wire)].entries()) {
    const wire = digest.entries[i]!.as('cbor+deflate')!
    if (!(wire[0]! & 0x40)) continue
    const payload = wire.subarray(wire[1]! < 126 ? 2 : 4)
    const tail = Buffer.from([0, 0, 0xff, 0xff])
    assert.deepEqual(inflateRawSync(Buffer.concat([payload, tail]), { finishFlush: 2 }), Buffer.from(frame))
  }
})

test('what is known of an event is shared however a replay is cut, and bounded', async t => {
  const stage = await start(t)
  await stage.append(...story())
  const known = entriesOf(stage.log)
  const [all, rest] = [await stage.log.read(0, { bytes: 1 << 20 }), await stage.log.read(3, { bytes: 1 << 20 })]
  assert.deepEqual(digestOf(rest, known).entries, digestOf(all, known).entries.slice(3))
  for (const [i, entry] of digestOf(rest, known).entries.entries()) {
    assert.equal(entry, digestOf(all, known).entries[3 + i])
  }
  const few = new Entries(3_000)
  const wires = digestOf(all, known).entries.map(entry => entry.as('cbor')!)
  for (const wire of wires) few.of(wire, wire.subarray(wire[1]! < 126 ? 2 : 4))
  assert.ok(few.bytes <= 3_000 && few.bytes > 0, `${few.bytes}`)
})

test('xrpc.v1.json: every event as JSON under its type, nothing lost', async t => {
  const stage = await start(t)
  await stage.append(...story())
  const protocols = ['xrpc.v1.json']
  const [plain, json, packed] = await Promise.all([
    stage.client(`${REPOS_PATH}?cursor=0`),
    stage.client(`${REPOS_PATH}?cursor=0`, { protocols }),
    stage.client(`${REPOS_PATH}?cursor=0&compress=true`, { protocols }),
  ])
  await Promise.all([plain.until(7), json.until(7), packed.until(7)])
  assert.equal(json.socket.protocol, 'xrpc.v1.json')
  assert.ok(json.binary.every(isBinary => !isBinary))
  assert.deepEqual(packed.messages, json.messages)
  for (const [i, message] of json.messages.entries()) {
    const { t: type, body } = decodeFrame(plain.messages[i]!)
    const { $type, message: inner } = jsonToValue(message.toString()) as Record<string, object>
    assert.equal($type, 'message')
    assert.deepEqual(inner, { $type: `com.atproto.sync.subscribeRepos${type}`, ...body })
  }
  const future = await stage.client(`${REPOS_PATH}?cursor=99`, { protocols })
  await future.closed
  assert.deepEqual(future.json, [{ $type: 'error', error: 'FutureCursor', message: 'Cursor in the future.' }])
})

test('the first subprotocol of the client that can be had is chosen', async t => {
  const stage = await start(t)
  for (const [offered, chosen] of [
    [['xrpc.v1.cbor', 'xrpc.v1.json', 'xrpc.v0.cbor'], 'xrpc.v1.json'],
    [['xrpc.v0.cbor', 'xrpc.v1.json'], 'xrpc.v0.cbor'],
    [['anything'], 'anything'],
  ] as const) {
    assert.equal((await stage.client(REPOS_PATH, { protocols: [...offered] })).socket.protocol, chosen)
  }
})

test('a consumer of another form that takes nothing is too slow like any other', async t => {
  const stage = await start(t, { settings: { stallMs: 100, batchBytes: 65_536 } })
  const slow = await stage.client(`${REPOS_PATH}?cursor=0`, { protocols: ['xrpc.v1.json'] })
  slow.socket.pause()
  const big = (n: number): Event => ({
    t: '#identity',
    body: { seq: 0, did: alice.did, time: TIME, pad: `${n}`.repeat(50_000) },
  })
  for (let i = 0; i < 150 && stage.subscription.list().length > 0; i++) {
    await stage.append(...Array.from({ length: 4 }, () => big(i % 10)))
    await sleep(2)
  }
  await until('it is given up', () => stage.subscription.list().length === 0)
  slow.socket.resume()
  const { code } = await slow.closed
  assert.ok(code === 1008 || code === 1006, `${code}`)
})

test('a message that would swell is not unpacked', async t => {
  const stage = await start(t)
  const client = await stage.client(`${REPOS_PATH}?compress=true`, { perMessageDeflate: { threshold: 0 } })
  client.socket.send(Buffer.alloc(10_000_000))
  assert.equal((await client.closed).code, 1009)
})
