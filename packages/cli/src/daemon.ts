/** `millisky plc|pds|relay`: one daemon, configured by its settings table, run until a signal ends it. */
import {
  readSettings,
  type Settings,
  type SettingsTable,
  settingsHelp,
  shownSettings,
  unknownVariables,
} from '@millisky/server/config'
import { Lifetime } from '@millisky/server/lifetime'
import { releaseLoadingMemory } from '@millisky/server/memory'
import { createLog, type Logger, type LogLevel } from '@millisky/server/trace'

/** What every daemon's `main.ts` gives. */
interface Daemon {
  readonly url: string
  listen(): Promise<unknown>
  close(): Promise<unknown>
}

interface Kind<T extends SettingsTable> {
  settings: T
  /** Prefixes of its environment variables, for finding misspelt ones. */
  prefixes: readonly string[]
  create(settings: Settings<T>, parts: { log: Logger; version: string }): Promise<Daemon>
}

function kind<T extends SettingsTable>(kind: Kind<T>): Kind<SettingsTable> {
  return kind as unknown as Kind<SettingsTable>
}

const KINDS = {
  async plc() {
    const [{ settings }, { createPlc }] = await Promise.all([
      import('@millisky/plc/config'),
      import('@millisky/plc/main'),
    ])
    return kind({ settings, prefixes: ['PLC_'], create: createPlc })
  },
  async pds() {
    const [{ settings }, { createPds }] = await Promise.all([
      import('@millisky/pds/config'),
      import('@millisky/pds/main'),
    ])
    return kind({ settings, prefixes: ['PDS_'], create: createPds })
  },
  async relay() {
    const { settings } = await import('@millisky/relay/config')
    return kind({
      settings,
      prefixes: ['RELAY_', 'BGS_'],
      async create(given, parts): Promise<Daemon> {
        if (given.upstream === undefined) return (await import('@millisky/relay/main')).createRelay(given, parts)
        return (await import('@millisky/relay/fanout')).createFanout(given, parts)
      },
    })
  },
}

export type DaemonName = keyof typeof KINDS

/** Reads the settings, starts the daemon and resolves when it has stopped. @throws SettingsError */
export async function runDaemon(name: DaemonName, argv: readonly string[], version: string): Promise<void> {
  const { settings: table, prefixes, create } = await KINDS[name]()
  if (argv.includes('--help') || argv.includes('-h')) {
    process.stdout.write(
      `Usage: millisky ${name} [flags]\n\nA flag wins over its environment variable, shown beside it.\n\n`,
    )
    if (name === 'pds')
      process.stdout.write('millisky pds import <path>: take over what another PDS had, see --help there.\n\n')
    process.stdout.write(settingsHelp(table))
    return
  }
  if (argv.includes('--version') || argv.includes('-V')) {
    process.stdout.write(`${version}\n`)
    return
  }
  const settings = readSettings(table, argv)
  const log = createLog({ name, level: (settings as { logLevel: LogLevel }).logLevel })
  const unknown = unknownVariables(table, prefixes)
  if (unknown.length > 0) log.warn({ variables: unknown }, 'environment variables that mean nothing here')
  log.debug({ settings: shownSettings(table, settings) }, 'settings')
  const daemon = await create(settings, { log, version })
  const life = new Lifetime({ log })
  life.add(name, { start: () => daemon.listen(), stop: () => daemon.close() })
  await life.start()
  // Loaded by now, by what needs keys. What it is makes a Relay up to ten times as fast or as slow.
  const { cryptoDriver } = await import('@millisky/core/crypto')
  log.info({ driver: cryptoDriver }, 'K-256 signatures')
  releaseLoadingMemory()
  // Started by `millisky dev`: when that is gone, however it ended, so are we.
  process.once('disconnect', () => process.kill(process.pid, 'SIGTERM'))
  process.exitCode = await life.untilSignal()
  // What was asked to stop has stopped; a forgotten timer must not keep the process.
  process.exit()
}
