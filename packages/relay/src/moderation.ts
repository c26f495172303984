/** What an operator does about accounts and hosts. */
import { Refused } from '@millisky/core/errors'
import type { Did } from '@millisky/core/syntax'
import type { Accounts } from './accounts.ts'
import type { Host, Hosts } from './hosts.ts'
import type { Incoming, Ingest } from './ingest.ts'
import { TAKENDOWN } from './status.ts'
import type { RelayStore } from './store/store.ts'
import type { Upstreams } from './upstreams.ts'

/** The side of the event log that hides accounts from readers. */
export interface MaskedLog {
  /** Hides the events of an account, see `accountNumber`. */
  mask(account: number): void
  unmask(account: number): void
}

export interface ModerationParts {
  hosts: Hosts
  upstreams: Upstreams
  accounts: Accounts<Incoming>
  ingest: Ingest
  store: RelayStore
  log: MaskedLog
}

export class Moderation {
  readonly #parts: ModerationParts

  constructor(parts: ModerationParts) {
    this.#parts = parts
  }

  /**
   * Takes an account down here: consumers are told, its events stop and are no longer replayed.
   *
   * @param options - `unknown` takes it down also if it was never heard of; nobody is told then.
   * @returns false when it was taken down already
   * @throws {Refused} 404 when it is not known
   */
  async takeDown(did: Did, options: { unknown?: boolean } = {}): Promise<boolean> {
    const account = options.unknown ? await this.#parts.accounts.find(did) : await this.#known(did)
    if (account.state.local === TAKENDOWN) return false
    await this.#parts.store.accounts.setLocal(did, TAKENDOWN)
    this.#parts.log.mask(account.number)
    if (account.isKnown) await this.#parts.ingest.announce(account, TAKENDOWN)
    else {
      account.state = { ...account.state, local: TAKENDOWN }
      const nothing = { host: null, rev: null, data: null, commit: null, active: true, status: null }
      account.durable = { did, ...nothing, local: TAKENDOWN }
    }
    return true
  }

  /**
   * Takes a takedown back; consumers are told what the account's host says of it.
   *
   * @returns false when it was not taken down
   * @throws {Refused} 404
   */
  async reverseTakedown(did: Did): Promise<boolean> {
    const account = await this.#known(did)
    if (account.state.local !== TAKENDOWN) return false
    await this.#parts.store.accounts.setLocal(did, null)
    this.#parts.log.unmask(account.number)
    await this.#parts.ingest.announce(account, null)
    return true
  }

  /** DIDs that are taken down, in order, and where to go on. */
  async takedowns(after: string, limit: number): Promise<Did[]> {
    return (await this.#parts.store.accounts.listLocal(TAKENDOWN, after, limit)).map(({ did }) => did)
  }

  /** Ends the connection to a host; it stays as it is, and is dialled again at the next start or request. */
  async disconnect(host: Host): Promise<void> {
    await this.#parts.upstreams.disconnect(host)
  }

  /** Bans a host for a reason of its own, also where its domain is banned. */
  async block(host: Host, reason: string): Promise<void> {
    const { hosts, upstreams } = this.#parts
    if (host.record.status !== 'banned') await hosts.setStatus(host, 'banned', reason)
    else if (host.record.reason !== reason) await hosts.setReason(host, reason)
    await upstreams.disconnect(host)
  }

  /** @throws {Refused} `HostBanned` while its domain is banned */
  async unblock(host: Host): Promise<void> {
    const { hosts, upstreams } = this.#parts
    if (host.record.status !== 'banned') return
    const domain = hosts.bannedDomain(host.hostname)
    if (domain !== null) throw new Refused('HostBanned', `The domain ${domain} is banned`)
    await hosts.setStatus(host, 'active', null)
    upstreams.connect(host)
  }

  /** Bans a domain and all below it; their hosts are disconnected at once. @throws {Refused} when it is banned already */
  async banDomain(domain: string): Promise<void> {
    for (const host of await this.#parts.hosts.banDomain(domain)) {
      // Those that are banned for themselves stay so when the domain is let in again.
      if (host.record.status !== 'banned') await this.block(host, reasonOf(domain))
    }
  }

  /** Hosts that were banned by it are dialled, unless another domain bans them. @throws {Refused} when it is not banned */
  async unbanDomain(domain: string): Promise<void> {
    const { hosts } = this.#parts
    await hosts.unbanDomain(domain)
    for (const host of hosts.list()) {
      if (host.record.status !== 'banned' || host.record.reason !== reasonOf(domain)) continue
      const other = hosts.bannedDomain(host.hostname)
      if (other === null) await this.unblock(host)
      else await hosts.setReason(host, reasonOf(other))
    }
  }

  async #known(did: Did) {
    const account = await this.#parts.accounts.find(did)
    if (!account.isKnown) throw new Refused('RepoNotFound', 'account not found', 404)
    return account
  }
}

const reasonOf = (domain: string) => `the domain ${domain} is banned`
