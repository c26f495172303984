/**
 * Event streams to many consumers: CPU of the serving process per frame delivered, against `ws` sending frame by frame;
 * and how fast one consumer can replay. Consumers are sockets of another process that only count bytes.
 */
import { type ChildProcess, fork } from 'node:child_process'
import { mkdtemp, rm } from 'node:fs/promises'
import { createServer, type Server } from 'node:http'
import { type AddressInfo, connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { encodeFrame, withSeq } from '@millisky/core/event'
import { toWireBatch } from '@millisky/server/log/frame-wire'
import { type Batch, Bell, type Log } from '@millisky/server/log/log'
import { openSegmentLog, type SegmentLog } from '@millisky/server/log/segments'
import { Subscription } from '@millisky/server/subscribe'
import { type WebSocket, WebSocketServer } from 'ws'
import type { Report } from './codec.ts'
import { type Measured, machine, printTable } from './measure.ts'

const PATH = '/xrpc/com.atproto.sync.subscribeRepos'
const FRAME_BYTES = 5_124
const CONSUMERS = 100
const ROUNDS = 3

const frame = new Uint8Array(FRAME_BYTES).fill(7)

/** A log in memory that forgets: what is appended within the last read is one buffer, as in the segment log's tail. */
class TailLog implements Log {
  readonly bell = new Bell()
  head = 0
  oldest = 1
  readonly #batches: { first: number; wire: Uint8Array }[] = []

  append(count: number): void {
    const { wire } = toWireBatch(Array.from({ length: count }, () => frame))
    this.#batches.push({ first: this.head + 1, wire })
    if (this.#batches.length > 64) this.#batches.shift()
    this.head += count
    this.bell.ring()
  }

  read(after: number): Batch {
    const found = this.#batches.filter(batch => batch.first > after)
    if (found[0] && found[0].first !== after + 1) throw new Error('the consumer fell out of the bench')
    return { count: this.head - after, last: this.head, wire: found.map(batch => batch.wire) }
  }

  async close(): Promise<void> {}
}

/** A segment log on disk with so many frames in it, opened anew, so that nothing is in memory but what the system caches. */
async function filledLog(folder: string, frames: number): Promise<SegmentLog> {
  const options = { withSeq, recover: () => null, now: Date.now, fsync: 'none' as const }
  const filling = await openSegmentLog(folder, options)
  const pad = new Uint8Array(FRAME_BYTES - 40)
  const entry = { frame: encodeFrame({ t: '#commit', body: { seq: 0, pad } }), account: 0 }
  for (let i = 0; i < frames; i += 500) await filling.append(Array.from({ length: 500 }, () => entry))
  await filling.close()
  return openSegmentLog(folder, options)
}

export async function listening(server: Server): Promise<number> {
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  return (server.address() as AddressInfo).port
}

/** Consumers in another process. */
export class Crowd {
  readonly #child: ChildProcess
  bytes = 0
  #changed = Promise.withResolvers<void>()
  #open = 0

  /** @param query after the path of the firehose, or another path @param headers lines of the handshake */
  constructor(port: number, count: number, query = '', headers: string[] = []) {
    const target = query.startsWith('/') ? query : `${PATH}${query}`
    const args = ['consume', String(port), String(count), target, ...headers]
    this.#child = fork(fileURLToPath(import.meta.url), args)
    this.#child.on('message', (message: { open: number; bytes: number }) => {
      this.bytes = message.bytes
      this.#open = message.open
      this.#changed.resolve()
      this.#changed = Promise.withResolvers()
    })
  }

  async opened(count: number): Promise<void> {
    while (this.#open < count) await this.#changed.promise
  }

  async received(bytes: number): Promise<void> {
    while (this.bytes < bytes) await this.#changed.promise
  }

  end(): void {
    this.#child.kill()
  }
}

/** The consumers' process. */
function consume(port: number, count: number, target: string, headers: string[]): void {
  let [open, bytes, told] = [0, 0, '']
  const buffer = Buffer.allocUnsafe(1 << 20)
  const key = 'AAAAAAAAAAAAAAAAAAAAAA=='
  for (let i = 0; i < count; i++) {
    let isOpen = false
    const callback = (length: number): boolean => {
      if (isOpen) bytes += length
      else {
        // The answer to the handshake; a frame may follow in the same piece.
        isOpen = true
        open++
        bytes += length - (buffer.subarray(0, length).indexOf('\r\n\r\n') + 4)
      }
      return true
    }
    const socket = connect({ port, host: '127.0.0.1', onread: { buffer, callback } })
    socket.on('error', () => {})
    const lines = ['Host: x', 'Connection: Upgrade', 'Upgrade: websocket', 'Sec-WebSocket-Version: 13', ...headers]
    socket.write(`GET ${target} HTTP/1.1\r\n${lines.join('\r\n')}\r\nSec-WebSocket-Key: ${key}\r\n\r\n`)
  }
  setInterval(() => {
    const news = `${open} ${bytes}`
    if (news !== told) process.send?.({ open, bytes })
    told = news
  }, 5)
  process.on('disconnect', () => process.exit())
}

/** CPU-seconds of this process while `work` runs, and the seconds it took. */
export async function accounted(work: () => Promise<void>): Promise<{ cpu: number; wall: number }> {
  const [start, since] = [process.cpuUsage(), performance.now()]
  await work()
  const { user, system } = process.cpuUsage(start)
  return { cpu: (user + system) / 1e6, wall: (performance.now() - since) / 1e3 }
}

/** Appends so many frames at this pace, and waits until every consumer has them. */
async function deliver(crowd: Crowd, frames: number, perSecond: number, append: (count: number) => void) {
  const before = crowd.bytes
  return accounted(async () => {
    const since = performance.now()
    for (let sent = 0; sent < frames; ) {
      const due = Math.min(frames, Math.floor(((performance.now() - since) / 1e3) * perSecond) + 1)
      if (due > sent) append(due - sent)
      sent = Math.max(sent, due)
      await new Promise(resolve => setTimeout(resolve, 1))
    }
    await crowd.received(before + frames * CONSUMERS * (FRAME_BYTES + 4))
  })
}

async function live(perSecond: number, frames: number): Promise<Measured> {
  const server = createServer()
  const log = new TailLog()
  const subscription = new Subscription({ log })
  subscription.attach(server, PATH)
  const crowd = new Crowd(await listening(server), CONSUMERS)
  await crowd.opened(CONSUMERS)
  await deliver(crowd, 200, perSecond, count => log.append(count))
  const rates: number[] = []
  const cores: number[] = []
  for (let round = 0; round < ROUNDS; round++) {
    const { cpu } = await deliver(crowd, frames, perSecond, count => log.append(count))
    rates.push((frames * CONSUMERS) / cpu)
    cores.push((cpu * perSecond) / frames)
  }
  crowd.end()
  await subscription.close()
  server.close()
  const used = cores.sort((a, b) => a - b)[cores.length >> 1]!
  return measured(`our stream, ${perSecond} events/s (${used.toFixed(2)} cores)`, rates)
}

/** What most servers do: each frame to each consumer. */
async function peer(perSecond: number, frames: number): Promise<Measured> {
  const server = createServer()
  const sockets = new WebSocketServer({ server, perMessageDeflate: false })
  const crowd = new Crowd(await listening(server), CONSUMERS)
  await crowd.opened(CONSUMERS)
  const append = (count: number) => {
    for (let i = 0; i < count; i++) for (const client of sockets.clients as Set<WebSocket>) client.send(frame)
  }
  await deliver(crowd, 20, perSecond, append)
  const rates: number[] = []
  for (let round = 0; round < ROUNDS; round++) {
    const { cpu } = await deliver(crowd, frames, perSecond, append)
    rates.push((frames * CONSUMERS) / cpu)
  }
  crowd.end()
  for (const client of sockets.clients) client.terminate()
  server.close()
  return measured(`ws, send per frame, ${perSecond} events/s`, rates)
}

/** MB per second of wall clock and of CPU. */
async function replay(frames: number): Promise<Measured[]> {
  const folder = await mkdtemp(join(tmpdir(), 'millisky-bench-'))
  const log = await filledLog(folder, frames)
  const [walls, cpus]: [number[], number[]] = [[], []]
  for (let round = 0; round < ROUNDS; round++) {
    const server = createServer()
    const subscription = new Subscription({ log })
    subscription.attach(server, PATH)
    const crowd = new Crowd(await listening(server), 1, '?cursor=0')
    await crowd.opened(1)
    const before = crowd.bytes
    const { cpu, wall } = await accounted(async () => {
      while (subscription.totals().events < frames) await new Promise(resolve => setTimeout(resolve, 1))
      await crowd.received(subscription.totals().bytes)
    })
    const rest = crowd.bytes - before
    walls.push(rest / wall / 1e6)
    cpus.push(rest / cpu / 1e6)
    crowd.end()
    await subscription.close()
    server.close()
  }
  await log.close()
  await rm(folder, { recursive: true })
  return [measured('one consumer, MB per second', walls), measured('one consumer, MB per CPU-second', cpus)]
}

export function measured(name: string, rates: number[]): Measured {
  const sorted = rates.sort((a, b) => a - b)
  return { name, opsPerCpuSecond: sorted[sorted.length >> 1]!, low: sorted[0]!, high: sorted.at(-1)! }
}

export async function run(report: Report): Promise<void> {
  const rows = [await live(2_000, 4_000), await live(1_000, 2_000), await live(500, 1_000), await peer(500, 400)]
  report(`fan-out of ${FRAME_BYTES} byte frames to ${CONSUMERS} consumers, frames delivered`, rows)
  report('replay from disk', await replay(120_000))
}

if (import.meta.main) {
  const [, , command, port, count, target, ...headers] = process.argv
  if (command === 'consume') consume(Number(port), Number(count), target ?? PATH, headers)
  else {
    console.log(machine())
    await run((title, rows) => printTable(title, rows, ''))
  }
}
