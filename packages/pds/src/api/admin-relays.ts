/** `net.millisky.pds.getRelayStatus` and `announceAccount`: whether relays follow, and what helps those that lost track. */
import { Refused } from '@millisky/core/errors'
import { main as announceAccount } from '@millisky/core/lexicon/gen/net/millisky/pds/announceAccount'
import { main as getRelayStatus } from '@millisky/core/lexicon/gen/net/millisky/pds/getRelayStatus'
import type { Did } from '@millisky/core/syntax'
import type { Xrpc } from '@millisky/server/xrpc'
import type { PdsAccess } from '../access.ts'
import type { ServiceNames } from '../config.ts'
import type { Lifecycle } from '../lifecycle.ts'
import type { RelayState, RelayWatch } from '../relay-watch.ts'
import { datetime } from '../repos.ts'
import type { Store } from '../store/store.ts'

export interface AdminRelayApiParts {
  names: ServiceNames
  store: Store
  lifecycle: Lifecycle
  access: PdsAccess
  relayWatch: RelayWatch
}

/** Adds the methods. */
export function addAdminRelayApi(
  xrpc: Xrpc,
  { names, store, lifecycle, access, relayWatch }: AdminRelayApiParts,
): void {
  xrpc.query(getRelayStatus, { auth: access.admin }, async ({ params }) => {
    if (params.check) await relayWatch.check()
    return { hostname: names.publicHost, seq: store.log.head, relays: relayWatch.relays.map(view) }
  })
  xrpc.procedure(announceAccount, { auth: access.admin }, async ({ input }) => {
    const did = input.did as Did
    if ((await store.accounts.byDid(did)) === null) throw new Refused('NotFound', 'Account not found')
    await lifecycle.announce(did)
  })
}

function view({ relay, verdict, severity, advice, status, seq, accounts, checkedAt, since, announcedAt }: RelayState) {
  const time = (at: number | null) => (at === null ? undefined : datetime(at))
  return {
    relay,
    verdict,
    severity,
    advice: advice ?? undefined,
    status: status ?? undefined,
    seq: seq ?? undefined,
    accountCount: accounts ?? undefined,
    checkedAt: time(checkedAt),
    since: time(since),
    announcedAt: time(announcedAt),
  }
}
