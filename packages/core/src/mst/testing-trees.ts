/** Slow and obvious twins of the Merkle Search Tree's functions, and worlds small enough to go through whole. */
import { type Block, Blocks } from '../blocks.ts'
import { encode, type Value } from '../cbor.ts'
import { Cid } from '../cid.ts'
import { keyHeight } from './key.ts'

export type Entries = readonly (readonly [key: string, value: Cid])[]

/** A CID that stands for record number `n`. */
export const recordCid = (n: number): Cid => Cid.ofCbor(encode({ n }))

const heights = new Map<string, number>()
function honestHeight(key: string): number {
  let height = heights.get(key)
  if (height === undefined) heights.set(key, (height = keyHeight(key)))
  return height
}

/** A key that begins with `test.world/` and the given name and has the given height. */
export function keyOfHeight(name: string, height: number): string {
  for (let i = 0; ; i++) {
    const key = `test.world/${name}${i.toString(36)}`
    if (keyHeight(key) === height) return key
  }
}

/** One key for each height, in ascending order. */
export const keysOfHeights = (heights: readonly number[]): string[] =>
  heights.map((height, i) => keyOfHeight(String.fromCharCode(97 + i), height))

/** All maps from `keys` to one of `values` or to nothing. */
export function* allEntries(keys: readonly string[], values: readonly Cid[]): Generator<Entries> {
  for (let n = 0; n < (values.length + 1) ** keys.length; n++) {
    const entries: [string, Cid][] = []
    for (let i = 0, rest = n; i < keys.length; i++, rest = Math.floor(rest / (values.length + 1))) {
      const value = values[(rest % (values.length + 1)) - 1]
      if (value) entries.push([keys[i]!, value])
    }
    yield entries
  }
}

/** {@link SlowTree} of {@link allEntries}. */
export const allTrees = (keys: readonly string[], values: readonly Cid[]): SlowTree[] =>
  [...allEntries(keys, values)].map(entries => new SlowTree(entries))

/** A tree straight from the definition: all its nodes are made from all its entries. Nothing of it is ever edited. */
export class SlowTree {
  readonly entries: Entries
  readonly map: ReadonlyMap<string, Cid>
  /** In pre-order, the root first. */
  readonly nodes: Block[]
  readonly blocks: Blocks
  /** The CIDs of the nodes as text. */
  readonly names: string[]
  #paths = new Map<string, string[]>()

  /** Of sorted entries; `heightOf` lets keys stand where they do not belong. */
  constructor(entries: Entries, heightOf: (key: string) => number = honestHeight) {
    this.entries = entries
    this.map = new Map(entries)
    this.nodes = subtree(entries, Math.max(0, ...entries.map(([key]) => heightOf(key))), heightOf)
    this.blocks = new Blocks(this.nodes)
    this.names = names(this.nodes)
  }

  get root(): Cid {
    return this.nodes[0]!.cid
  }

  /** Names of the nodes from the root to a key, or down to where it would stand. */
  path(key: string): string[] {
    let path = this.#paths.get(key)
    if (path === undefined) this.#paths.set(key, (path = names(pathTo(this.entries, key))))
    return path
  }

  /** Names of the nodes on the paths to these keys and to their nearest neighbours, and of the root. */
  cover(keys: readonly string[]): Set<string> {
    const cover = new Set<string>([this.root.toString()])
    for (const key of keys) {
      const before = this.entries.findLast(([k]) => k < key)?.[0]
      const after = this.entries.find(([k]) => k > key)?.[0]
      for (const wanted of [key, before, after]) {
        if (wanted !== undefined) for (const name of this.path(wanted)) cover.add(name)
      }
    }
    return cover
  }
}

function subtree(entries: Entries, layer: number, heightOf = honestHeight): Block[] {
  const parts: Entries[number][][] = [[]]
  const own: Entries[number][] = []
  for (const entry of entries) {
    if (heightOf(entry[0]) < layer) parts.at(-1)!.push(entry)
    else {
      own.push(entry)
      parts.push([])
    }
  }
  const below = parts.map(part => (part.length === 0 ? [] : subtree(part, layer - 1, heightOf)))
  const link = (i: number): Value => below[i]![0]?.cid ?? null
  const e = own.map(([key, v], i) => {
    const previous = own[i - 1]?.[0] ?? ''
    let p = 0
    while (p < previous.length && key[p] === previous[p]) p++
    return { k: new TextEncoder().encode(key.slice(p)), p, t: link(i + 1), v }
  })
  const bytes = encode({ e, l: link(0) })
  return [{ cid: Cid.ofCbor(bytes), bytes }, ...below.flat()]
}

function pathTo(entries: Entries, key: string): Block[] {
  const path: Block[] = []
  let part = entries
  for (let layer = Math.max(0, ...entries.map(([k]) => honestHeight(k))); ; layer--) {
    path.push(subtree(part, layer)[0]!)
    const own = part.filter(([k]) => honestHeight(k) === layer).map(([k]) => k)
    const low = own.filter(k => k < key).at(-1) ?? ''
    const high = own.find(k => k > key) ?? '~'
    part = part.filter(([k]) => k > low && k < high)
    if (own.includes(key) || part.length === 0) return path
  }
}

export const names = (blocks: Iterable<Block>): string[] => [...blocks].map(({ cid }) => cid.toString())

/** Sorts entries by key. */
export const sorted = (entries: Iterable<readonly [string, Cid]>): Entries =>
  [...entries].toSorted(([a], [b]) => (a < b ? -1 : 1))

/** A block source that remembers what it was asked for. */
export class Asked {
  readonly asked: Cid[] = []
  readonly #below: Blocks

  constructor(below: Blocks) {
    this.#below = below
  }

  get(cid: Cid): Uint8Array | undefined {
    this.asked.push(cid)
    return this.#below.get(cid)
  }
}
