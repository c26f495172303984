/** `com.atproto.temp.*`: methods the protocol's makers call temporary and clients use. */
import { randomInt } from 'node:crypto'
import { Refused } from '@millisky/core/errors'
import { main as checkHandleAvailability } from '@millisky/core/lexicon/gen/com/atproto/temp/checkHandleAvailability'
import { main as checkSignupQueue } from '@millisky/core/lexicon/gen/com/atproto/temp/checkSignupQueue'
import { main as dereferenceScope } from '@millisky/core/lexicon/gen/com/atproto/temp/dereferenceScope'
import { main as revokeAccountCredentials } from '@millisky/core/lexicon/gen/com/atproto/temp/revokeAccountCredentials'
import type { Handle } from '@millisky/core/syntax'
import type { Xrpc } from '@millisky/server/xrpc'
import type { PdsAccess } from '../access.ts'
import type { Credentials } from '../credentials.ts'
import { checkEmail } from '../emails.ts'
import { checkHandle, type HandleRules, isOwnHandle } from '../handles.ts'
import { type Limits, perAddress } from '../rates.ts'
import type { Store } from '../store/store.ts'
import { namedAccount } from './admin-accounts.ts'

const SUGGESTIONS_MAX = 5
const FRONT_LENGTH_MAX = 18
const AVAILABLE = 'com.atproto.temp.checkHandleAvailability#resultAvailable' as const
const UNAVAILABLE = 'com.atproto.temp.checkHandleAvailability#resultUnavailable' as const

export interface TempApiParts {
  store: Store
  access: PdsAccess
  credentials: Credentials
  handles: HandleRules
  limits: Limits | undefined
}

type Parts = TempApiParts

/** Adds the methods. */
export function addTempApi(xrpc: Xrpc, parts: TempApiParts): void {
  const { store, access, credentials, limits } = parts
  // Scopes are told whole in this server's tokens, so there is nothing that a reference could stand for.
  xrpc.query(dereferenceScope, ({ params }) => {
    const message = params.scope.startsWith('ref:') ? 'Unknown scope reference' : 'A scope reference begins with ref:'
    throw new Refused('InvalidScopeReference', message)
  })
  xrpc.query(checkSignupQueue, { auth: access.user }, () => ({ activated: true }))
  xrpc.procedure(revokeAccountCredentials, { auth: access.admin }, async ({ input }) =>
    credentials.revokeAll(await namedAccount(store, input.account)),
  )
  xrpc.query(checkHandleAvailability, { rates: perAddress(limits?.handleChecks) }, async ({ params }) => {
    const handle = params.handle.toLowerCase() as Handle
    if (params.email !== undefined) assertEmail(params.email)
    if (!isOwnHandle(handle, parts.handles)) {
      throw new Refused('UnsupportedDomain', 'Not a supported handle domain')
    }
    if (await isFree(handle, parts)) return { handle, result: { $type: AVAILABLE } }
    const year = params.birthDate?.slice(0, 4)
    return { handle, result: { $type: UNAVAILABLE, suggestions: await suggest(handle, params.email, year, parts) } }
  })
}

function assertEmail(email: string): void {
  try {
    checkEmail(email)
  } catch {
    throw new Refused('InvalidEmail', 'Invalid email')
  }
}

async function isFree(handle: Handle, { store, handles }: Parts): Promise<boolean> {
  try {
    return (await store.accounts.byHandle(checkHandle(handle, handles))) === null
  } catch (error) {
    if (error instanceof Refused) return false
    throw error
  }
}

/** Free names like the one wanted, at most five. */
async function suggest(handle: Handle, email: string | undefined, year: string | undefined, parts: Parts) {
  const domain = parts.handles.domains.find(domain => handle.endsWith(domain))!
  const front = plain(handle.slice(0, -domain.length))
  const mailbox = plain(email?.split('@')[0] ?? '')
  const digits = () => String(randomInt(10, 10_000))
  const ideas: [string, string][] = [
    ...(mailbox ? [[mailbox, 'email'] as [string, string]] : []),
    ...(year ? [[`${front.slice(0, FRONT_LENGTH_MAX - 4)}${year}`, 'birth_year'] as [string, string]] : []),
    ...Array.from({ length: 8 }, (): [string, string] => [`${front.slice(0, 13)}${digits()}`, 'random_digits']),
  ]
  const found = new Map<string, { handle: Handle; method: string }>()
  for (const [name, method] of ideas) {
    const handle = `${name}${domain}` as Handle
    if (found.size < SUGGESTIONS_MAX && (await isFree(handle, parts))) found.set(handle, { handle, method })
  }
  return [...found.values()]
}

function plain(text: string): string {
  return text
    .toLowerCase()
    .replace(/[^a-z0-9-]/g, '')
    .replace(/^-+|-+$/g, '')
    .slice(0, FRONT_LENGTH_MAX)
}
