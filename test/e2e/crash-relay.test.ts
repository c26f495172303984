// The Relay killed at random moments under load, alone and with a fan-out behind it: what consumers get is what the host
// sent, each event once, in order, the same bytes, under seqs that rise.
// The long form is `scripts/campaign.mjs --kills 100`.
import { test } from 'node:test'
import { runKills } from './kills.ts'

const kills = Number(process.env.MILLISKY_TEST_KILLS ?? 4)
const seed = Number(process.env.MILLISKY_TEST_SEED ?? 20_260_820)
// A kill leaves what was written to the system's memory, so no way of syncing loses anything by it.
const modes = process.env.MILLISKY_TEST_KILLS ? (['batch', 'interval', 'none'] as const) : (['interval'] as const)

for (const fsync of modes) {
  test(`T21 T27 T28 ${kills} times kill -9 lose, repeat and change nothing, fsync ${fsync}`, {
    timeout: 60_000 + kills * 15_000,
  }, async t => {
    const { events } = await runKills({
      kills,
      seed,
      fsync,
      restMs: kills > 10 ? 1_000 : 300,
      log: line => t.diagnostic(line),
    })
    t.diagnostic(`${kills} kills, ${events} events, seed ${seed}`)
  })
}
