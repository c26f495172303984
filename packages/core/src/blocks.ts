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
  #blocks = new Map<string, Block>()
  #byteSize = 0

  constructor(blocks?: Iterable<Block>) {
    if (blocks) for (const block of blocks) this.add(block)
  }

  /** Puts a block in; one that is there already stays. */
  add(block: Block): this {
    const key = block.cid.key
    if (!this.#blocks.has(key)) {
      this.#blocks.set(key, block)
      this.#byteSize += block.bytes.length
    }
    return this
  }

  get(cid: Cid): Uint8Array | undefined {
    return this.#blocks.get(cid.key)?.bytes
  }

  has(cid: Cid): boolean {
    return this.#blocks.has(cid.key)
  }

  delete(cid: Cid): boolean {
    const block = this.#blocks.get(cid.key)
    if (!block) return false
    this.#byteSize -= block.bytes.length
    return this.#blocks.delete(cid.key)
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
