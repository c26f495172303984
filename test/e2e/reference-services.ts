// Identities and other services, step by step; each step under a name of its own.
import { NONE, type Side } from './reference-side.ts'

const NOBODY = 'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa'
const OTHER_KEY = 'did:key:zQ3shhCGUqDKjStzuDxPkTxN6ujddP4RkEKJJouJGRRkaLGbg'
const server = (name: string) => `com.atproto.server.${name}`
const identity = (name: string) => `com.atproto.identity.${name}`

const WANTED = [
  'hal.test',
  'hal2.test',
  'carol.test',
  'hal.example.com',
  'x.test',
  'admin.test',
  'hal.local',
  'a.hal.test',
  'nonsense',
]

export async function identities(side: Side): Promise<void> {
  const hal = await side.signUp('hal')
  const { did } = hal
  const call = (name: string, method: string, body: unknown = NONE) =>
    side.say(`identity: ${name}`, identity(method), { auth: hal, verb: 'POST', body })
  const names = ['hal.test', 'HAL.test', 'nobody.test', 'test', 'a.b.test', 'nobody.invalid', 'handle.invalid', 'x']
  for (const handle of names)
    await side.say(`identity: resolve ${handle}`, identity('resolveHandle'), { params: { handle } })
  for (const handle of WANTED) await call(`to ${handle}`, 'updateHandle', { handle })
  await side.say('identity: session', server('getSession'), { auth: hal })
  await side.say('identity: recommended', identity('getRecommendedDidCredentials'), { auth: hal })
  await side.say('identity: status', server('checkAccountStatus'), { auth: hal })
  await call('sign without a code', 'signPlcOperation', {})
  await call('sign with a wrong code', 'signPlcOperation', { token: 'AAAAA-BBBBB' })
  await call('ask', 'requestPlcOperationSignature')
  const { code, subject } = await side.server.mailbox.next()
  side.note('identity: mail', subject)
  const wish = { token: code, alsoKnownAs: ['at://hal2.test', 'https://hal.example'] }
  const { json } = await call('sign', 'signPlcOperation', wish)
  await call('sign twice', 'signPlcOperation', { token: code })
  const submit = (name: string, change: Record<string, unknown>) =>
    call(`submit ${name}`, 'submitPlcOperation', { operation: { ...json.operation, ...change } })
  const at = (type: string, endpoint: string) => ({ services: { atproto_pds: { type, endpoint } } })
  await submit('no server key', { rotationKeys: [OTHER_KEY] })
  await submit('other type', at('X', side.server.url))
  await submit('other endpoint', at('AtprotoPersonalDataServer', 'https://a.example'))
  await submit('other key', { verificationMethods: { atproto: OTHER_KEY } })
  await submit('other handle', { alsoKnownAs: ['at://other.test'] })
  await call('submit nonsense', 'submitPlcOperation', { operation: { a: 1 } })
  await submit('as signed', {})
  const first = await side.say('identity: reserve', server('reserveSigningKey'), { body: { did } })
  const again = await side.ask(server('reserveSigningKey'), { body: { did } })
  side.note('identity: reserved the same', first.json.signingKey === again.json.signingKey)
  await side.say('identity: reserve for nobody', server('reserveSigningKey'), { body: {} })
}

export async function serviceTokens(side: Side): Promise<void> {
  const ida = await side.signUp('ida')
  const aud = 'did:web:a.example'
  const lxm = 'app.bsky.feed.getTimeline'
  const get = (name: string, params: Record<string, unknown>) =>
    side.say(`service token: ${name}`, server('getServiceAuth'), { auth: ida, params: { aud, lxm, ...params } })
  const now = Math.floor(Date.now() / 1000)
  const { json } = await get('plain', {})
  const part = (i: number) => JSON.parse(Buffer.from(json.token.split('.')[i], 'base64url').toString())
  const { iat, exp, jti, ...claims } = part(1)
  side.note('service token: header', part(0))
  side.note('service token: claims', { ...claims, seconds: exp - iat, jti: typeof jti })
  await get('with a service', { aud: `${aud}#svc` })
  for (const bad of ['a.example', 'did:x', `${aud}#`, `${aud}#a#b`, `${aud}#a b`, 'did:key:zabc'])
    await get(`for ${bad}`, { aud: bad })
  await get('past', { exp: now - 10 })
  await get('an hour', { exp: now + 3_590 })
  await get('more than an hour', { exp: now + 3_700 })
  for (const name of ['server.createAppPassword', 'server.getSession', 'identity.updateHandle', 'admin.sendEmail'])
    await get(name, { lxm: `com.atproto.${name}` })
  for (const name of ['server.createAccount', 'repo.uploadBlob']) await get(name, { lxm: `com.atproto.${name}` })
  await get('malformed method', { lxm: 'x' })
  const methodless = (name: string, params: object) =>
    side.say(`service token: ${name}`, server('getServiceAuth'), { auth: ida, params: { aud, ...params } })
  await methodless('without a method', {})
  await methodless('a minute without a method', { exp: now + 55 })
  await methodless('two minutes without a method', { exp: now + 120 })
}

export async function proxying(side: Side): Promise<void> {
  const joe = await side.signUp('joe1')
  const { did } = side.server.appView
  const via = (header: string) => ({ auth: joe, headers: { 'atproto-proxy': header } })
  const say = (name: string, method: string, ask = {}) => side.say(`proxy: ${name}`, method, { auth: joe, ...ask })
  const named = ['#a', did, `${did}#`, `${did}#a#b`, `${did}#a b`, ` ${did}#bsky_appview`, 'nonsense#a', `${NOBODY}#a`]
  for (const header of [...named, `${did}#none`, 'did:web:localhost%3A1#a'])
    await say(`header ${header.replace(did, 'DID')}`, 'com.example.get', via(header))
  await say('good', 'com.example.get', via(`${did}#bsky_appview`))
  await say('good, other service', 'com.example.get', via(`${did}#atproto_labeler`))
  await side.say('proxy: nobody', 'com.example.get', { headers: { 'atproto-proxy': `${did}#bsky_appview` } })
  await say('by default', 'com.example.get', { params: { a: [1, 2] } })
  await say('by default posted', 'com.example.put', { body: { a: 1 } })
  await say('posted empty', 'com.example.put', { verb: 'POST', body: NONE })
  await say('head', 'com.example.get', { verb: 'HEAD' })
  await say('of another verb', 'com.example.put', { verb: 'PUT', body: NONE })
  await say('ozone', 'tools.ozone.moderation.queryStatuses')
  await say('chat without a name', 'chat.bsky.convo.listConvos')
  await say('broken', 'com.example.broken')
  await say('refusing', 'com.example.refuses')
  await say('known verb', 'app.bsky.feed.getPosts', { verb: 'POST', body: NONE })
  await say('known', 'app.bsky.feed.getPosts', { params: { uris: 'at://a' } })
  const owned = [
    'server.getSession',
    'identity.signPlcOperation',
    'repo.createRecord',
    'repo.getRecord',
    'sync.getRepo',
  ]
  for (const name of [...owned, 'server.createAppPassword', 'server.activateAccount'])
    await say(`protected ${name}`, `com.atproto.${name}`, via(`${did}#bsky_appview`))
  await say('timeline', 'app.bsky.feed.getTimeline')
  await side.say('proxy: timeline of nobody', 'app.bsky.feed.getTimeline')
  await say('profile', 'app.bsky.actor.getProfile', { params: { actor: joe.did } })
  await say('preferences elsewhere', 'app.bsky.actor.getPreferences', via(`${did}#other`))
  await say('preferences', 'app.bsky.actor.getPreferences', via(`${did}#bsky_appview`))
  const push = { token: 't', platform: 'ios', appId: 'a' }
  await say('push', 'app.bsky.notification.registerPush', { body: { ...push, serviceDid: did } })
  await say('push to a stranger', 'app.bsky.notification.registerPush', { body: { ...push, serviceDid: NOBODY } })
  const last = side.server.appView.asked.at(-1)
  const { aud, lxm } = last?.token?.payload ?? {}
  side.note('proxy: what the service saw', { method: last?.method, path: last?.path, aud, lxm })
}
