/**
 * Accounts that send more than one account may: what they send is not passed on for a while, and consumers are told
 * `throttled`. That ends by itself; what was missed shows as a break in the account's next commit.
 *
 * Source: account spec (`throttled` may be active).
 */
import type { Did } from '@millisky/core/syntax'
import type { Account, Accounts } from './accounts.ts'
import type { Incoming } from './ingest.ts'
import { ACCOUNT_THROTTLE_MS } from './quotas.ts'
import { THROTTLED } from './status.ts'
import type { AccountStore } from './store/store.ts'

const SWEEP_MS = 5_000
const PAGE = 1_000

export interface FloodsParts {
  accounts: Accounts<Incoming>
  store: AccountStore
  /** Tells consumers. See `Ingest.announce`. */
  announce(account: Account<Incoming>, local: string | null): Promise<void>
  now: () => number
  onError: (error: unknown) => void
}

export class Floods {
  readonly #parts: FloodsParts
  readonly #until = new Map<Did, number>()
  readonly #timer: NodeJS.Timeout

  constructor(parts: FloodsParts) {
    this.#parts = parts
    this.#timer = setInterval(() => void this.sweep(), SWEEP_MS)
    this.#timer.unref()
  }

  close(): void {
    clearInterval(this.#timer)
  }

  /** Accounts that are throttled. */
  get size(): number {
    return this.#until.size
  }

  /** Takes up those of before the start, whose time is over: how much they had left is not known any more. */
  async load(): Promise<void> {
    for (let after = ''; ; ) {
      const page = await this.#parts.store.listLocal(THROTTLED, after, PAGE)
      for (const { did } of page) this.#until.set(did, 0)
      if (page.length < PAGE) return
      after = page.at(-1)!.did
    }
  }

  /** Throttles an account from now on. */
  start(account: Account<Incoming>): void {
    const { store, announce, now, onError } = this.#parts
    if (account.state.local !== null) return
    account.state = { ...account.state, local: THROTTLED }
    this.#until.set(account.did, now() + ACCOUNT_THROTTLE_MS)
    store
      .setLocal(account.did, THROTTLED)
      .then(() => (account.state.local === THROTTLED ? announce(account, THROTTLED) : undefined))
      .catch(onError)
  }

  /** Lets those go whose time is over. */
  async sweep(): Promise<void> {
    const now = this.#parts.now()
    for (const [did, until] of this.#until) {
      if (until > now) continue
      this.#until.delete(did)
      await this.#lift(did).catch(this.#parts.onError)
    }
  }

  async #lift(did: Did): Promise<void> {
    const { accounts, announce, store } = this.#parts
    const account = await accounts.find(did)
    if (account.state.local !== THROTTLED) return
    // Told before it is forgotten: after a crash in between it is told again.
    await announce(account, null)
    if (account.state.local === null) await store.setLocal(did, null)
  }
}
