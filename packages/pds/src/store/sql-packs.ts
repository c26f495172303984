/** Blocks read many at a time. A row of its own for each would cost more than all else that an export does. */
import { CID_BYTES } from '@millisky/core/cid'
import type { Db } from '@millisky/server/db/db'
import { type RawBuilder, sql } from 'kysely'
import { LEFT_OUT, OLD, Pack } from './packs.ts'
import type { PdsSchema } from './schema.ts'
import { FEW_NODES, NODES_AT_ONCE_MAX } from './store.ts'

const RECORDS_AT_ONCE = 250
/** An account may have large blocks behind small ones. */
const PACKED_BYTES_MAX = 2_000

interface PackRow {
  pack: Uint8Array | null
}

type Sql = RawBuilder<unknown>

/** How both databases join values of rows that come in an order. In SQLite that is the order in which they are met. */
const JOINS = {
  sqlite: {
    // With a comma between: saying another sign, or none, would cost a tenth.
    // A byte string counts as text here, whatever is in it, and what is made of the texts is one again.
    joined: (value: Sql, _by: Sql) => sql`cast(group_concat(${value}) as blob)`,
    text: (value: Sql) => value,
    cidsOf: (cids: Uint8Array) => sql`${cids}`,
  },
  postgres: {
    joined: (value: Sql, by: Sql) => sql`string_agg(${value}, ','::bytea order by ${by})`,
    text: (value: Sql) => sql`convert_to((${value})::text, 'UTF8')`,
    cidsOf: (cids: Uint8Array) => sql`${cids}::bytea`,
  },
}

export function preparePacks(db: Db<PdsSchema>) {
  const { joined, text, cidsOf } = JOINS[db.kind]
  const packed = sql`when length(bytes) > ${sql.lit(PACKED_BYTES_MAX)} then ${text(sql.lit(LEFT_OUT))} || cid
    else ${text(sql`length(bytes)`)} || cid || bytes end`
  const places = Array.from({ length: NODES_AT_ONCE_MAX }, (_, i) => sql`(${sql.lit(i * CID_BYTES + 1)})`)
  return {
    // A page ends where another begins: a limit would cost a copy of each row.
    recordPack: db.prepare(
      (account: number, from: string, below: string) =>
        sql<PackRow>`select ${joined(sql`case ${packed}`, sql`path`)} as pack from record
          where account = ${account} and path >= ${from} and path < coalesce((
            select path from record where account = ${account} and path >= ${from} and path < ${below}
            order by path limit 1 offset ${sql.lit(RECORDS_AT_ONCE)}), ${below})`,
    ),
    nodePack: db.prepare(
      (since: string, account: number, cids: Uint8Array) =>
        sql<PackRow>`select ${joined(
          sql`case when rev <= ${since} then ${text(sql.lit(OLD))} || cid ${packed}`,
          sql`column1`,
        )} as pack
          from (values ${sql.join(places)}) as places cross join node
          where account = ${account} and cid = substr(${cidsOf(cids)}, column1, ${sql.lit(CID_BYTES)})`,
    ),
    fewNodesPack: db.prepare(
      (account: number) =>
        sql<PackRow>`select ${joined(sql`case ${packed}`, sql`cid`)} as pack from node
          where account = ${account} and not exists (
            select 1 from node where account = ${account} limit 1 offset ${sql.lit(FEW_NODES)})`,
    ),
  }
}

const NOTHING = new Uint8Array(0)

export const packOf = (row: PackRow | undefined): Pack => new Pack(row?.pack ?? NOTHING)

export const packOrNull = (row: PackRow | undefined): Pack | null => (row?.pack ? new Pack(row.pack) : null)
