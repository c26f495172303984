// A Relay and a fan-out behind it, killed again and again at random moments while a host sends and consumers follow.
import assert from 'node:assert/strict'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as wait } from 'node:timers/promises'
import { hex } from '@millisky/core/bytes'
import {
  accountEvent,
  commitEvent,
  decodeFrame,
  type Event,
  encodeFrame,
  identityEvent,
  peek,
  withSeq,
} from '@millisky/core/event'
import { sha256 } from '@millisky/core/hash'
import { settings as plcSettings } from '@millisky/plc/config'
import { createPlc, type Plc } from '@millisky/plc/main'
import { readSettings } from '@millisky/server/config'
import { until } from '@millisky/server/testing-until'
import { silentLog } from '@millisky/server/trace'
import { WebSocket } from 'ws'
import { type FakeAccount, FakePds, now } from './fake-pds.ts'
import { Daemon } from './network.ts'
import { freePort } from './ports.ts'

const ACCOUNTS = 6

/** What makes two frames the same event, whatever their seqs are. */
const keyOf = (frame: Uint8Array) => hex(sha256(withSeq(frame, 0))).slice(0, 32)

/** The same numbers for the same seed. */
export function randomOf(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let value = Math.imul(state ^ (state >>> 15), 1 | state)
    value = (value + Math.imul(value ^ (value >>> 7), 61 | value)) ^ value
    return ((value ^ (value >>> 14)) >>> 0) / 2 ** 32
  }
}

/** A consumer that comes back with its cursor whenever its connection ends. */
export class Survivor {
  readonly seqs: number[] = []
  readonly keys: string[] = []
  readonly dids: (string | null)[] = []
  readonly kinds: (string | null)[] = []
  /** What a stream must never bring: seqs that do not rise, error frames, notices of a gap. */
  readonly faults: string[] = []
  readonly #url: string
  readonly #from: number
  #socket: WebSocket | null = null
  #closed = false

  constructor(relayUrl: string, from = 0) {
    this.#url = `${relayUrl.replace('http', 'ws')}/xrpc/com.atproto.sync.subscribeRepos`
    this.#from = from
    this.#connect()
  }

  close(): void {
    this.#closed = true
    this.#socket?.terminate()
  }

  #connect(): void {
    if (this.#closed) return
    const socket = (this.#socket = new WebSocket(`${this.#url}?cursor=${this.seqs.at(-1) ?? this.#from}`))
    socket.on('message', data => this.#take(new Uint8Array(data as Buffer)))
    socket.on('error', () => {})
    socket.on('close', () => setTimeout(() => this.#connect(), 20))
  }

  #take(frame: Uint8Array): void {
    const { t, seq, did } = peek(frame)
    const last = this.seqs.at(-1) ?? 0
    if (seq === null || seq <= last) {
      this.faults.push(`after ${last}: ${t} ${seq ?? JSON.stringify(decodeFrame(frame).body)}`)
      return
    }
    this.seqs.push(seq)
    this.keys.push(keyOf(frame))
    this.dids.push(did)
    this.kinds.push(t)
  }
}

/** A host that goes on sending; remembers what it sent of each account, in order. */
class Sender {
  readonly sent = new Map<string, string[]>()
  count = 0
  readonly #pds: FakePds
  readonly #accounts: FakeAccount[]
  readonly #random: () => number
  #stopped = false
  readonly done: Promise<void>

  constructor(pds: FakePds, accounts: FakeAccount[], random: () => number) {
    this.#pds = pds
    this.#accounts = accounts
    this.#random = random
    for (const { did } of accounts) {
      this.#send(did, identityEvent({ did }, now()))
      this.#send(did, accountEvent({ did, active: true }, now()))
    }
    this.done = this.#run()
  }

  async stop(): Promise<void> {
    this.#stopped = true
    await this.done
  }

  #send(did: string, event: Event): void {
    const key = keyOf(encodeFrame(event))
    const sent = this.sent.get(did) ?? []
    // Two notices of one millisecond would be one and the same.
    if (sent.includes(key)) return
    sent.push(key)
    this.sent.set(did, sent)
    this.count++
    this.#pds.send(event)
  }

  async #run(): Promise<void> {
    while (!this.#stopped) {
      for (let burst = Math.floor(this.#random() ** 3 * 6); burst >= 0; burst--) {
        const account = this.#accounts[Math.floor(this.#random() * this.#accounts.length)]!
        const { did } = account
        const kind = this.#random()
        if (kind < 0.03) this.#send(did, identityEvent({ did }, now()))
        else if (kind < 0.06) this.#send(did, accountEvent({ did, active: true }, now()))
        else this.#send(did, commitEvent(account.post(`number ${this.count}`), now()))
      }
      await wait(10)
    }
  }
}

export interface KillsOptions {
  kills: number
  seed: number
  fsync: 'batch' | 'interval' | 'none'
  /** The longest time between two kills, in milliseconds. */
  restMs?: number
  log?: (line: string) => void
}

/** Runs it, and asserts that nothing was lost, repeated, reordered or changed, and that no seq was used twice. */
export async function runKills(options: KillsOptions): Promise<{ events: number; kills: number }> {
  const folder = await mkdtemp(join(tmpdir(), 'millisky-kills-'))
  const env = { PLC_PORT: '0', PLC_DB: ':memory:', PLC_DEV_MODE: 'true' }
  const plc = await createPlc(readSettings(plcSettings, [], { env }), { log: silentLog })
  await plc.listen()
  const daemons = await twoRelays(folder, plc, options.fsync)
  const pds = await FakePds.start()
  const survivors: Survivor[] = []
  try {
    return await attempt(options, plc, daemons, pds, survivors)
  } catch (error) {
    const output = daemons.map(({ process }) => process?.output.slice(-4_000)).join('\n---\n')
    throw new Error(`seed ${options.seed}: ${(error as Error).message}\n${output}`, { cause: error })
  } finally {
    for (const survivor of survivors) survivor.close()
    for (const daemon of daemons.toReversed()) await daemon.stop()
    await pds.close()
    await plc.close()
    await rm(folder, { recursive: true, force: true })
  }
}

async function twoRelays(folder: string, plc: Plc, fsync: string): Promise<[Daemon, Daemon]> {
  const [port, fanoutPort] = [await freePort(), await freePort()]
  const common = { RELAY_METRICS_LISTEN: '', RELAY_ALLOW_INSECURE_HOSTS: 'true', RELAY_FSYNC: fsync }
  const relay = new Daemon('relay', port, {
    ...common,
    RELAY_API_BIND: `127.0.0.1:${port}`,
    RELAY_PERSIST_DIR: join(folder, 'relay', 'log'),
    DATABASE_URL: `sqlite://${join(folder, 'relay', 'relay.sqlite')}`,
    RELAY_PLC_HOST: plc.url,
    RELAY_TRUSTED_DOMAINS: 'localhost',
    RELAY_VERIFY_WORKERS: '1',
  })
  const fanout = new Daemon('relay', fanoutPort, {
    ...common,
    RELAY_API_BIND: `127.0.0.1:${fanoutPort}`,
    RELAY_PERSIST_DIR: join(folder, 'fanout'),
    RELAY_UPSTREAM: relay.url,
    RELAY_UPSTREAM_BACKFILL: 'true',
  })
  return [relay, fanout]
}

async function attempt(
  { kills, seed, restMs = 1_000, log }: KillsOptions,
  plc: Plc,
  daemons: [Daemon, Daemon],
  pds: FakePds,
  survivors: Survivor[],
): Promise<{ events: number; kills: number }> {
  const random = randomOf(seed)
  const [relay, fanout] = daemons
  await relay.start()
  await fanout.start()
  const accounts: FakeAccount[] = []
  for (let i = 0; i < ACCOUNTS; i++) accounts.push(await pds.createAccount(plc.url, `kill${i}`))
  survivors.push(new Survivor(relay.url), new Survivor(fanout.url))
  const [behindRelay, behindFanout] = survivors as [Survivor, Survivor]
  const crawl = await pds.requestCrawl(relay.url)
  assert.equal(crawl.status, 200, await crawl.text())
  const sender = new Sender(pds, accounts, randomOf(seed + 1))
  try {
    for (let kill = 1; kill <= kills; kill++) {
      const got = behindRelay.keys.length
      await until(`something new came before kill ${kill}`, () => behindRelay.keys.length > got + 5, 60_000)
      await wait(random() * restMs)
      const draw = random()
      const victims = draw < 0.6 ? [relay] : draw < 0.85 ? [fanout] : [relay, fanout]
      await Promise.all(victims.map(victim => victim.kill()))
      // Now and then it is killed once more while it is still starting.
      const again = random() < 0.2 ? random() * 1_500 : null
      for (const victim of victims) await (again === null ? victim.start() : startTwice(victim, again))
      if (kill % 10 === 0) log?.(`${kill} kills, ${sender.count} events sent, ${behindFanout.keys.length} behind both`)
    }
  } finally {
    await sender.stop()
  }
  const whole = () => survivors.every(({ keys }) => keys.length >= sender.count)
  await until('consumers have it all', whole, 60_000).catch(() => undefined)
  for (const [i, survivor] of survivors.entries()) assertExact(i === 0 ? 'relay' : 'fan-out', survivor, sender)
  assert.deepEqual(behindFanout.seqs, behindRelay.seqs, 'the fan-out has the seqs of the relay')
  for (const daemon of daemons) {
    const late = new Survivor(daemon.url)
    survivors.push(late)
    await until('a replay brings it all', () => late.seqs.at(-1) === behindRelay.seqs.at(-1), 60_000)
    assert.deepEqual(late.faults, [])
    assert.deepEqual([late.seqs, late.keys], [behindRelay.seqs, behindRelay.keys], 'a replay is what was sent live')
  }
  return { events: sender.count, kills }
}

async function startTwice(daemon: Daemon, afterMs: number): Promise<void> {
  const started = daemon.start()
  started.catch(() => {})
  await wait(afterMs)
  await daemon.kill()
  await started.catch(() => {})
  await daemon.start()
}

function assertExact(name: string, { faults, keys, dids, kinds, seqs }: Survivor, { sent, count }: Sender): void {
  assert.deepEqual(faults, [], name)
  const first = new Map<string, number>()
  const twice: string[] = []
  for (const [i, key] of keys.entries()) {
    const before = first.get(key)
    if (before === undefined) first.set(key, seqs[i]!)
    else twice.push(`${kinds[i]} of ${dids[i]} as ${before} and ${seqs[i]}`)
  }
  assert.deepEqual(twice, [], `${name}: events that came twice`)
  assert.equal(keys.length, count, `${name}: events are missing`)
  const got = new Map<string, string[]>()
  for (const [i, did] of dids.entries()) got.set(did!, [...(got.get(did!) ?? []), keys[i]!])
  for (const [did, expected] of sent) assert.deepEqual(got.get(did), expected, `${name}: ${did} in order`)
}
