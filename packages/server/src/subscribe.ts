/**
 * Serves a {@link Log} as an event stream over WebSocket.
 *
 * A consumer is a cursor. Each has one loop that reads the log behind its cursor and writes the bytes as they lie in the
 * log, which are complete WebSocket messages, to its socket; history and live tail are the same loop. Nothing is queued
 * for a consumer but what the socket holds and one batch, so a slow one costs nobody else anything, and a replaying one
 * may take as long as it likes. At the live tail all loops wake together and share one read, hence one buffer.
 *
 * `ws` does the handshake and the control frames. Both sides only ever write whole messages, in one synchronous step,
 * so they cannot interleave.
 *
 * Source: event-stream spec; cursor semantics: a consumer gets every event with seq strictly greater than its cursor.
 */
import type { IncomingMessage, Server } from 'node:http'
import type { Duplex } from 'node:stream'
import { Refused, Unavailable } from '@millisky/core/errors'
import { infoFrame } from '@millisky/core/event'
import { type ServerOptions, type WebSocket, WebSocketServer } from 'ws'
import { AwakeClock } from './awake.ts'
import type { Batch, Log } from './log/log.ts'
import { Consumer, type ConsumerEnd } from './subscribe/consumer.ts'
import { entriesOf } from './subscribe/digest.ts'
import type { Deal, Endpoint, Form } from './subscribe/form.ts'
import { countStream, FORM_KINDS, type SubscribeTotals } from './subscribe/metrics.ts'
import { Pace } from './subscribe/pace.ts'
import { type Extras, NO_EXTRAS, ReposEndpoint } from './subscribe/repos.ts'
import { Tail } from './subscribe/tail.ts'
import type { Metrics } from './trace.ts'
import { onUpgrade } from './upgrade.ts'

export { CONSUMER_ENDS, type ConsumerEnd } from './subscribe/consumer.ts'

export interface SubscribeSettings {
  /** Consumers at a time; default 2,000. */
  consumersMax: number
  /** Consumers at a time from one IPv4 address or IPv6 /64 network; default 200. */
  consumersPerAddressMax: number
  /**
   * While events keep coming they are sent at most this often, and more rarely with many consumers, up to every 25 ms;
   * the first one after a pause goes at once. Default 1.
   */
  coalesceMs: number
  /** Read from the log at a time; default 256 KiB. A single longer event is still sent. */
  batchBytes: number
  /** A consumer whose socket has not taken a batch of `batchBytes` in this time is too slow; default 60 s. */
  stallMs: number
  /** A consumer that was silent for this long is pinged; default 25 s. */
  pingMs: number
  /** A pinged consumer that neither answers nor takes a batch of events in this time is dropped; default 45 s. */
  deadMs: number
  /** A consumer that wants to say first what it wants has this long to do so; default 60 s. */
  helloMs: number
  /** Time for consumers to take the rest when the server stops, and to answer a closing handshake; default 5 s. */
  closeMs: number
}

export const SUBSCRIBE_DEFAULTS: Readonly<SubscribeSettings> = {
  consumersMax: 2_000,
  consumersPerAddressMax: 200,
  coalesceMs: 1,
  batchBytes: 256 * 1024,
  stallMs: 60_000,
  pingMs: 25_000,
  deadMs: 45_000,
  helloMs: 60_000,
  closeMs: 5_000,
}

/** A consumer as shown to the operator. */
export interface ConsumerInfo {
  id: number
  address: string
  userAgent: string
  /** Milliseconds since the epoch. */
  connectedAt: number
  /** The last seq sent. */
  cursor: number
  /** How far the cursor lies behind the log's last seq. */
  lag: number
  events: number
  bytes: number
  /** How events are put for it, such as `cbor` or `json, filtered`. */
  form: string
}

/** Told when things happen, for log lines. */
export interface SubscribeObserver {
  opened?(consumer: ConsumerInfo): void
  ended?(consumer: ConsumerInfo, end: ConsumerEnd): void
  /** A request answered with an error instead of a handshake; `status` is 400, 429 or 503. */
  refused?(status: number, address: string): void
  /** Reading the log failed. */
  failed?(error: unknown): void
}

export interface SubscribeParts {
  log: Log
  settings?: Partial<SubscribeSettings>
  observer?: SubscribeObserver
  /** Gets `subscribe_…` metrics; of one stream only. */
  metrics?: Metrics
  /** What consumers may ask for; default nothing. */
  extras?: Extras
  /** Whoever asks for all there is, by cursor 0, is told as well that some are gone, as by the reference PDS; default not. */
  tellsAtZero?: boolean
  /** The client's address as the daemon's proxy settings tell it; default the socket's. */
  addressOf?: (request: IncomingMessage) => string
  /** What the `Server` header of handshakes says, as that of other answers does. */
  product?: string
  /** Milliseconds since the epoch. */
  now?: () => number
}

/** One event stream: its consumers and the loop that wakes them. */
export class Subscription {
  readonly #parts: SubscribeParts
  #settings: SubscribeSettings
  readonly #now: () => number
  readonly #log: Log
  readonly #tail: Tail
  readonly #pace = new Pace()
  /** By the kind of socket they make. */
  readonly #sockets = new Map<ServerOptions, WebSocketServer>()
  readonly #consumers = new Map<number, Consumer>()
  readonly #perAddress = new Map<string, number>()
  readonly #detach: (() => void)[] = []
  readonly #count: ReturnType<typeof countStream> | null
  readonly #awake: AwakeClock
  readonly #sweep: NodeJS.Timeout
  #nextId = 1
  #closing: Promise<void> | null = null
  #eventsBefore = 0
  #bytesBefore = 0

  constructor(parts: SubscribeParts) {
    this.#parts = parts
    this.#log = parts.log
    this.#now = parts.now ?? Date.now
    this.#settings = { ...SUBSCRIBE_DEFAULTS, ...parts.settings }
    this.#tail = new Tail(parts.log, this.#settings)
    this.#count = parts.metrics ? countStream(parts.metrics, () => this.totals()) : null
    const { pingMs, deadMs, stallMs } = this.#settings
    const sweepMs = Math.max(5, Math.min(5_000, Math.min(pingMs, deadMs, stallMs) / 4))
    this.#awake = new AwakeClock(this.#now, sweepMs)
    this.#sweep = setInterval(() => this.#sweepConsumers(), sweepMs)
    this.#sweep.unref()
  }

  /**
   * Serves the stream at `path` of `server`, as `com.atproto.sync.subscribeRepos` or another endpoint. A request there that is no upgrade is the
   * caller's; see `notWebSocket`.
   */
  attach(server: Server, path: string, endpoint?: Endpoint): void {
    const offers = endpoint ?? new ReposEndpoint(this.#parts.extras ?? NO_EXTRAS, this.socket, entriesOf(this.#log))
    const admit = (request: IncomingMessage, socket: Duplex, head: Buffer, url: URL) =>
      this.#admit(offers, request, socket, head, url)
    this.#detach.push(onUpgrade(server, path, admit))
  }

  /** How sockets of consumers are made, for endpoints to begin from. */
  get socket(): ServerOptions {
    const options: ServerOptions & { closeTimeout: number; maxPendingAutoPongs: number } = {
      noServer: true,
      clientTracking: false,
      perMessageDeflate: false,
      // What consumers send is mostly ignored; this bounds what it can cost.
      maxPayload: 64 * 1024,
      skipUTF8Validation: true,
      closeTimeout: this.#settings.closeMs,
      // Pings are counted with all else a consumer sends: one limit, whose end has a name.
      maxPendingAutoPongs: 0,
    }
    return options
  }

  /** All consumers, oldest connection first. */
  list(): ConsumerInfo[] {
    return [...this.#consumers.values()].map(consumer => this.#describe(consumer))
  }

  /** How many consumers there may be. */
  get limits(): Pick<SubscribeSettings, 'consumersMax' | 'consumersPerAddressMax'> {
    const { consumersMax, consumersPerAddressMax } = this.#settings
    return { consumersMax, consumersPerAddressMax }
  }

  /** Sets how many consumers there may be from now on; those who are there stay. */
  limit(limits: Partial<Pick<SubscribeSettings, 'consumersMax' | 'consumersPerAddressMax'>>): void {
    this.#settings = { ...this.#settings, ...limits }
  }

  totals(): SubscribeTotals {
    let [events, bytes, lagMax] = [this.#eventsBefore, this.#bytesBefore, 0]
    const forms = { cbor: 0, json: 0, jetstream: 0 }
    for (const consumer of this.#consumers.values()) {
      forms[FORM_KINDS.find(kind => consumer.form?.name.startsWith(kind)) ?? 'cbor']++
      events += consumer.events
      bytes += consumer.bytes
      lagMax = Math.max(lagMax, this.#log.head - consumer.cursor)
    }
    return { consumers: this.#consumers.size, forms, events, bytes, lagMax }
  }

  /** Disconnects a consumer; false when there is none of that id. It may connect again. */
  kick(id: number): boolean {
    const consumer = this.#consumers.get(id)
    if (!consumer) return false
    consumer.end('kicked', 1008, 'Disconnected by the operator')
    return true
  }

  /**
   * Stops taking consumers, lets those near the tail have what is in the log, then closes all with 1012 (restart). The
   * log must stay open and be at rest by then.
   */
  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close(): Promise<void> {
    await this.#tail.close()
    const all = [...this.#consumers.values()]
    const gone = all.map(consumer => consumer.gone)
    for (const consumer of all) {
      if (consumer.begun && this.#tail.isNear(consumer.cursor)) consumer.finish()
      else consumer.end('shutdown', 1012, 'Service restart')
    }
    await within(this.#settings.closeMs, Promise.all(gone))
    for (const consumer of all) consumer.end('shutdown', 1012, 'Service restart')
    await within(this.#settings.closeMs, Promise.all(gone))
    for (const consumer of all) consumer.socket.destroy()
    await Promise.all(gone)
    clearInterval(this.#sweep)
    for (const detach of this.#detach) detach()
    for (const sockets of this.#sockets.values()) sockets.close()
  }

  #admit(offers: Endpoint, request: IncomingMessage, socket: Duplex, head: Buffer, url: URL): void {
    const address = this.#parts.addressOf?.(request) ?? request.socket.remoteAddress ?? 'unknown'
    try {
      const deal = offers.negotiate(request, url.searchParams)
      this.#assertRoom(address)
      this.#socketsFor(deal).handleUpgrade(request, socket, head, client =>
        this.#start(client, socket, request, address, deal),
      )
    } catch (error) {
      if (error instanceof Refused || error instanceof Unavailable) {
        this.#count?.refused(error.status)
        this.#parts.observer?.refused?.(error.status, address)
      }
      throw error
    }
  }

  #socketsFor({ socket }: Deal): WebSocketServer {
    const known = this.#sockets.get(socket)
    if (known) return known
    const sockets = new WebSocketServer(socket)
    const { product } = this.#parts
    if (product !== undefined) sockets.on('headers', headers => headers.push(`Server: ${product}`))
    this.#sockets.set(socket, sockets)
    return sockets
  }

  #assertRoom(address: string): void {
    if (this.#closing) throw new Unavailable('Unavailable', 'The server is stopping', 503, 5)
    const { consumersMax, consumersPerAddressMax } = this.#settings
    const limited = (message: string) => new Refused('RateLimitExceeded', message, 429, { 'retry-after': '60' })
    if (this.#consumers.size >= consumersMax) throw limited('Too many consumers')
    if ((this.#perAddress.get(networkOf(address)) ?? 0) >= consumersPerAddressMax) {
      throw limited('Too many consumers from this address')
    }
  }

  #start(client: WebSocket, socket: Duplex, request: IncomingMessage, address: string, deal: Deal): void {
    const log = this.#log
    const { cursor, form } = deal
    const consumer = new Consumer({
      id: this.#nextId++,
      address,
      userAgent: (request.headers['user-agent'] ?? '').slice(0, 256),
      client,
      socket,
      now: this.#now,
      awake: this.#awake,
      form,
      cursor: cursor ?? log.head,
    })
    if (deal.told) client.on('message', (data: Buffer) => this.#told(consumer, deal.told!(data)))
    this.#consumers.set(consumer.id, consumer)
    const network = networkOf(address)
    this.#perAddress.set(network, (this.#perAddress.get(network) ?? 0) + 1)
    client.once('close', () => this.#forget(consumer, network))
    this.#parts.observer?.opened?.(this.#describe(consumer))
    if (cursor !== null && cursor > log.head) {
      consumer.fail('future-cursor', 'FutureCursor', 'Cursor in the future.')
      return
    }
    if (cursor !== null && cursor + 1 < log.oldest) {
      const message = 'Requested cursor exceeded limit. Possibly missing events'
      const info = form ? form.info('OutdatedCursor', message) : infoFrame('OutdatedCursor', message)
      if ((cursor !== 0 || this.#parts.tellsAtZero) && info !== null) client.send(info)
      consumer.cursor = log.oldest - 1
    }
    const run = deal.begin ? this.#begin(consumer, deal.begin()) : this.#pull(consumer)
    run.catch(error => {
      this.#parts.observer?.failed?.(error)
      consumer.fail('log-failed', 'InternalServerError', 'Internal Server Error', 1011)
    })
  }

  /** Waits for where to begin, or for the end. */
  async #begin(consumer: Consumer, begin: Promise<number>): Promise<void> {
    consumer.begun = false
    const late = setTimeout(() => consumer.end('misbehaved', 1008, 'No options came in time'), this.#settings.helloMs)
    const cursor = await Promise.race([begin, consumer.gone]).finally(() => clearTimeout(late))
    if (cursor === undefined || !consumer.open) return
    consumer.cursor = cursor
    consumer.begun = true
    await this.#pull(consumer)
  }

  #told(consumer: Consumer, complaint: string | null): void {
    // A closing reason has at most 123 bytes.
    if (complaint !== null) consumer.end('misbehaved', 1008, complaint.replace(/[^ -~]/g, '?').slice(0, 120))
  }

  /** The loop of one consumer. */
  async #pull(consumer: Consumer): Promise<void> {
    while (consumer.open) {
      if (consumer.cursor >= this.#tail.flushed) {
        if (this.#tail.closed) return consumer.end('shutdown', 1012, 'Service restart')
        await this.#tail.next(consumer)
        continue
      }
      const read = this.#tail.read(consumer)
      const batch = read instanceof Promise ? await read : read
      if (!consumer.open) return
      // Behind 0 comes whatever is oldest, also when the log was empty and begins at another seq.
      if (consumer.cursor > 0 && consumer.cursor + 1 < this.#log.oldest) {
        return consumer.fail('too-slow', 'ConsumerTooSlow', 'Events you have not read yet are no longer kept')
      }
      if (batch.last <= consumer.cursor) {
        // Only of a log that is being closed.
        await this.#tail.next(consumer)
        continue
      }
      if (consumer.form === null) consumer.write(batch)
      else {
        const formed = this.#form(consumer, consumer.form, batch)
        const shown = formed instanceof Promise ? await formed : formed
        if (!consumer.open || shown === null) return
        consumer.write(shown, batch)
      }
      if (consumer.blocked) await consumer.drained()
      // Others get their turn between two batches, also when neither log nor socket ever makes this loop wait.
      else if (consumer.cursor < this.#tail.flushed) await new Promise(setImmediate)
    }
  }

  /** A batch in the form of this consumer; null when it has gone. Live ones share the work, replays take turns. */
  #form(consumer: Consumer, form: Form, batch: Batch): Batch | null | Promise<Batch | null> {
    const { cursor } = consumer
    if (this.#tail.isNear(cursor)) return form.select(batch, cursor)
    const work = () => this.#pace.turn(() => (consumer.open ? form.select(batch, cursor) : null))
    return form.load?.(batch, cursor)?.then(work) ?? work()
  }

  #sweepConsumers(): void {
    const now = this.#awake.look()
    const { batchBytes, stallMs, pingMs, deadMs } = this.#settings
    for (const consumer of this.#consumers.values()) {
      const { blocked, wroteAt, pingedAt, heardAt } = consumer
      if (!consumer.open) continue
      if (blocked) {
        const allowed = stallMs * Math.max(1, consumer.lastBytes / batchBytes)
        if (now - wroteAt > allowed) consumer.fail('too-slow', 'ConsumerTooSlow', 'Stream consumer too slow')
      } else if (pingedAt === 0) {
        if (now - heardAt > pingMs) consumer.ping()
      } else if (now - pingedAt > deadMs) {
        // The ping may still lie behind events that the consumer is busy taking; then its socket tells if it is alive.
        if (consumer.bytes - consumer.bytesAtPing > batchBytes) consumer.ping()
        else consumer.end('dead', 1001, 'No answer to a ping')
      }
    }
  }

  #forget(consumer: Consumer, network: string): void {
    consumer.ended ??= 'left'
    this.#consumers.delete(consumer.id)
    this.#tail.forget(consumer)
    const left = (this.#perAddress.get(network) ?? 1) - 1
    if (left > 0) this.#perAddress.set(network, left)
    else this.#perAddress.delete(network)
    this.#eventsBefore += consumer.events
    this.#bytesBefore += consumer.bytes
    this.#count?.ended(consumer.ended)
    this.#parts.observer?.ended?.(this.#describe(consumer), consumer.ended)
    consumer.close()
  }

  #describe(consumer: Consumer): ConsumerInfo {
    const { id, address, userAgent, connectedAt, cursor, events, bytes } = consumer
    const lag = Math.max(0, this.#log.head - cursor)
    const form = consumer.form?.name ?? 'cbor'
    return { id, address, userAgent, connectedAt, cursor, lag, events, bytes, form }
  }
}

/** Whom connections are counted by: an IPv4 address, or the /64 that an IPv6 address is in. */
function networkOf(address: string): string {
  const mapped = /^::ffff:([\d.]+)$/i.exec(address)
  if (mapped) return mapped[1]!
  if (!address.includes(':')) return address
  const [front = '', back] = address.split('%')[0]!.split('::')
  const groups = front === '' ? [] : front.split(':')
  if (back !== undefined) {
    const tail = back === '' ? [] : back.split(':')
    while (groups.length + tail.length < 8) groups.push('0')
    groups.push(...tail)
  }
  return `${groups.slice(0, 4).join(':')}::/64`
}

async function within(ms: number, work: Promise<unknown>): Promise<void> {
  let timer: NodeJS.Timeout | undefined
  await Promise.race([work, new Promise(resolve => (timer = setTimeout(resolve, ms)))])
  clearTimeout(timer)
}
