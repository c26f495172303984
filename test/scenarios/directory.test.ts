// Who has records of a collection, through a whole Relay.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { until } from '@millisky/server/testing-until'
import { World } from './world.ts'

interface Page {
  repos: { did: string }[]
  cursor?: string
}

test('listReposByCollection follows verified commits, hides who is not active, and survives a restart', async t => {
  const world = await World.start()
  t.after(() => world.stop())
  const { pds, accounts } = await world.host('alice', 'bob', 'carol')
  const consumer = await world.consumer(0)
  for (const account of accounts) pds.announce(account)
  let sent = 0
  for (const account of accounts) {
    for (let i = 0; i < 3; i++) {
      pds.sendPost(account, `${i}`)
      sent++
    }
  }
  const commits = () => consumer.frames.filter(({ t }) => t === '#commit').length
  await until('all passed', () => commits() === sent)
  const path = (more: string, collection = 'app.bsky.feed.post') =>
    `/xrpc/com.atproto.sync.listReposByCollection?collection=${collection}${more}`
  const paged = async (limit: number) => {
    const found: string[] = []
    for (let cursor: string | undefined, first = true; first || cursor; first = false) {
      const { status, body } = await world.get<Page>(path(`&limit=${limit}${cursor ? `&cursor=${cursor}` : ''}`))
      assert.equal(status, 200)
      found.push(...body.repos.map(({ did }) => did))
      cursor = body.cursor
    }
    return found
  }
  const dids = accounts.map(({ did }) => did).sort()
  for (const limit of [1, 2, 3, 2_000]) assert.deepEqual(await paged(limit), dids)
  assert.deepEqual((await world.get<Page>(path('', 'app.bsky.feed.like'))).body, { repos: [] })
  const { body: status } = await world.get<{ accounts: number; whole: number; since: string }>(
    '/xrpc/net.millisky.relay.getDirectoryStatus',
  )
  assert.deepEqual([status.accounts, status.whole], [3, 3])
  assert.ok(Date.parse(status.since) <= Date.now())

  const first = dids[0]!
  assert.equal((await world.post('/admin/repo/takeDown', { did: first })).status, 200)
  assert.deepEqual(await paged(500), dids.slice(1))
  assert.deepEqual(await paged(1), dids.slice(1))
  await world.restart()
  assert.deepEqual(await paged(500), dids.slice(1))
  assert.equal((await world.post('/admin/repo/reverseTakedown', { did: first })).status, 200)
  assert.deepEqual(await paged(500), dids)

  for (const bad of [
    path('&limit=0'),
    path('&limit=2001'),
    path('&cursor=x'),
    path('', 'no nsid'),
    '/xrpc/com.atproto.sync.listReposByCollection',
  ]) {
    assert.equal((await world.get(bad)).status, 400, bad)
  }
})
