import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Pace } from './pace.ts'

test('one works at a time, in the order of asking, and rests as long as was worked', async () => {
  const story: string[] = []
  let now = 0
  const pace = new Pace(
    () => now,
    async ms => {
      now += ms
      story.push(`rest ${ms}`)
    },
  )
  const work = (name: string, ms: number) =>
    pace.turn(async () => {
      story.push(`${name} begins`)
      await Promise.resolve()
      now += ms
      story.push(`${name} ends`)
      return name
    })
  const failing = pace.turn(() => {
    now += 1
    throw new Error('broken')
  })
  const results = await Promise.allSettled([failing, work('a', 3), work('b', 0), work('c', 2), work('d', 9)])
  assert.deepEqual(
    results.map(result => (result.status === 'fulfilled' ? result.value : result.reason.message)),
    ['broken', 'a', 'b', 'c', 'd'],
  )
  await pace.turn(() => {})
  const turn = (name: string) => [`${name} begins`, `${name} ends`]
  const expected = [...turn('a'), 'rest 4', ...turn('b'), ...turn('c'), ...turn('d'), 'rest 11']
  assert.deepEqual(story, expected)
})
