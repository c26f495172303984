/** A fan-out between two beginnings: its log, its connection to the other relay, its consumers, its pages. */
import { Refused } from '@millisky/core/errors'
import { withSeq } from '@millisky/core/event'
import type { Fetcher } from '@millisky/server/fetch'
import { Follow, type FollowEnd, type FollowSettings } from '@millisky/server/follow'
import { createHttp, listen } from '@millisky/server/http'
import { openSegmentLog, type SegmentLog } from '@millisky/server/log/segments'
import type { SubscribeSettings, Subscription } from '@millisky/server/subscribe'
import { startTelemetry } from '@millisky/server/telemetry'
import { createMetrics, type Logger, type Metrics } from '@millisky/server/trace'
import { refusePlain } from '@millisky/server/upgrade'
import { Xrpc } from '@millisky/server/xrpc'
import type { FastifyInstance } from 'fastify'
import { parseAddress } from '../address.ts'
import { ADMIN_METHODS } from '../api/admin-audit.ts'
import { adminGuard } from '../api/admin-auth.ts'
import { addConsumerMethods, shownConsumer } from '../api/admin-consumers.ts'
import { SUBSCRIBE_PATH } from '../api/sync.ts'
import type { RelaySettings } from '../config.ts'
import { fsyncOf } from '../config-log.ts'
import { createMetricsListener } from '../metrics-listener.ts'
import { recoverForeign } from '../recover.ts'
import { addJetstream, createSubscription } from '../streams.ts'
import { BegunAnew, MIRROR_DROPS, Mirror, type MirrorGap } from './mirror.ts'
import { passOn } from './passing.ts'

const TYPES = ['#commit', '#sync', '#identity', '#account'] as const
const INFOS = 8
const ENDS = 32

export interface StageParts {
  settings: RelaySettings
  log: Logger
  now: () => number
  userAgent: string
  version: string
  /** Origin of the relay that is followed. */
  upstream: string
  fetcher: Fetcher
  onFatal: (error: unknown) => void
  /** The other relay has begun anew; told once or more. */
  onReset: (why: string) => void
  resets: () => number
  subscribe?: Partial<SubscribeSettings>
  follow?: Partial<FollowSettings>
}

export interface Stage {
  readonly events: SegmentLog
  /** Begins to serve and to follow. @param port - instead of that of the settings */
  listen(port?: number): Promise<string>
  prune(): Promise<void>
  close(): Promise<void>
}

/** How it stands with the other relay. */
interface Link {
  mirror: Mirror
  events: SegmentLog
  follow: Follow | null
  /** It was connected at least once. */
  wasOpen: boolean
  lastEnd: string | null
  /** Where events may have been missed since the process started. */
  gaps: number
  lastGap: (MirrorGap & { at: number }) | null
}

export async function openStage(parts: StageParts): Promise<Stage> {
  const { settings, log, now, userAgent, upstream } = parts
  const metrics = createMetrics({ process: true })
  const about = { name: 'millisky-relay', version: parts.version, metrics: () => metrics, log, now }
  const telemetry = await startTelemetry(settings, about)
  const events = await openSegmentLog(settings.persistDir, {
    withSeq,
    recover: recoverForeign,
    now,
    fsync: fsyncOf(settings),
    seqsGiven: true,
    repaired: repair => log.warn(repair, 'the end of the log was torn and has been cut'),
    failed: parts.onFatal,
  })
  const gap = (gap: MirrorGap) => {
    link.gaps++
    link.lastGap = { ...gap, at: now() }
    log.error({ upstream, ...gap }, 'the relay that is followed went on further ahead: events may have been missed')
  }
  const mirror = new Mirror({ log: events, now, observer: { ...observeMirror(metrics, parts), gap } })
  const link: Link = { mirror, events, follow: null, wasOpen: false, lastEnd: null, gaps: 0, lastGap: null }
  const subscription = createSubscription({ settings, events, log, metrics, userAgent, now }, parts.subscribe)
  const http = createHttp({
    log,
    metrics,
    product: userAgent,
    trustProxy: settings.trustProxy,
    trace: telemetry.trace,
    cors: path => !path.startsWith('/admin') && !path.startsWith(ADMIN_METHODS) && path !== '/metrics',
  })
  const passed = passOn(parts.fetcher, upstream)
  const xrpc = new Xrpc(http, { log, fallback: (request, _reply, nsid) => passed(request, nsid) })
  const guard = adminGuard(settings.adminPasswords ?? [], now)
  addConsumerMethods(xrpc, { subscription, guard, kick: id => kick(subscription, id) })
  addPages(http, parts, link)
  addAdmin(http, guard, subscription, metrics)
  const scraped = createMetricsListener({ settings, log, metrics, userAgent })
  subscription.attach(http.server, SUBSCRIBE_PATH)
  addJetstream(http, subscription, { settings, events, now })
  observeLink(metrics, parts, link)
  const ends = metrics.counter('relay_upstream_ends_total', 'Connections that ended or were not made, by why.', {
    reason: ENDS,
  })
  return {
    events,
    async listen(port) {
      await scraped?.listen()
      const bind = parseAddress(settings.bind)
      const url = await listen(http, port === undefined ? bind : { ...bind, port })
      link.follow = startFollow(parts, link, reason => ends.inc({ reason }))
      return url
    },
    async prune() {
      const bytes = settings.replayBytes ?? Number.POSITIVE_INFINITY
      await events
        .prune({ ageMs: settings.replayWindowMs, bytes, now: now() })
        .catch(error => log.error({ err: error }, 'old events could not be dropped'))
    },
    async close() {
      await link.follow?.stop()
      await subscription.close()
      await Promise.all([http.close(), scraped?.close()])
      await telemetry.close()
      await events.close()
    },
  }
}

function startFollow(parts: StageParts, link: Link, countEnd: (reason: FollowEnd['reason']) => void): Follow {
  const { settings, log, upstream, userAgent, now, onReset } = parts
  const { events, mirror } = link
  return new Follow({
    url: `${upstream.replace(/^http/, 'ws')}${SUBSCRIBE_PATH}`,
    cursor: () => mirror.ask(settings.upstreamBackfill ? 0 : null),
    reach: { allowPrivate: true },
    userAgent,
    now,
    settings: { retryMaxMs: 60_000, waitingBytes: 8 << 20, ...parts.follow },
    onOpen: () => {
      link.wasOpen = true
      link.lastEnd = null
      log.info({ upstream, cursor: events.head }, 'connected to the relay that is followed')
    },
    onFrames: frames => mirror.take(frames),
    onEnd: ({ reason, detail, error, cause, retryMs }) => {
      countEnd(reason)
      if (reason === 'stopped') return
      link.lastEnd = `${reason}: ${error ? `${error} ` : ''}${detail}`
      log.warn({ upstream, reason, detail, error, retryMs }, 'the connection to the relay that is followed has ended')
      if (error === 'FutureCursor') onReset(`it has not come as far as ${events.head}`)
      else if (cause instanceof BegunAnew) onReset(cause.message)
    },
  })
}

function addPages(http: FastifyInstance, { upstream, version, resets, now }: StageParts, link: Link): void {
  const { events, mirror } = link
  refusePlain(http, SUBSCRIBE_PATH)
  http.get('/', (_request, reply) =>
    reply
      .type('text/plain; charset=utf-8')
      .send(`millisky ${version}: the events of ${upstream}, under the same seqs.\n\n  Firehose  ${SUBSCRIBE_PATH}\n`),
  )
  for (const path of ['/_health', '/xrpc/_health']) {
    http.get(path, (_request, reply) => {
      const connected = link.follow?.state === 'open'
      const told = {
        version,
        upstream,
        connected,
        head: events.head,
        oldest: events.oldest,
        lagMs: mirror.lagMs,
        silentMs: mirror.lastAt === 0 ? null : Math.max(0, now() - mirror.lastAt),
        resets: resets(),
        gaps: link.gaps,
        ...(link.lastGap ? { lastGap: { ...link.lastGap, at: new Date(link.lastGap.at).toISOString() } } : {}),
      }
      if (link.wasOpen) return { status: 'ok', ...told }
      const msg = `not connected to ${upstream} yet${link.lastEnd ? `: ${link.lastEnd}` : ''}`
      return reply.code(503).send({ status: 'error', msg, ...told })
    })
  }
}

function kick(subscription: Subscription, id: number): void {
  if (!subscription.kick(id)) throw new Refused('ConsumerNotFound', 'no such consumer', 404)
}

type Guard = ReturnType<typeof adminGuard>

function addAdmin(http: FastifyInstance, guard: Guard, subscription: Subscription, metrics: Metrics): void {
  void http.register(async admin => {
    admin.addHook('onRequest', async request => void guard(request))
    admin.get('/metrics', async (_request, reply) => reply.type(metrics.contentType).send(await metrics.text()))
    admin.get('/admin/consumers/list', () => subscription.list().map(shownConsumer))
    admin.post<{ Querystring: { id?: string } }>('/admin/consumers/kick', ({ query }) => {
      kick(subscription, Number(query.id))
      return { success: 'true' }
    })
  })
}

function observeMirror(metrics: Metrics, { log }: StageParts) {
  const taken = metrics.counter('relay_fanout_events_total', 'Events taken over.', { type: TYPES })
  const dropped = metrics.counter('relay_fanout_dropped_total', 'Frames that were not taken over.', {
    reason: MIRROR_DROPS,
  })
  const infos = metrics.counter('relay_fanout_infos_total', 'What the other relay said about its stream.', {
    name: INFOS,
  })
  return {
    taken: (type: string) => taken.inc({ type }),
    dropped: (reason: (typeof MIRROR_DROPS)[number]) => dropped.inc({ reason }),
    info: (name: string, message: string | null) => {
      infos.inc({ name })
      log.warn({ name, message }, 'the relay that is followed says')
    },
  }
}

function observeLink(metrics: Metrics, { resets }: StageParts, link: Link): void {
  const { events, mirror } = link
  const plain = (name: string, help: string, read: () => number) =>
    metrics.gauge(name, help, { collect: gauge => gauge.set({}, read()) })
  plain('relay_log_head_seq', 'Last seq of the log.', () => events.head)
  plain('relay_log_oldest_seq', 'First seq that is still kept.', () => events.oldest)
  plain('relay_fanout_connected', 'Whether the relay that is followed is connected.', () =>
    Number(link.follow?.state === 'open'),
  )
  plain('relay_fanout_lag_seconds', 'How old events are when they come.', () => (mirror.lagMs ?? 0) / 1_000)
  plain('relay_fanout_gaps', 'How often events may have been missed since it last began anew.', () => link.gaps)
  plain('relay_fanout_resets', 'How often the other relay has begun anew since this process started.', resets)
}
