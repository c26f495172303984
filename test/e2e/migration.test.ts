// Accounts move between two servers of this project, seen by what follows their Relay; and what is refused on the way.
import assert from 'node:assert/strict'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { AtpAgent, XRPCError } from '@atproto/api'
import { Secp256k1Keypair } from '@atproto/crypto'
import { until } from '@millisky/server/testing-until'
import type { Mailbox } from '../../packages/pds/src/testing-mail.ts'
import { verifiedStory, verifyingConsumer } from './consumers.ts'
import {
  arrive,
  askToCrawl,
  carry,
  fill,
  move,
  newPlace,
  ourDaemon,
  type Place,
  PREFERENCES,
  recordsOf,
  repoint,
  type Surroundings,
  serviceToken,
  signUp,
  startSurroundings,
} from './migration.ts'
import { Daemon } from './network.ts'
import { freePort } from './ports.ts'

let around: Surroundings
let mailbox: Mailbox
let old: Place
let fresh: Place
let relay: Daemon

before(async () => {
  around = await startSurroundings()
  mailbox = around.mailbox
  const { folder, network, after } = around
  const port = await freePort()
  relay = new Daemon('relay', port, {
    RELAY_API_BIND: `127.0.0.1:${port}`,
    RELAY_METRICS_LISTEN: '',
    RELAY_PERSIST_DIR: join(folder, 'relay', 'log'),
    DATABASE_URL: `sqlite://${join(folder, 'relay', 'relay.sqlite')}`,
    RELAY_PLC_HOST: network.plc.url,
    RELAY_ALLOW_INSECURE_HOSTS: 'true',
    RELAY_TRUSTED_DOMAINS: 'localhost,127.0.0.1',
    RELAY_ADMIN_PASSWORD: 'relay-admin',
  })
  old = await newPlace('old')
  fresh = await newPlace('fresh')
  const daemons = [
    relay,
    ourDaemon(old, network.plc.url, mailbox, join(folder, 'old')),
    ourDaemon(fresh, network.plc.url, mailbox, join(folder, 'fresh')),
  ]
  after(async () => {
    for (const daemon of daemons) await daemon.stop()
  })
  await Promise.all(daemons.map(daemon => daemon.start()))
  for (const home of [old, fresh]) await askToCrawl(relay.url, home)
})
after(() => around?.end())

/** How a call fails. */
async function refusal(call: Promise<unknown>): Promise<string> {
  const error = await call.then(
    () => assert.fail('it was done'),
    error => error,
  )
  assert.ok(error instanceof XRPCError, String(error))
  return `${error.status} ${error.error}: ${error.message}`
}

test('an account moves, and whoever follows the Relay sees it go on', async () => {
  const consumer = verifyingConsumer(relay.url, around.network.plc.url, 0)
  try {
    const alice = await signUp(old, 'alice')
    await fill(alice)
    const did = alice.agent.assertDid
    const records = await recordsOf(alice.agent)
    const story = () => consumer.events.filter(event => event.did === did).flatMap(verifiedStory)
    const announced = () => until('the move is announced', () => story().slice(-2).join().includes(' sync '))
    const here = await move(alice, fresh, mailbox, announced)
    assert.deepEqual(await recordsOf(here), records)
    assert.deepEqual((await here.app.bsky.actor.getPreferences()).data.preferences, PREFERENCES)
    await assert.rejects(alice.agent.post({ text: 'too late' }), 'the old home takes nothing more')
    const { uri } = await here.post({ text: 'from the new home' })

    const path = uri.slice(`at://${did}/`.length)
    await until('the post from the new home', () => story().some(line => line.includes(path)))
    const lines = story().map(line => line.slice(did.length + 1).replace(/ \S+$/, ''))
    const moved = lines.slice(lines.findLastIndex(line => line.startsWith('create app.bsky.feed.like')) + 1)
    // The DID's new content; then the account comes to life at its new home. What the old home says after is no news.
    const told = moved.filter((line, i) => line !== moved[i - 1])
    assert.deepEqual(told, ['identity', 'account true ', 'identity', 'sync', `create ${path}`])
    const { data: status } = await new AtpAgent({ service: relay.url }).com.atproto.sync.getRepoStatus({ did })
    const { data: head } = await here.com.atproto.sync.getLatestCommit({ did })
    assert.deepEqual([status.active, status.rev], [true, head.rev])
    assert.deepEqual(consumer.errors, [])
  } finally {
    await consumer.close()
  }
})

test('it moves back, over what it had left behind', async () => {
  const bob = await signUp(old, 'bob')
  await fill(bob)
  const here = await move(bob, fresh, mailbox)
  await here.post({ text: 'written while away' })
  // The old home still has the account, so it is opened there again with what it has by now.
  const there = new AtpAgent({ service: old.url })
  await there.login({ identifier: bob.agent.assertDid, password: bob.password })
  const away = { ...bob, agent: here }
  await carry(away, there)
  const records = await recordsOf(here)
  await repoint(away, there, mailbox)
  await there.com.atproto.server.activateAccount()
  assert.deepEqual(await recordsOf(there), records)
  await there.post({ text: 'home again' })
})

test('who cannot prove the DID gets no account for it', async () => {
  const carol = await signUp(old, 'carol')
  const mallory = await signUp(old, 'mallory')
  const did = carol.agent.assertDid
  const attempt = (token?: string, wanted = did) => {
    const agent = new AtpAgent({ service: fresh.url })
    const body = { handle: `carol${fresh.domain}`, email: 'carol@example.com', password: 'x', did: wanted }
    const headers = token === undefined ? {} : { authorization: `Bearer ${token}` }
    return refusal(agent.com.atproto.server.createAccount(body, { headers, encoding: 'application/json' }))
  }
  assert.match(await attempt(), /^401 AuthenticationRequired: Missing auth to create account with did/)
  assert.match(
    await attempt(await serviceToken(mallory, fresh)),
    /^401 AuthenticationRequired/,
    "somebody else's token",
  )
  assert.match(await attempt(await serviceToken(carol, old)), /^401 /, 'for another server')
  assert.match(
    await attempt(await serviceToken(carol, fresh, 'com.atproto.repo.uploadBlob')),
    /^401 /,
    'another method',
  )
  const { createServiceJwt } = await import('@atproto/xrpc-server')
  const keypair = await Secp256k1Keypair.create()
  const forged = await createServiceJwt({ iss: did, aud: fresh.did, lxm: 'com.atproto.server.createAccount', keypair })
  assert.match(await attempt(forged), /^401 /, 'signed by another key')
  assert.match(await attempt(carol.agent.session!.accessJwt), /^40[01] /, 'a session is no service token')

  await arrive(carol, fresh)
  assert.match(await attempt(await serviceToken(carol, fresh)), /already/i, 'and not twice')
})

test('an account is not activated before its DID says so, and loses nothing by trying', async () => {
  const dave = await signUp(old, 'dave')
  await fill(dave)
  const here = await arrive(dave, fresh)
  const activate = () => refusal(here.com.atproto.server.activateAccount())
  assert.match(await activate(), /^400 InvalidRequest: /)
  await assert.rejects(here.post({ text: 'too soon' }), /deactivated/i)
  await carry(dave, here)
  assert.equal(await carry(dave, here), 0, 'a second import changes nothing, and no blob is missing')
  assert.match(await activate(), /^400 InvalidRequest: /)
  const count = Object.keys(await recordsOf(dave.agent)).length
  assert.equal((await here.com.atproto.server.checkAccountStatus()).data.indexedRecords, count)
  // Another server's submission is refused: the operation does not leave the account here.
  await dave.agent.com.atproto.identity.requestPlcOperationSignature()
  const { code } = await mailbox.next()
  const wanted = (await dave.agent.com.atproto.identity.getRecommendedDidCredentials()).data
  const signed = await dave.agent.com.atproto.identity.signPlcOperation({ token: code, ...wanted })
  const { operation } = signed.data
  assert.match(await refusal(here.com.atproto.identity.submitPlcOperation({ operation })), /^400 InvalidRequest: /)
  const reused = dave.agent.com.atproto.identity.signPlcOperation({ token: code, ...wanted })
  assert.match(await refusal(reused), /^400 (InvalidToken|ExpiredToken): /, 'a code is good once')
})

test('hostile and foreign repositories are refused, and what was there stays', async () => {
  const erin = await signUp(old, 'erin')
  const frank = await signUp(old, 'frank')
  await fill(erin)
  const here = await arrive(erin, fresh)
  await carry(erin, here)
  const did = here.assertDid
  const holds = async () => (await here.com.atproto.sync.getRepo({ did })).data as Uint8Array
  const before = await holds()
  const status = (await here.com.atproto.server.checkAccountStatus()).data
  const give = (car: Uint8Array) =>
    refusal(here.com.atproto.repo.importRepo(car, { encoding: 'application/vnd.ipld.car' }))
  const car = (await erin.agent.com.atproto.sync.getRepo({ did: erin.agent.assertDid })).data as Uint8Array
  const foreign = (await frank.agent.com.atproto.sync.getRepo({ did: frank.agent.assertDid })).data as Uint8Array
  assert.match(await give(foreign), /^400 /, "somebody else's")
  assert.match(await give(car.subarray(0, car.length - 40)), /^400 /, 'cut short')
  assert.match(await give(car.subarray(0, 200)), /^400 /, 'hardly begun')
  for (const at of [70, 300, car.length >> 1, car.length - 5]) {
    const damaged = car.slice()
    damaged[at]! ^= 1
    assert.match(await give(damaged), /^400 /, `byte ${at} changed`)
  }
  assert.match(await give(new Uint8Array(0)), /^400 /)
  assert.match(await give(Buffer.from('not a CAR at all')), /^400 /)
  assert.deepEqual((await here.com.atproto.server.checkAccountStatus()).data, status)
  assert.ok(Buffer.from(await holds()).equals(before))
})
