/** `com.atproto.moderation.*`: reports, which somebody else decides about. */
import { valueToJson } from '@millisky/core/json'
import { main as createReport } from '@millisky/core/lexicon/gen/com/atproto/moderation/createReport'
import { asNsid } from '@millisky/core/syntax'
import type { Xrpc } from '@millisky/server/xrpc'
import type { PdsAccess } from '../access.ts'
import type { ServiceProxy } from '../proxy.ts'

export interface ModerationApiParts {
  access: PdsAccess
  proxy: ServiceProxy
}

/** Adds the methods. */
export function addModerationApi(xrpc: Xrpc, { access, proxy }: ModerationApiParts): void {
  // Whose account is taken down appeals by a report.
  const auth = access.session({ takendown: true })
  xrpc.procedure(createReport, { auth, instead: proxy.unlessServed }, async ({ request, auth, input }) => {
    const json = valueToJson(input as never)
    return proxy.passWhole({ request, nsid: asNsid(createReport.nsid), user: auth, json, isAppeal: true })
  })
}
