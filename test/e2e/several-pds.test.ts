// Several PDS processes over one PostgreSQL database and one folder of blobs: whichever a client meets, it is one server.
import assert from 'node:assert/strict'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { Blocks } from '@millisky/core/blocks'
import { readCar } from '@millisky/core/car'
import { decodeCommit } from '@millisky/core/commit'
import { decodeFrame, readCommit } from '@millisky/core/event'
import { verifyRepo } from '@millisky/core/repo'
import { settings as plcSettings } from '@millisky/plc/config'
import { createPlc, type Plc } from '@millisky/plc/main'
import { readSettings } from '@millisky/server/config'
import { testDatabases } from '@millisky/server/db/testing'
import { until } from '@millisky/server/testing-until'
import { silentLog } from '@millisky/server/trace'
import { WebSocket } from 'ws'
import { Daemon } from './network.ts'
import { freePort } from './ports.ts'

const postgres = testDatabases().find(({ name }) => name === 'postgres')!
const ADMIN = { authorization: `Basic ${Buffer.from('admin:secret').toString('base64')}` }
const BYPASS = { 'x-ratelimit-bypass': 'tests' }
const COLLECTION = 'com.example.note'

interface Person {
  did: string
  accessJwt: string
  refreshJwt: string
  handle: string
}

interface Reply {
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

const bearer = (token: string) => ({ authorization: `Bearer ${token}` })
const get = (pds: Daemon, method: string, headers = {}) => ask(pds, method, {}, headers)
const post = (pds: Daemon, method: string, body?: object, headers = {}) =>
  ask(
    pds,
    `com.atproto.${method}`,
    { method: 'POST', ...(body ? { body: JSON.stringify(body) } : {}) },
    { ...(body ? { 'content-type': 'application/json' } : {}), ...headers },
  )

/** One event as a consumer was shown it. */
interface Seen {
  seq: number
  bytes: string
}

/** Collects what one process sends, from a cursor. */
function follow(pds: Daemon, cursor: number): { seen: Seen[]; close: () => void } {
  const seen: Seen[] = []
  const socket = new WebSocket(`${pds.url.replace('http', 'ws')}/xrpc/com.atproto.sync.subscribeRepos?cursor=${cursor}`)
  socket.on('error', () => {})
  socket.on('message', (data: Buffer) => {
    seen.push({ seq: decodeFrame(data).body.seq as number, bytes: data.toString('latin1') })
  })
  return { seen, close: () => socket.terminate() }
}

/** Whether the commit of a write has come: it is the last that is written. */
function hasCommit(seen: readonly Seen[], { json }: Reply): boolean {
  const bytes = seen.at(-1)?.bytes
  return bytes?.includes(json.commit.rev) === true
}

/** Seqs rise, and of each account every commit follows the one before. */
function assertWhole(seen: readonly Seen[]): void {
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

async function recordsOf(pds: Daemon, did: string): Promise<Map<string, string>> {
  const reply = await fetch(`${pds.url}/xrpc/com.atproto.sync.getRepo?did=${did}`, { headers: BYPASS })
  const { roots, blocks } = readCar(new Uint8Array(await reply.arrayBuffer()))
  const repo = verifyRepo({ root: roots[0]!, blocks: new Blocks(blocks) }, { did: did as never })
  return new Map([...repo.records].map(({ path, cid }) => [`at://${did}/${path}`, cid.toString()]))
}

describe('several PDS processes at one database', { skip: postgres.skip, timeout: 300_000 }, () => {
  const ends: (() => Promise<void>)[] = []
  let plc: Plc
  let one: Daemon
  let two: Daemon
  const signUp = async (pds: Daemon, name: string, more = {}) => {
    const wanted = { handle: `${name}.pds.example`, email: `${name}@example.com`, password: `${name}-password` }
    return post(pds, 'server.createAccount', { ...wanted, ...more })
  }
  const person = async (name: string) => {
    const { status, json } = await signUp(one, name)
    assert.equal(status, 200, JSON.stringify(json))
    return json as Person
  }
  const write = (pds: Daemon, { did, accessJwt }: Person, n: number) =>
    post(pds, 'repo.createRecord', { repo: did, collection: COLLECTION, record: { n } }, bearer(accessJwt))

  before(async () => {
    const folder = await mkdtemp(join(tmpdir(), 'millisky-several-'))
    const url = await postgres.url({ after: fn => ends.push(fn) })
    plc = await createPlc(
      readSettings(plcSettings, [], { env: { PLC_PORT: '0', PLC_DB: ':memory:', PLC_DEV_MODE: 'true' } }),
      { log: silentLog },
    )
    await plc.listen()
    const start = async (name: string) => {
      const port = await freePort()
      const daemon = new Daemon('pds', port, {
        PDS_PORT: String(port),
        PDS_HOSTNAME: 'pds.example',
        PDS_DATA_DIRECTORY: join(folder, name),
        PDS_BLOBSTORE_DISK_LOCATION: join(folder, 'blobs'),
        PDS_DATABASE_URL: url,
        PDS_DEV_MODE: 'true',
        PDS_DID_PLC_URL: plc.url,
        PDS_INVITE_REQUIRED: 'false',
        PDS_ADMIN_PASSWORD: 'secret',
        PDS_RATE_LIMITS_ENABLED: 'true',
        PDS_RATE_LIMIT_BYPASS_KEY: 'tests',
        PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX: '11'.repeat(32),
        LOG_LEVEL: 'info',
      })
      await daemon.start()
      return daemon
    }
    const starting = Promise.all([start('one'), start('two')])
    ends.unshift(async () => {
      for (const daemon of [one, two]) await daemon?.stop()
      await plc.close()
      await rm(folder, { recursive: true, force: true })
    })
    ;[one, two] = await starting
  })
  after(async () => {
    for (const end of ends) await end()
  })

  test('sessions, invitations, codes and limits hold everywhere', async () => {
    const alice = await person('alice')
    assert.equal((await get(two, 'com.atproto.server.getSession', bearer(alice.accessJwt))).json.did, alice.did)
    const refresh = (pds: Daemon) => post(pds, 'server.refreshSession', undefined, bearer(alice.refreshJwt))
    const [here, there] = await Promise.all([refresh(one), refresh(two)])
    const idOf = (jwt: string) => JSON.parse(Buffer.from(jwt.split('.')[1]!, 'base64url').toString()).jti
    assert.equal(idOf(here.json.refreshJwt), idOf(there.json.refreshJwt), 'one successor, whoever was asked')
    await post(one, 'server.deleteSession', undefined, bearer(here.json.refreshJwt))
    assert.equal((await refresh(two)).json.error, 'ExpiredToken')

    const { code } = (await post(one, 'server.createInviteCode', { useCount: 1 }, ADMIN)).json
    const invited = await Promise.all([
      signUp(one, 'ian', { inviteCode: code }),
      signUp(two, 'ida', { inviteCode: code }),
    ])
    assert.deepEqual(invited.map(({ status }) => status).sort(), [200, 400])
    const same = await Promise.all([signUp(one, 'zoe'), signUp(two, 'zoe', { email: 'other@example.com' })])
    assert.deepEqual(same.map(({ status }) => status).sort(), [200, 400])
    assert.match(same.find(({ status }) => status === 400)!.json.message, /^Handle already taken/)

    await post(one, 'server.requestPasswordReset', { email: 'alice@example.com' })
    const token = await until('the mail', () => /[A-Z2-7]{5}-[A-Z2-7]{5}/.exec(one.process!.output)?.[0])
    assert.equal((await post(two, 'server.resetPassword', { token, password: 'another' })).status, 200)
    const login = { identifier: alice.handle, password: 'another' }
    assert.equal((await post(one, 'server.createSession', login)).status, 200)

    const left = async (pds: Daemon) => {
      const reply = await fetch(`${pds.url}/xrpc/com.atproto.server.describeServer`)
      return Number(reply.headers.get('ratelimit-remaining'))
    }
    assert.deepEqual([await left(one), await left(two)], [2_999, 2_939], 'a share of the points is with the first')
  })

  test('what one process changes the other knows at once', async () => {
    const bob = await person('bob')
    const subject = { $type: 'com.atproto.admin.defs#repoRef', did: bob.did }
    const takedown = (applied: boolean) =>
      post(one, 'admin.updateSubjectStatus', { subject, takedown: { applied, ref: 'x' } }, ADMIN)
    assert.equal((await write(two, bob, 1)).status, 200)
    await takedown(true)
    assert.equal((await write(two, bob, 2)).json.error, 'AccountTakedown')
    assert.equal((await get(two, `com.atproto.sync.getRepo?did=${bob.did}`)).json.error, 'RepoTakendown')
    await takedown(false)
    assert.equal((await write(two, bob, 3)).status, 200)
    const described = async (pds: Daemon) => {
      const { handle, didDoc } = (await get(pds, `com.atproto.repo.describeRepo?repo=${bob.did}`)).json
      return [handle, didDoc.alsoKnownAs[0]]
    }
    assert.deepEqual(await described(two), ['bob.pds.example', 'at://bob.pds.example'])
    const renamed = await post(one, 'identity.updateHandle', { handle: 'robert.pds.example' }, bearer(bob.accessJwt))
    assert.equal(renamed.status, 200)
    await until('the new name', async () => (await described(two)).every(name => name.endsWith('robert.pds.example')))
    assert.equal(
      (await post(two, 'server.createSession', { identifier: 'robert.pds.example', password: 'bob-password' })).status,
      200,
    )
  })

  test('writers of one account through both, and consumers at both', async () => {
    const people = [await person('carla'), await person('dan')]
    const paused = await person('eve')
    const consumers = [follow(one, 0), follow(two, 0)]
    const acknowledged = new Map<string, string>()
    let done = false
    const writer = async (pds: Daemon, who: Person) => {
      for (let n = 0; n < 12; n++) {
        const { status, json } = await write(pds, who, n)
        assert.equal(status, 200, JSON.stringify(json))
        acknowledged.set(json.uri, json.cid)
      }
    }
    const hopeful = async () => {
      while (!done) {
        const { status, json } = await write(two, paused, 0)
        assert.ok(status === 200 || json.error === 'AccountDeactivated', JSON.stringify(json))
      }
    }
    const hoping = hopeful()
    const pausing = (async () => {
      for (let n = 0; n < 4; n++) {
        assert.equal((await post(one, 'server.deactivateAccount', {}, bearer(paused.accessJwt))).status, 200)
        assert.equal((await post(one, 'server.activateAccount', undefined, bearer(paused.accessJwt))).status, 200)
      }
    })()
    await Promise.all([pausing, ...people.flatMap(who => [one, one, two, two].map(pds => writer(pds, who)))])
    done = true
    await hoping
    for (const { did } of people) {
      const mine = [...acknowledged].filter(([uri]) => uri.startsWith(`at://${did}/`))
      assert.deepEqual([...(await recordsOf(two, did))].sort(), mine.sort())
    }
    const last = await write(two, people[0]!, 99)
    await until('both consumers are there', () => consumers.every(({ seen }) => hasCommit(seen, last)))
    const [a, b] = consumers.map(({ seen }) => seen)
    assert.deepEqual(a, b)
    assertWhole(a!)
    let isActive = true
    for (const { t, body } of a!.map(({ bytes }) => decodeFrame(Buffer.from(bytes, 'latin1')))) {
      if (t === '#account' && body.did === paused.did) isActive = body.active as boolean
      if (t === '#commit' && body.repo === paused.did) assert.ok(isActive, 'no commit of a paused account')
    }
    for (const consumer of consumers) consumer.close()
  })

  test('kill -9 of one under load loses nothing that was acknowledged', async () => {
    const people = [await person('fred'), await person('gina')]
    const consumer = follow(two, 0)
    const acknowledged = new Map<string, string>()
    let done = false
    const writer = async (pds: Daemon, who: Person) => {
      for (let n = 0; !done; n++) {
        const reply = await write(pds, who, n).catch(() => null)
        if (!reply) return
        assert.equal(reply.status, 200, JSON.stringify(reply.json))
        acknowledged.set(reply.json.uri, reply.json.cid)
      }
    }
    const writing = people.flatMap(who => [one, one, two].map(pds => writer(pds, who)))
    await until('some writes', () => acknowledged.size > 40)
    await one.kill()
    const before = acknowledged.size
    await until('the other goes on', () => acknowledged.size > before + 20)
    done = true
    await Promise.all(writing)
    for (const { did } of people) {
      const held = await recordsOf(two, did)
      for (const [uri, cid] of acknowledged) if (uri.startsWith(`at://${did}/`)) assert.equal(held.get(uri), cid)
    }
    await one.start()
    const again = follow(one, 0)
    const last = await write(one, people[0]!, 1)
    assert.equal(last.status, 200)
    await until('the same log at both', () => [consumer, again].every(({ seen }) => hasCommit(seen, last)))
    assert.deepEqual(again.seen, consumer.seen)
    assertWhole(again.seen)
    consumer.close()
    again.close()
  })
})
