/**
 * The start and end of a daemon: named parts that start in order and stop in reverse, within a deadline.
 *
 * ```ts
 * const life = new Lifetime({ log })
 * life.add('database', { stop: () => db.close() })
 * life.add('http', { start: () => listen(http, address), stop: () => http.close() })
 * await life.start()
 * process.exitCode = await life.untilSignal()
 * ```
 */
import type { EventEmitter } from 'node:events'
import type { Logger } from './trace.ts'

export interface Part {
  readonly start?: () => unknown
  /** Called once, also if `start` of a later part failed. Not called if its own `start` failed. */
  readonly stop?: () => unknown
}

export class Lifetime {
  readonly #log: Logger
  readonly #drainMs: number
  readonly #parts: { name: string; part: Part; isRunning: boolean }[] = []
  #stopping: Promise<readonly string[]> | undefined

  /** @param drainMs - How long all parts together may take to stop. */
  constructor({ log, drainMs = 20_000 }: { log: Logger; drainMs?: number }) {
    this.#log = log
    this.#drainMs = drainMs
  }

  /** Adds a part behind those it needs. */
  add(name: string, part: Part): void {
    this.#parts.push({ name, part, isRunning: false })
  }

  /** Starts every part, one after the other. If one fails, those before it are stopped and its error is thrown. */
  async start(): Promise<void> {
    for (const entry of this.#parts) {
      try {
        await entry.part.start?.()
        entry.isRunning = true
        this.#log.debug({ part: entry.name }, 'started')
      } catch (error) {
        this.#log.error({ part: entry.name, err: error }, 'did not start')
        await this.stop()
        throw error
      }
    }
  }

  /**
   * Stops what runs, the last first, and does not wait beyond the deadline. A part that fails does not keep the others
   * from stopping. Calling it again gives the same result.
   *
   * @returns names of the parts that failed to stop or were given up.
   */
  stop(): Promise<readonly string[]> {
    this.#stopping ??= this.#stopAll()
    return this.#stopping
  }

  async #stopAll(): Promise<readonly string[]> {
    const failed: string[] = []
    const deadline = Date.now() + this.#drainMs
    for (const entry of this.#parts.toReversed()) {
      if (!entry.isRunning) continue
      entry.isRunning = false
      try {
        await within(Math.max(0, deadline - Date.now()), async () => entry.part.stop?.())
        this.#log.debug({ part: entry.name }, 'stopped')
      } catch (error) {
        failed.push(entry.name)
        this.#log.error({ part: entry.name, err: error }, 'did not stop in order')
      }
    }
    return failed
  }

  /**
   * Waits for SIGTERM or SIGINT and then stops everything. A second signal, or an error nobody caught, ends the process
   * at once: what is written is durable, and a process in an unknown state serves nobody.
   *
   * @param signals - Where signals are heard: the process, or a stand-in of tests.
   * @returns the exit code: 0 if all stopped in order, else 1.
   */
  async untilSignal(
    signals: EventEmitter = process,
    exit: (code: number) => void = code => process.exit(code),
  ): Promise<number> {
    const crash = (error: unknown) => {
      this.#log.fatal({ err: error }, 'uncaught error')
      exit(1)
    }
    signals.on('uncaughtException', crash)
    let heard: (() => void) | undefined
    const first = new Promise<void>(resolve => {
      heard = resolve
    })
    const onSignal = (signal: NodeJS.Signals) => {
      if (this.#stopping) {
        this.#log.warn({ signal }, 'second signal: leaving at once')
        exit(1)
        return
      }
      this.#log.info({ signal }, 'stopping')
      heard?.()
    }
    for (const signal of ['SIGTERM', 'SIGINT']) signals.on(signal, onSignal)
    await first
    const failed = await this.stop()
    for (const signal of ['SIGTERM', 'SIGINT']) signals.removeListener(signal, onSignal)
    signals.removeListener('uncaughtException', crash)
    return failed.length === 0 ? 0 : 1
  }
}

async function within<T>(ms: number, work: () => Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(new Error('took too long')), ms)
  })
  try {
    return await Promise.race([work(), late])
  } finally {
    clearTimeout(timer)
  }
}
