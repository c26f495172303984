// The commands about a PDS, called in this process against a PDS in this process.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { type Mailbox, startMailbox } from '@millisky/pds/testing-mail'
import { type NetworkedPds, type Person, startNetworkedPds } from '@millisky/pds/testing-network'
import { ADMIN_PASSWORD } from '@millisky/pds/testing-pds'
import type { Command } from 'commander'
import { relaysCommand, requestCrawlCommand } from './crawl-commands.ts'
import { accountCommand, inviteCommand } from './pds-admin.ts'
import { blobCommand, recordCommand } from './subject-commands.ts'

const cleanups: (() => Promise<void>)[] = []
const t = { after: (fn: () => Promise<void>) => void cleanups.push(fn) }
let mailbox: Mailbox
let pds: NetworkedPds
let alice: Person
let relayUrl = ''

before(async () => {
  const relay = createServer((request, response) => {
    request.resume()
    response.writeHead(200, { 'content-type': 'application/json' })
    response.end(request.url!.includes('getHostStatus') ? '{"status":"active","seq":100000}' : '{}')
  }).listen(0, '127.0.0.1')
  await once(relay, 'listening')
  t.after(() => new Promise(done => void relay.close(() => done()).closeAllConnections()))
  relayUrl = `http://127.0.0.1:${(relay.address() as AddressInfo).port}`
  mailbox = await startMailbox(t)
  pds = await startNetworkedPds(t, { ...mailbox.env, PDS_CRAWLERS: relayUrl, PDS_INVITE_REQUIRED: 'true' })
  await run(accountCommand(), 'create', 'alice.test', 'alice@example.com', '--password', 'alice-password')
  const session = await pds.post('com.atproto.server.createSession', {
    identifier: 'alice.test',
    password: 'alice-password',
  })
  alice = { ...session.json, auth: { authorization: `Bearer ${session.json.accessJwt}` } }
})
after(async () => {
  for (const cleanup of cleanups.reverse()) await cleanup()
})

/** Behind the names of the command, before what a test gives. */
function insert(args: string[], options: string[]): string[] {
  const at = args.findIndex(arg => arg.startsWith('--'))
  return at < 0 ? [...args, ...options] : [...args.slice(0, at), ...options, ...args.slice(at)]
}

/** Calls a command as the shell would: what it printed as JSON lines, and its exit code. */
async function run(command: Command, ...args: string[]) {
  const printed: string[] = []
  const { write } = process.stdout
  const writeError = process.stderr.write
  // The test runner reports in bytes on the same stream.
  process.stdout.write = ((text: unknown, ...more: never[]) =>
    typeof text === 'string'
      ? printed.push(text) > 0
      : Reflect.apply(write, process.stdout, [text, ...more])) as typeof write
  let errors = ''
  process.stderr.write = ((text: string) => {
    errors += text
    return true
  }) as typeof writeError
  try {
    const options = [
      '--pds',
      pds.url,
      ...(command.name() === 'request-crawl' ? [] : ['--admin-password', ADMIN_PASSWORD]),
    ]
    // Of an option that is given twice the last one counts.
    await command.exitOverride().parseAsync([...insert(args, options), '--json'], { from: 'user' })
  } finally {
    process.stdout.write = write
    process.stderr.write = writeError
  }
  const code = process.exitCode ?? 0
  process.exitCode = 0
  const lines = printed
    .join('')
    .split('\n')
    .filter(line => line !== '')
  return { code, errors, rows: lines.map(line => JSON.parse(line)) }
}

const status = async (did: string) => (await pds.get('com.atproto.sync.getRepoStatus', { did })).json

test('an account is suspended, signed out and written to', async () => {
  assert.deepEqual((await run(accountCommand(), 'suspend', 'alice.test')).rows, [{ did: alice.did, suspended: true }])
  assert.equal((await status(alice.did)).status, 'suspended')
  await run(accountCommand(), 'unsuspend', alice.did)
  assert.equal((await status(alice.did)).active, true)

  const folder = await mkdtemp(join(tmpdir(), 'millisky-mail-'))
  await writeFile(join(folder, 'letter.txt'), 'Hello from your operator')
  const sent = await run(accountCommand(), 'mail', 'alice.test', join(folder, 'letter.txt'), '--subject', 'News')
  await rm(folder, { recursive: true })
  assert.deepEqual(sent.rows, [{ did: alice.did, sent: true }])
  const mail = await mailbox.next()
  assert.deepEqual([mail.to, mail.subject], [['alice@example.com'], 'News'])
  assert.match(mail.source, /Hello from your operator/)
  const did = (await pds.get('com.atproto.server.describeServer')).json.did
  const sly = {
    recipientDid: alice.did,
    senderDid: did,
    content: 'x',
    subject: 'News\r\nBcc: bob@example.com\r\n\r\nHi',
  }
  const basic = { authorization: `Basic ${Buffer.from(`admin:${ADMIN_PASSWORD}`).toString('base64')}` }
  assert.equal((await pds.post('com.atproto.admin.sendEmail', sly, null, basic)).status, 200)
  const slyMail = await mailbox.next()
  assert.deepEqual(slyMail.to, ['alice@example.com'], 'a subject is no way to other recipients')
  assert.doesNotMatch(slyMail.source, /^Bcc:/m)

  const login = () =>
    pds.post('com.atproto.server.createSession', { identifier: 'alice.test', password: 'alice-password' })
  assert.equal((await login()).status, 200)
  await run(accountCommand(), 'sign-out', 'alice.test')
  assert.equal((await login()).status, 401)
  await run(accountCommand(), 'reset-password', 'alice.test', '--password', 'alice-password')
  assert.equal((await login()).status, 200)
})

test('a wrong password and a server that is away are said in so many words', async () => {
  await assert.rejects(run(accountCommand(), 'list', '--admin-password', 'guess'), /is the admin password right/)
  const away = ['--pds', 'http://127.0.0.1:9', '--admin-password', 'x']
  await assert.rejects(run(accountCommand(), 'list', ...away), /http:\/\/127\.0\.0\.1:9 does not answer/)
})

test('an account is made for a DID that there is; what makes no sense together is said', async () => {
  const did = 'did:web:carol.example.com'
  const made = await run(accountCommand(), 'create', 'carol.test', 'carol@example.com', '--did', did)
  assert.match(made.rows[0].signingKey, /^did:key:z/)
  assert.deepEqual([made.rows[0].did, made.rows[0].handle, made.rows[0].password.length], [did, 'carol.test', 24])
  assert.match(made.errors, /millisky account activate did:web:carol/)
  assert.deepEqual(await status(did), { did, active: false, status: 'deactivated' })
  const again = run(accountCommand(), 'create', 'carol2.test', 'carol2@example.com', '--did', did)
  await assert.rejects(again, /AlreadyExists|already taken/)
  const both = ['--did', 'did:web:x.example.com', '--recovery-key', 'did:key:z']
  await assert.rejects(run(accountCommand(), 'create', 'x.test', 'x@example.com', ...both), /keeps the keys it has/)
})

test('an invite code that was made for an account which then was not does not stay usable', async () => {
  await assert.rejects(run(accountCommand(), 'create', 'alice.test', 'new@example.com'), /Handle already taken/)
  const { rows } = await run(inviteCommand(), 'list')
  assert.deepEqual(
    rows.filter(({ used, disabled }) => used === 0 && !disabled),
    [],
  )
  assert.deepEqual((await run(inviteCommand(), 'forbid', 'alice.test')).rows, [{ did: alice.did, invites: false }])
  assert.equal((await run(accountCommand(), 'info', 'alice.test')).rows[0].invitesDisabled, true)
  await run(inviteCommand(), 'allow', 'alice.test')
  assert.equal((await run(accountCommand(), 'info', 'alice.test')).rows[0].invitesDisabled, false)
})

test('a record and a blob are taken down and served again', async () => {
  const record = { text: 'hello', $type: 'com.example.note' }
  const body = { repo: alice.did, collection: 'com.example.note', rkey: 'a', record, validate: false }
  await pds.post('com.atproto.repo.createRecord', body, null, alice.auth)
  const uri = `at://${alice.did}/com.example.note/a`
  const shown = async () =>
    (await pds.get('com.atproto.repo.getRecord', { repo: alice.did, collection: 'com.example.note', rkey: 'a' })).status
  assert.equal(await shown(), 200)
  await run(recordCommand(), 'takedown', 'at://alice.test/com.example.note/a', '--ref', 'case 1')
  assert.equal(await shown(), 400)
  assert.deepEqual((await run(recordCommand(), 'status', uri)).rows[0].takedown, { applied: true, ref: 'case 1' })
  await run(recordCommand(), 'untakedown', uri)
  assert.equal(await shown(), 200)
  await assert.rejects(run(recordCommand(), 'takedown', 'a note'), /named by its at:\/\/ URI/)

  const png = new Uint8Array([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a, 0, 0, 0, 0])
  const { json } = await pds.post('com.atproto.repo.uploadBlob', png, null, {
    ...alice.auth,
    'content-type': 'image/png',
  })
  const cid = json.blob.ref.$link
  const picture = { ...body, rkey: 'b', record: { ...record, picture: json.blob } }
  await pds.post('com.atproto.repo.createRecord', picture, null, alice.auth)
  const served = async () => (await pds.get('com.atproto.sync.getBlob', { did: alice.did, cid })).status
  assert.equal(await served(), 200)
  await run(blobCommand(), 'takedown', 'alice.test', cid)
  assert.equal(await served(), 400)
  await run(blobCommand(), 'untakedown', 'alice.test', cid)
  assert.equal(await served(), 200)
})

test('relays are asked and shown, those that need the administrator by the exit code', async () => {
  const ahead = await run(relaysCommand(), '--check')
  assert.equal(ahead.code, 1)
  assert.deepEqual([ahead.rows[0].relays[0].verdict, ahead.rows[0].hostname], ['ahead', pds.names.publicHost])
  const before = pds.store.log.head
  assert.deepEqual((await run(accountCommand(), 'announce', 'alice.test')).rows, [{ announced: 1 }])
  assert.equal(pds.store.log.head, before + 4)
  assert.deepEqual((await run(accountCommand(), 'announce', '--all')).rows, [{ announced: 2 }])
  await assert.rejects(run(accountCommand(), 'announce'), /name accounts, or give --all/)

  const asked = await run(requestCrawlCommand(), relayUrl, 'http://127.0.0.1:1')
  assert.deepEqual([asked.code, asked.rows.length], [1, 1], 'the one that answers was asked all the same')
  assert.match(asked.errors, /^http:\/\/127\.0\.0\.1:1: .* does not answer: /)
  await assert.rejects(run(requestCrawlCommand()), /name a relay, or set PDS_CRAWLERS/)
})
