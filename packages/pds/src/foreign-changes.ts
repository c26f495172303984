/** What other processes at the same database have changed, for the few things that are remembered here. */
import { peek } from '@millisky/core/event'
import { asDid } from '@millisky/core/syntax'
import type { Identities } from '@millisky/server/identity'

/**
 * Forgets documents of accounts that an `#identity` event tells of: the process that changed them knows the new ones,
 * this one would show the old ones for an hour. All else that is remembered is named by its content, or by its time.
 */
export class ForeignChanges {
  #identities: Pick<Identities, 'forget'> | null = null

  /** Begins once there is something to forget. */
  attach(identities: Pick<Identities, 'forget'>): void {
    this.#identities = identities
  }

  show(frames: readonly Uint8Array[]): void {
    for (const frame of frames) {
      const { t, did } = peek(frame)
      if (t === '#identity' && did !== null) this.#identities?.forget(asDid(did))
    }
  }
}
