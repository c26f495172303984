/** What a segment log remembers of itself beside its segments: how it was closed, and how far it had come. */
import { existsSync, readFileSync } from 'node:fs'
import { rename } from 'node:fs/promises'
import { join } from 'node:path'
import { closeFile, openFile, syncFile, syncFolder, writeAt } from './segment-files.ts'

/** How far seq jumps after an unclean end without `batch`. Far more than can be sent between two syncs, nothing against 2^53. */
export const SKIP = 1_000_000

export interface State {
  readonly clean: boolean
  readonly fsync: 'batch' | 'other'
  /** Lower bound of the head. */
  readonly head: number
  /** Seq of the last event, if closed cleanly. */
  readonly last: number
}

/** Null in a new folder. @throws Error when the file is not readable */
export function readState(folder: string): State | null {
  const path = join(folder, 'state.json')
  if (!existsSync(path)) return null
  try {
    return JSON.parse(readFileSync(path, 'utf8')) as State
  } catch (cause) {
    throw new Error(`${path} is not readable; remove it to go on with a safe distance in seq.`, { cause })
  }
}

/** How far beyond the last event found there may have been others that were sent and lost. */
export function skipAfter(state: State | null, hasEvents: boolean): number {
  if (state) return state.clean || state.fsync === 'batch' ? 0 : SKIP
  return hasEvents ? SKIP : 0
}

export async function writeState(folder: string, state: State): Promise<void> {
  const path = join(folder, 'state.json')
  const fd = await openFile(`${path}.new`, 'w')
  try {
    await writeAt(fd, Buffer.from(`${JSON.stringify(state)}\n`), 0)
    await syncFile(fd)
  } finally {
    await closeFile(fd)
  }
  await rename(`${path}.new`, path)
  await syncFolder(folder)
}
