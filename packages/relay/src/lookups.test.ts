import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { Identity } from '@millisky/core/did'
import { Refused, Unavailable } from '@millisky/core/errors'
import type { Did } from '@millisky/core/syntax'
import { testDid, testKey } from '@millisky/core/testing-repos'
import type { Host } from './hosts.ts'
import { Lookup } from './lookups.ts'

const did = testDid(1)
const identity: Identity = {
  did,
  handle: null,
  signingKey: testKey(1).didKey,
  pds: 'https://pds.example.com',
  doc: { id: did },
}
// A budget hangs on a host and looks at nothing of it.
const hostOf = () => ({}) as Host

/** A world in which each question has the next of these answers, and the last for ever. */
function stage(...answers: (Identity | Error)[]) {
  const asked: boolean[] = []
  const slept: number[] = []
  const clock = { now: 0 }
  const lookup = new Lookup({
    identities: {
      peek: () => null,
      expire: () => true,
      async resolveDid(_did: Did, { fresh = false } = {}) {
        asked.push(fresh === true)
        const answer = (answers.length > 1 ? answers.shift() : answers[0])!
        if (answer instanceof Error) throw answer
        return answer
      },
    },
    now: () => clock.now,
    sleep: async ms => void slept.push(ms),
  })
  return { lookup, asked, slept, clock }
}

const failed = new Unavailable('DidResolutionFailed', 'no answer')

test('an identity that cannot be had is tried for, then given up; who is not patient is told at once', async () => {
  const { lookup, asked, slept } = stage(failed)
  const host = hostOf()
  assert.equal(await lookup.resolve(did, { host, fresh: false, isPatient: true }), null)
  assert.deepEqual(
    [asked, slept],
    [
      [false, true, true, true],
      [1_000, 4_000, 10_000],
    ],
  )
  assert.equal(await lookup.resolve(did, { host, fresh: false, isPatient: false }), null)
  assert.equal(asked.length, 5)
})

test('an answer that comes late is an answer', async () => {
  const { lookup, slept } = stage(failed, identity)
  const stated = await lookup.resolve(did, { host: hostOf(), fresh: false, isPatient: true })
  assert.deepEqual([stated?.pds, stated?.key, slept], [identity.pds, identity.signingKey, [1_000]])
})

test('that there is nobody is an answer too: no key, and no host', async () => {
  for (const name of ['DidNotFound', 'DidDeactivated', 'UnsupportedDidMethod']) {
    const { lookup, asked } = stage(new Refused(name, 'none'))
    const stated = await lookup.resolve(did, { host: hostOf(), fresh: false, isPatient: true })
    assert.deepEqual([stated, asked.length], [{ pds: null, key: null, fresh: true }, 1])
  }
})

test('refreshes that events of a host cause have a budget of its own, which comes back with time', async () => {
  const { lookup, asked, clock } = stage(identity)
  const [flooder, other] = [hostOf(), hostOf()]
  const fresh = async (host: Host, times: number) => {
    asked.length = 0
    for (let i = 0; i < times; i++) await lookup.resolve(did, { host, fresh: true, isPatient: true })
    return asked.filter(isFresh => isFresh).length
  }
  assert.equal(await fresh(flooder, 1_000), 200)
  assert.equal(await fresh(other, 10), 10)
  clock.now += 2_000
  assert.equal(await fresh(flooder, 100), 10)
})
