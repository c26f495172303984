/** The public methods: com.atproto.sync, health, and a page for people. */
import { Cid } from '@millisky/core/cid'
import { Refused } from '@millisky/core/errors'
import { main as getHostStatus } from '@millisky/core/lexicon/gen/com/atproto/sync/getHostStatus'
import { main as getLatestCommit } from '@millisky/core/lexicon/gen/com/atproto/sync/getLatestCommit'
import { main as getRepo } from '@millisky/core/lexicon/gen/com/atproto/sync/getRepo'
import { main as getRepoStatus } from '@millisky/core/lexicon/gen/com/atproto/sync/getRepoStatus'
import { main as listHosts } from '@millisky/core/lexicon/gen/com/atproto/sync/listHosts'
import { main as listRepos } from '@millisky/core/lexicon/gen/com/atproto/sync/listRepos'
import { main as requestCrawl } from '@millisky/core/lexicon/gen/com/atproto/sync/requestCrawl'
import { type Did, isDid } from '@millisky/core/syntax'
import { callerKey } from '@millisky/server/rate'
import { refusePlain } from '@millisky/server/upgrade'
import { raw, type Xrpc } from '@millisky/server/xrpc'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import type { Accounts } from '../accounts.ts'
import type { Crawl } from '../crawl.ts'
import { parseHostname } from '../hostname.ts'
import type { Host, Hosts } from '../hosts.ts'
import type { Incoming } from '../ingest.ts'
import { isFromRelay, type Siblings } from '../siblings.ts'
import { assertServed, statusOf } from '../status.ts'
import type { RelayStore, StoredAccount } from '../store/store.ts'

export const SUBSCRIBE_PATH = '/xrpc/com.atproto.sync.subscribeRepos'
const CRAWL_PATH = '/xrpc/com.atproto.sync.requestCrawl'
const HEALTH_TIMEOUT_MS = 1_000

export interface SyncApiParts {
  hosts: Hosts
  accounts: Accounts<Incoming>
  crawl: Crawl
  siblings: Pick<Siblings, 'tellCrawl'>
  store: RelayStore
  /** Saves what is known in memory alone so far. */
  save: () => Promise<void>
  insecure: boolean
  version: string
}

export function addSyncApi(http: FastifyInstance, xrpc: Xrpc, parts: SyncApiParts): void {
  addHostMethods(http, xrpc, parts)
  addRepoMethods(xrpc, parts)
  refusePlain(http, SUBSCRIBE_PATH)
  addPages(http, parts)
}

function addHostMethods(http: FastifyInstance, xrpc: Xrpc, parts: SyncApiParts): void {
  const { hosts, crawl, siblings, insecure } = parts
  const ask = async (name: string, request: FastifyRequest): Promise<void> => {
    // In development all hosts are on one machine.
    const from = insecure ? {} : { from: callerKey(request) }
    const { hostname } = await crawl.request(name, { byAdmin: false, ...from })
    if (!isFromRelay(request.headers)) await siblings.tellCrawl(hostname)
  }
  xrpc.procedure(requestCrawl, ({ input, request }) => ask(input.hostname, request))
  // bigsky takes it from a browser's address line, too.
  http.get(CRAWL_PATH, { exposeHeadRoute: false }, async (request, reply) => {
    const { hostname } = request.query as Record<string, unknown>
    if (typeof hostname !== 'string')
      throw new Refused('InvalidRequest', 'hostname is missing: …/requestCrawl?hostname=')
    await ask(hostname, request)
    return reply.header('cache-control', 'no-store').send()
  })
  xrpc.query(listHosts, ({ params }) => {
    const after = cursorOf(params.cursor)
    const page = hosts.list().filter(host => host.id > after)
    const shown = page.slice(0, params.limit)
    return { hosts: shown.map(shownHost), cursor: page.length > shown.length ? String(shown.at(-1)!.id) : undefined }
  })
  xrpc.query(getHostStatus, ({ params }) => {
    const host = hosts.byName(parseHostname(params.hostname, { insecure }).hostname)
    if (!host) throw new Refused('HostNotFound', 'This relay does not know the host', 404)
    return shownHost(host)
  })
}

function cursorOf(cursor: string | undefined): number {
  if (cursor === undefined) return 0
  if (!/^\d{1,15}$/.test(cursor)) throw new Refused('InvalidRequest', 'cursor is not one of this method')
  return Number(cursor)
}

function shownHost({ hostname, record, window }: Host) {
  return {
    hostname,
    seq: window.cursor ?? undefined,
    accountCount: record.accounts,
    status: record.status,
  }
}

function addRepoMethods(xrpc: Xrpc, { accounts, store, hosts, save }: SyncApiParts): void {
  const find = async (did: Did): Promise<StoredAccount | null> => (await accounts.find(did)).durable
  xrpc.query(listRepos, async ({ params }) => {
    const { limit, cursor = '' } = params
    if (cursor !== '' && !isDid(cursor)) throw new Refused('InvalidRequest', 'cursor is not one of this method')
    // Accounts first seen a moment ago are to be listed as well.
    await save()
    // One more tells whether there is a next page.
    const stored = await store.accounts.list(cursor, limit + 1)
    const page = stored.slice(0, limit)
    const repos = page.map(account => accounts.current(account)).flatMap(shownRepo)
    return { repos, cursor: stored.length > limit ? page.at(-1)!.did : undefined }
  })
  xrpc.query(getRepoStatus, async ({ params }) => {
    const account = await find(params.did)
    if (account === null) throw new Refused('RepoNotFound', `Could not find repo for DID: ${params.did}`, 404)
    const { active, status } = statusOf(account)
    return { did: params.did, active, status, rev: active ? (account.rev ?? undefined) : undefined }
  })
  xrpc.query(getLatestCommit, async ({ params }) => {
    const account = await find(params.did)
    assertServed(account, params.did)
    const { commit, rev } = account
    if (commit === null || rev === null) {
      throw new Refused('RepoNotSynchronized', `No commit of this repo has been seen yet: ${params.did}`, 404)
    }
    return { cid: Cid.fromKey(commit).toString(), rev }
  })
  xrpc.query(getRepo, async ({ params }) => {
    const account = await find(params.did)
    assertServed(account, params.did)
    const host = account.host === null ? null : hosts.byId(account.host)
    if (!host) throw new Refused('RepoNotFound', `The host of this repo is not known: ${params.did}`, 404)
    const since = params.since === undefined ? '' : `&since=${encodeURIComponent(params.since)}`
    const location = `${host.origin}/xrpc/com.atproto.sync.getRepo?did=${encodeURIComponent(params.did)}${since}`
    return raw(undefined, undefined, { location }, 302)
  })
}

/** Accounts without a commit have no head to show. */
function shownRepo(account: StoredAccount) {
  const { did, commit, rev } = account
  if (commit === null || rev === null) return []
  return [{ did, head: Cid.fromKey(commit).toString(), rev, ...statusOf(account) }]
}

const BANNER = (version: string) => `
            _ _ _ _     _
  _ __ ___ (_) | (_)___| | ___   _
 | '_ \` _ \\| | | | / __| |/ / | | |
 | | | | | | | | | \\__ \\   <| |_| |
 |_| |_| |_|_|_|_|_|___/_|\\_\\\\__, |
                             |___/   ${version}

 This is an AT Protocol relay: it carries the events of many PDSs in one verified stream.

   Firehose   ${SUBSCRIBE_PATH}
   Your PDS   POST /xrpc/com.atproto.sync.requestCrawl {"hostname": "pds.example.com"}
 How it fares GET /hosts/pds.example.com
   Protocol   https://atproto.com
`

function addPages(http: FastifyInstance, { store, version }: SyncApiParts): void {
  http.get('/', (_request, reply) => reply.type('text/plain; charset=utf-8').send(BANNER(version)))
  let checking: Promise<boolean> | null = null
  const check = async () => {
    const late = new Promise<boolean>(resolve => {
      setTimeout(() => resolve(false), HEALTH_TIMEOUT_MS).unref()
    })
    const answers = store.ping().then(
      () => true,
      () => false,
    )
    return Promise.race([answers, late])
  }
  for (const path of ['/_health', '/xrpc/_health']) {
    http.get(path, async (_request, reply) => {
      checking ??= check().finally(() => {
        checking = null
      })
      if (await checking) return { status: 'ok', version }
      return reply.code(500).send({ status: 'error', version, msg: "can't connect to database" })
    })
  }
}
