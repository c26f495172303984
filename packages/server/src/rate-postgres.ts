/**
 * Counters in PostgreSQL, so that a limit holds for all processes together.
 *
 * A process takes points from the shared count in advance, a fiftieth of the window's at a time, and spends them without
 * asking. So what is granted by all never exceeds the limit, a caller of one process sees exact numbers, and one whose
 * calls are spread over several may be refused as many fiftieths early as there are other processes.
 */
import { sql } from 'kysely'
import type { DbLog, PostgresDb } from './db/db.ts'
import type { Migration } from './db/migrate.ts'
import type { Statement } from './db/statement.ts'
import { type CounterOptions, type CounterStore, type Counters, inMemory } from './rate.ts'

/** The counters' table; SQLite has one process, whose memory is enough. */
export const RATE_MIGRATION: Migration = {
  name: 'rate counters',
  async up(schema, column, kind) {
    if (kind !== 'postgres') return
    // Without a write-ahead log: after a crash of the database everybody begins anew.
    await sql`create unlogged table rate (
      key ${column.text} primary key, points ${column.bigint} not null, expires_at ${column.bigint} not null)`.execute(
      schema,
    )
  },
}

const SHARES = 50
/** Who has nothing left is told so from memory for this long: another process may have let them start afresh. */
const BLOCK_MS = 5_000
/** For so long after an error, each process counts by itself and does not ask. */
const FAILURE_MS = 5_000
const KEYS_MAX = 20_000

export interface SharedCountersParts {
  log: DbLog
  /** Milliseconds since 1970. */
  now: () => number
}

export interface SharedCounters {
  store: CounterStore
  /** Removes what has expired. */
  prune(): Promise<void>
}

/** @param db - Its migrations include {@link RATE_MIGRATION}. */
export function createSharedCounters<S>(db: PostgresDb<S>, parts: SharedCountersParts): SharedCounters {
  const table = new CounterTable(db as unknown as PostgresDb<never>, parts)
  return { store: options => new LeasedCounters(table, options, parts.now), prune: () => table.prune() }
}

interface Count {
  /** Of the window, what this call has taken included; may be above the limit. */
  points: number
  /** Until the window ends. */
  ms: number
}

type AddParams = [key: string, points: number, windowMs: number, most: number]

/** The rows, all limits together. Time is the database's. */
class CounterTable {
  readonly #db: PostgresDb<never>
  readonly #log: DbLog
  readonly #now: () => number
  readonly #add: Statement<AddParams, Count>
  readonly #drop: Statement<[key: string], unknown>
  #restUntil = 0

  constructor(db: PostgresDb<never>, { log, now }: SharedCountersParts) {
    this.#db = db
    this.#log = log
    this.#now = now
    // What is counted above the limit is cut, so that a number cannot grow without end.
    this.#add = db.prepare(
      (key: string, points: number, windowMs: number, most: number) => sql<Count>`
        with clock as (select floor(extract(epoch from clock_timestamp()) * 1000)::bigint as now)
        insert into rate as r (key, points, expires_at) select ${key}, ${points}::bigint, now + ${windowMs}::bigint from clock
        on conflict (key) do update set
          points = case when r.expires_at <= (select now from clock) then excluded.points
            else least(r.points + excluded.points, ${most}::bigint) end,
          expires_at = case when r.expires_at <= (select now from clock) then excluded.expires_at else r.expires_at end
        returning points, expires_at - (select now from clock) as ms`,
    ) as Statement<AddParams, Count>
    this.#drop = db.prepare((key: string) => sql`delete from rate where key = ${key}`) as Statement<
      [key: string],
      unknown
    >
  }

  /** Null when the database cannot be asked. */
  async add(key: string, points: number, windowMs: number, most: number): Promise<Count | null> {
    return this.#attempt(async () => (await this.#db.get(this.#add, [key, points, windowMs, most]))!)
  }

  async remove(key: string): Promise<void> {
    await this.#attempt(async () => this.#db.run(this.#drop, [key]))
  }

  async prune(): Promise<void> {
    await sql`delete from rate where expires_at < extract(epoch from clock_timestamp()) * 1000`.execute(this.#db.kysely)
  }

  async #attempt<T>(ask: () => Promise<T>): Promise<T | null> {
    if (this.#now() < this.#restUntil) return null
    try {
      return await ask()
    } catch (error) {
      if (this.#now() >= this.#restUntil) {
        this.#restUntil = this.#now() + FAILURE_MS
        this.#log.warn({ err: error }, 'rate limits are counted by each process alone: the database does not answer')
      }
      return null
    }
  }
}

/** What this process holds of a key's window. */
interface Lease {
  /** Taken from the shared count and not spent yet. */
  left: number
  /** What the shared count has beside that. */
  shared: number
  expiresAt: number
  /** While it is not over, nothing is asked for: the last answer was that nothing is left. */
  blockedUntil: number
}

class LeasedCounters implements Counters {
  readonly #table: CounterTable
  readonly #options: CounterOptions
  readonly #now: () => number
  readonly #alone: Counters
  /** In order of their first use. */
  readonly #leases = new Map<string, Lease>()
  readonly #share: number

  constructor(table: CounterTable, options: CounterOptions, now: () => number) {
    this.#table = table
    this.#options = options
    this.#now = now
    this.#alone = inMemory(options)
    this.#share = Math.max(1, Math.floor(options.points / SHARES))
  }

  async take(key: string, cost: number) {
    const known = this.#lease(key)
    if (known && known.left >= cost) return this.#spend(known, cost)
    if (known && this.#now() < known.blockedUntil) return this.#refuse(known)
    const { name, points, windowSeconds } = this.#options
    const wanted = Math.max(cost - (known?.left ?? 0), this.#share)
    const count = await this.#table.add(`${name} ${key}`, wanted, windowSeconds * 1000, 2 * points + wanted)
    if (!count) return this.#alone.take(key, cost)
    const lease = this.#renew(key, count.ms)
    lease.left += Math.max(0, wanted - Math.max(0, count.points - points))
    lease.shared = Math.max(0, points - count.points)
    if (lease.left >= cost) return this.#spend(lease, cost)
    // As in memory: a call that is refused uses up what was left.
    lease.left = 0
    lease.blockedUntil = this.#now() + BLOCK_MS
    return this.#refuse(lease)
  }

  async reset(key: string): Promise<void> {
    this.#leases.delete(key)
    await this.#alone.reset(key)
    await this.#table.remove(`${this.#options.name} ${key}`)
  }

  #spend(lease: Lease, cost: number) {
    lease.left -= cost
    return { remaining: lease.left + lease.shared, resetMs: this.#resetMs(lease), isExceeded: false }
  }

  #refuse(lease: Lease) {
    return { remaining: 0, resetMs: this.#resetMs(lease), isExceeded: true }
  }

  #resetMs({ expiresAt }: Lease): number {
    return Math.max(0, expiresAt - this.#now())
  }

  #lease(key: string): Lease | undefined {
    const lease = this.#leases.get(key)
    if (!lease || lease.expiresAt > this.#now()) return lease
    this.#leases.delete(key)
    return undefined
  }

  /** The lease of the window that ends in `ms`. Others of the key may have asked meanwhile. */
  #renew(key: string, ms: number): Lease {
    const known = this.#lease(key)
    const expiresAt = this.#now() + ms
    if (known) {
      known.expiresAt = expiresAt
      return known
    }
    // What a lease that is let go had left is lost to its key.
    for (const oldest of this.#leases.keys()) {
      if (this.#leases.size < KEYS_MAX) break
      this.#leases.delete(oldest)
    }
    const lease: Lease = { left: 0, shared: 0, expiresAt, blockedUntil: 0 }
    this.#leases.set(key, lease)
    return lease
  }
}
