// What clients of a PDS depend on when they sign in, stay in and sign out. The numbers are those of the list of behaviours.
import assert from 'node:assert/strict'
import { createHmac, randomBytes } from 'node:crypto'
import { after, test } from 'node:test'
import { SigningKey } from '@millisky/core/crypto'
import { signServiceJwt } from '@millisky/core/jwt'
import { type PlcUpdate, plcDidOf, plcGenesis, signPlcOperation } from '@millisky/core/plc'
import type { Did } from '@millisky/core/syntax'
import { type Person, signUp, startNetwork, startNetworkedPds } from '@millisky/pds/testing-network'
import { basic, JWT_SECRET } from '@millisky/pds/testing-pds'
import { ask, bearer, failure, post, type Told } from './pds-asking.ts'

const HOUR = 3_600_000
const DAY = 24 * HOUR
let now = Date.parse('2026-08-20T12:00:00Z')

const moderator = SigningKey.fromPrivate('k256', randomBytes(32))
const genesis = signPlcOperation<PlcUpdate>(
  {
    ...plcGenesis({
      rotationKeys: [moderator.didKey],
      signingKey: moderator.didKey,
      handle: 'mod.example.com',
      pds: 'https://mod.example.com',
    }),
    verificationMethods: { atproto: moderator.didKey, atproto_label: moderator.didKey },
  },
  moderator,
)
const moderation = plcDidOf(genesis)

const network = await startNetwork({ after }, () => now)
const pds = await startNetworkedPds(
  { after },
  { PDS_HOSTNAME: 'pds.example.com', PDS_SERVICE_HANDLE_DOMAINS: '.test', PDS_MOD_SERVICE_DID: moderation },
  { now: () => now, network },
)
await network.plc.directory.accept(moderation, genesis)

const server = (name: string) => `com.atproto.server.${name}`
const admin = (name: string) => `com.atproto.admin.${name}`
const get = (method: string, headers: Record<string, string> = {}) => ask(pds.url, method, { headers })
const send = (method: string, body: unknown, headers: Record<string, string> = {}) =>
  post(pds.url, method, body, headers)
/** A call without a body. */
const call = (method: string, token: string) => ask(pds.url, server(method), { method: 'POST', headers: bearer(token) })
const login = (identifier: string, password: string, more: object = {}) =>
  send(server('createSession'), { identifier, password, ...more })
const session = (headers: Record<string, string>) => get(server('getSession'), headers)
const takeDown = (did: string, applied = true) =>
  send(
    admin('updateSubjectStatus'),
    { subject: { $type: 'com.atproto.admin.defs#repoRef', did }, takedown: { applied, ref: 'case' } },
    basic(),
  )
const note = ({ did }: { did: string }) => ({ repo: did, collection: 'com.example.note', record: { text: 'hi' } })
const write = (person: { did: string }, headers: Record<string, string>) =>
  send('com.atproto.repo.createRecord', note(person), headers)

/** A part of a JWT. */
const partOf = (token: string, i: number) => JSON.parse(Buffer.from(token.split('.')[i]!, 'base64url').toString())
const claimsOf = (token: string) => partOf(token, 1)

const HEADER = { typ: 'at+jwt', alg: 'HS256' }
function forged(header: object, claims: object, secret = JWT_SECRET): string {
  const [head, body] = [header, claims].map(part => Buffer.from(JSON.stringify(part)).toString('base64url'))
  return `${head}.${body}.${createHmac('sha256', secret).update(`${head}.${body}`).digest('base64url')}`
}
function accessClaims(did: string, more: object = {}) {
  const iat = Math.floor(now / 1000)
  return { scope: 'com.atproto.access', sub: did, aud: 'did:web:pds.example.com', iat, exp: iat + 60, ...more }
}

async function appSession(person: Person, name: string, privileged?: boolean) {
  const made = await send(server('createAppPassword'), { name, privileged }, person.auth)
  assert.equal(made.status, 200, made.text)
  const { json } = await login(person.did, made.json.password)
  return { password: made.json.password as string, made: made.json, ...json, auth: bearer(json.accessJwt) }
}

const alice = await signUp(pds, 'alice')
const invalid = (message: string) => [400, 'InvalidToken', message]
const UNVERIFIED = invalid('Token could not be verified')
const TAKEN_DOWN = [401, 'AccountTakedown', 'Account has been taken down']
const WRONG = [401, 'AuthenticationRequired', 'Invalid identifier or password']
const REVOKED = [400, 'ExpiredToken', 'Token has been revoked']
const BAD_SCOPE = invalid('Bad token scope')

test('B16 who says nothing of who they are is told that it is missing', async () => {
  const missing = [401, 'AuthMissing', 'Authentication Required']
  for (const method of ['getSession', 'listAppPasswords', 'checkAccountStatus', 'getAccountInviteCodes'])
    assert.deepEqual(failure(await get(server(method))), missing, method)
  for (const method of ['refreshSession', 'deleteSession', 'activateAccount', 'requestEmailUpdate'])
    assert.deepEqual(failure(await ask(pds.url, server(method), { method: 'POST' })), missing, method)
  assert.deepEqual(failure(await write(alice, {})), missing)
  assert.deepEqual(failure(await session({ authorization: '' })), missing)
})

test('B17 an access token whose time is over is 400 ExpiredToken, by which clients refresh', async () => {
  const { json } = await login('alice.test', alice.password)
  const auth = bearer(json.accessJwt)
  now += 2 * HOUR - 1_000
  assert.equal((await session(auth)).status, 200)
  now += 2_000
  const expired = [400, 'ExpiredToken', 'Token has expired']
  assert.deepEqual(failure(await session(auth)), expired)
  assert.deepEqual(failure(await write(alice, auth)), expired)
  assert.deepEqual(failure(await get(server('listAppPasswords'), auth)), expired)
  const upload = { method: 'POST', body: 'x', headers: { ...auth, 'content-type': 'text/plain' } }
  assert.deepEqual(failure(await ask(pds.url, 'com.atproto.repo.uploadBlob', upload)), expired)
  assert.equal((await call('refreshSession', json.refreshJwt)).status, 200)
})

test('B18 a token that is malformed, signed by somebody else or of another scope is 400 InvalidToken', async () => {
  const claims = accessClaims(alice.did)
  const good = forged(HEADER, claims)
  assert.equal((await session(bearer(good))).status, 200)
  assert.equal((await session({ authorization: `bearer ${good}` })).status, 200)
  const cases: [name: string, authorization: string, expected: unknown][] = [
    ['no JWT', 'Bearer x', UNVERIFIED],
    ['another secret', `Bearer ${forged(HEADER, claims, 'x')}`, UNVERIFIED],
    ['cut signature', `Bearer ${good.slice(0, -3)}`, UNVERIFIED],
    ['no signature', `Bearer ${forged({ ...HEADER, alg: 'none' }, claims).replace(/[^.]*$/, '')}`, UNVERIFIED],
    ['another audience', `Bearer ${forged(HEADER, { ...claims, aud: 'did:web:other.example' })}`, UNVERIFIED],
    ['two audiences', `Bearer ${forged(HEADER, { ...claims, aud: [claims.aud, 'x'] })}`, invalid('Malformed token')],
    ['no subject', `Bearer ${forged(HEADER, { ...claims, sub: undefined })}`, invalid('Malformed token')],
    ['a handle for subject', `Bearer ${forged(HEADER, { ...claims, sub: 'alice.test' })}`, invalid('Malformed token')],
    ['no scope', `Bearer ${forged(HEADER, { ...claims, scope: undefined })}`, BAD_SCOPE],
    ['unknown scope', `Bearer ${forged(HEADER, { ...claims, scope: 'com.example.all' })}`, BAD_SCOPE],
    ['refresh scope', `Bearer ${forged(HEADER, { ...claims, scope: 'com.atproto.refresh' })}`, BAD_SCOPE],
    ['Basic', basic().authorization, invalid('Unexpected authorization type')],
    ['unknown scheme', 'Digest x', invalid('Unsupported authorization type: Digest')],
    ['no scheme', good, invalid('Malformed authorization header')],
    ['two spaces', `Bearer  ${good}`, invalid('Malformed authorization header')],
  ]
  for (const [name, authorization, expected] of cases)
    assert.deepEqual(failure(await session({ authorization })), expected, name)
})

test('B19 a refresh token does not pass for an access token, nor the other way round', async () => {
  assert.deepEqual(failure(await session(bearer(alice.refreshJwt))), UNVERIFIED)
  const { json } = await login('alice.test', alice.password)
  for (const method of ['refreshSession', 'deleteSession'])
    assert.deepEqual(failure(await call(method, json.accessJwt)), UNVERIFIED, method)
  const claims = accessClaims(alice.did)
  for (const typ of ['refresh+jwt', 'JWT', 'dpop+jwt', undefined])
    assert.deepEqual(failure(await session(bearer(forged({ ...HEADER, typ }, claims)))), UNVERIFIED, `${typ}`)
})

test('B20 access tokens say what they are, whose, for whom and for two hours', async () => {
  const { json } = await login('alice.test', alice.password)
  assert.deepEqual(partOf(json.accessJwt, 0), { typ: 'at+jwt', alg: 'HS256' })
  const iat = Math.floor(now / 1000)
  assert.deepEqual(claimsOf(json.accessJwt), {
    scope: 'com.atproto.access',
    sub: alice.did,
    aud: 'did:web:pds.example.com',
    iat,
    exp: iat + 120 * 60,
  })
})

test('B21 scopes are called as apps know them', async () => {
  const bob = await signUp(pds, 'bob')
  const [plain, privileged] = [await appSession(bob, 'plain'), await appSession(bob, 'privileged', true)]
  await takeDown(bob.did)
  const { json } = await login('bob.test', bob.password, { allowTakendown: true })
  const scopes = [bob.accessJwt, plain.accessJwt, privileged.accessJwt, bob.refreshJwt, json.accessJwt]
  assert.deepEqual(
    scopes.map(token => claimsOf(token).scope),
    ['access', 'appPass', 'appPassPrivileged', 'refresh', 'takendown'].map(name => `com.atproto.${name}`),
  )
})

test('B22 refresh tokens have an id and last for 90 days', async () => {
  const { json } = await login('alice.test', alice.password)
  assert.deepEqual(partOf(json.refreshJwt, 0), { typ: 'refresh+jwt', alg: 'HS256' })
  const { jti, ...claims } = claimsOf(json.refreshJwt)
  assert.ok(typeof jti === 'string' && jti.length >= 32)
  const iat = Math.floor(now / 1000)
  const aud = 'did:web:pds.example.com'
  assert.deepEqual(claims, { scope: 'com.atproto.refresh', sub: alice.did, aud, iat, exp: iat + 90 * 86_400 })
  const noId = forged({ typ: 'refresh+jwt', alg: 'HS256' }, accessClaims(alice.did, { scope: 'com.atproto.refresh' }))
  const without = [401, 'MissingTokenId', 'Unexpected missing refresh token id']
  assert.deepEqual(failure(await call('refreshSession', noId)), without)
})

test('B23 a token that is bound to a key or names a method is none of a session', async () => {
  for (const more of [{ cnf: { jkt: 'x' } }, { cnf: null }, { lxm: server('getSession') }]) {
    const token = forged(HEADER, accessClaims(alice.did, more))
    assert.deepEqual(failure(await session(bearer(token))), invalid('Malformed token'))
  }
})

test('B24 a refresh token is exchanged, and for two hours gives the same successor', async () => {
  const { json } = await login('alice.test', alice.password)
  const replies = await Promise.all(Array.from({ length: 10 }, () => call('refreshSession', json.refreshJwt)))
  assert.deepEqual([...new Set(replies.map(({ status }) => status))], [200])
  const ids = new Set(replies.map(reply => claimsOf(reply.json.refreshJwt).jti as string))
  assert.equal(ids.size, 1, 'parallel clients end up in one session')
  assert.ok(!ids.has(claimsOf(json.refreshJwt).jti))
  now += 2 * HOUR - 1_000
  assert.ok(ids.has(claimsOf((await call('refreshSession', json.refreshJwt)).json.refreshJwt).jti))
  now += 2_000
  assert.deepEqual(failure(await call('refreshSession', json.refreshJwt)), REVOKED)
  const successor = replies[0]!.json.refreshJwt
  const next = await call('refreshSession', successor)
  assert.equal(next.status, 200, 'the successor is not harmed')
  assert.deepEqual(Object.keys(next.json).sort(), Object.keys(json).sort())
  now += 91 * DAY
  assert.deepEqual(failure(await call('refreshSession', next.json.refreshJwt)), [
    400,
    'ExpiredToken',
    'Token has expired',
  ])
})

test('B25 deleteSession takes an expired token, and answers with nothing', async () => {
  const { json } = await login('alice.test', alice.password)
  const ended = await call('deleteSession', json.refreshJwt)
  assert.deepEqual([ended.status, ended.text], [200, ''])
  assert.deepEqual(failure(await call('refreshSession', json.refreshJwt)), REVOKED)
  assert.equal((await call('deleteSession', json.refreshJwt)).status, 200, 'once more is no failure')
  const other = await login('alice.test', alice.password)
  now += 100 * DAY
  const late = await call('deleteSession', other.json.refreshJwt)
  assert.deepEqual([late.status, late.text], [200, ''])
})

test('B26 a login that fails does not say why, and takes 350 ms', async () => {
  const attempts = [
    ['alice.test', 'wrong'],
    ['alice.test', ''],
    ['alice.test', `${alice.password} `],
    ['nobody.test', alice.password],
    ['nobody@example.com', alice.password],
    ['did:plc:aaaaaaaaaaaaaaaaaaaaaaaa', alice.password],
    ['@alice.test', alice.password],
    ['', ''],
    ['b\u00f3b.test', '\u{1f511}'],
  ]
  await Promise.all(
    attempts.map(async ([identifier, password]) => {
      const started = performance.now()
      assert.deepEqual(failure(await login(identifier!, password!)), WRONG, identifier)
      assert.ok(performance.now() - started >= 345, identifier)
    }),
  )
})

test('B27 one signs in by handle, DID or address, in any case, with up to 512 characters', async () => {
  const { email, did, password } = alice
  for (const identifier of ['alice.test', 'ALICE.test', did, email, email.toUpperCase()]) {
    const told = await login(identifier, password)
    assert.deepEqual([told.status, told.json.did], [200, did], identifier)
  }
  assert.deepEqual(failure(await login('alice.test', 'x'.repeat(512))), WRONG)
  const started = performance.now()
  const long = await login('alice.test', 'x'.repeat(513))
  assert.deepEqual([long.status, long.json.error], [401, 'AuthenticationRequired'])
  assert.ok(performance.now() - started >= 345)
})

test('B28 what a session says of its account', async () => {
  const { json } = await login('alice.test', alice.password)
  const { accessJwt, refreshJwt, ...account } = json
  const { did, email } = alice
  assert.deepEqual(account, { did, handle: 'alice.test', email, emailConfirmed: false, active: true })
  assert.deepEqual([typeof accessJwt, typeof refreshJwt], ['string', 'string'])
  assert.deepEqual((await session(bearer(accessJwt))).json, account)
  const { id } = (await pds.store.accounts.byDid(did as Did))!
  await pds.store.accounts.update(id, { handle: null }, [])
  const nameless = await login(did, alice.password)
  await pds.store.accounts.update(id, { handle: 'alice.test' as never }, [])
  assert.equal(nameless.json.handle, 'handle.invalid')
})

test('B29 the DID document comes with sessions only where the operator wants it', async () => {
  const { json } = await login('alice.test', alice.password)
  const refreshed = await call('refreshSession', json.refreshJwt)
  for (const told of [json, refreshed.json, (await session(bearer(json.accessJwt))).json])
    assert.equal(told.didDoc, undefined)
  const other = await startNetworkedPds({ after }, { PDS_ENABLE_DID_DOC_WITH_SESSION: 'true' })
  const carol = await signUp(other, 'carol')
  const at = (method: string, options: object) => ask(other.url, server(method), options)
  const entered = await post(other.url, server('createSession'), { identifier: carol.did, password: carol.password })
  const replies: Told[] = [
    entered,
    await at('getSession', { headers: carol.auth }),
    await at('refreshSession', { method: 'POST', headers: bearer(carol.refreshJwt) }),
  ]
  for (const told of replies) {
    assert.equal(told.json.didDoc.id, carol.did)
    assert.deepEqual(told.json.didDoc.alsoKnownAs, ['at://carol.test'])
  }
})

test('B30 one who is taken down gets in only to look and leave, and never by an app password', async () => {
  const dan = await signUp(pds, 'dan')
  const app = await appSession(dan, 'app')
  await takeDown(dan.did)
  assert.deepEqual(failure(await login('dan.test', dan.password)), TAKEN_DOWN)
  assert.deepEqual(failure(await login('dan.test', dan.password, { allowTakendown: false })), TAKEN_DOWN)
  assert.deepEqual(failure(await login('dan.test', 'wrong', { allowTakendown: true })), WRONG)
  for (const more of [{}, { allowTakendown: true }])
    assert.deepEqual(failure(await login('dan.test', app.password, more)), WRONG)
  const { status, json } = await login('dan.test', dan.password, { allowTakendown: true })
  assert.deepEqual([status, json.active, json.status], [200, false, 'takendown'])
  const limited = bearer(json.accessJwt)
  assert.equal(claimsOf(json.accessJwt).scope, 'com.atproto.takendown')
  assert.deepEqual(failure(await session(limited)), BAD_SCOPE)
  assert.deepEqual(failure(await write(dan, limited)), BAD_SCOPE)
  assert.equal((await get(`com.atproto.sync.getRepo?did=${dan.did}`, limited)).status, 200)
})

test('B31 one who is deactivated gets in and may export, not write', async () => {
  const eve = await signUp(pds, 'eve')
  assert.equal((await send(server('deactivateAccount'), {}, eve.auth)).status, 200)
  const { status, json } = await login('eve.test', eve.password)
  assert.deepEqual([status, json.active, json.status], [200, false, 'deactivated'])
  const auth = bearer(json.accessJwt)
  const { active, status: state } = (await session(auth)).json
  assert.deepEqual([active, state], [false, 'deactivated'])
  assert.equal((await get(`com.atproto.sync.getRepo?did=${eve.did}`, auth)).status, 200)
  const written = await write(eve, auth)
  assert.deepEqual([written.status, written.json.error], [401, 'AccountDeactivated'])
  assert.equal((await call('refreshSession', json.refreshJwt)).json.status, 'deactivated')
})

test('B32 a token of somebody who is gone is 403 AccountNotFound', async () => {
  const fay = await signUp(pds, 'fay')
  assert.equal((await send(admin('deleteAccount'), { did: fay.did }, basic())).status, 200)
  const gone = [403, 'AccountNotFound', 'Account not found']
  assert.deepEqual(failure(await write(fay, fay.auth)), gone)
  for (const method of ['listAppPasswords', 'checkAccountStatus'])
    assert.deepEqual(failure(await get(server(method), fay.auth)), gone, method)
  assert.deepEqual(failure(await send(server('createAppPassword'), { name: 'a' }, fay.auth)), gone)
  // These two are read by clients, which know them from the reference.
  const unknown = [400, 'InvalidRequest', `Could not find user info for account: ${fay.did}`]
  assert.deepEqual(failure(await session(fay.auth)), unknown)
  assert.deepEqual(failure(await call('refreshSession', fay.refreshJwt)), unknown)
})

test('B33 app passwords are shown once, and have names of their own', async () => {
  const gus = await signUp(pds, 'gus')
  const { made, password } = await appSession(gus, 'phone')
  assert.deepEqual(Object.keys(made).sort(), ['createdAt', 'name', 'password', 'privileged'])
  assert.match(password, /^[a-z2-7]{4}(-[a-z2-7]{4}){3}$/)
  const twice = await send(server('createAppPassword'), { name: 'phone' }, gus.auth)
  assert.deepEqual([twice.status, twice.json.error], [400, 'InvalidRequest'])
  await appSession(gus, 'tablet', true)
  const list = await get(server('listAppPasswords'), gus.auth)
  const shown = (list.json.passwords as { name: string; createdAt: string; privileged: boolean }[]).toSorted((a, b) =>
    a.name.localeCompare(b.name),
  )
  const createdAt = new Date(now).toISOString()
  assert.deepEqual(shown, [
    { name: 'phone', createdAt, privileged: false },
    { name: 'tablet', createdAt, privileged: true },
  ])
  const { json } = await login('gus.test', password)
  const revoked = await send(server('revokeAppPassword'), { name: 'phone' }, gus.auth)
  assert.deepEqual([revoked.status, revoked.text], [200, ''])
  assert.deepEqual(failure(await login('gus.test', password)), WRONG)
  assert.deepEqual(failure(await call('refreshSession', json.refreshJwt)), REVOKED, 'its sessions go with it')
  assert.equal((await send(server('revokeAppPassword'), { name: 'never was' }, gus.auth)).status, 200)
})

test('B34 what opens for an app does not change the account', async () => {
  const hal = await signUp(pds, 'hal')
  for (const privileged of [false, true]) {
    const { auth } = await appSession(hal, `app ${privileged}`, privileged)
    assert.equal((await write(hal, auth)).status, 200)
    assert.equal((await session(auth)).status, 200)
    const forbidden: [method: string, body: object | null][] = [
      ['createAppPassword', { name: 'more' }],
      ['requestAccountDelete', null],
      ['deactivateAccount', {}],
      ['activateAccount', null],
      ['requestEmailUpdate', null],
      ['updateEmail', { email: 'new@example.com' }],
    ]
    for (const [method, body] of forbidden) {
      const told = body
        ? await send(server(method), body, auth)
        : await ask(pds.url, server(method), { method: 'POST', headers: auth })
      assert.deepEqual(failure(told), BAD_SCOPE, method)
    }
    assert.deepEqual(failure(await get(server('getAccountInviteCodes'), auth)), BAD_SCOPE)
  }
})

test('B35 an app without privileges gets no tokens for chats and sees no personal preferences', async () => {
  const ida = await signUp(pds, 'ida')
  const [plain, privileged] = [await appSession(ida, 'plain'), await appSession(ida, 'privileged', true)]
  const chat = `${server('getServiceAuth')}?aud=did:web:chat.example.com&lxm=chat.bsky.convo.listConvos`
  const refused = await get(chat, plain.auth)
  assert.deepEqual([refused.status, refused.json.error], [400, 'InvalidRequest'])
  assert.match(refused.json.message, /insufficient access to request a service auth token/)
  for (const auth of [privileged.auth, ida.auth]) assert.equal((await get(chat, auth)).status, 200)
  const adult = { $type: 'app.bsky.actor.defs#adultContentPref', enabled: true }
  const details = { $type: 'app.bsky.actor.defs#personalDetailsPref', birthDate: '2000-01-01T00:00:00.000Z' }
  const put = await send('app.bsky.actor.putPreferences', { preferences: [adult, details] }, ida.auth)
  assert.equal(put.status, 200, put.text)
  const seen = async (auth: Record<string, string>) =>
    (await get('app.bsky.actor.getPreferences', auth)).json.preferences.map(({ $type }: { $type: string }) => $type)
  assert.ok((await seen(ida.auth)).includes(details.$type))
  assert.ok(!(await seen(plain.auth)).includes(details.$type))
  assert.ok((await seen(plain.auth)).includes(adult.$type))
})

test('B36 the admin has a password, moderators have tokens of their service', async () => {
  const code = (headers: Record<string, string>) => send(server('createInviteCode'), { useCount: 1 }, headers)
  assert.equal((await code(basic())).status, 200)
  assert.equal((await code({ authorization: basic().authorization.replace('Basic', 'basic') })).status, 200)
  const encoded = (text: string) => ({ authorization: `Basic ${Buffer.from(text).toString('base64')}` })
  const password = Buffer.from(basic().authorization.slice('Basic '.length), 'base64').toString().slice('admin:'.length)
  const wrong = [
    {},
    basic('wrong'),
    basic(''),
    basic(`${password} `),
    encoded(`root:${password}`),
    encoded(`Admin:${password}`),
    encoded(password),
    { authorization: 'Basic' },
    { authorization: `Basic admin:${password}` },
    alice.auth,
  ]
  const required = [401, 'AuthenticationRequired', 'Authentication Required']
  for (const headers of wrong) assert.deepEqual(failure(await code(headers)), required, JSON.stringify(headers))

  const { did } = await signUp(pds, 'jan')
  const method = admin('getAccountInfo')
  const token = (iss: string, lxm = method) => {
    const iat = Math.floor(now / 1000)
    return bearer(signServiceJwt({ iss: iss as Did, aud: pds.names.did, lxm, iat, exp: iat + 60, jti: 'x' }, moderator))
  }
  const look = (headers: Record<string, string>) => get(`${method}?did=${did}`, headers)
  for (const iss of [moderation, `${moderation}#atproto_labeler`])
    assert.equal((await look(token(iss))).status, 200, iss)
  assert.equal((await look(basic())).json.did, did)
  assert.deepEqual(failure(await look(token(did))), [401, 'UntrustedIss', 'Untrusted issuer'])
  assert.equal((await look(token(moderation, admin('other')))).json.error, 'BadJwtLexiconMethod')
  assert.deepEqual(failure(await code(token(moderation, server('createInviteCode')))), required, 'for the admin alone')
})

test('B37 a takedown ends refresh tokens at once, access tokens with their time', async () => {
  const kim = await signUp(pds, 'kim')
  const { json } = await login('kim.test', kim.password)
  await takeDown(kim.did)
  for (const token of [kim.refreshJwt, json.refreshJwt])
    assert.deepEqual(failure(await call('refreshSession', token)), TAKEN_DOWN)
  const old = bearer(json.accessJwt)
  assert.deepEqual(failure(await send(server('createAppPassword'), { name: 'a' }, old)), TAKEN_DOWN)
  assert.equal((await get('app.bsky.actor.getPreferences', old)).status, 200, 'where nobody looks for a takedown')
  await takeDown(kim.did, false)
  for (const token of [kim.refreshJwt, json.refreshJwt])
    assert.deepEqual(failure(await call('refreshSession', token)), REVOKED, 'nothing comes back when it is lifted')
  assert.equal((await session(old)).status, 200)
  assert.equal((await login('kim.test', kim.password)).status, 200)
})
