/**
 * The PDS as clients meet it: HTTP over loopback, sessions, lexicon checks, the tree, signatures, SQLite that syncs to disk.
 * Servers are processes of their own, whose CPU seconds are counted; the clients are here. The reference runs beside ours
 * where MILLISKY_REFERENCE_PDS names its folder; else its column is missing.
 */
import { spawn } from 'node:child_process'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { decodeFrame, readCommit } from '@millisky/core/event'
import { WebSocket } from 'ws'
import type { Report } from './codec.ts'
import { Client, type Load, loadServers } from './http-load.ts'
import { type Measured, machine, printTable } from './measure.ts'
import { fill, POST, postRecord, type Server, startOurs, startPlc, startReference, type User } from './pds-servers.ts'

/** Records each account has from the start: a tree some four layers high. */
const RECORDS = 300
const ACCOUNTS = 40
const WRITERS = 16
/** So many that the first ones, on connections that are only being opened, are far below the hundredth that counts. */
const WRITES_TIMED = 10_000

const authorized = (token: string) => `host: pds\r\nauthorization: Bearer ${token}\r\n`

function createRecord({ did, token }: User, n: number): string {
  const body = JSON.stringify({ repo: did, collection: POST, record: postRecord(n) })
  const headers = `content-type: application/json\r\ncontent-length: ${body.length}`
  return `POST /xrpc/com.atproto.repo.createRecord HTTP/1.1\r\n${authorized(token)}${headers}\r\n\r\n${body}`
}

const get = (method: string, query: string, headers = 'host: pds\r\n') =>
  `GET /xrpc/${method}${query && `?${query}`} HTTP/1.1\r\n${headers}\r\n`

const LOADS: Load<User>[] = [
  { name: 'createRecord', calls: 4_000, request: createRecord },
  {
    name: 'getRecord',
    calls: 20_000,
    request: ({ did, rkeys }, n) =>
      get('com.atproto.repo.getRecord', `repo=${did}&collection=${POST}&rkey=${rkeys[n % rkeys.length]}`),
  },
  {
    name: 'listRecords of 50',
    calls: 4_000,
    request: ({ did }) => get('com.atproto.repo.listRecords', `repo=${did}&collection=${POST}&limit=50`),
  },
  {
    name: 'getSession',
    calls: 20_000,
    request: ({ token }) => get('com.atproto.server.getSession', '', authorized(token)),
  },
]

/** Milliseconds of wall time in order: replies under concurrent writers, and from the reply to the frame on the firehose. */
async function timedWrites(server: Server, users: User[]): Promise<{ replies: number[]; frames: number[] }> {
  const socket = new WebSocket(`${server.url.replace('http', 'ws')}/xrpc/com.atproto.sync.subscribeRepos`)
  const seen = new Map<string, number>()
  socket.on('message', (data: Buffer) => {
    const at = performance.now()
    const frame = decodeFrame(data)
    if (frame.t === '#commit') seen.set(readCommit(frame.body).commit.toString(), at)
  })
  await new Promise(resolve => socket.once('open', resolve))
  const replies: number[] = []
  const answered = new Map<string, number>()
  let sent = 0
  await Promise.all(
    Array.from({ length: WRITERS }, async (_, writer) => {
      const client = new Client(Number(new URL(server.url).port))
      while (sent < WRITES_TIMED * server.pace) {
        const n = sent++
        const start = performance.now()
        const answer = await client.call(createRecord(users[(writer * 2 + (n & 1)) % users.length]!, n))
        const at = performance.now()
        replies.push(at - start)
        answered.set(/"commit":\{"cid":"([a-z0-9]+)"/.exec(answer.toString())![1]!, at)
      }
      client.close()
    }),
  )
  for (let left = 50; left > 0 && seen.size < answered.size; left--) await new Promise(r => setTimeout(r, 100))
  socket.terminate()
  const frames = [...answered].map(([cid, at]) => Math.max(0, (seen.get(cid) ?? Number.POSITIVE_INFINITY) - at))
  return { replies: replies.sort((a, b) => a - b), frames: frames.sort((a, b) => a - b) }
}

function quantiles(name: string, sorted: readonly number[]): Measured {
  const at = (q: number) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * q))]!
  return { name, opsPerCpuSecond: at(0.99), low: at(0.5), high: sorted.at(-1)! }
}

/** MB that the daemon holds a moment after its start, as operators run it. */
async function idleMemory(folder: string): Promise<number> {
  const command = fileURLToPath(new URL('../packages/cli/bin/millisky', import.meta.url))
  const flags = ['--port', '0', '--data-directory', folder, '--dev-mode', '--no-invite-required']
  const daemon = spawn(command, ['pds', ...flags], { stdio: ['ignore', 'pipe', 'inherit'] })
  for await (const line of createInterface({ input: daemon.stdout })) if (line.includes('is listening')) break
  await new Promise(resolve => setTimeout(resolve, 1_000))
  const status = await readFile(`/proc/${daemon.pid}/status`, 'utf8')
  daemon.kill()
  await new Promise(resolve => daemon.once('exit', resolve))
  return (Number(/VmRSS:\s+(\d+)/.exec(status)![1]) * 1024) / 1e6
}

async function memory(name: string, server: Server): Promise<Measured> {
  const mb = await server.memory()
  return { name: `${name}, ${server.name}`, opsPerCpuSecond: mb, low: mb, high: mb }
}

export async function run(report: Report): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), 'millisky-bench-'))
  const plc = await startPlc()
  try {
    // The first start compiles; from then on the compiled code is on disk.
    const [first, mb] = [await idleMemory(join(folder, 'idle')), await idleMemory(join(folder, 'idle'))]
    report(
      'PDS, memory when idle',
      [{ name: 'resident', opsPerCpuSecond: mb, low: Math.min(mb, first), high: Math.max(mb, first) }],
      'MB',
    )
    const started = [await startOurs(join(folder, 'ours'), plc), await startReference(join(folder, 'reference'), plc)]
    const servers = started.filter(server => server !== null)
    try {
      const filled = []
      for (const server of servers) filled.push({ server, users: await fill(server, ACCOUNTS, RECORDS) })
      for (const load of LOADS) report(`PDS, ${load.name}, calls per CPU-second`, await loadServers(filled, load))
      for (const { server, users } of filled) {
        const { replies, frames } = await timedWrites(server, users)
        report(
          `PDS, ${WRITERS} writers, wall time: p99 [p50-max]`,
          [
            quantiles(`createRecord, ${server.name}`, replies),
            quantiles(`from reply to frame, ${server.name}`, frames),
          ],
          'ms',
        )
      }
      report('PDS, memory after the run', await Promise.all(servers.map(server => memory('resident', server))), 'MB')
    } finally {
      await Promise.all(servers.map(server => server.stop()))
    }
  } finally {
    await plc.close()
    await rm(folder, { recursive: true, force: true })
  }
}

if (import.meta.main) {
  console.log(machine())
  await run((title, rows, unit) => printTable(title, rows, unit))
}
