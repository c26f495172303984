/** How events get into the log: within the transaction that made them happen. */
import type { Did } from '@millisky/core/syntax'
import type { Awaitable, Tx } from '@millisky/server/db/db'
import type { PdsSchema } from './schema.ts'
import type { PendingEvent } from './store.ts'

/** The writing side of the event log that lies in the same database. */
export interface EventAppender {
  /** Gives each event its seq, in order. */
  append(tx: Tx<PdsSchema>, events: readonly PendingEvent[]): Awaitable<unknown>
  /** Takes away what earlier transactions said about an account. */
  forget(tx: Tx<PdsSchema>, did: Did): Awaitable<unknown>
}
