// What consumers of the Relay may ask for beyond the stream that everybody gets.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { test } from 'node:test'
import { decodeFrame } from '@millisky/core/event'
import { until } from '@millisky/server/testing-until'
import { Jetstream } from '@skyware/jetstream'
import { WebSocket } from 'ws'
import { World, type WorldOptions } from './world.ts'

async function start(t: { after(fn: () => Promise<void>): void }, options: WorldOptions = {}): Promise<World> {
  const world = await World.start(options)
  t.after(() => world.stop())
  return world
}

/** Messages of a stream of the Relay. */
async function listen(t: { after(fn: () => void): void }, world: World, path: string, protocols: string[] = []) {
  const socket = new WebSocket(`${world.relay.url.replace('http', 'ws')}${path}`, protocols)
  t.after(() => socket.terminate())
  const messages: Buffer[] = []
  socket.on('message', data => messages.push(data as Buffer))
  await once(socket, 'open')
  return messages
}
const REPOS = '/xrpc/com.atproto.sync.subscribeRepos'

test('verified events come filtered, compressed and as JSON to who asks, and as ever to who does not', async t => {
  const world = await start(t)
  const { pds, accounts } = await world.host('alice', 'bob')
  const [alice, bob] = [accounts[0]!, accounts[1]!]
  const plain = await world.consumer(0)
  const alone = await listen(t, world, `${REPOS}?cursor=0&wantedDids=${bob.did}`)
  const packed = await listen(t, world, `${REPOS}?cursor=0&compress=true`)
  const json = await listen(t, world, `${REPOS}?cursor=0`, ['xrpc.v1.json'])
  for (let i = 0; i < 3; i++) for (const account of [alice, bob]) pds.sendPost(account, `${i}`)
  await until('all have theirs', () => plain.raw.length === 6 && alone.length === 3 && json.length === 6)
  await until('all have theirs', () => packed.length === 6)
  assert.deepEqual(packed, plain.raw)
  assert.deepEqual(
    alone.map(message => decodeFrame(message).body.repo),
    [bob.did, bob.did, bob.did],
  )
  assert.deepEqual(
    json.map(message => JSON.parse(message.toString()).message.seq),
    plain.seqs,
  )
})

test('the usual client of Jetstream follows the Relay, and a takedown hides the past from it too', async t => {
  const world = await start(t)
  const { pds, accounts } = await world.host('alice', 'bob')
  const [alice, bob] = [accounts[0]!, accounts[1]!]
  const follow = (cursor?: number) => {
    const client = new Jetstream({
      endpoint: `${world.relay.url.replace('http', 'ws')}/subscribe`,
      ws: WebSocket as never,
      wantedCollections: ['app.bsky.feed.post'],
      ...(cursor ? { cursor } : {}),
    })
    t.after(() => client.close())
    const got: string[] = []
    client.onCreate('app.bsky.feed.post', ({ did, commit }) =>
      got.push(`${did} ${(commit.record as { text?: string }).text}`),
    )
    client.on('account', ({ account }) => got.push(`${account.did} ${account.active} ${account.status}`))
    client.start()
    return { client, got }
  }
  const live = follow()
  await once(live.client as never, 'open')
  for (let i = 0; i < 2; i++) for (const account of [alice, bob]) pds.sendPost(account, `${i}`)
  await until('they came', () => live.got.length === 4)
  // Accounts are judged side by side; only each alone is in order.
  for (const { did } of [alice, bob]) {
    assert.deepEqual(
      live.got.filter(line => line.startsWith(did)),
      [`${did} 0`, `${did} 1`],
    )
  }
  assert.equal((await world.post('/admin/repo/takeDown', { did: bob.did })).status, 200)
  await until('they are told', () => live.got.at(-1) === `${bob.did} false takendown`)
  const { got } = follow(1)
  await until('the rest came', () => got.length >= 2)
  assert.deepEqual(
    got.filter(line => line.startsWith(alice.did)),
    [`${alice.did} 0`, `${alice.did} 1`],
  )
  assert.ok(!got.some(line => /^did:\S+ \d/.test(line) && line.startsWith(bob.did)), 'nothing it wrote')
})

test('the operator can switch each off, and sees who gets what', async t => {
  const env = {
    RELAY_STREAM_FILTERS: 'false',
    RELAY_STREAM_COMPRESSION: 'false',
    RELAY_STREAM_JSON: 'false',
    RELAY_JETSTREAM: 'false',
  }
  const world = await start(t, { env })
  for (const path of [`${REPOS}?wantedKinds=commit`, `${REPOS}?compress=true`, '/subscribe']) {
    const socket = new WebSocket(`${world.relay.url.replace('http', 'ws')}${path}`)
    socket.on('error', () => {})
    const [, response] = await once(socket, 'unexpected-response')
    assert.equal(response.statusCode, path === '/subscribe' ? 404 : 400)
    socket.terminate()
  }
  const on = await start(t)
  assert.equal((await on.get('/subscribe')).status, 426)
})
