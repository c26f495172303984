// What anybody may ask of a Relay, asked as people and scripts do, rightly and wrongly.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { until } from '@millisky/server/testing-until'
import { FakePds } from '../e2e/fake-pds.ts'
import { World } from './world.ts'

interface Page {
  repos: { did: string }[]
  cursor?: string
}

let world: World
let dids: string[]
before(async () => {
  world = await World.start()
  const { pds, accounts } = await world.host('alice', 'bob', 'carol')
  for (const account of accounts) pds.sendPost(account, 'hello')
  await world.settled(pds, 3)
  dids = accounts.map(({ did }) => did).sort()
})
after(() => world.stop())

test('T35 a host may be asked for from a browser, as with bigsky', async t => {
  const pds = await FakePds.start()
  t.after(() => pds.close())
  const ask = (hostname: string, method = 'GET') =>
    fetch(`${world.relay.url}/xrpc/com.atproto.sync.requestCrawl${hostname}`, { method })
  const { host } = new URL(pds.url)
  const looked = await ask(`?hostname=${host}`, 'HEAD')
  assert.deepEqual([looked.status, world.relay.hosts.size], [400, 1])
  const asked = await ask(`?hostname=${host}`)
  assert.deepEqual([asked.status, await asked.text(), asked.headers.get('cache-control')], [200, '', 'no-store'])
  await pds.connected()
  await until('it is connected', () => world.relay.hosts.byName(host)?.connectedAt)
  for (const [query, error] of [
    ['', 'InvalidRequest'],
    ['?hostname=a&hostname=b', 'InvalidRequest'],
    ['?hostname=127.0.0.1:1', 'HostNotFound'],
  ]) {
    const reply = await ask(query!)
    assert.deepEqual([reply.status, ((await reply.json()) as { error: string }).error], [400, error], query)
  }
})

test('T76 listings go page by page, and a cursor that is none of theirs is refused', async () => {
  for (const method of [
    'com.atproto.sync.listRepos?',
    'com.atproto.sync.listReposByCollection?collection=app.bsky.feed.post&',
  ]) {
    const found: string[] = []
    for (let cursor: string | undefined = ''; cursor !== undefined; ) {
      const page: { body: Page } = await world.get<Page>(`/xrpc/${method}limit=1${cursor ? `&cursor=${cursor}` : ''}`)
      const { body } = page
      assert.equal(body.repos.length, 1)
      found.push(...body.repos.map(({ did }) => did))
      cursor = body.cursor
    }
    assert.deepEqual(found, dids, method)
    // As another relay gives them: a client that has changed relays is not to take the rest for all.
    for (const cursor of ['12345', 'nonsense', '3jzfcijpj2z2a']) {
      const { status, body } = await world.get(`/xrpc/${method}cursor=${cursor}`)
      assert.deepEqual([status, body.error], [400, 'InvalidRequest'], cursor)
    }
  }
  assert.equal((await world.get('/xrpc/com.atproto.sync.listHosts?cursor=did:web:x')).status, 400)
})
