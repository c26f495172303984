// Every state of an account, by everybody who may ask: what is read, written, signed in to, passed on and announced.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { failure, type NetworkedPds, type Person, signUp, startNetworkedPds } from '../testing-network.ts'
import { basic } from '../testing-pds.ts'

const NOTE = 'com.example.note'
const OK = '200'

/** What a state answers. `{}` stands for the DID. */
interface Answers {
  /** Reads of the repository and its blobs by strangers. */
  reads: string
  /** `com.atproto.repo.getRecord` and `listRecords` by strangers. */
  records: string
  status: Record<string, unknown> | string
  listed: Record<string, unknown> | null
  handle: string
  write: string
  upload: string
  session: string
  login: string
  refresh: string
  passedOn: string
  serviceToken: string
}

const inactive = (status: string) => ({ active: false, status })

const STATES: Record<string, Answers> = {
  active: {
    reads: OK,
    records: OK,
    status: { active: true },
    listed: { active: true },
    handle: OK,
    write: OK,
    upload: OK,
    session: OK,
    login: OK,
    refresh: OK,
    passedOn: '501 MethodNotImplemented',
    serviceToken: OK,
  },
  deactivated: {
    reads: '400 RepoDeactivated',
    records: '400 InvalidRequest',
    status: inactive('deactivated'),
    listed: inactive('deactivated'),
    handle: OK,
    write: '401 AccountDeactivated',
    // An account that moves here brings its blobs while it is not active yet.
    upload: OK,
    session: OK,
    login: OK,
    refresh: OK,
    passedOn: '501 MethodNotImplemented',
    serviceToken: OK,
  },
  suspended: {
    reads: '400 RepoSuspended',
    records: '400 InvalidRequest',
    status: inactive('suspended'),
    listed: inactive('suspended'),
    handle: OK,
    write: '401 AccountSuspended',
    upload: '401 AccountSuspended',
    session: OK,
    login: OK,
    refresh: OK,
    passedOn: '501 MethodNotImplemented',
    serviceToken: OK,
  },
  takendown: {
    reads: '400 RepoTakendown',
    records: '400 InvalidRequest',
    status: inactive('takendown'),
    listed: inactive('takendown'),
    handle: OK,
    write: '401 AccountTakedown',
    upload: '401 AccountTakedown',
    session: '400 InvalidRequest',
    login: '401 AccountTakedown',
    refresh: '401 AccountTakedown',
    passedOn: '501 MethodNotImplemented',
    serviceToken: OK,
  },
  deleted: {
    reads: '400 RepoNotFound',
    records: '400 InvalidRequest',
    status: '400 RepoNotFound',
    listed: null,
    handle: '400 HandleNotFound',
    write: '403 AccountNotFound',
    upload: '403 AccountNotFound',
    session: '400 InvalidRequest',
    login: '401 AuthenticationRequired',
    refresh: '400 InvalidRequest',
    passedOn: '501 MethodNotImplemented',
    serviceToken: '403 AccountNotFound',
  },
}

/** By the methods that people use. */
async function enter(pds: NetworkedPds, state: string, { did, auth }: Person): Promise<void> {
  const subject = { $type: 'com.atproto.admin.defs#repoRef', did }
  const calls: Record<string, [string, object, Record<string, string>]> = {
    deactivated: ['com.atproto.server.deactivateAccount', {}, auth],
    suspended: ['net.millisky.pds.updateSuspension', { did, suspended: true }, basic()],
    takendown: ['com.atproto.admin.updateSubjectStatus', { subject, takedown: { applied: true, ref: '1' } }, basic()],
    deleted: ['com.atproto.admin.deleteAccount', { did }, basic()],
  }
  const call = calls[state]
  if (call) assert.equal((await pds.post(call[0], call[1], null, call[2])).status, 200, state)
}

for (const [state, expected] of Object.entries(STATES)) {
  test(`an account that is ${state}`, async t => {
    const pds = await startNetworkedPds(t)
    const alice = await signUp(pds, 'alice')
    const bob = await signUp(pds, 'bob')
    const { did, auth } = alice
    const octets = { ...auth, 'content-type': 'application/octet-stream' }
    const upload = () => pds.post('com.atproto.repo.uploadBlob', new Uint8Array([1, 2, 3]), null, octets)
    const { blob } = (await upload()).json
    const write = () =>
      pds.post('com.atproto.repo.createRecord', { repo: did, collection: NOTE, record: { file: blob } }, null, auth)
    const { uri, commit } = (await write()).json
    await enter(pds, state, alice)

    const said = async (reply: ReturnType<NetworkedPds['get']>) => {
      const [status, error] = failure(await reply)
      return error === undefined ? String(status) : `${status} ${error}`
    }
    const reads: [string, Record<string, unknown>][] = [
      ['getRepo', { did }],
      ['getCheckout', { did }],
      ['getRecord', { did, collection: NOTE, rkey: uri.split('/').at(-1) }],
      ['getBlocks', { did, cids: commit.cid }],
      ['getLatestCommit', { did }],
      ['getHead', { did }],
      ['listBlobs', { did }],
      ['getBlob', { did, cid: blob.ref.$link }],
    ]
    for (const [name, params] of reads) {
      const method = `com.atproto.sync.${name}`
      const unknown = state === 'deleted' && name === 'getHead' ? '400 HeadNotFound' : expected.reads
      for (const stranger of [{}, bob.auth]) assert.equal(await said(pds.get(method, params, stranger)), unknown, name)
      // They may always read, as long as there is something.
      const known = state === 'deleted' ? unknown : OK
      for (const caller of [auth, basic()]) assert.equal(await said(pds.get(method, params, caller)), known, name)
    }
    const record = { repo: did, collection: NOTE, rkey: uri.split('/').at(-1) }
    assert.equal(await said(pds.get('com.atproto.repo.getRecord', record)), expected.records)
    assert.equal(await said(pds.get('com.atproto.repo.listRecords', { repo: did, collection: NOTE })), expected.records)
    assert.equal(await said(pds.get('com.atproto.repo.describeRepo', { repo: did })), expected.reads)

    const status = await pds.get('com.atproto.sync.getRepoStatus', { did })
    if (typeof expected.status === 'string') assert.equal(`${status.status} ${status.json.error}`, expected.status)
    else {
      const rev = expected.status.active ? { rev: commit.rev } : {}
      assert.deepEqual(status.json, { did, ...expected.status, ...rev })
    }
    const { repos } = (await pds.get('com.atproto.sync.listRepos')).json
    const listed = repos.find((repo: { did: string }) => repo.did === did)
    const entry = expected.listed && { did, head: commit.cid, rev: commit.rev, ...expected.listed }
    assert.deepEqual(listed ?? null, entry)

    const lxm = 'com.atproto.server.createAccount'
    const token = pds.get('com.atproto.server.getServiceAuth', { aud: 'did:web:new.example', lxm }, auth)
    assert.equal(await said(token), expected.serviceToken)
    assert.equal(
      await said(pds.get('com.atproto.identity.resolveHandle', { handle: alice.handle })),
      expected.handle,
      'who somebody is may always be told',
    )
    assert.equal(await said(pds.get('com.example.unheard', {}, auth)), expected.passedOn)
    assert.equal(await said(pds.get('com.atproto.server.getSession', {}, auth)), expected.session)
    const login = { identifier: did, password: alice.password }
    assert.equal(await said(pds.post('com.atproto.server.createSession', login)), expected.login)
    const refresh = { authorization: `Bearer ${alice.refreshJwt}` }
    assert.equal(await said(pds.post('com.atproto.server.refreshSession', undefined, null, refresh)), expected.refresh)
    assert.equal(await said(write()), expected.write)
    assert.equal(await said(upload()), expected.upload)
    const car = { ...auth, 'content-type': 'application/vnd.ipld.car' }
    const imported = await said(pds.post('com.atproto.repo.importRepo', new Uint8Array([1]), null, car))
    // What is no CAR is refused as that where one would be taken.
    assert.equal(
      imported,
      /^40[13]/.test(expected.upload) && state !== 'suspended' ? expected.upload : '400 InvalidRequest',
    )
  })
}

test('a suspension is announced, shown, and lifted', async t => {
  const pds = await startNetworkedPds(t)
  const { did, auth } = await signUp(pds, 'alice')
  const suspend = (suspended: boolean, who = did) =>
    pds.post('net.millisky.pds.updateSuspension', { did: who, suspended }, null, basic())
  assert.deepEqual(failure(await suspend(true, 'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa')).slice(0, 2), [400, 'NotFound'])
  const refused = await pds.post('net.millisky.pds.updateSuspension', { did, suspended: true }, null, auth)
  assert.equal(refused.status, 401)
  await suspend(true)
  const session = await pds.get('com.atproto.server.getSession', {}, auth)
  assert.deepEqual([session.json.active, session.json.status], [false, 'suspended'])
  const activate = await pds.post('com.atproto.server.activateAccount', undefined, null, auth)
  assert.equal(activate.status, 200)
  const status = async () => (await pds.get('com.atproto.sync.getRepoStatus', { did })).json
  assert.deepEqual(await status(), { did, active: false, status: 'suspended' }, 'its owner does not lift it')
  await suspend(false)
  assert.equal((await status()).active, true)
})
