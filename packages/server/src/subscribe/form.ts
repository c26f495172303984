/** What consumers may be given instead of the log's own bytes, and what is agreed on with one of them. */
import type { IncomingMessage } from 'node:http'
import type { ServerOptions } from 'ws'
import type { Batch } from '../log/log.ts'

/** A way to put events for a consumer. Who has none gets the bytes as they lie in the log. */
export interface Form {
  /** For the operator, such as `json`. */
  readonly name: string
  /** Fetches what {@link select} will need, if it has to be waited for: so that this is not done in a turn at work. */
  load?(batch: Batch, after: number): Promise<unknown> | null
  /**
   * What is sent for a batch that was read behind `after`. `last` is that of the batch, and `count` that of the messages, even if none. Consumers
   * who want the same of the same batch get the same buffers.
   */
  select(batch: Batch, after: number): Batch | Promise<Batch>
  /** The message that tells of an error before the end, or null when the closing code has to do. */
  error(error: string, message: string): Uint8Array | string | null
  /** The message that tells of the stream itself, or null when there is no such thing. */
  info(name: string, message: string): Uint8Array | string | null
}

/** What is agreed on with one consumer before the handshake. */
export interface Deal {
  /** Null: the log's own bytes. */
  readonly form: Form | null
  /** How its socket is made; always the same object for the same kind of socket. */
  readonly socket: ServerOptions
  /** The seq it asked to go on from; null for what comes from now on. */
  readonly cursor: number | null
  /** Where it begins instead, found out or waited for after the handshake. */
  begin?(): Promise<number>
  /** Takes a message of the consumer. What it gives is the reason to disconnect it. */
  told?(message: Buffer): string | null
}

/** One kind of stream: what may be asked for. */
export interface Endpoint {
  /** @throws Refused, for an answer before the handshake */
  negotiate(request: IncomingMessage, params: URLSearchParams): Deal
}
