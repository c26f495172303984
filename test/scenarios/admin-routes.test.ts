// Every admin route of deployed relays, in the words of each of them: what scripts send, and what they read of the answer.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { until } from '@millisky/server/testing-until'
import type { FakeAccount } from '../e2e/fake-pds.ts'
import { PASSWORD, World } from './world.ts'

let world: World
let name: string
let did: string
before(async () => {
  world = await World.start()
  const { pds, accounts, name: hostname } = await world.host('alice')
  name = hostname
  did = (accounts[0] as FakeAccount).did
  pds.sendPost(accounts[0]!, 'hello')
  await world.settled(pds, 1)
})
after(() => world.stop())

const BASIC = `Basic ${Buffer.from(`admin:${PASSWORD}`).toString('base64')}`
const BEARER = `Bearer ${PASSWORD}`
const SUCCESS = { success: 'true' }
type Shape = (body: never) => void
/** Method and path, body, status, and the answer or a look at it. */
type Case = [request: string, body: object | undefined, status: number, answer: unknown | Shape]

const isList: Shape = body => assert.ok(Array.isArray(body))
const names =
  (error: string): Shape =>
  (body: { error: string; message: string }) => {
    assert.equal(body.error, error)
    assert.equal(typeof body.message, 'string')
  }
const fields =
  (...wanted: string[]): Shape =>
  (body: Record<string, unknown>[]) => {
    for (const field of wanted) assert.ok(field in (body[0] ?? {}), field)
  }

/** In an order in which one follows from the other. */
const cases = (): Case[] => [
  ['GET subs/getUpstreamConns', undefined, 200, [name]],
  ['POST subs/setPerDayLimit?limit=12', undefined, 200, SUCCESS],
  ['GET subs/perDayLimit', undefined, 200, { limit: 12 }],
  ['POST subs/setPerDayLimit?limit=many', undefined, 400, names('InvalidRequest')],
  ['POST subs/setEnabled?enabled=false', undefined, 200, SUCCESS],
  ['GET subs/getEnabled', undefined, 200, { enabled: false }],
  ['POST subs/setEnabled?enabled=maybe', undefined, 400, names('InvalidRequest')],
  ['GET subs/getEnabled', undefined, 200, { enabled: false }],
  // In all the ways in which Go reads it.
  ['POST subs/setEnabled?enabled=1', undefined, 200, SUCCESS],
  ['GET subs/getEnabled', undefined, 200, { enabled: true }],
  ['POST subs/setEnabled?enabled=F', undefined, 200, SUCCESS],
  ['GET subs/getEnabled', undefined, 200, { enabled: false }],
  ['POST subs/setEnabled?enabled=true', undefined, 200, SUCCESS],
  ['POST subs/banDomain', { Domain: 'bad.example.com' }, 200, SUCCESS],
  ['POST subs/banDomain', { domain: 'bad.example.com' }, 400, names('AlreadyBanned')],
  ['GET subs/listDomainBans', undefined, 200, { banned_domains: ['bad.example.com'] }],
  ['POST subs/unbanDomain', { Domain: 'bad.example.com' }, 200, SUCCESS],
  ['POST subs/killUpstream', undefined, 400, names('InvalidRequest')],
  ['POST subs/killUpstream?host=nobody.example.com', undefined, 400, names('NotConnected')],
  ['POST subs/killUpstream?host=nobody.example.com&block=true', undefined, 400, names('NotConnected')],
  [`POST subs/killUpstream?host=${name}&block=perhaps`, undefined, 400, names('InvalidRequest')],
  [`POST subs/killUpstream?host=${name}`, undefined, 200, SUCCESS],
  [`POST subs/killUpstream?host=${name}`, undefined, 400, names('NotConnected')],
  ['POST pds/requestCrawl', { hostname: name }, 200, SUCCESS],
  [`POST subs/killUpstream?host=${name}&block=true`, undefined, 200, SUCCESS],
  [`POST pds/unblock?host=${name}`, undefined, 200, SUCCESS],
  [`POST pds/block?host=${name}`, undefined, 200, SUCCESS],
  [`POST pds/unban?host=${name}`, undefined, 200, { host: name, banned: false }],
  [`POST pds/ban?host=${name}`, undefined, 200, { host: name, banned: true }],
  [
    'GET pds/listBans',
    undefined,
    200,
    (body: { banned_hosts: object[] }) => fields('host', 'created_at')(body.banned_hosts as never),
  ],
  [`POST pds/unblock?host=${name}`, undefined, 200, SUCCESS],
  ['POST pds/unblock?host=nobody.example.com', undefined, 404, names('HostNotFound')],
  // bigsky's fields and those of indigo's relay.
  ['GET pds/list', undefined, 200, fields('ID', 'CreatedAt', 'UpdatedAt', 'DeletedAt', 'Host', 'Did', 'SSL', 'Cursor')],
  [
    'GET pds/list',
    undefined,
    200,
    fields('Registered', 'Blocked', 'RateLimit', 'CrawlRateLimit', 'RepoCount', 'RepoLimit'),
  ],
  ['GET pds/list', undefined, 200, fields('HourlyEventLimit', 'DailyEventLimit', 'HasActiveConnection', 'UserCount')],
  ['GET pds/list', undefined, 200, fields('EventsSeenSinceStartup', 'PerSecondEventRate', 'PerHourEventRate')],
  [
    'GET pds/list',
    undefined,
    200,
    fields('PerDayEventRate', 'CrawlRate', 'AccountLimitAlertsSilenced', 'AccountLimitAlertState'),
  ],
  [
    'POST pds/changeLimits',
    { host: name, per_second: 100, per_hour: 1_000_000, per_day: 1_000_000, crawl_rate: 10, repo_limit: 1_000_000 },
    200,
    SUCCESS,
  ],
  ['POST pds/changeLimits', { host: name, repo_limit: 500, account_limit_alerts_silenced: true }, 200, SUCCESS],
  ['POST pds/changeLimits', { repo_limit: 500 }, 400, names('InvalidRequest')],
  ['POST pds/changeLimits', { host: 'nobody.example.com', repo_limit: 500 }, 404, names('HostNotFound')],
  ['POST pds/addTrustedDomain?domain=good.example.com', undefined, 200, { success: true }],
  ['POST pds/addTrustedDomain?domain=good.example.com', undefined, 400, names('AlreadyTrusted')],
  ['POST repo/takeDown', { did }, 200, SUCCESS],
  ['GET repo/takedowns', undefined, 200, { dids: [did] }],
  // bigsky reads the query, indigo's relay the body.
  [`POST repo/reverseTakedown?did=${did}`, undefined, 200, SUCCESS],
  [`POST repo/takeDown?did=${did}`, undefined, 200, SUCCESS],
  ['POST repo/reverseTakedown', { did }, 200, SUCCESS],
  ['GET repo/takedowns', undefined, 200, { dids: [] }],
  ['GET repo/takedowns?cursor=0', undefined, 200, { dids: [] }],
  ['GET repo/takedowns?cursor=did:web:a.example.com', undefined, 400, names('InvalidRequest')],
  ['POST repo/takeDown', { did: 'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa' }, 404, names('RepoNotFound')],
  ['POST repo/takeDown', {}, 400, names('InvalidRequest')],
  [`POST repo/compact?did=${did}&fast=true`, undefined, 501, names('MethodNotImplemented')],
  ['POST repo/compactAll?fast=true&limit=50&threshold=20', undefined, 501, names('MethodNotImplemented')],
  ['POST repo/compactAll?threhsold=20', undefined, 501, names('MethodNotImplemented')],
  [`POST repo/reset?did=${did}`, undefined, 501, names('MethodNotImplemented')],
  [`POST repo/verify?did=${did}`, undefined, 501, names('MethodNotImplemented')],
  [`POST pds/resync?host=${name}`, undefined, 501, names('MethodNotImplemented')],
  [`GET pds/resync?host=${name}`, undefined, 501, names('MethodNotImplemented')],
  ['POST alerts/accountLimitSent', { kind: 'warning', hostID: 1 }, 501, names('MethodNotImplemented')],
  ['GET consumers/list', undefined, 200, isList],
]

for (const [form, authorization] of [
  ['Basic', BASIC],
  ['Bearer', BEARER],
] as const) {
  test(`every route answers as in deployed relays, with ${form}`, async () => {
    for (const [request, body, status, answer] of cases()) {
      const [method = '', path] = request.split(' ')
      if (path?.includes('domain=good') && status === 200)
        await world.relay.hosts.removeTrustedDomain('good.example.com').catch(() => {})
      if (path?.startsWith('subs/killUpstream') && status === 200) {
        await until('it is connected', () => world.relay.hosts.byName(name)?.connectedAt)
      }
      const reply = await fetch(`${world.relay.url}/admin/${path}`, {
        method,
        headers: { authorization, ...(body ? { 'content-type': 'application/json' } : {}) },
        ...(body ? { body: JSON.stringify(body) } : {}),
      })
      const text = await reply.text()
      assert.equal(reply.status, status, `${request}: ${text}`)
      assert.match(reply.headers.get('content-type') ?? '', /^application\/json/, request)
      if (typeof answer === 'function') (answer as Shape)(JSON.parse(text) as never)
      else assert.deepEqual(JSON.parse(text), answer, request)
    }
  })
}

test('a host that nobody has heard of can be banned, for the day on which it comes', async () => {
  const ban = await world.post('/admin/pds/block?host=spam.example.com&reason=known')
  assert.deepEqual([ban.status, ban.body], [200, SUCCESS])
  assert.deepEqual((await world.post('/admin/pds/ban?host=other.example.com')).body, {
    host: 'other.example.com',
    banned: true,
  })
  const { body } = await world.get<{ banned_hosts: { host: string; reason: string }[] }>('/admin/pds/listBans')
  assert.deepEqual(
    body.banned_hosts.map(({ host, reason }) => [host, reason]),
    [
      ['spam.example.com', 'known'],
      ['other.example.com', 'blocked by an administrator'],
    ],
  )
  const refused = await world.post('/xrpc/com.atproto.sync.requestCrawl', { hostname: 'spam.example.com' })
  assert.deepEqual([refused.status, refused.body.error], [400, 'HostBanned'])
})

test('no route answers without the password', async () => {
  for (const [request] of cases()) {
    const [method = '', path] = request.split(' ')
    for (const authorization of [undefined, 'Bearer guess', `Basic ${btoa(`root:${PASSWORD}`)}`, 'Basic !', PASSWORD]) {
      const headers = authorization === undefined ? {} : { authorization }
      const reply = await fetch(`${world.relay.url}/admin/${path}`, { method, headers })
      assert.equal(reply.status, 401, `${request} with ${authorization}`)
      await reply.body?.cancel()
    }
  }
})
