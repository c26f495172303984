/** Proofs about a Merkle Search Tree: of single keys, and of what a commit changed. */
import type { Block, BlockSource } from '../blocks.ts'
import { Blocks } from '../blocks.ts'
import { type Cid, hashMatches } from '../cid.ts'
import { Malformed } from '../errors.ts'
import { keyHeight, Tree } from './tree.ts'
import { cover } from './walk.ts'

/**
 * The nodes that prove what a key's value is or that it has none: those from the root to the key or, if it is absent, all
 * the way down between its neighbours, in this order.
 * @throws Malformed, MissingBlock
 */
export function prove(tree: Tree, key: string): Block[] {
  return tree.path(key).map(({ cid, bytes }) => ({ cid, bytes }))
}

/**
 * The value that the tree with this root has for a key, or null if it has none, by the nodes given. Their hashes and all
 * that can be seen of the tree's structure are checked; other blocks may lie among them. A proof of absence may end on
 * the key's own layer: it could not stand on any other.
 * @throws Malformed when a node is not what it has to be, MissingBlock when the proof is incomplete.
 */
export function verifyProof(root: Cid, blocks: BlockSource | Iterable<Block>, key: string): Cid | null {
  const source = 'get' in blocks ? blocks : new Blocks(blocks)
  const checked: BlockSource = {
    get(cid) {
      const bytes = source.get(cid)
      if (bytes !== undefined && !hashMatches(cid, bytes)) throw new Malformed(`block is not ${cid}`)
      return bytes
    },
  }
  const node = Tree.load(root, checked).path(key, keyHeight(key)).at(-1)!
  const i = node.lowerBound(key)
  return node.keys[i] === key ? node.values[i]! : null
}

/**
 * The nodes of a tree that, with its new nodes, let someone undo the change of these keys: on the ways to each key, or
 * to where it stood, and to its nearest neighbours on both sides. In pre-order, each once.
 *
 * Source: atproto.com/specs/sync; interop vectors commit-proof-fixtures.json.
 * @throws Malformed, MissingBlock
 */
export function coveringProof(tree: Tree, keys: readonly string[]): Block[] {
  const blocks: Block[] = []
  cover(tree.rootNode, keys.toSorted(), { neighbours: true }, tree.loader, ({ cid, bytes }) =>
    blocks.push({ cid, bytes }),
  )
  return blocks
}

/** A change of one key: `cid` is the value since, null after a deletion; `prev` the one before, null for a creation. */
export interface Op {
  readonly path: string
  readonly cid: Cid | null
  readonly prev: Cid | null
}

/**
 * The tree before the operations, from the tree after them, of which the changed part suffices (see
 * {@link coveringProof}). Its root is then to be compared with the previous one.
 *
 * Deletions are undone first, then the rest by path, as others do: in a partial tree the order can decide which blocks
 * are needed.
 *
 * If the tree before is known to be right and nothing is thrown, this tree is right too where it was seen, even if loaded
 * with `heights: 'root'`.
 *
 * @throws Malformed when the operations are not what led to this tree, MissingBlock when a needed node is absent.
 * Source: atproto.com/specs/sync; reference algorithm of protocol 1.1.
 */
export function invert(tree: Tree, ops: readonly Op[]): Tree {
  if (ops.length === 0) return tree
  const order = ops.toSorted((a, b) => Number(b.cid === null) - Number(a.cid === null) || (a.path < b.path ? -1 : 1))
  const paths = new Set(ops.map(op => op.path))
  if (paths.size < ops.length) throw new Malformed('two operations on one path')
  let before = tree
  for (const { path, cid, prev } of order) {
    const value = before.get(path)
    if (value === null ? cid !== null : !value.equals(cid))
      throw new Malformed(`operation does not fit the tree: ${path}`)
    if (prev !== null) before = before.put(path, prev)
    else if (cid !== null) before = before.delete(path)
    else throw new Malformed(`operation without a value: ${path}`)
  }
  // Where heights are not checked all layers are counted from a key of this tree's root, which may be one that was not
  // there before: without this look a new key could stand beside old ones of another height.
  const { layer, keys } = before.rootNode
  if (keys.length > 0 && keyHeight(keys[0]!) !== layer) throw new Malformed('MST keys on the wrong layer')
  return before
}
