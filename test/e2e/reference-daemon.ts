// The reference PDS as a process that can be stopped and started again, against a directory of ours.
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { until } from '@millisky/server/testing-until'

/** The folder where `scripts/reference-pds.mjs` has put it, if anywhere. */
export const referenceFolder: string | undefined = process.env.MILLISKY_REFERENCE_PDS

/** Why tests that need it are skipped, or false. */
export const withoutReference: string | false =
  referenceFolder && existsSync(join(referenceFolder, 'node_modules/@atproto/pds'))
    ? false
    : 'MILLISKY_REFERENCE_PDS does not name a folder made by scripts/reference-pds.mjs'

const START_TIMEOUT_MS = 60_000

const LAUNCH = `
  const { PDS, envToCfg, envToSecrets, readEnv } = await import('@atproto/pds')
  const env = readEnv()
  const pds = await PDS.create(envToCfg(env), envToSecrets(env))
  await pds.start()
  process.on('SIGTERM', () => pds.destroy().then(() => process.exit(0)))
`

export class ReferenceDaemon {
  readonly url: string
  readonly folder: string
  readonly env: Record<string, string>
  #child: ChildProcess | undefined
  #output = ''

  /** @param folder - Its data directory. @param env - Besides what development needs. */
  constructor({
    folder,
    port,
    plcUrl,
    env = {},
  }: { folder: string; port: number; plcUrl: string; env?: Record<string, string> }) {
    this.folder = folder
    this.url = `http://localhost:${port}`
    this.env = {
      PDS_HOSTNAME: 'localhost',
      PDS_PORT: String(port),
      PDS_DEV_MODE: 'true',
      PDS_DATA_DIRECTORY: folder,
      PDS_BLOBSTORE_DISK_LOCATION: join(folder, 'blocks'),
      PDS_JWT_SECRET: 'a secret of the reference',
      PDS_ADMIN_PASSWORD: 'reference-admin',
      PDS_INVITE_REQUIRED: 'false',
      PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX: '22'.repeat(32),
      PDS_SERVICE_HANDLE_DOMAINS: '.test',
      PDS_DISABLE_SSRF_PROTECTION: 'true',
      PDS_RATE_LIMITS_ENABLED: 'false',
      ...env,
      // It asks no directory at a bare address.
      PDS_DID_PLC_URL: plcUrl.replace('127.0.0.1', 'localhost'),
    }
  }

  async start(): Promise<void> {
    await mkdir(this.env.PDS_BLOBSTORE_DISK_LOCATION!, { recursive: true })
    const child = spawn(process.execPath, ['--input-type=module', '-e', LAUNCH], {
      cwd: referenceFolder,
      env: {
        PATH: process.env.PATH,
        LOG_ENABLED: 'false',
        NODE_ENV: 'test',
        ...this.env,
      },
      stdio: ['ignore', 'ignore', 'pipe'],
    })
    this.#child = child
    child.stderr!.on('data', chunk => {
      this.#output = (this.#output + chunk).slice(-5_000)
    })
    await until(
      'the reference answers',
      () => {
        if (child.exitCode !== null) throw new Error(`the reference ended:\n${this.#output}`)
        return fetch(`${this.url}/xrpc/_health`).then(
          reply => reply.ok,
          () => false,
        )
      },
      START_TIMEOUT_MS,
    )
  }

  async stop(): Promise<void> {
    const child = this.#child
    if (!child || child.exitCode !== null || child.signalCode !== null) return
    const ended = once(child, 'exit')
    child.kill('SIGTERM')
    await ended
  }
}
