/** One node of a Merkle Search Tree, and how the nodes below it are found. */
import { type BlockSource, MissingBlock } from '../blocks.ts'
import { Cid } from '../cid.ts'
import { Malformed } from '../errors.ts'
import { MST_HEIGHT_MAX, MST_NODE_ENTRIES_MAX } from '../limits.ts'
import { decodeNode, encodeNode, withLink } from './encoding.ts'
import { keyHeight } from './key.ts'

/** A subtree: in memory, known by its CID only, or absent. */
export type Child = Node | Cid | null

/**
 * An immutable node: keys in ascending order, their values, and around and between them the subtrees one layer below.
 *
 * `children[i]` holds the keys before `keys[i]`, the last one those after all keys. A node without keys is either the
 * root of the empty tree or, not at the root, a pointer to one subtree. Its bytes and CID are computed when asked for.
 * The only thing that ever changes is that a subtree's CID is replaced by the node it names once that is loaded.
 */
export class Node {
  /** The height of all its keys; 0 is the bottom. */
  readonly layer: number
  readonly keys: readonly string[]
  readonly values: readonly Cid[]
  readonly children: readonly Child[]
  #bytes: Uint8Array | undefined
  #cid: Cid | undefined
  /** The node this one differs from in the subtree `#changed` only. */
  #base: Node | undefined
  #changed = 0

  /** Unchecked but for the number of keys. @throws Malformed when that is beyond MST_NODE_ENTRIES_MAX. */
  constructor(layer: number, keys: readonly string[], values: readonly Cid[], children: readonly Child[]) {
    if (keys.length > MST_NODE_ENTRIES_MAX) throw new Malformed('too many keys of equal height next to each other')
    this.layer = layer
    this.keys = keys
    this.values = values
    this.children = children
  }

  /** The root of the tree without keys. */
  static readonly empty = new Node(0, [], [], [null])

  /**
   * Reads a node from bytes, which are kept, and checks all that can be checked without its neighbours: the encoding, the
   * keys' order, syntax and compression, one height for all keys, no subtrees below the bottom layer.
   *
   * `layer` is the one that its place in the tree demands, needed for a node without keys; without it the first key
   * decides. With `heights: 'root'` nothing else is asked about heights: see {@link Loader}.
   * That the bytes hash to `cid` is not checked.
   * @throws Malformed
   */
  static decode(bytes: Uint8Array, options: { cid?: Cid; layer?: number; heights?: Heights } = {}): Node {
    const { keys, values, links } = decodeNode(bytes)
    const first = keys[0]
    let layer = options.layer
    if (first !== undefined) {
      const height = layer !== undefined && options.heights === 'root' ? layer : keyHeight(first)
      if (height > MST_HEIGHT_MAX) throw new Malformed('MST key higher than a tree may be')
      if (layer !== undefined && layer !== height) throw new Malformed('MST node on the wrong layer')
      layer = height
      if (options.heights !== 'root') {
        for (let i = 1; i < keys.length; i++) {
          if (keyHeight(keys[i]!) !== height) throw new Malformed('MST keys of different heights in one node')
        }
      }
    } else if (layer === undefined) {
      if (links[0] !== null) throw new Malformed('MST root without keys')
      layer = 0
    } else if (links[0] === null) {
      throw new Malformed('empty MST node below the root')
    }
    if (layer === 0 && links.some(link => link !== null)) throw new Malformed('MST subtree below the bottom layer')
    const node = new Node(layer, keys, values, links)
    node.#bytes = bytes
    node.#cid = options.cid
    return node
  }

  /** Whether it has neither keys nor a subtree. */
  get isEmpty(): boolean {
    return this.keys.length === 0 && this.children[0] === null
  }

  /**
   * The encoded node; shared, not to be changed, and part of a larger buffer (copy it before giving it to another thread).
   * Encodes all changed nodes below it first.
   */
  get bytes(): Uint8Array {
    return (this.#bytes ??= this.#encode())
  }

  /** The CID of {@link bytes}. */
  get cid(): Cid {
    return (this.#cid ??= Cid.ofCbor(this.bytes))
  }

  /** Index of the first key not less than `key`; the number of keys if there is none. */
  lowerBound(key: string): number {
    const keys = this.keys
    let low = 0
    let high = keys.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if (keys[middle]! < key) low = middle + 1
      else high = middle
    }
    return low
  }

  /** The CID of subtree `i`. */
  link(i: number): Cid | null {
    return cidOf(this.children[i]!)
  }

  /** The same node with another subtree at `i`. */
  withChild(i: number, child: Child): Node {
    const node = new Node(this.layer, this.keys, this.values, this.children.with(i, child))
    if (child !== null && this.children[i] !== null && this.#bytes !== undefined) {
      node.#base = this
      node.#changed = i
    }
    return node
  }

  /** The same node with another value for key number `i`. */
  withValue(i: number, value: Cid): Node {
    return new Node(this.layer, this.keys, this.values.with(i, value), this.children)
  }

  /** The same node with one key more at `i`, and what was subtree `i` in two parts around it. */
  withEntry(i: number, key: string, value: Cid, left: Child, right: Child): Node {
    return new Node(
      this.layer,
      this.keys.toSpliced(i, 0, key),
      this.values.toSpliced(i, 0, value),
      this.children.toSpliced(i, 1, left, right),
    )
  }

  /** The same node without key number `i`, its two subtrees replaced by `merged`. */
  withoutEntry(i: number, merged: Child): Node {
    return new Node(
      this.layer,
      this.keys.toSpliced(i, 1),
      this.values.toSpliced(i, 1),
      this.children.toSpliced(i, 2, merged),
    )
  }

  /** Remembers the node that subtree `i` turned out to be. */
  loaded(i: number, child: Node): void {
    ;(this.children as Child[])[i] = child
  }

  #encode(): Uint8Array {
    const base = this.#base
    if (base !== undefined && base.#bytes !== undefined) {
      this.#base = undefined
      return withLink(base.#bytes, this.#changed, this.link(this.#changed)!)
    }
    return encodeNode(this.keys, this.values, this.children.map(cidOf))
  }
}

/** The CID of a subtree. */
export function cidOf(child: Child): Cid | null {
  return child instanceof Node ? child.cid : child
}

/** Which keys' heights are checked when nodes are loaded: all, or only the first of the root. See {@link Loader}. */
export type Heights = 'all' | 'root'

/** How nodes are checked when they are loaded. */
export interface LoadOptions {
  /** `'all'` if left out. */
  heights?: Heights
}

/**
 * Loads nodes from a block source and checks each against its place in the tree: exactly one layer below its parent, keys
 * between the parent's, not empty. So a walk cannot go deeper than the root is high, and meets no block twice.
 *
 * Checking every key's height costs a hash for each, most of the cost of loading. With `heights: 'root'` the first key
 * of the root tells how high the root is, and all keys are believed to belong on the layer they are found on. That
 * suffices for nodes out of one's own storage, and for inversion to a tree known to be right: edits refuse an edited key
 * on a wrong layer, and all others stand in the tree before as they do in this one.
 */
export class Loader {
  readonly blocks: BlockSource
  readonly heights: Heights

  constructor(blocks: BlockSource, { heights = 'all' }: LoadOptions = {}) {
    this.blocks = blocks
    this.heights = heights
  }

  /** The root node. @throws Malformed, MissingBlock */
  root(cid: Cid): Node {
    return Node.decode(this.#block(cid), { cid, heights: this.heights })
  }

  /**
   * Subtree `i` of a node whose keys lie between `low` and `high`, both excluded; kept in the node.
   * @throws Malformed, MissingBlock
   */
  child(parent: Node, i: number, low: string, high: string): Node | null {
    const child = parent.children[i]!
    if (child === null || child instanceof Node) return child
    const node = this.peek(parent, i, low, high)!
    parent.loaded(i, node)
    return node
  }

  /** Like {@link child}, but not kept in the node: for walks over trees larger than memory. */
  peek(parent: Node, i: number, low: string, high: string): Node | null {
    const child = parent.children[i]!
    if (child === null || child instanceof Node) return child
    const node = Node.decode(this.#block(child), { cid: child, layer: parent.layer - 1, heights: this.heights })
    const { keys } = node
    if (keys.length > 0) {
      const lower = i > 0 ? parent.keys[i - 1]! : low
      const upper = i < parent.keys.length ? parent.keys[i]! : high
      if (keys[0]! <= lower || keys.at(-1)! >= upper) throw new Malformed('MST keys outside their place in the tree')
    }
    return node
  }

  #block(cid: Cid): Uint8Array {
    const bytes = this.blocks.get(cid)
    if (bytes === undefined) throw new MissingBlock(cid)
    return bytes
  }
}

/** Below and above all keys: the bounds of a root. */
export const LOWEST = ''
export const HIGHEST = '\x7f'

/** The bounds of subtree `i` of a node that lies between `low` and `high`. */
export const lowOf = (node: Node, i: number, low: string): string => (i > 0 ? node.keys[i - 1]! : low)
export const highOf = (node: Node, i: number, high: string): string => (i < node.keys.length ? node.keys[i]! : high)
