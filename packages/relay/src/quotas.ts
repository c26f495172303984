/**
 * How much a host may send, and each account on it.
 *
 * A host that sends faster than its limits is read more slowly: nothing is lost, its own events come later. Events are
 * dropped, with a reason, where waiting would keep others of the host waiting as well: those of accounts beyond the number
 * that a host may have, and those of one account that floods. All of it ends by itself.
 *
 * A host whose history is clean and that needs more gets more: its limits double, after an hour at first and later after a
 * day each. Limits that an administrator has set stay as they are.
 *
 * Source: limits of new hosts as deployed relays have them (relay.md, "Limits").
 */
import type { HostRecord } from './store/store.ts'

const HOUR_MS = 3_600_000
const DAY_MS = 24 * HOUR_MS

/** What a host may do. */
export interface HostLimits {
  perSecond: number
  perHour: number
  perDay: number
  accounts: number
}

/** Of hosts in a domain that the operator trusts. */
export const TRUSTED_LIMITS: Readonly<HostLimits> = {
  perSecond: 5_000,
  perHour: 50_000_000,
  perDay: 500_000_000,
  accounts: 10_000_000,
}

/** Doublings of a host's limits at the most: of 100 accounts 1,638,400. */
export const GROWTH_MAX = 14
/** Doublings of event rates at the most; on top of it they rise with the accounts. */
const RATE_GROWTH_MAX = 6
/** The first doublings want a clean hour each, the later ones a clean day. */
const QUICK_GROWTHS = 3
/** What a host must have had admitted in that time, and what part of its events may have been wrong. */
const GROWTH_EVENTS_MIN = 50
const GROWTH_WRONG_MAX = 0.01
/** A host grows when it uses this part of what it may. */
const GROWTH_USE_MIN = 0.5

/**
 * What a host may do now: as set for it, else grown from the default.
 *
 * @param accounts - Accounts that a new host may have.
 */
export function limitsOf(record: HostRecord, accounts: number, isTrusted: boolean): HostLimits {
  const grown = 2 ** Math.min(record.growth, RATE_GROWTH_MAX)
  const limit = record.accountLimit ?? (isTrusted ? TRUSTED_LIMITS.accounts : accounts * 2 ** record.growth)
  const usual = isTrusted
    ? TRUSTED_LIMITS
    : {
        perSecond: Math.floor(50 * grown + limit / 1_000),
        perHour: 2_500 * grown + limit,
        perDay: 20_000 * grown + 10 * limit,
      }
  return {
    perSecond: record.perSecond ?? usual.perSecond,
    perHour: record.perHour ?? usual.perHour,
    perDay: record.perDay ?? usual.perDay,
    accounts: limit,
  }
}

/** Tokens that come back at a steady rate; times are milliseconds. */
export class Bucket {
  capacity: number
  /** Tokens that come back in a millisecond. */
  rate: number
  #tokens: number
  #at: number

  constructor(capacity: number, rate: number, now: number) {
    this.capacity = capacity
    this.rate = rate
    this.#tokens = capacity
    this.#at = now
  }

  /** Other limits from now on; what was used stays used. */
  resize(capacity: number, rate: number, now: number): void {
    if (capacity === this.capacity && rate === this.rate) return
    const used = this.capacity - this.left(now)
    this.capacity = capacity
    this.rate = rate
    this.#tokens = Math.max(0, capacity - used)
  }

  left(now: number): number {
    if (now > this.#at) {
      this.#tokens = Math.min(this.capacity, this.#tokens + (now - this.#at) * this.rate)
      this.#at = now
    }
    return this.#tokens
  }

  take(now: number, count = 1): boolean {
    if (this.left(now) < count) return false
    this.#tokens -= count
    return true
  }

  /** Takes also what is not there: the next ones wait for as long as that takes to come back. */
  charge(now: number, count: number): void {
    this.left(now)
    this.#tokens -= count
  }

  /** Until there are so many; infinite where there never are. */
  waitMs(now: number, count = 1): number {
    const missing = count - this.left(now)
    return missing <= 0 ? 0 : count > this.capacity || this.rate === 0 ? Number.POSITIVE_INFINITY : missing / this.rate
  }
}

/** Why events of a host were read later than they could have been. */
export const DELAYS = ['per-second', 'per-hour', 'per-day', 'identities', 'intake'] as const
export type Delay = (typeof DELAYS)[number]

/** A second's limit is lenient: so many seconds' worth may come at once. */
const BURST_SECONDS = 10

/** Of so many bytes each, an event counts once more against a second's limit: nobody may send only the largest ones. */
export const WEIGHT_BYTES = 256 * 1024

/** What one host has left of each of its limits. They are full at the start of the process. */
export class EventQuota {
  readonly #second: Bucket
  readonly #hour: Bucket
  readonly #day: Bucket

  constructor(limits: HostLimits, now: number) {
    const { perSecond, perHour, perDay } = limits
    this.#second = new Bucket(perSecond * BURST_SECONDS, perSecond / 1_000, now)
    this.#hour = new Bucket(perHour, perHour / HOUR_MS, now)
    this.#day = new Bucket(perDay, perDay / DAY_MS, now)
  }

  resize({ perSecond, perHour, perDay }: HostLimits, now: number): void {
    this.#second.resize(perSecond * BURST_SECONDS, perSecond / 1_000, now)
    this.#hour.resize(perHour, perHour / HOUR_MS, now)
    this.#day.resize(perDay, perDay / DAY_MS, now)
  }

  /** Takes all of so many events or none. */
  take(now: number, count: number): boolean {
    if (this.#second.left(now) < count || this.#hour.left(now) < count || this.#day.left(now) < count) return false
    this.#second.take(now, count)
    this.#hour.take(now, count)
    this.#day.take(now, count)
    return true
  }

  /** Charges for the size of what was taken: the long run of a second's limit allows so many times {@link WEIGHT_BYTES}. */
  weigh(now: number, bytes: number): void {
    const extra = Math.floor(bytes / WEIGHT_BYTES)
    if (extra > 0) this.#second.charge(now, extra)
  }

  /** Until the next event may come, and which limit it waits for. */
  wait(now: number): { ms: number; delay: Delay } {
    const [second, hour, day] = [this.#second.waitMs(now), this.#hour.waitMs(now), this.#day.waitMs(now)]
    const ms = Math.max(second, hour, day)
    return { ms, delay: ms === second ? 'per-second' : ms === hour ? 'per-hour' : 'per-day' }
  }

  /** The parts of hour's and day's limits that are used up, from 0 to 1. */
  used(now: number): { hour: number; day: number } {
    const part = (bucket: Bucket) => (bucket.capacity === 0 ? 1 : 1 - bucket.left(now) / bucket.capacity)
    return { hour: part(this.#hour), day: part(this.#day) }
  }
}

// Accounts

/** Commits of one account: so many at once, and so many a second in the long run. The reference PDS allows 0.5 a second. */
const COMMIT_BURST = 2_000
const COMMITS_PER_SECOND = 5
/** The same for events of the other kinds, of which an honest account has few. */
const NOTICE_BURST = 60
const NOTICES_PER_SECOND = 0.1
/** `#identity` events of one host about accounts that are not known to be there. */
const FOREIGN_BURST = 500
const FOREIGN_PER_SECOND = 0.5
/** An account that flooded is heard again when this part of its burst has come back. */
const HEARD_AGAIN = 0.5
export const ACCOUNT_THROTTLE_MS = Math.ceil(((COMMIT_BURST * HEARD_AGAIN) / COMMITS_PER_SECOND) * 1_000)

/** What one account has left. Only charged for what its own host says, or strangers could use it up. */
export class AccountQuota {
  readonly #commits: Bucket
  readonly #notices: Bucket

  constructor(now: number) {
    this.#commits = new Bucket(COMMIT_BURST, COMMITS_PER_SECOND / 1_000, now)
    this.#notices = new Bucket(NOTICE_BURST, NOTICES_PER_SECOND / 1_000, now)
  }

  take(t: string, now: number): boolean {
    return (t === '#commit' ? this.#commits : this.#notices).take(now)
  }
}

export function foreignBucket(now: number): Bucket {
  return new Bucket(FOREIGN_BURST, FOREIGN_PER_SECOND / 1_000, now)
}

// Growth

/** What a host did since its limits last grew, or since that was last considered. */
export interface Conduct {
  /** Events that passed, and events that were wrong, not merely late or unknown. */
  admitted: number
  wrong: number
}

/**
 * Whether the time has come to double a host's limits: `grow`, `again` (it was not clean, so the time starts anew), or
 * `wait`.
 */
export function growthOf(
  record: Pick<HostRecord, 'growth' | 'growthAt' | 'accounts'>,
  conduct: Conduct,
  use: { limits: HostLimits; hour: number; day: number },
  now: number,
): 'grow' | 'again' | 'wait' {
  const period = record.growth < QUICK_GROWTHS ? HOUR_MS : DAY_MS
  if (record.growth >= GROWTH_MAX || now - record.growthAt < period) return 'wait'
  if (conduct.wrong > GROWTH_WRONG_MAX * (conduct.admitted + conduct.wrong)) return 'again'
  if (conduct.admitted < GROWTH_EVENTS_MIN) return 'wait'
  const accounts = use.limits.accounts === 0 ? 0 : record.accounts / use.limits.accounts
  return Math.max(accounts, use.hour, use.day) >= GROWTH_USE_MIN ? 'grow' : 'wait'
}
