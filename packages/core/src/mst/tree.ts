/**
 * The Merkle Search Tree: a sorted map from keys `collection/rkey` to CIDs whose shape, and so whose root CID, depends on
 * nothing but its content.
 *
 * Source: atproto.com/specs/repository; Auvolat and Taïani, "Merkle Search Trees".
 */
import type { Block, BlockSource } from '../blocks.ts'
import { Blocks } from '../blocks.ts'
import type { Cid } from '../cid.ts'
import { Malformed } from '../errors.ts'
import { deleteFrom, lift, putInto } from './edit.ts'
import { heightOfKey } from './key.ts'
import { HIGHEST, highOf, LOWEST, Loader, type LoadOptions, lowOf, Node } from './node.ts'
import { Cursor, cover, listRange, type Range } from './walk.ts'

export { isKey, keyHeight } from './key.ts'
export type { LoadOptions } from './node.ts'
export type { Range } from './walk.ts'

/** One step of {@link Tree.walk}: a node is entered, or an entry passed. */
export type Step = { node: Node; key: null; value: null } | { node: null; key: string; value: Cid }

/**
 * An immutable tree: edits return another one that shares all unchanged nodes.
 *
 * A loaded tree takes nodes from its block source when they are first needed and checks them against their place; those
 * on the way to edited or read keys stay in memory, those met by walks and lists do not. Any method may hence throw
 * `MissingBlock` when the source lacks a block and `Malformed` when a block is not what it has to be. What is not
 * checked: that blocks hash to their CIDs (the reader of a CAR does that).
 *
 * A tree that is only edited computes no hashes; {@link root} and all that hands out blocks do.
 */
export class Tree {
  #root: Node | Cid
  readonly #loader: Loader

  private constructor(root: Node | Cid, loader: Loader) {
    this.#root = root
    this.#loader = loader
  }

  /** The tree without keys. It has one node. */
  static readonly empty: Tree = new Tree(Node.empty, new Loader(new Blocks()))

  /** The tree whose root node has this CID. Touches no block yet. @throws Malformed when it cannot be an MST node's CID */
  static load(root: Cid, blocks: BlockSource, options?: LoadOptions): Tree {
    if (!root.isCbor) throw new Malformed('MST root is not a blessed link to DAG-CBOR')
    return new Tree(root, new Loader(blocks, options))
  }

  /** The tree of these entries, sorted by key, in time proportional to their number. @throws Malformed */
  static build(pairs: Iterable<readonly [key: string, value: Cid]>): Tree {
    const builder = new Builder()
    for (const [key, value] of pairs) builder.add(key, value)
    return new Tree(builder.finish(), Tree.empty.#loader)
  }

  /** The CID of the root node. */
  get root(): Cid {
    return this.#root instanceof Node ? this.#root.cid : this.#root
  }

  /** The root node, for those who want to go down themselves; its subtrees may be CIDs only. */
  get rootNode(): Node {
    if (!(this.#root instanceof Node)) this.#root = this.#loader.root(this.#root)
    return this.#root
  }

  /** Where nodes come from. */
  get loader(): Loader {
    return this.#loader
  }

  /** The value of a key. */
  get(key: string): Cid | null {
    const path = this.path(key)
    const node = path.at(-1)!
    const i = node.lowerBound(key)
    return node.keys[i] === key ? node.values[i]! : null
  }

  /**
   * The nodes from the root to the one the key stands in, or down to where it would stand: to the bottom, unless
   * `lowest` names a layer below which it need not be looked for.
   */
  path(key: string, lowest = 0): Node[] {
    const path: Node[] = []
    let low = LOWEST
    let high = HIGHEST
    for (let node: Node | null = this.rootNode; node !== null; ) {
      path.push(node)
      const i: number = node.lowerBound(key)
      if (node.keys[i] === key || node.layer <= lowest) break
      const child: Node | null = this.#loader.child(node, i, low, high)
      low = lowOf(node, i, low)
      high = highOf(node, i, high)
      node = child
    }
    return path
  }

  /** The tree with this entry, new or instead of the key's present one. @throws Malformed when it is no possible entry */
  put(key: string, value: Cid): Tree {
    assertValue(value)
    return this.#with(putInto(this.rootNode, key, heightOfKey(key), value, this.#loader))
  }

  /** The tree without this key; the same one if it has no such key. */
  delete(key: string): Tree {
    return this.#with(deleteFrom(this.rootNode, key, heightOfKey(key), this.#loader))
  }

  /** Entries in order of keys, all or those in a range. Loads as it goes. */
  list(range: Range = {}): Generator<[key: string, value: Cid]> {
    return listRange(this.rootNode, range, this.#loader)
  }

  [Symbol.iterator](): Generator<[key: string, value: Cid]> {
    return this.list()
  }

  /** All nodes and entries in pre-order: a node, then by turns its subtrees and entries. The order of sync 1.1 exports. */
  *walk(): Generator<Step> {
    const root = this.rootNode
    yield { node: root, key: null, value: null }
    const cursor = new Cursor(root, this.#loader)
    while (!cursor.atEnd) {
      if (cursor.key === null) yield { node: cursor.enter(), key: null, value: null }
      else {
        yield { node: null, key: cursor.key, value: cursor.value }
        cursor.next()
      }
    }
  }

  /** The blocks of all nodes, in pre-order. To have gone through them is to have verified the whole tree. */
  *nodes(): Generator<Block> {
    const root = this.rootNode
    yield { cid: root.cid, bytes: root.bytes }
    const cursor = new Cursor(root, this.#loader)
    while (!cursor.atEnd) {
      if (cursor.key !== null) cursor.next()
      else {
        const { cid, bytes } = cursor.enter()
        yield { cid, bytes }
      }
    }
  }

  /**
   * The nodes that the block source still lacks before these keys can be read or put, and with `neighbours` (the
   * default) before they can be deleted or have their covering proof made. For storage that answers later: load these, ask
   * again, until there are none; that takes at most as many rounds as the tree is high.
   */
  missing(keys: readonly string[], { neighbours = true }: { neighbours?: boolean } = {}): Cid[] {
    const missing: Cid[] = []
    if (keys.length === 0) return missing
    if (!(this.#root instanceof Node) && this.#loader.blocks.get(this.#root) === undefined) return [this.#root]
    cover(
      this.rootNode,
      keys.toSorted(),
      { neighbours },
      this.#loader,
      () => {},
      cid => missing.push(cid),
    )
    return missing
  }

  /** A picture of the nodes in memory for people: one line for each subtree and entry, indented by layer. */
  toString(): string {
    const lines: string[] = []
    const draw = (child: Node | Cid, indent: string): void => {
      if (!(child instanceof Node)) {
        lines.push(`${indent}(${child})`)
        return
      }
      lines.push(`${indent}${child.layer}: ${child.cid}`)
      for (const [i, below] of child.children.entries()) {
        if (below !== null) draw(below, `${indent}  `)
        if (i < child.keys.length) lines.push(`${indent}- ${child.keys[i]} → ${child.values[i]}`)
      }
    }
    draw(this.#root, '')
    return lines.join('\n')
  }

  #with(root: Node): Tree {
    return root === this.#root ? this : new Tree(root, this.#loader)
  }
}

function assertValue(value: Cid): void {
  if (!value.isBlessed) throw new Malformed('MST value is not a blessed CID')
}

/** What {@link Builder} has of the node it is filling on one layer; its last subtree is still to come. */
interface Open {
  keys: string[]
  values: Cid[]
  children: (Node | null)[]
}

/** Builds a tree from the left: on each layer one node is open, and closed by the next key above it. */
class Builder {
  #open: Open[] = []
  #previous = ''

  add(key: string, value: Cid): void {
    const height = heightOfKey(key)
    assertValue(value)
    if (key <= this.#previous) throw new Malformed('entries are not sorted')
    this.#previous = key
    const below = this.#close(height)
    while (this.#open.length <= height) this.#open.push({ keys: [], values: [], children: [] })
    const node = this.#open[height]!
    node.keys.push(key)
    node.values.push(value)
    node.children.push(below)
  }

  finish(): Node {
    return this.#close(this.#open.length) ?? Node.empty
  }

  /** Closes the nodes on all layers below `height`; returns the one on top of them. */
  #close(height: number): Node | null {
    let top: Node | null = null
    for (let layer = 0; layer < height; layer++) {
      const open = this.#open[layer]
      if (open === undefined) return lift(top, height - 1)
      if (open.keys.length > 0) {
        open.children.push(top)
        top = new Node(layer, open.keys, open.values, open.children)
        this.#open[layer] = { keys: [], values: [], children: [] }
      } else top = lift(top, layer)
    }
    return top
  }
}
