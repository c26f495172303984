/** `millisky account suspend`, `sign-out`, `mail`, `announce`: what an administrator does for and against an account. */
import type { Command } from 'commander'
import { accountsOf } from './account-list.ts'
import { adminCommand, clientOf, didOf, type PdsOptions } from './pds-client.ts'
import { print } from './print.ts'
import { readText } from './relay-client.ts'
import { CallFailed } from './xrpc-client.ts'

/** Adds the commands. */
export function addCare(account: Command): void {
  for (const [verb, suspended] of [
    ['suspend', true],
    ['unsuspend', false],
  ] as const) {
    const description = suspended
      ? 'pause accounts: neither served nor written to, their owners may sign in and export'
      : 'end the suspension of accounts'
    adminCommand(account, `${verb} <accounts...>`, description).action(async (names: string[], options: PdsOptions) => {
      const client = clientOf(options)
      for (const name of names) {
        const did = await didOf(client, name)
        await client.procedure('net.millisky.pds.updateSuspension', { did, suspended })
        print(options, { did, suspended })
      }
    })
  }
  adminCommand(
    account,
    'sign-out <account>',
    'end all sessions, the password and app passwords; the owner comes back by a reset of the password',
  ).action(async (name: string, options: PdsOptions) => {
    await clientOf(options).procedure('com.atproto.temp.revokeAccountCredentials', { account: name })
    print(options, { account: name, signedOut: true })
  })
  adminCommand(account, 'mail <account> <file>', 'send a mail to the owner; "-" is standard input')
    .option('--subject <text>', 'its subject')
    .action(async (name: string, file: string, options: PdsOptions & { subject?: string }) => {
      const client = clientOf(options)
      const [recipientDid, content] = [await didOf(client, name), await readText(file)]
      const senderDid = (await client.query<{ did: string }>('com.atproto.server.describeServer')).did
      const { subject } = options
      await client.procedure('com.atproto.admin.sendEmail', { recipientDid, senderDid, content, subject })
      print(options, { did: recipientDid, sent: true })
    })
  adminCommand(
    account,
    'announce [accounts...]',
    'tell the event stream once more how accounts stand, such as after a restore from an older copy',
  )
    .option('--all', 'every account')
    .action(async (names: string[], options: PdsOptions & { all?: boolean }) => {
      if (names.length > 0 === (options.all ?? false)) throw new Error('name accounts, or give --all')
      await announce(names, options)
    })
}

async function announce(names: string[], options: PdsOptions): Promise<void> {
  const client = clientOf(options)
  const dids: AsyncIterable<{ did: string }> | { did: string }[] =
    names.length > 0
      ? await Promise.all(names.map(async name => ({ did: await didOf(client, name) })))
      : accountsOf(client)
  let announced = 0
  for await (const { did } of dids) {
    try {
      await client.procedure('net.millisky.pds.announceAccount', { did })
      announced++
    } catch (error) {
      // The others are to have their turn.
      if (!(error instanceof CallFailed) || error.status === 401) throw error
      process.exitCode = 1
      process.stderr.write(`${did}: ${error.message}\n`)
    }
  }
  print(options, { announced })
}
