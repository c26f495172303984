// A fan-out over real sockets: behind a real Relay, and behind one that does as it is told.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { createServer, type Server } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { encodeFrame, errorFrame, identityEvent, infoFrame, withSeq } from '@millisky/core/event'
import { TIME, testDid } from '@millisky/core/testing-repos'
import { settings as relaySettings } from '@millisky/relay/config'
import { createFanout, type Fanout } from '@millisky/relay/fanout'
import { createRelay } from '@millisky/relay/main'
import { readSettings } from '@millisky/server/config'
import { until } from '@millisky/server/testing-until'
import { silentLog } from '@millisky/server/trace'
import { type WebSocket, WebSocketServer } from 'ws'
import { Consumer, PASSWORD, World } from './world.ts'

type Cleanup = { after(fn: () => unknown): void }

const given = (folder: string, upstream: string, env: Record<string, string> = {}) =>
  readSettings(relaySettings, [], {
    env: {
      RELAY_API_BIND: '127.0.0.1:0',
      RELAY_PERSIST_DIR: folder,
      RELAY_UPSTREAM: upstream,
      RELAY_ALLOW_INSECURE_HOSTS: 'true',
      RELAY_ADMIN_PASSWORD: PASSWORD,
      ...env,
    },
  })

/** Removed when all is over, for what is still open writes to it until then. */
const folders: string[] = []
after(() => Promise.all(folders.map(folder => rm(folder, { recursive: true, force: true }))))

async function freshFolder(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'millisky-fanout-'))
  folders.push(folder)
  return folder
}

async function start(t: Cleanup, folder: string, upstream: string, env?: Record<string, string>): Promise<Fanout> {
  const fanout = await createFanout(given(folder, upstream, env), {
    log: silentLog,
    follow: { retryMinMs: 10, retryMaxMs: 50 },
    onFatal: error => {
      throw error
    },
  })
  await fanout.listen()
  t.after(() => fanout.close())
  return fanout
}

async function connect(t: Cleanup, fanout: Fanout, cursor?: number): Promise<Consumer> {
  const consumer = new Consumer(fanout.url, cursor)
  t.after(() => consumer.close())
  return consumer.opened()
}

/** Answers of all shapes. */
// biome-ignore lint/suspicious/noExplicitAny: what is asserted of it is the check
type Answered = { status: number; headers: Headers; body: any }

const get = async (url: string, init?: RequestInit): Promise<Answered> => {
  const reply = await fetch(url, { redirect: 'manual', ...init })
  return { status: reply.status, headers: reply.headers, body: await reply.json().catch(() => null) }
}
const health = (fanout: Fanout) => get(`${fanout.url}/_health`)
const connected = (fanout: Fanout) =>
  until('it is connected', async () => (await health(fanout)).body.connected === true)

/** A relay that sends what it is told, under the seqs that it is told. */
class FakeRelay {
  readonly frames: { seq: number; frame: Uint8Array }[] = []
  readonly cursors: (string | null)[] = []
  readonly sockets = new Set<WebSocket>()
  readonly url: string
  /** Answers a new consumer instead of replaying. */
  greet: ((socket: WebSocket, cursor: string | null) => void) | null = null

  private constructor(server: Server) {
    this.url = `http://127.0.0.1:${(server.address() as { port: number }).port}`
    const upgrades = new WebSocketServer({ noServer: true })
    server.on('upgrade', (request, socket, head) =>
      upgrades.handleUpgrade(request, socket, head, client => {
        const cursor = new URL(request.url ?? '', this.url).searchParams.get('cursor')
        this.cursors.push(cursor)
        this.sockets.add(client)
        client.on('error', () => {}).on('close', () => this.sockets.delete(client))
        if (this.greet) this.greet(client, cursor)
        else if (cursor !== null) for (const { seq, frame } of this.frames) if (seq > Number(cursor)) client.send(frame)
      }),
    )
  }

  static async start(t: Cleanup): Promise<FakeRelay> {
    const server = createServer((_request, reply) => reply.writeHead(404).end('{}')).listen(0, '127.0.0.1')
    await once(server, 'listening')
    const relay = new FakeRelay(server)
    t.after(() => {
      relay.kill()
      server.close()
    })
    return relay
  }

  static frameAt = (seq: number, what = 'x') => withSeq(encodeFrame(identityEvent({ did: testDid(what) }, TIME)), seq)

  send(...seqs: number[]): void {
    for (const seq of seqs) {
      const frame = FakeRelay.frameAt(seq)
      this.frames.push({ seq, frame })
      for (const socket of this.sockets) socket.send(frame)
    }
  }

  raw(frame: Uint8Array): void {
    for (const socket of this.sockets) socket.send(frame)
  }

  kill(): void {
    for (const socket of this.sockets) socket.terminate()
  }
}

test('consumers of a fan-out get the bytes of the relay, live and in replay, over restarts of both', async t => {
  const world = await World.start()
  t.after(() => world.stop())
  const { pds, accounts } = await world.host('alice', 'bob')
  const [folder, { url: upstream }] = [await freshFolder(), world.relay]
  const fanout = await start(t, folder, upstream, { RELAY_UPSTREAM_BACKFILL: 'true' })
  await connected(fanout)
  const [direct, live] = [await world.consumer(0), await connect(t, fanout)]
  for (const account of accounts) pds.announce(account)
  for (let i = 0; i < 20; i++) for (const account of accounts) pds.sendPost(account, `${i}`)
  await until('all are there', () => live.frames.length === 44)
  const [all, some, others] = [await connect(t, fanout, 0), await connect(t, fanout, 10), await connect(t, fanout, 40)]
  await until('replays are there', () => all.raw.length === 44 && some.raw.length === 34 && others.raw.length === 4)
  for (const consumer of [live, all]) assert.deepEqual(consumer.raw, direct.raw)
  assert.deepEqual(some.raw, direct.raw.slice(10))

  await fanout.close()
  assert.deepEqual([live.closeCode, all.closeCode], [1012, 1012])
  for (let i = 0; i < 5; i++) pds.sendPost(accounts[0]!, `while it was away ${i}`)
  await until('the relay has them', () => direct.frames.length === 49)
  const again = await start(t, folder, upstream)
  const resumed = await connect(t, again, live.seqs.at(-1)!)
  await until('what was missed came', () => resumed.raw.length === 5)
  assert.deepEqual(resumed.raw, direct.raw.slice(44))
  assert.equal(again.resets, 0)
})

test('what it cannot answer it passes on, redirects and errors as they are', async t => {
  const world = await World.start()
  t.after(() => world.stop())
  const { pds, accounts, name } = await world.host('alice')
  const { did } = accounts[0]!
  const fanout = await start(t, await freshFolder(), world.relay.url)
  pds.announce(accounts[0]!)
  pds.sendPost(accounts[0]!, 'hello')
  await world.settled(pds, 3)
  for (const path of [
    `com.atproto.sync.getLatestCommit?did=${did}`,
    `com.atproto.sync.getRepoStatus?did=${did}`,
    'com.atproto.sync.listRepos?limit=5',
    'com.atproto.sync.listHosts',
    `com.atproto.sync.getHostStatus?hostname=${name}`,
    'com.atproto.sync.getHostStatus?hostname=nobody.example.com',
    'com.atproto.sync.listReposByCollection?collection=app.bsky.feed.post',
    'net.millisky.relay.listCheckpoints',
    `com.atproto.sync.getRepo?did=${did}`,
  ]) {
    const [ours, theirs] = await Promise.all([fanout.url, world.relay.url].map(url => get(`${url}/xrpc/${path}`)))
    assert.deepEqual(
      [ours!.status, ours!.body, ours!.headers.get('location')],
      [theirs!.status, theirs!.body, theirs!.headers.get('location')],
      path,
    )
  }
  const crawl = (body: string) =>
    get(`${fanout.url}/xrpc/com.atproto.sync.requestCrawl`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body,
    })
  assert.equal((await crawl(JSON.stringify({ hostname: name }))).status, 200)
  assert.equal((await crawl('{}')).status, 400)
  assert.equal((await crawl(JSON.stringify({ hostname: 'x'.repeat(20_000) }))).status, 413)
  assert.equal((await get(`${fanout.url}/xrpc/com.atproto.sync.listHosts`, { method: 'POST' })).status, 400)
  assert.equal((await get(`${fanout.url}/xrpc/com.atproto.server.describeServer`)).status, 501)
  assert.equal((await get(`${fanout.url}/xrpc/com.atproto.sync.subscribeRepos`)).status, 426)
  assert.equal((await get(`${fanout.url}/admin/consumers/list`)).status, 401)
  const consumer = await connect(t, fanout, 0)
  const authorization = `Bearer ${PASSWORD}`
  const list = await get(`${fanout.url}/admin/consumers/list`, { headers: { authorization } })
  assert.equal(list.body.length, 1)
  const kick = `${fanout.url}/admin/consumers/kick?id=${list.body[0].id}`
  assert.equal((await get(kick, { method: 'POST', headers: { authorization } })).status, 200)
  await until('it is kicked', () => consumer.closeCode === 1008)
  // The same by methods, which the command line calls.
  const again = await connect(t, fanout, 0)
  const methods = `${fanout.url}/xrpc/net.millisky.relay.admin`
  assert.equal((await get(`${methods}.listConsumers`)).status, 401)
  const { consumers } = (await get(`${methods}.listConsumers`, { headers: { authorization } })).body
  assert.equal(consumers.length, 1)
  const kicked = await fetch(`${methods}.kickConsumer`, {
    method: 'POST',
    headers: { authorization, 'content-type': 'application/json' },
    body: JSON.stringify({ id: consumers[0].id }),
  })
  assert.equal(kicked.status, 200)
  await until('it is kicked', () => again.closeCode === 1008)
  assert.equal((await get(`${methods}.listHosts`, { headers: { authorization } })).status, 501)
  const metrics = await (await fetch(`${fanout.url}/metrics`, { headers: { authorization } })).text()
  assert.match(metrics, /relay_fanout_connected 1/)
})

test('not ready until it was connected; resumes behind the last event when the other relay is killed', async t => {
  const folder = await freshFolder()
  const dead = await start(t, await freshFolder(), 'http://127.0.0.1:9')
  const down = await health(dead)
  assert.deepEqual([down.status, down.body.connected, down.body.status], [503, false, 'error'])

  const relay = await FakeRelay.start(t)
  const fanout = await start(t, folder, relay.url)
  await connected(fanout)
  assert.deepEqual(relay.cursors, [null])
  const consumer = await connect(t, fanout, 0)
  relay.send(1_000, 1_001, 5_000_000_000)
  await until('they came', () => consumer.seqs.length === 3)
  relay.kill()
  relay.frames.push({ seq: 5_000_000_007, frame: FakeRelay.frameAt(5_000_000_007) })
  await until('it came', () => consumer.seqs.length === 4)
  assert.deepEqual(consumer.seqs, [1_000, 1_001, 5_000_000_000, 5_000_000_007])
  // The last one is asked for once more, and is the same.
  assert.equal(relay.cursors.at(-1), '4999999999')
  relay.raw(infoFrame('OutdatedCursor'))
  relay.raw(Uint8Array.of(0xff))
  relay.raw(FakeRelay.frameAt(1_001))
  relay.send(5_000_000_008)
  await until('the next one came', () => consumer.seqs.length === 5)
  const { status, body } = await health(fanout)
  assert.deepEqual([status, body.head, body.oldest, body.resets], [200, 5_000_000_008, 1_000, 0])
  assert.ok(body.lagMs > 0)
})

for (const [what, answer] of [
  ['says FutureCursor', (socket: WebSocket) => socket.send(errorFrame('FutureCursor', 'Cursor in the future.'))],
  ['sends events from before the cursor', (socket: WebSocket) => socket.send(FakeRelay.frameAt(3, 'new'))],
  // Its new seqs have passed the old ones while it was away.
  ['has another event under the last seq', (socket: WebSocket) => socket.send(FakeRelay.frameAt(101, 'new'))],
] as const) {
  test(`when the other relay ${what}, everything begins anew, and that is told`, async t => {
    const relay = await FakeRelay.start(t)
    const fanout = await start(t, await freshFolder(), relay.url)
    await connected(fanout)
    const consumer = await connect(t, fanout, 0)
    relay.send(100, 101)
    await until('they came', () => consumer.seqs.length === 2)
    relay.frames.length = 0
    relay.greet = (socket, cursor) => {
      if (cursor === null) relay.greet = null
      else answer(socket)
    }
    relay.kill()
    await until('it has begun anew', () => fanout.resets === 1)
    await until('consumers were sent away', () => consumer.closeCode === 1012)
    await until('it follows again', () => relay.cursors.at(-1) === null && relay.sockets.size === 1)
    await connected(fanout)
    relay.send(4, 5)
    await until('new events are there', async () => (await health(fanout)).body.head === 5)
    const next = await connect(t, fanout, 0)
    await until('they came', () => next.seqs.length === 2)
    assert.deepEqual(next.seqs, [4, 5])
    const late = await connect(t, fanout, 101)
    await until('an old cursor lies in the future now', () => late.story.includes('error FutureCursor'))
    assert.equal((await health(fanout)).body.resets, 1)
  })
}

test('when the other relay goes on further ahead than it was asked for, the gap is told', async t => {
  const relay = await FakeRelay.start(t)
  const fanout = await start(t, await freshFolder(), relay.url)
  await connected(fanout)
  const consumer = await connect(t, fanout, 0)
  relay.send(100, 101)
  await until('they came', () => consumer.seqs.length === 2)
  // It has lost its log, and its seqs begin above all that were ever given.
  relay.frames.length = 0
  relay.kill()
  await until('it is back', () => relay.cursors.at(-1) === '100' && relay.sockets.size === 1)
  relay.send(9_000, 9_001)
  await until('they came', () => consumer.seqs.length === 4)
  assert.deepEqual(consumer.seqs, [100, 101, 9_000, 9_001])
  const { body } = await health(fanout)
  assert.deepEqual([body.resets, body.gaps, body.lastGap.after, body.lastGap.next], [0, 1, 101, 9_000])
  const authorization = `Bearer ${PASSWORD}`
  const metrics = await (await fetch(`${fanout.url}/metrics`, { headers: { authorization } })).text()
  assert.match(metrics, /^relay_fanout_gaps 1$/m)
})

test('a log is never continued with the seqs of another relay', async t => {
  const relay = await FakeRelay.start(t)
  const folder = await freshFolder()
  const fanout = await start(t, folder, relay.url)
  await connected(fanout)
  relay.send(7)
  await until('it came', async () => (await health(fanout)).body.head === 7)
  await fanout.close()
  await assert.rejects(createFanout(given(folder, 'https://other.example.com')), /seqs of http:/)
  const own = { ...given(folder, relay.url), databaseUrl: ':memory:' }
  await assert.rejects(createRelay({ ...own, upstream: undefined }, { log: silentLog }), /seqs of http:/)
  await assert.rejects(
    createFanout(given(folder, 'http://relay.example.com', { RELAY_ALLOW_INSECURE_HOSTS: 'false' })),
    {
      name: 'SettingsError',
    },
  )
  const again = await start(t, folder, relay.url)
  const consumer = await connect(t, again, 0)
  await until('it is still there', () => consumer.seqs.length === 1)
})
