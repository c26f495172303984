/**
 * A replica: the log of another directory, followed, verified operation by operation, and served.
 *
 * What the other directory says is not believed but checked; a line that breaks the rules is skipped, loudly, and with it
 * all that builds on it. Each batch is durable together with where it ends.
 */
import { Malformed, Refused } from '@millisky/core/errors'
import type { SqliteDb, SyncTx } from '@millisky/server/db/db'
import type { ExportLine, ExportPosition, PlcExportSink } from '@millisky/server/identity/plc-export'
import type { Directory, PlcTables } from './directory.ts'

/** Operations in one transaction: verifying them takes a few milliseconds, in which nothing is served. */
const BATCH = 50

export interface ReplicaParts {
  db: SqliteDb<PlcTables>
  directory: Directory
  /** Origin of the directory that is followed. */
  origin: string
  onSkipped: (line: { seq: number; did: string | null; reason: string }) => void
}

export class Replica implements PlcExportSink {
  readonly #parts: ReplicaParts
  readonly #statements: ReturnType<typeof prepare>

  /** @throws Error when the database holds operations of its own, or of another directory */
  constructor(parts: ReplicaParts) {
    this.#parts = parts
    this.#statements = prepare(parts.db)
    const { db, directory, origin } = parts
    const known = db.getSync(this.#statements.position, [])
    if (known === undefined && directory.head > 0) {
      throw new Error('The database holds operations that were accepted here: a replica needs an empty one')
    }
    if (known !== undefined && known.origin !== origin) {
      throw new Error(`The database is a replica of ${known.origin}, not of ${origin}: give it another one`)
    }
  }

  /** Lines that were skipped so far. */
  get skipped(): number {
    return this.#parts.db.getSync(this.#statements.skipped, [])?.n ?? 0
  }

  async position(): Promise<ExportPosition> {
    const row = this.#parts.db.getSync(this.#statements.position, [])
    return { seq: row?.seq ?? 0, cid: row?.cid ?? null, trueAt: row?.true_at ?? null }
  }

  async take(lines: readonly ExportLine[], position: ExportPosition): Promise<void> {
    for (let at = 0; at === 0 || at < lines.length; at += BATCH) {
      const batch = lines.slice(at, at + BATCH)
      const last = batch.at(-1)
      // Only the last batch brings it up to that time.
      const isLast = at + BATCH >= lines.length
      const { trueAt } = isLast ? position : await this.position()
      const { seq } = last ?? position
      const cid = last === undefined ? position.cid : 'entry' in last ? last.entry.cid : null
      await this.#parts.db.transactionGrouped(tx => {
        for (const line of batch) this.#takeOne(tx, line)
        tx.run(this.#statements.save, [this.#parts.origin, seq, cid, trueAt])
        if (batch.length > 0) tx.onCommit(() => this.#parts.directory.bell.ring())
      })
    }
  }

  #takeOne(tx: SyncTx, line: ExportLine): void {
    if (!('entry' in line)) {
      this.#skip(tx, line.seq, line.did, line.problem)
      return
    }
    const { seq, entry } = line
    try {
      tx.savepoint(() => this.#parts.directory.import(tx, entry, seq))
    } catch (error) {
      if (!(error instanceof Refused || error instanceof Malformed)) throw error
      this.#skip(tx, seq, entry.did, error.message)
    }
  }

  #skip(tx: SyncTx, seq: number, did: string | null, reason: string): void {
    tx.run(this.#statements.skip, [seq, did, reason])
    tx.onCommit(() => this.#parts.onSkipped({ seq, did, reason }))
  }
}

function prepare(db: SqliteDb<PlcTables>) {
  const { kysely } = db
  return {
    position: db.prepare(kysely.selectFrom('replica').selectAll().where('id', '=', 1)),
    save: db.prepare((origin: string, seq: number, cid: string | null, true_at: number | null) =>
      kysely
        .insertInto('replica')
        .values({ id: 1, origin, seq, cid, true_at })
        .onConflict(conflict => conflict.column('id').doUpdateSet({ seq, cid, true_at })),
    ),
    skip: db.prepare((seq: number, did: string | null, reason: string) =>
      kysely
        .insertInto('skipped')
        .values({ seq, did, reason })
        .onConflict(conflict => conflict.doNothing()),
    ),
    skipped: db.prepare(kysely.selectFrom('skipped').select(eb => eb.fn.countAll<number>().as('n'))),
  }
}
