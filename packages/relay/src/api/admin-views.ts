/** What administrators are shown; shapes are those of net.millisky.relay.admin.defs. */
import { Cid } from '@millisky/core/cid'
import type { Datetime } from '@millisky/core/syntax'
import type { ConsumerInfo } from '@millisky/server/subscribe'
import type { Host, Hosts } from '../hosts.ts'
import { statusOf } from '../status.ts'
import type { AuditEntry, OutboxItem, StoredAccount } from '../store/store.ts'

const time = (ms: number) => new Date(ms).toISOString() as Datetime
const some = <K extends string, V>(key: K, value: V | null | undefined): { [k in K]?: V } =>
  value === null || value === undefined ? {} : ({ [key]: value } as { [k in K]: V })

export function hostView(host: Host, hosts: Hosts, isConnected: boolean) {
  const { record, rejects } = host
  let rejected = 0
  for (const count of rejects.counts.values()) rejected += count
  return {
    hostname: record.hostname,
    status: record.status,
    ...some('reason', record.reason),
    statusAt: time(record.statusAt),
    createdAt: time(record.createdAt),
    byAdmin: record.byAdmin,
    tls: !record.noTls,
    connected: isConnected,
    ...some('seq', host.window.cursor),
    policy: record.policy,
    pinned: record.pinned,
    streak: record.streak,
    trusted: host.isTrusted,
    accountCount: record.accounts,
    limits: hosts.limits(host),
    setLimits: {
      ...some('perSecond', record.perSecond),
      ...some('perHour', record.perHour),
      ...some('perDay', record.perDay),
      ...some('accounts', record.accountLimit),
    },
    growth: record.growth,
    eventsSeen: host.eventsSeen,
    eventsPassed: host.eventsAdmitted,
    eventsRejected: rejected,
    ...(host.lastEventAt > 0 ? { lastEventAt: time(host.lastEventAt) } : {}),
    ...some('lagMs', host.lagMs),
    ...some('lastEnd', host.lastEnd),
  }
}

/** @param hostname - Of the host that it is counted for. */
export function accountView(account: StoredAccount, hostname: string | undefined) {
  return {
    did: account.did,
    ...statusOf(account),
    ...some('hostname', hostname),
    ...some('rev', account.rev),
    ...some('commit', account.commit === null ? null : Cid.fromKey(account.commit).toString()),
    hostActive: account.active,
    ...some('hostStatus', account.status),
    ...some('localStatus', account.local),
  }
}

export function consumerView({ cursor, connectedAt, ...info }: ConsumerInfo) {
  return { ...info, connectedAt: time(connectedAt), seq: cursor }
}

export function auditView(entry: AuditEntry) {
  return { ...entry, at: time(entry.at) }
}

export function outboxView({ id, sibling, path, body, at, attempts, nextAt, error }: OutboxItem) {
  const tried = nextAt > 0 ? { nextAt: time(nextAt) } : {}
  return {
    id,
    sibling,
    path,
    ...(body === '' ? {} : { body }),
    at: time(at),
    attempts,
    ...tried,
    ...some('error', error),
  }
}
