/** `millisky account` and `invite`: administration of a PDS, by its admin methods. */
import { randomBytes } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { Command, InvalidArgumentError } from 'commander'
import { addCare } from './account-care.ts'
import { addKeys } from './account-keys.ts'
import { type AccountView, accountsOf } from './account-list.ts'
import { adminCommand, clientOf, didOf, type PdsOptions } from './pds-client.ts'
import { print, printRows } from './print.ts'
import { addRelayAccounts, listAccounts, onRelay, withRelay } from './relay-accounts.ts'
import { XrpcClient } from './xrpc-client.ts'

const PASSWORD_BYTES = 18

interface InviteView {
  code: string
  available: number
  disabled: boolean
  forAccount: string
  uses: { usedBy: string; usedAt: string }[]
}

const newPassword = () => randomBytes(PASSWORD_BYTES).toString('base64url')
const repoRef = (did: string) => ({ $type: 'com.atproto.admin.defs#repoRef', did })

function addLooking(account: Command): void {
  const list = withRelay(
    adminCommand(account, 'list', 'all accounts; of a Relay those that have a repository, a DID per line'),
  )
  list.action(async (options: PdsOptions & { relay?: string }) => {
    if (options.relay !== undefined) return listAccounts(options.relay, options)
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

interface Making {
  password?: string
  did?: string
  recoveryKey?: string
  plcOperation?: string
}

interface Newcomer {
  handle: string
  email: string
  password: string
}

async function signUp(newcomer: Newcomer, { plcOperation, recoveryKey, ...options }: PdsOptions & Making) {
  const client = clientOf(options)
  const plcOp = plcOperation && JSON.parse(await readFile(plcOperation, 'utf8'))
  const { code } = await client.procedure<{ code: string }>('com.atproto.server.createInviteCode', { useCount: 1 })
  const body = { ...newcomer, inviteCode: code, recoveryKey, ...(plcOp ? { plcOp } : {}) }
  // Without the admin's credentials: it is signed up like anybody.
  const anybody = new XrpcClient(options.pds)
  try {
    const { did, handle } = await anybody.procedure<Newcomer & { did: string }>(
      'com.atproto.server.createAccount',
      body,
    )
    return { did, handle }
  } catch (error) {
    await client.procedure('com.atproto.admin.disableInviteCodes', { codes: [code] }).catch(() => {})
    throw error
  }
}

async function admit(newcomer: Newcomer, options: PdsOptions & Making) {
  const { did, recoveryKey, plcOperation } = options
  if (recoveryKey || plcOperation) throw new Error('--did is a DID that there is already: it keeps the keys it has')
  const made = await clientOf(options).procedure<{ did: string; handle: string; signingKey: string }>(
    'net.millisky.pds.createAccount',
    { ...newcomer, did },
  )
  process.stderr.write(
    `The account is deactivated. Have the DID name this PDS and the signing key, then: millisky account activate ${did}\n`,
  )
  return made
}

function addMaking(account: Command): void {
  adminCommand(account, 'create <handle> <email>', 'make an account; without --password one is made up and printed')
    .option('--password <password>', 'its password')
    .option('--did <did>', 'a DID that there is already, of any method: the account begins deactivated')
    .option('--recovery-key <did:key>', "put before the server's own among the rotation keys of a new DID")
    .option('--plc-operation <file>', "its DID's first operation, signed: see `millisky key plc-genesis`")
    .action(async (handle: string, email: string, options: PdsOptions & Making) => {
      const password = options.password ?? newPassword()
      const shown = options.password === undefined ? { password } : {}
      const made = await (options.did === undefined ? signUp : admit)({ handle, email, password }, options)
      print(options, { ...made, ...shown })
    })
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
  addCare(account)
  addRelayAccounts(account)
  return account
}

function count(text: string): number {
  if (!/^[1-9]\d{0,5}$/.test(text)) throw new InvalidArgumentError('A whole number above 0.')
  return Number(text)
}

export function inviteCommand(): Command {
  const invite = new Command('invite').description('invite codes of a PDS: create, list, disable, allow, forbid')
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
  for (const [verb, method, description] of [
    ['allow', 'enableAccountInvites', 'let an account earn and hand out invite codes'],
    ['forbid', 'disableAccountInvites', 'give an account no more invite codes'],
  ] as const) {
    adminCommand(invite, `${verb} <account>`, description).action(async (name: string, options: PdsOptions) => {
      const client = clientOf(options)
      const did = await didOf(client, name)
      await client.procedure(`com.atproto.admin.${method}`, { account: did })
      print(options, { did, invites: verb === 'allow' })
    })
  }
  return invite
}
