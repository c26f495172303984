// Hosts that are broken or hostile: nothing of theirs that is not right gets through the Relay, and nobody else notices.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { setTimeout as wait } from 'node:timers/promises'
import { Cid } from '@millisky/core/cid'
import { SigningKey } from '@millisky/core/crypto'
import { commitEvent, type Event, encodeFrame, withSeq } from '@millisky/core/event'
import { sha256 } from '@millisky/core/hash'
import { until } from '@millisky/server/testing-until'
import { atcuteConsumer, type Consumer, type Message } from './consumers.ts'
import { type FakeAccount, FakePds, now } from './fake-pds.ts'
import { type Network, startNetwork } from './network.ts'

let network: Network
let consumer: Consumer<Message>
before(async () => {
  network = await startNetwork()
  consumer = atcuteConsumer(network.relay, 0)
})
after(async () => {
  await consumer?.close()
  await network?.stop()
})

const pathsOf = (did: string) =>
  consumer.events.filter(event => event.repo === did).flatMap(event => (event.ops ?? []).map(op => op.path))

async function host(...names: string[]): Promise<{ pds: FakePds; accounts: FakeAccount[] }> {
  const pds = await FakePds.start()
  const accounts: FakeAccount[] = []
  for (const name of names) accounts.push(await pds.createAccount(network.plc, name))
  const reply = await pds.requestCrawl(network.relay)
  assert.equal(reply.status, 200, await reply.text())
  await pds.connected()
  return { pds, accounts }
}

/** Sends a good post and waits until it came through: what was sent before it has been judged by then. */
async function isServed(pds: FakePds, account: FakeAccount): Promise<void> {
  const { ops } = pds.sendPost(account, 'good')
  await until('the good post comes through', () => pathsOf(account.did).includes(ops[0]!.path) || undefined).catch(
    err => {
      throw new Error(`${err.message}\n${network.process.output}`)
    },
  )
}

function patched(event: Event, fields: Record<string, unknown>): Event {
  return { ...event, body: { ...event.body, ...fields } as Event['body'] }
}

test('forged, stale, foreign and inconsistent commits are dropped; the good ones around them pass', async () => {
  const other = await FakePds.start()
  const { pds, accounts } = await host('mallory', 'victim-neighbour')
  const [mallory, neighbour] = accounts as [FakeAccount, FakeAccount]
  try {
    for (const account of accounts) pds.announce(account)
    await isServed(pds, mallory)
    await isServed(pds, neighbour)
    const wrong: string[] = []
    const attempt = (account: FakeAccount, event: Event) => {
      wrong.push(...(event.body.ops as { path: string }[]).map(op => `${account.did} ${op.path}`))
      pds.send(event)
    }

    // Signed with a key that is not the account's.
    const forger = SigningKey.fromPrivate('k256', sha256(new Uint8Array([1])))
    attempt(mallory, commitEvent(mallory.post('forged', { key: forger, keep: false }), now()))
    // Operations that do not lead back to what prevData says.
    const lie = commitEvent(mallory.post('lie', { keep: false }), now())
    attempt(mallory, patched(lie, { prevData: Cid.ofCbor(new Uint8Array([0xa0])) }))
    // An operation hidden from consumers.
    const hidden = commitEvent(mallory.post('hidden', { keep: false }), now())
    pds.send(patched(hidden, { ops: [] }))
    // A commit from before, once more.
    const seen = mallory.post('seen before')
    pds.send(commitEvent(seen, now()))
    await isServed(pds, mallory)
    pds.send(commitEvent(seen, now()))
    // Somebody else's repository: its PDS is another host.
    const foreign = await other.createAccount(network.plc, 'foreign')
    attempt(foreign, commitEvent(foreign.post('stolen'), now()))
    // A repository nobody knows.
    const unknown = { did: 'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa', key: mallory.key }
    pds.send(patched(commitEvent(mallory.post('nobody', { keep: false }), now()), { repo: unknown.did }))

    await isServed(pds, neighbour)
    await isServed(pds, mallory)
    const got = consumer.events.flatMap(event => (event.ops ?? []).map(op => `${event.repo} ${op.path}`))
    assert.deepEqual(
      wrong.filter(line => got.includes(line)),
      [],
    )
    assert.equal(
      consumer.events.some(event => event.repo === foreign.did || event.repo === unknown.did),
      false,
    )
    for (const { did } of accounts) {
      const empty = consumer.events.filter(event => event.repo === did && event.ops?.length === 0)
      assert.equal(empty.length, 0, 'the commit without its operation was not passed on')
    }
    assert.equal(pathsOf(mallory.did).filter(path => path === seen.ops[0]!.path).length, 1, 'not passed on twice')
  } finally {
    await pds.close()
    await other.close()
  }
})

test('broken framing costs the host its connection and nobody else anything', async () => {
  const { pds: good, accounts: goodAccounts } = await host('steady')
  const steady = goodAccounts[0] as FakeAccount
  good.announce(steady)
  await isServed(good, steady)
  const garbage: [string, Uint8Array | string][] = [
    ['garbage', Uint8Array.from({ length: 300 }, (_, i) => (i * 37) & 255)],
    ['text', 'hello'],
    ['empty', new Uint8Array(0)],
    ['oversized', new Uint8Array(5_000_001)],
    ['deep nesting', new Uint8Array(100_000).fill(0x81)],
    [
      'a header without a payload',
      Uint8Array.from([0xa2, 0x61, 0x74, 0x67, ...Buffer.from('#commit'), 0x62, 0x6f, 0x70, 1]),
    ],
  ]
  for (const [name, data] of garbage) {
    const { pds, accounts } = await host(`broken-${name.replaceAll(' ', '-')}`)
    const account = accounts[0] as FakeAccount
    try {
      pds.announce(account)
      await isServed(pds, account)
      const before = consumer.events.length
      pds.sendRaw(data, { once: true })
      await isServed(good, steady)
      await wait(50)
      const since = consumer.events.slice(before).filter(event => (event.repo ?? event.did) !== steady.did)
      assert.deepEqual(since, [], name)
    } finally {
      await pds.close()
    }
  }
  await good.close()
  const health = await fetch(`${network.relay}/xrpc/_health`)
  assert.equal(health.status, 200)
})

test('an unknown kind of message is skipped, and unknown fields of a known one pass through', async () => {
  const { pds, accounts } = await host('futurist')
  const account = accounts[0] as FakeAccount
  try {
    pds.announce(account)
    pds.sendRaw(withSeq(encodeFrame({ t: '#fromTheFuture', body: { seq: 0, did: account.did } }), 3))
    const change = account.post('with a field of tomorrow')
    pds.send(patched(commitEvent(change, now()), { tomorrow: { kept: true } }))
    await until('it comes through', () => pathsOf(account.did).includes(change.ops[0]!.path) || undefined)
    const event = consumer.events.find(event => event.repo === account.did) as Message & { tomorrow?: unknown }
    assert.deepEqual(event.tomorrow, { kept: true })
    assert.equal(
      consumer.events.some(event => event.$type.endsWith('#fromTheFuture')),
      false,
    )
  } finally {
    await pds.close()
  }
})
