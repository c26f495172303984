/**
 * Blocks read many at a time. A row of its own for each would cost more than all else that an export does, so the database
 * joins them to one: their lengths as a text, their CIDs and bytes as one byte string.
 */
import { CID_BYTES } from '@millisky/core/cid'
import type { Db } from '@millisky/server/db/db'
import { type RawBuilder, sql } from 'kysely'
import type { PdsSchema } from './schema.ts'
import { LEFT_OUT, NODES_AT_ONCE_MAX, OLD, type Pack } from './store.ts'

const RECORDS_AT_ONCE = 100
/** An account may have large blocks behind small ones. */
const PACKED_BYTES_MAX = 2_000

interface PackRow {
  sizes: string | null
  bytes: Uint8Array | null
}

type Sql = RawBuilder<unknown>

/** How both databases join values of rows that come in an order. In SQLite that is the order in which they are met. */
const JOINS = {
  sqlite: {
    texts: (value: Sql, _by: Sql) => sql`string_agg(${value}, ' ')`,
    // A byte string counts as text here, whatever is in it, and what is made of the texts is one again.
    bytes: (value: Sql, _by: Sql) => sql`cast(string_agg(${value}, '') as blob)`,
    none: sql`x''`,
    cidsOf: (cids: Uint8Array) => sql`${cids}`,
  },
  postgres: {
    texts: (value: Sql, by: Sql) => sql`string_agg((${value})::text, ' ' order by ${by})`,
    bytes: (value: Sql, by: Sql) => sql`string_agg(${value}, ''::bytea order by ${by})`,
    none: sql`''::bytea`,
    cidsOf: (cids: Uint8Array) => sql`${cids}::bytea`,
  },
}

export function preparePacks(db: Db<PdsSchema>) {
  const { texts, bytes, none, cidsOf } = JOINS[db.kind]
  const packed = (size: Sql, by: Sql) => sql`${texts(sql`size`, by)} as sizes,
    ${bytes(sql`cid || case when size >= 0 then bytes else ${none} end`, by)} as bytes
    from (select *, ${size} as size`
  const size = sql`when length(bytes) > ${sql.lit(PACKED_BYTES_MAX)} then ${sql.lit(LEFT_OUT)} else length(bytes) end`
  const places = Array.from({ length: NODES_AT_ONCE_MAX }, (_, i) => sql`(${sql.lit(i * CID_BYTES + 1)})`)
  return {
    recordPack: db.prepare(
      (account: number, after: string, below: string) =>
        sql<
          PackRow & { last: string | null }
        >`select max(path) as last, ${packed(sql`case ${size}`, sql`path`)} from record
          where account = ${account} and path > ${after} and path < ${below}
          order by path limit ${sql.lit(RECORDS_AT_ONCE)}) as rows`,
    ),
    nodePack: db.prepare(
      (since: string, account: number, cids: Uint8Array) =>
        sql<PackRow>`select ${packed(sql`case when rev <= ${since} then ${sql.lit(OLD)} ${size}`, sql`column1`)}
          from (values ${sql.join(places)}) as places cross join node
          where account = ${account} and cid = substr(${cidsOf(cids)}, column1, ${sql.lit(CID_BYTES)})) as rows`,
    ),
  }
}

export function packOf(row: PackRow | undefined): Pack {
  if (!row?.sizes || !row.bytes) return { sizes: [], bytes: new Uint8Array(0) }
  return { sizes: row.sizes.split(' ').map(Number), bytes: row.bytes }
}

export function pageOf(row: (PackRow & { last: string | null }) | undefined): Pack & { last: string } {
  return { ...packOf(row), last: row?.last ?? '' }
}
