/**
 * The PDS on SQLite and on PostgreSQL, in turns, and what counting rates in PostgreSQL costs. The CPU is that of the PDS,
 * not of the database server. Only where MILLISKY_TEST_POSTGRES names a server.
 */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { openDb, type PostgresDb } from '@millisky/server/db/db'
import { testDatabases } from '@millisky/server/db/testing'
import { RateLimit } from '@millisky/server/rate'
import { createSharedCounters, RATE_MIGRATION } from '@millisky/server/rate-postgres'
import type { Report } from './codec.ts'
import { type Load, loadServers } from './http-load.ts'
import { compare, machine, printTable } from './measure.ts'
import { fill, POST, postRecord, startOurs, startPlc, type User } from './pds-servers.ts'

const headers = (token: string) => `host: pds\r\nauthorization: Bearer ${token}\r\n`

const LOADS: Load<User>[] = [
  {
    name: 'createRecord',
    calls: 2_000,
    request({ did, token }, n) {
      const body = JSON.stringify({ repo: did, collection: POST, record: postRecord(n) })
      const more = `content-type: application/json\r\ncontent-length: ${body.length}`
      return `POST /xrpc/com.atproto.repo.createRecord HTTP/1.1\r\n${headers(token)}${more}\r\n\r\n${body}`
    },
  },
  {
    name: 'getRecord',
    calls: 6_000,
    request: ({ did, rkeys }, n) =>
      `GET /xrpc/com.atproto.repo.getRecord?repo=${did}&collection=${POST}&rkey=${rkeys[n % rkeys.length]} HTTP/1.1\r\nhost: pds\r\n\r\n`,
  },
]

export async function run(report: Report): Promise<void> {
  const postgres = testDatabases().find(({ name }) => name === 'postgres')!
  if (postgres.skip) return console.log(`PDS on PostgreSQL: ${postgres.skip}`)
  const ends: (() => Promise<void>)[] = []
  const cleanup = { after: (fn: () => Promise<void>) => void ends.unshift(fn) }
  try {
    const url = await postgres.url(cleanup)
    const folder = await mkdtemp(join(tmpdir(), 'millisky-bench-'))
    cleanup.after(() => rm(folder, { recursive: true, force: true }))
    const plc = await startPlc()
    cleanup.after(() => plc.close())
    const sqlite = await startOurs(join(folder, 'sqlite'), plc, { name: 'SQLite' })
    cleanup.after(() => sqlite.stop())
    const other = { name: 'PostgreSQL', more: { PDS_DATABASE_URL: url } }
    const filled = []
    for (const server of [sqlite, await startOurs(join(folder, 'postgres'), plc, other)]) {
      if (server !== sqlite) cleanup.after(() => server.stop())
      filled.push({ server, users: await fill(server, 20, 200) })
    }
    for (const load of LOADS) report(`PDS, ${load.name}, calls per CPU-second`, await loadServers(filled, load))
    await rates(report, await postgres.url(cleanup))
  } finally {
    for (const end of ends) await end()
  }
}

async function rates(report: Report, url: string): Promise<void> {
  const db = (await openDb<unknown>(url, { migrations: [RATE_MIGRATION] })) as PostgresDb<unknown>
  const { store } = createSharedCounters(db, { log: { warn: () => {} }, now: Date.now })
  const size = { points: 3_000, windowMs: 300_000 }
  const [memory, shared] = [new RateLimit('all', size), new RateLimit('all', size, store)]
  // A caller in every hundred calls: what it takes in advance is partly lost.
  let n = 0
  const key = () => `2001:db8:${Math.floor(n++ / 100)}::/64`
  const rows = await compare([
    { name: 'memory', fn: () => memory.take(key()) },
    { name: 'PostgreSQL', fn: () => shared.take(key()) },
  ])
  await db.close()
  report('counting one call against a limit', rows)
}

if (import.meta.main) {
  console.log(machine())
  await run((title, rows, unit) => printTable(title, rows, unit))
}
