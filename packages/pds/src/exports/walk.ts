/**
 * The way through a repository's tree that a streamable CAR takes: each node, then its subtrees and records from the left.
 *
 * The database is asked for many blocks at a time, and of nodes no more is made than a list of where CIDs stand in them. Whether a
 * block is the one that the tree names is known by the CID stored with it; whether its bytes are still those of that CID is left
 * to the reader of the CAR, who has to check it anyhow.
 */
import type { Block } from '@millisky/core/blocks'
import { Pack } from '../store/packs.ts'
import type { RepoSnapshot } from '../store/store.ts'
import { keysOf, type Nodes, NodesAhead, NodesAtHand, type Place, type Range } from './nodes.ts'

const NOTHING = new Pack(new Uint8Array(0))

/** A walk through all that is in a range, or that of it which came after a rev. */
export async function startWalk(view: RepoSnapshot, range: Range | null, since?: string): Promise<Walk> {
  const few = range === null && since === undefined ? await view.fewNodes() : null
  const { above, below } = range ?? { above: '', below: '~' }
  return new Walk(view, few ? new NodesAtHand(view, few) : new NodesAhead(view, { above, below }, since), below, since)
}

/** Goes from one block to the next, at once where the database answers at once: a promise for each would be most of the cost. */
class Walk {
  /** The present block: its CID and bytes lie in `bytes` from `from` to `to`, unless it is `large`. */
  bytes = NOTHING.bytes
  from = 0
  to = 0
  large: Block | null = null

  readonly #view: RepoSnapshot
  readonly #nodes: Nodes
  readonly #below: string
  readonly #since: string | undefined
  /** Where the walk is, and above that the nodes that lead there. */
  #place: Place | undefined
  readonly #above: Place[] = []
  #page = NOTHING

  constructor(view: RepoSnapshot, nodes: Nodes, below: string, since: string | undefined) {
    this.#view = view
    this.#nodes = nodes
    this.#below = below
    this.#since = since
    // As if a node with nothing else in it led to the root.
    const pack = new Pack(view.head.data.bytes)
    this.#place = { pack, from: 0, to: 0, large: null, cids: [0], next: 0, end: 1 }
  }

  /** Goes to the next block; false at the end. @throws Error where the database is not what the tree says */
  next(): boolean | Promise<boolean> {
    for (;;) {
      const place = this.#place
      if (place === undefined) return this.#end()
      const { next, end } = place
      if (next === end) {
        this.#place = this.#above.pop()
        continue
      }
      place.next = next + 1
      const at = place.cids[next]!
      if (at === -1) continue
      // The last is a subtree, and every other before it.
      const isThere = (end - next) % 2 === 1 ? this.#enter(place, at) : this.#record(place, at)
      if (isThere === true) return true
      if (isThere !== false) return isThere.then(isThere => isThere || this.next())
    }
  }

  #end(): false {
    this.#page.free()
    this.#nodes.free()
    return false
  }

  #enter(place: Place, at: number): boolean | Promise<boolean> {
    const below = this.#nodes.get(this.#above.length, place.pack, at)
    return below instanceof Promise ? below.then(below => this.#entered(place, below)) : this.#entered(place, below)
  }

  #entered(above: Place, place: Place): boolean {
    if (place.to === 0) return false
    this.#above.push(above)
    this.#place = place
    this.large = place.large
    this.bytes = place.pack.bytes
    this.from = place.from
    this.to = place.to
    return true
  }

  #record(place: Place, at: number): boolean | Promise<boolean> {
    if (this.#since !== undefined) return this.#single(place, at, this.#since)
    if (this.#page.next()) return this.#onPage(place, at)
    this.#page.free()
    const page = this.#view.page(pathOf(place), this.#below)
    return page instanceof Promise ? page.then(page => this.#turned(place, at, page)) : this.#turned(place, at, page)
  }

  #turned(place: Place, at: number, page: Pack): boolean | Promise<boolean> {
    this.#page = page
    if (!page.next()) throw differs(place)
    return this.#onPage(place, at)
  }

  #onPage(place: Place, at: number): boolean | Promise<boolean> {
    const page = this.#page
    if (!page.isSame(page.from, place.pack, at)) throw differs(place)
    if (page.lacks !== null) return this.#single(place, at, '')
    this.large = null
    this.bytes = page.bytes
    this.from = page.from
    this.to = page.to
    return true
  }

  async #single(place: Place, at: number, since: string): Promise<boolean> {
    const record = await this.#view.record(pathOf(place))
    if (!record?.cid.standsAt(place.pack.bytes, at)) throw differs(place)
    this.large = record
    return record.rev > since
  }
}

/** The path of the record that a place has just come to. */
const pathOf = (place: Place): string => keysOf(place).at((place.next - place.end - 1) / 2)!

const differs = (place: Place) => new Error(`record ${pathOf(place)} is not what the tree says`)
