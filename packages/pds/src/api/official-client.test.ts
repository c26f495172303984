// The client that people use, against the account methods: what it relies on without saying so.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { AtpAgent, type AtpSessionEvent } from '@atproto/api'
import { startMailbox } from '../testing-mail.ts'
import { startNetworkedPds } from '../testing-network.ts'

const HOUR = 3_600_000
const wanted = { handle: 'alice.test', email: 'alice@example.com', password: 'a password' }

test('an agent signs up, outlives its access token, and is signed out wherever its session went', async t => {
  let now = Date.now()
  const pds = await startNetworkedPds(t, {}, { now: () => now })
  const events: AtpSessionEvent[] = []
  const agent = new AtpAgent({ service: pds.url, persistSession: event => void events.push(event) })
  await agent.createAccount(wanted)
  assert.equal(agent.session?.handle, 'alice.test')
  const { accessJwt } = agent.session!
  now += 3 * HOUR
  const [a, b] = await Promise.all([
    agent.com.atproto.server.getSession(),
    agent.com.atproto.server.checkAccountStatus(),
  ])
  assert.deepEqual([a.data.handle, b.data.activated], ['alice.test', true])
  assert.notEqual(agent.session!.accessJwt, accessJwt, 'it has refreshed by itself')

  const kept = { ...agent.session! }
  const phone = new AtpAgent({ service: pds.url })
  await phone.resumeSession(kept)
  assert.equal(phone.session?.did, kept.did)
  await phone.post({ text: 'from the phone' })
  const posts = await agent.com.atproto.repo.listRecords({ repo: kept.did, collection: 'app.bsky.feed.post' })
  assert.equal(posts.data.records.length, 1)
  await agent.logout()
  assert.equal(agent.session, undefined)
  now += 3 * HOUR
  await assert.rejects(phone.com.atproto.server.getSession(), { error: 'ExpiredToken' }, 'both had one session')
  assert.ok(events.includes('create') && events.includes('update'))
})

test('an agent is told apart what went wrong', async t => {
  const pds = await startNetworkedPds(t)
  const agent = new AtpAgent({ service: pds.url })
  await agent.createAccount(wanted)
  const other = new AtpAgent({ service: pds.url })
  await assert.rejects(other.login({ identifier: 'alice.test', password: 'wrong' }), {
    status: 401,
    error: 'AuthenticationRequired',
    message: 'Invalid identifier or password',
  })
  await assert.rejects(other.createAccount({ ...wanted, email: 'x@example.com' }), {
    status: 400,
    message: 'Handle already taken: alice.test',
  })
  await assert.rejects(other.createAccount({ ...wanted, handle: 'a.test' }), { error: 'InvalidHandle' })
  await assert.rejects(agent.updateHandle({ handle: 'admin.test' }), { error: 'HandleNotAvailable' })
  await agent.updateHandle({ handle: 'alice2.test' })
  assert.equal((await agent.resolveHandle({ handle: 'alice2.test' })).data.did, agent.session!.did)
})

test('an agent keeps house: app passwords, mailbox, service tokens, the end', async t => {
  const mailbox = await startMailbox(t)
  const pds = await startNetworkedPds(t, mailbox.env)
  const agent = new AtpAgent({ service: pds.url })
  await agent.createAccount(wanted)
  const { server } = agent.com.atproto
  const made = await server.createAppPassword({ name: 'reader', privileged: true })
  const app = new AtpAgent({ service: pds.url })
  await app.login({ identifier: 'alice.test', password: made.data.password })
  assert.deepEqual(
    (await server.listAppPasswords()).data.passwords.map(({ name, privileged }) => [name, privileged]),
    [['reader', true]],
  )
  const token = await app.com.atproto.server.getServiceAuth({
    aud: 'did:web:chat.example.com',
    lxm: 'chat.bsky.convo.listConvos',
  })
  assert.equal(token.data.token.split('.').length, 3)
  await server.requestEmailConfirmation()
  await server.confirmEmail({ email: wanted.email, token: (await mailbox.next()).code })
  assert.equal((await server.getSession()).data.emailConfirmed, true)
  await agent.setAdultContentEnabled(true)
  assert.equal((await agent.getPreferences()).moderationPrefs.adultContentEnabled, true)
  await server.revokeAppPassword({ name: 'reader' })
  await assert.rejects(app.sessionManager.refreshSession(), { error: 'ExpiredToken' })
  await server.requestAccountDelete()
  const { code } = await mailbox.next()
  await server.deleteAccount({ did: agent.session!.did, password: wanted.password, token: code })
  await assert.rejects(agent.login({ identifier: wanted.email, password: wanted.password }), { status: 401 })
})
