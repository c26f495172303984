/**
 * Holds hosts to their limits, tells them so, and lets go again by itself.
 *
 * A host is shown as `throttled`, with the reason, while it has to wait for long or accounts of it are refused.
 */
import { setTimeout as systemSleep } from 'node:timers/promises'
import type { Host, Hosts } from './hosts.ts'
import { type Delay, growthOf } from './quotas.ts'

/** A wait as long as this makes a host throttled, shorter ones are the usual way of things. */
const LONG_WAIT_MS = 5_000
/** A throttled host that had no long wait for this time is active again. */
const CALM_MS = 30_000
const REVIEW_MS = 5_000
/** A wait is at most this long, so that limits that were raised are soon noticed. */
const NAP_MS = 1_000
/** Accounts beyond a host's number that are remembered by name. */
const REFUSED_KEPT = 1_000

export interface ThrottleParts {
  hosts: Hosts
  now: () => number
  sleep?: (ms: number) => Promise<void>
  onDelay?: (host: Host, delay: Delay) => void
}

export class Throttle {
  readonly #parts: ThrottleParts
  readonly #timer: NodeJS.Timeout
  readonly #naps = new Map<Host, () => void>()

  constructor(parts: ThrottleParts) {
    this.#parts = parts
    this.#timer = setInterval(() => this.review(), REVIEW_MS)
    this.#timer.unref()
  }

  close(): void {
    clearInterval(this.#timer)
    for (const host of [...this.#naps.keys()]) this.release(host)
  }

  /** Takes what so many events cost; false if the host has to wait first. */
  take(host: Host, count: number): boolean {
    const { hosts, now } = this.#parts
    host.quota.resize(hosts.limits(host), now())
    return host.quota.take(now(), count)
  }

  /** Charges a host for the size of what was taken. */
  weigh(host: Host, bytes: number): void {
    host.quota.weigh(this.#parts.now(), bytes)
  }

  /** Waits until the host may send one more event; false if {@link release} ended it. */
  async pause(host: Host): Promise<boolean> {
    const { now, sleep = (ms: number) => systemSleep(ms, undefined, { ref: false }) } = this.#parts
    this.note(host, host.quota.wait(now()).delay)
    for (;;) {
      const { ms, delay } = host.quota.wait(now())
      if (ms === 0) return true
      if (ms >= LONG_WAIT_MS && host.slow?.delay !== delay) host.slow = { delay, at: now() }
      if (host.slow) host.slow.at = ms >= LONG_WAIT_MS ? now() : host.slow.at
      if (ms >= LONG_WAIT_MS) this.reviewOne(host)
      const { promise, resolve } = Promise.withResolvers<void>()
      let isReleased = false
      this.#naps.set(host, () => {
        isReleased = true
        resolve()
      })
      await Promise.race([promise, sleep(Math.min(NAP_MS, Math.max(1, ms)))])
      this.#naps.delete(host)
      if (isReleased) return false
      host.quota.resize(this.#parts.hosts.limits(host), now())
    }
  }

  /** Ends a wait: the connection is gone. */
  release(host: Host): void {
    this.#naps.get(host)?.()
  }

  /** Counts that a host's next events are read later than they could be. */
  note(host: Host, delay: Delay): void {
    host.delays[delay]++
    this.#parts.onDelay?.(host, delay)
  }

  /** Whether one more account may live at the host. */
  hasRoom(host: Host): boolean {
    return host.record.accounts + host.newcomers < this.#parts.hosts.limits(host).accounts
  }

  /** Remembers that an account was one too many. */
  refuse(host: Host, did: string): void {
    if (host.refused.size < REFUSED_KEPT) host.refused.add(did)
    if (host.record.status === 'active') this.reviewOne(host)
  }

  /** Looks at all hosts: who is throttled, who is not any more, whose limits grow. */
  review(): void {
    for (const host of this.#parts.hosts.list()) this.reviewOne(host)
  }

  /** The same for one host, as when its limits were set. */
  reviewOne(host: Host): void {
    const { hosts, now } = this.#parts
    this.#grow(host)
    if (host.refused.size > 0 && this.hasRoom(host)) host.refused.clear()
    if (host.slow && now() - host.slow.at > CALM_MS) host.slow = null
    const why = this.#why(host)
    const { status } = host.record
    if (why !== null && (status === 'active' || status === 'idle')) hosts.noteStatus(host, 'throttled', why)
    else if (why === null && status === 'throttled') hosts.noteStatus(host, 'active', null)
  }

  #why(host: Host): string | null {
    const limits = this.#parts.hosts.limits(host)
    if (host.slow) {
      const { delay } = host.slow
      const limit = delay === 'per-hour' ? limits.perHour : delay === 'per-day' ? limits.perDay : limits.perSecond
      return `it sends more than the ${limit} events it may send ${delay.replace('-', ' ')}; they are read more slowly`
    }
    if (host.refused.size === 0) return null
    return `it has the ${limits.accounts} accounts that it may have; events of others are dropped`
  }

  #grow(host: Host): void {
    const { hosts, now } = this.#parts
    const limits = hosts.limits(host)
    const step = growthOf(host.record, host.conduct, { limits, ...host.quota.used(now()) }, now())
    if (step === 'wait') return
    host.conduct = { admitted: 0, wrong: 0 }
    hosts.noteGrowth(host, host.record.growth + (step === 'grow' ? 1 : 0))
    host.quota.resize(hosts.limits(host), now())
  }
}
