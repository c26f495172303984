import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { test } from 'node:test'
import { SigningKey } from '@millisky/core/crypto'
import { buildDidDocument } from '@millisky/core/did'
import { signServiceJwt } from '@millisky/core/jwt'
import { type PlcUpdate, plcDidOf, plcGenesis, plcUpdate, signPlcOperation } from '@millisky/core/plc'
import type { Did } from '@millisky/core/syntax'
import { kindsOf } from '../testing-log.ts'
import { startMailbox } from '../testing-mail.ts'
import { failure, type NetworkedPds, signUp, startNetworkedPds } from '../testing-network.ts'
import { type Asked, json, type StandIn, startStandIn } from '../testing-services.ts'

const IDENTITY = 'com.atproto.identity'
const SERVER = 'com.atproto.server'
const bearer = (token: string) => ({ authorization: `Bearer ${token}` })
const invalid = (message: string) => [400, 'InvalidRequest', message]

/** An identity in the directory whose only rotation key the test holds. */
async function ownIdentity(pds: NetworkedPds) {
  const key = SigningKey.fromPrivate('k256', randomBytes(32))
  const genesis = signPlcOperation<PlcUpdate>(
    plcGenesis({
      rotationKeys: [key.didKey],
      signingKey: key.didKey,
      handle: 'mover.example.com',
      pds: 'https://old.example.com',
    }),
    key,
  )
  const did = plcDidOf(genesis)
  await pds.network.plc.directory.accept(did, genesis)
  return { key, genesis, did }
}

/** Somebody who has come by migration and is not active yet. */
async function mover(pds: NetworkedPds, name = 'mover') {
  const { key, genesis, did } = await ownIdentity(pds)
  const iat = Math.floor(Date.now() / 1000)
  const lxm = `${SERVER}.createAccount`
  const token = signServiceJwt({ iss: did, aud: pds.names.did, lxm, iat, exp: iat + 60, jti: 'x' }, key)
  const wanted = { did, handle: `${name}.test`, email: `${name}@example.com`, password: 'a password' }
  const made = await pds.post(lxm, wanted, null, bearer(token))
  assert.equal(made.status, 200, JSON.stringify(made.json))
  return { key, genesis, did, auth: bearer(made.json.accessJwt), password: wanted.password }
}

test('a handle is changed in the directory and announced', async t => {
  const pds = await startNetworkedPds(t)
  const alice = await signUp(pds, 'alice')
  await signUp(pds, 'bob')
  const update = (handle: string) => pds.post(`${IDENTITY}.updateHandle`, { handle }, null, alice.auth)
  const done = await update('Alice2.test')
  assert.deepEqual([done.status, done.bytes.length], [200, 0])
  assert.deepEqual(pds.network.plc.directory.data(alice.did as Did).alsoKnownAs, ['at://alice2.test'])
  const session = await pds.get(`${SERVER}.getSession`, {}, alice.auth)
  assert.equal(session.json.handle, 'alice2.test')
  assert.equal((await pds.get(`${IDENTITY}.resolveHandle`, { handle: 'alice.test' })).json.error, 'HandleNotFound')
  const described = await pds.get('com.atproto.repo.describeRepo', { repo: 'alice2.test' })
  assert.equal(described.json.handleIsCorrect, true)
  const before = pds.network.plc.directory.log(alice.did as Did).length
  assert.equal((await update('alice2.test')).status, 200)
  assert.equal(pds.network.plc.directory.log(alice.did as Did).length, before, 'the same needs no operation')
  assert.deepEqual((await kindsOf(pds, alice.did)).slice(4), ['#identity', '#identity'])

  const cases: [string, unknown][] = [
    ['bob.test', [400, 'HandleNotAvailable', 'Handle already taken: bob.test']],
    ['admin.test', [400, 'HandleNotAvailable', 'Reserved handle']],
    ['al.test', [400, 'InvalidHandle', 'Handle too short']],
    ['a.b.test', [400, 'InvalidHandle', 'Invalid characters in handle']],
    ['alice.local', [400, 'InvalidHandle', 'Handle TLD is invalid or disallowed']],
    ['alice.nowhere.invalid', [400, 'InvalidHandle', 'Handle TLD is invalid or disallowed']],
  ]
  for (const [handle, expected] of cases) assert.deepEqual(failure(await update(handle)), expected, handle)
  pds.network.interfere = url => (url.pathname === '/.well-known/atproto-did' ? { status: 404 } : undefined)
  assert.deepEqual(failure(await update('alice.example.com')), invalid('External handle did not resolve to DID'))
  pds.network.interfere = (url, { method }) =>
    method === 'POST' && url.pathname.startsWith('/did') ? { status: 503 } : undefined
  assert.equal((await update('alice3.test')).status, 502)
  pds.network.interfere = null
  assert.equal((await pds.get(`${SERVER}.getSession`, {}, alice.auth)).json.handle, 'alice2.test', 'nothing half done')
  assert.equal((await update('alice3.test')).status, 200)
})

test('handle changes are counted', async t => {
  const pds = await startNetworkedPds(t, { PDS_RATE_LIMITS_ENABLED: 'true' })
  const alice = await signUp(pds, 'alice')
  const update = () => pds.post(`${IDENTITY}.updateHandle`, { handle: 'admin.test' }, null, alice.auth)
  for (let i = 0; i < 10; i++) assert.equal((await update()).status, 400)
  const more = await update()
  assert.deepEqual([more.status, more.headers.get('ratelimit-policy')], [429, '10;w=300'])
})

test('an account that moves here goes live when its DID says so', async t => {
  const mailbox = await startMailbox(t)
  const pds = await startNetworkedPds(t, mailbox.env)
  const { did, key, genesis, auth } = await mover(pds)
  const status = async () => (await pds.get(`${SERVER}.checkAccountStatus`, {}, auth)).json
  const activate = () => pds.post(`${SERVER}.activateAccount`, undefined, null, auth)
  const first = await status()
  assert.match(first.repoCommit, /^bafyrei/)
  assert.deepEqual(
    { ...first, repoCommit: '', repoRev: '' },
    {
      activated: false,
      validDid: false,
      repoCommit: '',
      repoRev: '',
      repoBlocks: 2,
      indexedRecords: 0,
      privateStateValues: 0,
      expectedBlobs: 0,
      importedBlobs: 0,
    },
  )
  assert.deepEqual(failure(await activate()), invalid('Server rotation key not included in PLC DID data'))
  const { json: wanted } = await pds.get(`${IDENTITY}.getRecommendedDidCredentials`, {}, auth)
  assert.deepEqual(wanted.alsoKnownAs, ['at://mover.test'])
  assert.deepEqual(wanted.services, {
    atproto_pds: { type: 'AtprotoPersonalDataServer', endpoint: pds.names.publicUrl },
  })
  assert.equal(wanted.rotationKeys.length, 1)

  const submit = async (change: Record<string, unknown>, signer = key) => {
    const operation = signPlcOperation<PlcUpdate>(plcUpdate(genesis, { ...wanted, ...change }), signer)
    return pds.post(`${IDENTITY}.submitPlcOperation`, { operation }, null, auth)
  }
  const { services, alsoKnownAs } = wanted
  const wrong: [Record<string, unknown>, string][] = [
    [{ rotationKeys: [key.didKey] }, "Rotation keys do not include server's rotation key"],
    [
      { services: { atproto_pds: { ...services.atproto_pds, type: 'Other' } } },
      'Incorrect type on atproto_pds service',
    ],
    [
      { services: { atproto_pds: { ...services.atproto_pds, endpoint: 'https://x.com' } } },
      'Incorrect endpoint on atproto_pds service',
    ],
    [{ verificationMethods: { atproto: key.didKey } }, 'Incorrect signing key'],
    [{ alsoKnownAs: ['at://other.test', ...alsoKnownAs] }, 'Incorrect handle in alsoKnownAs'],
  ]
  for (const [change, message] of wrong) assert.deepEqual(failure(await submit(change)), invalid(message))
  const garbage = await pds.post(`${IDENTITY}.submitPlcOperation`, { operation: { a: 1 } }, null, auth)
  assert.deepEqual([garbage.status, garbage.json.error], [400, 'InvalidRequest'])
  const forged = await submit({}, SigningKey.fromPrivate('k256', randomBytes(32)))
  assert.deepEqual([forged.status, forged.json.error], [400, 'InvalidRequest'], 'the directory refuses')

  const rotationKeys = [key.didKey, ...wanted.rotationKeys]
  const done = await submit({ rotationKeys })
  assert.deepEqual([done.status, done.bytes.length], [200, 0])
  assert.equal((await status()).validDid, true)
  assert.deepEqual(await kindsOf(pds, did), ['#identity'])
  assert.equal((await activate()).status, 200)
  assert.deepEqual(await kindsOf(pds, did), ['#identity', '#account', '#identity', '#sync'])
  assert.equal((await status()).activated, true)
  const write = { repo: did, collection: 'com.example.note', record: { text: 'hi' } }
  assert.equal((await pds.post('com.atproto.repo.createRecord', write, null, auth)).status, 200)
  const counted = await status()
  assert.deepEqual([counted.indexedRecords, counted.repoBlocks], [1, 3])
})

test('an account pauses and comes back', async t => {
  let now = Date.parse('2026-08-20T12:00:00Z')
  const pds = await startNetworkedPds(t, {}, { now: () => now })
  const alice = await signUp(pds, 'alice')
  const deleteAfter = '2026-09-01T00:00:00.000Z'
  const pause = await pds.post(`${SERVER}.deactivateAccount`, { deleteAfter }, null, alice.auth)
  assert.deepEqual([pause.status, pause.bytes.length], [200, 0])
  const account = await pds.store.accounts.byDid(alice.did as Did)
  assert.deepEqual([account?.deactivatedAt, account?.deleteAfter], [now, Date.parse(deleteAfter)])
  assert.equal((await pds.get('com.atproto.sync.getRepo', { did: alice.did })).json.error, 'RepoDeactivated')
  assert.deepEqual((await kindsOf(pds, alice.did)).slice(4), ['#account'])
  assert.equal(await pds.departures.removeDue(Date.parse(deleteAfter) - 1), 0)
  assert.equal((await pds.post(`${SERVER}.activateAccount`, undefined, null, alice.auth)).status, 200)
  assert.deepEqual((await kindsOf(pds, alice.did)).slice(5), ['#account', '#identity', '#sync'])
  assert.equal(await pds.departures.removeDue(Date.parse(deleteAfter)), 0, 'who came back stays')
  await pds.post(`${SERVER}.deactivateAccount`, { deleteAfter }, null, alice.auth)
  now += 1
  assert.equal(await pds.departures.removeDue(Date.parse(deleteAfter)), 1)
  assert.equal((await pds.get('com.atproto.sync.getRepoStatus', { did: alice.did })).json.error, 'RepoNotFound')
  const gone = await pds.post(`${SERVER}.deactivateAccount`, {}, null, alice.auth)
  assert.deepEqual([gone.status, gone.json.error], [403, 'AccountNotFound'])
})

test('who may activate, pause and sign', async t => {
  const pds = await startNetworkedPds(t)
  const alice = await signUp(pds, 'alice')
  const app = await pds.post(`${SERVER}.createAppPassword`, { name: 'app' }, null, alice.auth)
  const session = { identifier: alice.did, password: app.json.password }
  const limited = bearer((await pds.post(`${SERVER}.createSession`, session)).json.accessJwt)
  const scope = [400, 'InvalidToken', 'Bad token scope']
  const methods = [
    `${SERVER}.activateAccount`,
    `${SERVER}.deactivateAccount`,
    `${IDENTITY}.requestPlcOperationSignature`,
  ]
  for (const method of methods) {
    assert.deepEqual(failure(await pds.post(method, method.includes('deact') ? {} : undefined, null, limited)), scope)
    const nobody = await pds.post(method, method.includes('deact') ? {} : undefined)
    assert.deepEqual(failure(nobody), [401, 'AuthMissing', 'Authentication Required'])
  }
  assert.deepEqual(failure(await pds.post(`${IDENTITY}.signPlcOperation`, {}, null, limited)), scope)
  await pds.lifecycle.takedown(alice.did as Did, 'case')
  const active = await pds.post(`${SERVER}.activateAccount`, undefined, null, alice.auth)
  assert.deepEqual(failure(active), [400, 'AccountNotFound', 'user not found'])
  const login = { identifier: alice.did, password: alice.password, allowTakendown: true }
  const leaving = bearer((await pds.post(`${SERVER}.createSession`, login)).json.accessJwt)
  assert.equal((await pds.post(`${IDENTITY}.requestPlcOperationSignature`, undefined, null, leaving)).status, 200)
  assert.equal((await pds.post(`${SERVER}.deactivateAccount`, {}, null, leaving)).status, 200)
})

test('an operation is signed for who typed the code that came by mail', async t => {
  const mailbox = await startMailbox(t)
  const pds = await startNetworkedPds(t, mailbox.env)
  const alice = await signUp(pds, 'alice')
  const sign = (body: Record<string, unknown>) => pds.post(`${IDENTITY}.signPlcOperation`, body, null, alice.auth)
  assert.equal((await pds.post(`${IDENTITY}.requestPlcOperationSignature`, undefined, null, alice.auth)).status, 200)
  const { subject, code } = await mailbox.next()
  assert.equal(subject, 'PLC Update Operation Requested')
  const required = 'email confirmation token required to sign PLC operations'
  assert.deepEqual(failure(await sign({})), invalid(required))
  assert.deepEqual(failure(await sign({ token: 'AAAAA-AAAAA' })), [400, 'InvalidToken', 'Token is invalid'])
  const before = pds.network.plc.directory.data(alice.did as Did)
  const own = SigningKey.fromPrivate('p256', randomBytes(32)).didKey
  const many = await sign({ token: code, rotationKeys: Array.from({ length: 12 }, () => own) })
  assert.deepEqual([many.status, many.json.error], [400, 'InvalidRequest'], 'the code is not lost by a mistake')
  const signed = await sign({ token: code, rotationKeys: [own, ...before.rotationKeys] })
  assert.equal(signed.status, 200)
  const { operation } = signed.json
  assert.deepEqual(operation.rotationKeys, [own, ...before.rotationKeys])
  assert.deepEqual([operation.alsoKnownAs, operation.services], [before.alsoKnownAs, before.services])
  assert.deepEqual(failure(await sign({ token: code })), [400, 'InvalidToken', 'Token is invalid'])
  assert.deepEqual(pds.network.plc.directory.data(alice.did as Did), before, 'signed is not submitted')
  assert.equal((await pds.post(`${IDENTITY}.submitPlcOperation`, { operation }, null, alice.auth)).status, 200)
  assert.equal(pds.network.plc.directory.data(alice.did as Did).rotationKeys[0], own)
})

test('a server without a rotation key leaves identities to their owners', async t => {
  const mailbox = await startMailbox(t)
  const pds = await startNetworkedPds(t, { ...mailbox.env, PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX: '' })
  const { did, key, genesis, auth } = await mover(pds)
  const { json: wanted } = await pds.get(`${IDENTITY}.getRecommendedDidCredentials`, {}, auth)
  assert.equal(wanted.rotationKeys, undefined, 'no key of its own to name')
  const operation = signPlcOperation<PlcUpdate>(plcUpdate(genesis, { ...wanted, rotationKeys: [key.didKey] }), key)
  assert.equal((await pds.post(`${IDENTITY}.submitPlcOperation`, { operation }, null, auth)).status, 200)
  assert.equal((await pds.post(`${SERVER}.activateAccount`, undefined, null, auth)).status, 200)
  const update = () => pds.post(`${IDENTITY}.updateHandle`, { handle: 'mover2.test' }, null, auth)
  assert.deepEqual(failure(await update()), invalid('DID is not properly configured for handle'))
  const next = signPlcOperation<PlcUpdate>(plcUpdate(operation, { alsoKnownAs: ['at://mover2.test'] }), key)
  await pds.network.plc.directory.accept(did, next)
  assert.equal((await update()).status, 200)
  await pds.post(`${IDENTITY}.requestPlcOperationSignature`, undefined, null, auth)
  const { code } = await mailbox.next()
  const sign = await pds.post(`${IDENTITY}.signPlcOperation`, { token: code }, null, auth)
  assert.deepEqual(failure(sign), invalid('This server has no rotation key: sign with your own'))
})

test('identities of anybody', async t => {
  const pds = await startNetworkedPds(t)
  const alice = await signUp(pds, 'alice')
  const own = await ownIdentity(pds)
  const document = await pds.get(`${IDENTITY}.resolveDid`, { did: own.did })
  assert.deepEqual([document.status, document.json.didDoc.id], [200, own.did])
  const full = { did: alice.did, handle: 'alice.test' }
  for (const identifier of [alice.did, 'alice.test']) {
    const { didDoc, ...rest } = (await pds.get(`${IDENTITY}.resolveIdentity`, { identifier })).json
    assert.deepEqual(rest, full)
    assert.equal(didDoc.id, alice.did)
  }
  pds.network.interfere = url => (url.pathname === '/.well-known/atproto-did' ? { status: 404 } : undefined)
  const unconfirmed = await pds.get(`${IDENTITY}.resolveIdentity`, { identifier: own.did })
  assert.equal(unconfirmed.json.handle, 'handle.invalid')
  const ghost = 'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa'
  for (const [method, params] of [
    ['resolveDid', { did: ghost }],
    ['resolveIdentity', { identifier: ghost }],
  ] as const) {
    const reply = await pds.get(`${IDENTITY}.${method}`, params)
    assert.deepEqual([reply.status, reply.json.error], [400, 'DidNotFound'])
  }
  assert.equal((await pds.get(`${IDENTITY}.resolveIdentity`, { identifier: 'bob.test' })).json.error, 'HandleNotFound')
  const next = signPlcOperation<PlcUpdate>(plcUpdate(own.genesis, { services: {} }), own.key)
  await pds.network.plc.directory.accept(own.did, next)
  assert.equal((await pds.get(`${IDENTITY}.resolveDid`, { did: own.did })).json.didDoc.service.length, 1, 'remembered')
  const refreshed = await pds.post(`${IDENTITY}.refreshIdentity`, { identifier: own.did })
  assert.deepEqual(refreshed.json.didDoc.service, [])
  assert.deepEqual((await pds.get(`${IDENTITY}.resolveDid`, { did: own.did })).json.didDoc.service, [])
})

test('a handle that cannot be resolved from here is asked of the app view', async t => {
  const appView = await startStandIn(t)
  const env = { PDS_BSKY_APP_VIEW_URL: appView.url, PDS_BSKY_APP_VIEW_DID: appView.did }
  const known = 'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa'
  const names = new Map([['_atproto.known.example.com', known]])
  const resolveTxt = async (name: string) => (names.has(name) ? [[`did=${names.get(name)}`]] : [])
  const pds = await startNetworkedPds(t, env, { resolveTxt })
  pds.network.interfere = url => (url.pathname === '/.well-known/atproto-did' ? { status: 404 } : undefined)
  const resolve = (handle: string) => pds.get(`${IDENTITY}.resolveHandle`, { handle })
  const told = 'did:plc:bbbbbbbbbbbbbbbbbbbbbbbb'
  appView.answer = (_asked, response) => json(response, { did: told })
  assert.equal((await resolve('known.example.com')).json.did, known)
  assert.deepEqual(failure(await resolve('nobody.test')), [400, 'HandleNotFound', 'Unable to resolve handle'])
  assert.equal(appView.asked.length, 0)
  assert.equal((await resolve('Else.example.com')).json.did, told)
  const [{ path, token }] = appView.asked as [Asked]
  assert.deepEqual([path, token], [`/xrpc/${IDENTITY}.resolveHandle?handle=else.example.com`, null])
  const answers: StandIn['answer'][] = [
    (_asked, response) => json(response, { error: 'HandleNotFound', message: 'no' }, {}, 400),
    (_asked, response) => json(response, { did: 'nonsense' }),
    (_asked, response) => json(response, [known]),
    (_asked, response) => void response.end('null'),
    (_asked, response) => void response.destroy(),
  ]
  for (const answer of answers) {
    appView.answer = answer
    assert.deepEqual(failure(await resolve('else.example.com')), invalid('Unable to resolve handle'))
  }
})

test('an account of a DID of the web, whose owner writes the document', async t => {
  const pds = await startNetworkedPds(t)
  const did = 'did:web:alice.example.com' as Did
  const key = SigningKey.fromPrivate('k256', randomBytes(32))
  const document = { handle: 'alice.test', key: key.didKey, pds: 'https://old.example.com' }
  pds.network.interfere = url => {
    if (url.pathname === '/.well-known/atproto-did') return { status: 200, bytes: Buffer.from(did) }
    if (url.href !== 'https://alice.example.com/.well-known/did.json') return undefined
    const doc = buildDidDocument(did, {
      alsoKnownAs: [`at://${document.handle}`],
      verificationMethods: { atproto: document.key },
      services: { atproto_pds: { type: 'AtprotoPersonalDataServer', endpoint: document.pds } },
    })
    return { status: 200, bytes: Buffer.from(JSON.stringify(doc)) }
  }
  const { signingKey } = (await pds.post(`${SERVER}.reserveSigningKey`, { did })).json
  const iat = Math.floor(Date.now() / 1000)
  const lxm = `${SERVER}.createAccount`
  const token = signServiceJwt({ iss: did, aud: pds.names.did, lxm, iat, exp: iat + 60, jti: 'x' }, key)
  const wanted = { did, handle: 'alice.test', email: 'alice@example.com', password: 'a password' }
  const made = await pds.post(lxm, wanted, null, bearer(token))
  assert.equal(made.status, 200, JSON.stringify(made.json))
  const auth = bearer(made.json.accessJwt)
  const activate = async () => failure(await pds.post(`${SERVER}.activateAccount`, undefined, null, auth))
  const endpoint = 'DID document atproto_pds service endpoint does not match PDS public url'
  assert.deepEqual(await activate(), invalid(endpoint))
  document.pds = pds.names.publicUrl
  assert.deepEqual(await activate(), invalid('DID document verification method does not match expected signing key'))
  document.key = signingKey
  assert.equal((await activate())[0], 200)
  const update = async (handle: string) => failure(await pds.post(`${IDENTITY}.updateHandle`, { handle }, null, auth))
  const unready = invalid('DID is not properly configured for handle')
  assert.deepEqual(await update('alice.example.com'), unready)
  document.handle = 'alice.example.com'
  assert.equal((await update('alice.example.com'))[0], 200)
  assert.equal((await pds.get(`${SERVER}.getSession`, {}, auth)).json.handle, 'alice.example.com')
  const described = await pds.get('com.atproto.repo.describeRepo', { repo: did })
  assert.equal(described.json.handleIsCorrect, true)
  const operation = signPlcOperation<PlcUpdate>(
    plcGenesis({ rotationKeys: [key.didKey], signingKey, handle: 'x.test', pds: pds.names.publicUrl }),
    key,
  )
  const submitted = await pds.post(`${IDENTITY}.submitPlcOperation`, { operation }, null, auth)
  assert.deepEqual(failure(submitted), invalid('Only a did:plc has operations'))
  assert.ok(!pds.network.asked.some(line => line.startsWith('POST /did:web')), 'the directory is not bothered')
})
