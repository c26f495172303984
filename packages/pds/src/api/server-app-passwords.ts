/** `com.atproto.server.*AppPassword*`: passwords for apps, which open less than the account's own. */
import { main as createAppPassword } from '@millisky/core/lexicon/gen/com/atproto/server/createAppPassword'
import { main as listAppPasswords } from '@millisky/core/lexicon/gen/com/atproto/server/listAppPasswords'
import { main as revokeAppPassword } from '@millisky/core/lexicon/gen/com/atproto/server/revokeAppPassword'
import type { Xrpc } from '@millisky/server/xrpc'
import type { PdsAccess } from '../access.ts'
import type { Credentials } from '../credentials.ts'
import { datetime } from '../repos.ts'
import type { Store } from '../store/store.ts'
import { ownAccount } from './availability.ts'

export interface AppPasswordApiParts {
  store: Store
  access: PdsAccess
  credentials: Credentials
}

/** Adds the methods. */
export function addAppPasswordApi(xrpc: Xrpc, { store, access, credentials }: AppPasswordApiParts): void {
  const auth = access.session({ full: true, unlessTakendown: true })
  xrpc.procedure(createAppPassword, { auth }, async ({ input, auth }) => {
    const account = await ownAccount(store, auth.did)
    const { name, password, createdAt, privileged } = await credentials.addAppPassword(
      account,
      input.name,
      input.privileged ?? false,
    )
    return { name, password, createdAt: datetime(createdAt), privileged }
  })
  xrpc.query(listAppPasswords, { auth: access.user }, async ({ auth }) => {
    const account = await ownAccount(store, auth.did)
    const passwords = await store.sessions.appPasswords(account.id)
    const shown = passwords.map(({ name, createdAt, privileged }) => {
      return { name, createdAt: datetime(createdAt), privileged }
    })
    return { passwords: shown.reverse() }
  })
  xrpc.procedure(revokeAppPassword, { auth: access.user }, async ({ input, auth }) => {
    const account = await ownAccount(store, auth.did)
    await store.sessions.removeAppPassword(account.id, input.name)
  })
}
