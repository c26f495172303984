import assert from 'node:assert/strict'
import { test } from 'node:test'
import { encodeFrame, identityEvent, infoFrame, withSeq } from '@millisky/core/event'
import { NOW, testDid } from '@millisky/core/testing-repos'
import { toWire } from '@millisky/server/log/frame-wire'
import type { SegmentEntry } from '@millisky/server/log/segments'
import { accountNumber } from '../accounts.ts'
import { BegunAnew, Mirror } from './mirror.ts'

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
    async read(after: number) {
      const { frame } = log.entries.find(({ seq }) => seq! > after) ?? {}
      return { count: frame ? 1 : 0, last: after, wire: frame ? [toWire(frame)] : [] }
    },
  }
  const told: string[] = []
  const mirror = new Mirror({
    log,
    now: () => NOW,
    observer: {
      dropped: why => told.push(why),
      info: name => told.push(`info ${name}`),
      taken: t => told.push(t),
      gap: ({ after, next }) => told.push(`gap ${after} ${next}`),
    },
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

test('the last event is asked for once more; one from before it means that the other relay has begun anew', async () => {
  const { mirror, seqs, told } = open()
  assert.deepEqual([mirror.ask(null), mirror.ask(0)], [null, 0])
  await mirror.take([frameAt(99), frameAt(100)])
  assert.equal(mirror.ask(0), 99)
  // Some relays send the one under the cursor as well.
  await mirror.take([frameAt(99)])
  await mirror.take([frameAt(100), frameAt(101)])
  // Later on it is only out of order.
  await mirror.take([frameAt(50), frameAt(102)])
  assert.deepEqual(seqs(), [99, 100, 101, 102])
  assert.equal(mirror.ask(null), 101)
  await assert.rejects(mirror.take([frameAt(7)]), BegunAnew)
  assert.deepEqual(told, [...Array(3).fill('#identity'), 'seq-not-rising', '#identity'])
})

test('a last event that is another one now means it, too; one that is only encoded otherwise does not', async () => {
  const { mirror, seqs } = open()
  const event = (body: object) => withSeq(encodeFrame({ t: '#identity', body: { seq: 0, did, ...body } }), 100)
  const time = new Date(NOW).toISOString()
  await mirror.take([event({ time })])
  mirror.ask(null)
  await mirror.take([event({ time, handle: 'more.test' }), frameAt(101)])
  assert.deepEqual(seqs(), [100, 101])
  mirror.ask(null)
  await assert.rejects(mirror.take([frameAt(101, time)]), BegunAnew)
  mirror.ask(null)
  await assert.rejects(
    mirror.take([withSeq(encodeFrame({ t: '#sync', body: { did, seq: 0, time, rev: 'x' } }), 101)]),
    {
      name: 'BegunAnew',
    },
  )
})

test('a connection that goes on further ahead leaves a gap, which is told once', async () => {
  const { mirror, seqs, told } = open(100)
  mirror.ask(null)
  // The event under the head is taken down there, or too old: nothing is missing.
  await mirror.take([frameAt(101)])
  mirror.ask(null)
  await mirror.take([infoFrame('OutdatedCursor'), frameAt(5_000), frameAt(6_000)])
  assert.deepEqual(seqs(), [101, 5_000, 6_000])
  assert.deepEqual(told, ['#identity', 'info OutdatedCursor', 'gap 101 5000', '#identity', '#identity'])
})
