import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { Refused } from '@millisky/core/errors'
import { createHttp, listen } from './http.ts'
import { addressKey, applyRates, bypassOf, RateLimit, type RateRule } from './rate.ts'
import { silentLog } from './trace.ts'

const http = createHttp({ log: silentLog, product: 'test' })
after(() => http.close())

let rules: RateRule<string>[] = []
http.get<{ Querystring: { who: string } }>('/limited', async (request, reply) => {
  const allowance = await applyRates(rules, request.query.who, reply)
  return { left: allowance?.remaining ?? null }
})
const bypass = bypassOf({ key: 'let me in', ips: ['10.0.0.1'] })
http.get('/bypass', async request => ({ free: bypass(request) }))
const url = await listen(http, { port: 0 })
const get = (who: string) => fetch(`${url}/limited?who=${who}`)

test('headers of a served call, then 429 with Retry-After', async () => {
  rules = [{ limit: new RateLimit('a', { points: 2, windowMs: 300_000 }), key: who => who }]
  const before = Date.now()
  const first = await get('alice')
  assert.equal(first.status, 200)
  assert.equal(first.headers.get('ratelimit-limit'), '2')
  assert.equal(first.headers.get('ratelimit-remaining'), '1')
  assert.equal(first.headers.get('ratelimit-policy'), '2;w=300')
  const reset = Number(first.headers.get('ratelimit-reset'))
  assert.ok(reset >= Math.floor(before / 1000) + 299 && reset <= Date.now() / 1000 + 301, String(reset))
  assert.equal(first.headers.get('retry-after'), null)
  assert.match(first.headers.get('access-control-expose-headers') ?? '', /RateLimit-Policy/)
  await get('alice')
  const third = await get('alice')
  assert.equal(third.status, 429)
  assert.deepEqual(await third.json(), { error: 'RateLimitExceeded', message: 'Rate Limit Exceeded' })
  assert.equal(third.headers.get('ratelimit-remaining'), '0')
  const wait = Number(third.headers.get('retry-after'))
  assert.ok(wait > 290 && wait <= 300, String(wait))
  assert.equal((await get('bob')).status, 200)
})

test('of several limits the tightest is shown and any of them refuses', async () => {
  const small = new RateLimit('small', { points: 3, windowMs: 60_000 })
  const large = new RateLimit('large', { points: 100, windowMs: 3_600_000 })
  rules = [
    { limit: large, key: who => who },
    { limit: small, key: who => who },
  ]
  const reply = await get('alice')
  assert.equal(reply.headers.get('ratelimit-policy'), '3;w=60')
  assert.deepEqual(await reply.json(), { left: 2 })
  await get('alice')
  await get('alice')
  assert.equal((await get('alice')).headers.get('ratelimit-policy'), '3;w=60')
  assert.equal((await get('alice')).status, 429)
})

test('points, nobody, nothing, and a fresh start', async () => {
  const limit = new RateLimit('writes', { points: 5, windowMs: 60_000 })
  rules = [{ limit, key: who => (who === 'nobody' ? null : who), points: who => (who === 'free' ? 0 : 3) }]
  for (const who of ['nobody', 'free']) {
    for (let i = 0; i < 10; i++) assert.equal((await get(who)).headers.get('ratelimit-limit'), null)
  }
  assert.deepEqual(await (await get('alice')).json(), { left: 2 })
  assert.equal((await get('alice')).status, 429)
  await limit.reset('alice')
  assert.deepEqual(await (await get('alice')).json(), { left: 2 })
})

test('a limit that was passed before counts for the headers of the next round', async () => {
  const reply = { header: () => reply } as unknown as Parameters<typeof applyRates>[2]
  const limit = new RateLimit('z', { points: 10, windowMs: 1000 })
  const before = { points: 5, windowSeconds: 1, remaining: 1, resetMs: 1, isExceeded: false }
  assert.equal(await applyRates([{ limit, key: () => 'k' }], 'x', reply, before), before)
  const refused = applyRates([{ limit, key: () => 'k', points: () => 50 }], 'x', reply, before)
  await assert.rejects(refused, error => error instanceof Refused && error.status === 429)
})

test('bypass by key or address', async () => {
  const free = async (headers: Record<string, string>) =>
    ((await (await fetch(`${url}/bypass`, { headers })).json()) as { free: boolean }).free
  assert.equal(await free({}), false)
  assert.equal(await free({ 'x-ratelimit-bypass': 'wrong' }), false)
  assert.equal(await free({ 'x-ratelimit-bypass': 'let me in' }), true)
  const byAddress = bypassOf({ ips: ['127.0.0.1'] })
  assert.equal(byAddress({ headers: {}, ip: '127.0.0.1' } as never), true)
  assert.equal(byAddress({ headers: { 'x-ratelimit-bypass': '' }, ip: '127.0.0.2' } as never), false)
})

test('one customer is one key', () => {
  const cases = [
    ['203.0.113.7', '203.0.113.7'],
    ['::ffff:203.0.113.7', '203.0.113.7'],
    ['2001:db8:1:2:3:4:5:6', '2001:db8:1:2::/64'],
    ['2001:db8:1:2::', '2001:db8:1:2::/64'],
    ['::1', '0:0:0:0::/64'],
    ['not:an:address', 'not:an:address'],
  ] as const
  for (const [ip, key] of cases) assert.equal(addressKey(ip), key, ip)
})
