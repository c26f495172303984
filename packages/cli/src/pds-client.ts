/** How the commands about a PDS reach it. */
import { type Command, Option } from 'commander'
import type { PrintOptions } from './print.ts'
import { XrpcClient } from './xrpc-client.ts'

export const PDS_DEFAULT = 'http://localhost:2583'

export interface PdsOptions extends PrintOptions {
  pds: string
  adminPassword?: string
}

/** A command that talks to a PDS as its administrator. Its options stand with it, wherever they are given. */
export function adminCommand(group: Command, usage: string, description: string): Command {
  return addAdminOptions(group.command(usage).description(description))
}

/** How such a command is told of the PDS and its password. */
export function addAdminOptions(command: Command): Command {
  return command
    .addOption(new Option('--pds <url>', 'the PDS').env('MILLISKY_PDS').default(PDS_DEFAULT))
    .addOption(new Option('--admin-password <password>', "the PDS's admin password").env('PDS_ADMIN_PASSWORD'))
    .addOption(new Option('--json', 'print JSON'))
}

export function clientOf({ pds, adminPassword }: PdsOptions): XrpcClient {
  if (adminPassword === undefined) {
    throw new Error('the admin password is needed: set PDS_ADMIN_PASSWORD, or give --admin-password')
  }
  return new XrpcClient(pds, adminPassword)
}

/** @param account - Handle or DID. */
export async function didOf(client: XrpcClient, account: string): Promise<string> {
  if (account.startsWith('did:')) return account
  return (await client.query<{ did: string }>('com.atproto.identity.resolveHandle', { handle: account })).did
}
