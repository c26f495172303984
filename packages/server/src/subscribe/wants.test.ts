import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { type Subject, Wants } from './wants.ts'

const commit = (...collections: string[]): Subject => ({ kind: 'commit', did: 'did:plc:a', collections })
const other = (kind: string, did = 'did:plc:a'): Subject => ({ kind, did, collections: [] })

test('nothing chosen is no choice', () => {
  assert.equal(Wants.parse({}), null)
  assert.equal(Wants.parse({ collections: [], dids: [], kinds: [] }), null)
})

test('collections narrow commits, exactly or by prefix, and leave other events alone', () => {
  const wants = Wants.parse({ collections: ['app.bsky.feed.post', 'com.example.*'] })!
  assert.ok(wants.admits(commit('app.bsky.feed.post')))
  assert.ok(wants.admits(commit('app.bsky.feed.like', 'app.bsky.feed.post')), 'any operation will do')
  assert.ok(wants.admits(commit('com.example.thing.record')))
  for (const no of ['app.bsky.feed.postgate', 'app.bsky.feed.like', 'com.example', 'com.examples.a.b']) {
    assert.equal(wants.admits(commit(no)), false, no)
  }
  assert.equal(wants.admits(commit()), false, 'a commit without operations')
  for (const kind of ['identity', 'account', 'sync']) assert.ok(wants.admits(other(kind)), kind)
})

test('DIDs and kinds narrow everything, together with all else', () => {
  const wants = Wants.parse({
    dids: ['did:plc:a', 'did:web:b.example'],
    kinds: ['#commit', 'identity'],
    collections: ['a.b.*'],
  })!
  assert.ok(wants.admits(commit('a.b.c')))
  assert.equal(wants.admits(commit('a.c.b')), false)
  assert.ok(wants.admits(other('identity', 'did:web:b.example')))
  assert.equal(wants.admits(other('identity', 'did:plc:b')), false)
  assert.equal(wants.admits(other('account')), false)
  assert.equal(wants.admits({ kind: null, did: null, collections: [] }), false)
})

test('what is malformed, unknown or too much is refused by name', () => {
  const cases: [Parameters<typeof Wants.parse>[0], RegExp][] = [
    [{ collections: ['feed'] }, /not a collection.*"feed"/],
    [{ collections: [''] }, /not a collection/],
    [{ collections: ['*'] }, /not a collection/],
    [{ collections: ['app.bsky.po*'] }, /not a collection/],
    [{ collections: ['app.bsky.feed.post,app.bsky.feed.like'] }, /not a collection/],
    [{ collections: ['x'.repeat(5_000)] }, /^not a collection.{0,150}$/],
    [{ dids: ['alice.example'] }, /not a DID.*"alice\.example"/],
    [{ kinds: ['commits'] }, /not a kind of event.*"commits"/],
    [{ collections: Array.from({ length: 101 }, (_, i) => `a.b.c${i}`) }, /too many wanted collections: 101/],
    [{ dids: Array.from({ length: 10_001 }, (_, i) => `did:plc:${i}`) }, /too many wanted DIDs: 10001/],
  ]
  for (const [text, message] of cases) {
    assert.throws(() => Wants.parse(text), { error: 'InvalidRequest', status: 400, message })
  }
  assert.ok(Wants.parse({ dids: Array.from({ length: 10_000 }, (_, i) => `did:plc:${i}`) }))
})

test('the same choice in another order is the same object', () => {
  const a = Wants.parse({ collections: ['a.b.c', 'a.b.d'], dids: ['did:plc:a'] })
  assert.equal(a, Wants.parse({ dids: ['did:plc:a'], collections: ['a.b.d', 'a.b.c'] }))
  assert.notEqual(a, Wants.parse({ collections: ['a.b.c', 'a.b.d'] }))
})

test('it admits what a slow look at the texts admits', () => {
  const part = fc.constantFrom('a', 'b', 'c')
  const name = fc.tuple(part, part, part).map(parts => parts.join('.'))
  const chosen = fc.oneof(
    name,
    fc.tuple(part, part).map(([x, y]) => `${x}.${y}.*`),
    part.map(x => `${x}.*`),
  )
  const did = fc.constantFrom('did:plc:a', 'did:plc:b')
  fc.assert(
    fc.property(
      fc.array(chosen, { maxLength: 3 }),
      fc.array(did, { maxLength: 1 }),
      fc.constantFrom('commit', 'identity'),
      did,
      fc.array(name, { maxLength: 3 }),
      (collections, dids, kind, who, paths) => {
        const slow =
          (dids.length === 0 || dids.includes(who)) &&
          (kind !== 'commit' ||
            collections.length === 0 ||
            paths.some(path =>
              collections.some(text => (text.endsWith('*') ? `${path}`.startsWith(text.slice(0, -1)) : path === text)),
            ))
        const wants = Wants.parse({ collections, dids })
        const subject = { kind, did: who, collections: kind === 'commit' ? paths : [] }
        assert.equal(wants === null || wants.admits(subject), slow)
      },
    ),
  )
})
