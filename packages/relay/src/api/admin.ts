/**
 * The admin routes that scripts for bigsky and indigo's relay call, with both shapes of their parameters.
 *
 * Source: relay.md, "Admin HTTP API".
 */
import { timingSafeEqual } from 'node:crypto'
import { utf8 } from '@millisky/core/bytes'
import { Refused } from '@millisky/core/errors'
import { sha256 } from '@millisky/core/hash'
import { asDid, isDid } from '@millisky/core/syntax'
import type { Subscription } from '@millisky/server/subscribe'
import type { Metrics } from '@millisky/server/trace'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import type { Crawl } from '../crawl.ts'
import { parseDomain, parseHostname } from '../hostname.ts'
import type { Host, Hosts, SetLimits } from '../hosts.ts'
import type { Moderation } from '../moderation.ts'
import type { HostLimits } from '../quotas.ts'
import { textOf } from '../rejects.ts'
import type { Upstreams } from '../upstreams.ts'

const SUCCESS = { success: 'true' }
const TAKEDOWNS_PAGE = 500

export interface AdminApiParts {
  hosts: Hosts
  upstreams: Upstreams
  crawl: Crawl
  moderation: Moderation
  subscription: Subscription
  metrics: Metrics
  /** Any of these opens it; without one it stays shut. */
  passwords: readonly string[]
  insecure: boolean
}

/** Tells whether a request carries one of the passwords, as Bearer or as Basic of the user `admin`. */
export function adminCheck(passwords: readonly string[]): (request: FastifyRequest) => boolean {
  // Hashes are of equal length, and comparing all of them takes as long whichever fits.
  const digests = passwords.map(password => sha256(utf8(password)))
  return request => {
    const [scheme = '', value = ''] = (request.headers.authorization ?? '').split(' ', 2)
    let given = ''
    if (/^bearer$/i.test(scheme)) given = value
    else if (/^basic$/i.test(scheme)) {
      const [, user, password] = /^([^:]*):([\s\S]*)$/.exec(Buffer.from(value, 'base64').toString()) ?? []
      if (user !== 'admin' || password === undefined) return false
      given = password
    } else return false
    const digest = sha256(Buffer.from(given))
    return digests.filter(known => timingSafeEqual(known, digest)).length > 0
  }
}

export function addAdminApi(http: FastifyInstance, parts: AdminApiParts): void {
  const isAdmin = adminCheck(parts.passwords)
  const guard = async (request: FastifyRequest) => {
    if (parts.passwords.length === 0) throw new Refused('Forbidden', 'No admin password is set', 403)
    if (isAdmin(request)) return
    const headers = { 'www-authenticate': 'Basic realm="admin", charset="UTF-8"' }
    throw new Refused('AuthenticationRequired', 'Invalid admin credentials', 401, headers)
  }
  http.register(async admin => {
    admin.addHook('onRequest', guard)
    addSubscriptionRoutes(admin, parts)
    addDomainRoutes(admin, parts)
    addHostRoutes(admin, parts)
    addRepoRoutes(admin, parts)
    admin.get('/admin/consumers/list', () =>
      parts.subscription.list().map(consumer => ({
        id: consumer.id,
        remote_addr: consumer.address,
        user_agent: consumer.userAgent,
        events_consumed: consumer.events,
        connected_at: new Date(consumer.connectedAt).toISOString(),
        cursor: consumer.cursor,
        lag: consumer.lag,
      })),
    )
    admin.get('/metrics', async (_request, reply) =>
      reply.type(parts.metrics.contentType).send(await parts.metrics.text()),
    )
  })
}

// Parameters: of the query or of a JSON body, whichever has it.

function given(request: FastifyRequest, ...names: string[]): string {
  const query = request.query as Record<string, unknown>
  const body = (typeof request.body === 'object' && request.body !== null ? request.body : {}) as Record<
    string,
    unknown
  >
  for (const name of names) {
    const value = body[name] ?? query[name]
    if (typeof value === 'string' && value !== '') return value
    if (typeof value === 'number' || typeof value === 'boolean') return String(value)
  }
  throw new Refused('InvalidRequest', `must pass ${names[0]}`)
}

function has(request: FastifyRequest, name: string): boolean {
  try {
    given(request, name)
    return true
  } catch {
    return false
  }
}

function integer(text: string): number {
  const value = Number(text)
  if (!/^\d+$/.test(text) || !Number.isSafeInteger(value)) throw new Refused('InvalidRequest', `not a number: ${text}`)
  return value
}

/** Fields of changeLimits as bigsky named them. 0 gives a rate back to what the host has come to. */
function limitsGiven(request: FastifyRequest): SetLimits {
  const limits: SetLimits = {}
  if (has(request, 'repo_limit')) limits.accountLimit = integer(given(request, 'repo_limit'))
  for (const [field, name] of [
    ['per_second', 'perSecond'],
    ['per_hour', 'perHour'],
    ['per_day', 'perDay'],
  ] as const) {
    if (has(request, field)) limits[name] = integer(given(request, field)) || null
  }
  return limits
}

function didOf(request: FastifyRequest) {
  const did = given(request, 'did')
  if (!isDid(did)) throw new Refused('InvalidRequest', 'did is not a DID')
  return asDid(did)
}

function hostOf(request: FastifyRequest, { hosts, insecure }: AdminApiParts): Host {
  const { hostname } = parseHostname(given(request, 'host', 'hostname'), { insecure })
  const host = hosts.byName(hostname)
  if (!host) throw new Refused('HostNotFound', 'host not found', 404)
  return host
}

// Routes

function addSubscriptionRoutes(admin: FastifyInstance, parts: AdminApiParts): void {
  const { hosts, upstreams, crawl, moderation } = parts
  admin.get('/admin/subs/getUpstreamConns', () =>
    hosts.list().flatMap(host => (upstreams.isConnected(host) ? [host.hostname] : [])),
  )
  admin.get('/admin/subs/perDayLimit', () => ({ limit: crawl.perDay }))
  admin.post('/admin/subs/setPerDayLimit', async request => {
    await crawl.setPerDay(integer(given(request, 'limit')))
    return SUCCESS
  })
  admin.get('/admin/subs/getEnabled', () => ({ enabled: crawl.isEnabled }))
  admin.post('/admin/subs/setEnabled', async request => {
    await crawl.setEnabled(given(request, 'enabled') === 'true')
    return SUCCESS
  })
  admin.post('/admin/subs/killUpstream', async request => {
    const host = hostOf(request, parts)
    const isConnected = upstreams.isConnected(host)
    if (has(request, 'block') && given(request, 'block') === 'true') {
      await moderation.block(host, 'blocked by an administrator')
      return SUCCESS
    }
    if (!isConnected) throw new Refused('InvalidRequest', 'no active connection to given host')
    await moderation.disconnect(host)
    return SUCCESS
  })
}

function addDomainRoutes(admin: FastifyInstance, { hosts, moderation }: AdminApiParts): void {
  const domainOf = (request: FastifyRequest) => parseDomain(given(request, 'Domain', 'domain'))
  admin.get('/admin/subs/listDomainBans', () => ({ banned_domains: hosts.bannedDomains() }))
  admin.post('/admin/subs/banDomain', async request => {
    await moderation.banDomain(domainOf(request))
    return SUCCESS
  })
  admin.post('/admin/subs/unbanDomain', async request => {
    await moderation.unbanDomain(domainOf(request))
    return SUCCESS
  })
}

function addHostRoutes(admin: FastifyInstance, parts: AdminApiParts): void {
  const { hosts, upstreams, crawl, moderation } = parts
  admin.post('/admin/pds/requestCrawl', async request => {
    await crawl.request(given(request, 'hostname', 'host'), { byAdmin: true })
    return SUCCESS
  })
  admin.get('/admin/pds/list', () =>
    hosts.list().map(host => listedHost(host, upstreams.isConnected(host), hosts.limits(host))),
  )
  admin.get('/admin/pds/report', request =>
    report(hostOf(request, parts), upstreams.isConnected(hostOf(request, parts))),
  )
  admin.post('/admin/pds/block', async request => {
    await moderation.block(hostOf(request, parts), 'blocked by an administrator')
    return SUCCESS
  })
  admin.post('/admin/pds/unblock', async request => {
    await moderation.unblock(hostOf(request, parts))
    return SUCCESS
  })
  admin.post('/admin/pds/changeLimits', async request => {
    const host = hostOf(request, parts)
    await hosts.setLimits(host, limitsGiven(request))
    if (has(request, 'policy')) {
      const policy = given(request, 'policy')
      if (policy !== 'strict' && policy !== 'observe')
        throw new Refused('InvalidRequest', 'policy is strict or observe')
      await hosts.setPolicy(host, policy, true)
    }
    return SUCCESS
  })
}

function addRepoRoutes(admin: FastifyInstance, { moderation }: AdminApiParts): void {
  admin.post('/admin/repo/takeDown', async request => {
    await moderation.takeDown(didOf(request))
    return SUCCESS
  })
  admin.post('/admin/repo/reverseTakedown', async request => {
    await moderation.reverseTakedown(didOf(request))
    return SUCCESS
  })
  admin.get('/admin/repo/takedowns', async request => {
    const after = has(request, 'cursor') ? given(request, 'cursor') : ''
    const dids = await moderation.takedowns(after, TAKEDOWNS_PAGE)
    return dids.length < TAKEDOWNS_PAGE ? { dids } : { dids, cursor: dids.at(-1) }
  })
}

/** Names of fields as the scripts know them. */
function listedHost({ record, window, eventsSeen }: Host, isConnected: boolean, limits: HostLimits) {
  return {
    ID: record.id,
    CreatedAt: new Date(record.createdAt).toISOString(),
    UpdatedAt: new Date(record.statusAt).toISOString(),
    DeletedAt: null,
    Host: record.hostname,
    Did: '',
    SSL: !record.noTls,
    Cursor: window.cursor ?? 0,
    Registered: record.status !== 'banned',
    Blocked: record.status === 'banned',
    RateLimit: limits.perSecond,
    CrawlRateLimit: 0,
    RepoCount: record.accounts,
    RepoLimit: limits.accounts,
    HourlyEventLimit: limits.perHour,
    DailyEventLimit: limits.perDay,
    HasActiveConnection: isConnected,
    EventsSeenSinceStartup: eventsSeen,
    PerSecondEventRate: { Max: limits.perSecond, Window: 1 },
    PerHourEventRate: { Max: limits.perHour, Window: 3_600 },
    PerDayEventRate: { Max: limits.perDay, Window: 86_400 },
    UserCount: record.accounts,
    Status: record.status,
    StatusReason: record.reason,
    Policy: record.policy,
  }
}

/** What can be said about one host: its state, and why events of it did not get through. */
function report({ record, window, rejects, lastEnd, eventsSeen, eventsAdmitted, events }: Host, isConnected: boolean) {
  return {
    hostname: record.hostname,
    status: record.status,
    reason: record.reason,
    connected: isConnected,
    lastEnd,
    cursor: window.cursor,
    policy: record.policy,
    pinned: record.pinned,
    streak: record.streak,
    accounts: record.accounts,
    eventsSeen,
    eventsAdmitted,
    eventsUnderWay: events,
    history: record.history,
    rejects: Object.fromEntries(rejects.counts),
    latestRejects: rejects.latest().map(reject => ({ ...reject, text: textOf(reject.reason) })),
  }
}
