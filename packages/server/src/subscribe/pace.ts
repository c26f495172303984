/** Work that is done before a rest, in milliseconds. */
export const WORK_MS = 4

/**
 * Turns at work that nobody else waits for: one at a time in the order of asking, and after some milliseconds of work as much rest. So all of
 * it together takes half of the thread's time at most.
 *
 * Replays in a form of their own need it. A plain replay is slowed down by its socket; one whose filter lets nothing through would go through the
 * whole log as fast as it can be read.
 */
export class Pace {
  /** Worked since the last rest. */
  #worked = 0
  readonly #now: () => number
  readonly #sleep: (ms: number) => Promise<unknown>
  #last: Promise<unknown> = Promise.resolve()

  /** @param now milliseconds, from wherever */
  constructor(
    now: () => number = () => performance.now(),
    sleep: (ms: number) => Promise<unknown> = ms => new Promise(resolve => setTimeout(resolve, ms)),
  ) {
    this.#now = now
    this.#sleep = sleep
  }

  /** Does the work when its turn comes. What it throws is the caller's. */
  turn<T>(work: () => T | Promise<T>): Promise<T> {
    const done = this.#last.then(async () => {
      const since = this.#now()
      try {
        return await work()
      } finally {
        this.#worked += this.#now() - since
      }
    })
    const rest = () => this.#rest()
    this.#last = done.then(rest, rest)
    return done
  }

  async #rest(): Promise<void> {
    const worked = this.#worked
    // A timer is no finer than a millisecond: shorter rests would be much longer than meant.
    if (worked < WORK_MS) return
    this.#worked = 0
    await this.#sleep(worked)
  }
}
