/** `com.atproto.server.*`: an account goes live, pauses, and is looked at while it moves. */
import { main as activateAccount } from '@millisky/core/lexicon/gen/com/atproto/server/activateAccount'
import { main as checkAccountStatus } from '@millisky/core/lexicon/gen/com/atproto/server/checkAccountStatus'
import { main as deactivateAccount } from '@millisky/core/lexicon/gen/com/atproto/server/deactivateAccount'
import type { Xrpc } from '@millisky/server/xrpc'
import type { PdsAccess } from '../access.ts'
import type { DidUpdates } from '../did-updates.ts'
import type { Lifecycle } from '../lifecycle.ts'
import { type Store, statusOf } from '../store/store.ts'
import { ownAccount } from './availability.ts'

export interface StatusApiParts {
  store: Store
  access: PdsAccess
  lifecycle: Lifecycle
  didUpdates: DidUpdates
}

/** Adds the methods. */
export function addStatusApi(xrpc: Xrpc, { store, access, lifecycle, didUpdates }: StatusApiParts): void {
  xrpc.procedure(activateAccount, { auth: access.session({ full: true }) }, ({ auth }) => didUpdates.activate(auth.did))
  const auth = access.session({ full: true, takendown: true })
  xrpc.procedure(deactivateAccount, { auth }, ({ input, auth }) =>
    lifecycle.deactivate(auth.did, input.deleteAfter === undefined ? null : Date.parse(input.deleteAfter)),
  )
  xrpc.query(checkAccountStatus, { auth: access.user }, async ({ auth }) => {
    const account = await ownAccount(store, auth.did)
    const { id, did } = account
    const [state, counts, blobs, validDid] = await Promise.all([
      store.repos.state(did),
      store.repos.counts(id),
      store.blobs.counts(id),
      didUpdates.livesHere(did),
    ])
    const { commit, rev } = state!.head
    return {
      activated: statusOf(account) === 'active',
      validDid,
      repoCommit: commit.toString(),
      repoRev: rev,
      // The commit itself is a block too.
      repoBlocks: counts.nodes + counts.records + 1,
      indexedRecords: counts.records,
      // As the reference has it, which keeps preferences elsewhere.
      privateStateValues: 0,
      expectedBlobs: blobs.referenced,
      importedBlobs: blobs.present,
    }
  })
}
