/**
 * Replies that are CARs of any length. That of `com.atproto.sync.getRepo` is conditional, compressed where that is asked for, and
 * whole, in part by `since`, or one collection by `collection`, a parameter of ours: as the protocol has no name for it yet,
 * it stands in no lexicon.
 */
import { Readable } from 'node:stream'
import type { Cid } from '@millisky/core/cid'
import { Refused } from '@millisky/core/errors'
import { isNsid, type Nsid } from '@millisky/core/syntax'
import { addressKey } from '@millisky/server/rate'
import { type RawReply, raw } from '@millisky/server/xrpc'
import type { FastifyReply, FastifyRequest } from 'fastify'
import type { Encoding, Exports } from '../exports.ts'
import type { Account, Store } from '../store/store.ts'

const CAR = 'application/vnd.ipld.car'

export interface ExportParts {
  store: Store
  exports: Exports
}

/** Begins an export, or says that the caller has it. @throws Refused, Unavailable */
export async function sendExport(
  { store, exports }: ExportParts,
  account: Account,
  since: string | undefined,
  request: FastifyRequest,
  reply: FastifyReply,
): Promise<RawReply> {
  const collection = collectionOf(request)
  const encoding = encodingOf(request)
  const headers: Record<string, string> = {
    vary: 'Authorization, Accept-Encoding',
    // Sent to everybody who asks after a write: what is kept of it has to be asked for again.
    'cache-control': 'private, no-cache',
    ...(encoding && { 'content-encoding': encoding }),
    // Source: the hint of the reference's own branch for streamable CARs.
    ...(since === undefined && { 'atproto-car-block-order': 'mst-preorder' }),
  }
  const tagOf = (commit: unknown) => `"${encoding ? `${commit}-${encoding}` : commit}"`
  const conditions = request.headers['if-none-match']
  if (conditions !== undefined || request.method === 'HEAD') {
    const head = await store.repos.commitBlock(account.id)
    if (!head) throw new Refused('RepoNotFound', `Could not find repo for DID: ${account.did}`)
    const etag = tagOf(head.cid)
    const matches = conditions?.split(',').some(tag => ['*', etag].includes(tag.trim().replace(/^W\//, '')))
    if (matches) return raw(undefined, undefined, { ...headers, etag }, 304)
    if (request.method === 'HEAD') return raw(CAR, Readable.from([]), { ...headers, etag })
  }
  const reader = addressKey(request.ip)
  const { head, body } = await exports.open(account.id, { since, collection, encoding, reader, taker: reply.raw })
  return raw(CAR, endingWith(reply, body), { ...headers, etag: tagOf(head.commit) })
}

/** The reply of `getBlocks`. @throws Refused, Unavailable */
export async function sendBlocks(
  exports: Exports,
  account: Account,
  cids: readonly Cid[],
  request: FastifyRequest,
  reply: FastifyReply,
): Promise<RawReply> {
  const { body } = await exports.openBlocks(account.id, cids, { reader: addressKey(request.ip), taker: reply.raw })
  return raw(CAR, endingWith(reply, body))
}

/** Who has left before the reply began is not noticed by anybody else. */
function endingWith(reply: FastifyReply, body: Readable): Readable {
  if (reply.raw.destroyed) body.destroy()
  else reply.raw.once('close', () => body.destroy())
  return body
}

function collectionOf({ raw }: FastifyRequest): Nsid | undefined {
  const query = raw.url!.indexOf('?')
  const given = new URLSearchParams(query < 0 ? '' : raw.url!.slice(query)).getAll('collection')
  if (given.length === 0) return undefined
  const [collection] = given
  if (given.length > 1 || !isNsid(collection!)) throw new Refused('InvalidRequest', 'collection must be one NSID')
  return collection
}

/** What is asked for outright: a `*` may stand for a client that takes anything and knows nothing. zstd is cheaper. */
function encodingOf({ headers }: FastifyRequest): Encoding | undefined {
  const given = headers['accept-encoding']
  if (typeof given !== 'string') return undefined
  const accepted = new Set<string>()
  for (const part of given.toLowerCase().split(',')) {
    const [name, ...params] = part.split(';').map(text => text.trim())
    if (!params.some(param => /^q=0(\.0*)?$/.test(param))) accepted.add(name!)
  }
  return accepted.has('zstd') ? 'zstd' : accepted.has('gzip') ? 'gzip' : undefined
}
