import { Unavailable } from '@millisky/core/errors'
import pg from 'pg'

/** Lets go of a lock; needs no waiting, and never fails. */
export type Release = () => void

/** Locks by name that every process at the same PostgreSQL schema sees, for work that is more than one transaction. */
export interface NamedLocks {
  /** @throws Unavailable when it is not free for long, or the database does not answer. */
  acquire(name: string): Promise<Release>
  close(): Promise<void>
}

/** Those who wait for another process have a connection each: PostgreSQL lets them in in order of arrival. */
const WAITERS_MAX = 8
const WAIT_MS = 10_000

// Two names with one hash only wait for each other.
const KEY = `hashtextextended(current_schema() || ' ' || $1, 0)`
const TRY = { name: 'ms_lock_try', text: `select pg_try_advisory_lock(${KEY}) as held` }
const WAIT = { name: 'ms_lock_wait', text: `select pg_advisory_lock(${KEY})` }
const UNLOCK = { name: 'ms_lock_release', text: `select pg_advisory_unlock(${KEY})` }

/**
 * Opens {@link NamedLocks}. They belong to connections, so a process that dies holds none; one that loses its connection
 * has lost them without noticing: what must not go wrong even then needs a check of its own in the transaction.
 *
 * A process must ask for a name only once at a time.
 */
export function createLocks(url: string): NamedLocks {
  let shared: Promise<pg.Client> | null = null
  let waiting: pg.Pool | null = null
  const connect = () => {
    // Nearly always nobody else wants the same, so one connection serves all; questions follow each other without a wait.
    const client = new pg.Client({ ...settings(url), pipeline: true })
    const connection = client.connect().then(() => client)
    const lost = () => {
      // What is heard of an old connection says nothing of the one that is in its place by then.
      if (shared === connection) shared = null
    }
    client.on('error', lost)
    client.on('end', lost)
    connection.catch(lost)
    return connection
  }
  const client = () => {
    shared ??= connect()
    return shared
  }
  const wait = async (values: [string]): Promise<Release> => {
    waiting ??= openWaiting(url)
    const waiter = await waiting.connect()
    try {
      await waiter.query({ ...WAIT, values })
    } catch (error) {
      waiter.release(true)
      throw error
    }
    return () => {
      waiter.query({ ...UNLOCK, values }).then(
        () => waiter.release(),
        () => waiter.release(true),
      )
    }
  }
  return {
    async acquire(name) {
      const values: [string] = [name]
      try {
        const quick = await client()
        const { rows } = await quick.query<{ held: boolean }>({ ...TRY, values })
        if (!rows[0]!.held) return await wait(values)
        return () => {
          quick.query({ ...UNLOCK, values }).catch(() => {})
        }
      } catch (cause) {
        const unavailable = new Unavailable('NotEnoughResources', 'Another process is at work on this', 503, 1)
        unavailable.cause = cause
        throw unavailable
      }
    },
    async close() {
      const open = shared
      await Promise.all([open?.then(client => client.end()).catch(() => {}), waiting?.end()])
    },
  }
}

function settings(url: string) {
  return {
    connectionString: url,
    keepAlive: true,
    connectionTimeoutMillis: 10_000,
    fallback_application_name: 'millisky locks',
  }
}

function openWaiting(url: string): pg.Pool {
  const pool = new pg.Pool({ ...settings(url), max: WAITERS_MAX, idleTimeoutMillis: 10_000, lock_timeout: WAIT_MS })
  pool.on('connect', client => client.on('error', () => {}))
  pool.on('error', () => {})
  return pool
}
