import assert from 'node:assert/strict'
import { existsSync, readFileSync } from 'node:fs'
import { test } from 'node:test'
import * as syntax from '@millisky/core/syntax'

const FOLDER = new URL('../../../shared/fixtures/atproto-interop/syntax/', import.meta.url)
const skip = existsSync(FOLDER) ? false : 'the interop vectors are not beside this checkout'

/** One case per line. Spaces at the edges are part of it, and so is a `#` that starts no comment (`#extra`). */
function cases(name: string): string[] {
  const lines = readFileSync(new URL(`${name}.txt`, FOLDER), 'utf8').split('\n')
  return lines.filter(line => line.trim() !== '' && !/^#( |$|de-)/.test(line))
}

/** Vectors that the specification overrules, each with its sentence. */
const OVERRULED: Record<string, string> = {
  [`com.${'middle.'.repeat(40)}foo`]:
    'valid by the file, but the specification ends an authority at 253 characters and this one has 283',
}

const GRAMMARS: [file: string, guard: (value: unknown) => boolean, parseFile?: string][] = [
  ['atidentifier', syntax.isAtIdentifier],
  ['aturi', syntax.isAtUri],
  ['datetime', syntax.isDatetime, 'datetime_parse_invalid'],
  ['did', syntax.isDid],
  ['handle', syntax.isHandle],
  ['language', syntax.isLanguage, 'language_parse_invalid'],
  ['nsid', syntax.isNsid],
  ['recordkey', syntax.isRkey],
  ['tid', syntax.isTid],
  ['uri', syntax.isUri],
]

for (const [file, guard, parseFile] of GRAMMARS) {
  test(`${file}: every vector`, { skip }, () => {
    const valid = cases(`${file}_syntax_valid`)
    const invalid = cases(`${file}_syntax_invalid`).concat(parseFile ? cases(parseFile) : [])
    assert.ok(valid.length > 0 && invalid.length > 0)
    for (const text of valid) assert.equal(guard(text), !(text in OVERRULED), JSON.stringify(text))
    for (const text of invalid) assert.equal(guard(text), text in OVERRULED, JSON.stringify(text))
  })
}
