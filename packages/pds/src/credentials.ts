/** What opens an account: its password, its app passwords, its sessions. */
import { randomBytes } from 'node:crypto'
import { base32 } from '@millisky/core/bytes'
import { Refused } from '@millisky/core/errors'
import {
  assertPasswordLength,
  hashAppPassword,
  hashPassword,
  NEW_PASSWORD_LENGTH_MAX,
  passwordMatches,
} from './passwords.ts'
import { type Account, type AppPassword, type Store, Taken } from './store/store.ts'

const APP_PASSWORD_NAME_LENGTH_MAX = 256
const SALT_BYTES = 16

export interface CredentialsParts {
  store: Store
  /** Milliseconds since 1970. */
  now: () => number
}

export class Credentials {
  readonly #store: Store
  readonly #now: () => number

  constructor({ store, now }: CredentialsParts) {
    this.#store = store
    this.#now = now
  }

  /** Whether it may become a password. @throws Refused */
  checkNew(password: string): void {
    if (password.length > NEW_PASSWORD_LENGTH_MAX) throw new Refused('InvalidRequest', 'Invalid password length.')
  }

  /** Whether it is the account's own password. @throws Refused 401 for one that is too long to be */
  async isPassword(account: Account, password: string): Promise<boolean> {
    assertPasswordLength(password)
    const kept = await this.#store.accounts.password(account.id)
    return kept !== null && (await passwordMatches(password, kept))
  }

  /** Sets a new password and ends all sessions. Tokens for resetting it are worth nothing after. @throws Refused */
  async setPassword(account: Account, password: string): Promise<void> {
    this.checkNew(password)
    const hash = await hashPassword(password, randomBytes(SALT_BYTES))
    await this.#store.accounts.update(account.id, { password: hash }, [])
    await this.#store.tickets.removeEmailToken(account.id, 'reset_password')
    await this.endSessions(account)
  }

  /** No session is continued; access tokens that are out still live for up to two hours. */
  async endSessions(account: Account): Promise<void> {
    await this.#store.sessions.removeOf(account.id)
  }

  /** Nothing opens the account any more until its password is set anew. */
  async revokeAll(account: Account): Promise<void> {
    await this.#store.accounts.update(account.id, { password: null }, [])
    for (const { name } of await this.#store.sessions.appPasswords(account.id)) {
      await this.#store.sessions.removeAppPassword(account.id, name)
    }
    await this.endSessions(account)
  }

  /** The password itself is in the result and nowhere else. @throws Refused if there is one of that name */
  async addAppPassword(
    account: Account,
    name: string,
    privileged: boolean,
  ): Promise<Omit<AppPassword, 'password'> & { password: string }> {
    if (name.length > APP_PASSWORD_NAME_LENGTH_MAX) throw new Refused('InvalidRequest', 'The name is too long')
    const password = base32(randomBytes(10)).match(/.{4}/g)!.join('-')
    const kept = { name, privileged, createdAt: this.#now() }
    try {
      const hash = hashAppPassword(password, randomBytes(SALT_BYTES))
      await this.#store.sessions.addAppPassword(account.id, { ...kept, password: hash })
    } catch (error) {
      if (!(error instanceof Taken)) throw error
      throw new Refused('InvalidRequest', `There is an app password of this name already: ${name}`)
    }
    return { ...kept, password }
  }
}
