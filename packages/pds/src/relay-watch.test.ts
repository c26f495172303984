import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer, type IncomingMessage, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { type TestContext, test } from 'node:test'
import { testDid } from '@millisky/core/testing-repos'
import type { Answer, FetchBytes } from '@millisky/server/fetch'
import { createMetrics, type silentLog } from '@millisky/server/trace'
import fc from 'fast-check'
import { asked, judge, VERDICTS } from './relay-verdict.ts'
import { RelayWatch } from './relay-watch.ts'
import { signUp, startNetworkedPds } from './testing-network.ts'
import { basic, startTestPds } from './testing-pds.ts'

const MINUTE = 60_000
type Said = { status: number; body: unknown } | Error

/** A world with one relay that says what it is told to, and a clock that is set. */
function world() {
  const its = {
    says: { status: 200, body: {} } as Said,
    ownSeq: 10,
    now: 0,
    announced: [] as number[],
    waits: [] as number[],
    lines: [] as string[],
    onSleep: () => {},
  }
  const fetch: FetchBytes = async url => {
    assert.equal(String(url), 'https://relay.test/xrpc/com.atproto.sync.getHostStatus?hostname=pds.test')
    if (its.says instanceof Error) throw its.says
    const bytes = Buffer.from(JSON.stringify(its.says.body))
    return { status: its.says.status, bytes, headers: new Headers(), url: String(url) } as unknown as Answer
  }
  const say = (level: string) => (_about: object, text: string) => its.lines.push(`${level}: ${text}`)
  const log = { info: say('info'), warn: say('warn'), error: say('error') } as unknown as typeof silentLog
  const metrics = createMetrics()
  const watch = new RelayWatch({
    relays: ['https://relay.test'],
    publicHost: 'pds.test',
    head: () => its.ownSeq,
    announce: () => its.announced.push(its.now),
    fetch,
    log,
    metrics,
    now: () => its.now,
    intervalMs: 10 * MINUTE,
    sleep: async ms => {
      its.waits.push(ms)
      its.onSleep()
    },
  })
  const look = async (says: Said, { after = 10 * MINUTE, ownSeq = its.ownSeq } = {}) => {
    Object.assign(its, { says, now: its.now + after, ownSeq })
    await watch.check()
    const { verdict, severity } = watch.relays[0]!
    return `${severity} ${verdict}`
  }
  return { its, watch, look, metrics }
}

const active = (seq?: number) => ({
  status: 200,
  body: { hostname: 'pds.test', status: 'active', seq, accountCount: 3 },
})
const of = (status: string) => ({ status: 200, body: { hostname: 'pds.test', status, seq: 10 } })

test('a relay that follows is left alone; each other state is told once, with what to do', async () => {
  const { its, watch, look } = world()
  assert.equal(watch.relays[0]!.verdict, 'unchecked')
  assert.equal(await look(active(10)), 'fine follows')
  assert.equal(await look(of('idle')), 'fine follows')
  assert.equal(await look(of('banned')), 'critical banned')
  assert.equal(await look(of('throttled')), 'warning throttled')
  assert.equal(await look({ status: 500, body: {} }), 'warning silent')
  assert.equal(await look(new Error('ECONNREFUSED')), 'warning silent')
  assert.equal(await look({ status: 404, body: { error: 'NotFound', message: 'Not Found' } }), 'fine mute')
  assert.equal(await look({ status: 501, body: { error: 'MethodNotImplemented' } }), 'fine mute')
  assert.deepEqual(its.announced, [], 'asking again mends none of these')
  assert.equal(its.lines.length, 5)
  assert.match(its.lines[1]!, /^error: It bans this server/)
  assert.equal(watch.relays[0]!.accounts, null)
  await watch.close()
})

test('a relay that does not know us, or lost us, is asked to crawl: ever more rarely while that does not help', async () => {
  const { its, watch, look } = world()
  for (const body of [{ error: 'HostNotFound' }, { error: 'InvalidRequest', message: 'host not found' }]) {
    assert.equal(await look({ status: 400, body }), 'warning unknown')
  }
  assert.deepEqual(its.announced, [10 * MINUTE], 'not again after ten minutes')
  for (let i = 0; i < 24 * 6; i++) await look({ status: 404, body: { error: 'HostNotFound' } })
  const gaps = its.announced.slice(1).map((at, i) => (at - its.announced[i]!) / MINUTE)
  assert.deepEqual(gaps.slice(0, 6), [20, 40, 80, 160, 320, 360])
  assert.equal(await look(active(10)), 'fine follows')
  const before = its.announced.length
  assert.equal(await look(of('offline')), 'warning offline')
  assert.equal(its.announced.length, before + 1, 'what is new is tried at once')
  assert.equal(watch.relays[0]!.announcedAt, its.now)
  await watch.close()
})

test('a relay that takes nothing is found out, one that is late or was asked a moment ago is not', async () => {
  const { its, watch, look } = world()
  assert.equal(await look(active(10), { ownSeq: 10 }), 'fine follows')
  assert.equal(await look(active(10), { ownSeq: 12 }), 'fine follows', 'these came since the last look')
  assert.equal(await look(active(10), { after: 1_000 }), 'fine follows', 'no time to move')
  assert.equal(await look(active(11)), 'fine follows', 'it moves')
  assert.equal(await look(active(11)), 'warning stuck')
  assert.equal(await look(active(11), { after: 1_000 }), 'warning stuck')
  assert.deepEqual(its.announced.length, 1)
  assert.equal(await look(active(12)), 'fine follows')
  assert.equal(await look(active(13), { ownSeq: 20_000 }), 'warning behind')
  await watch.close()
  const fresh = world()
  assert.equal(await fresh.look(active(), { ownSeq: 10 }), 'fine follows', 'it may have begun at the end')
  assert.equal(await fresh.look(active(), { ownSeq: 10 }), 'fine follows')
  assert.equal(await fresh.look(active(), { ownSeq: 11 }), 'fine follows')
  assert.equal(await fresh.look(active()), 'warning stuck')
  await fresh.watch.close()
})

test('a relay that has seen more than there is: critical, unless the events were only just written elsewhere', async () => {
  const { its, watch, look, metrics } = world()
  its.onSleep = () => {
    its.ownSeq = 11
  }
  assert.equal(await look(active(11)), 'fine follows')
  assert.deepEqual(its.waits, [2_000])
  assert.equal(await look({ status: 200, body: { status: 'offline', seq: 500 } }), 'critical ahead')
  assert.match(watch.relays[0]!.advice!, /PDS_FIRST_SEQ=100500\b/)
  assert.deepEqual(its.announced, [])
  const text = await metrics.text()
  assert.match(text, /pds_relay_verdict\{relay="relay.test",verdict="ahead"\} 1/)
  assert.match(text, /pds_relay_verdict\{relay="relay.test",verdict="follows"\} 0/)
  assert.match(text, /pds_relay_seq\{relay="relay.test"\} 500/)
  assert.match(text, /pds_log_head_seq 11/)
  await look(active(Number.MAX_SAFE_INTEGER))
  assert.match(watch.relays[0]!.advice!, /cannot be/, 'a seq that would use up all numbers is not advised')
  await watch.close()
})

test('whatever a relay answers is a verdict', () => {
  const seq = fc.oneof(fc.maxSafeNat(), fc.constantFrom(null, -1, 0.5, '5', {}, 2 ** 60))
  const body = fc.oneof(
    fc.string(),
    fc.jsonValue().map(value => JSON.stringify(value)),
    fc
      .record({ seq, status: fc.oneof(fc.string(), fc.constantFrom('active', 'banned', 4)), error: fc.string() })
      .map(value => JSON.stringify(value)),
  )
  fc.assert(
    fc.property(fc.integer({ min: 200, max: 599 }), body, fc.nat(), (status, text, ownSeq) => {
      const found = judge(asked({ status, bytes: Buffer.from(text) }), ownSeq, null)
      assert.ok(VERDICTS.includes(found.verdict))
      assert.equal(found.advice === null, found.verdict === 'follows')
      // biome-ignore lint/suspicious/noControlCharactersInRegex: they must not reach the log
      assert.doesNotMatch(found.advice ?? '', /[\0-\x1f]/)
    }),
  )
})

/** A relay over a real socket. */
async function standIn(t: TestContext) {
  const requests: string[] = []
  const its = { status: 400, body: { error: 'HostNotFound', message: 'no such host' } as object, requests, url: '' }
  const server: Server = createServer(async (request: IncomingMessage, response) => {
    const chunks: Buffer[] = []
    for await (const chunk of request) chunks.push(chunk)
    const path = request.url!.replace('/xrpc/com.atproto.sync.', '')
    requests.push(`${request.method} ${path} ${Buffer.concat(chunks)}`.trim())
    const isStatus = path.startsWith('getHostStatus')
    response.writeHead(isStatus ? its.status : 200, { 'content-type': 'application/json' })
    response.end(JSON.stringify(isStatus ? its.body : {}))
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.after(() => new Promise(done => server.close(done).closeAllConnections()))
  its.url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  return its
}

test('a server asks its relays, says what it found, and is not thought ill because of them', async t => {
  const relay = await standIn(t)
  const pds = await startNetworkedPds(t, { PDS_CRAWLERS: `${relay.url},http://127.0.0.1:1` }, {})
  // Tests give a fetch that may be interfered with; here it reaches the sockets as it is.
  const status = async () => (await pds.get('net.millisky.pds.getRelayStatus', { check: true }, basic())).json
  const alice = await signUp(pds, 'alice')
  const first = await status()
  assert.deepEqual(
    first.relays.map(({ relay, verdict }: { relay: string; verdict: string }) => [relay, verdict]),
    [
      [relay.url, 'unknown'],
      ['http://127.0.0.1:1', 'silent'],
    ],
  )
  assert.equal(first.hostname, pds.names.publicHost)
  assert.ok(first.seq >= 4)
  const hostname = encodeURIComponent(pds.names.publicHost)
  assert.ok(relay.requests.includes(`GET getHostStatus?hostname=${hostname}`), relay.requests.join('\n'))
  assert.ok(relay.requests.includes(`POST requestCrawl {"hostname":"${pds.names.publicHost}"}`))
  Object.assign(relay, { status: 200, body: { hostname: pds.names.publicHost, seq: first.seq, status: 'active' } })
  const [now] = (await status()).relays
  assert.deepEqual([now.verdict, now.severity, now.seq, now.advice], ['follows', 'fine', first.seq, undefined])
  assert.equal((await fetch(`${pds.url}/xrpc/_health`)).status, 200)

  assert.equal((await pds.post('net.millisky.pds.announceAccount', { did: alice.did }, null, basic())).status, 200)
  assert.equal(pds.store.log.head - first.seq, 4, 'a commit, the status, the identity and a sync')
  const nobody = await pds.post('net.millisky.pds.announceAccount', { did: testDid('nobody') }, null, basic())
  assert.deepEqual([nobody.status, nobody.json.error], [400, 'NotFound'])
})

test('with a first seq, events come above it, and consumers who were further than that may go on', async t => {
  const pds = await startTestPds(t, { PDS_FIRST_SEQ: '100500' })
  assert.equal(pds.store.log.head, 100_499)
  await pds.user('alice')
  assert.ok(pds.store.log.head >= 100_500)
})
