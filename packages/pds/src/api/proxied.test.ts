import assert from 'node:assert/strict'
import { test } from 'node:test'
import { bearer, startTestPds, type TestPds, type TestUser } from '../testing-pds.ts'
import { json, type StandIn, startPdsWithAppView, startStandIn } from '../testing-services.ts'
import { SCOPES, Tokens } from '../tokens.ts'

const failure = ({ status, json: body }: { status: number; json: { error: string; message: string } }) => [
  status,
  body?.error,
  body?.message,
]
const methodsAsked = (service: StandIn) => service.asked.map(({ path }) => path.slice('/xrpc/'.length).split('?', 1)[0])

const GENERATOR = 'did:web:feeds.example'
const FEED = 'at://did:plc:aaaaaaaaaaaaaaaaaaaaaaaa/app.bsky.feed.generator/cats'
const getFeed = (pds: TestPds, user: TestUser, feed = FEED) => pds.get('app.bsky.feed.getFeed', { feed }, bearer(user))

test('a feed is asked for with a token for the server that makes it', async t => {
  const { pds, appView } = await startPdsWithAppView(t)
  const alice = await pds.user('alice')
  appView.answer = ({ path }, response) =>
    json(response, path.includes('getRecord') ? { value: { did: GENERATOR } } : { feed: [] })
  assert.deepEqual((await getFeed(pds, alice)).json, { feed: [] })
  const [lookup, asked] = appView.asked
  assert.equal(lookup!.token, null)
  assert.match(lookup!.path, /getRecord\?repo=did%3Aplc%3Aa+&collection=app\.bsky\.feed\.generator&rkey=cats$/)
  assert.match(asked!.path, /^\/xrpc\/app\.bsky\.feed\.getFeed\?feed=/)
  assert.deepEqual([asked!.token!.payload.aud, asked!.token!.payload.lxm], [GENERATOR, 'app.bsky.feed.getFeedSkeleton'])
  await getFeed(pds, alice)
  assert.deepEqual(methodsAsked(appView).slice(2), ['app.bsky.feed.getFeed'], 'who makes it is remembered')
})

test('who makes a feed is known by its record here, or by the app view', async t => {
  const { pds, appView } = await startPdsWithAppView(t)
  const alice = await pds.user('alice')
  appView.answer = ({ path }, response) => {
    if (path.includes('getRecord')) return json(response, { error: 'MethodNotImplemented' }, {}, 501)
    json(response, path.includes('getFeedGenerator') ? { view: { did: GENERATOR } } : { feed: [] })
  }
  assert.equal((await getFeed(pds, alice)).status, 200)
  const { aud, lxm } = appView.asked[1]!.token!.payload
  assert.deepEqual([aud, lxm], [appView.did, 'app.bsky.feed.getFeedGenerator'])
  assert.equal(appView.asked.at(-1)!.token!.payload.aud, GENERATOR)

  const record = { did: 'did:web:own.example', displayName: 'x', createdAt: new Date().toISOString() }
  const kept = { repo: alice.did, collection: 'app.bsky.feed.generator', rkey: 'own', record }
  assert.equal((await pds.post('com.atproto.repo.putRecord', kept, alice)).status, 200)
  appView.asked.length = 0
  await getFeed(pds, alice, `at://${alice.did}/app.bsky.feed.generator/own`)
  assert.deepEqual(methodsAsked(appView), ['app.bsky.feed.getFeed'])
  assert.equal(appView.asked[0]!.token!.payload.aud, 'did:web:own.example')
})

test('a feed that nobody knows', async t => {
  const { pds, appView } = await startPdsWithAppView(t)
  const alice = await pds.user('alice')
  appView.answer = (_asked, response) => json(response, { error: 'InvalidRequest', message: 'no such feed' }, {}, 400)
  assert.deepEqual(failure(await getFeed(pds, alice)), [400, 'InvalidRequest', 'no such feed'])
  appView.answer = (_asked, response) => json(response, { value: { did: 7 } })
  assert.deepEqual(failure(await getFeed(pds, alice)), [400, 'UnknownFeed', 'could not resolve feed did'])
  const post = `at://${alice.did}/app.bsky.feed.post/a`
  assert.deepEqual(failure(await getFeed(pds, alice, post)).slice(0, 2), [400, 'UnknownFeed'])
  assert.equal((await getFeed(pds, alice, 'nonsense')).status, 400)
})

test('push tokens go to the service they name', async t => {
  const { pds, appView } = await startPdsWithAppView(t)
  const notifier = await startStandIn(t, { bsky_notif: 'BskyNotificationService' })
  const wrong = await startStandIn(t, { bsky_notif: 'SomethingElse' })
  const alice = await pds.user('alice')
  for (const method of ['app.bsky.notification.registerPush', 'app.bsky.notification.unregisterPush']) {
    const push = (serviceDid: string) => {
      return pds.post(method, { serviceDid, token: 'tök', platform: 'ios', appId: 'xyz.app' }, alice)
    }
    const reply = await push(notifier.did)
    assert.deepEqual([reply.status, reply.bytes.length], [200, 0])
    const asked = notifier.asked.at(-1)!
    assert.deepEqual([asked.method, asked.path], ['POST', `/xrpc/${method}`])
    assert.deepEqual(JSON.parse(asked.body.toString()), {
      serviceDid: notifier.did,
      token: 'tök',
      platform: 'ios',
      appId: 'xyz.app',
    })
    const { aud, lxm, iss } = asked.token!.payload
    assert.deepEqual([aud, lxm, iss], [notifier.did, method, alice.did])
    assert.equal((await push(appView.did)).status, 200)
    assert.equal(appView.asked.at(-1)!.path, `/xrpc/${method}`)
    const nowhere = 'did:web:localhost%3A1'
    assert.deepEqual(failure(await push(nowhere)), [
      400,
      'InvalidRequest',
      `could not resolve did document: ${nowhere}`,
    ])
    const none = `invalid notification service details in did document: ${wrong.did}`
    assert.deepEqual(failure(await push(wrong.did)), [400, 'InvalidRequest', none])
    notifier.answer = (_asked, response) => json(response, { error: 'BadPush', message: 'No' }, {}, 400)
    assert.deepEqual(failure(await push(notifier.did)), [400, 'BadPush', 'No'])
    notifier.answer = (_asked, response) => response.end()
  }
  assert.equal((await pds.post('app.bsky.notification.registerPush', {}, null)).status, 401)
})

test('preferences stay here unless another app view is meant', async t => {
  const { pds, appView } = await startPdsWithAppView(t)
  const other = await startStandIn(t)
  const alice = await pds.user('alice')
  const put = 'app.bsky.actor.putPreferences'
  const get = 'app.bsky.actor.getPreferences'
  const preferences = [{ $type: 'app.bsky.actor.defs#adultContentPref', enabled: true }]
  const own = { 'atproto-proxy': `${appView.did}#bsky_appview` }
  const foreign = { 'atproto-proxy': `${other.did}#bsky_appview` }
  assert.equal((await pds.post(put, { preferences }, alice, own)).status, 200)
  assert.deepEqual((await pds.get(get, {}, { ...bearer(alice), ...own })).json, { preferences })
  assert.deepEqual((await pds.get(get, {}, bearer(alice))).json, { preferences })
  assert.equal(appView.asked.length, 0)
  other.answer = (_asked, response) => json(response, { preferences: [] })
  assert.deepEqual((await pds.get(get, {}, { ...bearer(alice), ...foreign })).json, { preferences: [] })
  await pds.post(put, { preferences: [{ $type: 'x.y#z', n: 1.5 }] }, alice, foreign)
  assert.deepEqual(methodsAsked(other), [get, put])
  assert.deepEqual(JSON.parse(other.asked[1]!.body.toString()), { preferences: [{ $type: 'x.y#z', n: 1.5 }] })
  assert.deepEqual((await pds.get(get, {}, bearer(alice))).json, { preferences })
  assert.equal((await pds.get(get, {}, foreign)).status, 401)
  const bad = await pds.get(get, {}, { ...bearer(alice), 'atproto-proxy': 'x' })
  assert.deepEqual(failure(bad), [400, 'InvalidRequest', 'no service id specified in proxy header'])
})

const REPORT = 'com.atproto.moderation.createReport'
const report = {
  reasonType: 'com.atproto.moderation.defs#reasonAppeal',
  subject: { $type: 'com.atproto.admin.defs#repoRef', did: 'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa' },
}

test('reports go to the service for them, also from accounts that are taken down', async t => {
  const reports = await startStandIn(t, { atproto_labeler: 'AtprotoLabeler' })
  const env = { PDS_REPORT_SERVICE_URL: reports.url, PDS_REPORT_SERVICE_DID: reports.did }
  const { pds, appView } = await startPdsWithAppView(t, env)
  const alice = await pds.user('alice')
  reports.answer = (_asked, response) => json(response, { id: 1, reportedBy: alice.did })
  const reply = await pds.post(REPORT, report, alice)
  assert.deepEqual([reply.status, reply.json], [200, { id: 1, reportedBy: alice.did }])
  assert.deepEqual(JSON.parse(reports.asked[0]!.body.toString()), report)
  const { aud, lxm } = reports.asked[0]!.token!.payload
  assert.deepEqual([aud, lxm], [reports.did, REPORT])

  await pds.store.accounts.update(alice.account.id, { takedown: 'mod-1' }, [])
  assert.equal((await pds.post(REPORT, report, alice)).status, 200)
  const token = await new Tokens('a secret of tests', pds.names.did, Date.now).access(alice.did, SCOPES.takendown)
  assert.equal((await pds.post(REPORT, report, { ...alice, token })).status, 200)
  assert.equal(reports.asked.length, 3)

  const labeler = await startStandIn(t, { atproto_labeler: 'AtprotoLabeler' })
  const bob = await pds.user('bob')
  await pds.post(REPORT, report, bob, { 'atproto-proxy': `${labeler.did}#atproto_labeler` })
  assert.equal(labeler.asked[0]!.token!.payload.aud, labeler.did)
  assert.equal((await pds.post(REPORT, { reasonType: 'x' }, bob)).status, 400)
  assert.equal((await pds.post(REPORT, report, null)).status, 401)
  assert.equal(appView.asked.length, 0)
})

test('the moderation service takes reports if there is no other, and without any there are none', async t => {
  const mod = await startStandIn(t)
  const { pds } = await startPdsWithAppView(t, { PDS_MOD_SERVICE_URL: mod.url, PDS_MOD_SERVICE_DID: mod.did })
  const alice = await pds.user('alice')
  await pds.post(REPORT, report, alice)
  assert.equal(mod.asked.length, 1)
  const alone = await startTestPds(t)
  const bob = await alone.user('bob')
  assert.deepEqual(failure(await alone.post(REPORT, report, bob)).slice(0, 2), [501, 'MethodNotImplemented'])
})

test('half a service is no service', async t => {
  const start = (env: Record<string, string>) => startTestPds(t, env)
  await assert.rejects(start({ PDS_BSKY_APP_VIEW_URL: 'https://app.example' }), /PDS_BSKY_APP_VIEW_DID/)
  const did = { PDS_REPORT_SERVICE_DID: 'did:web:a.example' }
  await assert.rejects(start({ ...did, PDS_REPORT_SERVICE_URL: 'https://app.example/path' }), /PDS_REPORT_SERVICE_URL/)
})
