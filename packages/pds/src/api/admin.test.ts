import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { test } from 'node:test'
import { decodeCommit, verifyCommit } from '@millisky/core/commit'
import { SigningKey } from '@millisky/core/crypto'
import { signServiceJwt } from '@millisky/core/jwt'
import { type PlcUpdate, plcDidOf, plcGenesis, signPlcOperation } from '@millisky/core/plc'
import type { Did, Handle } from '@millisky/core/syntax'
import { GUESS_DEFAULTS } from '@millisky/server/guesses'
import { kindsOf } from '../testing-log.ts'
import { startMailbox } from '../testing-mail.ts'
import { failure, type NetworkedPds, type Person, signUp, startNetworkedPds } from '../testing-network.ts'
import { basic } from '../testing-pds.ts'

const ADMIN = 'com.atproto.admin'
const SERVER = 'com.atproto.server'
const REPO_REF = `${ADMIN}.defs#repoRef`
const BLOB_REF = `${ADMIN}.defs#repoBlobRef`
const RECORD_REF = 'com.atproto.repo.strongRef'
const ghost = 'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa'
const bearer = (token: string) => ({ authorization: `Bearer ${token}` })
const invalid = (message: string) => [400, 'InvalidRequest', message]
const post = (pds: NetworkedPds, method: string, body: unknown, auth: Record<string, string> = basic()) =>
  pds.post(`${ADMIN}.${method}`, body, null, auth)
const get = (pds: NetworkedPds, method: string, params: Record<string, unknown>, auth = basic()) =>
  pds.get(`${ADMIN}.${method}`, params, auth)
const done = async (pds: NetworkedPds, method: string, body: unknown) => {
  const { status, bytes, json } = await post(pds, method, body)
  assert.deepEqual([status, bytes.length], [200, 0], JSON.stringify(json))
}
const login = (pds: NetworkedPds, identifier: string, password: string) =>
  pds.post(`${SERVER}.createSession`, { identifier, password })
const note = (pds: NetworkedPds, { did, auth }: Person, record: object = { text: 'hi' }) =>
  pds.post('com.atproto.repo.createRecord', { repo: did, collection: 'com.example.note', record }, null, auth)

test('every method asks who is calling', async t => {
  const moderator = SigningKey.fromPrivate('k256', randomBytes(32))
  const genesis = signPlcOperation<PlcUpdate>(
    {
      ...plcGenesis({
        rotationKeys: [moderator.didKey],
        signingKey: moderator.didKey,
        handle: 'mod.example.com',
        pds: 'https://x.com',
      }),
      verificationMethods: { atproto: moderator.didKey, atproto_label: moderator.didKey },
    },
    moderator,
  )
  const mod = plcDidOf(genesis)
  const pds = await startNetworkedPds(t, { PDS_MOD_SERVICE_DID: mod })
  await pds.network.plc.directory.accept(mod, genesis)
  const alice = await signUp(pds, 'alice')
  const token = (iss: string, lxm: string) => {
    const iat = Math.floor(Date.now() / 1000)
    return bearer(signServiceJwt({ iss: iss as Did, aud: pds.names.did, lxm, iat, exp: iat + 60, jti: 'x' }, moderator))
  }
  const all: [method: string, input: object | null, forModerators: boolean][] = [
    ['getAccountInfo', { did: alice.did }, true],
    ['getAccountInfos', { dids: [alice.did] }, true],
    ['searchAccounts', {}, true],
    ['getInviteCodes', {}, true],
    ['getSubjectStatus', { did: alice.did }, true],
    ['updateSubjectStatus', { subject: { $type: REPO_REF, did: alice.did } }, true],
    ['enableAccountInvites', { account: alice.did }, true],
    ['disableAccountInvites', { account: alice.did }, true],
    ['disableInviteCodes', {}, true],
    ['sendEmail', { recipientDid: alice.did, content: 'x', senderDid: mod }, true],
    ['updateAccountEmail', { account: alice.did, email: 'x@example.com' }, false],
    ['updateAccountHandle', { did: alice.did, handle: 'x.test' }, false],
    ['updateAccountPassword', { did: alice.did, password: 'x' }, false],
    ['updateAccountSigningKey', { did: alice.did, signingKey: 'did:key:zx' }, false],
    ['deleteAccount', { did: alice.did }, false],
  ]
  assert.equal(all.length, 15)
  for (const [method, input, forModerators] of all) {
    const isQuery = /^(get|search)/.test(method)
    const call = (auth: Record<string, string>) =>
      isQuery
        ? pds.get(`${ADMIN}.${method}`, input as Record<string, unknown>, auth)
        : pds.post(`${ADMIN}.${method}`, input, null, auth)
    const required = [401, 'AuthenticationRequired', 'Authentication Required']
    for (const auth of [{}, basic('wrong'), { authorization: `Basic ${Buffer.from('root:x').toString('base64')}` }]) {
      assert.deepEqual(failure(await call(auth)), required, method)
    }
    const session = await call(alice.auth)
    assert.equal(session.status, 401, method)
    const lxm = `${ADMIN}.${method}`
    if (!forModerators) {
      assert.deepEqual(failure(await call(token(mod, lxm))), required, method)
      continue
    }
    assert.equal(session.json.error, 'BadJwtType')
    assert.equal((await call(token(mod, lxm))).status, 200, method)
    assert.equal((await call(token(`${mod}#atproto_labeler`, lxm))).status, 200, method)
    assert.equal((await call(token(mod, `${ADMIN}.other`))).json.error, 'BadJwtLexiconMethod')
    assert.deepEqual(failure(await call(token(alice.did, lxm))), [401, 'UntrustedIss', 'Untrusted issuer'])
  }
  const without = await startNetworkedPds(t)
  const nobody = await without.get(`${ADMIN}.searchAccounts`, {}, token(mod, `${ADMIN}.searchAccounts`))
  assert.deepEqual(failure(nobody), [401, 'UntrustedIss', 'Untrusted issuer'])
})

test('who guesses the admin password has to wait, and nobody else does', async t => {
  const pds = await startNetworkedPds(t)
  const search = (password: string | undefined, address: string) =>
    get(pds, 'searchAccounts', {}, { ...basic(password), 'x-forwarded-for': address } as never)
  for (let i = 0; i < GUESS_DEFAULTS.max; i++) {
    assert.equal((await search(`guess ${i}`, '203.0.113.5')).status, 401)
  }
  const late = await search(undefined, '203.0.113.5')
  assert.deepEqual([late.status, late.json.error], [429, 'RateLimitExceeded'])
  assert.equal((await search(undefined, '203.0.113.6')).status, 200)
})

test('accounts are looked at', async t => {
  const pds = await startNetworkedPds(t)
  const alice = await signUp(pds, 'alice')
  const { json: invite } = await pds.post(
    `${SERVER}.createInviteCode`,
    { useCount: 1, forAccount: alice.did },
    null,
    basic(),
  )
  const bob = await signUp(pds, 'bob', { inviteCode: invite.code })
  const { json: info } = await get(pds, 'getAccountInfo', { did: bob.did })
  const { indexedAt, invitedBy, ...rest } = info
  assert.deepEqual(rest, {
    did: bob.did,
    handle: 'bob.test',
    email: 'bob@example.com',
    invites: [],
    invitesDisabled: false,
  })
  assert.ok(Date.parse(indexedAt) > 0)
  assert.deepEqual([invitedBy.code, invitedBy.forAccount, invitedBy.uses[0].usedBy], [invite.code, alice.did, bob.did])
  await pds.lifecycle.deactivate(alice.did as Did)
  const inviter = (await get(pds, 'getAccountInfo', { did: alice.did })).json
  assert.equal(inviter.invites[0].code, invite.code)
  assert.ok(inviter.deactivatedAt)
  assert.deepEqual(failure(await get(pds, 'getAccountInfo', { did: ghost })), [400, 'NotFound', 'Account not found'])
  const several = await get(pds, 'getAccountInfos', { dids: [bob.did, ghost, alice.did, bob.did] })
  assert.deepEqual(
    several.json.infos.map(({ did }: Person) => did),
    [bob.did, alice.did],
  )

  for (const name of ['carol', 'caroline', 'dave_x']) {
    const handle = `${name.replace('_', '-')}.test`
    await signUp(pds, name, { handle })
  }
  const search = async (params: Record<string, unknown>) => {
    const { json } = await get(pds, 'searchAccounts', params)
    return [json.accounts.map(({ email }: Person) => email.split('@')[0]), json.cursor]
  }
  assert.deepEqual(await search({ email: 'CAROL' }), [['carol', 'caroline'], undefined])
  assert.deepEqual(await search({ email: '_' }), [['dave_x'], undefined], 'wildcards are letters')
  assert.deepEqual(await search({ email: 'nobody' }), [[], undefined])
  const [first, cursor] = await search({ limit: 3 })
  const [second, end] = await search({ limit: 3, cursor })
  assert.deepEqual([first, second, end], [['alice', 'bob', 'carol'], ['caroline', 'dave_x'], undefined])
  assert.deepEqual(failure(await get(pds, 'searchAccounts', { cursor: 'x' })), invalid('Malformed cursor'))
})

test('accounts are changed in their stead', async t => {
  const pds = await startNetworkedPds(t, { PDS_SERVICE_HANDLE_DOMAINS: '.test,.pds.example.com' })
  const alice = await signUp(pds, 'alice')
  await signUp(pds, 'bob')
  await done(pds, 'updateAccountEmail', { account: 'alice.test', email: 'New@example.com' })
  assert.equal((await get(pds, 'getAccountInfo', { did: alice.did })).json.email, 'new@example.com')
  const taken = 'This email address is already in use, please use a different email.'
  assert.deepEqual(
    failure(await post(pds, 'updateAccountEmail', { account: alice.did, email: 'bob@example.com' })),
    invalid(taken),
  )
  const unknown = invalid('Account does not exist: nobody.test')
  assert.deepEqual(
    failure(await post(pds, 'updateAccountEmail', { account: 'nobody.test', email: 'x@example.com' })),
    unknown,
  )

  for (const handle of ['admin.test', 'pds.example.com']) {
    await done(pds, 'updateAccountHandle', { did: alice.did, handle })
    assert.deepEqual(pds.network.plc.directory.data(alice.did as Did).alsoKnownAs, [`at://${handle}`])
  }
  assert.deepEqual((await kindsOf(pds, alice.did)).slice(4), ['#identity', '#identity'])
  const held = failure(await post(pds, 'updateAccountHandle', { did: alice.did, handle: 'bob.test' }))
  assert.deepEqual(held, [400, 'HandleNotAvailable', 'Handle already taken: bob.test'])
  assert.deepEqual(
    failure(await post(pds, 'updateAccountHandle', { did: ghost, handle: 'x.test' })),
    invalid('Account not found'),
  )

  await done(pds, 'updateAccountPassword', { did: alice.did, password: 'another' })
  assert.equal((await login(pds, alice.did, alice.password)).status, 401)
  assert.equal((await login(pds, alice.did, 'another')).status, 200)
  const refresh = await pds.post(`${SERVER}.refreshSession`, undefined, null, bearer(alice.refreshJwt))
  assert.equal(refresh.json.error, 'ExpiredToken')
  const long = await post(pds, 'updateAccountPassword', { did: alice.did, password: 'x'.repeat(257) })
  assert.deepEqual(failure(long), invalid('Invalid password length.'))

  await done(pds, 'deleteAccount', { did: alice.did })
  await done(pds, 'deleteAccount', { did: alice.did })
  assert.deepEqual(await kindsOf(pds, alice.did), ['#account'], 'its older events are gone')
  assert.equal((await login(pds, alice.did, 'another')).status, 401)
})

test('an account signs with another key: its DID first, then a commit', async t => {
  const pds = await startNetworkedPds(t)
  const alice = await signUp(pds, 'alice')
  const before = pds.network.plc.directory.data(alice.did as Did)
  const unreserved = SigningKey.fromPrivate('k256', randomBytes(32)).didKey
  const refused = failure(await post(pds, 'updateAccountSigningKey', { did: alice.did, signingKey: unreserved }))
  assert.deepEqual(refused, invalid('The key is not reserved on this server: call reserveSigningKey first'))
  const { signingKey } = (await pds.post(`${SERVER}.reserveSigningKey`, {})).json
  await done(pds, 'updateAccountSigningKey', { did: alice.did, signingKey })
  const after = pds.network.plc.directory.data(alice.did as Did)
  assert.deepEqual(after, { ...before, verificationMethods: { atproto: signingKey } })
  assert.deepEqual((await kindsOf(pds, alice.did)).slice(4), ['#identity', '#commit'])
  const { id } = (await pds.store.accounts.byDid(alice.did as Did))!
  const commit = decodeCommit((await pds.store.repos.commitBlock(id))!.bytes)
  const key = SigningKey.fromPrivate('k256', (await pds.store.repos.state(alice.did as Did))!.key.secret)
  assert.equal(key.didKey, signingKey)
  assert.ok(verifyCommit(commit, key.publicKey))
  assert.equal((await note(pds, alice)).status, 200)
  const again = await post(pds, 'updateAccountSigningKey', { did: alice.did, signingKey })
  assert.equal(again.status, 400, 'a reserved key is given out once')
})

test('invites are listed and closed', async t => {
  let now = Date.parse('2026-08-20T12:00:00Z')
  const pds = await startNetworkedPds(t, {}, { now: () => now })
  const alice = await signUp(pds, 'alice')
  const made: string[] = []
  for (let i = 0; i < 5; i++) {
    now += 1000
    made.push((await pds.post(`${SERVER}.createInviteCode`, { useCount: 5 }, null, basic())).json.code)
  }
  const own = (await pds.post(`${SERVER}.createInviteCode`, { useCount: 1, forAccount: alice.did }, null, basic())).json
    .code
  for (const name of ['bob', 'carol']) await signUp(pds, name, { inviteCode: made[2] })
  await signUp(pds, 'dave', { inviteCode: made[4] })
  const pages = async (sort: string) => {
    const codes: string[] = []
    for (let cursor: string | undefined, i = 0; i < 9; i++) {
      const { json } = await get(pds, 'getInviteCodes', { sort, limit: 2, cursor })
      codes.push(...json.codes.map(({ code }: { code: string }) => code))
      cursor = json.cursor
      if (cursor === undefined) break
    }
    return codes
  }
  assert.deepEqual(new Set((await pages('recent')).slice(0, 2)), new Set([own, made[4]]))
  assert.deepEqual((await pages('recent')).slice(2), [made[3], made[2], made[1], made[0]])
  const used = await pages('usage')
  assert.deepEqual([used.length, used[0], used[1]], [6, made[2], made[4]])
  assert.deepEqual(failure(await get(pds, 'getInviteCodes', { sort: 'x' })), invalid('unknown sort method: x'))
  assert.deepEqual(failure(await get(pds, 'getInviteCodes', { cursor: 'x' })), invalid('Malformed cursor'))

  await done(pds, 'disableInviteCodes', { codes: [made[0]], accounts: [alice.did] })
  for (const inviteCode of [made[0], own]) {
    const wanted = { handle: 'erin.test', email: 'erin@example.com', password: 'x', inviteCode }
    assert.equal((await pds.post(`${SERVER}.createAccount`, wanted)).json.error, 'InvalidInviteCode')
  }
  const admin = failure(await post(pds, 'disableInviteCodes', { accounts: ['admin'] }))
  assert.deepEqual(admin, invalid('cannot disable admin invite codes'))
  const isDisabled = async () => (await get(pds, 'getAccountInfo', { did: alice.did })).json.invitesDisabled
  await done(pds, 'disableAccountInvites', { account: alice.did })
  assert.equal(await isDisabled(), true)
  await done(pds, 'enableAccountInvites', { account: alice.did })
  assert.equal(await isDisabled(), false)
  assert.equal((await post(pds, 'disableAccountInvites', { account: ghost })).status, 400)
})

test('an account is taken down and comes back', async t => {
  const pds = await startNetworkedPds(t)
  const alice = await signUp(pds, 'alice')
  const subject = { $type: REPO_REF, did: alice.did }
  const status = async () => (await get(pds, 'getSubjectStatus', { did: alice.did })).json
  assert.deepEqual(await status(), { subject, takedown: { applied: false }, deactivated: { applied: false } })
  const takedown = { applied: true, ref: 'case 7' }
  const reply = await post(pds, 'updateSubjectStatus', { subject, takedown })
  assert.deepEqual([reply.status, reply.json], [200, { subject, takedown }])
  assert.deepEqual(await status(), { subject, takedown, deactivated: { applied: false } })
  assert.equal((await pds.get('com.atproto.sync.getRepo', { did: alice.did })).json.error, 'RepoTakendown')
  assert.deepEqual(
    await pds.store.sessions.byId(JSON.parse(Buffer.from(alice.refreshJwt.split('.')[1]!, 'base64').toString()).jti),
    null,
  )
  assert.equal((await note(pds, alice)).json.error, 'AccountTakedown')
  assert.deepEqual((await kindsOf(pds, alice.did)).slice(4), ['#account'])
  await post(pds, 'updateSubjectStatus', { subject, takedown: { applied: false } })
  assert.equal((await note(pds, alice)).status, 200)
  const refresh = await pds.post(`${SERVER}.refreshSession`, undefined, null, bearer(alice.refreshJwt))
  assert.equal(refresh.json.error, 'ExpiredToken')
  await post(pds, 'updateSubjectStatus', { subject, takedown: { applied: true } })
  assert.match((await status()).takedown.ref, /^\d{4}-/, 'a reference is made up')
  const both = { subject, takedown: { applied: true }, deactivated: { applied: false } }
  const clash = 'Cannot activate and takedown an account at the same time'
  assert.deepEqual(failure(await post(pds, 'updateSubjectStatus', both)), invalid(clash))
  await post(pds, 'updateSubjectStatus', { subject, takedown: { applied: false }, deactivated: { applied: true } })
  assert.deepEqual((await status()).deactivated, { applied: true })
  assert.equal((await post(pds, 'updateSubjectStatus', { subject, deactivated: { applied: false } })).status, 200)
  assert.deepEqual((await kindsOf(pds, alice.did)).slice(-3), ['#account', '#identity', '#sync'])
  await post(pds, 'updateSubjectStatus', { subject })
  assert.deepEqual((await kindsOf(pds, alice.did)).slice(-2), ['#sync', '#account'], 'told once more')
  const unknown = { subject: { $type: REPO_REF, did: ghost }, takedown }
  assert.deepEqual(failure(await post(pds, 'updateSubjectStatus', unknown)), [400, 'NotFound', 'Subject not found'])
})

test('a record that is taken down is not shown, and its proof stays', async t => {
  const pds = await startNetworkedPds(t)
  const alice = await signUp(pds, 'alice')
  const { uri, cid } = (await note(pds, alice, { text: 'bad' })).json
  const other = (await note(pds, alice, { text: 'good' })).json
  const [, , , collection, rkey] = uri.split('/')
  const subject = { $type: RECORD_REF, uri, cid }
  const read = () => pds.get('com.atproto.repo.getRecord', { repo: alice.did, collection, rkey })
  const list = async () =>
    (await pds.get('com.atproto.repo.listRecords', { repo: alice.did, collection })).json.records.map(
      (record: { uri: string }) => record.uri,
    )
  const takedown = { applied: true, ref: 'case 8' }
  assert.deepEqual((await post(pds, 'updateSubjectStatus', { subject, takedown })).json, { subject, takedown })
  assert.deepEqual((await get(pds, 'getSubjectStatus', { uri })).json, { subject, takedown })
  assert.deepEqual(failure(await read()), [400, 'RecordNotFound', `Could not locate record: ${uri}`])
  assert.deepEqual(await list(), [other.uri])
  const proof = await pds.get('com.atproto.sync.getRecord', { did: alice.did, collection, rkey })
  assert.equal(proof.status, 200)
  const put = { repo: alice.did, collection, rkey, record: { text: 'worse' } }
  assert.equal((await pds.post('com.atproto.repo.putRecord', put, null, alice.auth)).status, 200)
  assert.equal((await read()).json.error, 'RecordNotFound', 'writing there again shows nothing')
  await post(pds, 'updateSubjectStatus', { subject, takedown: { applied: false } })
  assert.equal((await read()).json.value.text, 'worse')
  assert.deepEqual((await list()).length, 2)
  const nowhere = { subject: { ...subject, uri: `at://${alice.did}/${collection}/none` }, takedown }
  assert.deepEqual(failure(await post(pds, 'updateSubjectStatus', nowhere)), [400, 'NotFound', 'Subject not found'])
})

test('a blob that is taken down is not served and not taken again', async t => {
  const pds = await startNetworkedPds(t)
  const alice = await signUp(pds, 'alice')
  const png = Buffer.from('89504e470d0a1a0a0000000d4948445200000001', 'hex')
  const upload = () =>
    pds.post('com.atproto.repo.uploadBlob', png, null, { ...alice.auth, 'content-type': 'image/png' })
  const { blob } = (await upload()).json
  const cid = blob.ref.$link
  await note(pds, alice, { image: blob })
  const read = () => pds.get('com.atproto.sync.getBlob', { did: alice.did, cid })
  assert.equal((await read()).status, 200)
  const subject = { $type: BLOB_REF, did: alice.did, cid }
  const takedown = { applied: true, ref: 'case 9' }
  assert.deepEqual((await post(pds, 'updateSubjectStatus', { subject, takedown })).json, { subject, takedown })
  assert.deepEqual((await get(pds, 'getSubjectStatus', { did: alice.did, blob: cid })).json, { subject, takedown })
  assert.equal((await read()).status, 400)
  assert.deepEqual(failure(await upload()), invalid('Blob has been takendown, cannot re-upload'))
  await post(pds, 'updateSubjectStatus', { subject, takedown: { applied: false } })
  assert.equal((await read()).status, 200)
})

test('a status of nothing in particular', async t => {
  const pds = await startNetworkedPds(t)
  const alice = await signUp(pds, 'alice')
  const cid = 'bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku'
  const missing = [400, 'NotFound', 'Subject not found']
  assert.deepEqual(failure(await get(pds, 'getSubjectStatus', {})), invalid('No provided subject'))
  assert.deepEqual(
    failure(await get(pds, 'getSubjectStatus', { blob: cid })),
    invalid('Must provide a did to request blob state'),
  )
  assert.deepEqual(failure(await get(pds, 'getSubjectStatus', { did: ghost })), missing)
  assert.deepEqual(failure(await get(pds, 'getSubjectStatus', { did: alice.did, blob: cid })), missing)
  assert.deepEqual(failure(await get(pds, 'getSubjectStatus', { uri: `at://${alice.did}/a.b.c/d` })), missing)
  const unknown = await post(pds, 'updateSubjectStatus', {
    subject: { $type: 'com.example.thing' },
    takedown: { applied: true },
  })
  assert.equal(unknown.status, 400)
})

test('moderators write mails', async t => {
  const mailbox = await startMailbox(t)
  const env = { ...mailbox.env, PDS_MODERATION_EMAIL_ADDRESS: 'mods@pds.test' }
  const pds = await startNetworkedPds(t, env)
  const alice = await signUp(pds, 'alice')
  const mail = { recipientDid: alice.did, senderDid: pds.names.did, content: '<p>Please stop.</p>' }
  assert.deepEqual((await post(pds, 'sendEmail', mail)).json, { sent: true })
  const first = await mailbox.next()
  assert.deepEqual([first.subject, first.from, first.to], ['Message via your PDS', 'mods@pds.test', [alice.email]])
  assert.match(first.source, /<p>Please stop\.<\/p>/)
  await post(pds, 'sendEmail', { ...mail, subject: 'Again' })
  assert.equal((await mailbox.next()).subject, 'Again')
  assert.deepEqual(
    failure(await post(pds, 'sendEmail', { ...mail, recipientDid: ghost })),
    invalid('Recipient not found'),
  )
})

test('credentials are revoked until the password is reset', async t => {
  const mailbox = await startMailbox(t)
  const pds = await startNetworkedPds(t, mailbox.env)
  const alice = await signUp(pds, 'alice')
  const app = (await pds.post(`${SERVER}.createAppPassword`, { name: 'app' }, null, alice.auth)).json.password
  const revoke = (auth: Record<string, string>) =>
    pds.post('com.atproto.temp.revokeAccountCredentials', { account: 'alice.test' }, null, auth)
  assert.equal((await revoke(alice.auth)).status, 401)
  assert.equal((await revoke(basic())).status, 200)
  for (const password of [alice.password, app]) assert.equal((await login(pds, alice.did, password)).status, 401)
  const refresh = await pds.post(`${SERVER}.refreshSession`, undefined, null, bearer(alice.refreshJwt))
  assert.equal(refresh.json.error, 'ExpiredToken')
  await pds.post(`${SERVER}.requestPasswordReset`, { email: alice.email })
  const token = (await mailbox.next()).code
  assert.equal((await pds.post(`${SERVER}.resetPassword`, { token, password: 'fresh' })).status, 200)
  assert.equal((await login(pds, alice.did, 'fresh')).status, 200)
})

test('sign-up pages ask whether a handle is free', async t => {
  const pds = await startNetworkedPds(t)
  const alice = await signUp(pds, 'alice')
  const check = (params: Record<string, unknown>) => pds.get('com.atproto.temp.checkHandleAvailability', params)
  const TYPE = 'com.atproto.temp.checkHandleAvailability'
  const free = await check({ handle: 'Bob.test' })
  assert.deepEqual(free.json, { handle: 'bob.test', result: { $type: `${TYPE}#resultAvailable` } })
  const taken = await check({ handle: 'alice.test', email: 'a.smith@example.com', birthDate: '1990-01-01T00:00:00Z' })
  const { $type, suggestions } = taken.json.result
  assert.equal($type, `${TYPE}#resultUnavailable`)
  assert.equal(suggestions.length, 5)
  assert.deepEqual(suggestions.slice(0, 2), [
    { handle: 'asmith.test', method: 'email' },
    { handle: 'alice1990.test', method: 'birth_year' },
  ])
  for (const { handle } of suggestions) {
    const result = (await check({ handle })).json.result
    assert.equal(result.$type, `${TYPE}#resultAvailable`, handle)
    assert.ok((handle as Handle).endsWith('.test'))
  }
  assert.equal((await check({ handle: 'admin.test' })).json.result.$type, `${TYPE}#resultUnavailable`)
  assert.equal((await check({ handle: 'bob.test', email: 'x' })).json.error, 'InvalidEmail')
  assert.equal((await check({ handle: 'bob.example.com' })).json.error, 'UnsupportedDomain')
  const queue = await pds.get('com.atproto.temp.checkSignupQueue', {}, alice.auth)
  assert.deepEqual(queue.json, { activated: true })
  assert.equal((await pds.get('com.atproto.temp.checkSignupQueue')).status, 401)
  for (const scope of ['ref:abc', 'atproto']) {
    const [status, error] = failure(await pds.get('com.atproto.temp.dereferenceScope', { scope }))
    assert.deepEqual([status, error], [400, 'InvalidScopeReference'], scope)
  }
})
