/** Sessions and app passwords in SQL. */
import { type Db, isUniqueViolation } from '@millisky/server/db/db'
import type { PdsSchema, SessionTable } from './schema.ts'
import { type Session, type SessionStore, Taken } from './store.ts'

export function createSessionStore(db: Db<PdsSchema>): SessionStore {
  const { kysely } = db
  const byId = db.prepare((id: string) => kysely.selectFrom('session').selectAll().where('id', '=', id))
  return {
    async add(session) {
      await db.transaction(tx => tx.kysely.insertInto('session').values(rowOf(session)).execute())
    },
    async byId(id) {
      const row = await db.get(byId, [id])
      return row ? sessionOf(row) : null
    },
    rotate: (id, next, graceUntil) =>
      db.transaction(async tx => {
        const { kysely } = tx
        // Marking and asking in one statement: of two that come at once, one marks and the other finds the mark.
        const marked = await kysely
          .updateTable('session')
          .set(eb => ({
            next: next.id,
            expires_at: eb.case().when('expires_at', '<', graceUntil).then(eb.ref('expires_at')).else(graceUntil).end(),
          }))
          .where('id', '=', id)
          .where('next', 'is', null)
          .returning('id')
          .executeTakeFirst()
        if (marked) {
          await kysely.insertInto('session').values(rowOf(next)).execute()
          return next.id
        }
        // A successor that has been ended is not handed out once more.
        const found = await kysely
          .selectFrom('session as s')
          .innerJoin('session as n', 'n.id', 's.next')
          .select('n.id')
          .where('s.id', '=', id)
          .executeTakeFirst()
        return found?.id ?? null
      }),
    async remove(id) {
      await db.transaction(async ({ kysely }) => {
        const own = kysely.selectFrom('session').select('account').where('id', '=', id)
        const all = await kysely.selectFrom('session').select(['id', 'next']).where('account', '=', own).execute()
        const line = lineOf(id, all)
        if (line.length > 0) await kysely.deleteFrom('session').where('id', 'in', line).execute()
      })
    },
    async removeOf(account, appPassword) {
      await db.transaction(async tx => {
        const all = tx.kysely.deleteFrom('session').where('account', '=', account)
        await (appPassword === undefined ? all : all.where('app_password', '=', appPassword)).execute()
      })
    },
    removeExpired: now =>
      db.transaction(async tx => {
        const done = await tx.kysely.deleteFrom('session').where('expires_at', '<', now).executeTakeFirst()
        return Number(done.numDeletedRows)
      }),
    async addAppPassword(account, { name, password, privileged, createdAt }) {
      const row = { account, name, password, privileged: Number(privileged), created_at: createdAt }
      try {
        await db.transaction(tx => tx.kysely.insertInto('app_password').values(row).execute())
      } catch (error) {
        throw isUniqueViolation(error) ? new Taken('name') : error
      }
    },
    async appPasswords(account) {
      const rows = await kysely
        .selectFrom('app_password')
        .selectAll()
        .where('account', '=', account)
        .orderBy('created_at')
        .orderBy('name')
        .execute()
      return rows.map(({ name, password, privileged, created_at }) => {
        return { name, password, privileged: privileged === 1, createdAt: created_at }
      })
    },
    removeAppPassword: (account, name) =>
      db.transaction(async tx => {
        const { kysely } = tx
        await kysely.deleteFrom('session').where('account', '=', account).where('app_password', '=', name).execute()
        const gone = kysely.deleteFrom('app_password').where('account', '=', account).where('name', '=', name)
        return (await gone.executeTakeFirst()).numDeletedRows > 0n
      }),
  }
}

/** A session with all it was refreshed from and into: what leads to it, or on from it, would keep it alive. */
function lineOf(id: string, all: readonly { id: string; next: string | null }[]): string[] {
  const known = new Set(all.map(session => session.id))
  const after = new Map(all.map(session => [session.id, session.next]))
  const before = Map.groupBy(all, session => session.next)
  const line = new Set<string>()
  const wanted = [id]
  for (let one = wanted.pop(); one !== undefined; one = wanted.pop()) {
    if (line.has(one) || !known.has(one)) continue
    line.add(one)
    const next = after.get(one)
    if (next) wanted.push(next)
    for (const earlier of before.get(one) ?? []) wanted.push(earlier.id)
  }
  return [...line]
}

function rowOf(session: Session): SessionTable {
  const { id, account, createdAt, expiresAt, next, appPassword } = session
  return { id, account, created_at: createdAt, expires_at: expiresAt, next, app_password: appPassword }
}

function sessionOf(row: SessionTable): Session {
  const { id, account, created_at, expires_at, next, app_password } = row
  return { id, account, createdAt: created_at, expiresAt: expires_at, next, appPassword: app_password }
}
