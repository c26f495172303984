/** `millisky consumer`, `domain`, `audit` and `outbox`: administration of a Relay, by its admin methods. */
import { Command } from 'commander'
import { banDomains } from './host-lists.ts'
import { print, printRows } from './print.ts'
import {
  ADMIN,
  entriesOf,
  type RelayOptions,
  readText,
  relayClient,
  relayCommand,
  wholeNumber,
} from './relay-client.ts'

interface ConsumerView {
  id: number
  address: string
  userAgent: string
  connectedAt: string
  seq: number
  lag: number
  events: number
  bytes: number
}

interface ConsumerSettings {
  consumersMax?: number | undefined
  consumersPerAddressMax?: number | undefined
}

export function consumerCommand(): Command {
  const consumer = new Command('consumer').description('consumers of a Relay: list, kick, limits')
  relayCommand(consumer, 'list', 'who reads the event stream').action(async (options: RelayOptions) => {
    const { consumers } = await relayClient(options).query<{ consumers: ConsumerView[] }>(`${ADMIN}.listConsumers`)
    printRows(options, consumers as unknown as Record<string, unknown>[])
  })
  relayCommand(consumer, 'kick', 'disconnect a consumer; it may connect again')
    .argument('<id>', 'its number, see: millisky consumer list', wholeNumber)
    .action(async (id: number, options: RelayOptions) => {
      await relayClient(options).procedure(`${ADMIN}.kickConsumer`, { id })
      print(options, { id, kicked: true })
    })
  relayCommand(consumer, 'limits', 'show or set how many consumers there may be')
    .option('--total <n>', 'at a time', wholeNumber)
    .option('--per-address <n>', 'at a time from one address', wholeNumber)
    .action(async (options: RelayOptions & { total?: number; perAddress?: number }) => {
      const body: ConsumerSettings = { consumersMax: options.total, consumersPerAddressMax: options.perAddress }
      const settings = await relayClient(options).procedure<ConsumerSettings>(`${ADMIN}.updateSettings`, body)
      print(options, { total: settings.consumersMax, perAddress: settings.consumersPerAddressMax })
    })
  return consumer
}

export function domainCommand(): Command {
  const domain = new Command('domain').description('domains of hosts, at a Relay: ban, unban, trust, list, import')
  const each = (name: string, method: string, description: string) =>
    relayCommand(domain, `${name} <domains...>`, description).action(async (names: string[], options: RelayOptions) => {
      const client = relayClient(options)
      for (const one of names) {
        await client.procedure(`${ADMIN}.${method}`, { domain: one })
        print(options, { domain: one, done: name })
      }
    })
  each('ban', 'banDomain', 'ban domains and all below them; their hosts are disconnected at once')
  each('unban', 'unbanDomain', 'end bans of domains; hosts that were banned by them are dialled')
  each('trust', 'trustDomain', 'give hosts higher limits: example.com, or "*.example.com" for those below it')
  each('untrust', 'untrustDomain', 'take that back')
  relayCommand(domain, 'list', 'domains that are banned, and those that are trusted').action(
    async (options: RelayOptions) => {
      const client = relayClient(options)
      const { banned, trusted } = await client.query<{ banned: string[]; trusted: string[] }>(`${ADMIN}.listDomains`)
      const rows = [
        ...banned.map(name => ({ domain: name, is: 'banned' })),
        ...trusted.map(name => ({ domain: name, is: 'trusted' })),
      ]
      printRows(options, rows)
    },
  )
  relayCommand(
    domain,
    'import <file>',
    'ban the domains of a list, one per line or JSON; "-" is standard input',
  ).action(async (file: string, options: RelayOptions) => {
    const names = entriesOf(await readText(file)).map(entry => {
      const isObject = typeof entry === 'object' && entry !== null
      // As `domain list --json` writes it, where trusted ones are of no meaning here.
      if (isObject && 'is' in entry && entry.is === 'trusted') return ''
      const name = isObject && 'domain' in entry ? entry.domain : entry
      if (typeof name !== 'string') throw new Error(`no domain: ${JSON.stringify(entry).slice(0, 200)}`)
      return name
    })
    const wanted = names.filter(Boolean)
    print(options, { domains: wanted.length, banned: await banDomains(relayClient(options), wanted) })
  })
  return domain
}

export function auditCommand(): Command {
  const audit = new Command('audit').description('what administrators of a Relay changed, the newest first')
  relayCommand(audit, 'list', 'the newest entries')
    .option('--limit <n>', 'how many', wholeNumber, 50)
    .action(async (options: RelayOptions & { limit: number }) => {
      const page = await relayClient(options).query<{ entries: Record<string, unknown>[] }>(`${ADMIN}.getAuditLog`, {
        limit: options.limit,
      })
      printRows(options, page.entries)
    })
  return audit
}

export function outboxCommand(): Command {
  const outbox = new Command('outbox').description('what sibling relays of a Relay are still to be told')
  relayCommand(outbox, 'list', 'the oldest requests that wait')
    .option('--limit <n>', 'how many', wholeNumber, 100)
    .action(async (options: RelayOptions & { limit: number }) => {
      const page = await relayClient(options).query<{ items: Record<string, unknown>[] }>(`${ADMIN}.getOutbox`, {
        limit: options.limit,
      })
      const rows = page.items.map(({ id, sibling, path, body, at, attempts, error }) => {
        return { id, sibling, path, body, at, attempts, error }
      })
      printRows(options, rows)
    })
  return outbox
}
