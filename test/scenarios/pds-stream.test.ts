// What consumers of a PDS's stream rely on, each behaviour under its number: B89 to B96. Frames, trees and proofs are read by
// other people's code.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer } from 'node:http'
import { connect } from 'node:net'
import { after, before, test } from 'node:test'
import { decodeFirst } from '@atcute/cbor'
import { type BlockMap, MemoryBlockstore, MST, readCarWithRoot, verifyProofs, verifyRepoCar } from '@atproto/repo'
import { identityEvent } from '@millisky/core/event'
import { startTestPds, type TestPds, type TestUser } from '@millisky/pds/testing-pds'
import { streamStage } from '@millisky/server/subscribe/testing-stream'
import { until } from '@millisky/server/testing-until'
import { CID } from 'multiformats/cid'
import { WebSocket } from 'ws'

const NOTE = 'com.example.note'
const STREAM = '/xrpc/com.atproto.sync.subscribeRepos'

let pds: TestPds
const cleanups: (() => Promise<void>)[] = []
const later = { after: (fn: () => Promise<void>) => void cleanups.push(fn) }
before(async () => {
  pds = await startTestPds(later)
})
after(async () => {
  for (const cleanup of cleanups.reverse()) await cleanup()
})

type Body = Record<string, unknown>
const put = async (rkey: string, record: Body, user: TestUser, on: TestPds) => {
  const body = { repo: user.did, collection: NOTE, rkey, record }
  const { status, json } = await on.post('com.atproto.repo.putRecord', body, user)
  assert.equal(status, 200, JSON.stringify(json))
}

/** The key that an account signs with. */
const keyOf = async (did: string, on: TestPds) =>
  on.repos.signingKey((await on.store.repos.state(did as never))!.key).publicKey.didKey

/** A consumer that keeps everything as it came, and reads it with somebody else's codec. */
class Reader {
  readonly raw: Buffer[] = []
  readonly socket: WebSocket
  closed: [code: number, reason: string] | null = null

  constructor(query: string, on: TestPds) {
    this.socket = new WebSocket(`${on.url.replace('http', 'ws')}${STREAM}${query}`)
    this.socket.on('message', (data, isBinary) => {
      assert.ok(isBinary)
      this.raw.push(data as Buffer)
    })
    this.socket.on('error', () => {})
    this.socket.on('close', (code, reason) => {
      this.closed = [code, reason.toString()]
    })
    later.after(async () => this.socket.terminate())
  }

  get frames(): Frame[] {
    return this.raw.map(frameOf)
  }

  async opened(): Promise<this> {
    await once(this.socket, 'open')
    return this
  }

  async count(count: number): Promise<Frame[]> {
    await until(`${count} frames`, () => this.raw.length >= count)
    return this.frames
  }
}

// biome-ignore lint/suspicious/noExplicitAny: what it holds is what is tested
type Frame = { header: any; body: any }

function frameOf(bytes: Uint8Array): Frame {
  const [header, rest] = decodeFirst(bytes)
  const [body, nothing] = decodeFirst(rest)
  assert.equal(nothing.length, 0)
  return { header, body }
}

const bufferOf = (wrapped: { $bytes: string } | { buf: Uint8Array }): Uint8Array =>
  'buf' in wrapped ? wrapped.buf : Buffer.from(wrapped.$bytes, 'base64')

test('B89 B91 frames are a header and a body; without a cursor there is only what is new', async () => {
  const on = await startTestPds(later)
  const user = await on.user('opener')
  const [live, all] = [await new Reader('', on).opened(), new Reader('?cursor=0', on)]
  const opening = await all.count(4)
  assert.deepEqual(
    opening.map(({ header }) => header),
    ['#identity', '#account', '#commit', '#sync'].map(t => ({ t, op: 1 })),
  )
  // As deployed encoders write it: `t` before `op`.
  assert.equal(all.raw[2]!.subarray(0, 15).toString('latin1'), '\xa2at\x67#commitbop\x01')
  const [identity, account, commit, state] = opening.map(({ body }) => body)
  assert.deepEqual({ ...identity, time: '' }, { seq: 1, did: user.did, time: '', handle: 'opener.test' })
  assert.deepEqual({ ...account, time: '' }, { seq: 2, did: user.did, time: '', active: true })
  assert.deepEqual(
    [commit.seq, commit.repo, commit.since, commit.ops, 'prevData' in commit],
    [3, user.did, null, [], false],
  )
  assert.deepEqual([state.seq, state.did, state.rev], [4, user.did, commit.rev])
  const { root, blocks } = await readCarWithRoot(bufferOf(state.blocks))
  assert.deepEqual([root.toString(), blocks.size], [commit.commit.$link, 1])
  for (const { body } of opening) assert.match(body.time, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/)
  await put('new', {}, user, on)
  assert.equal((await live.count(1))[0]!.body.seq, 5)
  for (const [query, seqs] of [
    ['?cursor=3', [4, 5]],
    ['?cursor=4', [5]],
    ['?cursor=', []],
    ['?cursor=5', []],
  ] as const) {
    const reader = await new Reader(query, on).opened()
    await put(`then ${query}`.replaceAll(/[^a-z0-9]/g, '-'), {}, user, on)
    const got = await reader.count(seqs.length + 1)
    assert.deepEqual(
      got
        .slice(0, seqs.length)
        .map(({ body }) => body.seq)
        .filter(seq => seq <= 5),
      seqs,
    )
  }
  // What a consumer sends is ignored.
  live.socket.send('hello')
  live.socket.send(Buffer.alloc(1_000))
  const before = live.raw.length
  await put('after', {}, user, on)
  await live.count(before + 1)
  assert.equal(live.closed, null)
})

test('B90 a cursor from the future is the end; one from before the window is told so, and goes on', async () => {
  let now = Date.now()
  const on = await startTestPds(later, { PDS_REPO_BACKFILL_LIMIT_MS: '400' }, { now: () => now })
  const user = await on.user('windowed')
  const ahead = new Reader('?cursor=999', on)
  await until('it is sent away', () => ahead.closed)
  assert.deepEqual(ahead.frames, [
    { header: { op: -1 }, body: { error: 'FutureCursor', message: 'Cursor in the future.' } },
  ])
  assert.deepEqual(ahead.closed, [1008, 'FutureCursor'])
  now += 1_000
  await until('the opening is out of the window', () => on.store.log.oldest > 4)
  await put('kept', {}, user, on)
  const [old, zero] = [new Reader('?cursor=1', on), new Reader('?cursor=0', on)]
  const [info, next] = await old.count(2)
  assert.deepEqual(info, {
    header: { t: '#info', op: 1 },
    body: { name: 'OutdatedCursor', message: 'Requested cursor exceeded limit. Possibly missing events' },
  })
  assert.deepEqual([next!.header.t, next!.body.seq], ['#commit', 5])
  const [told, first] = await zero.count(2)
  assert.deepEqual([told, first!.body.seq], [info, 5])
})

test('B92 a reader that takes nothing is told so, and sent away', async () => {
  const stage = await streamStage({ settings: { stallMs: 100, closeMs: 30_000 } })
  later.after(() => stage.close())
  const { hostname, port } = new URL(stage.url)
  const socket = connect(Number(port), hostname)
  later.after(async () => void socket.destroy())
  const upgrade =
    'Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=='
  socket.write(`GET ${STREAM} HTTP/1.1\r\nHost: x\r\n${upgrade}\r\n\r\n`)
  await once(socket, 'readable')
  socket.pause()
  const large = identityEvent(
    { did: 'did:web:host.example' as never, handle: 'x'.repeat(1_000_000) as never },
    new Date().toISOString() as never,
  )
  for (let i = 0; i < 24; i++) await stage.append(large)
  // Step by step: time in which nothing runs here is not held against a reader.
  for (let i = 0; i < 50; i++) await new Promise(resolve => setTimeout(resolve, 20))
  let tail = Buffer.alloc(0)
  socket.on('data', (chunk: Buffer) => {
    tail = Buffer.concat([tail, chunk]).subarray(-200)
  })
  socket.resume()
  await until('the reason has come', () => tail.includes('ConsumerTooSlow'))
  const error = tail.subarray(tail.indexOf('\xa1bop\x20', 0, 'latin1'))
  const [[header, rest]] = [decodeFirst(error)]
  assert.deepEqual(header, { op: -1 })
  assert.deepEqual(decodeFirst(rest)[0], { error: 'ConsumerTooSlow', message: 'Stream consumer too slow' })
  await until('the closing frame has come', () => tail.includes(Buffer.from([0x88, 17, 0x03, 0xf0])))
})

test('B94 who is no WebSocket client, or asks for no number, is told so by HTTP', async () => {
  const plain = await fetch(`${pds.url}${STREAM}`)
  assert.deepEqual([plain.status, ((await plain.json()) as Body).error], [426, 'UpgradeRequired'])
  assert.equal((await fetch(`${pds.url}${STREAM}`, { method: 'POST' })).status, 405)
  for (const cursor of ['x', '-1', '1.5', '9007199254740993', '1&cursor=2']) {
    const socket = new WebSocket(`${pds.url.replace('http', 'ws')}${STREAM}?cursor=${cursor}`)
    socket.on('error', () => {})
    const [, response] = await once(socket, 'unexpected-response')
    assert.equal(response.statusCode, 400, cursor)
    socket.terminate()
  }
})

/** What a consumer keeps of an account: the tree it believes in, and its records. */
interface Mirror {
  rev: string | null
  data: string | null
  records: Map<string, string>
}

/** Undoes a commit's operations on the part of the tree that came with it, by somebody else's code. */
async function undone(blocks: BlockMap, data: never, ops: Op[]): Promise<string> {
  let tree = MST.load(new MemoryBlockstore(blocks), data)
  for (const { action, path, prev, cid } of ops) {
    if (action !== 'delete') assert.equal(`${await tree.get(path)}`, cid!.$link)
    if (action === 'create') tree = await tree.delete(path)
    else if (action === 'update') tree = await tree.update(path, CID.parse(prev!.$link) as never)
    else tree = await tree.add(path, CID.parse(prev!.$link) as never)
  }
  return `${await tree.getPointer()}`
}

interface Op {
  action: 'create' | 'update' | 'delete'
  path: string
  cid: { $link: string } | null
  prev?: { $link: string }
}

/** Follows one commit, holding it to everything that is promised of it. */
async function follow(mirror: Mirror, { body }: Frame, key: string): Promise<void> {
  const { ops } = body as { ops: Op[] }
  assert.deepEqual([body.rebase, body.tooBig, body.blobs], [false, false, []])
  assert.equal(body.since, mirror.rev)
  assert.equal(body.prevData?.$link ?? null, mirror.data)
  assert.ok(body.rev > (mirror.rev ?? ''))
  assert.ok(ops.length <= 200)
  assert.equal(new Set(ops.map(op => op.path)).size, ops.length)
  const car = bufferOf(body.blocks)
  assert.ok(car.length <= 2_000_000)
  const { root, blocks } = await readCarWithRoot(car)
  assert.equal(`${root}`, body.commit.$link)
  const [commit] = decodeFirst(blocks.get(root)!) as [
    { rev: string; did: string; version: number; prev: null; data: { $link: string } },
    unknown,
  ]
  assert.deepEqual([commit.rev, commit.did, commit.version, commit.prev], [body.rev, body.repo, 3, null])
  const claims = ops.map(({ path, cid }) => {
    const [collection, rkey] = path.split('/')
    return { collection, rkey, cid: cid && CID.parse(cid.$link) }
  })
  assert.deepEqual((await verifyProofs(car, claims as never, body.repo, key)).unverified, [])
  for (const { action, path, cid, prev } of ops) {
    const before = mirror.records.get(path)
    assert.equal(prev?.$link, action === 'create' ? undefined : before, `${action} ${path}`)
    assert.equal('prev' in { ...(prev && { prev }) }, action !== 'create')
    assert.equal(cid === null, action === 'delete')
    if (cid) mirror.records.set(path, cid.$link)
    else mirror.records.delete(path)
    if (cid) assert.ok(blocks.has(CID.parse(cid.$link) as never), 'the record comes along')
  }
  // Backwards, and as deployed relays do it: deletions first, then by path.
  const isFirst = ({ action }: Op) => (action === 'delete' ? 0 : 1)
  const byPath = ops.toSorted((a, b) => isFirst(a) - isFirst(b) || (a.path < b.path ? -1 : 1))
  for (const order of mirror.data ? [ops.toReversed(), byPath] : [])
    assert.equal(await undone(blocks, CID.parse(commit.data.$link) as never, order), mirror.data)
  mirror.rev = body.rev
  mirror.data = commit.data.$link
}

test('B93 B95 whoever follows the stream through many writes holds what the repositories hold', async () => {
  const on = await startTestPds(later)
  const users = [await on.user('p'), await on.user('q')]
  const reader = new Reader('?cursor=0', on)
  await Promise.all(users.map((user, i) => randomWrites(on, user, 60, 7 + i)))
  const { head } = on.store.log
  await until('all has come', () => reader.raw.length > 0 && reader.frames.at(-1)!.body.seq === head)
  const mirrors = new Map<string, Mirror>()
  let last = 0
  for (const [i, frame] of reader.frames.entries()) {
    assert.ok(frame.body.seq > last && Number.isSafeInteger(frame.body.seq))
    assert.ok(reader.raw[i]!.length <= 5_000_000)
    last = frame.body.seq
    if (frame.header.t !== '#commit') continue
    const did = frame.body.repo
    const mirror = mirrors.get(did) ?? { rev: null, data: null, records: new Map() }
    mirrors.set(did, mirror)
    await follow(mirror, frame, await keyOf(did, on))
  }
  for (const { did } of users) {
    const { bytes } = await on.get('com.atproto.sync.getRepo', { did })
    const { creates, commit } = await verifyRepoCar(bytes, did, await keyOf(did, on))
    const held = creates.map(({ collection, rkey, cid }) => [`${collection}/${rkey}`, `${cid}`] as const)
    assert.deepEqual(new Map(held.toSorted()), new Map([...mirrors.get(did)!.records].toSorted()))
    assert.equal(commit.rev, mirrors.get(did)!.rev)
  }
})

test('B93 several writes to one record are told as one', async () => {
  const user = await pds.user('often')
  const reader = await new Reader('', pds).opened()
  const apply = async (...writes: [kind: string, rkey: string, n?: number][]) => {
    const asked = writes.map(([kind, rkey, n]) => {
      const $type = `com.atproto.repo.applyWrites#${kind}`
      return { $type, collection: NOTE, rkey, ...(n === undefined ? {} : { value: { n } }) }
    })
    const body = { repo: user.did, writes: asked }
    const { status, json } = await pds.post('com.atproto.repo.applyWrites', body, user)
    return {
      status,
      error: json.error,
      kinds: json.results?.map((r: Body) => `${r.$type}`.split('#')[1]),
      commit: json.commit,
    }
  }
  const kinds = ['createResult', 'updateResult', 'createResult', 'deleteResult']
  const made = await apply(['create', 'a', 1], ['update', 'a', 2], ['create', 'b', 1], ['delete', 'b'])
  assert.deepEqual([made.status, made.kinds], [200, kinds])
  const changed = await apply(['delete', 'a'], ['create', 'a', 3])
  assert.deepEqual([changed.status, changed.kinds], [200, ['deleteResult', 'createResult']])
  const frames = await reader.count(2)
  const told = frames.map(({ body }) => body.ops.map((op: Op) => `${op.action} ${op.path} ${op.prev !== undefined}`))
  assert.deepEqual(told, [[`create ${NOTE}/a false`], [`update ${NOTE}/a true`]])
  assert.equal((await apply(['create', 'c', 1], ['delete', 'c'])).commit, undefined)
  for (const [writes, error] of [
    [
      [
        ['create', 'd', 1],
        ['create', 'd', 1],
      ],
      'RecordAlreadyExists',
    ],
    [
      [
        ['create', 'a', 1],
        ['delete', 'a'],
      ],
      'RecordAlreadyExists',
    ],
    [
      [
        ['delete', 'a'],
        ['update', 'a', 1],
      ],
      'RecordNotFound',
    ],
    [
      [
        ['delete', 'a'],
        ['delete', 'a'],
      ],
      'RecordNotFound',
    ],
  ] as const)
    assert.equal((await apply(...(writes as never as Parameters<typeof apply>))).error, error)
})

/** Writes of all kinds that succeed, the same in every run. */
async function randomWrites(on: TestPds, user: TestUser, count: number, seed: number): Promise<void> {
  let state = seed
  const random = (below: number) => {
    state = (state * 48_271) % 0x7fff_ffff
    return state % below
  }
  const paths = new Set<string>()
  for (let n = 0; n < count; n++) {
    const writes = new Map<string, Body>()
    for (let left = 1 + (random(4) === 0 ? random(30) : 0); left > 0; left--) {
      const [collection, rkey] = [`com.example.c${random(3)}`, `r${random(60)}`]
      const path = `${collection}/${rkey}`
      const kind = paths.has(path) ? (random(2) === 0 ? 'delete' : 'update') : 'create'
      // Now and then what is under another key already, or was.
      const value = kind === 'delete' ? {} : { value: { n: random(9) } }
      writes.set(path, { $type: `com.atproto.repo.applyWrites#${kind}`, collection, rkey, ...value })
    }
    const body = { repo: user.did, writes: [...writes.values()], validate: false }
    const { status, json } = await on.post('com.atproto.repo.applyWrites', body, user)
    assert.equal(status, 200, JSON.stringify(json))
    for (const [path, { $type }] of writes) {
      if (`${$type}`.endsWith('delete')) paths.delete(path)
      else paths.add(path)
    }
  }
}

test('B96 relays are asked to come after a write, and not again soon', async () => {
  const asked: string[] = []
  const relay = createServer(async (request, response) => {
    let body = ''
    for await (const chunk of request) body += chunk
    asked.push(`${request.method} ${request.url} ${body}`)
    response.setHeader('content-type', 'application/json').end('{}')
  }).listen(0, '127.0.0.1')
  await once(relay, 'listening')
  later.after(async () => void relay.close())
  const { port } = relay.address() as { port: number }
  const on = await startTestPds(later, { PDS_CRAWLERS: `http://127.0.0.1:${port}`, PDS_HOSTNAME: 'pds.example' })
  const user = await on.user('crawled')
  const expected = 'POST /xrpc/com.atproto.sync.requestCrawl {"hostname":"pds.example"}'
  for (let i = 0; i < 5; i++) await put(`k${i}`, { i }, user, on)
  await until('it is asked', () => asked.some(line => line.includes('requestCrawl')))
  await put('more', {}, user, on)
  assert.deepEqual(
    asked.filter(line => line.includes('requestCrawl')),
    [expected],
  )
})
