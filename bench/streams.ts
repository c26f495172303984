/**
 * What consumers of the firehose may ask for: CPU of the serving process for each event and consumer, beside those who ask for
 * nothing, and beside servers that do it for each consumer anew. The events are commits of one post.
 */
import { mkdtemp, rm } from 'node:fs/promises'
import { createServer } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { commitEvent, encodeFrame, withSeq } from '@millisky/core/event'
import { create, TestRepo, TIME } from '@millisky/core/testing-repos'
import { toWireBatch } from '@millisky/server/log/frame-wire'
import { type Batch, Bell, type Log } from '@millisky/server/log/log'
import type { Stamped, Stamps } from '@millisky/server/log/segment-times'
import { openSegmentLog, type SegmentLog } from '@millisky/server/log/segments'
import { Subscription } from '@millisky/server/subscribe'
import { JetstreamEndpoint } from '@millisky/server/subscribe/jetstream'
import { type WebSocket, WebSocketServer } from 'ws'
import type { Report } from './codec.ts'
import { accounted, Crowd, listening, measured } from './fanout.ts'
import { type Measured, machine, printTable } from './measure.ts'

const CONSUMERS = 100
const EVENTS = 1_000
const PER_SECOND = 500
const ROUNDS = 3
const JETSTREAM = '/subscribe'

/** Commits of several accounts to trees of some size. */
function commits(count: number): Uint8Array[] {
  const repos = Array.from({ length: 5 }, (_, i) => new TestRepo(i))
  for (const repo of repos) {
    for (let i = 0; i < 300; i++) repo.write(create(`app.bsky.feed.like/${i}`, `${i}`))
  }
  return Array.from({ length: count }, (_, i) => {
    const collection = `app.bsky.feed.${['like', 'post', 'repost', 'like', 'like'][i % 5]}`
    const text = `post ${i}: ${'what is written is what is sent '.repeat(1 + (i % 5))}`
    return encodeFrame(commitEvent(repos[i % 5]!.write(create(`${collection}/x${i}`, text)), TIME))
  })
}

/** A log in memory that forgets, and knows when events came. */
class StampedTail implements Log, Stamped {
  readonly bell = new Bell()
  head = 0
  oldest = 1
  readonly #batches: { first: number; wire: Uint8Array }[] = []

  append(frames: readonly Uint8Array[]): void {
    const { wire } = toWireBatch(frames.map((frame, i) => withSeq(frame, this.head + 1 + i)))
    this.#batches.push({ first: this.head + 1, wire })
    if (this.#batches.length > 64) this.#batches.shift()
    this.head += frames.length
    this.bell.ring()
  }

  read(after: number): Batch {
    const found = this.#batches.filter(batch => batch.first > after)
    if (found[0] && found[0].first !== after + 1) throw new Error('the consumer fell out of the bench')
    return { count: this.head - after, last: this.head, wire: found.map(batch => batch.wire) }
  }

  stamps(after: number, last: number): Stamps {
    const seqs = Array.from({ length: last - after }, (_, i) => after + 1 + i)
    return { seqs, micros: seqs.map(seq => 1_000_000_000 + seq) }
  }

  async seqBefore(): Promise<number> {
    return this.head
  }

  async close(): Promise<void> {}
}

/** Hands so many frames at the pace to `append`. */
async function paced(frames: readonly Uint8Array[], append: (frames: readonly Uint8Array[]) => void): Promise<void> {
  const since = performance.now()
  for (let sent = 0; sent < frames.length; ) {
    const due = Math.min(frames.length, Math.floor(((performance.now() - since) / 1e3) * PER_SECOND) + 1)
    if (due > sent) append(frames.slice(sent, due))
    sent = Math.max(sent, due)
    await new Promise(resolve => setTimeout(resolve, 1))
  }
}

interface Wish {
  name: string
  query?: string
  headers?: string[]
  dictionary?: boolean
}

async function ours({ name, query = '', headers = [], dictionary = false }: Wish, frames: Uint8Array[]) {
  const server = createServer()
  const log = new StampedTail()
  const subscription = new Subscription({ log, extras: { filters: true, compression: true, json: true } })
  subscription.attach(server, '/xrpc/com.atproto.sync.subscribeRepos')
  const words = dictionary ? Buffer.alloc(112_640, '"app.bsky.feed.like","record":{"$type":"createdAt"') : null
  const parts = { log, dictionary: words, now: Date.now, socket: subscription.socket }
  subscription.attach(server, JETSTREAM, new JetstreamEndpoint(parts))
  const crowd = new Crowd(await listening(server), CONSUMERS, query, headers)
  await crowd.opened(CONSUMERS)
  const rates: number[] = []
  let bytes = 0
  for (let round = -1; round < ROUNDS; round++) {
    const before = subscription.totals().bytes
    const { cpu } = await accounted(async () => {
      await paced(round < 0 ? frames.slice(0, 100) : frames, some => log.append(some))
      while (subscription.totals().lagMax > 0) await new Promise(resolve => setTimeout(resolve, 1))
      await crowd.received(subscription.totals().bytes)
    })
    if (round >= 0) rates.push((frames.length * CONSUMERS) / cpu)
    bytes = subscription.totals().bytes - before
  }
  crowd.end()
  await subscription.close()
  server.close()
  return measured(`${name}, ${Math.round(bytes / frames.length / CONSUMERS)} bytes an event`, rates)
}

/** A server that compresses for each consumer. */
async function peer(frames: Uint8Array[]): Promise<Measured> {
  const server = createServer()
  const sockets = new WebSocketServer({ server, perMessageDeflate: { threshold: 0 } })
  const offer = ['Sec-WebSocket-Extensions: permessage-deflate']
  const crowd = new Crowd(await listening(server), CONSUMERS, '', offer)
  await crowd.opened(CONSUMERS)
  const rates: number[] = []
  for (let round = 0; round < ROUNDS; round++) {
    const sent: Promise<void>[] = []
    const { cpu } = await accounted(async () => {
      for (const frame of frames) {
        for (const client of sockets.clients as Set<WebSocket>) {
          sent.push(new Promise(resolve => client.send(frame, () => resolve())))
        }
        await new Promise(resolve => setTimeout(resolve, 1))
      }
      await Promise.all(sent)
    })
    rates.push((frames.length * CONSUMERS) / cpu)
  }
  crowd.end()
  for (const client of sockets.clients) client.terminate()
  server.close()
  return measured('ws, compressing for each consumer', rates)
}

/** Consumers through a log, nobody else: events for each of them per CPU-second, of which they get those that they want. */
async function replay({ name, query = '', headers = [] }: Wish, log: SegmentLog, count = 1): Promise<Measured> {
  const rates: number[] = []
  for (let round = 0; round < ROUNDS; round++) {
    const server = createServer()
    const subscription = new Subscription({ log, extras: { filters: true, compression: true, json: true } })
    subscription.attach(server, '/xrpc/com.atproto.sync.subscribeRepos')
    const parts = { log, dictionary: null, now: Date.now, socket: subscription.socket }
    subscription.attach(server, JETSTREAM, new JetstreamEndpoint(parts))
    const port = await listening(server)
    const { cpu } = await accounted(async () => {
      const crowd = new Crowd(port, count, query, headers)
      await crowd.opened(count)
      // Before it begins, a consumer of Jetstream stands at the head.
      const begun = () => query.includes('nobody') || subscription.list().every(({ events }) => events > 0)
      while (!begun() || subscription.totals().lagMax > 0) await new Promise(resolve => setTimeout(resolve, 5))
      await crowd.received(subscription.totals().bytes)
      crowd.end()
    })
    rates.push((count * log.head) / cpu)
    await subscription.close()
    server.close()
  }
  return measured(name, rates)
}

async function replays(frames: readonly Uint8Array[]): Promise<Measured[]> {
  const folder = await mkdtemp(join(tmpdir(), 'millisky-bench-'))
  const options = { withSeq, recover: () => null, now: Date.now, fsync: 'none' as const }
  const filling = await openSegmentLog(folder, options)
  const entries = frames.map(frame => ({ frame, account: 0 }))
  for (let i = 0; i < 10; i++) await filling.append(entries)
  await filling.close()
  const log = await openSegmentLog(folder, options)
  const rows: Measured[] = []
  for (const wish of [
    { name: 'nothing asked', query: '?cursor=0' },
    { name: 'nobody wanted', query: '?cursor=0&wantedDids=did:plc:nobody' },
    { name: 'JSON', query: '?cursor=0', headers: ['Sec-WebSocket-Protocol: xrpc.v1.json'] },
    { name: 'Jetstream', query: `${JETSTREAM}?cursor=1` },
  ]) {
    rows.push(await replay(wish, log))
  }
  rows.push(await replay({ name: 'Jetstream, 100 consumers', query: `${JETSTREAM}?cursor=1` }, log, CONSUMERS))
  await log.close()
  await rm(folder, { recursive: true })
  return rows
}

export async function run(report: Report): Promise<void> {
  const frames = commits(EVENTS)
  const deflate = ['Sec-WebSocket-Extensions: permessage-deflate']
  const wishes: Wish[] = [
    { name: 'nothing asked' },
    { name: 'filtered to a fifth', query: '?wantedCollections=app.bsky.feed.post' },
    { name: 'compressed', query: '?compress=true', headers: deflate },
    { name: 'JSON', headers: ['Sec-WebSocket-Protocol: xrpc.v1.json'] },
    { name: 'Jetstream', query: JETSTREAM },
    { name: 'Jetstream, a fifth', query: `${JETSTREAM}?wantedCollections=app.bsky.feed.post` },
    { name: 'Jetstream, Zstandard', query: `${JETSTREAM}?compress=true`, dictionary: true },
  ]
  const rows: Measured[] = []
  for (const wish of wishes) rows.push(await ours(wish, frames))
  rows.push(await peer(frames.slice(0, 60)))
  report(`${CONSUMERS} consumers who ask for something, ${PER_SECOND} events/s; events for each consumer`, rows)
  report('replay from disk, events for each consumer', await replays(frames))
}

if (import.meta.main) {
  console.log(machine())
  await run((title, rows) => printTable(title, rows, ''))
}
