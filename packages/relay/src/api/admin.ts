/**
 * The admin routes that scripts for bigsky and indigo's relay call, with both shapes of their parameters. What they change
 * is changed by the same actions as by the methods of admin-methods.ts.
 *
 * Source: relay.md, "Admin HTTP API".
 */
import { Refused } from '@millisky/core/errors'
import type { Subscription } from '@millisky/server/subscribe'
import type { Metrics } from '@millisky/server/trace'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import type { Administration, Asked, HostChange } from '../administration.ts'
import type { Host, Hosts } from '../hosts.ts'
import type { Moderation } from '../moderation.ts'
import type { HostLimits } from '../quotas.ts'
import { textOf } from '../rejects.ts'
import type { RelayStore } from '../store/store.ts'
import type { Upstreams } from '../upstreams.ts'
import { addArchiveRoutes } from './admin-archive.ts'
import { askedBy } from './admin-auth.ts'
import { addAuditRoute, addConsumerRoutes } from './admin-consumers.ts'
import { didOf, flag, given, integer, optional } from './admin-params.ts'
import { takedownsAfter } from './takedown-pages.ts'

const SUCCESS = { success: 'true' }

export interface AdminApiParts {
  administration: Administration
  hosts: Hosts
  upstreams: Pick<Upstreams, 'isConnected'>
  moderation: Pick<Moderation, 'takedowns'>
  subscription: Subscription
  metrics: Metrics
  store: Pick<RelayStore, 'audit'>
  guard: (request: FastifyRequest) => Asked
}

export function addAdminApi(http: FastifyInstance, parts: AdminApiParts): void {
  http.register(async admin => {
    admin.addHook('onRequest', async request => void parts.guard(request))
    addSubscriptionRoutes(admin, parts)
    addDomainRoutes(admin, parts)
    addHostRoutes(admin, parts)
    addBanRoutes(admin, parts)
    addRepoRoutes(admin, parts)
    addConsumerRoutes(admin, parts)
    addArchiveRoutes(admin)
    addAuditRoute(admin, parts.store.audit)
    admin.get('/metrics', async (_request, reply) =>
      reply.type(parts.metrics.contentType).send(await parts.metrics.text()),
    )
  })
}

/** Fields of changeLimits as bigsky named them. 0 gives a rate back to what the host has come to. */
function changeGiven(request: FastifyRequest): HostChange {
  const change: HostChange = {}
  const accounts = optional(request, 'repo_limit')
  if (accounts !== null) change.accounts = accounts === 'auto' ? null : integer(accounts)
  for (const [field, name] of [
    ['per_second', 'perSecond'],
    ['per_hour', 'perHour'],
    ['per_day', 'perDay'],
  ] as const) {
    const rate = optional(request, field)
    if (rate !== null) change[name] = integer(rate) || null
  }
  const policy = optional(request, 'policy')
  if (policy === null) return change
  if (policy !== 'strict' && policy !== 'observe' && policy !== 'auto') {
    throw new Refused('InvalidRequest', 'policy is strict, observe or auto')
  }
  return { ...change, policy }
}

// Routes

function addSubscriptionRoutes(admin: FastifyInstance, { administration, hosts, upstreams }: AdminApiParts): void {
  admin.get('/admin/subs/getUpstreamConns', () =>
    hosts.list().flatMap(host => (upstreams.isConnected(host) ? [host.hostname] : [])),
  )
  admin.get('/admin/subs/perDayLimit', () => ({ limit: administration.settings.newHostsPerDay }))
  admin.post('/admin/subs/setPerDayLimit', async request => {
    await administration.updateSettings({ newHostsPerDay: integer(given(request, 'limit')) })
    return SUCCESS
  })
  admin.get('/admin/subs/getEnabled', () => ({ enabled: administration.settings.requestCrawlEnabled }))
  admin.post('/admin/subs/setEnabled', async request => {
    await administration.updateSettings({ requestCrawlEnabled: flag(given(request, 'enabled')) })
    return SUCCESS
  })
  admin.post('/admin/subs/killUpstream', async request => {
    // A host that is not known is not connected either, and scripts know no other answer.
    const host = administration.find(given(request, 'host', 'hostname'))
    if (host === null) throw new Refused('NotConnected', 'no active connection to given host')
    if (flag(optional(request, 'block') ?? 'false')) {
      await administration.blockHost(host, optional(request, 'reason') ?? undefined, askedBy(request))
    } else await administration.disconnectHost(host, askedBy(request))
    return SUCCESS
  })
}

function addDomainRoutes(admin: FastifyInstance, { administration, hosts }: AdminApiParts): void {
  const domainOf = (request: FastifyRequest) => given(request, 'Domain', 'domain')
  admin.get('/admin/subs/listDomainBans', () => ({ banned_domains: hosts.bannedDomains() }))
  admin.post('/admin/subs/banDomain', async request => {
    await administration.banDomain(domainOf(request), askedBy(request))
    return SUCCESS
  })
  admin.post('/admin/subs/unbanDomain', async request => {
    await administration.unbanDomain(domainOf(request), askedBy(request))
    return SUCCESS
  })
  admin.post('/admin/pds/addTrustedDomain', async request => {
    await administration.trustDomain(domainOf(request))
    return { success: true }
  })
  admin.get('/admin/pds/listTrustedDomains', () => ({ trusted_domains: hosts.trustedDomains() }))
}

function addHostRoutes(admin: FastifyInstance, { administration, hosts, upstreams }: AdminApiParts): void {
  const hostOf = (request: FastifyRequest) => administration.host(given(request, 'host', 'hostname'))
  admin.post('/admin/pds/requestCrawl', async request => {
    await administration.addHost(given(request, 'hostname', 'host'), askedBy(request))
    return SUCCESS
  })
  admin.get('/admin/pds/list', request =>
    listed(request, hosts).map(host => listedHost(host, upstreams.isConnected(host), hosts.limits(host))),
  )
  admin.get('/admin/pds/report', request => {
    const host = hostOf(request)
    return report(host, upstreams.isConnected(host))
  })
  admin.post('/admin/pds/changeLimits', async request => {
    await administration.updateHost(hostOf(request), changeGiven(request), askedBy(request))
    return SUCCESS
  })
}

/** As bigsky and indigo's relay name it, and as rsky does. A host that is not known yet is banned for the future. */
function addBanRoutes(admin: FastifyInstance, { administration, hosts }: AdminApiParts): void {
  const block = async (request: FastifyRequest): Promise<Host> => {
    const host = await administration.hostToBlock(given(request, 'host', 'hostname'))
    await administration.blockHost(host, optional(request, 'reason') ?? undefined, askedBy(request))
    return host
  }
  const unblock = async (request: FastifyRequest): Promise<Host> => {
    const host = administration.host(given(request, 'host', 'hostname'))
    await administration.unblockHost(host, askedBy(request))
    return host
  }
  admin.post('/admin/pds/block', async request => {
    await block(request)
    return SUCCESS
  })
  admin.post('/admin/pds/unblock', async request => {
    await unblock(request)
    return SUCCESS
  })
  admin.post('/admin/pds/ban', async request => ({ host: (await block(request)).hostname, banned: true }))
  admin.post('/admin/pds/unban', async request => ({ host: (await unblock(request)).hostname, banned: false }))
  admin.get('/admin/pds/listBans', () => {
    const banned = hosts.list().filter(({ record }) => record.status === 'banned')
    const shown = ({ hostname, record }: Host) => ({
      host: hostname,
      created_at: new Date(record.statusAt).toISOString(),
      reason: record.reason,
    })
    return { banned_hosts: banned.map(shown) }
  })
}

function addRepoRoutes(admin: FastifyInstance, { administration, moderation }: AdminApiParts): void {
  admin.post('/admin/repo/takeDown', async request => {
    await administration.takeDown(didOf(request), askedBy(request))
    return SUCCESS
  })
  admin.post('/admin/repo/reverseTakedown', async request => {
    await administration.restore(didOf(request), askedBy(request))
    return SUCCESS
  })
  admin.get('/admin/repo/takedowns', async request => {
    return takedownsAfter(moderation, integer(optional(request, 'cursor') ?? '0'))
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
    CrawlRate: { Max: 0, Window: 1 },
    UserCount: record.accounts,
    AccountLimitAlertsSilenced: true,
    AccountLimitAlertState: '',
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
