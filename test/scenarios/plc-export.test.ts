// A Relay that follows the export of the directory: it asks nobody who is who.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { accountEvent } from '@millisky/core/event'
import { type PlcUpdate, plcUpdate, signPlcOperation } from '@millisky/core/plc'
import { settings as plcSettings } from '@millisky/plc/config'
import { createPlc } from '@millisky/plc/main'
import { readSettings } from '@millisky/server/config'
import { until } from '@millisky/server/testing-until'
import { silentLog } from '@millisky/server/trace'
import { FakePds, now } from '../e2e/fake-pds.ts'
import { Consumer, World } from './world.ts'

test('identities come from the export, change with it, and outlive a restart without anybody to ask', async t => {
  const plc = await createPlc(
    readSettings(plcSettings, [], { env: { PLC_PORT: '0', PLC_DB: ':memory:', PLC_DEV_MODE: 'true' } }),
    { log: silentLog },
  )
  await plc.listen()
  t.after(() => plc.close())
  const asked: string[] = []
  const world = await World.start({
    env: { RELAY_PLC_EXPORT: 'true', RELAY_PLC_HOST: plc.url },
  })
  t.after(() => world.stop())
  const pds = await FakePds.start()
  t.after(() => pds.close())
  const alice = await pds.createAccount(plc.url, 'alice')
  const isTaken = () => world.relay.hosts.size > 0
  await pds.requestCrawl(world.relay.url)
  await until('the host is known', isTaken)
  await pds.connected()
  const accept = plc.directory.data.bind(plc.directory)
  plc.directory.data = did => {
    asked.push(did)
    return accept(did)
  }
  const metric = async (name: string) => {
    const reply = await fetch(`${world.relay.url}/metrics`, { headers: { authorization: 'Bearer scenario-admin' } })
    return Number(new RegExp(`^${name} (.*)$`, 'm').exec(await reply.text())?.[1])
  }
  await until('the export was taken', async () => (await metric('relay_plc_export_seq')) === plc.directory.head)
  const consumer = await world.consumer(0)
  pds.sendPost(alice, 'hello')
  await until('it came', () => consumer.pathsOf(alice.did).length === 1)

  // The account moves; only the directory says so.
  const second = await FakePds.start()
  t.after(() => second.close())
  const services = { atproto_pds: { type: 'AtprotoPersonalDataServer', endpoint: second.url } }
  const last = plc.directory.last(alice.did)
  await plc.directory.accept(alice.did, signPlcOperation<PlcUpdate>(plcUpdate(last, { services }), alice.key))
  await until('the move was taken', async () => (await metric('relay_plc_export_seq')) === plc.directory.head)
  await second.requestCrawl(world.relay.url)
  await second.connected()
  second.send(accountEvent({ did: alice.did, active: true }, now()))
  second.sendPost(alice, 'moved')
  await until('it came', () => consumer.pathsOf(alice.did).length === 2)
  assert.deepEqual(asked, [])

  await plc.close()
  await world.restart()
  const next = new Consumer(world.relay.url)
  t.after(() => next.close())
  await next.opened()
  second.sendPost(alice, 'after')
  await until('it came', () => next.pathsOf(alice.did).length === 1)
})
