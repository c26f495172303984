import assert from 'node:assert/strict'
import { once } from 'node:events'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { zstdDecompressSync } from 'node:zlib'
import { accountEvent, commitEvent, type Event, identityEvent, syncEvent } from '@millisky/core/event'
import { create, remove, TIME, testRecord, update } from '@millisky/core/testing-repos'
import { Jetstream } from '@skyware/jetstream'
import { WebSocket } from 'ws'
import { digestOf, entriesOf } from './digest.ts'
import { JETSTREAM_PATH, repo, type StageOptions, type StreamClient, streamStage } from './testing-stream.ts'

async function start(t: { after(fn: () => Promise<void>): void }, options?: StageOptions) {
  const stage = await streamStage(options)
  t.after(() => stage.close())
  return stage
}

const [alice, bob] = [repo('alice'), repo('bob')]
const blob = { $type: 'blob', ref: testRecord('blob').cid, mimeType: 'image/png', size: 4 }

/** Seven events: of them six that Jetstream tells of, as seven messages. */
function story(): Event[] {
  const [a, b] = [repo('alice'), repo('bob')]
  const first = a.write(
    create('app.bsky.feed.post/1', 'hëllo 👋', { bytes: new Uint8Array([1, 2]), picture: blob as never }),
  )
  return [
    commitEvent(first, TIME),
    commitEvent(b.write(create('app.bsky.graph.follow/1', 'follow'), create('com.example.thing/1', 'thing')), TIME),
    identityEvent({ did: a.did, handle: 'alice.example' as never }, TIME),
    accountEvent({ did: b.did, active: false, status: 'deactivated' }, TIME),
    syncEvent({ did: b.did, rev: b.rev, commit: first.commit }, TIME),
    commitEvent(a.write(update('app.bsky.feed.post/1', 'changed')), TIME),
    commitEvent(a.write(remove('app.bsky.feed.post/1')), TIME),
  ]
}

/** The client knows the types of records only where their schemas are installed. */
const textOf = (record: object) => ('text' in record ? record.text : undefined)

type Message = { did: string; time_us: number; kind: string; commit?: { collection: string; operation: string } }
const told = ({ json }: StreamClient) =>
  (json as Message[]).map(({ kind, commit }) => (commit ? `${commit.operation} ${commit.collection}` : kind))
const ALL = [
  'create app.bsky.feed.post',
  'create app.bsky.graph.follow',
  'create com.example.thing',
  'identity',
  'account',
  'update app.bsky.feed.post',
  'delete app.bsky.feed.post',
]

test('each event is told in the words of Jetstream, field by field', async t => {
  const stage = await start(t)
  const client = await stage.client(JETSTREAM_PATH)
  const micros = stage.clock * 1_000
  await stage.append(...story())
  await client.until(7)
  assert.ok(client.binary.every(isBinary => !isBinary))
  const revs = [1, 2, 3].map(() => alice.nextRev() && alice.write(create(`a.b.c/${alice.nextRev()}`, '')).head.rev)
  const bobRev = bob.nextRev()
  const thing = testRecord('thing')
  const record = (text: string) => ({ $type: 'app.bsky.feed.post', text, createdAt: TIME })
  const hello = testRecord('hëllo 👋', { bytes: new Uint8Array([1, 2]), picture: blob as never })
  const operation = { collection: 'app.bsky.feed.post', rkey: '1' }
  assert.deepEqual(client.json, [
    {
      did: alice.did,
      time_us: micros,
      kind: 'commit',
      commit: {
        rev: revs[0],
        operation: 'create',
        ...operation,
        record: {
          ...record('hëllo 👋'),
          bytes: { $bytes: 'AQI' },
          picture: { ...blob, ref: { $link: blob.ref.toString() } },
        },
        cid: hello.cid.toString(),
      },
    },
    {
      did: bob.did,
      time_us: micros + 1,
      kind: 'commit',
      commit: {
        rev: bobRev,
        operation: 'create',
        collection: 'app.bsky.graph.follow',
        rkey: '1',
        record: record('follow'),
        cid: testRecord('follow').cid.toString(),
      },
    },
    {
      did: bob.did,
      time_us: micros + 1,
      kind: 'commit',
      commit: {
        rev: bobRev,
        operation: 'create',
        collection: 'com.example.thing',
        rkey: '1',
        record: record('thing'),
        cid: thing.cid.toString(),
      },
    },
    {
      did: alice.did,
      time_us: micros + 2,
      kind: 'identity',
      identity: { did: alice.did, handle: 'alice.example', seq: 3, time: TIME },
    },
    {
      did: bob.did,
      time_us: micros + 3,
      kind: 'account',
      account: { active: false, did: bob.did, seq: 4, status: 'deactivated', time: TIME },
    },
    {
      did: alice.did,
      time_us: micros + 5,
      kind: 'commit',
      commit: {
        rev: revs[1],
        operation: 'update',
        ...operation,
        record: record('changed'),
        cid: testRecord('changed').cid.toString(),
      },
    },
    {
      did: alice.did,
      time_us: micros + 6,
      kind: 'commit',
      commit: { rev: revs[2], operation: 'delete', ...operation },
    },
  ])
})

test('the usual client follows it, filters by it and goes on where it was', async t => {
  const stage = await start(t)
  const options = { endpoint: `${stage.url}${JETSTREAM_PATH}`, ws: WebSocket as never }
  const jetstream = new Jetstream({ ...options, wantedCollections: ['app.bsky.feed.post', 'com.example.*'] })
  t.after(async () => jetstream.close())
  const got: string[] = []
  jetstream.onCreate('app.bsky.feed.post', ({ commit }) => got.push(`post ${textOf(commit.record)}`))
  jetstream.onUpdate('app.bsky.feed.post', ({ commit }) => got.push(`update ${textOf(commit.record)}`))
  jetstream.onDelete('app.bsky.feed.post', ({ commit }) => got.push(`delete ${commit.rkey}`))
  jetstream.on('app.bsky.graph.follow' as never, () => got.push('follow'))
  jetstream.on('com.example.thing' as never, () => got.push('thing'))
  jetstream.on('account', ({ account }) => got.push(`account ${account.active}`))
  jetstream.on('identity', ({ identity }) => got.push(`identity ${identity.handle}`))
  jetstream.on('error', error => assert.fail(error))
  jetstream.start()
  await once(jetstream as never, 'open')
  await stage.append(...story())
  const expected = ['post hëllo 👋', 'thing', 'identity alice.example', 'account false', 'update changed', 'delete 1']
  await eventually(() => got.length === 6)
  assert.deepEqual(got, expected)
  const { cursor } = jetstream
  assert.equal(cursor, stage.clock * 1_000 + 6)
  jetstream.close()

  stage.clock += 60_000
  await stage.append(...story())
  const later = new Jetstream({ ...options, cursor: cursor!, wantedDids: [bob.did] })
  t.after(async () => later.close())
  const collections: string[] = []
  later.on('commit', ({ commit }) => collections.push(commit.collection))
  later.on('account', () => collections.push('account'))
  later.start()
  await eventually(() => collections.length === 3)
  assert.deepEqual(collections, ['app.bsky.graph.follow', 'com.example.thing', 'account'])
})

test('collections narrow commits, DIDs everything', async t => {
  const stage = await start(t)
  await stage.append(...story())
  stage.clock += 1
  for (const [params, expected] of [
    ['', ALL],
    ['&wantedCollections=app.bsky.graph.follow', ['create app.bsky.graph.follow', 'identity', 'account']],
    ['&wantedCollections=com.*', ['create com.example.thing', 'identity', 'account']],
    [`&wantedDids=${bob.did}`, ['create app.bsky.graph.follow', 'create com.example.thing', 'account']],
    [`&wantedDids=${bob.did}&wantedCollections=com.example.thing`, ['create com.example.thing', 'account']],
    ['&maxMessageSizeBytes=230', ['identity', 'account', 'delete app.bsky.feed.post']],
    ['&maxMessageSizeBytes=-1', ALL],
  ] as const) {
    const client = await stage.client(`${JETSTREAM_PATH}?cursor=1${params}`)
    await client.until(expected.length)
    assert.deepEqual(told(client), expected, params)
  }
})

test('a cursor is a time: from there on, inclusive; none and one from the future are now', async t => {
  const stage = await start(t)
  const began = stage.clock * 1_000
  await stage.append(...story())
  stage.clock += 10
  await stage.append(...story())
  stage.clock += 10
  for (const [cursor, count] of [
    [began, 14],
    [began + 1, 13],
    [began + 2, 11],
    [began + 6, 8],
    [began + 7, 7],
    [began + 10_000, 7],
    [began + 10_006, 1],
    [0, 14],
  ] as const) {
    const client = await stage.client(`${JETSTREAM_PATH}?cursor=${cursor}`)
    await client.until(count)
    assert.ok((client.json as Message[]).every(({ time_us }) => time_us >= cursor))
    assert.equal(client.messages.length, count)
    client.socket.terminate()
  }
  const [none, future] = [
    await stage.client(JETSTREAM_PATH),
    await stage.client(`${JETSTREAM_PATH}?cursor=${began * 2}`),
  ]
  await eventually(() => stage.subscription.list().every(({ cursor }) => cursor === 14))
  await stage.append(...story())
  await Promise.all([none.until(7), future.until(7)])
  assert.deepEqual([told(none), told(future)], [ALL, ALL])
})

test('history and live are told alike, so a stored cursor stays good', async t => {
  const stage = await start(t)
  const live = await stage.client(JETSTREAM_PATH)
  for (let i = 0; i < 30; i++) {
    if (i % 7 === 0) stage.clock += 1
    await stage.append(...story())
  }
  await live.until(210)
  stage.clock += 1
  const replay = await (await stage.client(`${JETSTREAM_PATH}?cursor=1`)).until(210)
  assert.deepEqual(replay.messages, live.messages)
  const times = (live.json as Message[]).map(({ time_us }) => time_us)
  assert.deepEqual(
    times,
    [...times].sort((a, b) => a - b),
  )
})

test('with requireHello nothing is sent before the options, which then count', async t => {
  const stage = await start(t)
  await stage.append(...story())
  stage.clock += 1
  const client = await stage.client(`${JETSTREAM_PATH}?cursor=1&requireHello=true`)
  await sleep(20)
  assert.equal(client.messages.length, 0)
  client.socket.send(JSON.stringify({ type: 'something else', payload: 1 }))
  client.socket.send(JSON.stringify({ type: 'options_update', payload: { wantedDids: [bob.did] } }))
  await client.until(3)
  assert.deepEqual(told(client), ['create app.bsky.graph.follow', 'create com.example.thing', 'account'])
  const payload = { wantedCollections: ['app.bsky.feed.*'], wantedDids: [], maxMessageSizeBytes: 0 }
  client.socket.send(JSON.stringify({ type: 'options_update', payload }))
  await eventually(() => stage.subscription.list()[0]!.form === 'jetstream, filtered')
  client.socket.ping()
  await once(client.socket, 'pong')
  await stage.append(...story())
  await client.until(8)
  assert.deepEqual(
    told(client).slice(3),
    ALL.filter(line => !line.includes('graph') && !line.includes('thing')),
  )
})

test('who wants to say first what it wants, and says nothing, is let go', async t => {
  const stage = await start(t, { settings: { helloMs: 50 } })
  // Who need not say anything is not waited for.
  const usual = await stage.client(JETSTREAM_PATH)
  const silent = await stage.client(`${JETSTREAM_PATH}?requireHello=true`)
  silent.socket.send(JSON.stringify({ type: 'something else' }))
  const { code, reason } = await silent.closed
  assert.deepEqual([code, reason], [1008, 'No options came in time'])
  await eventually(() => stage.subscription.list().length === 1)
  await stage.append(...story())
  await usual.until(ALL.length)
})

test('as many collections and DIDs as promised can be asked for', async t => {
  const stage = await start(t)
  const client = await stage.client(`${JETSTREAM_PATH}?requireHello=true`)
  const wantedDids = [alice.did, ...Array.from({ length: 9_999 }, (_, i) => `did:plc:${String(i).padStart(24, '2')}`)]
  const wantedCollections = Array.from({ length: 100 }, (_, i) => `app.bsky.feed.${i === 0 ? 'post' : `x${i}`}`)
  client.socket.send(JSON.stringify({ type: 'options_update', payload: { wantedDids, wantedCollections } }))
  await eventually(() => stage.subscription.list()[0]!.form.includes('filtered'))
  client.socket.ping()
  await once(client.socket, 'pong')
  await stage.append(...story())
  await client.until(4)
  assert.deepEqual(told(client), [ALL[0], 'identity', ALL[5], ALL[6]])
})

test('options that cannot be meant end the connection with the reason', async t => {
  const stage = await start(t)
  for (const [message, reason] of [
    ['not json', /not JSON/],
    ['[]', /not an object/],
    [JSON.stringify({ type: 'options_update', payload: { wantedCollections: ['nope'] } }), /not a collection/],
    [JSON.stringify({ type: 'options_update', payload: { wantedDids: 'did:plc:a' } }), /wantedDids must be a list/],
    [JSON.stringify({ type: 'options_update', payload: { maxMessageSizeBytes: 'ten' } }), /must be an integer/],
  ] as const) {
    const client = await stage.client(JETSTREAM_PATH)
    client.socket.send(message)
    const closed = await client.closed
    assert.equal(closed.code, 1008)
    assert.match(closed.reason, reason)
  }
  const flood = await stage.client(JETSTREAM_PATH)
  for (let i = 0; i < 11; i++) flood.socket.send(JSON.stringify({ type: 'options_update', payload: {} }))
  assert.deepEqual(await flood.closed, { code: 1008, reason: 'too many messages' })
})

test('parameters that cannot be meant are refused before the handshake', async t => {
  const stage = await start(t)
  const many = (name: string, count: number, value: (i: number) => string) =>
    Array.from({ length: count }, (_, i) => `${name}=${value(i)}`).join('&')
  for (const [params, message] of [
    ['wantedCollections=nope', /not a collection/],
    ['wantedDids=nope', /not a DID/],
    ['cursor=yesterday', /cursor must be/],
    ['requireHello=maybe', /requireHello must be/],
    ['maxMessageSizeBytes=1.5', /must be an integer/],
    ['compress=true', /no Zstandard dictionary/],
    [many('wantedCollections', 101, i => `a.b.c${i}`), /too many wanted collections/],
  ] as const) {
    const { refused } = await stage.client(`${JETSTREAM_PATH}?${params}`)
    assert.equal(refused?.status, 400, params)
    assert.match(refused.message, message)
  }
  const { refused } = await stage.client(JETSTREAM_PATH, { headers: { 'socket-encoding': 'zstd' } })
  assert.equal(refused?.status, 400)
})

test('with a dictionary messages are compressed for who asks, each on its own', async t => {
  const dictionary = Buffer.from(
    '{"did":"did:plc:","time_us":1,"kind":"commit","commit":{"rev":"","operation":"create"'.repeat(8),
  )
  const stage = await start(t, { dictionary })
  const [plain, packed, byHeader] = [
    await stage.client(JETSTREAM_PATH),
    await stage.client(`${JETSTREAM_PATH}?compress=true`),
    await stage.client(JETSTREAM_PATH, { headers: { 'socket-encoding': 'zstd' } }),
  ]
  await stage.append(...story())
  await Promise.all([plain.until(7), packed.until(7), byHeader.until(7)])
  assert.ok(packed.binary.every(isBinary => isBinary))
  assert.deepEqual(byHeader.messages, packed.messages)
  const unpacked = packed.messages.map(message => zstdDecompressSync(message, { dictionary }))
  assert.deepEqual(unpacked, plain.messages)
  assert.equal(stage.subscription.list()[1]?.form, 'jetstream zstd')
})

test('what is in a batch is told once for everybody who wants the same', async t => {
  const stage = await start(t)
  const clients = await Promise.all([1, 2, 3].map(() => stage.client(JETSTREAM_PATH)))
  const read: object[] = []
  const { read: original } = stage.log
  stage.log.read = (after, limit) => {
    const batch = original.call(stage.log, after, limit)
    if (!(batch instanceof Promise) && batch.count > 0) read.push(batch)
    return batch
  }
  await stage.append(...story())
  await Promise.all(clients.map(client => client.until(7)))
  assert.equal(read.length, 1, 'one read for all')
  let made = 0
  const digest = digestOf(read[0] as never, entriesOf(stage.log))
  digest.once('jetstream', null, () => made++)
  digest.once('jetstream 0 false', null, () => made++)
  assert.equal(made, 0, 'its messages were there already')
})

test('a stopping server does not wait for who has not said hello', async t => {
  const stage = await start(t, { settings: { closeMs: 60_000 } })
  const client = await stage.client(`${JETSTREAM_PATH}?requireHello=true`)
  await stage.subscription.close()
  assert.equal((await client.closed).code, 1012)
})

async function eventually(check: () => boolean): Promise<void> {
  for (let i = 0; !check(); i++) {
    if (i > 10_000) assert.fail('it did not happen')
    await sleep(2)
  }
}
