// Hosts of every hostile kind at once, with hostile consumers and callers, beside one host that is as it should be: nobody
// who follows that one notices, memory stays bounded, and the public reports say who does what. The long form is
// `scripts/campaign.mjs --hostile 120`.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { setTimeout as wait } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'
import { settings as plcSettings } from '@millisky/plc/config'
import { createPlc } from '@millisky/plc/main'
import { readSettings } from '@millisky/server/config'
import { until } from '@millisky/server/testing-until'
import { silentLog } from '@millisky/server/trace'
import { Consumer } from '../scenarios/world.ts'
import { HOSTILITIES, type Report } from './attacks.ts'
import { type FakeAccount, FakePds } from './fake-pds.ts'
import { Daemon } from './network.ts'
import { freePort } from './ports.ts'

const seconds = Number(process.env.MILLISKY_TEST_HOSTILE_SECONDS ?? 2)
/**
 * How much the Relay may have worked, in seconds of CPU time, from when the good host sent an event until it came: that a
 * machine does much else at the time is no failure, that a host is kept waiting until others end is.
 */
const WORST_WORK = 4
const RSS_MAX = 700 * 1024 * 1024
const PASSWORD = 'hostile-admin'

function rssOf(pid: number): number {
  const kilobytes = /^VmRSS:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]
  return Number(kilobytes) * 1024
}

function workOf(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]!.split(' ')
  return (Number(fields[11]) + Number(fields[12])) / 100
}

async function startRelay(folder: string, plcUrl: string): Promise<Daemon> {
  const port = await freePort()
  const relay = new Daemon('relay', port, {
    RELAY_API_BIND: `127.0.0.1:${port}`,
    RELAY_METRICS_LISTEN: '',
    RELAY_PERSIST_DIR: join(folder, 'log'),
    DATABASE_URL: `sqlite://${join(folder, 'relay.sqlite')}`,
    RELAY_PLC_HOST: plcUrl,
    RELAY_ALLOW_INSECURE_HOSTS: 'true',
    RELAY_ADMIN_PASSWORD: PASSWORD,
    RELAY_DEFAULT_ACCOUNT_LIMIT: '20',
    RELAY_NEW_HOSTS_PER_DAY_LIMIT: '1000',
    RELAY_VERIFY_WORKERS: '1',
  })
  await relay.start()
  return relay
}

const crawl = (relayUrl: string, hostname: string) =>
  fetch(`${relayUrl}/xrpc/com.atproto.sync.requestCrawl`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ hostname }),
    signal: AbortSignal.timeout(30_000),
  })

/** Callers and consumers that are no better than the hosts. */
function pester(relayUrl: string, stop: AbortSignal): Promise<unknown> {
  const { port } = new URL(relayUrl)
  const rounds = async (work: (n: number) => Promise<unknown>, pauseMs: number) => {
    for (let n = 0; !stop.aborted; n++) {
      await work(n).catch(() => {})
      await wait(pauseMs)
    }
  }
  const stream = `${relayUrl.replace('http', 'ws')}/xrpc/com.atproto.sync.subscribeRepos`
  const deaf: ReturnType<typeof connect>[] = []
  return Promise.all([
    rounds(n => crawl(relayUrl, `localhost:${1 + (n % 60_000)}`), 5),
    rounds(n => crawl(relayUrl, `${'a'.repeat(n % 300)}.example.com/..//`), 5),
    // Connect and close.
    rounds(async () => {
      const socket = new WebSocket(`${stream}?cursor=0`)
      await once(socket as never, 'open')
      socket.close()
    }, 5),
    // Ask for everything that there is a name for.
    rounds(async n => {
      const wanted = Array.from({ length: 400 }, (_, i) => `collections=com.example.a${n}x${i}`).join('&')
      await fetch(`${relayUrl}/xrpc/com.atproto.sync.subscribeRepos?${wanted}`)
      await fetch(`${relayUrl}/subscribe?wantedDids=${'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa&wantedDids='.repeat(500)}`)
    }, 20),
    // Never read, and ping all the time.
    rounds(async () => {
      if (deaf.length >= 20) return
      const socket = connect(Number(port), '127.0.0.1')
      socket.on('error', () => {}).pause()
      deaf.push(socket)
      const lines = ['Host: localhost', 'Connection: Upgrade', 'Upgrade: websocket', 'Sec-WebSocket-Version: 13']
      socket.write(`GET /xrpc/com.atproto.sync.subscribeRepos?cursor=0 HTTP/1.1\r\n${lines.join('\r\n')}\r\n`)
      socket.write('Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n')
      const ping = Buffer.concat(Array.from({ length: 200 }, () => Buffer.from([0x89, 0x80, 1, 2, 3, 4])))
      const timer = setInterval(() => void (socket.writableLength < 1e6 && socket.write(ping)), 20)
      socket.on('close', () => clearInterval(timer))
    }, 50),
  ]).finally(() => {
    for (const socket of deaf) socket.destroy()
  })
}

/** The good host's posts, steadily, and how long each took to come through. */
async function steadily(
  pds: FakePds,
  accounts: FakeAccount[],
  consumer: Consumer,
  work: () => number,
  stop: AbortSignal,
) {
  const sent = new Map<string, string[]>()
  const waiting = new Map<string, { at: number; work: number }>()
  let seen = consumer.frames.length
  let [worstMs, worstWork] = [0, 0]
  const look = () => {
    const done = work()
    for (; seen < consumer.frames.length; seen++) {
      for (const { path } of (consumer.frames[seen]!.body.ops ?? []) as { path: string }[]) {
        const since = waiting.get(path)
        if (since === undefined) continue
        worstMs = Math.max(worstMs, Date.now() - since.at)
        worstWork = Math.max(worstWork, done - since.work)
        waiting.delete(path)
      }
    }
    return waiting.size
  }
  for (let i = 0; !stop.aborted; i++) {
    const account = accounts[i % accounts.length]!
    const { path } = pds.sendPost(account, `steady ${i}`).ops[0]!
    sent.set(account.did, [...(sent.get(account.did) ?? []), path])
    waiting.set(path, { at: Date.now(), work: work() })
    await wait(60)
    look()
  }
  await until('the good posts come through', () => look() === 0)
  return { sent, worstMs, worstWork }
}

test('hostile hosts, consumers and callers keep nobody from a good host, and are known by name', {
  timeout: 400_000 + seconds * 2_000,
}, async t => {
  const folder = await mkdtemp(join(tmpdir(), 'millisky-hostile-'))
  const env = { PLC_PORT: '0', PLC_DB: ':memory:', PLC_DEV_MODE: 'true' }
  const plc = await createPlc(readSettings(plcSettings, [], { env }), { log: silentLog })
  await plc.listen()
  const relay = await startRelay(folder, plc.url)
  const good = await FakePds.start()
  const stop = new AbortController()
  const victims: FakeAccount[] = []
  for (let i = 0; i < 4; i++) victims.push(await good.createAccount(plc.url, `good${i}`))
  const consumer = await new Consumer(relay.url, 0).opened()
  let thread: Worker | null = null
  let pestering: Promise<unknown> = Promise.resolve()
  t.after(async () => {
    stop.abort()
    await pestering
    await consumer.close()
    await thread?.terminate()
    await relay.stop()
    await good.close()
    await plc.close()
    await rm(folder, { recursive: true, force: true })
  })

  assert.equal((await good.requestCrawl(relay.url)).status, 200)
  await good.connected()
  for (const account of victims) {
    good.announce(account)
    good.sendPost(account, 'before')
  }
  await until('the good host is heard', () => consumer.frames.length >= 12)

  const workerData = { plc: plc.url, victims: victims.map(({ did }) => did) }
  thread = new Worker(new URL('./hostile-thread.ts', import.meta.url), { workerData })
  const hosts = new Map((await once(thread, 'message'))[0] as [name: string, hostname: string][])
  const pid = relay.process!.child.pid!
  const steady = steadily(good, victims, consumer, () => workOf(pid), stop.signal)
  steady.catch(() => {})
  const replies = await Promise.all([...hosts.values()].map(host => crawl(relay.url, host)))
  assert.deepEqual([...new Set(replies.map(reply => reply.status))], [200])
  pestering = pester(relay.url, stop.signal)

  let rssMax = 0
  for (const end = Date.now() + seconds * 1_000; Date.now() < end; await wait(100)) {
    rssMax = Math.max(rssMax, rssOf(pid))
  }
  const reportOf = async (host: string) => {
    const reply = await fetch(`${relay.url}/xrpc/net.millisky.relay.getHostReport?hostname=${host}`)
    return (await reply.json()) as Report
  }
  const untold = new Map(HOSTILITIES.map(({ name }) => [name, '']))
  const since = Date.now()
  const look = async () => {
    for (const { name, told } of HOSTILITIES) {
      if (!untold.has(name)) continue
      const report = await reportOf(hosts.get(name)!)
      if (told(report)) untold.delete(name)
      else untold.set(name, JSON.stringify(report).slice(0, 2_000))
    }
    return untold.size === 0
  }
  await until('all of it is told', look, 180_000).catch(() => {})
  assert.deepEqual([...untold], [])
  t.diagnostic(`all was told ${Date.now() - since} ms later`)
  stop.abort()
  const { sent, worstMs, worstWork } = await steady
  t.diagnostic(
    `worst latency ${worstMs} ms and ${worstWork} s of work of ${workOf(pid)} s, RSS ${Math.round(rssMax / 1048576)} MB`,
  )
  for (const [did, paths] of sent) {
    const came = consumer.pathsOf(did).filter(path => paths.includes(path))
    assert.deepEqual(came, paths, 'the good host passes whole and in order')
  }
  assert.ok(consumer.closeCode === null, 'its consumer stays')
  assert.deepEqual(
    consumer.story.filter(line => line.startsWith('error')),
    [],
  )
  assert.ok(worstWork < WORST_WORK, `one of the good host's events took ${worstWork} s of the Relay's work`)
  assert.ok(rssMax < RSS_MAX, `memory rose to ${rssMax} bytes`)
})
