import { Unavailable } from '@millisky/core/errors'

interface Task {
  fn: () => unknown
  resolve: (value: unknown) => void
  reject: (reason: unknown) => void
}

export interface LanesOptions {
  /** Tasks waiting behind the running one of the same key. */
  perKeyMax?: number
  /** Tasks waiting behind running ones, all keys together. */
  waitingMax?: number
  /** Keeps other processes out of a lane until the returned function is called; asked for each task. */
  hold?: ((key: string) => Promise<() => void>) | undefined
}

/**
 * Runs tasks of one key strictly one after the other in order of arrival, and tasks of different keys side by side.
 *
 * A task that throws rejects its own promise and the lane goes on. A lane exists only while it has work, so idle keys cost nothing.
 * A task must not wait for another task of its own key: that never ends.
 */
export class Lanes {
  readonly #perKeyMax: number
  readonly #waitingMax: number
  readonly #hold: LanesOptions['hold']
  readonly #lanes = new Map<string, Task[]>()
  #waiting = 0
  #idle: PromiseWithResolvers<void> | null = null

  constructor({ perKeyMax = 100, waitingMax = 10_000, hold }: LanesOptions = {}) {
    this.#hold = hold
    this.#perKeyMax = perKeyMax
    this.#waitingMax = waitingMax
  }

  /** Keys with a running task. */
  get busy(): number {
    return this.#lanes.size
  }

  /** Tasks accepted but not yet started. */
  get waiting(): number {
    return this.#waiting
  }

  /**
   * Runs `fn` when the earlier tasks of `key` are done, and gives its result. Starts at once (synchronously) when the lane is free.
   *
   * @throws Unavailable (as a rejection) when the lane or all lanes together hold too many waiting tasks; `fn` is then never called.
   */
  run<T>(key: string, fn: () => T | Promise<T>): Promise<T> {
    const lane = this.#lanes.get(key)
    if (lane && (lane.length >= this.#perKeyMax || this.#waiting >= this.#waitingMax)) {
      const what =
        lane.length >= this.#perKeyMax
          ? 'Too many requests are waiting for this account'
          : 'Too many requests are waiting'
      return Promise.reject(new Unavailable('NotEnoughResources', what, 503, 1))
    }
    const { promise, resolve, reject } = Promise.withResolvers<T>()
    const task: Task = { fn, resolve: resolve as (value: unknown) => void, reject }
    if (lane) {
      lane.push(task)
      this.#waiting++
    } else {
      const created: Task[] = []
      this.#lanes.set(key, created)
      void this.#work(key, created, task)
    }
    return promise
  }

  /** Resolves when no task is running or waiting; for shutdown, after intake has stopped. */
  async idle(): Promise<void> {
    while (this.#lanes.size > 0) {
      this.#idle ??= Promise.withResolvers<void>()
      await this.#idle.promise
    }
  }

  async #work(key: string, lane: Task[], first: Task): Promise<void> {
    for (let task: Task | undefined = first; task; task = lane.shift()) {
      if (task !== first) this.#waiting--
      try {
        task.resolve(await (this.#hold ? heldFor(this.#hold(key), task.fn) : task.fn()))
      } catch (error) {
        task.reject(error)
      }
    }
    this.#lanes.delete(key)
    if (this.#lanes.size === 0) {
      this.#idle?.resolve()
      this.#idle = null
    }
  }
}

async function heldFor(hold: Promise<() => void>, fn: () => unknown): Promise<unknown> {
  const release = await hold
  try {
    return await fn()
  } finally {
    release()
  }
}
