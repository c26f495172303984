/** Who has records of a collection, and how complete the answer is. */
import { Refused } from '@millisky/core/errors'
import { main as listReposByCollection } from '@millisky/core/lexicon/gen/com/atproto/sync/listReposByCollection'
import { main as getDirectoryStatus } from '@millisky/core/lexicon/gen/net/millisky/relay/getDirectoryStatus'
import { type Datetime, isDid } from '@millisky/core/syntax'
import type { Xrpc } from '@millisky/server/xrpc'
import type { Accounts } from '../accounts.ts'
import { WHOLE } from '../directory.ts'
import type { Hosts } from '../hosts.ts'
import type { Incoming } from '../ingest.ts'
import { statusOf } from '../status.ts'
import type { RelayStore, SettingStore } from '../store/store.ts'

const SINCE = 'directory-since'
/** Counting takes a while, so the count is kept for so long. */
const COUNT_MS = 60_000

export interface DirectoryApiParts {
  accounts: Accounts<Incoming>
  hosts: Hosts
  store: RelayStore
  /** Saves what is known in memory alone so far. */
  save: () => Promise<void>
  now: () => number
}

/** Remembers when the directory began, the first time. */
export async function beginDirectory(settings: SettingStore, now: number): Promise<void> {
  if ((await settings.get(SINCE)) === null) await settings.set(SINCE, new Date(now).toISOString())
}

/** Adds the methods. */
export function addDirectoryApi(xrpc: Xrpc, parts: DirectoryApiParts): void {
  const { accounts, hosts, store, save, now } = parts
  xrpc.query(listReposByCollection, async ({ params }) => {
    const { collection, limit = 500, cursor = '' } = params
    if (cursor !== '' && !isDid(cursor)) throw new Refused('InvalidRequest', 'cursor is not one of this method')
    // What came a moment ago is to be listed as well.
    await save()
    const found = await store.directory.list(collection, cursor, limit + 1)
    const page = found.slice(0, limit)
    const stored = page.length === 0 ? [] : await store.accounts.load(page)
    const active = new Set(stored.flatMap(row => (statusOf(accounts.current(row)).active ? [row.did] : [])))
    return {
      repos: page.filter(did => active.has(did)).map(did => ({ did })),
      cursor: found.length > limit ? page.at(-1) : undefined,
    }
  })
  let counted = { at: Number.NEGATIVE_INFINITY, whole: Promise.resolve(0) }
  xrpc.query(getDirectoryStatus, async () => {
    if (now() - counted.at >= COUNT_MS) counted = { at: now(), whole: store.directory.count(WHOLE) }
    const known = hosts.list().reduce((sum, host) => sum + host.record.accounts, 0)
    const since = (await store.settings.get(SINCE)) as Datetime
    return { since, accounts: known, whole: await counted.whole }
  })
}
