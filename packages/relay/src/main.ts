/** Puts the Relay together. */
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { withSeq } from '@millisky/core/event'
import { openDb } from '@millisky/server/db/db'
import { Fetcher, type LookupAll, type Reach } from '@millisky/server/fetch'
import type { FollowSettings } from '@millisky/server/follow'
import { createHttp, listen } from '@millisky/server/http'
import { Identities } from '@millisky/server/identity'
import { openSegmentLog, type SegmentLog } from '@millisky/server/log/segments'
import type { SubscribeSettings, Subscription } from '@millisky/server/subscribe'
import { startTelemetry, type Telemetry } from '@millisky/server/telemetry'
import { createLog, createMetrics, type Logger, type Metrics } from '@millisky/server/trace'
import { Xrpc } from '@millisky/server/xrpc'
import { Accounts, accountNumber } from './accounts.ts'
import { parseAddress } from './address.ts'
import { Administration } from './administration.ts'
import { addAdminApi } from './api/admin.ts'
import { ADMIN_METHODS, addAudit } from './api/admin-audit.ts'
import { adminGuard } from './api/admin-auth.ts'
import { addAdminMethods } from './api/admin-methods.ts'
import { addCheckpointApi } from './api/checkpoints.ts'
import { addDirectoryApi, beginDirectory } from './api/directory.ts'
import { addHostApi } from './api/hosts.ts'
import { addSyncApi, SUBSCRIBE_PATH } from './api/sync.ts'
import { Appender } from './appender.ts'
import { HostCheck } from './check.ts'
import { Checkpoints } from './checkpoints.ts'
import type { RelaySettings } from './config.ts'
import { fsyncOf } from './config-log.ts'
import { originsOf } from './config-operation.ts'
import { Crawl } from './crawl.ts'
import { Directory } from './directory.ts'
import { assertOwner } from './fanout/owner.ts'
import { fatal } from './fatal.ts'
import { Floods } from './floods.ts'
import { Fold, foldTail } from './fold.ts'
import { type Host, Hosts } from './hosts.ts'
import { type Incoming, Ingest } from './ingest.ts'
import { KnownIdentities } from './known-identities.ts'
import { Lookup } from './lookups.ts'
import {
  observeAppends,
  observeBytes,
  observeCheckpoints,
  observeDelays,
  observeDirectory,
  observeEnds,
  observeIdentities,
  observeIngest,
  observePrunes,
  observeRelay,
  observeSiblings,
} from './metrics.ts'
import { createMetricsListener } from './metrics-listener.ts'
import { Moderation } from './moderation.ts'
import { followPlc } from './plc-following.ts'
import { recoverFrame } from './recover.ts'
import { Repeats } from './repeats.ts'
import { Siblings } from './siblings.ts'
import { TAKENDOWN } from './status.ts'
import { migrations, type RelaySchema } from './store/schema.ts'
import { createSqlStore } from './store/sql.ts'
import type { RelayStore } from './store/store.ts'
import { addJetstream, createSubscription } from './streams.ts'
import { Throttle } from './throttle.ts'
import { RELAY_MARKER, Upstreams } from './upstreams.ts'
import { Verifiers } from './verifiers.ts'

/** How often accounts and cursors are saved. What is lost of it in a crash is found in the log and asked for again. */
const SAVE_MS = 2_000
const PRUNE_MS = 60_000
/** About a kilobyte each; others are read when they are heard of. */
const ACCOUNTS_IN_MEMORY = 20_000
/** Rows are read one by one all over the file: what the system caches of it serves as well as memory of our own. */
const DATABASE_MEMORY = { mapBytes: 0, cacheBytes: 32 * 1_048_576 }
/** For events under way when it stops; those that wait for identities are asked for again after the start. */
const DRAIN_MS = 5_000

export interface RelayParts {
  log?: Logger
  version?: string
  /** Milliseconds since 1970. */
  now?: () => number
  /** Something failed without which nothing can go on; default is to end the process. */
  onFatal?: (error: unknown) => void
  subscribe?: Partial<SubscribeSettings>
  /** How hosts are followed. */
  follow?: Partial<FollowSettings>
  /** Finds addresses of hosts; default the system's. */
  lookup?: LookupAll
}

export interface Relay {
  /** Where it listens, without a slash at the end; known after {@link listen}. */
  readonly url: string
  readonly hosts: Hosts
  listen(): Promise<void>
  /** Drops what is older or more than is to be kept; done every minute anyway. */
  prune(): Promise<void>
  close(): Promise<void>
}

/** What stands before anything is served. */
interface Ground {
  settings: RelaySettings
  log: Logger
  metrics: Metrics
  telemetry: Telemetry
  now: () => number
  userAgent: string
  /** Deviations from how hosts are followed. */
  follow: Partial<FollowSettings> | undefined
  version: string
  store: RelayStore
  known: KnownIdentities
  events: SegmentLog
  repeats: Repeats
  /** Which addresses hosts may have. */
  reach: Reach
  fetcher: Fetcher
  /** For the directory, which the operator names. */
  plcFetcher: Fetcher
  onError: (error: unknown) => void
  onFatal: (error: unknown) => void
}

/** Opens database and log and folds what a crash has left; {@link Relay.listen} then begins to serve and to follow hosts. */
export async function createRelay(settings: RelaySettings, parts: RelayParts = {}): Promise<Relay> {
  const ground = await openGround(settings, parts)
  const { store, events, log } = ground
  const running = compose(ground)
  const { hosts, crawl } = running
  await hosts.load()
  await crawl.load()
  await running.floods.load()
  const plc = followPlc(ground, running.identities)
  await plc.start()
  const subscription = createSubscription(ground, parts.subscribe)
  const moderation = new Moderation({ ...running, store, log: events })
  const siblings = createSiblings(ground)
  const administration = new Administration({
    ...running,
    moderation,
    subscription,
    siblings,
    settings: store.settings,
    insecure: settings.allowInsecureHosts,
  })
  await administration.load()
  const checkpoints = createCheckpoints(ground)
  const countPruned = observePrunes(ground.metrics)
  const http = serve(ground, { ...running, moderation, subscription, siblings, administration, checkpoints })
  const scraped = createMetricsListener(ground)
  const timers = [
    setInterval(() => void running.fold.save(), SAVE_MS),
    setInterval(() => void prune(ground, countPruned), PRUNE_MS),
  ]
  const sign = () => void checkpoints.run().catch(ground.onError)
  if (settings.checkpointMs > 0) timers.push(setInterval(sign, settings.checkpointMs))
  for (const timer of timers) timer.unref()
  let url = ''
  let closing: Promise<void> | null = null
  const close = async () => {
    // A host whose events wait for identities is not waited for longer than that.
    await Promise.race([running.upstreams.close(), sleep(DRAIN_MS, undefined, { ref: false })])
    await Promise.race([running.ingest.idle(), sleep(DRAIN_MS, undefined, { ref: false })])
    await running.appender.idle()
    for (const timer of timers) clearInterval(timer)
    await siblings.close()
    running.throttle.close()
    running.floods.close()
    await running.fold.save()
    // What came since the last checkpoint; beyond some seconds it is left to the next start.
    const signed = settings.checkpointMs > 0 ? checkpoints.run().catch(ground.onError) : null
    await Promise.all([subscription.close(), Promise.race([signed, sleep(DRAIN_MS, undefined, { ref: false })])])
    await Promise.all([http.close(), scraped?.close()])
    await running.verifiers.close()
    await plc.stop()
    await Promise.all([ground.fetcher.close(), ground.plcFetcher.close()])
    await ground.known.close()
    await checkpoints.close()
    await ground.telemetry.close()
    await events.close()
    await store.close()
  }
  return {
    hosts,
    get url() {
      return url
    },
    async listen() {
      await scraped?.listen()
      url = await listen(http, parseAddress(settings.bind))
      log.info({ url, hosts: hosts.size, head: events.head, oldest: events.oldest }, 'the relay is listening')
      running.upstreams.start().catch(ground.onFatal)
      await siblings.start()
      void crawl.seed(settings.seedHosts, (host, problem) =>
        log.warn({ host, problem }, 'a seed host was not taken up'),
      )
    },
    prune: () => prune(ground, countPruned),
    close() {
      closing ??= close()
      return closing
    },
  }
}

async function openGround(settings: RelaySettings, parts: RelayParts): Promise<Ground> {
  const { log = createLog({ name: 'relay', level: settings.logLevel }), version = '0.0.0', now = Date.now } = parts
  const userAgent = `millisky-relay/${version} (${RELAY_MARKER})`
  const metrics = createMetrics({ process: true })
  const reach: Reach = { allowPrivate: settings.allowInsecureHosts, ...(parts.lookup ? { lookup: parts.lookup } : {}) }
  const onError = (error: unknown) => log.error({ err: error }, 'a change could not be saved')
  const onFatal = parts.onFatal ?? fatal(log)
  assertOwner(settings.persistDir, null)
  const store = createSqlStore(await openDb<RelaySchema>(settings.databaseUrl, { migrations, log, ...DATABASE_MEMORY }))
  const masked = new Set<number>()
  for (let after = ''; ; ) {
    const page = await store.accounts.listLocal(TAKENDOWN, after, 1_000)
    if (page.length === 0) break
    for (const { did } of page) masked.add(accountNumber(did))
    after = page.at(-1)!.did
  }
  const events = await openSegmentLog(settings.persistDir, {
    withSeq,
    recover: recoverFrame,
    now,
    fsync: fsyncOf(settings),
    firstSeq: settings.initialSeq,
    masked,
    repaired: repair => log.warn(repair, 'the end of the log was torn and has been cut'),
    failed: onFatal,
  })
  await beginDirectory(store.settings, now())
  const repeats = await Repeats.of(events, await store.fold.cursorsAt(), now)
  const folded = await foldTail(events, store)
  if (folded > 0) log.info({ events: folded }, 'folded what the log holds beyond the saved state')
  return {
    settings,
    log,
    version,
    now,
    userAgent,
    follow: parts.follow,
    store,
    known: new KnownIdentities({ store: store.identities, onError }),
    events,
    repeats,
    metrics,
    telemetry: await startTelemetry(settings, { name: 'millisky-relay', version, metrics: () => metrics, log, now }),
    reach,
    fetcher: new Fetcher({ ...reach, userAgent }),
    plcFetcher: new Fetcher({ allowPrivate: true, userAgent }),
    onError,
    onFatal,
  }
}

function createIdentities(
  { settings, fetcher, plcFetcher, known, now }: Ground,
  observer: ReturnType<typeof observeIdentities>,
): Identities {
  return new Identities({
    plcUrl: settings.plcUrl,
    fetch: fetcher.fetch,
    plcFetch: plcFetcher.fetch,
    store: known,
    slim: known.slim,
    settings: { dids: { entriesMax: settings.identityCacheSize, staleMs: 24 * 3_600_000, maxMs: 30 * 86_400_000 } },
    ...(settings.allowInsecureHosts ? { development: {} } : {}),
    now,
    observer,
  })
}

function createCheck(
  { settings, reach, fetcher, userAgent, now }: Ground,
  hosts: Hosts,
  identities: Identities,
): HostCheck {
  return new HostCheck({
    fetch: fetcher.fetch,
    identities,
    assertNotBanned: hostname => hosts.assertNotBanned(hostname),
    reach,
    userAgent,
    insecure: settings.allowInsecureHosts,
    now,
  })
}

function createHosts({ settings, store, log, now, onError }: Ground): Hosts {
  return new Hosts({
    store: store.hosts,
    bans: store.bans,
    settings: store.settings,
    policy: settings.lenient ? 'observe' : 'strict',
    accountLimit: settings.accountLimit,
    trustedDomains: settings.trustedDomains,
    now,
    onError,
    onStatus: ({ hostname, record }, before) => {
      log.info({ host: hostname, status: record.status, before, reason: record.reason }, 'host')
    },
  })
}

/** Everything between the sockets of hosts and the log. */
function compose(ground: Ground) {
  const { settings, store, events, repeats, fetcher, metrics, log, now, onError, onFatal, userAgent } = ground
  const hosts = createHosts(ground)
  const askers = observeIdentities(metrics)
  const identities = createIdentities(ground, askers)
  const accounts = new Accounts<Incoming>({
    store: store.accounts,
    hostname: id => hosts.byId(id)?.hostname ?? null,
    entriesMax: ACCOUNTS_IN_MEMORY,
  })
  const directory = new Directory({ observer: observeDirectory(metrics) })
  const fold = new Fold<Incoming>({
    store,
    hosts,
    directory,
    head: () => events.head,
    cursorsAt: () => ground.repeats.from(),
    onError,
  })
  const verifiers = new Verifiers({
    workers: settings.workers ?? Math.max(1, availableParallelism() - 1),
    now,
    onCrash: error => log.error({ err: error }, 'a verifier died and was replaced'),
  })
  const { trace } = ground.telemetry
  const onAppend = observeAppends(metrics, trace)
  const appender = new Appender<Incoming>({ log: events, fold: admitted => fold.take(admitted), onAppend, onFatal })
  const throttle = new Throttle({ hosts, now, onDelay: observeDelays(metrics) })
  const announce: Ingest['announce'] = (account, local) => ingest.announce(account, local)
  const floods = new Floods({ accounts, store: store.accounts, announce, now, onError })
  const ingest: Ingest = new Ingest({
    hosts,
    throttle,
    onFlood: account => floods.start(account),
    accounts,
    verifiers,
    appender,
    lookup: new Lookup({ identities, now, observer: askers }),
    limits: { hostLookups: settings.hostConcurrency },
    now,
    isRepeated: frame => repeats.has(frame),
    isActive: (host, did) => askWhetherActive(fetcher, host.origin, did),
    onBroken: (host, detail) => upstreams.broken(host, detail),
    onInfo: (host, frame) => upstreams.info(host, frame),
    onFailed: (error, about) => log.error({ err: error, ...about }, 'an event could not be judged'),
    onFatal,
    observer: observeIngest(metrics),
  })
  const countEnd = observeEnds(metrics, trace)
  const countBytes = observeBytes(metrics)
  const upstreams = new Upstreams({
    hosts,
    take: (host, frames) => {
      countBytes(frames)
      return ingest.take(host, frames)
    },
    release: host => throttle.release(host),
    reach: ground.reach,
    userAgent,
    now,
    ...(ground.follow ? { settings: ground.follow } : {}),
    onEnd: ({ hostname }, end) => {
      const { reason, detail, error, retryMs, failures } = end
      countEnd(hostname, end)
      log.debug({ host: hostname, reason, detail, error, retryMs, failures }, 'upstream ended')
    },
  })
  const check = createCheck(ground, hosts, identities)
  const crawl = new Crawl({
    hosts,
    upstreams,
    settings: store.settings,
    fetch: fetcher.fetch,
    now,
    insecure: settings.allowInsecureHosts,
    isClosed: settings.disableRequestCrawl,
    newHostsPerDay: settings.newHostsPerDay,
  })
  return { hosts, accounts, fold, verifiers, appender, ingest, upstreams, crawl, check, throttle, floods, identities }
}

/** What the operator's other relays are told. They are named by the operator, so they may be anywhere. */
function createSiblings({ settings, store, plcFetcher, metrics, log, now, onError }: Ground): Siblings {
  const siblings = new Siblings({
    relays: originsOf('relay', settings.siblings),
    crawlers: originsOf('relay', settings.nextCrawlers),
    store: store.outbox,
    fetch: plcFetcher.fetch,
    password: settings.siblingPassword ?? settings.adminPasswords?.[0],
    now,
    observe: (delivery, { sibling, path, attempts }, detail) => {
      count(delivery)
      const level = delivery === 'delivered' ? 'debug' : 'warn'
      log[level]({ sibling, path: path.split('?')[0], attempts, detail }, `request to a sibling: ${delivery}`)
    },
    onError,
  })
  const count = observeSiblings(metrics, siblings)
  return siblings
}

interface Serving extends ReturnType<typeof compose> {
  moderation: Moderation
  subscription: Subscription
  siblings: Siblings
  administration: Administration
  checkpoints: Checkpoints
}

function serve(ground: Ground, serving: Serving) {
  const { settings, log, metrics, store, events, version, userAgent, now } = ground
  const { hosts, accounts, upstreams, ingest, verifiers, floods, subscription } = serving
  const insecure = settings.allowInsecureHosts
  const http = createHttp({
    log,
    metrics,
    trace: ground.telemetry.trace,
    product: userAgent,
    trustProxy: settings.trustProxy,
    cors: path => !path.startsWith('/admin') && !path.startsWith(ADMIN_METHODS) && path !== '/metrics',
  })
  addAudit(http, { audit: store.audit, now })
  const xrpc = new Xrpc(http, { log, checkReplies: insecure })
  addSyncApi(http, xrpc, { ...serving, store, save: () => serving.fold.save(), insecure, version })
  addCheckpointApi(xrpc, serving.checkpoints)
  addDirectoryApi(xrpc, { ...serving, store, save: () => serving.fold.save(), now })
  const isConnected = (host: Host) => upstreams.isConnected(host)
  addHostApi(http, xrpc, { hosts, check: serving.check, isConnected, insecure, now })
  const admin = { ...serving, metrics, store, isConnected, guard: adminGuard(settings.adminPasswords ?? [], now) }
  addAdminMethods(xrpc, admin)
  addAdminApi(http, admin)
  subscription.attach(http.server, SUBSCRIBE_PATH)
  addJetstream(http, subscription, ground)
  observeRelay(metrics, {
    hosts,
    ingest,
    verifiers,
    log: events,
    isConnected,
    now,
    accountsInMemory: () => accounts.size,
    accountsThrottled: () => floods.size,
  })
  return http
}

function createCheckpoints({ settings, events, store, now, metrics }: Ground): Checkpoints {
  const folder = join(settings.persistDir, 'checkpoints')
  const checkpoints = new Checkpoints({ log: events, store: store.checkpoints, folder, now })
  observeCheckpoints(metrics, checkpoints)
  return checkpoints
}

async function prune(ground: Ground, count: (segments: number) => void): Promise<void> {
  const { events, settings, store, now, onError } = ground
  const bytes = settings.replayBytes ?? Number.POSITIVE_INFINITY
  await events.prune({ ageMs: settings.replayWindowMs, bytes, now: now() }).then(count, onError)
  await store.audit.prune(now() - settings.auditKeepMs, settings.auditEntriesMax).catch(onError)
}

async function askWhetherActive(fetcher: Fetcher, origin: string, did: string): Promise<boolean | null> {
  const url = `${origin}/xrpc/com.atproto.sync.getRepoStatus?did=${encodeURIComponent(did)}`
  try {
    const { status, bytes } = await fetcher.fetch(url, { timeoutMs: 5_000, bytesMax: 16_384 })
    if (status !== 200) return null
    const answer = JSON.parse(Buffer.from(bytes).toString()) as { active?: unknown } | null
    return typeof answer?.active === 'boolean' ? answer.active : null
  } catch {
    // No answer, whatever the reason: what its host said last stands.
    return null
  }
}
