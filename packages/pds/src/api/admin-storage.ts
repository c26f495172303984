/** `net.millisky.pds.getStorageReport`: what blobs take. */
import { main as getStorageReport } from '@millisky/core/lexicon/gen/net/millisky/pds/getStorageReport'
import { HANDLE_INVALID } from '@millisky/core/syntax'
import type { Xrpc } from '@millisky/server/xrpc'
import type { PdsAccess } from '../access.ts'
import type { Blobs } from '../blobs.ts'
import type { Account, BlobUsage, Store } from '../store/store.ts'
import { assertAvailable } from './availability.ts'

export interface AdminStorageApiParts {
  store: Store
  blobs: Blobs
  access: PdsAccess
}

/** Adds the method. */
export function addAdminStorageApi(xrpc: Xrpc, { store, blobs, access }: AdminStorageApiParts): void {
  xrpc.query(getStorageReport, { auth: access.admin }, async ({ params }) => {
    const { did, limit = 20 } = params
    const one = did === undefined ? null : assertAvailable(await store.accounts.byDid(did), did, { sees: () => true })
    const { total, accounts } = await store.blobs.usageOfAll(one ? 0 : limit)
    const found = await blobs.collect({ dryRun: true })
    return {
      total,
      collectable: { blobs: found.blobs, bytes: found.bytes, uploads: found.staged },
      accountBytesMax: blobs.accountBytesMax,
      accounts: one
        ? [{ ...view(one, await store.blobs.usage(one.id)), missingBlobs: await missing(store, one) }]
        : accounts.map(({ account, ...usage }) => view(account, usage)),
    }
  })
}

const view = ({ did, handle }: Account, usage: BlobUsage) => ({ did, handle: handle ?? HANDLE_INVALID, usage })

async function missing({ blobs }: Store, { id }: Account): Promise<number> {
  const { referenced, present } = await blobs.counts(id)
  return referenced - present
}
