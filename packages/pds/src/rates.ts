/** How often what may be called. Source: pds.md, "Rate limits of the reference": the numbers are the reference's, but for one that it lacks. */
import { addressKey, type CounterStore, RateLimit, type RateRule } from '@millisky/server/rate'
import type { FastifyRequest } from 'fastify'

const MINUTE = 60_000
const HOUR = 60 * MINUTE
const DAY = 24 * HOUR

/** All limits of the server. */
export type Limits = ReturnType<typeof createLimits>

/** @param store - Where points are counted; in this process unless told. */
export function createLimits(store?: CounterStore) {
  const limit = (name: string, points: number, windowMs: number) => new RateLimit(name, { points, windowMs }, store)
  return {
    /** For each address, of everything but exports. */
    all: limit('all', 3_000, 5 * MINUTE),
    /** For each address. */
    exports: [limit('export', 6_000, 5 * MINUTE)],
    /** Points for each account: create 3, update 2, delete 1. */
    writes: [limit('write-hour', 5_000, HOUR), limit('write-day', 35_000, DAY)],
    uploads: [limit('upload', 1_000, DAY)],
    /** For each identifier and address. */
    logins: [limit('login-day', 300, DAY), limit('login', 30, 5 * MINUTE)],
    /** For each address. */
    signUps: [limit('sign-up', 100, 5 * MINUTE)],
    handleChecks: [limit('handle-check', 100, 5 * MINUTE)],
    /** For each address; ours, since a lookup asks strangers in the caller's stead. The reference has no number for it. */
    resolutions: [limit('resolve', 300, 5 * MINUTE)],
    keyReservations: [limit('reserve-key', 100, 5 * MINUTE)],
    deletions: [limit('delete-account', 50, 5 * MINUTE)],
    resets: [limit('reset-password', 50, 5 * MINUTE)],
    resetMails: [limit('reset-mail-day', 50, DAY), limit('reset-mail', 15, HOUR)],
    /** For each account. */
    deletionMails: [limit('delete-mail-day', 15, DAY), limit('delete-mail', 5, HOUR)],
    confirmationMails: [limit('confirm-mail-day', 15, DAY), limit('confirm-mail', 5, HOUR)],
    updateMails: [limit('update-mail-day', 15, DAY), limit('update-mail', 5, HOUR)],
    handleUpdates: [limit('handle', 10, 5 * MINUTE), limit('handle-day', 50, DAY)],
  }
}

/** Rules that count by the caller's address. */
export function perAddress(limits: readonly RateLimit[] = []): RateRule<{ request: FastifyRequest }>[] {
  return limits.map(limit => ({ limit, key: ({ request }) => addressKey(request.ip) }))
}

/** Rules that count by the caller's account. */
export function perAccount(limits: readonly RateLimit[] = []): RateRule<{ auth: { did: string } }>[] {
  return limits.map(limit => ({ limit, key: ({ auth }) => auth.did }))
}
