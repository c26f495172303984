/** `millisky host`: the hosts of a Relay, by its admin methods. */
import { Argument, Command, InvalidArgumentError, Option } from 'commander'
import { addHostLists } from './host-lists.ts'
import { print, printRows } from './print.ts'
import { ADMIN, limit, pagesOf, type RelayOptions, relayClient, relayCommand, wholeNumber } from './relay-client.ts'
import { CallFailed, XrpcClient } from './xrpc-client.ts'

export interface HostView {
  hostname: string
  status: string
  reason?: string
  connected: boolean
  policy: string
  pinned: boolean
  accountCount: number
  limits: Record<string, number>
  setLimits: { accounts?: number; perSecond?: number; perHour?: number; perDay?: number }
  eventsSeen: number
  eventsRejected: number
  lagMs?: number
}

interface Report {
  latestRejects: { at: string; seq?: number; did?: string; reason: string; text: string; detail?: string }[]
  rejects: { name: string; count: number }[]
  history: { at: string; what: string; detail?: string }[]
  hourUsedPercent: number
  dayUsedPercent: number
  accountsRefused: number
}

interface CheckResult {
  hostname: string
  ok: boolean
  steps: { name: string; ok: boolean; detail?: string }[]
  eventsSeen: number
  eventsRight: number
  findings: { seq?: number; did?: string; reason: string; text: string; detail?: string; dropped?: boolean }[]
}

const STATUSES = ['active', 'idle', 'offline', 'throttled', 'banned']

/** Shows a host as a command has left it. */
function show(options: RelayOptions, host: HostView): void {
  const { hostname, status, reason, connected, policy, pinned, setLimits } = host
  const shown = { hostname, status, reason, connected, policy: pinned ? `${policy} (pinned)` : policy, setLimits }
  print(options, options.json ? { ...host } : shown)
}

/** Calls a method with one host and shows what it is then. */
async function change(method: string, options: RelayOptions, body: object): Promise<void> {
  show(options, await relayClient(options).procedure<HostView>(`${ADMIN}.${method}`, body))
}

function addLooking(host: Command): void {
  relayCommand(host, 'list', 'all hosts, or those that fit')
    .option('--search <text>', 'whose names contain this')
    .addOption(new Option('--status <status>', 'in this state').choices(STATUSES))
    .action(async (options: RelayOptions & { search?: string; status?: string }) => {
      const { search, status } = options
      const rows: HostView[] = []
      const pages = pagesOf<{ hosts: HostView[]; cursor?: string }>(relayClient(options), `${ADMIN}.listHosts`, {
        search,
        status,
        limit: 1_000,
      })
      for await (const { hosts } of pages) rows.push(...hosts)
      if (options.json) return printRows(options, rows as unknown as Record<string, unknown>[])
      printRows(
        options,
        rows.map(row => ({
          hostname: row.hostname,
          status: row.status,
          connected: row.connected ? 'yes' : 'no',
          policy: row.policy,
          accounts: `${row.accountCount}/${row.limits.accounts}`,
          events: row.eventsSeen,
          rejected: row.eventsRejected,
          lagMs: row.lagMs,
          reason: row.reason,
        })),
      )
    })
  relayCommand(host, 'info <host>', 'one host: its state, its limits, and why events of it did not pass').action(
    async (hostname: string, options: RelayOptions) => {
      const client = relayClient(options)
      const view = await client.query<HostView>(`${ADMIN}.getHost`, { hostname })
      const report = await client.query<Report>('net.millisky.relay.getHostReport', { hostname })
      if (options.json) return print(options, { ...report, ...view })
      const { latestRejects, rejects, history, hourUsedPercent, dayUsedPercent, accountsRefused } = report
      print(options, { ...view, hourUsedPercent, dayUsedPercent, accountsRefused })
      for (const [title, rows] of [
        ['Why events did not pass', rejects.map(({ name, count }) => ({ name, count }))],
        ['The latest', latestRejects.map(({ at, seq, did, text, detail }) => ({ at, seq, did, text, detail }))],
        ['History', history.map(({ at, what, detail }) => ({ at, what, detail }))],
      ] as const) {
        if (rows.length === 0) continue
        process.stdout.write(`\n${title}\n`)
        printRows({}, [...rows])
      }
    },
  )
  relayCommand(host, 'check <host>', 'test a PDS as the Relay would follow it, without taking it up').action(
    async (hostname: string, options: RelayOptions) => {
      // Anybody may ask for it.
      const client = new XrpcClient(options.relay)
      const result = await client.procedure<CheckResult>('net.millisky.relay.checkHost', { hostname })
      if (!result.ok) process.exitCode = 1
      if (options.json) return print(options, { ...result })
      for (const { name, ok, detail } of result.steps) {
        process.stdout.write(`${ok ? 'ok  ' : 'FAIL'}  ${name}${detail ? `: ${detail}` : ''}\n`)
      }
      process.stdout.write(`${result.eventsRight} of ${result.eventsSeen} events are right\n`)
      printRows(
        {},
        result.findings.map(({ seq, did, text, detail, dropped }) => ({ seq, did, dropped, text, detail })),
      )
    },
  )
}

function addChanging(host: Command): void {
  relayCommand(host, 'add <hosts...>', 'take up hosts outside the daily limit, or dial known ones again')
    .alias('crawl')
    .option('--no-check', 'do not ask them to describe themselves first')
    .action(async (hostnames: string[], options: RelayOptions & { check: boolean }) => {
      const client = relayClient(options)
      for (const hostname of hostnames) {
        try {
          show(options, await client.procedure<HostView>(`${ADMIN}.addHost`, { hostname, check: options.check }))
        } catch (error) {
          // The others are to have their turn.
          if (!(error instanceof CallFailed) || error.status === 401) throw error
          process.exitCode = 1
          process.stderr.write(`${hostname}: ${error.message}\n`)
        }
      }
    })
  relayCommand(host, 'block <host>', 'ban a host and disconnect it at once')
    .option('--reason <text>', 'for its report, which is public')
    .option('--unknown', 'also if the Relay has never heard of it')
    .action((hostname: string, options: RelayOptions & { reason?: string; unknown?: boolean }) => {
      const { reason, unknown } = options
      return change('blockHost', options, { hostname, reason, unknown })
    })
  relayCommand(host, 'unblock <host>', 'end the ban of a host and dial it').action(
    (hostname: string, options: RelayOptions) => change('unblockHost', options, { hostname }),
  )
  relayCommand(host, 'disconnect <host>', 'end the connection to a host; it is dialled at the next start or request')
    .alias('kick')
    .action((hostname: string, options: RelayOptions) => change('disconnectHost', options, { hostname }))
  relayCommand(host, 'limits <host>', 'set what a host may do; "auto" gives a limit back to what it comes to by itself')
    .option('--accounts <n>', 'accounts', limit)
    .option('--per-second <n>', 'events a second', limit)
    .option('--per-hour <n>', 'events an hour', limit)
    .option('--per-day <n>', 'events a day', limit)
    .action(
      (hostname: string, options: RelayOptions & Partial<Record<keyof HostView['setLimits'], number | 'auto'>>) => {
        const { accounts, perSecond, perHour, perDay } = options
        const given = Object.entries({ accounts, perSecond, perHour, perDay }).filter(
          ([, value]) => value !== undefined,
        )
        if (given.length === 0) {
          throw new Error('nothing to change: give --accounts, --per-second, --per-hour or --per-day')
        }
        const limits = Object.fromEntries(given.map(([name, value]) => [name, value === 'auto' ? null : value]))
        return change('updateHost', options, { hostname, ...limits })
      },
    )
  relayCommand(host, 'policy <host>', 'pin what is done with commits that cannot be proven, or leave it to the Relay')
    .addArgument(new Argument('<policy>').choices(['strict', 'observe', 'auto']))
    .action((hostname: string, policy: string, options: RelayOptions) =>
      change('updateHost', options, { hostname, policy }),
    )
}

function onOff(text: string): boolean {
  if (text !== 'on' && text !== 'off') throw new InvalidArgumentError('"on" or "off".')
  return text === 'on'
}

export function hostCommand(): Command {
  const host = new Command('host').description(
    'hosts of a Relay: list, info, add, block, limits, policy, check, pull …',
  )
  addLooking(host)
  addChanging(host)
  relayCommand(host, 'requests', 'show or set whether hosts may ask to be crawled, and how many new ones a day')
    .option('--allow <on|off>', 'whether hosts may ask', onOff)
    .option('--per-day <n>', 'new hosts in 24 hours', wholeNumber)
    .action(async (options: RelayOptions & { allow?: boolean; perDay?: number }) => {
      const { allow: requestCrawlEnabled, perDay: newHostsPerDay } = options
      const body = { requestCrawlEnabled, newHostsPerDay }
      const settings = await relayClient(options).procedure<typeof body>(`${ADMIN}.updateSettings`, body)
      print(options, { allow: settings.requestCrawlEnabled ? 'on' : 'off', perDay: settings.newHostsPerDay })
    })
  addHostLists(host)
  return host
}
