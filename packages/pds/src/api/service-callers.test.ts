// Services that call in somebody's name, by tokens that the account's or the service's own key has signed.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { Did } from '@millisky/core/syntax'
import { failure, type NetworkedPds, type Person, signUp, startNetwork, startNetworkedPds } from '../testing-network.ts'

const UPLOAD = 'com.atproto.repo.uploadBlob'
const PREFERENCES = 'app.bsky.actor.getPreferences'

/** A token of the account for a method of a server. */
async function token(pds: NetworkedPds, { auth }: Person, aud: string, lxm: string): Promise<Record<string, string>> {
  const { json } = await pds.get('com.atproto.server.getServiceAuth', { aud, lxm }, auth)
  return { authorization: `Bearer ${json.token}` }
}

test('a service uploads for an account that gave it a token, such as of video', async t => {
  const network = await startNetwork(t)
  const pds = await startNetworkedPds(t, {}, { network })
  const elsewhere = await startNetworkedPds(t, { PDS_SERVICE_DID: 'did:web:elsewhere.test' }, { network })
  const alice = await signUp(pds, 'alice')
  const upload = (headers: Record<string, string>, at = pds) =>
    at.post(UPLOAD, new Uint8Array([1, 2, 3]), null, { 'content-type': 'video/mp4', ...headers })
  for (const aud of [pds.names.did, `${pds.names.did}#atproto_pds`]) {
    const { status, json } = await upload(await token(pds, alice, aud, UPLOAD))
    assert.deepEqual([status, json.blob.size], [200, 3], aud)
  }
  const { id } = (await pds.store.accounts.byDid(alice.did as Did))!
  assert.equal((await pds.store.blobs.usage(id)).bytes, 3, "they are the account's")
  const refusals: [Record<string, string>, unknown[]][] = [
    [await token(pds, alice, pds.names.did, 'com.atproto.repo.importRepo'), [401, 'BadJwtLexiconMethod']],
    [await token(pds, alice, 'did:web:other.test', UPLOAD), [401, 'BadJwtAudience']],
  ]
  for (const [headers, expected] of refusals) assert.deepEqual(failure(await upload(headers)).slice(0, 2), expected)
  // Proven, but nobody here.
  const stranger = await upload(await token(pds, alice, 'did:web:elsewhere.test', UPLOAD), elsewhere)
  assert.deepEqual(failure(stranger), [403, 'AccountNotFound', 'Account not found'])
  await pds.lifecycle.takedown(alice.did as Did, 'case 1')
  const taken = await upload(await token(pds, alice, pds.names.did, UPLOAD))
  assert.deepEqual(failure(taken).slice(0, 2), [401, 'AccountTakedown'])
  // A token for uploading opens nothing else.
  const session = await pds.get('com.atproto.server.getSession', {}, refusals[0]![0])
  assert.deepEqual(failure(session).slice(0, 2), [400, 'InvalidToken'])
})

test('the moderation service reads preferences, and nobody else does so by a token of its own', async t => {
  const network = await startNetwork(t)
  const home = await startNetworkedPds(t, {}, { network })
  const moderator = await signUp(home, 'themis')
  const other = await signUp(home, 'oscar')
  const env = {
    PDS_MOD_SERVICE_DID: moderator.did,
    PDS_MOD_SERVICE_URL: 'https://mod.test',
    PDS_SERVICE_DID: 'did:web:b.test',
  }
  const pds = await startNetworkedPds(t, env, { network })
  const alice = await signUp(pds, 'alice')
  const preferences = [{ $type: 'app.bsky.actor.defs#personalDetailsPref', birthDate: '2001-01-01T00:00:00Z' }]
  await pds.post('app.bsky.actor.putPreferences', { preferences }, null, alice.auth)
  const read = async (who: Person, params = {}) =>
    pds.get(PREFERENCES, params, await token(home, who, pds.names.did, PREFERENCES))
  const { json } = await read(moderator, { did: alice.did })
  assert.equal(json.preferences[0].birthDate, '2001-01-01T00:00:00Z')
  assert.deepEqual(failure(await read(moderator)), [400, 'InvalidRequest', 'Invalid or missing did parameter'])
  assert.deepEqual(failure(await read(other, { did: alice.did })), [401, 'UntrustedIss', 'Untrusted issuer'])
})
