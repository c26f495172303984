/** What anybody may know about a host: its report, as a method and as a page, and the check of a PDS. */

import { Refused } from '@millisky/core/errors'
import { main as checkHost } from '@millisky/core/lexicon/gen/net/millisky/relay/checkHost'
import { main as getHostReport } from '@millisky/core/lexicon/gen/net/millisky/relay/getHostReport'
import type { Did } from '@millisky/core/syntax'
import { callerKey, RateLimit } from '@millisky/server/rate'
import type { Xrpc } from '@millisky/server/xrpc'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import type { HostCheck } from '../check.ts'
import { parseHostname } from '../hostname.ts'
import type { Host, Hosts } from '../hosts.ts'
import { textOf } from '../rejects.ts'

const CHECKS_A_MINUTE = 6
const REFUSED_SHOWN = 100

export interface HostApiParts {
  hosts: Hosts
  check: HostCheck
  isConnected: (host: Host) => boolean
  insecure: boolean
  now: () => number
}

export function addHostApi(http: FastifyInstance, xrpc: Xrpc, parts: HostApiParts): void {
  const { hosts, insecure, check } = parts
  const find = (text: string): Host => {
    const host = hosts.byName(parseHostname(text, { insecure }).hostname)
    if (!host) throw new Refused('HostNotFound', 'This relay does not know the host', 404)
    return host
  }
  xrpc.query(getHostReport, ({ params }) => reportOf(find(params.hostname), parts))
  const limit = new RateLimit('check-host', { points: CHECKS_A_MINUTE, windowMs: 60_000 })
  const rates = [{ limit, key: ({ request }: { request: FastifyRequest }) => callerKey(request) }]
  xrpc.procedure(checkHost, { rates }, ({ input }) => check.run(input.hostname))
  http.get<{ Params: { hostname: string } }>('/hosts/:hostname', (request, reply) => {
    const page = pageOf(reportOf(find(request.params.hostname), parts))
    return reply.type('text/html; charset=utf-8').header('content-security-policy', CSP).send(page)
  })
}

const time = (ms: number) =>
  new Date(ms).toISOString() as `${string}-${string}-${string}T${string}:${string}:${string}Z`
const some = <K extends string, V>(key: K, value: V | null | undefined): { [k in K]?: V } =>
  value === null || value === undefined ? {} : ({ [key]: value } as { [k in K]: V })
const percent = (part: number) => Math.round(part * 100)

/** See the lexicon. */
export function reportOf(host: Host, { hosts, isConnected, now }: Omit<HostApiParts, 'check' | 'insecure'>) {
  const { record, quota, rejects } = host
  const used = quota.used(now())
  const { ms } = quota.wait(now())
  return {
    hostname: record.hostname,
    status: record.status,
    ...some('reason', record.reason),
    connected: isConnected(host),
    ...some('lastEnd', host.lastEnd),
    ...some('seq', host.window.cursor),
    ...(host.lastEventAt > 0 ? { lastEventAt: time(host.lastEventAt) } : {}),
    ...some('lagMs', host.lagMs),
    policy: record.policy,
    trusted: hosts.isTrusted(record.hostname),
    accountCount: record.accounts,
    accountsRefused: host.refused.size,
    refusedAccounts: [...host.refused].slice(0, REFUSED_SHOWN) as Did[],
    limits: hosts.limits(host),
    hourUsedPercent: percent(used.hour),
    dayUsedPercent: percent(used.day),
    growth: record.growth,
    ...(Number.isFinite(ms) ? { waitMs: Math.ceil(ms) } : {}),
    eventsSeen: host.eventsSeen,
    eventsPassed: host.eventsAdmitted,
    eventsUnderWay: host.events,
    delays: Object.entries(host.delays).map(([name, count]) => ({ name, count })),
    rejects: [...rejects.counts].map(([name, count]) => ({ name, count, text: textOf(name) })),
    latestRejects: rejects.latest().map(({ at, seq, did, reason, detail }) => ({
      at: time(at),
      ...some('seq', seq),
      ...some('did', did),
      reason,
      text: textOf(reason),
      ...some('detail', detail),
      dropped: true,
    })),
    history: record.history.map(({ at, what, detail }) => ({ at: time(at), what, detail })),
  }
}

type Report = ReturnType<typeof reportOf>

const CSP = "default-src 'none'; style-src 'unsafe-inline'"
const ESCAPES: Record<string, string> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;', "'": '&#39;' }
const escaped = (text: unknown) => String(text ?? '').replace(/[&<>"']/g, sign => ESCAPES[sign]!)

function table(title: string, heads: string[], rows: unknown[][]): string {
  if (rows.length === 0) return ''
  const line = (tag: string, cells: unknown[]) =>
    `<tr>${cells.map(cell => `<${tag}>${escaped(cell)}</${tag}>`).join('')}</tr>`
  return `<h2>${title}</h2><table>${line('th', heads)}${rows.map(row => line('td', row)).join('')}</table>`
}

/** Everything in it comes from the outside, so everything is escaped. */
function pageOf(report: Report): string {
  const { limits } = report
  const facts: unknown[][] = [
    ['Status', report.reason ? `${report.status}: ${report.reason}` : report.status],
    ['Connected', report.connected ? 'yes' : `no${report.lastEnd ? ` (${report.lastEnd})` : ''}`],
    ['Cursor', report.seq ?? 'none'],
    ['Last event', report.lastEventAt ?? 'none'],
    ['Age of the last commit when it passed', report.lagMs === undefined ? 'unknown' : `${report.lagMs} ms`],
    ['Policy', report.policy],
    ['Accounts', `${report.accountCount} of ${limits.accounts}`],
    ['Accounts refused', report.accountsRefused],
    ['Events an hour', `${limits.perHour}, ${report.hourUsedPercent} % used`],
    ['Events a day', `${limits.perDay}, ${report.dayUsedPercent} % used`],
    ['Events a second', limits.perSecond],
    ['Limits have doubled', `${report.growth} times`],
    ['Events seen / passed', `${report.eventsSeen} / ${report.eventsPassed}`],
  ]
  const waits = report.delays.filter(({ count }) => count > 0)
  const body = [
    table('State', ['', ''], facts),
    table(
      'Why its events had to wait',
      ['Why', 'Times'],
      waits.map(({ name, count }) => [name, count]),
    ),
    table(
      'Why events did not pass',
      ['Reason', 'Count', ''],
      report.rejects.map(r => [r.name, r.count, r.text]),
    ),
    table(
      'Latest',
      ['When', 'Seq', 'DID', 'Reason', 'Detail'],
      report.latestRejects.map(r => [r.at, r.seq, r.did, r.text, r.detail]),
    ),
    table('History', ['When', 'What', 'Why'], report.history.map(note => [note.at, note.what, note.detail]).reverse()),
  ]
  const name = escaped(report.hostname)
  return `<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>${name}</title><style>${STYLE}</style></head><body><h1>${name}</h1>${body.join('')}</body></html>`
}

const STYLE =
  'body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}' +
  'table{border-collapse:collapse}td,th{padding:.2rem .8rem .2rem 0;text-align:left;vertical-align:top}'
