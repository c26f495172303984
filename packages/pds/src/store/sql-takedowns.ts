/** Takedowns of records in SQL. */
import type { Db } from '@millisky/server/db/db'
import type { PdsSchema } from './schema.ts'
import type { TakedownStore } from './store.ts'

export function createTakedownStore(db: Db<PdsSchema>): TakedownStore {
  const own = (account: number) => db.kysely.selectFrom('record_takedown').where('account', '=', account)
  return {
    async set(account, path, reference) {
      await db.transaction(async ({ kysely }) => {
        await kysely.deleteFrom('record_takedown').where('account', '=', account).where('path', '=', path).execute()
        if (reference !== null)
          await kysely.insertInto('record_takedown').values({ account, path, reference }).execute()
        const count = kysely
          .selectFrom('record_takedown')
          .select(eb => eb.fn.countAll<number>().as('n'))
          .where('account', '=', account)
        await kysely.updateTable('account').set({ record_takedowns: count }).where('id', '=', account).execute()
      })
    },
    async get(account, path) {
      const row = await own(account).select('reference').where('path', '=', path).executeTakeFirst()
      return row?.reference ?? null
    },
    async paths(account) {
      return new Set((await own(account).select('path').execute()).map(({ path }) => path))
    },
  }
}
