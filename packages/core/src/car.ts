/**
 * CAR version 1: a list of blocks behind a header that names the roots, as one byte string or as a stream.
 *
 * Source: atproto.com/specs/repository (CAR File Serialization), ipld.io/specs/transport/car/carv1.
 */
import type { Block } from './blocks.ts'
import { readVarint } from './bytes.ts'
import { decode, encode, type Value } from './cbor.ts'
import { CID_BYTES, Cid, cidEnd, hashMatches } from './cid.ts'
import { Malformed } from './errors.ts'
import { CAR_BLOCK_BYTES_MAX, CAR_BLOCKS_MAX, CAR_HEADER_BYTES_MAX } from './limits.ts'

export interface CarOptions {
  /** Check that each block has the hash its CID says; true if left out. Blocks are worth nothing unchecked. */
  verify?: boolean
  /** Bytes of the header; 65,536 if left out. */
  headerBytesMax?: number
  /** Bytes of one block, its CID not counted; 8 MiB if left out. */
  blockBytesMax?: number
  /** Number of blocks; 2^24 if left out. */
  blocksMax?: number
}

/** The longest length prefix: nine bytes of seven bits each. */
const VARINT_BYTES_MAX = 9
/** The shortest CID that can be: version, codec, hash and a digest of length zero. */
const CID_BYTES_MIN = 4

/**
 * Reads a whole CAR. Blocks come in the order of the file, repeated ones repeatedly; whether they hang together is
 * not checked. CIDs and blocks are views of `bytes`.
 * @throws Malformed
 */
export function readCar(bytes: Uint8Array, options: CarOptions = {}): { roots: Cid[]; blocks: Block[] } {
  const reader = new EntryReader(options)
  const blocks: Block[] = []
  const behind = reader.read(bytes, 0, blocks)
  if (behind !== bytes.length || reader.roots === undefined) throw new Malformed('CAR cut short', bytes.length)
  return { roots: reader.roots, blocks }
}

/**
 * Reads a CAR that arrives in chunks, however they are cut. Holds no more than one incomplete block.
 *
 * Blocks are views of the chunk they arrived in, or of a copy when they arrived in several: chunks must not be
 * changed or reused by their giver.
 */
export class CarDecoder {
  readonly #reader: EntryReader
  /** The beginning of an entry that is not complete; its first #length bytes count. */
  #held = new Uint8Array(0)
  #length = 0
  #failed = false

  constructor(options: CarOptions = {}) {
    this.#reader = new EntryReader(options)
  }

  /** The roots, once the header has arrived. */
  get roots(): Cid[] | undefined {
    return this.#reader.roots
  }

  /** Takes the next chunk and returns the blocks that it completes. @throws Malformed, and from then on always. */
  push(chunk: Uint8Array): Block[] {
    if (this.#failed) throw new Malformed('CAR that failed before')
    this.#failed = true
    const blocks: Block[] = []
    let at = 0
    while (this.#length > 0 && at < chunk.length) at += this.#complete(chunk, at, blocks)
    if (at < chunk.length) {
      const behind = this.#reader.read(chunk, at, blocks)
      this.#hold(chunk, behind, chunk.length)
    }
    this.#failed = false
    return blocks
  }

  /** Says that there are no more chunks. @throws Malformed when the header or a block is not complete. */
  end(): void {
    if (this.#failed) throw new Malformed('CAR that failed before')
    if (this.#length > 0 || this.roots === undefined) throw new Malformed('CAR cut short')
  }

  /** Adds to the incomplete entry as many bytes as it is known to need; returns how many were taken. */
  #complete(chunk: Uint8Array, at: number, blocks: Block[]): number {
    const wanted = this.#reader.entryBytes(this.#held.subarray(0, this.#length), 0) ?? this.#length + 1
    const taken = Math.min(wanted - this.#length, chunk.length - at)
    this.#hold(chunk, at, at + taken)
    if (this.#length === wanted) {
      const entry = this.#held.subarray(0, wanted)
      if (this.#reader.read(entry, 0, blocks) === wanted) {
        this.#held = new Uint8Array(0)
        this.#length = 0
      }
    }
    return taken
  }

  /** Copies bytes behind those held. Grows by what arrives, not by what is announced. */
  #hold(chunk: Uint8Array, from: number, to: number): void {
    const length = this.#length + to - from
    if (length > this.#held.length) {
      const grown = new Uint8Array(Math.max(length, this.#held.length * 2))
      grown.set(this.#held.subarray(0, this.#length))
      this.#held = grown
    }
    this.#held.set(chunk.subarray(from, to), this.#length)
    this.#length = length
  }
}

/** Reads entries (the header first, then blocks) as long as they are complete. */
class EntryReader {
  roots: Cid[] | undefined
  readonly #verify: boolean
  readonly #headerBytesMax: number
  readonly #blockBytesMax: number
  #blocksLeft: number

  constructor(options: CarOptions) {
    this.#verify = options.verify ?? true
    this.#headerBytesMax = options.headerBytesMax ?? CAR_HEADER_BYTES_MAX
    this.#blockBytesMax = options.blockBytesMax ?? CAR_BLOCK_BYTES_MAX
    this.#blocksLeft = options.blocksMax ?? CAR_BLOCKS_MAX
  }

  /** Reads from `at` and returns the offset of the first entry that is not complete. */
  read(bytes: Uint8Array, at: number, blocks: Block[]): number {
    for (;;) {
      const whole = this.entryBytes(bytes, at)
      if (whole === undefined || whole > bytes.length - at) return at
      const end = at + whole
      let from = at + 1
      while (bytes[from - 1]! > 127) from++
      if (this.roots === undefined) this.roots = readHeader(bytes.subarray(from, end))
      else blocks.push(this.#block(bytes, from, end))
      at = end
    }
  }

  /** Length of the entry at `at` with its length prefix; undefined when the prefix is not complete. */
  entryBytes(bytes: Uint8Array, at: number): number | undefined {
    const first = bytes[at]
    let length: number
    let next = at + 1
    if (first === undefined) return undefined
    if (first < 128) length = first
    else {
      let last = at + 1
      while (last < bytes.length && bytes[last]! > 127) last++
      if (last >= bytes.length && last - at < VARINT_BYTES_MAX) return undefined
      ;({ value: length, next } = readVarint(bytes, at))
    }
    if (this.roots === undefined) {
      if (length === 0) throw new Malformed('CAR header of no length', at)
      if (length > this.#headerBytesMax) throw new Malformed('CAR header too long', at)
    } else if (length < CID_BYTES_MIN) throw new Malformed('CAR block shorter than a CID', at)
    else if (length > this.#blockBytesMax + 100) throw new Malformed('CAR block too long', at)
    return next - at + length
  }

  #block(bytes: Uint8Array, from: number, end: number): Block {
    if (--this.#blocksLeft < 0) throw new Malformed('CAR of too many blocks', from)
    const split = cidEnd(bytes, from, end)
    if (end - split > this.#blockBytesMax) throw new Malformed('CAR block too long', from)
    const cid = Cid.view(bytes, from, split - from)
    const block = new Uint8Array(bytes.buffer, bytes.byteOffset + split, end - split)
    if (this.#verify && !hashMatches(cid, block)) throw new Malformed(`CAR block does not match its CID ${cid}`, from)
    return { cid, bytes: block }
  }
}

/** The header of a CAR with one blessed root, as nearly all are, up to the root's CID and behind it. */
const ONE_ROOT = Uint8Array.of(
  ...[0xa2, 0x65, 0x72, 0x6f, 0x6f, 0x74, 0x73, 0x81, 0xd8, 0x2a, 0x58, CID_BYTES + 1, 0x00],
)
const VERSION_1 = Uint8Array.of(0x67, 0x76, 0x65, 0x72, 0x73, 0x69, 0x6f, 0x6e, 0x01)

function hasOneRoot(bytes: Uint8Array): boolean {
  const behind = ONE_ROOT.length + CID_BYTES
  if (bytes.length !== behind + VERSION_1.length) return false
  for (let i = 0; i < ONE_ROOT.length; i++) if (bytes[i] !== ONE_ROOT[i]) return false
  for (let i = 0; i < VERSION_1.length; i++) if (bytes[behind + i] !== VERSION_1[i]) return false
  return true
}

function readHeader(bytes: Uint8Array): Cid[] {
  if (hasOneRoot(bytes)) return [Cid.view(bytes, ONE_ROOT.length, CID_BYTES)]
  const header = decode(bytes)
  if (header === null || typeof header !== 'object' || Array.isArray(header) || !('version' in header)) {
    throw new Malformed('CAR header that is no map with a version')
  }
  const { version, roots } = header as { [key: string]: Value }
  if (version !== 1) throw new Malformed('CAR of a version other than 1')
  if (!Array.isArray(roots) || !roots.every(root => root instanceof Cid))
    throw new Malformed('CAR header without roots')
  return roots
}

/** The first bytes of a CAR with these roots. */
export function carHeader(roots: readonly Cid[]): Uint8Array {
  const header = encode({ version: 1, roots: [...roots] })
  const bytes = new Uint8Array(varintBytes(header.length) + header.length)
  bytes.set(header, writeVarint(bytes, 0, header.length))
  return bytes
}

/** One block as it stands in a CAR. */
export function carBlock(block: Block): Uint8Array {
  const bytes = new Uint8Array(blockBytes(block))
  writeBlock(bytes, 0, block)
  return bytes
}

/** What stands before the bytes of a block in a CAR. */
export function carBlockHead({ cid, bytes }: Block): Uint8Array {
  const length = cid.length + bytes.length
  const head = new Uint8Array(varintBytes(length) + cid.length)
  cid.copyTo(head, writeVarint(head, 0, length))
  return head
}

/** A whole CAR, blocks in the order given. */
export function writeCar(roots: readonly Cid[], blocks: Iterable<Block>): Uint8Array {
  const header = carHeader(roots)
  const list = Array.isArray(blocks) ? (blocks as readonly Block[]) : [...blocks]
  let length = header.length
  for (const block of list) length += blockBytes(block)
  const bytes = new Uint8Array(length)
  bytes.set(header)
  let at = header.length
  for (const block of list) at = writeBlock(bytes, at, block)
  return bytes
}

/** How long a block is in a CAR. */
export function blockBytes({ cid, bytes }: Block): number {
  const length = cid.length + bytes.length
  return varintBytes(length) + length
}

/** Writes a block into a CAR that is being made; returns the offset behind it. There must be room, see {@link blockBytes}. */
export function writeBlock(target: Uint8Array, at: number, { cid, bytes }: Block): number {
  at = writeVarint(target, at, cid.length + bytes.length)
  cid.copyTo(target, at)
  target.set(bytes, at + cid.length)
  return at + cid.length + bytes.length
}

/** How long a block is in a CAR, if its CID and bytes together have this length. */
export function sectionBytes(length: number): number {
  return varintBytes(length) + length
}

/** Writes what stands before a block's CID and bytes, which together have this length; returns the offset behind it. */
export function writeSectionHead(target: Uint8Array, at: number, length: number): number {
  return writeVarint(target, at, length)
}

function varintBytes(n: number): number {
  let length = 1
  for (; n >= 128; n = Math.floor(n / 128)) length++
  return length
}

function writeVarint(target: Uint8Array, at: number, n: number): number {
  for (; n >= 128; n = Math.floor(n / 128)) target[at++] = (n % 128) | 128
  target[at++] = n
  return at
}
