import { type Kysely, sql } from 'kysely'
import type { Db, DbLog, PostgresDb, SyncTx, Tx } from '../db/db.ts'
import type { Migration } from '../db/migrate.ts'
import type { Statement } from '../db/statement.ts'
import { emptyWire, joinWire, toWireBatch } from './frame-wire.ts'
import { type Batch, Bell, type Log, type ReadLimit } from './log.ts'
import { Ring, type RingBatch } from './ring.ts'

/** An event about to be appended: its frame, whose seq is still open, and the DID it is about. */
export interface SqlLogEntry {
  readonly frame: Uint8Array
  readonly did: string
}

interface EventTables {
  event: { seq: number; did: string; time: number; frame: Uint8Array }
  /** One row: no event will ever get a seq at or below this one, whatever was deleted. */
  event_floor: { seq: number }
}

export interface SqlLogOptions {
  /** Gives the same frame with this seq. */
  withSeq: (frame: Uint8Array, seq: number, room?: (length: number) => Uint8Array) => Uint8Array
  /** Milliseconds since the epoch. */
  now: () => number
  /** The first seq of a new log, or a floor to continue from after a loss. Default 1. */
  firstSeq?: number
  /** Newest events kept in memory. Default 8 MiB. */
  ringBytes?: number
  /** How often to look for events of other processes, besides being told by PostgreSQL; 0 for never. Default 1000. */
  pollMs?: number
  log?: DbLog
  /** PostgreSQL: shown the frames that are fetched from the database, which those of other processes always are. */
  fetched?: (frames: readonly Uint8Array[]) => void
}

/** The log's tables, as a step of the schema they lie in. */
export const EVENT_LOG_MIGRATION: Migration = {
  name: 'event log',
  async up(schema, column, kind) {
    await schema.schema
      .createTable('event')
      .addColumn('seq', column.bigint, c => c.primaryKey())
      .addColumn('did', column.text, c => c.notNull())
      .addColumn('time', column.bigint, c => c.notNull())
      .addColumn('frame', column.bytes, c => c.notNull())
      .execute()
    await schema.schema.createIndex('event_did').on('event').column('did').execute()
    await sql`create table event_floor (seq ${column.bigint} not null)`.execute(schema)
    await sql`insert into event_floor values (0)`.execute(schema)
    if (kind === 'postgres') {
      // Only a sequence outlives a rollback and a crash; frames hardly compress, so that would be wasted on them.
      await sql`create sequence event_seq`.execute(schema)
      await sql`alter table event alter column frame set storage external`.execute(schema)
    }
  },
}

const ROWS_PER_READ_MAX = 1_000
const PRUNE_ROWS = 500
const PUMP_BYTES = 1 << 20
const CHANNEL = 'millisky_event'
/** Notice that events were taken away; other notices are the seq that the log has reached. */
const FORGOTTEN = 'forgotten'
/** First half of the advisory lock that makes the order of seq the order of commits; the second is the schema. */
const APPEND_LOCK = 1_836_280_948

/** Opens the event log that lies in `db`, whose migrations must include {@link EVENT_LOG_MIGRATION}. */
export async function openSqlLog<S>(db: Db<S>, options: SqlLogOptions): Promise<SqlLog> {
  const log = new SqlLog(db as unknown as Db<EventTables>, options)
  await log.start(options.firstSeq ?? 1)
  return log
}

type Queries = ReturnType<typeof prepare>

/**
 * The event log as rows of the database whose changes it tells of, appended in the same transaction.
 *
 * Seq rises by commits, over all processes that share a PostgreSQL database: who has seen seq n will never find a new event below it.
 */
export class SqlLog implements Log {
  readonly bell = new Bell()
  readonly #db: Db<EventTables>
  readonly #q: Queries
  readonly #options: SqlLogOptions
  readonly #ring: Ring
  /** Seq of the oldest row; null when there is none. */
  #oldest: number | null = null
  #pumping: Promise<void> | null = null
  #pumpAgain = false
  #noticing = false
  readonly #notices = new Set<string>()
  #poll: NodeJS.Timeout | null = null
  #unlisten: (() => Promise<void>) | null = null
  #schema = ''
  #closed = false

  constructor(db: Db<EventTables>, options: SqlLogOptions) {
    this.#db = db
    this.#q = prepare(db)
    this.#options = options
    this.#ring = new Ring(options.ringBytes ?? 8 << 20, 0)
  }

  get head(): number {
    return this.#ring.last
  }

  get oldest(): number {
    return this.#oldest ?? this.head + 1
  }

  /** Finds where the log stands and begins to look for what others append. For {@link openSqlLog}. */
  async start(firstSeq: number): Promise<void> {
    await this.#db.transaction(async tx => {
      await tx.run(this.#q.raiseFloor, [firstSeq - 1])
      if (this.#db.kind === 'postgres') await tx.get(this.#q.raiseSequence!, [])
    })
    this.#ring.reset((await this.#db.get(this.#q.head, []))!.seq)
    await this.#findOldest()
    if (this.#db.kind === 'postgres') {
      const schema = await sql<{ name: string }>`select current_schema() as name`.execute(this.#db.kysely)
      this.#schema = schema.rows[0]!.name
      this.#unlisten = await (this.#db as PostgresDb<EventTables>).listen(this.#channel, notice => this.#heard(notice))
    }
    const pollMs = this.#options.pollMs ?? 1_000
    if (pollMs > 0) {
      this.#poll = setInterval(() => {
        this.#pump()
        // Another process may prune.
        if (this.#db.kind === 'postgres') void this.#findOldest().catch(error => this.#warn(error))
      }, pollMs).unref()
    }
  }

  /**
   * Adds events inside the caller's transaction, in order, and tells readers when it has committed.
   *
   * On PostgreSQL other processes' transactions that append wait until this one ends: make it the last thing the transaction does.
   * @returns the seq of the last event.
   */
  async append<S>(tx: Tx<S>, entries: readonly SqlLogEntry[]): Promise<number> {
    if (this.#db.kind === 'sqlite') return this.appendSync(tx as unknown as SyncTx, entries)
    if (entries.length === 0) return this.head
    const rows = await tx.all(this.#q.nextSeqs!, [entries.length])
    const seqs = rows.map(row => row.seq)
    const frames = entries.map((entry, i) => this.#options.withSeq(entry.frame, seqs[i]!))
    const time = this.#options.now()
    if (frames.length === 1) await tx.run(this.#q.insert, [seqs[0]!, entries[0]!.did, time, frames[0]!])
    else await tx.run(this.#q.insertMany!, [seqs, entries.map(entry => entry.did), time, frames])
    const last = seqs[seqs.length - 1]!
    tx.onCommit(() => {
      this.#notify(String(last))
      // Numbers are drawn in the order of commits: when ours follow what we have seen, nobody's came between.
      const batch = { after: this.head, seqs: Float64Array.from(seqs), accounts: null }
      if (seqs[0] === this.head + 1 && isRun(seqs)) this.#show({ ...batch, ...toWireBatch(frames) })
      else return this.#pump()
    })
    return last
  }

  /** {@link append} for a synchronous transaction of SQLite. */
  appendSync(tx: SyncTx, entries: readonly SqlLogEntry[]): number {
    const after = tx.get(this.#q.head, [])!.seq
    if (entries.length === 0) return after
    const time = this.#options.now()
    const seqs = Float64Array.from(entries, (_, i) => after + 1 + i)
    const messages: Uint8Array[] = []
    for (const [i, { frame, did }] of entries.entries()) {
      // Numbered where it is sent from: events are a good part of the memory that a write takes.
      const numbered = this.#options.withSeq(frame, seqs[i]!, length => {
        const message = emptyWire(length)
        messages.push(message.wire)
        return message.frame
      })
      tx.run(this.#q.insert, [seqs[i]!, did, time, numbered])
    }
    const batch: RingBatch = { after, seqs, accounts: null, ...joinWire(messages) }
    tx.onCommit(() => {
      // Another process has appended meanwhile: then its events must be fetched first.
      if (after === this.head) this.#show(batch)
      else this.#pump()
    })
    return seqs[seqs.length - 1]!
  }

  /** Removes, inside the caller's transaction, every event about an account. Other processes are told to let go of them too. */
  async forget<S>(tx: Tx<S>, did: string): Promise<void> {
    if (this.#q.lock) await tx.get(this.#q.lock, [])
    const { seq } = (await tx.get(this.#q.head, []))!
    await tx.run(this.#q.raiseFloor, [seq])
    await tx.run(this.#q.deleteDid, [did])
    tx.onCommit(() => {
      this.#dropMemory()
      if (this.#db.kind === 'postgres') this.#notify(FORGOTTEN)
    })
  }

  /** Removes the oldest events, up to the first that is not older than `ageMs`; a little at a time. @returns how many. */
  async prune({ ageMs, now }: { ageMs: number; now: number }): Promise<number> {
    let removed = 0
    for (;;) {
      const rows = await this.#db.all(this.#q.oldestRows, [PRUNE_ROWS])
      const young = rows.findIndex(row => row.time >= now - ageMs)
      const count = young < 0 ? rows.length : young
      if (count === 0) return removed
      const last = rows[count - 1]!.seq
      await this.#db.transaction(async tx => {
        await tx.run(this.#q.raiseFloor, [last])
        await tx.run(this.#q.deleteUpTo, [last])
      })
      removed += count
      await this.#findOldest()
      if (count < rows.length) return removed
    }
  }

  read(after: number, limit: ReadLimit): Promise<Batch> | Batch {
    return this.#ring.read(after, limit) ?? this.#readRows(after, this.head, limit).then(toBatch)
  }

  async close(): Promise<void> {
    this.#closed = true
    if (this.#poll) clearInterval(this.#poll)
    await this.#unlisten?.()
    await this.#pumping
    this.bell.ring()
  }

  get #channel(): string {
    return `${CHANNEL}_${this.#schema}`
  }

  /** Rows with seq in (after, upTo]. The sizes first, so that no frame is fetched that does not fit. */
  async #readRows(
    after: number,
    upTo: number,
    limit: ReadLimit,
    fetched?: SqlLogOptions['fetched'],
  ): Promise<RingBatch & { last: number }> {
    const sizes = await this.#db.all(this.#q.sizes, [after, upTo, ROWS_PER_READ_MAX])
    let bytes = 0
    const count = sizes.findIndex(({ size }, i) => (bytes += size + 10) > limit.bytes && i > 0)
    const kept = count < 0 ? sizes : sizes.slice(0, count)
    // At the end of what there is, the cursor moves past gaps, else it might never reach the head.
    const last = count < 0 && sizes.length < ROWS_PER_READ_MAX ? upTo : kept[kept.length - 1]!.seq
    const rows = await this.#db.all(this.#q.frames, [after, last])
    fetched?.(rows.map(row => row.frame))
    return {
      after,
      last,
      accounts: null,
      seqs: Float64Array.from(rows, row => row.seq),
      ...toWireBatch(rows.map(row => row.frame)),
    }
  }

  #show(batch: RingBatch): void {
    this.#oldest ??= batch.seqs[0]!
    this.#ring.push(batch)
    this.bell.ring()
  }

  #heard(notice: string | null): void {
    if (notice === FORGOTTEN) this.#dropMemory()
    else if (notice === null || !(Number(notice) <= this.head)) void this.#pump()
  }

  #dropMemory(): void {
    this.#ring.reset(this.head)
    void this.#findOldest().catch(error => this.#warn(error))
  }

  /** Fetches what has been committed beyond our head, by whomever. The promise never fails. */
  #pump(): Promise<void> | undefined {
    if (this.#closed) return
    this.#pumpAgain = true
    this.#pumping ??= this.#pumpAll().catch(error => this.#warn(error))
    return this.#pumping
  }

  async #pumpAll(): Promise<void> {
    try {
      while (this.#pumpAgain && !this.#closed) {
        this.#pumpAgain = false
        await this.#pumpOnce()
      }
    } finally {
      this.#pumping = null
    }
  }

  async #pumpOnce(): Promise<void> {
    const seen = this.head
    const { seq } = (await this.#db.get(this.#q.head, []))!
    if (seq < seen) {
      throw new Error(`the log in the database ends at ${seq}, but ${seen} has been seen: was it replaced?`)
    }
    while (this.head < seq && !this.#closed) {
      const { head } = this
      const batch = await this.#readRows(head, seq, { bytes: PUMP_BYTES }, this.#options.fetched)
      // Our own commit may have been shown while we were reading.
      if (this.head !== head) continue
      if (batch.seqs.length > 0) this.#show(batch)
      if (this.head < batch.last) {
        this.#ring.reset(batch.last)
        this.bell.ring()
      }
    }
  }

  /** Tells other processes; several commits in quick succession share a notice. */
  #notify(notice: string): void {
    if (this.#closed) return
    this.#notices.add(notice)
    if (this.#noticing) return
    this.#noticing = true
    setImmediate(async () => {
      this.#noticing = false
      const isForgetting = this.#notices.delete(FORGOTTEN)
      const highest = [...this.#notices].at(-1)
      this.#notices.clear()
      for (const notice of [isForgetting ? FORGOTTEN : undefined, highest]) {
        if (notice === undefined) continue
        await (this.#db.get(this.#q.notify!, [this.#channel, notice]) as Promise<unknown>).catch(error =>
          this.#warn(error),
        )
      }
    })
  }

  async #findOldest(): Promise<void> {
    this.#oldest = (await this.#db.get(this.#q.oldest, []))!.seq
  }

  #warn(error: unknown): void {
    if (!this.#closed) this.#options.log?.warn({ err: error }, 'could not read the event log; trying again')
  }
}

/** A rollback leaves a hole in the numbers. */
function isRun(seqs: readonly number[]): boolean {
  return seqs.at(-1)! - seqs[0]! === seqs.length - 1
}

function toBatch({ seqs, last, wire }: RingBatch & { last: number }): Batch {
  return { count: seqs.length, last, wire: wire.length > 0 ? [wire] : [] }
}

function prepare(db: Db<EventTables>) {
  const kysely = db.kysely as Kysely<EventTables>
  const lock = sql.raw(`select pg_advisory_xact_lock(${APPEND_LOCK}, hashtext(current_schema()))`)
  const largest = db.kind === 'sqlite' ? sql.raw('max') : sql.raw('greatest')
  return {
    head: db.prepare(
      sql<{
        seq: number
      }>`select ${largest}(coalesce((select max(seq) from event), 0), (select max(seq) from event_floor)) as seq`,
    ),
    oldest: db.prepare(sql<{ seq: number | null }>`select min(seq) as seq from event`),
    insert: db.prepare((seq: number, did: string, time: number, frame: Uint8Array) =>
      kysely.insertInto('event').values({ seq, did, time, frame }),
    ),
    sizes: db.prepare((after: number, upTo: number, rows: number) =>
      kysely
        .selectFrom('event')
        .select(['seq', sql<number>`octet_length(frame)`.as('size')])
        .where('seq', '>', after)
        .where('seq', '<=', upTo)
        .orderBy('seq')
        .limit(rows),
    ),
    frames: db.prepare((after: number, upTo: number) =>
      kysely
        .selectFrom('event')
        .select(['seq', 'frame'])
        .where('seq', '>', after)
        .where('seq', '<=', upTo)
        .orderBy('seq'),
    ),
    oldestRows: db.prepare((rows: number) =>
      kysely.selectFrom('event').select(['seq', 'time']).orderBy('seq').limit(rows),
    ),
    raiseFloor: db.prepare((seq: number) => kysely.updateTable('event_floor').set({ seq }).where('seq', '<', seq)),
    deleteUpTo: db.prepare((seq: number) => kysely.deleteFrom('event').where('seq', '<=', seq)),
    deleteDid: db.prepare((did: string) => kysely.deleteFrom('event').where('did', '=', did)),
    ...(db.kind === 'postgres' && {
      lock: db.prepare(sql<object>`${lock}`),
      notify: db.prepare(
        (channel: string, notice: string) => sql<object>`select pg_notify(${channel}, ${notice})`,
      ) as Statement<[channel: string, notice: string], object>,
      // The lock comes first: no row is made, hence no number drawn, before the subquery has given its own.
      nextSeqs: db.prepare(
        (n: number) =>
          sql<{
            seq: number
          }>`with lock as materialized (${lock}) select nextval('event_seq') as seq from lock, generate_series(1, ${n}::integer)`,
      ) as Statement<[n: number], { seq: number }>,
      insertMany: db.prepare(
        (seqs: number[], dids: string[], time: number, frames: Uint8Array[]) =>
          sql`insert into event (seq, did, time, frame) select seq, did, ${time}::bigint, frame
          from unnest(${seqs}::bigint[], ${dids}::text[], ${frames}::bytea[]) as rows (seq, did, frame)`,
      ) as Statement<[number[], string[], number, Uint8Array[]], unknown>,
      raiseSequence: db.prepare(
        sql`select setval('event_seq', floor.seq) from (select max(seq) as seq from event_floor) floor, event_seq where floor.seq > event_seq.last_value or (floor.seq = event_seq.last_value and not event_seq.is_called)`,
      ),
    }),
  }
}
