// The whole network as people use it: real processes, real sockets, the ecosystem's own clients.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { AtpAgent } from '@atproto/api'
import { until } from '@millisky/server/testing-until'
import { atcuteConsumer, story, verifiedStory, verifyingConsumer } from './consumers.ts'
import { type Network, startNetwork } from './network.ts'

let network: Network
before(async () => {
  network = await startNetwork()
})
after(() => network?.stop())

/** The smallest PNG there is. */
const png = Buffer.from(
  'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==',
  'base64',
)

test('what @atproto/api does on the PDS is exactly what every consumer sees, on PDS and Relay', async () => {
  const pdsVerified = verifyingConsumer(network.pds, network.plc, 0)
  const relayVerified = verifyingConsumer(network.relay, network.plc, 0)
  const pdsMessages = atcuteConsumer(network.pds, 0)
  const relayMessages = atcuteConsumer(network.relay, 0)
  const consumers = [pdsVerified, relayVerified, pdsMessages, relayMessages]
  try {
    const alice = new AtpAgent({ service: network.pds })
    const bob = new AtpAgent({ service: network.pds })
    await alice.createAccount({ handle: 'alice.test', email: 'alice@example.com', password: 'alice-password' })
    await bob.createAccount({ handle: 'bob.test', email: 'bob@example.com', password: 'bob-password' })
    const aliceDid = alice.assertDid
    const bobDid = bob.assertDid

    const { data: uploaded } = await alice.uploadBlob(png, { encoding: 'image/png' })
    const post = await alice.post({
      text: 'A picture',
      embed: { $type: 'app.bsky.embed.images', images: [{ image: uploaded.blob, alt: 'one pixel' }] },
    })
    const like = await bob.like(post.uri, post.cid)
    await bob.deleteLike(like.uri)
    await alice.upsertProfile(() => ({ displayName: 'Alice' }))
    await alice.upsertProfile(existing => ({ ...existing, displayName: 'Alice A.' }))
    await alice.deletePost(post.uri)

    const expected = [
      [`${aliceDid} create app.bsky.feed.post/`, `${aliceDid} delete app.bsky.feed.post/`],
      [`${bobDid} create app.bsky.feed.like/`, `${bobDid} delete app.bsky.feed.like/`],
      [`${aliceDid} create app.bsky.actor.profile/self`, `${aliceDid} update app.bsky.actor.profile/self`],
    ].flat()
    const stories = () => [
      pdsVerified.events.flatMap(verifiedStory),
      relayVerified.events.flatMap(verifiedStory),
      pdsMessages.events.flatMap(story),
      relayMessages.events.flatMap(story),
    ]
    // The order is that of each account; one account may be ahead of another behind the Relay.
    const last = [`${aliceDid} delete app.bsky.feed.post/`, `${bobDid} delete app.bsky.feed.like/`]
    await until('every consumer has the last event of each account', () =>
      stories().every(lines => last.every(start => lines.some(line => line.startsWith(start)))),
    ).catch(err => {
      throw new Error(`${err.message}\n${JSON.stringify(stories(), null, 1)}\n${network.process.output}`)
    })
    const [first, ...rest] = stories().map(lines => lines.filter(line => !line.includes(' sync ')))
    assert.ok(first)
    for (const start of expected) {
      assert.equal(first.filter(line => line.startsWith(start)).length, 1, `once: ${start}`)
    }
    const perAccount = (lines: string[], did: string) => lines.filter(line => line.startsWith(did))
    for (const other of rest) {
      for (const did of [aliceDid, bobDid]) assert.deepEqual(perAccount(other, did), perAccount(first, did))
      assert.equal(other.length, first.length)
    }
    for (const did of [aliceDid, bobDid]) {
      assert.deepEqual(perAccount(first, did).slice(0, 2), [`${did} identity`, `${did} account true `])
    }
    for (const { events } of [pdsMessages, relayMessages]) {
      for (let i = 1; i < events.length; i++) assert.ok(events[i]!.seq > events[i - 1]!.seq, 'seq ascends')
    }
    assert.deepEqual(
      consumers.flatMap(consumer => consumer.errors),
      [],
    )
  } finally {
    await Promise.all(consumers.map(consumer => consumer.close()))
  }
})

test('the Relay knows the host and the accounts, and sends readers of a repository to its PDS', async () => {
  const hosts = await until('the host is listed', async () => {
    const reply = await fetch(`${network.relay}/xrpc/com.atproto.sync.listHosts`)
    const { hosts } = (await reply.json()) as { hosts: { hostname: string; status: string; accountCount: number }[] }
    return hosts.length > 0 && hosts
  })
  assert.equal(hosts[0]!.hostname, new URL(network.pds).host)
  assert.equal(hosts[0]!.status, 'active')
  assert.equal(hosts[0]!.accountCount, 2)

  const { repos } = (await (await fetch(`${network.relay}/xrpc/com.atproto.sync.listRepos`)).json()) as {
    repos: { did: string; head: string; rev: string; active: boolean }[]
  }
  assert.equal(repos.length, 2)
  for (const { did, head, rev } of repos) {
    const ask = async (server: string, method: string) =>
      (await (await fetch(`${server}/xrpc/com.atproto.sync.${method}?did=${did}`)).json()) as Record<string, unknown>
    assert.deepEqual(await ask(network.relay, 'getLatestCommit'), { cid: head, rev })
    assert.deepEqual(await ask(network.pds, 'getLatestCommit'), { cid: head, rev })
    assert.deepEqual(await ask(network.relay, 'getRepoStatus'), { did, active: true, rev })
    const redirect = await fetch(`${network.relay}/xrpc/com.atproto.sync.getRepo?did=${did}`, { redirect: 'manual' })
    assert.equal(redirect.status, 302)
    const car = await fetch(redirect.headers.get('location')!)
    assert.equal(car.headers.get('content-type'), 'application/vnd.ipld.car')
  }
})
