/**
 * Which accounts have records of which collections, kept from the commits that pass: the operations of a commit name
 * collections, and its proof tells when the last record of one is gone, and of some others besides.
 *
 * An account is `whole` here when everything that happened to its repository was seen from its beginning: then its
 * collections are exactly those listed. Of other accounts those are listed that were met since.
 */
import { Blocks } from '@millisky/core/blocks'
import { utf8 } from '@millisky/core/bytes'
import { readCar } from '@millisky/core/car'
import { Cid } from '@millisky/core/cid'
import { Malformed } from '@millisky/core/errors'
import { type CommitSketch, sketchCommit } from '@millisky/core/event'
import { sha256 } from '@millisky/core/hash'
import { collectionsSeen, lacksCollection } from '@millisky/core/mst/collections'
import { Tree } from '@millisky/core/mst/tree'
import { type Did, isNsid } from '@millisky/core/syntax'
import type { StoredAccount } from './store/store.ts'

/** Stands among the collections of an account that is whole. No collection has this name. */
export const WHOLE = ''

/** What became of the collections of one account. */
export interface DirectoryChange {
  did: Did
  /** What was there before is gone; then come the pairs. */
  emptied: boolean
  /** Collections that there are now, or are not. */
  pairs: Map<string, boolean>
}

/** Pairs remembered as known, so that nearly all commits need no look into the database: 8 MiB. */
const KNOWN_PAIRS = 1_048_576
const EMPTIED_MAX = 10_000
const EMPTY_TREE = Tree.empty.root.key

export interface DirectoryObserver {
  /** A collection was added to an account, removed, or its last deletion could not be proven to be the last. */
  changed?(what: 'added' | 'removed' | 'kept'): void
}

type Head = Pick<StoredAccount, 'rev' | 'data' | 'status'>

export class Directory {
  readonly #known: KnownPairs
  readonly #observer: DirectoryObserver
  #changes = new Map<Did, DirectoryChange>()
  /** Accounts that were emptied; of theirs nothing counts as known. */
  readonly #emptied = new Set<Did>()

  constructor({ knownPairs = KNOWN_PAIRS, observer = {} }: { knownPairs?: number; observer?: DirectoryObserver } = {}) {
    this.#known = new KnownPairs(knownPairs)
    this.#observer = observer
  }

  /** Accounts with changes that wait to be saved. */
  get size(): number {
    return this.#changes.size
  }

  /**
   * Takes an event that is in the log.
   * @param number - the account's, see `accountNumber`
   * @param before - what was known of the account before it, null for nothing
   */
  take({ did, number }: { did: Did; number: number }, frame: Uint8Array, before: Head | null, after: Head): void {
    if (after.status === 'deleted') {
      if (before?.status !== 'deleted') this.#empty(did)
      return
    }
    const { data } = after
    if (data === null || after.rev === before?.rev) return
    const past = before?.data ?? null
    const account = { did, number }
    if (data === EMPTY_TREE) {
      // Whatever it held, it does not any more.
      if (past !== null && past !== EMPTY_TREE) this.#empty(did)
      this.#set(account, WHOLE, true)
      return
    }
    const sketch = sketchCommit(frame)
    if (sketch === null) {
      if (past !== null && past !== data) this.#set(account, WHOLE, false)
      return
    }
    this.#noteWhole(account, sketch, past)
    this.#noteCollections(account, sketch, data)
  }

  /** What has changed since the last call, to be saved. */
  drain(): DirectoryChange[] {
    const changes = [...this.#changes.values()]
    this.#changes = new Map()
    return changes
  }

  /** Takes back what could not be saved. */
  restore(changes: readonly DirectoryChange[]): void {
    for (const old of changes) {
      const newer = this.#changes.get(old.did)
      if (newer?.emptied) continue
      const pairs = newer ? new Map([...old.pairs, ...newer.pairs]) : old.pairs
      this.#changes.set(old.did, { ...old, pairs })
    }
  }

  #noteWhole(account: Account, { prevData, hasSince }: CommitSketch, past: string | null): void {
    if (past !== null && past === prevData) return
    // There was a gap, or a beginning. Where it ends with an empty tree, nothing of before is left.
    const isBeginning = prevData === null ? past === null && !hasSince : prevData === EMPTY_TREE
    if (past !== null && isBeginning) this.#empty(account.did)
    if (past !== null || isBeginning) this.#set(account, WHOLE, isBeginning)
  }

  #noteCollections(account: Account, { put, deleted, blocks }: CommitSketch, data: string): void {
    const ended = deleted.filter(name => !put.includes(name))
    const isNews = put.some(name => !this.#isKnown(account, name) && isNsid(name))
    if (!isNews && ended.length === 0) return
    // Now that it costs something anyway, the rest of the proof is looked at too.
    const tree = treeOf(data, blocks)
    for (const name of collectionsSeen(tree)) put.push(name)
    for (const name of put) if (isNsid(name)) this.#set(account, name, true)
    for (const name of ended) {
      if (!isNsid(name)) continue
      if (lacksCollection(tree, name)) this.#set(account, name, false)
      else if (!put.includes(name)) this.#observer.changed?.('kept')
    }
  }

  #isKnown({ did, number }: Account, name: string): boolean {
    return !this.#emptied.has(did) && this.#known.has(number, name)
  }

  #set(account: Account, name: string, isThere: boolean): void {
    const { did, number } = account
    const change = this.#changes.get(did)
    if (isThere) {
      if (this.#isKnown(account, name)) return
      this.#known.add(number, name)
    } else this.#known.delete(number, name)
    if (change?.pairs.get(name) === isThere) return
    if (change) change.pairs.set(name, isThere)
    else this.#changes.set(did, { did, emptied: false, pairs: new Map([[name, isThere]]) })
    if (name !== WHOLE) this.#observer.changed?.(isThere ? 'added' : 'removed')
  }

  #empty(did: Did): void {
    this.#changes.set(did, { did, emptied: true, pairs: new Map() })
    if (this.#emptied.size >= EMPTIED_MAX) {
      this.#emptied.clear()
      this.#known.clear()
    }
    this.#emptied.add(did)
  }
}

interface Account {
  did: Did
  number: number
}

/** The part of a tree that a commit brings along; empty where it brings none that can be read. */
function treeOf(data: string, blocks: Uint8Array): Tree {
  const root = Cid.fromKey(data)
  try {
    return Tree.load(root, new Blocks(readCar(blocks, { verify: false }).blocks), { heights: 'root' })
  } catch (error) {
    if (error instanceof Malformed) return Tree.load(root, new Blocks())
    throw error
  }
}

/**
 * A bounded memory of pairs: one place for each, where a later pair may push out another. 52 bits of both hashes are
 * kept, so it forgets but does not invent.
 */
class KnownPairs {
  readonly #places: Float64Array
  #names = new Map<string, { low: number; high: number }>()

  constructor(size: number) {
    this.#places = new Float64Array(size)
  }

  has(number: number, name: string): boolean {
    const print = this.#print(number, name)
    return this.#places[print % this.#places.length] === print
  }

  add(number: number, name: string): void {
    const print = this.#print(number, name)
    this.#places[print % this.#places.length] = print
  }

  delete(number: number, name: string): void {
    const print = this.#print(number, name)
    if (this.#places[print % this.#places.length] === print) this.#places[print % this.#places.length] = 0
  }

  clear(): void {
    this.#places.fill(0)
  }

  /** 1 to 2^52. */
  #print(number: number, name: string): number {
    const { low, high } = this.#hash(name)
    const printLow = ((number % 0x1_0000_0000) ^ low) >>> 0
    return (Math.floor(number / 0x1_0000_0000) ^ high) * 0x1_0000_0000 + printLow + 1
  }

  #hash(name: string): { low: number; high: number } {
    let found = this.#names.get(name)
    if (found === undefined) {
      const digest = Buffer.from(sha256(utf8(name)))
      found = { low: digest.readUInt32LE(0), high: digest.readUInt32LE(4) >>> 12 }
      if (this.#names.size >= 10_000) this.#names = new Map()
      this.#names.set(name, found)
    }
    return found
  }
}
