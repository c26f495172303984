import assert from 'node:assert/strict'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { DidResolver } from '@atproto/identity'
import { SigningKey } from '@millisky/core/crypto'
import {
  type PlcEntry,
  type PlcOperation,
  type PlcTombstone,
  type PlcUpdate,
  parsePlcEntry,
  plcCid,
  plcDidOf,
  plcGenesis,
  plcTombstone,
  plcUpdate,
  signPlcOperation,
  verifyPlcLog,
} from '@millisky/core/plc'
import type { Did } from '@millisky/core/syntax'
import { readSettings } from '@millisky/server/config'
import { silentLog } from '@millisky/server/trace'
import { WebSocket } from 'ws'
import { settings } from './config.ts'
import { createPlc, type Plc } from './main.ts'

const HOUR = 3_600_000
const [strong, weak, signing, stranger] = [1, 2, 3, 4].map(n =>
  SigningKey.fromPrivate(n % 2 ? 'k256' : 'p256', new Uint8Array(32).fill(n)),
) as [SigningKey, SigningKey, SigningKey, SigningKey]

const cleanups: (() => unknown)[] = []
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup()
})

interface Stage {
  plc: Plc
  url: string
  clock: { now: number }
}

async function stage(env: Record<string, string> = {}, clock = { now: Date.parse('2026-01-01') }): Promise<Stage> {
  const given = readSettings(settings, [], { env: { PLC_PORT: '0', PLC_DB: ':memory:', ...env } })
  const plc = await createPlc(given, { log: silentLog, version: '1.2.3', now: () => clock.now })
  await plc.listen()
  cleanups.push(() => plc.close())
  return { plc, url: plc.url, clock }
}

/** The first operation of some account; `n` makes it another account. */
function genesis(n = 0): { did: Did; first: PlcUpdate } {
  const first = signPlcOperation<PlcUpdate>(
    plcGenesis({
      rotationKeys: [strong.didKey, weak.didKey],
      signingKey: signing.didKey,
      handle: `alice${n}.example.com`,
      pds: 'https://pds.example.com',
    }),
    weak,
  )
  return { did: plcDidOf(first), first }
}

const rename = (last: PlcOperation, handle: string, key: SigningKey) =>
  signPlcOperation<PlcUpdate>(plcUpdate(last, { alsoKnownAs: [`at://${handle}`] }), key)

async function post(url: string, did: string, operation: unknown): Promise<{ status: number; message: string }> {
  const response = await fetch(`${url}/${did}`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(operation),
  })
  const text = await response.text()
  return { status: response.status, message: response.ok ? text : JSON.parse(text).message }
}

/** Members of all kinds of replies. */
type Reply = Record<'id' | 'did' | 'alsoKnownAs' | 'rotationKeys', unknown> & PlcEntry[]

async function get(url: string): Promise<{ status: number; type: string | null; body: Reply }> {
  const response = await fetch(url)
  const body = (await response.json()) as Reply
  return { status: response.status, type: response.headers.get('content-type'), body }
}

type Line = PlcEntry & { seq: number; type: string }

async function lines(url: string): Promise<Line[]> {
  const response = await fetch(url)
  assert.equal(response.status, 200)
  const text = await response.text()
  assert.ok(text === '' || text.endsWith('\n'))
  return text
    .split('\n')
    .slice(0, -1)
    .map(line => JSON.parse(line))
}

test('an account is created, changed and read in every form', async () => {
  const { url, clock } = await stage()
  const { did, first } = genesis()
  assert.deepEqual(await post(url, did, first), { status: 200, message: 'OK' })
  clock.now += HOUR
  const second = rename(first, 'bob.example.com', strong)
  assert.equal((await post(url, did, second)).status, 200)

  const document = await get(`${url}/${did}`)
  assert.equal(document.type, 'application/did+ld+json; charset=utf-8')
  assert.equal(document.body.id, did)
  assert.deepEqual(document.body.alsoKnownAs, ['at://bob.example.com'])
  const { body: data } = await get(`${url}/${did}/data`)
  assert.deepEqual(data.rotationKeys, [strong.didKey, weak.didKey])
  assert.equal(data.did, did)
  assert.deepEqual((await get(`${url}/${did}/log`)).body, [first, second])
  assert.deepEqual((await get(`${url}/${did}/log/last`)).body, second)
  const { body: audit } = await get(`${url}/${did}/log/audit`)
  assert.equal(verifyPlcLog(did, audit.map(parsePlcEntry)).cid, plcCid(second))
  assert.deepEqual(
    audit.map((entry: PlcEntry) => [entry.did, entry.cid, entry.nullified, entry.createdAt]),
    [
      [did, plcCid(first), false, '2026-01-01T00:00:00.000Z'],
      [did, plcCid(second), false, '2026-01-01T01:00:00.000Z'],
    ],
  )
  assert.deepEqual((await get(`${url}/_health`)).body, { version: '1.2.3' })
  assert.equal((await fetch(`${url}/`)).status, 200)
})

test('DidResolver of @atproto/identity reads from it', async () => {
  const { url } = await stage()
  const { did, first } = genesis()
  await post(url, did, first)
  const resolver = new DidResolver({ plcUrl: url, fetch: globalThis.fetch })
  const data = await resolver.resolveAtprotoData(did)
  assert.deepEqual(data, {
    did,
    signingKey: signing.didKey,
    handle: 'alice0.example.com',
    pds: 'https://pds.example.com',
  })
  assert.equal(await resolver.resolve(genesis(1).did), null)
})

test('what is not there is 404, what has ended 410', async () => {
  const { url } = await stage()
  const { did, first } = genesis()
  for (const path of ['', '/data', '/log', '/log/audit', '/log/last']) {
    const { status, body } = await get(`${url}/${did}${path}`)
    assert.equal(status, 404, path)
    assert.deepEqual(body, { message: `DID not registered: ${did}` })
  }
  await post(url, did, first)
  const end = signPlcOperation<PlcTombstone>(plcTombstone(first), weak)
  assert.equal((await post(url, did, end)).status, 200)
  for (const path of ['', '/data']) {
    assert.deepEqual(await get(`${url}/${did}${path}`).then(({ status, body }) => [status, body]), [
      410,
      { message: `DID not available: ${did}` },
    ])
  }
  assert.deepEqual((await get(`${url}/${did}/log/last`)).body, end)
  const { sig, ...unsigned } = first
  const after = signPlcOperation<PlcUpdate>({ ...unsigned, prev: plcCid(end) }, weak)
  assert.match((await post(url, did, after)).message, /nothing follows a tombstone/)
})

test('what breaks a rule is 400 with the rule', async () => {
  const { url } = await stage()
  const { did, first } = genesis()
  const other = genesis(1)
  const cases: [string, unknown, RegExp][] = [
    [did, undefined, /not an object/],
    [did, {}, /type/],
    [did, { ...first, sig: 'AAAA' }, /another DID|not signed/],
    [other.did, first, /another DID/],
    ['did:plc:short', first, /Invalid DID/],
    ['did:web:example.com', first, /Invalid DID/],
    [did, { ...first, extra: 1 }, /unknown members/],
    [did, rename(first, 'x.example.com', weak), /does not exist|prev/],
  ]
  for (const [to, operation, why] of cases) {
    const { status, message } = await post(url, to, operation)
    assert.equal(status, 400, message)
    assert.match(message, why)
  }
  await post(url, did, first)
  for (const key of [stranger, signing]) {
    const { status, message } = await post(url, did, rename(first, 'x.example.com', key))
    assert.equal(status, 400)
    assert.match(message, /not signed/)
  }
  const response = await fetch(`${url}/${did}`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: '{',
  })
  assert.equal(response.status, 400)
  const huge = { ...first, alsoKnownAs: ['x'.repeat(40_000)] }
  assert.equal((await post(url, did, huge)).status, 413)
})

test('a stronger key undoes within 72 hours what a weaker one did, over HTTP', async () => {
  const { url, clock } = await stage()
  const { did, first } = genesis()
  await post(url, did, first)
  const stolen = rename(first, 'thief.example.com', weak)
  await post(url, did, stolen)
  const further = rename(stolen, 'further.example.com', weak)
  await post(url, did, further)
  clock.now += 71 * HOUR
  const recovery = rename(first, 'alice.example.com', strong)
  assert.equal((await post(url, did, rename(first, 'again.example.com', weak))).status, 409, 'not strong enough')
  assert.equal((await post(url, did, recovery)).status, 200)
  const { body: audit } = await get(`${url}/${did}/log/audit`)
  assert.deepEqual(
    audit.map((entry: PlcEntry) => entry.nullified),
    [false, true, true, false],
  )
  assert.equal(verifyPlcLog(did, audit.map(parsePlcEntry)).cid, plcCid(recovery))
  assert.deepEqual((await get(`${url}/${did}/log`)).body, [first, recovery])
  assert.deepEqual((await get(`${url}/${did}`)).body.alsoKnownAs, ['at://alice.example.com'])
  assert.equal((await post(url, did, rename(further, 'x.example.com', weak))).status, 400, 'nothing follows the undone')
})

test('after 72 hours it stands', async () => {
  const { url, clock } = await stage()
  const { did, first } = genesis()
  await post(url, did, first)
  await post(url, did, rename(first, 'thief.example.com', weak))
  clock.now += 72 * HOUR + 1_000
  const { status, message } = await post(url, did, rename(first, 'alice.example.com', strong))
  assert.equal(status, 400)
  assert.match(message, /72 hours/)
})

test('of concurrent updates exactly one wins, the others are told 409', async () => {
  const { url } = await stage({ PLC_DEV_MODE: 'true' })
  const { did, first } = genesis()
  await post(url, did, first)
  const rivals = Array.from({ length: 20 }, (_, i) => rename(first, `rival${i}.example.com`, strong))
  const results = await Promise.all(rivals.map(operation => post(url, did, operation)))
  const statuses = results.map(result => result.status).sort()
  assert.deepEqual(statuses, [200, ...Array.from({ length: 19 }, () => 409)])
  assert.match(results.find(result => result.status === 409)?.message ?? '', /does not match the most recent/)
  const { body: log } = await get(`${url}/${did}/log`)
  const winner = rivals[results.findIndex(result => result.status === 200)]
  assert.deepEqual(log, [first, winner])
})

test('the same operation again is accepted without effect', async () => {
  const { url } = await stage()
  const { did, first } = genesis()
  const answers = await Promise.all([post(url, did, first), post(url, did, first), post(url, did, first)])
  assert.deepEqual(
    answers.map(answer => answer.status),
    [200, 200, 200],
  )
  assert.equal((await get(`${url}/${did}/log`)).body.length, 1)
})

test('a DID has 10 operations an hour, 30 a day, 100 a week; not in development', async () => {
  const { url, clock } = await stage()
  const { did, first } = genesis()
  let last: PlcOperation = first
  let count = 0
  const go = async (to: string) => {
    const next: PlcOperation = count === 0 ? first : rename(last, `n${count}.example.com`, weak)
    const response = await fetch(`${to}/${did}`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(next),
    })
    if (response.ok) {
      last = next
      count++
    }
    return response
  }
  const run = async () => {
    for (;;) {
      const response = await go(url)
      if (!response.ok) return response
    }
  }
  const hour = await run()
  assert.equal(hour.status, 429)
  assert.equal(hour.headers.get('retry-after'), '3600')
  assert.match(((await hour.json()) as { message: string }).message, /within last hour \(max: 10\)/)
  assert.equal(count, 10)
  clock.now += HOUR
  await run()
  clock.now += HOUR
  await run()
  clock.now += HOUR
  assert.match(((await (await run()).json()) as { message: string }).message, /day \(max: 30\)/)
  assert.equal(count, 30)
  for (let day = 0; day < 3; day++) {
    clock.now += 24 * HOUR
    for (let hours = 0; hours < 3; hours++) {
      await run()
      clock.now += HOUR
    }
  }
  assert.match(((await (await run()).json()) as { message: string }).message, /week \(max: 100\)|day/)
  assert.equal(count, 100)
  const dev = await stage({ PLC_DEV_MODE: 'true' })
  count = 0
  for (let i = 0; i < 40; i++) assert.equal((await go(dev.url)).status, 200)
})

test('the export pages by seq and by time, nullified operations included', async () => {
  const { url, clock } = await stage({ PLC_DEV_MODE: 'true' })
  const { did, first } = genesis()
  await post(url, did, first)
  await post(url, did, rename(first, 'thief.example.com', weak))
  await post(url, did, rename(first, 'alice.example.com', strong))
  for (let i = 1; i <= 7; i++) {
    if (i % 3 === 0) clock.now += 1_000
    const { did, first } = genesis(i)
    await post(url, did, first)
  }
  const bySeq: Line[] = []
  for (let after = 0; ; ) {
    const page = await lines(`${url}/export?count=4&after=${after}`)
    bySeq.push(...page)
    if (page.length < 4) break
    after = page[3]!.seq
  }
  assert.deepEqual(
    bySeq.map(line => line.seq),
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
  )
  assert.deepEqual(Object.keys(bySeq[0] ?? {}).sort(), ['cid', 'createdAt', 'did', 'operation', 'seq', 'type'])
  assert.equal(bySeq[0]?.type, 'sequenced_op')
  const byTime: Line[] = []
  for (let after = ''; ; ) {
    const page = await lines(`${url}/export?count=4${after && `&after=${encodeURIComponent(after)}`}`)
    byTime.push(...page)
    if (page.length < 4) break
    after = page[3]!.createdAt
  }
  assert.deepEqual(
    byTime.map(line => line.cid),
    bySeq.map(line => line.cid),
    'though several fell into one millisecond',
  )
  assert.deepEqual(Object.keys(byTime[0] ?? {}).sort(), ['cid', 'createdAt', 'did', 'nullified', 'operation'])
  assert.deepEqual(
    byTime.slice(0, 3).map(line => line.nullified),
    [false, true, false],
  )
  for (const query of ['count=0', 'count=x', 'after=yesterday', 'after=-1']) {
    assert.equal((await fetch(`${url}/export?${query}`)).status, 400, query)
  }
  assert.equal((await lines(`${url}/export?count=100000`)).length, 10)
})

/** A reader of the stream: what came, and how it ended. */
function read(url: string, query = '') {
  const socket = new WebSocket(`${url.replace('http', 'ws')}/export/stream${query}`)
  const got: { seq: number; type: string; did: string }[] = []
  socket.on('message', (data, isBinary) => {
    assert.equal(isBinary, false)
    got.push(JSON.parse(data.toString()))
  })
  socket.on('error', () => {})
  const closed = new Promise<string>(resolve => socket.on('close', (code, reason) => resolve(`${code} ${reason}`)))
  const opened = new Promise(resolve => socket.on('open', resolve))
  cleanups.push(() => socket.terminate())
  const until = async (count: number) => {
    for (let i = 0; got.length < count; i++) {
      if (i > 10_000) assert.fail(`${got.length} of ${count}`)
      await sleep(2)
    }
    return got.map(entry => entry.seq)
  }
  return { socket, got, closed, opened, until }
}

test('the stream gives what comes after a cursor, then what is new', async () => {
  const { url, plc } = await stage({ PLC_DEV_MODE: 'true' })
  const add = async (n: number) => {
    const { did, first } = genesis(n)
    await post(url, did, first)
    return did
  }
  for (let i = 1; i <= 3; i++) await add(i)
  const live = read(url)
  const replayed = read(url, '?cursor=1')
  const all = read(url, '?cursor=0')
  await Promise.all([live.opened, replayed.opened, all.opened])
  const did = await add(4)
  assert.deepEqual(await replayed.until(3), [2, 3, 4])
  assert.deepEqual(await all.until(4), [1, 2, 3, 4])
  assert.deepEqual(await live.until(1), [4])
  assert.equal(live.got[0]?.did, did)
  assert.equal(live.got[0]?.type, 'sequenced_op')
  assert.equal(await read(url, '?cursor=5').closed, '1008 FutureCursor')
  const plain = await fetch(`${url}/export/stream`)
  assert.equal(plain.status, 426)
  await plc.close()
  assert.equal(await live.closed, '1012 Service restart')
})

test('the stream refuses what is too old, malformed or too much', async () => {
  const { url, clock } = await stage({ PLC_STREAMS_MAX: '2' })
  const { did, first } = genesis()
  await post(url, did, first)
  clock.now += 8 * 24 * HOUR
  assert.equal(await read(url, '?cursor=0').closed, '1008 OutdatedCursor')
  assert.equal(await read(url, '?cursor=x').closed, '1006 ')
  await Promise.all([read(url).opened, read(url, '?cursor=1').opened])
  assert.equal(await read(url).closed, '1006 ')
})

test('everything is still there after a restart, and seqs go on', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'millisky-plc-'))
  cleanups.push(() => rm(folder, { recursive: true, force: true }))
  const env = { PLC_DATA_DIR: folder, PLC_DB: '' }
  const before = await stage(env)
  const { did, first } = genesis()
  await post(before.url, did, first)
  await before.plc.close()
  const { url } = await stage(env)
  assert.deepEqual((await get(`${url}/${did}/log`)).body, [first])
  const second = genesis(1)
  await post(url, second.did, second.first)
  assert.deepEqual(
    (await lines(`${url}/export?after=0`)).map(line => line.seq),
    [1, 2],
  )
})
