import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { withSeq } from '@millisky/core/event'
import { openSegmentLog, type SegmentLog, type SegmentLogOptions } from './segments.ts'
import { recoverTestFrame, testFrame } from './testing.ts'

interface Clock {
  ms: number
}

const opened: SegmentLog[] = []

async function openLog(folder: string, clock: Clock, options: Partial<SegmentLogOptions> = {}): Promise<SegmentLog> {
  const log = await openSegmentLog(folder, {
    withSeq,
    recover: recoverTestFrame,
    now: () => clock.ms,
    fsync: 'none',
    ...options,
  })
  opened.push(log)
  return log
}

function freshFolder(t: { after(fn: () => unknown): void }): string {
  const folder = mkdtempSync(join(tmpdir(), 'millisky-times-'))
  t.after(async () => {
    for (const log of opened.splice(0)) await log.close()
    rmSync(folder, { recursive: true, force: true })
  })
  return folder
}

const add = (log: SegmentLog, count: number) =>
  log.append(Array.from({ length: count }, (_, n) => ({ frame: testFrame({ n, who: 1, size: 50 }), account: 1 })))

/** A log whose clock stands, jumps ahead and goes back; the stamps as they were read from memory. */
async function storm(folder: string, options: Partial<SegmentLogOptions> = {}) {
  const clock = { ms: 5_000 }
  const log = await openLog(folder, clock, options)
  const live: number[] = []
  for (const [ms, count] of [
    [5_000, 3],
    [5_000, 2],
    [5_001, 1],
    [4_000, 2],
    [5_050, 1],
    [5_050, 1_200],
    [9_000, 1],
  ] as const) {
    clock.ms = ms
    const before = log.head
    await add(log, count)
    const { seqs, micros } = await log.stamps(before, log.head)
    assert.deepEqual(
      seqs,
      Array.from({ length: count }, (_, i) => before + 1 + i),
    )
    live.push(...micros)
  }
  return { log, clock, live }
}

for (const [name, options] of [
  ['in one segment', {}],
  ['over many segments', { segmentBytes: 300 }],
] as const) {
  test(`stamps never fall and are the same from memory, from files and after a restart, ${name}`, async t => {
    const folder = freshFolder(t)
    const { log, clock, live } = await storm(folder, options)
    for (let i = 1; i < live.length; i++) assert.ok(live[i]! >= live[i - 1]!, `stamp ${i} falls`)
    await log.close()
    const again = await openLog(folder, clock, { ...options, ringBytes: 1 })
    assert.deepEqual((await again.stamps(0, again.head)).micros, live)
    for (const [after, last] of [
      [0, 1],
      [2, 7],
      [5, 6],
      [300, 1_100],
      [1_208, 1_210],
      [1_210, 1_210],
    ] as const) {
      assert.deepEqual((await again.stamps(after, last)).micros, live.slice(after, last), `${after} to ${last}`)
    }
  })

  test(`the place for a time is where nothing of that time or later has come yet, ${name}`, async t => {
    const { log, live } = await storm(freshFolder(t), options)
    for (const ms of [0, 4_000, 5_000, 5_001, 5_002, 5_050, 5_051, 8_999, 9_000, 9_001, 1e12]) {
      const expected = live.filter(micros => micros < ms * 1_000).length
      assert.equal(await log.seqBefore(ms), expected, `${ms}`)
    }
  })
}

test('a thousand events of a millisecond have stamps of their own, later ones share the last', async t => {
  const log = await openLog(freshFolder(t), { ms: 1 })
  await add(log, 1_003)
  const { micros } = await log.stamps(0, 1_003)
  assert.deepEqual(micros.slice(0, 3), [1_000, 1_001, 1_002])
  assert.deepEqual(micros.slice(-5), [1_998, 1_999, 1_999, 1_999, 1_999])
})

test('a log with nothing in it has no stamps', async t => {
  const log = await openLog(freshFolder(t), { ms: 1 })
  assert.deepEqual(await log.stamps(0, 5), { seqs: [], micros: [] })
  assert.equal(await log.seqBefore(7), 0)
})

test('a clock that was far ahead and is right again is followed, and no time misses what came since', async t => {
  const clock = { ms: 1_000 }
  const log = await openLog(freshFolder(t), clock, { segmentMs: 1e12 })
  await add(log, 2)
  clock.ms = 90_000_000
  await add(log, 2)
  clock.ms = 2_000
  await add(log, 2)
  clock.ms = 3_000
  await add(log, 1)
  const { micros } = await log.stamps(0, 7)
  assert.deepEqual(micros, [1_000_000, 1_000_001, 90_000_000_000, 90_000_000_001, 2_000_000, 2_000_001, 3_000_000])
  for (const ms of [1_000, 1_001, 2_000, 2_500, 3_000]) {
    const after = await log.seqBefore(ms)
    assert.ok(
      micros.every((stamp, i) => i >= after || stamp < ms * 1_000),
      `${ms}: after ${after}`,
    )
  }
  assert.equal(log.size.segments, 2)
})
