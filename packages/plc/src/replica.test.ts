import assert from 'node:assert/strict'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import type { SigningKey } from '@millisky/core/crypto'
import {
  type PlcOperation,
  type PlcUpdate,
  plcCid,
  plcTombstone,
  plcUpdate,
  signPlcOperation,
} from '@millisky/core/plc'
import type { Did } from '@millisky/core/syntax'
import { signingKey, strongKey, testGenesis, weakKey } from '@millisky/core/testing-plc'
import { readSettings } from '@millisky/server/config'
import { TestPlcUpstream } from '@millisky/server/identity/testing-plc-upstream'
import { until } from '@millisky/server/testing-until'
import { silentLog } from '@millisky/server/trace'
import { settings } from './config.ts'
import { createPlc, type Plc } from './main.ts'

const HOUR = 3_600_000
const START = Date.parse('2026-01-01')
async function plcOf(t: TestContext, env: Record<string, string> = {}, now = () => START): Promise<Plc> {
  const given = readSettings(settings, [], { env: { PLC_PORT: '0', PLC_DB: ':memory:', PLC_DEV_MODE: 'true', ...env } })
  const plc = await createPlc(given, { log: silentLog, now })
  await plc.listen()
  t.after(() => plc.close())
  return plc
}

async function folderOf(t: TestContext): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'millisky-replica-'))
  t.after(() => rm(folder, { recursive: true, force: true }))
  return folder
}

const rename = (last: PlcOperation, handle: string, key: SigningKey) =>
  signPlcOperation<PlcUpdate>(plcUpdate(last, { alsoKnownAs: [`at://${handle}`] }), key)

async function answers(url: string, paths: readonly string[]): Promise<[number, string][]> {
  return Promise.all(
    paths.map(async path => {
      const reply = await fetch(`${url}${path}`)
      return [reply.status, await reply.text()]
    }),
  )
}

const health = async (url: string) => (await (await fetch(`${url}/_health`)).json()) as Record<string, unknown>

test('a replica says what its directory says: recoveries, ends and all; also after a restart in the middle', async t => {
  const clock = { now: START }
  const upstream = await plcOf(t, {}, () => clock.now)
  const folder = await folderOf(t)
  const env = { PLC_REPLICA_OF: upstream.url, PLC_DB: join(folder, 'replica.sqlite') }
  const dids: Did[] = []
  for (let n = 0; n < 60; n++) {
    const { did, first } = testGenesis(n)
    dids.push(did)
    await upstream.directory.accept(did, first)
    if (n > 2) continue
    clock.now += HOUR
    const stolen = rename(first, `stolen${n}.example.com`, weakKey)
    await upstream.directory.accept(did, stolen)
    clock.now += HOUR
    await upstream.directory.accept(did, rename(stolen, `again${n}.example.com`, weakKey))
    clock.now += HOUR
    if (n > 0) await upstream.directory.accept(did, rename(first, `back${n}.example.com`, strongKey))
    if (n > 1)
      await upstream.directory.accept(did, signPlcOperation(plcTombstone(upstream.directory.last(did)), strongKey))
  }
  const first = await plcOf(t, env, () => clock.now)
  await until('the replica has it', () => first.directory.head === upstream.directory.head)
  await first.close()

  const late = testGenesis(100)
  await upstream.directory.accept(late.did, late.first)
  const replica = await plcOf(t, env, () => clock.now)
  await until('the replica has it', () => replica.directory.head === upstream.directory.head)
  await upstream.directory.accept(late.did, rename(late.first, 'live.example.com', strongKey))
  await until('the replica has it', () => replica.directory.head === upstream.directory.head)

  const paths = [...dids.slice(0, 5), late.did].flatMap(did =>
    ['', '/data', '/log', '/log/audit', '/log/last'].map(of => `/${did}${of}`),
  )
  paths.push('/export?after=0', '/export?after=7&count=3', '/export?count=5', `/${testGenesis(999).did}`)
  assert.deepEqual(await answers(replica.url, paths), await answers(upstream.url, paths))
  // What came in pages is there before the stream is.
  await until('it is live', async () => (await health(replica.url)).state === 'live')
  assert.deepEqual(await health(replica.url), {
    version: '0.0.0',
    replicaOf: upstream.url,
    state: 'live',
    seq: upstream.directory.head,
    trueAt: clock.now,
    skipped: 0,
  })
})

test('a replica accepts nothing itself, and says who does', async t => {
  const upstream = await plcOf(t)
  const replica = await plcOf(t, { PLC_REPLICA_OF: upstream.url })
  const { did, first } = testGenesis(1)
  const reply = await fetch(`${replica.url}/${did}`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(first),
  })
  assert.equal(reply.status, 405)
  assert.match(((await reply.json()) as { message: string }).message, new RegExp(upstream.url))
  assert.equal(upstream.directory.head, 0)
})

test('what breaks the rules is skipped and counted, and with it what builds on it; the rest goes on', async t => {
  const upstream = await TestPlcUpstream.start()
  t.after(() => upstream.close())
  const entry = (did: Did, operation: PlcOperation, hours: number) => ({
    did,
    operation,
    cid: plcCid(operation),
    createdAt: new Date(START + hours * HOUR).toISOString(),
  })
  const [a, b] = [testGenesis(1), testGenesis(2)]
  const forged = rename(a.first, 'forged.example.com', signingKey)
  const late = rename(b.first, 'first.example.com', weakKey)
  upstream.say(1, entry(a.did, a.first, 0))
  upstream.say(2, entry(a.did, forged, 1))
  upstream.say(3, entry(a.did, rename(forged, 'on-top.example.com', signingKey), 2))
  upstream.say(5, entry(b.did, a.first, 3))
  upstream.say(6, { did: b.did, operation: { type: 'plc_news' }, cid: 'x', createdAt: 'y' })
  upstream.say(7, entry(b.did, b.first, 4))
  upstream.say(8, entry(b.did, late, 5))
  upstream.say(9, entry(b.did, rename(b.first, 'too-late.example.com', strongKey), 5 + 73))
  upstream.say(10, entry(a.did, rename(a.first, 'right.example.com', strongKey), 6))
  const replica = await plcOf(t, { PLC_REPLICA_OF: upstream.url })
  await until('the replica has it', () => replica.directory.head === 10)
  assert.deepEqual(replica.directory.last(a.did), rename(a.first, 'right.example.com', strongKey))
  assert.deepEqual(replica.directory.last(b.did), late)
  assert.equal((await health(replica.url)).skipped, 5)
})

test('a database with operations of its own, or of another directory, is not made a replica', async t => {
  const folder = await folderOf(t)
  const own = await plcOf(t, { PLC_DB: join(folder, 'own.sqlite') })
  const { did, first } = testGenesis(1)
  await own.directory.accept(did, first)
  await own.close()
  const upstream = await plcOf(t)
  await assert.rejects(plcOf(t, { PLC_DB: join(folder, 'own.sqlite'), PLC_REPLICA_OF: upstream.url }), /accepted here/)
  const env = { PLC_DB: join(folder, 'replica.sqlite'), PLC_REPLICA_OF: upstream.url }
  const replica = await plcOf(t, env)
  await upstream.directory.accept(did, first)
  await until('the replica has it', () => replica.directory.head === 1)
  await replica.close()
  await assert.rejects(plcOf(t, { ...env, PLC_REPLICA_OF: 'https://other.example.com' }), /replica of/)
})
