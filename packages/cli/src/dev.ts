/**
 * `millisky dev`: a did:plc directory, a PDS and a Relay on loopback in one process tree, each a child process that is
 * configured only through the environment variables and flags any operator would use.
 */
import { randomBytes } from 'node:crypto'
import { mkdir, mkdtemp, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { createServer, type Server } from 'node:net'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { Child } from './child.ts'
import { runDemo } from './demo.ts'

export interface DevOptions {
  /** Where everything is kept. Default `data/dev` below the current folder. */
  dataDir: string
  /** Ports on loopback; 0 takes a free one. */
  plcPort: number
  pdsPort: number
  relayPort: number
  /** Keep nothing: a fresh temporary folder, removed at the end. */
  ephemeral: boolean
  /** Written once everything answers. */
  readyFile: string | undefined
  /** Make two accounts that talk to each other. */
  demo: boolean
  /** Show the daemons' whole logs instead of their warnings. */
  verbose: boolean
}

/** What stands in the ready file. */
export interface Ready {
  plc: string
  pds: string
  relay: string
  pdsAdminPassword: string
  relayAdminPassword: string
}

interface Secrets {
  pdsAdminPassword: string
  relayAdminPassword: string
  jwtSecret: string
  plcRotationKey: string
}

const START_TIMEOUT_MS = 60_000
const STOP_TIMEOUT_MS = 10_000

/** Secrets of a development network, kept beside its data so that a restart is the same network. */
async function secretsIn(dataDir: string): Promise<Secrets> {
  const file = join(dataDir, 'secrets.json')
  const fresh: Secrets = {
    pdsAdminPassword: randomBytes(12).toString('base64url'),
    relayAdminPassword: randomBytes(12).toString('base64url'),
    jwtSecret: randomBytes(32).toString('hex'),
    plcRotationKey: randomBytes(32).toString('hex'),
  }
  try {
    return { ...fresh, ...(JSON.parse(await readFile(file, 'utf8')) as Partial<Secrets>) }
  } catch (err) {
    if ((err as NodeJS.ErrnoException).code !== 'ENOENT')
      throw new Error(`${file} cannot be read: ${(err as Error).message}`)
    await writeFile(file, `${JSON.stringify(fresh, null, 2)}\n`, { mode: 0o600 })
    return fresh
  }
}

type Ports = Record<'plc' | 'pds' | 'relay', number>

/**
 * Claims the ports asked for. Where any would do, it is the one of last time if that is free: identities name their PDS
 * by its URL, and with another one the Relay takes nothing of their accounts.
 */
async function claimPorts(dataDir: string, options: DevOptions): Promise<Ports> {
  const held: Server[] = []
  try {
    return await claimAll(dataDir, options, held)
  } finally {
    for (const server of held) await new Promise(done => server.close(done))
  }
}

/** @param held - Gets what listens there so that no two are given the same. */
async function claimAll(dataDir: string, options: DevOptions, held: Server[]): Promise<Ports> {
  const file = join(dataDir, 'ports.json')
  const before = await readFile(file, 'utf8').then(
    text => JSON.parse(text) as Partial<Ports>,
    () => ({}) as Partial<Ports>,
  )
  const claim = async (name: keyof Ports, wanted: number) => {
    const flag = `--${name}-port`
    const last = before[name]
    if (wanted !== 0 || last === undefined) return claimPort(wanted, flag, held)
    return claimPort(last, flag, held).catch(() => claimPort(0, flag, held))
  }
  const ports: Ports = {
    plc: await claim('plc', options.plcPort),
    pds: await claim('pds', options.pdsPort),
    relay: await claim('relay', options.relayPort),
  }
  if (before.pds !== undefined && before.pds !== ports.pds) {
    process.stderr.write(
      `millisky: accounts made when the PDS was on port ${before.pds} reach the Relay only when it is there again\n`,
    )
    // Theirs stays the one to come back to.
    return ports
  }
  await writeFile(file, `${JSON.stringify(ports)}\n`, { mode: 0o600 })
  return ports
}

/** `wanted`, or a free port for 0. Says so plainly when the wanted one is taken. */
async function claimPort(wanted: number, flag: string, held: Server[]): Promise<number> {
  const server = createServer()
  const port = await new Promise<number>((done, fail) => {
    server.once('error', (err: NodeJS.ErrnoException) =>
      fail(
        err.code === 'EADDRINUSE'
          ? new Error(`port ${wanted} is in use: stop what uses it, or choose another with ${flag}`)
          : err,
      ),
    )
    server.listen(wanted, '127.0.0.1', () => done((server.address() as { port: number }).port))
  })
  held.push(server)
  return port
}

async function untilHealthy(child: Child, url: string): Promise<void> {
  const deadline = Date.now() + START_TIMEOUT_MS
  for (;;) {
    if (child.ended) throw new Error(`${child.name} stopped while starting:\n${child.lastLines()}`)
    const ok = await fetch(url, { signal: AbortSignal.timeout(2_000) }).then(
      reply => reply.ok,
      () => false,
    )
    if (ok) return
    if (Date.now() > deadline) throw new Error(`${child.name} does not answer at ${url}:\n${child.lastLines()}`)
    await new Promise(done => setTimeout(done, 50))
  }
}

function environment(dataDir: string, secrets: Secrets, urls: Ready, ports: Ports) {
  return {
    plc: {
      PLC_PORT: String(ports.plc),
      PLC_DATA_DIR: join(dataDir, 'plc'),
      PLC_DEV_MODE: 'true',
    },
    pds: {
      PDS_PORT: String(ports.pds),
      PDS_HOSTNAME: 'localhost',
      PDS_DATA_DIRECTORY: join(dataDir, 'pds'),
      PDS_DEV_MODE: 'true',
      PDS_DISABLE_SSRF_PROTECTION: 'true',
      PDS_DID_PLC_URL: urls.plc,
      PDS_CRAWLERS: urls.relay,
      PDS_INVITE_REQUIRED: 'false',
      PDS_RATE_LIMITS_ENABLED: 'false',
      PDS_SERVICE_HANDLE_DOMAINS: '.test',
      PDS_ADMIN_PASSWORD: secrets.pdsAdminPassword,
      PDS_JWT_SECRET: secrets.jwtSecret,
      PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX: secrets.plcRotationKey,
    },
    relay: {
      RELAY_API_BIND: `127.0.0.1:${ports.relay}`,
      RELAY_METRICS_LISTEN: '',
      RELAY_PERSIST_DIR: join(dataDir, 'relay', 'log'),
      DATABASE_URL: `sqlite://${join(dataDir, 'relay', 'relay.sqlite')}`,
      RELAY_PLC_HOST: urls.plc,
      RELAY_ALLOW_INSECURE_HOSTS: 'true',
      RELAY_TRUSTED_DOMAINS: 'localhost,127.0.0.1',
      RELAY_ADMIN_PASSWORD: secrets.relayAdminPassword,
    },
  }
}

function banner(urls: Ready, dataDir: string, ephemeral: boolean): string {
  return [
    '',
    '  millisky: an AT Protocol network on this machine',
    '',
    `  PLC directory  ${urls.plc}`,
    `  PDS            ${urls.pds}    admin password ${urls.pdsAdminPassword}`,
    `  Relay          ${urls.relay}    admin password ${urls.relayAdminPassword}`,
    `  Firehose       ${urls.relay.replace(/^http/, 'ws')}/xrpc/com.atproto.sync.subscribeRepos`,
    `  Data           ${dataDir}${ephemeral ? ' (removed at the end)' : ''}`,
    '',
    '  Handles end in .test. Ctrl-C stops everything.',
    '',
  ].join('\n')
}

/** Resolves when `signal` aborts, rejects when a child ends by itself. */
async function untilStopped(children: Child[], signal: AbortSignal): Promise<void> {
  const stopped = new Promise<void>(done => {
    if (signal.aborted) done()
    signal.addEventListener('abort', () => done(), { once: true })
  })
  const died = children.map(child =>
    child.exit.then(how => {
      if (!signal.aborted) throw new Error(`${child.name} stopped by itself (${how}):\n${child.lastLines()}`)
    }),
  )
  await Promise.race([stopped, ...died])
}

async function writeReadyFile(path: string, ready: Ready): Promise<void> {
  const partial = `${path}.${process.pid}.partial`
  await writeFile(partial, `${JSON.stringify(ready)}\n`, { mode: 0o600 })
  await rename(partial, path)
}

/**
 * Runs the network until `signal` aborts; then stops the children in reverse order and cleans up.
 * @throws Error with a message for people when a port is taken or a daemon does not start or stops by itself.
 */
export async function runDev(options: DevOptions, signal: AbortSignal): Promise<void> {
  const dataDir = options.ephemeral ? await mkdtemp(join(tmpdir(), 'millisky-dev-')) : resolve(options.dataDir)
  const children: Child[] = []
  const start = async (name: string, env: Record<string, string>, health: string) => {
    const child = new Child(name, env, join(dataDir, 'logs'), options.verbose)
    children.push(child)
    await untilHealthy(child, health)
  }
  try {
    // One that a crash left behind would tell of what is not there.
    if (options.readyFile) await rm(options.readyFile, { force: true })
    for (const part of ['plc', 'pds', 'relay', 'logs'])
      await mkdir(join(dataDir, part), { recursive: true, mode: 0o700 })
    const secrets = await secretsIn(dataDir)
    const ports = await claimPorts(dataDir, options)
    const ready: Ready = {
      plc: `http://localhost:${ports.plc}`,
      pds: `http://localhost:${ports.pds}`,
      relay: `http://localhost:${ports.relay}`,
      pdsAdminPassword: secrets.pdsAdminPassword,
      relayAdminPassword: secrets.relayAdminPassword,
    }
    const env = environment(dataDir, secrets, ready, ports)
    await start('plc', env.plc, `${ready.plc}/_health`)
    await Promise.all([
      start('relay', env.relay, `${ready.relay}/xrpc/_health`),
      start('pds', env.pds, `${ready.pds}/xrpc/_health`),
    ])
    process.stdout.write(`${banner(ready, dataDir, options.ephemeral)}\n`)
    if (options.readyFile) await writeReadyFile(options.readyFile, ready)
    const stopped = untilStopped(children, signal)
    if (options.demo) await Promise.race([runDemo(ready.pds, signal), stopped])
    await stopped
  } finally {
    for (const child of children.reverse()) await child.stop(STOP_TIMEOUT_MS)
    if (options.readyFile) await rm(options.readyFile, { force: true })
    if (options.ephemeral) await rm(dataDir, { recursive: true, force: true })
  }
}
