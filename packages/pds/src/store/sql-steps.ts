/** The statements that change a repository. */
import { latin1 } from '@millisky/core/bytes'
import type { Cid } from '@millisky/core/cid'
import { createSlab } from '@millisky/core/slab'
import type { Executor, SyncTx, Tx } from '@millisky/server/db/db'
import type { Statement } from '@millisky/server/db/statement'
import type { PdsSchema } from './schema.ts'
import type { RepoWrites } from './sql-repo-statements.ts'
import { type AccountId, HeadMoved, type RecordWrite, type RepoWrite } from './store.ts'

const allocate = createSlab(16_384)

/** The bytes of a CID, to be given to the database soon: its driver would give each short byte string memory of its own. */
export function bytesOf(cid: Cid): Uint8Array {
  const bytes = allocate(cid.length)
  cid.copyTo(bytes, 0)
  return bytes
}

/** Statements to run one after the other, collected first: they do not depend on what the others give. */
export class Steps {
  readonly #list: { statement: Statement<never, unknown>; params: readonly unknown[]; movesHead: boolean }[] = []

  add<P extends readonly unknown[]>(statement: Statement<P, unknown>, params: P, movesHead = false): void {
    this.#list.push({ statement: statement as Statement<never, unknown>, params, movesHead })
  }

  /** SQLite answers at once: not to wait between statements saves some 8 % of the whole cost of a small write. */
  runSync(tx: SyncTx): void {
    for (const { statement, params, movesHead } of this.#list) {
      const changed = tx.run(statement, params as never)
      if (movesHead && changed !== 1) throw new HeadMoved()
    }
  }

  /** PostgreSQL is sent all of them before the first is answered; of those that fail the first counts. */
  async run(tx: Tx<PdsSchema>): Promise<void> {
    const sent = this.#list.map(async ({ statement, params, movesHead }) => {
      const changed = await tx.run(statement, params as never)
      if (movesHead && changed !== 1) throw new HeadMoved()
    })
    for (const result of await Promise.allSettled(sent)) if (result.status === 'rejected') throw result.reason
  }
}

/** @throws HeadMoved when run, if the head is another by then. */
export function addHeadStep(
  steps: Steps,
  s: RepoWrites,
  write: Pick<RepoWrite, 'account' | 'head' | 'prev' | 'commit'>,
) {
  const { account, head, prev, commit } = write
  const { rev, data } = head
  steps.add(s.moveHead, [rev, bytesOf(data), bytesOf(head.commit), commit.bytes, account, prev.commit.bytes], true)
}

/** The steps for some records, and for the blobs that they let go or hold. */
export async function addRecordsSteps(
  steps: Steps,
  s: RepoWrites,
  db: Pick<Executor<PdsSchema>, 'all'>,
  { account, rev, now }: { account: AccountId; rev: string; now: number },
  records: readonly RecordWrite[],
): Promise<void> {
  let letGo: Map<string, Uint8Array> | undefined
  for (const record of records) {
    if (record.action !== 'create') {
      letGo ??= new Map()
      const refs = await db.all(s.blobRefs, [account, record.path])
      for (const { cid } of refs) letGo.set(latin1(cid), cid)
      if (refs.length > 0) steps.add(s.dropBlobRefs, [account, record.path])
      steps.add(s.dropSubject, [account, record.path])
    }
    addRecordSteps(steps, s, account, rev, record)
  }
  if (letGo) for (const cid of letGo.values()) steps.add(s.loosenBlob, [now, account, cid])
}

function addRecordSteps(steps: Steps, s: RepoWrites, account: AccountId, rev: string, record: RecordWrite): void {
  const { action, path } = record
  if (action === 'delete') {
    steps.add(s.dropRecord, [account, path])
    return
  }
  if (action === 'create') steps.add(s.addRecord, [account, path, bytesOf(record.cid), rev, record.bytes])
  else steps.add(s.setRecord, [bytesOf(record.cid), rev, record.bytes, account, path])
  if (record.subject !== null) steps.add(s.addSubject, [account, path, record.subject])
  for (const cid of record.blobs) {
    steps.add(s.addBlobRef, [account, path, cid.bytes, rev])
    steps.add(s.holdBlob, [account, cid.bytes])
  }
}

/** What a long import writes between two turns for everybody else. */
export function* pages<T>(items: Iterable<T>, size: number): Generator<T[]> {
  let page: T[] = []
  for (const item of items) {
    page.push(item)
    if (page.length < size) continue
    yield page
    page = []
  }
  if (page.length > 0) yield page
}
