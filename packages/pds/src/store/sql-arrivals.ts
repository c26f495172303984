/** Whole accounts that another server had, in SQL. */
import type { Tx } from '@millisky/server/db/db'
import type { PdsDb, PdsSchema } from './schema.ts'
import { insertRepo, unique } from './sql-accounts.ts'
import { prepareRepoWrites, type RepoWrites } from './sql-repo-statements.ts'
import { addRecordsSteps, pages, Steps } from './sql-steps.ts'
import type { AccountId, Arrival, ArrivalStore, ArrivingRecord } from './store.ts'

/** Rows between two turns for everybody who only reads. */
const ROWS_AT_ONCE = 200

export function createArrivalStore(db: PdsDb): ArrivalStore {
  const writes = prepareRepoWrites(db)
  return {
    async add(arrival) {
      return await unique(db, arrival, () => db.transaction(tx => addAll(tx, writes, arrival)))
    },
    async addInvites(codes) {
      await db.transaction(async ({ kysely }) => {
        for (const { code, uses, disabled, forAccount, createdBy, createdAt, usedBy } of codes) {
          const row = { code, uses, disabled: Number(disabled), for_account: forAccount, created_by: createdBy }
          const invite = kysely.insertInto('invite').values({ ...row, created_at: createdAt })
          await invite.onConflict(conflict => conflict.doNothing()).execute()
          for (const { did, at } of usedBy) {
            const use = kysely.insertInto('invite_use').values({ code, did, used_at: at })
            await use.onConflict(conflict => conflict.doNothing()).execute()
          }
        }
      })
    },
  }
}

async function addAll(tx: Tx<PdsSchema>, writes: RepoWrites, arrival: Arrival): Promise<AccountId> {
  const account = await addAccount(tx, arrival)
  await addBelongings(tx, account, arrival)
  for (const nodes of pages(arrival.nodes(), ROWS_AT_ONCE)) {
    const steps = new Steps()
    for (const { cid, bytes, rev } of nodes) steps.add(writes.addNode, [account, cid.bytes, rev, bytes])
    await steps.run(tx)
    await new Promise(setImmediate)
  }
  for (const records of pages<ArrivingRecord>(arrival.records(), ROWS_AT_ONCE)) {
    const steps = new Steps()
    for (const record of records) {
      const { rev, ...write } = record
      await addRecordsSteps(steps, writes, tx, { account, rev, now: arrival.createdAt }, [
        { action: 'create', ...write },
      ])
    }
    await steps.run(tx)
    await new Promise(setImmediate)
  }
  return account
}

async function addAccount(tx: Tx<PdsSchema>, arrival: Arrival): Promise<AccountId> {
  const { id } = await tx.kysely
    .insertInto('account')
    .values({
      did: arrival.did,
      handle: arrival.handle,
      email: arrival.email,
      email_confirmed_at: arrival.emailConfirmedAt,
      password: arrival.password,
      created_at: arrival.createdAt,
      deactivated_at: arrival.deactivatedAt,
      delete_after: arrival.deleteAfter,
      suspended_at: null,
      takedown: arrival.takedown,
      invites_disabled: Number(arrival.invitesDisabled),
      record_takedowns: arrival.recordTakedowns.length,
    })
    .returning('id')
    .executeTakeFirstOrThrow()
  await insertRepo(tx, id, arrival)
  return id
}

/** What lies beside the repository. */
async function addBelongings({ kysely }: Tx<PdsSchema>, account: AccountId, arrival: Arrival): Promise<void> {
  for (const [position, { type, json }] of arrival.preferences.entries()) {
    await kysely.insertInto('preference').values({ account, position, type, json }).execute()
  }
  for (const { name, password, privileged, createdAt } of arrival.appPasswords) {
    const row = { account, name, password, privileged: Number(privileged), created_at: createdAt }
    await kysely.insertInto('app_password').values(row).execute()
  }
  for (const { id, createdAt, expiresAt, next, appPassword } of arrival.sessions) {
    const row = { id, account, created_at: createdAt, expires_at: expiresAt, next, app_password: appPassword }
    await kysely.insertInto('session').values(row).execute()
  }
  for (const { path, reference } of arrival.recordTakedowns) {
    await kysely.insertInto('record_takedown').values({ account, path, reference }).execute()
  }
  // Those that a record refers to are held when the record comes.
  for (const { cid, mimeType, size, looseSince, takedown } of arrival.blobs) {
    const row = { account, cid: cid.bytes, mime_type: mimeType, size, loose_since: looseSince, takedown }
    await kysely.insertInto('blob').values(row).execute()
  }
}
