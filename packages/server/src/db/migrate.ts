import { type Kysely, sql } from 'kysely'
import { type Columns, POSTGRES_COLUMNS, SQLITE_COLUMNS } from './columns.ts'

/** One step of a schema's history. Its number is its place in the list, from 1; published steps are never edited, moved or removed. */
export interface Migration {
  readonly name: string
  /** Runs in a transaction of its own; either all of it happens or nothing. */
  up(schema: Kysely<unknown>, column: Columns, kind: 'sqlite' | 'postgres'): Promise<void>
}

/** What a driver gives the migrator: a transaction that waits for, and keeps out, every other migrator of this database. */
export interface MigrationTarget {
  readonly kind: 'sqlite' | 'postgres'
  /** Where, for messages; no password. */
  readonly where: string
  exclusively<T>(fn: (schema: Kysely<unknown>) => Promise<T>): Promise<T>
}

interface Applied {
  version: number
  name: string
}

/**
 * Brings a database to the last of `migrations`.
 *
 * Safe when several processes do it at once: one applies, the others wait and find it done.
 * @throws Error when the database is newer than the list, or was made by another list.
 */
export async function migrate(target: MigrationTarget, migrations: readonly Migration[]): Promise<void> {
  const column = target.kind === 'sqlite' ? SQLITE_COLUMNS : POSTGRES_COLUMNS
  for (let done = false; !done; ) {
    done = await target.exclusively(async schema => {
      await sql`create table if not exists millisky_migration (
        version integer primary key, name ${column.text} not null, applied_at ${column.text} not null)`.execute(schema)
      const applied = await appliedMigrations(schema)
      checkHistory(target.where, applied, migrations)
      const next = migrations[applied.length]
      if (!next) return true
      await next.up(schema, column, target.kind)
      const now = sql`cast(current_timestamp as text)`
      await sql`insert into millisky_migration values (${applied.length + 1}, ${next.name}, ${now})`.execute(schema)
      return applied.length + 1 === migrations.length
    })
  }
}

/** Checks, without changing anything, that a database is exactly at the last of `migrations`. @throws Error when it is not. */
export async function checkMigrated(
  where: string,
  schema: Kysely<unknown>,
  migrations: readonly Migration[],
): Promise<void> {
  const applied = await appliedMigrations(schema).catch(cause => {
    throw new Error(`The database ${where} has not been set up yet (or is not a millisky database).`, { cause })
  })
  checkHistory(where, applied, migrations)
  if (applied.length < migrations.length) {
    throw new Error(
      `The database ${where} is at schema version ${applied.length}, this program needs ${migrations.length}: start the service once to upgrade it.`,
    )
  }
}

async function appliedMigrations(schema: Kysely<unknown>): Promise<Applied[]> {
  return (await sql<Applied>`select version, name from millisky_migration order by version`.execute(schema)).rows
}

function checkHistory(where: string, applied: readonly Applied[], migrations: readonly Migration[]): void {
  if (applied.length > migrations.length) {
    throw new Error(
      `The database ${where} is at schema version ${applied.length}, newer than this program knows (${migrations.length}): ` +
        'run the newer program again, or restore a backup made before the upgrade.',
    )
  }
  for (const [i, { version, name }] of applied.entries()) {
    if (version !== i + 1 || name !== migrations[i]!.name) {
      throw new Error(
        `The database ${where} was made by another program: its schema version ${version} is "${name}", here it is "${migrations[i]!.name}".`,
      )
    }
  }
}
