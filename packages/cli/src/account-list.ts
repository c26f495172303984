/** All accounts of a PDS, page by page. */
import type { XrpcClient } from './xrpc-client.ts'

export interface AccountView {
  did: string
  handle: string
  email?: string
  indexedAt: string
  deactivatedAt?: string
  invitesDisabled?: boolean
  emailConfirmedAt?: string
}

/** Every account with its status, in the order of their making. */
export async function* accountsOf(client: XrpcClient): AsyncGenerator<AccountView & { status: string }> {
  let cursor: string | undefined
  do {
    const page = await client.query<{ repos: { did: string; active?: boolean; status?: string }[]; cursor?: string }>(
      'com.atproto.sync.listRepos',
      { limit: 100, cursor },
    )
    const dids = page.repos.map(repo => repo.did)
    if (dids.length > 0) {
      const { infos } = await client.query<{ infos: AccountView[] }>('com.atproto.admin.getAccountInfos', { dids })
      const statuses = new Map(
        page.repos.map(repo => [repo.did, repo.active === false ? (repo.status ?? 'inactive') : 'active']),
      )
      for (const info of infos) yield { ...info, status: statuses.get(info.did) ?? '' }
    }
    cursor = page.cursor
  } while (cursor !== undefined)
}
