/**
 * Checkpoints: what a relay signs of its log, so that whoever replays it can prove that nothing was left out or altered.
 *
 * A checkpoint says which events there are in a stretch of the log. It names them by a list of their hashes, which stays
 * whole when events are withheld later: a gap in a replay then shows as that. Each checkpoint names the one before, so a
 * relay cannot give two histories to those who compare its latest one.
 */
import { base64url, equal, unbase64url } from './bytes.ts'
import { decode, encode, type Obj } from './cbor.ts'
import { Cid } from './cid.ts'
import { PublicKey, type SigningKey } from './crypto.ts'
import { Malformed } from './errors.ts'
import { peek } from './event.ts'
import { sha256 } from './hash.ts'
import { CHECKPOINT_EVENTS_MAX, SEQ_MAX } from './limits.ts'
import { type Datetime, isDatetime } from './syntax.ts'

/** Says what the signature is for. */
const TYPE = 'net.millisky.relay.checkpoint'
const HASH_BYTES = 32
/** One event in a list: seq as 8 bytes, big-endian, then SHA-256 of the whole frame. */
const ENTRY_BYTES = 8 + HASH_BYTES

export interface Checkpoint {
  /** It is about all events with greater seq than `after`, up to `last`; there is one with `last`. */
  after: number
  last: number
  count: number
  /** Of the list of events, as a raw block. */
  events: Cid
  /** The checkpoint before; null for the first one. */
  prev: Cid | null
  time: Datetime
  /** `did:key:…` of the relay. */
  key: string
  sig: Uint8Array
}

/** A checkpoint in JSON, as `net.millisky.relay.listCheckpoints` gives it. */
export interface CheckpointJson {
  cid: string
  after: number
  last: number
  count: number
  events: string
  prev?: string
  time: Datetime
  key: string
  /** base64url */
  sig: string
}

// Lists of events

/** Collects the events of a stretch, in order. */
export class EventListWriter {
  #bytes = new Uint8Array(256 * ENTRY_BYTES)
  count = 0
  last = 0

  /** @throws Malformed when the frame has no seq or not a greater one */
  add(frame: Uint8Array): void {
    const { seq } = peek(frame)
    if (seq === null || seq <= this.last) throw new Malformed('seq does not rise')
    const at = this.count * ENTRY_BYTES
    if (at === this.#bytes.length) {
      const larger = new Uint8Array(2 * at)
      larger.set(this.#bytes)
      this.#bytes = larger
    }
    new DataView(this.#bytes.buffer).setBigUint64(at, BigInt(seq))
    this.#bytes.set(sha256(frame), at + 8)
    this.count++
    this.last = seq
  }

  get bytes(): Uint8Array {
    return this.#bytes.subarray(0, this.count * ENTRY_BYTES)
  }
}

/** The events that a checkpoint names, checked against it. */
export class EventList {
  readonly #bytes: Uint8Array
  readonly seqs: Float64Array

  /** @throws Malformed when this is not the list of that checkpoint */
  constructor(checkpoint: Checkpoint, bytes: Uint8Array) {
    const { events, after, last, count } = checkpoint
    if (!Cid.ofRaw(bytes).equals(events)) throw new Malformed('this is not the list that was signed')
    if (bytes.length !== count * ENTRY_BYTES) throw new Malformed('the list has not as many events as was signed')
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
    this.#bytes = bytes
    this.seqs = new Float64Array(count)
    let before = after
    for (let i = 0; i < count; i++) {
      const seq = Number(view.getBigUint64(i * ENTRY_BYTES))
      if (!(seq > before && seq <= SEQ_MAX)) throw new Malformed('seq does not rise')
      this.seqs[i] = before = seq
    }
    if (before !== last) throw new Malformed('the list does not end where the checkpoint does')
  }

  hash(i: number): Uint8Array {
    return this.#bytes.subarray(i * ENTRY_BYTES + 8, (i + 1) * ENTRY_BYTES)
  }
}

// Signing and checking

/** Signs a checkpoint. Its CID is what the next one names as `prev`. */
export function signCheckpoint(
  unsigned: Omit<Checkpoint, 'key' | 'sig'>,
  key: SigningKey,
): { checkpoint: Checkpoint; cid: Cid; bytes: Uint8Array } {
  const stated = { ...unsigned, key: key.didKey }
  const checkpoint = { ...stated, sig: key.sign(encode(signedPart(stated))) }
  const bytes = encodeCheckpoint(checkpoint)
  return { checkpoint, cid: Cid.ofCbor(bytes), bytes }
}

function signedPart({ after, last, count, events, prev, time, key }: Omit<Checkpoint, 'sig'>): Obj {
  return { $type: TYPE, after, last, count, events, prev, time, key }
}

function encodeCheckpoint(checkpoint: Checkpoint): Uint8Array {
  return encode({ ...signedPart(checkpoint), sig: checkpoint.sig })
}

/** Reads what {@link signCheckpoint} gave as `bytes`. The signature is not checked. @throws Malformed */
export function decodeCheckpoint(bytes: Uint8Array): Checkpoint {
  const { $type, events, prev, sig, ...rest } = decode(bytes) as Obj
  if ($type !== TYPE) throw new Malformed('not a checkpoint')
  if (!(events instanceof Cid) || !(prev === null || prev instanceof Cid) || !(sig instanceof Uint8Array)) {
    throw new Malformed('not a checkpoint')
  }
  return checked({ ...(rest as unknown as Checkpoint), events, prev, sig })
}

export function toJson(checkpoint: Checkpoint): CheckpointJson {
  const { after, last, count, events, prev, time, key, sig } = checkpoint
  const cid = Cid.ofCbor(encodeCheckpoint(checkpoint)).toString()
  const before = prev ? { prev: prev.toString() } : {}
  return { cid, after, last, count, events: events.toString(), ...before, time, key, sig: base64url(sig) }
}

/**
 * Reads a checkpoint that somebody gave, and checks its signature by its own key. Whose key that is, is for the caller
 * to say.
 * @throws Malformed
 */
export function fromJson(json: CheckpointJson): Checkpoint {
  const { after, last, count, events, prev, time, key, sig } = json
  if (typeof events !== 'string' || typeof sig !== 'string' || typeof key !== 'string') {
    throw new Malformed('not a checkpoint')
  }
  const checkpoint = checked({
    after,
    last,
    count,
    events: Cid.parse(events),
    prev: typeof prev === 'string' ? Cid.parse(prev) : null,
    time,
    key,
    sig: unbase64url(sig),
  })
  const signed = encode(signedPart(checkpoint))
  if (!PublicKey.parseDidKey(key).verify(signed, checkpoint.sig)) throw new Malformed('the signature is wrong')
  return checkpoint
}

function checked(checkpoint: Checkpoint): Checkpoint {
  const { after, last, count, time, key } = checkpoint
  for (const n of [after, last, count]) {
    if (!Number.isSafeInteger(n) || n < 0 || n > SEQ_MAX) throw new Malformed('not a checkpoint')
  }
  if (last <= after || count < 1 || count > last - after) throw new Malformed('a checkpoint of an impossible stretch')
  if (count > CHECKPOINT_EVENTS_MAX) throw new Malformed('a checkpoint of too many events')
  if (!isDatetime(time) || typeof key !== 'string') throw new Malformed('not a checkpoint')
  return checkpoint
}

export const cidOf = (checkpoint: Checkpoint): Cid => Cid.ofCbor(encodeCheckpoint(checkpoint))

/** What is between a checkpoint and the one that is to follow it. */
export type Link =
  /** It names the one before, and goes on where that one ends. */
  | 'follows'
  /** It names the one before; events between them were gone before anything was signed of them. */
  | 'hole'

/** @throws Malformed when `next` does not name `before`, or speaks of events that `before` has spoken of */
export function linkOf(before: Checkpoint, next: Checkpoint): Link {
  if (!next.prev?.equals(cidOf(before))) throw new Malformed(`the checkpoint up to ${next.last} names another history`)
  if (next.after < before.last) throw new Malformed(`the checkpoint up to ${next.last} overlaps the one before`)
  return next.after === before.last ? 'follows' : 'hole'
}

// Comparing a replay

export interface Comparison {
  /** Events that came as they were signed. */
  matched: number
  /** Seqs of events that were signed and did not come: they are withheld, as those of accounts that were taken down. */
  withheld: number[]
  /** Seqs of events that came otherwise than they were signed. */
  altered: number[]
  /** Seqs of events that came and were not signed. */
  unsigned: number[]
}

/** Compares the events of a replay, in order, with the list of a checkpoint. */
export class Replay {
  readonly #list: EventList
  readonly #result: Comparison = { matched: 0, withheld: [], altered: [], unsigned: [] }
  #at = 0

  /** @param from - the cursor of the replay: what is not after it is not expected */
  constructor(list: EventList, from: number) {
    this.#list = list
    while (this.#at < list.seqs.length && list.seqs[this.#at]! <= from) this.#at++
  }

  /** Takes an event whose seq lies in the stretch. */
  take(seq: number, frame: Uint8Array): void {
    this.#skipTo(seq)
    const { seqs } = this.#list
    if (seqs[this.#at] !== seq) {
      this.#result.unsigned.push(seq)
      return
    }
    if (equal(sha256(frame), this.#list.hash(this.#at++))) this.#result.matched++
    else this.#result.altered.push(seq)
  }

  /** What came of it, when no more will come. */
  finish(): Comparison {
    this.#skipTo(Number.POSITIVE_INFINITY)
    return this.#result
  }

  #skipTo(seq: number): void {
    const { seqs } = this.#list
    for (; this.#at < seqs.length && seqs[this.#at]! < seq; this.#at++) this.#result.withheld.push(seqs[this.#at]!)
  }
}
