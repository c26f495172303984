/**
 * The JSON form of atproto data: links are `{"$link": "<cid>"}`, byte strings `{"$bytes": "<base64>"}`, numbers are
 * integers. JSON is never canonical: do not hash or sign it.
 *
 * Source: atproto.com/specs/data-model; interop vectors data-model-{fixtures,valid,invalid}.json.
 */
import { base64, unbase64 } from './bytes.ts'
import { Float, type Obj, type Value } from './cbor.ts'
import { Cid, CODEC_RAW } from './cid.ts'
import { Malformed } from './errors.ts'
import { DATA_DEPTH_MAX } from './limits.ts'

/** What JSON text holds, with integers beyond ±(2^53-1) as bigint. */
export type JsonValue = null | boolean | number | bigint | string | JsonValue[] | JsonObject
export type JsonObject = { [key: string]: JsonValue }

export interface JsonOptions {
  /** Admit numbers that are not integers, for data outside atproto. */
  floats?: boolean
  /** Containers that may be open at once; 32 if left out, `Infinity` for no limit but that of memory. */
  depthMax?: number
}

/** Ends walks over cycles where the caller set no limit. */
const DEPTH_MAX = 1_000_000

/** A container to be filled from its counterpart in the other form. */
interface Step<From, To> {
  from: From[] | { [key: string]: From }
  to: To[] | { [key: string]: To }
  depth: number
}

/**
 * The JSON form of a value. Fresh containers throughout; nothing is shared with `value`.
 * @throws Malformed when nested too deep or not a {@link Value}.
 */
export function toJson(value: Value, options?: JsonOptions): JsonValue {
  return convert<Value, JsonValue>(value, toJsonLeaf, undefined, options)
}

/**
 * The value that parsed JSON stands for. 123.0 is 123.
 *
 * What the data model asks of every object holds of the result: `$type` is a string that is not empty, blobs are
 * whole (see {@link checkObject}). A record must besides be an object: {@link recordFromJson}.
 * @throws Malformed also on fractions, on `$link` and `$bytes` beside other keys or around the wrong thing, and on
 * numbers so large that digits were lost (see {@link parseJson}).
 */
export function fromJson(json: JsonValue, options?: JsonOptions): Value {
  return convert<JsonValue, Value>(json, options?.floats ? fromJsonLeafFloats : fromJsonLeaf, checkObject, options)
}

/** The record that parsed JSON stands for: as {@link fromJson}, and it must be an object. @throws Malformed */
export function recordFromJson(json: JsonValue, options?: JsonOptions): Obj {
  const value = fromJson(json, options)
  if (!isObj(value)) throw new Malformed('a record must be an object')
  return value
}

/** Whether a value is an object (map), and not another thing JavaScript takes for one. */
export function isObj(value: Value | undefined): value is Obj {
  return (
    typeof value === 'object' &&
    value !== null &&
    !Array.isArray(value) &&
    !(value instanceof Uint8Array) &&
    !(value instanceof Cid) &&
    !(value instanceof Number)
  )
}

/**
 * Checks a value that came as CBOR for what {@link fromJson} checks of JSON: `$type` and blobs in every object.
 * @throws Malformed
 */
export function checkData(value: Value, options?: JsonOptions): void {
  const depthMax = Math.min(options?.depthMax ?? DATA_DEPTH_MAX, DEPTH_MAX)
  let level: Value[] = [value]
  for (let depth = 0; level.length > 0; depth++) {
    const below: Value[] = []
    for (const item of level) {
      const isMap = isObj(item)
      if (!isMap && !Array.isArray(item)) continue
      if (depth >= depthMax) throw new Malformed('nested too deep')
      if (isMap) checkObject(item)
      for (const child of isMap ? Object.values(item) : item) below.push(child)
    }
    level = below
  }
}

/**
 * Checks one object, not those within: `$type` if there must be a string that is not empty, and an object of `$type`
 * "blob" must have a raw `ref`, a `size` that is a whole number and not negative, and a `mimeType`.
 * @throws Malformed
 */
export function checkObject(object: Obj): void {
  const type = object.$type
  if (type === undefined) return
  if (typeof type !== 'string' || type === '') throw new Malformed('$type must be a string that is not empty')
  if (type !== 'blob') return
  const { ref, size, mimeType } = object
  if (!(ref instanceof Cid) || ref.code !== CODEC_RAW) throw new Malformed('blob without a raw ref')
  if (typeof size !== 'number' || size < 0) throw new Malformed('blob without a size')
  if (typeof mimeType !== 'string' || mimeType === '') throw new Malformed('blob without a mimeType')
}

/**
 * Parses JSON text. Integers beyond ±(2^53-1) of up to 20 digits come as bigint; larger ones, and those written with
 * a fraction or an exponent, as the nearest number.
 * @throws Malformed when it is not JSON.
 */
export function parseJson(text: string): JsonValue {
  try {
    if (!LONG_NUMBER.test(text)) return JSON.parse(text)
    return parseWithSource(text, keepDigits) as JsonValue
  } catch (error) {
    throw new Malformed(`not JSON: ${(error as Error).message}`)
  }
}

/** Writes JSON text; bigints as their digits. @throws Malformed on what JSON cannot hold. */
export function stringifyJson(value: JsonValue): string {
  try {
    return JSON.stringify(value)
  } catch {
    // There are bigints in it, which is rare and costs a function call for each value.
  }
  try {
    return JSON.stringify(value, (_key, item) => (typeof item === 'bigint' ? rawJSON(String(item)) : item))
  } catch (error) {
    throw new Malformed(`not for JSON: ${(error as Error).message}`)
  }
}

/** The value that JSON text stands for: {@link parseJson}, then {@link fromJson}. @throws Malformed */
export function jsonToValue(text: string, options?: JsonOptions): Value {
  return fromJson(parseJson(text), options)
}

/** The JSON text of a value: {@link toJson}, then {@link stringifyJson}. @throws Malformed */
export function valueToJson(value: Value, options?: JsonOptions): string {
  return stringifyJson(toJson(value, options))
}

/** Sixteen digits are the fewest of a number beyond 2^53. They may also stand in a string, which costs only time. */
const LONG_NUMBER = /\d{16}/
const LONG_INTEGER = /^-?\d{16,20}$/

const { rawJSON } = JSON as unknown as { rawJSON(text: string): unknown }
const parseWithSource = JSON.parse as (
  text: string,
  reviver: (key: string, value: unknown, context: { source?: string }) => unknown,
) => unknown

function keepDigits(_key: string, value: unknown, context: { source?: string }): unknown {
  if (typeof value !== 'number' || Number.isSafeInteger(value)) return value
  return LONG_INTEGER.test(context.source!) ? BigInt(context.source!) : value
}

/** Walks without recursion: each container is made empty, put in its place, and filled when its turn comes. */
function convert<From, To>(
  root: From,
  leaf: (value: From) => To | undefined,
  check: ((object: { [key: string]: To }) => void) | undefined,
  options: JsonOptions | undefined,
): To {
  const depthMax = Math.min(options?.depthMax ?? DATA_DEPTH_MAX, DEPTH_MAX)
  const steps: Step<From, To>[] = []
  const objects: { [key: string]: To }[] = []
  const place = (value: From, depth: number): To => {
    const done = leaf(value)
    if (done !== undefined) return done
    if (depth >= depthMax) throw new Malformed('nested too deep')
    const to: To[] | { [key: string]: To } = Array.isArray(value) ? [] : {}
    steps.push({ from: value as From[] | { [key: string]: From }, to, depth: depth + 1 })
    return to as To
  }
  const result = place(root, 0)
  for (let step = steps.pop(); step !== undefined; step = steps.pop()) {
    const { from, to, depth } = step
    if (Array.isArray(from)) for (const item of from) (to as To[]).push(place(item, depth))
    else {
      const object = to as { [key: string]: To }
      for (const key of Object.keys(from)) {
        const value = place(from[key]!, depth)
        if (key !== '__proto__') object[key] = value
        else Object.defineProperty(object, key, { value, enumerable: true, configurable: true, writable: true })
      }
      if (check && object.$type !== undefined) objects.push(object)
    }
  }
  if (check) for (const object of objects) check(object)
  return result
}

/** The JSON form of what is no container; undefined for containers. */
function toJsonLeaf(value: Value): JsonValue | undefined {
  if (typeof value !== 'object' || value === null) {
    if (value === undefined || typeof value === 'function' || typeof value === 'symbol') throw new Malformed('not data')
    return value
  }
  if (value instanceof Cid) return { $link: value.toString() }
  if (value instanceof Uint8Array) return { $bytes: base64(value) }
  if (value instanceof Float) return value.valueOf()
  return undefined
}

/** The value of JSON that is no container, or stands for a link or bytes; undefined for containers. */
function fromJsonLeaf(json: JsonValue): Value | undefined {
  if (typeof json === 'number') {
    if (!Number.isInteger(json)) throw new Malformed(`not an integer: ${json}`)
    if (!Number.isSafeInteger(json)) throw new Malformed(`integer beyond 64 bits, or without all its digits: ${json}`)
    return json + 0
  }
  return fromJsonOther(json)
}

function fromJsonLeafFloats(json: JsonValue): Value | undefined {
  return typeof json === 'number' ? json : fromJsonOther(json)
}

function fromJsonOther(json: JsonValue): Value | undefined {
  if (typeof json === 'bigint') return fromBig(json)
  if (typeof json !== 'object') {
    if (typeof json !== 'string' && typeof json !== 'boolean') throw new Malformed('not JSON')
    return json
  }
  if (json === null) return null
  if (Array.isArray(json)) return undefined
  if (Object.hasOwn(json, '$link')) return Cid.parse(onlyText(json, '$link'))
  if (Object.hasOwn(json, '$bytes')) return unbase64(onlyText(json, '$bytes'))
  return undefined
}

function fromBig(n: bigint): number | bigint {
  if (n > 0xffff_ffff_ffff_ffffn || n < -0x1_0000_0000_0000_0000n) throw new Malformed('integer beyond 64 bits')
  const near = Number(n)
  return Number.isSafeInteger(near) ? near : n
}

/** The string under the one key that the object may have. */
function onlyText(object: JsonObject, key: '$link' | '$bytes'): string {
  const text = object[key]
  if (typeof text !== 'string') throw new Malformed(`${key} must be a string`)
  if (Object.keys(object).length !== 1) throw new Malformed(`${key} must stand alone`)
  return text
}
