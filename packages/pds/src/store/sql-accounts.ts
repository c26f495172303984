/** Accounts in SQL. */
import type { Block } from '@millisky/core/blocks'
import { Refused } from '@millisky/core/errors'
import type { Head } from '@millisky/core/repo'
import type { Did, Handle } from '@millisky/core/syntax'
import { type Db, isUniqueViolation, type Tx } from '@millisky/server/db/db'
import { type Selectable, sql } from 'kysely'
import { ACCOUNT_TABLES, type AccountTable, type PdsSchema } from './schema.ts'
import type { EventAppender } from './sql-events.ts'
import {
  type Account,
  type AccountId,
  type AccountPatch,
  type AccountStore,
  type NewAccount,
  type StoredKey,
  Taken,
} from './store.ts'

const COLUMNS = [
  'id',
  'did',
  'handle',
  'email',
  'email_confirmed_at',
  'created_at',
  'deactivated_at',
  'delete_after',
  'suspended_at',
  'takedown',
  'invites_disabled',
  'record_takedowns',
] as const

/** A row without what only `password` may read. */
export type AccountRow = Omit<Selectable<AccountTable>, 'password'>

export function accountOf(row: AccountRow): Account {
  return {
    id: row.id,
    did: row.did as Did,
    handle: row.handle as Handle | null,
    email: row.email,
    emailConfirmedAt: row.email_confirmed_at,
    createdAt: row.created_at,
    deactivatedAt: row.deactivated_at,
    deleteAfter: row.delete_after,
    suspendedAt: row.suspended_at,
    takedown: row.takedown,
    invitesDisabled: row.invites_disabled === 1,
    hasRecordTakedowns: row.record_takedowns > 0,
  }
}

export function createAccountStore(db: Db<PdsSchema>, events: EventAppender): AccountStore {
  const { kysely } = db
  const select = () => kysely.selectFrom('account').select(COLUMNS)
  const byId = db.prepare((id: number) => select().where('id', '=', id))
  const byDid = db.prepare((did: string) => select().where('did', '=', did))
  const byHandle = db.prepare((handle: string) => select().where('handle', '=', handle))
  const byEmail = db.prepare((email: string) => select().where('email', '=', email))
  const password = db.prepare((id: number) => kysely.selectFrom('account').select('password').where('id', '=', id))
  const present = (row: AccountRow | undefined) => (row ? accountOf(row) : null)
  return {
    ...preferenceStore(db),
    byId: async id => present(await db.get(byId, [id])),
    byDid: async did => present(await db.get(byDid, [did])),
    byHandle: async handle => present(await db.get(byHandle, [handle])),
    byEmail: async email => present(await db.get(byEmail, [email.toLowerCase()])),
    password: async id => (await db.get(password, [id]))?.password ?? null,
    async rehash(id, before, after) {
      await db.transaction(({ kysely }) =>
        kysely
          .updateTable('account')
          .set({ password: after })
          .where('id', '=', id)
          .where('password', '=', before)
          .execute(),
      )
    },
    async create(account, pending) {
      const id = await unique(db, account, () =>
        db.transaction(async tx => {
          const id = await insertAccount(tx, account)
          await events.append(tx, pending)
          return id
        }),
      )
      return present(await db.get(byId, [id]))!
    },
    async update(id, patch, pending) {
      await unique(db, patch, () =>
        db.transaction(async tx => {
          await updateAccount(tx, id, patch)
          await events.append(tx, pending)
        }),
      )
    },
    async remove(id, pending) {
      await db.transaction(async tx => {
        const did = await deleteAccount(tx, id)
        if (did === null) return
        await events.forget(tx, did)
        await events.append(tx, pending)
      })
    },
    async withdraw(id) {
      await db.transaction(async tx => {
        const did = await deleteAccount(tx, id)
        if (did !== null) await tx.kysely.deleteFrom('invite_use').where('did', '=', did).execute()
      })
    },
    async list(after, limit) {
      const rows = await select().where('id', '>', after).orderBy('id').limit(limit).execute()
      return rows.map(accountOf)
    },
    async count() {
      const { n } = await kysely
        .selectFrom('account')
        .select(eb => eb.fn.countAll().as('n'))
        .executeTakeFirstOrThrow()
      return Number(n)
    },
    async searchByEmail(text, after, limit) {
      const pattern = `%${text.toLowerCase().replace(/[\\%_]/g, '\\$&')}%`
      const found = select().where(sql<boolean>`email like ${pattern} escape '\\'`).where('id', '>', after)
      return (await found.orderBy('id').limit(limit).execute()).map(accountOf)
    },
    async dueForDeletion(now, limit) {
      const due = select().where('deactivated_at', 'is not', null).where('delete_after', '<=', now)
      return (await due.orderBy('id').limit(limit).execute()).map(accountOf)
    },
  }
}

function preferenceStore(db: Db<PdsSchema>): Pick<AccountStore, 'preferences' | 'setPreferences'> {
  return {
    async preferences(id) {
      return await db.kysely
        .selectFrom('preference')
        .select(['type', 'json'])
        .where('account', '=', id)
        .orderBy('position')
        .execute()
    },
    async setPreferences(id, preferences) {
      await db.transaction(async tx => {
        await tx.kysely.deleteFrom('preference').where('account', '=', id).execute()
        const rows = preferences.map(({ type, json }, position) => ({ account: id, position, type, json }))
        for (const row of rows) await tx.kysely.insertInto('preference').values(row).execute()
      })
    },
  }
}

async function insertAccount(tx: Tx<PdsSchema>, account: NewAccount): Promise<AccountId> {
  const { did, key, repo } = account
  const { id } = await tx.kysely
    .insertInto('account')
    .values({
      did,
      handle: account.handle,
      email: account.email?.toLowerCase() ?? null,
      password: account.password,
      created_at: account.createdAt,
      deactivated_at: account.deactivatedAt,
      invites_disabled: 0,
    })
    .returning('id')
    .executeTakeFirstOrThrow()
  const { head, commit, nodes } = repo
  await insertRepo(tx, id, { head, commit, key })
  for (const { cid, bytes } of nodes) {
    await tx.kysely.insertInto('node').values({ account: id, cid: cid.bytes, rev: head.rev, bytes }).execute()
  }
  if (account.invite !== undefined) await useInvite(tx, account.invite, did, account.createdAt)
  return id
}

export async function insertRepo(
  { kysely }: Tx<PdsSchema>,
  account: AccountId,
  { head, commit, key }: { head: Head; commit: Block; key: StoredKey },
): Promise<void> {
  const kept = { key_curve: key.curve, key_secret: key.secret }
  const row = { account, rev: head.rev, data: head.data.bytes, cid: commit.cid.bytes, bytes: commit.bytes, ...kept }
  await kysely.insertInto('repo').values(row).execute()
}

/** Deletes the rows of an account; whose they were, or null for nobody's. */
async function deleteAccount({ kysely }: Tx<PdsSchema>, id: AccountId): Promise<Did | null> {
  const row = await kysely.deleteFrom('account').where('id', '=', id).returning('did').executeTakeFirst()
  if (!row) return null
  for (const table of ACCOUNT_TABLES) await kysely.deleteFrom(table).where('account', '=', id).execute()
  return row.did as Did
}

/** Counts one use of an invite. @throws Refused InvalidInviteCode */
async function useInvite(tx: Tx<PdsSchema>, code: string, did: Did, now: number): Promise<void> {
  const refused = new Refused('InvalidInviteCode', 'Provided invite code not available')
  // The update locks the row, so that two sign-ups cannot both take the last use.
  const { kysely } = tx
  const claim = kysely.updateTable('invite').set({ disabled: 0 }).where('code', '=', code).where('disabled', '=', 0)
  const invite = await claim.returning('uses').executeTakeFirst()
  if (!invite) throw refused
  const { n } = await kysely
    .selectFrom('invite_use')
    .select(eb => eb.fn.countAll().as('n'))
    .where('code', '=', code)
    .executeTakeFirstOrThrow()
  if (Number(n) >= invite.uses) throw refused
  await kysely.insertInto('invite_use').values({ code, did, used_at: now }).execute()
}

async function updateAccount(tx: Tx<PdsSchema>, id: AccountId, patch: AccountPatch): Promise<void> {
  const { key } = patch
  const set = {
    handle: patch.handle,
    email: patch.email?.toLowerCase() ?? patch.email,
    email_confirmed_at: patch.emailConfirmedAt,
    password: patch.password,
    deactivated_at: patch.deactivatedAt,
    delete_after: patch.deleteAfter,
    suspended_at: patch.suspendedAt,
    takedown: patch.takedown,
    invites_disabled: patch.invitesDisabled === undefined ? undefined : Number(patch.invitesDisabled),
  }
  if (Object.values(set).some(value => value !== undefined)) {
    await tx.kysely.updateTable('account').set(set).where('id', '=', id).execute()
  }
  if (!key) return
  const stored = { key_curve: key.curve, key_secret: key.secret }
  await tx.kysely.updateTable('repo').set(stored).where('account', '=', id).execute()
}

/** Runs a change and says which value is in use if the database says that one is. */
export async function unique<T>(
  db: Db<PdsSchema>,
  wanted: { did?: Did; handle?: Handle | null; email?: string | null },
  change: () => Promise<T>,
): Promise<T> {
  try {
    return await change()
  } catch (error) {
    if (!isUniqueViolation(error)) throw error
    for (const what of ['did', 'handle', 'email'] as const) {
      const value = what === 'email' ? wanted.email?.toLowerCase() : wanted[what]
      if (!value) continue
      const held = await db.kysely.selectFrom('account').select('id').where(what, '=', value).executeTakeFirst()
      if (held) throw new Taken(what)
    }
    throw error
  }
}
