// A small network in one process for scenarios: a directory, a Relay, hosts that do as they are told, consumers.
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { decodeFrame, type Frame, readError } from '@millisky/core/event'
import { settings as plcSettings } from '@millisky/plc/config'
import { createPlc, type Plc } from '@millisky/plc/main'
import { settings as relaySettings } from '@millisky/relay/config'
import { createRelay, type Relay, type RelayParts } from '@millisky/relay/main'
import { readSettings } from '@millisky/server/config'
import { until } from '@millisky/server/testing-until'
import { silentLog } from '@millisky/server/trace'
import { WebSocket } from 'ws'
import { FakePds } from '../e2e/fake-pds.ts'

export const PASSWORD = 'scenario-admin'

/** A consumer of the Relay's stream that remembers everything. */
export class Consumer {
  readonly frames: Frame[] = []
  readonly raw: Uint8Array[] = []
  readonly socket: WebSocket
  closeCode: number | null = null

  constructor(relayUrl: string, cursor?: number | string) {
    const query = cursor === undefined ? '' : `?cursor=${cursor}`
    this.socket = new WebSocket(`${relayUrl.replace('http', 'ws')}/xrpc/com.atproto.sync.subscribeRepos${query}`)
    this.socket.on('message', data => {
      this.raw.push(data as Buffer)
      this.frames.push(decodeFrame(data as Buffer))
    })
    this.socket.on('error', () => {})
    this.socket.on('close', code => {
      this.closeCode = code
    })
  }

  async opened(): Promise<this> {
    if (this.socket.readyState === WebSocket.CONNECTING) await once(this.socket, 'open')
    return this
  }

  /** Types and DIDs in order, such as `#commit did:plc:…`. */
  get story(): string[] {
    return this.frames.map(({ op, t, body }) =>
      op === -1 ? `error ${readError(body).error}` : `${t} ${body.repo ?? body.did ?? body.name}`,
    )
  }

  of(did: string): Frame[] {
    return this.frames.filter(({ body }) => body.repo === did || body.did === did)
  }

  /** What came for an account: its kinds, in order. */
  kindsOf(did: string): string[] {
    return this.of(did).map(({ t }) => t ?? 'error')
  }

  /** Paths of records in commits of an account, in order. */
  pathsOf(did: string): string[] {
    return this.of(did).flatMap(({ body }) => ((body.ops ?? []) as { path: string }[]).map(op => op.path))
  }

  get seqs(): number[] {
    return this.frames.flatMap(({ body }) => (typeof body.seq === 'number' ? [body.seq] : []))
  }

  async close(): Promise<void> {
    if (this.socket.readyState === WebSocket.CLOSED) return
    this.socket.terminate()
    await once(this.socket, 'close')
  }
}

export interface WorldOptions extends RelayParts {
  env?: Record<string, string>
}

export class World {
  readonly folder: string
  readonly plc: Plc
  relay: Relay
  readonly #options: WorldOptions
  readonly #pdses: FakePds[] = []
  readonly #consumers: Consumer[] = []

  private constructor(folder: string, plc: Plc, relay: Relay, options: WorldOptions) {
    this.folder = folder
    this.plc = plc
    this.relay = relay
    this.#options = options
  }

  static async start(options: WorldOptions = {}): Promise<World> {
    const folder = await mkdtemp(join(tmpdir(), 'millisky-scenario-'))
    const env = { PLC_PORT: '0', PLC_DB: ':memory:', PLC_DEV_MODE: 'true' }
    const plc = await createPlc(readSettings(plcSettings, [], { env }), { log: silentLog })
    await plc.listen()
    return new World(folder, plc, await startRelay(folder, plc.url, options), options)
  }

  async host(...names: string[]) {
    const pds = await FakePds.start()
    this.#pdses.push(pds)
    const accounts = await Promise.all(names.map(name => pds.createAccount(this.plc.url, name)))
    const reply = await pds.requestCrawl(this.relay.url)
    if (reply.status !== 200) throw new Error(`requestCrawl: ${reply.status} ${await reply.text()}`)
    await pds.connected()
    return { pds, accounts, name: new URL(pds.url).host }
  }

  async consumer(cursor?: number | string): Promise<Consumer> {
    const consumer = new Consumer(this.relay.url, cursor)
    this.#consumers.push(consumer)
    return consumer.opened()
  }

  async get<T = Record<string, unknown>>(path: string): Promise<{ status: number; body: T; headers: Headers }> {
    const reply = await fetch(`${this.relay.url}${path}`, {
      redirect: 'manual',
      headers: path.startsWith('/admin') ? { authorization: `Bearer ${PASSWORD}` } : {},
    })
    const text = await reply.text()
    return { status: reply.status, headers: reply.headers, body: text ? JSON.parse(text) : null }
  }

  async post<T = Record<string, unknown>>(path: string, body?: unknown): Promise<{ status: number; body: T }> {
    const headers: Record<string, string> = body === undefined ? {} : { 'content-type': 'application/json' }
    if (path.startsWith('/admin'))
      headers.authorization = `Basic ${Buffer.from(`admin:${PASSWORD}`).toString('base64')}`
    const init = body === undefined ? {} : { body: JSON.stringify(body) }
    const reply = await fetch(`${this.relay.url}${path}`, { method: 'POST', headers, ...init })
    const text = await reply.text()
    return { status: reply.status, body: text ? JSON.parse(text) : null }
  }

  /** Reasons for which events of a host did not pass, with how often. */
  async rejects(name: string): Promise<Record<string, number>> {
    return (await this.get<{ rejects: Record<string, number> }>(`/admin/pds/report?host=${name}`)).body.rejects
  }

  /** Waits until a host's cursor has come so far: everything up to there has its verdict and is durable. */
  async settled(pds: FakePds, seq: number): Promise<void> {
    const name = new URL(pds.url).host
    await until(`${name} is settled at ${seq}`, () => (this.relay.hosts.byName(name)?.window.cursor ?? -1) >= seq)
  }

  async restart(): Promise<void> {
    await this.relay.close()
    this.relay = await startRelay(this.folder, this.plc.url, this.#options)
  }

  async stop(): Promise<void> {
    await Promise.all(this.#consumers.map(consumer => consumer.close()))
    await this.relay.close()
    await Promise.all(this.#pdses.map(pds => pds.close()))
    await this.plc.close()
    await rm(this.folder, { recursive: true, force: true })
  }
}

/** A Relay over a folder, which may be that of another. */
export async function startRelay(folder: string, plcUrl: string, { env, ...parts }: WorldOptions): Promise<Relay> {
  const given = {
    RELAY_API_BIND: '127.0.0.1:0',
    RELAY_PERSIST_DIR: join(folder, 'log'),
    DATABASE_URL: `sqlite://${join(folder, 'relay.sqlite')}`,
    RELAY_PLC_HOST: plcUrl,
    RELAY_ALLOW_INSECURE_HOSTS: 'true',
    RELAY_ADMIN_PASSWORD: PASSWORD,
    RELAY_VERIFY_WORKERS: '0',
    ...env,
  }
  const onFatal = (error: unknown) => {
    throw error
  }
  const relay = await createRelay(readSettings(relaySettings, [], { env: given }), {
    log: silentLog,
    onFatal,
    ...parts,
  })
  await relay.listen()
  return relay
}
