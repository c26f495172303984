/** requestCrawl: who may become a host of this relay. */
import { Refused, Unavailable } from '@millisky/core/errors'
import type { FetchBytes } from '@millisky/server/fetch'
import { RateLimit } from '@millisky/server/rate'
import { type HostName, parseHostname } from './hostname.ts'
import type { Host, Hosts } from './hosts.ts'
import type { SettingStore } from './store/store.ts'
import { RELAY_MARKER, type Upstreams } from './upstreams.ts'

const DAY_MS = 86_400_000
const DESCRIBE_TIMEOUT_MS = 5_000
/** A host that is known and not connected is dialled at most this often because somebody asks for it. */
const DIAL_AGAIN_MS = 5_000
/** Checks of unknown hosts under way. */
const CHECKS_MAX = 50
/** Unknown hosts that one address may name in five minutes: each costs a request to it, and a place among those checked. */
const UNKNOWN_MAX = 60
const UNKNOWN_WINDOW_MS = 300_000

/** Somebody who asks. */
export interface Asking {
  byAdmin: boolean
  /** For administrators: without it, a new host is not asked to describe itself. */
  check?: boolean
  /** Who it is, for a limit of its own; see `callerKey`. */
  from?: string
}

export interface CrawlParts {
  hosts: Hosts
  upstreams: Pick<Upstreams, 'connect' | 'isConnected'>
  settings: SettingStore
  fetch: FetchBytes
  now: () => number
  /** Development: loopback, ports, no TLS. */
  insecure: boolean
  /** Only administrators may add hosts. */
  isClosed: boolean
  /** New hosts in a day, until an administrator sets another number. */
  newHostsPerDay: number
}

export class Crawl {
  readonly #parts: CrawlParts
  /** Unknown hosts being checked, so that many requests for one are one. */
  readonly #checking = new Map<string, Promise<Host>>()
  readonly #unknown = new RateLimit('request-crawl', { points: UNKNOWN_MAX, windowMs: UNKNOWN_WINDOW_MS })
  #perDay: number
  #isEnabled: boolean

  constructor(parts: CrawlParts) {
    this.#parts = parts
    this.#perDay = parts.newHostsPerDay
    this.#isEnabled = !parts.isClosed
  }

  /** Reads what administrators have set. */
  async load(): Promise<void> {
    const perDay = await this.#parts.settings.get('new-hosts-per-day')
    if (perDay !== null) this.#perDay = Number(perDay)
    const enabled = await this.#parts.settings.get('request-crawl-enabled')
    if (enabled !== null) this.#isEnabled = enabled === 'true' && !this.#parts.isClosed
  }

  get perDay(): number {
    return this.#perDay
  }

  get isEnabled(): boolean {
    return this.#isEnabled
  }

  async setPerDay(limit: number): Promise<void> {
    this.#perDay = limit
    await this.#parts.settings.set('new-hosts-per-day', String(limit))
  }

  async setEnabled(isEnabled: boolean): Promise<void> {
    this.#isEnabled = isEnabled
    await this.#parts.settings.set('request-crawl-enabled', String(isEnabled))
  }

  /**
   * Takes up a host, or dials a known one again if it is not connected.
   *
   * @throws {Refused} `InvalidRequest`, `HostBanned`, `HostNotFound` (it does not answer as a PDS does), 403 `Forbidden`,
   *   429 `RateLimitExceeded`
   */
  async request(text: string, asking: Asking): Promise<Host> {
    const { byAdmin } = asking
    const { hosts, upstreams, insecure } = this.#parts
    const name = parseHostname(text, { insecure })
    if (!byAdmin && !this.#isEnabled) throw new Refused('Forbidden', 'This relay takes no new hosts by request', 403)
    hosts.assertNotBanned(name.hostname)
    const known = hosts.byName(name.hostname)
    if (known) {
      if (byAdmin || this.#mayDial(known)) upstreams.connect(known)
      return known
    }
    const running = this.#checking.get(name.hostname)
    if (running) return running
    if (this.#checking.size >= CHECKS_MAX)
      throw new Unavailable('NotEnoughResources', 'Too many hosts are being checked')
    const checking = this.#admit(name, asking).finally(() => this.#checking.delete(name.hostname))
    this.#checking.set(name.hostname, checking)
    return checking
  }

  /** Takes up the hosts that the operator begins with. Resolves when all were tried. */
  async seed(names: readonly string[], failed: (hostname: string, problem: string) => void): Promise<void> {
    const isKnown = (hostname: string) => {
      try {
        return this.#parts.hosts.byName(parseHostname(hostname, this.#parts).hostname) !== null
      } catch {
        // It fails again below, and is told.
        return false
      }
    }
    for (const hostname of names) {
      if (isKnown(hostname)) continue
      await this.request(hostname, { byAdmin: true }).catch(error => failed(hostname, (error as Error).message))
    }
  }

  /** Anybody may ask, so a host that waits to be tried again is not dialled at every request. */
  #mayDial(host: Host): boolean {
    const now = this.#parts.now()
    if (this.#parts.upstreams.isConnected(host) || now - host.askedForAt < DIAL_AGAIN_MS) return false
    host.askedForAt = now
    return true
  }

  async #admit(name: HostName, { byAdmin, check = true, from }: Asking): Promise<Host> {
    const { hosts, upstreams } = this.#parts
    if (from !== undefined) await this.#assertModest(from)
    if (!byAdmin) await this.#assertRoomToday()
    if (check) await assertPds(this.#parts.fetch, name)
    // It may have been banned in the meantime.
    hosts.assertNotBanned(name.hostname)
    const host = await hosts.create(name, { byAdmin })
    upstreams.connect(host)
    return host
  }

  async #assertModest(caller: string): Promise<void> {
    const { isExceeded, resetMs } = await this.#unknown.take(caller)
    if (!isExceeded) return
    const headers = { 'retry-after': String(Math.ceil(resetMs / 1_000)) }
    throw new Refused('RateLimitExceeded', 'This address asks for too many hosts that are not known', 429, headers)
  }

  async #assertRoomToday(): Promise<void> {
    const count = await this.#parts.hosts.countSince(this.#parts.now() - DAY_MS)
    // Those being checked may all turn out to be hosts.
    if (count + this.#checking.size <= this.#perDay && this.#perDay > 0 && count < this.#perDay) return
    const message = `This relay takes ${this.#perDay} new hosts a day; ask again tomorrow, or ask its operator`
    throw new Refused('RateLimitExceeded', message, 429, { 'retry-after': '3600' })
  }
}

/** Asks a host to describe itself. @throws {Refused} `HostNotFound` unless it answers as a PDS does, `HostBanned` for a relay */
export async function assertPds(fetch: FetchBytes, { hostname, noTls }: HostName): Promise<void> {
  const url = `${noTls ? 'http' : 'https'}://${hostname}/xrpc/com.atproto.server.describeServer`
  const refuse = (why: string) => new Refused('HostNotFound', `${hostname} does not answer as a PDS does: ${why}`)
  let answer: Awaited<ReturnType<FetchBytes>>
  try {
    answer = await fetch(url, { timeoutMs: DESCRIBE_TIMEOUT_MS, bytesMax: 65_536 })
  } catch (error) {
    if (error instanceof Refused || error instanceof Unavailable) throw refuse(error.message)
    throw error
  }
  if (answer.headers.get('server')?.includes(RELAY_MARKER)) {
    throw new Refused('HostBanned', `${hostname} is a relay, not a PDS`)
  }
  if (answer.status !== 200) throw refuse(`describeServer is answered with HTTP ${answer.status}`)
  try {
    const description: unknown = JSON.parse(Buffer.from(answer.bytes).toString())
    if (typeof description === 'object' && description !== null && 'did' in description) return
  } catch {
    // Not JSON, so not what a PDS says.
  }
  throw refuse('describeServer is not answered with the description of a server')
}
