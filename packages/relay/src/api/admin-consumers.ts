/** Admin routes about consumers, and about what administrators did. */
import { main as kickConsumer } from '@millisky/core/lexicon/gen/net/millisky/relay/admin/kickConsumer'
import { main as listConsumers } from '@millisky/core/lexicon/gen/net/millisky/relay/admin/listConsumers'
import type { ConsumerInfo, Subscription } from '@millisky/server/subscribe'
import type { Xrpc } from '@millisky/server/xrpc'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import type { Administration, Asked } from '../administration.ts'
import type { AuditStore } from '../store/store.ts'
import { noteInput } from './admin-audit.ts'
import { given, integer, optional } from './admin-params.ts'
import { auditView, consumerView } from './admin-views.ts'

const AUDIT_PAGE = 100
const AUDIT_PAGE_MAX = 1_000
const SUCCESS = { success: 'true' }

export interface ConsumerMethodParts {
  subscription: Subscription
  /** @throws {Refused} `ConsumerNotFound` */
  kick(id: number): void
  guard: (request: FastifyRequest) => Asked
}

/** Also of a fan-out, which has nothing else to administer. */
export function addConsumerMethods(xrpc: Xrpc, { subscription, kick, guard: auth }: ConsumerMethodParts): void {
  xrpc.query(listConsumers, { auth }, () => ({ consumers: subscription.list().map(consumerView) }))
  xrpc.procedure(kickConsumer, { auth }, ({ input, request }) => {
    noteInput(request, input)
    kick(input.id)
  })
}

export function addConsumerRoutes(
  admin: FastifyInstance,
  { administration, subscription }: { administration: Administration; subscription: Subscription },
): void {
  admin.get('/admin/consumers/list', () => subscription.list().map(shownConsumer))
  admin.post('/admin/consumers/kick', async request => {
    administration.kick(integer(given(request, 'id')))
    return SUCCESS
  })
  admin.get('/admin/consumers/limits', () => subscription.limits)
  admin.post('/admin/consumers/setLimits', async request => {
    const total = optional(request, 'consumersMax')
    const each = optional(request, 'consumersPerAddressMax')
    await administration.updateSettings({
      ...(total === null ? {} : { consumersMax: integer(total) }),
      ...(each === null ? {} : { consumersPerAddressMax: integer(each) }),
    })
    return SUCCESS
  })
}

/** A consumer as it is shown to administrators; the first five fields as deployed relays have them. */
export function shownConsumer(consumer: ConsumerInfo) {
  return {
    id: consumer.id,
    remote_addr: consumer.address,
    user_agent: consumer.userAgent,
    events_consumed: consumer.events,
    bytes_consumed: consumer.bytes,
    connected_at: new Date(consumer.connectedAt).toISOString(),
    cursor: consumer.cursor,
    lag: consumer.lag,
    form: consumer.form,
  }
}

/** Shows what administrators did. */
export function addAuditRoute(admin: FastifyInstance, audit: AuditStore): void {
  admin.get('/admin/audit/list', async request => {
    const before = optional(request, 'cursor')
    const limit = Math.min(integer(optional(request, 'limit') ?? String(AUDIT_PAGE)), AUDIT_PAGE_MAX)
    const entries = await audit.list(before === null ? null : integer(before), limit)
    const next = entries.length === limit && limit > 0 ? { cursor: entries.at(-1)!.id } : {}
    return { entries: entries.map(auditView), ...next }
  })
}
