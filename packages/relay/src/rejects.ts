/** Why events of a host did not get through, for the host's operator. */
import { REASON_TEXT, REASONS, type Reason } from '@millisky/core/verify'

/** Reasons that are not about what an event says but about how it came. */
export const INTAKE_REASON_TEXT = {
  undecodable: 'the frame is not two canonical DAG-CBOR maps; the connection was closed',
  'no-seq': 'the event has no seq',
  'seq-not-rising': 'the seq is not above that of the event before',
  'unknown-op': 'the op or type of the frame is not known; it was skipped',
  'identity-unavailable': 'the DID could not be resolved in time',
  'account-quota': 'the host has as many accounts as it may have, and this is one more',
  'account-rate': 'the account sends more events than one account may',
  'identity-rate': 'the host sends more #identity events about accounts of others than it may',
  repeated: 'the very same event has passed already, before this relay was restarted',
  failed: 'an error of this relay; the event was not passed on',
} as const

export type RejectReason = Reason | keyof typeof INTAKE_REASON_TEXT
export const REJECT_REASONS = [...REASONS, ...Object.keys(INTAKE_REASON_TEXT)] as readonly RejectReason[]

export function textOf(reason: RejectReason): string {
  return { ...REASON_TEXT, ...INTAKE_REASON_TEXT }[reason]
}

/** Reasons that say nothing against a host: late or repeated events, and what only concerns this relay. */
const HARMLESS: ReadonlySet<RejectReason> = new Set<RejectReason>([
  'seq-not-rising',
  'unknown-op',
  'unknown-type',
  'rev-stale',
  'sync-unchanged',
  'account-inactive',
  'account-blocked',
  'identity-unavailable',
  'account-quota',
  'repeated',
  'failed',
])

/** Whether a host that is as it should be never has events dropped for this. */
export function isWrong(reason: RejectReason): boolean {
  return !HARMLESS.has(reason)
}

/** One event that did not get through. */
export interface Reject {
  at: number
  seq: number | null
  did: string | null
  reason: RejectReason
  detail: string | null
}

const KEPT = 50
const TEXT_LENGTH_MAX = 256

/** What a host said may be megabytes long; a part of a string would keep all of it. */
function shortened(text: string | null): string | null {
  if (text === null || text.length <= TEXT_LENGTH_MAX) return text
  return `${Buffer.from(text.slice(0, TEXT_LENGTH_MAX)).toString()}…`
}

/** Counts and the newest rejects of one host since the start of the process. */
export class Rejects {
  readonly counts = new Map<RejectReason, number>()
  #ring: Reject[] = []

  add(reject: Reject): void {
    this.counts.set(reject.reason, (this.counts.get(reject.reason) ?? 0) + 1)
    this.#ring.push({ ...reject, did: shortened(reject.did), detail: shortened(reject.detail) })
    if (this.#ring.length >= 2 * KEPT) this.#ring = this.#ring.slice(-KEPT)
  }

  /** The newest first. */
  latest(): Reject[] {
    return this.#ring.slice(-KEPT).reverse()
  }
}
