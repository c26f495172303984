/** `millisky account reserve-key` and `rotate-key`: the keys that accounts' commits are signed with. */
import type { Command } from 'commander'
import { adminCommand, clientOf, didOf, type PdsOptions } from './pds-client.ts'
import { print } from './print.ts'
import { CallFailed, XrpcClient } from './xrpc-client.ts'

/** What a server without a rotation key says. */
const OWNER_SIGNS = /has no rotation key|DID document verification method/

async function reserve(pds: string, did?: string): Promise<string> {
  // Anybody may: a key of its own waits for each DID.
  const client = new XrpcClient(pds)
  const body = did === undefined ? {} : { did }
  return (await client.procedure<{ signingKey: string }>('com.atproto.server.reserveSigningKey', body)).signingKey
}

export function addKeys(account: Command): void {
  adminCommand(account, 'reserve-key [did]', 'have the PDS make the signing key of an account to come').action(
    async (did: string | undefined, options: PdsOptions) => {
      print(options, { did, signingKey: await reserve(options.pds, did) })
    },
  )
  adminCommand(
    account,
    'rotate-key <account>',
    'give an account a new signing key: in its DID first, then a commit signed with it',
  ).action(async (name: string, options: PdsOptions) => {
    const client = clientOf(options)
    const did = await didOf(client, name)
    // The same again until it is in use, so a rotation that was cut short goes on where it was.
    const signingKey = await reserve(options.pds, did)
    try {
      await client.procedure('com.atproto.admin.updateAccountSigningKey', { did, signingKey })
    } catch (error) {
      if (!(error instanceof CallFailed && OWNER_SIGNS.test(error.message))) throw error
      throw new Error(
        `${error.message}\nThe key ${signingKey} waits for this account. Have its owner point the DID to it, such as by\n` +
          `  millisky key plc-update ${did} --signing-key ${signingKey} | millisky key sign-plc - --key-file FILE | millisky key submit-plc ${did} -\nand run this again.`,
      )
    }
    print(options, { did, signingKey })
  })
}
