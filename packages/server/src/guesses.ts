/**
 * Wrong passwords of one administrator's account, counted by address: who guesses has to wait, and everybody else does not
 * notice. In this process alone, for a while, for a bounded number of addresses.
 *
 * The same wrong password counts once, so that a script with an old one locks nobody out.
 */
import { Refused } from '@millisky/core/errors'
import type { FastifyRequest } from 'fastify'
import { callerKey } from './rate.ts'

export interface GuessSettings {
  /** Different wrong passwords after which an address has to wait; default 50. */
  max: number
  /** From the first of them until they are forgotten; default five minutes. */
  windowMs: number
  /** Addresses that are remembered; default 10,000. */
  addressesMax: number
}

export const GUESS_DEFAULTS: Readonly<GuessSettings> = { max: 50, windowMs: 300_000, addressesMax: 10_000 }

interface Entry {
  until: number
  /** The beginnings of hashes. */
  wrong: Set<number>
}

export class Guesses {
  readonly #settings: GuessSettings
  readonly #now: () => number
  /** The oldest first. */
  readonly #entries = new Map<string, Entry>()

  constructor({ now = Date.now, ...settings }: Partial<GuessSettings> & { now?: () => number } = {}) {
    this.#settings = { ...GUESS_DEFAULTS, ...settings }
    this.#now = now
  }

  /** Addresses that are remembered. */
  get size(): number {
    return this.#entries.size
  }

  /**
   * Asks whether a password is right, unless its address has had too many wrong ones.
   *
   * @param digest - SHA-256 of the password that the request bears.
   * @param isRight - Compares in constant time.
   * @throws {Refused} 429 `RateLimitExceeded`
   */
  check(request: FastifyRequest, digest: Uint8Array, isRight: (digest: Uint8Array) => boolean): boolean {
    const { max, windowMs, addressesMax } = this.#settings
    const now = this.#now()
    const address = callerKey(request)
    const known = this.#entries.get(address)
    const entry = known && known.until > now ? known : { until: now + windowMs, wrong: new Set<number>() }
    if (entry.wrong.size >= max) {
      const headers = { 'retry-after': String(Math.ceil((entry.until - now) / 1_000)) }
      throw new Refused('RateLimitExceeded', 'Too many wrong passwords from this address', 429, headers)
    }
    if (isRight(digest)) {
      this.#entries.delete(address)
      return true
    }
    entry.wrong.add(new DataView(digest.buffer, digest.byteOffset).getUint32(0))
    if (entry !== known) {
      this.#entries.delete(address)
      this.#entries.set(address, entry)
      if (this.#entries.size > addressesMax) this.#entries.delete(this.#entries.keys().next().value!)
    }
    return false
  }
}
