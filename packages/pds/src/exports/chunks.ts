/** The bytes of an export: a walk through a repository's tree, packed into chunks. */
import type { Block } from '@millisky/core/blocks'
import { blockBytes, carBlockHead, carHeader, sectionBytes, writeBlock, writeSectionHead } from '@millisky/core/car'
import type { Cid } from '@millisky/core/cid'
import type { Nsid } from '@millisky/core/syntax'
import type { RepoSnapshot } from '../store/store.ts'
import { startWalk } from './walk.ts'

/** What goes to the reader at a time; larger blocks go in pieces. For 128 KB and more, glibc asks the kernel for other memory each time. */
export const CHUNK_BYTES = 120 * 1024

export interface Wanted {
  since?: string | undefined
  collection?: Nsid | undefined
}

/**
 * Memory for chunks, to be used again. Whatever waits to be collected instead makes collections come sooner, and each looks at
 * all there is.
 */
export class ChunkMemory {
  readonly #lent = new Set<ArrayBufferLike>()
  readonly #spare: Buffer[] = []

  take(): Buffer {
    const chunk = this.#spare.pop() ?? Buffer.allocUnsafeSlow(CHUNK_BYTES)
    this.#lent.add(chunk.buffer)
    return chunk
  }

  /** Takes back what nobody looks at any more. Chunks that are not from here are left alone. */
  giveBack({ buffer }: Uint8Array): void {
    if (this.#lent.delete(buffer)) this.#spare.push(Buffer.from(buffer as ArrayBuffer))
  }
}

/** The chunks of a repository's CAR in streamable order. They are the reader's to keep, or to give back to `memory`. */
export async function* exportChunks(
  view: RepoSnapshot,
  { since, collection }: Wanted,
  memory: ChunkMemory,
): AsyncGenerator<Uint8Array> {
  const { head, commit } = view
  yield carHeader([commit.cid])
  if (since !== undefined && head.rev <= since) return
  // `/` is followed by `0`.
  const range = collection === undefined ? null : { above: `${collection}/`, below: `${collection}0` }
  const walk = await startWalk(view, range, since)
  const packer = new Packer(memory)
  packer.put(commit)
  for (;;) {
    const isThere = walk.next()
    if (!(isThere instanceof Promise ? await isThere : isThere)) break
    if (walk.large !== null) yield* packer.add(walk.large)
    else if (!packer.putSection(walk.bytes, walk.from, walk.to)) {
      yield packer.take()
      packer.putSection(walk.bytes, walk.from, walk.to)
    }
  }
  if (packer.size > 0) yield packer.take()
}

/** The chunks of a CAR of these blocks, which are there. */
export async function* blockChunks(
  view: RepoSnapshot,
  cids: readonly Cid[],
  memory: ChunkMemory,
): AsyncGenerator<Uint8Array> {
  yield carHeader([])
  const packer = new Packer(memory)
  for (const cid of cids) yield* packer.add({ cid, bytes: (await view.block(cid))! })
  if (packer.size > 0) yield packer.take()
}

/** Fills chunks with blocks. */
class Packer {
  readonly #memory: ChunkMemory
  #chunk: Buffer
  #size = 0

  constructor(memory: ChunkMemory) {
    this.#memory = memory
    this.#chunk = memory.take()
  }

  get size(): number {
    return this.#size
  }

  /** Adds a block of any length. @returns the chunks that there was no room for any more. */
  *add(block: Block): Generator<Uint8Array> {
    if (this.put(block)) return
    if (this.#size > 0) yield this.take()
    if (this.put(block)) return
    yield carBlockHead(block)
    const { bytes } = block
    for (let at = 0; at < bytes.length; at += CHUNK_BYTES) yield bytes.subarray(at, at + CHUNK_BYTES)
  }

  /** Returns false, and has done nothing, if there is no room. */
  put(block: Block): boolean {
    if (this.#size + blockBytes(block) > CHUNK_BYTES) return false
    this.#size = writeBlock(this.#chunk, this.#size, block)
    return true
  }

  /** Like {@link put}, for a block whose CID and bytes lie one after the other. */
  putSection(bytes: Buffer, from: number, to: number): boolean {
    const length = to - from
    if (this.#size + sectionBytes(length) > CHUNK_BYTES) return false
    const at = writeSectionHead(this.#chunk, this.#size, length)
    bytes.copy(this.#chunk, at, from, to)
    this.#size = at + length
    return true
  }

  take(): Uint8Array {
    const full = this.#chunk.subarray(0, this.#size)
    this.#chunk = this.#memory.take()
    this.#size = 0
    return full
  }
}
