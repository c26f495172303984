import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { test } from 'node:test'
import { SigningKey } from '@millisky/core/crypto'
import { signServiceJwt } from '@millisky/core/jwt'
import { type PlcUpdate, plcDidOf, plcGenesis, plcUpdate, signPlcOperation } from '@millisky/core/plc'
import { asDid, asHandle, type Did } from '@millisky/core/syntax'
import { framesOf, kindsOf } from '../testing-log.ts'
import { failure, type NetworkedPds, signUp, startNetwork, startNetworkedPds } from '../testing-network.ts'
import { basic } from '../testing-pds.ts'

const METHOD = 'com.atproto.server.createAccount'
const create = (pds: NetworkedPds, wanted: Record<string, unknown>, headers = {}) =>
  pds.post(METHOD, wanted, null, headers)
const wanted = (name: string, more: Record<string, unknown> = {}) => ({
  handle: `${name}.test`,
  email: `${name}@example.com`,
  password: 'a password',
  ...more,
})

/** An identity in the directory whose key the test holds. */
async function foreignIdentity(pds: NetworkedPds, handle = 'mover.example.com') {
  const key = SigningKey.fromPrivate('k256', randomBytes(32))
  const genesis = signPlcOperation<PlcUpdate>(
    plcGenesis({ rotationKeys: [key.didKey], signingKey: key.didKey, handle, pds: 'https://old.example.com' }),
    key,
  )
  const did = plcDidOf(genesis)
  await pds.network.plc.directory.accept(did, genesis)
  const token = (more: Record<string, unknown> = {}) => {
    const iat = Math.floor(Date.now() / 1000)
    const jti = randomBytes(8).toString('hex')
    const claims = { iss: did, aud: pds.names.did, lxm: METHOD, iat, exp: iat + 60, jti, ...more }
    return { authorization: `Bearer ${signServiceJwt(claims as Parameters<typeof signServiceJwt>[0], key)}` }
  }
  return { did, key, token, genesis }
}

test('a new account has an identity that names this server and tells the world in order', async t => {
  const recovery = SigningKey.fromPrivate('p256', randomBytes(32)).didKey
  const operator = SigningKey.fromPrivate('k256', randomBytes(32)).didKey
  const pds = await startNetworkedPds(t, { PDS_RECOVERY_DID_KEY: operator })
  const reply = await create(pds, wanted('Alice', { recoveryKey: recovery }))
  assert.equal(reply.status, 200)
  const { did, handle, accessJwt, refreshJwt, didDoc } = reply.json
  assert.equal(handle, 'alice.test')
  assert.equal(didDoc.id, did)
  assert.deepEqual(didDoc.alsoKnownAs, ['at://alice.test'])
  assert.equal(didDoc.service[0].serviceEndpoint, pds.names.publicUrl)
  assert.ok(accessJwt && refreshJwt)
  const data = pds.network.plc.directory.data(did)
  assert.equal(data.rotationKeys.length, 3)
  assert.deepEqual(data.rotationKeys.slice(0, 2), [recovery, operator])
  assert.deepEqual(await kindsOf(pds, did), ['#identity', '#account', '#commit', '#sync'])
  const repo = await pds.get('com.atproto.repo.describeRepo', { repo: did })
  assert.deepEqual([repo.json.handle, repo.json.handleIsCorrect, repo.json.collections], ['alice.test', true, []])
})

test('what is wrong with a sign-up is said as clients expect it', async t => {
  const pds = await startNetworkedPds(t, { PDS_SERVICE_HANDLE_DOMAINS: '.test,.pds.example.com' })
  await signUp(pds, 'alice')
  const invalid = (message: string, error = 'InvalidRequest') => [400, error, message]
  const email = 'This email address is not supported, please use a different email.'
  const cases: [Record<string, unknown>, unknown][] = [
    [wanted('bob', { handle: 'alice.test' }), invalid('Handle already taken: alice.test')],
    [wanted('bob', { handle: 'ALICE.test' }), invalid('Handle already taken: alice.test')],
    [wanted('bob', { email: 'Alice@example.com' }), invalid('Email already taken: Alice@example.com')],
    [wanted('bob', { email: undefined }), invalid('Email is required')],
    [wanted('bob', { email: 'bob' }), invalid(email)],
    [wanted('bob', { email: 'bob@localhost' }), invalid(email)],
    [wanted('bob', { email: 'b..ob@example.com' }), invalid(email)],
    [wanted('bob', { email: 'bob@mailinator.com' }), invalid(email)],
    [wanted('bo'), invalid('Handle too short', 'InvalidHandle')],
    [wanted('b'.repeat(19)), invalid('Handle too long', 'InvalidHandle')],
    [wanted('b.o.b'), invalid('Invalid characters in handle', 'InvalidHandle')],
    [wanted('admin'), invalid('Reserved handle', 'HandleNotAvailable')],
    [wanted('support', { handle: 'support.pds.example.com' }), invalid('Reserved handle', 'HandleNotAvailable')],
    [wanted('bob', { handle: 'bob.example.org' }), invalid('Not a supported handle domain', 'UnsupportedDomain')],
    [wanted('bob', { handle: 'pds.example.com' }), invalid('Not a supported handle domain', 'UnsupportedDomain')],
    [wanted('bob', { handle: 'bob.local' }), invalid('Handle TLD is invalid or disallowed', 'InvalidHandle')],
    [wanted('bob', { password: 'x'.repeat(257) }), invalid('Password too long. Maximum length is 256 characters.')],
    [wanted('bob', { inviteCode: 'nope' }), invalid('Provided invite code not available', 'InvalidInviteCode')],
    [wanted('alice', { inviteCode: 'nope' }), invalid('Handle already taken: alice.test')],
    [wanted('bob', { plcOp: {} }), invalid('Unsupported input: "plcOp"')],
    [wanted('bob', { recoveryKey: 'did:key:zzz' }), invalid('recoveryKey is not a did:key of P-256 or K-256')],
    [
      wanted('bob', { did: 'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa' }),
      [401, 'AuthenticationRequired', 'Missing auth to create account with did: did:plc:aaaaaaaaaaaaaaaaaaaaaaaa'],
    ],
  ]
  const before = pds.network.asked.length
  for (const [body, expected] of cases)
    assert.deepEqual(failure(await create(pds, body)), expected, JSON.stringify(body))
  const malformed = await create(pds, wanted('bob', { handle: 'not a handle' }))
  assert.deepEqual([malformed.status, malformed.json.error], [400, 'InvalidRequest'])
  assert.match(malformed.json.message, /handle/)
  const withAdmin = failure(await create(pds, wanted('bob'), basic()))
  assert.deepEqual(withAdmin, [401, 'AuthenticationRequired', 'Invalid authorization header'])
  const registered = pds.network.asked.slice(before).filter(line => line.startsWith('POST'))
  assert.deepEqual(registered, [], 'no identity was made for any of them')
  assert.equal(await pds.store.accounts.count(), 1)
})

test('an account without a password is nobody to sign in as', async t => {
  const pds = await startNetworkedPds(t)
  assert.equal((await create(pds, wanted('alice', { password: undefined }))).status, 200)
  const login = await pds.post('com.atproto.server.createSession', { identifier: 'alice.test', password: '' })
  assert.deepEqual([login.status, login.json.error], [401, 'AuthenticationRequired'])
})

test('invites are used as often as they say, and only by accounts that came to be', async t => {
  const pds = await startNetworkedPds(t, { PDS_INVITE_REQUIRED: 'true' })
  const add = (code: string, uses: number, forAccount = 'admin') =>
    pds.store.tickets.addInvites([{ code, uses, forAccount, createdBy: 'admin', createdAt: 1 }])
  await add('twice', 2)
  const gone = [400, 'InvalidInviteCode', 'Provided invite code not available']
  const none = failure(await create(pds, wanted('alice')))
  assert.deepEqual(none, [400, 'InvalidInviteCode', 'No invite code provided'])
  assert.deepEqual(failure(await create(pds, wanted('alice', { inviteCode: 'other' }))), gone)
  const alice = await signUp(pds, 'alice', { inviteCode: 'twice' })
  assert.equal(
    (await create(pds, wanted('alice', { inviteCode: 'twice' }))).json.message,
    'Handle already taken: alice.test',
  )
  await signUp(pds, 'bob', { inviteCode: 'twice' })
  assert.deepEqual(failure(await create(pds, wanted('carol', { inviteCode: 'twice' }))), gone)
  await add('from-alice', 1, alice.did)
  await pds.lifecycle.takedown(alice.did as Did, 'spam')
  assert.deepEqual(failure(await create(pds, wanted('carol', { inviteCode: 'from-alice' }))), gone)
  await add('once', 1)
  const race = await Promise.all(
    ['dave', 'erin', 'fred'].map(name => create(pds, wanted(name, { inviteCode: 'once' }))),
  )
  assert.deepEqual(race.map(({ status }) => status).sort(), [200, 400, 400])
})

test('a directory that refuses or is down leaves no account', async t => {
  const pds = await startNetworkedPds(t)
  const isSubmission = (url: URL, { method }: { method?: string }) =>
    method === 'POST' && url.pathname.startsWith('/did:')
  pds.network.interfere = (url, options) => (isSubmission(url, options) ? { status: 400 } : undefined)
  const refused = await create(pds, wanted('alice'))
  assert.deepEqual([refused.status, refused.json.error], [400, 'InvalidRequest'])
  pds.network.interfere = (url, options) => (isSubmission(url, options) ? { status: 503 } : undefined)
  const down = await create(pds, wanted('alice'))
  assert.deepEqual([down.status, down.json.error], [502, 'UpstreamFailure'])
  pds.network.interfere = null
  await pds.network.plc.close()
  const dead = await create(pds, wanted('alice'))
  assert.equal(dead.status, 502)
  assert.equal(await pds.store.accounts.count(), 0)
  assert.deepEqual(await framesOf(pds), [])
})

test('an identity without an account is ended again', async t => {
  const pds = await startNetworkedPds(t)
  // Another process of the same database takes the name at the worst moment.
  let taken = ''
  pds.network.interfere = async (url, { method }) => {
    if (method !== 'POST' || taken) return undefined
    taken = url.pathname.slice(1)
    await pds.lifecycle.open({
      did: asDid('did:plc:aaaaaaaaaaaaaaaaaaaaaaaa'),
      handle: asHandle('alice.test'),
      email: null,
      password: null,
      key: { curve: 'k256', secret: new Uint8Array(32).fill(1) },
    })
    return undefined
  }
  assert.deepEqual(failure(await create(pds, wanted('alice'))), [
    400,
    'InvalidRequest',
    'Handle already taken: alice.test',
  ])
  assert.equal(pds.network.plc.directory.log(asDid(taken)).at(-1)?.operation.type, 'plc_tombstone')
  assert.equal(await pds.store.accounts.byDid(asDid(taken)), null)
  assert.deepEqual(await kindsOf(pds, taken), [])
})

test('of many who want one name at once, one gets it and no identity is wasted', async t => {
  const pds = await startNetworkedPds(t)
  const replies = await Promise.all(
    Array.from({ length: 6 }, (_, i) => create(pds, wanted('alice', { email: `a${i}@example.com` }))),
  )
  assert.deepEqual(replies.map(({ status }) => status).sort(), [200, 400, 400, 400, 400, 400])
  for (const { status, json } of replies)
    if (status !== 200) assert.equal(json.message, 'Handle already taken: alice.test')
  assert.equal(pds.network.asked.filter(line => line.startsWith('POST')).length, 1)
})

test('an account that moves here proves its DID, comes deactivated, and nobody hears of it', async t => {
  const pds = await startNetworkedPds(t)
  const mover = await foreignIdentity(pds)
  const reserved = await pds.store.tickets.reserveKey(
    'did:key:zReserved',
    mover.did,
    { curve: 'k256', secret: new Uint8Array(32).fill(7) },
    1,
  )
  assert.equal(reserved, 'did:key:zReserved')
  const body = wanted('mover', { did: mover.did })
  assert.equal((await pds.get('com.atproto.identity.resolveDid', { did: mover.did })).status, 200, 'now remembered')
  const renamed = plcUpdate(mover.genesis, { alsoKnownAs: ['at://renamed.example.com'] })
  await pds.network.plc.directory.accept(mover.did, signPlcOperation<PlcUpdate>(renamed, mover.key))
  const reply = await create(pds, body, mover.token())
  assert.equal(reply.status, 200, JSON.stringify(reply.json))
  assert.equal(reply.json.did, mover.did)
  assert.deepEqual(reply.json.didDoc.alsoKnownAs, ['at://renamed.example.com'], 'as it is now')
  const state = await pds.store.repos.state(mover.did)
  assert.deepEqual([state?.status, state?.key.secret], ['deactivated', new Uint8Array(32).fill(7)])
  assert.equal(await pds.store.tickets.reservedKey(mover.did), null, 'a key is given out once')
  assert.deepEqual(await framesOf(pds), [])
  const status = await pds.get('com.atproto.sync.getRepoStatus', { did: mover.did })
  assert.deepEqual(status.json, { did: mover.did, active: false, status: 'deactivated' })
  const again = await create(pds, wanted('mover2', { did: mover.did }), mover.token())
  assert.deepEqual(failure(again), [400, 'AlreadyExists', 'Repo already exists'])
  assert.deepEqual(failure(await create(pds, body, mover.token())), failure(again), 'by the same name too')
  assert.equal((await create(pds, body)).json.message, 'Handle already taken: mover.test', 'nothing is proven')
})

test('a token that proves less than the DID opens nothing', async t => {
  const pds = await startNetworkedPds(t)
  const mover = await foreignIdentity(pds)
  const other = await foreignIdentity(pds, 'other.example.com')
  const body = wanted('mover', { did: mover.did })
  const seconds = Math.floor(Date.now() / 1000)
  const cases: [Record<string, string>, string][] = [
    [other.token(), 'AuthenticationRequired'],
    [mover.token({ aud: 'did:web:other.test' }), 'BadJwtAudience'],
    [mover.token({ lxm: 'com.atproto.server.getSession' }), 'BadJwtLexiconMethod'],
    [mover.token({ lxm: undefined }), 'BadJwtLexiconMethod'],
    [mover.token({ exp: seconds - 1 }), 'JwtExpired'],
    [mover.token({ iss: other.did }), 'BadJwtSignature'],
    [mover.token({ iss: 'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa' }), 'AuthenticationRequired'],
    [{ authorization: 'Bearer x.y.z' }, 'BadJwt'],
  ]
  for (const [headers, error] of cases) {
    const reply = await create(pds, body, headers)
    assert.deepEqual([reply.status, reply.json.error], [401, error])
  }
  const session = await create(pds, body, { authorization: (await signUp(pds, 'alice')).auth.authorization })
  assert.deepEqual([session.status, session.json.error], [401, 'BadJwtType'])
  const foreign = await create(pds, { ...body, handle: 'mover.example.com' }, mover.token())
  assert.deepEqual(failure(foreign), [400, 'InvalidRequest', 'External handle did not resolve to DID'])
})

test('a server without a rotation key makes no identities', async t => {
  const network = await startNetwork(t)
  const pds = await startNetworkedPds(t, { PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX: '' }, { network })
  const reply = await create(pds, wanted('alice'))
  assert.deepEqual(failure(reply), [400, 'InvalidRequest', 'This server makes no new identities: bring your own DID'])
})

test('sign-ups are counted for each address', async t => {
  const pds = await startNetworkedPds(t, { PDS_RATE_LIMITS_ENABLED: 'true' })
  const first = await create(pds, wanted('x'))
  assert.deepEqual([first.status, first.headers.get('ratelimit-policy')], [400, '100;w=300'])
  await Promise.all(Array.from({ length: 99 }, () => create(pds, wanted('x'))))
  assert.deepEqual(failure(await create(pds, wanted('x'))), [429, 'RateLimitExceeded', 'Rate Limit Exceeded'])
})
