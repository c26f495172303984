import { type RawBuilder, sql } from 'kysely'

/**
 * Column types that mean the same on both databases, so that one migration text serves both.
 *
 * In TypeScript: `text` and `json` are strings, `integer`, `bigint`, `flag` are numbers, `bytes` is a Uint8Array.
 */
export interface Columns {
  /** Compared and sorted byte by byte on both databases. May not hold U+0000 (PostgreSQL refuses it). */
  readonly text: RawBuilder<unknown>
  /** 32 bits. */
  readonly integer: RawBuilder<unknown>
  /** 64 bits; reading one beyond 2^53-1 is an error, never a rounded number. */
  readonly bigint: RawBuilder<unknown>
  /** 0 or 1; booleans themselves are not a type both databases share. */
  readonly flag: RawBuilder<unknown>
  readonly real: RawBuilder<unknown>
  readonly bytes: RawBuilder<unknown>
  /** JSON text, kept and given back exactly as written. */
  readonly json: RawBuilder<unknown>
  /** The whole definition of an ascending 64-bit key that is never reused: a column type that is already a primary key. */
  readonly id: RawBuilder<unknown>
}

export const SQLITE_COLUMNS: Columns = {
  text: sql`text`,
  integer: sql`integer`,
  bigint: sql`integer`,
  flag: sql`integer`,
  real: sql`real`,
  bytes: sql`blob`,
  json: sql`text`,
  id: sql`integer primary key autoincrement`,
}

export const POSTGRES_COLUMNS: Columns = {
  text: sql`text collate "C"`,
  integer: sql`integer`,
  bigint: sql`bigint`,
  flag: sql`smallint`,
  real: sql`double precision`,
  bytes: sql`bytea`,
  json: sql`json`,
  id: sql`bigint generated always as identity primary key`,
}
