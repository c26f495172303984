import {
  type DatabaseConnection,
  type Dialect,
  type Driver,
  Kysely,
  PostgresAdapter,
  PostgresIntrospector,
  PostgresQueryCompiler,
  SqliteAdapter,
  SqliteIntrospector,
  SqliteQueryCompiler,
} from 'kysely'

/** Where a Kysely gets its connections from. */
export interface Connections {
  acquire(): Promise<DatabaseConnection>
  release(connection: DatabaseConnection): void
}

/** Kysely would put its own lock around a dialect of a single connection; ours is in the driver, where transactions know of it. */
class UnlockedSqliteAdapter extends SqliteAdapter {
  override get supportsMultipleConnections(): boolean {
    return true
  }
}

function refuse(): never {
  throw new Error(
    'use the transaction method of the database, not Kysely: only that one groups, retries and keeps statements apart',
  )
}

/** A Kysely for these connections, without transactions and without a lifetime of its own: those belong to the database. */
export function createKysely<S>(kind: 'sqlite' | 'postgres', connections: Connections): Kysely<S> {
  const driver: Driver = {
    init: async () => {},
    acquireConnection: () => connections.acquire(),
    releaseConnection: async connection => connections.release(connection),
    beginTransaction: async () => refuse(),
    commitTransaction: async () => refuse(),
    rollbackTransaction: async () => refuse(),
    destroy: async () => {},
  }
  const dialect: Dialect = {
    createDriver: () => driver,
    createAdapter: () => (kind === 'sqlite' ? new UnlockedSqliteAdapter() : new PostgresAdapter()),
    createQueryCompiler: () => (kind === 'sqlite' ? new SqliteQueryCompiler() : new PostgresQueryCompiler()),
    createIntrospector: db => (kind === 'sqlite' ? new SqliteIntrospector(db) : new PostgresIntrospector(db)),
  }
  return new Kysely<S>({ dialect })
}

/** A Kysely bound to one open connection, for the inside of a transaction. */
export function createBoundKysely<S>(kind: 'sqlite' | 'postgres', connection: DatabaseConnection): Kysely<S> {
  return createKysely<S>(kind, { acquire: async () => connection, release: () => {} })
}
