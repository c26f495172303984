/** A PDS in this process for tests: a folder of its own, a clock that can be set, accounts without a directory. */
import { createHash } from 'node:crypto'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { asDid, asHandle, type Did } from '@millisky/core/syntax'
import { readSettings } from '@millisky/server/config'
import { testDatabases } from '@millisky/server/db/testing'
import { silentLog } from '@millisky/server/trace'
import { settings as settingsTable } from './config.ts'
import { createPds, type Pds, type PdsParts } from './main.ts'
import type { Account } from './store/store.ts'
import { SCOPES, Tokens } from './tokens.ts'

export const JWT_SECRET = 'a secret of tests'
export const ADMIN_PASSWORD = 'admin of tests'

export interface TestUser {
  did: Did
  account: Account
  token: string
}

export interface Answer {
  status: number
  headers: Headers
  /** Parsed, if it is JSON. */
  // biome-ignore lint/suspicious/noExplicitAny: tests look into it freely
  json: any
  bytes: Uint8Array
}

export interface TestPds extends Pds {
  /** Adds an account, the n-th of a series that is the same in every run. */
  user(name: string, options?: { deactivated?: boolean }): Promise<TestUser>
  get(method: string, params?: Record<string, unknown>, headers?: Record<string, string>): Promise<Answer>
  post(method: string, body: unknown, user?: TestUser | null, headers?: Record<string, string>): Promise<Answer>
}

interface Cleanup {
  after(fn: () => Promise<void>): void
}

/** @param env - Settings besides those of tests. */
export async function startTestPds(
  t: Cleanup,
  env: Record<string, string> = {},
  parts: PdsParts = {},
): Promise<TestPds> {
  const folder = await mkdtemp(join(tmpdir(), 'millisky-pds-'))
  const database = await chosenDatabase()
  const settings = readSettings(settingsTable, [], {
    env: {
      PDS_PORT: '0',
      PDS_DATA_DIRECTORY: folder,
      PDS_DEV_MODE: 'true',
      PDS_DISABLE_SSRF_PROTECTION: 'true',
      PDS_INVITE_REQUIRED: 'false',
      PDS_ADMIN_PASSWORD: ADMIN_PASSWORD,
      PDS_JWT_SECRET: JWT_SECRET,
      PDS_DID_PLC_URL: 'http://127.0.0.1:1',
      ...(database ? { PDS_DATABASE_URL: database.url } : {}),
      ...env,
    },
  })
  const pds = await createPds(settings, { log: silentLog, ...parts })
  t.after(async () => {
    await pds.close()
    await database?.remove()
    await rm(folder, { recursive: true, force: true })
  })
  await pds.listen()
  const tokens = new Tokens(JWT_SECRET, pds.names.did, parts.now ?? Date.now)
  return {
    ...pds,
    url: pds.url,
    user: (name, options) => addUser(pds, tokens, name, options),
    get: (method, params = {}, headers = {}) => call(new URL(`/xrpc/${method}?${query(params)}`, pds.url), { headers }),
    post(method, body, user, headers = {}) {
      const isRaw = body instanceof Uint8Array
      return call(new URL(`/xrpc/${method}`, pds.url), {
        method: 'POST',
        body: isRaw ? Buffer.from(body) : JSON.stringify(body),
        headers: {
          ...(isRaw ? {} : { 'content-type': 'application/json' }),
          ...(user ? { authorization: `Bearer ${user.token}` } : {}),
          ...headers,
        },
      })
    },
  }
}

/** With MILLISKY_TEST_PDS_ON=postgres all of these tests run over PostgreSQL instead of SQLite. */
async function chosenDatabase(): Promise<{ url: string; remove: () => Promise<void> } | null> {
  if (process.env.MILLISKY_TEST_PDS_ON !== 'postgres') return null
  const postgres = testDatabases().find(({ name }) => name === 'postgres')!
  if (postgres.skip) throw new Error(postgres.skip)
  const removals: (() => Promise<void>)[] = []
  const url = await postgres.url({ after: fn => removals.push(fn) })
  return { url, remove: async () => void (await Promise.all(removals.map(fn => fn()))) }
}

const BASE32 = 'abcdefghijklmnopqrstuvwxyz234567'

async function addUser(pds: Pds, tokens: Tokens, name: string, options?: { deactivated?: boolean }): Promise<TestUser> {
  const secret = createHash('sha256').update(name).digest()
  const did = asDid(`did:plc:${Array.from(secret.subarray(0, 24), byte => BASE32[byte & 31]).join('')}`)
  const account = await pds.lifecycle.open({
    did,
    handle: asHandle(`${name}.test`),
    email: `${name}@example.com`,
    password: null,
    key: { curve: 'k256', secret: new Uint8Array(secret) },
    ...options,
  })
  return { did, account, token: await tokens.access(did, SCOPES.access) }
}

export const bearer = (user: TestUser) => ({ authorization: `Bearer ${user.token}` })
export const basic = (password = ADMIN_PASSWORD) => ({
  authorization: `Basic ${Buffer.from(`admin:${password}`).toString('base64')}`,
})

function query(params: Record<string, unknown>): URLSearchParams {
  const search = new URLSearchParams()
  for (const [key, value] of Object.entries(params)) {
    if (value === undefined) continue
    for (const item of Array.isArray(value) ? value : [value]) search.append(key, String(item))
  }
  return search
}

async function call(url: URL, init: RequestInit): Promise<Answer> {
  const response = await fetch(url, init)
  const bytes = new Uint8Array(await response.arrayBuffer())
  const isJson = response.headers.get('content-type')?.startsWith('application/json') && bytes.length > 0
  const json = isJson ? JSON.parse(Buffer.from(bytes).toString()) : null
  return { status: response.status, headers: response.headers, json, bytes }
}
