// Real processes for the end-to-end tests: the whole development network, or its daemons one by one.
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { until } from '@millisky/server/testing-until'
import type { Ready } from '../../packages/cli/src/dev.ts'
import { freePort } from './ports.ts'

const millisky = resolve(import.meta.dirname, '../../packages/cli/bin/millisky')
const START_TIMEOUT_MS = 60_000

/** One `millisky` process. Its output is kept for the message of a failing test. */
export class Process {
  readonly child: ChildProcess
  output = ''

  constructor(args: string[], env: Record<string, string> = {}) {
    this.child = spawn(millisky, args, {
      env: { PATH: process.env.PATH, HOME: process.env.HOME, TMPDIR: process.env.TMPDIR, ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    for (const stream of [this.child.stdout, this.child.stderr]) {
      stream?.on('data', chunk => {
        this.output = (this.output + chunk).slice(-20_000)
      })
    }
  }

  get ended(): boolean {
    return this.child.exitCode !== null || this.child.signalCode !== null
  }

  async end(signal: NodeJS.Signals): Promise<void> {
    if (this.ended) return
    this.child.kill(signal)
    await once(this.child, 'exit')
  }
}

export interface Network extends Ready {
  process: Process
  stop(): Promise<void>
}

/** `millisky dev` on free ports with nothing kept; answers once its ready file is there. */
export async function startNetwork(...flags: string[]): Promise<Network> {
  const folder = await mkdtemp(join(tmpdir(), 'millisky-e2e-'))
  const readyFile = join(folder, 'ready.json')
  const ports = await Promise.all(['plc', 'pds', 'relay'].map(async name => `--${name}-port=${await freePort()}`))
  const process = new Process(['dev', '--ephemeral', ...ports, `--ready-file=${readyFile}`, ...flags])
  const stop = async () => {
    await process.end('SIGTERM')
    await rm(folder, { recursive: true, force: true })
  }
  try {
    await until(
      'the network is ready',
      () => {
        if (process.ended) throw new Error(`millisky dev ended:\n${process.output}`)
        return existsSync(readyFile)
      },
      START_TIMEOUT_MS,
    )
  } catch (err) {
    await stop()
    throw new Error(`${(err as Error).message}\n${process.output}`)
  }
  return { ...(JSON.parse(await readFile(readyFile, 'utf8')) as Ready), process, stop }
}

/** One daemon on a fixed port and data folder, so that it can be killed and started again. */
export class Daemon {
  readonly name: 'plc' | 'pds' | 'relay'
  readonly url: string
  readonly env: Record<string, string>
  process: Process | undefined

  constructor(name: 'plc' | 'pds' | 'relay', port: number, env: Record<string, string>) {
    this.name = name
    this.url = `http://localhost:${port}`
    this.env = env
  }

  async start(): Promise<void> {
    const started = new Process([this.name], this.env)
    this.process = started
    const health = this.name === 'plc' ? `${this.url}/_health` : `${this.url}/xrpc/_health`
    await until(
      `${this.name} answers`,
      async () => {
        if (started.ended) throw new Error(`${this.name} ended:\n${started.output}`)
        return fetch(health).then(
          reply => reply.ok,
          () => false,
        )
      },
      START_TIMEOUT_MS,
    )
  }

  /** Ends it at once, as a power cut would. */
  async kill(): Promise<void> {
    await this.process?.end('SIGKILL')
  }

  async stop(): Promise<void> {
    await this.process?.end('SIGTERM')
  }
}

export interface Daemons {
  folder: string
  plc: Daemon
  pds: Daemon
  relay: Daemon
  stop(): Promise<void>
}

/** The three daemons, each started alone from environment variables, as an operator would. */
export async function startDaemons(): Promise<Daemons> {
  const folder = await mkdtemp(join(tmpdir(), 'millisky-e2e-'))
  const [plcPort, pdsPort, relayPort] = [await freePort(), await freePort(), await freePort()]
  const plc = new Daemon('plc', plcPort, {
    PLC_PORT: String(plcPort),
    PLC_DATA_DIR: join(folder, 'plc'),
    PLC_DEV_MODE: 'true',
  })
  const relay = new Daemon('relay', relayPort, {
    RELAY_API_BIND: `127.0.0.1:${relayPort}`,
    RELAY_METRICS_LISTEN: '',
    RELAY_PERSIST_DIR: join(folder, 'relay', 'log'),
    DATABASE_URL: `sqlite://${join(folder, 'relay', 'relay.sqlite')}`,
    RELAY_PLC_HOST: plc.url,
    RELAY_ALLOW_INSECURE_HOSTS: 'true',
    RELAY_TRUSTED_DOMAINS: 'localhost,127.0.0.1',
    RELAY_ADMIN_PASSWORD: 'relay-admin',
  })
  const pds = new Daemon('pds', pdsPort, {
    PDS_PORT: String(pdsPort),
    PDS_HOSTNAME: 'localhost',
    PDS_DATA_DIRECTORY: join(folder, 'pds'),
    PDS_DEV_MODE: 'true',
    PDS_DISABLE_SSRF_PROTECTION: 'true',
    PDS_DID_PLC_URL: plc.url,
    PDS_CRAWLERS: relay.url,
    PDS_INVITE_REQUIRED: 'false',
    PDS_RATE_LIMITS_ENABLED: 'false',
    PDS_SERVICE_HANDLE_DOMAINS: '.test',
    PDS_ADMIN_PASSWORD: 'pds-admin',
    PDS_JWT_SECRET: '0123456789abcdef0123456789abcdef',
    PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX: '11'.repeat(32),
  })
  const stop = async () => {
    for (const daemon of [relay, pds, plc]) await daemon.stop()
    await rm(folder, { recursive: true, force: true })
  }
  try {
    await plc.start()
    await relay.start()
    await pds.start()
  } catch (err) {
    await stop()
    throw err
  }
  return { folder, plc, pds, relay, stop }
}
