/** `millisky relays` and `request-crawl`: a PDS and the relays that are to follow it. */
import { Command, Option } from 'commander'
import { addAdminOptions, clientOf, PDS_DEFAULT, type PdsOptions } from './pds-client.ts'
import { print, printRows } from './print.ts'
import { XrpcClient } from './xrpc-client.ts'

interface RelayView {
  relay: string
  verdict: string
  severity: string
  advice?: string
  seq?: number
  status?: string
  accountCount?: number
  checkedAt?: string
}

interface Status {
  hostname: string
  seq: number
  relays: RelayView[]
}

/** How far relays have followed; exit code 1 if one of them needs the administrator. */
export function relaysCommand(): Command {
  const command = addAdminOptions(new Command('relays'))
    .description("whether a PDS's relays follow it, and what to do if not; exit code 1 if something is wrong")
    .option('--check', 'ask the relays now')
  return command.action(async (options: PdsOptions & { check?: boolean }) => {
    const status = await clientOf(options).query<Status>('net.millisky.pds.getRelayStatus', {
      check: options.check ? 'true' : undefined,
    })
    if (status.relays.some(({ severity }) => severity !== 'fine')) process.exitCode = 1
    if (options.json) return print(options, { ...status })
    process.stdout.write(`${status.hostname}, last event ${status.seq}\n\n`)
    if (status.relays.length === 0) process.stdout.write('No relay is set: PDS_CRAWLERS names them.\n')
    printRows(
      {},
      status.relays.map(({ relay, verdict, status, seq, accountCount, checkedAt }) => {
        return { relay, verdict, status, seq, accounts: accountCount, checked: checkedAt }
      }),
    )
    for (const { relay, advice } of status.relays) if (advice) process.stdout.write(`\n${relay}: ${advice}\n`)
  })
}

export function requestCrawlCommand(): Command {
  const command = new Command('request-crawl')
    .description('ask relays to crawl a PDS; how they fare with it: millisky relays')
    .argument('[relays...]', 'URLs of relays, or else those of PDS_CRAWLERS')
    .addOption(new Option('--pds <url>', 'the PDS').env('MILLISKY_PDS').default(PDS_DEFAULT))
    .addOption(new Option('--crawlers <list>', 'relays, when none are named').env('PDS_CRAWLERS').hideHelp())
    .addOption(new Option('--json', 'print JSON'))
  return command.action(async (named: string[], options: PdsOptions & { crawlers?: string }) => {
    const relays = named.length > 0 ? named : (options.crawlers ?? '').split(/[\s,]+/).filter(relay => relay !== '')
    if (relays.length === 0) throw new Error('name a relay, or set PDS_CRAWLERS')
    const hostname = new URL(options.pds).host
    for (const relay of relays) {
      const url = relay.includes('://') ? relay : `https://${relay}`
      try {
        await new XrpcClient(url).procedure('com.atproto.sync.requestCrawl', { hostname })
        if (options.json) print(options, { relay: url, hostname, asked: true })
        else process.stdout.write(`${url} was asked to crawl ${hostname}\n`)
      } catch (error) {
        // The others are to have their turn.
        process.exitCode = 1
        process.stderr.write(`${url}: ${(error as Error).message}\n`)
      }
    }
  })
}
