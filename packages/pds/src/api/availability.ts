/** Whether an account may be read, and what is said if not. Source: protocol.md's table of reads by hosting status. */
import { Refused } from '@millisky/core/errors'
import type { Did } from '@millisky/core/syntax'
import type { Viewer } from '../callers.ts'
import { type Account, type Store, statusOf } from '../store/store.ts'

/** The account, if it is hosted here and this viewer may read it. @throws Refused RepoNotFound, RepoTakendown … */
export function assertAvailable(account: Account | null, asked: string, viewer?: Viewer): Account {
  if (!account) throw new Refused('RepoNotFound', `Could not find repo for DID: ${asked}`)
  const status = statusOf(account)
  if (status === 'active' || viewer?.sees(account.did)) return account
  if (status === 'takendown') throw new Refused('RepoTakendown', `Repo has been takendown: ${asked}`)
  if (status === 'suspended') throw new Refused('RepoSuspended', `Repo has been suspended: ${asked}`)
  throw new Refused('RepoDeactivated', `Repo has been deactivated: ${asked}`)
}

/** The account of a caller who is signed in. @throws Refused 403 when it is gone */
export async function ownAccount({ accounts }: Pick<Store, 'accounts'>, did: Did): Promise<Account> {
  const account = await accounts.byDid(did)
  if (!account) throw new Refused('AccountNotFound', 'Account not found', 403)
  return account
}
