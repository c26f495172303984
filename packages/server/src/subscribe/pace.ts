/**
 * Turns at work that nobody else waits for: one at a time in the order of asking, and after each as much rest as it took. So all of it
 * together takes half of the thread's time at most.
 *
 * Replays in a form of their own need it. A plain replay is slowed down by its socket; one whose filter lets nothing through would go through the
 * whole log as fast as it can be read.
 */
export class Pace {
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
    let took = 0
    const done = this.#last.then(async () => {
      const since = this.#now()
      try {
        return await work()
      } finally {
        took = this.#now() - since
      }
    })
    const rest = () => (took > 0 ? this.#sleep(took) : undefined)
    this.#last = done.then(rest, rest)
    return done
  }
}
