// What becomes of accounts, and what operators do, step by step; each step under a name of its own.
import { PNG } from './reference-records.ts'
import { ADMIN, NONE, type Side, type Someone } from './reference-side.ts'

const NOTE = 'com.example.note'
const NOBODY = 'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa'
const OTHER_BLOB = 'bafkreiclp443lavogvhj3d2ob2cxbfuscni2k5jk7bebjzg7khl3esabwq'
const server = (name: string) => `com.atproto.server.${name}`
const repo = (name: string) => `com.atproto.repo.${name}`
const sync = (name: string) => `com.atproto.sync.${name}`
const admin = (name: string) => `com.atproto.admin.${name}`

type Tokens = Record<string, string | undefined>

/** Everything of an account in its state, by everybody. */
async function all(side: Side, state: string, someone: Someone, cid: string, tokens: Tokens): Promise<void> {
  await readsOf(side, state, someone, cid, tokens)
  for (const [who, auth] of Object.entries(tokens)) {
    if (auth !== undefined && who !== 'admin') await writesOf(side, state, someone, who, auth)
  }
  const { did, password, refreshJwt } = someone
  const login = (name: string, body: Record<string, unknown>) =>
    side.say(`${state}: login ${name}`, server('createSession'), { body: { identifier: did, password, ...body } })
  await login('plain', {})
  await login('allowed', { allowTakendown: true })
  await login('wrong', { password: 'x' })
  const refresh = { verb: 'POST', body: NONE, auth: `Bearer ${refreshJwt}` } as const
  await side.say(`${state}: refresh`, server('refreshSession'), refresh)
  const { json } = await side.ask(sync('listRepos'))
  side.note(`${state}: listed`, json.repos.find((entry: { did: string }) => entry.did === did) ?? 'not listed')
  await side.say(`${state}: subject`, admin('getSubjectStatus'), { auth: ADMIN, params: { did } })
  await side.say(`${state}: info`, admin('getAccountInfo'), { auth: ADMIN, params: { did } })
}

async function readsOf(side: Side, state: string, someone: Someone, cid: string, tokens: Tokens): Promise<void> {
  const { did, handle } = someone
  const reads: [string, Record<string, unknown>][] = [
    [sync('getRepo'), { did }],
    [sync('getCheckout'), { did }],
    [sync('getLatestCommit'), { did }],
    [sync('getHead'), { did }],
    [sync('getRepoStatus'), { did }],
    [sync('listBlobs'), { did }],
    [sync('getRecord'), { did, collection: NOTE, rkey: 'none' }],
    [sync('getBlocks'), { did, cids: cid }],
    [sync('getBlob'), { did, cid: OTHER_BLOB }],
    [repo('getRecord'), { repo: did, collection: NOTE, rkey: 'a' }],
    [repo('listRecords'), { repo: did, collection: NOTE }],
    [repo('describeRepo'), { repo: did }],
    ['com.atproto.identity.resolveHandle', { handle }],
    ['com.atproto.identity.getRecommendedDidCredentials', {}],
    [server('getSession'), {}],
    [server('checkAccountStatus'), {}],
    [server('listAppPasswords'), {}],
    [server('getAccountInviteCodes'), {}],
    [server('getServiceAuth'), { aud: 'did:web:a.example', lxm: server('createAccount') }],
    ['app.bsky.actor.getPreferences', {}],
    ['app.bsky.feed.getTimeline', {}],
    ['com.example.get', {}],
  ]
  for (const [method, params] of reads) {
    for (const [who, auth] of Object.entries(tokens)) {
      const reply = await side.ask(method, { params, ...(auth === undefined ? {} : { auth }) })
      const isCar = reply.headers.get('content-type') === 'application/vnd.ipld.car'
      if (isCar) side.note(`${state}: ${method} by ${who}`, 'a CAR')
      else side.keep(`${state}: ${method} by ${who}`, reply)
    }
  }
}

async function writesOf(side: Side, state: string, { did }: Someone, who: string, auth: string): Promise<void> {
  const write = (name: string, method: string, body: unknown, type?: string) =>
    side.say(`${state}: ${name} by ${who}`, method, {
      verb: 'POST',
      auth,
      body,
      ...(type === undefined ? {} : { headers: { 'content-type': type } }),
    })
  const record = { $type: NOTE, a: 1 }
  const at = { repo: did, collection: NOTE }
  await write('create', repo('createRecord'), { ...at, rkey: `${state}-${who}`, record })
  await write('put', repo('putRecord'), { ...at, rkey: 'p', record: { ...record, state, who } })
  await write('delete', repo('deleteRecord'), { ...at, rkey: 'zz' })
  await write('writes', repo('applyWrites'), { repo: did, writes: [] })
  await write('preferences', 'app.bsky.actor.putPreferences', { preferences: [] })
  await write('handle', 'com.atproto.identity.updateHandle', { handle: 'x.example' })
  const subject = { $type: 'com.atproto.admin.defs#repoRef', did }
  const reasonType = 'com.atproto.moderation.defs#reasonAppeal'
  await write('report', 'com.atproto.moderation.createReport', { reasonType, subject })
  await write('proxied', 'com.example.put', {})
  await write('upload', repo('uploadBlob'), PNG, 'image/png')
  await write('import', repo('importRepo'), PNG, 'application/vnd.ipld.car')
  await write('confirm', server('requestEmailConfirmation'), NONE)
  await write('app password', server('createAppPassword'), { name: `${state}-${who}` })
}

export async function states(side: Side): Promise<void> {
  const carol = await side.signUp('carol')
  const dan = await side.signUp('dan')
  const body = { repo: carol.did, collection: NOTE, rkey: 'a', record: { $type: NOTE } }
  const { cid } = (await side.ask(repo('createRecord'), { auth: carol, body })).json
  const tokens = { nobody: undefined, owner: `Bearer ${carol.accessJwt}`, admin: ADMIN, dan: `Bearer ${dan.accessJwt}` }
  const post = (name: string, method: string, body: unknown = NONE, auth: string | Someone = carol) =>
    side.say(name, server(method), { verb: 'POST', auth, body })
  await all(side, 'active', carol, cid, tokens)
  await post('deactivate', 'deactivateAccount', {})
  await all(side, 'deactivated', carol, cid, tokens)
  await post('deactivate again', 'deactivateAccount', { deleteAfter: '2030-01-01T00:00:00Z' })
  await post('activate', 'activateAccount')
  await post('activate again', 'activateAccount')
  const subject = { $type: 'com.atproto.admin.defs#repoRef', did: carol.did }
  const status = (name: string, body: Record<string, unknown>) =>
    side.say(name, admin('updateSubjectStatus'), { auth: ADMIN, body: { subject, ...body } })
  await status('take down', { takedown: { applied: true, ref: 'ref-1' } })
  const login = { identifier: carol.did, password: carol.password, allowTakendown: true }
  const { json: visit } = await side.ask(server('createSession'), { body: login })
  const visitor = `Bearer ${visit.accessJwt}`
  await all(side, 'takendown', carol, cid, { ...tokens, visitor })
  await post('takendown: deactivate', 'deactivateAccount', {}, visitor)
  await post('takendown: activate', 'activateAccount')
  await post('takendown: refresh of the visitor', 'refreshSession', NONE, `Bearer ${visit.refreshJwt}`)
  await status('both', { takedown: { applied: true }, deactivated: { applied: false } })
  await status('lift', { takedown: { applied: false } })
  await status('reactivate', { deactivated: { applied: false } })
  await status('deactivated by the admin', { deactivated: { applied: true } })
  await status('activated by the admin', { deactivated: { applied: false } })
  await status('neither', {})
  await recordTakedown(side, carol, cid)
  const takedown = { applied: true }
  await status('nobody', { subject: { ...subject, did: NOBODY }, takedown })
  await status('something else', { subject: { $type: 'com.example.thing', a: 1 }, takedown })
  const blob = { $type: 'com.atproto.admin.defs#repoBlobRef', did: carol.did, cid: OTHER_BLOB }
  await status('blob that is not', { subject: blob, takedown })
}

async function recordTakedown(side: Side, { did }: Someone, cid: string): Promise<void> {
  const uri = `at://${did}/${NOTE}/a`
  const set = (name: string, body: Record<string, unknown>, of = uri) => {
    const subject = { $type: 'com.atproto.repo.strongRef', uri: of, cid }
    return side.say(`record: ${name}`, admin('updateSubjectStatus'), { auth: ADMIN, body: { subject, ...body } })
  }
  const at = { repo: did, collection: NOTE }
  await set('taken down', { takedown: { applied: true, ref: 'ref-2' } })
  await side.say('record: status', admin('getSubjectStatus'), { auth: ADMIN, params: { uri } })
  await side.say('record: get', repo('getRecord'), { params: { ...at, rkey: 'a' } })
  await side.say('record: list', repo('listRecords'), { params: at })
  await set('let go', { takedown: { applied: false } })
  await side.say('record: get then', repo('getRecord'), { params: { ...at, rkey: 'a' } })
  await set('that is not', { takedown: { applied: true } }, `${uri}zz`)
  await side.say('record: status of none', admin('getSubjectStatus'), { auth: ADMIN, params: { uri: `${uri}qq` } })
}

export async function administration(side: Side): Promise<void> {
  const gil = await side.signUp('gil')
  const { did } = gil
  const call = (name: string, method: string, body: unknown) =>
    side.say(`admin: ${name}`, admin(method), { auth: ADMIN, body })
  const ask = (name: string, method: string, params = {}) =>
    side.say(`admin: ${name}`, admin(method), { auth: ADMIN, params })
  await ask('info', 'getAccountInfo', { did })
  await ask('info of nobody', 'getAccountInfo', { did: NOBODY })
  await ask('infos', 'getAccountInfos', { dids: [did, NOBODY] })
  await ask('subject none', 'getSubjectStatus')
  await ask('subject nobody', 'getSubjectStatus', { did: NOBODY })
  await ask('subject blob alone', 'getSubjectStatus', { blob: OTHER_BLOB })
  await call('email', 'updateAccountEmail', { account: did, email: 'Gil2@example.com' })
  await call('email by handle', 'updateAccountEmail', { account: 'gil.test', email: 'gil3@example.com' })
  await call('email of nobody', 'updateAccountEmail', { account: NOBODY, email: 'gil3@example.com' })
  await call('email taken', 'updateAccountEmail', { account: did, email: 'carol@example.com' })
  await call('email nonsense', 'updateAccountEmail', { account: did, email: 'nonsense' })
  const handles = [
    'gill.test',
    'support.test',
    'gillgillgillgillgill.test',
    'carol.test',
    'gil.example.com',
    'gill.test',
  ]
  for (const [i, handle] of handles.entries())
    await call(`handle ${i} ${handle}`, 'updateAccountHandle', { did, handle })
  await call('handle of nobody', 'updateAccountHandle', { did: NOBODY, handle: 'nobody1.test' })
  await call('password', 'updateAccountPassword', { did, password: 'another' })
  await call('password long', 'updateAccountPassword', { did, password: 'a'.repeat(300) })
  await call('password of nobody', 'updateAccountPassword', { did: NOBODY, password: 'another' })
  const refresh = { verb: 'POST', body: NONE, auth: `Bearer ${gil.refreshJwt}` } as const
  await side.say('admin: refresh after the password', server('refreshSession'), refresh)
  const mail = { recipientDid: did, senderDid: NOBODY, content: '<p>Hello</p>' }
  await call('mail', 'sendEmail', { ...mail, subject: 'Hi there' })
  await call('mail without subject', 'sendEmail', mail)
  await call('mail to nobody', 'sendEmail', { ...mail, recipientDid: NOBODY })
  await invites(side, gil)
  await call('delete nobody', 'deleteAccount', { did: NOBODY })
  await call('delete', 'deleteAccount', { did })
  await ask('info of the deleted', 'getAccountInfo', { did })
}

async function invites(side: Side, gil: Someone): Promise<void> {
  const { did } = gil
  const call = (name: string, method: string, body: unknown) =>
    side.say(`invites: ${name}`, method, { auth: ADMIN, body })
  const list = (name: string, params = {}) =>
    side.say(`invites: ${name}`, admin('getInviteCodes'), { auth: ADMIN, params })
  const own = (name: string, params = {}) =>
    side.say(`invites: ${name}`, server('getAccountInviteCodes'), { auth: gil, params })
  await list('none')
  const { json } = await call('code', server('createInviteCode'), { useCount: 2 })
  await call('code for gil', server('createInviteCode'), { useCount: 1, forAccount: did })
  await call('code for nobody', server('createInviteCode'), { useCount: 1, forAccount: NOBODY })
  await call('code of zero', server('createInviteCode'), { useCount: 0 })
  await call('codes', server('createInviteCodes'), { codeCount: 2, useCount: 1 })
  await call('codes for gil', server('createInviteCodes'), { codeCount: 1, useCount: 1, forAccounts: [did, 'admin'] })
  await own('own')
  await own('own unused', { includeUsed: false, createAvailable: false })
  // Of codes alike any may come first.
  const { json: used } = await side.ask(admin('getInviteCodes'), { auth: ADMIN, params: { sort: 'usage', limit: 1 } })
  side.note('invites: by use', { count: used.codes.length, cursor: used.cursor })
  await list('unknown order', { sort: 'nonsense' })
  await list('bad cursor', { cursor: 'x' })
  await call('disable', admin('disableInviteCodes'), { codes: [json.code], accounts: [] })
  await call('disable gil', admin('disableInviteCodes'), { accounts: [did] })
  await call('disable the admin', admin('disableInviteCodes'), { accounts: ['admin'] })
  await call('disable none', admin('disableInviteCodes'), {})
  await own('own then')
  await call('bar gil', admin('disableAccountInvites'), { account: did, note: 'x' })
  await call('bar nobody', admin('disableAccountInvites'), { account: NOBODY })
  await call('let gil', admin('enableAccountInvites'), { account: did })
}
