/**
 * The directory itself: which operations were accepted, in which order.
 *
 * Deciding about an operation and keeping it is one transaction, and the log of a DID is never decided upon twice at the
 * same time, so of two operations that continue the same one exactly one wins.
 */
import { Refused } from '@millisky/core/errors'
import { PLC_OPERATIONS_PER_WINDOW } from '@millisky/core/limits'
import {
  applyPlcOperation,
  assertPlcOperation,
  type PlcData,
  type PlcEntry,
  type PlcOperation,
  type PlcStep,
  plcCid,
  plcData,
  plcHead,
} from '@millisky/core/plc'
import { type Did, isPlcDid } from '@millisky/core/syntax'
import type { SqliteDb, SyncTx } from '@millisky/server/db/db'
import type { Migration } from '@millisky/server/db/migrate'
import { Bell } from '@millisky/server/log/log'
import { type Generated, type Selectable, sql } from 'kysely'

interface OperationTable {
  /** Never reused, in order of acceptance. */
  seq: Generated<number>
  did: string
  cid: string
  /** JSON as it came. */
  operation: string
  nullified: number
  /** RFC 3339 in UTC with milliseconds, so that texts sort by time; strictly increasing with `seq`, unless in a replica. */
  created_at: string
}

type OperationRow = Selectable<OperationTable>

/** One row at most: how far a replica has come. */
interface ReplicaTable {
  id: number
  origin: string
  seq: number
  cid: string | null
  true_at: number | null
}

/** Lines of the followed directory that were not taken. */
interface SkippedTable {
  seq: number
  did: string | null
  reason: string
}

export interface PlcTables {
  operation: OperationTable
  replica: ReplicaTable
  skipped: SkippedTable
}

export const migrations: readonly Migration[] = [
  {
    name: 'operations',
    async up(schema, column) {
      await sql`create table operation (
        seq ${column.id},
        did ${column.text} not null,
        cid ${column.text} not null,
        operation ${column.text} not null,
        nullified ${column.flag} not null,
        created_at ${column.text} not null,
        unique (did, cid)
      )`.execute(schema)
      await sql`create index operation_did on operation (did, seq)`.execute(schema)
      await sql`create unique index operation_created_at on operation (created_at)`.execute(schema)
    },
  },
  {
    name: 'replicas',
    async up(schema, column) {
      // Times of another directory may come twice.
      await sql`drop index operation_created_at`.execute(schema)
      await sql`create index operation_created_at on operation (created_at)`.execute(schema)
      await sql`create table replica (
        id ${column.integer} primary key, origin ${column.text} not null, seq ${column.bigint} not null,
        cid ${column.text}, true_at ${column.bigint})`.execute(schema)
      await sql`create table skipped (
        seq ${column.bigint} primary key, did ${column.text}, reason ${column.text} not null)`.execute(schema)
    },
  },
]

/** An accepted operation with its place among all of them. */
export interface SequencedEntry extends PlcEntry {
  readonly seq: number
}

export interface DirectoryOptions {
  /** No limits on operations per DID. */
  unlimited: boolean
  /** Milliseconds since the epoch. */
  now: () => number
}

/** Accepts operations and answers questions about them. */
export class Directory {
  /** Rings after an operation was accepted. */
  readonly bell = new Bell()
  readonly #db: SqliteDb<PlcTables>
  readonly #options: DirectoryOptions
  readonly #statements: ReturnType<typeof prepare>

  constructor(db: SqliteDb<PlcTables>, options: DirectoryOptions) {
    this.#db = db
    this.#options = options
    this.#statements = prepare(db)
  }

  /** Seq of the last accepted operation, 0 before the first. */
  get head(): number {
    return this.#db.getSync(this.#statements.newest, [])?.seq ?? 0
  }

  /**
   * Accepts an operation, or says why not. One that was accepted before and still counts is accepted again without
   * effect, so that a lost answer can be asked for again.
   *
   * @param json parsed JSON from anywhere
   * @throws {Malformed} it is no operation
   * @throws {Refused} 400 it breaks a rule; 409 it continues an operation that has a successor; 429 too many
   */
  async accept(did: Did, json: unknown): Promise<void> {
    if (!isPlcDid(did)) throw new Refused('InvalidDid', `Invalid DID: ${String(did).slice(0, 100)}`)
    assertPlcOperation(json)
    const operation: PlcOperation = json
    await this.#db.transactionGrouped(tx => {
      const log = tx.all(this.#statements.logOf, [did]).map(entryOf)
      if (log.some(entry => !entry.nullified && entry.cid === plcCid(operation))) return
      const newest = tx.get(this.#statements.newest, [])
      const at = Math.max(this.#options.now(), newest ? Date.parse(newest.created_at) + 1 : 0)
      const { cid, nullified } = decide(did, log, operation, at)
      if (!this.#options.unlimited) assertRate(log, at)
      for (const undone of nullified) tx.run(this.#statements.nullify, [did, undone])
      tx.run(this.#statements.add, [did, cid, JSON.stringify(operation), new Date(at).toISOString()])
      tx.onCommit(() => this.bell.ring())
    })
  }

  /**
   * Takes an operation that another directory has accepted, under its seq, if it is right by the log here. Within a
   * transaction of the caller, who rings the bell.
   *
   * @throws {Refused} {@link Malformed} when it is not right
   */
  import(tx: SyncTx, { did, operation, createdAt }: PlcEntry, seq: number): void {
    const log = tx.all(this.#statements.logOf, [did]).map(entryOf)
    const at = Date.parse(createdAt)
    const { cid, nullified } = applyPlcOperation(did, log, operation, at)
    if (log.some(entry => entry.cid === cid)) throw new Refused('Misordered', 'the operation is there already')
    for (const undone of nullified) tx.run(this.#statements.nullify, [did, undone])
    tx.run(this.#statements.import, [seq, did, cid, JSON.stringify(operation), new Date(at).toISOString()])
  }

  /** The whole log of a DID, oldest first, nullified entries included. @throws {Refused} 404 when there is none */
  log(did: Did): PlcEntry[] {
    const log = this.#db.allSync(this.#statements.logOf, [did]).map(entryOf)
    if (log.length === 0) throw new Refused('NotRegistered', `DID not registered: ${did}`, 404)
    return log
  }

  /** The operation in force. @throws {Refused} 404 when there is none */
  last(did: Did): PlcOperation {
    return plcHead(this.log(did))!.operation
  }

  /** What a DID stands for now. @throws {Refused} 404 never registered, 410 ended by a tombstone */
  data(did: Did): PlcData {
    const data = plcData(this.last(did))
    if (data === null) throw new Refused('NotAvailable', `DID not available: ${did}`, 410)
    return data
  }

  /** Operations with a higher seq, at most `count`, in order. Nullified ones are among them. */
  after(seq: number, count: number): SequencedEntry[] {
    return this.#db.allSync(this.#statements.afterSeq, [seq, count]).map(sequencedOf)
  }

  /** Operations accepted after a time, at most `count`, in order. */
  afterTime(time: string, count: number): SequencedEntry[] {
    return this.#db.allSync(this.#statements.afterTime, [time, count]).map(sequencedOf)
  }

  /** Reads something, so that a broken database is noticed. */
  check(): void {
    this.#db.getSync(this.#statements.newest, [])
  }
}

function prepare(db: SqliteDb<PlcTables>) {
  const operations = () => db.kysely.selectFrom('operation').selectAll()
  return {
    logOf: db.prepare((did: string) => operations().where('did', '=', did).orderBy('seq')),
    newest: db.prepare(db.kysely.selectFrom('operation').select(['seq', 'created_at']).orderBy('seq', 'desc').limit(1)),
    afterSeq: db.prepare((seq: number, count: number) =>
      operations().where('seq', '>', seq).orderBy('seq').limit(count),
    ),
    afterTime: db.prepare((time: string, count: number) =>
      operations().where('created_at', '>', time).orderBy('created_at').limit(count),
    ),
    nullify: db.prepare((did: string, cid: string) =>
      db.kysely.updateTable('operation').set({ nullified: 1 }).where('did', '=', did).where('cid', '=', cid),
    ),
    add: db.prepare((did: string, cid: string, operation: string, created_at: string) =>
      // No seq: it comes by itself.
      db.kysely.insertInto('operation').values({ did, cid, operation, nullified: 0, created_at }),
    ),
    import: db.prepare((seq: number, did: string, cid: string, operation: string, created_at: string) =>
      db.kysely.insertInto('operation').values({ seq, did, cid, operation, nullified: 0, created_at }),
    ),
  }
}

function entryOf(row: OperationRow): PlcEntry {
  return {
    did: row.did as Did,
    operation: JSON.parse(row.operation) as PlcOperation,
    cid: row.cid,
    nullified: row.nullified === 1,
    createdAt: row.created_at,
  }
}

function sequencedOf(row: OperationRow): SequencedEntry {
  return { ...entryOf(row), seq: row.seq }
}

/** A signature that would have been right had nobody been faster is told so: the client has to look again and sign anew. */
function decide(did: Did, log: readonly PlcEntry[], operation: PlcOperation, now: number): PlcStep {
  try {
    return applyPlcOperation(did, log, operation, now)
  } catch (error) {
    const head = plcHead(log)
    const isStale = error instanceof Refused && error.error === 'InvalidSignature' && operation.prev !== head?.cid
    if (!isStale || head === null || operation.prev === null) throw error
    throw new Refused('Conflict', `Proposed prev does not match the most recent operation: ${head.cid}`, 409)
  }
}

function assertRate(log: readonly PlcEntry[], now: number): void {
  for (const { name, ms, operations } of PLC_OPERATIONS_PER_WINDOW) {
    const recent = log.filter(entry => now - Date.parse(entry.createdAt) < ms)
    if (recent.length < operations) continue
    const wait = Date.parse(recent[recent.length - operations]!.createdAt) + ms - now
    const message = `Too many operations within last ${name} (max: ${operations})`
    throw new Refused('RateLimitExceeded', message, 429, { 'retry-after': String(Math.ceil(wait / 1000)) })
  }
}
