/**
 * The did:plc method: operations, the identifier they hash to, and which operation may follow which.
 *
 * A directory checks what strangers send by {@link assertPlcOperation} and {@link applyPlcOperation}; a replica or a
 * wary reader replays a log by {@link verifyPlcLog}; a PDS builds operations by {@link plcGenesis}, {@link plcUpdate},
 * {@link plcTombstone} and {@link signPlcOperation}. All of it is a function of the log and the time given.
 *
 * Source: did:plc specification v0.3.0. Where its limits and those of the directory's code differ, the smaller holds.
 */
import { base32, base64url, unbase64url } from './bytes.ts'
import { encode, type Value } from './cbor.ts'
import { Cid } from './cid.ts'
import { PublicKey, type SigningKey } from './crypto.ts'
import { buildDidDocument, type DidContent, type WrittenDidDocument } from './did.ts'
import { Malformed, Refused } from './errors.ts'
import { sha256 } from './hash.ts'
import {
  PLC_AKA_LENGTH_MAX,
  PLC_ENTRIES_MAX,
  PLC_ID_LENGTH_MAX,
  PLC_KEY_LENGTH_MAX,
  PLC_OPERATION_BYTES_MAX,
  PLC_RECOVERY_MS,
  PLC_ROTATION_KEYS_MAX,
  PLC_SERVICE_ENDPOINT_LENGTH_MAX,
  PLC_SERVICE_TYPE_LENGTH_MAX,
} from './limits.ts'
import { type Did, isDatetime, isPlcDid } from './syntax.ts'

/** What a did:plc DID stands for: the content of its document and who may change it. */
export interface PlcData extends DidContent {
  /** `did:key`s, 1 to 5, the most powerful first: each may undo within 72 hours what a later one did. */
  readonly rotationKeys: readonly string[]
}

/** An operation that sets everything anew. */
export interface PlcUpdate extends PlcData {
  readonly type: 'plc_operation'
  /** The CID, as text, of the operation before; null in the first. */
  readonly prev: string | null
  /** 64 bytes as unpadded base64url. */
  readonly sig: string
}

/** The operation that ends a DID. */
export interface PlcTombstone {
  readonly type: 'plc_tombstone'
  readonly prev: string
  readonly sig: string
}

/** The first operation as it was in the method's first months; still the beginning of many logs, no longer made. */
export interface PlcLegacyCreate {
  readonly type: 'create'
  readonly signingKey: string
  readonly recoveryKey: string
  readonly handle: string
  readonly service: string
  readonly prev: null
  readonly sig: string
}

/** Any signed operation. Members beyond those named here are part of what is hashed and signed. */
export type PlcOperation = PlcUpdate | PlcTombstone | PlcLegacyCreate
/** An operation to be signed. */
export type Unsigned<Operation extends PlcOperation> = Omit<Operation, 'sig'>

/** One line of a directory's audit log. */
export interface PlcEntry {
  readonly did: Did
  readonly operation: PlcOperation
  /** The CID of `operation`. */
  readonly cid: string
  /** When the directory accepted it. */
  readonly createdAt: string
  /** Whether a more powerful key has undone it. */
  readonly nullified: boolean
}

// ---- reading ----

function isObject(value: unknown): value is { readonly [key: string]: unknown } {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function isStrings(value: unknown): boolean {
  return Array.isArray(value) && value.every(item => typeof item === 'string')
}

function isRecordOf(value: unknown, is: (item: unknown) => boolean): boolean {
  return isObject(value) && Object.values(value).every(is)
}

const isString = (value: unknown) => typeof value === 'string'
const isStringOrNull = (value: unknown) => value === null || typeof value === 'string'
const isNull = (value: unknown) => value === null

/** The members of each kind of operation. */
const SHAPES: { [type in PlcOperation['type']]: { [member: string]: (value: unknown) => boolean } } = {
  plc_operation: {
    type: isString,
    rotationKeys: isStrings,
    verificationMethods: value => isRecordOf(value, isString),
    alsoKnownAs: isStrings,
    services: value => isRecordOf(value, item => isObject(item) && isString(item.type) && isString(item.endpoint)),
    prev: isStringOrNull,
    sig: isString,
  },
  plc_tombstone: { type: isString, prev: isString, sig: isString },
  create: {
    type: isString,
    signingKey: isString,
    recoveryKey: isString,
    handle: isString,
    service: isString,
    prev: isNull,
    sig: isString,
  },
}

/**
 * Reads an operation of any age. Only its shape is checked, since logs hold operations older than today's limits.
 * @param json kept, not copied
 * @throws {@link Malformed}
 */
export function parsePlcOperation(json: unknown): PlcOperation {
  if (!isObject(json)) throw new Malformed('PLC operation is not an object')
  const type = json.type
  if (type !== 'plc_operation' && type !== 'plc_tombstone' && type !== 'create') {
    throw new Malformed('PLC operation of unknown type')
  }
  for (const [member, is] of Object.entries(SHAPES[type])) {
    if (!Object.hasOwn(json, member)) throw new Malformed(`PLC operation without ${member}`)
    if (!is(json[member])) throw new Malformed(`PLC operation with a bad ${member}`)
  }
  return json as unknown as PlcOperation
}

/**
 * Reads one line of an audit log or export; a line that does not say is not nullified.
 * @throws {@link Malformed}, also when the CID is not that of the operation
 */
export function parsePlcEntry(json: unknown): PlcEntry {
  if (!isObject(json)) throw new Malformed('PLC log entry is not an object')
  const { did, cid, createdAt, nullified = false } = json
  if (!isPlcDid(did) || typeof nullified !== 'boolean' || !isDatetime(createdAt)) {
    throw new Malformed('PLC log entry with a bad did, createdAt or nullified')
  }
  const operation = parsePlcOperation(json.operation)
  if (cid !== plcCid(operation)) throw new Malformed('PLC log entry whose CID is not that of its operation')
  return { did, operation, cid, createdAt, nullified }
}

// ---- limits ----

function refuse(message: string): never {
  throw new Refused('InvalidOperation', message)
}

function assertUnique(values: readonly string[], what: string): void {
  if (new Set(values).size !== values.length) refuse(`${what} holds an entry twice`)
}

function assertIds(values: { readonly [id: string]: unknown }, what: string): void {
  const ids = Object.keys(values)
  if (ids.length > PLC_ENTRIES_MAX) refuse(`more than ${PLC_ENTRIES_MAX} ${what}`)
  for (const id of ids) {
    if (id.length > PLC_ID_LENGTH_MAX) refuse(`an id in ${what} is longer than ${PLC_ID_LENGTH_MAX} characters`)
    if (id === '' || id.includes('#')) refuse(`an id in ${what} is empty or has a #`)
  }
}

function isRotationKey(key: string): boolean {
  try {
    return PublicKey.parseDidKey(key).didKey === key
  } catch {
    return false
  }
}

const ANY_DID_KEY = /^did:key:z[1-9A-HJ-NP-Za-km-z]+$/

function assertUpdate(op: PlcUpdate): void {
  const keys = op.rotationKeys
  if (keys.length === 0) refuse('no rotation key')
  if (keys.length > PLC_ROTATION_KEYS_MAX) refuse(`more than ${PLC_ROTATION_KEYS_MAX} rotation keys`)
  assertUnique(keys, 'rotationKeys')
  if (!keys.every(isRotationKey)) refuse('a rotation key is not a did:key of P-256 or K-256')
  assertIds(op.verificationMethods, 'verificationMethods')
  for (const key of Object.values(op.verificationMethods)) {
    if (key.length > PLC_KEY_LENGTH_MAX || !ANY_DID_KEY.test(key)) refuse('a verification method is not a did:key')
  }
  if (op.alsoKnownAs.length > PLC_ENTRIES_MAX) refuse(`more than ${PLC_ENTRIES_MAX} alsoKnownAs`)
  assertUnique(op.alsoKnownAs, 'alsoKnownAs')
  if (op.alsoKnownAs.some(name => name.length > PLC_AKA_LENGTH_MAX)) {
    refuse(`an alsoKnownAs is longer than ${PLC_AKA_LENGTH_MAX} characters`)
  }
  assertIds(op.services, 'services')
  for (const service of Object.values(op.services)) {
    if (Object.keys(service).length !== 2) refuse('a service has members beyond type and endpoint')
    if (service.type.length > PLC_SERVICE_TYPE_LENGTH_MAX) {
      refuse(`a service type is longer than ${PLC_SERVICE_TYPE_LENGTH_MAX} characters`)
    }
    if (service.endpoint.length > PLC_SERVICE_ENDPOINT_LENGTH_MAX) {
      refuse(`a service endpoint is longer than ${PLC_SERVICE_ENDPOINT_LENGTH_MAX} characters`)
    }
  }
}

/**
 * Checks everything about a new operation that can be seen without its log: shape, members, limits, size.
 * The legacy `create` is refused, as directories no longer take it.
 *
 * @throws {@link Malformed} on a wrong shape, {@link Refused} `InvalidOperation` on a limit
 */
export function assertPlcOperation(json: unknown): asserts json is PlcUpdate | PlcTombstone {
  const op = parsePlcOperation(json)
  if (op.type === 'create') refuse('the legacy create operation is no longer taken')
  if (Object.keys(op).length !== Object.keys(SHAPES[op.type]).length) refuse('the operation has unknown members')
  if (op.type === 'plc_operation') assertUpdate(op)
  if (op.prev !== null && !isPlcCid(op.prev)) refuse('prev is not the CID of an operation')
  const size = encode(op as unknown as Value).length
  if (size > PLC_OPERATION_BYTES_MAX) refuse(`the operation has ${size} bytes; ${PLC_OPERATION_BYTES_MAX} are allowed`)
}

function isPlcCid(text: string): boolean {
  try {
    const cid = Cid.parse(text)
    return cid.isCbor && cid.toString() === text
  } catch {
    return false
  }
}

// ---- hashes and signatures ----

/** The CID of a signed operation as text, which the next operation names in `prev`. @throws {@link Malformed} */
export function plcCid(operation: PlcOperation): string {
  return Cid.ofCbor(encode(operation as unknown as Value)).toString()
}

/** The DID that a signed first operation creates. @throws {@link Malformed} */
export function plcDidOf(genesis: PlcOperation): Did {
  const digest = sha256(encode(genesis as unknown as Value))
  return `did:plc:${base32(digest).slice(0, 24)}` as Did
}

/** Signs an operation. `key` has to be one of the rotation keys in force: those of the operation before, or its own if first. */
export function signPlcOperation<Operation extends PlcOperation>(
  unsigned: Unsigned<Operation>,
  key: SigningKey,
): Operation {
  const sig = base64url(key.sign(encode(unsigned as unknown as Value)))
  return { ...unsigned, sig } as Operation
}

/**
 * Which of these keys signed the operation.
 *
 * Signatures in DER, with a high s, with padding or with stray bits are nobody's. Keys that cannot be read are passed over.
 * @param keys `did:key`s
 * @returns the lowest index, or -1
 */
export function plcSigner(operation: PlcOperation, keys: readonly string[]): number {
  const { sig, ...unsigned } = operation
  let signature: Uint8Array
  let message: Uint8Array
  try {
    signature = unbase64url(sig)
    message = encode(unsigned as unknown as Value)
  } catch {
    return -1
  }
  return keys.findIndex(text => {
    try {
      return PublicKey.parseDidKey(text).verify(message, signature)
    } catch {
      return false
    }
  })
}

// ---- what an operation says ----

function legacyHandle(handle: string): string {
  return handle.startsWith('at://') ? handle : `at://${handle.replace('http://', '').replace('https://', '')}`
}

function legacyEndpoint(service: string): string {
  return /^https?:\/\//.test(service) ? service : `https://${service}`
}

/** What the DID stands for after this operation; null after a tombstone. A legacy `create` reads as its modern form. */
export function plcData(operation: PlcOperation): PlcData | null {
  switch (operation.type) {
    case 'plc_tombstone':
      return null
    case 'plc_operation': {
      const { rotationKeys, verificationMethods, alsoKnownAs, services } = operation
      return { rotationKeys, verificationMethods, alsoKnownAs, services }
    }
    case 'create':
      return {
        rotationKeys: [operation.recoveryKey, operation.signingKey],
        verificationMethods: { atproto: operation.signingKey },
        alsoKnownAs: [legacyHandle(operation.handle)],
        services: {
          atproto_pds: { type: 'AtprotoPersonalDataServer', endpoint: legacyEndpoint(operation.service) },
        },
      }
  }
}

/** The DID document that a directory serves. */
export function plcToDocument(did: Did, data: PlcData): WrittenDidDocument {
  return buildDidDocument(did, data)
}

// ---- the log ----

/** The operation in force: the last of a log that is not nullified. */
export function plcHead(log: readonly PlcEntry[]): PlcEntry | null {
  return log.findLast(entry => !entry.nullified) ?? null
}

/** What accepting an operation does to a log. */
export interface PlcStep {
  /** Of the accepted operation. */
  readonly cid: string
  /** CIDs of the entries that it undoes, oldest first; empty unless it recovers. */
  readonly nullified: readonly string[]
}

/**
 * Decides whether an operation may follow in a log: its place, its signature, and for a recovery its power and its time.
 * Limits are not checked here; see {@link assertPlcOperation}.
 *
 * An operation whose `prev` is not the head recovers: it undoes everything after `prev`, if signed by a rotation key of
 * `prev` more powerful than the one that signed the first undone operation, at most 72 hours after that one.
 *
 * @param log of this DID, oldest first, nullified entries included or left out
 * @param now milliseconds; for a replica, the time at which the directory accepted it
 * @throws {@link Refused} `GenesisMismatch`, `Misordered`, `InvalidSignature` or `LateRecovery`; {@link Malformed} when
 *   it cannot be encoded
 */
export function applyPlcOperation(did: Did, log: readonly PlcEntry[], operation: PlcOperation, now: number): PlcStep {
  const cid = plcCid(operation)
  const history = log.filter(entry => !entry.nullified)
  if (history.length === 0) {
    assertGenesis(did, operation)
    return { cid, nullified: [] }
  }
  if (operation.prev === null) throw new Refused('Misordered', 'prev is null, but the DID exists')
  const at = history.findIndex(entry => entry.cid === operation.prev)
  if (at < 0) throw new Refused('Misordered', 'prev is no operation in force')
  const before = plcData(history[at]!.operation)
  if (before === null) throw new Refused('Misordered', 'nothing follows a tombstone')
  const disputed = history[at + 1]
  if (disputed === undefined) {
    assertSigned(operation, before.rotationKeys)
    return { cid, nullified: [] }
  }
  const power = plcSigner(disputed.operation, before.rotationKeys)
  assertSigned(operation, before.rotationKeys.slice(0, Math.max(0, power)))
  const elapsed = now - Date.parse(disputed.createdAt)
  if (!(elapsed <= PLC_RECOVERY_MS)) {
    throw new Refused('LateRecovery', 'operations can be undone for 72 hours, and these are older')
  }
  return { cid, nullified: history.slice(at + 1).map(entry => entry.cid) }
}

function assertGenesis(did: Did, operation: PlcOperation): void {
  const data = plcData(operation)
  if (data === null || operation.prev !== null) throw new Refused('Misordered', 'the DID does not exist')
  if (plcDidOf(operation) !== did) throw new Refused('GenesisMismatch', 'the operation hashes to another DID')
  assertSigned(operation, data.rotationKeys)
}

function assertSigned(operation: PlcOperation, keys: readonly string[]): void {
  if (plcSigner(operation, keys) < 0) {
    throw new Refused('InvalidSignature', 'not signed by a rotation key that may make this operation')
  }
}

/**
 * Replays a whole audit log, each operation at the time of its entry, and checks that the log says of every one
 * whether it is nullified. Time grows with the square of the entries: bound what is fetched.
 *
 * @param entries oldest first, nullified ones included
 * @returns the entry in force
 * @throws {@link Refused} as {@link applyPlcOperation}, and `LogMismatch` when CIDs, times or nullifications are not as they
 *   should be
 */
export function verifyPlcLog(did: Did, entries: readonly PlcEntry[]): PlcEntry {
  const log: PlcEntry[] = []
  let before = Number.NEGATIVE_INFINITY
  for (const entry of entries) {
    const time = Date.parse(entry.createdAt)
    if (entry.did !== did) throw new Refused('LogMismatch', 'the log holds an entry of another DID')
    if (!(time >= before)) throw new Refused('LogMismatch', 'the log is not in order of time')
    before = time
    const step = applyPlcOperation(did, log, entry.operation, time)
    if (step.cid !== entry.cid) throw new Refused('LogMismatch', 'an entry has the CID of another operation')
    for (const [i, earlier] of log.entries()) {
      if (step.nullified.includes(earlier.cid)) log[i] = { ...earlier, nullified: true }
    }
    log.push({ ...entry, nullified: false })
  }
  if (log.some((entry, i) => entry.nullified !== entries[i]!.nullified)) {
    throw new Refused('LogMismatch', 'the log nullifies other operations than it should')
  }
  const head = plcHead(log)
  if (head === null) throw new Refused('LogMismatch', 'the log is empty')
  return head
}

// ---- building ----

/** The first operation of a new account, to be signed by one of `rotationKeys`. */
export function plcGenesis(account: {
  /** `did:key`s, most powerful first. */
  rotationKeys: readonly string[]
  /** `did:key` of the account's signing key. */
  signingKey: string
  handle: string
  /** Origin of the PDS. */
  pds: string
}): Unsigned<PlcUpdate> {
  return {
    type: 'plc_operation',
    rotationKeys: account.rotationKeys,
    verificationMethods: { atproto: account.signingKey },
    alsoKnownAs: [`at://${account.handle}`],
    services: { atproto_pds: { type: 'AtprotoPersonalDataServer', endpoint: account.pds } },
    prev: null,
  }
}

/**
 * The operation after `last` that changes what `change` names and keeps the rest.
 * @throws {@link Refused} `Misordered` after a tombstone
 */
export function plcUpdate(last: PlcOperation, change: Partial<PlcData>): Unsigned<PlcUpdate> {
  const data = plcData(last)
  if (data === null) throw new Refused('Misordered', 'nothing follows a tombstone')
  return { type: 'plc_operation', ...data, ...change, prev: plcCid(last) }
}

/** The operation after `last` that ends the DID. */
export function plcTombstone(last: PlcOperation): Unsigned<PlcTombstone> {
  return { type: 'plc_tombstone', prev: plcCid(last) }
}
