/** The PDS's settings, under the names of the reference implementation, so that an existing `pds.env` works. */
import { join } from 'node:path'
import { defineSettings, type Settings } from '@millisky/server/config'
import { telemetrySettings } from '@millisky/server/telemetry'
import { blobSettings } from './blobs/settings.ts'
import { SEQ_MAX } from './relay-verdict.ts'

const HOUR_MS = 3_600_000

export const settings = defineSettings(
  'pds',
  {
    port: {
      type: 'port',
      default: 2583,
      env: ['PDS_PORT'],
      flag: '--port',
      doc: 'TCP port to listen on.',
      section: 'Service',
    },
    bind: {
      type: 'string',
      env: ['PDS_BIND'],
      flag: '--bind',
      doc: 'Address to listen on. Default: every address; loopback in development mode.',
      section: 'Service',
    },
    socketPath: {
      type: 'path',
      env: ['PDS_SOCKET_PATH'],
      flag: '--socket-path',
      doc: 'Listen on this Unix socket instead of a TCP port.',
      section: 'Service',
    },
    hostname: {
      type: 'string',
      default: 'localhost',
      env: ['PDS_HOSTNAME'],
      flag: '--hostname',
      doc: 'Public host name. `localhost` is for development: plain http with the port.',
      section: 'Service',
    },
    serviceDid: {
      type: 'string',
      env: ['PDS_SERVICE_DID'],
      flag: '--service-did',
      doc: 'DID of this server. Default: `did:web:` and the host name.',
      section: 'Service',
    },
    contactEmail: {
      type: 'string',
      env: ['PDS_CONTACT_EMAIL_ADDRESS'],
      doc: 'Address of the operator, in describeServer.',
      section: 'Service',
    },
    privacyPolicyUrl: {
      type: 'url',
      env: ['PDS_PRIVACY_POLICY_URL'],
      doc: 'Link in describeServer.',
      section: 'Service',
    },
    termsOfServiceUrl: {
      type: 'url',
      env: ['PDS_TERMS_OF_SERVICE_URL'],
      doc: 'Link in describeServer.',
      section: 'Service',
    },
    trustProxy: {
      type: 'list',
      default: ['loopback', 'uniquelocal'],
      env: ['PDS_TRUST_PROXY'],
      flag: '--trust-proxy',
      doc: 'Addresses or networks of reverse proxies whose X-Forwarded-For and X-Forwarded-Host are believed.',
      section: 'Service',
    },
    devMode: {
      type: 'bool',
      default: false,
      env: ['PDS_DEV_MODE'],
      flag: '--dev-mode',
      doc: 'Development: listens on loopback, checks its own replies, takes plain http from clients and peers.',
      section: 'Service',
    },
    disableSsrfProtection: {
      type: 'bool',
      env: ['PDS_DISABLE_SSRF_PROTECTION'],
      flag: '--disable-ssrf-protection',
      doc: 'Outbound requests may reach loopback and private addresses, and use plain http. Default: in development mode.',
      section: 'Service',
    },
    dataDirectory: {
      type: 'path',
      default: 'data/pds',
      env: ['PDS_DATA_DIRECTORY'],
      flag: '--data-directory',
      doc: 'Folder of the database and of blobs.',
      section: 'Storage',
    },
    databaseUrl: {
      type: 'string',
      env: ['PDS_DATABASE_URL', 'DATABASE_URL'],
      flag: '--database-url',
      doc: '`sqlite://path` or `postgres://…`. Default: `pds.sqlite` in the data folder.',
      section: 'Storage',
    },
    ...blobSettings,
    ...telemetrySettings,
    backfillWindowMs: {
      type: 'duration',
      default: 24 * HOUR_MS,
      env: ['PDS_REPO_BACKFILL_LIMIT_MS'],
      flag: '--backfill-window',
      doc: 'How long events are kept for consumers that come back.',
      section: 'Storage',
    },
    plcUrl: {
      type: 'url',
      default: 'https://plc.directory',
      env: ['PDS_DID_PLC_URL'],
      flag: '--plc-url',
      doc: 'The did:plc directory.',
      section: 'Identity',
    },
    plcRotationKey: {
      type: 'hex',
      length: 32,
      secret: true,
      env: ['PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX'],
      doc: 'Private key (secp256k1) with which this server signs did:plc operations. Without it no DIDs are made here.',
      section: 'Identity',
    },
    recoveryDidKey: {
      type: 'string',
      env: ['PDS_RECOVERY_DID_KEY'],
      doc: "did:key that is put before the server's own among a new account's rotation keys.",
      section: 'Identity',
    },
    handleDomains: {
      type: 'list',
      env: ['PDS_SERVICE_HANDLE_DOMAINS'],
      flag: '--handle-domains',
      doc: 'Domains below which handles are given out, each with a leading dot. Default: the host name, or `.test`.',
      section: 'Identity',
    },
    didStaleMs: {
      type: 'duration',
      default: HOUR_MS,
      env: ['PDS_DID_CACHE_STALE_TTL'],
      doc: 'Age at which a DID document is looked up again.',
      section: 'Identity',
    },
    didMaxMs: {
      type: 'duration',
      default: 24 * HOUR_MS,
      env: ['PDS_DID_CACHE_MAX_TTL'],
      doc: 'Age at which a DID document is no longer used.',
      section: 'Identity',
    },
    resolverTimeoutMs: {
      type: 'duration',
      default: 3_000,
      env: ['PDS_ID_RESOLVER_TIMEOUT'],
      doc: 'For one lookup of a DID or handle.',
      section: 'Identity',
    },
    lexiconAuthority: {
      type: 'string',
      env: ['PDS_LEXICON_AUTHORITY_DID'],
      doc: 'DID of an account whose repository holds all lexicons, for closed networks. Default: DNS says for each.',
      section: 'Identity',
    },
    handleNameservers: {
      type: 'list',
      default: [],
      env: ['PDS_HANDLE_BACKUP_NAMESERVERS'],
      doc: "Name servers to ask when the system's do not know a handle.",
      section: 'Identity',
    },
    didDocWithSession: {
      type: 'bool',
      default: false,
      env: ['PDS_ENABLE_DID_DOC_WITH_SESSION'],
      doc: 'Sessions carry the DID document.',
      section: 'Identity',
    },
    inviteRequired: {
      type: 'bool',
      default: true,
      env: ['PDS_INVITE_REQUIRED'],
      flag: '--invite-required',
      doc: 'New accounts need an invite code.',
      section: 'Accounts',
    },
    inviteIntervalMs: {
      type: 'duration',
      env: ['PDS_INVITE_INTERVAL'],
      doc: 'Each account earns an invite code in this time, as long as invites are required. Default: it earns none.',
      section: 'Accounts',
    },
    inviteEpoch: {
      type: 'int',
      min: 0,
      default: 0,
      env: ['PDS_INVITE_EPOCH'],
      doc: 'Since when codes are earned, in milliseconds since 1970.',
      section: 'Accounts',
    },
    adminPassword: {
      type: 'string',
      secret: true,
      env: ['PDS_ADMIN_PASSWORD'],
      doc: 'Password of the admin methods (Basic, user `admin`). Without it they are closed.',
      section: 'Accounts',
    },
    modServiceDid: {
      type: 'string',
      env: ['PDS_MOD_SERVICE_DID'],
      doc: 'DID of the moderation service, whose tokens open the methods of moderators.',
      section: 'Accounts',
    },
    jwtSecret: {
      type: 'string',
      secret: true,
      env: ['PDS_JWT_SECRET'],
      doc: 'Secret with which session tokens are signed. Without it one is made and kept in the database.',
      section: 'Accounts',
    },
    emailSmtpUrl: {
      type: 'url',
      schemes: ['smtp', 'smtps'],
      secret: true,
      env: ['PDS_EMAIL_SMTP_URL'],
      doc: 'Mail server, such as `smtps://user:password@smtp.example.com:465`. Without it no mail is sent.',
      section: 'Mail',
    },
    emailFromAddress: {
      type: 'string',
      env: ['PDS_EMAIL_FROM_ADDRESS'],
      doc: 'Whom mails come from: an address, or `Name <address>`.',
      section: 'Mail',
    },
    emailDisableConfirmationLink: {
      type: 'bool',
      default: false,
      env: ['PDS_EMAIL_DISABLE_CONFIRMATION_LINK'],
      doc: 'Confirmation mails have the code alone and no link to the Bluesky app.',
      section: 'Mail',
    },
    moderationEmailSmtpUrl: {
      type: 'url',
      schemes: ['smtp', 'smtps'],
      secret: true,
      env: ['PDS_MODERATION_EMAIL_SMTP_URL'],
      doc: 'Mail server for mails that moderators write. Default: the other one.',
      section: 'Mail',
    },
    moderationEmailAddress: {
      type: 'string',
      env: ['PDS_MODERATION_EMAIL_ADDRESS'],
      doc: 'Whom mails of moderators come from. Default: the other address.',
      section: 'Mail',
    },
    rateLimits: {
      type: 'bool',
      env: ['PDS_RATE_LIMITS_ENABLED'],
      flag: '--rate-limits',
      doc: 'Limit calls, logins and writes. Default: yes, except in development mode.',
      section: 'Limits',
    },
    rateBypassKey: {
      type: 'string',
      secret: true,
      env: ['PDS_RATE_LIMIT_BYPASS_KEY'],
      doc: 'Requests with this value of `x-ratelimit-bypass` are not limited.',
      section: 'Limits',
    },
    rateBypassIps: {
      type: 'list',
      default: [],
      env: ['PDS_RATE_LIMIT_BYPASS_IPS'],
      doc: 'Addresses that are not limited.',
      section: 'Limits',
    },
    acceptingImports: {
      type: 'bool',
      default: true,
      env: ['PDS_ACCEPTING_REPO_IMPORTS'],
      flag: '--accepting-imports',
      doc: 'Accounts may bring their repository from elsewhere.',
      section: 'Accounts',
    },
    importBytesMax: {
      type: 'bytes',
      default: 1024 * 1024 * 1024,
      env: ['PDS_MAX_REPO_IMPORT_SIZE'],
      doc: 'Largest repository that is imported.',
      section: 'Limits',
    },
    crawlers: {
      type: 'list',
      default: [],
      env: ['PDS_CRAWLERS'],
      flag: '--crawlers',
      doc: 'Relays that are asked to crawl this server, as URLs.',
      section: 'Network',
    },
    relayCheckMs: {
      type: 'duration',
      default: 10 * 60_000,
      env: ['PDS_RELAY_CHECK_INTERVAL'],
      flag: '--relay-check-interval',
      doc: 'How often relays are asked how far they have followed this server; 0 for never.',
      section: 'Network',
    },
    firstSeq: {
      type: 'int',
      min: 1,
      max: SEQ_MAX,
      env: ['PDS_FIRST_SEQ'],
      flag: '--first-seq',
      doc: 'No event gets a number below this. After putting back an older copy: above what relays have seen, see `millisky relays`.',
      section: 'Network',
    },
    streamExtras: {
      type: 'bool',
      default: true,
      env: ['PDS_STREAM_EXTRAS'],
      flag: '--stream-extras',
      doc: 'Consumers of the event stream may ask for chosen events, compression and JSON.',
      section: 'Network',
    },
    appViewUrl: {
      type: 'url',
      env: ['PDS_BSKY_APP_VIEW_URL'],
      flag: '--app-view-url',
      doc: 'App view to which methods go that this server does not have. Without it callers have to name a service.',
      section: 'Services',
    },
    appViewDid: {
      type: 'string',
      env: ['PDS_BSKY_APP_VIEW_DID'],
      flag: '--app-view-did',
      doc: 'DID of the app view.',
      section: 'Services',
    },
    appViewCdnUrlPattern: {
      type: 'string',
      env: ['PDS_BSKY_APP_VIEW_CDN_URL_PATTERN'],
      doc: 'Where pictures of fresh posts are shown from, with `%s` for kind, DID and CID. Default: this server.',
      section: 'Services',
    },
    modServiceUrl: {
      type: 'url',
      env: ['PDS_MOD_SERVICE_URL'],
      doc: 'Moderation service, to which `tools.ozone.*` goes.',
      section: 'Services',
    },
    reportServiceUrl: {
      type: 'url',
      env: ['PDS_REPORT_SERVICE_URL'],
      doc: 'Service that takes reports. Default: the moderation service.',
      section: 'Services',
    },
    reportServiceDid: {
      type: 'string',
      env: ['PDS_REPORT_SERVICE_DID'],
      doc: 'DID of the service that takes reports.',
      section: 'Services',
    },
    proxyAudience: {
      type: 'enum',
      values: ['did', 'service'],
      default: 'did',
      env: ['PDS_PROXY_AUDIENCE'],
      doc: 'Audience of tokens for other services: the DID alone, or with `#` and the id of the service.',
      section: 'Services',
    },
    proxyHeadersTimeoutMs: {
      type: 'duration',
      default: 10_000,
      env: ['PDS_PROXY_HEADERS_TIMEOUT'],
      doc: 'How long a service may take to begin its answer.',
      section: 'Services',
    },
    proxyBodyTimeoutMs: {
      type: 'duration',
      default: 30_000,
      env: ['PDS_PROXY_BODY_TIMEOUT'],
      doc: 'How long a service may fall silent within its answer; all of it may take ten times this.',
      section: 'Services',
    },
    proxyAnswerBytesMax: {
      type: 'bytes',
      default: 10 * 1024 * 1024,
      env: ['PDS_PROXY_MAX_RESPONSE_SIZE'],
      doc: "Largest answer of a service. Callers' bodies may be as large as a blob.",
      section: 'Services',
    },
    proxyRetriesMax: {
      type: 'int',
      min: 0,
      max: 10,
      default: 0,
      env: ['PDS_PROXY_MAX_RETRIES'],
      doc: 'Further attempts of a query that the network failed.',
      section: 'Services',
    },
    proxyPreferCompressed: {
      type: 'bool',
      default: false,
      env: ['PDS_PROXY_PREFER_COMPRESSED'],
      doc: 'Ask for compressed answers also where they may have to be read here; for services far away.',
      section: 'Services',
    },
    logLevel: {
      type: 'enum',
      values: ['fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent'],
      default: 'info',
      env: ['PDS_LOG_LEVEL', 'LOG_LEVEL'],
      flag: '--log-level',
      doc: 'What is logged.',
      section: 'Service',
    },
  },
  {
    // Of the reference; without meaning here, or not yet.
    ignored: [
      'PDS_VERSION',
      'PDS_SERVICE_NAME',
      'PDS_HOME_URL',
      'PDS_LOGO_URL',
      'PDS_SUPPORT_URL',
      'PDS_PRIMARY_COLOR',
      'PDS_ERROR_COLOR',
      'PDS_WARNING_COLOR',
      'PDS_INFO_COLOR',
      'PDS_SUCCESS_COLOR',
      'PDS_BACKGROUND_LIGHT_URL',
      'PDS_BACKGROUND_DARK_URL',
      'PDS_HCAPTCHA_SITE_KEY',
      'PDS_HCAPTCHA_SECRET_KEY',
      'PDS_HCAPTCHA_TOKEN_SALT',
      'PDS_OAUTH_TRUSTED_CLIENTS',
      'PDS_DPOP_SECRET',
      'PDS_ACCOUNT_DB_LOCATION',
      'PDS_SEQUENCER_DB_LOCATION',
      'PDS_DID_CACHE_DB_LOCATION',
      'PDS_SQLITE_DISABLE_WAL_AUTO_CHECKPOINT',
      'PDS_ACTOR_STORE_DIRECTORY',
      'PDS_ACTOR_STORE_CACHE_SIZE',
      'PDS_BLOBSTORE_DISK_TMP_LOCATION',
      'PDS_MAX_SUBSCRIPTION_BUFFER',
      'PDS_REDIS_SCRATCH_ADDRESS',
      'PDS_REDIS_SCRATCH_PASSWORD',
      'PDS_FETCH_MAX_RESPONSE_SIZE',
      'PDS_PROXY_ALLOW_HTTP2',
    ],
  },
)

export type PdsSettings = Settings<typeof settings>

/** What follows from the settings and is needed in several places. */
export interface ServiceNames {
  /** DID of this server. */
  did: string
  /** Where others reach it, without a slash at the end. */
  publicUrl: string
  /** Host name with the port where that is not the scheme's own: what relays know it by. */
  publicHost: string
  /** Each with a leading dot, lower case. */
  handleDomains: readonly string[]
}

/** @param port - That it listens on, which may have been given as 0. */
export function serviceNames(settings: PdsSettings, port: number): ServiceNames {
  const { hostname } = settings
  const isLocal = hostname === 'localhost'
  const publicHost = isLocal ? `localhost:${port}` : hostname
  const domains = settings.handleDomains ?? [isLocal ? '.test' : `.${hostname}`]
  return {
    did: settings.serviceDid ?? `did:web:${hostname}`,
    publicUrl: `${isLocal ? 'http' : 'https'}://${publicHost}`,
    publicHost,
    handleDomains: domains.map(domain => (domain.startsWith('.') ? domain : `.${domain}`).toLowerCase()),
  }
}

/** Where things lie, unless told otherwise. */
export function storagePaths(settings: PdsSettings): { databaseUrl: string; blobDirectory: string } {
  const { dataDirectory, databaseUrl, blobDirectory } = settings
  return {
    databaseUrl: databaseUrl ?? join(dataDirectory, 'pds.sqlite'),
    blobDirectory: blobDirectory ?? join(dataDirectory, 'blobs'),
  }
}
