/**
 * DAG-CBOR in its strict form (DRISL): the one encoding of atproto data, in which equal values have equal bytes.
 *
 * Both directions accept exactly the same set: what decodes, encodes to the bytes it came from. Neither recurses, so
 * depth is bounded by an option and never by the stack.
 *
 * Source: atproto.com/specs/data-model, dasl.ing/drisl.html, RFC 8949 §4.2.1.
 */
import { Buffer, isUtf8 } from 'node:buffer'
import { Output } from './cbor-output.ts'
import { Cid } from './cid.ts'
import { Malformed } from './errors.ts'
import { CONTAINER_ITEMS_MAX, DATA_DEPTH_MAX, MAP_KEY_BYTES_MAX } from './limits.ts'

/**
 * Data as atproto knows it. Integers within ±(2^53-1) are numbers, others (down to -2^64, up to 2^64-1) are bigints.
 * Objects are plain; their key order means nothing.
 */
export type Value = null | boolean | number | bigint | string | Uint8Array | Cid | Value[] | Obj
export type Obj = { [key: string]: Value }

export interface CborOptions {
  /** Admit 64-bit floats, which atproto forbids. Floats of integral value are {@link Float} objects. */
  floats?: boolean
  /** Containers that may be open at once; 32 if left out, `Infinity` for no limit. */
  depthMax?: number
  /** Elements of one array, entries of one map; 131,072 if left out. */
  itemsMax?: number
  /** Bytes of one map key; 8,192 if left out. */
  keyBytesMax?: number
}

/**
 * A float that happens to be integral and would be mistaken for an integer if it were a plain number: 1.0 is not 1
 * in CBOR. Behaves as the number in arithmetic and JSON. Only seen with `floats`.
 */
export class Float extends Number {}

const { utf8Slice } = Buffer.prototype as unknown as {
  utf8Slice(this: Uint8Array, start: number, end: number): string
}

// ---- decoding ----

/** A container that is not complete yet. */
class Frame {
  readonly list: Value[] | undefined
  readonly map: Obj | undefined
  readonly parent: Frame | undefined
  left: number
  key = ''
  keyAt = 0
  keyLength = -1

  constructor(list: Value[] | undefined, map: Obj | undefined, left: number, parent: Frame | undefined) {
    this.list = list
    this.map = map
    this.left = left
    this.parent = parent
  }
}

/**
 * Decodes bytes that hold exactly one item.
 *
 * Byte strings and CIDs in the result are views of `bytes`, which must not be changed afterwards.
 * @throws Malformed on anything that {@link encode} would not have written.
 */
export function decode(bytes: Uint8Array, options?: CborOptions): Value {
  const value = readItem(bytes, 0, options)
  if (itemEnd !== bytes.length) throw new Malformed('bytes behind the item', itemEnd)
  return value
}

/**
 * Decodes the item that begins at `at`; `end` is the offset behind it. For concatenated items, such as an event's
 * header and body. Views as with {@link decode}.
 * @throws Malformed
 */
export function decodeFirst(bytes: Uint8Array, at = 0, options?: CborOptions): { value: Value; end: number } {
  const value = readItem(bytes, at, options)
  return { value, end: itemEnd }
}

/** Decodes concatenated items until the bytes end; none is fine. Views as with {@link decode}. @throws Malformed */
export function decodeAll(bytes: Uint8Array, options?: CborOptions): Value[] {
  const values: Value[] = []
  for (let at = 0; at < bytes.length; at = itemEnd) values.push(readItem(bytes, at, options))
  return values
}

/** Offset behind the item that was read last. */
let itemEnd = 0

function readItem(buf: Uint8Array, at: number, options: CborOptions | undefined): Value {
  const depthMax = options?.depthMax ?? DATA_DEPTH_MAX
  const itemsMax = options?.itemsMax ?? CONTAINER_ITEMS_MAX
  const keyBytesMax = options?.keyBytesMax ?? MAP_KEY_BYTES_MAX
  const end = buf.length
  let pos = at
  let depth = 0
  let top: Frame | undefined
  for (;;) {
    if (pos >= end) throw cutShort(end)
    const head = buf[pos++]!
    const info = head & 31
    let arg = info
    if (info > 23 && head < 0xe0) {
      arg = readArgument(buf, pos, info)
      pos += 1 << (info - 24)
    }
    let value: Value
    switch (head >> 5) {
      case 0:
        value = arg <= Number.MAX_SAFE_INTEGER ? arg : readBig(buf, pos)
        break
      case 1:
        value = arg < Number.MAX_SAFE_INTEGER ? -1 - arg : -1n - readBig(buf, pos)
        break
      case 2:
      case 3:
        if (arg > end - pos) throw cutShort(end)
        value = head < 0x60 ? new Uint8Array(buf.buffer, buf.byteOffset + pos, arg) : readText(buf, pos, arg)
        pos += arg
        break
      case 4:
      case 5: {
        const map: Obj | undefined = head < 0xa0 ? undefined : {}
        const list: Value[] | undefined = map === undefined ? [] : undefined
        if (depth >= depthMax) throw new Malformed('nested too deep', pos)
        if (arg > itemsMax) throw new Malformed('too many items in one container', pos)
        // An item has at least a byte, an entry two: no container is believed to hold more than the input could.
        if (arg > (map === undefined ? end - pos : (end - pos) / 2)) throw cutShort(end)
        value = (map ?? list)!
        if (arg === 0) break
        top = new Frame(list, map, arg, top)
        depth++
        if (map !== undefined) pos = readKey(buf, pos, top, keyBytesMax)
        continue
      }
      case 6:
        if (arg !== 42) throw new Malformed('tag other than 42', pos)
        value = readCid(buf, pos)
        pos = itemEnd
        break
      default:
        value = info === 21 ? true : info === 20 ? false : info === 22 ? null : readFloat(buf, pos, info, options)
        if (info === 27) pos += 8
    }
    // Put the value where it belongs, and with it every container that it completes.
    for (;;) {
      if (top === undefined) {
        itemEnd = pos
        return value
      }
      const { map } = top
      if (map !== undefined) {
        if (top.keyLength === 9 && top.key === '__proto__') setProto(map, value)
        else map[top.key] = value
        if (--top.left > 0) {
          pos = readKey(buf, pos, top, keyBytesMax)
          break
        }
        value = map
      } else {
        top.list!.push(value)
        if (--top.left > 0) break
        value = top.list!
      }
      top = top.parent
      depth--
    }
  }
}

/** `map['__proto__'] = value` would change the prototype. */
function setProto(map: Obj, value: Value): void {
  Object.defineProperty(map, '__proto__', { value, enumerable: true, configurable: true, writable: true })
}

function cutShort(at: number): Malformed {
  return new Malformed('cut short', at)
}

/** The number behind a head with info 24-27; approximate beyond 2^53 (see {@link readBig}). */
function readArgument(buf: Uint8Array, pos: number, info: number): number {
  if (info > 27) throw new Malformed('indefinite length or reserved head', pos - 1)
  if (pos + (1 << (info - 24)) > buf.length) throw cutShort(buf.length)
  if (info === 24) {
    const arg = buf[pos]!
    if (arg > 23) return arg
  } else if (info === 25) {
    const arg = (buf[pos]! << 8) | buf[pos + 1]!
    if (arg > 0xff) return arg
  } else if (info === 26) {
    const arg = read32(buf, pos)
    if (arg > 0xffff) return arg
  } else {
    const high = read32(buf, pos)
    if (high > 0) return high * 0x1_0000_0000 + read32(buf, pos + 4)
  }
  throw new Malformed('number not in its shortest form', pos - 1)
}

function read32(buf: Uint8Array, pos: number): number {
  return ((buf[pos]! << 24) | (buf[pos + 1]! << 16) | (buf[pos + 2]! << 8) | buf[pos + 3]!) >>> 0
}

/** The 64-bit number that ends at `pos`, exactly. */
function readBig(buf: Uint8Array, pos: number): bigint {
  return (BigInt(read32(buf, pos - 8)) << 32n) | BigInt(read32(buf, pos - 4))
}

function readFloat(buf: Uint8Array, pos: number, info: number, options: CborOptions | undefined): number {
  if (info !== 27) throw new Malformed('simple value or float that is not allowed', pos - 1)
  if (!options?.floats) throw new Malformed('floats are not allowed', pos - 1)
  if (pos + 8 > buf.length) throw cutShort(buf.length)
  const value = new DataView(buf.buffer, buf.byteOffset + pos, 8).getFloat64(0)
  if (!Number.isFinite(value)) throw new Malformed('float not finite', pos - 1)
  return Number.isSafeInteger(value) ? (new Float(value) as unknown as number) : value
}

/** What follows tag 42: a byte string of a zero byte and the CID. Leaves the offset behind it in itemEnd. */
function readCid(buf: Uint8Array, pos: number): Cid {
  if (pos + 2 > buf.length) throw cutShort(buf.length)
  let length = buf[pos]! & 31
  let from = pos + 1
  if (buf[pos]! >> 5 !== 2) throw new Malformed('link that is not a byte string', pos)
  if (length > 23) {
    const info = length
    length = readArgument(buf, from, info)
    from += 1 << (info - 24)
  }
  if (length > buf.length - from) throw cutShort(buf.length)
  if (length < 1 || buf[from] !== 0) throw new Malformed('link without its zero byte', pos)
  itemEnd = from + length
  return Cid.view(buf, from + 1, length - 1)
}

/** For each length below, that many char codes: making a short string of them is cheaper than asking Node for it. */
const CHARS_MAX = 20
const charCodes: number[][] = Array.from({ length: CHARS_MAX + 1 }, (_, length) => new Array(length).fill(0))

function readText(buf: Uint8Array, pos: number, length: number): string {
  if (length <= CHARS_MAX) {
    const codes = charCodes[length]!
    let all = 0
    for (let i = 0; i < length; i++) all |= codes[i] = buf[pos + i]!
    if (all < 128) return String.fromCharCode.apply(null, codes)
  }
  const text = utf8Slice.call(buf, pos, pos + length)
  if (text.length !== length || text.includes('\ufffd')) {
    // Node puts U+FFFD for what is not UTF-8; it may also be there by right.
    if (!isUtf8(buf.subarray(pos, pos + length))) throw new Malformed('text that is not UTF-8', pos)
  }
  return text
}

/** Where the key that was found last begins and ends. */
let keyFrom = 0
let keyEnd = 0

/** Finds the key at `pos`, which has to sort after the one before it, of that place and length (-1 for none). */
function findKey(buf: Uint8Array, pos: number, beforeAt: number, before: number, bytesMax: number): void {
  const head = buf[pos]!
  let length = head & 31
  let from = pos + 1
  if (head >> 5 !== 3) throw pos < buf.length ? new Malformed('key that is not text', pos) : cutShort(pos)
  if (length > 23) {
    const info = length
    length = readArgument(buf, from, info)
    from += 1 << (info - 24)
  }
  if (length > bytesMax) throw new Malformed('key too long', pos)
  keyFrom = from
  keyEnd = from + length
  if (keyEnd > buf.length) throw cutShort(buf.length)
  if (length <= before && (length < before || !keysAscend(buf, beforeAt, from, length))) {
    throw new Malformed('keys not in canonical order, or one twice', pos)
  }
}

/** Reads the next key of a map into its frame and returns the offset behind it. */
function readKey(buf: Uint8Array, pos: number, frame: Frame, bytesMax: number): number {
  findKey(buf, pos, frame.keyAt, frame.keyLength, bytesMax)
  const [from, end] = [keyFrom, keyEnd]
  const length = end - from
  frame.keyAt = from
  frame.keyLength = length
  frame.key = length <= 8 ? shortKey(buf, from, length) : readText(buf, from, length)
  return end
}

/** Whether the key at `b` sorts after the one at `a`, both being of one length. */
function keysAscend(buf: Uint8Array, a: number, b: number, length: number): boolean {
  for (let i = 0; i < length; i++) {
    const order = buf[b + i]! - buf[a + i]!
    if (order !== 0) return order > 0
  }
  return false
}

// Keys repeat endlessly. Those of up to eight bytes are looked up as two words in a small direct-mapped table.
const KEY_SLOTS = 1024
const keyHigh = new Int32Array(KEY_SLOTS)
const keyLow = new Int32Array(KEY_SLOTS)
const keyTexts: string[] = new Array(KEY_SLOTS).fill('')

function shortKey(buf: Uint8Array, from: number, length: number): string {
  let high = 0
  let low = 0
  const end = from + length
  const middle = length > 4 ? from + 4 : end
  let i = from
  for (; i < middle; i++) high = (high << 8) | buf[i]!
  for (; i < end; i++) low = (low << 8) | buf[i]!
  const slot = (Math.imul(high ^ Math.imul(low, 0x9e3779b1), 0x85ebca6b) >>> 20) & (KEY_SLOTS - 1)
  const known = keyTexts[slot]!
  if (keyHigh[slot] === high && keyLow[slot] === low && known.length === length) return known
  const text = readText(buf, from, length)
  if (text.length === length) {
    keyHigh[slot] = high
    keyLow[slot] = low
    keyTexts[slot] = Object.keys({ [text]: 0 })[0]!
  }
  return text
}

// ---- checking ----

/** Of each container that is not complete: what is left of it, and of a map the last key; {@link LIST} stands for the length. */
const lefts: number[] = []
const keyAts: number[] = []
const keyLengths: number[] = []
const LIST = -2

/**
 * What {@link decode} does with bytes whose value is of no interest, for a fraction of the cost.
 * @throws Malformed exactly when decoding does
 */
export function check(bytes: Uint8Array, options?: CborOptions): void {
  const depthMax = options?.depthMax ?? DATA_DEPTH_MAX
  const itemsMax = options?.itemsMax ?? CONTAINER_ITEMS_MAX
  const keyBytesMax = options?.keyBytesMax ?? MAP_KEY_BYTES_MAX
  const end = bytes.length
  let pos = 0
  let depth = 0
  for (;;) {
    if (pos >= end) throw cutShort(end)
    const head = bytes[pos++]!
    const info = head & 31
    const major = head >> 5
    let arg = info
    if (info > 23 && major < 7) {
      arg = readArgument(bytes, pos, info)
      pos += 1 << (info - 24)
    }
    if (major === 2 || major === 3) {
      if (arg > end - pos) throw cutShort(end)
      if (major === 3) checkText(bytes, pos, arg)
      pos += arg
    } else if (major === 4 || major === 5) {
      if (depth >= depthMax) throw new Malformed('nested too deep', pos)
      if (arg > itemsMax) throw new Malformed('too many items in one container', pos)
      if (arg > (major === 4 ? end - pos : (end - pos) / 2)) throw cutShort(end)
      if (arg > 0) {
        lefts[depth] = arg
        keyLengths[depth] = major === 4 ? LIST : -1
        depth++
        if (major === 5) pos = checkKey(bytes, pos, depth - 1, keyBytesMax)
        continue
      }
    } else if (major === 6) {
      if (arg !== 42) throw new Malformed('tag other than 42', pos)
      readCid(bytes, pos)
      pos = itemEnd
    } else if (major === 7 && (info < 20 || info > 22)) {
      readFloat(bytes, pos, info, options)
      pos += 8
    }
    // The item completes those around it that wait for nothing else.
    while (depth > 0 && --lefts[depth - 1]! === 0) depth--
    if (depth === 0) break
    if (keyLengths[depth - 1] !== LIST) pos = checkKey(bytes, pos, depth - 1, keyBytesMax)
  }
  if (pos !== end) throw new Malformed('bytes behind the item', pos)
}

function checkKey(buf: Uint8Array, pos: number, at: number, bytesMax: number): number {
  findKey(buf, pos, keyAts[at] ?? 0, keyLengths[at]!, bytesMax)
  keyAts[at] = keyFrom
  keyLengths[at] = keyEnd - keyFrom
  checkText(buf, keyFrom, keyEnd - keyFrom)
  return keyEnd
}

/** Above this many bytes asking Node is cheaper than looking at each. */
const LOOK_MAX = 48

function checkText(buf: Uint8Array, pos: number, length: number): void {
  if (length <= LOOK_MAX) {
    let all = 0
    for (let i = pos; i < pos + length; i++) all |= buf[i]!
    if (all < 128) return
  }
  if (!isUtf8(buf.subarray(pos, pos + length))) throw new Malformed('text that is not UTF-8', pos)
}

// ---- encoding ----

/** A container that is being written: the items of an array, or a map and its keys. */
class Open {
  readonly list: readonly Value[]
  readonly map: Obj | undefined
  readonly length: number
  readonly parent: Open | undefined
  next = 0

  constructor(list: readonly Value[], map: Obj | undefined, length: number, parent: Open | undefined) {
    this.list = list
    this.map = map
    this.length = length
    this.parent = parent
  }
}

const SCRATCH_BYTES_KEPT = 1 << 20
/** The output buffer is kept between calls; a call owns it while it runs. */
let spare: Output | undefined

/**
 * Encodes a value; the bytes returned are the caller's own.
 *
 * The order of keys in objects does not matter. The same limits hold as for {@link decode}.
 * @throws Malformed on what has no encoding: undefined, NaN, floats (unless allowed), numbers beyond 2^53 that are not
 * bigint, text with lone surrogates, objects that are not plain, cycles.
 */
export function encode(value: Value, options?: CborOptions): Uint8Array {
  return encodeSequence([value], options)
}

/** Encodes values one behind the other, as in a frame of an event stream. @throws Malformed as {@link encode} */
export function encodeSequence(values: readonly Value[], options?: CborOptions): Uint8Array {
  const out = spare ?? new Output()
  spare = undefined
  out.at = 0
  for (const value of values) writeItem(out, value, options)
  const bytes = out.bytes.slice(0, out.at)
  if (out.bytes.length <= SCRATCH_BYTES_KEPT) spare = out
  return bytes
}

function writeItem(out: Output, first: Value, options: CborOptions | undefined): void {
  const depthMax = options?.depthMax ?? DATA_DEPTH_MAX
  const itemsMax = options?.itemsMax ?? CONTAINER_ITEMS_MAX
  const keyBytesMax = options?.keyBytesMax ?? MAP_KEY_BYTES_MAX
  let top: Open | undefined
  let depth = 0
  let value: Value = first
  // A container met again below itself is a cycle. Comparing with one ancestor, at a depth that doubles, finds every
  // cycle in the end, also when depth is not limited.
  let witness: unknown
  let witnessDepth = 0
  for (;;) {
    if (typeof value === 'string') out.text(value)
    else if (typeof value !== 'object') writeScalar(out, value, options)
    else if (value === null) out.byte(0xf6)
    else if (isContainer(value)) {
      if (depth >= depthMax) throw new Malformed('nested too deep')
      const open: Open = Array.isArray(value)
        ? new Open(value, undefined, value.length, top)
        : openMap(value as Obj, top)
      if (open.length > itemsMax) throw new Malformed('too many items in one container')
      out.head(open.map === undefined ? 0x80 : 0xa0, open.length)
      if (open.length > 0) {
        top = open
        depth++
        if (value === witness) throw new Malformed('cyclic')
        if ((depth & (depth - 1)) === 0) {
          witness = value
          witnessDepth = depth
        }
      }
    } else writeLeaf(out, value, options)
    while (top !== undefined && top.next === top.length) {
      top = top.parent
      if (--depth < witnessDepth) witness = undefined
    }
    if (top === undefined) return
    const { map } = top
    if (map === undefined) value = top.list[top.next++]!
    else {
      const key = top.list[top.next++] as string
      if (out.text(key) > keyBytesMax) throw new Malformed('key too long')
      value = map[key]!
    }
  }
}

function openMap(map: Obj, parent: Open | undefined): Open {
  const keys = canonicalKeys(map)
  return new Open(keys, map, keys.length, parent)
}

function isContainer(value: object): boolean {
  const prototype: unknown = Object.getPrototypeOf(value)
  return prototype === Object.prototype || prototype === null || Array.isArray(value)
}

/** Writes objects that hold no others. */
function writeLeaf(out: Output, value: object, options: CborOptions | undefined): void {
  if (value instanceof Cid) out.link(value)
  else if (value instanceof Uint8Array) out.byteString(value)
  else if (value instanceof Float && options?.floats) out.float(value.valueOf())
  else throw new Malformed('object that is not plain')
}

function writeScalar(out: Output, value: unknown, options: CborOptions | undefined): void {
  if (typeof value === 'string') out.text(value)
  else if (typeof value === 'number') {
    if (Number.isSafeInteger(value)) {
      if (value >= 0) out.head(0x00, value)
      else out.head(0x20, -1 - value)
    } else if (options?.floats) out.float(value)
    else throw new Malformed(Number.isInteger(value) ? 'number beyond 2^53 that is not a bigint' : 'float')
  } else if (typeof value === 'boolean') out.byte(value ? 0xf5 : 0xf4)
  else if (typeof value === 'bigint') out.big(value)
  else throw new Malformed(`${typeof value} has no encoding`)
}

/** The keys of a map in canonical order: by length in UTF-8, then bytewise. */
function canonicalKeys(map: Obj): string[] {
  const keys = Object.keys(map)
  let sorted = true
  for (let i = 0; i < keys.length; i++) {
    const key = keys[i]!
    for (let j = 0; j < key.length; j++) if (key.charCodeAt(j) > 127) return sortByBytes(keys)
    if (i > 0 && sorted) sorted = asciiOrder(keys[i - 1]!, key) < 0
  }
  if (sorted) return keys
  if (keys.length > 32) return keys.sort(asciiOrder)
  for (let i = 1; i < keys.length; i++) {
    const key = keys[i]!
    let j = i
    for (; j > 0 && asciiOrder(keys[j - 1]!, key) > 0; j--) keys[j] = keys[j - 1]!
    keys[j] = key
  }
  return keys
}

function asciiOrder(a: string, b: string): number {
  return a.length - b.length || (a < b ? -1 : 1)
}

/** For keys beyond ASCII, whose order in UTF-16 and in UTF-8 differ. */
function sortByBytes(keys: string[]): string[] {
  return keys
    .map(key => ({ key, bytes: Buffer.from(key) }))
    .sort((a, b) => a.bytes.length - b.bytes.length || Buffer.compare(a.bytes, b.bytes))
    .map(({ key }) => key)
}
