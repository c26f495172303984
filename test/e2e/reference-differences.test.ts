// The same requests to this server and to the reference's: what clients see must be the same, but for what is listed.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { isDeepStrictEqual } from 'node:util'
import { startOurs, startReference } from './reference.ts'
import * as accounts from './reference-accounts.ts'
import { withoutReference } from './reference-daemon.ts'
import { envelopes } from './reference-envelope.ts'
import { events } from './reference-events.ts'
import { intended } from './reference-intended.ts'
import { askAll } from './reference-matrix.ts'
import * as moves from './reference-moves.ts'
import * as passing from './reference-passing.ts'
import * as records from './reference-records.ts'
import * as services from './reference-services.ts'
import { ADMIN, type Said, Side } from './reference-side.ts'
import * as states from './reference-states.ts'

const skip = withoutReference

export async function runAll(side: Side): Promise<void> {
  await accounts.plainPages(side)
  const ann = await accounts.signUps(side)
  await envelopes(side, ann)
  await accounts.sessions(side, ann)
  await accounts.appPasswords(side, ann)
  await accounts.mails(side, ann)
  await records.records(side, ann)
  await records.blobs(side, ann)
  await states.states(side)
  await states.administration(side)
  await services.identities(side)
  await services.serviceTokens(side)
  await services.proxying(side)
  await records.preferences(side)
  await events(side)
}

export async function runMatrix(side: Side): Promise<void> {
  const alice = await side.signUp('alice')
  const token = async (...args: Parameters<Side['token']>) => `Bearer ${await side.token(...args)}`
  const sub = alice.did
  const scope = 'com.atproto.access'
  const tokens = {
    nobody: undefined,
    alice: `Bearer ${alice.accessJwt}`,
    admin: ADMIN,
    'a refresh token': `Bearer ${alice.refreshJwt}`,
    'a wrong admin': `Basic ${Buffer.from('admin:wrong').toString('base64')}`,
    'another user of Basic': `Basic ${Buffer.from('root:wrong').toString('base64')}`,
    'nonsense bearer': 'Bearer x',
    'nonsense JWT': 'Bearer a.b.c',
    'empty bearer': 'Bearer',
    'two bearers': 'Bearer a b',
    DPoP: 'DPoP x',
    Digest: 'Digest x',
    'an expired token': await token({ sub, scope }, { exp: -60 }),
    'a foreign token': await token({ sub, scope }, { secret: 'another secret of somebody else' }),
    'a token for another server': await token({ sub, scope }, { aud: 'did:web:other.example' }),
    'a token of another type': await token({ sub, scope }, { typ: 'refresh+jwt' }),
    'a service token': await token({ sub, scope, lxm: 'x' }),
    'a bound token': await token({ sub, scope, cnf: { jkt: 'x' } }),
    'a token of no scope': await token({ sub, scope: 'com.example' }),
    'an app': await token({ sub, scope: 'com.atproto.appPass' }),
    'a privileged app': await token({ sub, scope: 'com.atproto.appPassPrivileged' }),
    'one taken down': await token({ sub, scope: 'com.atproto.takendown' }),
    'one waiting': await token({ sub, scope: 'com.atproto.signupQueued' }),
    'one gone': await token({ sub: 'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa', scope }),
  }
  await askAll(side, { alice, tokens })
}

/** All that differs: name, theirs, ours. */
function differences(ours: Map<string, Said>, theirs: Map<string, Said>): string[] {
  const found: string[] = []
  for (const [name, their] of theirs) {
    const our = ours.get(name)
    if (!isDeepStrictEqual(...intended(name, our, their)))
      found.push(`${name}\n  theirs ${JSON.stringify(their)}\n  ours   ${JSON.stringify(our)}`)
  }
  return found
}

async function compare(t: Parameters<typeof startOurs>[0], run: (side: Side) => Promise<void>, env = {}) {
  const [ours, theirs] = await Promise.all([startOurs(t, env), startReference(t, env)])
  const [a, b] = [new Side(ours), new Side(theirs)]
  await Promise.all([run(a), run(b)])
  const found = differences(a.said, b.said)
  assert.ok(found.length === 0, `${found.length} of ${b.said.size} differ:\n${found.join('\n')}`)
}

test('what people and their apps do', { skip }, t => compare(t, runAll))
test('who comes and goes with an identity', { skip }, t =>
  compare(t, async side => {
    await moves.moves(side)
    await moves.signatures(side)
    await moves.webIdentities(side, t)
    await events(side)
  }),
)
test('what other services are asked and say', { skip }, t =>
  compare(t, async side => {
    await passing.answers(side)
    await passing.requests(side)
    await passing.fresh(side)
    await passing.feedsAndReports(side)
  }),
)
test('every method by everybody', { skip }, t => compare(t, runMatrix))
test('who gets in by invitation', { skip }, t =>
  compare(t, accounts.invitations, { PDS_INVITE_REQUIRED: 'true', PDS_INVITE_INTERVAL: '500' }),
)
test('how often what may be called', { skip }, t => compare(t, accounts.limits, { PDS_RATE_LIMITS_ENABLED: 'true' }))
