/**
 * Changing a Merkle Search Tree: each function takes nodes and returns nodes, sharing all that did not change.
 *
 * `low` and `high` bound the keys of the node they come with, both excluded, so that what is loaded can be checked.
 */
import type { Cid } from '../cid.ts'
import { Malformed } from '../errors.ts'
import { type Child, HIGHEST, highOf, LOWEST, type Loader, lowOf, Node } from './node.ts'

/** The tree with `key` set to `value`; the same node if it already is. @throws Malformed, MissingBlock */
export function putInto(root: Node, key: string, height: number, value: Cid, loader: Loader): Node {
  if (root.isEmpty) return leaf(height, key, value)
  if (height <= root.layer) return insert(root, key, height, value, loader, LOWEST, HIGHEST)
  const [left, right] = split(root, key, loader, LOWEST, HIGHEST)
  return new Node(height, [key], [value], [lift(left, height - 1), lift(right, height - 1)])
}

/** The tree without `key`; the same node if it is not there. @throws Malformed, MissingBlock */
export function deleteFrom(root: Node, key: string, height: number, loader: Loader): Node {
  let top = remove(root, key, height, loader, LOWEST, HIGHEST) ?? Node.empty
  while (top.keys.length === 0 && !top.isEmpty) top = loader.child(top, 0, LOWEST, HIGHEST)!
  return top
}

const leaf = (height: number, key: string, value: Cid) => new Node(height, [key], [value], [null, null])

/** Puts nodes without keys on top until the subtree reaches `layer`. */
export function lift(node: Node | null, layer: number): Node | null {
  let top = node
  while (top !== null && top.layer < layer) top = new Node(top.layer + 1, [], [], [top])
  return top
}

function insert(node: Node, key: string, height: number, value: Cid, loader: Loader, low: string, high: string): Node {
  const i = node.lowerBound(key)
  if (node.keys[i] === key) {
    if (node.layer !== height) throw wrongLayer()
    return node.values[i]!.equals(value) ? node : node.withValue(i, value)
  }
  const child = loader.child(node, i, low, high)
  const childLow = lowOf(node, i, low)
  const childHigh = highOf(node, i, high)
  if (node.layer === height) {
    const [left, right] = split(child, key, loader, childLow, childHigh)
    return node.withEntry(i, key, value, left, right)
  }
  if (child === null) return node.withChild(i, lift(leaf(height, key, value), node.layer - 1))
  const changed = insert(child, key, height, value, loader, childLow, childHigh)
  return changed === child ? node : node.withChild(i, changed)
}

/** The parts of a subtree before and after a key it does not contain. */
function split(
  node: Node | null,
  key: string,
  loader: Loader,
  low: string,
  high: string,
): [left: Node | null, right: Node | null] {
  if (node === null) return [null, null]
  const { layer, keys, values, children } = node
  const i = node.lowerBound(key)
  if (keys[i] === key) throw wrongLayer()
  const child = loader.child(node, i, low, high)
  const [left, right] = split(child, key, loader, lowOf(node, i, low), highOf(node, i, high))
  if (right === null && i === keys.length) return [node, null]
  if (left === null && i === 0) return [null, node]
  return [
    left === null && i === 0
      ? null
      : new Node(layer, keys.slice(0, i), values.slice(0, i), children.slice(0, i).concat(left)),
    right === null && i === keys.length
      ? null
      : new Node(layer, keys.slice(i), values.slice(i), [right, ...children.slice(i + 1)]),
  ]
}

/** The subtree without the key; null when nothing is left. */
function remove(node: Node, key: string, height: number, loader: Loader, low: string, high: string): Node | null {
  const i = node.lowerBound(key)
  if (node.keys[i] === key) {
    if (node.layer !== height) throw wrongLayer()
    const merged = mergeAt(node, i, key, loader, low, high)
    return node.keys.length === 1 && merged === null ? null : node.withoutEntry(i, merged)
  }
  if (node.layer <= height) return node
  const child = loader.child(node, i, low, high)
  if (child === null) return node
  const changed = remove(child, key, height, loader, lowOf(node, i, low), highOf(node, i, high))
  if (changed === child) return node
  return changed === null && node.keys.length === 0 ? null : node.withChild(i, changed)
}

/** What becomes of the subtrees around key number `i`. Neither is loaded when there is but one. */
function mergeAt(node: Node, i: number, key: string, loader: Loader, low: string, high: string): Child {
  if (node.children[i] === null) return node.children[i + 1]!
  if (node.children[i + 1] === null) return node.children[i]!
  const left = loader.child(node, i, low, high)!
  const right = loader.child(node, i + 1, low, high)!
  return merge(left, right, key, loader, lowOf(node, i, low), highOf(node, i + 1, high))
}

/** Joins two subtrees of one layer; `key` lies between them. */
function merge(left: Node, right: Node, key: string, loader: Loader, low: string, high: string): Node {
  const last = left.keys.length
  let between = left.children[last]!
  if (between === null) between = right.children[0]!
  else if (right.children[0] !== null) {
    const a = loader.child(left, last, low, key)!
    const b = loader.child(right, 0, key, high)!
    between = merge(a, b, key, loader, lowOf(left, last, low), highOf(right, 0, high))
  }
  return new Node(left.layer, left.keys.concat(right.keys), left.values.concat(right.values), [
    ...left.children.slice(0, last),
    between,
    ...right.children.slice(1),
  ])
}

const wrongLayer = () => new Malformed('MST key on the wrong layer')
