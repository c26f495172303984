/** The bytes of an export: a walk through a repository's tree, packed into chunks. */
import type { Block } from '@millisky/core/blocks'
import { blockBytes, carBlockHead, carHeader, sectionBytes, writeBlock, writeSection } from '@millisky/core/car'
import type { Cid } from '@millisky/core/cid'
import type { Nsid } from '@millisky/core/syntax'
import type { Awaitable } from '@millisky/server/db/db'
import type { RepoSnapshot } from '../store/store.ts'
import { type Range, type Section, Walk } from './walk.ts'

/** What goes to the reader at a time. Larger blocks go in pieces. */
export const CHUNK_BYTES = 64 * 1024

export interface Wanted {
  since?: string | undefined
  collection?: Nsid | undefined
}

const WHOLE: Range = { above: '', below: '~' }

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
  first: Section | Block | undefined,
  next: () => Awaitable<Section | Block | undefined>,
): AsyncGenerator<Uint8Array> {
  const packer = new Packer()
  for (let block = first; block; ) {
    if (!packer.put(block)) {
      if (packer.size > 0) yield packer.take()
      if (!packer.put(block)) yield* pieces(block as Block)
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
  put(block: Section | Block): boolean {
    const isSection = block instanceof Uint8Array
    if (this.#size + (isSection ? sectionBytes(block) : blockBytes(block)) > CHUNK_BYTES) return false
    this.#size = (isSection ? writeSection : writeBlock)(this.#chunk, this.#size, block as Section & Block)
    return true
  }

  take(): Uint8Array {
    const full = this.#chunk.subarray(0, this.#size)
    this.#chunk = new Uint8Array(CHUNK_BYTES)
    this.#size = 0
    return full
  }
}
