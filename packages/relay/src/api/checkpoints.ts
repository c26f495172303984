/** What the relay has signed of its log, for everybody. */
import { Refused } from '@millisky/core/errors'
import { main as getCheckpointEvents } from '@millisky/core/lexicon/gen/net/millisky/relay/getCheckpointEvents'
import { main as listCheckpoints } from '@millisky/core/lexicon/gen/net/millisky/relay/listCheckpoints'
import { raw, type Xrpc } from '@millisky/server/xrpc'
import type { Checkpoints } from '../checkpoints.ts'

export function addCheckpointApi(xrpc: Xrpc, checkpoints: Checkpoints): void {
  xrpc.query(listCheckpoints, async ({ params }) => {
    const { cursor = 0, limit = 100 } = params
    const found = await checkpoints.list(cursor, limit + 1)
    const page = found.slice(0, limit)
    return { checkpoints: page, cursor: found.length > limit ? page.at(-1)!.last : undefined }
  })
  xrpc.query(getCheckpointEvents, async ({ params }) => {
    const list = await checkpoints.events(params.last)
    if (list === null) throw new Refused('CheckpointNotFound', 'There is no list of such a checkpoint (any more)', 404)
    return raw('application/octet-stream', list)
  })
}
