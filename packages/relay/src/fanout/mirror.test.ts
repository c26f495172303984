import assert from 'node:assert/strict'
import { test } from 'node:test'
import { encodeFrame, identityEvent, infoFrame, withSeq } from '@millisky/core/event'
import { NOW, testDid } from '@millisky/core/testing-repos'
import type { SegmentEntry } from '@millisky/server/log/segments'
import { accountNumber } from '../accounts.ts'
import { Mirror, WentBackwards } from './mirror.ts'

const did = testDid('alice')
const frameAt = (seq: number, time = new Date(NOW - 1_500).toISOString()) =>
  withSeq(encodeFrame(identityEvent({ did }, time as never)), seq)

function open(head = 0) {
  const log = {
    head,
    entries: [] as SegmentEntry[],
    async append(entries: readonly SegmentEntry[]) {
      log.entries.push(...entries)
      log.head = entries.at(-1)!.seq!
      return log.head
    },
  }
  const told: string[] = []
  const mirror = new Mirror({
    log,
    now: () => NOW,
    observer: { dropped: why => told.push(why), info: name => told.push(`info ${name}`), taken: t => told.push(t) },
  })
  return { log, mirror, told, seqs: () => log.entries.map(({ seq }) => seq) }
}

test('events are kept as they are, under their seqs, known or not', async () => {
  const { log, mirror, told, seqs } = open()
  const odd = withSeq(encodeFrame({ t: '#tomorrow', body: { seq: 0, x: [1.5], y: null } }), 9)
  const frames = [frameAt(3), frameAt(4), odd, frameAt(1e15)]
  await mirror.take(frames)
  assert.deepEqual(seqs(), [3, 4, 9, 1e15])
  for (const [i, { frame }] of log.entries.entries()) assert.deepEqual(frame, frames[i])
  const alice = accountNumber(did)
  assert.deepEqual(
    log.entries.map(({ account }) => account),
    [alice, alice, 0, alice],
  )
  assert.deepEqual(told, ['#identity', '#identity', '#tomorrow', '#identity'])
  assert.deepEqual([mirror.lagMs, mirror.lastAt], [1_500, NOW])
})

test('what is no event, or none that follows, is dropped with a reason', async () => {
  const { mirror, told, seqs } = open(5)
  const broken = frameAt(8)
  await mirror.take([
    Uint8Array.of(1, 2, 3),
    new Uint8Array(0),
    broken.subarray(0, broken.length - 1),
    new Uint8Array([...broken, 0]),
    encodeFrame({ t: '#identity', body: { did } }),
    encodeFrame({ t: '#identity', body: { did, seq: -1 } }),
    encodeFrame({ t: '#identity', body: { did, seq: 'x' } }),
    encodeFrame({ t: 'x'.repeat(65), body: { seq: 7 } }),
    infoFrame('OutdatedCursor', 'gone'),
    encodeFrame({ t: '#info', body: {} }),
    frameAt(5),
    frameAt(6),
    frameAt(6),
    frameAt(2),
    frameAt(7),
  ])
  assert.deepEqual(seqs(), [6, 7])
  assert.deepEqual(told, [
    ...Array(4).fill('undecodable'),
    ...Array(3).fill('no-seq'),
    'no-type',
    'info OutdatedCursor',
    'undecodable',
    'seq-not-rising',
    '#identity',
    'seq-not-rising',
    'seq-not-rising',
    '#identity',
  ])
  // Nothing to take is nothing to append.
  await mirror.take([frameAt(7), infoFrame('x')])
  assert.deepEqual(seqs(), [6, 7])
})

test('a first event from before the cursor means that the other relay has begun anew', async () => {
  const { mirror, seqs } = open(100)
  mirror.asked(100)
  // Once more the one under the cursor: some relays do that.
  await mirror.take([frameAt(100), frameAt(101)])
  // Later on it is only out of order.
  await mirror.take([frameAt(50), frameAt(102)])
  assert.deepEqual(seqs(), [101, 102])
  mirror.asked(102)
  await assert.rejects(mirror.take([frameAt(7)]), WentBackwards)
  mirror.asked(null)
  await mirror.take([frameAt(7), frameAt(103)])
  assert.deepEqual(seqs(), [101, 102, 103])
})
