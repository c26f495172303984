/** Tree nodes of recently written repositories, so that the next write of the same account reads none from the database. */
import { type Block, Blocks } from '@millisky/core/blocks'
import type { Change } from '@millisky/core/repo'
import type { AccountId } from './store/store.ts'

/** What a cached block costs beside its bytes: CID, map entry, objects. */
const OVERHEAD_BYTES = 250

/**
 * A cache bounded in bytes that forgets whole accounts, the least recently used first. Blocks are named by their hash, so
 * nothing in it can be wrong; one that is no longer part of a tree only takes room.
 */
export class NodeCache {
  readonly #bytesMax: number
  readonly #accountBytesMax: number
  readonly #accounts = new Map<AccountId, Blocks>()
  #bytes = 0

  /** @param bytesMax - For all accounts together; one alone may hold an eighth of it. */
  constructor(bytesMax: number) {
    this.#bytesMax = bytesMax
    this.#accountBytesMax = bytesMax / 8
  }

  /** Estimated size of all that is held. */
  get bytes(): number {
    return this.#bytes
  }

  /** The blocks of one account, to look up and, with {@link add}, to fill. */
  of(account: AccountId): Blocks {
    const blocks = this.#accounts.get(account) ?? new Blocks()
    // The map's order is that of last use.
    this.#accounts.delete(account)
    this.#accounts.set(account, blocks)
    return blocks
  }

  /** @returns all of that account */
  add(account: AccountId, loaded: Iterable<Block>): Blocks {
    const blocks = this.of(account)
    const before = sizeOf(blocks)
    for (const block of loaded) blocks.add(block)
    this.#bytes += sizeOf(blocks) - before
    return blocks
  }

  /** Follows a change that has been stored. */
  apply(account: AccountId, { nodes, lost }: Pick<Change, 'nodes' | 'lost'>): void {
    const blocks = this.of(account)
    const before = sizeOf(blocks)
    for (const cid of lost) blocks.delete(cid)
    // Fresh nodes share slabs of memory with many that are soon gone; what is kept must not keep those.
    for (const { cid, bytes } of nodes) blocks.add({ cid, bytes: bytes.slice() })
    this.#bytes += sizeOf(blocks) - before
    if (sizeOf(blocks) > this.#accountBytesMax) this.forget(account)
    for (const oldest of this.#accounts.keys()) {
      if (this.#bytes <= this.#bytesMax) break
      this.forget(oldest)
    }
  }

  forget(account: AccountId): void {
    const blocks = this.#accounts.get(account)
    if (!blocks) return
    this.#bytes -= sizeOf(blocks)
    this.#accounts.delete(account)
  }
}

const sizeOf = (blocks: Blocks): number => blocks.byteSize + blocks.size * OVERHEAD_BYTES
