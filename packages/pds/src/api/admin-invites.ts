/** `com.atproto.admin.*Invite*`: which codes there are, and who may have them. */
import { Refused } from '@millisky/core/errors'
import { main as disableAccountInvites } from '@millisky/core/lexicon/gen/com/atproto/admin/disableAccountInvites'
import { main as disableInviteCodes } from '@millisky/core/lexicon/gen/com/atproto/admin/disableInviteCodes'
import { main as enableAccountInvites } from '@millisky/core/lexicon/gen/com/atproto/admin/enableAccountInvites'
import { main as getInviteCodes } from '@millisky/core/lexicon/gen/com/atproto/admin/getInviteCodes'
import type { Did } from '@millisky/core/syntax'
import type { Xrpc } from '@millisky/server/xrpc'
import type { PdsAccess } from '../access.ts'
import type { InviteCode, Store } from '../store/store.ts'
import { namedAccount } from './admin-accounts.ts'
import { inviteView } from './server-invites.ts'

export interface AdminInviteApiParts {
  store: Store
  access: PdsAccess
}

/** Adds the methods. */
export function addAdminInviteApi(xrpc: Xrpc, { store, access }: AdminInviteApiParts): void {
  const auth = access.moderator
  const setDisabled = async (did: Did, invitesDisabled: boolean) => {
    const { id } = await namedAccount(store, did)
    await store.accounts.update(id, { invitesDisabled }, [])
  }
  xrpc.procedure(disableAccountInvites, { auth }, ({ input }) => setDisabled(input.account, true))
  xrpc.procedure(enableAccountInvites, { auth }, ({ input }) => setDisabled(input.account, false))
  xrpc.procedure(disableInviteCodes, { auth }, async ({ input }) => {
    const { codes = [], accounts = [] } = input
    if (accounts.includes('admin')) throw new Refused('InvalidRequest', 'cannot disable admin invite codes')
    await store.tickets.disableInvites([...codes], [...accounts])
  })
  xrpc.query(getInviteCodes, { auth }, async ({ params }) => {
    const { sort = 'recent', limit = 100, cursor } = params
    if (sort !== 'recent' && sort !== 'usage') {
      throw new Refused('InvalidRequest', `unknown sort method: ${sort}`)
    }
    const after = cursor === undefined ? {} : { after: parseCursor(cursor) }
    const order = sort as 'recent' | 'usage'
    const codes = await store.tickets.listInvites({ sort: order, limit, ...after })
    return { codes: codes.map(inviteView), cursor: cursorOf(codes.at(-1), order) }
  })
}

function cursorOf(last: InviteCode | undefined, sort: 'recent' | 'usage'): string | undefined {
  return last && `${sort === 'recent' ? last.createdAt : last.usedBy.length}::${last.code}`
}

/** @throws Refused */
function parseCursor(cursor: string): { primary: number; code: string } {
  const match = /^(\d{1,15})::(.{1,300})$/.exec(cursor)
  if (!match) throw new Refused('InvalidRequest', 'Malformed cursor')
  return { primary: Number(match[1]), code: match[2]! }
}
