// The Relay end to end: a host (another process) sends signed K-256 #commits of about 5 kB of many accounts through a real
// socket, the Relay verifies them strictly, logs them and sends them to one consumer (another process). What counts is the
// CPU time of all threads of the Relay's process. The rivals are the bare signature check, the part nobody can leave out, and
// the reference's consumer, which checks less, logs nothing and sends nothing on. Then the same at a steady rate, for the time
// from the host's write to the consumer's receipt.
import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, open, rm } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Duplex } from 'node:stream'
import { setTimeout as wait } from 'node:timers/promises'
import { fileURLToPath, pathToFileURL } from 'node:url'
import type { IdResolver } from '@atproto/identity'
import { Blocks } from '@millisky/core/blocks'
import { commitEvent, encodeFrame, withSeq } from '@millisky/core/event'
import { Tree } from '@millisky/core/mst/tree'
import { apply, type Head } from '@millisky/core/repo'
import type { Datetime } from '@millisky/core/syntax'
import { create, testDid, testKey, testRecord } from '@millisky/core/testing-repos'
import { encodeTid } from '@millisky/core/tid'
import { toWireBatch } from '@millisky/server/log/frame-wire'
import { ReceiveMemory, release } from '@millisky/server/receive-memory'
import { WebSocketServer } from 'ws'
import { compare, type Measured, machine, printTable } from './measure.ts'

const ACCOUNTS = 500
const RECORDS = 1_000
/**
 * Parts of what a host sends, in commits of each account. The first warms up: what it takes until everything is compiled is not measured,
 * and after 40,000 events the compiler still took 3 % of the time.
 * Each of the others is measured by itself, as the machine may be busy with something else for seconds.
 */
const FAST = [160, 30, 30, 30, 30]
const PACED = [40, 48]
const PEER = [1, 1]
/** After how many events each part ends. */
const endsOf = (parts: readonly number[]) =>
  parts.map((_, i) => ACCOUNTS * parts.slice(0, i + 1).reduce((sum, n) => sum + n, 0))
/** Where the host and the Relay begin to count: nobody who is long in service still counts in two bytes. */
const FIRST_SEQ = 1_000_000
/** Events per second when time counts. */
const RATE = 2_000
const RUNS = 2
const TIME = new Date().toISOString() as Datetime
const START = Date.now() - 1e9
/** The first is what the launcher gives a Relay. */
const PROF = process.env.RELAY_BENCH_PROF
const RELAY_FLAGS = ['--heap-growing-percent=200', ...(PROF ? ['--cpu-prof', `--cpu-prof-dir=${PROF}`] : [])]
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

  /** Without the service, whose address is not known yet. */
  document() {
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
    }
  }
}

/** What a host has ready to send: messages back to back, where they end, and their names. */
interface Prepared {
  wire: Uint8Array
  ends: Uint32Array
  names: string[]
}

/** What the accounts say, part by part, and their documents. All else is forgotten: a host that collects garbage would hold up the Relay. */
function prepare(purpose: string) {
  const writers = new Map<string, Writer>()
  for (let n = 0; n < ACCOUNTS; n++) {
    const writer = new Writer(n)
    writers.set(writer.did, writer)
  }
  let seq = FIRST_SEQ
  let bytes = 0
  const round = (rounds: number) => {
    const frames: Uint8Array[] = []
    for (let i = 0; i < rounds; i++) for (const writer of writers.values()) frames.push(withSeq(writer.next(), ++seq))
    bytes += frames.reduce((sum, frame) => sum + frame.length, 0)
    return { ...toWireBatch(frames), names: frames.map(nameOf) }
  }
  const parts: Prepared[] = (purpose === 'peer' ? PEER : purpose === 'paced' ? PACED : FAST).map(round)
  const documents = new Map(Array.from(writers, ([did, writer]) => [did, writer.document()]))
  return { parts, documents, frameBytes: Math.round(bytes / (seq - FIRST_SEQ)) }
}

/** Sends the next part of what it has when told so: `paced` at {@link RATE}, else as fast as it is taken. */
async function runHost(purpose: string): Promise<void> {
  const { parts, documents, frameBytes } = prepare(purpose)
  globalThis.gc?.()
  let socket: Duplex | null = null
  const server = createServer((request, reply) => {
    const did = decodeURIComponent(request.url!.slice(1))
    const document = documents.get(did)
    const service = [{ id: '#atproto_pds', type: 'AtprotoPersonalDataServer', serviceEndpoint: url }]
    reply.setHeader('content-type', 'application/json')
    reply.end(JSON.stringify(document ? { ...document, service } : { did: 'did:web:localhost' }))
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
  const send = async (prepared: Prepared) => {
    if (purpose === 'paced') process.send!({ sent: await sendPaced(socket!, prepared) })
    else {
      const { wire } = prepared
      for (let at = 0; at < wire.length; at += 262_144) {
        if (!socket!.write(wire.subarray(at, at + 262_144))) await once(socket!, 'drain')
      }
    }
  }
  process.on('message', () => void send(parts.shift()!))
  process.send!({ url, frameBytes })
}

/** A clock that processes share, in milliseconds. */
const clock = () => Number(process.hrtime.bigint()) / 1e6

const REV = Buffer.concat([Uint8Array.of(0x63), Buffer.from('rev'), Uint8Array.of(0x6d)])

/** What tells events apart: the accounts' revs are all different. */
function nameOf(frame: Uint8Array): string {
  const bytes = Buffer.from(frame.buffer, frame.byteOffset, frame.length)
  const at = bytes.indexOf(REV) + REV.length
  return bytes.toString('latin1', at, at + 13)
}

/** Writes message by message at {@link RATE}; gives when each was written. */
async function sendPaced(socket: Duplex, { wire, ends, names }: Prepared): Promise<[rev: string, at: number][]> {
  const sent: [string, number][] = []
  const since = clock()
  for (let i = 0; i < names.length; i++) {
    const due = since + (i / RATE) * 1_000
    while (clock() < due) await wait(1)
    sent.push([names[i]!, clock()])
    socket.write(wire.subarray(i === 0 ? 0 : ends[i - 1]!, ends[i]!))
  }
  return sent
}

// The Relay, and a consumer

async function runRelay(folder: string, plc: string, workers: string, fsync: string): Promise<void> {
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
    RELAY_FSYNC: fsync,
    RELAY_INITIAL_SEQ_NUMBER: String(FIRST_SEQ),
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
  const isPaced = goals.length === 1
  const seen: [rev: string, at: number][] = []
  // Nothing is left to be collected, which would hold up what follows.
  const memory = new ReceiveMemory()
  memory.watch(socket)
  socket.on('message', (frame: Buffer) => {
    memory.read(frame)
    if (isPaced) seen.push([nameOf(frame), clock()])
    release(frame)
    if (++count !== goals[0]) return
    process.send!({ reached: goals.shift(), seen })
  })
  await once(socket, 'open')
  process.send!({ open: true })
}

/** The reference's consumer: signature, proofs of the operations, records; keys are at hand. */
async function runPeer(host: string, goals: number[]): Promise<void> {
  const { Firehose } = await import('@atproto/sync')
  const keys = new Map(Array.from({ length: ACCOUNTS }, (_, n) => [testDid(n) as string, testKey(n).publicKey.didKey]))
  let count = 0
  let mark = process.cpuUsage()
  const firehose = new Firehose({
    service: host.replace('http', 'ws'),
    // Its own resolver refuses addresses of this machine.
    idResolver: { did: { resolveAtprotoKey: async (did: string) => keys.get(did)! } } as unknown as IdResolver,
    onError: error => process.send!({ error: `${error}: ${error.cause}` }),
    handleEvent: () => {
      if (++count !== goals[0]) return
      goals.shift()
      const { user, system } = process.cpuUsage(mark)
      process.send!({ cpuMicros: user + system })
      mark = process.cpuUsage()
    },
  })
  void firehose.start()
}

// The measurement

type Message = Record<string, unknown>

class Child {
  readonly process: ChildProcess
  readonly #messages: Message[] = []
  #wake: (() => void) | null = null

  constructor(...args: string[]) {
    this.process = fork(self, args, {
      execArgv: args[0] === 'relay' ? RELAY_FLAGS : args[0] === 'host' ? ['--expose-gc'] : [],
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

/** Starts processes for `work` and ends them after it. */
async function staged<T>(work: (start: (...args: string[]) => Child, folder: string) => Promise<T>): Promise<T> {
  const folder = await mkdtemp(join(tmpdir(), 'millisky-bench-'))
  const children: Child[] = []
  try {
    return await work((...args) => {
      const child = new Child(...args)
      children.push(child)
      return child
    }, folder)
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

interface Chain {
  host: Child
  relay: Child
  consumer: Child
  frameBytes: number
}

interface ChainOptions {
  folder: string
  workers: string
  purpose: string
  goals: number[]
  fsync?: string
}

/** A host, a Relay that follows it and a consumer of that, ready to go. */
async function chain(
  start: (...args: string[]) => Child,
  { folder, workers, purpose, goals, fsync = 'batch' }: ChainOptions,
): Promise<Chain> {
  const host = start('host', purpose)
  const { url: hostUrl, frameBytes } = (await host.next()) as { url: string; frameBytes: number }
  const relay = start('relay', folder, hostUrl, workers, fsync)
  const { url } = (await relay.next()) as { url: string }
  const consumer = start('consumer', url, ...goals.map(String))
  await consumer.next()
  const reply = await fetch(`${url}/xrpc/com.atproto.sync.requestCrawl`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ hostname: new URL(hostUrl).host }),
  })
  if (!reply.ok) throw new Error(await reply.text())
  await host.next()
  return { host, relay, consumer, frameBytes }
}

interface Usage {
  cpuMicros: number
  rss: number
}

/** As fast as it goes, part by part; a bare check's rate before each. */
const ingest = (workers: string) =>
  staged(async (start, folder) => {
    const goals = endsOf(FAST)
    const { host, relay, consumer, frameBytes } = await chain(start, { folder, workers, purpose: 'fast', goals })
    const usage = async () => (await relay.ask('usage')) as unknown as Usage
    host.process.send('go on')
    await consumer.next(60_000).catch(async error => {
      throw new Error(`${error}: ${JSON.stringify(await usage())}`)
    })
    await wait(500)
    const [rates, bare]: [number[], number[]] = [[], []]
    let [seconds, rss] = [0, 0]
    for (let i = 1; i < goals.length; i++) {
      bare.push((await bareVerify()).opsPerCpuSecond)
      const before = await usage()
      const beganAt = performance.now()
      host.process.send('go on')
      await consumer.next()
      seconds += (performance.now() - beganAt) / 1000
      const after = await usage()
      rates.push(((goals[i]! - goals[i - 1]!) / (after.cpuMicros - before.cpuMicros)) * 1e6)
      rss = after.rss
    }
    return { rates, bare, perSecond: (goals.at(-1)! - goals[0]!) / seconds, rss, frameBytes }
  })

/** At a steady rate: milliseconds from write to receipt of each event in order, and the cores that the Relay used. */
const paced = (workers: string, fsync: string) =>
  staged(async (start, folder) => {
    const goals = endsOf(PACED).slice(-1)
    const { host, relay, consumer } = await chain(start, { folder, workers, purpose: 'paced', goals, fsync })
    await host.ask('go on')
    await wait(500)
    const before = (await relay.ask('usage')) as unknown as Usage
    const { sent } = (await host.ask('go on')) as { sent: [string, number][] }
    const { seen } = (await consumer.next()) as { seen: [string, number][] }
    const after = (await relay.ask('usage')) as unknown as Usage
    const seenAt = new Map(seen)
    const times = sent.map(([rev, at]) => seenAt.get(rev)! - at).sort((a, b) => a - b)
    return { times, cores: (after.cpuMicros - before.cpuMicros) / 1e6 / (sent.length / RATE) }
  })

const peer = () =>
  staged(async start => {
    const host = start('host', 'peer')
    const { url } = (await host.next()) as { url: string }
    const rival = start('peer', url, ...endsOf(PEER).map(String))
    await host.next()
    host.process.send('go on')
    await rival.next()
    host.process.send('go on')
    const { cpuMicros, error } = (await rival.next()) as { cpuMicros: number; error?: string }
    if (error !== undefined) throw new Error(error)
    return (PEER[1]! * ACCOUNTS * 1e6) / cpuMicros
  })

function measured(name: string, rates: readonly number[]): Measured {
  const sorted = rates.toSorted((a, b) => a - b)
  const middle = (sorted[sorted.length >> 1]! + sorted[(sorted.length - 1) >> 1]!) / 2
  return { name, opsPerCpuSecond: middle, low: sorted[0]!, high: sorted.at(-1)! }
}

export async function run(report: (title: string, rows: Measured[], unit?: string) => void): Promise<void> {
  const kinds = [
    { workers: '1', name: 'relay, 1 worker', rates: [] as number[] },
    { workers: '0', name: 'relay, in process', rates: [] as number[] },
  ]
  const bare: number[] = []
  let frameBytes = 0
  for (let i = 0; i < RUNS; i++) {
    for (const kind of kinds) {
      const result = await ingest(kind.workers)
      frameBytes = result.frameBytes
      bare.push(...result.bare)
      kind.rates.push(...result.rates)
      kind.name = `${kind.name.split(' (')[0]} (${Math.round(result.perSecond)}/s, ${Math.round(result.rss / 1e6)} MB)`
    }
  }
  const rows = kinds.map(({ name, rates }) => measured(name, rates))
  rows.push(
    measured('bare K-256 signature check', bare),
    measured('@atproto/sync Firehose, which only reads', [await peer()]),
  )
  report(`Relay: socket to log to one consumer, strict, #commits of ${frameBytes} bytes`, rows, 'events/CPU-s')
  const title = `Relay at ${RATE} events/s, from a host's write to a consumer's receipt: the median [1 % - 99 %]`
  for (const fsync of ['batch', 'interval']) {
    for (const workers of ['1', '0']) {
      const { times, cores } = await paced(workers, fsync)
      const kind = workers === '0' ? 'in process' : `${workers} worker`
      report(title, [spread(`${kind}, fsync ${fsync} (${cores.toFixed(2)} cores)`, times)], 'ms')
    }
  }
  report('The disk of it, for comparison', [spread('writing 10 kB and fdatasync alone', await syncTimes())], 'ms')
}

/** Median, first and last hundredth of sorted times. */
function spread(name: string, times: readonly number[]): Measured {
  const at = (part: number) => times[Math.floor(part * (times.length - 1))]!
  return { name, opsPerCpuSecond: at(0.5), low: at(0.01), high: at(0.99) }
}

/** What the disk takes of the times above, one write after the other. */
async function syncTimes(): Promise<number[]> {
  const folder = await mkdtemp(join(tmpdir(), 'millisky-bench-'))
  const file = await open(join(folder, 'file'), 'w')
  const times: number[] = []
  for (let i = 0; i < 300; i++) {
    const since = clock()
    await file.write(new Uint8Array(10_000))
    await file.datasync()
    times.push(clock() - since)
  }
  await file.close()
  await rm(folder, { recursive: true })
  return times.sort((a, b) => a - b)
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  const [, , role, ...args] = process.argv
  if (role === 'host') await runHost(args[0]!)
  else if (role === 'relay') await runRelay(args[0]!, args[1]!, args[2] ?? '', args[3] ?? 'batch')
  else if (role === 'peer') await runPeer(args[0]!, args.slice(1).map(Number))
  else if (role === 'consumer') await runConsumer(args[0]!, args.slice(1).map(Number))
  else {
    console.log(machine())
    await run(printTable)
  }
}
