/** Accounts that leave for good. */
import type { Did } from '@millisky/core/syntax'
import type { Logger } from '@millisky/server/trace'
import type { Blobs } from './blobs.ts'
import type { Lifecycle } from './lifecycle.ts'
import type { Account, Store } from './store/store.ts'

const AT_ONCE = 100

export interface DeparturesParts {
  store: Store
  lifecycle: Lifecycle
  blobs: Blobs
  log: Logger
}

export class Departures {
  readonly #parts: DeparturesParts

  constructor(parts: DeparturesParts) {
    this.#parts = parts
  }

  /** Deletes an account and all it has, and tells the world. Nothing happens if it is not here. */
  async remove(did: Did): Promise<void> {
    await this.#parts.lifecycle.remove(did)
    await this.#parts.blobs.removeAll(did)
  }

  /** Unless its owner has come back, or another process was quicker. */
  async #removeIfDue(did: Did, now: number): Promise<boolean> {
    const { lifecycle, blobs } = this.#parts
    const isDue = ({ deactivatedAt, deleteAfter }: Account) =>
      deactivatedAt !== null && deleteAfter !== null && deleteAfter <= now
    if (!(await lifecycle.remove(did, isDue))) return false
    await blobs.removeAll(did)
    return true
  }

  /** Deletes accounts that are paused and whose owners wished them gone by now; returns how many. */
  async removeDue(now: number): Promise<number> {
    const { store, log } = this.#parts
    const due = await store.accounts.dueForDeletion(now, AT_ONCE)
    let removed = 0
    for (const { did } of due) {
      if (!(await this.#removeIfDue(did, now))) continue
      removed++
      log.info({ did }, 'deleted an account at the time its owner had set')
    }
    return removed
  }
}
