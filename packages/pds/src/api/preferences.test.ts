import assert from 'node:assert/strict'
import { test } from 'node:test'
import { failure } from '../testing-network.ts'
import { bearer, JWT_SECRET, startTestPds, type TestPds } from '../testing-pds.ts'
import { SCOPES, Tokens } from '../tokens.ts'

const adult = { $type: 'app.bsky.actor.defs#adultContentPref', enabled: true }
const personal = { $type: 'app.bsky.actor.defs#personalDetailsPref', birthDate: '2010-08-20T00:00:00Z' }
const GET = 'app.bsky.actor.getPreferences'
const PUT = 'app.bsky.actor.putPreferences'

async function appOf(pds: TestPds, did: string, scope: 'appPass' | 'appPassPrivileged' = 'appPass') {
  const token = await new Tokens(JWT_SECRET, pds.names.did, Date.now).access(did as never, SCOPES[scope])
  return { authorization: `Bearer ${token}` }
}

test('what only the account itself may see and set', async t => {
  let now = Date.parse('2026-08-19T12:00:00Z')
  const pds = await startTestPds(t, {}, { now: () => now })
  const alice = await pds.user('alice')
  const app = await new Tokens(JWT_SECRET, pds.names.did, () => now).access(alice.did, SCOPES.appPassPrivileged)
  const limited = { authorization: `Bearer ${app}` }
  assert.deepEqual((await pds.get(GET, {}, bearer(alice))).json, { preferences: [] })
  const put = await pds.post(PUT, { preferences: [adult, personal] }, alice)
  assert.deepEqual([put.status, put.bytes.length], [200, 0])
  const age = (over16: boolean) => ({
    $type: 'app.bsky.actor.defs#declaredAgePref',
    isOverAge13: true,
    isOverAge16: over16,
    isOverAge18: false,
  })
  assert.deepEqual((await pds.get(GET, {}, bearer(alice))).json, { preferences: [adult, personal, age(false)] })
  assert.deepEqual((await pds.get(GET, {}, limited)).json, { preferences: [adult, age(false)] })
  const forbidden = failure(await pds.post(PUT, { preferences: [adult, personal] }, null, limited))
  assert.deepEqual(forbidden, [
    400,
    'InvalidRequest',
    `Do not have authorization to set preferences: ${personal.$type}`,
  ])
  const off = { ...adult, enabled: false }
  assert.equal((await pds.post(PUT, { preferences: [off, age(true)] }, null, limited)).status, 200)
  now += 86_400_000
  const token = await new Tokens(JWT_SECRET, pds.names.did, () => now).access(alice.did, SCOPES.access)
  const next = { ...alice, token }
  assert.deepEqual((await pds.get(GET, {}, bearer(next))).json.preferences, [off, personal, age(true)], 'a birthday')
  assert.equal((await pds.post(PUT, { preferences: [] }, next)).status, 200)
  assert.deepEqual((await pds.get(GET, {}, bearer(next))).json, { preferences: [] })
})

test('each has its own; others have none', async t => {
  const pds = await startTestPds(t)
  const [alice, bob] = [await pds.user('alice'), await pds.user('bob')]
  await pds.post(PUT, { preferences: [adult] }, alice)
  assert.deepEqual((await pds.get(GET, {}, bearer(bob))).json, { preferences: [] })
  assert.deepEqual(failure(await pds.get(GET)), [401, 'AuthMissing', 'Authentication Required'])
  assert.equal((await pds.get(GET, {}, await appOf(pds, alice.did))).json.preferences.length, 1)
})

test('what is no preference of these apps is refused', async t => {
  const pds = await startTestPds(t)
  const alice = await pds.user('alice')
  const cases: [unknown, string][] = [
    [{ $type: 'com.example.pref' }, 'Some preferences are not in the app.bsky namespace'],
    [{ $type: 'app.bskyx.pref' }, 'Some preferences are not in the app.bsky namespace'],
  ]
  for (const [preference, message] of cases) {
    const reply = await pds.post(PUT, { preferences: [preference] }, alice)
    assert.deepEqual(failure(reply), [400, 'InvalidRequest', message])
  }
  const untyped = await pds.post(PUT, { preferences: [{ enabled: true }] }, alice)
  assert.deepEqual([untyped.status, untyped.json.error], [400, 'InvalidRequest'])
  assert.match(untyped.json.message, /\$type/)
  const many = await pds.post(PUT, { preferences: Array.from({ length: 201 }, () => adult) }, alice)
  assert.deepEqual(failure(many), [400, 'InvalidRequest', 'Too many preferences. Max: 200'])
})
