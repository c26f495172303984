// Every behaviour that relays are held to has a test that is named after it. The numbers are those of the list of behaviours.
import assert from 'node:assert/strict'
import { globSync, readFileSync } from 'node:fs'
import { test } from 'node:test'

const BEHAVIOURS = 84
/** Where titles stand: the first text that is given to `test`, and that of each case of a table of cases. */
const TITLE = /(?:\btest\(\s*|\[\s*)(['"`])((?:(?!\1)[^\n\\]|\\.)*)\1/g

/** Numbers in a title, ranges such as `T15-T20` included. */
function numbersIn(title: string): number[] {
  return [...title.matchAll(/\bT(\d+)(?:-T(\d+))?\b/g)].flatMap(([, from, to]) => {
    const [first, last] = [Number(from), Number(to ?? from)]
    return Array.from({ length: last - first + 1 }, (_, i) => first + i)
  })
}

test(`each of T1 to T${BEHAVIOURS} is named by a scenario, and nothing else is`, () => {
  const named = new Map<number, string[]>()
  for (const file of globSync('*.test.ts', { cwd: import.meta.dirname })) {
    if (file === 'coverage.test.ts') continue
    for (const [, , title = ''] of readFileSync(`${import.meta.dirname}/${file}`, 'utf8').matchAll(TITLE)) {
      for (const number of numbersIn(title)) named.set(number, [...(named.get(number) ?? []), `${file}: ${title}`])
    }
  }
  const all = Array.from({ length: BEHAVIOURS }, (_, i) => i + 1)
  assert.deepEqual(
    all.filter(number => !named.has(number)).map(number => `T${number}`),
    [],
  )
  assert.deepEqual(
    [...named.keys()].filter(number => !all.includes(number)),
    [],
  )
})
