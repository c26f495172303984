/** Reading events back from a damaged log: what its index knew of them, from their frames alone. */
import { readCar } from '@millisky/core/car'
import { Malformed } from '@millisky/core/errors'
import { decodeFrame, type Frame, peek, readAccount, readCommit, readIdentity, readSync } from '@millisky/core/event'
import type { Recovered } from '@millisky/server/log/segment-recovery'
import { accountNumber } from './accounts.ts'
import { TAKENDOWN } from './status.ts'

/** Of an event of our own log; null when that is not whole. */
export function recoverFrame(bytes: Uint8Array): Recovered | null {
  return recovered(bytes, maskedWith)
}

/** Of an event that another relay numbered, known or not; null when that is not whole. */
export function recoverForeign(bytes: Uint8Array): Recovered | null {
  return recovered(bytes, () => peek(bytes).did)
}

/** @param didOf - The account that the event is hidden with; null for none. */
function recovered(bytes: Uint8Array, didOf: (frame: Frame) => string | null): Recovered | null {
  try {
    const frame = decodeFrame(bytes)
    const did = didOf(frame)
    const { seq } = peek(bytes)
    if (seq === null) return null
    const time = Date.parse(String(frame.body.time))
    return { seq, account: did === null ? 0 : accountNumber(did), time: Number.isNaN(time) ? 0 : Math.max(0, time) }
  } catch (error) {
    if (error instanceof Malformed) return null
    throw error
  }
}

/** See `entryOf` of the appender: the word of a takedown is not hidden along with what is taken down. @throws Malformed */
function maskedWith({ t, body }: Frame): string | null {
  if (t === '#identity') return readIdentity(body).did
  if (t === '#sync') return readSync(body).did
  if (t === '#account') {
    const { did, status } = readAccount(body)
    return status === TAKENDOWN ? null : did
  }
  if (t !== '#commit') throw new Malformed('not an event of ours')
  const { repo, blocks } = readCommit(body)
  readCar(blocks)
  return repo
}
