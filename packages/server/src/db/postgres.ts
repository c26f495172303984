import { createHash } from 'node:crypto'
import { Malformed, Unavailable } from '@millisky/core/errors'
import type { CompiledQuery, DatabaseConnection, Kysely, QueryResult } from 'kysely'
import pg from 'pg'
import type { Executor, OpenDbOptions, PostgresDb, TransactionOptions, Tx } from './db.ts'
import { createBoundKysely, createKysely } from './dialect.ts'
import { checkMigrated, migrate } from './migrate.ts'
import { type Heard, Listener } from './postgres-listener.ts'
import { createLocks, type NamedLocks } from './postgres-locks.ts'
import { POSTGRES_TYPES } from './postgres-values.ts'
import { assertOpen, assertOutsideTransaction, type Hook, insideTransaction, runHooks } from './scope.ts'
import { checkValues, compileStatement, isWrite, type Query, Statement } from './statement.ts'

const ATTEMPTS_MAX = 5
/** First half of the advisory lock that keeps migrators apart; the second is the schema. */
const MIGRATION_LOCK = 1_836_280_947

/** Opens a PostgreSQL database; see `openDb`. */
export async function openPostgres<S>(url: string, options: OpenDbOptions): Promise<PostgresDb<S>> {
  const db = new PostgresDatabase<S>(url, options)
  try {
    const where = whereOf(url)
    if (options.readonly) await checkMigrated(where, db.kysely as unknown as Kysely<unknown>, options.migrations)
    else await migrate({ kind: 'postgres', where, exclusively: fn => db.migrateIn(fn) }, options.migrations)
  } catch (error) {
    await db.close()
    throw error
  }
  return db
}

function whereOf(url: string): string {
  const { hostname, pathname } = new URL(url)
  return `${hostname}${pathname}`
}

class PostgresDatabase<S> implements PostgresDb<S> {
  readonly kind = 'postgres'
  readonly url: string
  readonly kysely: Kysely<S>
  readonly #pool: pg.Pool
  readonly #readonly: boolean
  readonly #locks: NamedLocks
  #listener: Listener | null = null

  constructor(url: string, { log, readonly = false, connectionsMax = 10 }: OpenDbOptions) {
    this.url = url
    this.#readonly = readonly
    this.#locks = createLocks(url)
    this.#pool = new pg.Pool({
      connectionString: url,
      max: connectionsMax,
      // Statements that do not need each other's results go out together, see `Steps` of the PDS.
      pipeline: true,
      connectionTimeoutMillis: 10_000,
      idleTimeoutMillis: 60_000,
      fallback_application_name: 'millisky',
      types: POSTGRES_TYPES,
    })
    // Lost while in use: its statement fails, which says it all; without a listener the process would end.
    this.#pool.on('connect', client => client.on('error', () => {}))
    // A connection lost while idle is replaced when one is next needed.
    this.#pool.on('error', error => log?.warn({ err: error }, 'lost an idle connection to PostgreSQL'))
    this.kysely = createKysely<S>('postgres', {
      acquire: async () => new PooledConnection(await this.#connect(), this.#readonly),
      release: connection => (connection as PooledConnection).release(),
    })
  }

  prepare<P extends readonly unknown[], R>(query: Query<R> | ((...params: P) => Query<R>)): Statement<P, R> {
    return new Statement<P, R>(compileStatement(this.kysely, query))
  }

  async all<P extends readonly unknown[], R>(statement: Statement<P, R>, params: P): Promise<R[]> {
    return (await this.#once(statement, params)).rows as R[]
  }

  async get<P extends readonly unknown[], R>(statement: Statement<P, R>, params: P): Promise<R | undefined> {
    return (await this.#once(statement, params)).rows[0] as R | undefined
  }

  async run<P extends readonly unknown[]>(statement: Statement<P, unknown>, params: P): Promise<number> {
    return (await this.#once(statement, params)).rowCount ?? 0
  }

  async transaction<T>(fn: (tx: Tx<S>) => T | Promise<T>, options: TransactionOptions = {}): Promise<T> {
    assertOutsideTransaction()
    if (this.#readonly) throw new Error('the database is open for reading only')
    const begin = `begin isolation level ${options.isolation ?? 'read committed'}`
    for (let attempt = 1; ; attempt++) {
      try {
        return await this.#attempt(begin, fn)
      } catch (error) {
        if (attempt >= ATTEMPTS_MAX || !isRetryable(error)) throw error
        await new Promise(done => setTimeout(done, Math.random() * 20 * attempt))
      }
    }
  }

  snapshot<T>(fn: (view: Executor<S>) => T | Promise<T>): Promise<T> {
    return this.#attempt('begin isolation level repeatable read read only', fn, false)
  }

  migrateIn<T>(fn: (schema: Kysely<unknown>) => Promise<T>): Promise<T> {
    return this.#attempt('begin', async tx => {
      await tx.lock(MIGRATION_LOCK, 'hashtext(current_schema())')
      return fn(tx.kysely as unknown as Kysely<unknown>)
    })
  }

  hold(name: string): Promise<() => void> {
    return this.#locks.acquire(name)
  }

  async listen(channel: string, heard: Heard): Promise<() => Promise<void>> {
    this.#listener ??= new Listener(this.url)
    return this.#listener.add(channel, heard)
  }

  async close(): Promise<void> {
    await Promise.all([this.#listener?.close(), this.#locks.close()])
    await this.#pool.end()
  }

  async #connect(): Promise<pg.PoolClient> {
    try {
      return await this.#pool.connect()
    } catch (error) {
      throw translate(error)
    }
  }

  async #once<P extends readonly unknown[]>(statement: Statement<P, unknown>, params: P): Promise<pg.QueryResult> {
    if (statement.writes) {
      assertOutsideTransaction()
      if (this.#readonly) throw new Error('the database is open for reading only')
    }
    const values = statement.bind(params)
    const client = await this.#connect()
    let lost = false
    try {
      return await query(client, statement as Statement<never, unknown>, values)
    } catch (error) {
      const translated = translate(error)
      lost = translated instanceof Unavailable
      throw translated
    } finally {
      client.release(lost)
    }
  }

  async #attempt<T>(begin: string, fn: (tx: PostgresTransaction<S>) => T | Promise<T>, writes = true): Promise<T> {
    const client = await this.#connect()
    const tx = new PostgresTransaction<S>(client)
    const value = await this.#inClient(client, tx, begin, fn, writes)
    // Only now, when the connection is free: what they wait for may need one.
    await runHooks(tx.hooks)
    return value
  }

  async #inClient<T>(
    client: pg.PoolClient,
    tx: PostgresTransaction<S>,
    begin: string,
    fn: (tx: PostgresTransaction<S>) => T | Promise<T>,
    writes: boolean,
  ): Promise<T> {
    let broken = false
    try {
      // Not waited for before the first statement is sent: that comes behind it, and fails with it.
      const begun = client.query(begin)
      begun.catch(() => {})
      const value = await (writes ? insideTransaction(tx, () => fn(tx)) : fn(tx))
      await begun
      tx.open = false
      const { command } = await client.query('commit')
      // A statement failed and the body went on regardless: PostgreSQL has undone everything.
      if (writes && command !== 'COMMIT') throw new Error('a statement of this transaction failed; nothing was kept')
      return value
    } catch (error) {
      tx.open = false
      await client.query('rollback').catch(() => {
        broken = true
      })
      throw translate(error)
    } finally {
      client.release(broken)
    }
  }
}

const names = new WeakMap<object, string>()

/** Runs a prepared statement; the server parses and plans it once per connection, under a name that says which text it is. */
function query(client: pg.PoolClient, statement: Statement<never, unknown>, values: readonly unknown[]) {
  let name = names.get(statement)
  if (!name) {
    name = `ms_${createHash('sha256').update(statement.sql).digest('hex').slice(0, 24)}`
    names.set(statement, name)
  }
  return client.query({ name, text: statement.sql, values: values as unknown[] })
}

function isRetryable(error: unknown): boolean {
  const { code } = error as { code?: unknown }
  return code === '40001' || code === '40P01'
}

const CONNECTION_CODES = new Set([
  'ECONNREFUSED',
  'ECONNRESET',
  'EPIPE',
  'ETIMEDOUT',
  'ENOTFOUND',
  'EAI_AGAIN',
  'ENOENT',
])

/** A text with a NUL, of which PostgreSQL has none; one that is too long for an index. */
const UNKEEPABLE: ReadonlySet<unknown> = new Set(['22021', '22P05', '54000'])

/** A lost or refused connection becomes Unavailable, what cannot be kept Malformed; every other error stays as it is. */
function translate(error: unknown): unknown {
  if (!(error instanceof Error) || error instanceof Unavailable) return error
  const code = (error as { code?: unknown }).code
  // Only what came from outside is so; it is told apart here so that no method need look for it.
  if (UNKEEPABLE.has(code)) return new Malformed('A text is too long, or has a character that cannot be kept')
  const lost =
    (typeof code === 'string' && (CONNECTION_CODES.has(code) || /^(08...|57P0[1-3]|53300)$/.test(code))) ||
    /^(Connection terminated|timeout exceeded when trying to connect|Client has encountered a connection error)/.test(
      error.message,
    )
  if (!lost) return error
  const unavailable = new Unavailable('NotEnoughResources', 'The database does not answer', 503, 1)
  unavailable.cause = error
  return unavailable
}

/** One client, as Kysely wants a connection. */
class PooledConnection implements DatabaseConnection {
  readonly #client: pg.PoolClient
  readonly #readonly: boolean
  readonly #inTransaction: boolean
  #lost = false

  constructor(client: pg.PoolClient, readonly: boolean, inTransaction = false) {
    this.#client = client
    this.#readonly = readonly
    this.#inTransaction = inTransaction
  }

  async executeQuery<R>(compiled: CompiledQuery): Promise<QueryResult<R>> {
    if (!this.#inTransaction && isWrite(compiled)) {
      assertOutsideTransaction()
      if (this.#readonly) throw new Error('the database is open for reading only')
    }
    return await this.#query<R>(compiled.sql, [...checkValues(compiled.parameters)])
  }

  async *streamQuery<R>(compiled: CompiledQuery, chunkSize: number): AsyncGenerator<QueryResult<R>> {
    if (!this.#inTransaction) await this.#query('begin read only')
    try {
      await this.#query(`declare millisky_stream no scroll cursor for ${compiled.sql}`, [
        ...checkValues(compiled.parameters),
      ])
      for (;;) {
        const { rows } = await this.#query<R>(`fetch ${Math.max(1, Math.floor(chunkSize))} from millisky_stream`)
        if (rows.length === 0) break
        yield { rows }
      }
    } finally {
      await this.#query(this.#inTransaction ? 'close millisky_stream' : 'rollback').catch(() => {})
    }
  }

  release(): void {
    this.#client.release(this.#lost)
  }

  async #query<R>(sql: string, parameters?: unknown[]): Promise<QueryResult<R>> {
    try {
      const { command, rowCount, rows } = await this.#client.query(sql, parameters)
      const changes = command === 'INSERT' || command === 'UPDATE' || command === 'DELETE' || command === 'MERGE'
      return changes ? { rows, numAffectedRows: BigInt(rowCount ?? 0) } : { rows: rows ?? [] }
    } catch (error) {
      const translated = translate(error)
      this.#lost ||= translated instanceof Unavailable
      throw translated
    }
  }
}

class PostgresTransaction<S> implements Tx<S> {
  readonly kind = 'postgres'
  open = true
  readonly hooks: Hook[] = []
  readonly #client: pg.PoolClient
  #kysely: Kysely<S> | null = null

  constructor(client: pg.PoolClient) {
    this.#client = client
  }

  get kysely(): Kysely<S> {
    if (this.#kysely) return this.#kysely
    const connection = new PooledConnection(this.#client, false, true)
    const guarded: DatabaseConnection = {
      executeQuery: async query => {
        assertOpen(this)
        return connection.executeQuery(query)
      },
      streamQuery: (query, chunkSize) => connection.streamQuery(query, chunkSize),
    }
    this.#kysely = createBoundKysely<S>('postgres', guarded)
    return this.#kysely
  }

  /** Waits for an advisory lock that is held until the transaction ends. */
  async lock(first: number, second: string): Promise<void> {
    await this.#client.query(`select pg_advisory_xact_lock(${first}, ${second})`)
  }

  async all<P extends readonly unknown[], R>(statement: Statement<P, R>, params: P): Promise<R[]> {
    return (await this.#run(statement, params)).rows as R[]
  }

  async get<P extends readonly unknown[], R>(statement: Statement<P, R>, params: P): Promise<R | undefined> {
    return (await this.#run(statement, params)).rows[0] as R | undefined
  }

  async run<P extends readonly unknown[]>(statement: Statement<P, unknown>, params: P): Promise<number> {
    return (await this.#run(statement, params)).rowCount ?? 0
  }

  async savepoint<T>(fn: () => T | Promise<T>): Promise<T> {
    assertOpen(this)
    const hooks = this.hooks.length
    await this.#client.query('savepoint step')
    try {
      const value = await fn()
      await this.#client.query('release savepoint step')
      return value
    } catch (error) {
      this.hooks.length = hooks
      await this.#client.query('rollback to savepoint step; release savepoint step').catch(() => {})
      throw error
    }
  }

  onCommit(fn: Hook): void {
    assertOpen(this)
    this.hooks.push(fn)
  }

  async #run<P extends readonly unknown[]>(statement: Statement<P, unknown>, params: P): Promise<pg.QueryResult> {
    assertOpen(this)
    return await query(this.#client, statement as Statement<never, unknown>, statement.bind(params))
  }
}
