import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { decodeFrame, withSeq } from '@millisky/core/event'
import { SKIP } from './segment-state.ts'
import { openSegmentLog } from './segments.ts'
import { readAll, recoverTestFrame } from './testing.ts'

const STORM = join(import.meta.dirname, 'testing-storm.ts')

interface Run {
  head: number
  /** Seq to number of event. */
  acknowledged: Map<number, number>
  error: string | null
}

/** One storm: killed `killAfterMs` after it has opened the log, unless it ends before. */
async function storm(
  folder: string,
  run: number,
  fsync: string,
  killAfterMs: number,
  fileBlocksMax?: number,
): Promise<Run> {
  const node = [process.execPath, STORM, folder, String(run), fsync]
  const child = fileBlocksMax
    ? spawn('sh', ['-c', `ulimit -f ${fileBlocksMax}; exec "$@"`, 'sh', ...node], {
        stdio: ['ignore', 'pipe', 'inherit'],
      })
    : spawn(node[0]!, node.slice(1), { stdio: ['ignore', 'pipe', 'inherit'] })
  let said = ''
  child.stdout.setEncoding('utf8')
  child.stdout.on('data', (text: string) => {
    if (said === '') setTimeout(() => child.kill('SIGKILL'), killAfterMs)
    said += text
  })
  await new Promise(done => child.on('close', done))
  // A line cut short was not received.
  const lines = said.split('\n').slice(0, -1)
  const acknowledged = new Map<number, number>()
  let error: string | null = null
  for (const line of lines.slice(1)) {
    if (line.startsWith('error ')) {
      error = line.slice(6)
      continue
    }
    const [last, count, from] = line.split(' ').map(Number) as [number, number, number]
    for (let i = 0; i < count; i++) {
      const seq = last - count + 1 + i
      assert.ok(!acknowledged.has(seq), `seq ${seq} given out twice`)
      acknowledged.set(seq, from + i)
    }
  }
  assert.match(lines[0] ?? '', /^open \d+$/)
  return { head: Number(lines[0]!.slice(5)), acknowledged, error }
}

const open = (folder: string) => openSegmentLog(folder, { withSeq, recover: recoverTestFrame, now: () => 0 })

async function eventsIn(folder: string): Promise<Map<number, number>> {
  const log = await open(folder)
  try {
    // Also checks that seq rises strictly.
    return new Map((await readAll(log, 0, 1 << 20)).map(({ seq, frame }) => [seq, decodeFrame(frame).body.n as number]))
  } finally {
    await log.close()
  }
}

describe('segment log under kill -9', () => {
  for (const [fsync, rounds] of [
    ['batch', 8],
    ['clock', 3],
    ['none', 3],
  ] as const) {
    test(`every acknowledged event survives, and no seq comes twice (fsync ${fsync})`, async t => {
      const folder = mkdtempSync(join(tmpdir(), 'millisky-log-'))
      t.after(() => rmSync(folder, { recursive: true }))
      const all = new Map<number, number>()
      let high = 0
      for (let run = 1; run <= rounds; run++) {
        const { head, acknowledged } = await storm(folder, run, fsync, 5 + ((run * 37) % 90))
        assert.ok(head >= high, `opened at ${head} after ${high}`)
        for (const [seq, n] of acknowledged) {
          assert.ok(seq > head)
          all.set(seq, n)
          high = Math.max(high, seq)
        }
      }
      assert.ok(all.size > 0, 'nothing was acknowledged')
      const kept = await eventsIn(folder)
      for (const [seq, n] of all) assert.equal(kept.get(seq), n, `event ${seq}`)
      if (fsync !== 'batch') assert.ok(Math.max(...kept.keys()) > SKIP)
    })
  }

  test('a full disk refuses appends, keeps what there is, and spoils nothing', async t => {
    const folder = mkdtempSync(join(tmpdir(), 'millisky-log-'))
    t.after(() => rmSync(folder, { recursive: true }))
    // Blocks of 512 or 1024 bytes, depending on the shell; less than a segment either way.
    const { acknowledged, error } = await storm(folder, 1, 'batch', 20_000, 100)
    assert.equal(error, 'EFBIG')
    const kept = await eventsIn(folder)
    assert.deepEqual(kept, acknowledged)
    const log = await open(folder)
    assert.equal(await log.append([{ frame: (await readAll(log))[0]!.frame, account: 1 }]), log.head)
    await log.close()
  })
})
