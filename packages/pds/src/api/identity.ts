/** `com.atproto.identity.*`: handles and DIDs. */
import { Refused, Unavailable } from '@millisky/core/errors'
import { main as resolveHandle } from '@millisky/core/lexicon/gen/com/atproto/identity/resolveHandle'
import type { Identities } from '@millisky/server/identity'
import type { Xrpc } from '@millisky/server/xrpc'
import { type HandleRules, isOwnName } from '../handles.ts'
import type { Store } from '../store/store.ts'

export interface IdentityApiParts {
  store: Store
  identities: Identities
  handles: HandleRules
}

/** Adds the methods. */
export function addIdentityApi(xrpc: Xrpc, { store, identities, handles }: IdentityApiParts): void {
  xrpc.query(resolveHandle, async ({ params }) => {
    const { handle } = params
    const account = await store.accounts.byHandle(handle.toLowerCase() as typeof handle)
    if (account) return { did: account.did }
    if (isOwnName(handle.toLowerCase(), handles)) throw new Refused('HandleNotFound', 'Unable to resolve handle')
    try {
      return { did: await identities.resolveHandle(handle) }
    } catch (error) {
      // Why it failed is in the message; to the caller it is not found either way.
      if (error instanceof Refused || error instanceof Unavailable) {
        throw new Refused('InvalidRequest', 'Unable to resolve handle')
      }
      throw error
    }
  })
}
