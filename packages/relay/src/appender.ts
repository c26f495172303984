/**
 * The way into the log. What is admitted while a batch is being written waits for the next one; only when a batch is
 * durable are accounts folded and host cursors moved.
 */
import type { AccountState } from '@millisky/core/verify'
import type { Account } from './accounts.ts'
import { TAKENDOWN } from './status.ts'
import type { HostId } from './store/store.ts'

/** The writing side of the event log. */
export interface EventLog {
  /** Gives each frame its seq, in order. Resolves with the last one when all are as durable as the settings want. */
  append(frames: readonly { frame: Uint8Array; account: number }[]): Promise<number>
}

/** One event that may pass, and what is true from then on. */
export interface Admitted<E> {
  frame: Uint8Array
  account: Account<E>
  state: AccountState
  hostId: HostId | null
  /** Called when it is durable. */
  done?: () => void
}

export interface AppenderParts<E> {
  log: EventLog
  /** Called for each event in the order of the log, when it is durable. */
  fold(admitted: Admitted<E>): void
  /** A batch of so many events became durable in so many milliseconds. */
  onAppend?(events: number, ms: number): void
  /** The log failed: nothing can go on. */
  onFatal(error: unknown): void
}

/** Frames in one batch. */
const BATCH_EVENTS = 2_000
const BATCH_BYTES = 8 * 1_048_576

export class Appender<E> {
  readonly #parts: AppenderParts<E>
  #waiting: Admitted<E>[] = []
  #running: Promise<void> | null = null

  constructor(parts: AppenderParts<E>) {
    this.#parts = parts
  }

  add(admitted: Admitted<E>): void {
    admitted.account.pins++
    this.#waiting.push(admitted)
    this.#running ??= this.#run()
  }

  /** Resolves when all that was added is durable. */
  async idle(): Promise<void> {
    while (this.#running) await this.#running
  }

  async #run(): Promise<void> {
    try {
      // What comes in the same round goes into the same batch.
      await new Promise(setImmediate)
      while (this.#waiting.length > 0) await this.#flush(this.#take())
    } catch (error) {
      this.#parts.onFatal(error)
      // Whoever waits does so for ever: the process is about to end.
      await new Promise(() => {})
    } finally {
      this.#running = null
    }
  }

  #take(): Admitted<E>[] {
    let bytes = 0
    let count = 0
    while (count < this.#waiting.length && count < BATCH_EVENTS && bytes < BATCH_BYTES) {
      bytes += this.#waiting[count++]!.frame.length
    }
    const batch = count === this.#waiting.length ? this.#waiting : this.#waiting.slice(0, count)
    this.#waiting = count === this.#waiting.length ? [] : this.#waiting.slice(count)
    return batch
  }

  async #flush(batch: Admitted<E>[]): Promise<void> {
    const since = performance.now()
    await this.#parts.log.append(batch.map(entryOf))
    this.#parts.onAppend?.(batch.length, performance.now() - since)
    for (const admitted of batch) {
      this.#parts.fold(admitted)
      admitted.done?.()
    }
  }
}

/** What is said of an account that is taken down is that, which is not to be hidden along with its events. */
function entryOf<E>({ frame, account, state }: Admitted<E>): { frame: Uint8Array; account: number } {
  return { frame, account: state.local === TAKENDOWN ? 0 : account.number }
}
