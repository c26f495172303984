/** The bytes of an export: a walk through a repository's tree, packed into chunks. */
import type { Block } from '@millisky/core/blocks'
import { blockBytes, carBlockHead, carHeader, writeBlock } from '@millisky/core/car'
import { type Cid, hashMatches } from '@millisky/core/cid'
import { decodeNode } from '@millisky/core/mst/encoding'
import type { Nsid } from '@millisky/core/syntax'
import type { Awaitable } from '@millisky/server/db/db'
import type { RepoSnapshot } from '../store/store.ts'

/** What goes to the reader at a time. Larger blocks go in pieces. */
export const CHUNK_BYTES = 64 * 1024

export interface Wanted {
  since?: string | undefined
  collection?: Nsid | undefined
}

/** The chunks of a repository's CAR in streamable order. They are the reader's to keep. */
export async function* exportChunks(view: RepoSnapshot, { since, collection }: Wanted): AsyncGenerator<Uint8Array> {
  const { head, commit } = view
  yield carHeader([commit.cid])
  if (since !== undefined && head.rev <= since) return
  // `/` is followed by `0`.
  const range = collection === undefined ? WHOLE : { above: `${collection}/`, below: `${collection}0` }
  const walk = new Walk(view, range, since)
  yield* chunksOf(commit, () => walk.next())
}

/** The chunks of a CAR of these blocks, which are there. */
export async function* blockChunks(view: RepoSnapshot, cids: readonly Cid[]): AsyncGenerator<Uint8Array> {
  yield carHeader([])
  const left = cids.values()
  const next = async (): Promise<Block | undefined> => {
    const { value: cid } = left.next()
    return cid && { cid, bytes: (await view.block(cid))! }
  }
  yield* chunksOf(await next(), next)
}

async function* chunksOf(
  first: Block | undefined,
  next: () => Awaitable<Block | undefined>,
): AsyncGenerator<Uint8Array> {
  const packer = new Packer()
  for (let block = first; block; ) {
    if (!packer.put(block)) {
      if (packer.size > 0) yield packer.take()
      if (!packer.put(block)) yield* pieces(block)
    }
    const following = next()
    block = following instanceof Promise ? await following : following
  }
  if (packer.size > 0) yield packer.take()
}

function* pieces(block: Block): Generator<Uint8Array> {
  const { bytes } = block
  yield carBlockHead(block)
  for (let at = 0; at < bytes.length; at += CHUNK_BYTES) yield bytes.subarray(at, at + CHUNK_BYTES)
}

/** Fills chunks with blocks. */
class Packer {
  #chunk = new Uint8Array(CHUNK_BYTES)
  #size = 0

  get size(): number {
    return this.#size
  }

  /** Returns false, and has done nothing, if there is no room. */
  put(block: Block): boolean {
    if (this.#size + blockBytes(block) > CHUNK_BYTES) return false
    this.#size = writeBlock(this.#chunk, this.#size, block)
    return true
  }

  take(): Uint8Array {
    const full = this.#chunk.subarray(0, this.#size)
    this.#chunk = new Uint8Array(CHUNK_BYTES)
    this.#size = 0
    return full
  }
}

interface Range {
  /** Both excluded. */
  above: string
  below: string
}

const WHOLE: Range = { above: '', below: '~' }

/** A node whose first `next` entries, each with the subtree before it, are done. */
interface Place {
  keys: string[]
  values: Cid[]
  links: (Cid | null)[]
  next: number
  /** Whether the subtree before entry `next` is done. */
  below: boolean
}

type Page = Awaited<ReturnType<RepoSnapshot['page']>>

/** Gives one block after the other, at once where the database answers at once: a promise for each would be most of the cost. */
class Walk {
  readonly #view: RepoSnapshot
  readonly #range: Range
  readonly #since: string | undefined
  readonly #stack: Place[] = []
  #root: Cid | null
  #page: Page = []
  #onPage = 0
  #after: string

  constructor(view: RepoSnapshot, range: Range, since: string | undefined) {
    this.#view = view
    this.#range = range
    this.#since = since
    this.#root = view.head.data
    this.#after = range.above
  }

  /** The next block; undefined at the end. */
  next(): Block | undefined | Promise<Block | undefined> {
    for (;;) {
      const found = this.#step()
      if (found instanceof Promise) return found.then(block => (block === null ? this.next() : block))
      if (found !== null) return found
    }
  }

  /** Null if there was nothing to give at this place. */
  #step(): Block | null | undefined | Promise<Block | null> {
    const place = this.#stack.at(-1)
    if (!place) {
      const root = this.#root
      this.#root = null
      return root ? this.#enter(root) : undefined
    }
    const { keys, values, links, next } = place
    const { above, below } = this.#range
    const key = keys[next]
    if (!place.below) {
      place.below = true
      const link = links[next]
      const isOutside = (key !== undefined && key <= above) || (next > 0 && keys[next - 1]! >= below)
      return link && !isOutside ? this.#enter(link) : null
    }
    if (key === undefined) {
      this.#stack.pop()
      return null
    }
    place.next++
    place.below = false
    return key > above && key < below ? this.#record(key, values[next]!) : null
  }

  #enter(cid: Cid): Block | null | Promise<Block | null> {
    const node = this.#view.node(cid)
    return node instanceof Promise ? node.then(node => this.#entered(cid, node)) : this.#entered(cid, node)
  }

  #entered(cid: Cid, { rev, bytes }: { rev: string; bytes: Uint8Array }): Block | null {
    if (this.#since !== undefined && rev <= this.#since) return null
    this.#stack.push({ ...decodeNode(bytes), next: 0, below: false })
    return { cid, bytes }
  }

  #record(path: string, cid: Cid): Block | null | Promise<Block | null> {
    if (this.#since !== undefined) return this.#newRecord(path, cid, this.#since)
    if (this.#onPage < this.#page.length) return this.#onThisPage(path, cid)
    const page = this.#view.page(this.#after, this.#range.below)
    const turned = (page: Page) => {
      this.#page = page
      this.#onPage = 0
      this.#after = page.at(-1)?.path ?? this.#after
      return this.#onThisPage(path, cid)
    }
    return page instanceof Promise ? page.then(turned) : turned(page)
  }

  #onThisPage(path: string, cid: Cid): Block | Promise<Block> {
    const record = this.#page[this.#onPage++]
    if (record?.path !== path) throw differs(path)
    const { bytes } = record
    return bytes === null ? this.#large(path, cid) : checked(path, cid, bytes)
  }

  async #large(path: string, cid: Cid): Promise<Block> {
    const record = await this.#view.record(path)
    if (!record) throw differs(path)
    return checked(path, cid, record.bytes)
  }

  async #newRecord(path: string, cid: Cid, since: string): Promise<Block | null> {
    const record = await this.#view.record(path)
    if (!record?.cid.equals(cid)) throw differs(path)
    return record.rev > since ? record : null
  }
}

/** Hashing costs no more than reading the CID that is stored beside the bytes, and tells more. */
function checked(path: string, cid: Cid, bytes: Uint8Array): Block {
  if (!hashMatches(cid, bytes)) throw differs(path)
  return { cid, bytes }
}

const differs = (path: string) => new Error(`record ${path} is not what the tree says`)
