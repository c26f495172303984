/** Identities for verification: from memory if they can be had there, else asked for, within each host's budget. */
import { setTimeout as systemSleep } from 'node:timers/promises'
import type { Identity } from '@millisky/core/did'
import type { Did } from '@millisky/core/syntax'
import { type Identities, resolutionFailure } from '@millisky/server/identity'
import type { Host } from './hosts.ts'
import type { StatedIdentity } from './verifiers/job.ts'

/** A lookup that fails for want of an answer is tried again after these times; then the event is dropped. */
const RETRY_MS = [1_000, 4_000, 10_000]
/** Refreshes that events of one host may cause: so many at once, and so many a second. */
const REFRESH_BURST = 200
const REFRESH_PER_SECOND = 5

/** There is no such DID, or no longer: also an answer. */
const NOBODY: StatedIdentity = { pds: null, key: null, fresh: true }

interface Budget {
  tokens: number
  at: number
}

export interface LookupParts {
  identities: Pick<Identities, 'peek' | 'expire' | 'resolveDid'>
  now: () => number
  sleep?: (ms: number) => Promise<void>
  observer?: {
    /** Somebody had to wait so long to learn who an account is. */
    waited(outcome: 'found' | 'nobody' | 'unavailable', ms: number): void
  }
}

export class Lookup {
  readonly #parts: LookupParts
  /** What verifiers need of an identity, made once for each document. */
  readonly #stated = new WeakMap<Identity, StatedIdentity>()
  readonly #budgets = new WeakMap<Host, Budget>()

  constructor(parts: LookupParts) {
    this.#parts = parts
  }

  /** What is known and still believed. */
  peek(did: Did): StatedIdentity | null {
    const identity = this.#parts.identities.peek(did)
    return identity && this.#state(identity)
  }

  /** The handle that the document claims. */
  handle(did: Did): string | null {
    return this.#parts.identities.peek(did)?.handle ?? null
  }

  expire(did: Did): void {
    this.#parts.identities.expire(did)
  }

  /**
   * Asks who a DID is. Null when nobody could say; `isPatient` tries for a while. `fresh` does not believe memory, as far
   * as the host's budget goes.
   */
  async resolve(did: Did, options: { host: Host; fresh: boolean; isPatient: boolean }): Promise<StatedIdentity | null> {
    const since = performance.now()
    const stated = await this.#resolve(did, options)
    const outcome = stated === null ? 'unavailable' : stated === NOBODY ? 'nobody' : 'found'
    this.#parts.observer?.waited(outcome, performance.now() - since)
    return stated
  }

  async #resolve(
    did: Did,
    { host, fresh, isPatient }: { host: Host; fresh: boolean; isPatient: boolean },
  ): Promise<StatedIdentity | null> {
    const sleep = this.#parts.sleep ?? (ms => systemSleep(ms, undefined, { ref: false }))
    let isFresh = fresh && this.#spend(host)
    for (let attempt = 0; ; attempt++) {
      try {
        return this.#state(await this.#parts.identities.resolveDid(did, { fresh: isFresh }))
      } catch (error) {
        const failure = resolutionFailure(error)
        if (failure === null) throw error
        if (failure !== 'failed') return NOBODY
      }
      const retryMs = isPatient ? RETRY_MS[attempt] : undefined
      if (retryMs === undefined) return fresh ? this.peek(did) : null
      await sleep(retryMs)
      // The failure is remembered, so only a forced question is one.
      isFresh = true
    }
  }

  #state(identity: Identity): StatedIdentity {
    let stated = this.#stated.get(identity)
    if (stated === undefined) {
      stated = { pds: identity.pds, key: identity.signingKey, fresh: false }
      this.#stated.set(identity, stated)
    }
    return stated
  }

  #spend(host: Host): boolean {
    const now = this.#parts.now()
    const budget = this.#budgets.get(host) ?? { tokens: REFRESH_BURST, at: now }
    this.#budgets.set(host, budget)
    budget.tokens = Math.min(REFRESH_BURST, budget.tokens + ((now - budget.at) / 1000) * REFRESH_PER_SECOND)
    budget.at = now
    if (budget.tokens < 1) return false
    budget.tokens--
    return true
  }
}
