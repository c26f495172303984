/**
 * The event log and the database beneath it: events appended and read per CPU-second, whole process, threads of the file system included.
 *
 * Rows of one table carry the same 5 KB events, so the rates compare drivers; the wall-clock rates say what this machine's disk takes.
 */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { encodeFrame, withSeq } from '@millisky/core/event'
import { openDb, type SqliteDb } from '@millisky/server/db/db'
import type { Log } from '@millisky/server/log/log'
import { type FsyncPolicy, openSegmentLog } from '@millisky/server/log/segments'
import { EVENT_LOG_MIGRATION, openSqlLog } from '@millisky/server/log/sql'
import type { Report } from './codec.ts'
import { compare, type Measured, machine, printTable } from './measure.ts'

const FRAME_BYTES = 5_124
const BATCH = 100
const ROUNDS = 5

const frame = encodeFrame({ t: '#commit', body: { seq: 0, pad: new Uint8Array(FRAME_BYTES - 33).fill(7) } })
const entries = Array.from({ length: BATCH }, (_, i) => ({ frame, account: i, did: `did:plc:account${i}` }))

/** What `fn` gives per CPU-second and per second, over some rounds after a first one that does not count. */
async function rates(name: string, fn: () => Promise<number>): Promise<[cpu: Measured, wall: Measured]> {
  const cpus: number[] = []
  const walls: number[] = []
  for (let round = -1; round < ROUNDS; round++) {
    const [cpu, since] = [process.cpuUsage(), performance.now()]
    const done = await fn()
    const { user, system } = process.cpuUsage(cpu)
    if (round < 0) continue
    cpus.push((done / (user + system)) * 1e6)
    walls.push((done / (performance.now() - since)) * 1e3)
  }
  return [measured(name, cpus), measured(name, walls)]
}

function measured(name: string, rates: number[]): Measured {
  const sorted = rates.sort((a, b) => a - b)
  return { name, opsPerCpuSecond: sorted[sorted.length >> 1]!, low: sorted[0]!, high: sorted.at(-1)! }
}

async function inFolder<T>(fn: (folder: string) => Promise<T>): Promise<T> {
  const folder = await mkdtemp(join(tmpdir(), 'millisky-bench-'))
  try {
    return await fn(folder)
  } finally {
    await rm(folder, { recursive: true })
  }
}

const options = { withSeq, recover: () => null, now: Date.now, segmentBytes: 128 << 20 }

/** Four writers with a batch each, as verifiers deliver them. */
const appendSegments = (fsync: FsyncPolicy, name: string) =>
  inFolder(async folder => {
    const log = await openSegmentLog(folder, { ...options, fsync })
    const result = await rates(name, async () => {
      await Promise.all(
        [0, 1, 2, 3].map(async () => {
          for (let i = 0; i < 50; i++) await log.append(entries)
        }),
      )
      return 200 * BATCH
    })
    await log.close()
    return result
  })

/** Transactions of `size` events, `writers` at a time. */
const appendSql = (size: number, writers: number, name: string) =>
  inFolder(async folder => {
    const db = await openDb<unknown>(join(folder, 'log.sqlite'), { migrations: [EVENT_LOG_MIGRATION] })
    const log = await openSqlLog(db, { withSeq, now: Date.now, pollMs: 0 })
    const some = entries.slice(0, size)
    const each = 2_000 / size / writers
    const result = await rates(name, async () => {
      await Promise.all(
        Array.from({ length: writers }, async () => {
          for (let i = 0; i < each; i++) await db.transaction(tx => log.append(tx, some))
        }),
      )
      return 2_000
    })
    await log.close()
    await db.close()
    return result
  })

/** Reads everything; gives megabytes. */
async function readThrough(log: Log, bytes: number): Promise<number> {
  let total = 0
  for (let after = 0; ; ) {
    const batch = await log.read(after, { bytes })
    for (const part of batch.wire) total += part.length
    if (batch.last === after) return total / 1e6
    after = batch.last
  }
}

const replaySegments = () =>
  inFolder(async folder => {
    const filling = await openSegmentLog(folder, { ...options, fsync: 'none' })
    for (let i = 0; i < 60_000; i += BATCH) await filling.append(entries)
    await filling.close()
    const log = await openSegmentLog(folder, { ...options, cacheBytes: 0 })
    const masked = await openMasked(folder, log)
    const rows = [
      ...(await rates('segments, 256 KiB a read', () => readThrough(log, 256 << 10))),
      ...(await rates('segments, 1 MiB a read', () => readThrough(log, 1 << 20))),
      ...masked,
    ]
    await log.close()
    return rows
  })

async function openMasked(_folder: string, log: Awaited<ReturnType<typeof openSegmentLog>>): Promise<Measured[]> {
  log.mask(7)
  const rows = await rates('segments, 256 KiB a read, one account masked', () => readThrough(log, 256 << 10))
  log.unmask(7)
  return rows
}

const replaySql = () =>
  inFolder(async folder => {
    const db = await openDb<unknown>(join(folder, 'log.sqlite'), { migrations: [EVENT_LOG_MIGRATION] })
    const filling = await openSqlLog(db, { withSeq, now: Date.now, pollMs: 0 })
    for (let i = 0; i < 20_000; i += BATCH) await db.transaction(tx => filling.append(tx, entries))
    await filling.close()
    const log = await openSqlLog(db, { withSeq, now: Date.now, pollMs: 0 })
    const rows = await rates('sql on SQLite, 256 KiB a read', () => readThrough(log, 256 << 10))
    await log.close()
    await db.close()
    return rows
  })

const readLive = () =>
  inFolder(async folder => {
    const log = await openSegmentLog(folder, { ...options, fsync: 'none' })
    for (let i = 0; i < 3_000; i += 10) await log.append(entries.slice(0, 10))
    let after = 1_000
    const rows = await compare(
      [
        { name: 'from memory, one batch', fn: () => log.read(after, { bytes: 60_000 }) },
        { name: 'from memory, 256 KiB', fn: () => log.read(after, { bytes: 256 << 10 }) },
        { name: 'from memory, in the middle of a batch', fn: () => log.read(after + 3, { bytes: 60_000 }) },
      ],
      { seconds: 0.5 },
    )
    after = 0
    await log.close()
    return rows
  })

interface Items {
  item: { id: number; name: string; body: Uint8Array }
}

const statements = async () => {
  const db = (await openDb<Items>(':memory:', {
    migrations: [
      {
        name: 'items',
        async up(schema, column) {
          await schema.schema
            .createTable('item')
            .addColumn('id', column.bigint, c => c.primaryKey())
            .addColumn('name', column.text)
            .addColumn('body', column.bytes)
            .execute()
        },
      },
    ],
  })) as SqliteDb<Items>
  const put = db.prepare((id: number, name: string, body: Uint8Array) =>
    db.kysely.insertInto('item').values({ id, name, body }),
  )
  const get = db.prepare((id: number) => db.kysely.selectFrom('item').selectAll().where('id', '=', id))
  db.transactionSync(tx => {
    for (let id = 0; id < 10_000; id++) tx.run(put, [id, `name${id}`, frame.subarray(0, 300)])
  })
  let i = 0
  const next = () => (i = (i + 7_919) % 10_000)
  const rows = await compare(
    [
      { name: 'prepared, synchronous', fn: () => db.getSync(get, [next()]) },
      { name: 'prepared, awaited', fn: async () => await db.get(get, [next()]) },
      { name: 'Kysely', fn: () => db.kysely.selectFrom('item').selectAll().where('id', '=', next()).execute() },
    ],
    { seconds: 1 },
  )
  await db.close()
  return rows
}

export async function run(report: Report): Promise<void> {
  const appended = [
    await appendSegments('none', 'segments, no fsync'),
    await appendSegments({ intervalMs: 100 }, 'segments, fsync each 100 ms'),
    await appendSegments('batch', 'segments, fsync before visible'),
    await appendSql(1, 50, 'sql on SQLite, 1 event a transaction, 50 writers'),
    await appendSql(1, 1, 'sql on SQLite, 1 event a transaction, 1 writer'),
    await appendSql(100, 1, 'sql on SQLite, 100 events a transaction'),
  ]
  const title = `append events of ${frame.length} bytes`
  report(
    `${title}, per CPU-second`,
    appended.map(([cpu]) => cpu),
  )
  report(
    `${title}, per second of wall clock`,
    appended.map(([, wall]) => wall),
  )
  const replayed = [...(await replaySegments()), ...(await replaySql())]
  report(
    'read back everything from files, MB per CPU-second',
    replayed.filter((_, i) => i % 2 === 0),
  )
  report(
    'read back everything from files, MB per second of wall clock',
    replayed.filter((_, i) => i % 2 === 1),
  )
  report('read near the head', await readLive())
  report('one row of 300 bytes by key from SQLite', await statements())
}

if (import.meta.main) {
  console.log(machine())
  await run((title, rows) => printTable(title, rows, ''))
}
