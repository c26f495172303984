/** The store over SQL: one database for state and events, SQLite or PostgreSQL. */
import type { SqlLog } from '@millisky/server/log/sql'
import type { PdsDb } from './schema.ts'
import { createAccountStore } from './sql-accounts.ts'
import { createArrivalStore } from './sql-arrivals.ts'
import { createBlobStore } from './sql-blobs.ts'
import { appenderOf } from './sql-events.ts'
import { createRepoStore } from './sql-repos.ts'
import { createSessionStore } from './sql-sessions.ts'
import { createTakedownStore } from './sql-takedowns.ts'
import { createTicketStore } from './sql-tickets.ts'
import type { Store } from './store.ts'

/** @param log - Lies in the same database. Closed with the store. */
export function createSqlStore(db: PdsDb, log: SqlLog): Store {
  const ping = db.prepare(db.kysely.selectFrom('secret').select('name').limit(1))
  const events = appenderOf(log)
  return {
    accounts: createAccountStore(db, events),
    arrivals: createArrivalStore(db),
    sessions: createSessionStore(db),
    tickets: createTicketStore(db),
    repos: createRepoStore(db, events),
    blobs: createBlobStore(db),
    takedowns: createTakedownStore(db),
    log,
    async ping() {
      await db.get(ping, [])
    },
    async close() {
      await log.close()
      await db.close()
    },
  }
}
