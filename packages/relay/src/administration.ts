/**
 * What administrators change, whichever way they ask: the methods under net.millisky.relay.admin and the older routes
 * under /admin both end here. What siblings are to know as well is passed on to them.
 */
import { Refused } from '@millisky/core/errors'
import type { Did } from '@millisky/core/syntax'
import type { Subscription } from '@millisky/server/subscribe'
import type { Crawl } from './crawl.ts'
import { parseDomain, parseHostname } from './hostname.ts'
import type { Host, Hosts, SetLimits } from './hosts.ts'
import type { Moderation } from './moderation.ts'
import type { Siblings } from './siblings.ts'
import type { SettingStore } from './store/store.ts'
import type { Throttle } from './throttle.ts'
import type { Upstreams } from './upstreams.ts'

/** Setting in which limits of consumers are kept. */
const LIMITS = 'consumer-limits'

/** How somebody asks. */
export interface Asked {
  /** By a sibling, so that others are told by it and not by us. */
  bySibling: boolean
}

/** `null` gives a limit back to what the host comes to by itself. */
export interface HostChange {
  policy?: 'observe' | 'strict' | 'auto' | undefined
  accounts?: number | null | undefined
  perSecond?: number | null | undefined
  perHour?: number | null | undefined
  perDay?: number | null | undefined
}

export interface RuntimeSettings {
  requestCrawlEnabled: boolean
  newHostsPerDay: number
  consumersMax: number
  consumersPerAddressMax: number
}

export interface AdministrationParts {
  hosts: Hosts
  upstreams: Pick<Upstreams, 'isConnected'>
  crawl: Crawl
  moderation: Moderation
  subscription: Subscription
  siblings: Pick<Siblings, 'tell'>
  throttle: Pick<Throttle, 'reviewOne'>
  settings: SettingStore
  /** Development: loopback, ports, no TLS. */
  insecure: boolean
}

export class Administration {
  readonly #parts: AdministrationParts

  constructor(parts: AdministrationParts) {
    this.#parts = parts
  }

  /** Takes up the limits of consumers that administrators have set. */
  async load(): Promise<void> {
    const stored = await this.#parts.settings.get(LIMITS)
    if (stored !== null) this.#parts.subscription.limit(JSON.parse(stored))
  }

  // Hosts

  /** @throws {Refused} `InvalidRequest` */
  find(hostname: string): Host | null {
    const name = parseHostname(hostname, { insecure: this.#parts.insecure })
    return this.#parts.hosts.byName(name.hostname)
  }

  /** @throws {Refused} 404 `HostNotFound` */
  host(hostname: string): Host {
    const host = this.find(hostname)
    if (!host) throw new Refused('HostNotFound', 'host not found', 404)
    return host
  }

  /** See `Crawl.request`. */
  async addHost(hostname: string, asked: Asked, options: { check?: boolean } = {}): Promise<Host> {
    const host = await this.#parts.crawl.request(hostname, { byAdmin: true, ...options })
    await this.#tell(asked, '/admin/pds/requestCrawl', { hostname })
    return host
  }

  async updateHost(host: Host, change: HostChange, asked: Asked): Promise<void> {
    const { hosts, throttle } = this.#parts
    const { policy, accounts, perSecond, perHour, perDay } = change
    const limits: SetLimits = {
      ...(accounts === undefined ? {} : { accountLimit: accounts }),
      ...(perSecond === undefined ? {} : { perSecond }),
      ...(perHour === undefined ? {} : { perHour }),
      ...(perDay === undefined ? {} : { perDay }),
    }
    if (Object.keys(limits).length > 0) {
      await hosts.setLimits(host, limits)
      throttle.reviewOne(host)
    }
    if (policy !== undefined) {
      await hosts.setPolicy(host, policy === 'auto' ? host.record.policy : policy, policy !== 'auto')
    }
    // In the words of the older route, where 0 stands for a rate of its own.
    await this.#tell(asked, '/admin/pds/changeLimits', {
      host: host.hostname,
      ...(accounts === undefined ? {} : { repo_limit: accounts ?? 'auto' }),
      ...(perSecond === undefined ? {} : { per_second: perSecond ?? 0 }),
      ...(perHour === undefined ? {} : { per_hour: perHour ?? 0 }),
      ...(perDay === undefined ? {} : { per_day: perDay ?? 0 }),
      ...(policy === undefined ? {} : { policy }),
    })
  }

  async blockHost(host: Host, reason: string | undefined, asked: Asked): Promise<void> {
    await this.#parts.moderation.block(host, reason || 'blocked by an administrator')
    const why = reason ? `&reason=${encodeURIComponent(reason)}` : ''
    await this.#tell(asked, `/admin/pds/block?host=${encodeURIComponent(host.hostname)}${why}`)
  }

  /** A host that may never have been heard of; it is not followed before it is unblocked. @throws {Refused} */
  async hostToBlock(hostname: string): Promise<Host> {
    const { hosts, insecure } = this.#parts
    const name = parseHostname(hostname, { insecure })
    return hosts.byName(name.hostname) ?? (await hosts.create(name, { byAdmin: true }))
  }

  async unblockHost(host: Host, asked: Asked): Promise<void> {
    await this.#parts.moderation.unblock(host)
    await this.#tell(asked, `/admin/pds/unblock?host=${encodeURIComponent(host.hostname)}`)
  }

  /** @throws {Refused} `NotConnected` */
  async disconnectHost(host: Host, asked: Asked): Promise<void> {
    if (!this.#parts.upstreams.isConnected(host)) {
      throw new Refused('NotConnected', 'no active connection to given host')
    }
    await this.#parts.moderation.disconnect(host)
    await this.#tell(asked, `/admin/subs/killUpstream?host=${encodeURIComponent(host.hostname)}`)
  }

  // Domains

  /** @throws {Refused} `AlreadyBanned` */
  async banDomain(text: string, asked: Asked): Promise<void> {
    const domain = parseDomain(text)
    await this.#parts.moderation.banDomain(domain)
    await this.#tell(asked, '/admin/subs/banDomain', { Domain: domain })
  }

  /** @throws {Refused} `NotBanned` */
  async unbanDomain(text: string, asked: Asked): Promise<void> {
    const domain = parseDomain(text)
    await this.#parts.moderation.unbanDomain(domain)
    await this.#tell(asked, '/admin/subs/unbanDomain', { Domain: domain })
  }

  /** `example.com` for the host itself, `*.example.com` for those below it. @throws {Refused} `AlreadyTrusted` */
  async trustDomain(text: string): Promise<void> {
    await this.#parts.hosts.addTrustedDomain(trustedDomainOf(text))
  }

  /** @throws {Refused} `NotTrusted` */
  async untrustDomain(text: string): Promise<void> {
    await this.#parts.hosts.removeTrustedDomain(trustedDomainOf(text))
  }

  // Accounts

  /**
   * @returns whether it was not taken down before
   * @throws {Refused} 404 `RepoNotFound`
   */
  async takeDown(did: Did, asked: Asked, options: { unknown?: boolean } = {}): Promise<boolean> {
    const changed = await this.#parts.moderation.takeDown(did, options)
    await this.#tell(asked, '/admin/repo/takeDown', { did })
    return changed
  }

  /**
   * @returns whether it was taken down
   * @throws {Refused} 404 `RepoNotFound`
   */
  async restore(did: Did, asked: Asked): Promise<boolean> {
    const changed = await this.#parts.moderation.reverseTakedown(did)
    // Some siblings read it here, some there.
    await this.#tell(asked, `/admin/repo/reverseTakedown?did=${encodeURIComponent(did)}`, { did })
    return changed
  }

  // Consumers and settings

  /** @throws {Refused} 404 `ConsumerNotFound` */
  kick(id: number): void {
    if (!this.#parts.subscription.kick(id)) throw new Refused('ConsumerNotFound', 'no such consumer', 404)
  }

  get settings(): RuntimeSettings {
    const { crawl, subscription } = this.#parts
    return { requestCrawlEnabled: crawl.isEnabled, newHostsPerDay: crawl.perDay, ...subscription.limits }
  }

  /** Changes them for good. What is undefined stays. */
  async updateSettings(change: { [K in keyof RuntimeSettings]?: RuntimeSettings[K] | undefined }): Promise<void> {
    const { crawl, subscription, settings } = this.#parts
    const { requestCrawlEnabled, newHostsPerDay, consumersMax, consumersPerAddressMax } = change
    if (requestCrawlEnabled !== undefined) await crawl.setEnabled(requestCrawlEnabled)
    if (newHostsPerDay !== undefined) await crawl.setPerDay(newHostsPerDay)
    if (consumersMax === undefined && consumersPerAddressMax === undefined) return
    subscription.limit({
      ...(consumersMax === undefined ? {} : { consumersMax }),
      ...(consumersPerAddressMax === undefined ? {} : { consumersPerAddressMax }),
    })
    await settings.set(LIMITS, JSON.stringify(subscription.limits))
  }

  async #tell({ bySibling }: Asked, path: string, body?: object): Promise<void> {
    if (!bySibling) await this.#parts.siblings.tell(path, body)
  }
}

function trustedDomainOf(text: string): string {
  const domain = parseDomain(text)
  return text.trim().startsWith('*.') ? `*.${domain}` : domain
}
