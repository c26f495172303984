// `millisky pds import` on the files of the real reference PDS: what its people had, they have here.
import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { AtpAgent } from '@atproto/api'
import { until } from '@millisky/server/testing-until'
import type { AdoptionReport } from '../../packages/pds/src/adoption/adoption.ts'
import { startMailbox } from '../../packages/pds/src/testing-mail.ts'
import { startNetwork } from '../../packages/pds/src/testing-network.ts'
import { run } from './command-line.ts'
import { verifyingConsumer } from './consumers.ts'
import { Daemon } from './network.ts'
import { freePort } from './ports.ts'
import { ReferenceDaemon, withoutReference } from './reference-daemon.ts'

const png = Buffer.from(
  'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==',
  'base64',
)

/** Preferences are kept where an app view is set; it is never asked. */
const appView = { PDS_BSKY_APP_VIEW_URL: 'http://127.0.0.1:1', PDS_BSKY_APP_VIEW_DID: 'did:web:app.test' }

async function runImport(...args: string[]): Promise<{ code: number | null; output: string; report: AdoptionReport }> {
  const { code, output } = await run(['pds', 'import', ...args, '--json'])
  const json = output.split('\n').find(line => line.startsWith('{'))
  return { code, output, report: json ? JSON.parse(json) : null }
}

async function admin(service: string, method: string, body: object): Promise<Response> {
  const authorization = `Basic ${Buffer.from('admin:reference-admin').toString('base64')}`
  const headers = { authorization, 'content-type': 'application/json' }
  const reply = await fetch(`${service}/xrpc/${method}`, { method: 'POST', headers, body: JSON.stringify(body) })
  assert.equal(reply.status, 200, `${method}: ${reply.status}`)
  return reply
}

async function person(service: string, name: string): Promise<AtpAgent> {
  const agent = new AtpAgent({ service })
  await agent.createAccount({ handle: `${name}.test`, email: `${name}@example.com`, password: `${name}-password` })
  return agent
}

test('the data directory of the reference becomes a PDS of ours', { skip: withoutReference }, async t => {
  const folder = await mkdtemp(join(tmpdir(), 'millisky-import-'))
  t.after(() => rm(folder, { recursive: true, force: true }))
  const { plc } = await startNetwork(t as never)
  const mailbox = await startMailbox(t as never)
  const port = await freePort()
  const old = new ReferenceDaemon({
    folder: join(folder, 'old'),
    port,
    plcUrl: plc.url,
    env: { ...mailbox.env, ...appView },
  })
  await old.start()
  t.after(() => old.stop())

  const alice = await person(old.url, 'alice')
  const bob = await person(old.url, 'bob')
  const carol = await person(old.url, 'carol')
  const { data: uploaded } = await alice.uploadBlob(png, { encoding: 'image/png' })
  const picture = await alice.post({
    text: 'A picture',
    embed: { $type: 'app.bsky.embed.images', images: [{ image: uploaded.blob, alt: 'one pixel' }] },
  })
  for (let i = 0; i < 120; i++) await alice.post({ text: `post ${i}` })
  const like = await bob.like(picture.uri, picture.cid)
  await bob.follow(alice.assertDid)
  const bad = await bob.post({ text: 'to be taken down' })
  await bob.uploadBlob(Buffer.from('never used'), { encoding: 'text/plain' })
  await alice.app.bsky.actor.putPreferences({
    preferences: [{ $type: 'app.bsky.actor.defs#adultContentPref', enabled: true }],
  })
  const { data: appPassword } = await alice.com.atproto.server.createAppPassword({ name: 'phone', privileged: true })
  await admin(old.url, 'com.atproto.server.createInviteCode', { useCount: 3 })
  await admin(old.url, 'com.atproto.admin.updateSubjectStatus', {
    subject: { $type: 'com.atproto.repo.strongRef', uri: bad.uri, cid: bad.cid },
    takedown: { applied: true, ref: 'case 1' },
  })
  await carol.com.atproto.server.deactivateAccount({})
  const session = alice.session!
  const root = (await alice.com.atproto.sync.getLatestCommit({ did: alice.assertDid })).data
  const car = (await alice.com.atproto.sync.getRepo({ did: alice.assertDid })).data.length
  await old.stop()
  const { PDS_PORT: _, PDS_CRAWLERS: __, ...env } = old.env
  await writeFile(
    join(folder, 'old', 'pds.env'),
    Object.entries(env)
      .map(([name, value]) => `${name}="${value}"\n`)
      .join(''),
  )
  const target = join(folder, 'new')
  const flags = [join(folder, 'old'), `--data-directory=${target}`]

  const dry = await runImport(...flags, '--dry-run')
  assert.equal(dry.code, 0, dry.output)
  assert.equal(existsSync(target), false, 'nothing is written')
  assert.deepEqual(dry.report.accounts, { found: 3, brought: 3, present: 0, failed: 0 })

  const { code, output, report } = await runImport(...flags)
  assert.equal(code, 0, output)
  assert.deepEqual(report.differences, [])
  assert.deepEqual(report.accounts, { found: 3, brought: 3, present: 0, failed: 0 })
  assert.equal(report.equal.heads, 3)
  assert.equal(report.equal.records, 124)
  assert.equal(report.equal.blobs, 2)
  assert.equal(report.invites, 1)
  assert.doesNotMatch(output, /a secret of the reference|2222222222/, 'secrets stay secret')
  assert.doesNotMatch(report.remarks.join(), /this one is/)
  const { report: misled } = await runImport(...flags, '--hostname=pds.example.com', '--dry-run')
  assert.match(misled.remarks.join(), /was did:web:localhost, by these settings this one is did:web:pds.example.com/)
  const again = await runImport(...flags)
  assert.equal(again.code, 0, again.output)
  assert.deepEqual(again.report.accounts, { found: 3, brought: 0, present: 3, failed: 0 })
  assert.deepEqual(again.report.equal, report.equal)

  const pds = new Daemon('pds', port, {
    ...old.env,
    PDS_DATA_DIRECTORY: target,
    PDS_BLOBSTORE_DISK_LOCATION: join(target, 'blobs'),
  })
  await pds.start()
  t.after(() => pds.stop())
  const consumer = verifyingConsumer(pds.url, plc.url, report.lastSeq)
  t.after(() => consumer.close())
  const here = new AtpAgent({ service: pds.url })
  await here.resumeSession(session)
  const post = await here.post({ text: 'written with the old token' })
  assert.match(post.uri, /app\.bsky\.feed\.post/)
  await until('the first event', () => consumer.events.length > 0)
  const [first] = consumer.events
  assert.equal(first?.event, 'create')
  assert.equal(first?.seq, report.lastSeq + 1, 'relays go on where they were')
  assert.deepEqual(consumer.errors, [])

  const refreshed = await fetch(`${pds.url}/xrpc/com.atproto.server.refreshSession`, {
    method: 'POST',
    headers: { authorization: `Bearer ${session.refreshJwt}` },
  })
  assert.equal(refreshed.status, 200, 'refresh tokens of the old server are good')
  const login = (identifier: string, password: string) =>
    new AtpAgent({ service: pds.url }).login({ identifier, password })
  assert.equal((await login('alice.test', 'alice-password')).data.did, alice.assertDid)
  assert.equal((await login('alice.test', 'alice-password')).data.did, alice.assertDid, 'also once it is hashed anew')
  assert.equal((await login('alice.test', appPassword.password)).data.did, alice.assertDid)
  assert.equal((await login('carol.test', 'carol-password')).data.status, 'deactivated')
  await assert.rejects(login('alice.test', 'another'), /Invalid identifier or password/)
  const { data } = await here.app.bsky.actor.getPreferences()
  assert.deepEqual(data.preferences, [{ $type: 'app.bsky.actor.defs#adultContentPref', enabled: true }])

  const since = await here.com.atproto.sync.getRepo({ did: alice.assertDid, since: root.rev })
  assert.ok(since.data.length < car / 4, 'only what is new')
  const blob = await here.com.atproto.sync.getBlob({
    did: alice.assertDid,
    cid: uploaded.blob.ref.toString(),
  })
  assert.deepEqual(Buffer.from(blob.data), png)
  const missing = await here.com.atproto.repo.listMissingBlobs()
  assert.deepEqual(missing.data.blobs, [])
  const taken = await here.com.atproto.repo
    .getRecord({ repo: bob.assertDid, collection: 'app.bsky.feed.post', rkey: bad.uri.split('/').at(-1)! })
    .then(
      () => 'shown',
      error => error.error,
    )
  assert.equal(taken, 'RecordNotFound')
  const bobHere = new AtpAgent({ service: pds.url })
  await bobHere.login({ identifier: 'bob.test', password: 'bob-password' })
  const anew = await bobHere.like(picture.uri, picture.cid)
  const likes = await bobHere.com.atproto.repo.listRecords({ repo: bob.assertDid, collection: 'app.bsky.feed.like' })
  assert.deepEqual(
    likes.data.records.map(({ uri }) => uri),
    [anew.uri],
    `the older like ${like.uri} of the same post went`,
  )
  assert.ok((await readdir(join(target, 'blobs'))).includes(alice.assertDid))
})
