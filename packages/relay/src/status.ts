/** An account's status as this relay tells it. */
import { Refused } from '@millisky/core/errors'
import type { StoredAccount } from './store/store.ts'

/** Statuses given here. */
export const TAKENDOWN = 'takendown'
export const THROTTLED = 'throttled'

export interface ToldStatus {
  active: boolean
  status?: string
}

/** Ours is stronger than that of its host; `throttled` alone leaves an account active. Source: account spec. */
export function statusOf({ active, status, local }: Pick<StoredAccount, 'active' | 'status' | 'local'>): ToldStatus {
  if (local === THROTTLED && active) return { active, status: THROTTLED }
  if (local !== null && local !== THROTTLED) return { active: false, status: local }
  return status === null ? { active } : { active, status }
}

/** @throws {Refused} unless the account may be served, under the lexicon's names */
export function assertServed(account: StoredAccount | null, did: string): asserts account is StoredAccount {
  if (account === null) throw new Refused('RepoNotFound', `Could not find repo for DID: ${did}`, 404)
  const { active, status } = statusOf(account)
  if (active) return
  switch (status) {
    case 'takendown':
      throw new Refused('RepoTakendown', `Repo has been taken down: ${did}`, 403)
    case 'suspended':
      throw new Refused('RepoSuspended', `Repo has been suspended: ${did}`, 403)
    case 'deactivated':
      throw new Refused('RepoDeactivated', `Repo has been deactivated: ${did}`, 403)
    case 'deleted':
      throw new Refused('RepoNotFound', `Repo has been deleted: ${did}`, 404)
    default:
      throw new Refused('RepoInactive', `Repo is not active: ${did}`, 403)
  }
}
