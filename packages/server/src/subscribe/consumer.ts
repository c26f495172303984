import type { Duplex } from 'node:stream'
import { errorFrame } from '@millisky/core/event'
import type { WebSocket } from 'ws'
import { type Batch, letGo } from '../log/log.ts'
import type { Form } from './form.ts'

/** Why a consumer's connection ended. */
export const CONSUMER_ENDS = [
  'left',
  'future-cursor',
  'too-slow',
  'dead',
  'kicked',
  'misbehaved',
  'shutdown',
  'log-failed',
] as const
export type ConsumerEnd = (typeof CONSUMER_ENDS)[number]

export interface ConsumerParts {
  id: number
  address: string
  userAgent: string
  client: WebSocket
  socket: Duplex
  cursor: number
  /** Null: the log's own bytes. */
  form: Form | null
  now: () => number
  /** What its silence is measured by. */
  awake: { readonly ms: number }
}

/**
 * What a consumer sends is mostly ignored, but costs time to read: so many messages, pings and pongs may come at once, and in a
 * second in the long run. Large ones count for more.
 */
const SAID_BURST = 1_000
const SAID_PER_SECOND = 100
const SAID_BYTES = 16_384

/** One connection of an event stream: its socket, its cursor and what the operator sees of it. */
export class Consumer {
  readonly id: number
  readonly address: string
  readonly userAgent: string
  readonly client: WebSocket
  readonly socket: Duplex
  readonly form: Form | null
  readonly connectedAt: number
  /** Settled when the connection is no more. */
  readonly gone: Promise<void>
  /** Last seq written. */
  cursor: number
  events = 0
  bytes = 0
  /** Size of the batch the socket is busy with. */
  lastBytes = 0
  /** When the last batch was written, by the awake clock as all that follows; while blocked, since when the socket is busy with it. */
  wroteAt: number
  heardAt: number
  /** When an unanswered ping was sent, else 0. */
  pingedAt = 0
  bytesAtPing = 0
  ended: ConsumerEnd | null = null
  /** It is being sent events; not yet while it is waited for what it has to say. */
  begun = true
  /** Set while the loop waits at the tail. */
  wake: (() => void) | null = null
  #onDrain: (() => void) | null = null
  #memory: Buffer | null = null
  #said = 0
  /** What the socket is busy with, in order. */
  readonly #sending: Batch[] = []
  readonly #onSent = () => letGo(this.#sending.shift()!)
  readonly #awake: ConsumerParts['awake']
  readonly #close: () => void

  constructor(parts: ConsumerParts) {
    this.id = parts.id
    this.address = parts.address
    this.userAgent = parts.userAgent
    this.client = parts.client
    this.socket = parts.socket
    this.cursor = parts.cursor
    this.form = parts.form
    this.#awake = parts.awake
    this.connectedAt = parts.now()
    this.wroteAt = this.heardAt = parts.awake.ms
    const { promise, resolve } = Promise.withResolvers<void>()
    this.gone = promise
    this.#close = resolve
    const since = parts.awake.ms
    const heard = (data: { readonly length: number }) => {
      this.heardAt = this.#awake.ms
      this.pingedAt = 0
      this.#said += 1 + Math.floor(data.length / SAID_BYTES)
      if (this.#said <= SAID_BURST + ((this.heardAt - since) / 1_000) * SAID_PER_SECOND) return
      this.end('misbehaved', 1008, 'Far too many messages')
      // It is not read to its closing frame.
      this.client.terminate()
    }
    parts.client.on('pong', heard).on('ping', heard).on('message', heard)
    // A protocol error or a reset: 'close' follows.
    parts.client.on('error', () => {})
    parts.socket.on('drain', () => this.#release())
  }

  get open(): boolean {
    return this.ended === null && this.client.readyState === this.client.OPEN
  }

  /** The socket still holds more than it likes to. */
  get blocked(): boolean {
    return this.socket.writableNeedDrain && this.socket.writableLength > 0
  }

  /**
   * Hands a batch to the socket, in one step.
   * @param source what it was made of, and may have views of; let go when the socket is done with it
   */
  write(batch: Batch, source: Batch = batch): void {
    const { socket } = this
    const { wire } = batch
    let bytes = 0
    if (wire.length > 1) socket.cork()
    for (let i = 0; i < wire.length; i++) {
      bytes += wire[i]!.byteLength
      socket.write(wire[i]!, i < wire.length - 1 ? undefined : this.#onSent)
    }
    if (wire.length > 0) this.#sending.push(source)
    else letGo(source)
    if (wire.length > 1) socket.uncork()
    this.cursor = batch.last
    this.events += batch.count
    this.bytes += bytes
    this.lastBytes = bytes
    this.wroteAt = this.#awake.ms
  }

  /** Memory for the next batch of a replay: that of the last one if the socket is done with it. */
  takeMemory(bytes: number): Uint8Array {
    if (this.#memory === null || this.socket.writableLength > 0) this.#memory = Buffer.allocUnsafeSlow(bytes)
    return this.#memory
  }

  leaveMemory(): void {
    this.#memory = null
  }

  /** Waits until the socket can take more, or the connection ends. */
  drained(): Promise<void> {
    return new Promise(resolve => {
      this.#onDrain = resolve
    })
  }

  ping(): void {
    this.pingedAt = this.#awake.ms
    this.bytesAtPing = this.bytes
    this.client.ping()
  }

  /** Tells the consumer by an error frame why, and closes. */
  fail(end: ConsumerEnd, error: string, message: string, code = 1008): void {
    if (!this.open) return
    const told = this.form ? this.form.error(error, message) : errorFrame(error, message)
    if (told !== null) this.client.send(told)
    this.end(end, code, error)
  }

  end(end: ConsumerEnd, code: number, reason: string): void {
    if (this.ended !== null) return
    this.ended = end
    this.client.close(code, reason)
    this.#release()
  }

  /** The server stops: a loop waiting at the tail shall look again. */
  finish(): void {
    this.wake?.()
  }

  close(): void {
    this.#close()
    this.#release()
  }

  #release(): void {
    this.#onDrain?.()
    this.#onDrain = null
    this.wake?.()
  }
}
