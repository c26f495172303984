// npm test: every test of the project, or those whose paths are given: `npm test -- packages/core/src/cbor.test.ts`.
import './guard.mjs'
import { spawn } from 'node:child_process'
import { availableParallelism } from 'node:os'

const given = process.argv.slice(2)
const files = given.filter(arg => !arg.startsWith('-'))
const flags = given.filter(arg => arg.startsWith('-'))
const all = ['packages/*/src/**/*.test.ts', 'test/**/*.test.ts']

const args = [
  '--import',
  new URL('./seed.mjs', import.meta.url).href,
  '--test',
  // End-to-end tests start processes of their own: more files at once than cores only makes each of them slower.
  `--test-concurrency=${Math.max(2, availableParallelism())}`,
  // A test that hangs is a failure with a name, not a run that never ends. It says nothing of how fast a machine has to be.
  '--test-timeout=600000',
  ...flags,
  ...(files.length > 0 ? files : all),
]
const child = spawn(process.execPath, args, { stdio: 'inherit' })
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => child.kill(signal))
child.on('exit', (code, signal) => process.exit(signal ? 1 : (code ?? 1)))
