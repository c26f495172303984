// What clients of a PDS are told of the server, of names they may have and of codes that come by mail. The numbers are those of the list
// of behaviours.
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { startMailbox } from '@millisky/pds/testing-mail'
import { signUp, startNetworkedPds } from '@millisky/pds/testing-network'
import { basic, startTestPds } from '@millisky/pds/testing-pds'
import { ask, failure, post } from './pds-asking.ts'

const MINUTE = 60_000
let now = Date.parse('2026-08-20T12:00:00Z')
const mailbox = await startMailbox({ after })
const pds = await startNetworkedPds(
  { after },
  { PDS_HOSTNAME: 'pds.example.com', PDS_SERVICE_HANDLE_DOMAINS: '.test,.pds.example.com', ...mailbox.env },
  { now: () => now },
)
const server = (name: string) => `com.atproto.server.${name}`
const send = (name: string, body: unknown, headers = {}) => post(pds.url, server(name), body, headers)
const DESCRIBE = server('describeServer')
const CODE = /^[A-Z2-7]{5}-[A-Z2-7]{5}$/
const WRONG_CODE = [400, 'InvalidToken', 'Token is invalid']
const OLD_CODE = [400, 'ExpiredToken', 'Token is expired']

/** Asks for a mail and takes it. */
async function mailed(method: string, headers: Record<string, string>, body?: object) {
  const told = body
    ? await post(pds.url, method, body, headers)
    : await ask(pds.url, method, { method: 'POST', headers })
  assert.equal(told.status, 200, told.text)
  const mail = await mailbox.next()
  assert.match(mail.code, CODE)
  return { ...mail, reply: told.json }
}

test('B38 a server says who it is, whose handles it gives, and whom to turn to', async () => {
  const described = await startTestPds(
    { after },
    {
      PDS_HOSTNAME: 'pds.example.com',
      PDS_SERVICE_HANDLE_DOMAINS: '.pds.example.com,.example.org',
      PDS_INVITE_REQUIRED: 'true',
      PDS_BLOB_UPLOAD_LIMIT: '1000000',
      PDS_PRIVACY_POLICY_URL: 'https://example.com/privacy',
      PDS_TERMS_OF_SERVICE_URL: 'https://example.com/terms',
      PDS_CONTACT_EMAIL_ADDRESS: 'help@example.com',
    },
  )
  const told = await ask(described.url, DESCRIBE)
  assert.equal(told.status, 200)
  assert.deepEqual(told.json, {
    did: 'did:web:pds.example.com',
    availableUserDomains: ['.pds.example.com', '.example.org'],
    inviteCodeRequired: true,
    blobUploadLimit: 1_000_000,
    links: { privacyPolicy: 'https://example.com/privacy', termsOfService: 'https://example.com/terms' },
    contact: { email: 'help@example.com' },
  })
  const bare = (await ask(pds.url, DESCRIBE)).json
  assert.deepEqual([bare.inviteCodeRequired, bare.links, bare.contact], [false, {}, {}])
  assert.ok(Number.isInteger(bare.blobUploadLimit) && bare.blobUploadLimit > 0)
})

test('B43 a handle of the server has 3 to 18 characters before its domain, and is nobody else', async () => {
  const bad = 'InvalidHandle'
  const cases: [handle: string, error: string, message: RegExp][] = [
    ['ab.test', bad, /^Handle too short$/],
    ['ab.pds.example.com', bad, /^Handle too short$/],
    [`${'a'.repeat(19)}.test`, bad, /^Handle too long$/],
    ['a.bcd.test', bad, /^Invalid characters in handle$/],
    ['admin.test', 'HandleNotAvailable', /^Reserved handle$/],
    ['www.pds.example.com', 'HandleNotAvailable', /^Reserved handle$/],
    ['abc.example', bad, /^Handle TLD is invalid or disallowed$/],
    ['abc.local', bad, /^Handle TLD is invalid or disallowed$/],
    ['abc.onion', bad, /^Handle TLD is invalid or disallowed$/],
    ['abc.example.org', 'UnsupportedDomain', /^Not a supported handle domain$/],
    ['not a handle', 'InvalidRequest', /handle/],
    ['ab_c.test', 'InvalidRequest', /handle/],
  ]
  for (const [i, [handle, error, message]] of cases.entries()) {
    const told = await send('createAccount', { handle, email: `no${i}@example.com`, password: 'x' })
    assert.deepEqual([told.status, told.json.error], [400, error], `${handle}: ${told.text}`)
    assert.match(told.json.message, message, handle)
  }
  const ann = await signUp(pds, 'ann')
  const rename = (handle: string) => post(pds.url, 'com.atproto.identity.updateHandle', { handle }, ann.auth)
  for (const [handle, error, message] of cases) {
    // Of other domains it is asked there.
    if (error === 'UnsupportedDomain') continue
    const told = await rename(handle)
    assert.deepEqual([told.status, told.json.error], [400, error], `${handle}: ${told.text}`)
    assert.match(told.json.message, message, handle)
  }
  for (const handle of ['abc.test', `${'a'.repeat(18)}.test`, 'a-1.pds.example.com', 'ABCD.test'])
    assert.equal((await rename(handle)).status, 200, handle)
  const { json } = await ask(pds.url, server('getSession'), { headers: ann.auth })
  assert.equal(json.handle, 'abcd.test')
})

test('B48 codes that come by mail last for 15 minutes, are good once and for one purpose', async () => {
  const ben = await signUp(pds, 'ben')
  const confirm = (token: string) => send('confirmEmail', { email: ben.email, token }, ben.auth)
  const request = () => mailed(server('requestEmailConfirmation'), ben.auth)
  const first = await request()
  assert.deepEqual([first.subject, first.to], ['Email Confirmation', [ben.email]])
  assert.deepEqual(failure(await confirm('AAAAA-AAAAA')), WRONG_CODE)
  assert.deepEqual(failure(await confirm('')), WRONG_CODE)
  const second = await request()
  assert.deepEqual(failure(await confirm(first.code)), WRONG_CODE, 'there is one at a time')
  now += 15 * MINUTE
  assert.deepEqual(failure(await confirm(second.code)), OLD_CODE)
  const third = await request()
  now += 15 * MINUTE - 1
  const deletion = await mailed(server('requestAccountDelete'), ben.auth)
  assert.equal(deletion.subject, 'Account Deletion Requested')
  assert.deepEqual(failure(await confirm(deletion.code)), WRONG_CODE, 'of another purpose')
  const other = await send('confirmEmail', { email: 'else@example.com', token: third.code }, ben.auth)
  assert.deepEqual(failure(other), [400, 'InvalidEmail', 'invalid email'])
  const done = await confirm(third.code.toLowerCase())
  assert.deepEqual([done.status, done.text], [200, ''])
  assert.deepEqual(failure(await confirm(third.code)), WRONG_CODE, 'it is used up')
  const { json } = await ask(pds.url, server('getSession'), { headers: ben.auth })
  assert.equal(json.emailConfirmed, true)
})

test('B48 each purpose has its mail', async () => {
  const cat = await signUp(pds, 'cat')
  const confirmation = await mailed(server('requestEmailConfirmation'), cat.auth)
  await send('confirmEmail', { email: cat.email, token: confirmation.code }, cat.auth)
  const update = await mailed(server('requestEmailUpdate'), cat.auth)
  assert.deepEqual([update.subject, update.reply], ['Email Update Requested', { tokenRequired: true }])
  const email = 'kitten@example.com'
  const wrong = await send('updateEmail', { email, token: 'AAAAA-AAAAA' }, cat.auth)
  assert.deepEqual(failure(wrong), WRONG_CODE)
  assert.equal((await send('updateEmail', { email, token: update.code }, cat.auth)).status, 200)

  const plc = await mailed('com.atproto.identity.requestPlcOperationSignature', cat.auth)
  assert.equal(plc.subject, 'PLC Update Operation Requested')

  const reset = await mailed(server('requestPasswordReset'), {}, { email: email.toUpperCase() })
  assert.deepEqual([reset.subject, reset.to], ['Password Reset Requested', [email]])
  const set = (token: string, password = 'new') => send('resetPassword', { token, password })
  assert.deepEqual(failure(await set('AAAAA-AAAAA')), WRONG_CODE)
  assert.deepEqual(failure(await set(update.code)), WRONG_CODE)
  const long = await set(reset.code, 'x'.repeat(257))
  assert.deepEqual(failure(long), [400, 'InvalidRequest', 'Invalid password length.'])
  assert.equal((await set(reset.code)).status, 200)
  assert.deepEqual(failure(await set(reset.code)), WRONG_CODE)
  const refresh = await ask(pds.url, server('refreshSession'), {
    method: 'POST',
    headers: { authorization: `Bearer ${cat.refreshJwt}` },
  })
  assert.deepEqual(failure(refresh), [400, 'ExpiredToken', 'Token has been revoked'], 'whoever was in is out')
  assert.equal((await send('createSession', { identifier: email, password: 'new' })).status, 200)

  const late = await mailed(server('requestPasswordReset'), {}, { email })
  now += 15 * MINUTE
  assert.deepEqual(failure(await set(late.code)), OLD_CODE)
  const unknown = await send('requestPasswordReset', { email: 'nobody@example.com' })
  assert.deepEqual([unknown.status, unknown.text], [200, ''], 'nobody learns who has an account')

  const content = '<p>Hello</p>'
  const letter = { recipientDid: cat.did, senderDid: cat.did, content }
  const written = await post(pds.url, 'com.atproto.admin.sendEmail', letter, basic())
  assert.deepEqual(written.json, { sent: true })
  assert.equal((await mailbox.next()).subject, 'Message via your PDS')
})
