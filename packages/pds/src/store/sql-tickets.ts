/** Invitations, mail codes, reserved keys and server secrets in SQL. */
import type { Curve } from '@millisky/core/crypto'
import type { Did } from '@millisky/core/syntax'
import type { Db } from '@millisky/server/db/db'
import type { InviteTable, PdsSchema } from './schema.ts'
import type { InviteCode, TicketStore } from './store.ts'

export function createTicketStore(db: Db<PdsSchema>): TicketStore {
  return { ...invites(db), ...emailTokens(db), ...keys(db) }
}

type Invites = Pick<
  TicketStore,
  'addInvites' | 'addOwnInvites' | 'invite' | 'invitesFor' | 'invitedBy' | 'listInvites' | 'disableInvites'
>

function invites(db: Db<PdsSchema>): Invites {
  const { kysely } = db
  const withUses = async (rows: InviteTable[]): Promise<InviteCode[]> => {
    const codes = rows.map(row => row.code)
    const used = kysely.selectFrom('invite_use').selectAll().where('code', 'in', codes).orderBy('used_at')
    const uses = Map.groupBy(codes.length === 0 ? [] : await used.execute(), row => row.code)
    return rows.map(row => inviteOf(row, uses.get(row.code) ?? []))
  }
  return {
    async addInvites(codes) {
      await db.transaction(async tx => {
        for (const code of codes) await tx.kysely.insertInto('invite').values(inviteRow(code)).execute()
      })
    },
    addOwnInvites: (codes, total) =>
      db.transaction(async tx => {
        const owner = codes[0]?.forAccount
        if (owner === undefined) return true
        // The update locks the account, so that two calls do not count at the same time.
        await tx.kysely.updateTable('account').set({ did: owner }).where('did', '=', owner).execute()
        const { n } = await tx.kysely
          .selectFrom('invite')
          .select(eb => eb.fn.countAll().as('n'))
          .where('for_account', '=', owner)
          .where('created_by', '!=', 'admin')
          .executeTakeFirstOrThrow()
        if (Number(n) + codes.length > total) return false
        for (const code of codes) await tx.kysely.insertInto('invite').values(inviteRow(code)).execute()
        return true
      }),
    async invite(code) {
      const rows = await kysely.selectFrom('invite').selectAll().where('code', '=', code).execute()
      return (await withUses(rows))[0] ?? null
    },
    async invitesFor(account) {
      const own = kysely.selectFrom('invite').selectAll().where('for_account', '=', account)
      return withUses(await own.orderBy('created_at').orderBy('code').execute())
    },
    async invitedBy(did) {
      const used = kysely.selectFrom('invite_use').select('code').where('did', '=', did)
      const rows = await kysely.selectFrom('invite').selectAll().where('code', 'in', used).limit(1).execute()
      return (await withUses(rows))[0] ?? null
    },
    async listInvites({ sort, limit, after }) {
      const counted = kysely
        .selectFrom('invite')
        .selectAll('invite')
        .select(eb =>
          eb
            .selectFrom('invite_use')
            .select(eb => eb.fn.countAll<number>().as('n'))
            .whereRef('invite_use.code', '=', 'invite.code')
            .as('used'),
        )
      const key = sort === 'recent' ? 'created_at' : 'used'
      let page = kysely
        .selectFrom(counted.as('i'))
        .selectAll()
        .orderBy(key, 'desc')
        .orderBy('code', 'desc')
        .limit(limit)
      if (after) {
        const { primary, code } = after
        page = page.where(eb => eb.or([eb(key, '<', primary), eb.and([eb(key, '=', primary), eb('code', '<', code)])]))
      }
      return withUses(await page.execute())
    },
    async disableInvites(codes, accounts) {
      await db.transaction(async tx => {
        const disable = () => tx.kysely.updateTable('invite').set({ disabled: 1 })
        for (const code of codes) await disable().where('code', '=', code).execute()
        for (const account of accounts) await disable().where('for_account', '=', account).execute()
      })
    },
  }
}

function inviteOf(row: InviteTable, uses: { did: string; used_at: number }[]): InviteCode {
  return {
    code: row.code,
    uses: row.uses,
    disabled: row.disabled === 1,
    forAccount: row.for_account,
    createdBy: row.created_by,
    createdAt: row.created_at,
    usedBy: uses.map(use => ({ did: use.did as Did, at: use.used_at })),
  }
}

function inviteRow(invite: Omit<InviteCode, 'usedBy' | 'disabled'> & { disabled?: boolean }): InviteTable {
  const { code, uses, disabled = false, forAccount, createdBy, createdAt } = invite
  return {
    code,
    uses,
    disabled: Number(disabled),
    for_account: forAccount,
    created_by: createdBy,
    created_at: createdAt,
  }
}

type EmailTokens = Pick<
  TicketStore,
  'putEmailToken' | 'emailToken' | 'accountOfEmailToken' | 'removeEmailToken' | 'takeEmailToken' | 'removeEmailTokens'
>

function emailTokens(db: Db<PdsSchema>): EmailTokens {
  const { kysely } = db
  return {
    async putEmailToken(account, purpose, { token, requestedAt }) {
      const row = { account, purpose, token, requested_at: requestedAt }
      await db.transaction(tx =>
        tx.kysely
          .insertInto('email_token')
          .values(row)
          .onConflict(conflict =>
            conflict.columns(['account', 'purpose']).doUpdateSet({ token, requested_at: requestedAt }),
          )
          .execute(),
      )
    },
    async emailToken(account, purpose) {
      const found = kysely.selectFrom('email_token').selectAll().where('account', '=', account)
      const row = await found.where('purpose', '=', purpose).executeTakeFirst()
      return row ? { token: row.token, requestedAt: row.requested_at } : null
    },
    async accountOfEmailToken(purpose, token) {
      const found = kysely.selectFrom('email_token').select('account').where('purpose', '=', purpose)
      return (await found.where('token', '=', token).executeTakeFirst())?.account ?? null
    },
    takeEmailToken: (account, purpose, token) =>
      db.transaction(async tx => {
        const own = tx.kysely.deleteFrom('email_token').where('account', '=', account).where('purpose', '=', purpose)
        return (await own.where('token', '=', token).executeTakeFirst()).numDeletedRows > 0n
      }),
    async removeEmailTokens(account) {
      await db.transaction(tx => tx.kysely.deleteFrom('email_token').where('account', '=', account).execute())
    },
    async removeEmailToken(account, purpose) {
      await db.transaction(tx =>
        tx.kysely.deleteFrom('email_token').where('account', '=', account).where('purpose', '=', purpose).execute(),
      )
    },
  }
}

type Keys = Pick<
  TicketStore,
  'reserveKey' | 'reservedKey' | 'removeReservedKey' | 'removeReservedKeysBefore' | 'secret'
>

function keys(db: Db<PdsSchema>): Keys {
  const { kysely } = db
  return {
    reserveKey: (didKey, did, key, now) =>
      db.transaction(async tx => {
        const row = { did_key: didKey, did, curve: key.curve, secret: key.secret, created_at: now }
        await tx.kysely
          .insertInto('reserved_key')
          .values(row)
          .onConflict(conflict => conflict.doNothing())
          .execute()
        if (did === null) return didKey
        const kept = tx.kysely.selectFrom('reserved_key').select('did_key').where('did', '=', did)
        return (await kept.executeTakeFirstOrThrow()).did_key
      }),
    async reservedKey(didKeyOrDid) {
      const row = await kysely
        .selectFrom('reserved_key')
        .select(['curve', 'secret'])
        .where(eb => eb.or([eb('did_key', '=', didKeyOrDid), eb('did', '=', didKeyOrDid)]))
        .executeTakeFirst()
      return row ? { curve: row.curve as Curve, secret: row.secret } : null
    },
    async removeReservedKey(didKeyOrDid) {
      await db.transaction(tx =>
        tx.kysely
          .deleteFrom('reserved_key')
          .where(eb => eb.or([eb('did_key', '=', didKeyOrDid), eb('did', '=', didKeyOrDid)]))
          .execute(),
      )
    },
    removeReservedKeysBefore: time =>
      db.transaction(async tx => {
        const gone = await tx.kysely.deleteFrom('reserved_key').where('created_at', '<', time).executeTakeFirst()
        return Number(gone.numDeletedRows)
      }),
    async secret(name, make) {
      const read = async () =>
        await kysely.selectFrom('secret').select('value').where('name', '=', name).executeTakeFirst()
      const found = await read()
      if (found) return found.value
      await db.transaction(tx =>
        tx.kysely
          .insertInto('secret')
          .values({ name, value: make() })
          .onConflict(conflict => conflict.doNothing())
          .execute(),
      )
      return (await read())!.value
    },
  }
}
