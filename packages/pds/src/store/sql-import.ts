/** A whole repository put in place of another. */
import { latin1 } from '@millisky/core/bytes'
import type { Executor, Tx } from '@millisky/server/db/db'
import type { PdsDb, PdsSchema } from './schema.ts'
import type { EventAppender } from './sql-events.ts'
import type { RepoReads, RepoWrites } from './sql-repo-statements.ts'
import { addHeadStep, addRecordsSteps, pages, Steps } from './sql-steps.ts'
import type { RecordWrite, RepoImport } from './store.ts'

/** Rows between two turns for everybody else. */
const ROWS_AT_ONCE = 500

export async function importRepo(
  db: PdsDb,
  reads: RepoReads,
  writes: RepoWrites,
  events: EventAppender,
  given: RepoImport,
): Promise<void> {
  const finish = async (tx: Tx<PdsSchema>, left: Iterable<Uint8Array>) => {
    const steps = new Steps()
    addHeadStep(steps, writes, given)
    for (const cid of left) steps.add(writes.dropNode, [given.account, cid])
    await steps.run(tx)
    await events.append(tx, given.events)
  }
  // With PostgreSQL nobody waits for a long transaction, and another process may import at the same time.
  if (given.hidden && db.kind === 'sqlite') {
    const left = await addRows(db, reads, writes, given, steps => db.transaction(tx => steps.run(tx)))
    await db.transaction(tx => finish(tx, left))
    return
  }
  await db.transaction(async (tx: Tx<PdsSchema>) => {
    await finish(tx, await addRows(tx, reads, writes, given, steps => steps.run(tx)))
  })
}

/** Writes nodes and records, a page at a time. Returns the nodes that the new tree does not have. */
async function addRows(
  read: Executor<PdsSchema>,
  reads: RepoReads,
  writes: RepoWrites,
  { account, head, now, ...given }: RepoImport,
  write: (steps: Steps) => Promise<void>,
): Promise<Iterable<Uint8Array>> {
  const { rev } = head
  const old = await nodesIn(read, reads, account)
  for (const nodes of pages(given.nodes(), ROWS_AT_ONCE)) {
    const steps = new Steps()
    for (const { cid, bytes } of nodes) {
      if (!old.delete(cid.key)) steps.add(writes.addNode, [account, cid.bytes, rev, bytes])
    }
    await write(steps)
    await new Promise(setImmediate)
  }
  for (const records of pages<RecordWrite>(given.records(), ROWS_AT_ONCE)) {
    const steps = new Steps()
    await addRecordsSteps(steps, writes, read, { account, rev, now }, records)
    await write(steps)
    await new Promise(setImmediate)
  }
  return old.values()
}

async function nodesIn(read: Executor<PdsSchema>, reads: RepoReads, account: number): Promise<Map<string, Uint8Array>> {
  const found = new Map<string, Uint8Array>()
  for (let after: Uint8Array = new Uint8Array(0), page = ROWS_AT_ONCE; page === ROWS_AT_ONCE; ) {
    const rows: { cid: Uint8Array }[] = await read.all(reads.nodesAfter, [account, after, ROWS_AT_ONCE])
    for (const { cid } of rows) found.set(latin1(cid), cid)
    page = rows.length
    after = rows.at(-1)?.cid ?? after
  }
  return found
}
