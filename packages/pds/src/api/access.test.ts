// Who may call what: every method of the server by every kind of caller.
import assert from 'node:assert/strict'
import { createHmac } from 'node:crypto'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { procedures, queries } from '@millisky/core/lexicon/gen/methods'
import type { Did } from '@millisky/core/syntax'
import { signUp, startNetworkedPds } from '../testing-network.ts'
import { basic, JWT_SECRET } from '../testing-pds.ts'

/** `+` is also open to a session of an account that is taken down. */
type Demand = 'nobody' | 'viewer' | 'user' | 'user+' | 'full' | 'full+' | 'refresh' | 'admin' | 'moderator' | 'service'

const DEMANDS: Record<string, string> = {
  nobody: `server.createSession server.describeServer server.requestPasswordReset server.resetPassword
    server.deleteAccount server.reserveSigningKey identity.resolveHandle identity.resolveDid identity.resolveIdentity
    identity.refreshIdentity lexicon.resolveLexicon temp.checkHandleAvailability temp.dereferenceScope repo.describeRepo repo.getRecord repo.listRecords
    sync.getRepoStatus sync.listRepos sync.listReposByCollection`,
  viewer: `sync.getBlob sync.getBlocks sync.getCheckout sync.getHead sync.getLatestCommit sync.getRecord sync.getRepo
    sync.listBlobs`,
  service: 'server.createAccount',
  user: `server.getSession server.checkAccountStatus server.listAppPasswords server.revokeAppPassword
    server.requestEmailConfirmation server.confirmEmail identity.getRecommendedDidCredentials
    identity.submitPlcOperation identity.updateHandle temp.checkSignupQueue repo.applyWrites repo.createRecord
    repo.deleteRecord repo.putRecord repo.uploadBlob repo.listMissingBlobs
    app.bsky.actor.putPreferences
    app.bsky.notification.registerPush app.bsky.notification.unregisterPush`,
  'user+': 'server.getServiceAuth app.bsky.actor.getPreferences moderation.createReport',
  full: `server.activateAccount server.createAppPassword server.getAccountInviteCodes server.requestAccountDelete
    server.requestEmailUpdate server.updateEmail repo.importRepo`,
  'full+': 'server.deactivateAccount identity.requestPlcOperationSignature identity.signPlcOperation',
  refresh: 'server.refreshSession server.deleteSession',
  admin: `server.createInviteCode server.createInviteCodes admin.deleteAccount admin.updateAccountEmail
    admin.updateAccountHandle admin.updateAccountPassword admin.updateAccountSigningKey
    temp.revokeAccountCredentials net.millisky.pds.getStorageReport net.millisky.pds.getRelayStatus
    net.millisky.pds.announceAccount net.millisky.pds.createAccount`,
  moderator: `admin.disableAccountInvites admin.disableInviteCodes admin.enableAccountInvites admin.getAccountInfo
    admin.getAccountInfos admin.getInviteCodes admin.getSubjectStatus admin.searchAccounts admin.sendEmail
    admin.updateSubjectStatus net.millisky.pds.updateSuspension`,
}
const demands = new Map<string, Demand>(
  Object.entries(DEMANDS).flatMap(([demand, names]) =>
    names
      .trim()
      .split(/\s+/)
      .map((name): [string, Demand] => [/^(app|net)\./.test(name) ? name : `com.atproto.${name}`, demand as Demand]),
  ),
)

const MISSING = '401 AuthMissing'
const REQUIRED = '401 AuthenticationRequired'
const TOKEN = '400 InvalidToken'
const EXPIRED = '400 ExpiredToken'

/** What each kind of caller is refused with, by what the method demands; undefined is let through. */
const REFUSALS: Record<Demand, Record<string, string | undefined>> = {
  nobody: {},
  viewer: { admin: undefined, refresh: TOKEN, expired: EXPIRED, elsewhere: TOKEN, garbage: TOKEN, scheme: TOKEN },
  user: sessions(TOKEN, undefined),
  'user+': sessions(undefined, undefined),
  full: sessions(TOKEN, TOKEN),
  'full+': sessions(undefined, TOKEN),
  refresh: {
    none: MISSING,
    admin: MISSING,
    ...all(TOKEN, 'access app privileged takendown elsewhere garbage scheme expired'),
  },
  admin: { ...all(REQUIRED, 'none access app privileged takendown refresh expired elsewhere garbage scheme') },
  moderator: {
    none: REQUIRED,
    ...all('401 UntrustedIss', 'access app privileged takendown refresh expired elsewhere garbage'),
    scheme: TOKEN,
  },
  service: {
    admin: REQUIRED,
    ...all('401 BadJwtType', 'access app privileged takendown refresh expired elsewhere'),
    garbage: '401 BadJwt',
    scheme: TOKEN,
  },
}

function all(refusal: string | undefined, kinds: string): Record<string, string | undefined> {
  return Object.fromEntries(kinds.split(' ').map(kind => [kind, refusal]))
}

function sessions(takendown: string | undefined, app: string | undefined): Record<string, string | undefined> {
  return {
    none: MISSING,
    admin: TOKEN,
    takendown,
    app,
    privileged: app,
    ...all(TOKEN, 'refresh elsewhere garbage scheme'),
    expired: EXPIRED,
  }
}

const AUTH_ERRORS = /^(401 |403 |400 (InvalidToken|ExpiredToken))/

function forge(claims: object): string {
  const part = (value: object) => Buffer.from(JSON.stringify(value)).toString('base64url')
  const signed = `${part({ typ: 'at+jwt', alg: 'HS256' })}.${part(claims)}`
  return `Bearer ${signed}.${createHmac('sha256', JWT_SECRET).update(signed).digest('base64url')}`
}

/** Parameters that pass, so that the caller is looked at; bodies are read after. */
function paramsOf(nsid: string, did: string): Record<string, string> {
  const file = join(import.meta.dirname, '../../../../lexicons', `${nsid.replaceAll('.', '/')}.json`)
  if (!existsSync(file)) return {}
  const { parameters } = JSON.parse(readFileSync(file, 'utf8')).defs.main
  const samples: Record<string, string> = {
    did,
    dids: did,
    repo: did,
    identifier: did,
    handle: 'alice.test',
    collection: 'com.example.note',
    rkey: 'a',
    cid: 'bafyreidfayvfuwqa7qlnopdjiqrxzs6blmoeu4rujcjtnci5beludirz2a',
    cids: 'bafyreidfayvfuwqa7qlnopdjiqrxzs6blmoeu4rujcjtnci5beludirz2a',
    aud: 'did:web:api.example.com',
    nsid: 'com.example.note',
    scope: 'ref:a',
  }
  return Object.fromEntries(((parameters?.required ?? []) as string[]).map(name => [name, samples[name]!]))
}

test('every method lets in whom it should and nobody else', async t => {
  // Reports have a service; there is no app view.
  const pds = await startNetworkedPds(t, {
    PDS_REPORT_SERVICE_URL: 'http://127.0.0.1:1',
    PDS_REPORT_SERVICE_DID: 'did:web:reports.example.com',
  })
  const alice = await signUp(pds, 'alice')
  const password = (await pds.post('com.atproto.server.createAppPassword', { name: 'app' }, null, alice.auth)).json
    .password
  const app = await pds.post('com.atproto.server.createSession', { identifier: alice.did, password })
  const iat = Math.floor(Date.now() / 1000)
  const claims = { scope: 'com.atproto.access', sub: alice.did, aud: pds.names.did, iat, exp: iat + 600 }
  const callers: Record<string, string | undefined> = {
    none: undefined,
    access: alice.auth.authorization,
    app: `Bearer ${app.json.accessJwt}`,
    privileged: forge({ ...claims, scope: 'com.atproto.appPassPrivileged' }),
    takendown: forge({ ...claims, scope: 'com.atproto.takendown' }),
    refresh: `Bearer ${alice.refreshJwt}`,
    expired: forge({ ...claims, exp: iat - 1 }),
    elsewhere: forge({ ...claims, aud: 'did:web:elsewhere.test' }),
    garbage: 'Bearer garbage',
    scheme: 'Digest garbage',
    admin: basic().authorization,
  }
  const known = [...queries, ...procedures]
  for (const nsid of known) {
    const isQuery = queries.has(nsid)
    const call = async (authorization: string | undefined) => {
      const headers: Record<string, string> = authorization === undefined ? {} : { authorization }
      // A body that no method takes: whoever is let in gets no further.
      const reply = isQuery
        ? await pds.get(nsid, paramsOf(nsid, alice.did), headers)
        : await pds.post(nsid, [], null, headers)
      return `${reply.status} ${reply.json?.error ?? ''}`.trim()
    }
    const demand = demands.get(nsid)
    if (demand === undefined) {
      // Where there is no app view, what is passed on to it is not there either.
      for (const authorization of [undefined, callers.access]) {
        const answer = await call(authorization)
        assert.equal(answer, '501 MethodNotImplemented', `${nsid} is in no row of this table`)
      }
      continue
    }
    for (const [kind, authorization] of Object.entries(callers)) {
      const answer: string = await call(authorization)
      const refusal: string | undefined = REFUSALS[demand][kind]
      if (refusal !== undefined) assert.equal(answer, refusal, `${nsid} by ${kind}`)
      else if (kind === 'takendown' && nsid.endsWith('getServiceAuth')) assert.equal(answer, TOKEN)
      else assert.doesNotMatch(answer, AUTH_ERRORS, `${nsid} by ${kind}`)
      assert.doesNotMatch(answer, /^50/, `${nsid} by ${kind}`)
    }
  }
  assert.equal((await pds.store.accounts.byDid(alice.did as Did))?.handle, 'alice.test')
})

test('nobody acts for another, whatever the session may do for its own account', async t => {
  const pds = await startNetworkedPds(t)
  const [alice, bob] = [await signUp(pds, 'alice'), await signUp(pds, 'bob')]
  const collection = 'com.example.note'
  const record = { $type: collection, text: 'of bob' }
  const note = { repo: bob.did, collection, rkey: 'a' }
  assert.equal((await pds.post('com.atproto.repo.putRecord', { ...note, record }, null, bob.auth)).status, 200)
  const type = { 'content-type': 'text/plain' }
  const { json } = await pds.post('com.atproto.repo.uploadBlob', new Uint8Array(9), null, { ...bob.auth, ...type })
  const cid = json.blob.ref.$link
  const writes = [{ $type: 'com.atproto.repo.applyWrites#delete', collection, rkey: 'a' }]
  for (const repo of [bob.did, bob.handle, 'BOB.test', `${bob.did} `]) {
    for (const [nsid, body] of [
      ['com.atproto.repo.createRecord', { repo, collection, record }],
      ['com.atproto.repo.putRecord', { ...note, repo, record }],
      ['com.atproto.repo.deleteRecord', { ...note, repo }],
      ['com.atproto.repo.applyWrites', { repo, writes }],
    ] as const) {
      const { status } = await pds.post(nsid, body, null, alice.auth)
      assert.ok(status === 400 || status === 401 || status === 403, `${nsid} of ${repo}: ${status}`)
    }
  }
  // A blob that no record shows is its owner's alone.
  const blob = async (auth: Record<string, string>) =>
    (await pds.get('com.atproto.sync.getBlob', { did: bob.did, cid }, auth)).status
  assert.deepEqual([await blob(alice.auth), await blob({}), await blob(bob.auth)], [400, 400, 200])
  const picture = { ...record, picture: json.blob }
  const stolen = await pds.post(
    'com.atproto.repo.createRecord',
    { repo: alice.did, collection, record: picture },
    null,
    alice.auth,
  )
  assert.equal(stolen.status, 400, 'nor can another refer to it')

  await pds.post('com.atproto.server.deactivateAccount', {}, null, bob.auth)
  for (const nsid of ['sync.getRepo', 'sync.getLatestCommit', 'sync.listBlobs', 'sync.getRepoStatus']) {
    const { status, json } = await pds.get(`com.atproto.${nsid}`, { did: bob.did }, alice.auth)
    assert.ok(status === 400 || json.active === false, nsid)
  }
  await pds.post('com.atproto.server.activateAccount', undefined, null, alice.auth)
  assert.equal((await pds.get('com.atproto.sync.getRepoStatus', { did: bob.did })).json.active, false)
  await pds.post('com.atproto.server.activateAccount', undefined, null, bob.auth)
  const { value } = (await pds.get('com.atproto.repo.getRecord', note)).json
  assert.deepEqual(value, record)
})
