/**
 * The event log as its readers see it: a sequence of ready-made WebSocket messages that is read by cursor.
 *
 * Reading history and following live are the same loop; there is no subscription to open and none to leak:
 *
 * ```ts
 * for (let after = cursor; ; ) {
 *   while (log.head <= after) await log.bell.wait(signal)
 *   const batch = await log.read(after, { bytes: 1 << 20 })
 *   for (const part of batch.wire) socket.write(part)
 *   after = batch.last
 * }
 * ```
 */

import type { Held } from './slabs.ts'

/**
 * Consecutive events, encoded.
 *
 * `wire` holds whole, final, unmasked binary WebSocket messages back to back; the parts are shared by all consumers and must not be changed.
 * `last` is the cursor to read on from. It may be beyond the last event in `wire` (masked or purged events, gaps in seq), and with
 * `count` 0 it may still be greater than the `after` that was asked for: only `last === after` means that there is nothing more for now.
 */
export interface Batch {
  readonly count: number
  readonly last: number
  readonly wire: readonly Uint8Array[]
  /**
   * What `wire` lies in, where that is used again: held for the reader, who may let it go by {@link letGo} when it is done with all that is a
   * view of it. One who does not only has it collected later.
   */
  readonly memory?: readonly Held[] | undefined
}

/** Holds a batch for one more reader. */
export function hold({ memory }: Batch): void {
  if (memory !== undefined) for (const held of memory) held.hold()
}

/** Says that a reader of a batch is done with it; once for each. */
export function letGo({ memory }: Batch): void {
  if (memory !== undefined) for (const held of memory) held.letGo()
}

export interface ReadLimit {
  /** Upper bound of the bytes returned, except that one event is always returned, however large. */
  readonly bytes: number
  /**
   * Memory that the log may read into, instead of new memory, when it has to read anyway and it fits. The batch is then only good until this
   * memory is given to another read. For readers of long stretches: what is not allocated is not collected.
   */
  readonly into?: Uint8Array | undefined
}

/** An append-only log of events, seen from a reader. */
export interface Log {
  /** Highest seq given out and visible to readers; 0 when there has never been one. Never falls. */
  readonly head: number
  /** Lowest seq still held, `head + 1` when none is. A cursor below `oldest - 1` has missed events. */
  readonly oldest: number
  /** Rings after `head` has risen. */
  readonly bell: Bell
  /**
   * Events with seq greater than `after`, from the oldest held when `after` lies before it.
   *
   * Live readers are answered from memory at once (no promise); everything else is a promise.
   */
  read(after: number, limit: ReadLimit): Promise<Batch> | Batch
  /** Makes what was appended durable and lets go of files and connections. Readers get an empty batch or an error afterwards. */
  close(): Promise<void>
}

/**
 * Wakes everyone who waits, as often as it rings; a ring with nobody waiting is not remembered.
 *
 * That is safe for the loop above because between looking at `head` and calling `wait` nothing else runs.
 */
export class Bell {
  #next: PromiseWithResolvers<void> | null = null

  ring(): void {
    const next = this.#next
    this.#next = null
    next?.resolve()
  }

  /** Resolves at the next ring. @throws the signal's reason, as a rejection, when it is aborted first. */
  wait(signal?: AbortSignal): Promise<void> {
    this.#next ??= Promise.withResolvers<void>()
    const rung = this.#next.promise
    if (!signal) return rung
    if (signal.aborted) return Promise.reject(signal.reason)
    return new Promise((resolve, reject) => {
      const aborted = () => reject(signal.reason)
      signal.addEventListener('abort', aborted, { once: true })
      void rung.then(() => {
        signal.removeEventListener('abort', aborted)
        resolve()
      })
    })
  }
}
