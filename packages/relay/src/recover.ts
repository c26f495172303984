/** Reading events of our own back from a damaged log. */
import { readCar } from '@millisky/core/car'
import { Malformed } from '@millisky/core/errors'
import { decodeFrame, type Frame, readAccount, readCommit, readIdentity, readSync } from '@millisky/core/event'
import type { Recovered } from '@millisky/server/log/segment-recovery'
import { accountNumber } from './accounts.ts'

/** What the index of the log knew of an event, from its frame alone; null when that is not whole. */
export function recoverFrame(bytes: Uint8Array): Recovered | null {
  try {
    const { did, seq, time } = read(decodeFrame(bytes))
    return { seq, account: accountNumber(did), time: Date.parse(time) }
  } catch (error) {
    if (error instanceof Malformed) return null
    throw error
  }
}

function read(frame: Frame): { did: string; seq: number; time: string } {
  const { t, body } = frame
  if (t === '#identity') return readIdentity(body)
  if (t === '#account') return readAccount(body)
  if (t === '#sync') return readSync(body)
  if (t !== '#commit') throw new Malformed('not an event of ours')
  const commit = readCommit(body)
  readCar(commit.blocks)
  return { ...commit, did: commit.repo }
}
