/**
 * The stations of an account's life, each with the events it makes, in their order, in the same transaction.
 *
 * Source: protocol.md's table of producer sequences, column of the reference PDS.
 */
import { Blocks } from '@millisky/core/blocks'
import { decodeCommit, verifyCommit } from '@millisky/core/commit'
import { Refused } from '@millisky/core/errors'
import { accountEvent, commitEvent, identityEvent, syncEvent } from '@millisky/core/event'
import { Tree } from '@millisky/core/mst/tree'
import { apply } from '@millisky/core/repo'
import type { Did, Handle } from '@millisky/core/syntax'
import { datetime, pending, type Repos } from './repos.ts'
import {
  type Account,
  type AccountPatch,
  type PendingEvent,
  type RepoState,
  type StoredKey,
  statusOf,
} from './store/store.ts'

export interface OpenAccount {
  did: Did
  handle: Handle | null
  email: string | null
  /** PHC string. */
  password: string | null
  key: StoredKey
  invite?: string
  /** Arrives by migration: no events until it is activated. */
  deactivated?: boolean
}

export class Lifecycle {
  readonly #repos: Repos

  constructor(repos: Repos) {
    this.#repos = repos
  }

  /** Makes an account with an empty repository. @throws Taken, Refused InvalidInviteCode */
  open({ deactivated = false, ...account }: OpenAccount): Promise<Account> {
    const { did, handle } = account
    return this.#repos.lanes.run(did, async () => {
      const now = this.#repos.now()
      const time = datetime(now)
      const key = this.#repos.signingKey(account.key)
      const change = apply({ did, head: null, blocks: new Blocks(), writes: [], rev: this.#repos.nextRev(), key })
      const { head, commit, nodes } = change
      const events = [
        identityEvent({ did, handle }, time),
        accountEvent({ did, active: true }, time),
        commitEvent(change, time),
        syncEvent({ did, rev: head.rev, commit }, time),
      ]
      return this.#repos.store.accounts.create(
        { ...account, createdAt: now, deactivatedAt: deactivated ? now : null, repo: { head, commit, nodes } },
        deactivated ? [] : events.map(event => pending(did, event)),
      )
    })
  }

  /** The account goes live, here for the first time or again. */
  async activate(did: Did): Promise<void> {
    let isOutdated = false
    await this.#change(did, { deactivatedAt: null, deleteAfter: null }, async after => {
      const time = this.#time()
      const events = [this.#accountEvent(after), pending(did, identityEvent(after, time))]
      if (statusOf(after) !== 'active') return events
      const state = (await this.#repos.store.repos.state(did))!
      await this.#assertWhole(after, state)
      const commit = (await this.#repos.store.repos.commitBlock(after.id))!
      const { publicKey } = this.#repos.signingKey(state.key)
      isOutdated = !verifyCommit(decodeCommit(commit.bytes, { allowVersion2: true }), publicKey)
      return isOutdated ? events : [...events, pending(did, syncEvent({ did, rev: state.head.rev, commit }, time))]
    })
    // The key was changed while no commit could be made: nobody could verify what stands.
    if (isOutdated) await this.#repos.resign(did)
  }

  /** An import that was cut short leaves rows beside an empty tree, see `RepoImport`. @throws Refused */
  async #assertWhole({ id }: Account, { head }: RepoState): Promise<void> {
    if (!head.data.equals(Tree.empty.root)) return
    const { nodes, records } = await this.#repos.store.repos.counts(id)
    if (nodes === 1 && records === 0) return
    throw new Refused('InvalidRequest', 'The repository came in part only: import it again')
  }

  /** The owner pauses the account. */
  deactivate(did: Did, deleteAfter: number | null = null): Promise<void> {
    const patch = { deactivatedAt: this.#repos.now(), deleteAfter }
    return this.#change(did, patch, async after => [this.#accountEvent(after)])
  }

  /** The moderator takes the account down under a reference, or null for lifting that. */
  takedown(did: Did, reference: string | null): Promise<void> {
    return this.#change(did, { takedown: reference }, async after => [this.#accountEvent(after)])
  }

  suspend(did: Did, suspended: boolean): Promise<void> {
    const patch = { suspendedAt: suspended ? this.#repos.now() : null }
    return this.#change(did, patch, async after => [this.#accountEvent(after)])
  }

  /** The identity has another handle, or was asked to be announced again. @throws Taken */
  setHandle(did: Did, handle: Handle | null): Promise<void> {
    return this.#change(did, { handle }, async after => [pending(did, identityEvent(after, this.#time()))])
  }

  /**
   * The account signs with another key from now on, which `register` has its DID say first. No write comes between. The
   * next commit is the caller's to make.
   */
  changeKey(did: Did, key: StoredKey, register: () => Promise<void>): Promise<void> {
    return this.#change(did, { key }, async after => {
      await register()
      return [pending(did, identityEvent(after, this.#time()))]
    })
  }

  /** Tells the account's status once more. */
  announceStatus(did: Did): Promise<void> {
    return this.#change(did, {}, async after => [this.#accountEvent(after)])
  }

  /** Asks everybody to look the identity up again. */
  announceIdentity(did: Did): Promise<void> {
    return this.#change(did, {}, async after => [pending(did, identityEvent(after, this.#time()))])
  }

  /**
   * Tells everything about an account once more, for those whose picture of it is newer than ours or none: with a commit
   * whose rev is above all they have seen.
   */
  async announce(did: Did): Promise<void> {
    const before = await this.#repos.store.accounts.byDid(did)
    if (before && statusOf(before) === 'active') await this.#repos.resign(did)
    return this.#change(did, {}, async after => {
      const time = this.#time()
      const events = [this.#accountEvent(after), pending(did, identityEvent(after, time))]
      if (statusOf(after) !== 'active') return events
      const { rev } = (await this.#repos.store.repos.state(did))!.head
      const commit = (await this.#repos.store.repos.commitBlock(after.id))!
      return [...events, pending(did, syncEvent({ did, rev, commit }, time))]
    })
  }

  /**
   * The account and all it has is gone from here, if `only` holds. The bytes of its blobs are the caller's to remove.
   * Returns whether it was here and is gone.
   */
  remove(did: Did, only: (account: Account) => boolean = () => true): Promise<boolean> {
    return this.#repos.lanes.run(did, async () => {
      const account = await this.#repos.store.accounts.byDid(did)
      if (!account || !only(account)) return false
      const event = accountEvent({ did, active: false, status: 'deleted' }, this.#time())
      await this.#repos.store.accounts.remove(account.id, [pending(did, event)])
      return true
    })
  }

  #change(did: Did, patch: AccountPatch, eventsOf: (after: Account) => Promise<PendingEvent[]>): Promise<void> {
    return this.#repos.lanes.run(did, async () => {
      const before = await this.#repos.store.accounts.byDid(did)
      if (!before) throw new Refused('AccountNotFound', 'Account not found', 403)
      const { key: _key, password: _password, ...visible } = patch
      const after = { ...before, ...visible }
      await this.#repos.store.accounts.update(before.id, patch, await eventsOf(after))
    })
  }

  #time() {
    return datetime(this.#repos.now())
  }

  #accountEvent(account: Account): PendingEvent {
    const { did } = account
    const status = statusOf(account)
    const event = status === 'active' ? { did, active: true } : { did, active: false, status }
    return pending(did, accountEvent(event, this.#time()))
  }
}
