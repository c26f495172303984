// The Relay's state at scale: a store of a million accounts and their identities and a thousand hosts, which are WebSocket
// servers on loopback in one process. Measured are the size of the store, the real Relay process's memory when its hosts are
// idle and after so many different accounts have spoken that every cache is full, the time from its start to the first live
// event at a consumer (after an end in order, and after a kill), and what looking up an account and its identity costs
// beside the signature check that nobody can leave out.
import { type ChildProcess, fork, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync, statSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { createServer } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as wait } from 'node:timers/promises'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { base58 } from '@millisky/core/bytes'
import { Cid, CODEC_CBOR } from '@millisky/core/cid'
import { accountEvent, encodeFrame, withSeq } from '@millisky/core/event'
import { sha256 } from '@millisky/core/hash'
import type { Datetime, Did, Tid } from '@millisky/core/syntax'
import { testDid, testKey } from '@millisky/core/testing-repos'
import { WebSocket, WebSocketServer } from 'ws'
import { freePort } from '../test/e2e/ports.ts'
import { compare, type Measured, machine, printTable } from './measure.ts'

const ACCOUNTS = Number(process.env.RELAY_STATE_ACCOUNTS ?? 1_000_000)
const HOSTS = 1_000
/** Accounts that speak, to fill what the Relay keeps in memory. */
const SPEAKERS = Math.min(ACCOUNTS, Number(process.env.RELAY_STATE_SPEAKERS ?? 300_000))
const BATCH = 5_000
const self = fileURLToPath(import.meta.url)
const entry = fileURLToPath(new URL('../packages/cli/src/entry.mjs', import.meta.url))

/** Every host has an address of its own in the loopback network, and all have the same port. */
const hostAt = (n: number, port: number) => `127.1.${n >> 8}.${n & 255}:${port}`

const bytesOf = (n: number, what: string) => sha256(Buffer.from(`${what} ${n}`))
const rev = '3kaaaaaaaaa2a' as Tid

/** Any point will do where none is used. */
const someKey = (n: number) =>
  `did:key:z${base58(Buffer.concat([Uint8Array.of(0xe7, 1, 2 + (n & 1)), bytesOf(n, 'key')]))}`

const accountOf = (n: number) => ({
  did: testDid(n),
  host: 1 + (n % HOSTS),
  rev,
  data: Cid.fromDigest(CODEC_CBOR, bytesOf(n, 'data')).key,
  commit: Cid.fromDigest(CODEC_CBOR, bytesOf(n, 'commit')).key,
  active: true,
  status: null,
  local: null,
})

async function openStore(folder: string) {
  const { openDb } = await import('@millisky/server/db/db')
  const { createSqlStore } = await import('@millisky/relay/store/sql')
  const { migrations } = await import('@millisky/relay/store/schema')
  type Schema = import('@millisky/relay/store/schema').RelaySchema
  return createSqlStore(await openDb<Schema>(`sqlite://${join(folder, 'relay.sqlite')}`, { migrations, mapBytes: 0 }))
}

async function build(folder: string, port: number): Promise<void> {
  const store = await openStore(folder)
  const now = Date.now()
  for (let n = 0; n < HOSTS; n++) {
    await store.hosts.create({
      hostname: hostAt(n, port),
      noTls: true,
      status: 'active',
      reason: null,
      statusAt: now,
      createdAt: now,
      byAdmin: true,
      cursor: 0,
      policy: 'strict',
      pinned: false,
      streak: 0,
      accounts: Math.ceil((ACCOUNTS - n) / HOSTS),
      accountLimit: 10_000_000,
      perSecond: 1_000_000,
      perHour: 100_000_000,
      perDay: 1_000_000_000,
      growth: 0,
      growthAt: now,
      history: [],
    })
  }
  for (let at = 0; at < ACCOUNTS; at += BATCH) {
    const numbers = Array.from({ length: Math.min(BATCH, ACCOUNTS - at) }, (_, i) => at + i)
    await store.fold.save({ watermark: 0, accounts: numbers.map(accountOf), hosts: [] })
    await store.identities.put(
      numbers.map(n => ({
        did: testDid(n),
        at: now,
        key: someKey(n),
        pds: `http://${hostAt(n % HOSTS, port)}`,
        handle: `person${n}.${n % 10 ? 'bsky.social' : 'example.com'}`,
      })),
    )
  }
  await store.close()
}

// The hosts

async function runHosts(port: number): Promise<void> {
  const sockets = new Map<string, WebSocket>()
  const names = Array.from({ length: HOSTS }, (_, n) => hostAt(n, port))
  let seq = 1
  const say = (n: number) => {
    const time = new Date().toISOString() as Datetime
    sockets
      .get(names[n % HOSTS]!)
      ?.send(withSeq(encodeFrame(accountEvent({ did: testDid(n), active: true }, time)), ++seq))
  }
  const server = createServer((_request, reply) => reply.writeHead(501).end()).listen(port, '0.0.0.0')
  const upgrades = new WebSocketServer({ noServer: true, perMessageDeflate: false })
  server.on('upgrade', (request, raw, head) => {
    upgrades.handleUpgrade(request, raw, head, socket => {
      const name = request.headers.host!
      sockets.set(name, socket)
      socket.on('error', () => {})
      socket.on('close', () => sockets.get(name) === socket && sockets.delete(name))
      say(names.indexOf(name))
    })
  })
  process.on('message', async (message: { speak?: [number, number] }) => {
    if (message.speak) {
      for (let n = message.speak[0]; n < message.speak[1]; n++) {
        say(n)
        if (n % 2_000 === 0) await wait(20)
      }
    }
    process.send!({ connected: sockets.size })
  })
  await once(server, 'listening')
  process.send!({ connected: 0 })
}

// The Relay and its consumer

interface Started {
  process: ChildProcess
  url: string
  /** From the start of the process. */
  answersMs: number
  firstEventMs: number
  /** CPU-seconds of all its threads until then. */
  firstEventCpu: number
  consumer: WebSocket
  /** Events that came. */
  count: () => number
}

async function startRelay(folder: string, port: number): Promise<Started> {
  const env = {
    ...process.env,
    RELAY_API_BIND: `127.0.0.1:${port}`,
    RELAY_PERSIST_DIR: join(folder, 'log'),
    DATABASE_URL: `sqlite://${join(folder, 'relay.sqlite')}`,
    RELAY_PLC_HOST: 'http://127.0.0.1:9',
    RELAY_ALLOW_INSECURE_HOSTS: 'true',
    RELAY_LOG_LEVEL: 'warn',
  }
  // With the launcher's flag, so that it is the very process that is measured.
  const began = performance.now()
  const relay = spawn(process.execPath, ['--heap-growing-percent=200', entry, 'relay'], {
    env,
    stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
  })
  const url = `http://127.0.0.1:${port}`
  for (;;) {
    const socket = new WebSocket(`${url.replace('http', 'ws')}/xrpc/com.atproto.sync.subscribeRepos`)
    socket.on('error', () => {})
    const { promise: first, resolve } = Promise.withResolvers<void>()
    let count = 0
    socket.on('message', () => {
      if (count++ === 0) resolve()
    })
    const isOpen = await new Promise<boolean>(done => {
      socket.once('open', () => done(true)).once('close', () => done(false))
    })
    if (!isOpen) {
      if (relay.exitCode !== null) throw new Error(`the relay ended with ${relay.exitCode}`)
      await wait(5)
      continue
    }
    const answersMs = performance.now() - began
    await first
    return {
      process: relay,
      url,
      answersMs,
      firstEventMs: performance.now() - began,
      firstEventCpu: cpuOf({ process: relay }),
      consumer: socket,
      count: () => count,
    }
  }
}

async function stopRelay(relay: Started, signal: NodeJS.Signals): Promise<void> {
  relay.consumer.terminate()
  relay.process.kill(signal)
  if (relay.process.exitCode === null && relay.process.signalCode === null) await once(relay.process, 'exit')
}

/** Resident memory in MB: all of it, and what of it is the process's own rather than pages of files. */
function memoryOf({ process: { pid } }: Started): { all: number; own: number; peak: number } {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8')
  const field = (name: string) => Math.round(Number(new RegExp(`^${name}:\\s+(\\d+)`, 'm').exec(status)?.[1]) / 1024)
  return { all: field('VmRSS'), own: field('RssAnon'), peak: field('VmHWM') }
}

/** CPU-seconds so far. */
function cpuOf({ process: { pid } }: Pick<Started, 'process'>): number {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]!.split(' ')
  return (Number(fields[11]) + Number(fields[12])) / 100
}

/** Waits until a number no longer rises. */
async function settled(read: () => number | Promise<number>, quietMs = 1_500): Promise<number> {
  for (let last = -1, since = performance.now(); ; ) {
    const value = await read()
    if (value !== last) {
      last = value
      since = performance.now()
    } else if (performance.now() - since > quietMs) return value
    await wait(50)
  }
}

// The measurement

async function lookups(folder: string): Promise<Measured[]> {
  const store = await openStore(folder)
  let n = 0
  const someone = () => testDid((n = (n * 48_271 + 11) % ACCOUNTS))
  const [key, message] = [testKey(1), new Uint8Array(200)]
  const signature = key.sign(message)
  const dids: Did[] = Array.from({ length: 200_000 }, someone)
  let at = 0
  const next = () => dids[at++ % dids.length]!
  const rows = await compare([
    { name: 'K-256 signature check', fn: () => key.publicKey.verify(message, signature) },
    { name: 'account from the store', fn: () => store.accounts.load([next()]) },
    { name: 'identity from the store', fn: () => store.identities.load([next()]) },
  ])
  await store.close()
  return rows
}

const flat = (name: string, value: number): Measured => ({ name, opsPerCpuSecond: value, low: value, high: value })

export async function run(report: (title: string, rows: Measured[], unit?: string) => void): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), 'millisky-bench-'))
  const [hostPort, port] = [await freePort(), await freePort()]
  const hosts = fork(self, ['hosts', String(hostPort)])
  const heard = async (message: object) => {
    hosts.send(message)
    return ((await once(hosts, 'message'))[0] as { connected: number }).connected
  }
  let relay: Started | null = null
  try {
    await once(hosts, 'message')
    await build(folder, hostPort)
    const size = statSync(join(folder, 'relay.sqlite')).size
    report(
      `Relay's state: ${ACCOUNTS} accounts and ${HOSTS} hosts in SQLite`,
      [flat('both tables', size / ACCOUNTS)],
      'bytes/account',
    )
    report('looking up one of them at random', await lookups(folder))
    const times: Measured[] = []
    const memory: Measured[] = []
    const note = (name: string, { all, own, peak }: ReturnType<typeof memoryOf>) => {
      memory.push(
        flat(`${name}: resident`, all),
        flat(`${name}: without pages of files`, own),
        flat(`${name}: peak`, peak),
      )
    }
    for (const how of ['first start', 'after an end in order', 'after a kill'] as const) {
      relay = await startRelay(folder, port)
      times.push(flat(`${how}: answers`, relay.answersMs), flat(`${how}: first live event`, relay.firstEventMs))
      times.push(flat(`${how}: CPU until then`, relay.firstEventCpu * 1_000))
      const { count } = relay
      const connectedAt = performance.now()
      while ((await heard({})) < HOSTS && performance.now() - connectedAt < 20_000) await wait(50)
      times.push(flat(`${how}: every host connected`, relay.firstEventMs + performance.now() - connectedAt))
      if (how === 'first start') {
        await settled(count)
        note('hosts idle', memoryOf(relay))
        const before = [count(), cpuOf(relay)] as const
        await heard({ speak: [HOSTS, SPEAKERS] })
        const events = (await settled(count, 5_000)) - before[0]
        report(
          'events of accounts not in memory, no signature',
          [flat('#account', events / (cpuOf(relay) - before[1]))],
          'events/CPU-s',
        )
        note(`after ${events} accounts have spoken`, memoryOf(relay))
      } else await heard({ speak: [0, 2_000] })
      await stopRelay(relay, how === 'after an end in order' ? 'SIGKILL' : 'SIGTERM')
      relay = null
    }
    report('memory of the Relay process', memory, 'MB')
    report('time from the start of the process', times, 'ms')
  } finally {
    if (relay) await stopRelay(relay, 'SIGKILL')
    hosts.kill()
    await rm(folder, { recursive: true, force: true })
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  const [, , role, argument] = process.argv
  if (role === 'hosts') await runHosts(Number(argument))
  else {
    console.log(machine())
    await run(printTable)
  }
}
