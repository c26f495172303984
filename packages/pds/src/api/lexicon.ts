/** `com.atproto.lexicon.*`: schemas of everybody. */
import { main as resolveLexicon } from '@millisky/core/lexicon/gen/com/atproto/lexicon/resolveLexicon'
import type { Nsid } from '@millisky/core/syntax'
import type { Xrpc } from '@millisky/server/xrpc'
import type { Lexicons } from '../lexicons.ts'
import { type Limits, perAddress } from '../rates.ts'

export interface LexiconApiParts {
  lexicons: Pick<Lexicons, 'resolve'>
  limits: Limits | undefined
}

/** Adds the method. Anybody may ask; what is asked of the world for them is remembered and counted. */
export function addLexiconApi(xrpc: Xrpc, { lexicons, limits }: LexiconApiParts): void {
  xrpc.query(resolveLexicon, { rates: perAddress(limits?.resolutions) }, async ({ params }) => {
    const { uri, cid, schema } = await lexicons.resolve(params.nsid as Nsid)
    return { uri, cid: cid.toString(), schema: schema as never }
  })
}
