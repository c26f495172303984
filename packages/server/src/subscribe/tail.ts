import { type Batch, hold, type Log, letGo } from '../log/log.ts'
import { Slabs } from '../log/slabs.ts'
import type { Consumer } from './consumer.ts'

/**
 * A write to a socket costs about as much as the 40 KB it might hold (measured with 1 and 8 frames of 5 KB a write). So that
 * many consumers do not eat the processor with small writes, the pause after a step is so many times as long as the step took,
 * but not longer than this.
 */
const PAUSE_PER_WORK = 8
const PAUSE_MAX_MS = 25
/** So many consumers are worth a copy that makes one buffer of several; for fewer it is more to do and to collect. */
const CROWD = 4

export interface TailSettings {
  coalesceMs: number
  batchBytes: number
}

/**
 * The live end of the log as the consumers see it: it moves in steps, at most one per `coalesceMs`, and within a step
 * whoever stands at the same place gets the same buffer.
 */
export class Tail {
  /** The log's head at the last step. */
  flushed: number
  closed = false
  readonly #log: Log
  readonly #settings: TailSettings
  readonly #waiting = new Set<Consumer>()
  readonly #shared = new Map<number, Batch | Promise<Batch>>()
  /** For what is joined. */
  readonly #slabs = new Slabs()
  readonly #stop = new AbortController()
  readonly #steps: Promise<void>
  /** Consumers that were woken by the last step. */
  #crowd = 0
  /** The head at the step before: who stands behind it is replaying and shares with nobody. */
  #before: number

  constructor(log: Log, settings: TailSettings) {
    this.#log = log
    this.#settings = settings
    this.flushed = this.#before = log.head
    this.#steps = this.#run()
  }

  async #run(): Promise<void> {
    const { signal } = this.#stop
    let [steppedAt, pauseMs] = [0, 0]
    while (!signal.aborted) {
      if (this.#log.head <= this.flushed) await this.#log.bell.wait(signal).catch(() => {})
      const rest = steppedAt + pauseMs - performance.now()
      if (rest > 0 && !signal.aborted) await new Promise(resolve => setTimeout(resolve, rest))
      steppedAt = performance.now()
      this.#step()
      // The consumers that wait have written once this line is reached.
      await null
      const { coalesceMs } = this.#settings
      const workMs = performance.now() - steppedAt
      pauseMs = Math.max(coalesceMs, Math.min(workMs * PAUSE_PER_WORK, PAUSE_MAX_MS))
    }
  }

  #step(): void {
    if (this.#log.head <= this.flushed) return
    this.#before = this.flushed
    this.flushed = this.#log.head
    for (const batch of this.#shared.values()) if (!(batch instanceof Promise)) letGo(batch)
    this.#shared.clear()
    this.#crowd = this.#waiting.size
    for (const consumer of this.#waiting) consumer.wake?.()
  }

  /** Waits for the next step. */
  next(consumer: Consumer): Promise<void> {
    this.#waiting.add(consumer)
    return new Promise(resolve => {
      consumer.wake = () => {
        consumer.wake = null
        this.#waiting.delete(consumer)
        resolve()
      }
    })
  }

  forget(consumer: Consumer): void {
    this.#waiting.delete(consumer)
  }

  /** Not replaying: it has all but what came with the last step. */
  isNear(cursor: number): boolean {
    return cursor >= this.#before
  }

  /** What follows for this consumer, held for it. */
  read(consumer: Consumer): Batch | Promise<Batch> {
    const after = consumer.cursor
    const bytes = this.#settings.batchBytes
    if (!this.isNear(after)) return this.#log.read(after, { bytes, into: consumer.takeMemory(bytes) })
    consumer.leaveMemory()
    let batch = this.#shared.get(after)
    if (batch === undefined) {
      const found = this.#log.read(after, { bytes })
      batch = this.#crowd < CROWD || found instanceof Promise ? found : this.#join(found)
      this.#shared.set(after, batch)
    }
    if (!(batch instanceof Promise)) hold(batch)
    return batch
  }

  /** One buffer to write instead of several: copied once, written to every consumer. */
  #join(batch: Batch): Batch {
    const { wire } = batch
    if (wire.length < 2) return batch
    const bytes = wire.reduce((sum, part) => sum + part.length, 0)
    const whole = this.#slabs.reserve(bytes)
    let at = 0
    for (const part of wire) {
      whole.set(part, at)
      at += part.length
    }
    letGo(batch)
    return { ...batch, wire: [whole], memory: [this.#slabs.keep(bytes)] }
  }

  /** Takes the last step. */
  async close(): Promise<void> {
    this.#stop.abort()
    await this.#steps
    this.#step()
    this.closed = true
  }
}
