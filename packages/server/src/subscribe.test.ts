import assert from 'node:assert/strict'
import { createServer, request as httpRequest, type IncomingHttpHeaders, type Server } from 'node:http'
import { type AddressInfo, connect, type Socket } from 'node:net'
import { afterEach, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { decodeFrame, encodeFrame, withSeq } from '@millisky/core/event'
import { WebSocket } from 'ws'
import { toWire } from './log/frame-wire.ts'
import { type Batch, Bell, type Log } from './log/log.ts'
import { type ConsumerEnd, type SubscribeSettings, Subscription } from './subscribe.ts'
import { createMetrics, type Metrics } from './trace.ts'
import { notWebSocket } from './upgrade.ts'

const PATH = '/xrpc/com.atproto.sync.subscribeRepos'
const cleanups: (() => unknown)[] = []
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup()
})

/** A log in memory whose reads are remembered. */
class MemoryLog implements Log {
  readonly bell = new Bell()
  head: number
  oldest: number
  readonly reads: number[] = []
  slow = false
  readonly #wire: Uint8Array[] = []
  readonly #first: number

  constructor(oldest = 1) {
    this.oldest = this.#first = oldest
    this.head = oldest - 1
  }

  add(count = 1, size = 100): void {
    for (let i = 0; i < count; i++) {
      this.head++
      const body = { seq: 0, did: 'did:web:a.example', time: 'x'.repeat(size) }
      this.#wire.push(toWire(withSeq(encodeFrame({ t: '#identity', body }), this.head)))
    }
    this.bell.ring()
  }

  read(after: number, limit: { bytes: number }): Batch | Promise<Batch> {
    this.reads.push(after)
    const wire: Uint8Array[] = []
    let [last, bytes] = [Math.max(after, this.oldest - 1), 0]
    for (; last < this.head && (bytes < limit.bytes || wire.length === 0); last++) {
      const next = this.#wire[last + 1 - this.#first]!
      wire.push(next)
      bytes += next.byteLength
    }
    const batch = { count: wire.length, last, wire }
    return this.slow ? sleep(1).then(() => batch) : batch
  }

  async close(): Promise<void> {}
}

interface Stage {
  log: MemoryLog
  subscription: Subscription
  server: Server
  port: number
  url: string
  ends: ConsumerEnd[]
  refusals: number[]
}

async function stage(
  settings: Partial<SubscribeSettings> = {},
  log = new MemoryLog(),
  metrics?: Metrics,
): Promise<Stage> {
  const [ends, refusals]: [ConsumerEnd[], number[]] = [[], []]
  const server = createServer((request, response) => {
    const refused = notWebSocket(request.method)
    response.writeHead(refused.status, refused.headers).end(JSON.stringify({ error: refused.error }))
  })
  const subscription = new Subscription({
    log,
    settings: { closeMs: 200, ...settings },
    ...(metrics ? { metrics } : {}),
    observer: {
      ended: (_consumer, end) => ends.push(end),
      refused: status => refusals.push(status),
      failed: error => assert.fail(error as Error),
    },
  })
  subscription.attach(server, PATH)
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  cleanups.push(async () => {
    await subscription.close()
    server.closeAllConnections()
    server.close()
  })
  const { port } = server.address() as AddressInfo
  return { log, subscription, server, port, url: `ws://127.0.0.1:${port}${PATH}`, ends, refusals }
}

/** A consumer that keeps what it gets: seqs of events, names of info and error frames, the closing code. */
class Client {
  readonly socket: WebSocket
  readonly got: (number | string)[] = []
  readonly frames: Buffer[] = []
  readonly closed: Promise<number>
  readonly opened: Promise<unknown>
  pings = 0

  constructor(url: string, options: { autoPong?: boolean } = {}) {
    this.socket = new WebSocket(url, options)
    this.socket.on('error', () => {})
    this.socket.on('ping', () => this.pings++)
    this.socket.on('message', (data: Buffer, isBinary) => {
      assert.equal(isBinary, true)
      const { body, t } = decodeFrame(data)
      this.frames.push(data)
      this.got.push((body.seq as number) ?? (t === '#info' ? `info ${body.name}` : `error ${body.error}`))
    })
    this.opened = new Promise(resolve => this.socket.once('open', resolve))
    this.closed = new Promise(resolve => this.socket.once('close', resolve))
    cleanups.push(() => this.socket.terminate())
  }

  async until(count: number): Promise<(number | string)[]> {
    for (let i = 0; this.got.length < count; i++) {
      if (i > 10_000) assert.fail(`${this.got.length} of ${count} frames came`)
      await sleep(2)
    }
    return this.got
  }
}

async function eventually(check: () => boolean, what: string): Promise<void> {
  for (let i = 0; !check(); i++) {
    if (i > 10_000) assert.fail(what)
    await sleep(2)
  }
}

const range = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, i) => from + i)

async function plain(
  port: number,
  options: { method?: string; path?: string; headers?: Record<string, string> },
): Promise<{ status: number; headers: IncomingHttpHeaders; body: { error: string; message: string } }> {
  return new Promise((resolve, reject) => {
    const request = httpRequest({ port, host: '127.0.0.1', path: PATH, ...options }, async response => {
      const chunks: Buffer[] = []
      for await (const chunk of response) chunks.push(chunk as Buffer)
      const body = JSON.parse(Buffer.concat(chunks).toString())
      resolve({ status: response.statusCode ?? 0, headers: response.headers, body })
    })
    request.on('upgrade', () => reject(new Error('the handshake was made')))
    request.on('error', reject).end()
  })
}

const upgrade = {
  connection: 'Upgrade',
  upgrade: 'websocket',
  'sec-websocket-version': '13',
  'sec-websocket-key': 'AAAAAAAAAAAAAAAAAAAAAA==',
}

test('without a cursor only what comes after now', async () => {
  const { log, url } = await stage()
  log.add(3)
  const client = new Client(url)
  await client.opened
  log.add(2)
  assert.deepEqual(await client.until(2), [4, 5])
})

test('with a cursor exactly what comes after it, then what is new', async () => {
  const { log, url } = await stage({ batchBytes: 300 })
  log.add(20)
  const client = new Client(`${url}?cursor=7`)
  await client.until(13)
  log.add(3)
  assert.deepEqual(await client.until(16), range(8, 23))
})

test('the head as cursor is live; zero is the oldest kept event, without a word', async () => {
  const { log, url } = await stage({}, new MemoryLog(50))
  log.add(5)
  const [live, all] = [new Client(`${url}?cursor=54`), new Client(`${url}?cursor=0`)]
  await Promise.all([live.opened, all.until(5)])
  log.add()
  assert.deepEqual(await live.until(1), [55])
  assert.deepEqual(await all.until(6), range(50, 55))
})

test('a cursor too old is told so and given the oldest kept event', async () => {
  const { log, url } = await stage({}, new MemoryLog(50))
  log.add(3)
  assert.deepEqual(await new Client(`${url}?cursor=48`).until(4), ['info OutdatedCursor', 50, 51, 52])
  assert.deepEqual(await new Client(`${url}?cursor=49`).until(3), [50, 51, 52])
})

test('a cursor in the future is an error frame and the end', async () => {
  const { log, url, ends } = await stage()
  log.add(3)
  const client = new Client(`${url}?cursor=4`)
  assert.equal(await client.closed, 1008)
  assert.deepEqual(client.got, ['error FutureCursor'])
  await eventually(() => ends.includes('future-cursor'), 'the observer is told')
})

test('a malformed cursor is refused before the handshake', async () => {
  const { port, refusals } = await stage()
  const bad = ['-1', '1.5', 'x', '1e3', '9007199254740992', '99999999999999999', '%201', '1&cursor=2']
  for (const cursor of bad) {
    const { status, body } = await plain(port, { headers: upgrade, path: `${PATH}?cursor=${cursor}` })
    assert.equal(status, 400, cursor)
    assert.equal(body.error, 'InvalidRequest')
  }
  assert.deepEqual(
    refusals,
    bad.map(() => 400),
  )
})

test('what is no WebSocket request is told what to do', async () => {
  const { port } = await stage()
  const get = await plain(port, {})
  assert.equal(get.status, 426)
  assert.equal(get.headers.upgrade, 'websocket')
  assert.equal((await plain(port, { method: 'POST' })).status, 405)
  const post = await plain(port, { method: 'POST', headers: upgrade })
  assert.equal(post.status, 405)
  assert.equal(post.headers.allow, 'GET')
  assert.match((await plain(port, { headers: { ...upgrade, upgrade: 'h2c' } })).body.message, /WebSocket client/)
  assert.equal((await plain(port, { headers: { ...upgrade, 'sec-websocket-version': '12' } })).status, 426)
  assert.equal((await plain(port, { headers: { ...upgrade, 'sec-websocket-key': 'short' } })).status, 400)
  assert.equal((await plain(port, { headers: upgrade, path: '/xrpc/com.example.other' })).status, 501)
  assert.equal((await plain(port, { headers: upgrade, path: '/elsewhere' })).status, 404)
})

test('too many consumers are asked to come later', async () => {
  const { port, url, subscription } = await stage({ consumersMax: 3, consumersPerAddressMax: 2 })
  const [first, second] = [new Client(url), new Client(url)]
  await Promise.all([first.opened, second.opened])
  const refused = await plain(port, { headers: upgrade })
  assert.equal(refused.status, 429)
  assert.equal(refused.body.error, 'RateLimitExceeded')
  assert.ok(Number(refused.headers['retry-after']) > 0)
  first.socket.close()
  await eventually(() => subscription.list().length === 1, 'the place is free again')
  await new Client(url).opened
})

test('consumers are counted per IPv6 network and in all', async () => {
  const log = new MemoryLog()
  let address = ''
  const server = createServer()
  const subscription = new Subscription({
    log,
    settings: { consumersPerAddressMax: 1, consumersMax: 3, closeMs: 100 },
    addressOf: () => address,
  })
  subscription.attach(server, PATH)
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  cleanups.push(() => subscription.close().then(() => server.close()))
  const { port } = server.address() as AddressInfo
  const connectAs = async (as: string) => {
    address = as
    const client = new Client(`ws://127.0.0.1:${port}${PATH}`)
    return Promise.race([client.opened.then(() => 'in'), client.closed.then(() => 'out')])
  }
  assert.equal(await connectAs('2001:db8:1:2:3::1'), 'in')
  assert.equal(await connectAs('2001:db8:1:2::9'), 'out')
  assert.equal(await connectAs('2001:db8:1:3::9'), 'in')
  assert.equal(await connectAs('::ffff:192.0.2.1'), 'in')
  assert.equal(await connectAs('192.0.2.2'), 'out', 'three are all')
})

test('at the tail consumers share one read, behind it they have their own', async () => {
  const { log, url } = await stage()
  const clients = range(1, 20).map(() => new Client(url))
  await Promise.all(clients.map(client => client.opened))
  log.reads.length = 0
  log.add(10)
  await Promise.all(clients.map(client => client.until(10)))
  assert.deepEqual(log.reads, [0])
})

test('the same seq is the same bytes for live and for replaying consumers', async () => {
  const { log, url } = await stage({ batchBytes: 1000 })
  const live = new Client(url)
  await live.opened
  log.add(30)
  const replayed = new Client(`${url}?cursor=0`)
  await Promise.all([live.until(30), replayed.until(30)])
  assert.deepEqual(live.frames, replayed.frames)
})

test('no gap and no duplicate while history meets a busy tail', async () => {
  for (const slow of [false, true]) {
    const { log, url } = await stage({ batchBytes: 2_000, coalesceMs: 1 })
    log.slow = slow
    log.add(500)
    const clients = [0, 100, 499, 500].map(cursor => ({ cursor, client: new Client(`${url}?cursor=${cursor}`) }))
    for (let i = 0; i < 100; i++) {
      log.add(1 + (i % 7))
      if (i % 3 === 0) await sleep(1)
    }
    for (const { cursor, client } of clients) {
      assert.deepEqual(await client.until(log.head - cursor), range(cursor + 1, log.head))
    }
  }
})

test('what consumers send is ignored, pings are answered', async () => {
  const { log, url } = await stage()
  const client = new Client(url)
  await client.opened
  client.socket.send('hello')
  client.socket.send(Buffer.alloc(1000, 0xff))
  const ponged = new Promise(resolve => client.socket.once('pong', resolve))
  client.socket.ping()
  await ponged
  log.add()
  assert.deepEqual(await client.until(1), [1])
})

test('many pings at once are answered', async () => {
  const { log, url, ends } = await stage()
  const client = new Client(url)
  await client.opened
  let pongs = 0
  client.socket.on('pong', () => pongs++)
  // In one piece, so that all are read before the first answer has gone out.
  const ping = Buffer.from([0x89, 0x80, 0, 0, 0, 0])
  ;(client.socket as unknown as { _socket: Socket })._socket.write(Buffer.concat(Array(500).fill(ping)))
  const cut = client.closed.then(() => assert.fail('it is cut off'))
  await Promise.race([cut, eventually(() => pongs === 500, 'all are answered')])
  log.add()
  assert.deepEqual(await client.until(1), [1])
  assert.deepEqual(ends, [])
})

test('a consumer that sends without end is let go', async () => {
  const { subscription, url, ends } = await stage({ pingMs: 60_000 })
  for (const [send, count] of [
    [(client: Client) => client.socket.send('x'), 5_000],
    [(client: Client) => client.socket.ping(), 5_000],
    [(client: Client) => client.socket.send(Buffer.alloc(60_000)), 600],
  ] as const) {
    const client = new Client(url)
    await client.opened
    for (let i = 0; i < count; i++) send(client)
    await client.closed
  }
  await eventually(() => subscription.list().length === 0, 'all are gone')
  assert.deepEqual(ends, ['misbehaved', 'misbehaved', 'misbehaved'])
})

test('an idle consumer is pinged; one that answers stays, one that does not is dropped', async () => {
  const { subscription, url, ends } = await stage({ pingMs: 20, deadMs: 60 })
  const [alive, dead] = [new Client(url), new Client(url, { autoPong: false })]
  await Promise.all([alive.opened, dead.opened, dead.closed])
  assert.ok(dead.pings > 0)
  await eventually(() => ends.includes('dead'), 'the observer is told')
  await eventually(() => alive.pings > 3, 'pings go on')
  assert.equal(subscription.list().length, 1)
})

test('a server that was held up itself blames no consumer for it', async () => {
  const { url, ends } = await stage({ pingMs: 20, deadMs: 60 })
  const client = new Client(url)
  // Whenever its answer is on the way, nothing runs for longer than it has.
  client.socket.on('ping', () => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 150))
  await eventually(() => client.pings >= 4, 'pings go on')
  assert.deepEqual(ends, [])
})

/** A consumer that stops reading, below `ws`: nothing drains its receive buffer. */
async function stuckConsumer(port: number, path: string): Promise<Socket> {
  const socket = connect({ port, host: '127.0.0.1' })
  cleanups.push(() => socket.destroy())
  const headers = Object.entries({ host: 'x', ...upgrade }).map(([name, value]) => `${name}: ${value}\r\n`)
  socket.write(`GET ${path} HTTP/1.1\r\n${headers.join('')}\r\n`)
  await new Promise(resolve => socket.once('readable', resolve))
  socket.pause()
  return socket
}

test('a consumer that takes nothing is told ConsumerTooSlow, others do not notice, memory is bounded', async () => {
  const { log, url, port, subscription, ends } = await stage({ stallMs: 100, closeMs: 30_000 })
  const stuck = await stuckConsumer(port, PATH)
  const [{ id } = { id: 0 }] = subscription.list()
  const healthy = new Client(url)
  await healthy.opened
  for (let i = 0; i < 300; i++) {
    log.add(4, 25_000)
    await sleep(1)
  }
  await healthy.until(1200)
  const consumer = subscription.list().find(each => each.id === id)
  assert.ok(consumer === undefined || consumer.bytes < 25_000_000, 'the stuck one was not fed')
  // When it reads again before the grace ends, the last things it finds are the reason and the closing frame.
  const chunks: Buffer[] = []
  stuck.on('data', (chunk: Buffer) => chunks.push(chunk)).resume()
  await eventually(() => Buffer.concat(chunks.slice(-3)).includes('ConsumerTooSlow'), 'the reason arrives')
  stuck.destroy()
  await eventually(() => ends.includes('too-slow'), 'the observer is told')
  assert.deepEqual(healthy.got, range(1, 1200))
})

test('a consumer that slowly replays much is left alone', async () => {
  const { log, url, ends } = await stage({ stallMs: 150, pingMs: 30, deadMs: 100, batchBytes: 65_536 })
  log.add(1_000, 20_000)
  const client = new Client(`${url}?cursor=0`)
  await client.opened
  for (let i = 0; client.got.length < 1_000; i++) {
    client.socket.pause()
    await sleep(10)
    client.socket.resume()
    await sleep(5)
    if (i > 500) assert.fail('it should be done')
  }
  assert.deepEqual(client.got, range(1, 1_000))
  assert.deepEqual(ends, [])
})

test('a consumer that has fallen out of retention is told ConsumerTooSlow', async () => {
  const { log, port, ends } = await stage({ stallMs: 60_000, batchBytes: 65_536 })
  log.add(2_000, 20_000)
  const stuck = await stuckConsumer(port, `${PATH}?cursor=0`)
  await sleep(50)
  log.oldest = 1_900
  const chunks: Buffer[] = []
  stuck.on('data', (chunk: Buffer) => chunks.push(chunk)).resume()
  await eventually(() => ends.includes('too-slow'), 'the observer is told')
  assert.ok(Buffer.concat(chunks).includes('ConsumerTooSlow'))
})

test('the operator sees consumers and can disconnect one', async () => {
  const { log, url, subscription } = await stage()
  const client = new Client(`${url}?cursor=0`)
  const other = new Client(url)
  await Promise.all([client.opened, other.opened])
  log.add(3)
  await client.until(3)
  const [info] = subscription.list()
  assert.equal(info?.cursor, 3)
  assert.equal(info?.lag, 0)
  assert.equal(info?.events, 3)
  assert.equal(
    info?.bytes,
    client.frames.reduce((sum, frame) => sum + toWire(frame).byteLength, 0),
  )
  assert.equal(subscription.kick(info?.id ?? 0), true)
  assert.equal(await client.closed, 1008)
  assert.equal(subscription.kick(999), false)
  await eventually(() => subscription.list().length === 1, 'the other stays')
  await other.until(3)
  assert.deepEqual(subscription.totals(), {
    consumers: 1,
    forms: { cbor: 1, json: 0, jetstream: 0 },
    events: 6,
    bytes: 2 * (info?.bytes ?? 0),
    lagMax: 0,
  })
})

test('what happens is counted', async () => {
  const metrics = createMetrics()
  const log = new MemoryLog()
  const { url, port, subscription } = await stage({}, log, metrics)
  const client = new Client(`${url}?cursor=0`)
  await client.opened
  log.add(3)
  await client.until(3)
  await plain(port, { headers: upgrade, path: `${PATH}?cursor=x` })
  await new Client(`${url}?cursor=9`).closed
  await eventually(() => subscription.list().length === 1, 'the other has gone')
  for (let i = 0; i < 2; i++) {
    const text = await metrics.text()
    for (const line of [
      'subscribe_consumers 1',
      'subscribe_forms{form="cbor"} 1',
      'subscribe_forms{form="json"} 0',
      'subscribe_forms{form="jetstream"} 0',
      'subscribe_lag_max 0',
      'subscribe_events_sent_total 3',
      'subscribe_ends_total{why="future-cursor"} 1',
      'subscribe_refused_total{status="400"} 1',
    ]) {
      assert.ok(text.split('\n').includes(line), `${line} in ${text}`)
    }
  }
})

test('at the end everybody near the tail gets the rest and 1012, replays are cut between events', async () => {
  const { log, url, port, subscription, ends } = await stage({ coalesceMs: 50, batchBytes: 65_536, closeMs: 30_000 })
  log.add(1_000, 20_000)
  const live = new Client(url)
  const replaying = new Client(`${url}?cursor=0`)
  await Promise.all([live.opened, replaying.until(1)])
  replaying.socket.pause()
  log.add(1)
  await sleep(5)
  log.add(3)
  const closing = subscription.close()
  assert.equal((await plain(port, { headers: upgrade })).status, 503)
  replaying.socket.resume()
  assert.equal(await live.closed, 1012)
  assert.deepEqual(live.got, [1001, 1002, 1003, 1004])
  assert.equal(await replaying.closed, 1012)
  assert.deepEqual(replaying.got, range(1, replaying.got.length))
  await closing
  assert.deepEqual(ends, ['shutdown', 'shutdown'])
})

test('events that are withheld are passed over', async () => {
  const { log, url } = await stage({ batchBytes: 1 })
  const read = log.read.bind(log)
  log.read = (after, limit) => {
    const batch = read(after, limit) as Batch
    return after === 2 || after === 5 ? { count: 0, last: batch.last, wire: [] } : batch
  }
  log.add(6)
  const client = new Client(`${url}?cursor=0`)
  await client.until(4)
  log.add(2)
  assert.deepEqual(await client.until(6), [1, 2, 4, 5, 7, 8])
})

test('a log that fails costs the consumer its connection and nothing else', async () => {
  const log = new MemoryLog()
  const failures: unknown[] = []
  const server = createServer()
  const subscription = new Subscription({ log, observer: { failed: error => failures.push(error) } })
  subscription.attach(server, PATH)
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  cleanups.push(() => subscription.close().then(() => server.close()))
  const client = new Client(`ws://127.0.0.1:${(server.address() as AddressInfo).port}${PATH}`)
  await client.opened
  log.read = () => Promise.reject(new Error('disk gone'))
  log.add()
  assert.equal(await client.closed, 1011)
  assert.deepEqual(client.got, ['error InternalServerError'])
  assert.equal((failures[0] as Error).message, 'disk gone')
})
