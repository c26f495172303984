/**
 * The admin routes that scripts for bigsky and indigo's relay call, with both shapes of their parameters.
 *
 * Source: relay.md, "Admin HTTP API".
 */
import { timingSafeEqual } from 'node:crypto'
import { utf8 } from '@millisky/core/bytes'
import { Refused } from '@millisky/core/errors'
import { sha256 } from '@millisky/core/hash'
import type { Subscription } from '@millisky/server/subscribe'
import type { Metrics } from '@millisky/server/trace'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import type { Crawl } from '../crawl.ts'
import { parseDomain, parseHostname } from '../hostname.ts'
import type { Host, Hosts, SetLimits } from '../hosts.ts'
import type { Moderation } from '../moderation.ts'
import type { HostLimits } from '../quotas.ts'
import { textOf } from '../rejects.ts'
import type { RelayStore } from '../store/store.ts'
import type { Upstreams } from '../upstreams.ts'
import { addArchiveRoutes } from './admin-archive.ts'
import { addAudit, addConsumerRoutes } from './admin-consumers.ts'
import { didOf, given, integer, optional } from './admin-params.ts'

const SUCCESS = { success: 'true' }
const TAKEDOWNS_PAGE = 500

export interface AdminApiParts {
  hosts: Hosts
  upstreams: Upstreams
  crawl: Crawl
  moderation: Moderation
  subscription: Subscription
  metrics: Metrics
  store: Pick<RelayStore, 'settings' | 'audit'>
  now: () => number
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
    addConsumerRoutes(admin, { subscription: parts.subscription, settings: parts.store.settings })
    addArchiveRoutes(admin)
    addAudit(admin, { audit: parts.store.audit, now: parts.now })
    admin.get('/metrics', async (_request, reply) =>
      reply.type(parts.metrics.contentType).send(await parts.metrics.text()),
    )
  })
}

/** Fields of changeLimits as bigsky named them. 0 gives a rate back to what the host has come to. */
function limitsGiven(request: FastifyRequest): SetLimits {
  const limits: SetLimits = {}
  const accounts = optional(request, 'repo_limit')
  if (accounts !== null) limits.accountLimit = integer(accounts)
  for (const [field, name] of [
    ['per_second', 'perSecond'],
    ['per_hour', 'perHour'],
    ['per_day', 'perDay'],
  ] as const) {
    const rate = optional(request, field)
    if (rate !== null) limits[name] = integer(rate) || null
  }
  return limits
}

/** `example.com` for the host itself, `*.example.com` for those below it. */
function trustedDomainOf(text: string): string {
  const domain = parseDomain(text)
  return text.trim().startsWith('*.') ? `*.${domain}` : domain
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
    if (optional(request, 'block') === 'true') {
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
  admin.get('/admin/pds/list', request =>
    listed(request, hosts).map(host => listedHost(host, upstreams.isConnected(host), hosts.limits(host))),
  )
  admin.get('/admin/pds/report', request =>
    report(hostOf(request, parts), upstreams.isConnected(hostOf(request, parts))),
  )
  admin.post('/admin/pds/block', async request => {
    await moderation.block(hostOf(request, parts), 'blocked by an administrator')
    return SUCCESS
  })
  admin.post('/admin/pds/ban', async request => {
    const host = hostOf(request, parts)
    await moderation.block(host, 'blocked by an administrator')
    return { host: host.hostname, banned: true }
  })
  admin.post('/admin/pds/unban', async request => {
    const host = hostOf(request, parts)
    await moderation.unblock(host)
    return { host: host.hostname, banned: false }
  })
  admin.get('/admin/pds/listBans', () => {
    const banned = hosts.list().filter(({ record }) => record.status === 'banned')
    const shown = ({ hostname, record }: Host) => ({
      host: hostname,
      created_at: new Date(record.statusAt).toISOString(),
      reason: record.reason,
    })
    return { banned_hosts: banned.map(shown) }
  })
  admin.post('/admin/pds/addTrustedDomain', async request => {
    await hosts.addTrustedDomain(trustedDomainOf(given(request, 'domain')))
    return { success: true }
  })
  admin.get('/admin/pds/listTrustedDomains', () => ({ trusted_domains: hosts.trustedDomains() }))
  admin.post('/admin/pds/unblock', async request => {
    await moderation.unblock(hostOf(request, parts))
    return SUCCESS
  })
  admin.post('/admin/pds/changeLimits', async request => {
    const host = hostOf(request, parts)
    await hosts.setLimits(host, limitsGiven(request))
    const policy = optional(request, 'policy')
    if (policy !== null) {
      if (policy !== 'strict' && policy !== 'observe' && policy !== 'auto') {
        throw new Refused('InvalidRequest', 'policy is strict, observe or auto')
      }
      await hosts.setPolicy(host, policy === 'auto' ? host.record.policy : policy, policy !== 'auto')
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
    const after = optional(request, 'cursor') ?? ''
    const dids = await moderation.takedowns(after, TAKEDOWNS_PAGE)
    return dids.length < TAKEDOWNS_PAGE ? { dids } : { dids, cursor: dids.at(-1) }
  })
}

/** All hosts unless told: names that contain `search`, `limit` of them behind the ID `cursor`. */
function listed(request: FastifyRequest, hosts: Hosts): Host[] {
  const search = optional(request, 'search')?.toLowerCase() ?? ''
  const after = integer(optional(request, 'cursor') ?? '0')
  const limit = optional(request, 'limit')
  const found = hosts.list().filter(host => host.id > after && host.hostname.includes(search))
  return limit === null ? found : found.slice(0, integer(limit))
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
