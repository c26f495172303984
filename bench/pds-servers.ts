/**
 * PDSs as processes of their own: ours, and the reference where the environment variable MILLISKY_REFERENCE_PDS names a
 * folder in which `@atproto/pds` is installed. Both get the same environment, accounts and records, over HTTP.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { mkdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { asNsid, type Did } from '@millisky/core/syntax'
import { settings as plcSettings } from '@millisky/plc/config'
import { createPlc, type Plc } from '@millisky/plc/main'
import { readSettings } from '@millisky/server/config'
import { silentLog } from '@millisky/server/trace'
import { freePort } from '../test/e2e/ports.ts'

export const POST = asNsid('app.bsky.feed.post')
const CLOCK_TICKS_PER_SECOND = 100

export interface User {
  did: Did
  token: string
  rkeys: string[]
}

export interface Server {
  readonly name: string
  readonly url: string
  /** How many calls of a round it is given, so that rounds of a slow server end. */
  readonly pace: number
  /** Spent so far by all its threads. */
  cpuSeconds(): Promise<number>
  /** Megabytes. */
  memory(): Promise<number>
  stop(): Promise<void>
}

/** A directory for the accounts to be made in. */
export async function startPlc(): Promise<Plc> {
  const settings = readSettings(plcSettings, [], { env: { PLC_PORT: '0', PLC_DB: ':memory:', PLC_DEV_MODE: 'true' } })
  const plc = await createPlc(settings, { log: silentLog })
  await plc.listen()
  return plc
}

function environment(folder: string, port: number, plc: Plc): NodeJS.ProcessEnv {
  return {
    PATH: process.env.PATH,
    NODE_ENV: 'production',
    PDS_PORT: String(port),
    PDS_HOSTNAME: 'localhost',
    PDS_DEV_MODE: 'true',
    PDS_DISABLE_SSRF_PROTECTION: 'true',
    PDS_DATA_DIRECTORY: folder,
    PDS_BLOBSTORE_DISK_LOCATION: join(folder, 'blobs'),
    PDS_BLOBSTORE_DISK_TMP_LOCATION: join(folder, 'blobs-tmp'),
    PDS_DID_PLC_URL: plc.url,
    PDS_SERVICE_HANDLE_DOMAINS: '.test',
    PDS_INVITE_REQUIRED: 'false',
    PDS_JWT_SECRET: 'a secret of benchmarks, long enough',
    PDS_ADMIN_PASSWORD: 'benchmarks',
    PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX: '11'.repeat(32),
    // One address and a few accounts do the work of thousands.
    PDS_RATE_LIMITS_ENABLED: 'false',
    LOG_ENABLED: 'false',
    ...(process.env.BENCH_NODE_OPTIONS && { NODE_OPTIONS: process.env.BENCH_NODE_OPTIONS }),
  }
}

/** Our PDS, as `node` runs it; replies are not checked against their schemas, as in production. */
export async function startOurs(
  folder: string,
  plc: Plc,
  { name = 'millisky', more = {} }: { name?: string; more?: NodeJS.ProcessEnv } = {},
): Promise<Server> {
  const port = await freePort()
  const entry = fileURLToPath(new URL('../packages/cli/bin/millisky', import.meta.url))
  // Development mode would check every reply against its schema.
  const env = { ...environment(folder, port, plc), PDS_DEV_MODE: 'false', LOG_LEVEL: 'error', ...more }
  return started(name, 1, port, spawn(entry, ['pds'], { env, stdio: ['ignore', 'ignore', 'inherit'] }))
}

const REFERENCE = `
  const { PDS, envToCfg, envToSecrets, readEnv } = await import(process.argv[1])
  const env = readEnv()
  const pds = await PDS.create(envToCfg(env), envToSecrets(env))
  await pds.start()
  process.on('SIGTERM', async () => { await pds.destroy(); process.exit() })`

/** The reference; null where none is installed. */
export async function startReference(folder: string, plc: Plc): Promise<Server | null> {
  const installed = process.env.MILLISKY_REFERENCE_PDS
  if (!installed) return null
  await mkdir(folder)
  const port = await freePort()
  const entry = pathToFileURL(join(installed, 'node_modules/@atproto/pds/dist/index.js')).href
  const env = environment(folder, port, plc)
  const args = ['--input-type=module', '-e', REFERENCE, entry]
  const child = spawn(process.execPath, args, { env, stdio: ['ignore', 'ignore', 'inherit'] })
  return started('@atproto/pds', 0.1, port, child)
}

async function started(name: string, pace: number, port: number, child: ChildProcess): Promise<Server> {
  const url = `http://127.0.0.1:${port}`
  // A benchmark that fails leaves nothing running.
  process.once('exit', () => child.kill('SIGKILL'))
  const server: Server = {
    name,
    url,
    pace,
    async cpuSeconds() {
      const stat = await readFile(`/proc/${child.pid}/stat`, 'utf8')
      const [user, system] = stat
        .slice(stat.lastIndexOf(')') + 2)
        .split(' ')
        .slice(11, 13)
      return (Number(user) + Number(system)) / CLOCK_TICKS_PER_SECOND
    },
    async memory() {
      const status = await readFile(`/proc/${child.pid}/status`, 'utf8')
      return (Number(/VmRSS:\s+(\d+)/.exec(status)![1]) * 1024) / 1e6
    },
    async stop() {
      const ended = new Promise(resolve => child.once('exit', resolve))
      child.kill()
      await ended
    },
  }
  for (let left = 300; ; left--) {
    if (child.exitCode !== null) throw new Error(`${name} ended with ${child.exitCode}`)
    const healthy = await fetch(`${url}/xrpc/_health`).then(
      r => r.ok,
      () => false,
    )
    if (healthy) return server
    if (left === 0) throw new Error(`${name} does not answer`)
    await new Promise(resolve => setTimeout(resolve, 100))
  }
}

/** Accounts with records, made by the methods that everybody uses. */
export async function fill(server: Server, count: number, records: number): Promise<User[]> {
  const users: User[] = []
  for (let n = 0; n < count; n++) {
    const account = { handle: `user${n}.test`, email: `user${n}@example.com`, password: 'benchmarks' }
    const { did, accessJwt } = await post(server, 'com.atproto.server.createAccount', account)
    const user: User = { did: did as Did, token: accessJwt as string, rkeys: [] }
    for (let done = 0; done < records; done += 100) {
      const writes = Array.from({ length: Math.min(100, records - done) }, (_, i) => {
        const $type = 'com.atproto.repo.applyWrites#create'
        return { $type, collection: POST, value: postRecord(done + i) }
      })
      const { results } = await post(server, 'com.atproto.repo.applyWrites', { repo: did, writes }, user.token)
      for (const { uri } of results as { uri: string }[]) user.rkeys.push(uri.slice(uri.lastIndexOf('/') + 1))
    }
    users.push(user)
  }
  return users
}

export async function post(server: Server, method: string, body: object, token?: string) {
  const reply = await fetch(`${server.url}/xrpc/${method}`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...(token && { authorization: `Bearer ${token}` }) },
    body: JSON.stringify(body),
  })
  if (!reply.ok) throw new Error(`${server.name}: ${method}: ${reply.status} ${await reply.text()}`)
  return (await reply.json()) as Record<string, unknown>
}

export function postRecord(n: number) {
  const text = `Post number ${n}. It says about as much as people say at a time: a sentence or two, then a link or none.`
  return { $type: POST, text, createdAt: '2026-01-02T03:04:05.678Z', langs: ['en'] }
}
