/** `millisky pds import`: takes over what another PDS had, from its files. */
import type { AdoptionReport } from '@millisky/pds/adoption/adoption'
import { readSettings } from '@millisky/server/config'
import { createLog } from '@millisky/server/trace'
import { Command } from 'commander'

interface ImportOptions {
  dryRun: boolean
  json: boolean
  sourceEnv?: string
  blobs?: string
}

const EXIT_DIFFERENT = 1

export function pdsImportCommand(): Command {
  return new Command('import')
    .description('take over the accounts of another PDS from its files; the settings of `millisky pds` say where to')
    .argument('<path>', "the reference PDS's data directory, or a millipds database")
    .argument('[flags...]', 'flags of `millisky pds`, such as --data-directory')
    .allowUnknownOption()
    .option('--dry-run', 'read and verify everything, and write nothing', false)
    .option('--source-env <file>', "the old server's settings; default: pds.env in the folder")
    .option('--blobs <folder>', "folder of the old server's blobs, if not where its settings say")
    .option('--json', 'print the report as JSON', false)
    .addHelpText('after', HELP)
    .action(async (path: string, flags: string[], options: ImportOptions) => {
      if (path.startsWith('-')) throw new Error('give the path first, then the flags')
      const report = await importFrom(path, flags, options)
      process.stdout.write(options.json ? `${JSON.stringify(report)}\n` : reportText(report, options.dryRun))
      if (report.differencesCount > 0) process.exitCode = EXIT_DIFFERENT
    })
}

const HELP = `
Stop both servers first. Accounts come as they are: passwords, app passwords, sessions, preferences, signing keys,
repositories with the commits that the old server signed, blobs, takedowns, invites. Accounts that are here already are
compared and left as they are, so a run that was cut short is simply run again. Exit code 1: the report names differences.`

async function importFrom(path: string, flags: string[], options: ImportOptions): Promise<AdoptionReport> {
  const [{ settings: table, serviceNames }, { openStorage }, { openForeignServer }, { adopt }] = await Promise.all([
    import('@millisky/pds/config'),
    import('@millisky/pds/main'),
    import('@millisky/pds/adoption/detect'),
    import('@millisky/pds/adoption/adoption'),
  ])
  const settings = readSettings(table, flags)
  const { dryRun, sourceEnv: envFile, blobs } = options
  const source = openForeignServer(path, { envFile, blobs })
  try {
    const log = createLog({ name: 'import', level: 'error' })
    const firstSeq = source.lastSeq() + 1
    const storage = dryRun ? null : await openStorage(settings, { log, now: Date.now, firstSeq })
    try {
      const report = await adopt({ source, target: storage, now: Date.now, onProgress })
      const { did } = serviceNames(settings, settings.port)
      if (source.did !== null && source.did !== did) {
        report.remarks.push(
          `the old server was ${source.did}, by these settings this one is ${did}: its tokens are good only with the same PDS_HOSTNAME and PDS_SERVICE_DID`,
        )
      }
      return report
    } finally {
      await storage?.store.close()
    }
  } finally {
    source.close()
  }
}

function onProgress({
  did,
  done,
  total,
  report,
}: {
  did: string
  done: number
  total: number
  report: AdoptionReport
}) {
  const { records, blobs } = report.verified
  process.stderr.write(`${done}/${total} ${did}: ${records} records, ${blobs} blobs so far\n`)
}

/** For people. Secrets never come here: the report has none. */
export function reportText(report: AdoptionReport, dryRun: boolean): string {
  const { accounts, verified, equal, invites, lastSeq, differences, differencesCount, remarks } = report
  const lines = [
    `${dryRun ? 'Would take over' : 'Took over'} ${accounts.brought} of ${accounts.found} accounts of ${report.source}; ${accounts.present} were here, ${accounts.failed} failed; ${invites} invite codes.`,
    `Verified there: ${verified.heads} heads, ${verified.nodes} tree nodes, ${verified.records} records, ${verified.blobs} blobs (${verified.blobBytes} bytes).`,
  ]
  if (!dryRun) {
    lines.push(
      `Equal here: ${equal.heads} heads, ${equal.nodes} tree nodes, ${equal.records} records, ${equal.blobs} blobs.`,
      `Events go on above seq ${lastSeq}.`,
    )
  }
  for (const remark of remarks) lines.push(`Note: ${remark}`)
  for (const difference of differences) lines.push(`DIFFERENT: ${difference}`)
  if (differencesCount > differences.length) lines.push(`… and ${differencesCount - differences.length} more.`)
  lines.push(differencesCount === 0 ? 'No differences.' : `${differencesCount} differences.`)
  return `${lines.join('\n')}\n`
}
