/** A thread that judges what it is sent, batch by batch. */
import { parentPort } from 'node:worker_threads'
import { judgeGroup, Keys } from './job.ts'
import { packOutcomes, Texts, unpackGroups } from './packing.ts'

/** A batch of groups; the buffer comes back with the answer, to be used again. */
export interface Batch {
  id: number
  buffer: ArrayBuffer
  bytes: number
  groups: number
  texts: readonly string[]
  now: number
}

export interface BatchAnswer {
  id: number
  buffer: ArrayBuffer
  outcomes: Uint8Array<ArrayBuffer>
  texts: readonly string[]
}

const keys = new Keys()

parentPort?.on('message', (batch: Batch) => {
  const { id, buffer, bytes, groups, now } = batch
  const all = unpackGroups(new Uint8Array(buffer, 0, bytes), groups, batch.texts)
  const texts = new Texts()
  const outcomes = packOutcomes(
    all.map(group => judgeGroup(group, now, keys)),
    texts,
  ) as Uint8Array<ArrayBuffer>
  const answer: BatchAnswer = { id, buffer, outcomes, texts: texts.list }
  parentPort?.postMessage(answer, [buffer, outcomes.buffer])
})
