import { randomBytes } from 'node:crypto'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import pg from 'pg'

/** A condition on rows of `pg_stat_activity`: connections to the same URL as the one that asks, and not that one. */
export const OTHER_CONNECTIONS = "application_name = current_setting('application_name') and pid <> pg_backend_pid()"

/** A database to run a contract suite on. */
export interface TestDatabase {
  readonly name: 'sqlite' | 'postgres'
  /** Why its tests are skipped, for node:test; false when they run. */
  readonly skip: string | false
  /** The URL of an empty database of its own, removed after the test `t` (or suite). */
  url(t: { after(fn: () => Promise<void>): void }): Promise<string>
}

/**
 * Every database that tests can run on here: SQLite always, PostgreSQL when MILLISKY_TEST_POSTGRES holds the URL of one where schemas may be made.
 *
 * Close what was opened before the test ends; on PostgreSQL each URL is a schema of its own, see {@link OTHER_CONNECTIONS}.
 */
export function testDatabases(): TestDatabase[] {
  const server = process.env.MILLISKY_TEST_POSTGRES
  return [
    { name: 'sqlite', skip: false, url: sqliteUrl },
    {
      name: 'postgres',
      skip: server ? false : 'MILLISKY_TEST_POSTGRES is not set',
      url: t => postgresUrl(server!, t),
    },
  ]
}

async function sqliteUrl(t: { after(fn: () => Promise<void>): void }): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'millisky-test-'))
  t.after(() => rm(folder, { recursive: true, force: true }))
  return `sqlite://${join(folder, 'test.sqlite')}`
}

async function postgresUrl(server: string, t: { after(fn: () => Promise<void>): void }): Promise<string> {
  const schema = `test_${randomBytes(8).toString('hex')}`
  await onServer(server, `create schema ${schema}`)
  t.after(() => onServer(server, `drop schema ${schema} cascade`))
  const url = new URL(server)
  url.searchParams.set('options', `-c search_path=${schema}`)
  // So that a test can tell its own connections from those of others at the same server.
  url.searchParams.set('application_name', schema)
  return url.href
}

async function onServer(server: string, sql: string): Promise<void> {
  const client = new pg.Client({ connectionString: server })
  await client.connect()
  try {
    await client.query(sql)
  } finally {
    await client.end()
  }
}
