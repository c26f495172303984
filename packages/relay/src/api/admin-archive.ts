/** Admin routes of bigsky that are about repositories it mirrors, and others that have nothing to act on here. */
import type { FastifyInstance, FastifyReply } from 'fastify'

const MIRROR = 'This relay keeps no copies of repositories, so there is nothing to do'
const ALERTS = 'This relay sends no alerts of its own; watch relay_hosts and relay_accounts_refused among its metrics'

export function addArchiveRoutes(admin: FastifyInstance): void {
  const refuse = (message: string) => (_request: unknown, reply: FastifyReply) =>
    reply.code(501).send({ error: 'MethodNotImplemented', message })
  admin.post('/admin/repo/compact', refuse(MIRROR))
  admin.post('/admin/repo/compactAll', refuse(MIRROR))
  admin.post('/admin/repo/reset', refuse(MIRROR))
  admin.post('/admin/repo/verify', refuse(MIRROR))
  admin.post('/admin/pds/resync', refuse(MIRROR))
  admin.get('/admin/pds/resync', refuse(MIRROR))
  admin.post('/admin/alerts/accountLimitSent', refuse(ALERTS))
}
