/** Whole accounts that another server had, in SQL. */
import { isUniqueViolation, type Tx } from '@millisky/server/db/db'
import type { PdsDb, PdsSchema } from './schema.ts'
import { prepareRepoWrites, type RepoWrites } from './sql-repo-statements.ts'
import { addRecordsSteps, Steps } from './sql-steps.ts'
import { type AccountId, type Arrival, type ArrivalStore, type ArrivingRecord, Taken } from './store.ts'

/** Rows between two turns for everybody who only reads. */
const ROWS_AT_ONCE = 200

export function createArrivalStore(db: PdsDb): ArrivalStore {
  const writes = prepareRepoWrites(db)
  return {
    async add(arrival) {
      try {
        return await db.transaction(tx => addAll(tx, writes, arrival))
      } catch (error) {
        if (!isUniqueViolation(error)) throw error
        for (const what of ['did', 'handle', 'email'] as const) {
          const value = arrival[what]
          if (value === null) continue
          const held = await db.kysely.selectFrom('account').select('id').where(what, '=', value).executeTakeFirst()
          if (held) throw new Taken(what)
        }
        throw error
      }
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
  for (const nodes of pages(arrival.nodes())) {
    const steps = new Steps()
    for (const { cid, bytes, rev } of nodes) steps.add(writes.addNode, [account, cid.bytes, rev, bytes])
    await steps.run(tx)
    await new Promise(setImmediate)
  }
  for (const records of pages<ArrivingRecord>(arrival.records())) {
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

async function addAccount({ kysely }: Tx<PdsSchema>, arrival: Arrival): Promise<AccountId> {
  const { head, commit, key } = arrival
  const { id } = await kysely
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
  await kysely
    .insertInto('repo')
    .values({
      account: id,
      rev: head.rev,
      data: head.data.bytes,
      cid: commit.cid.bytes,
      bytes: commit.bytes,
      key_curve: key.curve,
      key_secret: key.secret,
    })
    .execute()
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

function* pages<T>(items: Iterable<T>): Generator<T[]> {
  let page: T[] = []
  for (const item of items) {
    page.push(item)
    if (page.length < ROWS_AT_ONCE) continue
    yield page
    page = []
  }
  if (page.length > 0) yield page
}
