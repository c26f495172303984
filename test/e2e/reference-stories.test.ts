// Stories that a seed draws, told to this server and to the reference's: what single calls do not show may come of sequences.
// `node scripts/campaign.mjs --stories 100` draws others.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { isDeepStrictEqual } from 'node:util'
import { startOurs, startReference } from './reference.ts'
import { withoutReference } from './reference-daemon.ts'
import { intended } from './reference-intended.ts'
import { Side } from './reference-side.ts'
import { excused, Story } from './reference-stories.ts'

const seed = Number(process.env.MILLISKY_TEST_SEED ?? 20_260_820)
const stories = Number(process.env.MILLISKY_TEST_STORIES ?? 4)
const STEPS = 150

test('lives as a seed draws them', { skip: withoutReference }, async t => {
  const [ours, theirs] = (await Promise.all([startOurs(t), startReference(t)])).map(server => new Side(server))
  for (let i = 0; i < stories; i++) {
    const drawn = (seed + i) % 1_000_000
    await Promise.all([new Story(ours!, drawn).run(STEPS), new Story(theirs!, drawn).run(STEPS)])
    // What follows the first difference may come of it.
    for (const [name, their] of theirs!.said) {
      const our = ours!.said.get(name)
      assert.ok(our, `${name}: theirs ${JSON.stringify(their)}, ours came another way`)
      if (isDeepStrictEqual(...intended(name, our, their)) || excused(name, our, their)) continue
      assert.fail(`${name}\n  theirs ${JSON.stringify(their)}\n  ours   ${JSON.stringify(our)}`)
    }
  }
})
