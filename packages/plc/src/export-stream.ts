/**
 * `/export/stream`: accepted operations as JSON, one per WebSocket text message, as they come.
 *
 * A consumer is a cursor here too: it gets what has a higher seq. What is told by the reason of the closing frame:
 * `FutureCursor`, `OutdatedCursor` (read `/export` first), `ConsumerTooSlow`.
 */
import type { IncomingMessage, Server } from 'node:http'
import type { Duplex } from 'node:stream'
import { Refused } from '@millisky/core/errors'
import { onUpgrade } from '@millisky/server/upgrade'
import { type WebSocket, WebSocketServer } from 'ws'
import type { Directory, SequencedEntry } from './directory.ts'

const BATCH = 200
const SEND_BUFFER_BYTES = 1_048_576

export interface ExportStreamOptions {
  directory: Directory
  /** How old an operation may be that the stream still begins with. */
  windowMs: number
  consumersMax: number
  /** Milliseconds since the epoch. */
  now: () => number
  /** A consumer that takes nothing for this long is too slow; a silent one is pinged and dropped. Default 30 s. */
  patienceMs?: number
}

/** An operation as `/export` and the stream show it. */
export function sequencedOp({ seq, did, operation, cid, createdAt }: SequencedEntry) {
  return { type: 'sequenced_op', seq, did, operation, cid, createdAt }
}

export class ExportStream {
  readonly #options: Required<ExportStreamOptions>
  readonly #sockets = new WebSocketServer({ noServer: true, perMessageDeflate: false, maxPayload: 4096 })
  readonly #stop = new AbortController()
  readonly #pings: NodeJS.Timeout
  readonly #alive = new WeakSet<WebSocket>()

  constructor(options: ExportStreamOptions) {
    this.#options = { patienceMs: 30_000, ...options }
    this.#pings = setInterval(() => this.#ping(), this.#options.patienceMs)
    this.#pings.unref()
  }

  attach(server: Server, path: string): void {
    onUpgrade(server, path, (request, socket, head, url) => this.#admit(request, socket, head, url))
  }

  /** Closes all connections with 1012 (restart). */
  async close(): Promise<void> {
    this.#stop.abort()
    clearInterval(this.#pings)
    const clients = [...this.#sockets.clients]
    const gone = Promise.all(clients.map(client => new Promise(resolve => client.once('close', resolve))))
    for (const client of clients) client.close(1012, 'Service restart')
    const timer = setTimeout(() => {
      for (const client of clients) client.terminate()
    }, 1_000)
    await gone
    clearTimeout(timer)
  }

  #admit(request: IncomingMessage, socket: Duplex, head: Buffer, url: URL): void {
    const text = url.searchParams.get('cursor')
    if (text !== null && !/^\d{1,15}$/.test(text)) throw new Refused('InvalidRequest', 'Invalid cursor')
    if (this.#sockets.clients.size >= this.#options.consumersMax || this.#stop.signal.aborted) {
      throw new Refused('RateLimitExceeded', 'Too many consumers', 429, { 'retry-after': '60' })
    }
    this.#sockets.handleUpgrade(request, socket, head, client => {
      client.on('error', () => {})
      client.on('pong', () => this.#alive.add(client))
      this.#alive.add(client)
      this.#serve(client, text === null ? null : Number(text)).catch(() => client.close(1011))
    })
  }

  async #serve(client: WebSocket, cursor: number | null): Promise<void> {
    const { directory, now, windowMs } = this.#options
    const { head } = directory
    if (cursor !== null && cursor > head) {
      client.close(1008, 'FutureCursor')
      return
    }
    const [next] = cursor === null ? [] : directory.after(cursor, 1)
    if (next && Date.parse(next.createdAt) < now() - windowMs) {
      client.close(1008, 'OutdatedCursor')
      return
    }
    let after = cursor ?? head
    const { signal } = this.#stop
    while (client.readyState === client.OPEN) {
      const batch = directory.after(after, BATCH)
      if (batch.length === 0) {
        const gone = Promise.withResolvers<void>()
        client.once('close', gone.resolve)
        await Promise.race([directory.bell.wait(signal).catch(() => {}), gone.promise])
        client.off('close', gone.resolve)
        if (signal.aborted) return
        continue
      }
      for (const entry of batch) client.send(JSON.stringify(sequencedOp(entry)))
      after = batch[batch.length - 1]!.seq
      if (!(await this.#taken(client))) {
        client.close(1008, 'ConsumerTooSlow')
        setTimeout(() => client.terminate(), 5_000).unref()
        return
      }
    }
  }

  /** Waits until little is left to send; false when that takes too long. */
  async #taken(client: WebSocket): Promise<boolean> {
    const { now, patienceMs } = this.#options
    for (const since = now(); client.bufferedAmount > SEND_BUFFER_BYTES; ) {
      if (now() - since > patienceMs) return false
      await new Promise(resolve => setTimeout(resolve, 10))
      if (client.readyState !== client.OPEN) return true
    }
    return true
  }

  #ping(): void {
    for (const client of this.#sockets.clients) {
      if (!this.#alive.delete(client)) client.terminate()
      else client.ping()
    }
  }
}
