import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { Obj } from '@millisky/core/cbor'
import { Cid } from '@millisky/core/cid'
import { decodeFrame, type Frame } from '@millisky/core/event'
import type { Did } from '@millisky/core/syntax'
import { type AccountState, judge, UNKNOWN_ACCOUNT } from '@millisky/core/verify'
import { framesOf } from '@millisky/server/log/frame-wire'
import { WebSocket } from 'ws'
import { startTestPds, type TestPds, type TestUser } from './testing-pds.ts'

const createdAt = '2026-01-02T03:04:05.678Z'

async function frames(pds: TestPds, after = 0): Promise<Frame[]> {
  const found: Frame[] = []
  for (let at = after; at < pds.store.log.head; ) {
    const batch = await pds.store.log.read(at, { bytes: 1 << 20 })
    for (const frame of framesOf(batch.wire)) found.push(decodeFrame(frame))
    at = batch.last
  }
  return found
}

const told = (events: Frame[]) => events.map(({ t, body }) => ({ t, did: body.did ?? body.repo }))
const types = (events: Frame[]) => events.map(event => event.t)
const post = (user: TestUser, text: string) => ({
  repo: user.did,
  collection: 'app.bsky.feed.post',
  record: { text, createdAt },
})

test('each station of an account tells what the reference tells, in its order', async t => {
  const pds = await startTestPds(t)
  let seen = 0
  const since = async () => {
    const events = await frames(pds, seen)
    seen = pds.store.log.head
    return events
  }
  const alice = await pds.user('alice')
  const opened = await since()
  assert.deepEqual(
    told(opened),
    ['#identity', '#account', '#commit', '#sync'].map(t => ({ t, did: alice.did })),
  )
  const [identity, account, commit, sync] = opened.map(event => event.body) as [Obj, Obj, Obj, Obj]
  assert.equal(identity.handle, 'alice.test')
  assert.deepEqual([account.active, account.status], [true, undefined])
  assert.deepEqual([commit.since, commit.ops, commit.prevData], [null, [], undefined])
  assert.deepEqual([commit.rebase, commit.tooBig, commit.blobs], [false, false, []])
  assert.equal(sync.rev, commit.rev)

  await pds.user('moving', { deactivated: true })
  assert.deepEqual(await since(), [])

  await pds.lifecycle.deactivate(alice.did)
  await pds.lifecycle.takedown(alice.did, 'ref')
  await pds.lifecycle.takedown(alice.did, null)
  const paused = await since()
  assert.deepEqual(
    paused.map(({ t, body }) => [t, body.active, body.status]),
    [
      ['#account', false, 'deactivated'],
      ['#account', false, 'takendown'],
      ['#account', false, 'deactivated'],
    ],
  )
  await pds.lifecycle.activate(alice.did)
  const active = await since()
  assert.deepEqual(types(active), ['#account', '#identity', '#sync'])
  assert.equal(active[0]!.body.active, true)
  assert.equal(active[2]!.body.rev, commit.rev)

  await pds.lifecycle.setHandle(alice.did, 'alice2.test' as never)
  await pds.lifecycle.announceIdentity(alice.did)
  assert.deepEqual(
    (await since()).map(({ t, body }) => [t, body.handle]),
    [
      ['#identity', 'alice2.test'],
      ['#identity', 'alice2.test'],
    ],
  )
  await pds.repos.resign(alice.did)
  const [resigned] = await since()
  assert.deepEqual([resigned!.t, resigned!.body.ops, resigned!.body.since], ['#commit', [], commit.rev])

  const before = pds.store.log.head
  await pds.lifecycle.remove(alice.did)
  const all = await frames(pds)
  assert.deepEqual(
    all.map(({ t, body }) => [t, body.did, body.active, body.status]),
    [['#account', alice.did, false, 'deleted']],
  )
  assert.equal(all[0]!.body.seq, before + 1)
})

test('a strict relay admits every event', async t => {
  const pds = await startTestPds(t)
  const users = [await pds.user('alice'), await pds.user('bob')]
  const uris: string[] = []
  const collection = 'app.bsky.feed.post'
  for (let i = 0; i < 60; i++) {
    const user = users[i % 2]!
    const { json } = await pds.post('com.atproto.repo.createRecord', post(user, `${i}`), user)
    uris.push(json.uri)
    if (i % 5 === 4) {
      const rkey = uris[i - 4]!.split('/').at(-1)
      await pds.post('com.atproto.repo.deleteRecord', { repo: user.did, collection, rkey }, users[(i - 4) % 2])
      const edit = { ...post(users[i % 2]!, 'edited'), rkey: uris[i]!.split('/').at(-1) }
      await pds.post('com.atproto.repo.putRecord', edit, user)
    }
  }
  const writes = Array.from({ length: 50 }, (_, i) => ({
    $type: 'com.atproto.repo.applyWrites#create',
    collection: 'com.example.thing',
    rkey: `r${i}`,
    value: { i },
  }))
  await pds.post('com.atproto.repo.applyWrites', { repo: users[0]!.did, writes }, users[0])
  const states = new Map<Did, AccountState>()
  let last = 0
  for (const frame of await frames(pds)) {
    const did = (frame.body.did ?? frame.body.repo) as Did
    const { key } = (await pds.store.repos.state(did))!
    const verdict = judge({
      frame,
      host: new URL(pds.url).host,
      now: Date.now(),
      policy: 'strict',
      prior: states.get(did) ?? UNKNOWN_ACCOUNT,
      identity: { pds: pds.url, key: pds.repos.signingKey(key).publicKey },
    })
    assert.equal(frame.body.seq, ++last)
    if (verdict.kind === 'admit') {
      assert.deepEqual(verdict.notes, [])
      states.set(did, verdict.next)
    } else {
      // After the first commit of an account its #sync is no news to who saw that.
      assert.deepEqual([frame.t, verdict.reason], ['#sync', 'sync-unchanged'])
    }
  }
  assert.equal(last, pds.store.log.head)
  for (const user of users) {
    const { head } = (await pds.store.repos.state(user.did))!
    assert.deepEqual(Cid.fromKey(states.get(user.did)!.data!).toString(), head.data.toString())
  }
})

test('a subscriber sees history and live events, each once', async t => {
  const pds = await startTestPds(t)
  const alice = await pds.user('alice')
  for (let i = 0; i < 5; i++) await pds.post('com.atproto.repo.createRecord', post(alice, `${i}`), alice)
  const url = `${pds.url.replace('http', 'ws')}/xrpc/com.atproto.sync.subscribeRepos`
  const socket = new WebSocket(`${url}?cursor=0`)
  const seqs: number[] = []
  const complete = new Promise<void>((resolve, reject) => {
    socket.on('error', reject)
    socket.on('message', data => {
      seqs.push(decodeFrame(data as Buffer).body.seq as number)
      if (seqs.length === 14) resolve()
    })
  })
  for (let i = 0; i < 5; i++) await pds.post('com.atproto.repo.createRecord', post(alice, `live ${i}`), alice)
  await complete
  assert.deepEqual(
    seqs,
    Array.from({ length: 14 }, (_, i) => i + 1),
  )
  socket.close()
  const future = new WebSocket(`${url}?cursor=1000`)
  const frame = await new Promise<Frame>(resolve => future.on('message', data => resolve(decodeFrame(data as Buffer))))
  assert.deepEqual([frame.op, frame.body.error], [-1, 'FutureCursor'])
})
