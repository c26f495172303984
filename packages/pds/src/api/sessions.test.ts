import assert from 'node:assert/strict'
import { createHmac, scryptSync } from 'node:crypto'
import { test } from 'node:test'
import type { Did } from '@millisky/core/syntax'
import { failure, type Person, signUp, startNetworkedPds } from '../testing-network.ts'
import { basic, JWT_SECRET } from '../testing-pds.ts'

const HOUR = 3_600_000
const claimsOf = (token: string) => JSON.parse(Buffer.from(token.split('.')[1]!, 'base64url').toString())
const bearer = (token: string) => ({ authorization: `Bearer ${token}` })

function forge(header: object, claims: object, secret = JWT_SECRET): string {
  const [head, body] = [header, claims].map(part => Buffer.from(JSON.stringify(part)).toString('base64url'))
  return `${head}.${body}.${createHmac('sha256', secret).update(`${head}.${body}`).digest('base64url')}`
}

test('signing in by handle, DID and e-mail, whatever the case', async t => {
  const pds = await startNetworkedPds(t)
  const alice = await signUp(pds, 'alice')
  for (const identifier of [
    'alice.test',
    'ALICE.Test',
    alice.did,
    'alice@example.com',
    'Alice@Example.COM',
    ' alice.test ',
  ]) {
    const { status, json } = await pds.post('com.atproto.server.createSession', {
      identifier,
      password: alice.password,
    })
    assert.equal(status, 200, identifier)
    const { accessJwt, refreshJwt, ...rest } = json
    assert.deepEqual(rest, {
      did: alice.did,
      handle: 'alice.test',
      email: 'alice@example.com',
      emailConfirmed: false,
      active: true,
    })
    assert.equal(claimsOf(accessJwt).scope, 'com.atproto.access')
    assert.equal(claimsOf(refreshJwt).exp - claimsOf(refreshJwt).iat, 90 * 86_400)
    const session = await pds.get('com.atproto.server.getSession', {}, bearer(accessJwt))
    assert.deepEqual(session.json, rest)
    assert.equal(session.headers.get('cache-control'), 'private')
    assert.match(session.headers.get('vary') ?? '', /Authorization/)
  }
})

test('a login that fails says nothing of why, and is not quick', async t => {
  const pds = await startNetworkedPds(t)
  const alice = await signUp(pds, 'alice')
  const { did } = await pds.user('passwordless')
  const attempts = [
    ['alice.test', 'wrong'],
    ['alice.test', 'aaaa-bbbb-cccc-dddd'],
    ['nobody.test', alice.password],
    ['nobody@example.com', alice.password],
    ['did:plc:aaaaaaaaaaaaaaaaaaaaaaaa', alice.password],
    [did, ''],
    ['alice', alice.password],
    ['', alice.password],
  ]
  const failed = await Promise.all(
    attempts.map(async ([identifier, password]) => {
      const started = performance.now()
      const reply = await pds.post('com.atproto.server.createSession', { identifier, password })
      return { reply, ms: performance.now() - started, identifier }
    }),
  )
  for (const { reply, ms, identifier } of failed) {
    assert.deepEqual(failure(reply), [401, 'AuthenticationRequired', 'Invalid identifier or password'], identifier)
    assert.ok(ms >= 345, `${identifier} took ${ms} ms`)
  }
  const long = { identifier: 'alice.test', password: 'x'.repeat(513) }
  assert.deepEqual(failure(await pds.post('com.atproto.server.createSession', long)), [
    401,
    'AuthenticationRequired',
    'Password too long. Consider resetting your password.',
  ])
})

test('a refresh token is exchanged once, and for two hours gives the same successor', async t => {
  let now = Date.parse('2026-08-20T12:00:00Z')
  const pds = await startNetworkedPds(t, {}, { now: () => now })
  const alice = await signUp(pds, 'alice')
  const refresh = (token: string) => pds.post('com.atproto.server.refreshSession', undefined, null, bearer(token))
  const first = await refresh(alice.refreshJwt)
  assert.equal(first.status, 200)
  assert.deepEqual([first.json.did, first.json.handle, first.json.active], [alice.did, 'alice.test', true])
  const next = claimsOf(first.json.refreshJwt).jti
  assert.notEqual(next, claimsOf(alice.refreshJwt).jti)
  assert.equal((await pds.get('com.atproto.server.getSession', {}, bearer(first.json.accessJwt))).status, 200)

  now += 2 * HOUR - 1_000
  assert.equal(claimsOf((await refresh(alice.refreshJwt)).json.refreshJwt).jti, next, 'within the grace')
  now += 1_000
  assert.deepEqual(failure(await refresh(alice.refreshJwt)), [400, 'ExpiredToken', 'Token has been revoked'])
  assert.equal((await refresh(first.json.refreshJwt)).status, 200, 'the successor is not harmed')
  now += 91 * 24 * HOUR
  assert.deepEqual(failure(await refresh(first.json.refreshJwt)), [400, 'ExpiredToken', 'Token has expired'])
})

test('clients that refresh at once end up in the same session', async t => {
  const pds = await startNetworkedPds(t)
  const alice = await signUp(pds, 'alice')
  const replies = await Promise.all(
    Array.from({ length: 12 }, () =>
      pds.post('com.atproto.server.refreshSession', undefined, null, bearer(alice.refreshJwt)),
    ),
  )
  assert.deepEqual(new Set(replies.map(reply => reply.status)), new Set([200]))
  assert.equal(new Set(replies.map(reply => claimsOf(reply.json.refreshJwt).jti)).size, 1)
})

test('ending a session ends it for good, also with a token whose time is over', async t => {
  let now = Date.parse('2026-08-20T12:00:00Z')
  const pds = await startNetworkedPds(t, {}, { now: () => now })
  const alice = await signUp(pds, 'alice')
  const post = (method: string, token: string) =>
    pds.post(`com.atproto.server.${method}`, undefined, null, bearer(token))
  const second = (await post('refreshSession', alice.refreshJwt)).json.refreshJwt
  const ended = await post('deleteSession', second)
  assert.deepEqual([ended.status, ended.bytes.length], [200, 0])
  assert.deepEqual(failure(await post('refreshSession', second)), [400, 'ExpiredToken', 'Token has been revoked'])
  const again = await post('refreshSession', alice.refreshJwt)
  assert.deepEqual(failure(again), [400, 'ExpiredToken', 'Token has been revoked'], 'no way round by its predecessor')
  assert.equal((await post('deleteSession', second)).status, 200, 'once more is no failure')
  for (const by of [0, 2, 3]) {
    const first = { identifier: alice.did, password: alice.password }
    const line = [(await pds.post('com.atproto.server.createSession', first)).json.refreshJwt]
    while (line.length < 4) line.push((await post('refreshSession', line.at(-1))).json.refreshJwt)
    await post('deleteSession', line[by])
    for (const token of line) assert.equal((await post('refreshSession', token)).status, 400, `ended by token ${by}`)
  }
  const other = await pds.post('com.atproto.server.createSession', { identifier: alice.did, password: alice.password })
  now += 100 * 24 * HOUR
  assert.equal((await post('deleteSession', other.json.refreshJwt)).status, 200)
})

test('one kind of token does not pass for another', async t => {
  const pds = await startNetworkedPds(t)
  const alice = await signUp(pds, 'alice')
  const iat = Math.floor(Date.now() / 1000)
  const claims = { scope: 'com.atproto.access', sub: alice.did, aud: pds.names.did, iat, exp: iat + 60 }
  const header = { typ: 'at+jwt', alg: 'HS256' }
  const get = (authorization?: string) =>
    pds.get('com.atproto.server.getSession', {}, authorization === undefined ? {} : { authorization })
  assert.equal((await get(`Bearer ${forge(header, claims)}`)).status, 200)
  assert.equal((await get(`bearer ${forge(header, claims)}`)).status, 200)
  const invalid = (message: string) => [400, 'InvalidToken', message]
  const unverified = invalid('Token could not be verified')
  const cases: [string, string | undefined, unknown][] = [
    ['nothing', undefined, [401, 'AuthMissing', 'Authentication Required']],
    ['refresh token', `Bearer ${alice.refreshJwt}`, unverified],
    ['another secret', `Bearer ${forge(header, claims, 'x')}`, unverified],
    ['another server', `Bearer ${forge(header, { ...claims, aud: 'did:web:other.test' })}`, unverified],
    ['garbage', 'Bearer x', unverified],
    ['expired', `Bearer ${forge(header, { ...claims, exp: iat - 1 })}`, [400, 'ExpiredToken', 'Token has expired']],
    ['DPoP-bound', `Bearer ${forge(header, { ...claims, cnf: { jkt: 'x' } })}`, invalid('Malformed token')],
    ['service token', `Bearer ${forge(header, { ...claims, lxm: 'com.example.a' })}`, invalid('Malformed token')],
    [
      'refresh scope',
      `Bearer ${forge(header, { ...claims, scope: 'com.atproto.refresh' })}`,
      invalid('Bad token scope'),
    ],
    ['no scope', `Bearer ${forge(header, { ...claims, scope: undefined })}`, invalid('Bad token scope')],
    [
      'takendown scope',
      `Bearer ${forge(header, { ...claims, scope: 'com.atproto.takendown' })}`,
      invalid('Bad token scope'),
    ],
    ['admin', basic().authorization, invalid('Unexpected authorization type')],
    ['scheme', 'Digest abc', invalid('Unsupported authorization type: Digest')],
    ['three words', 'Bearer a b', invalid('Malformed authorization header')],
    ['one word', 'Bearer', invalid('Malformed authorization header')],
  ]
  for (const [name, authorization, expected] of cases)
    assert.deepEqual(failure(await get(authorization)), expected, name)
  const refresh = (authorization: Record<string, string>) =>
    pds.post('com.atproto.server.refreshSession', undefined, null, authorization)
  assert.deepEqual(failure(await refresh(alice.auth)), unverified)
  assert.deepEqual(failure(await refresh({})), [401, 'AuthMissing', 'Authentication Required'])
  const refreshClaims = { ...claims, scope: 'com.atproto.refresh' }
  const noId = forge({ typ: 'refresh+jwt', alg: 'HS256' }, refreshClaims)
  assert.deepEqual(failure(await refresh(bearer(noId))), [401, 'MissingTokenId', 'Unexpected missing refresh token id'])
})

test('what an account that is taken down, paused or gone still can', async t => {
  const pds = await startNetworkedPds(t)
  const alice = await signUp(pds, 'alice')
  const login = (person: Person, more = {}) =>
    pds.post('com.atproto.server.createSession', { identifier: person.did, password: person.password, ...more })
  await pds.lifecycle.deactivate(alice.did as Did)
  const paused = await login(alice)
  assert.deepEqual([paused.status, paused.json.active, paused.json.status], [200, false, 'deactivated'])
  const write = { repo: alice.did, collection: 'com.example.note', record: {} }
  const written = await pds.post('com.atproto.repo.createRecord', write, null, alice.auth)
  assert.deepEqual([written.status, written.json.error], [401, 'AccountDeactivated'])

  await pds.lifecycle.takedown(alice.did as Did, 'case 1')
  const taken = [401, 'AccountTakedown', 'Account has been taken down']
  assert.deepEqual(failure(await login(alice)), taken)
  assert.deepEqual(
    failure(await pds.post('com.atproto.server.refreshSession', undefined, null, bearer(alice.refreshJwt))),
    taken,
  )
  const allowed = await login(alice, { allowTakendown: true })
  assert.deepEqual([allowed.status, allowed.json.active, allowed.json.status], [200, false, 'takendown'])
  assert.equal(claimsOf(allowed.json.accessJwt).scope, 'com.atproto.takendown')
  const old = await pds.get('com.atproto.server.getSession', {}, alice.auth)
  assert.deepEqual(failure(old), [400, 'InvalidRequest', `Could not find user info for account: ${alice.did}`])
  const limited = bearer(allowed.json.accessJwt)
  const session = await pds.get('com.atproto.server.getSession', {}, limited)
  assert.deepEqual(failure(session), [400, 'InvalidToken', 'Bad token scope'])
  assert.equal((await pds.get('app.bsky.actor.getPreferences', {}, limited)).status, 200)
  assert.equal((await pds.get('com.atproto.sync.getRepo', { did: alice.did }, limited)).status, 200)

  await pds.lifecycle.takedown(alice.did as Did, null)
  const revived = await pds.post('com.atproto.server.refreshSession', undefined, null, bearer(allowed.json.refreshJwt))
  assert.deepEqual(failure(revived), [400, 'ExpiredToken', 'Token has been revoked'], 'it never becomes a full session')

  const bob = await signUp(pds, 'bob')
  await pds.lifecycle.remove(bob.did as Did)
  const gone = await pds.get('com.atproto.server.getSession', {}, bob.auth)
  assert.deepEqual(failure(gone), [400, 'InvalidRequest', `Could not find user info for account: ${bob.did}`])
  const put = await pds.post('app.bsky.actor.putPreferences', { preferences: [] }, null, bob.auth)
  assert.deepEqual(failure(put), [403, 'AccountNotFound', 'Account not found'])
})

test("an imported account signs in by the reference's hash, which is replaced", async t => {
  const pds = await startNetworkedPds(t)
  const alice = await signUp(pds, 'alice')
  const { id } = (await pds.store.accounts.byDid(alice.did as Did))!
  const salt = '000102030405060708090a0b0c0d0e0f'
  await pds.store.accounts.update(id, { password: `${salt}:${scryptSync('imported', salt, 64).toString('hex')}` }, [])
  const login = (password: string) => pds.post('com.atproto.server.createSession', { identifier: alice.did, password })
  assert.equal((await login('wrong')).status, 401)
  assert.match((await pds.store.accounts.password(id))!, /^0001/)
  assert.equal((await login('imported')).status, 200)
  assert.match((await pds.store.accounts.password(id))!, /^\$argon2id\$/)
  assert.equal((await login('imported')).status, 200)
})

test('the DID document comes with a session when the operator says so', async t => {
  const pds = await startNetworkedPds(t, { PDS_ENABLE_DID_DOC_WITH_SESSION: 'true' })
  const alice = await signUp(pds, 'alice')
  const session = await pds.get('com.atproto.server.getSession', {}, alice.auth)
  assert.equal(session.json.didDoc.id, alice.did)
  const refreshed = await pds.post('com.atproto.server.refreshSession', undefined, null, bearer(alice.refreshJwt))
  assert.equal(refreshed.json.didDoc.alsoKnownAs[0], 'at://alice.test')
})

test('logins are counted for each name and address, and told how often', async t => {
  const pds = await startNetworkedPds(t, { PDS_RATE_LIMITS_ENABLED: 'true', PDS_RATE_LIMIT_BYPASS_KEY: 'let me' })
  const login = (identifier: string, headers = {}) =>
    pds.post('com.atproto.server.createSession', { identifier, password: 'x' }, null, headers)
  const first = await login('alice.test')
  assert.equal(first.status, 401)
  assert.equal(first.headers.get('ratelimit-limit'), '30')
  assert.equal(first.headers.get('ratelimit-policy'), '30;w=300')
  assert.equal(first.headers.get('ratelimit-remaining'), '29')
  const more = await Promise.all(Array.from({ length: 29 }, (_, i) => login(i % 2 ? 'ALICE.test' : 'alice.test')))
  assert.ok(more.every(({ status }) => status === 401))
  const refused = await login('alice.test')
  assert.deepEqual(failure(refused), [429, 'RateLimitExceeded', 'Rate Limit Exceeded'])
  assert.ok(Number(refused.headers.get('retry-after')) > 0)
  assert.equal((await login('bob.test')).status, 401)
  assert.equal((await login('alice.test', { 'x-ratelimit-bypass': 'let me' })).status, 401)
})
