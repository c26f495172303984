import type { Kysely } from 'kysely'
import type { Migration } from './migrate.ts'
import { openSqlite } from './sqlite.ts'
import type { Query, Statement } from './statement.ts'

/** A value now or later: SQLite answers at once, PostgreSQL with a promise. `await` serves both and costs next to nothing for the first. */
export type Awaitable<T> = T | Promise<T>

/**
 * Runs statements: the database itself, or one transaction of it.
 *
 * A store's functions take an Executor, so that the caller decides whether they are part of a transaction. On SQLite, reads are answered
 * at once and never see what an unfinished transaction has written; a single write outside a transaction is a transaction of its own.
 *
 * Parameters: null, numbers (integers up to 2^53-1), strings, Uint8Array. Rows: plain objects of the same; bytes are always copies.
 * `undefined` and booleans are refused.
 */
export interface Executor<S> {
  readonly kind: 'sqlite' | 'postgres'
  /** Any query, compiled at each call: some 20 times dearer than a prepared statement, and always a promise. */
  readonly kysely: Kysely<S>
  all<P extends readonly unknown[], R>(statement: Statement<P, R>, params: P): Awaitable<R[]>
  /** The first row. */
  get<P extends readonly unknown[], R>(statement: Statement<P, R>, params: P): Awaitable<R | undefined>
  /** The number of rows changed. */
  run<P extends readonly unknown[]>(statement: Statement<P, unknown>, params: P): Awaitable<number>
}

/** One open transaction. It sees its own changes; nobody else does until it has ended well. */
export interface Tx<S> extends Executor<S> {
  /** Runs `fn` such that its changes are undone when it throws, while the transaction as a whole can go on. */
  savepoint<T>(fn: () => T | Promise<T>): Promise<T>
  /**
   * Calls `fn` once the changes are durable, before the transaction's promise resolves; never when they are not. It must not throw.
   * On PostgreSQL the transaction's promise waits for one that it gives.
   */
  onCommit(fn: () => unknown): void
}

export interface TransactionOptions {
  /** PostgreSQL only (SQLite is always serializable). Default `read committed`. */
  isolation?: 'read committed' | 'repeatable read' | 'serializable'
}

/** An open database. */
export interface Db<S> extends Executor<S> {
  /** Opens this same database again, for instance in a worker. May hold a password. */
  readonly url: string
  /**
   * Compiles a query once, for use any number of times.
   *
   * ```ts
   * const recordOf = db.prepare((did: string, path: string) =>
   *   db.kysely.selectFrom('record').select('bytes').where('did', '=', did).where('path', '=', path))
   * const row = await tx.get(recordOf, [did, path])
   * ```
   */
  prepare<P extends readonly unknown[], R>(build: (...params: P) => Query<R>): Statement<P, R>
  prepare<R>(query: Query<R>): Statement<[], R>
  /**
   * Runs `fn` in a transaction: all of its changes become durable together before the promise resolves, or none when it throws.
   *
   * SQLite: transactions run one after the other in order of arrival; those that are waiting share one commit and one fsync. `fn` may be
   * synchronous. While it awaits something slow, every other write waits: await nothing but the transaction.
   * PostgreSQL: transactions run side by side; `fn` is run again (up to 5 times) after a serialization failure or a deadlock, so what it
   * does outside the database must bear repeating (or wait for `onCommit`).
   *
   * @throws Unavailable when the database does not answer or is locked by another process.
   */
  transaction<T>(fn: (tx: Tx<S>) => T | Promise<T>, options?: TransactionOptions): Promise<T>
  /** A consistent view for several reads, that holds up nobody's writes. SQLite: on a connection of its own. */
  snapshot<T>(fn: (view: Executor<S>) => T | Promise<T>): Promise<T>
  /** Waits for the transactions under way and closes every connection. */
  close(): Promise<void>
}

/** What only SQLite can: everything at once, without a promise. */
export interface SqliteDb<S> extends Db<S> {
  readonly kind: 'sqlite'
  readonly path: string
  /** @throws Error when the statement is not a plain select. */
  allSync<P extends readonly unknown[], R>(statement: Statement<P, R>, params: P): R[]
  getSync<P extends readonly unknown[], R>(statement: Statement<P, R>, params: P): R | undefined
  /**
   * Runs `fn` in a transaction here and now.
   *
   * @throws Error when `fn` gives a promise (nothing is kept then), or when an asynchronous transaction is under way: it cannot be waited
   *   for without a promise. Where both occur, use `transactionGrouped`.
   */
  transactionSync<T>(fn: (tx: SyncTx) => T): T
  /**
   * Like `transaction`, in line with the others and sharing their commit, for a function that needs no promises. It is run once more
   * when another that shares its commit fails halfway, so what it does outside the database must bear repeating (or wait for `onCommit`).
   */
  transactionGrouped<T>(fn: (tx: SyncTx) => T): Promise<T>
}

/** A transaction of SQLite whose statements answer at once. */
export interface SyncTx {
  all<P extends readonly unknown[], R>(statement: Statement<P, R>, params: P): R[]
  get<P extends readonly unknown[], R>(statement: Statement<P, R>, params: P): R | undefined
  run<P extends readonly unknown[]>(statement: Statement<P, unknown>, params: P): number
  savepoint<T>(fn: () => T): T
  onCommit(fn: () => void): void
}

/** What only PostgreSQL needs: word from other processes. */
export interface PostgresDb<S> extends Db<S> {
  readonly kind: 'postgres'
  /**
   * Calls `heard` with what some process tells on `channel`, and with null after every reconnection, when notices may have been missed.
   * @returns a function that stops listening.
   */
  listen(channel: string, heard: (payload: string | null) => void): Promise<() => Promise<void>>
  /**
   * Waits until no process holds a lock of this name, then holds it until the returned function is called. For work that is more than
   * one transaction; see `postgres-locks.ts`. One process must ask for a name only once at a time.
   *
   * @throws Unavailable
   */
  hold(name: string): Promise<() => void>
}

/** The few methods of a pino logger that the database uses. */
export interface DbLog {
  warn(details: object, message: string): void
}

export interface OpenDbOptions {
  /** The schema's whole history; missing steps are applied. */
  migrations: readonly Migration[]
  /** Refuse changes; the database must exist and be migrated. Any number of processes and workers may read. */
  readonly?: boolean
  log?: DbLog
  /** SQLite: bytes of the file that count as memory of the process while they are read; default 256 MiB, 0 for none. */
  mapBytes?: number
  /** SQLite: memory for pages of the file that were read or written; default 64 MiB. */
  cacheBytes?: number
  /** PostgreSQL: connections at most. Default 10. */
  connectionsMax?: number
}

/**
 * Opens a database and brings its schema up to date.
 *
 * URLs: `sqlite://relative/path`, `sqlite:///absolute/path`, `sqlite=path`, a bare path, `:memory:` (a database that lives as long as it is
 * open), `postgres://…` or `postgresql://…`. Folders of a SQLite file are created.
 *
 * @throws Error when the database is newer than `migrations` or belongs to something else.
 */
export async function openDb<S>(url: string, options: OpenDbOptions): Promise<SqliteDb<S> | PostgresDb<S>> {
  if (!/^postgres(ql)?:\/\//.test(url)) return await openSqlite<S>(url, options)
  // Most servers never need it, and it takes memory.
  const { openPostgres } = await import('./postgres.ts')
  return await openPostgres<S>(url, options)
}

/** Whether an error, of either database, says that a row with this key exists already. */
export function isUniqueViolation(error: unknown): boolean {
  if (!(error instanceof Error)) return false
  const { code, errcode } = error as { code?: unknown; errcode?: unknown }
  if (code === '23505') return true
  return code === 'ERR_SQLITE_ERROR' && (errcode === 2067 || errcode === 1555 || errcode === 2579)
}
