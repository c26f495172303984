// The same story of a whole Relay on each database that it may keep its state in.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { accountEvent } from '@millisky/core/event'
import { testDatabases } from '@millisky/server/db/testing'
import { until } from '@millisky/server/testing-until'
import { now } from '../e2e/fake-pds.ts'
import { World } from './world.ts'

for (const database of testDatabases()) {
  test(`hosts, accounts, collections, bans, settings and the audit log outlive a restart on ${database.name}`, {
    skip: database.skip,
  }, async t => {
    const world = await World.start({ env: { DATABASE_URL: await database.url(t) } })
    try {
      const { pds, accounts, name } = await world.host('alice', 'bob', 'carol')
      const [alice, bob, carol] = accounts
      for (const account of accounts) {
        pds.announce(account)
        pds.sendPost(account, 'hello')
      }
      pds.send(accountEvent({ did: carol!.did, active: false, status: 'deactivated' }, now()))
      await world.settled(pds, 10)
      assert.equal((await world.post('/admin/repo/takeDown', { did: bob!.did })).status, 200)
      assert.equal((await world.post('/admin/pds/changeLimits', { host: name, per_hour: 9_999 })).status, 200)
      assert.equal((await world.post('/admin/pds/ban?host=spam.example.com')).status, 200)
      assert.equal((await world.post('/admin/subs/banDomain', { Domain: 'bad.example.com' })).status, 200)
      assert.equal((await world.post('/admin/subs/setPerDayLimit?limit=7')).status, 200)
      const look = async () => ({
        hosts: (await world.get('/xrpc/com.atproto.sync.listHosts')).body,
        repos: (await world.get('/xrpc/com.atproto.sync.listRepos?limit=2')).body,
        collection: (await world.get('/xrpc/com.atproto.sync.listReposByCollection?collection=app.bsky.feed.post'))
          .body,
        takedowns: (await world.get('/admin/repo/takedowns')).body,
        domains: (await world.get('/admin/subs/listDomainBans')).body,
        perDay: (await world.get('/admin/subs/perDayLimit')).body,
        audit: (await world.get('/admin/audit/list')).body,
        hourly: (await world.get<{ HourlyEventLimit: number }[]>('/admin/pds/list?limit=1')).body[0]!.HourlyEventLimit,
      })
      const before = await look()
      assert.deepEqual(before.hosts.hosts, [
        { hostname: name, seq: 10, accountCount: 3, status: 'active' },
        { hostname: 'spam.example.com', seq: 0, accountCount: 0, status: 'banned' },
      ])
      assert.deepEqual([before.takedowns, before.perDay, before.hourly], [{ dids: [bob!.did] }, { limit: 7 }, 9_999])
      assert.deepEqual(before.collection, { repos: [{ did: alice!.did }] })
      assert.equal((before.repos.repos as object[]).length, 2)
      assert.equal((before.audit.entries as object[]).length, 5)
      await world.restart()
      assert.deepEqual(await look(), before)
      pds.sendPost(alice!, 'again')
      const consumer = await world.consumer(0)
      await until('the past and what is new came', () => consumer.pathsOf(alice!.did).length === 2)
      // What is taken down is not replayed, but that it was is told.
      assert.deepEqual(consumer.kindsOf(bob!.did), ['#account'])
    } finally {
      await world.stop()
    }
  })
}
