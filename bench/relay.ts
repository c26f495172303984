// The Relay end to end: a host (another process) sends signed K-256 #commits of about 5 kB of many accounts through a real
// socket, the Relay verifies them strictly, logs them and sends them to one consumer (another process). What counts is the
// CPU time of all threads of the Relay's process. The rival is the bare signature check, the part nobody can leave out.
import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Duplex } from 'node:stream'
import { setTimeout as wait } from 'node:timers/promises'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { Blocks } from '@millisky/core/blocks'
import { commitEvent, encodeFrame, withSeq } from '@millisky/core/event'
import { Tree } from '@millisky/core/mst/tree'
import { apply, type Head } from '@millisky/core/repo'
import type { Datetime } from '@millisky/core/syntax'
import { create, testDid, testKey, testRecord } from '@millisky/core/testing-repos'
import { encodeTid } from '@millisky/core/tid'
import { toWireBatch } from '@millisky/server/log/frame-wire'
import { WebSocketServer } from 'ws'
import { compare, type Measured, machine, printTable } from './measure.ts'

const ACCOUNTS = 500
const RECORDS = 1_000
const WARM_UP = 8
const MEASURED = 40
const TIME = new Date().toISOString() as Datetime
const START = Date.now() - 1e9
const self = fileURLToPath(import.meta.url)

// The host, and the directory

/** An account with a thousand records that writes one more at a time. */
class Writer {
  readonly did: ReturnType<typeof testDid>
  readonly key: ReturnType<typeof testKey>
  readonly blocks: Blocks
  readonly n: number
  head: Head
  count = 0

  constructor(n: number) {
    this.n = n
    this.did = testDid(n)
    this.key = testKey(n)
    const value = testRecord(`old ${n}`).cid
    const paths = Array.from({ length: RECORDS }, (_, i) => `app.bsky.feed.post/${this.#tid(i * 1e5)}`)
    const tree = Tree.build(paths.sort().map(path => [path, value]))
    this.blocks = new Blocks(tree.nodes())
    this.head = { did: this.did, commit: value, rev: this.#tid(5e8), data: tree.root }
  }

  #tid(ms: number) {
    return encodeTid((START + ms) * 1000 + this.n, this.n & 1023)
  }

  next(): Uint8Array {
    const at = 6e8 + this.count++ * 1000
    const write = create(`app.bsky.feed.post/${this.#tid(at)}`, `hello ${this.n} `.repeat(260), { langs: ['en'] })
    const { did, head, blocks, key } = this
    const change = apply({ did, head, blocks, writes: [write], rev: this.#tid(at), key })
    for (const block of change.nodes) blocks.add(block)
    this.head = change.head
    return encodeFrame(commitEvent(change, TIME))
  }

  document(pds: string) {
    return {
      id: this.did,
      verificationMethod: [
        {
          id: `${this.did}#atproto`,
          type: 'Multikey',
          controller: this.did,
          publicKeyMultibase: this.key.publicKey.multibase,
        },
      ],
      service: [{ id: '#atproto_pds', type: 'AtprotoPersonalDataServer', serviceEndpoint: pds }],
    }
  }
}

async function runHost(): Promise<void> {
  const writers = new Map<string, Writer>()
  for (let n = 0; n < ACCOUNTS; n++) {
    const writer = new Writer(n)
    writers.set(writer.did, writer)
  }
  let seq = 0
  let bytes = 0
  const round = (rounds: number) => {
    const frames: Uint8Array[] = []
    for (let i = 0; i < rounds; i++) for (const writer of writers.values()) frames.push(withSeq(writer.next(), ++seq))
    bytes += frames.reduce((sum, frame) => sum + frame.length, 0)
    return toWireBatch(frames).wire
  }
  const warmUp = round(WARM_UP)
  const measured = round(MEASURED)
  let socket: Duplex | null = null
  const server = createServer((request, reply) => {
    const did = decodeURIComponent(request.url!.slice(1))
    const writer = writers.get(did)
    reply.setHeader('content-type', 'application/json')
    reply.end(JSON.stringify(writer?.document(url) ?? { did: 'did:web:localhost' }))
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const url = `http://localhost:${(server.address() as AddressInfo).port}`
  const sockets = new WebSocketServer({ noServer: true })
  server.on('upgrade', (request, raw, head) => {
    sockets.handleUpgrade(request, raw, head, () => {
      socket = raw
      process.send!({ connected: true })
    })
  })
  const send = async (wire: Uint8Array) => {
    for (let at = 0; at < wire.length; at += 262_144) {
      if (!socket!.write(wire.subarray(at, at + 262_144))) await once(socket!, 'drain')
    }
  }
  process.on('message', (message: string) => void send(message === 'warm-up' ? warmUp : measured))
  process.send!({ url, frameBytes: Math.round(bytes / seq) })
}

// The Relay, and a consumer

async function runRelay(folder: string, plc: string, workers: string): Promise<void> {
  const { createRelay } = await import('@millisky/relay/main')
  const { settings } = await import('@millisky/relay/config')
  const { readSettings } = await import('@millisky/server/config')
  const env = {
    RELAY_API_BIND: '127.0.0.1:0',
    RELAY_PERSIST_DIR: join(folder, 'log'),
    DATABASE_URL: `sqlite://${join(folder, 'relay.sqlite')}`,
    RELAY_PLC_HOST: plc,
    RELAY_ALLOW_INSECURE_HOSTS: 'true',
    RELAY_TRUSTED_DOMAINS: 'localhost,127.0.0.1',
    RELAY_LOG_LEVEL: 'warn',
    ...(workers ? { RELAY_VERIFY_WORKERS: workers } : {}),
  }
  // By itself, so that a profile is written when it ends.
  process.on('SIGTERM', () => process.exit(0))
  const relay = await createRelay(readSettings(settings, [], { env }))
  await relay.listen()
  process.on('message', () => {
    const { user, system } = process.cpuUsage()
    const [host] = relay.hosts.list()
    process.send!({
      cpuMicros: user + system,
      system,
      rss: process.memoryUsage().rss,
      rejects: host ? [...host.rejects.counts, host.rejects.latest()[0]?.detail] : [],
    })
  })
  process.send!({ url: relay.url })
}

async function runConsumer(relay: string, goals: number[]): Promise<void> {
  const { WebSocket } = await import('ws')
  const socket = new WebSocket(`${relay.replace('http', 'ws')}/xrpc/com.atproto.sync.subscribeRepos?cursor=0`, {
    perMessageDeflate: false,
    skipUTF8Validation: true,
  })
  let count = 0
  socket.on('message', () => {
    if (++count === goals[0]) process.send!({ reached: goals.shift() })
  })
  await once(socket, 'open')
  process.send!({ open: true })
}

// The measurement

type Message = Record<string, unknown>

class Child {
  readonly process: ChildProcess
  readonly #messages: Message[] = []
  #wake: (() => void) | null = null

  constructor(...args: string[]) {
    this.process = fork(self, args, {
      execArgv:
        process.env.RELAY_BENCH_PROF && args[0] === 'relay'
          ? ['--cpu-prof', `--cpu-prof-dir=${process.env.RELAY_BENCH_PROF}`]
          : [],
    })
    this.process.on('message', message => {
      this.#messages.push(message as Message)
      this.#wake?.()
    })
    this.process.on('exit', code => {
      if (code) throw new Error(`${args[0]} ended with ${code}`)
    })
  }

  async next(timeoutMs = 300_000): Promise<Message> {
    const deadline = Date.now() + timeoutMs
    while (this.#messages.length === 0) {
      if (Date.now() > deadline) throw new Error('no answer')
      await Promise.race([new Promise<void>(resolve => (this.#wake = resolve)), wait(1_000, undefined, { ref: false })])
    }
    return this.#messages.shift()!
  }

  async ask(message: string): Promise<Message> {
    this.process.send(message)
    return this.next()
  }

  async end(): Promise<void> {
    if (this.process.exitCode !== null) return
    this.process.kill('SIGTERM')
    await once(this.process, 'exit')
  }
}

async function bareVerify(): Promise<Measured> {
  const message = new Uint8Array(200)
  const keys = Array.from({ length: 64 }, (_, n) => testKey(n))
  const signatures = keys.map(key => key.sign(message))
  let i = 0
  const fn = () => {
    const n = i++ & 63
    return keys[n]!.publicKey.verify(message, signatures[n]!)
  }
  const [measured] = await compare([{ name: 'bare K-256 signature check', fn }], { seconds: 1.5 })
  return measured!
}

async function ingest(
  workers: string,
): Promise<{ perCpuSecond: number; wallPerSecond: number; rss: number; frameBytes: number }> {
  const folder = await mkdtemp(join(tmpdir(), 'millisky-bench-'))
  const children: Child[] = []
  const start = (...args: string[]) => {
    const child = new Child(...args)
    children.push(child)
    return child
  }
  try {
    const host = start('host')
    const { url: hostUrl, frameBytes } = (await host.next()) as { url: string; frameBytes: number }
    const relay = start('relay', folder, hostUrl, workers)
    const { url } = (await relay.next()) as { url: string }
    const goals = [ACCOUNTS * WARM_UP, ACCOUNTS * (WARM_UP + MEASURED)]
    const consumer = start('consumer', url, ...goals.map(String))
    await consumer.next()
    const reply = await fetch(`${url}/xrpc/com.atproto.sync.requestCrawl`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ hostname: new URL(hostUrl).host }),
    })
    if (!reply.ok) throw new Error(await reply.text())
    await host.next()
    host.process.send('warm-up')
    await consumer.next(60_000).catch(async error => {
      throw new Error(`${error}: ${JSON.stringify(await relay.ask('usage'))}`)
    })
    await wait(500)
    const before = (await relay.ask('usage')) as { cpuMicros: number }
    const beganAt = performance.now()
    host.process.send('measured')
    await consumer.next()
    const seconds = (performance.now() - beganAt) / 1000
    const after = (await relay.ask('usage')) as { cpuMicros: number; rss: number }
    const events = ACCOUNTS * MEASURED
    return {
      perCpuSecond: (events / (after.cpuMicros - before.cpuMicros)) * 1e6,
      wallPerSecond: events / seconds,
      rss: after.rss,
      frameBytes,
    }
  } finally {
    for (const child of children) {
      if (child.process.exitCode === null) {
        child.process.removeAllListeners('exit')
        await child.end()
      }
    }
    await rm(folder, { recursive: true, force: true })
  }
}

export async function run(report: (title: string, rows: Measured[], unit?: string) => void): Promise<void> {
  const rows: Measured[] = []
  const bareBefore = await bareVerify()
  let frameBytes = 0
  for (const workers of ['1', '0']) {
    const result = await ingest(workers)
    frameBytes = result.frameBytes
    const rate = result.perCpuSecond
    const name = `relay, ${workers === '0' ? 'in process' : `${workers} worker`} (${Math.round(result.wallPerSecond)}/s, ${Math.round(result.rss / 1e6)} MB)`
    rows.push({ name, opsPerCpuSecond: rate, low: rate, high: rate })
  }
  const bareAfter = await bareVerify()
  const opsPerCpuSecond = (bareBefore.opsPerCpuSecond + bareAfter.opsPerCpuSecond) / 2
  const low = Math.min(bareBefore.low, bareAfter.low)
  const high = Math.max(bareBefore.high, bareAfter.high)
  rows.push({ name: 'bare K-256 signature check', opsPerCpuSecond, low, high })
  report(`Relay: socket to log to one consumer, strict, #commits of ${frameBytes} bytes`, rows, 'events/CPU-s')
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  const [, , role, ...args] = process.argv
  if (role === 'host') await runHost()
  else if (role === 'relay') await runRelay(args[0]!, args[1]!, args[2] ?? '')
  else if (role === 'consumer') await runConsumer(args[0]!, args.slice(1).map(Number))
  else {
    console.log(machine())
    await run(printTable)
  }
}
