/**
 * Whole repositories, and what changed in them since a rev, as CAR files that are made while they are sent.
 *
 * The order is that of streamable CARs: the commit, then the tree in pre-order with each record at its place. A subtree
 * whose top node is not newer than `since` was there then as it is now, with all below it; so what changed is found by
 * walking down from the root, at a cost that grows with the change and not with the repository.
 */
import { PassThrough, type Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { concat } from '@millisky/core/bytes'
import { carBlock, carHeader } from '@millisky/core/car'
import type { Cid } from '@millisky/core/cid'
import { Unavailable } from '@millisky/core/errors'
import { decodeNode } from '@millisky/core/mst/encoding'
import type { AccountId, RepoSnapshot, Store, StoredRecord } from './store/store.ts'

const CHUNK_BYTES = 64 * 1024
/** Records read at a time: enough to be quick, few enough that the largest ones fit in memory. */
const PAGE_BYTES = 512 * 1024
const PAGE_RECORDS_MIN = 4
const PAGE_RECORDS_MAX = 100

export interface ExportLimits {
  /** Exports at a time; each holds a view of the database open. */
  atOnceMax: number
  /** A reader that takes nothing for this long is given up. */
  stallMs: number
}

export const EXPORT_LIMITS: ExportLimits = { atOnceMax: 32, stallMs: 60_000 }

export class Exports {
  readonly #store: Store
  readonly #limits: ExportLimits
  #running = 0

  constructor(store: Store, limits: ExportLimits = EXPORT_LIMITS) {
    this.#store = store
    this.#limits = limits
  }

  /** The CAR of an account's repository, or of what came into it after `since`. @throws Unavailable */
  stream(account: AccountId, since?: string): Readable {
    if (this.#running >= this.#limits.atOnceMax) {
      throw new Unavailable('NotEnoughResources', 'Too many repositories are being exported', 503, 10)
    }
    this.#running++
    const out = new PassThrough({ highWaterMark: 4 * CHUNK_BYTES })
    const stall = setTimeout(() => out.destroy(new Error('the reader of an export has stalled')), this.#limits.stallMs)
    this.#store.repos
      .snapshot(account, view =>
        pipeline(
          chunks(exportBlocks(view, since), () => stall.refresh()),
          out,
        ),
      )
      .catch(error => out.destroy(error))
      .finally(() => {
        clearTimeout(stall)
        this.#running--
      })
    return out
  }
}

/** The parts of the CAR, header first. */
export async function* exportBlocks(view: RepoSnapshot, since?: string): AsyncGenerator<Uint8Array> {
  const { head, commit } = view
  yield carHeader([commit.cid])
  if (since !== undefined && head.rev <= since) return
  yield carBlock(commit)
  yield* exportTree(view, head.data, since, new RecordPages(view))
}

async function* exportTree(
  view: RepoSnapshot,
  cid: Cid,
  since: string | undefined,
  pages: RecordPages,
): AsyncGenerator<Uint8Array> {
  const node = await view.node(cid)
  if (since !== undefined && node.rev <= since) return
  yield carBlock({ cid, bytes: node.bytes })
  const { keys, values, links } = decodeNode(node.bytes)
  for (let i = 0; i < links.length; i++) {
    const link = links[i]!
    if (link) yield* exportTree(view, link, since, pages)
    if (i === keys.length) break
    const record = since === undefined ? await pages.at(keys[i]!) : await view.record(keys[i]!)
    if (!record?.cid.equals(values[i]!)) throw new Error(`record ${keys[i]} is not what the tree says`)
    if (since === undefined || record.rev > since) yield carBlock(record)
  }
}

/** Reads records in order of path, a page at a time; what is asked for comes in that order. */
class RecordPages {
  readonly #view: RepoSnapshot
  #page: StoredRecord[] = []
  #next = 0
  #limit = PAGE_RECORDS_MIN

  constructor(view: RepoSnapshot) {
    this.#view = view
  }

  async at(path: string): Promise<StoredRecord | undefined> {
    if (this.#next === this.#page.length) await this.#turn()
    const record = this.#page[this.#next++]
    return record?.path === path ? record : undefined
  }

  async #turn(): Promise<void> {
    const after = this.#page.at(-1)?.path ?? ''
    this.#page = await this.#view.records(after, this.#limit)
    this.#next = 0
    let bytes = 0
    for (const record of this.#page) bytes += record.bytes.length
    const fitting = Math.floor((PAGE_BYTES * this.#page.length) / Math.max(bytes, 1))
    this.#limit = Math.min(PAGE_RECORDS_MAX, Math.max(PAGE_RECORDS_MIN, fitting))
  }
}

/** Joins small parts, and lets everybody else have a turn after each chunk. `taken` is called when the reader took one. */
async function* chunks(parts: AsyncIterable<Uint8Array>, taken: () => void): AsyncGenerator<Uint8Array> {
  let gathered: Uint8Array[] = []
  let bytes = 0
  for await (const part of parts) {
    gathered.push(part)
    bytes += part.length
    if (bytes < CHUNK_BYTES) continue
    yield concat(gathered)
    taken()
    gathered = []
    bytes = 0
    await new Promise(setImmediate)
  }
  if (bytes > 0) yield concat(gathered)
}
