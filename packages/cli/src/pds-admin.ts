/** `millisky account`, `invite` and `request-crawl`: administration of a PDS, by its admin methods. */
import { randomBytes } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { Command, InvalidArgumentError, Option } from 'commander'
import { addKeys } from './account-keys.ts'
import { adminCommand, clientOf, didOf, PDS_DEFAULT, type PdsOptions } from './pds-client.ts'
import { print, printRows } from './print.ts'
import { addRelayAccounts, onRelay, withRelay } from './relay-accounts.ts'
import { XrpcClient } from './xrpc-client.ts'

const PASSWORD_BYTES = 18

interface AccountView {
  did: string
  handle: string
  email?: string
  indexedAt: string
  deactivatedAt?: string
  invitesDisabled?: boolean
  emailConfirmedAt?: string
}

interface InviteView {
  code: string
  available: number
  disabled: boolean
  forAccount: string
  uses: { usedBy: string; usedAt: string }[]
}

const newPassword = () => randomBytes(PASSWORD_BYTES).toString('base64url')
const repoRef = (did: string) => ({ $type: 'com.atproto.admin.defs#repoRef', did })

async function* accountsOf(client: XrpcClient): AsyncGenerator<AccountView & { status: string }> {
  let cursor: string | undefined
  do {
    const page = await client.query<{ repos: { did: string; active?: boolean; status?: string }[]; cursor?: string }>(
      'com.atproto.sync.listRepos',
      { limit: 100, cursor },
    )
    const dids = page.repos.map(repo => repo.did)
    if (dids.length > 0) {
      const { infos } = await client.query<{ infos: AccountView[] }>('com.atproto.admin.getAccountInfos', { dids })
      const statuses = new Map(
        page.repos.map(repo => [repo.did, repo.active === false ? (repo.status ?? 'inactive') : 'active']),
      )
      for (const info of infos) yield { ...info, status: statuses.get(info.did) ?? '' }
    }
    cursor = page.cursor
  } while (cursor !== undefined)
}

function addLooking(account: Command): void {
  adminCommand(account, 'list', 'all accounts').action(async (options: PdsOptions) => {
    const rows: Record<string, unknown>[] = []
    for await (const { did, handle, email, status, indexedAt } of accountsOf(clientOf(options))) {
      rows.push({ did, handle, email, status, created: indexedAt })
    }
    printRows(options, rows)
  })
  withRelay(adminCommand(account, 'info <account>', 'one account, by handle or DID')).action(
    async (name: string, options: PdsOptions & { relay?: string }, command: Command) => {
      if (options.relay !== undefined) return onRelay(command).info(name)
      const client = clientOf(options)
      const did = await didOf(client, name)
      const info = await client.query<AccountView>('com.atproto.admin.getAccountInfo', { did })
      const status = await client.query<object>('com.atproto.admin.getSubjectStatus', { did })
      print(options, { ...info, ...status, subject: undefined })
    },
  )
  adminCommand(account, 'search [email]', 'accounts whose e-mail address contains this').action(
    async (email: string | undefined, options: PdsOptions) => {
      const { accounts } = await clientOf(options).query<{ accounts: AccountView[] }>(
        'com.atproto.admin.searchAccounts',
        { email, limit: 100 },
      )
      printRows(
        options,
        accounts.map(({ did, handle, email }) => ({ did, handle, email })),
      )
    },
  )
}

interface BlobUsage {
  blobs: number
  bytes: number
  looseBlobs: number
  looseBytes: number
  takenDown: number
}

interface StorageReport {
  total: BlobUsage
  collectable: { blobs: number; bytes: number; uploads: number }
  accountBytesMax?: number
  accounts: { did: string; handle: string; usage: BlobUsage; missingBlobs?: number }[]
}

function addStorage(account: Command): void {
  adminCommand(account, 'storage [account]', 'what blobs take: of one account, or in all and of those that have most')
    .option('--limit <n>', 'how many accounts', count, 20)
    .action(async (name: string | undefined, options: PdsOptions & { limit: number }) => {
      const client = clientOf(options)
      const which = name === undefined ? { limit: options.limit } : { did: await didOf(client, name) }
      const report = await client.query<StorageReport>('net.millisky.pds.getStorageReport', which)
      if (options.json) return print(options, { ...report })
      const rows = report.accounts.map(({ did, handle, usage, missingBlobs }) => {
        return { account: handle === 'handle.invalid' ? did : handle, ...usage, missing: missingBlobs ?? '' }
      })
      if (name === undefined) rows.push({ account: '(all)', ...report.total, missing: '' })
      printRows(options, rows)
      const { blobs, bytes, uploads } = report.collectable
      const limit = report.accountBytesMax === undefined ? 'no limit' : `at most ${report.accountBytesMax} bytes`
      process.stdout.write(
        `\nEach account: ${limit}. To be collected: ${blobs} blobs, ${bytes} bytes, ${uploads} uploads.\n`,
      )
    })
}

function addMaking(account: Command): void {
  adminCommand(account, 'create <handle> <email>', 'make an account; without --password one is made up and printed')
    .option('--password <password>', 'its password')
    .option('--plc-operation <file>', "its DID's first operation, signed: see `millisky key plc-genesis`")
    .action(
      async (handle: string, email: string, options: PdsOptions & { password?: string; plcOperation?: string }) => {
        const client = clientOf(options)
        const password = options.password ?? newPassword()
        const { code } = await client.procedure<{ code: string }>('com.atproto.server.createInviteCode', {
          useCount: 1,
        })
        // Without the admin's credentials: it is signed up like anybody.
        const plcOp = options.plcOperation && JSON.parse(await readFile(options.plcOperation, 'utf8'))
        const body = { handle, email, password, inviteCode: code, ...(plcOp ? { plcOp } : {}) }
        const made = await new XrpcClient(options.pds).procedure<{ did: string; handle: string }>(
          'com.atproto.server.createAccount',
          body,
        )
        const shown = options.password === undefined ? { password } : {}
        print(options, { did: made.did, handle: made.handle, ...shown })
      },
    )
  adminCommand(account, 'update <account>', 'change handle, e-mail address or signing key')
    .option('--handle <handle>', 'the new handle')
    .option('--email <email>', 'the new e-mail address')
    .option('--signing-key <did:key>', 'the new signing key, reserved before')
    .action(async (name: string, options: PdsOptions & { handle?: string; email?: string; signingKey?: string }) => {
      const client = clientOf(options)
      const did = await didOf(client, name)
      const { handle, email, signingKey } = options
      if (!handle && !email && !signingKey)
        throw new Error('nothing to change: give --handle, --email or --signing-key')
      if (email) await client.procedure('com.atproto.admin.updateAccountEmail', { account: did, email })
      if (handle) await client.procedure('com.atproto.admin.updateAccountHandle', { did, handle })
      if (signingKey) await client.procedure('com.atproto.admin.updateAccountSigningKey', { did, signingKey })
      print(options, { did, handle, email, signingKey })
    })
  adminCommand(
    account,
    'reset-password <account>',
    'set another password; without --password one is made up and printed',
  )
    .option('--password <password>', 'the new password')
    .action(async (name: string, options: PdsOptions & { password?: string }) => {
      const client = clientOf(options)
      const did = await didOf(client, name)
      const password = options.password ?? newPassword()
      await client.procedure('com.atproto.admin.updateAccountPassword', { did, password })
      print(options, { did, ...(options.password === undefined ? { password } : {}) })
    })
}

function addEnding(account: Command): void {
  const setStatus = async (name: string, options: PdsOptions, change: object) => {
    const client = clientOf(options)
    const did = await didOf(client, name)
    const body = { subject: repoRef(did), ...change }
    print(options, {
      did,
      ...(await client.procedure<object>('com.atproto.admin.updateSubjectStatus', body)),
      subject: undefined,
    })
  }
  withRelay(adminCommand(account, 'takedown <accounts...>', 'stop serving accounts'))
    .option('--ref <text>', 'a reference for your own records')
    .option('--unknown', 'of a Relay: also accounts that it has never heard of')
    .action(
      async (
        names: string[],
        options: PdsOptions & { ref?: string; relay?: string; unknown?: boolean },
        command: Command,
      ) => {
        if (options.relay !== undefined) return onRelay(command).takeDown(names, options.unknown ?? false)
        const takedown = { applied: true, ref: options.ref ?? String(Date.now()) }
        for (const name of names) await setStatus(name, options, { takedown })
      },
    )
  withRelay(adminCommand(account, 'untakedown <accounts...>', 'serve accounts again')).action(
    async (names: string[], options: PdsOptions & { relay?: string }, command: Command) => {
      if (options.relay !== undefined) return onRelay(command).restore(names)
      for (const name of names) await setStatus(name, options, { takedown: { applied: false } })
    },
  )
  adminCommand(account, 'deactivate <account>', 'pause an account as its owner would').action(
    (name: string, options: PdsOptions) => setStatus(name, options, { deactivated: { applied: true } }),
  )
  adminCommand(account, 'activate <account>', 'end a pause').action((name: string, options: PdsOptions) =>
    setStatus(name, options, { deactivated: { applied: false } }),
  )
  adminCommand(
    account,
    'delete <did>',
    'delete an account and all it has; takes its DID, so that no slip of a handle deletes another',
  )
    .requiredOption('--yes', 'there is no way back')
    .action(async (did: string, options: PdsOptions) => {
      if (!did.startsWith('did:')) throw new Error('give the DID of the account, see: millisky account info')
      await clientOf(options).procedure('com.atproto.admin.deleteAccount', { did })
      print(options, { did, deleted: true })
    })
}

export function accountCommand(): Command {
  const account = new Command('account').description('accounts of a PDS: list, info, create …; of a Relay: takedown …')
  addLooking(account)
  addStorage(account)
  addMaking(account)
  addKeys(account)
  addEnding(account)
  addRelayAccounts(account)
  return account
}

function count(text: string): number {
  if (!/^[1-9]\d{0,5}$/.test(text)) throw new InvalidArgumentError('A whole number above 0.')
  return Number(text)
}

export function inviteCommand(): Command {
  const invite = new Command('invite').description('invite codes of a PDS: create, list, disable')
  adminCommand(invite, 'create', 'make an invite code')
    .option('--uses <n>', 'how often it may be used', count, 1)
    .option('--for <did>', 'the account that may hand it out')
    .action(async (options: PdsOptions & { uses: number; for?: string }) => {
      const body = { useCount: options.uses, ...(options.for ? { forAccount: options.for } : {}) }
      print(options, await clientOf(options).procedure('com.atproto.server.createInviteCode', body))
    })
  adminCommand(invite, 'list', 'the newest invite codes')
    .option('--limit <n>', 'how many', count, 100)
    .action(async (options: PdsOptions & { limit: number }) => {
      const { codes } = await clientOf(options).query<{ codes: InviteView[] }>('com.atproto.admin.getInviteCodes', {
        sort: 'recent',
        limit: options.limit,
      })
      printRows(
        options,
        codes.map(({ code, available, uses, disabled, forAccount }) => {
          return { code, uses: available, used: uses.length, disabled, for: forAccount }
        }),
      )
    })
  adminCommand(invite, 'disable <codes...>', 'take invite codes back').action(
    async (codes: string[], options: PdsOptions) => {
      await clientOf(options).procedure('com.atproto.admin.disableInviteCodes', { codes })
      print(options, { disabled: codes.join(' ') })
    },
  )
  return invite
}

export function requestCrawlCommand(): Command {
  const command = new Command('request-crawl')
    .description('ask relays to crawl a PDS')
    .argument('<relays...>', 'URLs of relays')
    .addOption(new Option('--pds <url>', 'the PDS').env('MILLISKY_PDS').default(PDS_DEFAULT))
  return command.action(async (relays: string[], options: PdsOptions) => {
    const hostname = new URL(options.pds).host
    for (const relay of relays) {
      await new XrpcClient(relay).procedure('com.atproto.sync.requestCrawl', { hostname })
      process.stdout.write(`${relay} was asked to crawl ${hostname}\n`)
    }
  })
}
