/** Signing in, staying in, signing out. Source: pds.md #24-#31. */
import { randomBytes } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { Refused } from '@millisky/core/errors'
import { asHandle, isDid, isHandle, normalizeHandle } from '@millisky/core/syntax'
import { assertPasswordLength, hashPassword, isOutdatedHash, passwordMatches } from './passwords.ts'
import { type Account, type AppPassword, type Session, type Store, statusOf } from './store/store.ts'
import { type AccessScope, REFRESH_MS, type RefreshToken, SCOPES, type Tokens } from './tokens.ts'

/** A refresh token that was exchanged gives the same successor for this long, for clients that ask twice at once. */
const REFRESH_GRACE_MS = 2 * 3_600_000
/** No failed login is answered sooner, so that its time tells nothing. */
const FAILURE_MIN_MS = 350
/** Compared with when there is no account, so that the work is the same. */
const NO_PASSWORD = `$argon2id$v=19$m=19456,t=2,p=1$${'A'.repeat(22)}$${'A'.repeat(43)}`
const APP_PASSWORD = /^[a-z0-9]{4}(-[a-z0-9]{4}){3}$/

export interface SessionTokens {
  accessJwt: string
  refreshJwt: string
}

export interface SignedIn extends SessionTokens {
  account: Account
}

export interface SessionsParts {
  store: Store
  tokens: Tokens
  /** Milliseconds since 1970. */
  now: () => number
}

export class Sessions {
  readonly #store: Store
  readonly #tokens: Tokens
  readonly #now: () => number

  constructor({ store, tokens, now }: SessionsParts) {
    this.#store = store
    this.#tokens = tokens
    this.#now = now
  }

  /** A new session for an account whose owner is known already. */
  async open(account: Account, appPassword: AppPassword | null = null): Promise<SessionTokens> {
    const session = this.#newSession(account, appPassword?.name ?? null)
    const isTakendown = statusOf(account) === 'takendown'
    // That of a takedown is not kept: it ends with its access token, and never becomes a session of more rights.
    if (!isTakendown) await this.#store.sessions.add(session)
    return this.#tokensOf({ did: account.did, id: session.id }, isTakendown ? SCOPES.takendown : scopeOf(appPassword))
  }

  /**
   * Signs in by handle, DID or e-mail address.
   *
   * @throws Refused 401 AuthenticationRequired after at least 350 ms, AccountTakedown
   */
  async login(identifier: string, password: string, { allowTakendown = false } = {}): Promise<SignedIn> {
    const started = performance.now()
    const { found, appPassword } = await this.#verify(identifier, password).catch(async refused => {
      await sleep(Math.max(0, FAILURE_MIN_MS - (performance.now() - started)))
      throw refused
    })
    if (statusOf(found) === 'takendown' && !allowTakendown) {
      throw new Refused('AccountTakedown', 'Account has been taken down', 401)
    }
    return { account: found, ...(await this.open(found, appPassword)) }
  }

  /**
   * Exchanges a refresh token for new tokens.
   *
   * @throws Refused 400 ExpiredToken "Token has been revoked", 401 AccountTakedown
   */
  async refresh({ did, id }: RefreshToken): Promise<SignedIn> {
    const account = await this.#store.accounts.byDid(did)
    if (!account) throw new Refused('InvalidRequest', `Could not find user info for account: ${did}`)
    if (statusOf(account) === 'takendown') {
      throw new Refused('AccountTakedown', 'Account has been taken down', 401)
    }
    const session = await this.#store.sessions.byId(id)
    const now = this.#now()
    if (!session || session.account !== account.id || session.expiresAt <= now) throw revoked()
    const next = this.#newSession(account, session.appPassword)
    const successor = await this.#store.sessions.rotate(id, next, now + REFRESH_GRACE_MS)
    if (successor === null) throw revoked()
    const scope = scopeOf(await this.#appPassword(account, session.appPassword))
    return { account, ...(await this.#tokensOf({ did, id: successor }, scope)) }
  }

  /** Ends a session; one that is over already is no error. */
  async close({ id }: RefreshToken): Promise<void> {
    await this.#store.sessions.remove(id)
  }

  async #tokensOf({ did, id }: RefreshToken, scope: AccessScope): Promise<SessionTokens> {
    const [accessJwt, refreshJwt] = await Promise.all([
      this.#tokens.access(did, scope),
      this.#tokens.refresh({ did, id }),
    ])
    return { accessJwt, refreshJwt }
  }

  #newSession(account: Account, appPassword: string | null): Session {
    const createdAt = this.#now()
    const id = randomBytes(32).toString('base64url')
    return { id, account: account.id, createdAt, expiresAt: createdAt + REFRESH_MS, next: null, appPassword }
  }

  async #verify(identifier: string, password: string) {
    assertPasswordLength(password)
    const found = await this.#find(identifier)
    const matched = await this.#match(found, password)
    if (!found || !matched) throw new Refused('AuthenticationRequired', 'Invalid identifier or password', 401)
    return { found, ...matched }
  }

  async #find(identifier: string): Promise<Account | null> {
    const name = identifier.trim().toLowerCase()
    const { accounts } = this.#store
    if (isDid(name)) return accounts.byDid(name)
    if (isHandle(name)) return accounts.byHandle(normalizeHandle(asHandle(name)))
    return name.includes('@') ? accounts.byEmail(name) : null
  }

  /** Null if the password opens nothing. */
  async #match(account: Account | null, password: string): Promise<{ appPassword: AppPassword | null } | null> {
    const kept = account && (await this.#store.accounts.password(account.id))
    const matches = await passwordMatches(password, kept ?? NO_PASSWORD)
    if (!account) return null
    if (kept && matches) {
      if (isOutdatedHash(kept)) {
        await this.#store.accounts.rehash(account.id, kept, await hashPassword(password, randomBytes(16)))
      }
      return { appPassword: null }
    }
    // App passwords open nothing of an account that is taken down.
    if (!APP_PASSWORD.test(password) || statusOf(account) === 'takendown') return null
    for (const appPassword of await this.#store.sessions.appPasswords(account.id)) {
      if (await passwordMatches(password, appPassword.password)) return { appPassword }
    }
    return null
  }

  async #appPassword(account: Account, name: string | null): Promise<AppPassword | null> {
    if (name === null) return null
    const found = (await this.#store.sessions.appPasswords(account.id)).find(password => password.name === name)
    // Its sessions go with an app password, so this is a race with its end.
    if (!found) throw revoked()
    return found
  }
}

function scopeOf(appPassword: AppPassword | null): AccessScope {
  if (!appPassword) return SCOPES.access
  return appPassword.privileged ? SCOPES.appPassPrivileged : SCOPES.appPass
}

function revoked(): Refused {
  return new Refused('ExpiredToken', 'Token has been revoked')
}
