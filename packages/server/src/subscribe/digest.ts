/**
 * What is in a batch, found out once for all consumers who do not just take its bytes, and the messages made of it, each made once.
 *
 * A digest lives as long as the batch it is of: at the live tail one step, in a replay one read. What is known of single events is kept longer,
 * as much as is bounded: consumers who come back after a restart all replay the same stretch, cut into batches differently.
 */
import { constants, deflateRawSync } from 'node:zlib'
import type { Obj } from '@millisky/core/cbor'
import { decodeFrame, peek } from '@millisky/core/event'
import { valueToJson } from '@millisky/core/json'
import { scanWire, toWire } from '../log/frame-wire.ts'
import type { Batch, Log } from '../log/log.ts'
import type { Subject } from './wants.ts'

/** First bytes of WebSocket messages. Source: RFC 6455 §5.2, RFC 7692 §6. */
const TEXT = 0x81
const COMPRESSED = 0x40

/** How a message is put: as it lies in the log, as JSON, either of them compressed. */
export type Packing = 'cbor' | 'json' | 'cbor+deflate' | 'json+deflate'

/** An event of a batch. */
export class Entry implements Subject {
  readonly kind: string | null
  readonly did: string | null
  readonly collections: readonly string[]
  /** Null when it is no event of a known kind. */
  readonly body: Obj | null
  readonly #wire: Uint8Array
  readonly #frame: Uint8Array
  readonly #made = new Map<Packing, Uint8Array | null>()

  /** @param wire the whole message @param frame what it carries */
  constructor(wire: Uint8Array, frame: Uint8Array) {
    this.#wire = wire
    this.#frame = frame
    const read = readEvent(frame)
    this.kind = read?.kind ?? null
    this.body = read?.body ?? null
    this.did = read ? textOf(read.kind === 'commit' ? read.body.repo : read.body.did) : null
    this.collections = read?.kind === 'commit' ? collectionsOf(read.body) : []
  }

  /** The message, or null when the event cannot be put that way. */
  as(packing: Packing): Uint8Array | null {
    if (packing === 'cbor') return this.#wire
    let made = this.#made.get(packing)
    if (made === undefined) {
      made = this.#make(packing)
      this.#made.set(packing, made)
    }
    return made
  }

  #make(packing: Packing): Uint8Array | null {
    if (packing === 'cbor+deflate') return deflated(this.#frame, this.#wire)
    const { kind, body } = this
    if (kind === null || body === null) return null
    if (packing === 'json') return jsonEvent(kind, body)
    const plain = this.as('json')
    return plain && deflated(plain.subarray(payloadOf(plain)), plain)
  }
}

/** Bytes of the events that {@link Entries} keeps; what was made of them may come to twice as much again. */
const KEPT_BYTES = 16 << 20

/** What is known of the events of one log, the latest that were asked for. */
export class Entries {
  readonly #bytesMax: number
  readonly #bySeq = new Map<number, { entry: Entry; bytes: number }>()
  #bytes = 0

  constructor(bytesMax = KEPT_BYTES) {
    this.#bytesMax = bytesMax
  }

  /** Bytes of the events kept. */
  get bytes(): number {
    return this.#bytes
  }

  /** @param wire the whole message, which is copied @param frame what it carries */
  of(wire: Uint8Array, frame: Uint8Array): Entry {
    const seq = seqOf(frame)
    const known = seq === null ? undefined : this.#bySeq.get(seq)
    if (known) return known.entry
    // A view would keep the whole of what was read with it, and that memory may be read into again.
    const own = new Uint8Array(wire)
    const entry = new Entry(own, own.subarray(wire.length - frame.length))
    if (seq === null) return entry
    this.#bySeq.set(seq, { entry, bytes: wire.length })
    this.#bytes += wire.length
    for (const [oldest, { bytes }] of this.#bySeq) {
      if (this.#bytes <= this.#bytesMax) break
      this.#bySeq.delete(oldest)
      this.#bytes -= bytes
    }
    return entry
  }
}

const entriesByLog = new WeakMap<Log, Entries>()

/** The events known of a log; the same object for the same log. */
export function entriesOf(log: Log): Entries {
  let entries = entriesByLog.get(log)
  if (!entries) {
    entries = new Entries()
    entriesByLog.set(log, entries)
  }
  return entries
}

/** A batch, looked into. */
export class Digest {
  readonly entries: readonly Entry[]
  readonly #made = new Map<string, Map<object | null, unknown>>()

  constructor({ wire }: Batch, known: Entries) {
    const entries: Entry[] = []
    for (const part of wire) {
      for (let at = 0; at < part.length; ) {
        const span = scanWire(part, at)
        if (span === null || span === 'bad') throw new Error(`not a whole WebSocket message at byte ${at}`)
        entries.push(known.of(part.subarray(at, span.end), part.subarray(span.start, span.end)))
        at = span.end
      }
    }
    this.entries = entries
  }

  /** What was made before for the same choice and way, or is made now. */
  once<T>(way: string, choice: object | null, make: () => T): T {
    let ofWay = this.#made.get(way)
    if (!ofWay) {
      ofWay = new Map()
      this.#made.set(way, ofWay)
    }
    if (!ofWay.has(choice)) ofWay.set(choice, make())
    return ofWay.get(choice) as T
  }
}

const digests = new WeakMap<Batch, Digest>()

/** The digest of a batch of a log; the same one for the same batch. */
export function digestOf(batch: Batch, known: Entries): Digest {
  let digest = digests.get(batch)
  if (!digest) {
    digest = new Digest(batch, known)
    digests.set(batch, digest)
  }
  return digest
}

/** One buffer to write for these messages. */
export function batchOf(last: number, messages: readonly Uint8Array[]): Batch {
  return { count: messages.length, last, wire: messages.length > 1 ? [Buffer.concat(messages)] : messages }
}

/** A text as a WebSocket message. */
export function textMessage(text: string): Uint8Array {
  const wire = toWire(Buffer.from(text))
  wire[0] = TEXT
  return wire
}

/** An event in the form `xrpc.v1.json`. */
export function jsonMessage(kind: string, body: Obj): string {
  const message = { $type: `com.atproto.sync.subscribeRepos#${kind}`, ...body }
  // What upstream servers add is passed on whatever its depth, as in the log's own form.
  return `{"$type":"message","message":${valueToJson(message, { depthMax: Number.POSITIVE_INFINITY, floats: true })}}`
}

/** An event that JSON cannot hold is nothing to end a connection for: it would end again at the same place. */
function jsonEvent(kind: string, body: Obj): Uint8Array | null {
  try {
    return textMessage(jsonMessage(kind, body))
  } catch {
    return null
  }
}

/** An error in the form `xrpc.v1.json`. */
export function jsonError(error: string, message: string): string {
  return JSON.stringify({ $type: 'error', error, message })
}

/** Where the payload of a message begins. */
export function payloadOf(message: Uint8Array): number {
  const short = message[1]!
  return short < 126 ? 2 : short === 126 ? 4 : 10
}

/** A payload compressed on its own, or the plain message where that would be no shorter. Source: RFC 7692 §7.2.1. */
function deflated(payload: Uint8Array, plain: Uint8Array): Uint8Array {
  const packed = deflateRawSync(payload, { finishFlush: constants.Z_SYNC_FLUSH })
  if (packed.length - 4 >= payload.length) return plain
  const wire = toWire(packed.subarray(0, -4))
  wire[0] = plain[0]! | COMPRESSED
  return wire
}

function seqOf(frame: Uint8Array): number | null {
  try {
    return peek(frame).seq
  } catch {
    return null
  }
}

function readEvent(frame: Uint8Array): { kind: string; body: Obj } | null {
  try {
    const { op, t, body } = decodeFrame(frame)
    return op === 1 && t !== null ? { kind: t.replace(/^#/, ''), body } : null
  } catch {
    // Whoever filters does not get it; all others get its bytes.
    return null
  }
}

function collectionsOf({ ops }: Obj): string[] {
  if (!Array.isArray(ops)) return []
  const names = ops.flatMap(op => {
    const path = typeof op === 'object' && op !== null && 'path' in op ? op.path : null
    return typeof path === 'string' ? [path.split('/', 1)[0]!] : []
  })
  return [...new Set(names)]
}

const textOf = (value: unknown): string | null => (typeof value === 'string' ? value : null)
