// What a relay signs of its log, from the outside: `millisky relay-log verify` against a whole Relay.
import assert from 'node:assert/strict'
import { readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { until } from '@millisky/server/testing-until'
import { verifyReplay } from '../../packages/cli/src/relay-log.ts'
import { World } from './world.ts'

interface Page {
  checkpoints: { last: number; key: string; cid: string }[]
  cursor?: number
}

test('what was not signed yet is signed at the end, so that the log that is left can be proven', async t => {
  const world = await World.start({ env: { RELAY_CHECKPOINT_INTERVAL: '1h' } })
  t.after(() => world.stop())
  const { pds, accounts } = await world.host('alice')
  for (let i = 0; i < 5; i++) pds.sendPost(accounts[0]!, `post number ${i}`)
  await world.settled(pds, 5)
  const signed = async () =>
    (await world.get<Page>('/xrpc/net.millisky.relay.listCheckpoints')).body.checkpoints.map(({ last }) => last)
  assert.deepEqual(await signed(), [])
  await world.restart()
  assert.deepEqual(await signed(), [5])
})

test('a replay is proven complete, takedowns show as withheld, and what is altered on disk is found', async t => {
  const world = await World.start({ env: { RELAY_CHECKPOINT_INTERVAL: '20' } })
  t.after(() => world.stop())
  const { pds, accounts } = await world.host('alice', 'bob')
  for (const account of accounts) pds.announce(account)
  for (let i = 0; i < 10; i++) for (const account of accounts) pds.sendPost(account, `post number ${i}`)
  const consumer = await world.consumer(0)
  await until('all came', () => consumer.frames.length === 24)
  const head = consumer.seqs.at(-1)!
  const list = async (more = '') => (await world.get<Page>(`/xrpc/net.millisky.relay.listCheckpoints${more}`)).body
  await until('all is signed', async () => (await list()).checkpoints.at(-1)?.last === head)
  const verify = (from = 0, keys?: string[]) =>
    verifyReplay(world.relay.url, { from, silentMs: 30_000, ...(keys ? { keys } : {}) })

  const report = await verify()
  const { checkpoints } = await list()
  const { key } = checkpoints[0]!
  assert.deepEqual(
    { ...report, checkpoints: 0 },
    {
      checkpoints: 0,
      after: 0,
      last: head,
      keys: [key],
      holes: [],
      matched: 24,
      withheld: [],
      altered: [],
      unsigned: [],
    },
  )
  assert.equal((await verify(20, [key])).matched, 4)
  await assert.rejects(verify(0, ['did:key:zAnother']), /is signed by did:key:/)
  assert.equal((await verify(head)).checkpoints, 0)

  const [first, ...more] = checkpoints
  const page = await list('?limit=1')
  assert.deepEqual([page.checkpoints, page.cursor], [[first], more.length > 0 ? first!.last : undefined])
  const events = await fetch(`${world.relay.url}/xrpc/net.millisky.relay.getCheckpointEvents?last=${first!.last}`)
  assert.equal(events.headers.get('content-type'), 'application/octet-stream')
  assert.equal((await events.bytes()).length % 40, 0)
  const none = await world.get('/xrpc/net.millisky.relay.getCheckpointEvents?last=999999')
  assert.deepEqual([none.status, none.body.error], [404, 'CheckpointNotFound'])

  const { did } = accounts[0]!
  const ofAlice = consumer.of(did).map(({ body }) => body.seq)
  await world.post('/admin/repo/takeDown', { did })
  await until('the takedown is signed', async () => (await list()).checkpoints.at(-1)!.last > head)
  const masked = await verify()
  assert.deepEqual([masked.withheld, masked.matched, masked.altered], [ofAlice, 24 - ofAlice.length + 1, []])

  // A relay that changes its past, checksums and all, is found out.
  await world.relay.close()
  const folder = join(world.folder, 'log')
  const [data] = readdirSync(folder).filter(name => name.endsWith('.log'))
  const bytes = readFileSync(join(folder, data!))
  const { body, bytes: frame } = consumer.of(accounts[1]!.did).find(({ t }) => t === '#account')!
  const at = bytes.indexOf(frame)
  const year = at + bytes.subarray(at).indexOf(String(body.time))
  bytes[year + 3]! ^= 1
  writeFileSync(join(folder, data!), bytes)
  rmSync(join(folder, data!.replace('.log', '.idx')))
  await world.restart()
  assert.deepEqual((await verify()).altered, [body.seq])
})
