/** Admin routes about consumers, and about what administrators did. */
import { Refused } from '@millisky/core/errors'
import type { Subscription } from '@millisky/server/subscribe'
import type { FastifyInstance } from 'fastify'
import type { AuditStore, SettingStore } from '../store/store.ts'
import { given, integer, optional } from './admin-params.ts'

/** Setting in which limits of consumers are kept. */
const LIMITS = 'consumer-limits'
const AUDIT_PAGE = 100
const AUDIT_PAGE_MAX = 1_000
const PARAMS_LENGTH_MAX = 2_000
const SUCCESS = { success: 'true' }

/** Takes up the limits that administrators have set. */
export async function loadConsumerLimits(settings: SettingStore, subscription: Subscription): Promise<void> {
  const stored = await settings.get(LIMITS)
  if (stored !== null) subscription.limit(JSON.parse(stored))
}

export function addConsumerRoutes(
  admin: FastifyInstance,
  { subscription, settings }: { subscription: Subscription; settings: SettingStore },
): void {
  admin.get('/admin/consumers/list', () =>
    subscription.list().map(consumer => ({
      id: consumer.id,
      remote_addr: consumer.address,
      user_agent: consumer.userAgent,
      events_consumed: consumer.events,
      bytes_consumed: consumer.bytes,
      connected_at: new Date(consumer.connectedAt).toISOString(),
      cursor: consumer.cursor,
      lag: consumer.lag,
    })),
  )
  admin.post('/admin/consumers/kick', async request => {
    if (!subscription.kick(integer(given(request, 'id'))))
      throw new Refused('ConsumerNotFound', 'no such consumer', 404)
    return SUCCESS
  })
  admin.get('/admin/consumers/limits', () => subscription.limits)
  admin.post('/admin/consumers/setLimits', async request => {
    const total = optional(request, 'consumersMax')
    const each = optional(request, 'consumersPerAddressMax')
    subscription.limit({
      ...(total === null ? {} : { consumersMax: integer(total) }),
      ...(each === null ? {} : { consumersPerAddressMax: integer(each) }),
    })
    await settings.set(LIMITS, JSON.stringify(subscription.limits))
    return SUCCESS
  })
}

/** Writes down every change that an administrator makes, before it is answered, and shows what was written. */
export function addAudit(admin: FastifyInstance, { audit, now }: { audit: AuditStore; now: () => number }): void {
  admin.addHook('onSend', async (request, reply, payload) => {
    if (request.method !== 'POST' || reply.statusCode === 401 || reply.statusCode === 403) return payload
    const body = typeof request.body === 'object' ? request.body : {}
    const params = JSON.stringify({ ...(request.query as object), ...body }).slice(0, PARAMS_LENGTH_MAX)
    const action = request.url.split('?')[0]!.slice('/admin/'.length, 200)
    await audit.add({ at: now(), address: request.ip, action, params, status: reply.statusCode })
    return payload
  })
  admin.get('/admin/audit/list', async request => {
    const before = optional(request, 'cursor')
    const limit = Math.min(integer(optional(request, 'limit') ?? String(AUDIT_PAGE)), AUDIT_PAGE_MAX)
    const entries = await audit.list(before === null ? null : integer(before), limit)
    const shown = entries.map(entry => ({ ...entry, at: new Date(entry.at).toISOString() }))
    return { entries: shown, ...(entries.length === limit && limit > 0 ? { cursor: entries.at(-1)!.id } : {}) }
  })
}
