import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { Did } from '@millisky/core/syntax'
import { startMailbox } from '../testing-mail.ts'
import { failure, type NetworkedPds, type Person, signUp, startNetworkedPds } from '../testing-network.ts'

const SERVER = 'com.atproto.server'
const MINUTE = 60_000
const CODE = /^[A-Z2-7]{5}-[A-Z2-7]{5}$/
const invalid = [400, 'InvalidToken', 'Token is invalid']
const expired = [400, 'ExpiredToken', 'Token is expired']
const bearer = (token: string) => ({ authorization: `Bearer ${token}` })
const empty = { status: 200, size: 0 }

async function start(t: Parameters<typeof startMailbox>[0], env: Record<string, string> = {}) {
  const clock = { now: Date.parse('2026-08-20T12:00:00Z') }
  const mailbox = await startMailbox(t)
  const pds = await startNetworkedPds(t, { ...mailbox.env, ...env }, { now: () => clock.now })
  const post = (method: string, body: unknown, auth: Record<string, string> = {}) =>
    pds.post(`${SERVER}.${method}`, body, null, auth)
  const done = async (method: string, body: unknown, auth: Record<string, string> = {}) => {
    const { status, bytes, json } = await post(method, body, auth)
    assert.deepEqual({ status, size: bytes.length }, empty, JSON.stringify(json))
  }
  return { clock, mailbox, pds, post, done }
}

const login = (pds: NetworkedPds, { did }: Person, password: string) =>
  pds.post(`${SERVER}.createSession`, { identifier: did, password })

test('a mailbox is confirmed by the code that came to it', async t => {
  const { clock, mailbox, pds, post, done } = await start(t)
  const alice = await signUp(pds, 'alice')
  await done('requestEmailConfirmation', undefined, alice.auth)
  const first = await mailbox.next()
  assert.deepEqual([first.subject, first.to, first.from], ['Email Confirmation', [alice.email], 'noreply@pds.test'])
  assert.match(first.code, CODE)
  await done('requestEmailConfirmation', undefined, alice.auth)
  const { code } = await mailbox.next()
  const confirm = (email: string, token: string) => post('confirmEmail', { email, token }, alice.auth)
  assert.deepEqual(failure(await confirm(alice.email, first.code)), invalid, 'the second code replaced the first')
  assert.deepEqual(failure(await confirm(alice.email, 'AAAAA-AAAAA')), invalid)
  assert.deepEqual(failure(await confirm('bob@example.com', code)), [400, 'InvalidEmail', 'invalid email'])
  clock.now += 15 * MINUTE
  assert.deepEqual(failure(await confirm(alice.email, code)), expired)
  await done('requestEmailConfirmation', undefined, alice.auth)
  const third = await mailbox.next()
  clock.now += 15 * MINUTE - 1
  await done('confirmEmail', { email: alice.email.toUpperCase(), token: third.code.toLowerCase() }, alice.auth)
  assert.deepEqual(failure(await confirm(alice.email, third.code)), invalid, 'a code is good once')
  const session = await pds.get(`${SERVER}.getSession`, {}, alice.auth)
  assert.equal(session.json.emailConfirmed, true)
})

test('another mailbox needs a code only if the old one was proven', async t => {
  const { mailbox, pds, post, done } = await start(t)
  const alice = await signUp(pds, 'alice')
  await signUp(pds, 'bob')
  assert.deepEqual((await post('requestEmailUpdate', undefined, alice.auth)).json, { tokenRequired: false })
  await done('requestEmailConfirmation', undefined, alice.auth)
  const stale = (await mailbox.next()).code
  await done('updateEmail', { email: 'Alice2@example.com' }, alice.auth)
  const after = await pds.get(`${SERVER}.getSession`, {}, alice.auth)
  assert.deepEqual([after.json.email, after.json.emailConfirmed], ['alice2@example.com', false])
  const old = await post('confirmEmail', { email: 'alice2@example.com', token: stale }, alice.auth)
  assert.deepEqual(failure(old), invalid, 'the code went to another mailbox')

  await done('requestEmailConfirmation', undefined, alice.auth)
  await done('confirmEmail', { email: 'alice2@example.com', token: (await mailbox.next()).code }, alice.auth)
  assert.deepEqual((await post('requestEmailUpdate', undefined, alice.auth)).json, { tokenRequired: true })
  const mail = await mailbox.next()
  assert.deepEqual([mail.subject, mail.to], ['Email Update Requested', ['alice2@example.com']])
  const update = async (email: string, token?: string) =>
    failure(await post('updateEmail', { email, token }, alice.auth))
  assert.deepEqual(await update('alice3@example.com'), [400, 'TokenRequired', 'confirmation token required'])
  assert.deepEqual(await update('alice3@example.com', 'AAAAA-AAAAA'), invalid)
  const unsupported = 'This email address is not supported, please use a different email.'
  assert.deepEqual(await update('alice3@mailinator.com', mail.code), [400, 'InvalidRequest', unsupported])
  const inUse = 'This email address is already in use, please use a different email.'
  assert.deepEqual(await update('BOB@example.com', mail.code), [400, 'InvalidRequest', inUse])
  await done('updateEmail', { email: 'alice3@example.com', token: mail.code }, alice.auth)
  const { email, emailConfirmed } = (await pds.get(`${SERVER}.getSession`, {}, alice.auth)).json
  assert.deepEqual([email, emailConfirmed], ['alice3@example.com', false])
})

test('a forgotten password is set anew by mail, and nobody learns who has an account', async t => {
  const { clock, mailbox, pds, post, done } = await start(t)
  const alice = await signUp(pds, 'alice')
  await done('requestPasswordReset', { email: 'nobody@example.com' })
  await done('requestPasswordReset', { email: 'ALICE@example.com' })
  const mail = await mailbox.next()
  assert.deepEqual([mail.subject, mail.to], ['Password Reset Requested', [alice.email]])
  assert.match(mail.source, /@alice\.test/)
  const reset = async (token: string, password: string) => failure(await post('resetPassword', { token, password }))
  assert.deepEqual(await reset('AAAAA-AAAAA', 'next'), invalid)
  assert.deepEqual(await reset(mail.code, 'x'.repeat(257)), [400, 'InvalidRequest', 'Invalid password length.'])
  clock.now += 15 * MINUTE
  assert.deepEqual(await reset(mail.code, 'next'), expired)
  await done('requestPasswordReset', { email: alice.email })
  const { code } = await mailbox.next()
  const app = (await post('createAppPassword', { name: 'app' }, alice.auth)).json.password
  const both = await Promise.all([
    post('resetPassword', { token: code, password: 'next 1' }),
    post('resetPassword', { token: code, password: 'next 2' }),
  ])
  assert.deepEqual(both.map(({ status }) => status).sort(), [200, 400], 'of two with one code, one sets the password')
  const password = both[0].status === 200 ? 'next 1' : 'next 2'
  assert.equal((await login(pds, alice, password)).status, 200)
  assert.equal((await login(pds, alice, app)).status, 200, 'app passwords stay')
  assert.equal((await login(pds, alice, alice.password)).status, 401)
  const refresh = await post('refreshSession', undefined, bearer(alice.refreshJwt))
  assert.deepEqual(failure(refresh), [400, 'ExpiredToken', 'Token has been revoked'])
  mailbox.refusing = true
  await done('requestPasswordReset', { email: alice.email })
})

test('an account is deleted by its password and the code together', async t => {
  const { clock, mailbox, pds, post, done } = await start(t)
  const alice = await signUp(pds, 'alice')
  const bob = await signUp(pds, 'bob')
  const write = { repo: alice.did, collection: 'com.example.note', record: { text: 'hi' } }
  assert.equal((await pds.post('com.atproto.repo.createRecord', write, null, alice.auth)).status, 200)
  await done('requestAccountDelete', undefined, alice.auth)
  await done('requestAccountDelete', undefined, bob.auth)
  const mail = await mailbox.next()
  assert.deepEqual([mail.subject, mail.to], ['Account Deletion Requested', [alice.email]])
  const bobs = await mailbox.next()
  const remove = async (did: string, password: string, token: string) =>
    failure(await post('deleteAccount', { did, password, token }))
  const wrong = [401, 'AuthenticationRequired', 'Invalid did or password']
  assert.deepEqual(await remove(alice.did, 'wrong', mail.code), wrong)
  assert.deepEqual(await remove(alice.did, bob.password, mail.code), wrong)
  assert.deepEqual(await remove(alice.did, alice.password, bobs.code), invalid)
  const unknown = await remove('did:plc:aaaaaaaaaaaaaaaaaaaaaaaa', alice.password, mail.code)
  assert.deepEqual(unknown, [400, 'InvalidRequest', 'account not found'])
  const tooLong = await remove('did:plc:aaaaaaaaaaaaaaaaaaaaaaaa', 'x'.repeat(513), mail.code)
  assert.deepEqual(tooLong, [401, 'AuthenticationRequired', 'Password too long. Consider resetting your password.'])
  clock.now += 15 * MINUTE
  assert.deepEqual(await remove(alice.did, alice.password, mail.code), expired)
  await done('requestAccountDelete', undefined, alice.auth)
  await done('deleteAccount', { did: alice.did, password: alice.password, token: (await mailbox.next()).code })
  assert.equal((await pds.get('com.atproto.sync.getRepoStatus', { did: alice.did })).json.error, 'RepoNotFound')
  assert.equal((await login(pds, alice, alice.password)).status, 401)
  assert.equal((await login(pds, bob, bob.password)).status, 200)
  await signUp(pds, 'alice')
})

test('codes of one purpose are none for another', async t => {
  const { mailbox, pds, post, done } = await start(t)
  const alice = await signUp(pds, 'alice')
  await done('requestEmailConfirmation', undefined, alice.auth)
  const { code } = await mailbox.next()
  assert.deepEqual(failure(await post('resetPassword', { token: code, password: 'x' })), invalid)
  const deletion = { did: alice.did, password: alice.password, token: code }
  assert.deepEqual(failure(await post('deleteAccount', deletion)), invalid)
})

test('who may ask for mails, and how often', async t => {
  const { mailbox, pds, post, done } = await start(t, { PDS_RATE_LIMITS_ENABLED: 'true' })
  const alice = await signUp(pds, 'alice')
  const app = (await post('createAppPassword', { name: 'app' }, alice.auth)).json.password
  const limited = bearer((await login(pds, alice, app)).json.accessJwt)
  const scope = [400, 'InvalidToken', 'Bad token scope']
  assert.deepEqual(failure(await post('requestEmailUpdate', undefined, limited)), scope)
  assert.deepEqual(failure(await post('updateEmail', { email: 'x@example.com' }, limited)), scope)
  assert.deepEqual(failure(await post('requestAccountDelete', undefined, limited)), scope)
  assert.equal((await post('requestEmailConfirmation', undefined, limited)).status, 200)
  const missing = [401, 'AuthMissing', 'Authentication Required']
  for (const method of ['requestEmailConfirmation', 'requestEmailUpdate', 'requestAccountDelete']) {
    assert.deepEqual(failure(await post(method, undefined)), missing)
  }
  for (let i = 0; i < 5; i++) await done('requestAccountDelete', undefined, alice.auth)
  const more = await post('requestAccountDelete', undefined, alice.auth)
  assert.deepEqual(failure(more), [429, 'RateLimitExceeded', 'Rate Limit Exceeded'])
  assert.equal(more.headers.get('ratelimit-policy'), '5;w=3600')
  assert.equal(mailbox.mails.length, 6)
  const resets = await Promise.all(
    Array.from({ length: 16 }, () => post('requestPasswordReset', { email: 'x@example.com' })),
  )
  assert.equal(resets.filter(({ status }) => status === 429).length, 1)
  await pds.lifecycle.takedown(alice.did as Did, 'case')
  const taken = [401, 'AccountTakedown', 'Account has been taken down']
  assert.deepEqual(failure(await post('requestEmailUpdate', undefined, alice.auth)), taken)
})

test('a mail that cannot be sent is no success', async t => {
  const { mailbox, pds, post } = await start(t)
  const alice = await signUp(pds, 'alice')
  mailbox.refusing = true
  const failed = [502, 'UpstreamFailure', 'The mail could not be sent']
  assert.deepEqual(failure(await post('requestEmailConfirmation', undefined, alice.auth)), failed)
})

test('an account without a mailbox is told so; without a mail server nothing fails', async t => {
  const pds = await startNetworkedPds(t)
  const { id } = (await pds.store.accounts.byDid((await signUp(pds, 'alice')).did as Did))!
  const alice = await pds.post(`${SERVER}.createSession`, { identifier: 'alice.test', password: 'alice-password' })
  const auth = bearer(alice.json.accessJwt)
  assert.equal((await pds.post(`${SERVER}.requestEmailConfirmation`, undefined, null, auth)).status, 200)
  await pds.store.accounts.update(id, { email: null }, [])
  const none = [400, 'InvalidRequest', 'account does not have an email address']
  for (const method of ['requestEmailConfirmation', 'requestEmailUpdate', 'requestAccountDelete']) {
    assert.deepEqual(failure(await pds.post(`${SERVER}.${method}`, undefined, null, auth)), none)
  }
})
