/** Ways through a Merkle Search Tree that nobody needs to hold in memory: nodes are loaded on the way and let go. */
import type { Cid } from '../cid.ts'
import { type Child, HIGHEST, highOf, LOWEST, type Loader, lowOf, Node } from './node.ts'

/** A node being walked: `at` counts its subtrees (even) and entries (odd) from the left. */
interface Frame {
  node: Node
  at: number
  low: string
  high: string
}

/**
 * A place in a tree: on a subtree not yet entered, on an entry, or at the end.
 *
 * Everything comes in the order of the keys; whether a subtree is entered or passed is the caller's choice each time.
 */
export class Cursor {
  /** The subtree under the cursor, if it stands on one. */
  child: Node | Cid | null = null
  /** The key under the cursor, if it stands on an entry. */
  key: string | null = null
  #frames: Frame[] = []
  #loader: Loader

  /** Stands in front of a tree's first subtree or entry. */
  constructor(root: Node, loader: Loader) {
    this.#loader = loader
    this.#push(root, LOWEST, HIGHEST)
  }

  /** Whether everything has been passed. */
  get atEnd(): boolean {
    return this.#frames.length === 0
  }

  /** The value of the entry under the cursor. */
  get value(): Cid {
    const { node, at } = this.#frames.at(-1)!
    return node.values[at >> 1]!
  }

  /** The layer of the subtree or entry under the cursor. */
  get layer(): number {
    return this.#frames.at(-1)!.node.layer - (this.child === null ? 0 : 1)
  }

  /** Passes the subtree or entry under the cursor. */
  next(): void {
    this.#frames.at(-1)!.at++
    this.#settle()
  }

  /** Enters the subtree under the cursor, which it returns. @throws Malformed, MissingBlock */
  enter(): Node {
    const { node, at, low, high } = this.#frames.at(-1)!
    const i = at >> 1
    const child = this.#loader.peek(node, i, low, high)!
    this.#frames.at(-1)!.at++
    this.#push(child, lowOf(node, i, low), highOf(node, i, high))
    return child
  }

  #push(node: Node, low: string, high: string): void {
    this.#frames.push({ node, at: 0, low, high })
    this.#settle()
  }

  #settle(): void {
    for (let top = this.#frames.at(-1); top !== undefined; top = this.#frames.at(-1)) {
      const { keys, children } = top.node
      for (; top.at <= 2 * keys.length; top.at++) {
        if (top.at & 1) {
          this.child = null
          this.key = keys[top.at >> 1]!
          return
        }
        this.child = children[top.at >> 1]!
        this.key = null
        if (this.child !== null) return
      }
      this.#frames.pop()
    }
  }
}

/** What to list: `after` and `before` exclude their key, `from` and `to` include it; all given must hold. */
export interface Range {
  after?: string | undefined
  before?: string | undefined
  from?: string | undefined
  to?: string | undefined
  /** What keys begin with. */
  prefix?: string | undefined
  /** Descending instead of ascending. */
  reverse?: boolean | undefined
}

/** Entries in a range in order. Subtrees outside of it are not loaded. @throws Malformed, MissingBlock */
export function* listRange(root: Node, range: Range, loader: Loader): Generator<[key: string, value: Cid]> {
  const [from, end] = bounds(range)
  if (from >= end) return
  const step = range.reverse ? -1 : 1
  const frames: Frame[] = []
  let node: Node | null = root
  let low = LOWEST
  let high = HIGHEST
  for (;;) {
    // Down to the first entry; a frame stands on the entry that comes after the subtree just entered.
    while (node !== null) {
      const i: number = step > 0 ? node.lowerBound(from) : node.lowerBound(end)
      frames.push({ node, at: step > 0 ? i : i - 1, low, high })
      const child: Node | null = step > 0 && node.keys[i] === from ? null : loader.peek(node, i, low, high)
      low = lowOf(node, i, low)
      high = highOf(node, i, high)
      node = child
    }
    const top = frames.at(-1)
    if (top === undefined) return
    const i = top.at
    const key = top.node.keys[i]
    if (key === undefined) {
      frames.pop()
      continue
    }
    if (step > 0 ? key >= end : key < from) return
    yield [key, top.node.values[i]!]
    top.at += step
    const next = step > 0 ? i + 1 : i
    node = loader.peek(top.node, next, top.low, top.high)
    low = lowOf(top.node, next, top.low)
    high = highOf(top.node, next, top.high)
  }
}

/** A range as first key included and first key behind. Keys are ASCII, so the least string above `k` is `k + '\0'`. */
function bounds({ after, before, from, to, prefix }: Range): [from: string, end: string] {
  let low = LOWEST
  let high = HIGHEST
  if (from !== undefined && from > low) low = from
  if (after !== undefined && `${after}\0` > low) low = `${after}\0`
  if (before !== undefined && before < high) high = before
  if (to !== undefined && `${to}\0` < high) high = `${to}\0`
  if (prefix) {
    if (prefix > low) low = prefix
    if (prefix + HIGHEST < high) high = prefix + HIGHEST
  }
  return [low, high]
}

/** What {@link cover} goes along beside the way to each key. */
export interface CoverOptions {
  /** Also the ways to the nearest key before and after each key. */
  neighbours: boolean
}

/**
 * Visits, in pre-order, the nodes on the way to each of `keys` (sorted), or to where it would stand, and with
 * `neighbours` on the ways to the nearest keys on both sides. `absent` is told of subtrees that would have to be
 * visited but are not there; without it they are an error.
 *
 * For a key that is not in the tree the ways to its neighbours are part of the way to its place.
 *
 * @throws Malformed, MissingBlock
 */
export function cover(
  root: Node,
  keys: readonly string[],
  { neighbours }: CoverOptions,
  loader: Loader,
  visit: (node: Node) => void,
  absent?: (cid: Cid) => void,
): void {
  /** `first` and `last`: whether the first and last subtree is on the way to a neighbour of a key above. */
  const go = (node: Node, from: number, to: number, first: boolean, last: boolean, low: string, high: string): void => {
    visit(node)
    const count = node.keys.length
    let k = from
    let follow = first
    for (let i = 0; i <= count; i++) {
      // Keys [begin, k) lie in subtree i; `follow` says a neighbour of what is on its left does.
      const begin = k
      const upper = node.keys[i]
      if (upper === undefined) k = to
      else while (k < to && keys[k]! < upper) k++
      const equal = upper !== undefined && k < to && keys[k] === upper
      const followLast = upper === undefined ? last : equal && neighbours
      if (begin < k || follow || followLast) below(node, i, begin, k, follow, followLast, low, high)
      follow = equal && neighbours
      if (equal) k++
    }
  }
  const below = (
    node: Node,
    i: number,
    from: number,
    to: number,
    first: boolean,
    last: boolean,
    low: string,
    high: string,
  ): void => {
    const child: Child = node.children[i]!
    if (child === null) return
    if (absent !== undefined && !(child instanceof Node) && loader.blocks.get(child) === undefined) {
      absent(child)
      return
    }
    const next = loader.child(node, i, low, high)!
    go(next, from, to, first, last, lowOf(node, i, low), highOf(node, i, high))
  }
  go(root, 0, keys.length, false, false, LOWEST, HIGHEST)
}
