/** Reading a PDS's event log in tests. */
import { decodeFrame, type Frame } from '@millisky/core/event'
import { framesOf as framesIn } from '@millisky/server/log/frame-wire'
import type { Store } from './store/store.ts'

/** All frames of the log, in order. */
export async function framesOf({ store }: { store: Store }): Promise<Frame[]> {
  const { wire } = await store.log.read(0, { bytes: 1e9 })
  return Array.from(framesIn(wire), frame => decodeFrame(frame))
}

/** Kinds of the events about an account, in order. */
export async function kindsOf(pds: { store: Store }, did: string): Promise<(string | null)[]> {
  const frames = await framesOf(pds)
  return frames.filter(({ body }) => body.did === did || body.repo === did).map(({ t }) => t)
}
