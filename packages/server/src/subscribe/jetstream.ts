/**
 * An endpoint that talks like Jetstream: its parameters, its messages, its cursors of microseconds.
 *
 * Source: the documentation of github.com/bluesky-social/jetstream (version 1), "Query parameters", "Subscriber sourced messages".
 */
import type { IncomingMessage } from 'node:http'
import { zstdCompressSync } from 'node:zlib'
import { Refused } from '@millisky/core/errors'
import type { ServerOptions } from 'ws'
import { toWire } from '../log/frame-wire.ts'
import type { Batch, Log } from '../log/log.ts'
import type { Stamped, Stamps } from '../log/segment-times.ts'
import { batchOf, type Digest, digestOf, type Entry, entriesOf, payloadOf, textMessage } from './digest.ts'
import type { Deal, Endpoint, Form } from './form.ts'
import { type JetstreamEvent, jetstreamEvents } from './jetstream-event.ts'
import { parseFlag } from './repos.ts'
import { Wants, type WantsText } from './wants.ts'

/** Messages of consumers: enough for 10,000 DIDs. */
const OPTIONS_BYTES_MAX = 1024 * 1024
/** Reading options costs work: so many of them in so much time. */
const UPDATES_MAX = 10
const UPDATES_MS = 10_000

export interface JetstreamParts {
  log: Log & Stamped
  /** Zstandard dictionary for `compress=true`, which its clients must have as well. Null: refused. */
  dictionary: Uint8Array | null
  /** Milliseconds since the epoch. */
  now: () => number
  socket: ServerOptions
}

export class JetstreamEndpoint implements Endpoint {
  readonly #parts: JetstreamParts
  readonly #socket: ServerOptions

  constructor(parts: JetstreamParts) {
    this.#parts = parts
    this.#socket = { ...parts.socket, maxPayload: OPTIONS_BYTES_MAX }
  }

  negotiate(request: IncomingMessage, params: URLSearchParams): Deal {
    const { log, now, dictionary } = this.#parts
    const micros = parseMicros(params)
    const hello = parseFlag(params, 'requireHello') ? Promise.withResolvers<void>() : null
    const compress = parseFlag(params, 'compress') || /\bzstd\b/.test(String(request.headers['socket-encoding'] ?? ''))
    if (compress && !dictionary) {
      throw new Refused(
        'InvalidRequest',
        'compress: this server has no Zstandard dictionary; connect without compression',
      )
    }
    const form = new JetstreamForm(log, compress ? dictionary : null)
    form.want(
      { collections: params.getAll('wantedCollections'), dids: params.getAll('wantedDids') },
      parseSize(params.getAll('maxMessageSizeBytes').at(-1)),
    )
    const updates: number[] = []
    return {
      form,
      socket: this.#socket,
      cursor: null,
      begin: async () => {
        await hello?.promise
        // One from the future, and none, is what comes from now on.
        if (micros === null || micros >= now() * 1_000) return log.head
        form.from = micros
        return Math.max(await log.seqBefore(Math.floor(micros / 1_000)), log.oldest - 1)
      },
      told: message => {
        while (updates.length > 0 && updates[0]! < now() - UPDATES_MS) updates.shift()
        if (updates.push(now()) > UPDATES_MAX) return 'too many messages'
        try {
          const options = parseOptions(message)
          if (options === null) return null
          form.want(options, options.size)
          hello?.resolve()
          return null
        } catch (error) {
          return (error as Error).message
        }
      },
    }
  }
}

class JetstreamForm implements Form {
  /** Events with a lower stamp are left out. */
  from = 0
  readonly #log: Log & Stamped
  readonly #dictionary: Uint8Array | null
  #wants: Wants | null = null
  #sizeMax = 0

  constructor(log: Log & Stamped, dictionary: Uint8Array | null) {
    this.#log = log
    this.#dictionary = dictionary
  }

  get name(): string {
    return `jetstream${this.#dictionary ? ' zstd' : ''}${this.#wants ? ', filtered' : ''}`
  }

  /** @throws Refused */
  want(text: WantsText, sizeMax: number): void {
    this.#wants = Wants.parse(text)
    this.#sizeMax = sizeMax
  }

  load(batch: Batch, after: number): Promise<unknown> | null {
    const stamps = this.#stamps(batch, after)
    return stamps instanceof Promise ? stamps.then(known => stampsByBatch.set(batch, known)) : null
  }

  select(batch: Batch, after: number): Batch | Promise<Batch> {
    const digest = digestOf(batch, entriesOf(this.#log))
    const stamps = this.#stamps(batch, after)
    return stamps instanceof Promise
      ? stamps.then(known => this.#select(batch, digest, known))
      : this.#select(batch, digest, stamps)
  }

  error(): null {
    return null
  }

  info(): null {
    return null
  }

  #stamps(batch: Batch, after: number): Stamps | Promise<Stamps> {
    let stamps = stampsByBatch.get(batch)
    if (!stamps) {
      stamps = this.#log.stamps(after, batch.last)
      stampsByBatch.set(batch, stamps)
    }
    return stamps
  }

  #select({ last }: Batch, digest: Digest, stamps: Stamps): Batch {
    const messages = digest.once('jetstream', null, () => messagesOf(digest, stamps))
    const make = () => this.#choose(last, messages)
    // Only at its beginning a replay has events to leave out that others get.
    if ((stamps.micros[0] ?? 0) < this.from) return make()
    return digest.once(`jetstream ${this.#sizeMax} ${this.#dictionary !== null}`, this.#wants, make)
  }

  #choose(last: number, messages: readonly Message[]): Batch {
    const chosen: Uint8Array[] = []
    for (const message of messages) {
      if (message.micros < this.from || !this.#admits(message.event)) continue
      const wire = message.as(this.#dictionary)
      if (wire && (this.#sizeMax === 0 || wire.length - payloadOf(wire) <= this.#sizeMax)) chosen.push(wire)
    }
    return batchOf(last, chosen)
  }

  #admits({ did, collection }: JetstreamEvent): boolean {
    if (!this.#wants) return true
    const kind = collection === null ? 'account' : 'commit'
    return this.#wants.admits({ kind, did, collections: collection === null ? [] : [collection] })
  }
}

/** A message, put as text or compressed when somebody wants it so. */
class Message {
  readonly event: JetstreamEvent
  readonly micros: number
  #json: string | null | undefined
  #plain: Uint8Array | undefined
  #packed: Uint8Array | undefined

  constructor(event: JetstreamEvent, micros: number) {
    this.event = event
    this.micros = micros
  }

  as(dictionary: Uint8Array | null): Uint8Array | null {
    if (this.#json === undefined) this.#json = this.event.json()
    const json = this.#json
    if (json === null) return null
    if (!dictionary) return (this.#plain ??= textMessage(json))
    return (this.#packed ??= toWire(zstdCompressSync(Buffer.from(json), { dictionary })))
  }
}

const stampsByBatch = new WeakMap<Batch, Stamps | Promise<Stamps>>()
const messagesByEntry = new WeakMap<Entry, readonly Message[]>()

function messagesOf({ entries }: Digest, { seqs, micros }: Stamps): Message[] {
  const stampOf = new Map(seqs.map((seq, i) => [seq, micros[i]!]))
  return entries.flatMap(entry => {
    const known = messagesByEntry.get(entry)
    if (known) return known
    const stamp = stampOf.get(entry.body?.seq as number)
    // Without a stamp its segment was dropped while it was read.
    if (stamp === undefined) return []
    const messages = jetstreamEvents(entry, stamp).map(event => new Message(event, stamp))
    messagesByEntry.set(entry, messages)
    return messages
  })
}

/** @throws Refused unless there is none, or one that is a decimal integer */
function parseMicros(params: URLSearchParams): number | null {
  const given = params.getAll('cursor')
  if (given.length === 0) return null
  if (given.length > 1 || !/^\d{1,18}$/.test(given[0]!)) {
    throw new Refused('InvalidRequest', 'cursor must be one integer: microseconds since 1970')
  }
  return Number(given[0])
}

/** Zero is no limit, and so is what is below. @throws Refused when it is no integer */
function parseSize(text: string | undefined): number {
  if (text === undefined) return 0
  if (!/^-?\d{1,15}$/.test(text)) throw new Refused('InvalidRequest', 'maxMessageSizeBytes must be an integer')
  return Math.max(0, Number(text))
}

/** What an `options_update` says; null for messages of other types. What it leaves out is no longer wanted. @throws Error */
function parseOptions(message: Buffer): (WantsText & { size: number }) | null {
  let said: unknown
  try {
    said = JSON.parse(message.toString())
  } catch {
    throw new Refused('InvalidRequest', 'not JSON')
  }
  const { type, payload } = fieldsOf(said)
  if (type !== 'options_update') return null
  const { wantedCollections, wantedDids, maxMessageSizeBytes } = fieldsOf(payload ?? {})
  return {
    collections: textsOf('wantedCollections', wantedCollections),
    dids: textsOf('wantedDids', wantedDids),
    size: parseSize(
      maxMessageSizeBytes === undefined || maxMessageSizeBytes === null ? undefined : String(maxMessageSizeBytes),
    ),
  }
}

function fieldsOf(value: unknown): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new Refused('InvalidRequest', 'not an object')
  }
  return value as Record<string, unknown>
}

function textsOf(name: string, value: unknown): string[] {
  if (value === undefined || value === null) return []
  if (!Array.isArray(value) || !value.every(item => typeof item === 'string')) {
    throw new Refused('InvalidRequest', `${name} must be a list of texts`)
  }
  return value
}
