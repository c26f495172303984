// Accounts that arrive with an identity of their own, and what is signed for those that leave; step by step.
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { utf8 } from '../../packages/core/src/bytes.ts'
import { SigningKey } from '../../packages/core/src/crypto.ts'
import { sha256 } from '../../packages/core/src/hash.ts'
import { signServiceJwt } from '../../packages/core/src/jwt.ts'
import { type PlcUpdate, plcDidOf, plcGenesis, plcUpdate, signPlcOperation } from '../../packages/core/src/plc.ts'
import type { Cleanup } from './reference.ts'
import { type Ask, NONE, type Reply, type Side } from './reference-side.ts'

const server = (name: string) => `com.atproto.server.${name}`
const identity = (name: string) => `com.atproto.identity.${name}`
const repo = (name: string) => `com.atproto.repo.${name}`
const CREATE = server('createAccount')
const NOBODY = 'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa'

const keyOf = (name: string) => SigningKey.fromPrivate('k256', sha256(utf8(name)))
const nowSeconds = () => Math.floor(Date.now() / 1000)

interface Identity {
  did: string
  key: SigningKey
  genesis: PlcUpdate
}

async function submit(side: Side, did: string, operation: PlcUpdate): Promise<void> {
  const init = { method: 'POST', body: JSON.stringify(operation), headers: { 'content-type': 'application/json' } }
  const { status } = await fetch(`${side.server.plcUrl}/${did}`, init)
  if (status !== 200) throw new Error(`the directory says ${status}`)
}

/** An identity that lives elsewhere, whose keys are known. */
async function foreigner(side: Side, name: string): Promise<Identity> {
  const key = keyOf(name)
  const account = {
    rotationKeys: [key.didKey],
    signingKey: key.didKey,
    handle: `${name}.example.com`,
    pds: 'https://old.example.com',
  }
  const genesis = signPlcOperation<PlcUpdate>(plcGenesis(account), key)
  const did = plcDidOf(genesis)
  await submit(side, did, genesis)
  side.name(did, `<${name}>`)
  return { did, key, genesis }
}

function token({ did, key }: { did: string; key: SigningKey }, aud: string, claims: Record<string, unknown> = {}) {
  const iat = nowSeconds()
  const all = { iss: did, aud, lxm: CREATE, iat, exp: iat + 60, jti: `${Math.random()}`, ...claims }
  return `Bearer ${signServiceJwt(all as Parameters<typeof signServiceJwt>[0], key)}`
}

export async function moves(side: Side): Promise<void> {
  const mia = await foreigner(side, 'mia')
  await proofs(side, mia)
  const arrived = await arrival(side, mia)
  await settling(side, mia, arrived)
}

/** What does not prove that an identity is one's own. */
async function proofs(side: Side, mia: Identity): Promise<void> {
  const body = { handle: 'mia.test', email: 'mia@example.com', password: 'password', did: mia.did }
  const tryBy = (name: string, auth: string | undefined, more: object = {}) =>
    side.say(`arrive: ${name}`, CREATE, { body: { ...body, ...more }, ...(auth === undefined ? {} : { auth }) })
  const own = (claims: Record<string, unknown> = {}) => token(mia, side.did, claims)
  const noa = await foreigner(side, 'noa')
  await tryBy('without a token', undefined)
  await tryBy('by somebody else', token(noa, side.did))
  await tryBy('for another server', token(mia, 'did:web:other.example'))
  await tryBy('for another method', own({ lxm: server('getSession') }))
  await tryBy('without a method', own({ lxm: undefined }))
  await tryBy('expired', own({ exp: nowSeconds() - 10 }))
  await tryBy('of another key', token({ ...mia, key: noa.key }, side.did))
  await tryBy('of nobody', token({ ...mia, did: NOBODY }, side.did))
  await tryBy('of nobody for nobody', token({ ...mia, did: NOBODY }, side.did), { did: NOBODY })
  await tryBy('of no DID', own({ iss: 'mia' }))
  await tryBy('of nonsense', 'Bearer x.y.z')
  await tryBy('of two parts', 'Bearer x.y')
  await tryBy('by Basic', 'Basic YTpi')
  await tryBy('without an issuer', own({ iss: undefined }))
  await tryBy('an access token', `Bearer ${await side.token({ sub: mia.did, scope: 'com.atproto.access' })}`)
  await tryBy('a foreign handle that is not theirs', own(), { handle: 'mia.example.com' })
  await tryBy('a handle too short', own(), { handle: 'mi.test' })
  await tryBy('no email', own(), { email: undefined })
  await tryBy('a DID of no method', own(), { did: 'did:key:zabc' })
  await tryBy('no DID', own(), { did: 'mia' })
}

async function arrival(side: Side, mia: Identity): Promise<{ accessJwt: string }> {
  const body = { handle: 'Mia.test', email: 'Mia@example.com', password: 'password', did: mia.did }
  const create = (name: string, more: object) =>
    side.say(`arrive: ${name}`, CREATE, { body: { ...body, ...more }, auth: token(mia, side.did) })
  const { json } = await create('good', {})
  await create('again', {})
  await create('again by another name', { handle: 'mia2.test', email: 'mia2@example.com' })
  const auth = `Bearer ${json.accessJwt}`
  const say = (name: string, method: string, ask: Ask = {}) => side.say(`arrived: ${name}`, method, { auth, ...ask })
  await say('session', server('getSession'))
  await say('login', server('createSession'), { body: { identifier: 'mia.test', password: 'password' } })
  await say('status', server('checkAccountStatus'))
  await say('recommended', identity('getRecommendedDidCredentials'))
  for (const method of ['getRepoStatus', 'getLatestCommit', 'listBlobs'])
    await side.say(`arrived: ${method}`, `com.atproto.sync.${method}`, { params: { did: mia.did } })
  await say('latest commit, own', 'com.atproto.sync.getLatestCommit', { params: { did: mia.did } })
  await side.say('arrived: described', repo('describeRepo'), { params: { repo: mia.did } })
  await side.say('arrived: resolved', identity('resolveHandle'), { params: { handle: 'mia.test' } })
  const record = { $type: 'com.example.note' }
  await say('write', repo('createRecord'), { body: { repo: mia.did, collection: 'com.example.note', record } })
  await say('missing blobs', repo('listMissingBlobs'))
  await say('preferences', 'app.bsky.actor.putPreferences', { body: { preferences: [] } })
  await say('timeline', 'app.bsky.feed.getTimeline')
  await say('token', server('getServiceAuth'), { params: { aud: 'did:web:a.example', lxm: 'com.example.get' } })
  await say('new handle', identity('updateHandle'), { body: { handle: 'mia3.test' } })
  await say('invites', server('getAccountInviteCodes'))
  await say('app password', server('createAppPassword'), { body: { name: 'a' } })
  await say('activate too early', server('activateAccount'), { verb: 'POST', body: NONE })
  return json
}

/** The identity comes to say that it lives here, a bit at a time. */
async function settling(side: Side, mia: Identity, { accessJwt }: { accessJwt: string }): Promise<void> {
  const auth = `Bearer ${accessJwt}`
  const activate = (name: string) =>
    side.say(`settle: ${name}`, server('activateAccount'), { auth, verb: 'POST', body: NONE })
  const { json: wish } = await side.ask(identity('getRecommendedDidCredentials'), { auth })
  let last = mia.genesis
  const change = async (to: Parameters<typeof plcUpdate>[1]) => {
    last = signPlcOperation<PlcUpdate>(plcUpdate(last, to), mia.key)
    await submit(side, mia.did, last)
  }
  await change({ services: wish.services })
  await activate('here, other rotation keys')
  await change({ rotationKeys: [...wish.rotationKeys, mia.key.didKey] })
  await activate('here, another signing key')
  await side.say('settle: status before', server('checkAccountStatus'), { auth })
  await change({ verificationMethods: wish.verificationMethods, alsoKnownAs: wish.alsoKnownAs })
  await side.say('settle: status', server('checkAccountStatus'), { auth })
  await activate('done')
  await activate('again')
  await side.say('settle: session', server('getSession'), { auth })
  const record = { $type: 'com.example.note' }
  const body = { repo: mia.did, collection: 'com.example.note', rkey: 'a', record }
  await side.say('settle: write', repo('createRecord'), { auth, body })
}

/** Operations that the server is asked to sign. */
export async function signatures(side: Side): Promise<void> {
  const zoe = await side.signUp('zoe')
  const key = keyOf('zoe recovery').didKey
  const ask = (name: string, method: string, body: unknown = NONE) =>
    side.say(`plc: ${name}`, identity(method), { auth: zoe, verb: 'POST', body })
  const sign = async (name: string, wish: Record<string, unknown>): Promise<Reply> => {
    await side.ask(identity('requestPlcOperationSignature'), { auth: zoe, verb: 'POST', body: NONE })
    const { code } = await side.server.mailbox.next()
    return ask(name, 'signPlcOperation', { token: code, ...wish })
  }
  const { json: wish } = await side.ask(identity('getRecommendedDidCredentials'), { auth: zoe })
  await sign('nothing changed', {})
  await sign('alias', { alsoKnownAs: ['at://zoe.example'] })
  await sign('rotation key', { rotationKeys: [key, ...wish.rotationKeys] })
  await sign('services', {
    services: { atproto_pds: { type: 'AtprotoPersonalDataServer', endpoint: 'https://new.example' } },
  })
  await sign('signing key', { verificationMethods: { atproto: key } })
  await sign('unknown field', { extra: 1 })
  await sign('no list of keys', { rotationKeys: 'x' })
  await sign('no text of alias', { alsoKnownAs: [1] })
  const code = await side.ask(identity('requestPlcOperationSignature'), { auth: zoe, verb: 'POST', body: NONE })
  side.note('plc: asked', [code.status, code.text])
  const mail = await side.server.mailbox.next()
  const { json: password } = await side.ask(server('createAppPassword'), { auth: zoe, body: { name: 'a' } })
  const login = { identifier: 'zoe.test', password: password.password }
  const { json: session } = await side.ask(server('createSession'), { body: login })
  const app = { auth: `Bearer ${session.accessJwt}`, verb: 'POST' } as const
  await side.say('plc: asked by an app', identity('requestPlcOperationSignature'), { ...app, body: NONE })
  await side.say('plc: signed by an app', identity('signPlcOperation'), { ...app, body: { token: mail.code } })
  const { json: own } = await ask('in lower case', 'signPlcOperation', {
    token: mail.code.toLowerCase(),
    rotationKeys: [key, ...wish.rotationKeys],
  })
  await ask('submit by another key', 'submitPlcOperation', { operation: { ...own.operation, sig: 'A'.repeat(86) } })
  await ask('submit without an operation', 'submitPlcOperation', {})
  await ask('submit a text', 'submitPlcOperation', { operation: 'x' })
  await ask('submit a tombstone', 'submitPlcOperation', {
    operation: { type: 'plc_tombstone', prev: own.operation.prev, sig: own.operation.sig },
  })
  await side.say('plc: submit by an app', identity('submitPlcOperation'), { ...app, body: own })
  await ask('submit twice', 'submitPlcOperation', own)
  await side.say('plc: status', server('checkAccountStatus'), { auth: zoe })
  await ask('handle by the key of the server', 'updateHandle', { handle: 'zoe2.test' })
}

/** An account whose identity is a page of the web. */
export async function webIdentities(side: Side, t: Cleanup): Promise<void> {
  let document: object | null = null
  const page = createServer((_request, response) => {
    response.writeHead(document ? 200 : 404, { 'content-type': 'application/json' }).end(JSON.stringify(document ?? {}))
  })
  await new Promise<void>(resolve => page.listen(0, 'localhost', resolve))
  t.after(() => void page.close())
  const did = `did:web:localhost%3A${(page.address() as AddressInfo).port}`
  side.name(did, '<web>')
  const key = keyOf('web')
  const say = (handle: string, didKey: string, pds: string) => {
    document = {
      '@context': ['https://www.w3.org/ns/did/v1'],
      id: did,
      alsoKnownAs: [`at://${handle}`],
      verificationMethod: [
        {
          id: `${did}#atproto`,
          type: 'Multikey',
          controller: did,
          publicKeyMultibase: didKey.slice('did:key:'.length),
        },
      ],
      service: [{ id: '#atproto_pds', type: 'AtprotoPersonalDataServer', serviceEndpoint: pds }],
    }
  }
  say('webby.test', key.didKey, 'https://old.example.com')
  const body = { handle: 'webby.test', email: 'webby@example.com', password: 'password', did }
  const auth = token({ did, key }, side.did)
  const { json } = await side.say('web: arrive', CREATE, { body, auth })
  const own = { auth: `Bearer ${json.accessJwt}` }
  const post = (name: string, method: string, body: unknown = NONE) =>
    side.say(`web: ${name}`, method, { ...own, verb: 'POST', body })
  const { json: wish } = await side.say('web: recommended', identity('getRecommendedDidCredentials'), own)
  await post('activate, another server', server('activateAccount'))
  say('webby.test', key.didKey, wish.services.atproto_pds.endpoint)
  await post('activate, another key', server('activateAccount'))
  document = null
  await post('activate, no page', server('activateAccount'))
  await side.say('web: status, no page', server('checkAccountStatus'), own)
  say('webby.test', wish.verificationMethods.atproto, wish.services.atproto_pds.endpoint)
  await side.say('web: status', server('checkAccountStatus'), own)
  await post('activate', server('activateAccount'))
  await post('handle not in the page', identity('updateHandle'), { handle: 'webby2.test' })
  say('webby2.test', wish.verificationMethods.atproto, wish.services.atproto_pds.endpoint)
  await post('handle', identity('updateHandle'), { handle: 'webby2.test' })
  await post('ask for a code', identity('requestPlcOperationSignature'))
  const { code } = await side.server.mailbox.next()
  await post('sign', identity('signPlcOperation'), { token: code })
  await post('submit', identity('submitPlcOperation'), { operation: { type: 'plc_operation' } })
  await side.say('web: described', repo('describeRepo'), { params: { repo: did } })
}
