/**
 * Appends to a segment log as fast as it can until it is killed, and says on stdout what was acknowledged.
 *
 * Arguments: folder, number of this run, fsync policy. Lines: `open <head>`, then `<last seq> <count> <number of the first event>` for each
 * append, or `error <code>`. For the crash tests; never ends by itself but on an error of the disk.
 */
import { writeSync } from 'node:fs'
import { withSeq } from '@millisky/core/event'
import { type FsyncPolicy, openSegmentLog } from './segments.ts'
import { recoverTestFrame, testFrame } from './testing.ts'

const [folder, run, fsync] = process.argv.slice(2) as [string, string, 'batch' | 'none' | 'clock']
const policy: FsyncPolicy = fsync === 'clock' ? { intervalMs: 10 } : fsync
// A file size limit, as a stand-in for a full disk, must be an error and not the end.
process.on('SIGXFSZ', () => {})

const log = await openSegmentLog(folder, {
  withSeq,
  recover: recoverTestFrame,
  now: Date.now,
  fsync: policy,
  segmentBytes: 200_000,
  ringBytes: 100_000,
})
say(`open ${log.head}`)
let next = Number(run) * 1_000_000

await Promise.all(
  Array.from({ length: 6 }, async (_, writer) => {
    for (;;) {
      const from = next
      const count = 1 + ((from + writer) % 7)
      next += count
      const events = Array.from({ length: count }, (_, i) => ({
        n: from + i,
        who: (from + i) % 5,
        size: ((from + i) * 131) % 3_000,
      }))
      try {
        const last = await log.append(events.map(event => ({ frame: testFrame(event), account: event.who })))
        say(`${last} ${count} ${from}`)
      } catch (error) {
        say(`error ${(error as NodeJS.ErrnoException).code}`)
        await log.close()
        process.exit(0)
      }
    }
  }),
)

function say(line: string): void {
  writeSync(1, `${line}\n`)
}
