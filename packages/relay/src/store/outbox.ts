/** What sibling relays are still to be told, over SQL. */
import type { Db } from '@millisky/server/db/db'
import type { Selectable } from 'kysely'
import type { OutboxTable, RelaySchema } from './schema.ts'
import type { OutboxItem, OutboxStore } from './store.ts'

const itemOf = ({ next_at, ...row }: Selectable<OutboxTable>): OutboxItem => ({ ...row, nextAt: next_at })

export function createOutboxStore({ kysely }: Db<RelaySchema>): OutboxStore {
  return {
    async add(items) {
      if (items.length > 0)
        await kysely
          .insertInto('outbox')
          .values([...items])
          .execute()
    },
    async first(sibling) {
      const waiting = kysely.selectFrom('outbox').selectAll().where('sibling', '=', sibling).orderBy('id').limit(1)
      const row = await waiting.executeTakeFirst()
      return row ? itemOf(row) : null
    },
    async failed(id, { attempts, nextAt, error }) {
      await kysely.updateTable('outbox').set({ attempts, next_at: nextAt, error }).where('id', '=', id).execute()
    },
    async remove(id) {
      await kysely.deleteFrom('outbox').where('id', '=', id).execute()
    },
    async list(after, limit) {
      const rows = kysely.selectFrom('outbox').selectAll().where('id', '>', after).orderBy('id').limit(limit)
      return (await rows.execute()).map(itemOf)
    },
    async count() {
      const rows = await kysely
        .selectFrom('outbox')
        .select(['sibling', eb => eb.fn.countAll().as('n')])
        .groupBy('sibling')
        .execute()
      return new Map(rows.map(({ sibling, n }) => [sibling, Number(n)]))
    },
    async expire(before) {
      return Number((await kysely.deleteFrom('outbox').where('at', '<', before).executeTakeFirst()).numDeletedRows)
    },
  }
}
