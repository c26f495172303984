// The house rules that a compiler does not know: who may import whom, how long a file may be, which names say nothing.
// The reasons stand in CONTRIBUTING.md.
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { basename, dirname, join, relative, resolve } from 'node:path'
import { test } from 'node:test'

const root = resolve(import.meta.dirname, '..')
const listed = execFileSync('git', ['ls-files', '-co', '--exclude-standard'], { cwd: root, encoding: 'utf8' })
const files = listed.split('\n').filter(file => file !== '' && existsSync(join(root, file)))
const isGenerated = (file: string) => file.includes('/gen/') || file.startsWith('lexicons/')
const sources = files.filter(file => /\.(ts|tsx|mjs)$/.test(file) && !isGenerated(file))
const read = (file: string) => readFileSync(join(root, file), 'utf8')
const isTest = (file: string) =>
  file.endsWith('.test.ts') || file.startsWith('test/') || basename(file).startsWith('testing')
/** `packages/<name>/src/…` → name */
const packageOf = (file: string) => /^packages\/([^/]+)\/src\//.exec(file)?.[1]

/** Specifiers of all static and dynamic imports, and of worker files named by `new URL('…', import.meta.url)`. */
function importsOf(file: string): string[] {
  const text = read(file)
  const patterns = [
    /\bfrom\s+['"]([^'"]+)['"]/g,
    /\bimport\s*\(\s*['"]([^'"]+)['"]/g,
    /^import\s+['"]([^'"]+)['"]/gm,
    /new URL\(\s*['"]([^'"]+)['"],\s*import\.meta\.url/g,
  ]
  return patterns.flatMap(pattern => [...text.matchAll(pattern)].map(match => match[1] as string))
}

function assertNone(found: string[], rule: string): void {
  assert.deepEqual(found, [], rule)
}

/** What each package may import; each list is the one below it and all that it may import. */
const below: Record<string, string[]> = {
  core: [],
  server: ['core'],
  plc: ['core', 'server'],
  pds: ['core', 'server'],
  relay: ['core', 'server'],
  cli: ['core', 'server', 'plc', 'pds', 'relay'],
}

test('imports point down only', () => {
  const found: string[] = []
  for (const file of sources) {
    const own = packageOf(file)
    if (!own || isTest(file)) continue
    for (const specifier of importsOf(file)) {
      const other = /^@millisky\/([^/]+)\//.exec(specifier)?.[1]
      if (other && !below[own]?.includes(other)) found.push(`${file} imports ${specifier}`)
      const target = relative(root, resolve(root, dirname(file), specifier))
      if (specifier.startsWith('.') && !target.startsWith(`packages/${own}/`)) {
        found.push(`${file} imports ${specifier} past its package`)
      }
    }
  }
  assertNone(found, 'cli → {pds, relay, plc} → server → core')
})

test('core is pure', () => {
  // It loads a library of the system, and keeps Node from saying in each thread that this is experimental.
  const excused = 'packages/core/src/ffi.ts'
  const found: string[] = []
  const impureModules = /^node:(fs|net|http|https|dns|tls|timers|worker_threads|child_process|process|os)/
  const impureWords = /\b(await|Date\.now|new Date\(\)|Math\.random|randomBytes|setTimeout|setImmediate|process\.)\b/
  for (const file of sources.filter(file => packageOf(file) === 'core' && !isTest(file) && file !== excused)) {
    for (const specifier of importsOf(file))
      if (impureModules.test(specifier)) found.push(`${file} imports ${specifier}`)
    const code = read(file).replace(/\/\*[\s\S]*?\*\/|\/\/.*$/gm, '')
    const word = impureWords.exec(code)
    if (word) found.push(`${file} uses ${word[0]}`)
  }
  assertNone(found, 'core computes: no I/O, clock, chance or await')
})

test('only main.ts of a daemon names a storage driver', () => {
  const found = sources.filter(
    file =>
      ['pds', 'relay', 'plc', 'cli'].includes(packageOf(file) ?? '') &&
      !isTest(file) &&
      basename(file) !== 'main.ts' &&
      importsOf(file).some(specifier => /\/db\/(sqlite|postgres)(\.ts)?$|^node:sqlite$|^pg$/.test(specifier)),
  )
  assertNone(found, 'drivers are chosen in main.ts')
})

test('only the settings tables read the environment', () => {
  // child.ts passes a few variables on to the daemons it starts; it reads none.
  const allowed = ['packages/server/src/config.ts', 'packages/server/src/db/testing.ts', 'packages/cli/src/child.ts']
  const found = sources.filter(
    file =>
      file.startsWith('packages/') && !allowed.includes(file) && !isTest(file) && /process\.env\b/.test(read(file)),
  )
  assertNone(found, 'settings exist once, in a table')
})

test('files are short, or say why not', () => {
  const found = sources.filter(file => {
    const text = read(file)
    return text.split('\n').length > 600 && !/\btidy: long because /.test(text)
  })
  assertNone(found, 'over 600 lines needs a line "tidy: long because …"')
})

test('names say what a thing is', () => {
  const banned = /((^|[-./])(utils?|common|helpers?|managers?|types|misc)|(^|\/)index)\.(ts|tsx|mjs)$/
  assertNone(
    sources.filter(file => banned.test(file)),
    'no utils, common, helpers, manager, types.ts, barrels',
  )
  assertNone(
    sources.filter(file => basename(file) !== basename(file).toLowerCase()),
    'file names are kebab-case',
  )
})

test('no dead files', () => {
  const used = new Set<string>()
  for (const file of sources) {
    if (isTest(file) && packageOf(file)) continue
    for (const specifier of importsOf(file)) {
      const [, name, path] = /^@millisky\/([^/]+)\/(.+)$/.exec(specifier) ?? []
      if (name) used.add(`packages/${name}/src/${path}.ts`)
      else if (specifier.startsWith('.')) used.add(relative(root, resolve(root, dirname(file), specifier)))
    }
  }
  // core is a library: what the daemons do not use yet is still its offer. config.ts of each daemon is read by `gen`.
  const found = sources.filter(
    file =>
      packageOf(file) &&
      packageOf(file) !== 'core' &&
      !isTest(file) &&
      basename(file) !== 'entry.mjs' &&
      !used.has(file),
  )
  assertNone(found, 'every file is imported by something that runs')
})

test('text speaks of the project alone', () => {
  const machine = new RegExp(['/wo' + 'rk/', '/ro' + 'ot/', '/ho' + 'me/\\w', 'npmjs' + '\\.org'].join('|'))
  const found = files.filter(
    file => /\.(ts|mjs|md|json|yml|sh)$/.test(file) && !isGenerated(file) && machine.test(read(file)),
  )
  assertNone(found, 'no path of a machine, no host of a registry')
})

test('nothing is left undone in passing', () => {
  const marks = new RegExp(`\\b(${['TO' + 'DO', 'FIX' + 'ME', 'XX' + 'X'].join('|')})\\b`)
  assertNone(
    sources.filter(file => marks.test(read(file))),
    'an unfinished thing is an issue, not a comment',
  )
})
