/**
 * The way through a repository's tree that a streamable CAR takes: each node, then its subtrees and records from the left.
 *
 * The database is asked for many blocks at a time: records come in pages, and nodes in groups of those that are next at their
 * depth. Whether each is the one that the tree names is known by the CID stored with it; whether its bytes are still those of
 * that CID is left to the reader of the CAR, who has to check it anyhow.
 */
import type { Block } from '@millisky/core/blocks'
import { CID_BYTES, type Cid } from '@millisky/core/cid'
import { decodeNode } from '@millisky/core/mst/encoding'
import { LEFT_OUT, NODES_AT_ONCE_MAX, OLD, type Pack, type RepoSnapshot } from '../store/store.ts'

/** Both excluded. */
export interface Range {
  above: string
  below: string
}

/** A block as it stands in a CAR behind its length: the CID of 36 bytes, then its own. */
export type Section = Uint8Array

/** A node whose first `next` entries, each with the subtree before it, are done. */
interface Place {
  readonly link: Cid
  /** Null for a node that is older than wanted. */
  readonly block: Section | Block | null
  readonly keys: readonly string[]
  readonly values: readonly Cid[]
  /** Those that lead into the range. */
  readonly links: (Cid | null)[]
  next: number
  /** Whether the subtree before entry `next` is done. */
  below: boolean
}

/** Gives one block after the other, at once where the database answers at once: a promise for each would be most of the cost. */
export class Walk {
  readonly #view: RepoSnapshot
  readonly #range: Range
  readonly #since: string | undefined
  readonly #stack: Place[] = []
  /** By depth, links to nodes that were not read yet, and nodes that were and have not had their turn, in its order. */
  readonly #ahead: Cid[][] = []
  readonly #read: Place[][] = []
  #root: Cid | null
  #page: Pack = { sizes: [], bytes: new Uint8Array(0) }
  /** The next record on the page, and where it begins. */
  #onPage = 0
  #at = 0
  #after: string

  constructor(view: RepoSnapshot, range: Range, since: string | undefined) {
    this.#view = view
    this.#range = range
    this.#since = since
    this.#root = view.head.data
    this.#ahead.push([view.head.data])
    this.#after = range.above
  }

  /** The next block; undefined at the end. */
  next(): Section | Block | undefined | Promise<Section | Block | undefined> {
    for (;;) {
      const found = this.#step()
      if (found instanceof Promise) return found.then(block => (block === null ? this.next() : block))
      if (found !== null) return found
    }
  }

  /** Null if there was nothing to give at this place. */
  #step(): Section | Block | null | undefined | Promise<Section | Block | null> {
    const place = this.#stack.at(-1)
    if (!place) {
      const root = this.#root
      this.#root = null
      return root ? this.#enter(root) : undefined
    }
    const { keys, values, links, next } = place
    if (!place.below) {
      place.below = true
      const link = links[next]
      return link ? this.#enter(link) : null
    }
    const key = keys[next]
    if (key === undefined) {
      this.#stack.pop()
      return null
    }
    place.next++
    place.below = false
    return key > this.#range.above && key < this.#range.below ? this.#record(key, values[next]!) : null
  }

  #enter(link: Cid): Section | Block | null | Promise<Section | Block | null> {
    const depth = this.#stack.length
    if (this.#read[depth]?.length) return this.#entered(link, depth)
    const reading = this.#readAhead(depth)
    return reading instanceof Promise ? reading.then(() => this.#entered(link, depth)) : this.#entered(link, depth)
  }

  #entered(link: Cid, depth: number): Section | Block | null {
    const place = this.#read[depth]!.shift()!
    if (place.link !== link) throw new Error(`tree node ${link} is not the next of its depth`)
    if (place.block !== null) this.#stack.push(place)
    return place.block
  }

  /** Reads the nodes that are next at a depth. Those above it that were read before theirs have named them, in order. */
  #readAhead(depth: number): undefined | Promise<undefined> {
    const links = this.#ahead[depth]!.splice(0, NODES_AT_ONCE_MAX)
    const cids = new Uint8Array(links.length * CID_BYTES)
    for (const [i, link] of links.entries()) link.copyTo(cids, i * CID_BYTES)
    const pack = this.#view.nodes(cids, this.#since ?? '')
    return pack instanceof Promise
      ? pack.then(pack => this.#takeNodes(depth, links, pack))
      : this.#takeNodes(depth, links, pack)
  }

  #takeNodes(depth: number, links: readonly Cid[], { sizes, bytes }: Pack): undefined | Promise<undefined> {
    this.#read[depth] ??= []
    for (let i = 0, at = 0; i < links.length; i++) {
      const link = links[i]!
      const size = sizes[i]
      if (size === undefined || !link.standsAt(bytes, at)) throw new Error(`tree node ${link} is not in the database`)
      if (size === LEFT_OUT) {
        // What is behind it waits, so that nothing is read before its turn.
        this.#ahead[depth]!.unshift(...links.slice(i === 0 ? 1 : i))
        return i === 0 ? this.#takeLargeNode(depth, link) : undefined
      }
      const end = at + CID_BYTES + Math.max(size, 0)
      this.#add(depth, link, size === OLD ? null : bytes.subarray(at, end), bytes.subarray(at + CID_BYTES, end))
      at = end
    }
  }

  async #takeLargeNode(depth: number, cid: Cid): Promise<undefined> {
    const { bytes } = await this.#view.node(cid)
    this.#add(depth, cid, { cid, bytes }, bytes)
  }

  #add(depth: number, link: Cid, block: Section | Block | null, bytes: Uint8Array): void {
    const place = { link, block, next: 0, below: false }
    if (block === null) {
      this.#read[depth]!.push({ ...place, keys: [], values: [], links: [] })
      return
    }
    const { keys, values, links } = decodeNode(bytes)
    const { above, below } = this.#range
    this.#ahead[depth + 1] ??= []
    const next = this.#ahead[depth + 1]!
    for (let i = 0; i < links.length; i++) {
      if ((i < keys.length && keys[i]! <= above) || (i > 0 && keys[i - 1]! >= below)) links[i] = null
      const link = links[i]
      if (link) next.push(link)
    }
    this.#read[depth]!.push({ ...place, keys, values, links })
  }

  #record(path: string, cid: Cid): Section | Block | null | Promise<Section | Block | null> {
    if (this.#since !== undefined) return this.#newRecord(path, cid, this.#since)
    if (this.#onPage < this.#page.sizes.length) return this.#onThisPage(path, cid)
    const page = this.#view.page(this.#after, this.#range.below)
    const turned = (page: Pack & { last: string }): Section | Block | Promise<Block> => {
      this.#page = page
      this.#onPage = 0
      this.#at = 0
      this.#after = page.last
      return this.#onThisPage(path, cid)
    }
    return page instanceof Promise ? page.then(turned) : turned(page)
  }

  #onThisPage(path: string, cid: Cid): Section | Promise<Block> {
    const { sizes, bytes } = this.#page
    const at = this.#at
    const size = sizes[this.#onPage++]
    if (size === undefined || !cid.standsAt(bytes, at)) throw differs(path)
    this.#at = at + CID_BYTES + Math.max(size, 0)
    return size === LEFT_OUT ? this.#large(path, cid) : bytes.subarray(at, this.#at)
  }

  async #large(path: string, cid: Cid): Promise<Block> {
    const record = await this.#view.record(path)
    if (!record?.cid.equals(cid)) throw differs(path)
    return record
  }

  async #newRecord(path: string, cid: Cid, since: string): Promise<Block | null> {
    const record = await this.#view.record(path)
    if (!record?.cid.equals(cid)) throw differs(path)
    return record.rev > since ? record : null
  }
}

const differs = (path: string) => new Error(`record ${path} is not what the tree says`)
