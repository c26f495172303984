// Data of other servers, taken over on each database: what comes, what is refused, and what the report says.
import assert from 'node:assert/strict'
import { argon2Sync } from 'node:crypto'
import { mkdir, mkdtemp, readdir, rename, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { describe, test } from 'node:test'
import { setTimeout as wait } from 'node:timers/promises'
import { type Block, Blocks } from '@millisky/core/blocks'
import { readCar } from '@millisky/core/car'
import { Cid } from '@millisky/core/cid'
import { SigningKey } from '@millisky/core/crypto'
import { decodeFrame } from '@millisky/core/event'
import { verifyRepo } from '@millisky/core/repo'
import { asHandle, type Tid } from '@millisky/core/syntax'
import { testDid } from '@millisky/core/testing-repos'
import { readSettings } from '@millisky/server/config'
import { testDatabases } from '@millisky/server/db/testing'
import { framesOf } from '@millisky/server/log/frame-wire'
import { silentLog } from '@millisky/server/trace'
import { settings as settingsTable } from '../config.ts'
import { openStorage } from '../main.ts'
import type { Arrival, Taken } from '../store/store.ts'
import { JWT_SECRET, startTestPds, type TestPds } from '../testing-pds.ts'
import { Tokens } from '../tokens.ts'
import { type AdoptionReport, adopt } from './adoption.ts'
import { openForeignServer } from './detect.ts'
import {
  actorFolder,
  type FixturePerson,
  fixturePerson,
  PASSWORD,
  PICTURE,
  writeMillipds,
  writeReference,
} from './testing-fixtures.ts'

interface Cleanup {
  after(fn: () => Promise<void>): void
}

async function newFolder(t: Cleanup): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'millisky-adoption-'))
  t.after(() => rm(folder, { recursive: true, force: true }))
  return folder
}

interface Place {
  /** Of the server that takes over. */
  env: Record<string, string>
}

async function take(path: string, { env }: Place): Promise<AdoptionReport> {
  const source = openForeignServer(path)
  const settings = readSettings(settingsTable, [], { env })
  const firstSeq = source.lastSeq() + 1
  const storage = await openStorage(settings, { log: silentLog, now: Date.now, firstSeq })
  try {
    return await adopt({ source, target: storage, now: Date.now })
  } finally {
    await storage.store.close()
    source.close()
  }
}

const login = (pds: TestPds, identifier: string, password = PASSWORD) =>
  pds.post('com.atproto.server.createSession', { identifier, password })

/** What a reader gets is the commit that the old server signed, and what it said. */
async function holds(pds: TestPds, person: FixturePerson, token: string): Promise<void> {
  const { did, head, secret, curve, records } = person
  const { bytes } = await pds.get('com.atproto.sync.getRepo', { did }, { authorization: `Bearer ${token}` })
  const { roots, blocks } = readCar(bytes)
  const key = SigningKey.fromPrivate(curve, secret).publicKey
  const repo = verifyRepo({ root: roots[0]!, blocks: new Blocks(blocks) }, { did, key })
  assert.equal(repo.head.commit.toString(), head.commit.toString())
  const found = [...repo.records].map(({ path, cid }) => `${path} ${cid}`)
  assert.deepEqual(found, records.map(({ path, cid }) => `${path} ${cid}`).sort())
}

const PEOPLE = ['alice', 'bob', 'carol']

for (const database of testDatabases()) {
  describe(`taking over into ${database.name}`, { skip: database.skip }, () => {
    const place = async (t: Cleanup): Promise<Place> => {
      return { env: { PDS_DATA_DIRECTORY: await newFolder(t), PDS_DATABASE_URL: await database.url(t) } }
    }

    test('a data directory of the reference: people go on as before', async t => {
      const folder = await newFolder(t)
      const people = PEOPLE.map(name => fixturePerson(name))
      const [alice] = people as [FixturePerson]
      await writeReference(folder, people)
      const where = await place(t)
      const report = await take(folder, where)
      assert.deepEqual(report.differences, [])
      assert.deepEqual(report.accounts, { found: 3, brought: 3, present: 0, failed: 0 })
      const { blobBytes, ...verified } = report.verified
      assert.equal(blobBytes, 3 * PICTURE.length)
      assert.deepEqual(report.equal, verified)
      assert.equal(verified.records, 90)
      assert.equal(report.lastSeq, 41, 'also where the last events have been removed')
      assert.doesNotMatch(JSON.stringify(report), /of before|3333/, 'no secrets')

      const again = await take(folder, where)
      assert.deepEqual(again.accounts, { found: 3, brought: 0, present: 3, failed: 0 })
      assert.deepEqual(again.differences, [])
      assert.deepEqual(again.equal, report.equal)

      const pds = await startTestPds(t, { ...where.env, PDS_JWT_SECRET: JWT_SECRET })
      const { json } = await login(pds, 'alice@example.com')
      assert.deepEqual([json.did, json.emailConfirmed], [alice.did, true])
      await holds(pds, alice, json.accessJwt)
      const { json: asCarol } = await login(pds, 'carol.test')
      assert.equal(asCarol.status, 'deactivated')
      const tokens = new Tokens(JWT_SECRET, pds.names.did, Date.now)
      const refresh = await tokens.refresh({ did: alice.did, id: 'token of alice' })
      const renewed = await pds.post('com.atproto.server.refreshSession', undefined, null, {
        authorization: `Bearer ${refresh}`,
      })
      assert.equal(renewed.status, 200, JSON.stringify(renewed.json))
      const auth = { authorization: `Bearer ${json.accessJwt}` }
      const { json: named } = await pds.get('com.atproto.server.listAppPasswords', {}, auth)
      assert.deepEqual(
        named.passwords.map(({ name, privileged }: { name: string; privileged: boolean }) => [name, privileged]),
        [['phone', true]],
      )
      const picture = await pds.get('com.atproto.sync.getBlob', { did: alice.did, cid: alice.blobs[0]!.cid.toString() })
      assert.deepEqual(picture.bytes, PICTURE)
      assert.equal(picture.headers.get('content-type'), 'image/png')
      assert.deepEqual(
        (await pds.store.tickets.invite('pds-test-abcde'))?.usedBy.map(({ did }) => did),
        [alice.did],
      )

      const { head } = pds.store.log
      assert.equal(head, 41)
      const record = { $type: 'app.bsky.feed.post', text: 'the next one', createdAt: '2026-01-01T00:00:00Z' }
      // How many nodes a record makes anew depends on its key, so this one is not left to the clock.
      const body = { repo: alice.did, collection: 'app.bsky.feed.post', rkey: '3nextone22222', record }
      const written = await pds.post('com.atproto.repo.createRecord', body, null, auth)
      assert.equal(written.status, 200, JSON.stringify(written.json))
      // On PostgreSQL events are shown a moment after their commit.
      while (pds.store.log.head === head) await wait(2)
      const [event] = framesOf((await pds.store.log.read(head, { bytes: 1e6 })).wire).map(decodeFrame)
      const next = event?.body as Record<string, unknown>
      assert.deepEqual([next.seq, next.since, `${next.prevData}`], [42, alice.head.rev, `${alice.head.data}`])
      const { bytes } = await pds.get('com.atproto.sync.getRepo', { did: alice.did, since: alice.head.rev })
      assert.ok(readCar(bytes).blocks.length <= 6, 'revs of nodes and records have come along')
    })

    test('an account comes wholly or not at all, and never twice', async t => {
      const { did, head, commit, blocks, records, secret } = fixturePerson('alice', { count: 250 })
      const { env } = await place(t)
      const settings = readSettings(settingsTable, [], { env })
      const { store } = await openStorage(settings, { log: silentLog, now: Date.now })
      t.after(() => store.close())
      const isRecord = new Set(records.map(({ cid }) => cid.key))
      const arrival: Arrival = {
        did,
        handle: asHandle('alice.test'),
        email: 'alice@example.com',
        emailConfirmedAt: null,
        password: null,
        createdAt: 1,
        deactivatedAt: null,
        deleteAfter: null,
        takedown: null,
        invitesDisabled: true,
        key: { curve: 'k256', secret },
        head,
        commit,
        preferences: [{ type: 'a', json: '{}' }],
        appPasswords: [],
        sessions: [],
        recordTakedowns: [{ path: records[0]!.path, reference: 'case 1' }],
        blobs: [{ cid: Cid.ofRaw(PICTURE), mimeType: 'image/png', size: 9, takedown: null, looseSince: 5 }],
        nodes: () => blocks.filter(({ cid }) => !isRecord.has(cid.key)) as (Block & { rev: Tid })[],
        records: () => records.map(record => ({ ...record, rev: record.rev as Tid, blobs: [], subject: null })),
      }
      const broken = function* () {
        yield* arrival.records()
        throw new Error('cut short')
      }
      await assert.rejects(store.arrivals.add({ ...arrival, records: broken }), /cut short/)
      assert.equal(await store.accounts.byDid(did), null)
      const id = await store.arrivals.add(arrival)
      assert.deepEqual(await store.repos.counts(id), { nodes: blocks.length - records.length, records: records.length })
      assert.equal((await store.accounts.byDid(did))?.hasRecordTakedowns, true)
      assert.equal(await store.takedowns.get(id, records[0]!.path), 'case 1')
      assert.equal((await store.blobs.get(id, Cid.ofRaw(PICTURE)))?.looseSince, 5, 'no record refers to it')
      await assert.rejects(store.arrivals.add(arrival), (error: Taken) => error.what === 'did')
      const [handle, email] = [asHandle('alicia.test'), 'alicia@example.com']
      const another = { ...arrival, did: testDid('another') }
      await assert.rejects(store.arrivals.add({ ...another, email }), (error: Taken) => error.what === 'handle')
      await assert.rejects(store.arrivals.add({ ...another, handle }), (error: Taken) => error.what === 'email')
    })

    test('a database of millipds: argon2id as it is, keys of both curves, blobs in parts', async t => {
      const path = join(await newFolder(t), 'millipds.sqlite3')
      const people = [fixturePerson('alice'), fixturePerson('bob', { curve: 'p256' })]
      const nonce = Buffer.alloc(16, 7)
      const hash = argon2Sync('argon2id', {
        message: PASSWORD,
        nonce,
        memory: 65_536,
        passes: 3,
        parallelism: 4,
        tagLength: 32,
      })
      const text = (bytes: Buffer) => bytes.toString('base64').replace(/=+$/, '')
      writeMillipds(path, people, `$argon2id$v=19$m=65536,t=3,p=4$${text(nonce)}$${text(hash)}`)
      const where = await place(t)
      const report = await take(path, where)
      assert.deepEqual(report.differences, [])
      assert.deepEqual(report.accounts, { found: 2, brought: 2, present: 0, failed: 0 })
      assert.deepEqual([report.equal.records, report.equal.blobs, report.lastSeq], [60, 2, 41])
      assert.deepEqual((await take(path, where)).differences, [])
      const pds = await startTestPds(t, where.env)
      for (const person of people) {
        const { json } = await login(pds, person.did)
        await holds(pds, person, json.accessJwt)
      }
      const account = (await pds.store.accounts.byDid(people[0]!.did))!
      assert.match((await pds.store.accounts.password(account.id))!, /m=19456,t=2,p=1/, 'hashed anew at the login')
      assert.equal((await pds.store.accounts.preferences(account.id)).length, 1)
      const [blob] = people[0]!.blobs
      assert.equal((await pds.store.blobs.get(account.id, blob!.cid))?.mimeType, 'image/png', 'as the record says')
    })
  })
}

test('what is broken there is named, and the rest comes', async t => {
  const folder = await newFolder(t)
  const names = ['alice', 'bob', 'carol', 'dave', 'erin', 'frank', 'gina']
  const people = Object.fromEntries(names.map(name => [name, fixturePerson(name, { count: 5 })]))
  await writeReference(folder, Object.values(people))
  const { alice, bob, carol, dave, erin, frank } = people as Record<string, FixturePerson>
  const change = (person: FixturePerson | undefined, sql: string, ...values: (string | Uint8Array)[]) => {
    const db = new DatabaseSync(join(actorFolder(folder, person!.did), 'store.sqlite'))
    db.prepare(sql).run(...values)
    db.close()
  }
  const record = bob!.records[1]!
  change(bob, 'update repo_block set content = ? where cid = ?', record.bytes.with(-1, 0), record.cid.toString())
  await writeFile(join(actorFolder(folder, carol!.did), 'key'), alice!.secret)
  await writeFile(join(folder, 'blocks', dave!.did, dave!.blobs[0]!.cid.toString()), 'other bytes')
  change(erin, 'delete from record where cid = ?', erin!.records[2]!.cid.toString())
  await rename(join(actorFolder(folder, frank!.did), 'store.sqlite'), join(folder, 'lost'))

  const env = { PDS_DATA_DIRECTORY: await newFolder(t) }
  const report = await take(folder, { env })
  assert.deepEqual(report.accounts, { found: 7, brought: 4, present: 0, failed: 3 })
  const about = (person: FixturePerson | undefined) =>
    report.differences.filter(text => text.startsWith(person!.did)).join('\n')
  assert.match(about(bob), /block is not what .* says/)
  assert.match(about(carol), /not signed with the key/)
  assert.match(about(dave), /has other bytes on the old server/)
  assert.match(about(erin), /its list of records says undefined\n.*the tree has 5 records, its list of records 4/)
  assert.match(about(frank), /cannot be read/)
  assert.equal(about(alice), '')
  assert.equal(report.differencesCount, report.differences.length)
  assert.deepEqual(await readdir(join(env.PDS_DATA_DIRECTORY, 'blobs', '.staging')), [], 'nothing is left lying')
  const pds = await startTestPds(t, env)
  const missing = await pds.store.blobs.missing((await pds.store.accounts.byDid(dave!.did))!.id, { limit: 10 })
  assert.deepEqual(missing.length, 1, 'a client finds out what is missing')
})

test('accounts that have moved on here, or whose name is taken, are left as they are and named', async t => {
  const folder = await newFolder(t)
  const [alice, bob] = [fixturePerson('alice', { count: 3 }), fixturePerson('bob', { count: 3 })]
  await writeReference(folder, [alice])
  const env = { PDS_DATA_DIRECTORY: await newFolder(t) }
  await take(folder, { env })
  const pds = await startTestPds(t, env)
  await pds.repos.resign(alice.did)
  await pds.close()
  const moved = await take(folder, { env })
  assert.deepEqual(moved.accounts, { found: 1, brought: 0, present: 1, failed: 0 })
  assert.match(moved.differences.join('\n'), /the head is \S+ \(\S+\) here, \S+ \(\S+\) there/)
  const other = await newFolder(t)
  await writeReference(other, [{ ...bob, name: 'alice' }])
  const taken = await take(other, { env })
  assert.deepEqual(taken.accounts, { found: 1, brought: 0, present: 0, failed: 1 })
  assert.deepEqual(taken.differences, [`${bob.did}: handle is taken`])
})

test('blobs that lie where they shall lie stay there, those taken down apart', async t => {
  const folder = await newFolder(t)
  const [alice, bob] = [fixturePerson('alice', { count: 3 }), fixturePerson('bob', { count: 3 })]
  await writeReference(folder, [alice, bob])
  const cid = bob.blobs[0]!.cid
  const quarantine = join(folder, 'blocks', 'quarantine', bob.did)
  await mkdir(quarantine, { recursive: true })
  await rename(join(folder, 'blocks', bob.did, cid.toString()), join(quarantine, cid.toString()))
  const db = new DatabaseSync(join(actorFolder(folder, bob.did), 'store.sqlite'))
  db.exec("update blob set takedownRef = 'case 2'")
  db.close()
  const inPlace = { PDS_DATA_DIRECTORY: folder, PDS_BLOBSTORE_DISK_LOCATION: join(folder, 'blocks') }
  const elsewhere = { PDS_DATA_DIRECTORY: await newFolder(t) }
  for (const env of [inPlace, elsewhere]) {
    const report = await take(folder, { env })
    assert.deepEqual([report.differences, report.equal.blobs], [[], 2])
    const pds = await startTestPds(t, env)
    const blobOf = ({ did }: FixturePerson) => pds.get('com.atproto.sync.getBlob', { did, cid: cid.toString() })
    assert.equal((await blobOf(alice)).status, 200)
    assert.equal((await blobOf(bob)).status, 400)
    const lying = await pds.blobs.open(bob.did, cid)
    lying?.destroy()
    assert.equal(lying, null)
    await pds.close()
  }
  assert.deepEqual(await readdir(quarantine), [cid.toString()])
})

test('a dry run writes nothing; a running server is found out', async t => {
  const folder = await newFolder(t)
  await writeReference(folder, [fixturePerson('alice', { count: 3 })])
  const source = openForeignServer(folder)
  t.after(async () => source.close())
  const onProgress = () => {
    const db = new DatabaseSync(join(folder, 'sequencer.sqlite'))
    db.exec("insert into repo_seq (did, eventType, event, sequencedAt) values ('did:web:a', 'append', x'00', '')")
    db.close()
  }
  const report = await adopt({ source, target: null, now: Date.now, onProgress })
  assert.deepEqual(report.differences, ['the old server is running: its events went from 41 to 42 meanwhile'])
  assert.deepEqual(report.equal, { heads: 0, nodes: 0, records: 0, blobs: 0 })
  assert.equal(report.verified.records, 3)
})

test('other paths, and other versions, are refused with a reason', async t => {
  const folder = await newFolder(t)
  assert.throws(() => openForeignServer(join(folder, 'nowhere')), /there is no/)
  assert.throws(() => openForeignServer(folder), /has no account\.sqlite/)
  const path = join(folder, 'db')
  new DatabaseSync(path).exec('create table something (x)')
  assert.throws(() => openForeignServer(path), /neither/)
  writeMillipds(join(folder, 'old'), [], '', 3)
  assert.throws(() => openForeignServer(join(folder, 'old')), /version 3/)
})
