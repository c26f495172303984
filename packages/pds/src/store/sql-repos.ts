/** Repositories in SQL. */
import type { Block } from '@millisky/core/blocks'
import { Cid } from '@millisky/core/cid'
import type { Curve } from '@millisky/core/crypto'
import type { Did, Nsid, RepoPath, Tid } from '@millisky/core/syntax'
import type { Db, Executor } from '@millisky/server/db/db'
import type { PdsDb, PdsSchema, RecordTable } from './schema.ts'
import { accountOf } from './sql-accounts.ts'
import type { EventAppender } from './sql-events.ts'
import { importRepo } from './sql-import.ts'
import { packOf, packOrNull } from './sql-packs.ts'
import { prepareRepoReads, prepareRepoWrites, type RepoReads, type RepoWrites } from './sql-repo-statements.ts'
import { addHeadStep, addRecordsSteps, bytesOf, Steps } from './sql-steps.ts'
import {
  type AccountId,
  type ListRecords,
  type RepoSnapshot,
  type RepoState,
  type RepoStore,
  type RepoWrite,
  type StoredRecord,
  statusOf,
} from './store.ts'

/** The records of a collection, as bounds of paths, both excluded: `/` is followed by `0`. */
const boundsOf = (collection: Nsid) => ({ above: `${collection}/`, below: `${collection}0` })

const ROWS_AT_ONCE = 1_000

export function createRepoStore(db: PdsDb, events: EventAppender): RepoStore {
  const reads = prepareRepoReads(db)
  const writes = prepareRepoWrites(db)
  return {
    async state(did) {
      const row = await db.get(reads.state, [did])
      return row ? stateOf(did, row) : null
    },
    async commit(write) {
      const steps = await stepsOf(db, writes, write)
      if (db.kind === 'sqlite') {
        await db.transactionGrouped(tx => {
          steps.runSync(tx)
          events.appendSync(tx, write.events)
        })
      } else {
        await db.transaction(async tx => {
          await steps.run(tx)
          await events.append(tx, write.events)
        })
      }
    },
    async record(account, path) {
      const row = await db.get(reads.record, [account, path])
      return row ? recordOf(row) : null
    },
    async records(account, list) {
      return (await listRecords(db, reads, account, list)).map(recordOf)
    },
    import: given => importRepo(db, reads, writes, events, given),
    async paths(account) {
      const found: [RepoPath, Cid][] = []
      for (let after = '', page = ROWS_AT_ONCE; page === ROWS_AT_ONCE; ) {
        const rows = await db.all(reads.pathsAfter, [account, after, ROWS_AT_ONCE])
        for (const row of rows) found.push([row.path as RepoPath, Cid.fromBytes(row.cid)])
        page = rows.length
        after = rows.at(-1)?.path ?? after
      }
      return found
    },
    collections: account => listCollections(db, reads, account),
    async recordsAbout(account, collection, subject) {
      const { above, below } = boundsOf(collection)
      return (await db.all(reads.about, [account, subject, above, below])).map(row => row.path as RepoPath)
    },
    async allNodes(account) {
      const found: Block[] = []
      for (let after: Uint8Array = new Uint8Array(0), page = ROWS_AT_ONCE; page === ROWS_AT_ONCE; ) {
        const rows = await db.all(reads.nodesAfter, [account, after, ROWS_AT_ONCE])
        for (const { cid, bytes } of rows) found.push({ cid: Cid.fromBytes(cid), bytes })
        page = rows.length
        after = rows.at(-1)?.cid ?? after
      }
      return found
    },
    async nodes(account, cids) {
      const found: Block[] = []
      for (const cid of cids) {
        const row = await db.get(reads.node, [account, cid.bytes])
        if (row) found.push({ cid, bytes: row.bytes })
      }
      return found
    },
    async commitBlock(account) {
      const row = await db.get(reads.commit, [account])
      return row ? { cid: Cid.fromBytes(row.cid), bytes: row.bytes } : null
    },
    async counts(account) {
      const count = async (table: 'node' | 'record') => {
        const query = db.kysely.selectFrom(table).select(eb => eb.fn.countAll<number>().as('n'))
        return Number((await query.where('account', '=', account).executeTakeFirstOrThrow()).n)
      }
      return { nodes: await count('node'), records: await count('record') }
    },
    async listHeads(after, limit) {
      const rows = await db.kysely
        .selectFrom('account as a')
        .innerJoin('repo as r', 'r.account', 'a.id')
        .selectAll('a')
        .select(['r.cid', 'r.rev'])
        .where('a.id', '>', after)
        .orderBy('a.id')
        .limit(limit)
        .execute()
      return rows.map(row => ({ account: accountOf(row), commit: Cid.fromBytes(row.cid), rev: row.rev as Tid }))
    },
    listByCollection: (collection, after, bounds) => listByCollection(db, collection, after, bounds),
    snapshot: (account, read) => db.snapshot(async view => read(await snapshotOf(view, reads, account))),
  }
}

/**
 * What is to be done for a write. Blob references that are there are read here, before the transaction: as long as the
 * head is the one the write was computed on, they are what they were.
 */
async function stepsOf(db: PdsDb, s: RepoWrites, write: RepoWrite): Promise<Steps> {
  const { account, now } = write
  const { rev } = write.head
  const steps = new Steps()
  addHeadStep(steps, s, write)
  addNodeSteps(steps, s, write)
  await addRecordsSteps(steps, s, db, { account, rev, now }, write.records)
  return steps
}

/** One statement for all of them where each is a message to another process. */
function addNodeSteps(steps: Steps, s: RepoWrites, { account, head, lost, gained }: RepoWrite): void {
  const { rev } = head
  if (s.many) {
    const gone = lost.map(cid => cid.bytes)
    const come = [gained.map(({ cid }) => cid.bytes), gained.map(({ bytes }) => bytes)] as const
    if (gone.length > 0) steps.add(s.many.dropNodes, [account, gone])
    if (gained.length > 0) steps.add(s.many.addNodes, [account, come[0], rev, come[1]])
    return
  }
  for (const cid of lost) steps.add(s.dropNode, [account, cid.bytes])
  for (const { cid, bytes } of gained) steps.add(s.addNode, [account, bytesOf(cid), rev, bytes])
}

function listRecords(db: Db<PdsSchema>, s: RepoReads, account: AccountId, list: ListRecords) {
  const { collection, limit, cursor } = list
  const { above, below } = boundsOf(collection)
  const start = cursor === undefined ? undefined : `${collection}/${cursor}`
  return list.reverse
    ? db.all(s.recordsUp, [account, start ?? above, below, limit])
    : db.all(s.recordsDown, [account, above, start ?? below, limit])
}

async function listCollections(db: Db<PdsSchema>, s: RepoReads, account: AccountId): Promise<Nsid[]> {
  const found: Nsid[] = []
  for (let after = ''; ; ) {
    const row = await db.get(s.pathAfter, [account, after])
    if (!row) return found.sort()
    const collection = row.path.slice(0, row.path.indexOf('/')) as Nsid
    found.push(collection)
    after = boundsOf(collection).below
  }
}

/** One step in the primary key for each account, however many records it has. */
async function listByCollection(
  { kysely }: Db<PdsSchema>,
  collection: Nsid,
  after: AccountId,
  { limit, look }: { limit: number; look: number },
) {
  const { above, below } = boundsOf(collection)
  const part = kysely.selectFrom('account').where('id', '>', after).orderBy('id').limit(look)
  const rows = await kysely
    .selectFrom(part.select(['id', 'did', 'takedown', 'suspended_at', 'deactivated_at']).as('a'))
    .select(['a.id', 'a.did'])
    .where('a.takedown', 'is', null)
    .where('a.suspended_at', 'is', null)
    .where('a.deactivated_at', 'is', null)
    .where(({ exists, selectFrom }) =>
      exists(
        selectFrom('record as r')
          .select('r.account')
          .whereRef('r.account', '=', 'a.id')
          .where('r.path', '>', above)
          .where('r.path', '<', below),
      ),
    )
    .orderBy('a.id')
    .limit(limit)
    .execute()
  const found = rows.map(({ id, did }) => ({ id, did: did as Did }))
  if (found.length === limit) return { found, last: found.at(-1)!.id }
  const looked = await part.select('id').execute()
  return { found, last: looked.length === look ? looked.at(-1)!.id : null }
}

async function snapshotOf(view: Executor<PdsSchema>, reads: RepoReads, account: AccountId): Promise<RepoSnapshot> {
  const row = await view.get(reads.commit, [account])
  if (!row) throw new Error(`no repository of account ${account}`)
  const commit = Cid.fromBytes(row.cid)
  return {
    commit: { cid: commit, bytes: row.bytes },
    head: { did: row.did as Did, commit, rev: row.rev as Tid, data: Cid.fromBytes(row.data) },
    node(cid) {
      const found = view.get(reads.node, [account, cid.bytes])
      return found instanceof Promise ? found.then(row => nodeOf(cid, row)) : nodeOf(cid, found)
    },
    record(path) {
      const row = view.get(reads.record, [account, path])
      return row instanceof Promise ? row.then(row => (row ? recordOf(row) : null)) : row ? recordOf(row) : null
    },
    records(after, limit) {
      const rows = view.all(reads.recordsAfter, [account, after, limit])
      return rows instanceof Promise ? rows.then(rows => rows.map(recordOf)) : rows.map(recordOf)
    },
    has: cid => cid.equals(commit) || isThere(view, reads, [account, cid.bytes]),
    block: cid => (cid.equals(commit) ? row.bytes : findBlock(view, reads, [account, cid.bytes])),
    page(from, below) {
      const row = view.get(reads.recordPack, [account, from, below])
      return row instanceof Promise ? row.then(packOf) : packOf(row)
    },
    nodes(cids, since) {
      const row = view.get(reads.nodePack, [since, account, cids])
      return row instanceof Promise ? row.then(packOf) : packOf(row)
    },
    fewNodes() {
      const row = view.get(reads.fewNodesPack, [account])
      return row instanceof Promise ? row.then(packOrNull) : packOrNull(row)
    },
  }
}

type BlockName = [account: AccountId, cid: Uint8Array]

async function isThere(view: Executor<PdsSchema>, reads: RepoReads, name: BlockName): Promise<boolean> {
  return ((await view.get(reads.hasNode, name)) ?? (await view.get(reads.hasRecord, name))) !== undefined
}

async function findBlock(view: Executor<PdsSchema>, reads: RepoReads, name: BlockName): Promise<Uint8Array | null> {
  return ((await view.get(reads.node, name)) ?? (await view.get(reads.recordByCid, name)))?.bytes ?? null
}

function nodeOf(cid: Cid, row: { rev: string; bytes: Uint8Array } | undefined): { rev: Tid; bytes: Uint8Array } {
  if (!row) throw new Error(`tree node ${cid} is not in the database`)
  return row as { rev: Tid; bytes: Uint8Array }
}

function recordOf(row: Pick<RecordTable, 'path' | 'cid' | 'rev' | 'bytes'>): StoredRecord {
  return { path: row.path as RepoPath, cid: Cid.fromBytes(row.cid), rev: row.rev as Tid, bytes: row.bytes }
}

interface StateRow {
  id: number
  deactivated_at: number | null
  suspended_at: number | null
  takedown: string | null
  rev: string
  cid: Uint8Array
  data: Uint8Array
  key_curve: string
  key_secret: Uint8Array
}

function stateOf(did: Did, row: StateRow): RepoState {
  return {
    account: row.id,
    did,
    status: statusOf({ takedown: row.takedown, suspendedAt: row.suspended_at, deactivatedAt: row.deactivated_at }),
    head: { did, commit: Cid.fromBytes(row.cid), rev: row.rev as Tid, data: Cid.fromBytes(row.data) },
    key: { curve: row.key_curve as Curve, secret: row.key_secret },
  }
}
