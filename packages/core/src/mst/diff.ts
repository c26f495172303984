/** What differs between two Merkle Search Trees. */
import { type Block, Blocks } from '../blocks.ts'
import type { Cid } from '../cid.ts'
import { cidOf, type Node } from './node.ts'
import type { Tree } from './tree.ts'
import { Cursor } from './walk.ts'

/** One key whose value is not the same in both trees: `from` null is a creation, `to` null a deletion. */
export interface Change {
  key: string
  from: Cid | null
  to: Cid | null
}

export interface Diff {
  /** Nodes of the second tree that the first lacks, in pre-order. */
  gained: Block[]
  /** Nodes of the first tree that the second lacks, in pre-order. */
  lost: Cid[]
  /** In order of keys. */
  changes: Change[]
}

/**
 * Compares two trees, of one block source or two; `null` is a tree without even a root node.
 *
 * Equal subtrees are passed by their CIDs: what is loaded is the nodes that differ, and those on the ways to the
 * neighbours of changed keys.
 *
 * @throws Malformed, MissingBlock
 */
export function diff(a: Tree | null, b: Tree): Diff {
  if (a?.root.equals(b.root)) return { gained: [], lost: [], changes: [] }
  const comparison = new Comparison(a, b)
  while (comparison.step());
  const { lost, gained, changes } = comparison
  return {
    // A subtree is entered on both sides when a key next to it changed; if it is the same it is neither.
    gained: [...gained].filter(({ cid }) => !lost.has(cid)),
    lost: [...lost].map(({ cid }) => cid).filter(cid => !gained.has(cid)),
    changes,
  }
}

class Comparison {
  /** The nodes entered so far. */
  readonly lost = new Blocks()
  readonly gained = new Blocks()
  readonly changes: Change[] = []
  readonly #left: Cursor | null
  readonly #right: Cursor

  constructor(a: Tree | null, b: Tree) {
    this.#left = a && new Cursor(a.rootNode, a.loader)
    this.#right = new Cursor(b.rootNode, b.loader)
    if (a !== null) this.#lose(a.rootNode)
    this.#gain(b.rootNode)
  }

  /**
   * Moves one or both cursors on; false when both are at their ends. All keys passed on either side are less than those
   * still ahead on both, so where both stand on subtrees, these begin at the same place.
   */
  step(): boolean {
    const left = this.#left?.atEnd === false ? this.#left : null
    const right = this.#right.atEnd ? null : this.#right
    if (left?.child && right?.child) {
      const above = left.layer - right.layer
      if (above === 0 && same(left.child, right.child)) {
        left.next()
        right.next()
        return true
      }
      if (above >= 0) this.#lose(left.enter())
      if (above <= 0) this.#gain(right.enter())
    } else if (left?.child) this.#lose(left.enter())
    else if (right?.child) this.#gain(right.enter())
    else this.#compareEntries(left, right)
    return left !== null || right !== null
  }

  /** Passes the lesser of two keys, or both if they are the same one; null is a side that has none left. */
  #compareEntries(left: Cursor | null, right: Cursor | null): void {
    const key = !left || (right && right.key! < left.key!) ? right?.key : left.key
    if (key == null) return
    const from = left?.key === key ? left.value : null
    const to = right?.key === key ? right.value : null
    if (!from?.equals(to)) this.changes.push({ key, from, to })
    if (from !== null) left!.next()
    if (to !== null) right!.next()
  }

  #lose({ cid, bytes }: Node): void {
    this.lost.add({ cid, bytes })
  }

  #gain({ cid, bytes }: Node): void {
    this.gained.add({ cid, bytes })
  }
}

function same(a: Node | Cid, b: Node | Cid): boolean {
  return a === b || cidOf(a)!.equals(cidOf(b))
}
