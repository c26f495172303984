/** Where an export gets the nodes of a tree from. */
import type { Block } from '@millisky/core/blocks'
import { CID_BYTES, Cid } from '@millisky/core/cid'
import { decodeNode, findCids } from '@millisky/core/mst/encoding'
import type { Awaitable } from '@millisky/server/db/db'
import { LEFT_OUT, OLD, Pack } from '../store/packs.ts'
import { NODES_AT_ONCE_MAX, type RepoSnapshot } from '../store/store.ts'

/** Both excluded. */
export interface Range {
  above: string
  below: string
}

/** A node, or as much of one as is wanted. */
export interface Place {
  /** Its CID and bytes lie from `from` to `to`; nowhere, if it is older than wanted. */
  readonly pack: Pack
  readonly from: number
  readonly to: number
  /** Set for one that was too large to come with others. */
  readonly large: Block | null
  /** Of those from `next` to `end`, each is the offset of a CID, as `findCids` has it; -1 also for what is out of the range. */
  readonly cids: number[]
  next: number
  readonly end: number
}

/** Gives the nodes that a walk comes to, in its order. */
export interface Nodes {
  /** The one whose CID stands at an offset. @throws Error if it is not there */
  get(depth: number, pack: Pack, at: number): Awaitable<Place>
  /** At the end, when no place is needed any more. */
  free(): void
}

/** The keys of a node. */
export const keysOf = ({ pack, from, to }: Place): string[] =>
  decodeNode(pack.bytes.subarray(from + CID_BYTES, to)).keys

function placeOf(pack: Pack, from: number, to: number, cids: number[], large: Block | null): Place {
  const next = cids.length
  findCids(pack.bytes, from + CID_BYTES, to, cids)
  return { pack, from, to, large, cids, next, end: cids.length }
}

async function largePlace(view: RepoSnapshot, cid: Cid): Promise<Place> {
  const { bytes } = await view.node(cid)
  const pack = new Pack(Buffer.concat([cid.bytes, bytes]))
  return placeOf(pack, 0, pack.bytes.length, [], { cid, bytes })
}

/** Nodes that are in memory, all but large ones: reading them in one go costs half of looking up each. */
export class NodesAtHand implements Nodes {
  readonly #view: RepoSnapshot
  readonly #pack: Pack
  /** Where nodes begin and end, by a part of their hashes. Should two have it in common, one is looked up like a large one. */
  readonly #from = new Map<number, number>()
  readonly #to = new Map<number, number>()
  readonly #cids: number[] = []

  constructor(view: RepoSnapshot, pack: Pack) {
    this.#view = view
    this.#pack = pack
    while (pack.next()) {
      if (pack.lacks !== null) continue
      const hash = pack.hashAt(pack.from)
      this.#from.set(hash, pack.from)
      this.#to.set(hash, pack.to)
    }
  }

  get(_depth: number, pack: Pack, at: number): Awaitable<Place> {
    const hash = pack.hashAt(at)
    const from = this.#from.get(hash)
    if (from === undefined || !this.#pack.isSame(from, pack, at)) {
      return largePlace(this.#view, Cid.view(pack.bytes, at, CID_BYTES))
    }
    return placeOf(this.#pack, from, this.#to.get(hash)!, this.#cids, null)
  }

  free(): void {
    this.#pack.free()
  }
}

/** Nodes that are read in groups of those that are next at their depth. Those above it that were read before have named them, in order. */
export class NodesAhead implements Nodes {
  readonly #view: RepoSnapshot
  readonly #range: Range
  readonly #since: string
  /** By depth, CIDs of nodes that were not read yet, and nodes that were and have not had their turn, in its order. */
  readonly #ahead: Queue[] = []
  readonly #read: Place[][] = []

  constructor(view: RepoSnapshot, range: Range, since = '') {
    this.#view = view
    this.#range = range
    this.#since = since
  }

  get(depth: number, pack: Pack, at: number): Awaitable<Place> {
    const place = this.#read[depth]?.shift()
    if (place !== undefined) return place
    this.#ahead[depth] ??= new Queue()
    if (depth === 0) this.#ahead[depth].push(pack, at)
    const cids = this.#ahead[depth].take(NODES_AT_ONCE_MAX)
    const found = this.#view.nodes(cids, this.#since)
    return found instanceof Promise
      ? found.then(found => this.#take(depth, cids, found))
      : this.#take(depth, cids, found)
  }

  /** Groups are small, and some of their nodes may be waited for longer than others. */
  free(): void {}

  #take(depth: number, cids: Buffer, pack: Pack): Awaitable<Place> {
    const asked = new Pack(cids)
    const read: Place[] = []
    const offsets: number[] = []
    this.#read[depth] = read
    for (let at = 0; at < cids.length; at += CID_BYTES) {
      if (!pack.next() || !pack.isSame(pack.from, asked, at)) throw isMissing(Cid.view(cids, at, CID_BYTES))
      if (pack.lacks === OLD) read.push({ pack, from: 0, to: 0, large: null, cids: offsets, next: 0, end: 0 })
      else if (pack.lacks === LEFT_OUT) {
        // What is behind it waits, so that nothing is read before its turn.
        this.#ahead[depth]!.putBack((cids.length - at) / CID_BYTES - (at === 0 ? 1 : 0))
        if (at > 0) break
        return largePlace(this.#view, Cid.view(cids, 0, CID_BYTES)).then(place => this.#below(depth, place))
      } else read.push(this.#below(depth, placeOf(pack, pack.from, pack.to, offsets, null)))
    }
    return read.shift()!
  }

  /** What is below a node comes after what is below those before it. */
  #below(depth: number, place: Place): Place {
    const { pack, cids, next, end } = place
    if (this.#range.above !== '' || this.#range.below !== '~') this.#narrow(place)
    this.#ahead[depth + 1] ??= new Queue()
    const queue = this.#ahead[depth + 1]!
    for (let i = next; i < end; i += 2) if (cids[i] !== -1) queue.push(pack, cids[i]!)
    return place
  }

  /** Leaves out what is not in the range and leads nowhere into it. */
  #narrow(place: Place): void {
    const { cids, next } = place
    const { above, below } = this.#range
    const keys = keysOf(place)
    for (const [i, key] of keys.entries()) {
      if (key <= above) cids[next + 2 * i] = -1
      if (key <= above || key >= below) cids[next + 2 * i + 1] = -1
      if (key >= below) cids[next + 2 * i + 2] = -1
    }
  }
}

const isMissing = (cid: Cid) => new Error(`tree node ${cid} is not in the database`)

/** CIDs one after the other. */
class Queue {
  #bytes = Buffer.allocUnsafe(CID_BYTES * NODES_AT_ONCE_MAX)
  #from = 0
  #to = 0

  push({ bytes }: Pack, at: number): void {
    if (this.#to === this.#bytes.length) {
      const left = this.#bytes.subarray(this.#from, this.#to)
      this.#bytes = Buffer.allocUnsafe(Math.max(this.#bytes.length, 2 * left.length))
      left.copy(this.#bytes)
      this.#from = 0
      this.#to = left.length
    }
    bytes.copy(this.#bytes, this.#to, at, at + CID_BYTES)
    this.#to += CID_BYTES
  }

  take(count: number): Buffer {
    const from = this.#from
    this.#from = Math.min(this.#to, from + count * CID_BYTES)
    return this.#bytes.subarray(from, this.#from)
  }

  /** The last ones that were taken. */
  putBack(count: number): void {
    this.#from -= count * CID_BYTES
  }
}
