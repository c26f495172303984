import assert from 'node:assert/strict'
import { request as httpRequest } from 'node:http'
import { test } from 'node:test'
import { gzipSync } from 'node:zlib'
import { checkServiceSignature, signServiceJwt } from '@millisky/core/jwt'
import { basic, bearer, startTestPds, type TestPds, type TestUser } from './testing-pds.ts'
import { json, startPdsWithAppView, startStandIn } from './testing-services.ts'
import { SCOPES, Tokens } from './tokens.ts'

const METHOD = 'app.bsky.graph.getFollows'
const failure = ({ status, json: body }: { status: number; json: { error: string; message: string } | null }) => [
  status,
  body?.error,
  body?.message,
]
const tokenOf = (pds: TestPds, user: TestUser, scope: 'appPass' | 'appPassPrivileged' | 'takendown') =>
  new Tokens('a secret of tests', pds.names.did, Date.now).access(user.did, SCOPES[scope])

test('an unknown method goes to the app view, in the name of the caller and with nothing else of the caller', async t => {
  const { pds, appView } = await startPdsWithAppView(t)
  const alice = await pds.user('alice')
  appView.answer = (_asked, response) =>
    json(
      response,
      { follows: [] },
      { 'atproto-repo-rev': '3kzzzzzzzzz2a', 'set-cookie': 'a=b', 'x-more': '1', link: 'x' },
    )
  const reply = await pds.get(
    METHOD,
    { actor: alice.did, limit: 3 },
    {
      ...bearer(alice),
      cookie: 'secret=1',
      dpop: 'proof',
      'x-forwarded-for': '1.2.3.4',
      'accept-language': 'de',
      'atproto-accept-labelers': 'did:plc:a',
      'x-bsky-topics': 'cats',
      'x-atproto-thing': 'y',
      'x-custom': '1',
    },
  )
  assert.deepEqual([reply.status, reply.json], [200, { follows: [] }])
  assert.equal(reply.headers.get('atproto-repo-rev'), '3kzzzzzzzzz2a')
  assert.equal(reply.headers.get('cache-control'), 'private')
  for (const name of ['set-cookie', 'x-more', 'link']) assert.equal(reply.headers.get(name), null, name)
  const [asked] = appView.asked
  assert.equal(asked!.path, `/xrpc/${METHOD}?actor=${encodeURIComponent(alice.did)}&limit=3`)
  const { headers, token } = asked!
  assert.deepEqual(
    [headers['accept-language'], headers['atproto-accept-labelers'], headers['x-bsky-topics']],
    ['de', 'did:plc:a', 'cats'],
  )
  assert.equal(headers['x-atproto-thing'], 'y')
  for (const name of ['cookie', 'dpop', 'x-forwarded-for', 'x-custom', 'atproto-proxy']) {
    assert.equal(headers[name], undefined, name)
  }
  assert.notEqual(headers.authorization, `Bearer ${alice.token}`)
  const { iss, aud, lxm, iat, exp, jti } = token!.payload
  assert.deepEqual([iss, aud, lxm, exp - iat!], [alice.did, appView.did, METHOD, 60])
  assert.match(jti!, /^[0-9a-f]{32}$/)
  const state = await pds.store.repos.state(alice.did)
  checkServiceSignature(token!, pds.repos.signingKey(state!.key).publicKey)
  await pds.get(METHOD, { actor: alice.did }, bearer(alice))
  assert.notEqual(appView.asked[1]!.token!.payload.jti, jti)
})

test('the audience may be the service and not the whole DID', async t => {
  const { pds, appView } = await startPdsWithAppView(t, { PDS_PROXY_AUDIENCE: 'service' })
  const alice = await pds.user('alice')
  await pds.get(METHOD, {}, bearer(alice))
  assert.equal(appView.asked[0]!.token!.payload.aud, `${appView.did}#bsky_appview`)
})

test('bodies are passed on as they are', async t => {
  const { pds, appView } = await startPdsWithAppView(t)
  const alice = await pds.user('alice')
  const packed = gzipSync('{"a":1}')
  const type = { 'content-type': 'application/json' }
  await pds.post('app.bsky.graph.muteActor', packed, alice, { ...type, 'content-encoding': 'gzip' })
  const [asked] = appView.asked
  assert.deepEqual([asked!.method, asked!.body], ['POST', packed])
  assert.equal(asked!.headers['content-encoding'], 'gzip')
  assert.equal(asked!.headers['content-length'], String(packed.length))
  assert.equal(asked!.headers['transfer-encoding'], undefined)
  const empty = await pds.post('app.bsky.notification.updateAll', new Uint8Array(), alice)
  assert.equal(empty.status, 200)
  assert.equal(appView.asked[1]!.headers['content-length'], '0')
  const chunked = await chunkedPost(pds, alice, ['ab', 'cd'])
  assert.equal(chunked, 200)
  assert.equal(appView.asked[2]!.body.toString(), 'abcd')
})

function chunkedPost(pds: TestPds, user: TestUser, chunks: string[]): Promise<number> {
  return new Promise((resolve, reject) => {
    const request = httpRequest(
      new URL('/xrpc/app.bsky.x.doIt', pds.url),
      { method: 'POST', headers: { ...bearer(user), 'content-type': 'text/plain' } },
      response => resolve(response.resume().statusCode!),
    )
    request.on('error', reject)
    for (const chunk of chunks) request.write(chunk)
    request.end()
  })
}

test('what the proxy header may say', async t => {
  const { pds } = await startPdsWithAppView(t)
  const alice = await pds.user('alice')
  const other = await startStandIn(t, { other: 'Other' })
  const ask = (header: string) => pds.get(METHOD, {}, { ...bearer(alice), 'atproto-proxy': header })
  assert.equal((await ask(`${other.did}#other`)).status, 200)
  assert.equal(other.asked[0]!.token!.payload.aud, other.did)
  const wrong: [string, string][] = [
    ['#bsky_appview', 'no did specified in proxy header'],
    [other.did, 'no service id specified in proxy header'],
    [`${other.did}#`, 'no service id specified in proxy header'],
    [`${other.did}#a#b`, 'invalid proxy header format'],
    [`${other.did} #other`, 'proxy header cannot contain spaces'],
    ['did:web:localhost%3A1#other', 'could not resolve proxy did'],
    ['nonsense#other', 'could not resolve proxy did'],
    ['did:plc:aaaaaaaaaaaaaaaaaaaaaaaa#other', 'could not resolve proxy did'],
    [`${other.did}#missing`, 'could not resolve proxy did service url'],
  ]
  for (const [header, message] of wrong) {
    assert.deepEqual(failure(await ask(header)), [400, 'InvalidRequest', message], header)
  }
  assert.equal(other.asked.length, 1)
})

test('namespaces have services of their own, and chats have none unless told', async t => {
  const mod = await startStandIn(t, { atproto_labeler: 'AtprotoLabeler' })
  const chat = await startStandIn(t, { bsky_chat: 'BskyChatService' })
  const env = { PDS_MOD_SERVICE_URL: mod.url, PDS_MOD_SERVICE_DID: mod.did }
  const { pds, appView } = await startPdsWithAppView(t, env)
  const alice = await pds.user('alice')
  await pds.get('tools.ozone.moderation.queryEvents', {}, bearer(alice))
  assert.equal(mod.asked[0]!.token!.payload.aud, mod.did)
  const list = 'chat.bsky.convo.listConvos'
  assert.deepEqual((await pds.get(list, {}, bearer(alice))).status, 501)
  const named = { 'atproto-proxy': `${chat.did}#bsky_chat` }
  assert.equal((await pds.get(list, {}, { ...bearer(alice), ...named })).status, 200)
  const plain = await tokenOf(pds, alice, 'appPass')
  const refused = await pds.get(list, {}, { authorization: `Bearer ${plain}`, ...named })
  assert.deepEqual(failure(refused), [400, 'InvalidToken', 'Bad token method'])
  const privileged = await tokenOf(pds, alice, 'appPassPrivileged')
  assert.equal((await pds.get(list, {}, { authorization: `Bearer ${privileged}`, ...named })).status, 200)
  await pds.get('com.example.anything', {}, bearer(alice))
  assert.deepEqual([chat.asked.length, appView.asked.length], [2, 1])
})

test('without an app view an unknown method is not implemented, signed in or not', async t => {
  const pds = await startTestPds(t)
  const alice = await pds.user('alice')
  for (const headers of [{}, bearer(alice)]) {
    for (const method of [METHOD, 'app.bsky.actor.getProfile', 'app.bsky.feed.getFeed', 'tools.ozone.x.y']) {
      assert.deepEqual(failure(await pds.get(method, {}, headers)), [
        501,
        'MethodNotImplemented',
        'Method Not Implemented',
      ])
    }
  }
})

test('who may have requests passed on', async t => {
  const { pds, appView } = await startPdsWithAppView(t)
  const alice = await pds.user('alice')
  assert.deepEqual(failure(await pds.get(METHOD)).slice(0, 2), [401, 'AuthMissing'])
  const takendown = { authorization: `Bearer ${await tokenOf(pds, alice, 'takendown')}` }
  assert.deepEqual(failure(await pds.get(METHOD, {}, takendown)), [400, 'InvalidToken', 'Bad token scope'])
  const tokens = new Tokens('a secret of tests', pds.names.did, Date.now)
  const refresh = { authorization: `Bearer ${await tokens.refresh({ did: alice.did, id: 'x' })}` }
  assert.deepEqual(failure(await pds.get(METHOD, {}, refresh)).slice(0, 2), [400, 'InvalidToken'])
  const key = pds.repos.signingKey((await pds.store.repos.state(alice.did))!.key)
  const now = Math.floor(Date.now() / 1000)
  const claims = { iss: alice.did, aud: pds.names.did, lxm: METHOD, iat: now, exp: now + 60, jti: 'x' }
  const service = { authorization: `Bearer ${signServiceJwt(claims, key)}` }
  assert.deepEqual(failure(await pds.get(METHOD, {}, service)).slice(0, 2), [400, 'InvalidToken'])
  assert.deepEqual(failure(await pds.get(METHOD, {}, basic())).slice(0, 2), [400, 'InvalidToken'])
  await pds.store.accounts.update(alice.account.id, { takedown: 'mod-1' }, [])
  assert.deepEqual(failure(await pds.get(METHOD, {}, bearer(alice))).slice(0, 2), [401, 'AccountTakedown'])
  const paused = await pds.user('paused', { deactivated: true })
  assert.equal((await pds.get(METHOD, {}, bearer(paused))).status, 200)
  assert.equal(appView.asked.length, 1)
})

test('what changes the account itself is never passed on, and only three verbs are', async t => {
  const { pds, appView } = await startPdsWithAppView(t)
  const alice = await pds.user('alice')
  // Its own it serves itself, so what is left are other ways to write them.
  for (const name of [
    'com.atproto.server.updateemail',
    'com.atproto.admin.SendEmail',
    'COM.atproto.identity.updateHandle',
  ]) {
    const reply = await pds.post(name, {}, alice)
    assert.deepEqual(failure(reply), [400, 'InvalidToken', 'Bad token method'], name)
  }
  const put = await fetch(`${pds.url}/xrpc/com.example.x`, { method: 'PUT', headers: bearer(alice) })
  assert.equal(put.status, 400)
  assert.equal(((await put.json()) as { error: string }).error, 'InvalidRequest')
  const head = await fetch(`${pds.url}/xrpc/com.example.x?a=1`, { method: 'HEAD', headers: bearer(alice) })
  assert.equal(head.status, 200)
  assert.deepEqual(
    appView.asked.map(({ method, path }) => [method, path]),
    [['HEAD', '/xrpc/com.example.x?a=1']],
  )
})

test('errors of a service keep their names, those inside it become 502', async t => {
  const { pds, appView } = await startPdsWithAppView(t)
  const alice = await pds.user('alice')
  const ask = async (status: number, body: string | Buffer, headers: Record<string, string> = {}) => {
    appView.answer = (_asked, response) => {
      response.writeHead(status, { 'content-type': 'application/json', ...headers })
      response.end(body)
    }
    return pds.get(METHOD, {}, bearer(alice))
  }
  const named = JSON.stringify({ error: 'BlockedActor', message: 'No' })
  assert.deepEqual(failure(await ask(400, named)), [400, 'BlockedActor', 'No'])
  assert.deepEqual(failure(await ask(500, named)), [502, 'BlockedActor', 'No'])
  assert.deepEqual(failure(await ask(404, named)), [404, 'BlockedActor', 'No'])
  assert.deepEqual(failure(await ask(503, named)), [503, 'BlockedActor', 'No'])
  assert.deepEqual(failure(await ask(500, '{"error":"InternalServerError","message":"Oh"}')), [
    502,
    'UpstreamFailure',
    'Oh',
  ])
  assert.deepEqual(failure(await ask(500, '<h1>oh</h1>', { 'content-type': 'text/html' })).slice(0, 2), [
    502,
    'UpstreamFailure',
  ])
  assert.deepEqual(failure(await ask(403, 'not json')).slice(0, 2), [403, 'Forbidden'])
  assert.deepEqual(failure(await ask(400, gzipSync(named), { 'content-encoding': 'gzip' })), [
    400,
    'BlockedActor',
    'No',
  ])
  assert.deepEqual(
    failure(await ask(400, gzipSync(Buffer.alloc(50_000_000)), { 'content-encoding': 'gzip' })).slice(0, 2),
    [400, 'InvalidRequest'],
  )
  assert.deepEqual(failure(await ask(400, '{"error":"two words"}')).slice(0, 2), [400, 'InvalidRequest'])
  const slow = await ask(429, named, { 'retry-after': '7', 'atproto-repo-rev': '3kzzzzzzzzz2a', 'x-more': '1' })
  assert.deepEqual([slow.status, slow.headers.get('retry-after'), slow.headers.get('x-more')], [429, '7', null])
  assert.equal(slow.headers.get('atproto-repo-rev'), '3kzzzzzzzzz2a')
})

test('a record of a repository that is not here is asked of the app view, without a name', async t => {
  const { pds, appView } = await startPdsWithAppView(t)
  appView.answer = (_asked, response) => json(response, { uri: 'at://x', value: {} })
  const params = { repo: 'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa', collection: 'app.bsky.feed.post', rkey: 'a' }
  const reply = await pds.get('com.atproto.repo.getRecord', params)
  assert.deepEqual(reply.json, { uri: 'at://x', value: {} })
  assert.equal(appView.asked[0]!.headers.authorization, undefined)
  assert.match(appView.asked[0]!.path, /^\/xrpc\/com\.atproto\.repo\.getRecord\?repo=/)
  const alone = await startTestPds(t)
  const nowhere = await alone.get('com.atproto.repo.getRecord', params)
  assert.deepEqual(failure(nowhere), [400, 'InvalidRequest', 'Could not locate record'])
})
