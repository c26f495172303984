/** Codes sent by mail: whoever types one in has read it. Source: pds.md #48. */
import { randomBytes, timingSafeEqual } from 'node:crypto'
import { utf8 } from '@millisky/core/bytes'
import { Refused } from '@millisky/core/errors'
import { sha256 } from '@millisky/core/hash'
import { groupedToken, TOKEN_RANDOM_BYTES } from './invites.ts'
import type { Account, AccountId, Store } from './store/store.ts'

/** What a code is good for. An account has one code for each at a time. */
export type Purpose = 'confirm_email' | 'update_email' | 'reset_password' | 'delete_account' | 'plc_operation'

const LIFETIME_MS = 15 * 60_000

export interface MailCodesParts {
  store: Store
  /** Milliseconds since 1970. */
  now: () => number
}

export class MailCodes {
  readonly #store: Store
  readonly #now: () => number

  constructor({ store, now }: MailCodesParts) {
    this.#store = store
    this.#now = now
  }

  /** Makes a code, `XXXXX-XXXXX`; the one before is worth nothing any more. */
  async issue({ id }: Account, purpose: Purpose): Promise<string> {
    const token = groupedToken(randomBytes(TOKEN_RANDOM_BYTES)).toUpperCase()
    await this.#store.tickets.putEmailToken(id, purpose, { token, requestedAt: this.#now() })
    return token
  }

  /** Checks a code and leaves it. @throws Refused InvalidToken, ExpiredToken */
  async check(account: AccountId, purpose: Purpose, token: string): Promise<void> {
    const kept = await this.#store.tickets.emailToken(account, purpose)
    if (!kept || !isSame(kept.token, normalized(token))) throw invalid()
    if (kept.requestedAt + LIFETIME_MS <= this.#now()) throw new Refused('ExpiredToken', 'Token is expired')
  }

  /** Uses a code up: of two who try at once, one succeeds. @throws Refused InvalidToken, ExpiredToken */
  async take(account: AccountId, purpose: Purpose, token: string): Promise<void> {
    await this.check(account, purpose, token)
    if (!(await this.#store.tickets.takeEmailToken(account, purpose, normalized(token)))) throw invalid()
  }

  /** Whose code it is, not yet checked. @throws Refused InvalidToken */
  async ownerOf(purpose: Purpose, token: string): Promise<Account> {
    const id = await this.#store.tickets.accountOfEmailToken(purpose, normalized(token))
    const account = id === null ? null : await this.#store.accounts.byId(id)
    if (!account) throw invalid()
    return account
  }
}

/** Takes as long for a code that is nearly right as for any other. */
function isSame(kept: string, given: string): boolean {
  return timingSafeEqual(sha256(utf8(kept)), sha256(utf8(given)))
}

function normalized(token: string): string {
  return token.trim().toUpperCase()
}

function invalid(): Refused {
  return new Refused('InvalidToken', 'Token is invalid')
}
