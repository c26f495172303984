/**
 * Statements of the paths that everything waits for, compiled once.
 */
import type { Db } from '@millisky/server/db/db'
import type { Statement } from '@millisky/server/db/statement'
import { sql } from 'kysely'
import type { PdsSchema } from './schema.ts'
import { preparePacks } from './sql-packs.ts'

export function prepareRepoReads(db: Db<PdsSchema>) {
  const { kysely } = db
  const node = () => kysely.selectFrom('node')
  const record = () => kysely.selectFrom('record').select(['path', 'cid', 'rev', 'bytes'])
  return {
    ...prepareLists(db),
    ...prepareLooks(db),
    ...preparePacks(db),
    state: db.prepare((did: string) =>
      kysely
        .selectFrom('account as a')
        .innerJoin('repo as r', 'r.account', 'a.id')
        .select(['a.id', 'a.deactivated_at', 'a.suspended_at', 'a.takedown'])
        .select(['r.rev', 'r.cid', 'r.data', 'r.key_curve', 'r.key_secret'])
        .where('a.did', '=', did),
    ),
    node: db.prepare((account: number, cid: Uint8Array) =>
      node().select(['rev', 'bytes']).where('account', '=', account).where('cid', '=', cid),
    ),
    record: db.prepare((account: number, path: string) =>
      record().where('account', '=', account).where('path', '=', path),
    ),
    recordByCid: db.prepare((account: number, cid: Uint8Array) =>
      record().where('account', '=', account).where('cid', '=', cid).limit(1),
    ),
    about: db.prepare((account: number, subject: string, above: string, below: string) =>
      kysely
        .selectFrom('record_subject')
        .select('path')
        .where('account', '=', account)
        .where('subject', '=', subject)
        .where('path', '>', above)
        .where('path', '<', below)
        .orderBy('path'),
    ),
    commit: db.prepare((account: number) =>
      kysely
        .selectFrom('repo as r')
        .innerJoin('account as a', 'a.id', 'r.account')
        .select(['a.did', 'r.rev', 'r.cid', 'r.data', 'r.bytes'])
        .where('r.account', '=', account),
    ),
  }
}

/** What is read in order, a page at a time. */
function prepareLists(db: Db<PdsSchema>) {
  const { kysely } = db
  const record = () => kysely.selectFrom('record').select(['path', 'cid', 'rev', 'bytes'])
  return {
    recordsUp: db.prepare((account: number, above: string, below: string, limit: number) =>
      record()
        .where('account', '=', account)
        .where('path', '>', above)
        .where('path', '<', below)
        .orderBy('path')
        .limit(limit),
    ),
    recordsDown: db.prepare((account: number, above: string, below: string, limit: number) =>
      record()
        .where('account', '=', account)
        .where('path', '>', above)
        .where('path', '<', below)
        .orderBy('path', 'desc')
        .limit(limit),
    ),
    recordsAfter: db.prepare((account: number, after: string, limit: number) =>
      record().where('account', '=', account).where('path', '>', after).orderBy('path').limit(limit),
    ),
    pathsAfter: db.prepare((account: number, after: string, limit: number) =>
      kysely
        .selectFrom('record')
        .select(['path', 'cid'])
        .where('account', '=', account)
        .where('path', '>', after)
        .orderBy('path')
        .limit(limit),
    ),
    nodesAfter: db.prepare((account: number, after: Uint8Array, limit: number) =>
      kysely
        .selectFrom('node')
        .select(['cid', 'bytes'])
        .where('account', '=', account)
        .where('cid', '>', after)
        .orderBy('cid')
        .limit(limit),
    ),
    pathAfter: db.prepare((account: number, after: string) =>
      kysely
        .selectFrom('record')
        .select('path')
        .where('account', '=', account)
        .where('path', '>', after)
        .orderBy('path')
        .limit(1),
    ),
  }
}

/** Whether blocks are there. */
function prepareLooks(db: Db<PdsSchema>) {
  const { kysely } = db
  return {
    hasNode: db.prepare((account: number, cid: Uint8Array) =>
      kysely.selectFrom('node').select('rev').where('account', '=', account).where('cid', '=', cid),
    ),
    hasRecord: db.prepare((account: number, cid: Uint8Array) =>
      kysely.selectFrom('record').select('rev').where('account', '=', account).where('cid', '=', cid).limit(1),
    ),
  }
}

export type RepoReads = ReturnType<typeof prepareRepoReads>

export function prepareRepoWrites(db: Db<PdsSchema>) {
  return { ...prepareRows(db), many: db.kind === 'postgres' ? prepareMany(db) : null }
}

function prepareRows(db: Db<PdsSchema>) {
  const { kysely } = db
  return {
    moveHead: db.prepare(
      (rev: string, data: Uint8Array, cid: Uint8Array, bytes: Uint8Array, account: number, before: Uint8Array) =>
        kysely
          .updateTable('repo')
          .set({ rev, data, cid, bytes })
          .where('account', '=', account)
          .where('cid', '=', before),
    ),
    addNode: db.prepare((account: number, cid: Uint8Array, rev: string, bytes: Uint8Array) =>
      kysely
        .insertInto('node')
        .values({ account, cid, rev, bytes })
        .onConflict(conflict =>
          conflict.columns(['account', 'cid']).doUpdateSet(eb => ({ rev: eb.ref('excluded.rev') })),
        ),
    ),
    dropNode: db.prepare((account: number, cid: Uint8Array) =>
      kysely.deleteFrom('node').where('account', '=', account).where('cid', '=', cid),
    ),
    addRecord: db.prepare((account: number, path: string, cid: Uint8Array, rev: string, bytes: Uint8Array) =>
      kysely.insertInto('record').values({ account, path, cid, rev, bytes }),
    ),
    setRecord: db.prepare((cid: Uint8Array, rev: string, bytes: Uint8Array, account: number, path: string) =>
      kysely.updateTable('record').set({ cid, rev, bytes }).where('account', '=', account).where('path', '=', path),
    ),
    dropRecord: db.prepare((account: number, path: string) =>
      kysely.deleteFrom('record').where('account', '=', account).where('path', '=', path),
    ),
    addSubject: db.prepare((account: number, path: string, subject: string) =>
      kysely.insertInto('record_subject').values({ account, path, subject }),
    ),
    dropSubject: db.prepare((account: number, path: string) =>
      kysely.deleteFrom('record_subject').where('account', '=', account).where('path', '=', path),
    ),
    addBlobRef: db.prepare((account: number, path: string, cid: Uint8Array, rev: string) =>
      kysely.insertInto('record_blob').values({ account, path, cid, rev }),
    ),
    blobRefs: db.prepare((account: number, path: string) =>
      kysely.selectFrom('record_blob').select('cid').where('account', '=', account).where('path', '=', path),
    ),
    dropBlobRefs: db.prepare((account: number, path: string) =>
      kysely.deleteFrom('record_blob').where('account', '=', account).where('path', '=', path),
    ),
    holdBlob: db.prepare((account: number, cid: Uint8Array) =>
      kysely
        .updateTable('blob')
        .set({ loose_since: null })
        .where('account', '=', account)
        .where('cid', '=', cid)
        .where('loose_since', 'is not', null),
    ),
    loosenBlob: db.prepare((now: number, account: number, cid: Uint8Array) =>
      kysely
        .updateTable('blob')
        .set({ loose_since: now })
        .where('account', '=', account)
        .where('cid', '=', cid)
        .where(({ not, exists, selectFrom }) =>
          not(
            exists(
              selectFrom('record_blob as b')
                .select('b.path')
                .whereRef('b.account', '=', 'blob.account')
                .whereRef('b.cid', '=', 'blob.cid'),
            ),
          ),
        ),
    ),
  }
}

/** Statements for many rows at once. */
function prepareMany(db: Db<PdsSchema>) {
  return {
    addNodes: db.prepare(
      (account: number, cids: Uint8Array[], rev: string, bytes: Uint8Array[]) =>
        sql`insert into node (account, cid, rev, bytes) select ${account}::bigint, cid, ${rev}::text, bytes
          from unnest(${cids}::bytea[], ${bytes}::bytea[]) as rows (cid, bytes)
          on conflict (account, cid) do update set rev = excluded.rev`,
    ) as Statement<[account: number, cids: Uint8Array[], rev: string, bytes: Uint8Array[]], unknown>,
    dropNodes: db.prepare(
      (account: number, cids: Uint8Array[]) =>
        sql`delete from node where account = ${account} and cid = any(${cids}::bytea[])`,
    ) as Statement<[account: number, cids: Uint8Array[]], unknown>,
  }
}

export type RepoWrites = ReturnType<typeof prepareRepoWrites>
