/** What a verifier is asked and what it answers; the same in the main thread and in a worker. */
import { PublicKey } from '@millisky/core/crypto'
import { Malformed } from '@millisky/core/errors'
import { decodeFrame, type Frame } from '@millisky/core/event'
import { type AccountState, judge, type KnownIdentity, type Policy, type Verdict } from '@millisky/core/verify'

/** What a DID document says, as text: keys are parsed where they are used. */
export interface StatedIdentity {
  /** Origin of the PDS. */
  pds: string | null
  /** `did:key:…` */
  key: string | null
  /** Looked up for this very event. */
  fresh: boolean
}

/** One event to be judged. */
export interface Job {
  frame: Uint8Array
  /** Name of the host it came from. */
  host: string
  policy: Policy
  identity: StatedIdentity | null
}

/** Events of one account in their order, and what was known before the first of them. */
export interface Group {
  prior: AccountState | null
  jobs: readonly Job[]
}

/**
 * The verdict about one event, or what kept it from one:
 * - `undecodable`: the bytes are no frame, so the connection they came from is broken
 * - `failed`: a bug of ours, or no memory
 */
export type Outcome = Verdict | { kind: 'undecodable'; detail: string } | { kind: 'failed'; detail: string }

/** Parsed keys, so that a point is decoded once and not for each event. */
export class Keys {
  readonly #max: number
  readonly #known = new Map<string, PublicKey | null>()

  constructor(max = 100_000) {
    this.#max = max
  }

  /** Null when it is no key. */
  get(text: string): PublicKey | null {
    let key = this.#known.get(text)
    if (key === undefined) {
      if (this.#known.size >= this.#max) {
        // Half of them at once: dearer than an exact order of use would be only for those that come again.
        for (const old of this.#known.keys()) {
          this.#known.delete(old)
          if (this.#known.size <= this.#max / 2) break
        }
      }
      key = parse(text)
      this.#known.set(text, key)
    }
    return key
  }
}

function parse(text: string): PublicKey | null {
  try {
    return PublicKey.parseDidKey(text)
  } catch (error) {
    if (error instanceof Malformed) return null
    throw error
  }
}

/**
 * Judges events of one account in order, each with the state that the one before left. Ends early behind the first
 * that wants a fresh identity or has no verdict: what follows has to be asked again.
 */
export function judgeGroup({ prior, jobs }: Group, now: number, keys: Keys): Outcome[] {
  const outcomes: Outcome[] = []
  let state = prior
  for (const { frame, host, policy, identity } of jobs) {
    const outcome = judgeOne(frame, host, now, policy, state, identity && new LazyIdentity(identity, keys))
    outcomes.push(outcome)
    if (outcome.kind === 'admit') state = outcome.next
    else if (outcome.kind !== 'drop') break
  }
  return outcomes
}

/** With a key that is parsed where it is asked for: what is not signed, or dropped before, needs none. */
class LazyIdentity implements KnownIdentity {
  readonly pds: string | null
  readonly fresh: boolean
  readonly #text: string | null
  readonly #keys: Keys

  constructor({ pds, key, fresh }: StatedIdentity, keys: Keys) {
    this.pds = pds
    this.fresh = fresh
    this.#text = key
    this.#keys = keys
  }

  get key(): PublicKey | null {
    return this.#text === null ? null : this.#keys.get(this.#text)
  }
}

function judgeOne(
  bytes: Uint8Array,
  host: string,
  now: number,
  policy: Policy,
  prior: AccountState | null,
  identity: KnownIdentity | null,
): Outcome {
  let frame: Frame
  try {
    frame = decodeFrame(bytes)
  } catch (error) {
    if (error instanceof Malformed) return { kind: 'undecodable', detail: error.message }
    return { kind: 'failed', detail: String(error) }
  }
  try {
    return judge({ frame, host, now, policy, prior, identity })
  } catch (error) {
    return { kind: 'failed', detail: error instanceof Error ? (error.stack ?? error.message) : String(error) }
  }
}
