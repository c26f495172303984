/** Which handles this server gives out. Source: pds.md #39, #43; messages as the reference's clients show them. */
import { Refused } from '@millisky/core/errors'
import { type Handle, isHandle, isResolvableHandle, normalizeHandle } from '@millisky/core/syntax'

const FRONT_LENGTH_MIN = 3
const FRONT_LENGTH_MAX = 18

/** First labels that would be mistaken for the service itself. */
const RESERVED = new Set(
  (
    'about abuse account accounts admin administrator api app atproto auth blog bluesky bsky cdn chat contact dev dns ' +
    'docs email feed firehose ftp help hostmaster imap info jetstream labeler legal localhost login mail moderation ' +
    'moderator news noreply oauth official ops pds plc pop pop3 postmaster privacy relay root security settings signup ' +
    'smtp ssl staff status support sysadmin system team terms tos verify webmaster well-known wellknown www xrpc'
  ).split(' '),
)

export interface HandleRules {
  /** Each with a leading dot. */
  domains: readonly string[]
  /** Also handles under `.test`. */
  development: boolean
}

/** Whether it lies below one of the server's own domains. */
export function isOwnHandle(handle: string, { domains }: HandleRules): boolean {
  return domains.some(domain => handle.endsWith(domain))
}

/**
 * Checks and normalizes a handle somebody wants. One under a foreign domain is left to be resolved by the caller.
 *
 * @throws Refused InvalidHandle, HandleNotAvailable
 */
export function checkHandle(wanted: string, rules: HandleRules): Handle {
  const text = wanted.toLowerCase()
  if (!isHandle(text)) throw new Refused('InvalidHandle', 'Input/handle must be a valid handle')
  const handle = normalizeHandle(text)
  const domain = rules.domains.find(domain => handle.endsWith(domain))
  if (domain === undefined) {
    if (!isResolvableHandle(handle, { allowTest: rules.development })) {
      throw new Refused('InvalidHandle', 'Handle TLD is invalid or disallowed')
    }
    return handle
  }
  const front = handle.slice(0, -domain.length)
  if (front.includes('.')) throw new Refused('InvalidHandle', 'Invalid characters in handle')
  if (front.length < FRONT_LENGTH_MIN) throw new Refused('InvalidHandle', 'Handle too short')
  if (front.length > FRONT_LENGTH_MAX) throw new Refused('InvalidHandle', 'Handle too long')
  if (RESERVED.has(front)) throw new Refused('HandleNotAvailable', 'Reserved handle')
  return handle
}
