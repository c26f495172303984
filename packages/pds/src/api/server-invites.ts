/** `com.atproto.server.*InviteCode*`: who may bring whom. */
import { randomBytes } from 'node:crypto'
import { Refused } from '@millisky/core/errors'
import { main as createInviteCode } from '@millisky/core/lexicon/gen/com/atproto/server/createInviteCode'
import { main as createInviteCodes } from '@millisky/core/lexicon/gen/com/atproto/server/createInviteCodes'
import { main as getAccountInviteCodes } from '@millisky/core/lexicon/gen/com/atproto/server/getAccountInviteCodes'
import type { Xrpc } from '@millisky/server/xrpc'
import type { PdsAccess } from '../access.ts'
import type { PdsSettings } from '../config.ts'
import { inviteCode, routineInvites, TOKEN_RANDOM_BYTES } from '../invites.ts'
import { datetime } from '../repos.ts'
import { type Account, type InviteCode, type Store, statusOf } from '../store/store.ts'

/** Made by one call. */
const CODES_MAX = 10_000

export interface InviteApiParts {
  settings: PdsSettings
  store: Store
  access: PdsAccess
  /** Milliseconds since 1970. */
  now: () => number
}

type Parts = InviteApiParts

/** An invite as methods show it. */
export function inviteView({ code, uses, disabled, forAccount, createdBy, createdAt, usedBy }: InviteCode) {
  return {
    code,
    available: uses,
    disabled,
    forAccount,
    createdBy,
    createdAt: datetime(createdAt),
    uses: usedBy.map(({ did, at }) => ({ usedBy: did, usedAt: datetime(at) })).reverse(),
  }
}

/** Adds the methods. */
export function addInviteApi(xrpc: Xrpc, parts: InviteApiParts): void {
  const { access, store, settings, now } = parts
  const make = async (accounts: readonly string[], codeCount: number, uses: number) => {
    if (codeCount * accounts.length > CODES_MAX)
      throw new Refused('InvalidRequest', `Too many codes. Max: ${CODES_MAX}`)
    const made = accounts.map(account => ({ account, codes: newCodes(settings, codeCount) }))
    const rows = made.flatMap(({ account, codes }) =>
      codes.map(code => ({ code, uses, forAccount: account, createdBy: 'admin', createdAt: now() })),
    )
    await store.tickets.addInvites(rows)
    return made
  }
  xrpc.procedure(createInviteCode, { auth: access.admin }, async ({ input }) => {
    const [made] = await make([input.forAccount ?? 'admin'], 1, input.useCount)
    return { code: made!.codes[0]! }
  })
  xrpc.procedure(createInviteCodes, { auth: access.admin }, async ({ input }) => {
    return { codes: await make(input.forAccounts ?? ['admin'], input.codeCount, input.useCount) }
  })
  const auth = access.session({ full: true, unlessTakendown: true })
  xrpc.query(getAccountInviteCodes, { auth }, async ({ params, auth }) => {
    const account = await store.accounts.byDid(auth.did)
    if (!account || statusOf(account) !== 'active') throw new Refused('NotFound', 'Account not found')
    if (params.createAvailable ?? true) await makeEarned(account, parts)
    const codes = await store.tickets.invitesFor(account.did)
    const shown = codes.filter(
      ({ disabled, uses, usedBy }) => !disabled && (params.includeUsed !== false || usedBy.length < uses),
    )
    return { codes: shown.map(inviteView) }
  })
}

/** Makes the codes that the account has earned since it last asked. Those of one who may not invite are made disabled. */
async function makeEarned(account: Account, { settings, store, now }: Parts): Promise<void> {
  const { inviteRequired, inviteIntervalMs, inviteEpoch } = settings
  if (!inviteRequired || inviteIntervalMs === undefined) return
  const { count, total } = routineInvites({
    accountCreatedAt: account.createdAt,
    codes: await store.tickets.invitesFor(account.did),
    epoch: inviteEpoch,
    intervalMs: inviteIntervalMs,
    now: now(),
  })
  if (count === 0) return
  const row = { uses: 1, forAccount: account.did, createdBy: account.did, createdAt: now() }
  const rows = newCodes(settings, count).map(code => ({ ...row, code, disabled: account.invitesDisabled }))
  if (!(await store.tickets.addOwnInvites(rows, total))) {
    throw new Refused('DuplicateCreate', 'attempted to create additional codes in another request')
  }
}

function newCodes({ hostname }: PdsSettings, count: number): string[] {
  return Array.from({ length: count }, () => inviteCode(hostname, randomBytes(TOKEN_RANDOM_BYTES)))
}
