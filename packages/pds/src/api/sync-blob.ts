/** `com.atproto.sync.getBlob`, made to stand behind a cache: parts, conditions, and headers that keep browsers from harm. */
import { Readable } from 'node:stream'
import { Cid } from '@millisky/core/cid'
import { Refused } from '@millisky/core/errors'
import { main as getBlob } from '@millisky/core/lexicon/gen/com/atproto/sync/getBlob'
import { type RawReply, raw, type Xrpc } from '@millisky/server/xrpc'
import type { FastifyReply, FastifyRequest } from 'fastify'
import type { Blobs, ByteRange } from '../blobs.ts'
import type { Access } from '../callers.ts'
import { type Account, type Store, type StoredBlob, statusOf } from '../store/store.ts'
import { assertAvailable } from './availability.ts'

/** What is under a CID never changes; that it is there at all may, so caches ask again after a day. */
const CACHE_PUBLIC = 'public, max-age=86400, immutable'
const CACHE_NOT = 'private, no-store'

export interface BlobApiParts {
  store: Store
  blobs: Blobs
  access: Access
}

export function addBlobApi(xrpc: Xrpc, { store, blobs, access }: BlobApiParts): void {
  xrpc.query(getBlob, { auth: access.viewer }, async ({ params, auth, request, reply }) => {
    const { did } = params
    const account = assertAvailable(await store.accounts.byDid(did), did, auth)
    const cid = Cid.parse(params.cid)
    const blob = await store.blobs.get(account.id, cid)
    if (!blob || blob.takedown !== null) throw notFound()
    const isLoose = blob.looseSince !== null
    if (isLoose && !auth.sees(did)) throw notFound()
    const isPublic = !isLoose && statusOf(account) === 'active'
    if (isPublic) reply.removeHeader('vary')
    return reply304(request, blob, isPublic) ?? (await send(blobs, account, blob, request, reply, isPublic))
  })
}

const notFound = () => new Refused('InvalidRequest', 'Blob not found')
const etagOf = (blob: StoredBlob) => `"${blob.cid}"`

function reply304({ headers }: FastifyRequest, blob: StoredBlob, isPublic: boolean): RawReply | undefined {
  const given = headers['if-none-match']
  const matches = given?.split(',').some(tag => tag.trim() === '*' || tag.trim().replace(/^W\//, '') === etagOf(blob))
  const cached = { etag: etagOf(blob), 'cache-control': isPublic ? CACHE_PUBLIC : CACHE_NOT }
  return matches ? raw(undefined, undefined, cached, 304) : undefined
}

async function send(
  blobs: Blobs,
  account: Account,
  blob: StoredBlob,
  request: FastifyRequest,
  reply: FastifyReply,
  isPublic: boolean,
): Promise<RawReply> {
  const { cid, size, mimeType } = blob
  const headers: Record<string, string> = {
    'accept-ranges': 'bytes',
    'cache-control': isPublic ? CACHE_PUBLIC : CACHE_NOT,
    'content-disposition': `attachment; filename="${cid}"`,
    'content-security-policy': "default-src 'none'; sandbox",
    'x-content-type-options': 'nosniff',
    etag: etagOf(blob),
  }
  const range = rangeOf(request, blob)
  if (range === 'beyond') {
    const refused = { 'content-range': `bytes */${size}` }
    throw new Refused('InvalidRequest', 'Range Not Satisfiable', 416, refused)
  }
  const { start, end } = range ?? { start: 0, end: size - 1 }
  headers['content-length'] = String(end - start + 1)
  if (range) headers['content-range'] = `bytes ${start}-${end}/${size}`
  const status = range ? 206 : 200
  if (request.method === 'HEAD') return raw(mimeType, Readable.from([]), headers, status)
  const body = await blobs.open(account.did, cid, range)
  if (!body) throw notFound()
  reply.raw.once('close', () => body.destroy())
  return raw(mimeType, body, headers, status)
}

/** One range of bytes; undefined for the whole: none asked for, several, or one that is not understood. */
function rangeOf({ headers }: FastifyRequest, blob: StoredBlob): ByteRange | undefined | 'beyond' {
  const match = /^bytes=(\d*)-(\d*)$/.exec(headers.range?.trim() ?? '')
  if (!match || (match[1] === '' && match[2] === '')) return undefined
  const condition = headers['if-range']
  if (condition !== undefined && condition !== etagOf(blob)) return undefined
  const { size } = blob
  const [, from, to] = match
  if (from === '') {
    const length = Math.min(Number(to), size)
    return length === 0 ? 'beyond' : { start: size - length, end: size - 1 }
  }
  const start = Number(from)
  const end = to === '' ? size - 1 : Math.min(Number(to), size - 1)
  if (to !== '' && Number(to) < start) return undefined
  return start >= size ? 'beyond' : { start, end }
}
