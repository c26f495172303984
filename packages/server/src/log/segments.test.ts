import assert from 'node:assert/strict'
import {
  cpSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { decodeFrame, withSeq } from '@millisky/core/event'
import { framesOf, toWire } from './frame-wire.ts'
import type { Log } from './log.ts'
import { HEADER_BYTES, RECORD_BYTES } from './segment-index.ts'
import { checkSegments, LogDamaged, type Repair, recoverSegments, verifySegment } from './segment-recovery.ts'
import { SKIP } from './segment-state.ts'
import { openSegmentLog, type SegmentLog, type SegmentLogOptions } from './segments.ts'
import { logContract, readAll, recoverTestFrame, type TestEvent, type TestLog, testFrame } from './testing.ts'

type Cleanup = { after(fn: () => unknown): void }

function freshFolder(t: Cleanup): string {
  const folder = mkdtempSync(join(tmpdir(), 'millisky-log-'))
  t.after(() => rmSync(folder, { recursive: true, force: true }))
  return folder
}

const open = (folder: string, options: Partial<SegmentLogOptions> = {}) =>
  openSegmentLog(folder, { withSeq, recover: recoverTestFrame, now: () => 1000, ...options })

const entries = (events: readonly TestEvent[]) => events.map(event => ({ frame: testFrame(event), account: event.who }))
const some = (from: number, count: number, size = 100) =>
  entries(Array.from({ length: count }, (_, i) => ({ n: from + i, who: (from + i) % 5, size })))

/** Opens, does something, closes. */
async function withLog<T>(
  folder: string,
  options: Partial<SegmentLogOptions>,
  fn: (log: SegmentLog) => Promise<T>,
): Promise<T> {
  const log = await open(folder, options)
  try {
    return await fn(log)
  } finally {
    await log.close()
  }
}

/** As it would be after a kill: the files as they are, the state of an open log. */
function killed(folder: string, fsync: 'batch' | 'other' = 'batch'): void {
  const path = join(folder, 'state.json')
  writeFileSync(
    path,
    JSON.stringify({ ...JSON.parse(readFileSync(path, 'utf8')), clean: false, fsync, head: 0, last: 0 }),
  )
}

const files = (folder: string, kind: 'log' | 'idx') =>
  readdirSync(folder)
    .filter(name => name.endsWith(`.${kind}`))
    .sort()
    .map(name => join(folder, name))

for (const [name, options] of Object.entries<Partial<SegmentLogOptions>>({
  'one segment': {},
  'tiny segments': { segmentBytes: 500 },
  'without fsync': { fsync: 'none', segmentBytes: 2_000 },
  'fsync by the clock': { fsync: { intervalMs: 5 }, segmentBytes: 2_000, openMax: 1, cacheBytes: 0 },
})) {
  const openAt = async (folder: string, t: Cleanup, more: object): Promise<TestLog> => {
    const log = await open(folder, { ...options, ...more })
    t.after(() => log.close())
    return {
      log,
      append: events => log.append(entries(events)),
      restart: async () => {
        await log.close()
        return openAt(folder, t, more)
      },
    }
  }
  const openFresh = async (t: Cleanup, more: object): Promise<TestLog> => {
    const folder = mkdtempSync(join(tmpdir(), 'millisky-log-'))
    const closing: (() => unknown)[] = []
    t.after(async () => {
      for (const close of closing) await close()
      rmSync(folder, { recursive: true })
    })
    return openAt(folder, { after: close => closing.push(close) }, more)
  }
  logContract(`segments, ${name}`, false, openFresh)
}

describe('segment log', () => {
  test('appends that arrive together share a write; one that cannot be numbered is refused alone', async t => {
    const folder = freshFolder(t)
    await withLog(folder, {}, async log => {
      const results = await Promise.allSettled([
        log.append(some(0, 2)),
        log.append([...some(2, 1), { frame: Uint8Array.of(0xa0, 0xa0), account: 0 }]),
        log.append(some(3, 3)),
        log.append([]),
      ])
      assert.deepEqual(
        results.map(result => (result.status === 'fulfilled' ? result.value : 'refused')),
        [2, 'refused', 5, 0],
      )
      assert.deepEqual(
        (await readAll(log)).map(event => event.seq),
        [1, 2, 3, 4, 5],
      )
      const batch = await log.read(0, { bytes: 1 << 20 })
      assert.equal(batch.wire.length, 1, 'one write is one buffer')
    })
  })

  test('the bytes on disk are the messages that readers get', async t => {
    const folder = freshFolder(t)
    await withLog(folder, {}, async log => {
      await log.append(some(0, 4))
      const { wire } = await log.read(0, { bytes: 1 << 20 })
      assert.deepEqual(readFileSync(files(folder, 'log')[0]!), Buffer.concat(wire as Uint8Array[]))
    })
    assert.equal(statSync(files(folder, 'idx')[0]!).size, HEADER_BYTES + 4 * RECORD_BYTES)
    assert.equal(verifySegment(folder, 1), null)
  })

  test('a folder has one writer', async t => {
    const folder = freshFolder(t)
    const log = await open(folder)
    await assert.rejects(open(folder), /in use/)
    await log.close()
    await withLog(folder, {}, async () => {})
  })

  test('a closed log takes nothing more', async t => {
    const log = await open(freshFolder(t))
    const waiting = log.append(some(0, 1))
    await log.close()
    assert.equal(await waiting, 1)
    await assert.rejects(log.append(some(1, 1)), /closed/)
    await log.close()
    assert.equal((await log.read(0, { bytes: 1 })).count, 1, 'memory remembers')
  })

  test('more than may wait for the disk is refused, and later accepted', async t => {
    await withLog(freshFolder(t), { pendingBytesMax: 1_000 }, async log => {
      const first = log.append(some(0, 50))
      await assert.rejects(log.append(some(50, 1)), /does not keep up/)
      assert.equal(await first, 50)
      assert.equal(await log.append(some(50, 1)), 51)
    })
  })

  test('events of masked accounts are withheld, from memory and from files, and come back', async t => {
    const folder = freshFolder(t)
    for (const ringBytes of [1 << 20, 1]) {
      await withLog(folder, { ringBytes, masked: [3], segmentBytes: 3_000 }, async log => {
        const before = log.head
        for (let i = 0; i < 60; i += 20) await log.append(some(i, 20))
        const who = async (bytes: number) => (await readAll(log, before, bytes)).map(event => event.who)
        const all = Array.from({ length: 60 }, (_, i) => i % 5)
        for (const bytes of [1, 700, 1 << 20]) {
          assert.deepEqual(
            await who(bytes),
            all.filter(account => account !== 3),
          )
          log.mask(0)
          assert.deepEqual(
            await who(bytes),
            all.filter(account => account !== 3 && account !== 0),
          )
          log.mask(0)
          log.unmask(3)
          assert.deepEqual(
            await who(bytes),
            all.filter(account => account !== 0),
          )
          log.unmask(0)
          assert.deepEqual(await who(bytes), all)
          log.mask(3)
        }
        for (const account of [0, 1, 2, 4]) log.mask(account)
        assert.deepEqual(await readAll(log, before, 100), [])
      })
    }
  })

  test('consumers who replay the same stretch share buffers', async t => {
    const folder = freshFolder(t)
    await withLog(folder, { segmentBytes: 20_000 }, async log => {
      for (let i = 0; i < 400; i += 20) await log.append(some(i, 20))
    })
    await withLog(folder, {}, async log => {
      const limit = { bytes: 4_000 }
      const [one, two] = await Promise.all([log.read(0, limit), log.read(0, limit)])
      assert.equal(one.wire[0], two.wire[0])
      // One that begins elsewhere ends at the same place, and from there on shares.
      const three = await log.read(3, limit)
      assert.equal(three.last, one.last)
      const next = await log.read(one.last, limit)
      assert.equal((await log.read(three.last, limit)).wire[0], next.wire[0])
    })
  })

  test('retention by bytes and by age drops whole segments, also under a reader', async t => {
    const folder = freshFolder(t)
    let now = 0
    await withLog(
      folder,
      { segmentBytes: 2_000, now: () => now, ringBytes: 1, openMax: 2, cacheBytes: 0 },
      async log => {
        for (let i = 0; i < 100; i += 5) {
          await log.append(some(i, 5))
          now += 10
        }
        const { segments, bytes } = log.size
        assert.ok(segments >= 5)
        const seen: number[] = []
        let after = 0
        for (let round = 0; after < 100; round++) {
          const batch = await log.read(after, { bytes: 300 })
          const from = after
          after = batch.last
          const first = (await readAll(log, from, 300))[0]!.seq
          seen.push(first)
          if (round === 3) {
            const reading = [
              log.read(after, { bytes: 300 }),
              log.read(20, { bytes: 300 }),
              log.read(60, { bytes: 300 }),
            ]
            assert.ok((await log.prune({ ageMs: 1e9, bytes: bytes / 2, now })) > 0)
            for (const batch of await Promise.all(reading)) assert.ok(batch.count > 0)
            assert.ok(log.size.bytes <= bytes / 2)
            assert.ok(log.oldest > 20)
          }
        }
        assert.ok(seen.every((seq, i) => i === 0 || seq > seen[i - 1]!))
        assert.equal((await readAll(log, 0))[0]!.seq, log.oldest)
        now = 1e6
        await log.prune({ ageMs: 1, bytes: 1e9, now })
        assert.equal(log.size.segments, 1)
        assert.equal((await readAll(log, 0)).at(-1)!.seq, 100)
        assert.equal(files(folder, 'log').length, 1)
        assert.equal(files(folder, 'idx').length, 1)
      },
    )
    await withLog(folder, {}, async log => assert.equal(log.head, 100))
  })

  test('a segment ends by age, so that a quiet log forgets too', async t => {
    let now = 0
    await withLog(freshFolder(t), { now: () => now, segmentMs: 100 }, async log => {
      await log.append(some(0, 1))
      now = 99
      await log.append(some(1, 1))
      assert.equal(log.size.segments, 1)
      now = 100
      await log.append(some(2, 1))
      assert.equal(log.size.segments, 2)
    })
  })
})

describe('segment log, opened after harm', () => {
  const fill = async (folder: string, count: number, options: Partial<SegmentLogOptions> = {}) => {
    await withLog(folder, options, async log => {
      for (let i = 0; i < count; i++) await log.append(some(i, 1))
    })
    killed(folder)
  }

  test('an index that is missing or short is made anew from the data', async t => {
    for (const harm of [
      (path: string) => rmSync(path),
      (path: string) => truncateSync(path, HEADER_BYTES + 2 * RECORD_BYTES),
      (path: string) => truncateSync(path, HEADER_BYTES + 2 * RECORD_BYTES + 7),
      (path: string) => truncateSync(path, 10),
      (path: string) => truncateSync(path, 0),
    ]) {
      const folder = freshFolder(t)
      await fill(folder, 20, { segmentBytes: 1_000 })
      const before = await withLog(folder, {}, log => readAll(log))
      for (const index of files(folder, 'idx')) harm(index)
      killed(folder)
      const repairs: Repair[] = []
      await withLog(folder, { ringBytes: 1, repaired: repair => repairs.push(repair) }, async log => {
        assert.equal(log.head, 20)
        assert.deepEqual(await readAll(log), before)
        log.mask(2)
        assert.equal((await readAll(log)).length, 16)
      })
      assert.ok(repairs.length > 2)
      for (const path of files(folder, 'log')) assert.equal(verifySegment(folder, Number(path.slice(-20, -4))), null)
    }
  })

  test('a hole stops the open: a missing segment, a missing file, altered bytes that were safe', async t => {
    const base = freshFolder(t)
    await fill(base, 20, { segmentBytes: 1_000 })
    const harmed = async (harm: (folder: string) => void) => {
      const folder = freshFolder(t)
      cpSync(base, folder, { recursive: true })
      harm(folder)
      await assert.rejects(open(folder), LogDamaged)
      // And says so again, rather than having made it worse.
      await assert.rejects(open(folder), LogDamaged)
    }
    const flip = (path: string, at: number) => {
      const bytes = readFileSync(path)
      bytes[at]! ^= 1
      writeFileSync(path, bytes)
    }
    await harmed(folder => {
      rmSync(files(folder, 'log')[1]!)
      rmSync(files(folder, 'idx')[1]!)
    })
    await harmed(folder => rmSync(files(folder, 'log')[1]!))
    await harmed(folder => rmSync(files(folder, 'log').at(-1)!))
    await harmed(folder => {
      for (const path of files(folder, 'log')) rmSync(path)
    })
    await harmed(folder => truncateSync(files(folder, 'log')[1]!, 50))
    await harmed(folder => flip(files(folder, 'log').at(-1)!, 50))
    await harmed(folder => flip(files(folder, 'idx').at(-1)!, HEADER_BYTES + 12))
    await harmed(folder => {
      truncateSync(files(folder, 'log')[1]!, 50)
      rmSync(files(folder, 'idx')[1]!)
    })
    const folder = freshFolder(t)
    cpSync(base, folder, { recursive: true })
    flip(files(folder, 'log')[1]!, 50)
    assert.match(verifySegment(folder, Number(files(folder, 'log')[1]!.slice(-20, -4)))!, /not as it was written/)
    rmSync(files(folder, 'idx')[0]!)
    rmSync(files(folder, 'log').at(-1)!)
    const checked = checkSegments(folder)
    const sound = checked.filter(({ problem }) => problem === null)
    assert.ok(sound.length > 0 && sound.length === checked.length - 3 && sound.every(({ events }) => events > 0))
    assert.match(checked[0]!.problem!, /index is missing/)
    assert.match(checked[1]!.problem!, /not as it was written/)
    assert.match(checked.at(-1)!.problem!, /data is missing/)
  })

  test('a log that was closed and has less than that now is damaged', async t => {
    const folder = freshFolder(t)
    await withLog(folder, {}, log => log.append(some(0, 5)))
    truncateSync(files(folder, 'log')[0]!, 200)
    await assert.rejects(open(folder), /was closed at 5/)
  })

  test('what a crash during pruning leaves is cleared away', async t => {
    const folder = freshFolder(t)
    await fill(folder, 20, { segmentBytes: 1_000 })
    rmSync(files(folder, 'log')[0]!)
    await withLog(folder, {}, async log => {
      assert.ok(log.oldest > 1)
      assert.equal(log.head, 20)
    })
    assert.equal(files(folder, 'idx').length, files(folder, 'log').length)
  })

  test('seq is never used twice: it jumps after an unclean end that may have lost events', async t => {
    const folder = freshFolder(t)
    await withLog(folder, { fsync: 'none' }, log => log.append(some(0, 5)))
    await withLog(folder, { fsync: 'none' }, async log => assert.equal(log.head, 5))
    killed(folder, 'other')
    await withLog(folder, {}, async log => {
      assert.equal(log.head, 5 + SKIP)
      // A consumer that stands in the lost stretch is neither ahead of the log nor told to wait for ever.
      assert.deepEqual(await log.read(10, { bytes: 100 }), { count: 0, last: log.head, wire: [] })
      assert.equal(await log.append(some(5, 1)), 6 + SKIP)
      assert.deepEqual(
        (await readAll(log)).map(event => event.seq),
        [1, 2, 3, 4, 5, 6 + SKIP],
      )
    })
    await withLog(folder, { firstSeq: 9_000_000 }, async log => assert.equal(log.head, 8_999_999))
    await withLog(folder, {}, async log => assert.equal(log.head, 8_999_999))
    rmSync(join(folder, 'state.json'))
    await withLog(folder, {}, async log => assert.equal(log.head, 6 + 2 * SKIP))
  })

  /** Every event whose message ends at or before a cut, and no other. */
  test('a tail torn at any byte loses nothing before it', async t => {
    const base = freshFolder(t)
    const sizes = [0, 3, 90, 130, 40]
    await withLog(base, {}, async log => {
      for (const [n, size] of sizes.entries()) await log.append(entries([{ n, who: n, size }]))
    })
    const whole = await withLog(base, {}, log => readAll(log))
    const dataPath = files(base, 'log')[0]!
    const data = readFileSync(dataPath)
    const original = data
    const index = readFileSync(files(base, 'idx')[0]!)
    const ends = sizes.map(
      (_, i) =>
        index.readUInt32LE(HEADER_BYTES + i * RECORD_BYTES + 8) +
        index.readUInt32LE(HEADER_BYTES + i * RECORD_BYTES + 12),
    )
    killed(base)
    const folder = freshFolder(t)
    const at = (kind: string) => join(folder, `0000000000000001.${kind}`)
    let tries = 0
    const tryIt = async (data: Buffer, index: Buffer): Promise<number | 'damaged'> => {
      writeFileSync(at('log'), data)
      writeFileSync(at('idx'), index)
      try {
        const events = recoverSegments(folder, recoverTestFrame, () => {})[0]?.events ?? 0
        assert.equal(existsSync(at('log')), events > 0)
        if (events > 0) assert.equal(verifySegment(folder, 1), null)
        if (events > 0) assert.deepEqual(readFileSync(at('log')), original.subarray(0, ends[events - 1]))
        if (tries++ % 50 === 0) await goesOn(events)
        return events
      } catch (error) {
        assert.ok(error instanceof LogDamaged, String(error))
        return 'damaged'
      } finally {
        for (const name of readdirSync(folder)) rmSync(join(folder, name))
      }
    }
    const goesOn = (events: number) => {
      cpSync(join(base, 'state.json'), join(folder, 'state.json'))
      return withLog(folder, { ringBytes: 1 }, async log => {
        assert.deepEqual(await readAll(log), whole.slice(0, events))
        assert.equal(log.head, events)
        assert.equal(await log.append(some(9, 1)), events + 1)
        assert.equal((await readAll(log)).length, events + 1)
      })
    }
    const upTo = (bytes: number) => ends.filter(end => end <= bytes).length
    const garbled = (bytes: Buffer, from: number) =>
      Buffer.concat([bytes.subarray(0, from), Buffer.alloc(bytes.length - from, 0x5a)])
    const zeroed = (bytes: Buffer, from: number) =>
      Buffer.concat([bytes.subarray(0, from), Buffer.alloc(bytes.length - from)])
    for (let cut = 0; cut <= data.length; cut += cut % 7 === 0 ? 1 : 2) {
      // With the whole index, each flush vouches for the ones before: only the last one may be torn.
      const safe = upTo(cut) >= sizes.length - 1 ? upTo(cut) : 'damaged'
      assert.equal(await tryIt(data.subarray(0, cut), index), safe, `data cut at ${cut}`)
      const matching = index.subarray(0, HEADER_BYTES + Math.min(sizes.length, upTo(cut) + 1) * RECORD_BYTES)
      for (const torn of [data.subarray(0, cut), garbled(data, cut), zeroed(data, cut)]) {
        assert.equal(await tryIt(torn, matching), upTo(cut), `data torn at ${cut}`)
      }
    }
    for (let cut = 0; cut <= index.length; cut += 3) {
      for (const torn of [index.subarray(0, cut), garbled(index, cut), zeroed(index, cut)]) {
        assert.equal(await tryIt(data, torn), sizes.length, `index torn at ${cut}`)
      }
    }
    assert.ok(existsSync(dataPath))
  })
})

describe('segment log whose seqs are given', () => {
  /** Frames that say the seqs they are given under. */
  const given = (...seqs: number[]) =>
    seqs.map(seq => ({ frame: withSeq(testFrame({ n: seq, who: seq % 3, size: 60 }), seq), account: seq % 3, seq }))
  const seqsOf = async (log: SegmentLog) => (await readAll(log)).map(event => event.seq)

  test('frames stay as they are, gaps are kept, and it goes on after a restart', async t => {
    const folder = freshFolder(t)
    const all = [7, 8, 1_000, 1_001, 5_000_000_000, 5_000_000_007].map(Number)
    const options = { seqsGiven: true, segmentBytes: 250 }
    await withLog(folder, options, async log => {
      assert.equal(await log.append(given(7, 8)), 8)
      assert.equal(await log.append(given(1_000, 1_001)), 1_001)
      assert.equal(log.oldest, 7)
    })
    await withLog(folder, options, async log => {
      assert.equal(log.head, 1_001)
      await log.append(given(...all.slice(4)))
      assert.deepEqual(await seqsOf(log), all)
      const raw = (await readAll(log)).map(({ frame }) => Buffer.from(frame))
      assert.deepEqual(
        raw,
        given(...all).map(({ frame }) => Buffer.from(frame)),
      )
      for (const [after, next] of [
        [0, 7],
        [8, 1_000],
        [500, 1_000],
        [1_001, 5_000_000_000],
        [5_000_000_003, 5_000_000_007],
      ] as const) {
        const { wire } = await log.read(after, { bytes: 1 })
        assert.deepEqual(wire.map(Buffer.from)[0], Buffer.from(toWire(given(next)[0]!.frame)))
      }
    })
  })

  test('a seq that does not rise is refused, also behind one that still waits', async t => {
    await withLog(freshFolder(t), { seqsGiven: true }, async log => {
      const [first, again, back, mixed, next] = await Promise.allSettled([
        log.append(given(10, 12)),
        log.append(given(12)),
        log.append(given(11)),
        log.append(given(20, 19)),
        log.append(given(13)),
      ])
      assert.deepEqual(
        [first, next].map(result => result?.status === 'fulfilled' && result.value),
        [12, 13],
      )
      for (const result of [again, back, mixed]) assert.equal(result?.status, 'rejected')
      await assert.rejects(log.append(given(0)), RangeError)
      assert.deepEqual(await seqsOf(log), [10, 12, 13])
    })
  })

  test('after a crash nothing is skipped: the lost ones come again', async t => {
    const folder = freshFolder(t)
    const options = { seqsGiven: true, fsync: 'none' } as const
    await withLog(folder, options, log => log.append(given(100, 200, 300)))
    killed(folder, 'other')
    const [data] = files(folder, 'log')
    truncateSync(data!, statSync(data!).size - 5)
    await withLog(folder, options, async log => {
      assert.equal(log.head, 200)
      await log.append(given(300, 301))
      assert.deepEqual(await seqsOf(log), [100, 200, 300, 301])
    })
  })
})

test('what is masked for consumers can be read for proofs, wherever it lies', async t => {
  await withLog(freshFolder(t), { segmentBytes: 600, masked: [1, 2] }, async log => {
    for (let n = 0; n < 20; n++) await log.append(some(n, 1))
    const read = async (source: Pick<Log, 'read'>) => {
      const found: number[] = []
      for (let after = 0; ; ) {
        const { wire, last } = await source.read(after, { bytes: 300 })
        if (last === after) return found
        for (const frame of framesOf(wire)) found.push(decodeFrame(frame).body.seq as number)
        after = last
      }
    }
    const all = Array.from({ length: 20 }, (_, i) => i + 1)
    assert.deepEqual(await read({ read: (after, limit) => log.readUnmasked(after, limit) }), all)
    assert.deepEqual(
      await read(log),
      all.filter(seq => ![1, 2].includes((seq - 1) % 5)),
    )
    assert.deepEqual(await log.readUnmasked(20, { bytes: 300 }), { count: 0, last: 20, wire: [] })
  })
})
