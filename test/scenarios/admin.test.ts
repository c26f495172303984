// Routes of administrators, as scripts for deployed relays call them.
import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import { after, before, test } from 'node:test'
import { GUESS_DEFAULTS } from '@millisky/server/guesses'
import { until } from '@millisky/server/testing-until'
import type { FakePds } from '../e2e/fake-pds.ts'
import { World } from './world.ts'

let world: World
let pds: FakePds
let name: string
before(async () => {
  world = await World.start({ env: { RELAY_TRUST_PROXY: 'loopback' } })
  ;({ pds, name } = await world.host('alice'))
})
after(() => world.stop())

test('routes about mirrored repositories say that there is none', async () => {
  for (const path of [
    'repo/compact?did=did:web:x',
    'repo/compactAll?threhsold=20',
    'repo/reset',
    'repo/verify',
    'pds/resync',
  ]) {
    const { status, body } = await world.post(`/admin/${path}`)
    assert.deepEqual([path, status, body.error], [path, 501, 'MethodNotImplemented'])
  }
  assert.equal((await world.get('/admin/pds/resync?host=x')).status, 501)
})

test('settings are kept over a restart', async () => {
  for (const path of ['subs/setPerDayLimit?limit=7', 'subs/setEnabled?enabled=false']) {
    assert.equal((await world.post(`/admin/${path}`)).status, 200)
  }
  assert.deepEqual((await world.post('/admin/pds/addTrustedDomain?domain=*.pds.example.com')).body, { success: true })
  assert.equal((await world.post('/admin/pds/addTrustedDomain?domain=*.pds.example.com')).status, 400)
  assert.equal((await world.post('/admin/consumers/setLimits', { consumersPerAddressMax: 2 })).status, 200)
  await world.restart()
  assert.deepEqual((await world.get('/admin/subs/perDayLimit')).body, { limit: 7 })
  assert.deepEqual((await world.get('/admin/subs/getEnabled')).body, { enabled: false })
  assert.deepEqual((await world.get('/admin/pds/listTrustedDomains')).body, {
    trusted_domains: ['*.host.bsky.network', '*.pds.example.com'],
  })
  assert.equal((await world.get('/admin/consumers/limits')).body.consumersPerAddressMax, 2)
  assert.equal(world.relay.hosts.isTrusted('a.pds.example.com'), true)
  assert.equal(world.relay.hosts.isTrusted('pds.example.com'), false)
  assert.equal((await pds.requestCrawl(world.relay.url)).status, 403)
  await world.post('/admin/subs/setEnabled', { enabled: true })
})

test('hosts are banned and listed in the way of either kind of relay', async () => {
  assert.deepEqual((await world.post(`/admin/pds/ban?host=${name}`)).body, { host: name, banned: true })
  const { body } = await world.get<{ banned_hosts: { host: string }[] }>('/admin/pds/listBans')
  assert.deepEqual(
    body.banned_hosts.map(({ host }) => host),
    [name],
  )
  assert.deepEqual((await world.post(`/admin/pds/unban?host=${name}`)).body, { host: name, banned: false })
  await until('it is connected', () => world.relay.hosts.byName(name)?.connectedAt)
  assert.deepEqual((await world.get<string[]>('/admin/subs/getUpstreamConns')).body, [name])
  const listed = async (query: string) => (await world.get<unknown[]>(`/admin/pds/list?${query}`)).body.length
  assert.deepEqual(await Promise.all(['', 'search=nobody', 'limit=0', 'cursor=1'].map(listed)), [1, 0, 0, 0])
})

test('consumers are listed, limited by address and sent away', async () => {
  const [one] = [await world.consumer(), await world.consumer()]
  const listed = await world.get<{ id: number; remote_addr: string; user_agent: string }[]>('/admin/consumers/list')
  assert.deepEqual(
    listed.body.map(consumer => consumer.remote_addr),
    ['127.0.0.1', '127.0.0.1'],
  )
  await assert.rejects(world.consumer())
  const { body } = await world.post('/admin/consumers/kick', { id: listed.body[0]!.id })
  assert.deepEqual(body, { success: 'true' })
  await until('it is gone', () => one.closeCode !== null)
  assert.equal((await world.post('/admin/consumers/kick', { id: 999 })).status, 404)
})

test('metrics tell of hosts, delays, verification, the log and consumers, without the names of hosts', async () => {
  pds.sendPost(await pds.createAccount(world.plc.url, 'metered'), 'hello')
  await world.settled(pds, 1)
  const reply = await fetch(`${world.relay.url}/metrics`, { headers: { authorization: 'Bearer scenario-admin' } })
  const text = await reply.text()
  for (const line of [
    /^relay_hosts\{status="active"\} 1$/m,
    /^relay_new_users_discovered 1$/m,
    /^repo_commits_received_counter 1$/m,
    /^relay_verify_seconds_count [1-9]/m,
    /^relay_append_seconds_count [1-9]/m,
    /^relay_commit_age_seconds_count\{hosts="other"\} 1$/m,
    /^relay_hosts_used_day_max\{hosts="other"\} 0\.\d+/m,
    /^subscribe_consumers \d/m,
    /^disk_persister_current_seq 1$/m,
    /^relay_bytes_received_total [1-9]/m,
    /^relay_identity_questions_total\{method="plc",outcome="found"\} [1-9]/m,
    /^relay_identity_wait_seconds_count\{outcome="found"\} [1-9]/m,
    /^relay_hosts_lag_seconds\{hosts="other",of="half"\} \d/m,
    /^relay_log_bytes [1-9]/m,
  ]) {
    assert.match(text, line)
  }
  assert.doesNotMatch(text, new RegExp(name))
})

test('every metric that the page tells of is there', async () => {
  const reply = await fetch(`${world.relay.url}/metrics`, { headers: { authorization: 'Bearer scenario-admin' } })
  const text = await reply.text()
  const page = await readFile(new URL('../../docs/metrics.md', import.meta.url), 'utf8')
  const rows = page.split('\n').filter(line => line.startsWith('| ') && !line.startsWith('| what one'))
  const named = rows.flatMap(row => [...row.split('|')[2]!.matchAll(/`([a-z_]+[a-z])(\{[a-z,]+\})?`/g)])
  const missing = named.filter(([, name = '']) => !name.startsWith('otlp_') && !text.includes(`# HELP ${name} `))
  assert.ok(named.length > 30)
  assert.deepEqual(
    missing.map(([, name]) => name),
    [],
  )
})

test('whoever is no administrator leaves no trace in the audit log', async () => {
  const latest = async () =>
    (await world.get<{ entries: { id: number }[] }>('/admin/audit/list?limit=1')).body.entries[0]?.id
  const before = await latest()
  const post = async (path: string, authorization = 'Bearer guess') => {
    const headers = { authorization, 'x-forwarded-for': '203.0.113.9', 'content-type': 'application/json' }
    const reply = await fetch(`${world.relay.url}${path}`, { method: 'POST', headers, body: '{' })
    await reply.body?.cancel()
    return reply.status
  }
  const methods = '/xrpc/net.millisky.relay.admin.blockHost'
  assert.equal(await post(methods), 401)
  assert.equal(await post('/admin/pds/block'), 401)
  // Refused before anybody asks who it is, and without a look at the password.
  await post(`${methods}?hostname=a&hostname=b&unknown=%ff`)
  for (let i = 0; i < GUESS_DEFAULTS.max; i++) await post('/admin/pds/block', `Bearer ${i}`)
  assert.deepEqual([await post('/admin/pds/block', 'Bearer x'), await post(methods, 'Bearer x')], [429, 429])
  assert.equal(await latest(), before)
})

test('T81 every change is written down with who made it, refused ones too', async () => {
  await world.post('/admin/repo/takeDown', { did: 'nonsense' })
  const { body } = await world.get<{ entries: { action: string; params: string; address: string; status: number }[] }>(
    '/admin/audit/list?limit=2',
  )
  const [latest] = body.entries
  assert.deepEqual(
    [latest?.action, latest?.params, latest?.address, latest?.status],
    ['repo/takeDown', '{"did":"nonsense"}', '127.0.0.1', 400],
  )
  assert.equal(body.entries.length, 2)
})
