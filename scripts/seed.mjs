// Loaded before every test file: property tests draw the same cases in each run, so that a red test stays red. A campaign
// sets MILLISKY_TEST_SEED to draw others.
import { readFileSync } from 'node:fs'

const file = process.argv[1] ?? ''
if (file.endsWith('.test.ts') && /fast-check|testing-/.test(readFileSync(file, 'utf8'))) {
  const { configureGlobal } = await import('fast-check')
  configureGlobal({ seed: Number(process.env.MILLISKY_TEST_SEED ?? 20_260_820) })
}
