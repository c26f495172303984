import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { RateLimit } from '@millisky/server/rate'
import { createLimits } from './rates.ts'
import { signUp, startNetworkedPds } from './testing-network.ts'
import { startTestPds } from './testing-pds.ts'

test("the limits are the reference's", () => {
  const shown = ({ points, windowSeconds }: RateLimit) => `${points};w=${windowSeconds}`
  const limits = Object.entries(createLimits()).map(([name, limit]) => [name, [limit].flat().map(shown).sort()])
  const mails = ['15;w=86400', '5;w=3600']
  const { resolutions, ...shared } = Object.fromEntries(limits)
  assert.deepEqual(resolutions, ['300;w=300'], 'the one that the reference does not have')
  assert.deepEqual(shared, {
    all: ['3000;w=300'],
    exports: ['6000;w=300'],
    writes: ['35000;w=86400', '5000;w=3600'],
    uploads: ['1000;w=86400'],
    logins: ['300;w=86400', '30;w=300'],
    signUps: ['100;w=300'],
    handleChecks: ['100;w=300'],
    keyReservations: ['100;w=300'],
    deletions: ['50;w=300'],
    resets: ['50;w=300'],
    resetMails: ['15;w=3600', '50;w=86400'],
    deletionMails: mails,
    confirmationMails: mails,
    updateMails: mails,
    handleUpdates: ['10;w=300', '50;w=86400'],
  })
})

test('nobody has to ask for limits but in development', async t => {
  const production = { PDS_DEV_MODE: 'false', PDS_HOSTNAME: 'pds.example', PDS_BIND: '127.0.0.1' }
  for (const [env, policy] of [
    [{}, null],
    [production, '3000;w=300'],
    [{ ...production, PDS_RATE_LIMITS_ENABLED: 'false' }, null],
  ] as const) {
    const pds = await startTestPds(t, env)
    const { headers } = await pds.get('com.atproto.server.describeServer')
    assert.equal(headers.get('ratelimit-policy'), policy)
  }
})

test('calls are counted where they belong', async t => {
  const pds = await startNetworkedPds(t, { PDS_RATE_LIMITS_ENABLED: 'true' })
  const alice = await signUp(pds, 'alice')
  const told = (reply: { headers: Headers }) => [
    reply.headers.get('ratelimit-policy'),
    Number(reply.headers.get('ratelimit-remaining')),
  ]
  assert.deepEqual(told(await pds.get('com.atproto.server.describeServer')), ['3000;w=300', 2998])
  assert.deepEqual(told(await pds.get('com.example.unknown')), ['3000;w=300', 2997])
  assert.deepEqual(told(await pds.get('com.atproto.sync.getRepo', { did: alice.did })), ['6000;w=300', 5999])
  assert.deepEqual(told(await pds.get('com.atproto.server.describeServer')), ['3000;w=300', 2996], 'exports are apart')
  const upload = await pds.post('com.atproto.repo.uploadBlob', Buffer.from('x'), null, {
    ...alice.auth,
    'content-type': 'text/plain',
  })
  assert.deepEqual(told(upload), ['1000;w=86400', 999])
  const collection = 'com.example.note'
  const write = (method: string, body: object) =>
    pds.post(`com.atproto.repo.${method}`, { repo: alice.did, collection, ...body }, null, alice.auth)
  const made = await write('createRecord', { record: { n: 1 } })
  assert.equal(made.status, 200)
  await write('putRecord', { rkey: 'a', record: { n: 1 } })
  await write('deleteRecord', { rkey: 'a' })
  const creates = (count: number) => {
    const $type = 'com.atproto.repo.applyWrites#create'
    return write('applyWrites', {
      writes: Array.from({ length: count }, (_, n) => ({ $type, collection, value: { n } })),
    })
  }
  await creates(2)
  // What the account has left is told as soon as it is less than what its address has.
  let left = 5_000 - 3 - 2 - 1 - 3 * 2
  while (left >= 600) {
    const reply = await creates(200)
    assert.equal(reply.status, 200)
    left -= 600
    if (left < 2_900) assert.deepEqual(told(reply), ['5000;w=3600', left])
  }
  const over = await creates(200)
  assert.equal(over.status, 429)
  assert.equal(over.headers.get('ratelimit-policy'), '5000;w=3600')
})
