// What a Relay does with what hosts say again after it was killed. A kill is played by taking back what it last saved.
import assert from 'node:assert/strict'
import { join } from 'node:path'
import { test } from 'node:test'
import { accountEvent } from '@millisky/core/event'
import { migrations, type RelaySchema } from '@millisky/relay/store/schema'
import { createSqlStore } from '@millisky/relay/store/sql'
import { openDb } from '@millisky/server/db/db'
import { until } from '@millisky/server/testing-until'
import { now } from '../e2e/fake-pds.ts'
import { World } from './world.ts'

test('after a kill nothing is told twice, and accounts are counted as before', async t => {
  const world = await World.start()
  t.after(() => world.stop())
  const { pds, name, accounts } = await world.host('alice', 'bob')
  const [alice, bob] = accounts as [(typeof accounts)[0], (typeof accounts)[0]]
  const consumer = await world.consumer(0)
  for (const account of accounts) {
    pds.announce(account)
    pds.sendPost(account, 'hello')
  }
  pds.send(accountEvent({ did: bob.did, active: false, status: 'deactivated' }, now()))
  pds.send(accountEvent({ did: bob.did, active: false, status: 'deleted' }, now()))
  await until('all of it came', () => consumer.frames.length === 8)
  assert.equal(world.relay.hosts.byName(name)?.record.accounts, 1)
  await world.relay.close()

  const url = `sqlite://${join(world.folder, 'relay.sqlite')}`
  const store = createSqlStore(await openDb<RelaySchema>(url, { migrations }))
  const [host] = await store.hosts.all()
  const saved = await store.accounts.load([bob.did])
  const before = saved.map(account => ({ ...account, active: true, status: null }))
  // As of the sixth event, when both were there.
  await store.fold.save({
    watermark: 6,
    accounts: before,
    hosts: [{ id: host!.id, cursor: 0, streak: 0, accounts: 2 }],
  })
  await store.close()
  await world.restart()
  assert.equal(world.relay.hosts.byName(name)?.record.accounts, 1)

  const after = await world.consumer()
  await until('the host said it again', () => (world.relay.hosts.byName(name)?.window.cursor ?? 0) >= 8)
  pds.sendPost(alice, 'more')
  pds.send(accountEvent({ did: alice.did, active: true }, now()))
  await until('what is new came', () => after.frames.length >= 2)
  assert.deepEqual(after.story, [`#commit ${alice.did}`, `#account ${alice.did}`])
  assert.deepEqual(await world.rejects(name), { 'rev-stale': 2, repeated: 6 })
})
