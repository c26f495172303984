// npm run gen: writes every file that is made from another one. --check writes nothing and fails if any would change.
import './guard.mjs'
import { existsSync, globSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join, relative, resolve } from 'node:path'
import { codeFrom } from './gen-code.mjs'
import { FOREIGN, foreignLexicons, ownLexicons } from './gen-lexicons.mjs'
import { pages } from './gen-pages.mjs'

const root = resolve(import.meta.dirname, '..')
const checking = process.argv.includes('--check')

/** What stands in a generated place and is not generated any more. */
function leftovers(patterns, wanted) {
  const found = globSync(patterns, { cwd: root }).map(file => file.replaceAll('\\', '/'))
  return found.filter(file => !wanted.has(file))
}

const foreign = foreignLexicons()
const own = ownLexicons(root)
const lexicons = new Map([...foreign.documents, ...own])
const code = await codeFrom(root, lexicons, foreign.kinds)

/** @type {Map<string, string>} path from the root → content */
const files = new Map([...foreign.files, ...code, ...(await pages(root, lexicons))])
const stale = leftovers(
  [...FOREIGN.map(folder => `${folder}**/*.json`), 'packages/core/src/lexicon/gen/**/*.ts'],
  new Set(files.keys()),
)

const changed = [...files].filter(([file, content]) => {
  const path = join(root, file)
  return !existsSync(path) || readFileSync(path, 'utf8') !== content
})

if (checking) {
  for (const [file] of changed) console.error(`not up to date: ${file}`)
  for (const file of stale) console.error(`not generated any more: ${file}`)
  if (changed.length + stale.length > 0) {
    console.error('run: npm run gen')
    process.exit(1)
  }
} else {
  for (const file of stale) rmSync(join(root, file))
  for (const [file, content] of changed) {
    mkdirSync(dirname(join(root, file)), { recursive: true })
    writeFileSync(join(root, file), content)
  }
  const names = changed.length > 12 ? '' : `: ${changed.map(([file]) => relative('.', file)).join(', ')}`
  console.log(`${files.size} generated files, ${changed.length} changed, ${stale.length} removed${names}`)
}
