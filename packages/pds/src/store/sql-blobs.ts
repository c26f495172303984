/** What is known about blobs, in SQL; their bytes lie elsewhere. */
import { Cid } from '@millisky/core/cid'
import type { Did, RepoPath } from '@millisky/core/syntax'
import type { Db } from '@millisky/server/db/db'
import type { BlobTable, PdsSchema } from './schema.ts'
import { accountOf } from './sql-accounts.ts'
import type { BlobStore, BlobUsage, StoredBlob } from './store.ts'

const NOTHING = new Uint8Array(0)

export function createBlobStore(db: Db<PdsSchema>): BlobStore {
  return { ...held(db), ...listed(db), ...measured(db) }
}

function held(db: Db<PdsSchema>): Pick<BlobStore, 'get' | 'put' | 'takedown' | 'removeLoose'> {
  const { kysely } = db
  const get = db.prepare((account: number, cid: Uint8Array) =>
    kysely.selectFrom('blob').selectAll().where('account', '=', account).where('cid', '=', cid),
  )
  const isReferred = db.prepare((account: number, cid: Uint8Array) =>
    kysely.selectFrom('record_blob').select('path').where('account', '=', account).where('cid', '=', cid).limit(1),
  )
  const put = db.prepare(
    (account: number, cid: Uint8Array, mime_type: string, size: number, loose_since: number | null) =>
      kysely
        .insertInto('blob')
        .values({ account, cid, mime_type, size, loose_since })
        .onConflict(conflict =>
          conflict
            .columns(['account', 'cid'])
            .doUpdateSet(eb => ({
              mime_type: eb.ref('excluded.mime_type'),
              loose_since: eb.ref('excluded.loose_since'),
            }))
            .where('blob.loose_since', 'is not', null),
        ),
  )
  const dropLoose = db.prepare((account: number, cid: Uint8Array, cutoff: number) =>
    kysely
      .deleteFrom('blob')
      .where('account', '=', account)
      .where('cid', '=', cid)
      .where('loose_since', '<', cutoff)
      .where('takedown', 'is', null),
  )
  return {
    async get(account, cid) {
      const row = await db.get(get, [account, cid.bytes])
      return row ? blobOf(row) : null
    },
    put: (account, { cid, mimeType, size }, now) =>
      db.transaction(async tx => {
        // A blob that an import has referred to before it was here is held from the start.
        const loose = (await tx.get(isReferred, [account, cid.bytes])) ? null : now
        await tx.run(put, [account, cid.bytes, mimeType, size, loose])
        return blobOf((await tx.get(get, [account, cid.bytes]))!)
      }),
    takedown: (account, cid, reference) =>
      db.transaction(async tx => {
        const update = tx.kysely.updateTable('blob').set({ takedown: reference }).where('account', '=', account)
        return (await update.where('cid', '=', cid.bytes).executeTakeFirst()).numUpdatedRows > 0n
      }),
    removeLoose: (account, cids, cutoff) =>
      db.transaction(async tx => {
        const gone: Cid[] = []
        for (const cid of cids) if ((await tx.run(dropLoose, [account, cid.bytes, cutoff])) > 0) gone.push(cid)
        return gone
      }),
  }
}

function listed(db: Db<PdsSchema>): Pick<BlobStore, 'referenced' | 'missing' | 'counts' | 'loose'> {
  const { kysely } = db
  return {
    async referenced(account, { since, after, limit }) {
      let query = kysely.selectFrom('record_blob').select('cid').distinct().where('account', '=', account)
      if (since !== undefined) query = query.where('rev', '>', since)
      const rows = await query
        .where('cid', '>', after?.bytes ?? NOTHING)
        .orderBy('cid')
        .limit(limit)
        .execute()
      return rows.map(row => Cid.fromBytes(row.cid))
    },
    async missing(account, { after, limit }) {
      const rows = await kysely
        .selectFrom('record_blob as r')
        .leftJoin('blob as b', join => join.onRef('b.account', '=', 'r.account').onRef('b.cid', '=', 'r.cid'))
        .select(eb => ['r.cid', eb.fn.min('r.path').as('path')])
        .where('r.account', '=', account)
        .where('r.cid', '>', after?.bytes ?? NOTHING)
        .where('b.cid', 'is', null)
        .groupBy('r.cid')
        .orderBy('r.cid')
        .limit(limit)
        .execute()
      return rows.map(row => ({ cid: Cid.fromBytes(row.cid), path: row.path as RepoPath }))
    },
    async counts(account) {
      const referenced = await kysely
        .selectFrom('record_blob')
        .select(eb => eb.fn.count('cid').distinct().as('n'))
        .where('account', '=', account)
        .executeTakeFirstOrThrow()
      const present = await kysely
        .selectFrom('blob')
        .select(eb => eb.fn.countAll().as('n'))
        .where('account', '=', account)
        .where('loose_since', 'is', null)
        .executeTakeFirstOrThrow()
      return { referenced: Number(referenced.n), present: Number(present.n) }
    },
    async loose(cutoff, limit) {
      const rows = await kysely
        .selectFrom('blob')
        .innerJoin('account', 'account.id', 'blob.account')
        .selectAll('blob')
        .select('account.did')
        .where('loose_since', '<', cutoff)
        .where('blob.takedown', 'is', null)
        .orderBy('loose_since')
        .limit(limit)
        .execute()
      return rows.map(row => ({ account: row.account, did: row.did as Did, blob: blobOf(row) }))
    },
  }
}

function measured(db: Db<PdsSchema>): Pick<BlobStore, 'usage' | 'usageOfAll'> {
  const { kysely } = db
  const sums = kysely.selectFrom('blob').select(eb => {
    const size = eb.fn.coalesce(eb.fn.sum('size'), eb.lit(0))
    return [
      eb.fn.countAll().as('blobs'),
      size.as('bytes'),
      eb.fn.count('loose_since').as('loose_blobs'),
      eb.fn.coalesce(eb.fn.sum('size').filterWhere('loose_since', 'is not', null), eb.lit(0)).as('loose_bytes'),
      eb.fn.count('takedown').as('taken_down'),
    ]
  })
  return {
    async usage(account) {
      return usageOf(await sums.where('account', '=', account).executeTakeFirstOrThrow())
    },
    async usageOfAll(limit) {
      const total = usageOf(await sums.executeTakeFirstOrThrow())
      const largest = sums.select('account as owner').groupBy('account').orderBy('bytes', 'desc').orderBy('account')
      const rows = await kysely
        .selectFrom(largest.limit(limit).as('sums'))
        .innerJoin('account', 'account.id', 'owner')
        .selectAll()
        .orderBy('bytes', 'desc')
        .orderBy('id')
        .execute()
      return { total, accounts: rows.map(row => ({ ...usageOf(row), account: accountOf(row) })) }
    },
  }
}

type Sum = number | string | bigint

/** Sums come as text from PostgreSQL. */
function usageOf(row: { blobs: Sum; bytes: Sum; loose_blobs: Sum; loose_bytes: Sum; taken_down: Sum }): BlobUsage {
  return {
    blobs: Number(row.blobs),
    bytes: Number(row.bytes),
    looseBlobs: Number(row.loose_blobs),
    looseBytes: Number(row.loose_bytes),
    takenDown: Number(row.taken_down),
  }
}

function blobOf(row: Pick<BlobTable, 'cid' | 'mime_type' | 'size' | 'loose_since' | 'takedown'>): StoredBlob {
  return {
    cid: Cid.fromBytes(row.cid),
    mimeType: row.mime_type,
    size: row.size,
    looseSince: row.loose_since,
    takedown: row.takedown,
  }
}
