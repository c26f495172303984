// What the Relay says of accounts, and what operators do about them. The numbers are those of the list of behaviours.
import assert from 'node:assert/strict'
import type { IncomingMessage, ServerResponse } from 'node:http'
import { after, before, test } from 'node:test'
import { accountEvent, commitEvent, identityEvent } from '@millisky/core/event'
import { type PlcUpdate, signPlcOperation } from '@millisky/core/plc'
import type { Handle } from '@millisky/core/syntax'
import { until } from '@millisky/server/testing-until'
import { FakeAccount, type FakePds, now } from '../e2e/fake-pds.ts'
import { type Consumer, World } from './world.ts'

let world: World
let pds: FakePds
let name: string
let consumer: Consumer
before(async () => {
  world = await World.start()
  ;({ pds, name } = await world.host())
  consumer = await world.consumer(0)
})
after(() => world.stop())

let count = 0
/** An account that has been announced and has posted once. */
async function account(at = pds): Promise<FakeAccount> {
  const made = await at.createAccount(world.plc.url, `account${count++}`)
  at.announce(made)
  at.sendPost(made, 'hello')
  await until('its post came', () => consumer.pathsOf(made.did).length === 1)
  return made
}

const sync = (method: string, did: string) => world.get(`/xrpc/com.atproto.sync.${method}?did=${did}`)
const accountsCounted = () => world.relay.hosts.byName(name)!.record.accounts
const say = (did: FakeAccount['did'], active: boolean, status?: string) =>
  pds.send(accountEvent({ did, active, ...(status ? { status } : {}) }, now()))
const lastOf = (did: string) => consumer.of(did).at(-1)!.body

test('T63 #identity passes for accounts that are new too; only a handle that the document names goes with it', async () => {
  const fresh = await pds.createAccount(world.plc.url, 'fresh')
  for (const handle of ['fresh.test', 'someone-else.test', 'handle.invalid']) {
    pds.send(identityEvent({ did: fresh.did, handle: handle as Handle }, now()))
  }
  await until('they came', () => consumer.of(fresh.did).length === 3)
  assert.deepEqual(
    consumer.of(fresh.did).map(({ body }) => body.handle),
    ['fresh.test', undefined, 'handle.invalid'],
  )
  const { pds: other } = await world.host()
  other.send(identityEvent({ did: fresh.did, handle: 'fresh.test' as Handle }, now()))
  await until('from elsewhere it came', () => consumer.of(fresh.did).length === 4)
  assert.equal(lastOf(fresh.did).handle, undefined)
})

test('T64 T65 a takedown is stronger than what the host says, until it is taken back', async () => {
  const { did } = await account()
  assert.equal((await world.post('/admin/repo/takeDown', { did })).status, 200)
  await until('it is told', () => lastOf(did).status === 'takendown')
  assert.equal(lastOf(did).active, false)
  say(did, true)
  await until('the host has spoken', () => consumer.of(did).length === 5)
  assert.deepEqual([lastOf(did).active, lastOf(did).status], [false, 'takendown'])
  say(did, false, 'deactivated')
  await until('the host has spoken again', () => consumer.of(did).length === 6)
  assert.equal(lastOf(did).status, 'takendown')
  assert.deepEqual((await sync('getRepoStatus', did)).body, { did, active: false, status: 'takendown' })
  assert.deepEqual((await world.get('/admin/repo/takedowns')).body, { dids: [did] })
  assert.equal((await world.post(`/admin/repo/reverseTakedown?did=${did}`)).status, 200)
  await until('it is told', () => lastOf(did).status === 'deactivated')
  assert.deepEqual((await world.get('/admin/repo/takedowns')).body, { dids: [] })
  assert.equal((await world.post('/admin/repo/takeDown', { did: `did:plc:${'q'.repeat(24)}` })).status, 404)
})

test('T66 an account that is back without having said so is asked about, and heals', async t => {
  const alice = await account()
  say(alice.did, false, 'deactivated')
  const [usual] = pds.server.listeners('request') as [(request: IncomingMessage, reply: ServerResponse) => void]
  const answer = (request: IncomingMessage, reply: ServerResponse) => {
    if (request.url?.includes('getRepoStatus')) reply.end(JSON.stringify({ did: alice.did, active: true }))
    else usual(request, reply)
  }
  pds.server.removeAllListeners('request').on('request', answer)
  t.after(() => pds.server.removeAllListeners('request').on('request', usual))
  pds.sendPost(alice, 'I am back')
  await until('the post came', () => consumer.pathsOf(alice.did).length === 2)
  assert.deepEqual(consumer.kindsOf(alice.did), ['#identity', '#account', '#commit', '#account', '#account', '#commit'])
})

test('T69 T38 an account that is deleted is not counted; created again it is', async () => {
  const alice = await account()
  const counted = accountsCounted()
  say(alice.did, false, 'deleted')
  await until('it is not counted', () => accountsCounted() === counted - 1)
  assert.equal((await sync('getLatestCommit', alice.did)).body.error, 'RepoNotFound')
  say(alice.did, true)
  pds.sendPost(alice, 'again')
  await until('it is counted', () => accountsCounted() === counted)
  await until('it posts', () => consumer.pathsOf(alice.did).length === 2)
  const { body } = await world.get<{ seq: number; accountCount: number; status: string }>(
    `/xrpc/com.atproto.sync.getHostStatus?hostname=${name}`,
  )
  assert.deepEqual([body.accountCount, body.status], [counted, 'active'])
})

test('T50 T70 an account moves: the old host is no longer believed, the new one is, and the counts move', async () => {
  const alice = await account()
  const { pds: other, name: otherName } = await world.host()
  const stale = commitEvent(alice.post('an old draft', { keep: false }), now())
  pds.sendPost(alice, 'my last words here')
  await until('they came', () => consumer.pathsOf(alice.did).length === 2)
  const counted = accountsCounted()
  const log = (await (await fetch(`${world.plc.url}/${alice.did}/log/last`)).json()) as PlcUpdate
  const audit = (await (await fetch(`${world.plc.url}/${alice.did}/log/audit`)).json()) as { cid: string }[]
  const { sig: _, ...last } = log as PlcUpdate & { sig: string }
  const services = { atproto_pds: { type: 'AtprotoPersonalDataServer', endpoint: other.url } }
  const operation = signPlcOperation<PlcUpdate>({ ...last, services, prev: audit.at(-1)!.cid as never }, alice.key)
  const reply = await fetch(`${world.plc.url}/${alice.did}`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(operation),
  })
  assert.equal(reply.status, 200)
  other.announce(alice)
  other.send(stale)
  other.sendPost(alice, 'from my new home')
  await until('it is heard from there', () => consumer.pathsOf(alice.did).length === 3)
  assert.deepEqual(await world.rejects(otherName), { 'rev-stale': 1 })
  say(alice.did, false, 'deactivated')
  pds.send(commitEvent(alice.post('stale host', { keep: false }), now()))
  await until('the old host is refused', async () => (await world.rejects(name))['wrong-host'] === 2)
  assert.equal(consumer.of(alice.did).length, 7)
  assert.equal(accountsCounted(), counted - 1)
  assert.equal(world.relay.hosts.byName(otherName)?.record.accounts, 1)
})

test('T71 did:web and did:plc are treated alike, other methods are not passed on', async t => {
  const { key } = await pds.createAccount(world.plc.url, 'keys')
  const web = new FakeAccount(`did:web:${encodeURIComponent(new URL(pds.url).host)}` as never, key)
  const document = {
    id: web.did,
    alsoKnownAs: ['at://web.test'],
    verificationMethod: [
      { id: `${web.did}#atproto`, type: 'Multikey', controller: web.did, publicKeyMultibase: key.publicKey.multibase },
    ],
    service: [{ id: '#atproto_pds', type: 'AtprotoPersonalDataServer', serviceEndpoint: pds.url }],
  }
  const [usual] = pds.server.listeners('request') as [(request: IncomingMessage, reply: ServerResponse) => void]
  const answer = (request: IncomingMessage, reply: ServerResponse) => {
    if (request.url?.startsWith('/.well-known/did.json')) {
      reply.setHeader('content-type', 'application/json')
      reply.end(JSON.stringify(document))
    } else usual(request, reply)
  }
  pds.server.removeAllListeners('request').on('request', answer)
  t.after(() => pds.server.removeAllListeners('request').on('request', usual))
  pds.announce(web)
  pds.sendPost(web, 'hello')
  await until('it came', () => consumer.pathsOf(web.did).length === 1)
  const before = (await world.rejects(name))['unsupported-did'] ?? 0
  pds.sendPost(new FakeAccount('did:key:zQ3shokFTS3brHcDQrn82RUDfCZESWL1ZdCEJwekUDPQiYBme' as never, key), 'x')
  await until('it is refused', async () => Object.keys(await world.rejects(name)).some(r => r !== 'wrong-host'))
  const { 'unsupported-did': refused = 0, 'no-pds': gone = 0 } = await world.rejects(name)
  assert.ok(refused + gone > before)
})

test('T71 a DID in capitals is nobody, and is not taken for the one in small letters', async () => {
  const alice = await account()
  const sum = async () => Object.values(await world.rejects(name)).reduce((total, count) => total + count, 0)
  const before = await sum()
  const shouted = new FakeAccount(alice.did.replace(/[^:]+$/, id => id.toUpperCase()) as never, alice.key)
  pds.announce(shouted)
  pds.sendPost(shouted, 'shouted')
  pds.sendPost(alice, 'said')
  await until('the other came', () => consumer.pathsOf(alice.did).length === 2)
  await until('both are refused', async () => (await sum()) >= before + 2)
  assert.deepEqual(consumer.of(shouted.did), [])
  assert.equal((await sync('getRepoStatus', alice.did)).body.active, true)
  assert.equal((await sync('getRepoStatus', shouted.did)).status, 404)
})

test('T73 T22 a takedown hides what was said before from replay, also after a restart', async t => {
  const [alice, bob] = [await account(), await account()]
  await world.post('/admin/repo/takeDown', { did: alice.did })
  const check = async () => {
    const replayed = await world.consumer(0)
    await until('the takedown came', () => replayed.of(alice.did).some(({ body }) => body.status === 'takendown'))
    assert.deepEqual(replayed.pathsOf(alice.did), [])
    assert.equal(replayed.pathsOf(bob.did).length, 1)
  }
  await check()
  await world.restart()
  t.after(() => world.post('/admin/repo/reverseTakedown', { did: alice.did }))
  consumer = await world.consumer(0)
  await check()
  await until('the host is connected', () => world.relay.hosts.byName(name)?.connectedAt)
  pds.sendPost(alice, 'hidden')
  await until('it is refused', async () => (await world.rejects(name))['account-blocked'] === 1)
})

test('T74 T75 T77 T78 reads say where a repository is, or by name why not', async () => {
  const alice = await account()
  const status = async (method: string) => {
    const { status, body } = await sync(method, alice.did)
    return [status, body?.error]
  }
  const latest = await sync('getLatestCommit', alice.did)
  assert.deepEqual(latest.body, { cid: alice.head!.commit.toString(), rev: alice.head!.rev })
  assert.deepEqual((await sync('getRepoStatus', alice.did)).body, {
    did: alice.did,
    active: true,
    rev: alice.head!.rev,
  })
  const repo = await sync('getRepo', alice.did)
  assert.equal(repo.status, 302)
  assert.equal(
    repo.headers.get('location'),
    `${pds.url}/xrpc/com.atproto.sync.getRepo?did=${encodeURIComponent(alice.did)}`,
  )
  for (const [word, expected] of [
    ['deactivated', [403, 'RepoDeactivated']],
    ['suspended', [403, 'RepoSuspended']],
    ['takendown', [403, 'RepoTakendown']],
    ['deleted', [404, 'RepoNotFound']],
    ['resting', [403, 'RepoInactive']],
  ] as const) {
    say(alice.did, false, word)
    await until('it is known', async () => (await sync('getRepoStatus', alice.did)).body.status === word)
    for (const method of ['getRepo', 'getLatestCommit']) assert.deepEqual(await status(method), expected)
  }
  assert.deepEqual((await sync('getRepoStatus', alice.did)).body, { did: alice.did, active: false, status: 'resting' })
  const nobody = `did:plc:${'y'.repeat(24)}`
  for (const method of ['getRepo', 'getLatestCommit', 'getRepoStatus']) {
    const { status, body } = await sync(method, nobody)
    assert.deepEqual([status, body.error], [404, 'RepoNotFound'])
  }
})

test('T76 listRepos goes through all accounts page by page, also one at a time', async () => {
  for (let i = 0; i < 3; i++) await account()
  await world.restart()
  const dids: string[] = []
  for (let cursor: string | undefined = ''; cursor !== undefined; ) {
    const path: string = `/xrpc/com.atproto.sync.listRepos?limit=1${cursor ? `&cursor=${cursor}` : ''}`
    const page: { repos: { did: string }[]; cursor?: string } = (await world.get<never>(path)).body
    dids.push(...page.repos.map(({ did }) => did))
    cursor = page.cursor
  }
  assert.deepEqual(dids, [...new Set(dids)].sort())
  assert.ok(dids.length >= 3)
  const { body } = await world.get<{ repos: { did: string }[]; cursor?: string }>('/xrpc/com.atproto.sync.listRepos')
  assert.deepEqual(
    body.repos.map(({ did }) => did),
    dids,
  )
  assert.equal(body.cursor, undefined)
})

test('T79 T80 T83 errors are JSON for everybody, health is told, and the server says what it is', async () => {
  for (const path of ['/_health', '/xrpc/_health']) {
    const { status, body } = await world.get(path)
    assert.deepEqual([status, body.status], [200, 'ok'])
  }
  const { status, body, headers } = await world.get('/xrpc/com.atproto.sync.getRepoStatus?did=x')
  assert.equal(status, 400)
  assert.deepEqual(Object.keys(body), ['error', 'message'])
  assert.equal(headers.get('access-control-allow-origin'), '*')
  assert.match(headers.get('server') ?? '', /atproto-relay/)
  assert.equal((await world.get('/admin/pds/list')).headers.get('access-control-allow-origin'), null)
  const hosts = await world.get<{ hosts: { hostname: string }[]; cursor?: string }>(
    '/xrpc/com.atproto.sync.listHosts?limit=1',
  )
  assert.equal(hosts.body.hosts.length, 1)
  const missing = await world.get('/xrpc/com.atproto.sync.getHostStatus?hostname=nowhere.example.com')
  assert.deepEqual([missing.status, missing.body.error], [404, 'HostNotFound'])
})

test('T81 the admin API opens to both schemes and to nothing else', async () => {
  const status = async (authorization?: string) =>
    (await fetch(`${world.relay.url}/admin/pds/list`, { headers: authorization ? { authorization } : {} })).status
  const basic = (text: string) => `Basic ${Buffer.from(text).toString('base64')}`
  assert.deepEqual(
    await Promise.all(
      ['Bearer scenario-admin', basic('admin:scenario-admin'), basic('root:scenario-admin'), 'Bearer x', undefined].map(
        status,
      ),
    ),
    [200, 200, 401, 401, 401],
  )
  const metrics = await fetch(`${world.relay.url}/metrics`, { headers: { authorization: 'Bearer scenario-admin' } })
  assert.match(await metrics.text(), /^relay_log_head_seq \d+$/m)
})
