// The commands an operator of a Relay types, against a running network and a second Relay.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { until } from '@millisky/server/testing-until'
import { commandLine } from './command-line.ts'
import { Daemon, type Network, startNetwork } from './network.ts'
import { freePort } from './ports.ts'

const OTHER_PASSWORD = 'other-admin'
let network: Network
let folder: string
let other: Daemon
let pds: string
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'millisky-commands-'))
  const port = await freePort()
  other = new Daemon('relay', port, {
    RELAY_API_BIND: `127.0.0.1:${port}`,
    RELAY_PERSIST_DIR: join(folder, 'log'),
    DATABASE_URL: `sqlite://${join(folder, 'relay.sqlite')}`,
    RELAY_ALLOW_INSECURE_HOSTS: 'true',
    RELAY_ADMIN_PASSWORD: `first,${OTHER_PASSWORD}`,
    RELAY_VERIFY_WORKERS: '0',
  })
  ;[network] = await Promise.all([startNetwork(), other.start()])
  pds = new URL(network.pds).host
})
after(async () => {
  await Promise.all([network?.stop(), other?.stop()])
  await rm(folder, { recursive: true, force: true })
})

const { millisky, json } = commandLine(() => ({
  MILLISKY_RELAY: network.relay,
  RELAY_ADMIN_PASSWORD: network.relayAdminPassword,
}))

/** Without a process for every look. */
async function isConnected(): Promise<boolean> {
  const url = `${network.relay}/xrpc/net.millisky.relay.admin.getHost?hostname=${pds}`
  const reply = await fetch(url, { headers: { authorization: `Bearer ${network.relayAdminPassword}` } })
  return reply.ok && ((await reply.json()) as Host).connected
}

const onOther = () => ['--relay', other.url, '--admin-password', OTHER_PASSWORD]

interface Host {
  hostname: string
  status: string
  reason?: string
  connected: boolean
  policy: string
  pinned: boolean
  setLimits: Record<string, number>
}

test('a host is listed, limited, pinned, blocked, let in again, disconnected and dialled', async () => {
  await until('the PDS is crawled', isConnected)
  const [listed] = await json<Host>('host', 'list', '--search', pds)
  assert.deepEqual([listed?.hostname, listed?.status], [pds, 'active'])
  const [limited] = await json<Host>('host', 'limits', pds, '--accounts', '9', '--per-day', '5000')
  assert.deepEqual(limited?.setLimits, { accounts: 9, perDay: 5_000 })
  const [back] = await json<Host>('host', 'limits', pds, '--accounts', 'auto')
  assert.deepEqual(back?.setLimits, { perDay: 5_000 })
  const [pinned] = await json<Host>('host', 'policy', pds, 'observe')
  assert.deepEqual([pinned?.policy, pinned?.pinned], ['observe', true])
  const [blocked] = await json<Host>('host', 'block', pds, '--reason', 'a trial')
  assert.deepEqual([blocked?.status, blocked?.reason, blocked?.connected], ['banned', 'a trial', false])
  assert.equal((await json<Host>('host', 'unblock', pds))[0]?.status, 'active')
  await until('it is back', isConnected)
  assert.equal((await json<Host>('host', 'disconnect', pds))[0]?.connected, false)
  assert.equal((await millisky('host', 'crawl', pds)).code, 0)
  await until('it is back again', isConnected)
  const shown = await millisky('host', 'info', pds)
  assert.match(shown.output, /History\n.*\n.*banned +a trial/)
  const check = await millisky('host', 'check', pds)
  assert.match(check.output, /ok {4}describeServer/)
  const [entry] = await json<{ action: string }>('audit', 'list', '--limit', '1')
  assert.equal(entry?.action, 'net.millisky.relay.admin.addHost')
})

test('another Relay takes over hosts, limits and bans, from the first one or from a file', async () => {
  await json('host', 'block', 'bad.example.com', '--unknown')
  await json('domain', 'ban', 'noisy.example.com')
  const plain = await json<{ result: string }>('host', 'pull', '--from', network.relay, ...onOther())
  assert.deepEqual(
    plain.map(({ result }) => result),
    ['added'],
  )
  assert.equal((await millisky('host', 'pull', '--from', network.relay, '--bans', ...onOther())).code, 1)
  const full = ['--bans', '--limits', '--from-password', network.relayAdminPassword]
  const pulled = await json<{ hostname: string; result: string }>(
    'host',
    'pull',
    '--from',
    network.relay,
    ...full,
    ...onOther(),
  )
  assert.deepEqual(
    new Map(pulled.map(({ hostname, result }) => [hostname, result])),
    new Map([
      [pds, 'changed'],
      ['bad.example.com', 'blocked'],
    ]),
  )
  assert.deepEqual((await json<{ domain: string }>('domain', 'list', ...onOther()))[0]?.domain, 'noisy.example.com')
  const exported = await millisky('host', 'export', ...onOther())
  assert.deepEqual(
    exported.output
      .trim()
      .split('\n')
      .map(line => JSON.parse(line)),
    [
      { hostname: pds, policy: 'observe', pinned: true, setLimits: { perDay: 5_000 } },
      { hostname: 'bad.example.com', status: 'banned', reason: 'blocked by an administrator', setLimits: {} },
    ],
  )
  const file = join(folder, 'hosts.txt')
  await writeFile(
    file,
    `# ours\n${pds}\nlocalhost:1 # nobody is there\n${JSON.stringify({ hostname: pds, setLimits: { perHour: 7 } })}\n`,
  )
  const imported = await millisky('host', 'import', file, ...onOther())
  assert.equal(imported.code, 1)
  assert.match(imported.output, /localhost:1: HostNotFound/)
  assert.match(imported.output, /added +known +changed +blocked +failed\n0 +1 +1 +0 +1/)
})

test('hosts, limits and bans come from relays of other kinds, too', async t => {
  const asked: string[] = []
  const source = createServer((request, reply) => {
    const path = request.url?.split('?')[0] ?? ''
    asked.push(`${path} ${request.headers.authorization ?? ''}`.trim())
    const answers: Record<string, unknown> = {
      '/admin/pds/list': [
        { Host: pds, RepoLimit: 700, PerSecondEventRate: { Max: 50.7 }, PerHourEventRate: { Max: -1 }, Blocked: false },
        { Host: 'old.example.com', RepoLimit: 100, Blocked: true },
      ],
      '/admin/subs/listDomainBans': { banned_domains: ['older.example.com'] },
      '/xrpc/com.atproto.sync.listHosts': { hosts: [{ hostname: 'gone.example.com', status: 'offline' }] },
    }
    const answer = answers[path]
    reply.writeHead(answer ? 200 : 404, { 'content-type': 'application/json' })
    reply.end(JSON.stringify(answer ?? { error: 'not found' }))
  }).listen(0, '127.0.0.1')
  await once(source, 'listening')
  t.after(() => {
    source.closeAllConnections()
    source.close()
  })
  const from = ['--from', `http://127.0.0.1:${(source.address() as { port: number }).port}`]
  const full = [...from, '--from-password', 'theirs', '--bans', '--limits']
  const pulled = await json<{ hostname: string; result: string }>('host', 'pull', ...full, ...onOther())
  assert.deepEqual(
    new Map(pulled.map(({ hostname, result }) => [hostname, result])),
    new Map([
      [pds, 'changed'],
      ['old.example.com', 'blocked'],
    ]),
  )
  const [view] = await json<Host>('host', 'info', pds, ...onOther())
  assert.deepEqual([view?.setLimits.accounts, view?.setLimits.perSecond, view?.setLimits.perHour], [700, 50, 7])
  const domains = await json<{ domain: string }>('domain', 'list', ...onOther())
  assert.ok(domains.some(({ domain }) => domain === 'older.example.com'))
  assert.ok(asked.includes(`/admin/pds/list Basic ${btoa('admin:theirs')}`))
  // What is offline there is left out, and nobody needs a password for what is public.
  assert.deepEqual(await json('host', 'pull', ...from, ...onOther()), [])
  assert.equal(asked.at(-1), '/xrpc/com.atproto.sync.listHosts')
})

test('the accounts that a Relay knows are a list of DIDs, for other commands and other relays', async () => {
  const at = ['--relay', network.relay]
  const made = ['--pds', network.pds, '--admin-password', network.pdsAdminPassword]
  const [created] = await json<{ did: string }>('account', 'create', 'listed.test', 'listed@example.com', ...made)
  await until('the Relay knows it', async () => {
    const { code, output } = await millisky('account', 'list', ...at)
    assert.equal(code, 0, output)
    return output.split('\n').includes(created!.did)
  })
  const accounts = await json<{ did: string; active: boolean; rev: string }>('account', 'list', ...at)
  const { active, rev = '' } = accounts.find(({ did }) => did === created!.did) ?? {}
  assert.deepEqual([active, rev.length], [true, 13])
})

test('accounts at a Relay are taken down one by one and by lists', async () => {
  const dids = ['did:plc:aaaaaaaaaaaaaaaaaaaaaaaa', 'did:plc:bbbbbbbbbbbbbbbbbbbbbbbb', 'did:web:x.example.com']
  const at = ['--relay', network.relay]
  const unheard = await millisky('account', 'takedown', dids[0]!, ...at)
  assert.equal(unheard.code, 1)
  assert.match(unheard.output, /notFound +\["did:plc:a/)
  assert.deepEqual(await json('account', 'takedown', dids[0]!, '--unknown', ...at), [
    { accounts: 1, changed: 1, notFound: [] },
  ])
  const file = join(folder, 'dids.txt')
  await writeFile(file, `${dids.join('\n')}\n${JSON.stringify({ did: dids[1] })}\n`)
  assert.deepEqual(await json('account', 'import-takedowns', file, ...at), [{ accounts: 3, changed: 2, notFound: [] }])
  assert.deepEqual((await millisky('account', 'takedowns', ...at)).output.trim().split('\n'), dids)
  await json('account', 'untakedown', ...dids, ...at)
  assert.equal((await millisky('account', 'takedowns', ...at)).output, '')
  assert.match((await millisky('account', 'takedown', 'alice.test', ...at)).output, /by their DIDs alone/)
})

test('consumers, domains and settings; mistakes are explained', async () => {
  const socket = new WebSocket(`${network.relay.replace('http', 'ws')}/xrpc/com.atproto.sync.subscribeRepos`)
  await once(socket, 'open')
  const closed = once(socket, 'close')
  const [consumer] = await json<{ id: number }>('consumer', 'list')
  assert.equal((await millisky('consumer', 'kick', String(consumer?.id))).code, 0)
  await closed
  const gone = await millisky('consumer', 'kick', String(consumer?.id))
  assert.deepEqual([gone.code, /ConsumerNotFound/.test(gone.output)], [1, true])
  assert.deepEqual(await json('consumer', 'limits', '--total', '50'), [{ total: 50, perAddress: 200 }])
  await json('domain', 'unban', 'noisy.example.com')
  const file = join(folder, 'domains.txt')
  await writeFile(file, 'a.example.com\nb.example.com\n')
  assert.deepEqual(await json('domain', 'import', file), [{ domains: 2, banned: 2 }])
  assert.deepEqual(await json('domain', 'import', file), [{ domains: 2, banned: 0 }])
  assert.deepEqual(await json('host', 'requests', '--allow', 'off', '--per-day', '3'), [{ allow: 'off', perDay: 3 }])
  assert.deepEqual(await json('outbox', 'list'), [])

  for (const [args, code, line] of [
    [['host', 'policy', pds, 'lenient'], 2, /Allowed choices are strict, observe, auto/],
    [['host', 'limits', pds, '--per-day', 'many'], 2, /A whole number, or "auto"/],
    [['host', 'limits', pds], 1, /nothing to change/],
    [['host', 'list', '--admin-password', 'guess'], 1, /AuthenticationRequired/],
    [['host', 'list', '--relay', 'http://localhost:1'], 1, /does not answer/],
    [['host', 'import', join(folder, 'nothing')], 1, /ENOENT/],
    [['account', 'takedowns'], 2, /required option '--relay/],
  ] as const) {
    const result = await millisky(...args)
    assert.equal(result.code, code, `${args.join(' ')}\n${result.output}`)
    assert.match(result.output, line)
  }
})
