/** Settings of what a Relay proves of its log, and of following one other relay. */
import type { Setting } from '@millisky/server/config'
import type { FsyncPolicy } from '@millisky/server/log/segments'

const FSYNC_INTERVAL_MS = 100

export const logSettings = {
  checkpointMs: {
    type: 'duration',
    default: 300_000,
    env: ['RELAY_CHECKPOINT_INTERVAL'],
    flag: '--checkpoint-interval',
    doc: 'How often what came since is signed, so that a replay can be proven complete (`millisky relay-log verify`); 0 signs nothing.',
    section: 'Storage',
  },
  upstream: {
    type: 'string',
    env: ['RELAY_UPSTREAM'],
    flag: ['--upstream', '--upstream-host'],
    doc: 'Fan-out: instead of crawling hosts, send on the events of this one relay (`https://…`) under its own seqs, without verifying them again. Needs no database, and a folder of its own.',
    section: 'Fan-out',
  },
  upstreamBackfill: {
    type: 'bool',
    default: false,
    env: ['RELAY_UPSTREAM_BACKFILL'],
    flag: '--upstream-backfill',
    doc: 'A new fan-out begins with the oldest event that the other relay keeps, instead of the next one.',
    section: 'Fan-out',
  },
} as const satisfies Record<string, Setting>

/** When the log is forced to disk, as it is set and as the log takes it. */
export function fsyncOf({ fsync }: { fsync: 'batch' | 'interval' | 'none' }): FsyncPolicy {
  return fsync === 'interval' ? { intervalMs: FSYNC_INTERVAL_MS } : fsync
}
