/** `net.millisky.pds.createAccount`: accounts for DIDs that there are already, on the operator's word. */
import { main as createAccount } from '@millisky/core/lexicon/gen/net/millisky/pds/createAccount'
import type { Did } from '@millisky/core/syntax'
import type { Xrpc } from '@millisky/server/xrpc'
import type { PdsAccess } from '../access.ts'
import type { Accounts } from '../accounts.ts'
import type { Repos } from '../repos.ts'
import type { Store } from '../store/store.ts'

export interface AdminAdmissionApiParts {
  store: Store
  repos: Repos
  accounts: Accounts
  access: PdsAccess
}

/** Adds the method. Whether the DID lives here is checked when the account is activated. */
export function addAdminAdmissionApi(xrpc: Xrpc, { store, repos, accounts, access }: AdminAdmissionApiParts): void {
  xrpc.procedure(createAccount, { auth: access.admin }, async ({ input }) => {
    const { did: wanted, handle, email, password } = input
    const did = wanted as Did
    const given = { did, handle, email, ...(password === undefined ? {} : { password }) }
    const account = await accounts.create({ ...given, provenBy: did, byOperator: true })
    const { key } = (await store.repos.state(did))!
    return { did, handle: account.handle!, signingKey: repos.signingKey(key).didKey }
  })
}
