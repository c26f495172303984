/** One event of a host between its arrival and its end. */
export interface Slot {
  readonly seq: number
  isDone: boolean
}

/**
 * The events of one host that are under way, in the order in which they came. Tells how far the host's cursor may move:
 * to the last event before which nothing is open.
 */
export class Window {
  /** Seq of the last event that, like all before it, is done; what it was set to until there is one. */
  cursor: number | null
  #slots: Slot[] = []
  #first = 0

  constructor(cursor: number | null) {
    this.cursor = cursor
  }

  /** Events that are not done, or wait for one before them. */
  get size(): number {
    return this.#slots.length - this.#first
  }

  add(seq: number): Slot {
    const slot = { seq, isDone: false }
    this.#slots.push(slot)
    return slot
  }

  /** Ends an event; true if the cursor moved. */
  done(slot: Slot): boolean {
    slot.isDone = true
    let moved = false
    for (let next = this.#slots[this.#first]; next?.isDone; next = this.#slots[this.#first]) {
      this.cursor = next.seq
      this.#first++
      moved = true
    }
    if (this.#first > 1_024 || this.#first === this.#slots.length) {
      this.#slots = this.#slots.slice(this.#first)
      this.#first = 0
    }
    return moved
  }
}
