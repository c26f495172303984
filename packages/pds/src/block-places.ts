/** Where each of many blocks lies in a file, in as little memory as will do: some 30 bytes for a block. */
import { randomInt } from 'node:crypto'
import type { Cid } from '@millisky/core/cid'

const SLOTS_MIN = 1_024
/** Beyond this share of taken slots the table is doubled. */
const FILL_MAX = 0.7

/**
 * A table of places by eight bytes of the blocks' hashes. Two blocks may share these, if somebody has worked for it: then
 * only the first is known, so whoever reads a block has to check that it is the one he asked for.
 */
export class BlockPlaces {
  /** Two numbers for each slot. */
  #keys = new Uint32Array(SLOTS_MIN * 2)
  /** 0 is free; else the place and 1. */
  #places = new Float64Array(SLOTS_MIN)
  #size = 0
  /** So that nobody can choose hashes that all want the same slot. */
  readonly #seed = randomInt(2 ** 32)

  get size(): number {
    return this.#size
  }

  /** Notes a block that is not known yet; returns whether it was not. @param place - A whole number below 2^53 - 1. */
  add(cid: Cid, place: number): boolean {
    if (this.#size >= this.#places.length * FILL_MAX) this.#grow()
    const [high, low] = keyOf(cid)
    const slot = this.#slot(high, low)
    if (this.#places[slot] !== 0) return false
    this.#put(slot, high, low, place + 1)
    this.#size++
    return true
  }

  get(cid: Cid): number | undefined {
    const [high, low] = keyOf(cid)
    const found = this.#places[this.#slot(high, low)]!
    return found === 0 ? undefined : found - 1
  }

  /** Where the key stands, or would. */
  #slot(high: number, low: number): number {
    const mask = this.#places.length - 1
    const mixed = Math.imul(low ^ this.#seed, 0x9e3779b1)
    const hash = Math.imul(mixed ^ (mixed >>> 15) ^ high, 0x85ebca6b)
    let slot = (hash ^ (hash >>> 13)) & mask
    while (this.#places[slot] !== 0 && (this.#keys[slot * 2] !== high || this.#keys[slot * 2 + 1] !== low)) {
      slot = (slot + 1) & mask
    }
    return slot
  }

  #put(slot: number, high: number, low: number, place: number): void {
    this.#keys[slot * 2] = high
    this.#keys[slot * 2 + 1] = low
    this.#places[slot] = place
  }

  #grow(): void {
    const [keys, places] = [this.#keys, this.#places]
    this.#keys = new Uint32Array(keys.length * 2)
    this.#places = new Float64Array(places.length * 2)
    for (let old = 0; old < places.length; old++) {
      if (places[old] === 0) continue
      const [high, low] = [keys[old * 2]!, keys[old * 2 + 1]!]
      this.#put(this.#slot(high, low), high, low, places[old]!)
    }
  }
}

/** The last eight bytes of the hash. */
function keyOf({ bytes }: Cid): [high: number, low: number] {
  const at = bytes.length - 8
  const four = (at: number) =>
    ((bytes[at]! << 24) | (bytes[at + 1]! << 16) | (bytes[at + 2]! << 8) | bytes[at + 3]!) >>> 0
  return [four(at), four(at + 4)]
}
