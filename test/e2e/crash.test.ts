// Power cuts: PDS and Relay are killed in the middle of a write storm and started again. What was acknowledged is there,
// no sequence number is used twice, and consumers go on from their cursor without a gap or a duplicate.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { setTimeout as wait } from 'node:timers/promises'
import { until } from '@millisky/server/testing-until'
import { atcuteConsumer, type Message } from './consumers.ts'
import { type Daemons, startDaemons } from './network.ts'

const ACCOUNTS = 4
const WRITERS_EACH = 2
const KILLS = 3

let daemons: Daemons
before(async () => {
  daemons = await startDaemons()
})
after(() => daemons?.stop())

interface Account {
  did: string
  accessJwt: string
}

async function post<T>(url: string, body: unknown, token?: string): Promise<T> {
  const reply = await fetch(url, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...(token ? { authorization: `Bearer ${token}` } : {}) },
    body: JSON.stringify(body),
    signal: AbortSignal.timeout(20_000),
  })
  if (!reply.ok) throw new Error(`${url}: ${reply.status} ${await reply.text()}`)
  return (await reply.json()) as T
}

/** Writes until told to stop; only what was answered with 200 counts as acknowledged. */
async function storm(account: Account, acknowledged: Map<string, string>, stop: AbortSignal): Promise<void> {
  const url = `${daemons.pds.url}/xrpc/com.atproto.repo.createRecord`
  const collection = 'app.bsky.feed.post'
  while (!stop.aborted) {
    const record = { $type: collection, text: `number ${acknowledged.size}`, createdAt: new Date().toISOString() }
    try {
      const { uri, cid } = await post<{ uri: string; cid: string }>(
        url,
        { repo: account.did, collection, record },
        account.accessJwt,
      )
      acknowledged.set(uri, cid)
    } catch {
      await wait(30)
    }
  }
}

/** Creates accounts, each with a picture in its profile, until told to stop; what was answered is remembered. */
async function newcomers(joined: Map<string, { cid: string; bytes: Uint8Array } | null>, stop: AbortSignal) {
  for (let n = 0; !stop.aborted; n++) {
    try {
      const { did, accessJwt } = await post<Account>(`${daemons.pds.url}/xrpc/com.atproto.server.createAccount`, {
        handle: `newcomer${n}.test`,
        email: `newcomer${n}@example.com`,
        password: 'newcomer-password',
      })
      joined.set(did, null)
      const bytes = Buffer.from(`picture ${n} of ${did}`)
      const reply = await fetch(`${daemons.pds.url}/xrpc/com.atproto.repo.uploadBlob`, {
        method: 'POST',
        headers: { authorization: `Bearer ${accessJwt}`, 'content-type': 'image/png' },
        body: bytes,
        signal: AbortSignal.timeout(20_000),
      })
      if (!reply.ok) throw new Error(await reply.text())
      const { blob } = (await reply.json()) as { blob: { ref: { $link: string } } }
      const record = { $type: 'com.example.picture', blob }
      const write = { repo: did, collection: 'com.example.picture', record, validate: false }
      await post(`${daemons.pds.url}/xrpc/com.atproto.repo.createRecord`, write, accessJwt)
      joined.set(did, { cid: blob.ref.$link, bytes })
    } catch {
      await wait(30)
    }
  }
}

function created(messages: Message[]): string[] {
  return messages.flatMap(message =>
    (message.ops ?? []).filter(op => op.action === 'create').map(op => `at://${message.repo}/${op.path}`),
  )
}

function assertNoGapNoDuplicate(name: string, messages: Message[], acknowledged: Map<string, string>): void {
  for (let i = 1; i < messages.length; i++) {
    assert.ok(messages[i]!.seq > messages[i - 1]!.seq, `${name}: seq ${messages[i]!.seq} after ${messages[i - 1]!.seq}`)
  }
  const uris = created(messages)
  assert.equal(new Set(uris).size, uris.length, `${name}: a record was announced twice`)
  const seen = new Set(uris)
  const lost = [...acknowledged.keys()].filter(uri => !seen.has(uri))
  assert.deepEqual(lost, [], `${name}: acknowledged but never announced`)
}

test('kill -9 of PDS and Relay in a write storm loses and repeats nothing', { timeout: 170_000 }, async () => {
  const accounts: Account[] = []
  for (let i = 0; i < ACCOUNTS; i++) {
    accounts.push(
      await post(`${daemons.pds.url}/xrpc/com.atproto.server.createAccount`, {
        handle: `storm${i}.test`,
        email: `storm${i}@example.com`,
        password: 'storm-password',
      }),
    )
  }
  const fromPds = atcuteConsumer(daemons.pds.url, 0)
  const fromRelay = atcuteConsumer(daemons.relay.url, 0)
  const acknowledged = new Map<string, string>()
  const stop = new AbortController()
  const joined = new Map<string, { cid: string; bytes: Uint8Array } | null>()
  const joining = newcomers(joined, stop.signal)
  const writers = accounts.flatMap(account =>
    Array.from({ length: WRITERS_EACH }, () => storm(account, acknowledged, stop.signal)),
  )
  try {
    for (let kill = 0; kill < KILLS; kill++) {
      for (const daemon of [daemons.pds, daemons.relay]) {
        const before = acknowledged.size
        await until('the storm goes on', () => acknowledged.size > before + 40 || undefined)
        await daemon.kill()
        await daemon.start()
      }
    }
    const before = acknowledged.size
    await until('the storm survives', () => acknowledged.size > before + 40 || undefined)
  } catch (err) {
    await Promise.all([fromPds.close(), fromRelay.close()])
    throw err
  } finally {
    stop.abort()
    await Promise.all([...writers, joining])
  }
  // One last record of each account: whoever has that has all of the account, also what was written and not acknowledged.
  for (const { did, accessJwt } of accounts) {
    const record = { $type: 'app.bsky.feed.post', text: 'the last one', createdAt: new Date().toISOString() }
    const write = { repo: did, collection: 'app.bsky.feed.post', record }
    const { uri, cid } = await post<{ uri: string; cid: string }>(
      `${daemons.pds.url}/xrpc/com.atproto.repo.createRecord`,
      write,
      accessJwt,
    )
    acknowledged.set(uri, cid)
  }
  const told = (messages: Message[], did: string) =>
    messages.filter(({ $type, did: who }) => $type.endsWith('#account') && who === did).length
  const all = (messages: Message[]) => {
    if ([...joined.keys()].some(did => told(messages, did) === 0)) return false
    const seen = new Set(created(messages))
    return [...acknowledged.keys()].every(uri => seen.has(uri))
  }
  await until('consumers have it all', () => (all(fromPds.events) && all(fromRelay.events)) || undefined, 60_000).catch(
    () => undefined,
  )
  await Promise.all([fromPds.close(), fromRelay.close()])
  assertNoGapNoDuplicate('PDS', fromPds.events, acknowledged)
  assertNoGapNoDuplicate('Relay', fromRelay.events, acknowledged)

  assert.ok(joined.size > 0, 'accounts were created')
  for (const [did, picture] of joined) {
    assert.deepEqual([told(fromPds.events, did), told(fromRelay.events, did)], [1, 1], `${did} was announced once`)
    if (picture === null) continue
    const reply = await fetch(`${daemons.pds.url}/xrpc/com.atproto.sync.getBlob?did=${did}&cid=${picture.cid}`)
    assert.deepEqual(Buffer.from(await reply.arrayBuffer()), picture.bytes, `the picture of ${did} is there`)
  }
  for (const { did } of accounts) {
    const stored = new Map<string, string>()
    let cursor: string | undefined
    do {
      const query = `repo=${did}&collection=app.bsky.feed.post&limit=100${cursor ? `&cursor=${cursor}` : ''}`
      const reply = await fetch(`${daemons.pds.url}/xrpc/com.atproto.repo.listRecords?${query}`)
      const page = (await reply.json()) as { records: { uri: string; cid: string }[]; cursor?: string }
      for (const { uri, cid } of page.records) stored.set(uri, cid)
      cursor = page.records.length > 0 ? page.cursor : undefined
    } while (cursor)
    for (const [uri, cid] of acknowledged) {
      if (uri.startsWith(`at://${did}/`)) assert.equal(stored.get(uri), cid, `${uri} is stored as acknowledged`)
    }
    // Both streams tell exactly what the repository holds: also what was written but never acknowledged.
    for (const messages of [fromPds.events, fromRelay.events]) {
      const announced = created(messages).filter(uri => uri.startsWith(`at://${did}/`))
      assert.deepEqual(announced.sort(), [...stored.keys()].sort())
    }
  }
})
