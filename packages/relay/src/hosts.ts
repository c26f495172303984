/**
 * The hosts this relay knows, and the state each is in:
 * - `active` connected, or about to be again; `idle` connected, but nothing came for a day
 * - `offline` not reached for a while, with the reason; tried again for ever, ever more slowly
 * - `throttled` connected, but held back
 * - `banned` by an administrator, by its domain, or for being another relay; not connected
 */
import { Refused } from '@millisky/core/errors'
import type { Policy } from '@millisky/core/verify'
import { domainsOf, type HostName } from './hostname.ts'
import {
  type Bucket,
  type Conduct,
  type Delay,
  EventQuota,
  foreignBucket,
  type HostLimits,
  limitsOf,
} from './quotas.ts'
import { isWrong, type Reject, Rejects } from './rejects.ts'
import {
  type DomainBanStore,
  HOST_HISTORY_MAX,
  type HostId,
  type HostNote,
  type HostRecord,
  type HostStatus,
  type HostStore,
  type SettingStore,
} from './store/store.ts'
import { Window } from './window.ts'

/** Right commits in a row after which a host that is only observed is held to the strict rules. */
export const STREAK_FOR_STRICT = 1_000
/** Setting of trusted domains that administrators have added. */
const TRUSTED = 'trusted-domains'

/** What of a host's limits is set, see {@link HostRecord}. */
export type SetLimits = Partial<Pick<HostRecord, 'accountLimit' | 'perSecond' | 'perHour' | 'perDay'>>

/** One host while the process runs. */
export class Host {
  record: HostRecord
  readonly window: Window
  readonly rejects = new Rejects()
  /** From where to go on after a reconnection; null is the live tail. */
  resumeAt: number | null
  /** Seq of the last event of this connection; -1 before the first. */
  socketSeq = -1
  /** Events and bytes under way. */
  events = 0
  bytes = 0
  /** Events under way that wait for an identity. */
  lookups = 0
  /** Since the start of the process. */
  eventsSeen = 0
  eventsAdmitted = 0
  /** How old the last commit was, by its rev, when it passed. */
  lagMs: number | null = null
  lastEventAt = 0
  connectedAt: number | null = null
  /** When somebody last asked for it to be dialled. */
  askedForAt = 0
  /** A gap of which it is not known yet with which seq events go on behind it. */
  openGap: HostNote | null = null
  /** How the last connection ended. */
  lastEnd: string | null = null
  /** `cursor`, `streak` or `accounts` are not saved yet. */
  isUnsaved = false
  /** Wakes the socket when there is room again. */
  readonly waiters: (() => void)[] = []
  /** In a trusted domain. */
  isTrusted = false
  /** What is left of its limits. */
  readonly quota: EventQuota
  /** Left for `#identity` events about accounts that are not known to be here. */
  readonly strangers: Bucket
  conduct: Conduct = { admitted: 0, wrong: 0 }
  /** Accounts that are about to be counted in `record.accounts`. */
  newcomers = 0
  /** Accounts beyond its number, as far as they are remembered. */
  readonly refused = new Set<string>()
  /** The last long wait for a limit, while that is not long ago. */
  slow: { delay: Delay; at: number } | null = null
  /** How often it was read later than it could have been, by why. */
  readonly delays: Record<Delay, number> = {
    'per-second': 0,
    'per-hour': 0,
    'per-day': 0,
    identities: 0,
    intake: 0,
  }

  constructor(record: HostRecord, limits: HostLimits, now: number) {
    this.record = record
    this.quota = new EventQuota(limits, now)
    this.strangers = foreignBucket(now)
    this.window = new Window(record.cursor)
    this.resumeAt = record.cursor
  }

  get id(): HostId {
    return this.record.id
  }

  get hostname(): string {
    return this.record.hostname
  }

  get origin(): string {
    return `${this.record.noTls ? 'http' : 'https'}://${this.record.hostname}`
  }
}

export interface HostsParts {
  store: HostStore
  bans: DomainBanStore
  settings: SettingStore
  /** Of hosts that are new. */
  policy: Policy
  /** Accounts that a new host may have. */
  accountLimit: number
  /** Names of hosts, or `*.domain` for all in a domain, with higher limits. */
  trustedDomains: readonly string[]
  now: () => number
  /** Told after a host's status changed. */
  onStatus?: (host: Host, before: HostStatus) => void
  /** A change could not be saved. */
  onError: (error: unknown) => void
}

export class Hosts {
  readonly #parts: HostsParts
  readonly #byId = new Map<HostId, Host>()
  readonly #byName = new Map<string, Host>()
  readonly #bannedDomains = new Set<string>()
  readonly #trusted: Set<string>

  constructor(parts: HostsParts) {
    this.#parts = parts
    this.#trusted = new Set(parts.trustedDomains)
  }

  async load(): Promise<void> {
    const added = await this.#parts.settings.get(TRUSTED)
    for (const domain of added === null ? [] : (JSON.parse(added) as string[])) this.#trusted.add(domain)
    for (const record of await this.#parts.store.all()) this.#add(record)
    for (const domain of await this.#parts.bans.all()) this.#bannedDomains.add(domain)
  }

  byId(id: HostId): Host | null {
    return this.#byId.get(id) ?? null
  }

  byName(hostname: string): Host | null {
    return this.#byName.get(hostname) ?? null
  }

  /** In order of id. */
  list(): Host[] {
    return [...this.#byId.values()]
  }

  get size(): number {
    return this.#byId.size
  }

  countSince(time: number): Promise<number> {
    return this.#parts.store.countSince(time)
  }

  /** Adds a host that is not there. It begins with the oldest event that the host still has. */
  async create({ hostname, noTls }: HostName, options: { byAdmin: boolean }): Promise<Host> {
    const now = this.#parts.now()
    const record = await this.#parts.store.create({
      hostname,
      noTls,
      status: 'active',
      reason: null,
      statusAt: now,
      createdAt: now,
      byAdmin: options.byAdmin,
      cursor: 0,
      policy: this.#parts.policy,
      pinned: false,
      streak: 0,
      accounts: 0,
      accountLimit: null,
      perSecond: null,
      perHour: null,
      perDay: null,
      growth: 0,
      growthAt: now,
      history: [],
    })
    return this.#add(record)
  }

  /** Brings a host to a status, unless it is there. Resolves when that is saved. */
  async setStatus(host: Host, status: HostStatus, reason: string | null): Promise<void> {
    const { record } = host
    if (record.status === status) return
    const before = record.status
    const statusAt = this.#parts.now()
    const history = noted(record.history, { at: statusAt, what: status, detail: reason ?? '' })
    host.record = { ...record, status, reason, statusAt, history }
    this.#parts.onStatus?.(host, before)
    await this.#parts.store.update(host.id, { status, reason, statusAt, history })
  }

  /** Says anew why a host has the status that it has. */
  async setReason(host: Host, reason: string): Promise<void> {
    const { status } = host.record
    const history = noted(host.record.history, { at: this.#parts.now(), what: status, detail: reason })
    host.record = { ...host.record, reason, history }
    await this.#parts.store.update(host.id, { reason, history })
  }

  /** As {@link setStatus}, for the state machine, which waits for nothing. */
  noteStatus(host: Host, status: HostStatus, reason: string | null): void {
    this.setStatus(host, status, reason).catch(this.#parts.onError)
  }

  /** Remembers that events of a host were missed. One that `goesOn` gets the seq behind it with {@link closeGap}. */
  noteGap(host: Host, detail: string, { goesOn = false } = {}): void {
    const note: HostNote = { at: this.#parts.now(), what: 'gap', detail }
    this.#saveHistory(host, noted(host.record.history, note))
    if (goesOn) host.openGap = note
  }

  /** The first event behind a gap has come. */
  closeGap(host: Host, seq: number): void {
    const open = host.openGap
    host.openGap = null
    const closed = (note: HostNote) => ({ ...note, detail: `${note.detail}; they go on with seq ${seq}` })
    this.#saveHistory(
      host,
      host.record.history.map(note => (note === open ? closed(note) : note)),
    )
  }

  #saveHistory(host: Host, history: HostNote[]): void {
    host.record = { ...host.record, history }
    this.#parts.store.update(host.id, { history }).catch(this.#parts.onError)
  }

  noteReject(host: Host, reject: Omit<Reject, 'at'>): void {
    host.rejects.add({ at: this.#parts.now(), ...reject })
    if (isWrong(reject.reason)) host.conduct.wrong++
  }

  async setPolicy(host: Host, policy: Policy, pinned: boolean): Promise<void> {
    host.record = { ...host.record, policy, pinned }
    await this.#parts.store.update(host.id, { policy, pinned })
  }

  /** What a host may do now. */
  limits(host: Host): HostLimits {
    return limitsOf(host.record, this.#parts.accountLimit, host.isTrusted)
  }

  /** Sets limits of a host for good; null gives one back to what it comes to by itself. */
  async setLimits(host: Host, limits: SetLimits): Promise<void> {
    host.record = { ...host.record, ...limits }
    await this.#parts.store.update(host.id, limits)
  }

  /** The limits of a host have doubled so often. */
  noteGrowth(host: Host, growth: number): void {
    const growthAt = this.#parts.now()
    host.record = { ...host.record, growth, growthAt }
    this.#parts.store.update(host.id, { growth, growthAt }).catch(this.#parts.onError)
  }

  isTrusted(hostname: string): boolean {
    const [name = '', ...above] = domainsOf(hostname)
    return this.#trusted.has(name) || above.some(domain => this.#trusted.has(`*.${domain}`))
  }

  trustedDomains(): string[] {
    return [...this.#trusted].sort()
  }

  /** @throws {Refused} when it is trusted already */
  async addTrustedDomain(domain: string): Promise<void> {
    if (this.#trusted.has(domain)) throw new Refused('AlreadyTrusted', 'domain is already trusted')
    this.#trusted.add(domain)
    await this.#saveTrusted()
  }

  /** @throws {Refused} when it is not trusted, or so by the settings */
  async removeTrustedDomain(domain: string): Promise<void> {
    if (!this.#trusted.has(domain)) throw new Refused('NotTrusted', 'domain is not trusted')
    if (this.#parts.trustedDomains.includes(domain)) {
      throw new Refused('InvalidRequest', 'domain is trusted by the settings that the relay was started with')
    }
    this.#trusted.delete(domain)
    await this.#saveTrusted()
  }

  async #saveTrusted(): Promise<void> {
    for (const host of this.#byId.values()) host.isTrusted = this.isTrusted(host.hostname)
    const added = [...this.#trusted].filter(known => !this.#parts.trustedDomains.includes(known))
    await this.#parts.settings.set(TRUSTED, JSON.stringify(added))
  }

  /** A commit of the host was right by the strict rules, or it was not: enough in a row, and they are enforced. */
  noteCommit(host: Host, isClean: boolean): void {
    const streak = isClean ? Math.min(host.record.streak + 1, STREAK_FOR_STRICT) : 0
    const { policy, pinned } = host.record
    if (streak === host.record.streak) return
    host.record = { ...host.record, streak }
    host.isUnsaved = true
    if (policy === 'observe' && !pinned && streak >= STREAK_FOR_STRICT) {
      this.setPolicy(host, 'strict', false).catch(this.#parts.onError)
    }
  }

  countAccounts(id: HostId, by: 1 | -1): void {
    const host = this.#byId.get(id)
    if (!host) return
    host.record = { ...host.record, accounts: Math.max(0, host.record.accounts + by) }
    host.isUnsaved = true
  }

  // Domains

  /** The banned domain that the host is in. */
  bannedDomain(hostname: string): string | null {
    for (const domain of domainsOf(hostname)) if (this.#bannedDomains.has(domain)) return domain
    return null
  }

  /** @throws {Refused} `HostBanned` */
  assertNotBanned(hostname: string): void {
    const domain = this.bannedDomain(hostname)
    if (domain !== null) throw new Refused('HostBanned', `The domain ${domain} is banned`)
    if (this.byName(hostname)?.record.status === 'banned') throw new Refused('HostBanned', `${hostname} is banned`)
  }

  bannedDomains(): string[] {
    return [...this.#bannedDomains].sort()
  }

  /** Bans a domain and what is below it; gives the hosts that this concerns. @throws {Refused} when it is banned already */
  async banDomain(domain: string): Promise<Host[]> {
    if (!(await this.#parts.bans.add(domain, this.#parts.now()))) {
      throw new Refused('AlreadyBanned', 'domain is already banned')
    }
    this.#bannedDomains.add(domain)
    return this.list().filter(host => [...domainsOf(host.hostname)].includes(domain))
  }

  /** @throws {Refused} when it is not banned */
  async unbanDomain(domain: string): Promise<void> {
    if (!(await this.#parts.bans.remove(domain))) throw new Refused('NotBanned', 'domain is not banned')
    this.#bannedDomains.delete(domain)
  }

  #add(record: HostRecord): Host {
    const isTrusted = this.isTrusted(record.hostname)
    const host = new Host(record, limitsOf(record, this.#parts.accountLimit, isTrusted), this.#parts.now())
    host.isTrusted = isTrusted
    this.#byId.set(host.id, host)
    this.#byName.set(host.hostname, host)
    return host
  }
}

function noted(history: HostNote[], note: HostNote): HostNote[] {
  return [...history, note].slice(-HOST_HISTORY_MAX)
}
