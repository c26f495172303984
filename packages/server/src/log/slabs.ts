/**
 * Memory for what is made in great numbers, looked at by several for a while, and gone: used again by hand. Left to be
 * collected, each 64 MB of it would make V8 mark its whole heap.
 *
 * Whoever looks at some of it holds it. What nobody holds any more is used again; what somebody forgets to let go is not, and is collected when
 * it is out of reach as any other memory. So forgetting costs little; letting go too early, or twice, would show readers other bytes.
 */

/** Sizes are multiples of this: small, as one slow reader keeps the whole of a slab. */
const SLAB_BYTES = 256 << 10
/** Slabs kept for later. */
const SPARE_MAX = 16

/** Something that is held, and comes back when it is let go as often as it was held. */
export interface Held {
  hold(): void
  letGo(): void
}

class Slab implements Held {
  readonly bytes: Buffer
  holders = 0
  readonly #free: (slab: Slab) => void

  constructor(bytes: Buffer, free: (slab: Slab) => void) {
    this.bytes = bytes
    this.#free = free
  }

  hold(): void {
    this.holders++
  }

  letGo(): void {
    if (--this.holders === 0) this.#free(this)
  }
}

/** Gives out memory, one stretch behind the other. */
export class Slabs {
  #current: Slab | null = null
  #used = 0
  /** Not held, the smallest first. */
  readonly #spare: Slab[] = []

  /** Room for so many bytes, until this is asked again or some of it is kept. What is in there is arbitrary. */
  reserve(length: number): Buffer {
    if (this.#current === null || this.#used + length > this.#current.bytes.length) this.#turn(length)
    return this.#current!.bytes.subarray(this.#used, this.#used + length)
  }

  /** Keeps the first bytes of what was reserved last, held once. */
  keep(length: number): Held {
    const slab = this.#current!
    this.#used += length
    slab.hold()
    return slab
  }

  #turn(length: number): void {
    const before = this.#current
    const at = this.#spare.findIndex(({ bytes }) => bytes.length >= length)
    this.#current = at < 0 ? this.#create(length) : this.#spare.splice(at, 1)[0]!
    this.#used = 0
    if (before?.holders === 0) this.#free(before)
  }

  #create(length: number): Slab {
    const size = Math.max(1, Math.ceil(length / SLAB_BYTES)) * SLAB_BYTES
    return new Slab(Buffer.allocUnsafeSlow(size), slab => this.#free(slab))
  }

  #free(slab: Slab): void {
    if (slab === this.#current) return
    const at = this.#spare.findIndex(({ bytes }) => bytes.length > slab.bytes.length)
    this.#spare.splice(at < 0 ? this.#spare.length : at, 0, slab)
    if (this.#spare.length > SPARE_MAX) this.#spare.shift()
  }
}
