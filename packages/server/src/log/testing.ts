import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { encodeFrame, peek } from '@millisky/core/event'
import { framesOf } from './frame-wire.ts'
import type { Batch, Log } from './log.ts'
import type { Recovered } from './segment-recovery.ts'

/** What tests append: the `n`th event, about account `who`, `size` bytes or so. */
export interface TestEvent {
  n: number
  who: number
  size: number
}

/** A log being tested, with the writing side its driver has. */
export interface TestLog {
  log: Log
  append(events: readonly TestEvent[]): Promise<number>
  /** Closes the log and opens it again. */
  restart(): Promise<TestLog>
}

export interface TestLogOptions {
  firstSeq?: number
  ringBytes?: number
}

type Cleanup = { after(fn: () => unknown): void }

export const testDid = (who: number) => `did:web:a${who}.test`

/** A frame with an open seq. */
export function testFrame({ n, who, size }: TestEvent): Uint8Array {
  return encodeFrame({ t: '#test', body: { seq: 0, did: testDid(who), n, pad: new Uint8Array(size).fill(n) } })
}

/** For the segment log: reads a test frame back. */
export function recoverTestFrame(frame: Uint8Array): Recovered {
  const { seq, did } = peek(frame)
  return { seq: seq!, account: Number(/a(\d+)/.exec(did!)![1]), time: 7 }
}

export interface Seen {
  seq: number
  who: number
  frame: Uint8Array
}

/** The events inside a batch; checks that the batch is what it says. */
export function eventsOf(batch: Batch): Seen[] {
  const seen = [...framesOf(batch.wire)].map(frame => {
    const { seq, did } = peek(frame)
    return { seq: seq!, who: Number(/a(\d+)/.exec(did!)![1]), frame }
  })
  assert.equal(seen.length, batch.count)
  for (let i = 1; i < seen.length; i++) assert.ok(seen[i]!.seq > seen[i - 1]!.seq, 'seq rises')
  if (seen.length > 0) assert.ok(batch.last >= seen.at(-1)!.seq)
  return seen
}

/** Reads to the end as a consumer would. */
export async function readAll(log: Log, after = 0, bytes = 1 << 16): Promise<Seen[]> {
  const all: Seen[] = []
  for (let at = after; ; ) {
    const batch = await log.read(at, { bytes })
    all.push(...eventsOf(batch))
    assert.ok(batch.last >= at)
    if (batch.last === at) return all
    at = batch.last
  }
}

const events = (from: number, count: number, size = 100): TestEvent[] =>
  Array.from({ length: count }, (_, i) => ({ n: from + i, who: (from + i) % 7, size: size + ((from + i) % 5) }))

type Open = (t: Cleanup, options: TestLogOptions) => Promise<TestLog>

async function startsEmpty(t: Cleanup, open: Open): Promise<void> {
  const { log } = await open(t, {})
  assert.equal(log.head, 0)
  assert.equal(log.oldest, 1)
  assert.deepEqual(await log.read(0, { bytes: 1000 }), { count: 0, last: 0, wire: [] })
  const later = await open(t, { firstSeq: 5_000_000_000 })
  assert.equal(later.log.head, 4_999_999_999)
  assert.equal(await later.append(events(0, 2)), 5_000_000_001)
  assert.equal(later.log.oldest, 5_000_000_000)
  assert.equal((await readAll(later.log)).length, 2)
}

async function givesBack(t: Cleanup, open: Open): Promise<void> {
  const { log, append } = await open(t, {})
  const sizes = [0, 1, 50, 125, 126, 200, 65_400, 65_536, 70_000, 3]
  const appended = sizes.map((size, n) => ({ n, who: n % 3, size }))
  assert.equal(await append(appended.slice(0, 4)), 4)
  assert.equal(await append(appended.slice(4)), 10)
  assert.equal(log.head, 10)
  assert.equal(log.oldest, 1)
  const seen = await readAll(log)
  assert.deepEqual(
    seen.map(event => [event.seq, event.who]),
    appended.map((event, i) => [i + 1, event.who]),
  )
  for (const [i, event] of seen.entries()) assert.ok(event.frame.length > sizes[i]!)
}

async function readsFromAnyCursor(t: Cleanup, open: Open): Promise<void> {
  for (const ringBytes of [1 << 20, 1]) {
    const { log, append } = await open(t, { ringBytes })
    for (let i = 0; i < 40; i += 8) await append(events(i, 8))
    for (const bytes of [1, 150, 700, 5_000, 1 << 20]) {
      for (const after of [0, 1, 7, 8, 9, 39]) {
        const batch = await log.read(after, { bytes })
        const seen = eventsOf(batch)
        assert.equal(seen[0]!.seq, after + 1)
        const total = batch.wire.reduce((sum, part) => sum + part.length, 0)
        assert.ok(total <= bytes || seen.length === 1, `${total} bytes for ${bytes}`)
        assert.deepEqual(
          (await readAll(log, after, bytes)).map(event => event.seq),
          Array.from({ length: 40 - after }, (_, i) => after + 1 + i),
        )
      }
    }
    assert.equal((await log.read(40, { bytes: 1 })).count, 0)
    assert.equal((await log.read(1000, { bytes: 1 })).last, 1000)
  }
}

async function staysTheSame(t: Cleanup, open: Open): Promise<void> {
  const first = await open(t, { ringBytes: 3_000 })
  for (let i = 0; i < 100; i += 10) await first.append(events(i, 10))
  const live = await readAll(first.log, 90)
  const old = await readAll(first.log)
  assert.deepEqual(old.slice(90), live)
  const second = await first.restart()
  assert.equal(second.log.head, 100)
  assert.equal(second.log.oldest, 1)
  assert.deepEqual(await readAll(second.log), old)
  assert.equal(await second.append(events(100, 1)), 101)
  assert.equal((await readAll(second.log, 50)).length, 51)
}

async function sharesMemory(t: Cleanup, open: Open): Promise<void> {
  const { log, append } = await open(t, {})
  await append(events(0, 5))
  await append(events(5, 5))
  const one = log.read(0, { bytes: 1 << 20 })
  const two = log.read(0, { bytes: 1 << 20 })
  assert.ok(!(one instanceof Promise) && !(two instanceof Promise))
  for (const [i, part] of one.wire.entries()) assert.equal(part.buffer, two.wire[i]!.buffer)
}

async function followsTheBell(t: Cleanup, open: Open): Promise<void> {
  const { log, append } = await open(t, { ringBytes: 20_000 })
  const total = 600
  const follow = async (start: number, bytes: number) => {
    const seen: number[] = []
    for (let after = start; after < total; ) {
      while (log.head <= after) await log.bell.wait()
      const batch = await log.read(after, { bytes })
      seen.push(...eventsOf(batch).map(event => event.seq))
      after = batch.last
    }
    return seen
  }
  const readers = [follow(0, 1), follow(0, 1 << 20), follow(0, 3_000), follow(100, 10_000)]
  const writers = [0, 1, 2].map(async w => {
    for (let i = 0; i < 200; ) {
      const count = 1 + ((i + w) % 9)
      const some = Math.min(count, 200 - i)
      await append(events(w * 1000 + i, some))
      i += some
    }
  })
  await Promise.all(writers)
  for (const [i, reader] of readers.entries()) {
    const start = i === 3 ? 100 : 0
    assert.deepEqual(
      await reader,
      Array.from({ length: total - start }, (_, k) => start + 1 + k),
    )
  }
}

/** What every log driver must do. */
export function logContract(name: string, skip: string | false, open: Open): void {
  describe(`log contract: ${name}`, { skip }, () => {
    test('starts empty, at its first seq', t => startsEmpty(t, open))
    test('gives back what was appended, in order, whole and numbered', t => givesBack(t, open))
    test('reads from any cursor with any limit', t => readsFromAnyCursor(t, open))
    test('the same seq is the same bytes, from memory, from storage and after a restart', t => staysTheSame(t, open))
    test('the newest events are answered at once, with the same buffers for everyone', t => sharesMemory(t, open))
    test('a reader that follows the bell sees every event once, in order, while others append', t =>
      followsTheBell(t, open))
  })
}
