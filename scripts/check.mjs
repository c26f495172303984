// npm run check: types, lint and format, tidiness, generated files up to date. Runs all, then says what failed.
import './guard.mjs'
import { spawnSync } from 'node:child_process'

const steps = [
  ['types', ['node_modules/.bin/tsc', '-p', '.']],
  ['lint and format', ['node_modules/.bin/biome', 'check', '--error-on-warnings', '--max-diagnostics=50']],
  ['tidy', [process.execPath, '--test', '--test-reporter=dot', 'test/tidy.test.ts']],
  ['generated files', [process.execPath, 'scripts/gen.mjs', '--check']],
]

const failed = []
for (const [name, [command, ...args]] of steps) {
  const started = performance.now()
  const { status } = spawnSync(command, args, { stdio: 'inherit' })
  const seconds = ((performance.now() - started) / 1000).toFixed(1)
  console.log(`${status === 0 ? 'ok    ' : 'FAILED'} ${name} (${seconds} s)`)
  if (status !== 0) failed.push(name)
}
if (failed.length > 0) {
  console.error(`check failed: ${failed.join(', ')}`)
  process.exit(1)
}
