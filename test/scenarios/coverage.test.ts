// Every behaviour that relays (T) and personal data servers (B) are held to has a test that is named after it. The numbers are those of
// the lists of behaviours.
import assert from 'node:assert/strict'
import { globSync, readFileSync } from 'node:fs'
import { test } from 'node:test'

const range = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, i) => from + i)
/** How many there are in each list. */
const LISTS: Readonly<Record<string, number>> = { T: 84, B: 96 }

/** Where titles stand: the first text that is given to `test`, and that of each case of a table of cases. */
const TITLE = /(?:\btest\(\s*|\[\s*)(['"`])((?:(?!\1)[^\n\\]|\\.)*)\1/g

/** Numbers in a title, ranges such as `T15-T20` included. */
function numbersIn(title: string, letter: string): number[] {
  return [...title.matchAll(new RegExp(`\\b${letter}(\\d+)(?:-${letter}(\\d+))?\\b`, 'g'))].flatMap(([, from, to]) =>
    range(Number(from), Number(to ?? from)),
  )
}

for (const [letter, count] of Object.entries(LISTS)) {
  test(`each of ${letter}1 to ${letter}${count} is named by a scenario, and nothing else is`, () => {
    const named = new Map<number, string[]>()
    for (const file of globSync('*.test.ts', { cwd: import.meta.dirname })) {
      if (file === 'coverage.test.ts') continue
      for (const [, , title = ''] of readFileSync(`${import.meta.dirname}/${file}`, 'utf8').matchAll(TITLE)) {
        for (const number of numbersIn(title, letter))
          named.set(number, [...(named.get(number) ?? []), `${file}: ${title}`])
      }
    }
    const all = range(1, count)
    assert.deepEqual(
      all.filter(number => !named.has(number)).map(number => `${letter}${number}`),
      [],
    )
    assert.deepEqual(
      [...named.keys()].filter(number => !all.includes(number)),
      [],
    )
  })
}
