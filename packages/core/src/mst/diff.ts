/** What differs between two Merkle Search Trees. */
import type { Block } from '../blocks.ts'
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
  const lost = new Map<string, Node>()
  const gained = new Map<string, Node>()
  const changes: Change[] = []
  if (a?.root.equals(b.root)) return { gained: [], lost: [], changes }
  const left = a === null ? null : open(a, lost)
  const right = open(b, gained)
  while (left !== null && !left.atEnd && !right.atEnd) step(left, right, lost, gained, changes)
  while (left !== null && !left.atEnd) {
    if (left.key === null) add(lost, left.enter())
    else {
      changes.push({ key: left.key, from: left.value, to: null })
      left.next()
    }
  }
  while (!right.atEnd) {
    if (right.key === null) add(gained, right.enter())
    else {
      changes.push({ key: right.key, from: null, to: right.value })
      right.next()
    }
  }
  return {
    // A subtree is entered on both sides when a key next to it changed; if it is the same it is neither.
    gained: [...gained].filter(([key]) => !lost.has(key)).map(([, { cid, bytes }]) => ({ cid, bytes })),
    lost: [...lost].filter(([key]) => !gained.has(key)).map(([, { cid }]) => cid),
    changes,
  }
}

function open(tree: Tree, seen: Map<string, Node>): Cursor {
  add(seen, tree.rootNode)
  return new Cursor(tree.rootNode, tree.loader)
}

function add(seen: Map<string, Node>, node: Node): void {
  seen.set(node.cid.key, node)
}

/**
 * Moves one or both cursors on. All keys passed on either side are less than those still ahead on both, so where both
 * stand on subtrees, these begin at the same place.
 */
function step(
  left: Cursor,
  right: Cursor,
  lost: Map<string, Node>,
  gained: Map<string, Node>,
  changes: Change[],
): void {
  if (left.child !== null && right.child !== null) {
    const below = left.layer - right.layer
    if (below === 0 && same(left.child, right.child)) {
      left.next()
      right.next()
      return
    }
    if (below >= 0) add(lost, left.enter())
    if (below <= 0) add(gained, right.enter())
  } else if (left.child !== null) add(lost, left.enter())
  else if (right.child !== null) add(gained, right.enter())
  else compareEntries(left, right, changes)
}

function same(a: Node | Cid, b: Node | Cid): boolean {
  return a === b || cidOf(a)!.equals(cidOf(b))
}

function compareEntries(left: Cursor, right: Cursor, changes: Change[]): void {
  const a = left.key!
  const b = right.key!
  if (a <= b) {
    const to = a === b ? right.value : null
    if (to === null || !left.value.equals(to)) changes.push({ key: a, from: left.value, to })
    left.next()
  } else changes.push({ key: b, from: null, to: right.value })
  if (b <= a) right.next()
}
