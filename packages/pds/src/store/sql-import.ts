/** A whole repository put in place of another, in one transaction. */
import { latin1 } from '@millisky/core/bytes'
import type { Tx } from '@millisky/server/db/db'
import type { PdsDb, PdsSchema } from './schema.ts'
import type { EventAppender } from './sql-events.ts'
import type { RepoReads, RepoWrites } from './sql-repo-statements.ts'
import { addHeadStep, addRecordsSteps, Steps } from './sql-steps.ts'
import type { RecordWrite, RepoImport } from './store.ts'

/** Rows between two turns for everybody who only reads; writes of others wait for the whole. */
const ROWS_AT_ONCE = 200

export async function importRepo(
  db: PdsDb,
  reads: RepoReads,
  writes: RepoWrites,
  events: EventAppender,
  given: RepoImport,
): Promise<void> {
  await db.transaction(async (tx: Tx<PdsSchema>) => {
    const { account, head, now } = given
    const { rev } = head
    const first = new Steps()
    addHeadStep(first, writes, given)
    await first.run(tx)
    const old = await nodesIn(tx, reads, account)
    for (const nodes of pages(given.nodes())) {
      const steps = new Steps()
      for (const { cid, bytes } of nodes) {
        if (!old.delete(cid.key)) steps.add(writes.addNode, [account, cid.bytes, rev, bytes])
      }
      await steps.run(tx)
      await new Promise(setImmediate)
    }
    for (const cids of pages(old.values())) {
      const steps = new Steps()
      for (const cid of cids) steps.add(writes.dropNode, [account, cid])
      await steps.run(tx)
      await new Promise(setImmediate)
    }
    for (const records of pages<RecordWrite>(given.records())) {
      const steps = new Steps()
      await addRecordsSteps(steps, writes, tx, { account, rev, now }, records)
      await steps.run(tx)
      await new Promise(setImmediate)
    }
    await events.append(tx, given.events)
  })
}

async function nodesIn(tx: Tx<PdsSchema>, reads: RepoReads, account: number): Promise<Map<string, Uint8Array>> {
  const found = new Map<string, Uint8Array>()
  for (let after: Uint8Array = new Uint8Array(0), page = ROWS_AT_ONCE; page === ROWS_AT_ONCE; ) {
    const rows: { cid: Uint8Array }[] = await tx.all(reads.nodesAfter, [account, after, ROWS_AT_ONCE])
    for (const { cid } of rows) found.set(latin1(cid), cid)
    page = rows.length
    after = rows.at(-1)?.cid ?? after
  }
  return found
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
