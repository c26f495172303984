/** Collections of accounts, and checkpoints of the log, over SQL. */
import type { Did } from '@millisky/core/syntax'
import type { Db, SyncTx, Tx } from '@millisky/server/db/db'
import { sql } from 'kysely'
import type { DirectoryChange } from '../directory.ts'
import type { RelaySchema } from './schema.ts'
import type { CheckpointStore, DirectoryStore } from './store.ts'

/** Rows in one statement of PostgreSQL. */
const CHUNK = 500
/** Collections of one account, about: nobody has that many, but somebody may make them up. */
export const COLLECTIONS_MAX = 1_000

export function createDirectoryStore({ kysely }: Db<RelaySchema>): DirectoryStore {
  return {
    async list(collection, after, limit) {
      const of = kysely.selectFrom('collection').select('did').where('collection', '=', collection)
      const rows = await of.where('did', '>', after).orderBy('did').limit(limit).execute()
      return rows.map(({ did }) => did as Did)
    },
    async count(collection) {
      const count = kysely.selectFrom('collection').select(eb => eb.fn.countAll().as('n'))
      return Number((await count.where('collection', '=', collection).executeTakeFirstOrThrow()).n)
    },
  }
}

/** The part of the fold that is about collections, to be called inside of its transaction. */
export function prepareDirectoryFold(db: Db<RelaySchema>) {
  const { kysely } = db
  const empty = db.prepare((did: string) => kysely.deleteFrom('collection').where('did', '=', did))
  const remove = db.prepare((collection: string, did: string) =>
    kysely.deleteFrom('collection').where('collection', '=', collection).where('did', '=', did),
  )
  const add = db.prepare(
    (collection: string, did: string, did2: string) =>
      sql`insert into collection (collection, did) select ${collection}, ${did}
        where (select count(*) from collection where did = ${did2}) < ${sql.lit(COLLECTIONS_MAX)}
        on conflict (collection, did) do nothing`,
  )
  return {
    saveSync(tx: SyncTx, changes: readonly DirectoryChange[]): void {
      for (const { did, emptied, pairs } of changes) {
        if (emptied) tx.run(empty, [did])
        for (const [name, isThere] of pairs) {
          if (isThere) tx.run(add, [name, did, did])
          else tx.run(remove, [name, did])
        }
      }
    },
    async save(tx: Tx<RelaySchema>, changes: readonly DirectoryChange[]): Promise<void> {
      const added: [string, Did][] = []
      for (const { did, emptied, pairs } of changes) {
        if (emptied) await tx.run(empty, [did])
        for (const [name, isThere] of pairs) {
          if (isThere) added.push([name, did])
          else await tx.run(remove, [name, did])
        }
      }
      for (let at = 0; at < added.length; at += CHUNK) {
        const rows = added.slice(at, at + CHUNK).map(row => sql`(${sql.join(row)})`)
        await sql`insert into collection (collection, did)
          select v.collection, v.did from (values ${sql.join(rows)}) as v (collection, did)
          where (select count(*) from collection as c where c.did = v.did) < ${sql.lit(COLLECTIONS_MAX)}
          on conflict (collection, did) do nothing`.execute(tx.kysely)
      }
    },
  }
}

export function createCheckpointStore({ kysely }: Db<RelaySchema>): CheckpointStore {
  const all = () => kysely.selectFrom('checkpoint').selectAll()
  return {
    async add(checkpoint) {
      await kysely.insertInto('checkpoint').values(checkpoint).execute()
    },
    async latest() {
      return (await all().orderBy('last', 'desc').limit(1).executeTakeFirst()) ?? null
    },
    list: (after, limit) => all().where('last', '>', after).orderBy('last').limit(limit).execute(),
  }
}
