/** What part of a Merkle Search Tree tells of the collections in it. */
import { MissingBlock } from '../blocks.ts'
import { Malformed } from '../errors.ts'
import { HIGHEST, highOf, LOWEST, lowOf, Node } from './node.ts'
import type { Tree } from './tree.ts'

/** The collection of a key `collection/rkey`. */
const collectionOf = (key: string): string => key.slice(0, key.indexOf('/'))

/**
 * The collections of all keys in those nodes that are there. The covering proof of a commit holds keys beside those that
 * changed, so it tells of more than the operations do.
 *
 * Stops where a node is not what it has to be: what was seen until then counts.
 */
export function collectionsSeen(tree: Tree): Set<string> {
  const found = new Set<string>()
  const { loader } = tree
  const go = (node: Node, low: string, high: string): void => {
    for (const key of node.keys) found.add(collectionOf(key))
    for (const [i, child] of node.children.entries()) {
      if (child === null || (!(child instanceof Node) && loader.blocks.get(child) === undefined)) continue
      go(loader.peek(node, i, low, high)!, lowOf(node, i, low), highOf(node, i, high))
    }
  }
  try {
    go(tree.rootNode, LOWEST, HIGHEST)
  } catch (error) {
    if (!(error instanceof Malformed || error instanceof MissingBlock)) throw error
  }
  return found
}

/**
 * Whether the nodes that are there prove that the tree has no key of a collection.
 *
 * After the deletion of a collection's last key its covering proof always does: the way to where the collection would
 * begin is then the way between the key's neighbours. False means that there is one, or that it cannot be told.
 */
export function lacksCollection(tree: Tree, collection: string): boolean {
  try {
    return tree.list({ prefix: `${collection}/` }).next().done === true
  } catch (error) {
    if (error instanceof Malformed || error instanceof MissingBlock) return false
    throw error
  }
}
