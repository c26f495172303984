// Several PDS processes over one PostgreSQL database and one folder of blobs: whichever a client meets, it is one server.
import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { decodeFrame } from '@millisky/core/event'
import { until } from '@millisky/server/testing-until'
import type { Daemon } from './network.ts'
import {
  ADMIN,
  assertWhole,
  bearer,
  follow,
  get,
  hasCommit,
  type Person,
  post,
  recordsOf,
  type Several,
  startSeveral,
  withoutPostgres,
} from './several.ts'

describe('several PDS processes at one database', { skip: withoutPostgres, timeout: 300_000 }, () => {
  let several: Several
  let one: Daemon
  let two: Daemon
  const signUp: Several['signUp'] = (...args) => several.signUp(...args)
  const person: Several['person'] = name => several.person(name)
  const write: Several['write'] = (...args) => several.write(...args)

  before(async () => {
    several = await startSeveral(2)
    ;[one, two] = several.daemons as [Daemon, Daemon]
  })
  after(() => several?.end())

  test('sessions, invitations, codes and limits hold everywhere', async () => {
    const alice = await person('alice')
    assert.equal((await get(two, 'com.atproto.server.getSession', bearer(alice.accessJwt))).json.did, alice.did)
    const refresh = (pds: Daemon) => post(pds, 'server.refreshSession', undefined, bearer(alice.refreshJwt))
    const [here, there] = await Promise.all([refresh(one), refresh(two)])
    const idOf = (jwt: string) => JSON.parse(Buffer.from(jwt.split('.')[1]!, 'base64url').toString()).jti
    assert.equal(idOf(here.json.refreshJwt), idOf(there.json.refreshJwt), 'one successor, whoever was asked')
    await post(one, 'server.deleteSession', undefined, bearer(here.json.refreshJwt))
    assert.equal((await refresh(two)).json.error, 'ExpiredToken')

    const { code } = (await post(one, 'server.createInviteCode', { useCount: 1 }, ADMIN)).json
    const invited = await Promise.all([
      signUp(one, 'ian', { inviteCode: code }),
      signUp(two, 'ida', { inviteCode: code }),
    ])
    assert.deepEqual(invited.map(({ status }) => status).sort(), [200, 400])
    const same = await Promise.all([signUp(one, 'zoe'), signUp(two, 'zoe', { email: 'other@example.com' })])
    assert.deepEqual(same.map(({ status }) => status).sort(), [200, 400])
    assert.match(same.find(({ status }) => status === 400)!.json.message, /^Handle already taken/)

    await post(one, 'server.requestPasswordReset', { email: 'alice@example.com' })
    const token = await until('the mail', () => /[A-Z2-7]{5}-[A-Z2-7]{5}/.exec(one.process!.output)?.[0])
    assert.equal((await post(two, 'server.resetPassword', { token, password: 'another' })).status, 200)
    const login = { identifier: alice.handle, password: 'another' }
    assert.equal((await post(one, 'server.createSession', login)).status, 200)

    const left = async (pds: Daemon) => {
      const reply = await fetch(`${pds.url}/xrpc/com.atproto.server.describeServer`)
      return Number(reply.headers.get('ratelimit-remaining'))
    }
    assert.deepEqual([await left(one), await left(two)], [2_999, 2_939], 'a share of the points is with the first')
  })

  test('what one process changes the other knows at once', async () => {
    const bob = await person('bob')
    const subject = { $type: 'com.atproto.admin.defs#repoRef', did: bob.did }
    const takedown = (applied: boolean) =>
      post(one, 'admin.updateSubjectStatus', { subject, takedown: { applied, ref: 'x' } }, ADMIN)
    assert.equal((await write(two, bob, 1)).status, 200)
    await takedown(true)
    assert.equal((await write(two, bob, 2)).json.error, 'AccountTakedown')
    assert.equal((await get(two, `com.atproto.sync.getRepo?did=${bob.did}`)).json.error, 'RepoTakendown')
    await takedown(false)
    assert.equal((await write(two, bob, 3)).status, 200)
    const described = async (pds: Daemon) => {
      const { handle, didDoc } = (await get(pds, `com.atproto.repo.describeRepo?repo=${bob.did}`)).json
      return [handle, didDoc.alsoKnownAs[0]]
    }
    assert.deepEqual(await described(two), ['bob.pds.example', 'at://bob.pds.example'])
    const renamed = await post(one, 'identity.updateHandle', { handle: 'robert.pds.example' }, bearer(bob.accessJwt))
    assert.equal(renamed.status, 200)
    await until('the new name', async () => (await described(two)).every(name => name.endsWith('robert.pds.example')))
    assert.equal(
      (await post(two, 'server.createSession', { identifier: 'robert.pds.example', password: 'bob-password' })).status,
      200,
    )
  })

  test('writers of one account through both, and consumers at both', async () => {
    const people = [await person('carla'), await person('dan')]
    const paused = await person('eve')
    const consumers = [follow(one, 0), follow(two, 0)]
    const acknowledged = new Map<string, string>()
    let done = false
    const writer = async (pds: Daemon, who: Person) => {
      for (let n = 0; n < 12; n++) {
        const { status, json } = await write(pds, who, n)
        assert.equal(status, 200, JSON.stringify(json))
        acknowledged.set(json.uri, json.cid)
      }
    }
    const hopeful = async () => {
      while (!done) {
        const { status, json } = await write(two, paused, 0)
        assert.ok(status === 200 || json.error === 'AccountDeactivated', JSON.stringify(json))
      }
    }
    const hoping = hopeful()
    const pausing = (async () => {
      for (let n = 0; n < 4; n++) {
        assert.equal((await post(one, 'server.deactivateAccount', {}, bearer(paused.accessJwt))).status, 200)
        assert.equal((await post(one, 'server.activateAccount', undefined, bearer(paused.accessJwt))).status, 200)
      }
    })()
    await Promise.all([pausing, ...people.flatMap(who => [one, one, two, two].map(pds => writer(pds, who)))])
    done = true
    await hoping
    for (const { did } of people) {
      const mine = [...acknowledged].filter(([uri]) => uri.startsWith(`at://${did}/`))
      assert.deepEqual([...(await recordsOf(two, did))].sort(), mine.sort())
    }
    const last = await write(two, people[0]!, 99)
    await until('both consumers are there', () => consumers.every(({ seen }) => hasCommit(seen, last)))
    const [a, b] = consumers.map(({ seen }) => seen)
    assert.deepEqual(a, b)
    assertWhole(a!)
    let isActive = true
    for (const { t, body } of a!.map(({ bytes }) => decodeFrame(Buffer.from(bytes, 'latin1')))) {
      if (t === '#account' && body.did === paused.did) isActive = body.active as boolean
      if (t === '#commit' && body.repo === paused.did) assert.ok(isActive, 'no commit of a paused account')
    }
    for (const consumer of consumers) consumer.close()
  })

  test('kill -9 of one under load loses nothing that was acknowledged', async () => {
    const people = [await person('fred'), await person('gina')]
    const consumer = follow(two, 0)
    const acknowledged = new Map<string, string>()
    let done = false
    const writer = async (pds: Daemon, who: Person) => {
      for (let n = 0; !done; n++) {
        const reply = await write(pds, who, n).catch(() => null)
        if (!reply) return
        assert.equal(reply.status, 200, JSON.stringify(reply.json))
        acknowledged.set(reply.json.uri, reply.json.cid)
      }
    }
    const writing = people.flatMap(who => [one, one, two].map(pds => writer(pds, who)))
    await until('some writes', () => acknowledged.size > 40)
    await one.kill()
    const before = acknowledged.size
    await until('the other goes on', () => acknowledged.size > before + 20)
    done = true
    await Promise.all(writing)
    for (const { did } of people) {
      const held = await recordsOf(two, did)
      for (const [uri, cid] of acknowledged) if (uri.startsWith(`at://${did}/`)) assert.equal(held.get(uri), cid)
    }
    await one.start()
    const again = follow(one, 0)
    const last = await write(one, people[0]!, 1)
    assert.equal(last.status, 200)
    await until('the same log at both', () => [consumer, again].every(({ seen }) => hasCommit(seen, last)))
    assert.deepEqual(again.seen, consumer.seen)
    assertWhole(again.seen)
    consumer.close()
    again.close()
  })
})
