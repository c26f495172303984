/** Blocks: bytes named by their hash, and the places they are looked up in. */
import type { Cid } from './cid.ts'

/** Bytes and the CID that names them. Whether they belong together is the maker's promise. */
export interface Block {
  readonly cid: Cid
  readonly bytes: Uint8Array
}

/** Somewhere blocks can be fetched from, synchronously. */
export interface BlockSource {
  get(cid: Cid): Uint8Array | undefined
}

/** A block was needed and the source does not have it: load it and try again, or treat the data as incomplete. */
export class MissingBlock extends Error {
  readonly cid: Cid

  constructor(cid: Cid) {
    super(`missing block ${cid}`)
    this.name = 'MissingBlock'
    this.cid = cid
  }
}

/** A set of blocks in memory, iterated in the order of first insertion. */
export class Blocks implements BlockSource {
  // Not by their keys: V8 enters each string that a map is asked for in a table of its own, where only full collections find it.
  readonly #blocks = new Map<number | string, Block>()
  /** How many are named by their whole CIDs. */
  #named = 0
  #byteSize = 0

  constructor(blocks?: Iterable<Block>) {
    if (blocks) for (const block of blocks) this.add(block)
  }

  /** Puts a block in; one that is there already stays. */
  add(block: Block): this {
    const name = this.#nameOf(block.cid)
    if (!this.#blocks.has(name)) {
      this.#blocks.set(name, block)
      this.#byteSize += block.bytes.length
      if (typeof name === 'string') this.#named++
    }
    return this
  }

  get(cid: Cid): Uint8Array | undefined {
    return this.#blocks.get(this.#nameOf(cid))?.bytes
  }

  has(cid: Cid): boolean {
    return this.#blocks.has(this.#nameOf(cid))
  }

  delete(cid: Cid): boolean {
    const name = this.#nameOf(cid)
    const block = this.#blocks.get(name)
    if (!block) return false
    this.#byteSize -= block.bytes.length
    if (typeof name === 'string') this.#named--
    return this.#blocks.delete(name)
  }

  /** Under what a block is, or would be, filed: a number, or its whole CID if the number is another one's. */
  #nameOf(cid: Cid): number | string {
    if (this.#named > 0 && this.#blocks.has(cid.key)) return cid.key
    const { short } = cid
    const other = this.#blocks.get(short)
    return other === undefined || other.cid.equals(cid) ? short : cid.key
  }

  /** Number of blocks. */
  get size(): number {
    return this.#blocks.size
  }

  /** Bytes of all blocks together, their CIDs not counted. */
  get byteSize(): number {
    return this.#byteSize
  }

  [Symbol.iterator](): IterableIterator<Block> {
    return this.#blocks.values()
  }
}

/** A source that looks into `top` first and then into `below`. */
export function overlay(top: BlockSource, below: BlockSource): BlockSource {
  return { get: cid => top.get(cid) ?? below.get(cid) }
}
