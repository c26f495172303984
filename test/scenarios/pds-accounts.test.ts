// How accounts come, change and go, as their owners, movers and readers of the stream see it. The numbers are those of the list of
// behaviours.
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { after, test } from 'node:test'
import { SigningKey } from '@millisky/core/crypto'
import type { Frame } from '@millisky/core/event'
import { signServiceJwt } from '@millisky/core/jwt'
import { type PlcUpdate, plcDidOf, plcGenesis, plcUpdate, signPlcOperation } from '@millisky/core/plc'
import type { Did } from '@millisky/core/syntax'
import { framesOf } from '@millisky/pds/testing-log'
import { startMailbox } from '@millisky/pds/testing-mail'
import { failure, type Person, signUp, startNetwork, startNetworkedPds } from '@millisky/pds/testing-network'
import { type Answer, basic } from '@millisky/pds/testing-pds'

const SERVER = 'com.atproto.server'
const IDENTITY = 'com.atproto.identity'
const ADMIN = 'com.atproto.admin'
const CREATE = `${SERVER}.createAccount`
const INTERVAL_MS = 100_000
const PNG = Buffer.from(
  'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==',
  'base64',
)

let now = Date.parse('2026-08-20T12:00:00Z')
const clock = { now: () => now }
const network = await startNetwork({ after }, clock.now)
const mailbox = await startMailbox({ after })
const operatorKey = newKey().didKey
const txt = new Map<string, string>()
const resolveTxt = async (name: string) => (txt.has(name) ? [[`did=${txt.get(name)}`]] : [])
const pds = await startNetworkedPds(
  { after },
  { ...mailbox.env, PDS_RECOVERY_DID_KEY: operatorKey },
  { network, ...clock, resolveTxt },
)
const invited = await startNetworkedPds(
  { after },
  {
    PDS_HOSTNAME: 'pds.example.com',
    PDS_SERVICE_HANDLE_DOMAINS: '.test',
    PDS_INVITE_REQUIRED: 'true',
    PDS_INVITE_INTERVAL: String(INTERVAL_MS),
  },
  { network, ...clock },
)

function newKey(): SigningKey {
  return SigningKey.fromPrivate('k256', randomBytes(32))
}

const create = (wanted: Record<string, unknown>, headers = {}, at = pds) => at.post(CREATE, wanted, null, headers)
const wanted = (name: string, more: Record<string, unknown> = {}) => ({
  handle: `${name}.test`,
  email: `${name}@example.com`,
  password: `${name}-password`,
  ...more,
})
const post = (person: Pick<Person, 'auth'>, method: string, body?: unknown) => pds.post(method, body, null, person.auth)
const said = ({ status, json }: Answer) => (status === 200 ? 200 : [status, json.error, json.message])
const invalid = (message: string) => [400, 'InvalidRequest', message]

/** The events about an account from a seq on: kind and what a consumer acts on. */
async function told(did: string, since = 0): Promise<unknown[]> {
  const about = (await framesOf(pds)).filter(({ body }) => body.did === did || body.repo === did)
  const word = ({ t, body }: Frame) => {
    if (t === '#account') return body.active ? '#account' : `#account ${body.status}`
    return t === '#identity' ? `#identity ${body.handle}` : t
  }
  return about.filter(({ body }) => Number(body.seq) > since).map(word)
}

/** An identity elsewhere whose key is known, with tokens of its own. */
async function mover(name: string) {
  const key = newKey()
  const account = {
    rotationKeys: [key.didKey],
    signingKey: key.didKey,
    handle: `${name}.example.com`,
    pds: 'https://old.example.com',
  }
  const genesis = signPlcOperation<PlcUpdate>(plcGenesis(account), key)
  const did = plcDidOf(genesis)
  await network.plc.directory.accept(did, genesis)
  const token = (claims: Record<string, unknown> = {}, by = key) => {
    const iat = Math.floor(now / 1000)
    const all = {
      iss: did,
      aud: pds.names.did,
      lxm: CREATE,
      iat,
      exp: iat + 60,
      jti: randomBytes(8).toString('hex'),
      ...claims,
    }
    return { authorization: `Bearer ${signServiceJwt(all as Parameters<typeof signServiceJwt>[0], by)}` }
  }
  let last = genesis
  const change = async (to: Parameters<typeof plcUpdate>[1]) => {
    last = signPlcOperation<PlcUpdate>(plcUpdate(last, to), key)
    await network.plc.directory.accept(did, last)
  }
  return { did, key, token, change }
}

test('B38 where nothing is set, a server describes itself by less', async () => {
  const { json } = await pds.get(`${SERVER}.describeServer`)
  assert.deepEqual(json, {
    did: pds.names.did,
    availableUserDomains: ['.test'],
    inviteCodeRequired: false,
    blobUploadLimit: 104_857_600,
    links: {},
    contact: {},
  })
  assert.equal((await invited.get(`${SERVER}.describeServer`)).json.inviteCodeRequired, true)
})

test('B39 what is wrong with a sign-up has a name, and of several faults the first is told', async () => {
  const taken = await signUp(pds, 'taken')
  const unsupported = 'This email address is not supported, please use a different email.'
  const cases: [Record<string, unknown>, unknown[]][] = [
    [{ email: undefined }, invalid('Email is required')],
    [{ email: '' }, invalid('Email is required')],
    ...['nonsense', 'a@b', 'a@mailinator.com', 'a b@example.com'].map(
      email => [{ email }, invalid(unsupported)] as [Record<string, unknown>, unknown[]],
    ),
    [{ handle: 'ab.test' }, [400, 'InvalidHandle', 'Handle too short']],
    [{ handle: `${'a'.repeat(19)}.test` }, [400, 'InvalidHandle', 'Handle too long']],
    [{ handle: 'a.bcd.test' }, [400, 'InvalidHandle', 'Invalid characters in handle']],
    [{ handle: 'bob.local' }, [400, 'InvalidHandle', 'Handle TLD is invalid or disallowed']],
    [{ handle: 'admin.test' }, [400, 'HandleNotAvailable', 'Reserved handle']],
    [{ handle: 'bob.example.com' }, [400, 'UnsupportedDomain', 'Not a supported handle domain']],
    [{ handle: 'taken.test' }, invalid('Handle already taken: taken.test')],
    [{ handle: 'TAKEN.test' }, invalid('Handle already taken: taken.test')],
    [{ email: 'Taken@example.com' }, invalid('Email already taken: Taken@example.com')],
    [{ password: 'a'.repeat(257) }, invalid('Password too long. Maximum length is 256 characters.')],
    [{ plcOp: {} }, invalid('Unsupported input: "plcOp"')],
    [{ inviteCode: 'nonsense' }, [400, 'InvalidInviteCode', 'Provided invite code not available']],
    [{ did: taken.did }, [401, 'AuthenticationRequired', `Missing auth to create account with did: ${taken.did}`]],
    [{ email: undefined, handle: 'ab.test' }, invalid('Email is required')],
    [{ email: 'taken@example.com', handle: 'taken.test' }, invalid('Handle already taken: taken.test')],
  ]
  const before = pds.store.log.head
  for (const [more, expected] of cases)
    assert.deepEqual(said(await create(wanted('bob', more))), expected, JSON.stringify(more))
  assert.deepEqual([await pds.store.accounts.byHandle('bob.test' as never), pds.store.log.head], [null, before])
  const none = [400, 'InvalidInviteCode', 'No invite code provided']
  for (const more of [{}, { inviteCode: '' }, { email: undefined, handle: 'x' }])
    assert.deepEqual(
      said(await create(wanted('bob', more), {}, invited)),
      more.handle ? invalid('Invalid handle (got "x") at $.handle') : none,
    )
})

test('B40 one who moves here proves it by a token for this very method, and comes in silence', async () => {
  const max = await mover('max')
  const other = await mover('other')
  const body = wanted('max', { did: max.did })
  const before = pds.store.log.head
  const missing = [401, 'AuthenticationRequired', `Missing auth to create account with did: ${max.did}`]
  const refusals: [Record<string, string>, unknown[]][] = [
    [{}, missing],
    [other.token(), missing],
    [max.token({ aud: 'did:web:other.example' }), [401, 'BadJwtAudience', 'jwt audience does not match service did']],
    [
      max.token({ lxm: undefined }),
      [401, 'BadJwtLexiconMethod', `missing jwt lexicon method ("lxm"). must match: ${CREATE}`],
    ],
    [
      max.token({ lxm: `${SERVER}.getSession` }),
      [401, 'BadJwtLexiconMethod', `bad jwt lexicon method ("lxm"). must match: ${CREATE}`],
    ],
    [max.token({ exp: Math.floor(now / 1000) - 1 }), [401, 'JwtExpired', 'jwt expired']],
    [max.token({}, other.key), [401, 'BadJwtSignature', 'jwt signature does not match jwt issuer']],
  ]
  for (const [headers, expected] of refusals) assert.deepEqual(said(await create(body, headers)), expected)
  const foreign = await create({ ...body, handle: 'max.example.com' }, max.token())
  assert.deepEqual(said(foreign), invalid('External handle did not resolve to DID'))
  const made = await create(body, max.token({ aud: `${pds.names.did}#atproto_pds` }))
  assert.equal(made.status, 200, JSON.stringify(made.json))
  assert.deepEqual([made.json.did, made.json.handle, made.json.didDoc.id], [max.did, 'max.test', max.did])
  assert.equal(pds.store.log.head, before, 'nobody hears of it')
  const auth = { authorization: `Bearer ${made.json.accessJwt}` }
  const session = (await pds.get(`${SERVER}.getSession`, {}, auth)).json
  assert.deepEqual([session.active, session.status], [false, 'deactivated'])
  const { did } = max
  assert.deepEqual((await pds.get('com.atproto.sync.getRepoStatus', { did })).json, {
    did,
    active: false,
    status: 'deactivated',
  })
  const note = { repo: did, collection: 'com.example.note', record: { $type: 'com.example.note' } }
  assert.deepEqual(said(await post({ auth }, 'com.atproto.repo.createRecord', note)), [
    401,
    'AccountDeactivated',
    'Account is deactivated',
  ])
  assert.deepEqual(said(await create(wanted('max2', { did }), max.token())), [
    400,
    'AlreadyExists',
    'Repo already exists',
  ])
  assert.deepEqual(said(await create(body, max.token())), [400, 'AlreadyExists', 'Repo already exists'])
  const twin = await mover('twin')
  const both = ['twin', 'twin2'].map(name => create(wanted(name, { did: twin.did }), twin.token()))
  const outcomes = (await Promise.all(both)).map(({ status, json }) => (status === 200 ? 200 : json.error))
  assert.deepEqual(outcomes.sort(), [200, 'AlreadyExists'], 'of two at once one comes')
})

test('B41 a new identity has the keys of user, operator and server in this order, and ends if it comes to nothing', async () => {
  const recoveryKey = SigningKey.fromPrivate('p256', randomBytes(32)).didKey
  const { json } = await create(wanted('nina', { recoveryKey }))
  const serverKey = network.plc.directory.data((await signUp(pds, 'nils')).did as Did).rotationKeys[1]
  const data = network.plc.directory.data(json.did)
  assert.deepEqual(data.rotationKeys, [recoveryKey, operatorKey, serverKey])
  assert.deepEqual(data.alsoKnownAs, ['at://nina.test'])
  assert.deepEqual(data.services, { atproto_pds: { type: 'AtprotoPersonalDataServer', endpoint: pds.names.publicUrl } })
  const { accounts } = pds.store
  const { create: insert } = accounts
  accounts.create = async () => {
    throw new Error('the disk is full')
  }
  const asked = network.asked.length
  try {
    assert.equal((await create(wanted('noel'))).status, 500)
  } finally {
    accounts.create = insert
  }
  const posts = network.asked.slice(asked).filter(line => line.startsWith('POST'))
  const did = posts[0]!.slice('POST /'.length)
  assert.deepEqual(posts, [`POST /${did}`, `POST /${did}`])
  assert.throws(() => network.plc.directory.data(did as Did), /DID not available/)
  network.interfere = (_url, { method }) => (method === 'POST' ? { status: 500 } : undefined)
  assert.equal((await create(wanted('noel'))).status, 502)
  network.interfere = null
  assert.equal((await create(wanted('noel'))).status, 200, 'the name is still free')
})

test('B42 B45 B51 each station of a life is told in order, all at once, and in the end only that it ended', async () => {
  const person = await signUp(pds, 'olga')
  const { did } = person
  const opening = ['#identity olga.test', '#account', '#commit', '#sync']
  assert.deepEqual(await told(did), opening)
  let seen = pds.store.log.head
  const since = async () => {
    const events = await told(did, seen)
    seen = pds.store.log.head
    return events
  }
  await post(person, `${SERVER}.deactivateAccount`, {})
  assert.deepEqual(await since(), ['#account deactivated'])
  await post(person, `${SERVER}.deactivateAccount`, {})
  assert.deepEqual(await since(), ['#account deactivated'])
  await post(person, `${SERVER}.activateAccount`)
  assert.deepEqual(await since(), ['#account', '#identity olga.test', '#sync'])
  await post(person, `${IDENTITY}.updateHandle`, { handle: 'Olga2.test' })
  await post(person, `${IDENTITY}.updateHandle`, { handle: 'olga2.test' })
  assert.deepEqual(await since(), ['#identity olga2.test', '#identity olga2.test'])
  const subject = { $type: 'com.atproto.admin.defs#repoRef', did }
  for (const applied of [true, false])
    await pds.post(`${ADMIN}.updateSubjectStatus`, { subject, takedown: { applied } }, null, basic())
  assert.deepEqual(await since(), ['#account takendown', '#account'])

  await post(person, `${SERVER}.requestAccountDelete`)
  const { code, subject: title } = await mailbox.next()
  assert.equal(title, 'Account Deletion Requested')
  const remove = (more: object) =>
    pds.post(`${SERVER}.deleteAccount`, { did, password: person.password, token: code, ...more })
  assert.deepEqual(said(await remove({ password: 'x' })), [401, 'AuthenticationRequired', 'Invalid did or password'])
  assert.deepEqual(said(await remove({ token: 'AAAAA-BBBBB' })), [400, 'InvalidToken', 'Token is invalid'])
  assert.deepEqual(said(await remove({ did: 'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa' })), invalid('account not found'))
  assert.equal((await remove({})).status, 200)
  assert.deepEqual(said(await remove({})), invalid('account not found'))
  assert.deepEqual(await told(did), ['#account deleted'], 'what was told before is gone')
  assert.equal((await pds.get('com.atproto.sync.getRepo', { did })).json.error, 'RepoNotFound')
  assert.deepEqual(failure(await pds.get(`${SERVER}.checkAccountStatus`, {}, person.auth)).slice(0, 2), [
    403,
    'AccountNotFound',
  ])
})

test('B43 the same rules hold for a change of handle', async () => {
  const person = await signUp(pds, 'paul')
  await signUp(pds, 'petra')
  const to = async (handle: string) => said(await post(person, `${IDENTITY}.updateHandle`, { handle }))
  const cases: [string, unknown][] = [
    ['ab.test', [400, 'InvalidHandle', 'Handle too short']],
    [`${'a'.repeat(19)}.test`, [400, 'InvalidHandle', 'Handle too long']],
    ['a.paul.test', [400, 'InvalidHandle', 'Invalid characters in handle']],
    ['support.test', [400, 'HandleNotAvailable', 'Reserved handle']],
    ['paul.onion', [400, 'InvalidHandle', 'Handle TLD is invalid or disallowed']],
    ['PETRA.test', [400, 'HandleNotAvailable', 'Handle already taken: petra.test']],
    ['abc.test', 200],
    [`${'a'.repeat(18)}.test`, 200],
  ]
  for (const [handle, expected] of cases) assert.deepEqual(await to(handle), expected, handle)
  const { json } = await pds.get(`${IDENTITY}.resolveHandle`, { handle: `${'A'.repeat(18)}.test` })
  assert.equal(json.did, person.did)
  const gone = await pds.get(`${IDENTITY}.resolveHandle`, { handle: 'paul.test' })
  assert.deepEqual(said(gone), [400, 'HandleNotFound', 'Unable to resolve handle'])
})

test('B44 a handle of a foreign domain has to point here first', async () => {
  const person = await signUp(pds, 'quirin')
  const to = async (handle: string) => said(await post(person, `${IDENTITY}.updateHandle`, { handle }))
  const refused = invalid('External handle did not resolve to DID')
  // More often than strangers may have a name looked up anew.
  for (let i = 0; i < 6; i++) assert.deepEqual(await to('quirin.example.com'), refused)
  txt.set('_atproto.quirin.example.com', 'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa')
  assert.deepEqual(await to('quirin.example.com'), refused)
  txt.set('_atproto.quirin.example.com', person.did)
  const seen = pds.store.log.head
  assert.equal(await to('Quirin.example.com'), 200)
  assert.equal(await to('quirin.example.com'), 200)
  assert.deepEqual(await told(person.did, seen), ['#identity quirin.example.com', '#identity quirin.example.com'])
  assert.deepEqual(network.plc.directory.data(person.did as Did).alsoKnownAs, ['at://quirin.example.com'])
  assert.equal((await pds.get(`${SERVER}.getSession`, {}, person.auth)).json.handle, 'quirin.example.com')
})

test('B45 B47 an account that moved here goes live when its DID says all that it should', async () => {
  const rosa = await mover('rosa')
  const reserve = async () => (await pds.post(`${SERVER}.reserveSigningKey`, { did: rosa.did })).json.signingKey
  const reserved = await reserve()
  assert.match(reserved, /^did:key:zQ3sh/)
  assert.equal(await reserve(), reserved)
  assert.notEqual((await pds.post(`${SERVER}.reserveSigningKey`, {})).json.signingKey, reserved)
  const { json } = await create(wanted('rosa', { did: rosa.did }), rosa.token())
  const auth = { authorization: `Bearer ${json.accessJwt}` }
  const wish = (await pds.get(`${IDENTITY}.getRecommendedDidCredentials`, {}, auth)).json
  assert.deepEqual(
    [wish.alsoKnownAs, wish.verificationMethods, wish.services.atproto_pds.endpoint],
    [['at://rosa.test'], { atproto: reserved }, pds.names.publicUrl],
  )
  assert.notEqual(await reserve(), reserved, 'it is used now')
  const activate = async () => said(await post({ auth }, `${SERVER}.activateAccount`))
  const status = async () => (await pds.get(`${SERVER}.checkAccountStatus`, {}, auth)).json
  assert.deepEqual(await activate(), invalid('Server rotation key not included in PLC DID data'))
  await rosa.change({ rotationKeys: [...wish.rotationKeys, rosa.key.didKey] })
  assert.deepEqual(await activate(), invalid('DID document atproto_pds service endpoint does not match PDS public url'))
  await rosa.change({ services: wish.services })
  assert.deepEqual(await activate(), invalid('DID document verification method does not match expected signing key'))
  assert.deepEqual([(await status()).validDid, (await status()).activated], [false, false])
  await rosa.change({ verificationMethods: wish.verificationMethods, alsoKnownAs: wish.alsoKnownAs })
  assert.deepEqual([(await status()).validDid, (await status()).activated], [true, false])
  assert.equal(await activate(), 200)
  assert.deepEqual(await told(rosa.did), ['#account', '#identity rosa.test', '#sync'])
  assert.equal((await status()).activated, true)
})

test('B46 the numbers by which a move is checked', async () => {
  const person = await signUp(pds, 'sven')
  const status = async () => (await pds.get(`${SERVER}.checkAccountStatus`, {}, person.auth)).json
  const { repoCommit, repoRev, ...empty } = await status()
  const counts = { activated: true, validDid: true, repoBlocks: 2, indexedRecords: 0, privateStateValues: 0 }
  assert.deepEqual(empty, { ...counts, expectedBlobs: 0, importedBlobs: 0 })
  const upload = () =>
    pds.post('com.atproto.repo.uploadBlob', PNG, null, { ...person.auth, 'content-type': 'image/png' })
  const { blob } = (await upload()).json
  const record = { $type: 'app.bsky.actor.profile', avatar: blob }
  const { json } = await post(person, 'com.atproto.repo.putRecord', {
    repo: person.did,
    collection: 'app.bsky.actor.profile',
    rkey: 'self',
    record,
  })
  const then = await status()
  assert.deepEqual(
    [then.repoBlocks, then.indexedRecords, then.expectedBlobs, then.importedBlobs, then.repoCommit, then.repoRev],
    [3, 1, 1, 1, json.commit.cid, json.commit.rev],
  )
  assert.notDeepEqual([then.repoCommit, then.repoRev], [repoCommit, repoRev])
})

test('B48 a code is good once, for one purpose and account, and only the latest', async () => {
  const [tina, toni] = [await signUp(pds, 'tina'), await signUp(pds, 'toni')]
  const ask = async (person: Person) => {
    assert.equal((await post(person, `${SERVER}.requestEmailConfirmation`)).status, 200)
    return (await mailbox.next()).code
  }
  const confirm = async (person: Person, token: string, email = person.email) =>
    said(await post(person, `${SERVER}.confirmEmail`, { email, token }))
  const [first, second, others] = [await ask(tina), await ask(tina), await ask(toni)]
  assert.match(second, /^[A-Z2-7]{5}-[A-Z2-7]{5}$/)
  const wrong = [400, 'InvalidToken', 'Token is invalid']
  for (const token of [first, others, 'AAAAA-BBBBB', '']) assert.deepEqual(await confirm(tina, token), wrong)
  assert.deepEqual(await confirm(tina, second, toni.email), [400, 'InvalidEmail', 'invalid email'])
  assert.deepEqual(said(await pds.post(`${SERVER}.resetPassword`, { token: second, password: 'x' })), wrong)
  assert.equal(await confirm(tina, second.toLowerCase(), 'Tina@Example.com'), 200)
  assert.deepEqual(await confirm(tina, second), wrong)
  now += 15 * 60_000 + 1
  assert.deepEqual(await confirm(toni, others), [400, 'ExpiredToken', 'Token is expired'])
})

test('B49 who has confirmed an address changes it by a code sent there', async () => {
  const person = await signUp(pds, 'uma')
  const request = async () => (await post(person, `${SERVER}.requestEmailUpdate`)).json
  const update = async (email: string, token?: string) =>
    said(await post(person, `${SERVER}.updateEmail`, { email, token }))
  const session = async () => {
    const { email, emailConfirmed } = (await pds.get(`${SERVER}.getSession`, {}, person.auth)).json
    return [email, emailConfirmed]
  }
  const before = mailbox.mails.length
  assert.deepEqual(await request(), { tokenRequired: false })
  assert.equal(mailbox.mails.length, before, 'no mail')
  assert.deepEqual(await update('uma2@example.com', 'AAAAA-BBBBB'), [400, 'InvalidToken', 'Token is invalid'])
  assert.equal(await update('Uma2@example.com'), 200)
  assert.deepEqual(await session(), ['uma2@example.com', false])
  await post(person, `${SERVER}.requestEmailConfirmation`)
  const stale = await mailbox.next()
  assert.deepEqual([stale.to, stale.subject], [['uma2@example.com'], 'Email Confirmation'])
  await post(person, `${SERVER}.confirmEmail`, { email: 'uma2@example.com', token: stale.code })
  assert.deepEqual(await session(), ['uma2@example.com', true])
  assert.deepEqual(await update('uma3@example.com'), [400, 'TokenRequired', 'confirmation token required'])
  assert.deepEqual(await update('uma3@example.com', ''), [400, 'TokenRequired', 'confirmation token required'])
  assert.deepEqual(await request(), { tokenRequired: true })
  const { code, to, subject } = await mailbox.next()
  assert.deepEqual([to, subject], [['uma2@example.com'], 'Email Update Requested'])
  const unsupported = invalid('This email address is not supported, please use a different email.')
  assert.deepEqual(await update('a@mailinator.com', code), unsupported)
  const inUse = invalid('This email address is already in use, please use a different email.')
  assert.deepEqual(await update('taken@example.com', code), inUse)
  assert.equal(await update('uma3@example.com', code), 200, 'what was refused did not cost the code')
  assert.deepEqual(await session(), ['uma3@example.com', false])
  assert.deepEqual(await update('uma4@example.com', code), [400, 'InvalidToken', 'Token is invalid'])
})

test('B50 B52 codes name their server, work as often as they say, and are earned', async () => {
  const make = async (body: object) =>
    (await invited.post(`${SERVER}.createInviteCode`, body, null, basic())).json.code as string
  const come = (name: string, inviteCode: string) => create(wanted(name, { inviteCode }), {}, invited)
  const twice = await make({ useCount: 2 })
  assert.match(twice, /^pds-example-com-[a-z2-7]{5}-[a-z2-7]{5}$/)
  const vera = (await come('vera', twice)).json
  assert.equal((await come('vito', twice)).status, 200)
  const refused = [400, 'InvalidInviteCode', 'Provided invite code not available']
  for (const code of [twice, 'nonsense', twice.toUpperCase()])
    assert.deepEqual(said(await come('viola', code)), refused)
  assert.deepEqual(said(await create(wanted('viola', { inviteCode: '' }), {}, invited)), [
    400,
    'InvalidInviteCode',
    'No invite code provided',
  ])
  const auth = { authorization: `Bearer ${vera.accessJwt}` }
  const own = async (params = {}) => (await invited.get(`${SERVER}.getAccountInviteCodes`, params, auth)).json.codes
  assert.deepEqual(await own(), [])
  now += 2 * INTERVAL_MS
  assert.deepEqual(await own({ createAvailable: false }), [])
  const earned = await own()
  assert.equal(earned.length, 2)
  const { code, createdAt, ...first } = earned[0]
  assert.match(code, /^pds-example-com-/)
  assert.equal(createdAt, new Date(now).toISOString())
  assert.deepEqual(first, { available: 1, disabled: false, forAccount: vera.did, createdBy: vera.did, uses: [] })
  const walter = (await come('walter', code)).json
  const used = (await own()).find((entry: { code: string }) => entry.code === code)
  assert.deepEqual(used.uses, [{ usedBy: walter.did, usedAt: new Date(now).toISOString() }])
  assert.equal((await own({ includeUsed: false })).length, 1)
  now += 20 * INTERVAL_MS
  assert.equal((await own({ includeUsed: false })).length, 5, 'five at most are open')
  await invited.post(`${ADMIN}.disableAccountInvites`, { account: vera.did }, null, basic())
  const { code: open } = (await own({ includeUsed: false }))[0]
  await invited.post(`${ADMIN}.disableInviteCodes`, { codes: [open] }, null, basic())
  assert.deepEqual(said(await come('wanda', open)), refused)
  assert.equal((await own({ includeUsed: false })).length, 4, 'what is earned now is disabled from the beginning')
})

test('B52 of two who make what an account has earned at once, one is told that it was made', async () => {
  const { json } = await invited.post(`${SERVER}.createInviteCode`, { useCount: 1 }, null, basic())
  const { accessJwt } = (await create(wanted('xaver', { inviteCode: json.code }), {}, invited)).json
  now += INTERVAL_MS
  const auth = { authorization: `Bearer ${accessJwt}` }
  const answers = await Promise.all(
    Array.from({ length: 4 }, () => invited.get(`${SERVER}.getAccountInviteCodes`, {}, auth)),
  )
  const duplicate = [400, 'DuplicateCreate', 'attempted to create additional codes in another request']
  for (const answer of answers) if (answer.status !== 200) assert.deepEqual(said(answer), duplicate)
  assert.equal((await invited.get(`${SERVER}.getAccountInviteCodes`, {}, auth)).json.codes.length, 1)
})

test('B45 B51 an account is gone when its owner wished, unless it came back', async () => {
  const [yara, yves] = [await signUp(pds, 'yara'), await signUp(pds, 'yves')]
  const deleteAfter = new Date(now + 1_000).toISOString()
  for (const person of [yara, yves])
    assert.equal((await post(person, `${SERVER}.deactivateAccount`, { deleteAfter })).status, 200)
  assert.deepEqual(failure(await post(yara, `${SERVER}.deactivateAccount`, { deleteAfter: 'soon' })).slice(0, 2), [
    400,
    'InvalidRequest',
  ])
  assert.equal((await post(yves, `${SERVER}.activateAccount`)).status, 200)
  now += 2_000
  const due = await pds.store.accounts.dueForDeletion(now, 10)
  assert.deepEqual(
    due.map(({ did }) => did),
    [yara.did],
  )
})

test('B40 B41 identities that are pages of the web, whose owners write them', async () => {
  const did = 'did:web:zoe.example.com' as Did
  const key = newKey()
  const page = { pds: 'https://old.example.com', key: key.didKey, handle: 'zoe.test', there: true }
  network.interfere = ({ pathname, hostname }) => {
    if (hostname !== 'zoe.example.com') return undefined
    if (!page.there || pathname !== '/.well-known/did.json') return { status: 404 }
    const method = {
      id: `${did}#atproto`,
      type: 'Multikey',
      controller: did,
      publicKeyMultibase: page.key.slice('did:key:'.length),
    }
    const service = { id: '#atproto_pds', type: 'AtprotoPersonalDataServer', serviceEndpoint: page.pds }
    const document = { id: did, alsoKnownAs: [`at://${page.handle}`], verificationMethod: [method], service: [service] }
    return { status: 200, bytes: Buffer.from(JSON.stringify(document)) }
  }
  const iat = Math.floor(now / 1000)
  const token = signServiceJwt({ iss: did, aud: pds.names.did, lxm: CREATE, iat, exp: iat + 60, jti: 'a' }, key)
  const made = await create(wanted('zoe', { did }), { authorization: `Bearer ${token}` })
  assert.equal(made.status, 200, JSON.stringify(made.json))
  const auth = { authorization: `Bearer ${made.json.accessJwt}` }
  const wish = (await pds.get(`${IDENTITY}.getRecommendedDidCredentials`, {}, auth)).json
  const activate = async () => said(await post({ auth }, `${SERVER}.activateAccount`))
  page.there = false
  assert.deepEqual(await activate(), invalid('Could not resolve DID'))
  page.there = true
  assert.deepEqual(await activate(), invalid('DID document atproto_pds service endpoint does not match PDS public url'))
  page.pds = pds.names.publicUrl
  for (let i = 0; i < 5; i++)
    assert.deepEqual(await activate(), invalid('DID document verification method does not match expected signing key'))
  page.key = wish.verificationMethods.atproto
  assert.equal(await activate(), 200, 'a page is read whenever its owner asks')
  const to = async (handle: string) => said(await post({ auth }, `${IDENTITY}.updateHandle`, { handle }))
  assert.deepEqual(await to('zoe2.test'), invalid('DID is not properly configured for handle'))
  page.handle = 'zoe2.test'
  assert.equal(await to('zoe2.test'), 200)
  assert.deepEqual(await told(did), ['#account', '#identity zoe.test', '#sync', '#identity zoe2.test'])
  network.interfere = null
})
