// What people do with their accounts, step by step; each step under a name of its own.
import { ADMIN, NONE, type Reply, type Side, type Someone } from './reference-side.ts'

const server = (name: string) => `com.atproto.server.${name}`
const identity = (name: string) => `com.atproto.identity.${name}`
const admin = (name: string) => `com.atproto.admin.${name}`
const bearer = (token: string) => `Bearer ${token}`

export async function plainPages(side: Side): Promise<void> {
  for (const path of [
    '/xrpc/_health',
    '/robots.txt',
    '/.well-known/atproto-did',
    '/tls-check',
    '/xrpc',
    '/xrpc/',
    '/x',
  ]) {
    await side.say(`GET ${path}`, path)
  }
  await side.say('GET robots headed', '/robots.txt', { verb: 'HEAD' })
  await side.say('health options', '/xrpc/_health', { verb: 'OPTIONS', headers: { origin: 'https://a.example' } })
  await side.say('no NSID', '/xrpc/nonsense')
  await side.say('strange path', '/xrpc/com.atproto.server.describeServer/more')
  await side.say('slash at the end', '/xrpc/com.atproto.server.describeServer/')
  await side.say('NSID in upper case', '/xrpc/COM.atproto.server.describeServer')
  await side.say('unknown method', 'com.example.unheard')
  await side.say('unknown method posted', 'com.example.unheard', { body: {} })
  await side.say('unknown atproto method', 'com.atproto.server.unheard')
  await side.say('a relay method', 'com.atproto.sync.listHosts')
  await side.say('describeServer', server('describeServer'))
  await side.say('unknown parameter', server('describeServer'), { params: { a: 1 } })
  await side.say('proto key itself', '/xrpc/com.atproto.server.describeServer?__proto__=1')
  await side.say('subscribeRepos without a socket', 'com.atproto.sync.subscribeRepos')
}

const EMAILS = ['nonsense', 'a@b', 'a@mailinator.com', 'a b@example.com', 'a@exa mple.com', 'a@-', '@example.com']
const HANDLES = [
  'a.test',
  'ab.test',
  'abc-def-ghi-jkl-mno.test',
  'a.b.test',
  'admin.test',
  'www.test',
  'nasa.test',
  'chink.test',
  'bob.com',
  'bob.invalid',
  'bob.local',
  'bob.onion',
  'bob',
  'bob_b.test',
  '-bob.test',
  'bob-.test',
  'bób.test',
  '.test',
  'test',
  'bob.test.',
  '@bob.test',
  `${'a'.repeat(300)}.test`,
  'localhost',
  'handle.invalid',
  'did:plc:abc',
]

export async function signUps(side: Side): Promise<Someone> {
  const create = (name: string, body: Record<string, unknown>) =>
    side.say(`sign-up: ${name}`, server('createAccount'), { body })
  const good = (handle: string) => ({ handle, email: `${handle}@example.com`, password: 'password' })
  const { json } = await create('good', { handle: 'ann.test', email: 'Ann@Example.com', password: 'ann-password' })
  side.name(json.did, '<ann>')
  await create('taken handle', good('ann.test'))
  await create('taken handle in capitals', { ...good('bob.test'), handle: 'ANN.test' })
  await create('taken email', { ...good('bob.test'), email: 'ann@example.com' })
  await create('taken email in capitals', { ...good('bob.test'), email: 'ANN@EXAMPLE.COM' })
  await create('without email', { handle: 'bob.test', password: 'password' })
  await create('empty email', { ...good('bob.test'), email: '' })
  for (const email of EMAILS) await create(`email ${email}`, { ...good('bob.test'), email })
  for (const handle of HANDLES) await create(`handle ${handle.slice(0, 40)}`, { ...good('x'), handle })
  await create('password too long', { ...good('bob.test'), password: 'a'.repeat(257) })
  await create('plcOp', { ...good('bob.test'), plcOp: {} })
  await create('bad recovery key', { ...good('bob.test'), recoveryKey: 'did:key:nonsense' })
  await create('somebody else', { ...good('bob.test'), did: 'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa' })
  await create('a did:web', { ...good('bob.test'), did: 'did:web:bob.example' })
  const free = await create('without password', { handle: 'nopass.test', email: 'nopass@example.com' })
  side.name(free.json.did, '<nopass>')
  return { name: 'ann', handle: 'ann.test', email: 'ann@example.com', password: 'ann-password', ...json }
}

const partOf = (token: string, i: number) => JSON.parse(Buffer.from(token.split('.')[i]!, 'base64url').toString())

function shapeOf(token: string) {
  const { iat, exp, jti, ...claims } = partOf(token, 1)
  return { header: partOf(token, 0), ...claims, seconds: exp - iat, jti: typeof jti }
}

export async function sessions(side: Side, ann: Someone): Promise<void> {
  const { password } = ann
  const login = (name: string, body: Record<string, unknown>) =>
    side.say(`login: ${name}`, server('createSession'), { body })
  const refresh = (name: string, token: string) =>
    side.say(`session: ${name}`, server('refreshSession'), { verb: 'POST', body: NONE, auth: bearer(token) })
  const end = (name: string, token: string) =>
    side.say(`session: ${name}`, server('deleteSession'), { verb: 'POST', body: NONE, auth: bearer(token) })
  const { json } = await login('by handle', { identifier: 'ann.test', password })
  await login('by handle in capitals', { identifier: 'ANN.test', password })
  await login('by DID', { identifier: ann.did, password })
  await login('by email', { identifier: 'Ann@example.com', password })
  await login('with @', { identifier: '@ann.test', password })
  await login('wrong password', { identifier: 'ann.test', password: 'x' })
  await login('empty password', { identifier: 'ann.test', password: '' })
  await login('nobody', { identifier: 'nobody.test', password: 'x' })
  await login('nonsense', { identifier: ' ', password: 'x' })
  await login('long password', { identifier: 'ann.test', password: 'x'.repeat(513) })
  await login('of no password', { identifier: 'nopass.test', password: '' })
  await side.say('session: get', server('getSession'), { auth: ann })
  await side.say('session: head', server('getSession'), { verb: 'HEAD', auth: ann })
  const first = await refresh('refresh', json.refreshJwt)
  const second = await refresh('refresh again', json.refreshJwt)
  side.note('session: the same', partOf(first.json.refreshJwt, 1).jti === partOf(second.json.refreshJwt, 1).jti)
  side.note('session: access token', shapeOf(first.json.accessJwt))
  side.note('session: refresh token', shapeOf(first.json.refreshJwt))
  await end('end', first.json.refreshJwt)
  await end('end again', first.json.refreshJwt)
  await refresh('refresh after the end', first.json.refreshJwt)
  await side.say('session: access after the end', server('getSession'), { auth: bearer(first.json.accessJwt) })
}

export async function appPasswords(side: Side, ann: Someone): Promise<void> {
  const create = (name: string, body: Record<string, unknown>, auth: string | Someone = ann) =>
    side.say(`app password: ${name}`, server('createAppPassword'), { body, auth })
  const login = (password: string) => ({ body: { identifier: 'ann.test', password } })
  const { json } = await create('made', { name: 'phone' })
  await create('twice', { name: 'phone' })
  const privileged = await create('privileged', { name: 'tablet', privileged: true })
  await create('empty name', { name: '' })
  await side.say('app passwords', server('listAppPasswords'), { auth: ann })
  await create('long name', { name: 'a'.repeat(300) })
  const session = await side.say('app password: session', server('createSession'), login(json.password))
  const app = bearer(session.json.accessJwt)
  await create('by an app', { name: 'more' }, app)
  const strong = await side.ask(server('createSession'), login(privileged.json.password))
  for (const [who, auth] of Object.entries({ app, strong: bearer(strong.json.accessJwt) })) {
    for (const lxm of ['chat.bsky.convo.listConvos', server('createAccount'), 'app.bsky.feed.getTimeline']) {
      const params = { aud: 'did:web:a.example', lxm }
      await side.say(`app password: token for ${lxm} by ${who}`, server('getServiceAuth'), { auth, params })
    }
    const headers = { 'atproto-proxy': `${side.server.appView.did}#bsky_appview` }
    await side.say(`app password: chat by ${who}`, 'chat.bsky.convo.listConvos', { auth, headers })
  }
  for (const time of ['once', 'twice'])
    await side.say(`app password: revoked ${time}`, server('revokeAppPassword'), { auth: ann, body: { name: 'phone' } })
  const after = { verb: 'POST', body: NONE, auth: bearer(session.json.refreshJwt) } as const
  await side.say('app password: refresh after', server('refreshSession'), after)
  await side.say('app password: access after', server('getSession'), { auth: app })
}

/** Each step of the flows that mails go with. */
class MailFlow {
  readonly #side: Side

  constructor(side: Side) {
    this.#side = side
  }

  async mail(name: string): Promise<string> {
    const { subject, from, to, code } = await this.#side.server.mailbox.next()
    this.#side.note(`mail: ${name}`, { subject, from, to, shape: code.replace(/[A-Z2-7]/g, 'X') })
    return code
  }

  ask(name: string, method: string, auth: Someone | null, body?: unknown): Promise<Reply> {
    const ask = { verb: 'POST', body: body ?? NONE, ...(auth ? { auth } : {}) } as const
    return this.#side.say(`mails: ${name}`, server(method), ask)
  }
}

export async function mails(side: Side, ann: Someone): Promise<void> {
  const flow = new MailFlow(side)
  await flow.ask('update unconfirmed: ask', 'requestEmailUpdate', ann)
  await flow.ask('confirm: ask', 'requestEmailConfirmation', ann)
  const confirm = await flow.mail('confirm')
  await flow.ask('confirm: wrong code', 'confirmEmail', ann, { email: ann.email, token: 'AAAAA-BBBBB' })
  await flow.ask('confirm: other mailbox', 'confirmEmail', ann, { email: 'x@example.com', token: confirm })
  await flow.ask('confirm: done', 'confirmEmail', ann, { email: ann.email, token: confirm.toLowerCase() })
  await flow.ask('confirm: twice', 'confirmEmail', ann, { email: ann.email, token: confirm })
  await side.say('mails: session then', server('getSession'), { auth: ann })
  await flow.ask('update: ask', 'requestEmailUpdate', ann)
  const update = await flow.mail('update')
  await flow.ask('update: no code', 'updateEmail', ann, { email: 'ann2@example.com' })
  await flow.ask('update: wrong code', 'updateEmail', ann, { email: 'ann2@example.com', token: 'AAAAA-BBBBB' })
  await flow.ask('update: not an address', 'updateEmail', ann, { email: 'nonsense', token: update })
  await flow.ask('update: disposable', 'updateEmail', ann, { email: 'a@mailinator.com', token: update })
  await flow.ask('update: done', 'updateEmail', ann, { email: 'Ann2@example.com', token: update })
  await flow.ask('update: twice', 'updateEmail', ann, { email: 'ann3@example.com', token: update })
  await side.say('mails: session after', server('getSession'), { auth: ann })
  const eve = await side.signUp('eve')
  await flow.ask('update: taken', 'updateEmail', ann, { email: 'eve@example.com' })
  await forget(side, flow, ann)
  await leave(side, flow, eve)
}

async function forget(side: Side, flow: MailFlow, ann: Someone): Promise<void> {
  await flow.ask('reset: ask', 'requestPasswordReset', null, { email: 'Ann2@example.com' })
  const token = await flow.mail('reset')
  await flow.ask('reset: wrong code', 'resetPassword', null, { token: 'AAAAA-BBBBB', password: 'new' })
  await flow.ask('reset: long password', 'resetPassword', null, { token, password: 'a'.repeat(257) })
  await flow.ask('reset: done', 'resetPassword', null, { token, password: 'new-password' })
  await flow.ask('reset: twice', 'resetPassword', null, { token, password: 'new-password' })
  await flow.ask('reset: old password', 'createSession', null, { identifier: 'ann.test', password: ann.password })
  ann.password = 'new-password'
  await flow.ask('reset: new password', 'createSession', null, { identifier: 'ann.test', password: ann.password })
  const refresh = { verb: 'POST', body: NONE, auth: bearer(ann.refreshJwt) } as const
  await side.say('mails: reset: refresh of before', server('refreshSession'), refresh)
  await side.say('mails: reset: access of before', server('getSession'), { auth: ann })
}

async function leave(side: Side, flow: MailFlow, eve: Someone): Promise<void> {
  const { did, password } = eve
  await flow.ask('delete: ask', 'requestAccountDelete', eve)
  const token = await flow.mail('delete')
  const remove = (name: string, body: Record<string, unknown>) =>
    flow.ask(`delete: ${name}`, 'deleteAccount', null, { did, password, token, ...body })
  await remove('wrong password', { password: 'x' })
  await remove('long password', { password: 'x'.repeat(600) })
  await remove('wrong code', { token: 'AAAAA-BBBBB' })
  await remove('nobody', { did: 'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa' })
  await remove('done', {})
  await remove('twice', {})
  const gone = (method: string, ask: object) => side.say(`gone: ${method}`, method, ask)
  await gone(server('getSession'), { auth: eve })
  await gone(server('refreshSession'), { verb: 'POST', body: NONE, auth: bearer(eve.refreshJwt) })
  const write = { repo: did, collection: 'com.example.note', record: { $type: 'com.example.note' } }
  await gone('com.atproto.repo.createRecord', { auth: eve, body: write })
  await gone('app.bsky.actor.getPreferences', { auth: eve })
  await gone(server('checkAccountStatus'), { auth: eve })
  await gone(server('createAppPassword'), { auth: eve, body: { name: 'x' } })
  await gone('app.bsky.feed.getTimeline', { auth: eve })
  await gone(server('getServiceAuth'), { auth: eve, params: { aud: 'did:web:a.example' } })
  for (const method of ['getRepo', 'getLatestCommit', 'getRepoStatus', 'listBlobs', 'getHead'])
    await gone(`com.atproto.sync.${method}`, { params: { did } })
}

/** Where nobody gets in without a code, and accounts earn codes. */
export async function invitations(side: Side): Promise<void> {
  const sign = (name: string, more: Record<string, unknown>, front = name.replaceAll(' ', '').slice(0, 18)) => {
    const wanted = { handle: `${front}.test`, email: `${front}@example.com`, password: 'password' }
    return side.say(`invited: ${name}`, server('createAccount'), { body: { ...wanted, ...more } })
  }
  const make = async (body: object) => (await side.ask(server('createInviteCode'), { auth: ADMIN, body })).json.code
  const inviteCode = await make({ useCount: 1 })
  await side.say('invited: describeServer', server('describeServer'))
  await sign('without', {})
  await sign('empty code', { inviteCode: '' })
  await sign('nonsense', { inviteCode: 'nonsense' })
  await sign('nonsense and no email', { inviteCode: 'nonsense', email: undefined })
  await sign('nonsense and a bad handle', { inviteCode: 'nonsense' }, 'x')
  const { json } = await sign('with a code', { inviteCode }, 'frieda')
  side.name(json.did, '<first>')
  const auth = bearer(json.accessJwt)
  await sign('used up', { inviteCode })
  const second = await make({ useCount: 3, forAccount: json.did })
  await sign('from somebody', { inviteCode: second })
  await side.ask(admin('disableInviteCodes'), { auth: ADMIN, body: { codes: [second] } })
  await sign('disabled', { inviteCode: second })
  await side.say('invited: own codes', server('getAccountInviteCodes'), { auth, params: { createAvailable: false } })
  await new Promise(resolve => setTimeout(resolve, 1_100))
  const { json: made } = await side.ask(server('getAccountInviteCodes'), { auth })
  const earned = (made.codes as { createdBy: string }[]).filter(({ createdBy }) => createdBy === json.did)
  side.note('invited: earned', earned.length > 0)
  const third = await make({ useCount: 3, forAccount: json.did })
  const subject = { $type: 'com.atproto.admin.defs#repoRef', did: json.did }
  await side.ask(admin('updateSubjectStatus'), { auth: ADMIN, body: { subject, takedown: { applied: true } } })
  await sign('from one taken down', { inviteCode: third })
}

/** The numbers that clients are told, and what they hear beyond. */
export async function limits(side: Side): Promise<void> {
  const told = (name: string, { status, headers, json }: Reply) => {
    const of = (header: string) => headers.get(`ratelimit-${header}`)
    const kept = { status, error: json?.error, limit: of('limit'), remaining: of('remaining'), policy: of('policy') }
    side.note(`limits: ${name}`, { ...kept, reset: typeof of('reset'), retry: headers.has('retry-after') })
  }
  const amy = await side.signUp('amy')
  const { did, password, email } = amy
  const ask = async (name: string, method: string, body?: object, auth?: Someone) =>
    told(name, await side.ask(method, { verb: 'POST', body: body ?? NONE, ...(auth ? { auth } : {}) }))
  const login = () => side.ask(server('createSession'), { body: { identifier: 'amy.test', password } })
  told('describeServer', await side.ask(server('describeServer')))
  told('login', await login())
  for (let i = 0; i < 28; i++) await login()
  told('login, the last', await login())
  told('login, too often', await login())
  await ask('reset', server('resetPassword'), { token: 'a', password: 'b' })
  await ask('reset mail', server('requestPasswordReset'), { email })
  await ask('delete', server('deleteAccount'), { did, password: 'x', token: 'a' })
  for (const method of ['requestAccountDelete', 'requestEmailConfirmation', 'requestEmailUpdate'])
    await ask(method, server(method), undefined, amy)
  const note = { repo: did, collection: 'com.example.note', rkey: 'a' }
  const record = { $type: 'com.example.note' }
  await ask('create', 'com.atproto.repo.createRecord', { ...note, record }, amy)
  await ask('put', 'com.atproto.repo.putRecord', { ...note, record: { ...record, a: 1 } }, amy)
  await ask('delete record', 'com.atproto.repo.deleteRecord', note, amy)
  const headers = { 'content-type': 'text/plain' }
  told('upload', await side.ask('com.atproto.repo.uploadBlob', { auth: amy, body: 'hello', headers }))
  told('export', await side.ask('com.atproto.sync.getRepo', { params: { did } }))
  told('by a token that will not do', await side.ask(server('getSession'), { auth: 'Bearer x' }))
  told('unknown method', await side.ask('com.example.unheard'))
  const rename = { auth: amy, body: { handle: 'amy.test' } }
  told('handle', await side.ask(identity('updateHandle'), rename))
  for (let i = 0; i < 9; i++) await side.ask(identity('updateHandle'), rename)
  told('handle, too often', await side.ask(identity('updateHandle'), rename))
}
