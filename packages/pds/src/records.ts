/**
 * What may be written as a record: `$type`, record key, schema where one is known, blobs, and no legacy forms.
 *
 * Source: protocol.md's write-path rules: data model and lexicon specs for the rules, the reference PDS for names and
 * messages.
 */
import type { l } from '@atproto/lex-schema'
import { encode, type Obj, type Value } from '@millisky/core/cbor'
import { Cid, CODEC_RAW } from '@millisky/core/cid'
import { Refused } from '@millisky/core/errors'
import { isObj } from '@millisky/core/json'
import { checkAsIs } from '@millisky/core/lexicon/check'
import { recordSchema } from '@millisky/core/lexicon/records'
import { isAtUri, isDid, isRkey, type Nsid, type Rkey } from '@millisky/core/syntax'
import { hasSlur } from './slurs.ts'

/** `true`: the schema must be known and fit. `false`: the data model only. Absent: the schema must fit if it is known. */
export type ValidateMode = boolean | undefined
export type ValidationStatus = 'valid' | 'unknown'

/** A blob as a record refers to it. */
export interface BlobUse {
  cid: Cid
  mimeType: string
  size: number
}

/** A record that may be written, encoded. */
export interface PreparedRecord {
  rkey: Rkey
  /** `collection/rkey` */
  path: string
  cid: Cid
  bytes: Uint8Array
  blobs: BlobUse[]
  /** What it likes, reposts, follows or blocks. */
  subject: string | null
  /** Absent if validation was not wanted. */
  validationStatus?: ValidationStatus
}

export interface RecordInput {
  collection: Nsid
  /** One is made if absent: what the schema fixes, if that counts, or `nextRkey()`. */
  rkey?: string | undefined
  record: Obj
  validate: ValidateMode
  /** Where the caller finds the record in what it has sent, for what is said about it; default `record`. */
  at?: string
  nextRkey: () => Rkey
}

/** Checks and encodes one record. `record` gets its `$type` if it has none. @throws Refused, Malformed */
export function prepareRecord(input: RecordInput): PreparedRecord {
  const { collection, rkey: given, record, validate, at = 'record', nextRkey } = input
  const value = withType(collection, record)
  assertReadable(value)
  const schema = recordSchema(collection)
  const rkey = given ?? (validate === false ? undefined : fixedKey(schema)) ?? nextRkey()
  if (!isRkey(rkey)) throw invalid(`Invalid record key: ${rkey}`)
  if (given !== undefined && hasSlur(given)) throw invalid('Unacceptable slur in record key')
  // Before blobs are looked for, since a schema says more of what is wrong with one.
  const validationStatus =
    validate === false
      ? undefined
      : validateRecord({ collection, rkey, value, schema, at, mustBeKnown: validate === true })
  const blobs = findBlobs(value)
  const bytes = encode(value)
  return {
    rkey,
    path: `${collection}/${rkey}`,
    cid: Cid.ofCbor(bytes),
    bytes,
    blobs,
    subject: subjectOf(collection, value),
    ...(validationStatus && { validationStatus }),
  }
}

const invalid = (message: string) => new Refused('InvalidRequest', message)

/**
 * Refuses what readers choke on: integers that have more than a sign and 63 bits, which JSON and CBOR can say and the data
 * model does not have; and a key at which the SDKs give up the whole reply that it is in.
 */
function assertReadable(value: Value): void {
  if (typeof value === 'bigint' && BigInt.asIntN(64, value) !== value) throw invalid(`Integer beyond 64 bits: ${value}`)
  if (!isContainer(value)) return
  if (Object.hasOwn(value, '__proto__')) throw invalid('Invalid key: __proto__')
  for (const inner of Object.values(value)) assertReadable(inner)
}

function withType(collection: Nsid, record: Obj): Obj {
  const type = record.$type
  if (type === undefined) return { $type: collection, ...record }
  if (type !== collection) throw invalid(`Invalid $type: expected ${collection}, got ${shown(type)}`)
  return record
}

const shown = (value: Value) => (typeof value === 'string' ? value.slice(0, 320) : typeof value)

/** The key that the schema allows alone, such as `self`. */
function fixedKey(schema: l.RecordSchema | undefined): string | undefined {
  const key = schema?.key
  return key?.startsWith('literal:') ? key.slice('literal:'.length) : undefined
}

interface Validation {
  collection: Nsid
  rkey: Rkey
  value: Obj
  schema: l.RecordSchema | undefined
  at: string
  mustBeKnown: boolean
}

function validateRecord({ collection, rkey, value, schema, at, mustBeKnown }: Validation): ValidationStatus {
  if (!schema) {
    if (mustBeKnown) throw invalid(`Unknown lexicon type: ${collection}`)
    return 'unknown'
  }
  const key = checkAsIs(schema.keySchema, rkey)
  if ('problem' in key) throw invalid(`Invalid record key for ${collection}: ${key.problem}`)
  const result = checkAsIs(schema, value)
  if ('problem' in result) throw schemaRefusal(schema, value, result.problem, at)
  return 'valid'
}

/** What a schema has against a blob has names of its own, so that clients can tell people. */
function schemaRefusal(schema: l.RecordSchema, record: Obj, problem: string, place: string): Refused {
  // Paths as clients know them, in which the record is a member of the call.
  const message = `Invalid ${schema.$type} record: ${problem.replaceAll(' at $', () => ` at $.${place}`)}`
  const result = schema.safeValidate(record)
  for (const { code, path } of result.success ? [] : result.reason.issues) {
    if (code === 'too_big' && isBlob(at(record, path))) return new Refused('InvalidSize', message)
    if (code === 'invalid_value' && path.at(-1) === 'mimeType' && isBlob(at(record, path.slice(0, -1)))) {
      return new Refused('InvalidMimeType', message)
    }
  }
  return invalid(message)
}

function at(value: Value, path: readonly PropertyKey[]): Value | undefined {
  let found: unknown = value
  for (const step of path) found = (found as Record<PropertyKey, unknown> | undefined)?.[step]
  return found as Value | undefined
}

const isBlob = (value: Value | undefined): boolean =>
  typeof value === 'object' && value !== null && '$type' in value && value.$type === 'blob'

/**
 * The blobs a record refers to, wherever they are in it, each CID once.
 * @throws Refused for the legacy form, and for something that says it is a blob and is not one
 */
export function findBlobs(record: Obj): BlobUse[] {
  let found: Map<string, BlobUse> | undefined
  for (const [object, kind] of blobLike(record)) {
    if (kind === 'legacy') throw invalid(`Legacy blobs are not allowed (${object.cid})`)
    const use = blobUse(object)
    found ??= new Map()
    found.set(use.cid.key, use)
  }
  return found ? [...found.values()] : []
}

/** The same of a record that was written elsewhere: also in the legacy form, and past what is no blob after all. */
export function findForeignBlobs(record: Obj): Cid[] {
  const found = new Map<string, Cid>()
  for (const [{ ref, cid }, kind] of blobLike(record)) {
    const used = kind === 'legacy' ? Cid.parse(cid as string) : ref
    if (used instanceof Cid && used.isBlessed && used.code === CODEC_RAW) found.set(used.key, used)
  }
  return [...found.values()]
}

/** Whether a record refers to a blob in these very words. */
export function refersTo(record: Obj, { cid, mimeType, size }: BlobUse): boolean {
  for (const [{ ref, mimeType: type, size: bytes }, kind] of blobLike(record)) {
    if (kind === 'blob' && ref instanceof Cid && ref.equals(cid) && type === mimeType && bytes === size) return true
  }
  return false
}

/**
 * Gives the pictures of a profile that are blobs in the legacy form, as those of 2023 may be, today's form.
 * @param record - Changed in place.
 * @param find - What is kept of a blob, if it is.
 */
export async function renewPictures(
  record: Obj,
  find: (cid: Cid) => Promise<{ mimeType: string; size: number } | null>,
): Promise<void> {
  for (const name of ['avatar', 'banner']) {
    const value = record[name]
    if (value === undefined || !isObj(value) || Object.keys(value).length !== 2 || !isLegacyBlob(value)) continue
    const ref = Cid.parse(value.cid as string)
    const kept = await find(ref)
    if (!kept) throw new Refused('BlobNotFound', `Could not find blob: ${ref}`)
    record[name] = { $type: 'blob', ref, mimeType: kept.mimeType, size: kept.size }
  }
}

/** Objects in a record that say they are blobs, or look like the legacy form. */
function* blobLike(record: Obj): Generator<[Obj, 'blob' | 'legacy']> {
  const stack: (Obj | Value[])[] = [record]
  for (let next = stack.pop(); next; next = stack.pop()) {
    if (Array.isArray(next)) {
      for (const value of next) if (isContainer(value)) stack.push(value)
      continue
    }
    if (next.$type === 'blob') {
      yield [next, 'blob']
      continue
    }
    let keys = 0
    for (const key in next) {
      keys++
      const value = next[key]!
      if (isContainer(value)) stack.push(value)
    }
    if (keys === 2 && isLegacyBlob(next)) yield [next, 'legacy']
  }
}

const isContainer = (value: Value): value is Obj | Value[] =>
  typeof value === 'object' && value !== null && !(value instanceof Cid) && !(value instanceof Uint8Array)

function blobUse({ ref, mimeType, size }: Obj): BlobUse {
  if (!(ref instanceof Cid && ref.isBlessed && ref.code === CODEC_RAW)) {
    throw invalid('Invalid blob reference: ref must be a link to a raw block')
  }
  if (typeof mimeType !== 'string' || mimeType === '') throw invalid('Invalid blob reference: mimeType must be a text')
  if (typeof size !== 'number' || size < 0) throw invalid('Invalid blob reference: size must be a number of bytes')
  return { cid: ref, mimeType, size }
}

function isLegacyBlob({ cid, mimeType }: Obj): boolean {
  if (typeof cid !== 'string' || typeof mimeType !== 'string' || mimeType === '') return false
  try {
    Cid.parse(cid)
    return true
  } catch {
    return false
  }
}

/** Collections in which an account has at most one record about the same thing. */
const SUBJECTS: Readonly<Record<string, 'did' | 'record'>> = {
  'app.bsky.feed.like': 'record',
  'app.bsky.feed.repost': 'record',
  'app.bsky.graph.follow': 'did',
  'app.bsky.graph.block': 'did',
}

/** What a like, repost, follow or block is about: the URI of a record, or a DID. */
export function subjectOf(collection: Nsid, record: Obj): string | null {
  const kind = SUBJECTS[collection]
  if (kind === undefined) return null
  const { subject } = record
  if (kind === 'did') return isDid(subject) ? subject : null
  if (subject === undefined || !isContainer(subject) || Array.isArray(subject)) return null
  return isAtUri(subject.uri) ? subject.uri : null
}
