/** Settings of what a Relay proves of its log, and of following one other relay. */
import type { Setting } from '@millisky/server/config'

export const logSettings = {
  checkpointMs: {
    type: 'duration',
    default: 300_000,
    env: ['RELAY_CHECKPOINT_INTERVAL'],
    flag: '--checkpoint-interval',
    doc: 'How often what came since is signed, so that a replay can be proven complete (`millisky relay-log verify`); 0 signs nothing.',
    section: 'Storage',
  },
} as const satisfies Record<string, Setting>
