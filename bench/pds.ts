/**
 * The PDS as clients meet it: HTTP over loopback, sessions, lexicon checks, the tree, signatures, SQLite that syncs to disk.
 * The server is a process of its own, whose CPU seconds are counted; the clients are here. The reference measures 190
 * createRecord and 906 getRecord per CPU-second on a machine like that of docs/performance.md.
 */
import { type ChildProcess, fork, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { connect, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { asDid, asHandle, asNsid, type Did } from '@millisky/core/syntax'
import { settings as settingsTable } from '@millisky/pds/config'
import { createPds, type Pds } from '@millisky/pds/main'
import { prepareRecord } from '@millisky/pds/records'
import { SCOPES, Tokens } from '@millisky/pds/tokens'
import { readSettings } from '@millisky/server/config'
import { silentLog } from '@millisky/server/trace'
import type { Report } from './codec.ts'
import { type Measured, machine, printTable } from './measure.ts'

const ACCOUNTS = 100
/** Records each account has from the start: a tree some four layers high. */
const RECORDS = 300
const CONNECTIONS = 64
const ROUNDS = 5
const WRITES = 4_000
const READS = 20_000
const JWT_SECRET = 'a secret of benchmarks'
const POST = asNsid('app.bsky.feed.post')

interface User {
  did: Did
  token: string
  rkeys: string[]
}

// ---- the server's process ----

async function serve(folder: string): Promise<void> {
  const settings = readSettings(settingsTable, [], {
    env: {
      PDS_PORT: '0',
      PDS_BIND: '127.0.0.1',
      PDS_DATA_DIRECTORY: folder,
      PDS_INVITE_REQUIRED: 'false',
      PDS_JWT_SECRET: JWT_SECRET,
      // One address and a few accounts do the work of thousands.
      PDS_RATE_LIMITS_ENABLED: 'false',
    },
  })
  const pds = await createPds(settings, { log: silentLog })
  await pds.listen()
  process.on('message', async (message: string) => {
    if (message === 'fill') process.send!({ users: await fill(pds) })
    else if (message === 'cpu') process.send!({ seconds: cpuSeconds() })
    else {
      await pds.close()
      process.exit()
    }
  })
  process.send!({ url: pds.url })
}

function cpuSeconds(): number {
  const { user, system } = process.cpuUsage()
  return (user + system) / 1e6
}

const BASE32 = 'abcdefghijklmnopqrstuvwxyz234567'

async function fill(pds: Pds): Promise<User[]> {
  const tokens = new Tokens(JWT_SECRET, pds.names.did, Date.now)
  return Promise.all(
    Array.from({ length: ACCOUNTS }, async (_, n): Promise<User> => {
      const secret = createHash('sha256').update(`user ${n}`).digest()
      const did = asDid(`did:plc:${Array.from(secret.subarray(0, 24), byte => BASE32[byte & 31]).join('')}`)
      const key = { curve: 'k256' as const, secret: new Uint8Array(secret) }
      await pds.lifecycle.open({ did, handle: asHandle(`user${n}.test`), email: null, password: null, key })
      const rkeys: string[] = []
      for (let done = 0; done < RECORDS; done += 100) {
        const records = Array.from({ length: 100 }, (_, i) =>
          prepareRecord({
            collection: POST,
            record: post(done + i),
            validate: undefined,
            nextRkey: () => pds.repos.nextRkey(),
          }),
        )
        await pds.repos.write(
          did,
          records.map(record => ({ action: 'create', record })),
        )
        rkeys.push(...records.map(record => record.rkey))
      }
      return { did, token: await tokens.access(did, SCOPES.access), rkeys }
    }),
  )
}

function post(n: number) {
  const text = `Post number ${n}. It says about as much as people say at a time: a sentence or two, then a link or none.`
  return { $type: POST, text, createdAt: '2026-01-02T03:04:05.678Z', langs: ['en'] }
}

/** The server as its clients' process sees it. */
class Server {
  readonly #child: ChildProcess
  url = ''

  private constructor(child: ChildProcess) {
    this.#child = child
  }

  static async start(folder: string): Promise<Server> {
    const child = fork(fileURLToPath(import.meta.url), ['serve', folder])
    const server = new Server(child)
    server.url = (await server.#heard<{ url: string }>()).url
    return server
  }

  async fill(): Promise<User[]> {
    this.#child.send('fill')
    return (await this.#heard<{ users: User[] }>()).users
  }

  async cpuSeconds(): Promise<number> {
    this.#child.send('cpu')
    return (await this.#heard<{ seconds: number }>()).seconds
  }

  async stop(): Promise<void> {
    this.#child.send('stop')
    await new Promise(resolve => this.#child.once('exit', resolve))
  }

  #heard<T>(): Promise<T> {
    return new Promise((resolve, reject) => {
      const ended = (code: number | null) => reject(new Error(`the server ended with ${code}`))
      this.#child.once('exit', ended)
      this.#child.once('message', message => {
        this.#child.off('exit', ended)
        resolve(message as T)
      })
    })
  }
}

// ---- the clients ----

/** A connection that sends one request after the other; light, so that the server gets the machine. */
class Client {
  readonly #socket: Socket
  #received: Buffer = Buffer.alloc(0)
  #answered: (() => void) | null = null

  constructor(port: number) {
    this.#socket = connect({ port, host: '127.0.0.1', noDelay: true })
    this.#socket.on('data', (data: Buffer) => {
      this.#received = this.#received.length === 0 ? data : Buffer.concat([this.#received, data])
      if (this.#isWhole()) this.#answered?.()
    })
  }

  #isWhole(): boolean {
    const head = this.#received.indexOf('\r\n\r\n')
    if (head < 0) return false
    const length = /content-length: (\d+)/i.exec(this.#received.toString('latin1', 0, head))
    return this.#received.length >= head + 4 + Number(length![1])
  }

  async call(request: string): Promise<void> {
    const answer = new Promise<void>(resolve => {
      this.#answered = resolve
    })
    this.#socket.write(request)
    await answer
    const status = this.#received.toString('latin1', 9, 12)
    if (status !== '200') throw new Error(this.#received.toString())
    this.#received = Buffer.alloc(0)
  }

  close(): void {
    this.#socket.destroy()
  }
}

function createRecord({ did, token }: User, n: number): string {
  const body = JSON.stringify({ repo: did, collection: POST, record: post(n) })
  const headers = `content-type: application/json\r\nauthorization: Bearer ${token}\r\ncontent-length: ${body.length}`
  return `POST /xrpc/com.atproto.repo.createRecord HTTP/1.1\r\nhost: pds\r\n${headers}\r\n\r\n${body}`
}

function getRecord({ did, rkeys }: User, n: number): string {
  const query = `repo=${did}&collection=${POST}&rkey=${rkeys[n % rkeys.length]}`
  return `GET /xrpc/com.atproto.repo.getRecord?${query} HTTP/1.1\r\nhost: pds\r\n\r\n`
}

/** Calls per CPU-second of the server, over rounds. */
async function load(
  name: string,
  server: Server,
  users: User[],
  count: number,
  request: (user: User, n: number) => string,
): Promise<Measured> {
  const { port } = new URL(server.url)
  const clients = Array.from({ length: CONNECTIONS }, () => new Client(Number(port)))
  const rates: number[] = []
  for (let round = -1; round < ROUNDS; round++) {
    const before = await server.cpuSeconds()
    let sent = 0
    await Promise.all(
      clients.map(async client => {
        while (sent < count) {
          const n = sent++
          await client.call(request(users[(n * 7) % users.length]!, n))
        }
      }),
    )
    const after = await server.cpuSeconds()
    if (round >= 0) rates.push(count / (after - before))
  }
  for (const client of clients) client.close()
  const sorted = rates.sort((a, b) => a - b)
  return { name, opsPerCpuSecond: sorted[sorted.length >> 1]!, low: sorted[0]!, high: sorted.at(-1)! }
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

export async function run(report: Report): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), 'millisky-bench-'))
  try {
    // The first start compiles; from then on the compiled code is on disk.
    const [first, mb] = [await idleMemory(join(folder, 'idle')), await idleMemory(join(folder, 'idle'))]
    report('idle PDS, MB of memory', [
      { name: 'resident', opsPerCpuSecond: mb, low: Math.min(mb, first), high: Math.max(mb, first) },
    ])
    const server = await Server.start(folder)
    const users = await server.fill()
    const calls = [
      await load('createRecord', server, users, WRITES, createRecord),
      await load('getRecord', server, users, READS, getRecord),
    ]
    for (const measured of calls) report(`PDS, ${measured.name} over HTTP, calls per CPU-second`, [measured])
    await server.stop()
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

if (import.meta.main) {
  const [, , command, folder] = process.argv
  if (command === 'serve') await serve(folder!)
  else {
    console.log(machine())
    await run((title, rows) => printTable(title, rows, ''))
  }
}
