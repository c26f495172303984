/** `millisky host pull|import|export`: whole lists of hosts, with their limits and bans. */
import type { Command } from 'commander'
import { Option } from 'commander'
import type { HostView } from './host-command.ts'
import { printRows } from './print.ts'
import {
  ADMIN,
  eachOf,
  entriesOf,
  pagesOf,
  type RelayOptions,
  readText,
  relayClient,
  relayCommand,
} from './relay-client.ts'
import { CallFailed, XrpcClient } from './xrpc-client.ts'

/** Hosts that are taken up at the same time: the Relay asks each whether it is one. */
const AT_ONCE = 8
const PULL_FROM_DEFAULT = 'https://bsky.network'

/** A host of a list, and what is said of it there. */
interface Listed {
  hostname: string
  status?: string
  reason?: string
  policy?: string
  pinned?: boolean
  setLimits?: HostView['setLimits']
}

interface ListOptions extends RelayOptions {
  check: boolean
}

/** As `/admin/pds/list` of other relays says it. A rate of -1 is one that is not known. */
interface OlderHost {
  Host: string
  Blocked?: boolean
  RepoLimit?: number
  PerSecondEventRate?: { Max: number }
  PerHourEventRate?: { Max: number }
  PerDayEventRate?: { Max: number }
}

type Result = 'added' | 'known' | 'changed' | 'blocked' | 'failed'

/** Reads a host of a file. @throws Error when it is none */
function listedOf(entry: unknown): Listed {
  if (typeof entry === 'string') return { hostname: entry.split(/\s+/, 1)[0]! }
  if (typeof entry === 'object' && entry !== null && 'hostname' in entry && typeof entry.hostname === 'string') {
    return entry as Listed
  }
  throw new Error(`no host: ${JSON.stringify(entry).slice(0, 200)}`)
}

/** Makes one host what the list says of it. */
async function take(client: XrpcClient, listed: Listed, isKnown: boolean, { check }: ListOptions): Promise<Result> {
  const { hostname, status, reason, policy, pinned, setLimits = {} } = listed
  if (status === 'banned') {
    await client.procedure(`${ADMIN}.blockHost`, { hostname, reason, unknown: true })
    return 'blocked'
  }
  if (!isKnown) await client.procedure(`${ADMIN}.addHost`, { hostname, check })
  const change = { ...setLimits, ...(pinned && policy ? { policy } : {}) }
  if (Object.values(change).every(value => value === undefined)) return isKnown ? 'known' : 'added'
  await client.procedure(`${ADMIN}.updateHost`, { hostname, ...change })
  return isKnown ? 'changed' : 'added'
}

/** Takes up all of a list, some at a time, and tells of each. */
async function takeAll(options: ListOptions, list: readonly Listed[]): Promise<Record<Result, number>> {
  const client = relayClient(options)
  const known = new Set<string>()
  for await (const { hosts } of pagesOf<{ hosts: HostView[]; cursor?: string }>(client, `${ADMIN}.listHosts`, {
    limit: 1_000,
  })) {
    for (const { hostname } of hosts) known.add(hostname)
  }
  const counts: Record<Result, number> = { added: 0, known: 0, changed: 0, blocked: 0, failed: 0 }
  await eachOf(list, AT_ONCE, async listed => {
    const { hostname } = listed
    let result: Result = 'failed'
    let error: string | undefined
    try {
      result = await take(client, listed, known.has(hostname), options)
    } catch (cause) {
      if (!(cause instanceof CallFailed) || cause.status === 401) throw cause
      error = cause.message
    }
    counts[result]++
    if (options.json) process.stdout.write(`${JSON.stringify({ hostname, result, error })}\n`)
    else if (error !== undefined) process.stderr.write(`${hostname}: ${error}\n`)
  })
  if (!options.json) printRows({}, [counts])
  return counts
}

/** Hosts of a relay by its public method. */
async function publicHosts(source: XrpcClient): Promise<Listed[]> {
  const found: Listed[] = []
  const pages = pagesOf<{ hosts: Listed[]; cursor?: string }>(source, 'com.atproto.sync.listHosts', { limit: 500 })
  for await (const { hosts } of pages)
    for (const { hostname, status } of hosts) found.push({ hostname, ...(status ? { status } : {}) })
  return found
}

const isOther = (error: unknown) => error instanceof CallFailed && [400, 404, 501].includes(error.status)

/** Hosts of a relay with what its administrators have set, whichever kind of relay it is. */
async function fullHosts(source: XrpcClient): Promise<Listed[]> {
  try {
    const found: Listed[] = []
    const pages = pagesOf<{ hosts: HostView[]; cursor?: string }>(source, `${ADMIN}.listHosts`, { limit: 1_000 })
    for await (const { hosts } of pages) found.push(...hosts)
    return found
  } catch (error) {
    if (!isOther(error)) throw error
  }
  const rate = (given: { Max: number } | undefined) => (given && given.Max > 0 ? Math.floor(given.Max) : undefined)
  return (await source.route<OlderHost[]>('/admin/pds/list')).map(host => {
    const limits = {
      accounts: host.RepoLimit,
      perSecond: rate(host.PerSecondEventRate),
      perHour: rate(host.PerHourEventRate),
      perDay: rate(host.PerDayEventRate),
    }
    const setLimits = Object.fromEntries(Object.entries(limits).filter(([, value]) => value !== undefined))
    return { hostname: host.Host, ...(host.Blocked ? { status: 'banned' } : {}), setLimits }
  })
}

/** Domains that a relay has banned, whichever kind of relay it is. */
async function bannedDomains(source: XrpcClient): Promise<string[]> {
  try {
    return (await source.query<{ banned: string[] }>(`${ADMIN}.listDomains`)).banned
  } catch (error) {
    if (!isOther(error)) throw error
  }
  return (await source.route<{ banned_domains: string[] | null }>('/admin/subs/listDomainBans')).banned_domains ?? []
}

/** Bans domains, whether they are banned already or not; says how many were not. */
export async function banDomains(client: XrpcClient, domains: readonly string[]): Promise<number> {
  let banned = 0
  for (const domain of domains) {
    try {
      await client.procedure(`${ADMIN}.banDomain`, { domain })
      banned++
    } catch (error) {
      if (!(error instanceof CallFailed && error.error === 'AlreadyBanned')) throw error
    }
  }
  return banned
}

interface PullOptions extends ListOptions {
  from: string
  fromPassword?: string
  bans?: boolean
  limits?: boolean
  all?: boolean
}

async function pull(options: PullOptions): Promise<void> {
  const { from, fromPassword, bans, limits, all } = options
  if ((bans || limits) && fromPassword === undefined) {
    throw new Error('--bans and --limits need the admin password of the other relay: give --from-password')
  }
  const source = new XrpcClient(from, fromPassword)
  const found = bans || limits ? await fullHosts(source) : await publicHosts(source)
  const wanted = found.flatMap(({ hostname, status, reason, policy, pinned, setLimits }): Listed[] => {
    if (status === 'banned') return bans ? [{ hostname, status, ...(reason ? { reason } : {}) }] : []
    if (status === 'offline' && !all) return []
    const kept = limits ? { ...(setLimits ? { setLimits } : {}), ...(policy && pinned ? { policy, pinned } : {}) } : {}
    return [{ hostname, ...kept }]
  })
  // Before the hosts, so that none of them is dialled first.
  if (bans) await banDomains(relayClient(options), await bannedDomains(source))
  await takeAll(options, wanted)
}

export function addHostLists(host: Command): void {
  relayCommand(host, 'pull', 'take up the hosts of another relay')
    .addOption(new Option('--from <url>', 'the other relay').env('RELAY_HOST').default(PULL_FROM_DEFAULT))
    .option('--from-password <password>', 'its admin password, for --bans and --limits')
    .option('--bans', 'take over hosts and domains that are banned there', false)
    .option('--limits', 'take over limits and policies as they are there, for good', false)
    .option('--all', 'also those that are offline there', false)
    .option('--no-check', 'do not ask them to describe themselves first')
    .addHelpText('after', '\nHosts that cannot be taken up are told of; the exit code is 0 all the same.')
    .action(pull)
  relayCommand(host, 'import <file>', 'take up the hosts of a file, with what it says of them; "-" is standard input')
    .option('--no-check', 'do not ask them to describe themselves first')
    .addHelpText(
      'after',
      '\nThe file has a host per line, or JSON as "host export" writes it: hostname, and perhaps status ("banned"),\n' +
        'reason, policy with pinned, setLimits {accounts, perSecond, perHour, perDay}.',
    )
    .action(async (file: string, options: ListOptions) => {
      const { failed } = await takeAll(options, entriesOf(await readText(file)).map(listedOf))
      if (failed > 0) process.exitCode = 1
    })
  relayCommand(host, 'export', 'all hosts with limits and bans, a JSON object per line, for "host import"').action(
    async (options: RelayOptions) => {
      for (const { hostname, status, reason, policy, pinned, setLimits } of await fullHosts(relayClient(options))) {
        const isBanned = status === 'banned'
        const shown = {
          hostname,
          ...(isBanned ? { status, reason } : {}),
          ...(pinned ? { policy, pinned } : {}),
          setLimits,
        }
        process.stdout.write(`${JSON.stringify(shown)}\n`)
      }
    },
  )
}
