/**
 * A clock that stands still while this process does.
 *
 * Who judges others by their silence must not blame them for its own: after a time in which nothing ran here, timers fire before
 * what has come meanwhile is read. So whoever looks does so regularly, and of the time between two looks no more than twice the usual
 * counts.
 */
export class AwakeClock {
  readonly #now: () => number
  readonly #most: number
  #at: number
  #awake = 0

  /** @param everyMs - How often {@link look} is called. */
  constructor(now: () => number, everyMs: number) {
    this.#now = now
    this.#most = 2 * everyMs
    this.#at = now()
  }

  /** Milliseconds, from 1 when it was made. */
  get ms(): number {
    return 1 + this.#awake + Math.max(0, Math.min(this.#now() - this.#at, this.#most))
  }

  /** To be called by a timer; gives the time. */
  look(): number {
    const { ms } = this
    this.#awake = ms - 1
    this.#at = this.#now()
    return ms
  }
}
