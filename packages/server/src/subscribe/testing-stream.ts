/** A stage for tests of streams: a segment log on disk, the two endpoints, clients that keep what they get. */
import { mkdtempSync, rmSync } from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { type Event, encodeFrame, withSeq } from '@millisky/core/event'
import { TestRepo } from '@millisky/core/testing-repos'
import { type ClientOptions, WebSocket } from 'ws'
import { openSegmentLog, type SegmentLog } from '../log/segments.ts'
import { type SubscribeSettings, Subscription } from '../subscribe.ts'
import { JetstreamEndpoint } from './jetstream.ts'
import type { Extras } from './repos.ts'

export const REPOS_PATH = '/xrpc/com.atproto.sync.subscribeRepos'
export const JETSTREAM_PATH = '/subscribe'
const ALL: Extras = { filters: true, compression: true, json: true }

export interface StreamStage {
  readonly log: SegmentLog
  readonly subscription: Subscription
  /** `ws://…` without a path. */
  readonly url: string
  /** The log's clock, in milliseconds; stands unless it is set. */
  clock: number
  append(...events: Event[]): Promise<number>
  client(path: string, options?: ClientOptions & { protocols?: string[] }): Promise<StreamClient>
  close(): Promise<void>
}

export interface StageOptions {
  extras?: Extras
  dictionary?: Uint8Array
  settings?: Partial<SubscribeSettings>
  /** Of newest events, kept in memory. */
  ringBytes?: number
}

export async function streamStage(options: StageOptions = {}): Promise<StreamStage> {
  const { extras = ALL, dictionary, settings, ringBytes = 32 << 20 } = options
  const folder = mkdtempSync(join(tmpdir(), 'millisky-stream-'))
  const clients: StreamClient[] = []
  const server = createServer((_request, response) => response.writeHead(426).end())
  const clock = () => stage.clock
  const log = await openSegmentLog(folder, { withSeq, recover: () => null, now: clock, fsync: 'none', ringBytes })
  const subscription = new Subscription({ log, extras, settings: { closeMs: 200, coalesceMs: 1, ...settings } })
  const socket = subscription.socket
  subscription.attach(server, REPOS_PATH)
  subscription.attach(
    server,
    JETSTREAM_PATH,
    new JetstreamEndpoint({ log, dictionary: dictionary ?? null, now: clock, socket }),
  )
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  const url = `ws://127.0.0.1:${(server.address() as AddressInfo).port}`
  const stage: StreamStage = {
    log,
    subscription,
    url,
    clock: Date.parse('2026-08-20T12:00:00.000Z'),
    append: (...events) => log.append(events.map(event => ({ frame: encodeFrame(event), account: 0 }))),
    async client(path, { protocols = [], ...options } = {}) {
      const client = new StreamClient(new WebSocket(`${url}${path}`, protocols, options))
      clients.push(client)
      await client.opened
      return client
    },
    async close() {
      for (const { socket } of clients) socket.terminate()
      await subscription.close()
      server.close()
      await log.close()
      rmSync(folder, { recursive: true, force: true })
    },
  }
  return stage
}

/** Keeps every message. `refused` is the answer where there was no handshake. */
export class StreamClient {
  readonly socket: WebSocket
  readonly messages: Buffer[] = []
  readonly binary: boolean[] = []
  readonly opened: Promise<void>
  readonly closed: Promise<{ code: number; reason: string }>
  refused: { status: number; error: string; message: string } | null = null
  bytesOnWire = 0

  constructor(socket: WebSocket) {
    this.socket = socket
    socket.on('error', () => {})
    socket.on('message', (data: Buffer, isBinary) => {
      this.messages.push(data)
      this.binary.push(isBinary)
    })
    this.closed = new Promise(resolve => {
      socket.on('close', (code, reason) => resolve({ code, reason: reason.toString() }))
    })
    this.opened = new Promise(resolve => {
      socket.once('open', resolve)
      socket.once('unexpected-response', async (_request, response) => {
        const chunks: Buffer[] = []
        for await (const chunk of response) chunks.push(chunk as Buffer)
        this.refused = { status: response.statusCode ?? 0, ...JSON.parse(Buffer.concat(chunks).toString()) }
        resolve()
      })
    })
  }

  /** The messages, parsed as JSON. */
  get json(): Record<string, unknown>[] {
    return this.messages.map(message => JSON.parse(message.toString()))
  }

  async until(count: number): Promise<this> {
    for (let i = 0; this.messages.length < count; i++) {
      if (i > 10_000) throw new Error(`${this.messages.length} of ${count} messages came`)
      await sleep(2)
    }
    return this
  }
}

/** A repository with a name, for events. */
export const repo = (name: string): TestRepo => new TestRepo(name)
