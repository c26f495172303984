import assert from 'node:assert/strict'
import { test } from 'node:test'
import { SigningKey } from '@millisky/core/crypto'
import { checkServiceJwt, readServiceJwt } from '@millisky/core/jwt'
import type { Did } from '@millisky/core/syntax'
import { failure, type NetworkedPds, type Person, signUp, startNetworkedPds } from '../testing-network.ts'
import { basic } from '../testing-pds.ts'

const SERVER = 'com.atproto.server'
const claimsOf = (token: string) => JSON.parse(Buffer.from(token.split('.')[1]!, 'base64url').toString())
const bearer = (token: string) => ({ authorization: `Bearer ${token}` })
const post = (pds: NetworkedPds, method: string, body: unknown, auth: Record<string, string> = {}) =>
  pds.post(`${SERVER}.${method}`, body, null, auth)

async function appSession(pds: NetworkedPds, person: Person, privileged?: boolean) {
  const name = `app ${privileged}`
  const made = await post(pds, 'createAppPassword', { name, privileged }, person.auth)
  assert.equal(made.status, 200, JSON.stringify(made.json))
  const login = await post(pds, 'createSession', { identifier: person.did, password: made.json.password })
  assert.equal(login.status, 200)
  return { name, password: made.json.password as string, ...login.json, auth: bearer(login.json.accessJwt) }
}

test('app passwords open sessions of less power, and take them along when they go', async t => {
  const pds = await startNetworkedPds(t)
  const alice = await signUp(pds, 'alice')
  const plain = await appSession(pds, alice)
  const privileged = await appSession(pds, alice, true)
  assert.match(plain.password, /^[a-z2-7]{4}(-[a-z2-7]{4}){3}$/)
  assert.equal(claimsOf(plain.accessJwt).scope, 'com.atproto.appPass')
  assert.equal(claimsOf(privileged.accessJwt).scope, 'com.atproto.appPassPrivileged')
  const refreshed = await post(pds, 'refreshSession', undefined, bearer(privileged.refreshJwt))
  assert.equal(claimsOf(refreshed.json.accessJwt).scope, 'com.atproto.appPassPrivileged')

  const list = await pds.get(`${SERVER}.listAppPasswords`, {}, plain.auth)
  const shown = (list.json.passwords as Record<string, unknown>[]).map(({ name, privileged, ...rest }) => {
    assert.deepEqual(Object.keys(rest), ['createdAt'])
    return [name, privileged]
  })
  assert.deepEqual(shown.sort(), [
    ['app true', true],
    ['app undefined', false],
  ])
  const twice = await post(pds, 'createAppPassword', { name: plain.name }, alice.auth)
  assert.deepEqual([twice.status, twice.json.error], [400, 'InvalidRequest'])
  const scope = [400, 'InvalidToken', 'Bad token scope']
  for (const { auth } of [plain, privileged]) {
    assert.deepEqual(failure(await post(pds, 'createAppPassword', { name: 'more' }, auth)), scope)
    assert.deepEqual(failure(await pds.get(`${SERVER}.getAccountInviteCodes`, {}, auth)), scope)
    const write = { repo: alice.did, collection: 'com.example.note', record: { text: 'hi' } }
    assert.equal((await pds.post('com.atproto.repo.createRecord', write, null, auth)).status, 200)
  }
  const gone = await post(pds, 'revokeAppPassword', { name: plain.name }, privileged.auth)
  assert.deepEqual([gone.status, gone.bytes.length], [200, 0])
  assert.equal((await post(pds, 'revokeAppPassword', { name: 'never was' }, alice.auth)).status, 200)
  const login = await post(pds, 'createSession', { identifier: alice.did, password: plain.password })
  assert.deepEqual([login.status, login.json.error], [401, 'AuthenticationRequired'])
  const revoked = await post(pds, 'refreshSession', undefined, bearer(plain.refreshJwt))
  assert.deepEqual(failure(revoked), [400, 'ExpiredToken', 'Token has been revoked'])

  await pds.lifecycle.takedown(alice.did as Did, 'case')
  const identifier = { identifier: alice.did, password: privileged.password, allowTakendown: true }
  const taken = failure(await post(pds, 'createSession', identifier))
  assert.deepEqual(taken, [401, 'AuthenticationRequired', 'Invalid identifier or password'])
  const create = failure(await post(pds, 'createAppPassword', { name: 'more' }, alice.auth))
  assert.deepEqual(create, [401, 'AccountTakedown', 'Account has been taken down'])
})

test('invites made by the admin', async t => {
  const pds = await startNetworkedPds(t, { PDS_HOSTNAME: 'pds.example.com', PDS_SERVICE_HANDLE_DOMAINS: '.test' })
  const alice = await signUp(pds, 'alice')
  const one = await post(pds, 'createInviteCode', { useCount: 2 }, basic())
  assert.match(one.json.code, /^pds-example-com-[a-z2-7]{5}-[a-z2-7]{5}$/)
  const many = await post(
    pds,
    'createInviteCodes',
    { codeCount: 2, useCount: 1, forAccounts: [alice.did, pds.names.did] },
    basic(),
  )
  assert.deepEqual(
    many.json.codes.map(({ account, codes }: { account: string; codes: string[] }) => [account, codes.length]),
    [
      [alice.did, 2],
      [pds.names.did, 2],
    ],
  )
  const admins = await post(pds, 'createInviteCodes', { codeCount: 1, useCount: 1 }, basic())
  assert.equal(admins.json.codes[0].account, 'admin')
  await signUp(pds, 'bob', { inviteCode: many.json.codes[0].codes[0] })
  const own = await pds.get(`${SERVER}.getAccountInviteCodes`, {}, alice.auth)
  assert.equal(own.json.codes.length, 2)
  const spent = own.json.codes.find((code: { uses: unknown[] }) => code.uses.length > 0)
  assert.equal(spent.available, 1)
  assert.deepEqual([spent.createdBy, spent.forAccount, spent.disabled], ['admin', alice.did, false])
  const unused = await pds.get(`${SERVER}.getAccountInviteCodes`, { includeUsed: false }, alice.auth)
  assert.equal(unused.json.codes.length, 1)
  const excess = await post(pds, 'createInviteCodes', { codeCount: 10_001, useCount: 1 }, basic())
  assert.deepEqual([excess.status, excess.json.error], [400, 'InvalidRequest'])
  const required = [401, 'AuthenticationRequired', 'Authentication Required']
  for (const auth of [{}, basic('wrong'), basic(''), alice.auth, { authorization: 'Basic !!' }]) {
    assert.deepEqual(failure(await post(pds, 'createInviteCode', { useCount: 1 }, auth)), required)
  }
})

test('accounts earn invites as time goes by', async t => {
  let now = Date.parse('2026-08-20T12:00:00Z')
  const DAY = 86_400_000
  const env = { PDS_INVITE_REQUIRED: 'true', PDS_INVITE_INTERVAL: String(DAY) }
  const pds = await startNetworkedPds(t, env, { now: () => now })
  await pds.store.tickets.addInvites([
    { code: 'first', uses: 1, forAccount: 'admin', createdBy: 'admin', createdAt: now },
  ])
  const alice = await signUp(pds, 'alice', { inviteCode: 'first' })
  const codes = async (params = {}) => {
    const login = await post(pds, 'createSession', { identifier: alice.did, password: alice.password })
    const { json } = await pds.get(`${SERVER}.getAccountInviteCodes`, params, bearer(login.json.accessJwt))
    return json.error ?? json.codes.length
  }
  assert.equal(await codes(), 0)
  now += 3 * DAY
  assert.equal(await codes({ createAvailable: false }), 0)
  const both = await Promise.all([codes(), codes()])
  assert.ok(both.includes(3), 'of two that ask at once one makes them')
  assert.ok(both.every(made => made === 3 || made === 'DuplicateCreate'))
  assert.equal(await codes(), 3)
  assert.equal((await pds.store.tickets.invitesFor(alice.did)).length, 3)
  now += 30 * DAY
  assert.equal(await codes(), 5)
  await pds.store.accounts.update((await pds.store.accounts.byDid(alice.did as Did))!.id, { invitesDisabled: true }, [])
  await pds.store.tickets.disableInvites([], [alice.did])
  assert.equal(await codes(), 0, 'what it earns now is disabled from the beginning')
})

test('service tokens, for whom and for how long', async t => {
  const now = Date.parse('2026-08-20T12:00:00Z')
  const pds = await startNetworkedPds(t, {}, { now: () => now })
  const alice = await signUp(pds, 'alice')
  const app = await appSession(pds, alice)
  const privileged = await appSession(pds, alice, true)
  const iat = Math.floor(now / 1000)
  const ask = (params: Record<string, unknown>, auth = alice.auth) => pds.get(`${SERVER}.getServiceAuth`, params, auth)
  const key = SigningKey.fromPrivate('k256', (await pds.store.repos.state(alice.did as Did))!.key.secret)
  for (const aud of [
    'did:web:api.example.com',
    'did:web:api.example.com#bsky_appview',
    'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa',
  ]) {
    const { json } = await ask({ aud, lxm: 'app.bsky.feed.getTimeline' })
    const jwt = readServiceJwt(json.token)
    checkServiceJwt(jwt, { aud: [aud], lxm: 'app.bsky.feed.getTimeline', now }, key.publicKey)
    const { jti, ...claims } = jwt.payload
    assert.deepEqual(claims, { iss: alice.did, aud, lxm: 'app.bsky.feed.getTimeline', iat, exp: iat + 60 })
    assert.ok(jti)
  }
  const aud = 'did:web:api.example.com'
  const lxm = 'app.bsky.feed.getTimeline'
  assert.equal(claimsOf((await ask({ aud, lxm, exp: iat + 3_600 })).json.token).exp, iat + 3_600)
  assert.equal(claimsOf((await ask({ aud, exp: iat + 60 })).json.token).lxm, undefined)
  const bad = (message: string) => [400, 'BadExpiration', message]
  assert.deepEqual(failure(await ask({ aud, lxm, exp: iat - 1 })), bad('expiration is in past'))
  const hour = bad('cannot request a token with an expiration more than an hour in the future')
  assert.deepEqual(failure(await ask({ aud, lxm, exp: iat + 3_601 })), hour)
  const minute = bad('cannot request a method-less token with an expiration more than a minute in the future')
  assert.deepEqual(failure(await ask({ aud, exp: iat + 61 })), minute)
  const unknown = 'aud must be a valid atproto DID or did#serviceId reference'
  for (const aud of ['api.example.com', 'did:key:zabc', 'did:web:a.com#', 'did:web:a.com#a#b']) {
    assert.deepEqual(failure(await ask({ aud, lxm })), [400, 'InvalidRequest', unknown], aud)
  }
  const deleted = `${SERVER}.updateEmail`
  const denied = `cannot request a service auth token for the following protected method: ${deleted}`
  assert.deepEqual(failure(await ask({ aud, lxm: deleted })), [400, 'InvalidRequest', denied])
  for (const lxm of ['chat.bsky.convo.sendMessage', `${SERVER}.createAccount`]) {
    const message = `insufficient access to request a service auth token for the following method: ${lxm}`
    assert.deepEqual(failure(await ask({ aud, lxm }, app.auth)), [400, 'InvalidRequest', message])
    assert.equal((await ask({ aud, lxm }, privileged.auth)).status, 200)
    assert.equal((await ask({ aud, lxm })).status, 200)
  }
  assert.equal((await ask({ aud, lxm }, app.auth)).status, 200)
  await pds.lifecycle.takedown(alice.did as Did, 'case')
  const login = { identifier: alice.did, password: alice.password, allowTakendown: true }
  const limited = bearer((await post(pds, 'createSession', login)).json.accessJwt)
  assert.deepEqual(failure(await ask({ aud, lxm }, limited)), [400, 'InvalidToken', 'Bad token scope'])
  assert.equal((await ask({ aud, lxm: `${SERVER}.createAccount` }, limited)).status, 200, 'so that it can move away')
})

test('a key is reserved once for a DID', async t => {
  const pds = await startNetworkedPds(t)
  const reserve = async (body: object) => (await post(pds, 'reserveSigningKey', body)).json.signingKey as string
  const did = 'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa'
  const first = await reserve({ did })
  assert.match(first, /^did:key:zQ3s/)
  assert.equal(await reserve({ did }), first)
  const loose = [await reserve({}), await reserve({})]
  assert.equal(new Set([first, ...loose]).size, 3)
  const kept = await pds.store.tickets.reservedKey(did)
  assert.equal(SigningKey.fromPrivate('k256', kept!.secret).didKey, first)
})
