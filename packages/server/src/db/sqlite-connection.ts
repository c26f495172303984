import { DatabaseSync, type SQLInputValue, type StatementSync } from 'node:sqlite'
import type { CompiledQuery, DatabaseConnection, QueryResult } from 'kysely'
import { checkValues, type Statement } from './statement.ts'

const TEXTS_CACHED_MAX = 300

/** A statement of node:sqlite that gives plain objects: it reads arrays and shapes them, which is half the cost of its own objects. */
interface Native {
  readonly statement: StatementSync
  /** Null when the statement gives no rows. */
  readonly shape: ((row: unknown[]) => unknown) | null
}

const shapes = new Map<string, (row: unknown[]) => unknown>()

function shapeOf(names: readonly string[]): (row: unknown[]) => unknown {
  const fields = names.map((name, i) => `${JSON.stringify(name)}: row[${i}]`).join(', ')
  let shape = shapes.get(fields)
  if (!shape) {
    if (names.includes('__proto__')) throw new Error('a column may not be called __proto__')
    shape = new Function('row', `return { ${fields} }`) as (row: unknown[]) => unknown
    shapes.set(fields, shape)
  }
  return shape
}

export interface ConnectionOptions {
  readonly: boolean
  /** Nothing of it has to outlive the process. */
  throwaway: boolean
  /** Bytes of the file that are mapped into memory; what is read elsewhere is copied. */
  mapBytes: number
  /** Memory for pages of the file. */
  cacheBytes: number
}

/** One connection of node:sqlite, with its prepared statements. Everything is synchronous. */
export class SqliteConnection {
  readonly #db: DatabaseSync
  readonly #prepared = new WeakMap<object, Native>()
  readonly #texts = new Map<string, Native>()

  constructor(path: string, { readonly, throwaway, mapBytes, cacheBytes }: ConnectionOptions) {
    this.#db = new DatabaseSync(path, { readOnly: readonly, timeout: 5_000, enableForeignKeyConstraints: true })
    try {
      if (!readonly) this.#db.exec('pragma journal_mode = wal')
      this.#db.exec(`
        pragma synchronous = ${throwaway ? 'off' : 'full'};
        pragma cache_size = ${-Math.ceil(cacheBytes / 1_024)};
        pragma mmap_size = ${mapBytes};
        pragma temp_store = memory;
        pragma journal_size_limit = 67108864;
        pragma wal_autocheckpoint = 1000;`)
    } catch (error) {
      this.#db.close()
      throw error
    }
  }

  get inTransaction(): boolean {
    return this.#db.isTransaction
  }

  /** A statement of control: begin, commit, savepoint and the like. */
  control(sql: string): void {
    this.#ofText(sql).statement.run()
  }

  /** Compiles now, so that a mistake in the SQL shows at once. */
  prepare(statement: Statement<never, unknown>): void {
    this.#of(statement)
  }

  all<P extends readonly unknown[], R>(statement: Statement<P, R>, params: P): R[] {
    const native = this.#of(statement)
    return allOf(native, statement.bind(params)) as R[]
  }

  get<P extends readonly unknown[], R>(statement: Statement<P, R>, params: P): R | undefined {
    const native = this.#of(statement)
    const row = native.statement.get(...(statement.bind(params) as SQLInputValue[])) as unknown[] | undefined
    return row && native.shape ? (native.shape(row) as R) : undefined
  }

  run<P extends readonly unknown[]>(statement: Statement<P, unknown>, params: P): number {
    const native = this.#of(statement)
    return Number(native.statement.run(...(statement.bind(params) as SQLInputValue[])).changes)
  }

  /** One query of Kysely. */
  execute<R>({ sql, parameters }: CompiledQuery): QueryResult<R> {
    const native = this.#ofText(sql)
    checkValues(parameters)
    if (native.shape) return { rows: allOf(native, parameters) as R[] }
    const { changes, lastInsertRowid } = native.statement.run(...(parameters as SQLInputValue[]))
    return { rows: [], numAffectedRows: BigInt(changes), insertId: BigInt(lastInsertRowid) }
  }

  /** The rows of one select, in chunks. No other statement may run on the connection until it has ended. */
  *stream<R>({ sql, parameters }: CompiledQuery, chunkSize: number): Generator<QueryResult<R>> {
    const native = this.#native(sql)
    let rows: R[] = []
    for (const row of native.statement.iterate(...(checkValues(parameters) as SQLInputValue[]))) {
      rows.push(native.shape!(row as unknown as unknown[]) as R)
      if (rows.length >= chunkSize) {
        yield { rows }
        rows = []
      }
    }
    if (rows.length > 0) yield { rows }
  }

  /** This connection as Kysely wants one, for use while nobody else uses it. */
  asKysely(): DatabaseConnection {
    const self = this
    return {
      executeQuery: async query => self.execute(query),
      streamQuery: async function* (query, chunkSize) {
        yield* self.stream(query, chunkSize)
      },
    }
  }

  close(): void {
    this.#db.close()
  }

  #of(statement: object & { readonly sql: string }): Native {
    let native = this.#prepared.get(statement)
    if (!native) {
      native = this.#native(statement.sql)
      this.#prepared.set(statement, native)
    }
    return native
  }

  #ofText(sql: string): Native {
    const known = this.#texts.get(sql)
    if (known) return known
    const native = this.#native(sql)
    if (this.#texts.size >= TEXTS_CACHED_MAX) this.#texts.delete(this.#texts.keys().next().value!)
    this.#texts.set(sql, native)
    return native
  }

  #native(sql: string): Native {
    const statement = this.#db.prepare(sql, { returnArrays: true })
    const names = statement.columns().map(column => column.name)
    return { statement, shape: names.length > 0 ? shapeOf(names) : null }
  }
}

function allOf(native: Native, params: readonly unknown[]): unknown[] {
  const rows = native.statement.all(...(params as SQLInputValue[])) as unknown as unknown[]
  const { shape } = native
  if (shape) for (let i = 0; i < rows.length; i++) rows[i] = shape(rows[i] as unknown[])
  return rows
}
