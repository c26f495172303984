/**
 * The `millisky` command. Each command's code is imported when it is called, so that `--help` is quick and a daemon
 * loads only what it runs.
 *
 * Exit codes: 0 fine, 1 failed, 2 called or configured wrongly.
 */
import { readFileSync } from 'node:fs'
import { Command, CommanderError, InvalidArgumentError } from 'commander'

const EXIT_FAILED = 1
const EXIT_USAGE = 2

const { version } = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8')) as { version: string }

function port(text: string): number {
  const value = Number(text)
  if (!/^\d+$/.test(text) || value > 65_535) throw new InvalidArgumentError('A port is a number from 0 to 65535.')
  return value
}

/** Aborts at the first SIGINT, SIGTERM or SIGHUP (the terminal is gone); a second one ends the process at once. */
function untilSignal(): AbortSignal {
  const controller = new AbortController()
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.on(signal, () => {
      if (controller.signal.aborted) process.exit(EXIT_FAILED)
      controller.abort()
    })
  }
  return controller.signal
}

function devCommand(): Command {
  return new Command('dev')
    .description('a whole network on loopback: did:plc directory, PDS and Relay in one process tree')
    .version(version)
    .option('--data-dir <path>', 'where everything is kept', 'data/dev')
    .option('--plc-port <port>', 'port of the directory, 0 for a free one', port, 2582)
    .option('--pds-port <port>', 'port of the PDS, 0 for a free one', port, 2583)
    .option('--relay-port <port>', 'port of the Relay, 0 for a free one', port, 2470)
    .option('--ephemeral', 'keep nothing: use a temporary folder and remove it at the end', false)
    .option('--ready-file <path>', 'write the URLs and admin passwords as JSON once all three answer')
    .option('--demo', 'make two accounts that talk to each other', false)
    .option('--verbose', "show the daemons' whole logs instead of their warnings", false)
    .action(async options => {
      const { runDev } = await import('./dev.ts')
      await runDev(options, untilSignal())
    })
}

function daemonCommand(name: 'plc' | 'pds' | 'relay', description: string): Command {
  // The settings tables know the flags, their help and their errors; commander only hands them over.
  return new Command(name)
    .description(description)
    .helpOption(false)
    .allowUnknownOption()
    .allowExcessArguments()
    .argument('[flags...]')
    .action(async (_flags, _options, command: Command) => {
      const { runDaemon } = await import('./daemon.ts')
      await runDaemon(name, command.parent?.args.slice(1) ?? [], version)
    })
}

/** What `pdsadmin update` does by itself: how it is done here depends on how it was installed. */
function updateCommand(): Command {
  return new Command('update').description('how to move to a newer version').action(() => {
    process.stdout.write(UPDATING)
  })
}

const UPDATING = `This is millisky ${version}. To move to a newer version:

  container   docker compose pull && docker compose up -d
  npm         npm install --global @millisky/cli@latest, then restart the service
  checkout    git pull && npm ci, then restart the service

Read CHANGELOG.md and make a copy of the data first. Databases are migrated at the start and not back.
`

/** A reader that has seen enough, such as `head`, ends a command without complaint, and a network in order. */
function endWithReader(command: string | undefined): void {
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE') throw error
    if (command === 'dev') process.kill(process.pid, 'SIGTERM')
    else process.exit(process.exitCode ?? 0)
  })
}

/** Has a command and those below it throw instead of ending the process. */
function exitOverridden(command: Command): Command {
  for (const below of command.commands) exitOverridden(below)
  return command.exitOverride()
}

/** Administration, by the methods of a running server, and tools; each with the names of its commands. */
const GROUPS: readonly { names: readonly string[]; load: () => Promise<Command[]> }[] = [
  {
    names: ['account', 'invite'],
    async load() {
      const { accountCommand, inviteCommand } = await import('./pds-admin.ts')
      return [accountCommand(), inviteCommand()]
    },
  },
  {
    names: ['record', 'blob'],
    async load() {
      const { recordCommand, blobCommand } = await import('./subject-commands.ts')
      return [recordCommand(), blobCommand()]
    },
  },
  {
    names: ['relays', 'request-crawl', 'update'],
    async load() {
      const { relaysCommand, requestCrawlCommand } = await import('./crawl-commands.ts')
      return [relaysCommand(), requestCrawlCommand(), updateCommand()]
    },
  },
  { names: ['host'], load: async () => [(await import('./host-command.ts')).hostCommand()] },
  {
    names: ['consumer', 'domain', 'audit', 'outbox'],
    async load() {
      const { consumerCommand, domainCommand, auditCommand, outboxCommand } = await import('./relay-admin.ts')
      return [consumerCommand(), domainCommand(), auditCommand(), outboxCommand()]
    },
  },
  { names: ['relay-log'], load: async () => [(await import('./relay-log.ts')).relayLogCommand()] },
  { names: ['key'], load: async () => [(await import('./key.ts')).keyCommand()] },
]
const ALONE: readonly (string | undefined)[] = ['dev', 'plc', 'pds', 'relay']

/** Those that a call is about: one group, none for a daemon, or all, to be listed. */
async function adminCommands(name: string | undefined): Promise<Command[]> {
  if (ALONE.includes(name)) return []
  const named = GROUPS.filter(({ names }) => name !== undefined && names.includes(name))
  const groups = await Promise.all((named.length > 0 ? named : GROUPS).map(({ load }) => load()))
  return groups.flat()
}

export async function main(argv: string[]): Promise<void> {
  endWithReader(argv[2])
  const pds = daemonCommand('pds', 'a Personal Data Server').exitOverride().passThroughOptions()
  // A word that is no flag: the daemon has none of its own.
  if (argv[2] === 'pds' && argv[3] === 'import') {
    pds.addCommand(exitOverridden((await import('./pds-import.ts')).pdsImportCommand()))
  }
  const program = new Command('millisky')
    .description('AT Protocol Personal Data Server and Relay')
    .version(version)
    .enablePositionalOptions()
    .exitOverride()
    .addCommand(devCommand().exitOverride())
    .addCommand(daemonCommand('plc', 'a did:plc directory').exitOverride().passThroughOptions())
    .addCommand(pds)
    .addCommand(daemonCommand('relay', 'a Relay').exitOverride().passThroughOptions())
  for (const command of await adminCommands(argv[2])) program.addCommand(exitOverridden(command))
  if (argv.length <= 2) {
    program.outputHelp({ error: true })
    process.exit(EXIT_USAGE)
  }
  try {
    await program.parseAsync(argv)
  } catch (err) {
    // Commander has printed its own message already.
    if (err instanceof CommanderError) process.exit(err.exitCode === 0 ? 0 : EXIT_USAGE)
    process.stderr.write(`millisky: ${(err as Error).message}\n`)
    process.exit(err instanceof Error && err.name === 'SettingsError' ? EXIT_USAGE : EXIT_FAILED)
  }
}
