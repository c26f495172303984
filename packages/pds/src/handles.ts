/** Which handles this server gives out. Source: pds.md #39, #43; messages as the reference's clients show them. */
import { Refused } from '@millisky/core/errors'
import { type Handle, isHandle, isResolvableHandle, normalizeHandle } from '@millisky/core/syntax'
import { RESERVED_HANDLES } from './reserved-handles.ts'
import { hasSlur } from './slurs.ts'

const FRONT_LENGTH_MIN = 3
const FRONT_LENGTH_MAX = 18

export interface HandleRules {
  /** Each with a leading dot. */
  domains: readonly string[]
}

/** Whether it lies below one of the server's own domains. */
export function isOwnHandle(handle: string, { domains }: HandleRules): boolean {
  return domains.some(domain => handle.endsWith(domain))
}

/** Whether it lies below one of the server's own domains or is such a domain itself: nobody else may hand it out. */
export function isOwnName(handle: string, { domains }: HandleRules): boolean {
  return domains.some(domain => handle.endsWith(domain) || handle === domain.slice(1))
}

/**
 * Checks and normalizes a handle somebody wants. One under a foreign domain is left to be resolved by the caller.
 *
 * @param options.anyValid - The operator asks: reserved names and any words will do.
 * @throws Refused InvalidHandle, HandleNotAvailable
 */
export function checkHandle(wanted: string, rules: HandleRules, { anyValid = false } = {}): Handle {
  const text = wanted.toLowerCase()
  if (!isHandle(text)) throw new Refused('InvalidHandle', 'Input/handle must be a valid handle')
  const handle = normalizeHandle(text)
  const domain = rules.domains.find(domain => handle.endsWith(domain))
  // Nobody has a name below `.test` outside of development; that is found out when it is resolved.
  const isPossible = isResolvableHandle(handle, { allowTest: true }) || isOwnName(handle, rules)
  if (!isPossible) throw new Refused('InvalidHandle', 'Handle TLD is invalid or disallowed')
  if (!anyValid && hasSlur(handle)) throw new Refused('InvalidHandle', 'Inappropriate language in handle')
  if (domain === undefined) return handle
  const front = handle.slice(0, -domain.length)
  if (front.includes('.')) throw new Refused('InvalidHandle', 'Invalid characters in handle')
  if (front.length < FRONT_LENGTH_MIN) throw new Refused('InvalidHandle', 'Handle too short')
  if (front.length > FRONT_LENGTH_MAX) throw new Refused('InvalidHandle', 'Handle too long')
  if (!anyValid && RESERVED_HANDLES.has(front)) throw new Refused('HandleNotAvailable', 'Reserved handle')
  return handle
}
