/**
 * Rate limits by points in fixed windows, and the headers that tell clients where they stand.
 *
 * Source: header names and formats as the reference sends them (pds.md, "Rate limits of the reference").
 */
import { timingSafeEqual } from 'node:crypto'
import { utf8 } from '@millisky/core/bytes'
import { Refused } from '@millisky/core/errors'
import { sha256 } from '@millisky/core/hash'
import type { FastifyReply, FastifyRequest } from 'fastify'
import ipaddr from 'ipaddr.js'
import { RateLimiterMemory, RateLimiterRes } from 'rate-limiter-flexible'

/** Where a caller stands with one limit after a call. */
export interface Allowance {
  /** Points of a whole window. */
  readonly points: number
  readonly windowSeconds: number
  readonly remaining: number
  /** Until the window ends. */
  readonly resetMs: number
  /** The call was more than was left; it is not to be served. */
  readonly isExceeded: boolean
}

/** What a limit is: so many points in a window. */
export interface CounterOptions {
  /** Of the limit; tells apart those that share a store. */
  readonly name: string
  readonly points: number
  readonly windowSeconds: number
}

/** The counters behind one limit. */
export interface Counters {
  /** Takes points, also when there are not enough left. */
  take(key: string, points: number): Promise<Pick<Allowance, 'remaining' | 'resetMs' | 'isExceeded'>>
  reset(key: string): Promise<void>
}

/** Makes the counters behind a limit: in this process unless told, or shared by several, see `rate-postgres.ts`. */
export type CounterStore = (options: CounterOptions) => Counters

/** Counters of this process alone. */
export const inMemory: CounterStore = ({ name, points, windowSeconds }) => {
  const limiter = new RateLimiterMemory({ keyPrefix: name, points, duration: windowSeconds })
  const told = ({ remainingPoints, msBeforeNext }: RateLimiterRes, isExceeded: boolean) => {
    return { remaining: remainingPoints, resetMs: msBeforeNext, isExceeded }
  }
  return {
    async take(key, cost) {
      try {
        return told(await limiter.consume(key, cost), false)
      } catch (refused) {
        if (refused instanceof RateLimiterRes) return told(refused, true)
        throw refused
      }
    },
    async reset(key) {
      await limiter.delete(key)
    },
  }
}

/** So many points in each window for each key. A window starts with the first call of its key. */
export class RateLimit {
  readonly name: string
  readonly points: number
  readonly windowSeconds: number
  readonly #counters: Counters

  /** @param name - Tells apart the limits that share a store. */
  constructor(
    name: string,
    { points, windowMs }: { points: number; windowMs: number },
    store: CounterStore = inMemory,
  ) {
    this.name = name
    this.points = points
    this.windowSeconds = Math.max(1, Math.round(windowMs / 1000))
    this.#counters = store({ name, points, windowSeconds: this.windowSeconds })
  }

  /** Takes points, also when there are not enough left. Rejects only if the store fails. */
  async take(key: string, points = 1): Promise<Allowance> {
    const { remaining, resetMs, isExceeded } = await this.#counters.take(key, points)
    return { points: this.points, windowSeconds: this.windowSeconds, remaining, resetMs, isExceeded }
  }

  /** Forgets what a key has used, as after a login that succeeded. */
  async reset(key: string): Promise<void> {
    await this.#counters.reset(key)
  }
}

/** One limit applied to a kind of call. */
export interface RateRule<Call> {
  readonly limit: RateLimit
  /** Who is counted; null lets the call pass uncounted. */
  readonly key: (call: Call) => string | null
  /** What the call costs, 1 unless told; 0 or less passes uncounted. */
  readonly points?: (call: Call) => number
}

/**
 * The key of an address: itself, and for IPv6 its /64, which is what one customer of a provider has at least.
 *
 * @param ip - As `request.ip` gives it.
 */
export function addressKey(ip: string): string {
  if (!ip.includes(':') || !ipaddr.isValid(ip)) return ip
  const address = ipaddr.process(ip)
  if (!('parts' in address)) return address.toString()
  return `${address.parts
    .slice(0, 4)
    .map(part => part.toString(16))
    .join(':')}::/64`
}

const NEARBY: ReadonlySet<string> = new Set(['loopback', 'private', 'uniqueLocal', 'linkLocal'])

/**
 * The key of the address at the other end. A proxy nearby of which the settings do not tell is believed for this: else
 * strangers who come through it could use up what all others have that do.
 */
export function callerKey({ ip, headers }: Pick<FastifyRequest, 'ip' | 'headers'>): string {
  if (!ipaddr.isValid(ip) || !NEARBY.has(ipaddr.process(ip).range())) return addressKey(ip)
  const said = [headers['x-forwarded-for'] ?? []].flat().join(',').split(',').at(-1)!.trim()
  return ipaddr.isValid(said) ? addressKey(said) : addressKey(ip)
}

/** Who is never limited. */
export interface RateBypass {
  /** Value of the header `x-ratelimit-bypass`. */
  readonly key?: string | undefined
  readonly ips?: readonly string[]
}

/** A test for requests that pass unlimited. */
export function bypassOf({ key, ips = [] }: RateBypass): (request: FastifyRequest) => boolean {
  const addresses = new Set(ips)
  // Hashes are of equal length, which the comparison in constant time asks for.
  const digest = key ? sha256(utf8(key)) : undefined
  return request => {
    const given = request.headers['x-ratelimit-bypass']
    if (digest && typeof given === 'string' && timingSafeEqual(sha256(Buffer.from(given)), digest)) return true
    return addresses.size > 0 && addresses.has(request.ip)
  }
}

const tightness = (a: Allowance | undefined, b: Allowance): Allowance => {
  if (a === undefined || a.isExceeded !== b.isExceeded) return a === undefined || b.isExceeded ? b : a
  return b.remaining < a.remaining ? b : a
}

/**
 * Takes the points of all rules and sets the headers of the tightest one.
 *
 * @param before - What an earlier round of rules came to, for the headers.
 * @returns the tightest allowance, if anything was counted.
 * @throws Refused 429 if any limit is exceeded.
 */
export async function applyRates<Call>(
  rules: readonly RateRule<Call>[],
  call: Call,
  reply: FastifyReply,
  before?: Allowance,
): Promise<Allowance | undefined> {
  let tightest = before
  for (const { limit, key, points } of rules) {
    const who = key(call)
    const cost = points ? points(call) : 1
    if (who !== null && cost >= 1) tightest = tightness(tightest, await limit.take(who, cost))
  }
  if (tightest) refuseIfExceeded(tightest, reply)
  return tightest
}

function refuseIfExceeded(allowance: Allowance, reply: FastifyReply): void {
  const { points, windowSeconds, remaining, resetMs } = allowance
  reply.header('ratelimit-limit', String(points))
  reply.header('ratelimit-reset', String(Math.floor((Date.now() + resetMs) / 1000)))
  reply.header('ratelimit-remaining', String(remaining))
  reply.header('ratelimit-policy', `${points};w=${windowSeconds}`)
  if (!allowance.isExceeded) return
  const headers = { 'retry-after': String(Math.ceil(resetMs / 1000)) }
  throw new Refused('RateLimitExceeded', 'Rate Limit Exceeded', 429, headers)
}
