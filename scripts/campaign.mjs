// Longer than npm test: property and fuzz tests with fresh seeds, and power cuts, round after round until the time is up.
// `node scripts/campaign.mjs --minutes 10`. A failure names the seed that repeats it. `--kills 100` instead kills the Relay
// and a fan-out so often, in each way of syncing; `--hostile 120` has hosts of every hostile kind at it for so many seconds;
// `--stories 100` tells so many drawn stories to the reference PDS too, where MILLISKY_REFERENCE_PDS names one;
// `--cuts 50` takes locks and lives of several PDSs at one PostgreSQL so often.
import './guard.mjs'
import { spawnSync } from 'node:child_process'
import { randomInt } from 'node:crypto'
import { globSync, readFileSync } from 'node:fs'
import { parseArgs } from 'node:util'

const { values } = parseArgs({
  options: {
    minutes: { type: 'string', default: '10' },
    kills: { type: 'string' },
    hostile: { type: 'string' },
    cuts: { type: 'string' },
    stories: { type: 'string' },
    seed: { type: 'string' },
  },
})
for (const [option, file, name] of [
  ['kills', 'test/e2e/crash-relay.test.ts', 'MILLISKY_TEST_KILLS'],
  ['hostile', 'test/e2e/hostile-hosts.test.ts', 'MILLISKY_TEST_HOSTILE_SECONDS'],
  ['cuts', 'test/e2e/several-crash.test.ts', 'MILLISKY_TEST_CUTS'],
  ['stories', 'test/e2e/reference-stories.test.ts', 'MILLISKY_TEST_STORIES'],
]) {
  const value = values[option]
  if (value === undefined) continue
  if (!(Number(value) > 0)) {
    console.error(`--${option} takes a number above 0`)
    process.exit(2)
  }
  const seed = Number(values.seed ?? randomInt(2 ** 31))
  console.log(`${option} ${value}, seed ${seed}`)
  const { status } = spawnSync(process.execPath, ['scripts/test.mjs', '--test-timeout=7200000', file], {
    stdio: 'inherit',
    env: { ...process.env, MILLISKY_TEST_SEED: String(seed), [name]: value },
  })
  if (status !== 0) console.error(`failed: repeat with --${option} ${value} --seed ${seed}`)
  process.exit(status ?? 1)
}
const minutes = Number(values.minutes)
if (!(minutes > 0)) {
  console.error('--minutes takes a number above 0')
  process.exit(2)
}
const deadline = Date.now() + minutes * 60_000

const tests = globSync(['packages/*/src/**/*.test.ts', 'test/**/*.test.ts'])
const drawn = tests.filter(file => /fast-check/.test(readFileSync(file, 'utf8')))
const crashes = tests.filter(file => /crash/.test(file))

let rounds = 0
while (Date.now() < deadline) {
  const seed = randomInt(2 ** 31)
  const files = rounds % 2 === 0 ? drawn : crashes
  console.log(`round ${++rounds}: ${files.length} files, seed ${seed}`)
  const { status } = spawnSync(process.execPath, ['scripts/test.mjs', '--test-reporter=dot', ...files], {
    stdio: 'inherit',
    // Bad inputs by the ten thousand.
    env: { ...process.env, MILLISKY_TEST_SEED: String(seed), MILLISKY_TEST_CALLS: '10000' },
  })
  if (status !== 0) {
    console.error(`failed: repeat with MILLISKY_TEST_SEED=${seed} npm test -- ${files.join(' ')}`)
    process.exit(1)
  }
}
console.log(`${rounds} rounds without a failure`)
