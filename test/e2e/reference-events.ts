// What the stream told of each account, in order.
import { until } from '@millisky/server/testing-until'
import { decodeFrame } from '../../packages/core/src/event.ts'
import type { Side } from './reference-side.ts'

/** The key of the record that is written last. */
const LAST = '3kaaaaaaaaa2z'

/** Keeps, for each account, the kinds of its events with what a consumer acts on, and the fields of each kind. */
export async function events(side: Side): Promise<void> {
  // The stream has one order: who has the last event has all.
  const last = await side.signUp('zoelast')
  const post = { repo: last.did, collection: 'app.bsky.feed.post', rkey: LAST }
  const record = { $type: post.collection, text: 'the last one', createdAt: '2026-08-20T12:00:00.000Z' }
  await side.ask('com.atproto.repo.putRecord', { auth: last, body: { ...post, record } })
  const frames = await framesOf(side.server.url)
  const told = new Map<string, unknown[]>()
  const fields: Record<string, string[]> = {}
  let lastSeq = 0
  let ordered = true
  for (const bytes of frames) {
    const { t, body } = decodeFrame(bytes) as unknown as { t: string; body: Record<string, unknown> }
    const did = String(body.did ?? body.repo)
    // The reference makes a commit of no writes too.
    if (t === '#commit' && body.prevData && (body.ops as unknown[]).length === 0) continue
    ordered &&= Number(body.seq) > lastSeq
    lastSeq = Number(body.seq)
    fields[t] = Object.keys(body).sort()
    told.set(did, [...(told.get(did) ?? []), summaryOf(t, body)])
  }
  side.note('events: in order', ordered)
  side.note('events: fields', fields)
  for (const [did, list] of told) side.note(`events: of ${side.nameOf(did)}`, list)
}

function summaryOf(
  t: string,
  { handle, active, status, ops, since, blobs, tooBig, rebase, prevData }: Record<string, unknown>,
) {
  const changes = (ops as { action: string; path: string; prev?: unknown; cid: unknown }[] | undefined)?.map(
    ({ action, path, prev, cid }) => `${action} ${path.split('/')[0]} ${prev ? 'prev' : ''} ${cid ? 'cid' : ''}`,
  )
  const flags = t === '#commit' ? { tooBig, rebase, blobs: (blobs as unknown[]).length, since: typeof since } : {}
  return { t, handle, active, status, changes: changes?.sort(), prevData: prevData ? 'a link' : prevData, ...flags }
}

async function framesOf(url: string): Promise<Uint8Array[]> {
  const socket = new WebSocket(`${url.replace('http', 'ws')}/xrpc/com.atproto.sync.subscribeRepos?cursor=0`)
  socket.binaryType = 'arraybuffer'
  const frames: Uint8Array[] = []
  socket.onmessage = ({ data }) => frames.push(new Uint8Array(data as ArrayBuffer))
  await new Promise((resolve, reject) => {
    socket.onopen = resolve
    socket.onerror = reject
  })
  await until('the last event', () => frames.some(frame => Buffer.from(frame).includes(LAST)))
  socket.close()
  return frames
}
