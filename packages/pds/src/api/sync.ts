/** `com.atproto.sync.*`: what relays and everybody else read. */

import { type Block, Blocks } from '@millisky/core/blocks'
import { writeCar } from '@millisky/core/car'
import { Cid } from '@millisky/core/cid'
import { Refused } from '@millisky/core/errors'
import { main as getBlocks } from '@millisky/core/lexicon/gen/com/atproto/sync/getBlocks'
import { main as getCheckout } from '@millisky/core/lexicon/gen/com/atproto/sync/getCheckout'
import { main as getHead } from '@millisky/core/lexicon/gen/com/atproto/sync/getHead'
import { main as getLatestCommit } from '@millisky/core/lexicon/gen/com/atproto/sync/getLatestCommit'
import { main as getRecord } from '@millisky/core/lexicon/gen/com/atproto/sync/getRecord'
import { main as getRepo } from '@millisky/core/lexicon/gen/com/atproto/sync/getRepo'
import { main as getRepoStatus } from '@millisky/core/lexicon/gen/com/atproto/sync/getRepoStatus'
import { main as listBlobs } from '@millisky/core/lexicon/gen/com/atproto/sync/listBlobs'
import { main as listRepos } from '@millisky/core/lexicon/gen/com/atproto/sync/listRepos'
import { main as listReposByCollection } from '@millisky/core/lexicon/gen/com/atproto/sync/listReposByCollection'
import { prove } from '@millisky/core/mst/proof'
import { Tree } from '@millisky/core/mst/tree'
import type { Did } from '@millisky/core/syntax'
import type { RateLimit } from '@millisky/server/rate'
import { raw, type Xrpc } from '@millisky/server/xrpc'
import type { Access, Viewer } from '../callers.ts'
import type { Exports } from '../exports.ts'
import { perAddress } from '../rates.ts'
import { type Account, type AccountId, type RepoSnapshot, type Store, statusOf } from '../store/store.ts'
import { assertAvailable } from './availability.ts'
import { parseCursor } from './repo.ts'
import { sendBlocks, sendExport } from './sync-export.ts'

const CAR = 'application/vnd.ipld.car'
/** Blocks of one getBlocks; the lexicon names no limit. */
const BLOCKS_MAX = 500
/** Accounts that one listReposByCollection looks at: few have records of a rare collection. */
const ACCOUNTS_LOOKED_AT_MAX = 5_000

export interface SyncApiParts {
  store: Store
  exports: Exports
  access: Access
  /** For each address. */
  exportLimits?: readonly RateLimit[] | undefined
}

type Parts = SyncApiParts

/** Adds the methods. Blobs and the event stream have files of their own. */
export function addSyncApi(xrpc: Xrpc, parts: SyncApiParts): void {
  addRepoReads(xrpc, parts)
  addStatusReads(xrpc, parts)
  addLists(xrpc, parts)
}

function addRepoReads(xrpc: Xrpc, parts: Parts): void {
  const { store, exports } = parts
  const auth = parts.access.viewer
  const rates = perAddress(parts.exportLimits)
  xrpc.query(getRepo, { auth, exempt: true, rates }, async ({ params, auth, request, reply }) => {
    const account = await available(store, params.did, auth)
    return sendExport({ store, exports }, account, params.since, request, reply)
  })
  xrpc.query(getCheckout, { auth, exempt: true, rates }, async ({ params, auth, request, reply }) => {
    const account = await available(store, params.did, auth)
    return sendExport({ store, exports }, account, undefined, request, reply)
  })
  xrpc.query(getRecord, { auth }, async ({ params, auth }) => {
    const account = await available(store, params.did, auth)
    const path = `${params.collection}/${params.rkey}`
    return raw(CAR, await store.repos.snapshot(account.id, view => proofOf(view, path)))
  })
  xrpc.query(getBlocks, { auth }, async ({ params, auth, request, reply }) => {
    const { did, cids: asked } = params
    const account = await available(store, did, auth)
    if (asked.length > BLOCKS_MAX) throw new Refused('InvalidRequest', `Too many CIDs. Max: ${BLOCKS_MAX}`)
    const cids = [...new Map(asked.map(text => [text, Cid.parse(text)])).values()]
    return sendBlocks(exports, account, cids, request, reply)
  })
}

/** The commit, the way through the tree to where the record is or would be, and the record if it is there. */
async function proofOf(view: RepoSnapshot, path: string): Promise<Uint8Array> {
  const blocks = new Blocks()
  const tree = Tree.load(view.head.data, blocks)
  for (let missing = tree.missing([path], { neighbours: false }); missing.length > 0; ) {
    for (const cid of missing) blocks.add({ cid, bytes: (await view.node(cid)).bytes })
    missing = tree.missing([path], { neighbours: false })
  }
  const proof: Block[] = [view.commit, ...prove(tree, path)]
  const record = await view.record(path)
  if (record) proof.push(record)
  return writeCar([view.commit.cid], proof)
}

function addStatusReads(xrpc: Xrpc, parts: Parts): void {
  const { store } = parts
  const auth = parts.access.viewer
  xrpc.query(getLatestCommit, { auth }, async ({ params, auth }) => {
    await available(store, params.did, auth)
    const state = await store.repos.state(params.did)
    if (!state) throw new Refused('RepoNotFound', `Could not find root for DID: ${params.did}`)
    return { cid: state.head.commit.toString(), rev: state.head.rev }
  })
  xrpc.query(getHead, { auth }, async ({ params, auth }) => {
    const account = await store.accounts.byDid(params.did)
    if (!account) throw new Refused('HeadNotFound', `Could not find root for DID: ${params.did}`)
    assertAvailable(account, params.did, auth)
    const state = await store.repos.state(params.did)
    return { root: state!.head.commit.toString() }
  })
  xrpc.query(getRepoStatus, async ({ params }) => {
    const { did } = params
    const state = await store.repos.state(did)
    if (!state) throw new Refused('RepoNotFound', `Could not find repo for DID: ${did}`)
    const { status, head } = state
    return status === 'active' ? { did, active: true, rev: head.rev } : { did, active: false, status }
  })
}

function addLists(xrpc: Xrpc, parts: Parts): void {
  const { store } = parts
  xrpc.query(listBlobs, { auth: parts.access.viewer }, async ({ params, auth }) => {
    const { did, since, limit = 500, cursor } = params
    const account = await available(store, did, auth)
    const cids = await store.blobs.referenced(account.id, {
      limit,
      ...(since === undefined ? {} : { since }),
      ...(cursor === undefined ? {} : { after: parseCursor(cursor) }),
    })
    return { cids: cids.map(String), cursor: cids.at(-1)?.toString() }
  })
  xrpc.query(listRepos, async ({ params }) => {
    const { limit = 500, cursor } = params
    const found = await store.repos.listHeads(accountAfter(cursor), limit)
    const repos = found.map(({ account, commit, rev }) => {
      const status = statusOf(account)
      const entry = { did: account.did, head: commit.toString(), rev }
      return status === 'active' ? { ...entry, active: true } : { ...entry, active: false, status }
    })
    const last = found.at(-1)
    return { repos, cursor: last && found.length === limit ? String(last.account.id) : undefined }
  })
  xrpc.query(listReposByCollection, async ({ params }) => {
    const { collection, limit = 500, cursor } = params
    const bounds = { limit, look: ACCOUNTS_LOOKED_AT_MAX }
    const { found, last } = await store.repos.listByCollection(collection, accountAfter(cursor), bounds)
    return { repos: found.map(({ did }) => ({ did })), cursor: last === null ? undefined : String(last) }
  })
}

/** The cursor of lists of accounts. */
function accountAfter(cursor = '0'): AccountId {
  if (!/^\d{1,15}$/.test(cursor)) throw new Refused('InvalidRequest', 'Malformed cursor')
  return Number(cursor)
}

async function available(store: Store, did: Did, viewer: Viewer): Promise<Account> {
  return assertAvailable(await store.accounts.byDid(did), did, viewer)
}
