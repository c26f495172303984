/** How events get into the log: within the transaction that made them happen. */
import type { Did } from '@millisky/core/syntax'
import type { Awaitable, SyncTx, Tx } from '@millisky/server/db/db'
import type { SqlLog } from '@millisky/server/log/sql'
import type { PdsSchema } from './schema.ts'
import type { PendingEvent } from './store.ts'

/** The writing side of the event log that lies in the same database. */
export interface EventAppender {
  /** Gives each event its seq, in order. */
  append(tx: Tx<PdsSchema>, events: readonly PendingEvent[]): Awaitable<unknown>
  /** The same in a transaction of SQLite that does not wait. */
  appendSync(tx: SyncTx, events: readonly PendingEvent[]): void
  /** Takes away what earlier transactions said about an account. */
  forget(tx: Tx<PdsSchema>, did: Did): Awaitable<unknown>
}

/** The log's own writing side, which knows no schema but its own. */
export function appenderOf(log: SqlLog): EventAppender {
  return {
    append: (tx, events) => log.append(tx as unknown as Tx<never>, events),
    appendSync: (tx, events) => {
      log.appendSync(tx, events)
    },
    forget: (tx, did) => log.forget(tx as unknown as Tx<never>, did),
  }
}
