// Several PDS processes over one PostgreSQL database and one folder of blobs.
import assert from 'node:assert/strict'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Blocks } from '@millisky/core/blocks'
import { readCar } from '@millisky/core/car'
import { decodeCommit } from '@millisky/core/commit'
import { decodeFrame, readCommit } from '@millisky/core/event'
import { verifyRepo } from '@millisky/core/repo'
import { settings as plcSettings } from '@millisky/plc/config'
import { createPlc } from '@millisky/plc/main'
import { readSettings } from '@millisky/server/config'
import { testDatabases } from '@millisky/server/db/testing'
import { silentLog } from '@millisky/server/trace'
import { WebSocket } from 'ws'
import { Daemon } from './network.ts'
import { freePort } from './ports.ts'

const postgres = testDatabases().find(({ name }) => name === 'postgres')!
/** Why there can be none, or false. */
export const withoutPostgres = postgres.skip

export const ADMIN = { authorization: `Basic ${Buffer.from('admin:secret').toString('base64')}` }
const BYPASS = { 'x-ratelimit-bypass': 'tests' }
const COLLECTION = 'com.example.note'

export interface Person {
  did: string
  accessJwt: string
  refreshJwt: string
  handle: string
}

export interface Reply {
  status: number
  headers: Headers
  // biome-ignore lint/suspicious/noExplicitAny: tests look into it freely
  json: any
}

async function ask(pds: Daemon, method: string, init: RequestInit, headers: Record<string, string>): Promise<Reply> {
  const reply = await fetch(`${pds.url}/xrpc/${method}`, {
    ...init,
    headers: { ...BYPASS, ...headers },
    signal: AbortSignal.timeout(20_000),
  })
  const text = await reply.text()
  const isJson = reply.headers.get('content-type')?.startsWith('application/json')
  return { status: reply.status, headers: reply.headers, json: isJson ? JSON.parse(text) : text }
}

export const bearer = (token: string) => ({ authorization: `Bearer ${token}` })
export const get = (pds: Daemon, method: string, headers = {}) => ask(pds, method, {}, headers)
export const post = (pds: Daemon, method: string, body?: object, headers = {}) =>
  ask(
    pds,
    `com.atproto.${method}`,
    { method: 'POST', ...(body ? { body: JSON.stringify(body) } : {}) },
    { ...(body ? { 'content-type': 'application/json' } : {}), ...headers },
  )

/** One event as a consumer was shown it. */
export interface Seen {
  seq: number
  bytes: string
}

/** Collects what one process sends, from a cursor. */
export function follow(pds: Daemon, cursor: number): { seen: Seen[]; close: () => void } {
  const seen: Seen[] = []
  const socket = new WebSocket(`${pds.url.replace('http', 'ws')}/xrpc/com.atproto.sync.subscribeRepos?cursor=${cursor}`)
  socket.on('error', () => {})
  socket.on('message', (data: Buffer) => {
    seen.push({ seq: decodeFrame(data).body.seq as number, bytes: data.toString('latin1') })
  })
  return { seen, close: () => socket.terminate() }
}

/** Whether the commit of a write has come: it is the last that is written. */
export function hasCommit(seen: readonly Seen[], { json }: Reply): boolean {
  const bytes = seen.at(-1)?.bytes
  return bytes?.includes(json.commit.rev) === true
}

/** Seqs rise, and of each account every commit follows the one before. */
export function assertWhole(seen: readonly Seen[]): void {
  const heads = new Map<string, { rev: string; data: string }>()
  let last = 0
  for (const { seq, bytes } of seen) {
    assert.ok(seq > last, `${seq} after ${last}`)
    last = seq
    const { t, body } = decodeFrame(Buffer.from(bytes, 'latin1'))
    if (t !== '#commit') continue
    const commit = readCommit(body)
    const before = heads.get(commit.repo)
    const { blocks } = readCar(commit.blocks)
    const signed = decodeCommit(new Blocks(blocks).get(commit.commit)!)
    if (before) {
      assert.equal(commit.since, before.rev)
      assert.equal(String(commit.prevData), before.data)
    }
    heads.set(commit.repo, { rev: commit.rev, data: String(signed.data) })
  }
}

export async function recordsOf(pds: Daemon, did: string): Promise<Map<string, string>> {
  const reply = await fetch(`${pds.url}/xrpc/com.atproto.sync.getRepo?did=${did}`, { headers: BYPASS })
  const { roots, blocks } = readCar(new Uint8Array(await reply.arrayBuffer()))
  const repo = verifyRepo({ root: roots[0]!, blocks: new Blocks(blocks) }, { did: did as never })
  return new Map([...repo.records].map(({ path, cid }) => [`at://${did}/${path}`, cid.toString()]))
}

export interface Several {
  daemons: Daemon[]
  databaseUrl: string
  signUp(pds: Daemon, name: string, more?: object): Promise<Reply>
  /** Somebody with an account, made at the first. */
  person(name: string): Promise<Person>
  write(pds: Daemon, who: Person, n: number): Promise<Reply>
  end(): Promise<void>
}

/** Starts so many, with a directory of their own. */
export async function startSeveral(count: number): Promise<Several> {
  const ends: (() => Promise<void>)[] = []
  const end = async () => {
    for (const fn of ends) await fn()
  }
  const folder = await mkdtemp(join(tmpdir(), 'millisky-several-'))
  const databaseUrl = await postgres.url({ after: fn => ends.push(fn) })
  const plcEnv = { PLC_PORT: '0', PLC_DB: ':memory:', PLC_DEV_MODE: 'true' }
  const plc = await createPlc(readSettings(plcSettings, [], { env: plcEnv }), { log: silentLog })
  await plc.listen()
  const daemons: Daemon[] = []
  for (let i = 0; i < count; i++) {
    const port = await freePort()
    const env = {
      PDS_PORT: String(port),
      PDS_HOSTNAME: 'pds.example',
      PDS_DATA_DIRECTORY: join(folder, `data${i}`),
      PDS_BLOBSTORE_DISK_LOCATION: join(folder, 'blobs'),
      PDS_DATABASE_URL: databaseUrl,
      PDS_DEV_MODE: 'true',
      PDS_DID_PLC_URL: plc.url,
      PDS_INVITE_REQUIRED: 'false',
      PDS_ADMIN_PASSWORD: 'secret',
      PDS_RATE_LIMITS_ENABLED: 'true',
      PDS_RATE_LIMIT_BYPASS_KEY: 'tests',
      PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX: '11'.repeat(32),
      LOG_LEVEL: 'info',
    }
    daemons.push(new Daemon('pds', port, env))
  }
  ends.unshift(async () => {
    for (const daemon of daemons) await daemon.stop()
    await plc.close()
    await rm(folder, { recursive: true, force: true })
  })
  const started = await Promise.allSettled(daemons.map(daemon => daemon.start()))
  for (const result of started) {
    if (result.status === 'fulfilled') continue
    await end()
    throw result.reason
  }
  const signUp: Several['signUp'] = (pds, name, more = {}) => {
    const wanted = { handle: `${name}.pds.example`, email: `${name}@example.com`, password: `${name}-password` }
    return post(pds, 'server.createAccount', { ...wanted, ...more })
  }
  return {
    daemons,
    databaseUrl,
    signUp,
    async person(name) {
      const { status, json } = await signUp(daemons[0]!, name)
      assert.equal(status, 200, JSON.stringify(json))
      return json as Person
    },
    write: (pds, { did, accessJwt }, n) =>
      post(pds, 'repo.createRecord', { repo: did, collection: COLLECTION, record: { n } }, bearer(accessJwt)),
    end,
  }
}
