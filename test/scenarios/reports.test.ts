// What hosts can learn about themselves: the report, the page, and the check.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { commitEvent, type Event, encodeFrame, withSeq } from '@millisky/core/event'
import { until } from '@millisky/server/testing-until'
import { FakePds, now } from '../e2e/fake-pds.ts'
import { World } from './world.ts'

interface Check {
  hostname: string
  ok: boolean
  steps: { name: string; ok: boolean; detail?: string }[]
  eventsSeen: number
  eventsRight: number
  findings: { seq?: number; did?: string; reason: string; text: string; dropped: boolean }[]
}
const checkOf = async (world: World, hostname: string) =>
  await world.post<Check>('/xrpc/net.millisky.relay.checkHost', { hostname })

const broken = (event: Event): Event => ({ ...event, body: { ...event.body, tooBig: true } as Event['body'] })

test('a report tells state, limits, use, and the last rejects with seq and DID', async t => {
  const world = await World.start()
  t.after(() => world.stop())
  const { pds, accounts, name } = await world.host('alice')
  const alice = accounts[0]!
  pds.announce(alice)
  pds.sendPost(alice, 'hello')
  pds.send(broken(commitEvent(alice.post('bad', { keep: false }), now())))
  await world.settled(pds, 4)
  const { status, body } = await world.get<Record<string, never>>(
    `/xrpc/net.millisky.relay.getHostReport?hostname=${name}`,
  )
  assert.equal(status, 200)
  const { status: state, connected, seq, accountCount, eventsSeen, eventsPassed, rejects, latestRejects, limits } = body
  assert.deepEqual([state, connected, seq, accountCount, eventsSeen, eventsPassed], ['active', true, 4, 1, 4, 3])
  assert.deepEqual(limits, { perSecond: 50, perHour: 2_600, perDay: 21_000, accounts: 100 })
  assert.equal((rejects as { name: string }[])[0]?.name, 'too-big-flag')
  const [latest] = latestRejects as unknown as { seq: number; did: string; reason: string; text: string }[]
  assert.deepEqual([latest?.seq, latest?.did, latest?.reason], [4, alice.did, 'too-big-flag'])
  assert.equal((await world.get('/xrpc/net.millisky.relay.getHostReport?hostname=nobody.example.com')).status, 404)
})

test('the page of a host shows the same and escapes what others said', async t => {
  const world = await World.start()
  t.after(() => world.stop())
  const { pds, name } = await world.host('alice')
  pds.sendRaw(withSeq(encodeFrame({ t: '<script>', body: { seq: 0 } }), 1))
  await until('it is seen', async () => (await world.rejects(name))['unknown-op'] === 1)
  const reply = await fetch(`${world.relay.url}/hosts/${name}`)
  const page = await reply.text()
  assert.match(reply.headers.get('content-type') ?? '', /^text\/html/)
  assert.match(page, /&lt;script&gt;/)
  assert.doesNotMatch(page, /<script>/)
  assert.match(page, /0 of 100/)
})

test('the check follows a host that is not known, explains its faults, and leaves nothing behind', async t => {
  const world = await World.start()
  const pds = await FakePds.start()
  t.after(async () => {
    await world.stop()
    await pds.close()
  })
  const name = new URL(pds.url).host
  const alice = await pds.createAccount(world.plc.url, 'alice')
  const consumer = await world.consumer(0)
  const empty = await checkOf(world, name)
  assert.deepEqual([empty.body.ok, empty.body.eventsSeen], [true, 0])
  pds.announce(alice)
  pds.sendPost(alice, 'right')
  const right = await checkOf(world, name)
  assert.deepEqual([right.body.ok, right.body.eventsSeen, right.body.eventsRight], [true, 3, 3])
  pds.send(broken(commitEvent(alice.post('bad', { keep: false }), now())))
  pds.sendRaw(new Uint8Array([255, 255]))
  const wrong = await checkOf(world, name)
  assert.deepEqual([wrong.body.ok, wrong.body.eventsSeen, wrong.body.eventsRight], [false, 5, 3])
  assert.deepEqual(
    wrong.body.findings.map(({ seq, did, reason }) => [seq, did, reason]),
    [
      [4, alice.did, 'too-big-flag'],
      [undefined, undefined, 'undecodable'],
    ],
  )
  assert.equal(world.relay.hosts.size, 0)
  assert.deepEqual(consumer.frames, [])
})

test('the check says at which step a host fails, and how often it may be asked for', async t => {
  const world = await World.start()
  t.after(() => world.stop())
  const failing = async (hostname: string) => {
    const { ok, steps } = (await checkOf(world, hostname)).body
    assert.equal(ok, false)
    return steps.find(step => !step.ok)?.name
  }
  assert.equal(await failing('not a host'), 'hostname')
  assert.equal(await failing('localhost:1'), 'describeServer')
  assert.equal(await failing(new URL(world.relay.url).host), 'describeServer')
  const statuses: number[] = []
  for (let i = 0; i < 5; i++) statuses.push((await checkOf(world, 'not a host')).status)
  assert.deepEqual(statuses, [200, 200, 200, 429, 429])
})
