/** SQLite files that other programs have written, opened to be read and never changed. */
import { existsSync } from 'node:fs'
import { DatabaseSync, type StatementSync } from 'node:sqlite'
import { pathToFileURL } from 'node:url'

type Param = string | number | Uint8Array | null

/** One file of another program. Statements are compiled once for each text. Not for hostile files beyond what SQLite itself withstands. */
export class ForeignSqlite {
  readonly #db: DatabaseSync
  readonly #statements = new Map<string, StatementSync>()

  /**
   * Opens a file read-only, with what its writer has left in the write-ahead log.
   *
   * @throws Error when it is not there or is no database
   */
  constructor(path: string) {
    if (!existsSync(path)) throw new Error(`there is no file ${path}`)
    this.#db = open(path)
  }

  all<Row>(text: string, ...params: Param[]): Row[] {
    return this.#statement(text).all(...params) as Row[]
  }

  get<Row>(text: string, ...params: Param[]): Row | undefined {
    return this.#statement(text).get(...params) as Row | undefined
  }

  /** Rows one by one. */
  each<Row>(text: string, ...params: Param[]): Iterable<Row> {
    // A statement can be walked once at a time: each walk has one of its own.
    return this.#db.prepare(text).iterate(...params) as Iterable<Row>
  }

  /** Names of the tables. */
  tables(): Set<string> {
    return new Set(
      this.all<{ name: string }>("select name from sqlite_schema where type = 'table'").map(row => row.name),
    )
  }

  /** Names of the columns of a table. */
  columns(table: string): Set<string> {
    return new Set(this.all<{ name: string }>('select name from pragma_table_info(?)', table).map(row => row.name))
  }

  close(): void {
    this.#db.close()
  }

  #statement(text: string): StatementSync {
    let statement = this.#statements.get(text)
    if (!statement) {
      statement = this.#db.prepare(text)
      this.#statements.set(text, statement)
    }
    return statement
  }
}

function open(path: string): DatabaseSync {
  const db = new DatabaseSync(path, { readOnly: true })
  try {
    db.prepare('select count(*) from sqlite_schema').get()
    return db
  } catch (error) {
    db.close()
    // On a medium that cannot be written SQLite cannot make the index of a write-ahead log; without a log it needs none.
    if (existsSync(`${path}-wal`)) throw error
    const frozen = new DatabaseSync(`${pathToFileURL(path)}?immutable=1`, { readOnly: true })
    frozen.prepare('select count(*) from sqlite_schema').get()
    return frozen
  }
}
