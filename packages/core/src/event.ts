/**
 * Events: the messages of `com.atproto.sync.subscribeRepos` and the frames they travel in.
 *
 * A frame is one WebSocket message: two DAG-CBOR objects back to back, header and body. A relay never re-encodes what it
 * passes on, so fields it does not know survive; the one thing it changes is `seq`, see {@link withSeq}.
 *
 * Source: atproto.com/specs/event-stream, atproto.com/specs/sync, lexicon com.atproto.sync.subscribeRepos.
 */
import type { Block } from './blocks.ts'
import { latin1 } from './bytes.ts'
import { writeCar } from './car.ts'
import { decode, decodeFirst, encodeSequence, type Obj, type Value } from './cbor.ts'
import { Cid } from './cid.ts'
import { Malformed } from './errors.ts'
import { FRAME_BYTES_MAX, FRAME_ITEMS_MAX, SEQ_MAX } from './limits.ts'
import type { Change } from './repo.ts'
import { createSlab } from './slab.ts'
import { type Datetime, type Did, type Handle, isDatetime, isDid, isTid, type Tid } from './syntax.ts'

/** A frame taken apart. Byte strings in `body` are views into `bytes`. */
export interface Frame {
  /** 1 for a message, -1 for an error; anything else is to be skipped. */
  op: number
  /** Type of a message, such as `#commit`; null for errors. One that is not known is to be skipped. */
  t: string | null
  header: Obj
  /** All fields, known or not. */
  body: Obj
  /** The whole frame as it came. */
  bytes: Uint8Array
}

/** A message about to be sent: {@link encodeFrame} makes the bytes, {@link withSeq} gives it its place. */
export interface Event {
  t: '#commit' | '#sync' | '#identity' | '#account'
  body: Obj
}

/** One change to one record. */
export interface RepoOp {
  action: 'create' | 'update' | 'delete'
  /** `collection/rkey` */
  path: string
  /** What the path holds now; null after a delete. */
  cid: Cid | null
  /** What the path held before; null after a create. Older producers leave it out of updates and deletes too. */
  prev: Cid | null
}

/** Body of a `#commit`. */
export interface CommitBody {
  seq: number
  rebase: boolean
  tooBig: boolean
  repo: Did
  commit: Cid
  rev: Tid
  since: Tid | null
  /** CAR: the commit, the tree nodes that prove the operations, the records. */
  blocks: Uint8Array
  ops: RepoOp[]
  /** Root of the tree before; null when the producer did not say, as on an account's first commit. */
  prevData: Cid | null
  time: Datetime
}

/** Body of a `#sync`: where the repository stands now, without how it got there. */
export interface SyncBody {
  seq: number
  did: Did
  /** CAR with the commit block alone. */
  blocks: Uint8Array
  rev: Tid
  time: Datetime
}

/** Body of an `#identity`: ask again who this is. */
export interface IdentityBody {
  seq: number
  did: Did
  time: Datetime
  /** As the sender believes, unverified and not checked for syntax. */
  handle: string | null
}

/** Body of an `#account`: whether the sender serves this account. */
export interface AccountBody {
  seq: number
  did: Did
  time: Datetime
  active: boolean
  /** Why not; senders may invent new words. */
  status: string | null
}

/** Body of an `#info`, the one message without `seq`. */
export interface InfoBody {
  name: string
  message: string | null
}

// Frames

const OPTIONS = { floats: true } as const
const TYPES = ['#commit', '#identity', '#account', '#sync', '#info']
const SLASH = 0x2f

/** Makes the bytes of a message. `seq` is a placeholder until {@link withSeq}. */
export function encodeFrame(event: { t: string; body: Obj }): Uint8Array {
  return encodeSequence([{ t: event.t, op: 1 }, event.body], OPTIONS)
}

/** The frame that says what went wrong before the connection is closed. `error` is a bare name such as `FutureCursor`. */
export function errorFrame(error: string, message?: string): Uint8Array {
  return encodeSequence([{ op: -1 }, message === undefined ? { error } : { error, message }])
}

/** The frame that tells something about the stream itself, such as `OutdatedCursor`. */
export function infoFrame(name: string, message?: string): Uint8Array {
  return encodeFrame({ t: '#info', body: message === undefined ? { name } : { name, message } })
}

/**
 * Takes a frame apart, strictly: canonical DAG-CBOR, nothing behind it, at most 5,000,000 bytes and 131,072 items.
 *
 * Unknown fields, types and operations are no error. Floats are let pass, since only the known fields are any of ours.
 *
 * @throws Malformed when the bytes are no frame at all: the connection they came from is to be dropped.
 */
export function decodeFrame(bytes: Uint8Array): Frame {
  if (bytes.length > FRAME_BYTES_MAX)
    throw new Malformed(`frame of ${bytes.length} bytes is larger than ${FRAME_BYTES_MAX}`)
  // Five megabytes of empty maps would take hundreds as objects.
  if (countItems(bytes, FRAME_ITEMS_MAX) > FRAME_ITEMS_MAX) throw new Malformed('frame of too many items')
  const { value: header, end } = decodeFirst(bytes, 0, OPTIONS)
  if (!isObj(header)) throw new Malformed('frame header is not a map')
  const { op, t } = header
  if (typeof op !== 'number' || !Number.isInteger(op)) throw new Malformed('frame header has no op')
  if (op === 1 && typeof t !== 'string') throw new Malformed('frame header has no t')
  const body = decode(bytes.subarray(end), OPTIONS)
  if (!isObj(body)) {
    if (op === 1 || op === -1) throw new Malformed('frame body is not a map', end)
    return { op, t: null, header, body: {}, bytes }
  }
  return { op, t: op === 1 ? (t as string) : null, header, body, bytes }
}

/**
 * Encodes a frame anew with some fields of its body replaced, or removed where `undefined`. Everything else is kept.
 * For what a relay must say differently, such as its own `status` in an `#account`.
 */
export function rewriteFrame(frame: Frame, fields: { [name: string]: Value | undefined }): Uint8Array {
  const body: Obj = { ...frame.body }
  for (const [name, value] of Object.entries(fields)) {
    if (value === undefined) delete body[name]
    else body[name] = value
  }
  return encodeSequence([frame.header, body], OPTIONS)
}

function isObj(value: Value): value is Obj {
  return typeof value === 'object' && value !== null && Object.getPrototypeOf(value) === Object.prototype
}

// Looking into a frame without decoding it

/**
 * Finds type, account and sequence number of a frame without building its values: for choosing a queue.
 *
 * Reads no further than it must and is no check of the rest. `did` (of a `#commit`, its `repo`) is any text, not yet
 * known to be a DID; null where there is none.
 *
 * @throws Malformed when it stumbles over bytes that are no frame.
 */
export function peek(bytes: Uint8Array): { op: number; t: string | null; did: string | null; seq: number | null } {
  let op: number | null = null
  let t: string | null = null
  let at = readHead(bytes, 0)
  if (major !== 5) throw new Malformed('frame header is not a map', 0)
  for (let left = argument; left > 0; left--) {
    const value = skip(bytes, at)
    if (nameIs(bytes, at, 'op')) op = readInteger(bytes, value)
    else if (nameIs(bytes, at, 't')) t = readType(bytes, value)
    at = skip(bytes, value)
  }
  if (op === null) throw new Malformed('frame header has no op')
  if (op !== 1) t = null
  at = readHead(bytes, at)
  const who = t === '#commit' ? 'repo' : 'did'
  let did: string | null = null
  let seq: number | null = null
  for (let left = entries(); left > 0; left--) {
    // Canonical order puts short names first: behind four characters nothing wanted can come.
    if ((did !== null && seq !== null) || bytes[at]! > 0x64) break
    const value = skip(bytes, at)
    if (nameIs(bytes, at, 'seq')) seq = readInteger(bytes, value)
    else if (nameIs(bytes, at, who)) did = readText(bytes, value)
    at = skip(bytes, value)
  }
  return { op, t, did, seq }
}

/** Whether the bytes are two items and nothing else, as a frame is. No check of what they say. */
export function isWhole(bytes: Uint8Array): boolean {
  try {
    return skip(bytes, skip(bytes, 0)) === bytes.length
  } catch (error) {
    if (error instanceof Malformed) return false
    throw error
  }
}

/** What a `#commit` says of collections, and where to look for more. */
export interface CommitSketch {
  /** Collections with a record made or changed, and with one deleted; any text, each once. */
  put: string[]
  deleted: string[]
  /** Key of the CID of the tree before; null when the producer did not say. */
  prevData: string | null
  /** There is a `since`, so this is not the first commit. */
  hasSince: boolean
  /** The CAR. */
  blocks: Uint8Array
}

/**
 * Finds the collections of a `#commit` that is known to be well formed, without building its values. Byte strings are
 * views. Null when it is another frame.
 * @throws Malformed when it stumbles over bytes that are no frame.
 */
export function sketchCommit(frame: Uint8Array): CommitSketch | null {
  if (typeOf(frame) !== '#commit') return null
  const sketch: CommitSketch = { put: [], deleted: [], prevData: null, hasSince: false, blocks: new Uint8Array(0) }
  let at = readHead(frame, skip(frame, 0))
  for (let left = entries(); left > 0; left--) {
    const value = skip(frame, at)
    if (nameIs(frame, at, 'ops')) sketchOps(frame, value, sketch)
    else if (nameIs(frame, at, 'blocks')) sketch.blocks = readBytes(frame, value) ?? sketch.blocks
    else if (nameIs(frame, at, 'since')) sketch.hasSince = frame[value] !== 0xf6
    else if (nameIs(frame, at, 'prevData')) sketch.prevData = readLink(frame, value)
    at = skip(frame, value)
  }
  return sketch
}

/** The type in the header, whatever the `op`. */
function typeOf(frame: Uint8Array): string | null {
  let at = readHead(frame, 0)
  for (let left = entries(); left > 0; left--) {
    const value = skip(frame, at)
    if (nameIs(frame, at, 't')) return readType(frame, value)
    at = skip(frame, value)
  }
  return null
}

function sketchOps(frame: Uint8Array, start: number, { put, deleted }: CommitSketch): void {
  let at = readHead(frame, start)
  for (let ops = major === 4 ? argument : 0; ops > 0; ops--) {
    at = readHead(frame, at)
    let collection = ''
    let list = put
    for (let left = entries(); left > 0; left--) {
      const value = skip(frame, at)
      if (nameIs(frame, at, 'path')) collection = readCollection(frame, value)
      else if (nameIs(frame, at, 'action')) list = nameIs(frame, value, 'delete') ? deleted : put
      at = skip(frame, value)
    }
    if (!list.includes(collection)) list.push(collection)
  }
}

/** What stands before the slash in the text at `at`; nothing when there is none. */
function readCollection(frame: Uint8Array, at: number): string {
  const from = readHead(frame, at)
  const end = major === 3 ? Math.min(from + argument, frame.length) : from
  let slash = from
  while (slash < end && frame[slash] !== SLASH) slash++
  return slash < end ? latin1(frame, from, slash) : ''
}

/**
 * The same frame under another sequence number. Only the bytes of that integer differ; as integers have their shortest
 * form, the length may. The result may be part of a larger buffer: copy it before giving that to another thread.
 *
 * @param frame one that {@link decodeFrame} or {@link encodeFrame} knows to be well formed, with a `seq`
 * @param seq 1 to 2^53 - 1
 * @param room gives as many bytes to write to, for who has a place for the result already; called once
 * @throws Malformed when there is no `seq` to replace
 */
export function withSeq(frame: Uint8Array, seq: number, room: (length: number) => Uint8Array = allocate): Uint8Array {
  const at = seqOffset(frame)
  const behind = readHead(frame, at)
  const size = integerSize(seq)
  const result = room(frame.length - (behind - at) + size)
  if (behind - at === size) result.set(frame)
  else {
    result.set(frame.subarray(0, at))
    result.set(frame.subarray(behind), at + size)
  }
  writeInteger(result, at, size, seq)
  return result
}

/** Small frames share memory. */
const allocate = createSlab(131_072)

/** Where the integer `seq` of the body begins. @throws Malformed when the body has none */
function seqOffset(frame: Uint8Array): number {
  let at = readHead(frame, skip(frame, 0))
  for (let left = entries(); left > 0; left--) {
    const value = skip(frame, at)
    if (nameIs(frame, at, 'seq')) {
      if (readInteger(frame, value) === null) break
      return value
    }
    at = skip(frame, value)
  }
  throw new Malformed('frame has no seq')
}

// Of the head of a CBOR item that was read last, its major type and its argument (rounded above 2^53). An object for each
// would be a fifth of all that is left to be collected of an event.
let major = 0
let argument = 0

/** Reads the head of an item into {@link major} and {@link argument}; gives the offset behind it. */
function readHead(bytes: Uint8Array, at: number): number {
  const first = bytes[at]
  if (first === undefined) throw new Malformed('frame cut short', at)
  major = first >> 5
  argument = first & 31
  return argument < 24 ? at + 1 : readArgument(bytes, at + 1, argument)
}

function readArgument(bytes: Uint8Array, at: number, info: number): number {
  if (info > 27) throw new Malformed('not DAG-CBOR', at - 1)
  const behind = at + (1 << (info - 24))
  if (behind > bytes.length) throw new Malformed('frame cut short', at - 1)
  let value = 0
  for (let i = at; i < behind; i++) value = value * 256 + bytes[i]!
  argument = value
  return behind
}

/** How many entries the map has whose head was read last; 0 when it is none. */
function entries(): number {
  return major === 5 ? argument : 0
}

/** Whether the text at `at` is this ASCII name of less than 24 characters. */
function nameIs(bytes: Uint8Array, at: number, name: string): boolean {
  if (bytes[at] !== 0x60 + name.length) return false
  for (let i = 0; i < name.length; i++) if (bytes[at + 1 + i] !== name.charCodeAt(i)) return false
  return true
}

/** The type at `at`. The known ones are always the same strings: a new one is looked up each time it is compared. */
function readType(bytes: Uint8Array, at: number): string | null {
  for (const type of TYPES) if (nameIs(bytes, at, type)) return type
  return readText(bytes, at)
}

/** The text at `at`, null when there is something else. What is not ASCII comes out garbled. */
function readText(bytes: Uint8Array, at: number): string | null {
  const from = readHead(bytes, at)
  if (major !== 3) return null
  if (from + argument > bytes.length) throw new Malformed('frame cut short', at)
  return latin1(bytes, from, from + argument)
}

/** The byte string at `at`, as a view; null when there is something else. */
function readBytes(bytes: Uint8Array, at: number): Uint8Array | null {
  const from = readHead(bytes, at)
  if (major !== 2) return null
  if (from + argument > bytes.length) throw new Malformed('frame cut short', at)
  return bytes.subarray(from, from + argument)
}

/** Key of the CID at `at`, null when there is something else. */
function readLink(bytes: Uint8Array, at: number): string | null {
  const from = readHead(bytes, at)
  if (major !== 6) return null
  // Inside is a byte string that begins with a zero.
  const begin = readHead(bytes, from)
  if (begin + argument > bytes.length) throw new Malformed('frame cut short', at)
  return latin1(bytes, begin + 1, begin + argument)
}

/** The integer at `at`, null when there is something else. */
function readInteger(bytes: Uint8Array, at: number): number | null {
  readHead(bytes, at)
  if (major > 1) return null
  return major === 0 ? argument : -1 - argument
}

/** The offset behind one item and all that is in it. Needs no stack: only how many items are still to come counts. */
function skip(bytes: Uint8Array, at: number): number {
  let count = 0
  for (let pending = 1; pending > 0; pending--) {
    if (++count > FRAME_ITEMS_MAX) throw new Malformed('frame of too many items', at)
    at = readHead(bytes, at)
    if (major === 2 || major === 3) at += argument
    else if (major === 4) pending += argument
    else if (major === 5) pending += 2 * argument
    else if (major === 6) pending++
  }
  if (at > bytes.length) throw new Malformed('frame cut short', at)
  return at
}

/** The number of CBOR items in a frame, also of those inside others; counting ends behind `max`. */
function countItems(bytes: Uint8Array, max: number): number {
  let count = 0
  for (let at = 0; at < bytes.length && count <= max; count++) {
    at = readHead(bytes, at)
    if (major === 2 || major === 3) at += argument
  }
  return count
}

function integerSize(value: number): number {
  if (!Number.isSafeInteger(value) || value < 0) throw new RangeError(`not a seq: ${value}`)
  if (value < 24) return 1
  if (value < 0x100) return 2
  if (value < 0x10000) return 3
  return value < 0x1_0000_0000 ? 5 : 9
}

function writeInteger(target: Uint8Array, at: number, size: number, value: number): void {
  if (size === 1) {
    target[at] = value
    return
  }
  target[at] = size === 2 ? 0x18 : size === 3 ? 0x19 : size === 5 ? 0x1a : 0x1b
  for (let i = at + size - 1; i > at; i--) {
    target[i] = value % 256
    value = Math.floor(value / 256)
  }
}

// Reading bodies

/**
 * Reads the body of a `#commit`. Of the deprecated fields `rebase` and `tooBig` may be missing and mean false; `blobs` is
 * not looked at. How fields relate to each other is not checked, see `verify.ts`.
 *
 * @throws Malformed
 */
export function readCommit(body: Obj): CommitBody {
  const { rebase = false, tooBig = false, ops, prevData = null } = body
  if (typeof rebase !== 'boolean') throw new Malformed('rebase is not a boolean')
  if (typeof tooBig !== 'boolean') throw new Malformed('tooBig is not a boolean')
  if (!Array.isArray(ops)) throw new Malformed('ops is not an array')
  if (prevData !== null && !(prevData instanceof Cid)) throw new Malformed('prevData is not a link')
  if (body.since !== null && !isTid(body.since)) throw new Malformed('since is neither null nor a TID')
  if (!(body.commit instanceof Cid)) throw new Malformed('commit is not a link')
  return {
    seq: readSeq(body),
    rebase,
    tooBig,
    repo: readDid(body, 'repo'),
    commit: body.commit,
    rev: readRev(body),
    since: body.since,
    blocks: readBlocks(body),
    ops: ops.map(readOp),
    prevData,
    time: readTime(body),
  }
}

/** @throws Malformed */
export function readSync(body: Obj): SyncBody {
  return {
    seq: readSeq(body),
    did: readDid(body, 'did'),
    blocks: readBlocks(body),
    rev: readRev(body),
    time: readTime(body),
  }
}

/** @throws Malformed */
export function readIdentity(body: Obj): IdentityBody {
  const { handle = null } = body
  if (handle !== null && typeof handle !== 'string') throw new Malformed('handle is not a text')
  return { seq: readSeq(body), did: readDid(body, 'did'), time: readTime(body), handle }
}

/** @throws Malformed */
export function readAccount(body: Obj): AccountBody {
  const { active, status = null } = body
  if (typeof active !== 'boolean') throw new Malformed('active is not a boolean')
  if (status !== null && typeof status !== 'string') throw new Malformed('status is not a text')
  return { seq: readSeq(body), did: readDid(body, 'did'), time: readTime(body), active, status }
}

/** @throws Malformed */
export function readInfo(body: Obj): InfoBody {
  const { name, message = null } = body
  if (typeof name !== 'string') throw new Malformed('name is not a text')
  return { name, message: typeof message === 'string' ? message : null }
}

/** What an error frame says. @throws Malformed */
export function readError(body: Obj): { error: string; message: string | null } {
  const { error, message = null } = body
  if (typeof error !== 'string') throw new Malformed('error is not a text')
  return { error, message: typeof message === 'string' ? message : null }
}

function readOp(value: Value): RepoOp {
  if (!isObj(value)) throw new Malformed('op is not a map')
  const { action, path, cid, prev = null } = value
  if (action !== 'create' && action !== 'update' && action !== 'delete') throw new Malformed('op has an unknown action')
  if (typeof path !== 'string') throw new Malformed('path of an op is not a text')
  if (cid !== null && !(cid instanceof Cid)) throw new Malformed('cid of an op is neither null nor a link')
  if (prev !== null && !(prev instanceof Cid)) throw new Malformed('prev of an op is not a link')
  return { action, path, cid, prev }
}

function readSeq({ seq }: Obj): number {
  if (typeof seq !== 'number' || !Number.isInteger(seq) || seq < 0 || seq > SEQ_MAX) throw new Malformed('no valid seq')
  return seq
}

function readDid(body: Obj, name: 'did' | 'repo'): Did {
  const did = body[name]
  if (!isDid(did)) throw new Malformed(`${name} is not a DID`)
  return did
}

function readRev({ rev }: Obj): Tid {
  if (!isTid(rev)) throw new Malformed('rev is not a TID')
  return rev
}

function readBlocks({ blocks }: Obj): Uint8Array {
  if (!(blocks instanceof Uint8Array)) throw new Malformed('blocks is not a byte string')
  return blocks
}

function readTime({ time }: Obj): Datetime {
  if (!isDatetime(time)) throw new Malformed('time is not a datetime')
  return time
}

// Building bodies

/** The event that tells of a change to a repository. */
export function commitEvent(change: Change, time: Datetime): Event {
  const { head, prev, ops, car } = change
  const body: Obj = {
    seq: 0,
    rebase: false,
    tooBig: false,
    repo: head.did,
    commit: head.commit,
    rev: head.rev,
    since: prev?.rev ?? null,
    blocks: car,
    ops: ops.map(({ action, path, cid, prev }): Obj => (prev ? { action, path, cid, prev } : { action, path, cid })),
    blobs: [],
    time,
  }
  if (prev) body.prevData = prev.data
  return { t: '#commit', body }
}

/** The event that states where a repository stands, such as after an import or a reactivation. */
export function syncEvent(state: { did: Did; rev: Tid; commit: Block }, time: Datetime): Event {
  const { did, rev, commit } = state
  return { t: '#sync', body: { seq: 0, did, blocks: writeCar([commit.cid], [commit]), rev, time } }
}

/** The event that asks everybody to look up an identity again. */
export function identityEvent(identity: { did: Did; handle?: Handle | null }, time: Datetime): Event {
  const { did, handle } = identity
  return { t: '#identity', body: handle ? { seq: 0, did, time, handle } : { seq: 0, did, time } }
}

/** The event that tells an account's status here. `status` belongs to an inactive account, or to a throttled one. */
export function accountEvent(account: { did: Did; active: boolean; status?: string | null }, time: Datetime): Event {
  const { did, active, status } = account
  return { t: '#account', body: status ? { seq: 0, did, time, active, status } : { seq: 0, did, time, active } }
}
