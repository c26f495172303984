/** Reading a PDS's event log in tests. */
import { decodeFrame, type Frame } from '@millisky/core/event'
import type { Store } from './store/store.ts'

/** All frames of the log. Messages are unmasked: a header of 2, 4 or 10 bytes and the frame. */
export async function framesOf({ store }: { store: Store }): Promise<Frame[]> {
  const { wire } = await store.log.read(0, { bytes: 1e9 })
  const found: Frame[] = []
  for (const message of wire) {
    const view = new DataView(message.buffer, message.byteOffset)
    for (let at = 0; at < message.length; ) {
      const short = message[at + 1]! & 0x7f
      const [size, start] =
        short < 126 ? [short, 2] : short === 126 ? [view.getUint16(at + 2), 4] : [Number(view.getBigUint64(at + 2)), 10]
      found.push(decodeFrame(message.subarray(at + start, at + start + size)))
      at += start + size
    }
  }
  return found
}

/** Kinds of the events about an account, in order. */
export async function kindsOf(pds: { store: Store }, did: string): Promise<(string | null)[]> {
  const frames = await framesOf(pds)
  return frames.filter(({ body }) => body.did === did || body.repo === did).map(({ t }) => t)
}
