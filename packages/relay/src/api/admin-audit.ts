/** Writes down every change that an administrator makes, before it is answered; refused ones too. */
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import type { AuditStore } from '../store/store.ts'
import { isAdministrator } from './admin-auth.ts'

const PARAMS_LENGTH_MAX = 2_000
/** Methods of administrators. */
export const ADMIN_METHODS = '/xrpc/net.millisky.relay.admin.'

/** Bodies that methods have read themselves. */
const inputs = new WeakMap<FastifyRequest, unknown>()

/** Remembers what a method was called with. */
export function noteInput(request: FastifyRequest, input: unknown): void {
  inputs.set(request, input)
}

/** Routes that are registered later are watched. Whoever is no administrator leaves no trace here. */
export function addAudit(http: FastifyInstance, { audit, now }: { audit: AuditStore; now: () => number }): void {
  http.addHook('onRoute', route => {
    const prefix = route.url.startsWith('/admin/') ? '/admin/' : route.url.startsWith(ADMIN_METHODS) ? '/xrpc/' : null
    if (prefix === null || route.method !== 'POST') return
    const action = route.url.slice(prefix.length)
    route.onSend = async (request: FastifyRequest, reply: FastifyReply, payload: unknown) => {
      if (!isAdministrator(request)) return payload
      const body = inputs.get(request) ?? (typeof request.body === 'object' ? request.body : {})
      const params = JSON.stringify({ ...(request.query as object), ...(body as object) }).slice(0, PARAMS_LENGTH_MAX)
      await audit.add({ at: now(), address: request.ip, action, params, status: reply.statusCode })
      return payload
    }
  })
}
