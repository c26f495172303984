/** Puts the PDS together. The only file that names drivers. */
import { randomBytes, randomInt } from 'node:crypto'
import { type AddressInfo, createServer } from 'node:net'
import { join } from 'node:path'
import { SigningKey } from '@millisky/core/crypto'
import { withSeq } from '@millisky/core/event'
import type { Did } from '@millisky/core/syntax'
import { TidClock } from '@millisky/core/tid'
import { type Db, openDb } from '@millisky/server/db/db'
import { type FetchBytes, Fetcher, type LookupAll } from '@millisky/server/fetch'
import { addHealth, createHttp, listen } from '@millisky/server/http'
import { dnsTxt, Identities, type ResolveTxt } from '@millisky/server/identity'
import { Lanes, type LanesOptions } from '@millisky/server/lanes'
import { openSqlLog, type SqlLog } from '@millisky/server/log/sql'
import { addressKey, bypassOf } from '@millisky/server/rate'
import { createSharedCounters, type SharedCounters } from '@millisky/server/rate-postgres'
import { Subscription } from '@millisky/server/subscribe'
import { startTelemetry } from '@millisky/server/telemetry'
import { createLog, createMetrics, type Logger } from '@millisky/server/trace'
import { notWebSocket } from '@millisky/server/upgrade'
import { Xrpc } from '@millisky/server/xrpc'
import type { FastifyInstance } from 'fastify'
import { createAccess, type PdsAccess } from './access.ts'
import { Accounts } from './accounts.ts'
import { addAdminAccountApi } from './api/admin-accounts.ts'
import { addAdminAdmissionApi } from './api/admin-admission.ts'
import { addAdminInviteApi } from './api/admin-invites.ts'
import { addAdminRelayApi } from './api/admin-relays.ts'
import { addAdminStorageApi } from './api/admin-storage.ts'
import { addAdminSubjectApi } from './api/admin-subjects.ts'
import { addIdentityApi } from './api/identity.ts'
import { addLexiconApi } from './api/lexicon.ts'
import { addModerationApi } from './api/moderation.ts'
import { addPreferencesApi } from './api/preferences.ts'
import { addProxiedApi } from './api/proxied.ts'
import { addRepoApi } from './api/repo.ts'
import { addServerApi } from './api/server.ts'
import { addAppPasswordApi } from './api/server-app-passwords.ts'
import { addEmailApi } from './api/server-email.ts'
import { addInviteApi } from './api/server-invites.ts'
import { addRecoveryApi } from './api/server-recovery.ts'
import { addStatusApi } from './api/server-status.ts'
import { addServiceAuthApi } from './api/service-auth.ts'
import { addSyncApi } from './api/sync.ts'
import { addBlobApi } from './api/sync-blob.ts'
import { addTempApi } from './api/temp.ts'
import { addWellKnown } from './api/well-known.ts'
import { createDiskBlobs } from './blobs/disk.ts'
import { s3Place } from './blobs/settings.ts'
import { type BlobDriver, Blobs } from './blobs.ts'
import { type PdsSettings, type ServiceNames, serviceNames, storagePaths } from './config.ts'
import { Crawlers } from './crawl.ts'
import { Credentials } from './credentials.ts'
import { Departures } from './departures.ts'
import { DidUpdates } from './did-updates.ts'
import { Exports } from './exports.ts'
import { ForeignChanges } from './foreign-changes.ts'
import type { HandleRules } from './handles.ts'
import { Imports } from './imports.ts'
import { Lexicons } from './lexicons.ts'
import { Lifecycle } from './lifecycle.ts'
import { Mailer } from './mail.ts'
import { MailCodes } from './mail-codes.ts'
import type { PlcDirectory } from './plc-client.ts'
import { servicesOf } from './proxy/services.ts'
import { Targets } from './proxy/targets.ts'
import { type SendOn, ServiceProxy } from './proxy.ts'
import { createLimits, type Limits } from './rates.ts'
import { RelayWatch, type RelayWatchParts } from './relay-watch.ts'
import { Repos } from './repos.ts'
import { ServiceTokens } from './service-auth.ts'
import { Sessions } from './sessions.ts'
import { migrations, type PdsSchema } from './store/schema.ts'
import { createSqlStore } from './store/sql.ts'
import type { Store } from './store/store.ts'
import { Tokens } from './tokens.ts'

/** A file that grows while it is mapped costs page faults, and what is mapped counts as memory of the process. */
const DATABASE_MEMORY = { mapBytes: 0, cacheBytes: 16 * 1_048_576 }

/** What tests replace. */
export interface PdsParts {
  log?: Logger
  version?: string
  /** Milliseconds since 1970. */
  now?: () => number
  /** Reaches the directory, relays and strangers. */
  fetch?: FetchBytes
  /** Finds addresses of strangers; default the system's. */
  lookup?: LookupAll
  /** Reads DNS TXT records; default the system's servers. */
  resolveTxt?: ResolveTxt
  blobs?: BlobDriver
}

export interface Pds {
  /** Where it listens, without a slash at the end; known after {@link listen}. */
  readonly url: string
  readonly names: ServiceNames
  readonly store: Store
  readonly repos: Repos
  readonly lifecycle: Lifecycle
  readonly blobs: Blobs
  readonly departures: Departures
  listen(): Promise<void>
  /** Answers what has been asked, then lets go of everything. */
  close(): Promise<void>
}

const SUBSCRIBE_PATH = '/xrpc/com.atproto.sync.subscribeRepos'
const HOUSEKEEPING_MS = 10 * 60_000
const PRUNE_MS_MIN = 50
const JWT_SECRET_BYTES = 32
/** How long a signing key waits for its account to come. */
const RESERVED_KEY_MS = 90 * 86_400_000
/** Every app's every view comes through one host. */
const APP_VIEW_CONNECTIONS = 256

/** Opens the database; {@link Pds.listen} then begins to serve. */
export async function createPds(settings: PdsSettings, parts: PdsParts = {}): Promise<Pds> {
  const { log = createLog({ name: 'pds', level: settings.logLevel }), now = Date.now } = parts
  const core = await openCore(settings, log, now, parts.blobs)
  try {
    return await assemble(core, settings, { ...parts, log, now })
  } catch (error) {
    // Open connections would keep a process from ending.
    await core.store.close()
    throw error
  }
}

type Assembling = PdsParts & Required<Pick<PdsParts, 'log' | 'now'>>

async function assemble(core: Core, settings: PdsSettings, parts: Assembling): Promise<Pds> {
  const { log, version = '0.0.0', now } = parts
  const held = settings.port === 0 ? await holdPort() : null
  const port = held?.port ?? settings.port
  const names = serviceNames(settings, port)
  const outside = openOutside(settings, names, version, log, now, parts)
  core.onCommit = () => outside.crawlers.notify()
  const registry = () => createMetrics({ process: true })
  const telemetry = await startTelemetry(settings, { name: 'millisky-pds', version, metrics: registry, log, now })
  const { trace, metrics } = telemetry
  const product = `millisky-pds/${version}`
  const relayWatch = openRelayWatch(settings, names, outside, { head: () => core.store.log.head, log, metrics, now })
  const http = createHttp({ log, product, trustProxy: settings.trustProxy, trace, ...(metrics ? { metrics } : {}) })
  const { streamExtras: on } = settings
  const extras = { filters: on, compression: on, json: on }
  const subscription = new Subscription({ log: core.store.log, now, extras, tellsAtZero: true })
  const resolveTxt = parts.resolveTxt ?? dnsTxt({ backup: settings.handleNameservers })
  await addMethods({ ...core, ...outside, settings, names, version, log, now, http, resolveTxt, relayWatch })
  http.route({
    method: ['GET', 'POST', 'PUT', 'PATCH', 'DELETE'],
    url: SUBSCRIBE_PATH,
    handler: request => {
      throw notWebSocket(request.method)
    },
  })
  subscription.attach(http.server, SUBSCRIBE_PATH)
  const housekeeping = startHousekeeping(core, log, now, settings.backfillWindowMs)
  let url = ''
  let closing: Promise<void> | null = null
  return {
    ...core,
    names,
    get url() {
      return url
    },
    async listen() {
      await http.ready()
      held?.release()
      url = await listen(http, addressOf(settings, port))
      log.info({ url, publicUrl: names.publicUrl, did: names.did }, 'the PDS is listening')
      outside.crawlers.notify()
      relayWatch.start()
    },
    close() {
      closing ??= (async () => {
        await housekeeping.stop()
        await relayWatch.close()
        await outside.crawlers.close()
        // It closes when the last connection has, and consumers stay connected until they are told to leave.
        const closed = http.close()
        await core.lanes.idle()
        await subscription.close()
        await closed
        await core.lanes.idle()
        await outside.close()
        await core.store.close()
        await telemetry.close()
      })()
      return closing
    },
  }
}

/** State, and the rules for changing it. */
interface Core extends Pick<Storage, 'store' | 'eventLog' | 'staging' | 'counters'> {
  lanes: Lanes
  repos: Repos
  lifecycle: Lifecycle
  blobs: Blobs
  departures: Departures
  foreign: ForeignChanges
  /** Told after each commit. */
  onCommit: () => void
}

/** Where everything is kept. */
export interface Storage {
  /** Closing it closes all. */
  store: Store
  eventLog: SqlLog
  driver: BlobDriver
  /** Folder of what is on its way in. */
  staging: string
  /** Where several processes may be at the database: keeps the others out of a lane. */
  hold: LanesOptions['hold']
  /** There too: counts for all of them. */
  counters: SharedCounters | undefined
}

interface StorageOptions {
  log: Logger
  now: () => number
  /** No event gets a seq below. */
  firstSeq?: number
  /** Shown events that other processes may have made. */
  fetched?: (frames: readonly Uint8Array[]) => void
}

/** Opens the database and the place of blobs. */
export async function openStorage(settings: PdsSettings, options: StorageOptions): Promise<Storage> {
  const { log } = options
  const { databaseUrl, blobDirectory } = storagePaths(settings)
  const db = await openDb<PdsSchema>(databaseUrl, { migrations, log, ...DATABASE_MEMORY })
  const eventLog = await openSqlLog(db as unknown as Db<never>, { ...options, withSeq })
  const staging = join(blobDirectory, '.staging')
  return {
    store: createSqlStore(db, eventLog),
    eventLog,
    driver: await openBlobs(settings, blobDirectory, staging),
    staging,
    hold: db.kind === 'postgres' ? name => db.hold(name) : undefined,
    counters: db.kind === 'postgres' ? createSharedCounters(db, options) : undefined,
  }
}

async function openBlobs(settings: PdsSettings, root: string, staging: string): Promise<BlobDriver> {
  const place = s3Place(settings)
  if (!place) return createDiskBlobs({ root, staging })
  // Most servers never need it, and it takes memory.
  const { createS3Blobs } = await import('./blobs/s3.ts')
  return createS3Blobs(place)
}

async function openCore(settings: PdsSettings, log: Logger, now: () => number, given?: BlobDriver): Promise<Core> {
  const { firstSeq } = settings
  const from = firstSeq === undefined ? {} : { firstSeq }
  const foreign = new ForeignChanges()
  const fetched = (frames: readonly Uint8Array[]) => foreign.show(frames)
  const opened = await openStorage(settings, { log, now, fetched, ...from })
  const { store, driver, hold } = opened
  const lanes = new Lanes({ hold })
  const tids = new TidClock({ now, clockId: randomInt(1024) })
  const repos = new Repos({ store, lanes, tids, now, onCommit: () => core.onCommit() })
  const blobs = new Blobs({
    driver: given ?? driver,
    store,
    lanes,
    now,
    bytesMax: settings.blobUploadLimit,
    graceMs: settings.blobGraceMs,
    accountBytesMax: settings.blobQuota,
  })
  const lifecycle = new Lifecycle(repos)
  const departures = new Departures({ store, lifecycle, blobs, log })
  const core: Core = { ...opened, lanes, repos, lifecycle, blobs, departures, foreign, onCommit: () => {} }
  return core
}

/** What reaches out. */
interface Outside {
  fetch: FetchBytes
  /** For hosts that the operator names, which may lie in a private network. */
  trustedFetch: FetchBytes
  /** The same two for requests that are passed on. */
  send: { strangers: SendOn; trusted: SendOn }
  crawlers: Crawlers
  mailer: Mailer
  moderationMailer: Mailer
  close(): Promise<void>
}

function openOutside(
  settings: PdsSettings,
  names: ServiceNames,
  version: string,
  log: Logger,
  now: () => number,
  { fetch: given, lookup }: Pick<PdsParts, 'fetch' | 'lookup'>,
): Outside {
  const userAgent = `millisky-pds/${version}`
  const allowPrivate = settings.disableSsrfProtection ?? settings.devMode
  const strangers = new Fetcher({ userAgent, allowPrivate, ...(lookup ? { lookup } : {}) })
  const trusted = new Fetcher({ userAgent, allowPrivate: true, connectionsPerHost: APP_VIEW_CONNECTIONS })
  const fetch: FetchBytes = given ?? ((url, options) => strangers.fetch(url, options))
  const trustedFetch: FetchBytes = given ?? ((url, options) => trusted.fetch(url, options))
  const crawlers = new Crawlers({
    relays: relaysOf(settings),
    publicHost: names.publicHost,
    fetch: trustedFetch,
    log,
    now,
  })
  const mailers = openMailers(settings, log)
  return {
    fetch,
    trustedFetch,
    send: {
      strangers: (url, options) => strangers.exchange(url, options),
      trusted: (url, options) => trusted.exchange(url, options),
    },
    crawlers,
    ...mailers,
    async close() {
      await Promise.all([mailers.mailer.close(), mailers.moderationMailer.close()])
      await Promise.all([strangers.close(), trusted.close()])
    },
  }
}

const relaysOf = ({ crawlers }: PdsSettings) =>
  crawlers.map(relay => (relay.includes('://') ? relay : `https://${relay}`))

function openRelayWatch(
  settings: PdsSettings,
  { publicHost }: ServiceNames,
  { trustedFetch: fetch, crawlers }: Outside,
  parts: Pick<RelayWatchParts, 'head' | 'log' | 'metrics' | 'now'>,
): RelayWatch {
  const { relayCheckMs: intervalMs } = settings
  const announce = (relay: string) => crawlers.notify(relay)
  return new RelayWatch({ ...parts, relays: relaysOf(settings), publicHost, fetch, announce, intervalMs })
}

function openMailers(settings: PdsSettings, log: Logger) {
  const { emailSmtpUrl: smtpUrl, emailFromAddress: from, devMode: show } = settings
  const { moderationEmailSmtpUrl, moderationEmailAddress } = settings
  const mailer = new Mailer({ smtpUrl, from, show, log })
  const moderationMailer = new Mailer({
    smtpUrl: moderationEmailSmtpUrl ?? smtpUrl,
    from: moderationEmailAddress ?? from,
    show,
    log,
  })
  return { mailer, moderationMailer }
}

interface MethodParts extends Core, Outside {
  settings: PdsSettings
  names: ServiceNames
  version: string
  log: Logger
  now: () => number
  http: FastifyInstance
  resolveTxt: ResolveTxt
  relayWatch: RelayWatch
}

async function addMethods(parts: MethodParts): Promise<void> {
  const { settings, names, store, repos, blobs, log, now, http, fetch, trustedFetch, version } = parts
  const { devMode, adminPassword } = settings
  const handles = { domains: names.handleDomains }
  const identities: Identities = new Identities({
    plcUrl: settings.plcUrl,
    fetch,
    plcFetch: trustedFetch,
    resolveTxt: parts.resolveTxt,
    local: { handle: handle => accounts.localHandle(handle) },
    settings: {
      dids: { staleMs: settings.didStaleMs, maxMs: settings.didMaxMs },
      timeoutMs: settings.resolverTimeoutMs,
    },
    now,
    // Where services may lie on this machine, so may their DIDs.
    ...(devMode || settings.disableSsrfProtection ? { development: {} } : {}),
  })
  const shared = {
    ...parts,
    identities,
    handles,
    rotationKey: settings.plcRotationKey ? SigningKey.fromPrivate('k256', settings.plcRotationKey) : null,
    recoveryDidKey: settings.recoveryDidKey,
    directory: { plcUrl: settings.plcUrl, fetch: trustedFetch },
  }
  parts.foreign.attach(identities)
  const accounts: Accounts = new Accounts({ ...shared, inviteRequired: settings.inviteRequired })
  const tokens = new Tokens(settings.jwtSecret ?? (await keptSecret(store)), names.did, now)
  const serviceTokens = new ServiceTokens({ identities, audiences: [names.did, `${names.did}#atproto_pds`], now })
  const { modServiceDid } = settings
  const access = createAccess({ tokens, serviceTokens, accounts: store.accounts, adminPassword, modServiceDid })
  const sessions = new Sessions({ store, tokens, now })
  const limits = (settings.rateLimits ?? !devMode) ? createLimits(parts.counters?.store) : undefined
  const targets = new Targets({ services: servicesOf(settings), identities })
  const proxy = new ServiceProxy({ ...parts.send, targets, repos, access, settings, now })
  const xrpc = new Xrpc(http, {
    log,
    fallback: proxy.serve,
    checkReplies: devMode,
    rates: limits ? [{ limit: limits.all, key: request => addressKey(request.ip) }] : [],
    bypass: bypassOf({ key: settings.rateBypassKey, ips: settings.rateBypassIps }),
  })
  addRepoApi(xrpc, {
    store,
    repos,
    blobs,
    access,
    identities,
    writeLimits: limits?.writes,
    uploadLimits: limits?.uploads,
    imports: settings.acceptingImports ? new Imports(repos, parts.staging, settings.importBytesMax) : null,
    importBytesMax: settings.importBytesMax,
    elsewhere: proxy.foreignRecord,
  })
  addSyncApi(xrpc, { store, exports: new Exports(store), access, exportLimits: limits?.exports })
  addBlobApi(xrpc, { store, blobs, access })
  addServerApi(xrpc, { settings, names, store, access, accounts, sessions, limits })
  addPreferencesApi(xrpc, { store, access, elsewhere: proxy.elsewhere, now })
  addProxiedApi(xrpc, { settings, names, store, access, proxy, now, log })
  addModerationApi(xrpc, { access, proxy })
  addAccountMethods(xrpc, { ...shared, accounts, access, limits, proxy })
  addWellKnown(http, { store, names, version })
  addHealth(http, version, () => store.ping())
}

interface AccountMethodParts extends MethodParts {
  identities: Identities
  handles: HandleRules
  rotationKey: SigningKey | null
  recoveryDidKey: string | undefined
  directory: PlcDirectory
  accounts: Accounts
  access: PdsAccess
  limits: Limits | undefined
  proxy: ServiceProxy
}

/** What people do with their accounts, apart from signing up and in. */
function addAccountMethods(xrpc: Xrpc, parts: AccountMethodParts): void {
  const { settings, store, now } = parts
  const credentials = new Credentials({ store, now })
  const codes = new MailCodes({ store, now })
  addAppPasswordApi(xrpc, { ...parts, credentials })
  addInviteApi(xrpc, parts)
  addServiceAuthApi(xrpc, parts)
  addEmailApi(xrpc, { ...parts, codes, confirmationLink: !settings.emailDisableConfirmationLink })
  addRecoveryApi(xrpc, { ...parts, codes, credentials })
  const didUpdates = new DidUpdates(parts)
  addStatusApi(xrpc, { ...parts, didUpdates })
  addIdentityApi(xrpc, { ...parts, codes, didUpdates })
  addAdminAccountApi(xrpc, { ...parts, credentials, didUpdates })
  addAdminAdmissionApi(xrpc, parts)
  addAdminInviteApi(xrpc, parts)
  addAdminRelayApi(xrpc, parts)
  addAdminStorageApi(xrpc, parts)
  addAdminSubjectApi(xrpc, { ...parts, credentials, didUpdates })
  addTempApi(xrpc, { ...parts, credentials })
  const { resolverTimeoutMs: timeoutMs, lexiconAuthority } = settings
  addLexiconApi(xrpc, {
    ...parts,
    lexicons: new Lexicons({ ...parts, timeoutMs, authority: lexiconAuthority as Did | undefined }),
  })
}

async function keptSecret(store: Store): Promise<string> {
  const secret = await store.tickets.secret('jwt', () => randomBytes(JWT_SECRET_BYTES))
  return Buffer.from(secret).toString('hex')
}

/** What has to be done from time to time. */
function startHousekeeping(core: Core, log: Logger, now: () => number, windowMs: number): { stop(): Promise<void> } {
  const house = repeat(HOUSEKEEPING_MS, log, async () => {
    const collected = await core.blobs.collect()
    if (collected.blobs + collected.staged > 0) log.info(collected, 'removed blobs that nothing refers to')
    await core.store.sessions.removeExpired(now())
    await core.departures.removeDue(now())
    await core.store.tickets.removeReservedKeysBefore(now() - RESERVED_KEY_MS)
    await core.counters?.prune()
  })
  // Consumers are told that they have missed events as soon as they are out of the window, however short it is.
  const pruneMs = Math.min(HOUSEKEEPING_MS, Math.max(PRUNE_MS_MIN, windowMs / 8))
  const events = repeat(pruneMs, log, async () => {
    await core.eventLog.prune({ ageMs: windowMs, now: now() })
  })
  return { stop: async () => void (await Promise.all([house.stop(), events.stop()])) }
}

/** One round at a time. */
function repeat(ms: number, log: Logger, round: () => Promise<void>): { stop(): Promise<void> } {
  let running: Promise<void> = Promise.resolve()
  let busy = false
  const timer = setInterval(() => {
    if (busy) return
    busy = true
    running = round()
      .catch(error => log.error({ err: error }, 'housekeeping failed'))
      .finally(() => {
        busy = false
      })
  }, ms)
  timer.unref()
  return {
    async stop() {
      clearInterval(timer)
      await running
    },
  }
}

function addressOf({ socketPath, bind, devMode }: PdsSettings, port: number) {
  if (socketPath !== undefined) return { socketPath, mode: 0o770 }
  return { port, host: bind ?? (devMode ? '127.0.0.1' : '::') }
}

/** Keeps a free port until we listen there ourselves: the public URL has to be known before that. */
async function holdPort(): Promise<{ port: number; release(): void }> {
  const holder = createServer().unref()
  await new Promise<void>((resolve, reject) => {
    holder.once('error', reject)
    holder.listen(0, '127.0.0.1', resolve)
  })
  return { port: (holder.address() as AddressInfo).port, release: () => void holder.close() }
}
