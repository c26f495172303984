/** Administration by methods with lexicons: net.millisky.relay.admin. The older routes are in admin.ts. */
import { Refused } from '@millisky/core/errors'
import { main as addHost } from '@millisky/core/lexicon/gen/net/millisky/relay/admin/addHost'
import { main as banDomain } from '@millisky/core/lexicon/gen/net/millisky/relay/admin/banDomain'
import { main as blockHost } from '@millisky/core/lexicon/gen/net/millisky/relay/admin/blockHost'
import { main as disconnectHost } from '@millisky/core/lexicon/gen/net/millisky/relay/admin/disconnectHost'
import { main as getAccount } from '@millisky/core/lexicon/gen/net/millisky/relay/admin/getAccount'
import { main as getAuditLog } from '@millisky/core/lexicon/gen/net/millisky/relay/admin/getAuditLog'
import { main as getHost } from '@millisky/core/lexicon/gen/net/millisky/relay/admin/getHost'
import { main as getOutbox } from '@millisky/core/lexicon/gen/net/millisky/relay/admin/getOutbox'
import { main as getSettings } from '@millisky/core/lexicon/gen/net/millisky/relay/admin/getSettings'
import { main as listDomains } from '@millisky/core/lexicon/gen/net/millisky/relay/admin/listDomains'
import { main as listHosts } from '@millisky/core/lexicon/gen/net/millisky/relay/admin/listHosts'
import { main as listTakedowns } from '@millisky/core/lexicon/gen/net/millisky/relay/admin/listTakedowns'
import { main as restoreAccounts } from '@millisky/core/lexicon/gen/net/millisky/relay/admin/restoreAccounts'
import { main as takeDownAccounts } from '@millisky/core/lexicon/gen/net/millisky/relay/admin/takeDownAccounts'
import { main as trustDomain } from '@millisky/core/lexicon/gen/net/millisky/relay/admin/trustDomain'
import { main as unbanDomain } from '@millisky/core/lexicon/gen/net/millisky/relay/admin/unbanDomain'
import { main as unblockHost } from '@millisky/core/lexicon/gen/net/millisky/relay/admin/unblockHost'
import { main as untrustDomain } from '@millisky/core/lexicon/gen/net/millisky/relay/admin/untrustDomain'
import { main as updateHost } from '@millisky/core/lexicon/gen/net/millisky/relay/admin/updateHost'
import { main as updateSettings } from '@millisky/core/lexicon/gen/net/millisky/relay/admin/updateSettings'
import { type Did, isDid } from '@millisky/core/syntax'
import type { Subscription } from '@millisky/server/subscribe'
import type { Xrpc } from '@millisky/server/xrpc'
import type { FastifyRequest } from 'fastify'
import type { Accounts } from '../accounts.ts'
import type { Administration, Asked } from '../administration.ts'
import type { Host, Hosts } from '../hosts.ts'
import type { Incoming } from '../ingest.ts'
import type { Moderation } from '../moderation.ts'
import type { Siblings } from '../siblings.ts'
import type { RelayStore } from '../store/store.ts'
import { noteInput } from './admin-audit.ts'
import { addConsumerMethods } from './admin-consumers.ts'
import { accountView, auditView, hostView, outboxView } from './admin-views.ts'

export interface AdminMethodParts {
  administration: Administration
  hosts: Hosts
  accounts: Accounts<Incoming>
  moderation: Pick<Moderation, 'takedowns'>
  subscription: Subscription
  siblings: Pick<Siblings, 'origins'>
  store: Pick<RelayStore, 'audit' | 'outbox'>
  isConnected: (host: Host) => boolean
  guard: (request: FastifyRequest) => Asked
}

interface Changing<I> {
  input: I
  auth: Asked
  request: FastifyRequest
}

/** Notes what was asked, for the audit log, before it is done. */
const noting =
  <I, O>(run: (call: Changing<I>) => O) =>
  (call: Changing<I>): O => {
    noteInput(call.request, call.input)
    return run(call)
  }

export function addAdminMethods(xrpc: Xrpc, parts: AdminMethodParts): void {
  addHostMethods(xrpc, parts)
  addHostChanges(xrpc, parts)
  addAccountMethods(xrpc, parts)
  addDomainMethods(xrpc, parts)
  addServiceMethods(xrpc, parts)
}

const view = ({ hosts, isConnected }: AdminMethodParts, host: Host) => hostView(host, hosts, isConnected(host))

function addHostMethods(xrpc: Xrpc, parts: AdminMethodParts): void {
  const { hosts, administration, guard: auth } = parts
  xrpc.query(listHosts, { auth }, ({ params }) => {
    const { limit, status, search = '' } = params
    const after = numberOf(params.cursor)
    const wanted = hosts.list().filter(({ id, hostname, record }) => {
      return id > after && hostname.includes(search.toLowerCase()) && (status ?? record.status) === record.status
    })
    const shown = wanted.slice(0, limit)
    const cursor = wanted.length > shown.length ? String(shown.at(-1)!.id) : undefined
    return { hosts: shown.map(host => view(parts, host)), cursor }
  })
  xrpc.query(getHost, { auth }, ({ params }) => view(parts, administration.host(params.hostname)))
}

function addHostChanges(xrpc: Xrpc, parts: AdminMethodParts): void {
  const { administration, guard: auth } = parts
  xrpc.procedure(
    addHost,
    { auth },
    noting(async ({ input, auth }) => {
      const { hostname, check = true } = input
      return view(parts, await administration.addHost(hostname, auth, { check }))
    }),
  )
  xrpc.procedure(
    updateHost,
    { auth },
    noting(async ({ input: { hostname, ...change }, auth }) => {
      const host = administration.host(hostname)
      await administration.updateHost(host, change, auth)
      return view(parts, host)
    }),
  )
  xrpc.procedure(
    blockHost,
    { auth },
    noting(async ({ input, auth }) => {
      const { hostname, unknown = false } = input
      const host = unknown ? await administration.hostToBlock(hostname) : administration.host(hostname)
      await administration.blockHost(host, input.reason, auth)
      return view(parts, host)
    }),
  )
  xrpc.procedure(
    unblockHost,
    { auth },
    noting(async ({ input, auth }) => {
      const host = administration.host(input.hostname)
      await administration.unblockHost(host, auth)
      return view(parts, host)
    }),
  )
  xrpc.procedure(
    disconnectHost,
    { auth },
    noting(async ({ input, auth }) => {
      const host = administration.host(input.hostname)
      await administration.disconnectHost(host, auth)
      return view(parts, host)
    }),
  )
}

function addAccountMethods(xrpc: Xrpc, { accounts, administration, hosts, moderation, guard: auth }: AdminMethodParts) {
  xrpc.query(getAccount, { auth }, async ({ params }) => {
    const { durable } = await accounts.find(params.did)
    if (durable === null) throw new Refused('RepoNotFound', 'account not found', 404)
    return accountView(durable, durable.host === null ? undefined : hosts.byId(durable.host)?.hostname)
  })
  xrpc.query(listTakedowns, { auth }, async ({ params: { limit, cursor = '' } }) => {
    if (cursor !== '' && !isDid(cursor)) throw new Refused('InvalidRequest', 'cursor is not one of this method')
    const found = await moderation.takedowns(cursor, limit + 1)
    const dids = found.slice(0, limit)
    return { dids, cursor: found.length > limit ? dids.at(-1) : undefined }
  })
  xrpc.procedure(
    takeDownAccounts,
    { auth },
    noting(({ input, auth }) => {
      const { unknown = false } = input
      return changedOf(input.dids, did => administration.takeDown(did, auth, { unknown }))
    }),
  )
  xrpc.procedure(
    restoreAccounts,
    { auth },
    noting(({ input, auth }) => changedOf(input.dids, did => administration.restore(did, auth))),
  )
}

/** One after the other: each is durable, and told, before the next begins. */
async function changedOf(dids: readonly Did[], change: (did: Did) => Promise<boolean>) {
  let changed = 0
  const notFound: Did[] = []
  for (const did of dids) {
    try {
      if (await change(did)) changed++
    } catch (error) {
      if (!(error instanceof Refused && error.error === 'RepoNotFound')) throw error
      notFound.push(did)
    }
  }
  return { changed, notFound }
}

function addDomainMethods(xrpc: Xrpc, { administration, hosts, guard: auth }: AdminMethodParts): void {
  xrpc.query(listDomains, { auth }, () => ({ banned: hosts.bannedDomains(), trusted: hosts.trustedDomains() }))
  xrpc.procedure(
    banDomain,
    { auth },
    noting(({ input, auth }) => administration.banDomain(input.domain, auth)),
  )
  xrpc.procedure(
    unbanDomain,
    { auth },
    noting(({ input, auth }) => administration.unbanDomain(input.domain, auth)),
  )
  xrpc.procedure(
    trustDomain,
    { auth },
    noting(({ input }) => administration.trustDomain(input.domain)),
  )
  xrpc.procedure(
    untrustDomain,
    { auth },
    noting(({ input }) => administration.untrustDomain(input.domain)),
  )
}

function addServiceMethods(xrpc: Xrpc, parts: AdminMethodParts): void {
  const { administration, subscription, siblings, store, guard: auth } = parts
  addConsumerMethods(xrpc, { subscription, kick: id => administration.kick(id), guard: auth })
  xrpc.query(getSettings, { auth }, () => administration.settings)
  xrpc.procedure(
    updateSettings,
    { auth },
    noting(async ({ input }) => {
      await administration.updateSettings(input)
      return administration.settings
    }),
  )
  xrpc.query(getAuditLog, { auth }, async ({ params: { limit, cursor } }) => {
    const found = await store.audit.list(cursor === undefined ? null : numberOf(cursor), limit + 1)
    const entries = found.slice(0, limit)
    return { entries: entries.map(auditView), cursor: found.length > limit ? String(entries.at(-1)!.id) : undefined }
  })
  xrpc.query(getOutbox, { auth }, async ({ params: { limit, cursor } }) => {
    const found = await store.outbox.list(numberOf(cursor), limit + 1)
    const items = found.slice(0, limit)
    const next = found.length > limit ? String(items.at(-1)!.id) : undefined
    return { siblings: siblings.origins, items: items.map(outboxView), cursor: next }
  })
}

function numberOf(cursor: string | undefined): number {
  if (cursor === undefined) return 0
  if (!/^\d{1,15}$/.test(cursor)) throw new Refused('InvalidRequest', 'cursor is not one of this method')
  return Number(cursor)
}
