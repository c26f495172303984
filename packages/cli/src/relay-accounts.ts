/** `millisky account … --relay`: accounts as a Relay sees them, and what it takes down. */
import { type Command, Option } from 'commander'
import { print } from './print.ts'
import { ADMIN, entriesOf, pagesOf, type RelayOptions, readText, relayClient } from './relay-client.ts'
import { XrpcClient } from './xrpc-client.ts'

/** DIDs in one call. */
const CHUNK = 500

interface Changed {
  changed: number
  notFound: string[]
}

/** Has a command that is about accounts of a PDS be about accounts at a Relay, if it is given `--relay`. */
export function withRelay(command: Command): Command {
  return command
    .addOption(new Option('--relay <url>', 'act on this Relay instead of a PDS'))
    .addOption(new Option('--relay-password <password>', "the Relay's admin password").env('RELAY_ADMIN_PASSWORD'))
}

/** A PDS's password that is in the environment is not the Relay's. */
function optionsOf(command: Command): RelayOptions {
  const { relay, relayPassword, adminPassword, json } = command.opts<RelayOptions & { relayPassword?: string }>()
  const given = command.getOptionValueSource('adminPassword') === 'cli' ? adminPassword : relayPassword
  return { relay, ...(given === undefined ? {} : { adminPassword: given }), ...(json ? { json } : {}) }
}

/** What commands do when they were given `--relay`. */
export function onRelay(command: Command) {
  const options = optionsOf(command)
  const client = relayClient(options)
  const change = async (method: string, dids: readonly string[], more: object = {}): Promise<void> => {
    const wrong = dids.filter(did => !did.startsWith('did:'))
    if (wrong.length > 0) throw new Error(`a Relay knows accounts by their DIDs alone, not as ${wrong[0]}`)
    const done: Changed = { changed: 0, notFound: [] }
    for (let at = 0; at < dids.length; at += CHUNK) {
      const body = { dids: dids.slice(at, at + CHUNK), ...more }
      const { changed, notFound } = await client.procedure<Changed>(`${ADMIN}.${method}`, body)
      done.changed += changed
      done.notFound.push(...notFound)
    }
    print(options, { accounts: dids.length, changed: done.changed, notFound: done.notFound })
    if (done.notFound.length > 0) process.exitCode = 1
  }
  return {
    async info(did: string): Promise<void> {
      print(options, await client.query<Record<string, unknown>>(`${ADMIN}.getAccount`, { did }))
    },
    takeDown: (dids: readonly string[], unknown: boolean) => change('takeDownAccounts', dids, { unknown }),
    restore: (dids: readonly string[]) => change('restoreAccounts', dids),
    async takedowns(): Promise<void> {
      for await (const { dids } of pagesOf<{ dids: string[]; cursor?: string }>(client, `${ADMIN}.listTakedowns`)) {
        for (const did of dids) process.stdout.write(`${options.json ? JSON.stringify({ did }) : did}\n`)
      }
    },
  }
}

/** All accounts that a Relay knows a commit of, as they come; anybody may ask for them. */
export async function listAccounts(relay: string, { json }: Pick<RelayOptions, 'json'>): Promise<void> {
  type Page = { repos: { did: string }[]; cursor?: string }
  for await (const { repos } of pagesOf<Page>(new XrpcClient(relay), 'com.atproto.sync.listRepos', { limit: 1_000 })) {
    if (repos.length > 0)
      process.stdout.write(`${repos.map(repo => (json ? JSON.stringify(repo) : repo.did)).join('\n')}\n`)
  }
}

/** DIDs of a list, each once. @throws Error at what is none */
function didsOf(text: string): string[] {
  const dids = entriesOf(text).map(entry => {
    const did = typeof entry === 'object' && entry !== null && 'did' in entry ? entry.did : entry
    if (typeof did !== 'string' || !did.startsWith('did:')) throw new Error(`no DID: ${JSON.stringify(entry)}`)
    return did
  })
  return [...new Set(dids)]
}

/** Commands that there are for a Relay alone: whole lists. */
export function addRelayAccounts(account: Command): void {
  const command = (usage: string, description: string) =>
    account
      .command(usage)
      .description(description)
      .requiredOption('--relay <url>', 'the Relay')
      .addOption(new Option('--relay-password <password>', "the Relay's admin password").env('RELAY_ADMIN_PASSWORD'))
      .addOption(new Option('--json', 'print JSON'))
  command('takedowns', 'accounts that a Relay has taken down, a DID per line').action((_options, self: Command) =>
    onRelay(self).takedowns(),
  )
  command('import-takedowns <file>', 'take down all accounts of a list of DIDs, or JSON; "-" is standard input')
    .option('--known', 'only those that the Relay has heard of')
    .action(async (file: string, { known }: { known?: boolean }, self: Command) =>
      onRelay(self).takeDown(didsOf(await readText(file)), !known),
    )
}
