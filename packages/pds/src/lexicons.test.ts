import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { Nsid } from '@millisky/core/syntax'
import { lexiconName } from './lexicons.ts'
import { failure, type NetworkedPds, type Person, signUp, startNetwork, startNetworkedPds } from './testing-network.ts'

const COLLECTION = 'com.atproto.lexicon.schema'
const schema = (id: string) => ({ $type: COLLECTION, lexicon: 1, id, defs: { main: { type: 'token' } } })

/** A server whose DNS says that `example.com` and `feed.example.com` are of its account alice. */
async function startWorld(t: Parameters<typeof startNetworkedPds>[0], env: Record<string, string> = {}) {
  const records: Record<string, string[][]> = {}
  const asked: string[] = []
  const network = await startNetwork(t)
  const resolveTxt = async (name: string) => {
    asked.push(name)
    const found = records[name]
    if (!found && name.startsWith('_lexicon.down.')) throw new Error('SERVFAIL')
    return found ?? []
  }
  const pds = await startNetworkedPds(t, env, { network, resolveTxt })
  const alice = await signUp(pds, 'alice')
  records['_lexicon.example.com'] = [[`did=${alice.did}`]]
  records['_lexicon.feed.example.com'] = [['did=', alice.did]]
  const resolve = (nsid: string) => pds.get('com.atproto.lexicon.resolveLexicon', { nsid })
  return { pds, alice, records, asked, resolve, network }
}

async function publish(pds: NetworkedPds, alice: Person, rkey: string, record: object = schema(rkey)) {
  const body = { repo: alice.did, collection: COLLECTION, rkey, record }
  const { status, json } = await pds.post('com.atproto.repo.putRecord', body, null, alice.auth)
  assert.equal(status, 200, JSON.stringify(json))
  return json.cid as string
}

test('the authority of a name is where DNS looks for it', () => {
  assert.equal(lexiconName('com.example.post' as Nsid), '_lexicon.example.com')
  assert.equal(lexiconName('com.example.feed.getPosts' as Nsid), '_lexicon.feed.example.com')
})

test('a schema is found by DNS, proven, and remembered', async t => {
  const { pds, alice, asked, resolve } = await startWorld(t)
  const cid = await publish(pds, alice, 'com.example.feed.post')
  const found = await resolve('com.example.feed.post')
  assert.deepEqual(
    [found.status, found.json],
    [
      200,
      { uri: `at://${alice.did}/${COLLECTION}/com.example.feed.post`, cid, schema: schema('com.example.feed.post') },
    ],
  )
  await resolve('com.example.feed.post')
  assert.deepEqual(asked, ['_lexicon.feed.example.com'])
})

test('what is not published, or not by its authority, is not found', async t => {
  const { pds, alice, records, resolve } = await startWorld(t)
  const missing = async (nsid: string, why: RegExp) => {
    const [status, error, message] = failure(await resolve(nsid))
    assert.deepEqual([status, error], [400, 'LexiconNotFound'], nsid)
    assert.match(message, why)
  }
  await missing('org.nobody.thing', /_lexicon\.nobody\.org has no TXT record/)
  await missing('com.example.none', /there is no record/)
  // Not hierarchical: below example.com there is an account, below sub.example.com there is none.
  await missing('com.example.sub.thing', /_lexicon\.sub\.example\.com/)
  await publish(pds, alice, 'com.example.wrong', schema('com.example.other'))
  await missing('com.example.wrong', /not the schema of this name/)
  records['_lexicon.two.example.com'] = [[`did=${alice.did}`], ['did=did:plc:aaaaaaaaaaaaaaaaaaaaaaaa']]
  await missing('com.example.two.thing', /different DIDs/)
  records['_lexicon.gone.example.com'] = [['did=did:plc:aaaaaaaaaaaaaaaaaaaaaaaa']]
  await missing('com.example.gone.thing', /is not registered/)
  const malformed = await resolve('x')
  assert.deepEqual([malformed.status, malformed.json.error], [400, 'InvalidRequest'])
})

test('nobody to ask is not the same as not found', async t => {
  const { pds, alice, network, resolve } = await startWorld(t)
  const down = await resolve('com.example.down.thing')
  assert.deepEqual([down.status, down.json.error], [502, 'LexiconResolutionFailed'])
  await publish(pds, alice, 'com.example.post')
  network.interfere = url => (url.pathname.endsWith('sync.getRecord') ? { status: 503 } : undefined)
  const busy = await resolve('com.example.post')
  assert.deepEqual([busy.status, busy.json.error], [502, 'LexiconResolutionFailed'])
})

test('a proof that does not prove is refused', async t => {
  const { pds, alice, network, resolve } = await startWorld(t)
  const bob = await signUp(pds, 'bob')
  await publish(pds, alice, 'com.example.post')
  await publish(pds, bob, 'com.example.post')
  const proof = (
    await pds.get('com.atproto.sync.getRecord', { did: bob.did, collection: COLLECTION, rkey: 'com.example.post' })
  ).bytes
  const own = (
    await pds.get('com.atproto.sync.getRecord', { did: alice.did, collection: COLLECTION, rkey: 'com.example.post' })
  ).bytes
  const bad: [Uint8Array, RegExp][] = [
    [proof, /another account/],
    [own.with(own.length - 1, own.at(-1)! ^ 1), /./],
    [own.subarray(0, 200), /./],
    [new Uint8Array(), /./],
  ]
  for (const [i, [bytes, why]] of bad.entries()) {
    network.interfere = url => (url.pathname.endsWith('sync.getRecord') ? { status: 200, bytes } : undefined)
    const [status, error, message] = failure(await resolve(i === 0 ? 'com.example.post' : `com.example.post${i}`))
    assert.deepEqual([status, error], [400, 'LexiconNotFound'])
    assert.match(message, why)
  }
})

test('the operator of a closed network names one account for all', async t => {
  const first = await startWorld(t)
  const env = { PDS_LEXICON_AUTHORITY_DID: first.alice.did, PDS_DID_PLC_URL: first.network.plc.url }
  const second = await startNetworkedPds(t, env, { network: first.network })
  await publish(first.pds, first.alice, 'org.other.thing')
  const { status, json } = await second.get('com.atproto.lexicon.resolveLexicon', { nsid: 'org.other.thing' })
  assert.deepEqual([status, json.schema.id], [200, 'org.other.thing'])
})
