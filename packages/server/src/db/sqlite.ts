import { AsyncLocalStorage } from 'node:async_hooks'
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { Unavailable } from '@millisky/core/errors'
import type { CompiledQuery, Kysely, QueryResult } from 'kysely'
import type { DbLog, Executor, OpenDbOptions, SqliteDb, SyncTx, Tx } from './db.ts'
import { createBoundKysely, createKysely } from './dialect.ts'
import { checkMigrated, migrate } from './migrate.ts'
import { assertOpen, assertOutsideTransaction, duringTransaction, insideTransaction, runHooks } from './scope.ts'
import { SqliteConnection } from './sqlite-connection.ts'
import { compileStatement, isWrite, type Query, Statement } from './statement.ts'

/** Transactions that share one commit at most, and for how long newcomers may join: a bound on how long the first one waits for its answer. */
const GROUP_MAX = 500
const GROUP_MS = 25
const SLOW_TRANSACTION_MS = 5_000
const IDLE_READERS_MAX = 4
const MAP_BYTES = 268_435_456
const CACHE_BYTES = 67_108_864
const READER_CACHE_BYTES = 8_388_608

/** Opens a SQLite database; see `openDb` for URLs. */
export async function openSqlite<S>(url: string, options: OpenDbOptions): Promise<SqliteDb<S>> {
  const { path, folder } = locate(url)
  const db = new SqliteDatabase<S>(path, folder, options)
  try {
    if (options.readonly) {
      await checkMigrated(path, db.kysely as unknown as Kysely<unknown>, options.migrations)
    } else {
      await migrate({ kind: 'sqlite', where: path, exclusively: fn => db.migrateIn(fn) }, options.migrations)
    }
  } catch (error) {
    await db.close()
    throw error
  }
  return db
}

/** The file a URL names, and the folder to remove at the end if it is a throwaway. */
function locate(url: string): { path: string; folder: string | null } {
  const path = url.replace(/^sqlite(:\/\/|:|=)/, '')
  if (path === ':memory:') {
    const folder = mkdtempSync(join(tmpdir(), 'millisky-db-'))
    return { path: join(folder, 'memory.sqlite'), folder }
  }
  if (path === '' || /^[a-z]+:\/\//.test(path))
    throw new Error(`not the URL of a SQLite or PostgreSQL database: ${url.split(':')[0]}`)
  return { path: resolve(path), folder: null }
}

/** What a job does inside the open group. When it fails it has undone its own changes, or throws {@link Stained}. */
type Work<T> = (hooks: (() => void)[], guarded: boolean) => T | Promise<T>

interface Job {
  work: Work<unknown>
  /**
   * Whether it is to run under a savepoint of its own. The rest need none, which spares copies of all pages that they
   * change: when one of them fails halfway, the group is undone, and all in it run again guarded.
   */
  guarded: boolean
  hooks: (() => void)[]
  value: unknown
  resolve: (value: unknown) => void
  reject: (error: unknown) => void
}

class SqliteDatabase<S> implements SqliteDb<S> {
  readonly kind = 'sqlite'
  readonly path: string
  readonly kysely: Kysely<S>
  readonly #folder: string | null
  readonly #readonly: boolean
  readonly #mapBytes: number
  readonly #log: DbLog | undefined
  readonly #writer: SqliteConnection
  /** Answers reads while a transaction is open on the writer; opened when first needed. */
  #second: SqliteConnection | null = null
  readonly #idleReaders: SqliteConnection[] = []
  #queue: Job[] = []
  /** The group under way, or about to start. */
  #draining: Promise<void> | null = null
  /** Whether the writer is between begin and commit. */
  #busy = false
  readonly #cleanup = () => this.#removeFolder()

  constructor(path: string, folder: string | null, options: OpenDbOptions) {
    this.path = path
    this.#folder = folder
    this.#readonly = options.readonly ?? false
    this.#mapBytes = options.mapBytes ?? MAP_BYTES
    this.#log = options.log
    if (folder) process.once('exit', this.#cleanup)
    if (!this.#readonly) mkdirSync(dirname(path), { recursive: true })
    this.#writer = new SqliteConnection(path, {
      readonly: this.#readonly,
      throwaway: folder !== null,
      mapBytes: this.#mapBytes,
      cacheBytes: this.#readonly ? READER_CACHE_BYTES : (options.cacheBytes ?? CACHE_BYTES),
    })
    const connection = {
      executeQuery: <R>(query: CompiledQuery) => this.#execute<R>(query),
      streamQuery: <R>(query: CompiledQuery, chunkSize: number) => this.#stream<R>(query, chunkSize),
    }
    this.kysely = createKysely<S>('sqlite', { acquire: async () => connection, release: () => {} })
  }

  get url(): string {
    return `sqlite://${this.path}`
  }

  prepare<P extends readonly unknown[], R>(query: Query<R> | ((...params: P) => Query<R>)): Statement<P, R> {
    const statement = new Statement<P, R>(compileStatement(this.kysely, query))
    this.#writer.prepare(statement as Statement<never, R>)
    return statement
  }

  all<P extends readonly unknown[], R>(statement: Statement<P, R>, params: P): R[] | Promise<R[]> {
    if (statement.writes) return this.transactionGrouped(tx => tx.all(statement, params))
    return this.#reader().all(statement, params)
  }

  get<P extends readonly unknown[], R>(
    statement: Statement<P, R>,
    params: P,
  ): (R | undefined) | Promise<R | undefined> {
    if (statement.writes) return this.transactionGrouped(tx => tx.get(statement, params))
    return this.#reader().get(statement, params)
  }

  run<P extends readonly unknown[]>(statement: Statement<P, unknown>, params: P): Promise<number> {
    return this.transactionGrouped(tx => tx.run(statement, params))
  }

  allSync<P extends readonly unknown[], R>(statement: Statement<P, R>, params: P): R[] {
    if (statement.writes) throw new Error(`not a select: ${statement.sql}`)
    return this.#reader().all(statement, params)
  }

  getSync<P extends readonly unknown[], R>(statement: Statement<P, R>, params: P): R | undefined {
    if (statement.writes) throw new Error(`not a select: ${statement.sql}`)
    return this.#reader().get(statement, params)
  }

  transactionSync<T>(fn: (tx: SyncTx) => T): T {
    if (this.#busy)
      throw new Error('another transaction is under way and cannot be waited for here: use transactionGrouped')
    const tx = new SyncTransaction(this.#writer, [])
    this.#begin()
    let value: T
    try {
      value = duringTransaction(tx, () => fn(tx))
      refusePromise(value)
      this.#writer.control('commit')
    } catch (error) {
      if (this.#writer.inTransaction) this.#writer.control('rollback')
      throw error
    } finally {
      tx.open = false
      this.#busy = false
    }
    runHooks(tx.hooks)
    return value
  }

  transactionGrouped<T>(fn: (tx: SyncTx) => T): Promise<T> {
    return this.#enqueue((hooks, guarded) => {
      const tx = new SyncTransaction(this.#writer, hooks)
      const run = () => duringTransaction(tx, () => fn(tx))
      try {
        if (guarded) return tx.savepoint(run)
        const value = run()
        refusePromise(value)
        return value
      } catch (error) {
        throw tx.hasChanged && !guarded ? new Stained(error) : error
      } finally {
        tx.open = false
      }
    })
  }

  transaction<T>(fn: (tx: Tx<S>) => T | Promise<T>): Promise<T> {
    const inContext = AsyncLocalStorage.snapshot()
    const work: Work<T> = async hooks => {
      const tx = new AsyncTransaction<S>(this.#writer, hooks)
      const slow = setTimeout(() => {
        this.#log?.warn(
          { seconds: SLOW_TRANSACTION_MS / 1000 },
          'a transaction is still open and holds up every other write',
        )
      }, SLOW_TRANSACTION_MS)
      try {
        return await tx.savepoint(() => insideTransaction(tx, () => fn(tx)))
      } finally {
        clearTimeout(slow)
        tx.open = false
      }
    }
    return this.#enqueue<T>((hooks, guarded) => inContext(work, hooks, guarded), { guarded: true })
  }

  async snapshot<T>(fn: (view: Executor<S>) => T | Promise<T>): Promise<T> {
    const connection = this.#takeReader()
    const view = new AsyncTransaction<S>(connection, [])
    try {
      connection.control('begin')
      return await fn(view)
    } finally {
      view.open = false
      if (connection.inTransaction) connection.control('rollback')
      this.#giveReader(connection)
    }
  }

  /** One step of migration, on the writer, with the write lock held from the start. */
  async migrateIn<T>(fn: (schema: Kysely<unknown>) => Promise<T>): Promise<T> {
    const work: Work<T> = async hooks => {
      const tx = new AsyncTransaction<unknown>(this.#writer, hooks)
      return tx.savepoint(() => fn(tx.kysely))
    }
    return this.#enqueue(work, { guarded: true })
  }

  async close(): Promise<void> {
    while (this.#draining) await this.#draining
    this.#second?.close()
    this.#second = null
    for (const reader of this.#idleReaders.splice(0)) reader.close()
    this.#writer.close()
    this.#removeFolder()
    process.off('exit', this.#cleanup)
  }

  #removeFolder(): void {
    if (this.#folder) rmSync(this.#folder, { recursive: true, force: true })
  }

  /** The connection for a read outside transactions: the writer (whose cache is warm) unless it is inside one. */
  #reader(): SqliteConnection {
    if (!this.#busy) return this.#writer
    this.#second ??= this.#openReader()
    return this.#second
  }

  #takeReader(): SqliteConnection {
    return this.#idleReaders.pop() ?? this.#openReader()
  }

  #openReader(): SqliteConnection {
    const [mapBytes, cacheBytes] = [this.#mapBytes, READER_CACHE_BYTES]
    return new SqliteConnection(this.path, { readonly: true, throwaway: false, mapBytes, cacheBytes })
  }

  #giveReader(connection: SqliteConnection): void {
    if (this.#idleReaders.length < IDLE_READERS_MAX) this.#idleReaders.push(connection)
    else connection.close()
  }

  async #execute<R>(query: CompiledQuery): Promise<QueryResult<R>> {
    if (!isWrite(query)) return this.#reader().execute<R>(query)
    return await this.#enqueue(() => atomically(this.#writer, () => this.#writer.execute<R>(query)))
  }

  /** A stream keeps its statement open, so it gets a connection of its own. */
  async *#stream<R>(query: CompiledQuery, chunkSize: number): AsyncGenerator<QueryResult<R>> {
    const connection = this.#takeReader()
    try {
      yield* connection.stream<R>(query, chunkSize)
    } finally {
      this.#giveReader(connection)
    }
  }

  #enqueue<T>(work: Work<T>, { guarded = false } = {}): Promise<T> {
    if (this.#readonly) return Promise.reject(new Error(`the database ${this.path} is open for reading only`))
    assertOutsideTransaction()
    const { promise, resolve, reject } = Promise.withResolvers<T>()
    this.#queue.push({
      work,
      guarded,
      hooks: [],
      value: undefined,
      resolve: resolve as (value: unknown) => void,
      reject,
    })
    this.#draining ??= this.#drain()
    return promise
  }

  async #drain(): Promise<void> {
    while (this.#queue.length > 0) {
      // Let everything that arrived in this turn of the event loop join, and let the loop turn between groups.
      await new Promise(setImmediate)
      await this.#runGroup()
    }
    this.#draining = null
  }

  async #runGroup(): Promise<void> {
    const done: Job[] = []
    try {
      this.#begin()
    } catch (error) {
      for (const job of this.#queue.splice(0)) job.reject(error)
      return
    }
    try {
      const started = performance.now()
      let guarded = false
      while (this.#queue.length > 0 && done.length < GROUP_MAX && performance.now() - started < GROUP_MS) {
        const job = this.#queue.shift()!
        try {
          guarded ||= job.guarded
          const value = job.work(job.hooks, guarded)
          job.value = value instanceof Promise ? await value : value
          done.push(job)
        } catch (error) {
          if (error instanceof Stained && this.#writer.inTransaction) {
            this.#queue.unshift(...done.splice(0).map(guard), guard(job))
            throw error
          }
          const cause = error instanceof Stained ? error.cause : error
          job.reject(cause)
          // Out of disk and the like: SQLite has undone the whole group on its own.
          if (!this.#writer.inTransaction) throw cause
        }
      }
      this.#writer.control('commit')
    } catch (error) {
      if (this.#writer.inTransaction) this.#writer.control('rollback')
      for (const job of done) job.reject(error)
      return
    } finally {
      this.#busy = false
    }
    for (const job of done) {
      runHooks(job.hooks)
      job.resolve(job.value)
    }
  }

  #begin(): void {
    try {
      this.#writer.control('begin immediate')
      this.#busy = true
    } catch (error) {
      if (((error as { errcode?: number }).errcode ?? 0) % 256 !== 5) throw error
      const locked = new Unavailable('NotEnoughResources', 'The database is locked by another process', 503, 1)
      locked.cause = error
      throw locked
    }
  }
}

/** A failed job has changed something, which only the end of its group will undo. `cause` is what has failed. */
class Stained extends Error {
  constructor(cause: unknown) {
    super('failed without a savepoint', { cause })
  }
}

function guard(job: Job): Job {
  return { ...job, guarded: true, hooks: [] }
}

/** Runs `fn` inside a savepoint of an open transaction. */
function atomically<T>(connection: SqliteConnection, fn: () => T): T {
  connection.control('savepoint step')
  try {
    const value = fn()
    refusePromise(value)
    connection.control('release step')
    return value
  } catch (error) {
    undo(connection)
    throw error
  }
}

function undo(connection: SqliteConnection): void {
  if (!connection.inTransaction) return
  connection.control('rollback to step')
  connection.control('release step')
}

function refusePromise(value: unknown): void {
  if (value !== null && typeof value === 'object' && 'then' in value) {
    // Whatever becomes of it, it is not ours to report.
    Promise.resolve(value as PromiseLike<unknown>).catch(() => {})
    throw new TypeError('a synchronous transaction cannot wait for a promise; nothing was kept')
  }
}

class SyncTransaction implements SyncTx {
  open = true
  /** Whether a statement may have changed something. One that gives rows may have even if it throws: when they are read. */
  hasChanged = false
  readonly hooks: (() => void)[]
  protected readonly connection: SqliteConnection

  constructor(connection: SqliteConnection, hooks: (() => void)[]) {
    this.connection = connection
    this.hooks = hooks
  }

  all<P extends readonly unknown[], R>(statement: Statement<P, R>, params: P): R[] {
    assertOpen(this)
    if (statement.writes) this.hasChanged = true
    return this.connection.all(statement, params)
  }

  get<P extends readonly unknown[], R>(statement: Statement<P, R>, params: P): R | undefined {
    assertOpen(this)
    if (statement.writes) this.hasChanged = true
    return this.connection.get(statement, params)
  }

  run<P extends readonly unknown[]>(statement: Statement<P, unknown>, params: P): number {
    assertOpen(this)
    const changes = this.connection.run(statement, params)
    this.hasChanged = true
    return changes
  }

  savepoint<T>(fn: () => T): T {
    assertOpen(this)
    const hooks = this.hooks.length
    try {
      return atomically(this.connection, fn)
    } catch (error) {
      this.hooks.length = hooks
      throw error
    }
  }

  onCommit(fn: () => void): void {
    assertOpen(this)
    this.hooks.push(fn)
  }
}

class AsyncTransaction<S> implements Tx<S> {
  readonly kind = 'sqlite'
  open = true
  readonly #connection: SqliteConnection
  readonly #hooks: (() => void)[]
  #kysely: Kysely<S> | null = null

  constructor(connection: SqliteConnection, hooks: (() => void)[]) {
    this.#connection = connection
    this.#hooks = hooks
  }

  get kysely(): Kysely<S> {
    if (this.#kysely) return this.#kysely
    const connection = this.#connection.asKysely()
    this.#kysely = createBoundKysely<S>('sqlite', {
      ...connection,
      executeQuery: query => {
        assertOpen(this)
        return connection.executeQuery(query)
      },
    })
    return this.#kysely
  }

  all<P extends readonly unknown[], R>(statement: Statement<P, R>, params: P): R[] {
    assertOpen(this)
    return this.#connection.all(statement, params)
  }

  get<P extends readonly unknown[], R>(statement: Statement<P, R>, params: P): R | undefined {
    assertOpen(this)
    return this.#connection.get(statement, params)
  }

  run<P extends readonly unknown[]>(statement: Statement<P, unknown>, params: P): number {
    assertOpen(this)
    return this.#connection.run(statement, params)
  }

  async savepoint<T>(fn: () => T | Promise<T>): Promise<T> {
    assertOpen(this)
    const hooks = this.#hooks.length
    this.#connection.control('savepoint step')
    try {
      const value = await fn()
      this.#connection.control('release step')
      return value
    } catch (error) {
      this.#hooks.length = hooks
      undo(this.#connection)
      throw error
    }
  }

  onCommit(fn: () => void): void {
    assertOpen(this)
    this.#hooks.push(fn)
  }
}
