/**
 * Repositories that come from elsewhere, as CAR files.
 *
 * The file is put aside on disk and looked into from there, so a large one takes no memory but for an index. It has no name there:
 * whatever becomes of this process, nothing of it stays. What is taken
 * over is what the tree reaches from the commit, verified; stray blocks are left. The tree is then signed anew with the
 * account's key here, under a rev above both: an import of another server's key would verify nowhere once the account's
 * identity points here.
 *
 * Source: account migration guide; pds.md #81 for what clients see.
 */
import { randomUUID } from 'node:crypto'
import { existsSync, readdirSync, readSync, rmSync } from 'node:fs'
import { type FileHandle, mkdir, open, rm } from 'node:fs/promises'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import { type Block, type BlockSource, Blocks, MissingBlock, overlay } from '@millisky/core/blocks'
import { CarDecoder } from '@millisky/core/car'
import { decode, type Obj } from '@millisky/core/cbor'
import { type Cid, hashMatches } from '@millisky/core/cid'
import { type Commit, decodeCommit, signCommit } from '@millisky/core/commit'
import { Malformed, Refused, Unavailable } from '@millisky/core/errors'
import { syncEvent } from '@millisky/core/event'
import { RECORD_BYTES_READ_MAX, REV_FUTURE_TOLERANCE_MS } from '@millisky/core/limits'
import { Tree } from '@millisky/core/mst/tree'
import { type Did, isRepoPath, parseRepoPath, type Tid } from '@millisky/core/syntax'
import { decodeTid } from '@millisky/core/tid'
import { BlockPlaces } from './block-places.ts'
import { findForeignBlobs, subjectOf } from './records.ts'
import { datetime, pending, type Repos } from './repos.ts'
import type { RecordWrite } from './store/store.ts'

const AT_ONCE_MAX = 4
const ITEMS_AT_ONCE = 200
/** Of some three million records. The index of so many takes 128 MiB. */
const BLOCKS_MAX = 2 ** 22

export class Imports {
  readonly #repos: Repos
  readonly #folder: string
  readonly #bytesMax: number
  #running = 0

  /**
   * @param folder - Where files are put aside; made if absent.
   * @param bytesMax - Of all records together: a tree may name one large block at any number of places.
   */
  constructor(repos: Repos, folder: string, bytesMax: number) {
    this.#repos = repos
    this.#folder = folder
    this.#bytesMax = bytesMax
    forgetNames(folder)
  }

  /**
   * Puts the repository in a CAR, or the one that comes out of what is here and what is in it, in place of what is here.
   * Tells nothing unless the account is active; then a `#sync`.
   *
   * @throws Refused, Malformed, Unavailable
   */
  async import(did: Did, body: Readable): Promise<void> {
    if (this.#running >= AT_ONCE_MAX) {
      throw new Unavailable('NotEnoughResources', 'Too many repositories are being imported', 503, 30)
    }
    this.#running++
    try {
      const file = await CarFile.receive(this.#folder, body)
      try {
        await this.#repos.lanes.run(did, () => this.#takeOver(did, file))
      } finally {
        await file.remove()
      }
    } finally {
      this.#running--
    }
  }

  async #takeOver(did: Did, file: CarFile): Promise<void> {
    const { store } = this.#repos
    const state = await store.repos.state(did)
    if (!state) throw new Refused('AccountNotFound', `Could not find account: ${did}`, 403)
    const { account, head, status } = state
    if (status === 'takendown') throw new Refused('AccountTakedown', 'Account has been taken down', 401)
    if (status === 'suspended') throw new Refused('AccountSuspended', 'Account is suspended', 401)
    const given = file.commitOf(did)
    const current = await store.repos.paths(account)
    // A file may hold only what is new since the last import.
    const kept = current.length > 0 ? new Blocks(await store.repos.allNodes(account)) : new Blocks()
    const tree = () => Tree.load(given.data, overlay(file, kept))
    const now = this.#repos.now()
    const rev = this.#repos.nextRev(highest(head.rev, given.rev, now))
    const { block } = signCommit({ did, data: given.data, rev }, this.#repos.signingKey(state.key))
    const next = { did, commit: block.cid, rev, data: given.data }
    // Nothing is written before all of it is known to be good.
    const hidden = status === 'deactivated' && head.data.equals(Tree.empty.root)
    if (hidden) {
      await whole(async () => {
        await goThrough(tree().nodes())
        await goThrough(changes(current, tree(), file, this.#bytesMax))
      })
    }
    const told = status === 'active' ? [pending(did, syncEvent({ did, rev, commit: block }, datetime(now)))] : []
    await whole(() =>
      store.repos.import({
        account,
        prev: head,
        head: next,
        commit: block,
        nodes: () => tree().nodes(),
        records: () => changes(current, tree(), file, this.#bytesMax),
        events: told,
        now,
        hidden,
      }),
    )
    this.#repos.forget(account)
  }
}

/** What the new rev has to be above. One from the future is passed over: no relay would take what follows it. */
function highest(here: Tid, there: Tid, now: number): Tid {
  if (decodeTid(there).micros / 1000 > now + REV_FUTURE_TOLERANCE_MS) return here
  return there > here ? there : here
}

/** A block that is not there is the file's fault. */
async function whole<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work()
  } catch (error) {
    if (error instanceof MissingBlock) throw new Malformed(`the repository lacks the block ${error.cid}`)
    throw error
  }
}

/** Has each item made, and lets others have their turn in between. */
async function goThrough(items: Iterable<unknown>): Promise<void> {
  let count = 0
  for (const _ of items) if (++count % ITEMS_AT_ONCE === 0) await new Promise(setImmediate)
}

/** What to write so that the records here become those of the tree. */
function* changes(
  current: readonly (readonly [path: string, cid: Cid])[],
  tree: Tree,
  file: BlockSource,
  bytesMax: number,
): Generator<RecordWrite> {
  let at = 0
  let bytesLeft = bytesMax
  for (const [path, cid] of tree) {
    for (; at < current.length && current[at]![0] < path; at++) yield { action: 'delete', path: current[at]![0] }
    const here = current[at]?.[0] === path ? current[at++]![1] : null
    if (here?.equals(cid)) continue
    const record = readRecord(path, cid, file)
    bytesLeft -= record.bytes.length
    if (bytesLeft < 0) throw new Malformed(`the records come to more than ${bytesMax} bytes`)
    yield { action: here ? 'update' : 'create', path, cid, ...record }
  }
  for (; at < current.length; at++) yield { action: 'delete', path: current[at]![0] }
}

function readRecord(path: string, cid: Cid, file: BlockSource) {
  if (!isRepoPath(path)) throw new Malformed(`not a record path: ${path}`)
  if (!cid.isCbor) throw new Malformed(`record is not DAG-CBOR: ${path}`)
  const bytes = file.get(cid)
  if (!bytes) throw new MissingBlock(cid)
  if (bytes.length > RECORD_BYTES_READ_MAX) throw new Malformed(`record too large: ${path}`)
  if (bytes[0]! >> 5 !== 5) throw new Malformed(`record is not a map: ${path}`)
  const record = decode(bytes) as Obj
  return { bytes, blobs: findForeignBlobs(record), subject: subjectOf(parseRepoPath(path).collection, record) }
}

/** Twice what a record or node may have. */
const BLOCK_BYTES_MAX = 2 ** 21
/** Lengths are below this, so that place and length of a block fit into one number, in files of up to 4 GB. */
const LENGTH_LIMIT = BLOCK_BYTES_MAX + 1

const NAME_END = '.import'

/** Removes the names of files that a crash has left between their making and the removal of their name, which nobody needs. */
function forgetNames(folder: string): void {
  if (!existsSync(folder)) return
  for (const name of readdirSync(folder)) if (name.endsWith(NAME_END)) rmSync(join(folder, name), { force: true })
}

/** A CAR put aside: its blocks one after the other in a file, their hashes checked (again when read), and where each is. */
class CarFile implements BlockSource {
  readonly #file: FileHandle
  readonly #places: BlockPlaces
  readonly #root: Cid

  private constructor(file: FileHandle, places: BlockPlaces, root: Cid) {
    this.#file = file
    this.#places = places
    this.#root = root
  }

  static async receive(folder: string, body: AsyncIterable<Uint8Array>): Promise<CarFile> {
    await mkdir(folder, { recursive: true })
    const path = join(folder, `${randomUUID()}${NAME_END}`)
    const file = await open(path, 'wx+', 0o600)
    try {
      // Another process may have done so already, see above.
      await rm(path, { force: true })
      const { places, roots } = await putAside(file, body)
      if (roots.length !== 1) throw new Refused('InvalidRequest', 'expected one root')
      return new CarFile(file, places, roots[0]!)
    } catch (error) {
      await file.close()
      throw error
    }
  }

  get(cid: Cid): Uint8Array | undefined {
    const place = cid.isBlessed ? this.#places.get(cid) : undefined
    if (place === undefined) return undefined
    const bytes = new Uint8Array(place % LENGTH_LIMIT)
    readSync(this.#file.fd, bytes, 0, bytes.length, Math.floor(place / LENGTH_LIMIT))
    return hashMatches(cid, bytes) ? bytes : undefined
  }

  /** @throws Malformed unless the root is a commit of this account */
  commitOf(did: Did): Commit {
    const bytes = this.get(this.#root)
    if (!bytes) throw new Malformed('the repository lacks its commit')
    const commit = decodeCommit(bytes, { allowVersion2: true })
    if (commit.did !== did) throw new Malformed(`repository of ${commit.did} instead of ${did}`)
    return commit
  }

  remove(): Promise<void> {
    return this.#file.close()
  }
}

async function putAside(file: FileHandle, body: AsyncIterable<Uint8Array>) {
  const places = new BlockPlaces()
  const decoder = new CarDecoder({ blockBytesMax: BLOCK_BYTES_MAX, blocksMax: BLOCKS_MAX })
  let at = 0
  for await (const chunk of body) {
    const fresh = decoder.push(chunk).filter(({ cid, bytes }: Block) => {
      if (!cid.isBlessed || !places.add(cid, at * LENGTH_LIMIT + bytes.length)) return false
      at += bytes.length
      return true
    })
    if (fresh.length > 0) await file.writev(fresh.map(({ bytes }) => bytes))
  }
  decoder.end()
  return { places, roots: decoder.roots ?? [] }
}
