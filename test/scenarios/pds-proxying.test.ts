// Tokens for and of services, and requests that are for them, as clients and services see it. The numbers are those of the list of
// behaviours.
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import type { ServerResponse } from 'node:http'
import { after, test } from 'node:test'
import { gzipSync } from 'node:zlib'
import { SigningKey } from '@millisky/core/crypto'
import { checkServiceSignature, readServiceJwt, signServiceJwt } from '@millisky/core/jwt'
import { type PlcUpdate, plcDidOf, plcGenesis, plcUpdate, signPlcOperation } from '@millisky/core/plc'
import type { Did } from '@millisky/core/syntax'
import { type Person, signUp, startNetwork, startNetworkedPds } from '@millisky/pds/testing-network'
import { type Answer, basic } from '@millisky/pds/testing-pds'
import { type Asked, json, type StandIn, startStandIn } from '@millisky/pds/testing-services'
import { ask } from './pds-asking.ts'

const SERVER = 'com.atproto.server'
const CREATE = `${SERVER}.createAccount`
const GET = 'com.example.get'
const TIMELINE = 'app.bsky.feed.getTimeline'
const NOBODY = 'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa'
const REPORT = 'com.atproto.moderation.createReport'
const ADULT = { $type: 'app.bsky.actor.defs#adultContentPref', enabled: true }
const BIRTH = { $type: 'app.bsky.actor.defs#personalDetailsPref', birthDate: '1990-01-01T00:00:00.000Z' }

let now = Date.parse('2026-08-20T12:00:00Z')
const clock = { now: () => now }
const network = await startNetwork({ after }, clock.now)
const appView = await startStandIn({ after })
const labeler = await startStandIn({ after }, { atproto_labeler: 'AtprotoLabeler' })
const stranger = await startStandIn({ after }, { other: 'Other' })
const pds = await startNetworkedPds(
  { after },
  {
    PDS_BSKY_APP_VIEW_URL: appView.url,
    PDS_BSKY_APP_VIEW_DID: appView.did,
    PDS_REPORT_SERVICE_URL: labeler.url,
    PDS_REPORT_SERVICE_DID: labeler.did,
  },
  { network, ...clock },
)
const alice = await signUp(pds, 'alice')
const seconds = () => Math.floor(now / 1000)

const said = ({ status, json }: Answer) => (status === 200 ? 200 : [status, json?.error, json?.message])
const invalid = (message: string) => [400, 'InvalidRequest', message]
const get = (method: string, params: Record<string, unknown> = {}, headers: Record<string, string> = alice.auth) =>
  pds.get(method, params, headers)
const via = (header: string) => ({ ...alice.auth, 'atproto-proxy': header })

/** What an app holds: a session by an app password. */
async function appOf(person: Person, privileged = false) {
  const made = await pds.post(`${SERVER}.createAppPassword`, { name: `${privileged}`, privileged }, null, person.auth)
  const login = { identifier: person.did, password: made.json.password }
  const { accessJwt } = (await pds.post(`${SERVER}.createSession`, login)).json
  return { authorization: `Bearer ${accessJwt}` }
}
const app = await appOf(alice)
const privileged = await appOf(alice, true)

/** One whose account is taken down, who was let in all the same. */
async function takenDown(name: string) {
  const person = await signUp(pds, name)
  const subject = { $type: 'com.atproto.admin.defs#repoRef', did: person.did }
  await pds.post('com.atproto.admin.updateSubjectStatus', { subject, takedown: { applied: true } }, null, basic())
  const login = { identifier: person.did, password: person.password, allowTakendown: true }
  const { accessJwt } = (await pds.post(`${SERVER}.createSession`, login)).json
  return { ...person, auth: { authorization: `Bearer ${accessJwt}` } }
}

/** Lets a service answer in some way for as long as something takes. */
async function whileSaying<T>(service: StandIn, answer: StandIn['answer'], run: () => Promise<T>): Promise<T> {
  const usual = service.answer
  service.answer = answer
  try {
    return await run()
  } finally {
    service.answer = usual
  }
}
const saying =
  (status: number, body: string | Uint8Array, headers: Record<string, string> = {}) =>
  (_asked: Asked, response: ServerResponse) =>
    void response.writeHead(status, headers).end(body)
const JSON_TYPE = { 'content-type': 'application/json' }

test('B53 how long a token for a service is good', async () => {
  const token = (params: object) => get(`${SERVER}.getServiceAuth`, { aud: 'did:web:api.example.com', ...params })
  const lifetime = async (params: object) => {
    const { iat, exp } = readServiceJwt((await token(params)).json.token).payload
    return [iat === seconds(), exp - seconds()]
  }
  const lxm = TIMELINE
  assert.deepEqual(await lifetime({}), [true, 60])
  assert.deepEqual(await lifetime({ lxm }), [true, 60])
  assert.deepEqual(await lifetime({ lxm, exp: seconds() + 3_600 }), [true, 3_600])
  assert.deepEqual(await lifetime({ exp: seconds() + 60 }), [true, 60])
  const bad = (message: string) => [400, 'BadExpiration', message]
  const hour = bad('cannot request a token with an expiration more than an hour in the future')
  const minute = bad('cannot request a method-less token with an expiration more than a minute in the future')
  assert.deepEqual(said(await token({ lxm, exp: seconds() - 1 })), bad('expiration is in past'))
  assert.deepEqual(said(await token({ lxm, exp: seconds() + 3_601 })), hour)
  assert.deepEqual(said(await token({ exp: seconds() + 3_601 })), hour)
  assert.deepEqual(said(await token({ exp: seconds() + 61 })), minute)
  const params = (why: string) => invalid(`Invalid ${SERVER}.getServiceAuth params: ${why}`)
  assert.deepEqual(said(await token({ exp: 'x' })), params('Expected integer value type (got "x") at $.exp'))
  assert.deepEqual(said(await token({ aud: undefined })), params('Missing required key "aud" at $'))
})

test('B54 for whom and for what there are tokens', async () => {
  const token = async (params: object, auth = alice.auth) =>
    said(await get(`${SERVER}.getServiceAuth`, { aud: 'did:web:api.example.com', ...params }, auth))
  const bob = 'did:plc:bbbbbbbbbbbbbbbbbbbbbbbb'
  for (const aud of ['did:web:a.example', 'did:web:a.example#svc', bob, `${bob}#svc`, 'did:web:localhost%3A3000'])
    assert.equal(await token({ aud, lxm: TIMELINE }), 200, aud)
  const audiences = invalid('aud must be a valid atproto DID or did#serviceId reference')
  const wrong = ['a.example', 'did:x', 'did:plc:abc', 'did:key:zabc', 'did:web:a.example:b', 'did:web:a.example%3A80']
  for (const aud of [...wrong, 'did:web:a.example#', 'did:web:a.example#a#b', 'did:web:a.example#a b', '#a'])
    assert.deepEqual(await token({ aud, lxm: TIMELINE }), audiences, aud)
  for (const name of [
    'server.getSession',
    'server.updateEmail',
    'server.deactivateAccount',
    'identity.updateHandle',
    'server.GETSESSION',
  ]) {
    const lxm = `com.atproto.${name}`
    const message = `cannot request a service auth token for the following protected method: ${lxm}`
    for (const auth of [alice.auth, app]) assert.deepEqual(await token({ lxm }, auth), invalid(message))
  }
  for (const lxm of ['chat.bsky.convo.listConvos', CREATE]) {
    const message = `insufficient access to request a service auth token for the following method: ${lxm}`
    assert.deepEqual(await token({ lxm }, app), invalid(message))
    for (const auth of [alice.auth, privileged]) assert.equal(await token({ lxm }, auth), 200, lxm)
  }
  const { auth } = await takenDown('tom')
  assert.equal(await token({ lxm: CREATE }, auth), 200, 'one who is taken down may still leave')
  for (const lxm of [TIMELINE, 'chat.bsky.convo.listConvos', undefined])
    assert.deepEqual(await token({ lxm }, auth), [400, 'InvalidToken', 'Bad token scope'])
  assert.deepEqual(await token({}, { authorization: '' }), [401, 'AuthMissing', 'Authentication Required'])
})

test("B55 a token says who, for whom, for what and how long, by the account's key", async () => {
  const { json: reply } = await get(`${SERVER}.getServiceAuth`, { aud: `${NOBODY}#svc`, lxm: TIMELINE })
  const [header = '', , signature = ''] = reply.token.split('.')
  assert.deepEqual(JSON.parse(Buffer.from(header, 'base64url').toString()), { typ: 'JWT', alg: 'ES256K' })
  assert.equal(Buffer.from(signature, 'base64url').length, 64)
  const jwt = readServiceJwt(reply.token)
  const { jti, ...claims } = jwt.payload
  assert.deepEqual(claims, { iat: seconds(), iss: alice.did, aud: `${NOBODY}#svc`, exp: seconds() + 60, lxm: TIMELINE })
  assert.match(jti ?? '', /^[0-9a-f]{32}$/)
  const state = await pds.store.repos.state(alice.did as Did)
  // It takes low signatures alone.
  checkServiceSignature(jwt, pds.repos.signingKey(state!.key).publicKey)
  const other = readServiceJwt((await get(`${SERVER}.getServiceAuth`, { aud: NOBODY, lxm: TIMELINE })).json.token)
  assert.notEqual(other.payload.jti, jti)
})

test('B56 what is wrong with a token of somebody else is named, and a key that has changed is looked up', async () => {
  const [old, next] = [newKey(), newKey()]
  const account = {
    rotationKeys: [old.didKey],
    signingKey: old.didKey,
    handle: 'eve.example.com',
    pds: 'https://old.example.com',
  }
  const genesis = signPlcOperation<PlcUpdate>(plcGenesis(account), old)
  const did = plcDidOf(genesis)
  await network.plc.directory.accept(did, genesis)
  const body = { handle: 'ev.test', email: 'eve@example.com', password: 'a', did }
  const claims = () => ({ iss: did, aud: pds.names.did, lxm: CREATE, iat: seconds(), exp: seconds() + 60, jti: 'a' })
  const signed = (more: Record<string, unknown>, key = old) =>
    `Bearer ${signServiceJwt({ ...claims(), ...more } as Parameters<typeof signServiceJwt>[0], key)}`
  const raw = (header: object, payload: object) => {
    const text = [header, payload].map(part => Buffer.from(JSON.stringify(part)).toString('base64url')).join('.')
    return `Bearer ${text}.${Buffer.from(old.sign(Buffer.from(text))).toString('base64url')}`
  }
  const by = async (authorization: string) => said(await pds.post(CREATE, body, null, { authorization }))
  const poor = [401, 'BadJwt', 'poorly formatted jwt']
  const must = `must match: ${CREATE}`
  const refusals: [string, unknown][] = [
    ['Bearer x', poor],
    ['Bearer x.y', poor],
    ['Bearer x.y.z', poor],
    [raw({ typ: 'JWT' }, claims()), poor],
    [raw({ typ: 'JWT', alg: 'ES256K' }, { ...claims(), exp: '1' }), poor],
    [raw({ typ: 'at+jwt', alg: 'ES256K' }, claims()), [401, 'BadJwtType', 'Invalid jwt type "at+jwt"']],
    [raw({ typ: 'dpop+jwt', alg: 'ES256K' }, claims()), [401, 'BadJwtType', 'Invalid jwt type "dpop+jwt"']],
    [signed({ exp: seconds() - 1 }), [401, 'JwtExpired', 'jwt expired']],
    [signed({ aud: appView.did }), [401, 'BadJwtAudience', 'jwt audience does not match service did']],
    [signed({ lxm: GET }), [401, 'BadJwtLexiconMethod', `bad jwt lexicon method ("lxm"). ${must}`]],
    [signed({ lxm: undefined }), [401, 'BadJwtLexiconMethod', `missing jwt lexicon method ("lxm"). ${must}`]],
    [signed({ iss: 'eve' }), [401, 'BadJwtIss', 'jwt iss is not a valid did']],
    [signed({}, next), [401, 'BadJwtSignature', 'jwt signature does not match jwt issuer']],
    [signed({ iss: NOBODY }), [401, 'AuthenticationRequired', 'could not resolve iss did']],
  ]
  for (const [authorization, expected] of refusals)
    assert.deepEqual(await by(authorization), expected, String(expected))
  // It is proven, so that what is looked at next is wrong.
  const passed = [400, 'InvalidHandle', 'Handle too short']
  assert.deepEqual(await by(signed({})), passed)
  assert.deepEqual(await by(signed({ aud: `${pds.names.did}#atproto_pds` })), passed)
  const update = plcUpdate(genesis, { verificationMethods: { atproto: next.didKey } })
  await network.plc.directory.accept(did, signPlcOperation<PlcUpdate>(update, old))
  assert.deepEqual(await by(signed({}, next)), passed, 'nobody has to wait for memory to fade')
  assert.deepEqual(((await by(signed({}))) as string[]).slice(0, 2), [401, 'BadJwtSignature'])
  const untrusted = await get('com.atproto.admin.getAccountInfo', { did: alice.did }, { authorization: signed({}) })
  assert.deepEqual(said(untrusted), [401, 'UntrustedIss', 'Untrusted issuer'])
})

function newKey(): SigningKey {
  return SigningKey.fromPrivate('k256', randomBytes(32))
}

test('B57 what a proxy header has to say', async () => {
  const { did } = stranger
  const cases: [string, unknown][] = [
    ['#other', invalid('no did specified in proxy header')],
    ['#', invalid('no did specified in proxy header')],
    [did, invalid('no service id specified in proxy header')],
    [`${did}#`, invalid('no service id specified in proxy header')],
    [`${did}#other#other`, invalid('invalid proxy header format')],
    [`${did}##`, invalid('invalid proxy header format')],
    [`${did} #other`, invalid('proxy header cannot contain spaces')],
    [`${did}#o ther`, invalid('proxy header cannot contain spaces')],
    ['nonsense#other', invalid('could not resolve proxy did')],
    [`${NOBODY}#other`, invalid('could not resolve proxy did')],
    ['did:web:localhost%3A1#other', invalid('could not resolve proxy did')],
    [`${did}#none`, invalid('could not resolve proxy did service url')],
    [`${did}#other`, 200],
    [`${appView.did}#bsky_appview`, 200],
  ]
  for (const [header, expected] of cases) assert.deepEqual(said(await get(GET, {}, via(header))), expected, header)
  assert.equal(stranger.asked.length, 1)
  const { path, token } = stranger.asked[0]!
  assert.deepEqual(
    [path, token!.payload.aud, token!.payload.lxm, token!.payload.iss],
    [`/xrpc/${GET}`, did, GET, alice.did],
  )
  const missing = await get(GET, {}, { 'atproto-proxy': `${did}#other` })
  assert.deepEqual(said(missing), [401, 'AuthMissing', 'Authentication Required'])
  // Also for a record that is not here, which is asked for in nobody's name.
  const record = { repo: NOBODY, collection: 'com.example.note', rkey: 'a' }
  const elsewhere = (headers: Record<string, string>) => get('com.atproto.repo.getRecord', record, headers)
  assert.equal((await elsewhere({ 'atproto-proxy': `${did}#other` })).status, 200)
  assert.deepEqual([stranger.asked.length, stranger.asked[1]!.token], [2, null])
  assert.deepEqual(said(await elsewhere({ 'atproto-proxy': did })), invalid('no service id specified in proxy header'))
})

test('B58 which headers cross', async () => {
  const sent = {
    'accept-language': 'de, en;q=0.5',
    'atproto-accept-labelers': `${NOBODY};redact`,
    'x-bsky-topics': 'cats',
    'x-atproto-more': '1',
    'accept-encoding': 'gzip, br',
  }
  const kept = {
    cookie: 'a=b',
    dpop: 'x',
    'x-forwarded-for': '1.2.3.4',
    'x-custom': '1',
    te: 'trailers',
    'proxy-authorization': 'Basic x',
  }
  const answer = {
    'content-type': 'text/csv',
    'atproto-repo-rev': '3kzzzzzzzzz2a',
    'atproto-content-labelers': NOBODY,
    'retry-after': '7',
    'content-language': 'de',
    'content-encoding': 'gzip',
  }
  const dropped = {
    'set-cookie': 'a=b',
    etag: '"a"',
    location: 'https://a.example',
    'www-authenticate': 'Basic',
    'keep-alive': 'timeout=9',
    server: 'x',
    'cache-control': 'public',
    'access-control-allow-origin': 'https://a.example',
  }
  const body = gzipSync('{"ok":true}')
  const headers = { ...alice.auth, ...sent, ...kept }
  const told = await whileSaying(appView, saying(200, body, { ...answer, ...dropped }), () =>
    ask(pds.url, `${GET}?a=1&a=2`, { headers }),
  )
  const { headers: got, path } = appView.asked.at(-1)!
  assert.equal(path, `/xrpc/${GET}?a=1&a=2`)
  for (const [name, value] of Object.entries(sent)) assert.equal(got[name], value, name)
  for (const name of Object.keys(kept)) assert.equal(got[name], undefined, name)
  assert.notEqual(got.authorization, alice.auth.authorization)
  for (const [name, value] of Object.entries(answer)) assert.equal(told.headers[name], value, name)
  const ours: Record<string, string> = { 'cache-control': 'private', 'access-control-allow-origin': '*' }
  for (const [name, value] of Object.entries(dropped)) {
    if (name in ours) assert.equal(told.headers[name], ours[name], name)
    else assert.notEqual(told.headers[name], value, name)
  }
  const packed = gzipSync('{"a":1}')
  const posted = { method: 'POST', body: packed, headers: { ...alice.auth, ...JSON_TYPE, 'content-encoding': 'gzip' } }
  assert.equal((await ask(pds.url, 'com.example.put', posted)).status, 200)
  const arrived = appView.asked.at(-1)!
  assert.deepEqual([arrived.method, arrived.body, arrived.headers['content-encoding']], ['POST', packed, 'gzip'])
  assert.deepEqual(
    [arrived.headers['content-type'], arrived.headers['content-length']],
    ['application/json', String(packed.length)],
  )
  const chunked = { ...posted, isChunked: true }
  assert.equal((await ask(pds.url, 'com.example.put', chunked)).status, 200)
  assert.deepEqual(appView.asked.at(-1)!.body, packed)
  const expecting = { method: 'POST', body: '{}', headers: { ...alice.auth, ...JSON_TYPE, expect: '100-continue' } }
  assert.equal((await ask(pds.url, 'com.example.put', expecting)).status, 200)
  assert.equal(appView.asked.at(-1)!.headers.expect, undefined)
})

test('B59 a service that fails is 502 UpstreamFailure; what it refuses keeps status and name', async () => {
  const answerTo = async (answer: StandIn['answer'], method = GET) =>
    said(await whileSaying(appView, answer, () => get(method)))
  const named = (status: number) => saying(status, '{"error":"Named","message":"said so"}', JSON_TYPE)
  const unreachable = [502, 'UpstreamFailure', 'Upstream service unreachable']
  for (const method of [GET, TIMELINE]) {
    for (const status of [400, 401, 403, 404, 409, 418, 422, 429, 451, 501, 502, 503, 504, 520])
      assert.deepEqual(await answerTo(named(status), method), [status, 'Named', 'said so'])
    assert.deepEqual(await answerTo(named(500), method), [502, 'Named', 'said so'])
    const inside = saying(500, '{"error":"InternalServerError","message":"Internal Server Error"}', JSON_TYPE)
    assert.deepEqual(await answerTo(inside, method), [502, 'UpstreamFailure', 'Internal Server Error'])
    assert.deepEqual(await answerTo(saying(500, '<h1>', { 'content-type': 'text/html' }), method), [
      502,
      'UpstreamFailure',
      'Upstream Failure',
    ])
    assert.deepEqual(await answerTo(saying(400, '{"error":', JSON_TYPE), method), [
      400,
      'InvalidRequest',
      'Invalid Request',
    ])
    const packed = saying(400, gzipSync('{"error":"Named"}'), { ...JSON_TYPE, 'content-encoding': 'gzip' })
    assert.deepEqual(await answerTo(packed, method), [400, 'Named', 'Invalid Request'])
    assert.deepEqual(await answerTo((_asked, response) => void response.destroy(), method), unreachable)
    assert.deepEqual(await answerTo(saying(302, '', { location: 'https://a.example' }), method), unreachable)
  }
  const impatient = await startNetworkedPds(
    { after },
    {
      PDS_BSKY_APP_VIEW_URL: appView.url,
      PDS_BSKY_APP_VIEW_DID: appView.did,
      PDS_PROXY_HEADERS_TIMEOUT: '100',
      PDS_PROXY_BODY_TIMEOUT: '100',
    },
    { network, ...clock },
  )
  const { auth } = await signUp(impatient, 'ina')
  for (const method of [GET, TIMELINE]) {
    const silent = await whileSaying(
      appView,
      () => {},
      () => impatient.get(method, {}, auth),
    )
    assert.deepEqual(said(silent), unreachable, 'nothing is said in time')
  }
  const late = await whileSaying(
    appView,
    saying(429, '{"error":"RateLimitExceeded"}', { ...JSON_TYPE, 'retry-after': '9' }),
    () => get(GET),
  )
  assert.deepEqual([late.status, late.headers.get('retry-after')], [429, '9'])
  const text = await whileSaying(appView, saying(200, 'hello', { 'content-type': 'text/plain' }), () => get(GET))
  assert.deepEqual(
    [text.status, text.headers.get('content-type'), Buffer.from(text.bytes).toString()],
    [200, 'text/plain', 'hello'],
  )
})

test('B60 methods of an account are not passed on', async () => {
  const header = `${stranger.did}#other`
  const refused = [400, 'InvalidToken', 'Bad token method']
  const before = stranger.asked.length
  assert.equal(
    (await get(`${SERVER}.getSession`, {}, via(header))).json.did,
    alice.did,
    'what is served here is served here',
  )
  assert.deepEqual(said(await get(`${SERVER}.GETSESSION`, {}, via(header))), refused)
  assert.deepEqual(said(await get('com.atproto.identity.UPDATEHANDLE', {}, via(header))), refused)
  for (const auth of [app])
    assert.deepEqual(said(await get('chat.bsky.convo.listConvos', {}, { ...auth, 'atproto-proxy': header })), refused)
  assert.equal(stranger.asked.length, before)
  assert.equal((await get('chat.bsky.convo.listConvos', {}, { ...privileged, 'atproto-proxy': header })).status, 200)
  assert.deepEqual(said(await get('chat.bsky.convo.listConvos')), [
    501,
    'MethodNotImplemented',
    'Method Not Implemented',
  ])
  const put = await ask(pds.url, GET, { method: 'PUT', headers: alice.auth })
  assert.deepEqual([put.status, put.json.error, put.json.message], invalid('XRPC requests only supports GET and POST'))
})

test('B61 reports go to their service, also of one who is taken down', async () => {
  const tina = await takenDown('tina')
  const subject = { $type: 'com.atproto.admin.defs#repoRef', did: tina.did }
  const body = { reasonType: 'com.atproto.moderation.defs#reasonAppeal', subject, reason: 'please' }
  const reply = { id: 1, ...body, reportedBy: tina.did, createdAt: '2026-08-20T12:00:00.000Z' }
  const report = (auth: Record<string, string>, more = {}) =>
    whileSaying(labeler, saying(200, JSON.stringify(reply), JSON_TYPE), () =>
      pds.post(REPORT, { ...body, ...more }, null, auth),
    )
  for (const auth of [tina.auth, alice.auth, app]) assert.deepEqual((await report(auth)).json, reply)
  const { path, method, token, body: sent } = labeler.asked[0]!
  assert.deepEqual([method, path, JSON.parse(sent.toString())], ['POST', `/xrpc/${REPORT}`, body])
  assert.deepEqual([token!.payload.iss, token!.payload.aud, token!.payload.lxm], [tina.did, labeler.did, REPORT])
  assert.deepEqual(said(await report({})), [401, 'AuthMissing', 'Authentication Required'])
  assert.equal(
    said(await report(alice.auth, { subject: undefined })).toString(),
    '400,InvalidRequest,Missing required key "subject" at $',
  )
  const before = labeler.asked.length
  assert.equal((await report({ ...alice.auth, 'atproto-proxy': `${stranger.did}#other` })).status, 200)
  assert.deepEqual(
    [stranger.asked.at(-1)!.path, labeler.asked.length],
    [`/xrpc/${REPORT}`, before],
    'or to who is named',
  )
  const broken: [StandIn['answer'], string][] = [
    [saying(200, '<p>', { 'content-type': 'text/html' }), 'Upstream answer cannot be read'],
    [saying(200, '{"id":', JSON_TYPE), 'Upstream answer cannot be read'],
    [saying(200, '[]', JSON_TYPE), 'Upstream answer cannot be read'],
    [saying(200, 'x', { ...JSON_TYPE, 'content-encoding': 'gzip' }), 'Upstream answer cannot be read'],
    [(_asked, response) => void response.destroy(), 'Upstream service unreachable'],
  ]
  for (const [answer, message] of broken) {
    const reported = await whileSaying(labeler, answer, () => pds.post(REPORT, body, null, alice.auth))
    assert.deepEqual(said(reported), [502, 'UpstreamFailure', message])
  }
  const packed = saying(200, gzipSync(JSON.stringify(reply)), { ...JSON_TYPE, 'content-encoding': 'gzip' })
  const unpacked = await whileSaying(labeler, packed, () => pds.post(REPORT, body, null, alice.auth))
  assert.deepEqual(unpacked.json, reply)
  const down = await whileSaying(labeler, saying(500, ''), () => pds.post(REPORT, body, null, alice.auth))
  assert.deepEqual(said(down), [502, 'UpstreamFailure', 'Upstream Failure'])
  // Nothing else of theirs goes out.
  assert.deepEqual(said(await get(GET, {}, tina.auth)), [400, 'InvalidToken', 'Bad token scope'])
})

test('B62 preferences are kept here for the own app view, and passed on to others', async () => {
  const read = async (headers: Record<string, string>) => (await get('app.bsky.actor.getPreferences', {}, headers)).json
  const put = async (preferences: unknown[], headers: Record<string, string> = alice.auth) =>
    said(await pds.post('app.bsky.actor.putPreferences', { preferences }, null, headers))
  const [views, others] = [appView.asked.length, stranger.asked.length]
  assert.deepEqual(await read(alice.auth), { preferences: [] })
  assert.equal(await put([ADULT, BIRTH]), 200)
  const age = { $type: 'app.bsky.actor.defs#declaredAgePref', isOverAge13: true, isOverAge16: true, isOverAge18: true }
  assert.deepEqual(await read(alice.auth), { preferences: [ADULT, BIRTH, age] })
  assert.deepEqual(await read(via(`${appView.did}#bsky_appview`)), { preferences: [ADULT, BIRTH, age] })
  assert.deepEqual(await read(app), { preferences: [ADULT, age] })
  assert.deepEqual(await put([BIRTH], app), invalid(`Do not have authorization to set preferences: ${BIRTH.$type}`))
  assert.equal(await put([], app), 200)
  assert.deepEqual(await read(alice.auth), { preferences: [BIRTH, age] }, 'an app does not take what it does not see')
  assert.deepEqual(
    await put([{ $type: 'com.example.pref' }]),
    invalid('Some preferences are not in the app.bsky namespace'),
  )
  assert.deepEqual(
    await put([{ a: 1 }]),
    invalid('Expected an object which includes the "$type" property value type (got {"a": ...}) at $.preferences[0]'),
  )
  assert.deepEqual([appView.asked.length, stranger.asked.length], [views, others])
  assert.deepEqual(await read(via(`${stranger.did}#bsky_appview`)), { ok: true })
  assert.equal(await put([ADULT], via(`${stranger.did}#bsky_appview`)), 200)
  assert.deepEqual(await read(alice.auth), { preferences: [BIRTH, age] })
  assert.equal(stranger.asked.length, others + 2)
})

test('B63 a feed is asked for with a token for who makes it', async () => {
  const maker = 'did:web:feeds.example.com'
  const feed = `at://${NOBODY}/app.bsky.feed.generator/cats`
  const get1 = async (params: object, answer: StandIn['answer']) =>
    said(await whileSaying(appView, answer, () => get('app.bsky.feed.getFeed', { ...params })))
  const knowing = (value: object) => (asked: Asked, response: ServerResponse) => {
    if (asked.path.includes('getRecord')) return json(response, { uri: feed, value })
    return json(response, { feed: [] })
  }
  const before = appView.asked.length
  assert.equal(await get1({ feed, limit: 3 }, knowing({ did: maker })), 200)
  const [record, asked] = appView.asked.slice(before) as [Asked, Asked]
  assert.match(record.path, /^\/xrpc\/com\.atproto\.repo\.getRecord\?/)
  assert.equal(asked.path, `/xrpc/app.bsky.feed.getFeed?feed=${encodeURIComponent(feed)}&limit=3`)
  const { aud, lxm, iss } = asked.token!.payload
  assert.deepEqual([aud, lxm, iss], [maker, 'app.bsky.feed.getFeedSkeleton', alice.did])
  const unknown = [400, 'UnknownFeed', 'could not resolve feed did']
  assert.deepEqual(await get1({ feed: feed.replace('cats', 'dogs') }, knowing({})), unknown)
  const missing = saying(400, '{"error":"RecordNotFound","message":"no such"}', JSON_TYPE)
  assert.deepEqual(await get1({ feed: feed.replace('cats', 'cows') }, missing), [400, 'RecordNotFound', 'no such'])
  assert.deepEqual(((await get1({}, knowing({}))) as string[]).slice(0, 2), [400, 'InvalidRequest'])
})

test('B64 B65 what was just written is shown, and how old the answer is', async () => {
  const person = await signUp(pds, 'una')
  const put = async (collection: string, rkey: string, record: object) => {
    now += 1_000
    const body = {
      repo: person.did,
      collection,
      rkey,
      record: { $type: collection, createdAt: new Date(now).toISOString(), ...record },
    }
    return (await pds.post('com.atproto.repo.putRecord', body, null, person.auth)).json
  }
  const POST = 'app.bsky.feed.post'
  const old = await put(POST, '3l222222222aa', { text: 'old' })
  const rev = old.commit.rev as string
  const author = { did: person.did, handle: 'una.test', displayName: 'old' }
  const known = { uri: old.uri, cid: old.cid, author, record: {}, indexedAt: '2026-01-01T00:00:00.000Z' }
  const see = async (
    method: string,
    params: object,
    body: object,
    headers: Record<string, string> = { 'atproto-repo-rev': rev },
    status = 200,
  ) => {
    const answer = saying(status, JSON.stringify(body), { ...JSON_TYPE, ...headers })
    const reply = await whileSaying(appView, answer, () => get(method, { ...params }, person.auth))
    const { headers: got } = reply
    return { ...reply, lag: got.get('atproto-upstream-lag'), rev: got.get('atproto-repo-rev') }
  }
  const actor = person.did
  const current = await see(TIMELINE, {}, { feed: [] })
  assert.deepEqual([current.json, current.lag, current.rev], [{ feed: [] }, null, rev], 'nothing is new')

  await put('app.bsky.actor.profile', 'self', { displayName: 'new', description: 'words' })
  const fresh = await put(POST, '3z222222222aa', { text: 'fresh' })
  const reply = await put(POST, '3z222222223aa', { text: 'reply', reply: { root: old, parent: old } })
  now += 500
  const feed = { feed: [{ post: known }], cursor: 'c' }
  for (const [method, params] of [
    [TIMELINE, {}],
    ['app.bsky.feed.getAuthorFeed', { actor }],
  ] as const) {
    const seen = await see(method, params, feed)
    assert.deepEqual(
      seen.json.feed.map(({ post }: { post: { uri: string } }) => post.uri),
      [reply.uri, fresh.uri, old.uri],
      method,
    )
    assert.deepEqual([seen.lag, seen.rev, seen.json.cursor], ['2500', rev, 'c'])
    const { author: by, record, likeCount, cid } = seen.json.feed[1].post
    assert.deepEqual([by.did, by.displayName, record.text, likeCount, cid], [actor, 'new', 'fresh', 0, fresh.cid])
  }
  const likes = await see('app.bsky.feed.getActorLikes', { actor }, feed)
  assert.deepEqual([likes.json.feed.length, likes.json.feed[0].post.author.displayName, likes.lag], [1, 'new', '2500'])
  const profile = await see('app.bsky.actor.getProfile', { actor }, { ...author, postsCount: 7 })
  assert.deepEqual(profile.json, { ...author, displayName: 'new', description: 'words', postsCount: 7 })
  const two = await see(
    'app.bsky.actor.getProfiles',
    { actors: [actor, NOBODY] },
    { profiles: [author, { ...author, did: NOBODY }] },
  )
  assert.deepEqual(
    two.json.profiles.map(({ displayName }: { displayName: string }) => displayName),
    ['new', 'old'],
  )
  const thread = { thread: { $type: 'app.bsky.feed.defs#threadViewPost', post: known, replies: [] } }
  const answered = await see('app.bsky.feed.getPostThread', { uri: old.uri }, thread)
  assert.deepEqual([answered.json.thread.replies[0].post.uri, answered.lag], [reply.uri, '2500'])
  const notFound = { error: 'NotFound', message: 'Post not found' }
  const unseen = await see('app.bsky.feed.getPostThread', { uri: fresh.uri }, notFound, undefined, 400)
  assert.deepEqual([unseen.status, unseen.json.thread.post.uri, unseen.lag], [200, fresh.uri, '2500'])
  const nothing = await see(
    'app.bsky.feed.getPostThread',
    { uri: `${fresh.uri.slice(0, -1)}b` },
    notFound,
    undefined,
    400,
  )
  assert.deepEqual(said(nothing), [400, 'NotFound', 'Post not found'])

  // Where the app view does not say how far it is, or is far enough, its answer passes as it came.
  const silent = await see(TIMELINE, {}, feed, {})
  assert.deepEqual([silent.json, silent.lag, silent.rev], [feed, null, null])
  const ahead = await see(TIMELINE, {}, feed, { 'atproto-repo-rev': reply.commit.rev })
  assert.deepEqual([ahead.json, ahead.lag, ahead.rev], [feed, null, reply.commit.rev])
  const packed = saying(200, gzipSync(JSON.stringify(feed)), {
    ...JSON_TYPE,
    'content-encoding': 'gzip',
    'atproto-repo-rev': rev,
  })
  const unpacked = await whileSaying(appView, packed, () =>
    get(TIMELINE, {}, { ...person.auth, 'accept-encoding': 'gzip' }),
  )
  assert.equal(unpacked.json.feed.length, 3)
  // An answer that breaks off has not been answered.
  const broken = (_asked: Asked, response: ServerResponse) => {
    response.writeHead(200, { ...JSON_TYPE, 'content-length': '5000', 'atproto-repo-rev': rev }).write('{"feed":[')
    setTimeout(() => response.destroy(), 20)
  }
  const cut = await whileSaying(appView, broken, () => get(TIMELINE, {}, person.auth))
  assert.deepEqual(said(cut), [502, 'UpstreamFailure', 'Upstream service unreachable'])
})
