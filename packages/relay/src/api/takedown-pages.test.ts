import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { Did } from '@millisky/core/syntax'
import { takedownsAfter } from './takedown-pages.ts'

test('pages by integer cursors have every takedown once, also when some come and go between them', async () => {
  let all = Array.from({ length: 2_203 }, (_, i) => `did:web:a${i}.example.com` as Did).sort()
  const moderation = {
    takedowns: async (after: string, limit: number) => all.filter(did => did > after).slice(0, limit),
  }
  const stay = new Set(all)
  const found: Did[] = []
  const sizes: number[] = []
  for (let cursor: number | undefined = 0; cursor !== undefined; ) {
    const page: { dids: Did[]; cursor?: number } = await takedownsAfter(moderation, cursor)
    found.push(...page.dids)
    sizes.push(page.dids.length)
    cursor = page.cursor
    if (cursor !== undefined) assert.ok(Number.isSafeInteger(cursor) && cursor > 0)
    // Those that were told last, and some that were not.
    const gone = new Set([...page.dids.slice(-3), all[7]!, all[1_500]!])
    for (const did of gone) stay.delete(did)
    all = all.filter(did => !gone.has(did)).concat('did:web:zz.example.com' as Did)
  }
  assert.deepEqual(sizes.slice(0, 4), [500, 500, 500, 500])
  for (const did of stay) assert.equal(found.filter(one => one === did).length, 1, did)
  assert.deepEqual(await takedownsAfter({ takedowns: async () => [] }, 0), { dids: [] })
})
