/** The store over SQL: one database for state and events, SQLite or PostgreSQL. */
import type { Db } from '@millisky/server/db/db'
import type { Log } from '@millisky/server/log/log'
import type { PdsSchema } from './schema.ts'
import { createAccountStore } from './sql-accounts.ts'
import { createBlobStore } from './sql-blobs.ts'
import type { EventAppender } from './sql-events.ts'
import { createRepoStore } from './sql-repos.ts'
import { createSessionStore } from './sql-sessions.ts'
import { createTicketStore } from './sql-tickets.ts'
import type { Store } from './store.ts'

/** @param log - Lies in the same database. Closed with the store. */
export function createSqlStore(db: Db<PdsSchema>, log: Log & EventAppender): Store {
  const ping = db.prepare(db.kysely.selectFrom('secret').select('name').limit(1))
  return {
    accounts: createAccountStore(db, log),
    sessions: createSessionStore(db),
    tickets: createTicketStore(db),
    repos: createRepoStore(db, log),
    blobs: createBlobStore(db),
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
