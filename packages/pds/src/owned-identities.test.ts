// Identities whose rotation keys stay with their owners, and keys that change.
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { test } from 'node:test'
import { decodeCommit, verifyCommit } from '@millisky/core/commit'
import { PublicKey, SigningKey } from '@millisky/core/crypto'
import { decodeFrame } from '@millisky/core/event'
import { type PlcUpdate, plcDidOf, plcGenesis, plcUpdate, signPlcOperation } from '@millisky/core/plc'
import type { Did } from '@millisky/core/syntax'
import { framesOf } from '@millisky/server/log/frame-wire'
import { failure, type NetworkedPds, signUp, startNetworkedPds } from './testing-network.ts'
import { basic, type TestPds } from './testing-pds.ts'

const SERVER = 'com.atproto.server'
const OFFLINE = { PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX: '' }
const invalid = (message: string) => [400, 'InvalidRequest', message]

const newKey = () => SigningKey.fromPrivate('k256', randomBytes(32))
const reserve = async (pds: TestPds, body: object = {}) =>
  (await pds.post(`${SERVER}.reserveSigningKey`, body)).json.signingKey as string

/** A first operation, and a sign-up that brings it. */
async function coming(pds: NetworkedPds, name = 'alice', change: Partial<Parameters<typeof plcGenesis>[0]> = {}) {
  const owner = newKey()
  const signingKey = await reserve(pds)
  const wanted = { rotationKeys: [owner.didKey], signingKey, handle: `${name}.test`, pds: pds.names.publicUrl }
  const operation = signPlcOperation<PlcUpdate>(plcGenesis({ ...wanted, ...change }), owner)
  const body = { handle: `${name}.test`, email: `${name}@example.com`, password: 'a password', plcOp: operation }
  return { owner, operation, did: plcDidOf(operation), body }
}

const create = (pds: TestPds, body: object) => pds.post(`${SERVER}.createAccount`, body)

async function kinds(pds: TestPds, after = 0): Promise<(string | null)[]> {
  const { wire } = await pds.store.log.read(after, { bytes: 1e6 })
  return [...framesOf(wire)].map(frame => decodeFrame(frame).t)
}

/** Whether what a reader gets is signed with the key that the DID names. */
async function isVerifiable(pds: NetworkedPds, did: Did): Promise<boolean> {
  const account = (await pds.store.accounts.byDid(did))!
  const block = (await pds.store.repos.commitBlock(account.id))!
  const key = PublicKey.parseDidKey(pds.network.plc.directory.data(did).verificationMethods.atproto!)
  return verifyCommit(decodeCommit(block.bytes), key)
}

test('a server without a rotation key: people bring the first operation of their DIDs', async t => {
  const pds = await startNetworkedPds(t, OFFLINE)
  const { did, body, owner, operation } = await coming(pds)
  const made = await create(pds, { ...body, did })
  assert.equal(made.status, 200, JSON.stringify(made.json))
  assert.equal(made.json.did, did)
  assert.deepEqual(pds.network.plc.directory.data(did).rotationKeys, [owner.didKey], 'nobody else can change it')
  assert.deepEqual(await kinds(pds), ['#account', '#identity', '#sync'])
  assert.ok(await isVerifiable(pds, did))
  const auth = { authorization: `Bearer ${made.json.accessJwt}` }
  const record = { text: 'hello', createdAt: new Date().toISOString() }
  const post = { repo: did, collection: 'app.bsky.feed.post', record }
  assert.equal((await pds.post('com.atproto.repo.createRecord', post, null, auth)).status, 200)
  assert.equal((await pds.get(`${SERVER}.checkAccountStatus`, {}, auth)).json.validDid, true)

  // It is public now, so it proves nothing any more.
  const again = { ...body, handle: 'alice.test', email: 'other@example.com' }
  assert.deepEqual(failure(await create(pds, again)), invalid('Handle already taken: alice.test'))
  const bob = await coming(pds, 'bob')
  await pds.network.plc.directory.accept(bob.did, bob.operation)
  const late = failure(await create(pds, bob.body))
  assert.deepEqual(late, invalid(`${bob.did} exists already: prove it with a service token`))

  // The owner changes the signing key: reserve, sign, then tell the server.
  const signingKey = await reserve(pds, { did })
  const change = () => pds.post('com.atproto.admin.updateAccountSigningKey', { did, signingKey }, null, basic())
  assert.deepEqual(failure(await change()), invalid('This server has no rotation key: sign with your own'))
  const next = signPlcOperation<PlcUpdate>(
    plcUpdate(operation, { verificationMethods: { atproto: signingKey } }),
    owner,
  )
  await pds.network.plc.directory.accept(did, next)
  const { head } = pds.store.log
  assert.equal((await change()).status, 200)
  assert.deepEqual(await kinds(pds, head), ['#identity', '#commit'])
  assert.ok(await isVerifiable(pds, did))
})

test('first operations that do not fit are refused, and leave nothing', async t => {
  const pds = await startNetworkedPds(t, OFFLINE)
  const cases: [Partial<Parameters<typeof plcGenesis>[0]>, string][] = [
    [{ pds: 'https://elsewhere.example.com' }, 'Incorrect endpoint on atproto_pds service'],
    [{ handle: 'bob.test' }, 'Incorrect handle in alsoKnownAs'],
    [{ signingKey: newKey().didKey }, 'The signing key is not reserved on this server: call reserveSigningKey'],
    [{ rotationKeys: [newKey().didKey] }, 'The operation is signed by none of its rotation keys'],
  ]
  for (const [change, message] of cases) {
    const { body } = await coming(pds, 'alice', change)
    assert.deepEqual(failure(await create(pds, body)), invalid(message))
  }
  const { body, did, operation, owner } = await coming(pds)
  const other = 'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa'
  assert.deepEqual(failure(await create(pds, { ...body, did: other })), invalid(`The operation makes ${did}`))
  const second = signPlcOperation<PlcUpdate>(plcUpdate(operation, {}), owner)
  const notFirst = failure(await create(pds, { ...body, plcOp: second }))
  assert.deepEqual(notFirst, invalid('The operation is not the first of a DID'))
  for (const plcOp of [{}, { ...operation, sig: 'x' }, { ...operation, services: {} }]) {
    assert.deepEqual(failure(await create(pds, { ...body, plcOp })).slice(0, 2), [400, 'InvalidRequest'])
  }
  pds.network.interfere = (_url, { method }) =>
    method === 'POST' ? { status: 400, bytes: Buffer.from('{"message":"not today"}') } : undefined
  const refused = failure(await create(pds, body))
  assert.deepEqual(refused, invalid('The did:plc directory refused: not today'))
  assert.equal(await pds.store.accounts.count(), 0)
  assert.equal(pds.store.log.head, 0, 'nothing was said')

  // The answer is lost: the account waits for its owner to go on.
  pds.network.interfere = (_url, { method }) => (method === 'POST' ? { status: 503 } : undefined)
  assert.equal((await create(pds, body)).status, 502)
  pds.network.interfere = null
  const { json } = await pds.post(`${SERVER}.createSession`, { identifier: body.handle, password: body.password })
  const auth = { authorization: `Bearer ${json.accessJwt}` }
  assert.equal(json.status, 'deactivated')
  const submitted = await pds.post('com.atproto.identity.submitPlcOperation', { operation }, null, auth)
  assert.equal(submitted.status, 200, JSON.stringify(submitted.json))
  assert.equal((await pds.post(`${SERVER}.activateAccount`, undefined, null, auth)).status, 200)
})

test('an invite is not lost when the directory refuses', async t => {
  const pds = await startNetworkedPds(t, { ...OFFLINE, PDS_INVITE_REQUIRED: 'true' })
  const { json } = await pds.post(`${SERVER}.createInviteCode`, { useCount: 1 }, null, basic())
  const { body, did } = await coming(pds)
  const wanted = { ...body, inviteCode: json.code }
  pds.network.interfere = (_url, { method }) =>
    method === 'POST' ? { status: 400, bytes: Buffer.from('{"message":"not today"}') } : undefined
  assert.deepEqual(failure(await create(pds, wanted)), invalid('The did:plc directory refused: not today'))
  pds.network.interfere = null
  const made = await create(pds, wanted)
  assert.deepEqual([made.status, made.json.did], [200, did])
  const late = await coming(pds, 'bob')
  const again = failure(await create(pds, { ...late.body, inviteCode: json.code }))
  assert.deepEqual(again, [400, 'InvalidInviteCode', 'Provided invite code not available'])
})

test('a server that has a rotation key takes no operation of others for a sign-up', async t => {
  const pds = await startNetworkedPds(t)
  const { body } = await coming(pds)
  assert.deepEqual(failure(await create(pds, body)), invalid('Unsupported input: "plcOp"'))
})

test('a key changed while the account is paused: its repository is signed anew when it comes back', async t => {
  const pds = await startNetworkedPds(t)
  const alice = await signUp(pds, 'alice')
  const did = alice.did as Did
  await pds.post(`${SERVER}.deactivateAccount`, {}, null, alice.auth)
  const signingKey = await reserve(pds, { did })
  const change = { did, signingKey }
  assert.equal((await pds.post('com.atproto.admin.updateAccountSigningKey', change, null, basic())).status, 200)
  assert.equal(await isVerifiable(pds, did), false, 'no commit while it is paused')
  const { head } = pds.store.log
  assert.equal((await pds.post(`${SERVER}.activateAccount`, undefined, null, alice.auth)).status, 200)
  assert.deepEqual(
    await kinds(pds, head),
    ['#account', '#identity', '#commit'],
    'nothing is said that nobody can verify',
  )
  assert.ok(await isVerifiable(pds, did))
})
