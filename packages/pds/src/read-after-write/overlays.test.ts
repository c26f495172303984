import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { JsonObject, JsonValue } from '@millisky/core/json'
import type { Did, Handle } from '@millisky/core/syntax'
import fc from 'fast-check'
import type { Account } from '../store/store.ts'
import type { LocalNews, LocalRecord } from './local.ts'
import {
  type Overlay,
  overAuthorFeed,
  overLikes,
  overProfile,
  overProfiles,
  overThread,
  overTimeline,
} from './overlays.ts'
import { LocalViews } from './views.ts'

const DID = 'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa' as Did
const uri = (rkey: string) => `at://${DID}/app.bsky.feed.post/${rkey}`

const account = { did: DID, handle: 'alice.test' as Handle } as Account
const viewsOf = (news: Partial<LocalNews>) =>
  new LocalViews({
    news: { account, profile: null, isProfileNew: false, posts: [], lagMs: 0, ...news },
    pictureUrl: (kind, did, cid) => `https://cdn.example/${kind}/${did}/${cid}`,
    ask: async () => null,
  })

const posts = fc
  .uniqueArray(fc.record({ rkey: fc.stringMatching(/^[a-z]{1,4}$/), at: fc.integer({ min: 1, max: 2e12 }) }), {
    selector: ({ rkey }) => rkey,
    maxLength: 5,
  })
  .map(made =>
    made
      .map(({ rkey, at }): LocalRecord => ({ uri: uri(rkey), cid: 'c', committedAt: at, value: { text: rkey } }))
      .sort((a, b) => a.committedAt - b.committedAt),
  )

function freeze(value: JsonValue): JsonValue {
  if (typeof value === 'object' && value !== null)
    for (const member of Object.values(value)) freeze(member as JsonValue)
  return Object.freeze(value) as JsonValue
}

const params = { actor: DID, cursor: undefined, filter: undefined }
const overlays: Record<string, Overlay<never>> = {
  overProfile,
  overProfiles,
  overLikes,
  overTimeline,
  overAuthorFeed,
  overThread,
}

/** JSON that often has the members the overlays look at, though seldom in their right form. */
const names = [
  'feed',
  'profiles',
  'thread',
  'replies',
  'post',
  'author',
  'did',
  'uri',
  'reason',
  'indexedAt',
  '$type',
  'reply',
]
const { json } = fc.letrec<{ json: JsonValue }>(tie => ({
  json: fc.oneof(
    { maxDepth: 6, depthSize: 'medium' },
    fc.constantFrom<JsonValue[]>(null, 1, DID, uri('a'), '2024-01-01T00:00:00Z', 'app.bsky.feed.defs#threadViewPost'),
    fc.array(tie('json'), { maxLength: 4 }),
    fc.dictionary(fc.constantFrom(...names), tie('json'), { maxKeys: 4, noNullPrototype: true }),
  ),
}))
const objects = fc.dictionary(fc.constantFrom(...names), json, {
  maxKeys: 5,
  noNullPrototype: true,
}) as fc.Arbitrary<JsonObject>

test('no overlay fails on, changes or loses what it does not understand', async () => {
  await fc.assert(
    fc.asyncProperty(objects, posts, fc.boolean(), async (original, posts, isProfileNew) => {
      const views = viewsOf({ posts, isProfileNew, profile: { displayName: 'New' } })
      freeze(original)
      for (const [name, overlay] of Object.entries(overlays)) {
        const { feed, profiles, thread, ...others } = await overlay(original, views, params as never)
        const { feed: oldFeed, profiles: oldProfiles, thread: oldThread, ...kept } = original
        const changed = name === 'overProfile' && kept.did === DID && isProfileNew ? { displayName: 'New' } : {}
        assert.deepEqual(others, { ...kept, ...changed }, name)
        for (const [before, after] of [
          [oldFeed, feed],
          [oldProfiles, profiles],
        ]) {
          if (Array.isArray(before)) assert.ok((after as JsonValue[]).length >= before.length)
          else assert.deepEqual(after, before)
        }
      }
    }),
    { numRuns: 300 },
  )
})

test('nothing new changes nothing', async () => {
  await fc.assert(
    fc.asyncProperty(objects, async original => {
      for (const overlay of Object.values(overlays)) {
        assert.deepEqual(await overlay(original, viewsOf({ profile: { displayName: 'x' } }), params as never), original)
      }
    }),
    { numRuns: 200 },
  )
})

test('a feed in order of time stays so, has every post once and keeps the rest', async () => {
  const times = fc.array(fc.integer({ min: 1, max: 2e12 }), { maxLength: 8 })
  await fc.assert(
    fc.asyncProperty(times, posts, async (times, posts) => {
      const known = times
        .sort((a, b) => b - a)
        .map((at, i) => ({ post: { uri: `at://x/a/${i}`, indexedAt: new Date(at).toISOString() } }))
      const { feed } = await overTimeline({ feed: known }, viewsOf({ posts }), {})
      const shown = feed as { post: { uri: string; indexedAt: string } }[]
      const shownTimes = shown.map(({ post }) => Date.parse(post.indexedAt))
      assert.deepEqual(
        shownTimes,
        [...shownTimes].sort((a, b) => b - a),
      )
      assert.deepEqual(
        shown.filter(({ post }) => post.uri.startsWith('at://x/')),
        known,
      )
      const last = times.at(-1) ?? 0
      const wanted = posts.filter(({ committedAt }) => committedAt > last).map(post => post.uri)
      assert.deepEqual(
        shown
          .map(({ post }) => post.uri)
          .filter(found => found.startsWith(`at://${DID}`))
          .sort(),
        wanted.sort(),
      )
    }),
    { numRuns: 200 },
  )
})
