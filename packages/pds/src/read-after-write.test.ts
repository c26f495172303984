import assert from 'node:assert/strict'
import type { ServerResponse } from 'node:http'
import { test } from 'node:test'
import { brotliCompressSync, gzipSync } from 'node:zlib'
import type { Tid } from '@millisky/core/syntax'
import { decodeTid, encodeTid } from '@millisky/core/tid'
import { bearer, type TestPds, type TestUser } from './testing-pds.ts'
import { type Asked, json, type StandIn, startPdsWithAppView, startStandIn } from './testing-services.ts'

const POST = 'app.bsky.feed.post'
const OTHER = 'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa'
const OLD = '2020-01-01T00:00:00.000Z'

interface World {
  pds: TestPds
  appView: StandIn
  alice: TestUser
  /** Writes a record and says where. */
  write(collection: string, record: object, rkey?: string): Promise<{ uri: string; cid: string }>
  post(text: string, more?: object): Promise<{ uri: string; cid: string }>
  /** The rev at which alice's repository is. */
  rev(): Promise<string>
  ask(method: string, params?: Record<string, unknown>): ReturnType<TestPds['get']>
}

async function start(t: Parameters<typeof startPdsWithAppView>[0], env: Record<string, string> = {}): Promise<World> {
  const { pds, appView } = await startPdsWithAppView(t, env)
  const alice = await pds.user('alice')
  const write: World['write'] = async (collection, record, rkey) => {
    const method = rkey === undefined ? 'createRecord' : 'putRecord'
    const body = { repo: alice.did, collection, record, ...(rkey === undefined ? {} : { rkey }), validate: false }
    const reply = await pds.post(`com.atproto.repo.${method}`, body, alice)
    assert.equal(reply.status, 200, JSON.stringify(reply.json))
    return reply.json
  }
  return {
    pds,
    appView,
    alice,
    write,
    post: (text, more = {}) => write(POST, { text, createdAt: new Date().toISOString(), ...more }),
    rev: async () => (await pds.store.repos.state(alice.did))!.head.rev,
    ask: (method, params = {}) => pds.get(method, params, bearer(alice)),
  }
}

/** An answer of an app view that knows the repository up to a rev. */
const knowing = (rev: string, body: object) => (_asked: Asked, response: ServerResponse) =>
  json(response, body, { 'atproto-repo-rev': rev, 'atproto-content-labelers': 'did:plc:l' })

const item = (uri: string, indexedAt: string, more: object = {}) => {
  return { post: { uri, cid: 'x', author: { did: OTHER, handle: 'o.test' }, record: {}, indexedAt }, ...more }
}
const urisOf = (reply: { json: { feed: { post: { uri: string } }[] } }) => reply.json.feed.map(({ post }) => post.uri)

test('an answer that knows everything passes as it came', async t => {
  const { appView, post, rev, ask } = await start(t)
  await post('one')
  const known = await rev()
  appView.answer = (_asked, response) => {
    response.writeHead(200, { 'content-type': 'application/json', 'atproto-repo-rev': known })
    response.end('{ "feed":[],\n"more": 1.50 }')
  }
  const reply = await ask('app.bsky.feed.getTimeline')
  assert.equal(Buffer.from(reply.bytes).toString(), '{ "feed":[],\n"more": 1.50 }')
  assert.equal(reply.headers.get('atproto-upstream-lag'), null)
  assert.equal(reply.headers.get('atproto-repo-rev'), known)
})

test('a timeline shows what was just posted, where it belongs by time, once, and on the first page only', async t => {
  const { appView, alice, post, rev, ask } = await start(t)
  const before = await rev()
  const one = await post('one')
  const two = await post('two')
  const old = 'at://x/app.bsky.feed.post/old'
  const feed = [item(old, OLD, { unknown: [1.5] })]
  appView.answer = knowing(before, { feed, cursor: 'c', extra: { a: null } })
  const reply = await ask('app.bsky.feed.getTimeline')
  assert.deepEqual(urisOf(reply), [two.uri, one.uri, old])
  assert.ok(Number(reply.headers.get('atproto-upstream-lag')) >= 0)
  assert.equal(reply.headers.get('atproto-repo-rev'), before)
  assert.equal(reply.headers.get('atproto-content-labelers'), 'did:plc:l')
  assert.deepEqual([reply.json.cursor, reply.json.extra, reply.json.feed[2]], ['c', { a: null }, feed[0]])
  const { author, record, uri, cid, indexedAt, likeCount } = reply.json.feed[1].post
  assert.deepEqual([uri, cid, likeCount], [one.uri, one.cid, 0])
  assert.deepEqual(author, { did: alice.did, handle: 'alice.test' })
  assert.equal(record.text, 'one')
  assert.ok(Math.abs(Date.parse(indexedAt) - Date.now()) < 60_000)

  appView.answer = knowing(before, { feed: [item(one.uri, new Date().toISOString()), ...feed] })
  assert.deepEqual(urisOf(await ask('app.bsky.feed.getTimeline')).sort(), [one.uri, two.uri, old].sort())
  appView.answer = knowing(before, { feed })
  assert.deepEqual(urisOf(await ask('app.bsky.feed.getTimeline', { cursor: 'c' })), [old])
  const pinned = item('at://x/app.bsky.feed.post/pin', OLD, { reason: { $type: 'app.bsky.feed.defs#reasonPin' } })
  appView.answer = knowing(before, { feed: [pinned, ...feed] })
  assert.deepEqual(urisOf(await ask('app.bsky.feed.getTimeline')), [pinned.post.uri, two.uri, one.uri, old])
  const later = new Date(Date.now() + 3_600_000).toISOString()
  appView.answer = knowing(before, { feed: [item('at://x/a/b', later)] })
  assert.deepEqual(urisOf(await ask('app.bsky.feed.getTimeline')), ['at://x/a/b'], 'what is older than the page')
})

test('only what the app view does not know is added', async t => {
  const { appView, post, rev, ask } = await start(t)
  await post('known')
  const between = await rev()
  const fresh = await post('fresh')
  appView.answer = knowing(between, { feed: [] })
  assert.deepEqual(urisOf(await ask('app.bsky.feed.getTimeline')), [fresh.uri])
})

test("an author's feed, with its filters", async t => {
  const { appView, alice, pds, post, rev, ask } = await start(t)
  const before = await rev()
  const plain = await post('plain')
  const reply = { root: { uri: 'at://x/a/b', cid: 'c' }, parent: { uri: 'at://x/a/b', cid: 'c' } }
  const answer = await post('answer', { reply })
  const own = { root: { uri: plain.uri, cid: plain.cid }, parent: { uri: plain.uri, cid: plain.cid } }
  const more = await post('more', { reply: own })
  const pictures = await post('pictures', { embed: { $type: 'app.bsky.embed.images', images: [] } })
  appView.answer = knowing(before, { feed: [] })
  const feed = async (actor: string, filter?: string) => {
    return urisOf(await ask('app.bsky.feed.getAuthorFeed', { actor, ...(filter ? { filter } : {}) }))
  }
  assert.deepEqual(
    await feed(alice.did),
    [pictures, more, answer, plain].map(({ uri }) => uri),
  )
  assert.deepEqual(await feed('alice.test'), await feed(alice.did))
  assert.deepEqual(await feed(alice.did, 'posts_no_replies'), [pictures.uri, plain.uri])
  assert.deepEqual(await feed(alice.did, 'posts_and_author_threads'), [pictures.uri, more.uri, plain.uri])
  assert.deepEqual(await feed(alice.did, 'posts_with_media'), [pictures.uri])
  assert.deepEqual(await feed(alice.did, 'posts_with_video'), [])
  assert.deepEqual(await feed(OTHER), [], "in somebody else's feed nothing is added")
  const bob = await pds.user('bob')
  const seen = await pds.get('app.bsky.feed.getAuthorFeed', { actor: alice.did }, bearer(bob))
  assert.deepEqual(urisOf(seen), [], 'and others see nothing before the app view does')
})

test('a profile that was just changed, with everything that was not', async t => {
  const { pds, appView, alice, write, rev, ask } = await start(t)
  const before = await rev()
  const view = {
    did: alice.did,
    handle: 'alice.test',
    displayName: 'Old',
    description: 'Old',
    avatar: 'https://old/avatar',
    postsCount: 7,
    followersCount: 8,
    followsCount: 9,
    viewer: { muted: false },
    unknown: [1.5, { a: '1' }],
  }
  const other = { ...view, did: OTHER, handle: 'o.test' }
  await write('app.bsky.actor.profile', { displayName: 'New', website: 'https://new.example' }, 'self')
  appView.answer = knowing(before, view)
  const reply = await ask('app.bsky.actor.getProfile', { actor: alice.did })
  const { description: _, avatar: __, ...kept } = view
  assert.deepEqual(reply.json, { ...kept, displayName: 'New', website: 'https://new.example' })
  assert.ok(reply.headers.has('atproto-upstream-lag'))
  appView.answer = knowing(before, other)
  assert.deepEqual((await ask('app.bsky.actor.getProfile', { actor: OTHER })).json, other)
  appView.answer = knowing(before, { profiles: [other, view] })
  const { profiles } = (await ask('app.bsky.actor.getProfiles', { actors: [OTHER, alice.did] })).json
  assert.deepEqual(profiles, [other, { ...kept, displayName: 'New', website: 'https://new.example' }])
  const liked = { ...item('at://x/a/b', OLD), post: { ...item('at://x/a/b', OLD).post, author: view } }
  appView.answer = knowing(before, { feed: [liked, item('at://x/a/c', OLD)] })
  const likes = (await ask('app.bsky.feed.getActorLikes', { actor: alice.did })).json.feed
  assert.deepEqual([likes[0].post.author.displayName, likes[0].post.author.postsCount], ['New', 7])
  assert.deepEqual(likes[1], item('at://x/a/c', OLD))

  const picture = { 'content-type': 'image/png' }
  const { blob } = (await pds.post('com.atproto.repo.uploadBlob', new Uint8Array([1]), alice, picture)).json
  await write('app.bsky.actor.profile', { avatar: blob, banner: blob, description: 'Newer' }, 'self')
  appView.answer = knowing(before, view)
  const { json: shown } = await ask('app.bsky.actor.getProfile', { actor: alice.did })
  assert.deepEqual([shown.description, shown.displayName, shown.postsCount], ['Newer', undefined, 7])
  const from = `${pds.names.publicUrl}/xrpc/com.atproto.sync.getBlob?did=${alice.did}&cid=${blob.ref.$link}`
  assert.deepEqual([shown.avatar, shown.banner], [from, from])
})

test('pictures and links of fresh posts are shown from where the operator says', async t => {
  for (const [env, thumb] of [
    [{}, /^http:\/\/localhost:\d+\/xrpc\/com\.atproto\.sync\.getBlob\?did=did:plc:\w+&cid=baf\w+$/],
    [
      { PDS_BSKY_APP_VIEW_CDN_URL_PATTERN: 'https://cdn.example/%s/plain/%s/%s' },
      /^https:\/\/cdn\.example\/feed_thumbnail\/plain\/did:plc:\w+\/baf\w+$/,
    ],
  ] as const) {
    const { appView, alice, pds, post, rev, ask } = await start(t, env)
    const upload = await pds.post('com.atproto.repo.uploadBlob', new Uint8Array([1, 2, 3]), alice, {
      'content-type': 'image/png',
    })
    const { blob } = upload.json
    const before = await rev()
    const images = [{ image: blob, alt: 'a', aspectRatio: { width: 1, height: 2 } }]
    await post('p', { embed: { $type: 'app.bsky.embed.images', images } })
    await post('l', {
      embed: {
        $type: 'app.bsky.embed.external',
        external: { uri: 'https://x', title: 't', description: 'd', thumb: blob },
      },
    })
    await post('v', { embed: { $type: 'app.bsky.embed.video', video: blob } })
    appView.answer = knowing(before, { feed: [] })
    const [video, link, picture] = (await ask('app.bsky.feed.getTimeline')).json.feed
    assert.equal(video.post.embed, undefined)
    assert.deepEqual([link.post.embed.$type, link.post.embed.external.title], ['app.bsky.embed.external#view', 't'])
    assert.match(link.post.embed.external.thumb, thumb)
    const [image] = picture.post.embed.images
    assert.match(image.thumb, thumb)
    assert.deepEqual([image.alt, image.aspectRatio], ['a', { width: 1, height: 2 }])
    assert.match(image.fullsize, /getBlob|feed_fullsize/)
  }
})

test('what fresh posts quote is asked of the app view, or known', async t => {
  const { appView, post, rev, ask } = await start(t)
  const before = await rev()
  const quote = (uri: string) => ({ $type: 'app.bsky.embed.record', record: { uri, cid: 'c' } })
  const foreign = `at://${OTHER}/${POST}/a`
  const first = await post('first')
  await post('of own', { embed: quote(first.uri) })
  await post('of other', { embed: quote(foreign) })
  await post('of gone', { embed: quote(`at://${OTHER}/${POST}/gone`) })
  await post('of feed', { embed: quote(`at://${OTHER}/app.bsky.feed.generator/cats`) })
  await post('of list', { embed: quote(`at://${OTHER}/app.bsky.graph.list/l`) })
  const images = { $type: 'app.bsky.embed.images', images: [] }
  await post('both', { embed: { $type: 'app.bsky.embed.recordWithMedia', record: quote(foreign), media: images } })
  appView.answer = ({ path, token }, response) => {
    const method = path.slice('/xrpc/'.length).split('?', 1)[0]!
    if (method === 'app.bsky.feed.getTimeline') return knowing(before, { feed: [] })({} as Asked, response)
    assert.equal(token!.payload.lxm, method)
    if (path.includes('gone')) return json(response, { posts: [] })
    if (method === 'app.bsky.feed.getFeedGenerator') return json(response, { view: { displayName: 'Cats' } })
    if (method === 'app.bsky.graph.getList') return json(response, { error: 'InternalServerError' }, {}, 500)
    json(response, { posts: [{ ...item(foreign, OLD).post, record: { text: 'hi' }, embed: { $type: 'e' } }] })
  }
  const { feed } = (await ask('app.bsky.feed.getTimeline')).json
  const [both, list, generator, gone, other, own] = feed.map((entry: { post: { embed: unknown } }) => entry.post.embed)
  assert.equal(own.record.value.text, 'first')
  assert.equal(own.record.$type, 'app.bsky.embed.record#viewRecord')
  assert.deepEqual([other.record.value, other.record.embeds], [{ text: 'hi' }, [{ $type: 'e' }]])
  assert.deepEqual([gone.record.$type, gone.record.notFound], ['app.bsky.embed.record#viewNotFound', true])
  assert.deepEqual(generator.record, { displayName: 'Cats', $type: 'app.bsky.feed.defs#generatorView' })
  assert.equal(list.record.$type, 'app.bsky.embed.record#viewNotFound')
  assert.equal(both.$type, 'app.bsky.embed.recordWithMedia#view')
  assert.deepEqual([both.record.record.value, both.media.images], [{ text: 'hi' }, []])
})

const THREAD = 'app.bsky.feed.defs#threadViewPost'

test('a thread shows fresh answers, also answers to answers', async t => {
  const { appView, post, rev, ask } = await start(t)
  const before = await rev()
  const root = { uri: `at://${OTHER}/${POST}/root`, cid: 'c' }
  const one = await post('one', { reply: { root, parent: root } })
  const two = await post('two', { reply: { root, parent: one } })
  await post('elsewhere', { reply: { root: { uri: 'at://x/a/b', cid: 'c' }, parent: root } })
  const known = { $type: THREAD, post: { uri: `at://${OTHER}/${POST}/known` } }
  const blocked = { $type: 'app.bsky.feed.defs#blockedPost', uri: 'at://b' }
  const thread = { $type: THREAD, post: { uri: root.uri, record: {} }, replies: [known, blocked], parent: { a: 1 } }
  appView.answer = knowing(before, { thread, threadgate: { b: 2 } })
  const { json: seen, headers } = await ask('app.bsky.feed.getPostThread', { uri: root.uri })
  assert.deepEqual([seen.threadgate, seen.thread.parent], [{ b: 2 }, { a: 1 }])
  const [fresh, ...others] = seen.thread.replies
  assert.equal(fresh.post.uri, one.uri)
  assert.deepEqual(
    fresh.replies.map((reply: { post: { uri: string } }) => reply.post.uri),
    [two.uri],
  )
  assert.deepEqual(others, [known, blocked])
  assert.ok(headers.has('atproto-upstream-lag'))
  appView.answer = knowing(before, { thread: { $type: 'app.bsky.feed.defs#notFoundPost', uri: 'x', notFound: true } })
  const missing = await ask('app.bsky.feed.getPostThread', { uri: root.uri })
  assert.equal(missing.json.thread.notFound, true)
})

test('the thread of a post that the app view has not seen', async t => {
  const { pds, appView, alice, post, rev, ask } = await start(t)
  const before = await rev()
  const root = { uri: `at://${OTHER}/${POST}/root`, cid: 'c' }
  const fresh = await post('fresh', { reply: { root, parent: root } })
  const below = await post('below', { reply: { root, parent: fresh } })
  const headers = { 'atproto-repo-rev': before }
  const notFound = { error: 'NotFound', message: 'Post not found' }
  appView.answer = ({ path }, response) => {
    if (path.includes(encodeURIComponent(root.uri))) return json(response, { thread: { $type: THREAD, post: root } })
    json(response, notFound, headers, 400)
  }
  for (const uri of [fresh.uri, fresh.uri.replace(alice.did, 'alice.test')]) {
    const reply = await ask('app.bsky.feed.getPostThread', { uri })
    assert.equal(reply.status, 200, JSON.stringify(reply.json))
    const { thread } = reply.json
    assert.deepEqual([thread.post.uri, thread.parent], [fresh.uri, { $type: THREAD, post: root }])
    assert.equal(thread.replies[0].post.uri, below.uri)
    assert.ok(reply.headers.has('atproto-upstream-lag'))
    assert.equal(reply.headers.get('atproto-repo-rev'), before)
  }
  const unknown = await ask('app.bsky.feed.getPostThread', { uri: `at://${alice.did}/${POST}/nothing` })
  assert.deepEqual([unknown.status, unknown.json], [400, notFound])
  const bob = await pds.user('bob')
  const foreign = await pds.get('app.bsky.feed.getPostThread', { uri: fresh.uri }, bearer(bob))
  assert.deepEqual([foreign.status, foreign.json], [400, notFound])
})

test('compressed answers are read too', async t => {
  const { pds, appView, alice, post, rev } = await start(t)
  const before = await rev()
  const fresh = await post('fresh')
  const body = '{"feed":[]}'
  const cases: [string, Buffer][] = [
    ['gzip', gzipSync(body)],
    ['br', brotliCompressSync(body)],
  ]
  for (const [encoding, bytes] of cases) {
    appView.answer = (asked, response) => {
      assert.match(asked.headers['accept-encoding']!, /gzip;q=0\.3, br;q=0\.2, identity/)
      const type = { 'content-type': 'application/json; charset=utf-8', 'atproto-repo-rev': before }
      response.writeHead(200, { ...type, 'content-encoding': encoding }).end(bytes)
    }
    const headers = { ...bearer(alice), 'accept-encoding': 'gzip, br, zstd' }
    const reply = await pds.get('app.bsky.feed.getTimeline', {}, headers)
    assert.deepEqual(urisOf(reply), [fresh.uri], encoding)
    assert.equal(reply.headers.get('content-encoding'), null)
  }
})

test('whatever cannot be brought up to date comes as the app view said it', async t => {
  const { pds, appView, alice, post, rev } = await start(t)
  const before = await rev()
  await post('fresh')
  const say = async (body: string | Buffer, headers: Record<string, string> = {}) => {
    appView.answer = (_asked, response) => {
      response.writeHead(200, { 'content-type': 'application/json', 'atproto-repo-rev': before, ...headers }).end(body)
    }
    const response = await fetch(`${pds.url}/xrpc/app.bsky.feed.getTimeline`, { headers: bearer(alice) })
    assert.equal(response.status, 200)
    return Buffer.from(await response.arrayBuffer())
  }
  for (const text of ['not json', '[]', '7', '', '{"feed":', `${'['.repeat(100_000)}`]) {
    assert.equal((await say(text)).toString(), text, text.slice(0, 20))
  }
  for (const strange of [
    '{"feed":7}',
    '{"feed":[null,7,{"post":[]},{"post":{"author":7}}]}',
    '{}',
    '{"feed":{"a":1}}',
  ]) {
    assert.ok(JSON.parse((await say(strange)).toString()), strange)
  }
  const bomb = gzipSync(Buffer.alloc(60_000_000))
  assert.equal((await say(bomb, { 'content-encoding': 'gzip' })).length, 60_000_000, 'undone by the client, not here')
  const page = '<h1>no</h1>'
  assert.equal((await say(page, { 'content-type': 'text/html' })).toString(), page)
  for (const rev of ['nonsense', '', '2222222222222']) {
    assert.equal((await say('{"feed":[]}', { 'atproto-repo-rev': rev })).toString(), '{"feed":[]}', rev)
  }
})

test('records that came with the account, or were edited, are no news', async t => {
  const { appView, write, rev, ask } = await start(t)
  const first = decodeTid((await rev()) as Tid).micros
  await write(POST, { text: 'imported' }, encodeTid(first - 1e6 * 3600 * 24 * 300, 1))
  appView.answer = knowing(encodeTid(first - 1, 1), { feed: [] })
  assert.deepEqual(urisOf(await ask('app.bsky.feed.getTimeline')), [])
  const fresh = await write(POST, { text: 'fresh' })
  assert.deepEqual(urisOf(await ask('app.bsky.feed.getTimeline')), [fresh.uri])
  appView.answer = knowing(encodeTid(first - 1e6 * 3600, 1), { feed: [] })
  assert.deepEqual(urisOf(await ask('app.bsky.feed.getTimeline')), [], 'a rev from before the account was here')
})

test('another app view that is named gets the same', async t => {
  const { pds, alice, appView, post, rev } = await start(t)
  const other = await startStandIn(t)
  const before = await rev()
  const fresh = await post('fresh')
  other.answer = knowing(before, { feed: [] })
  const headers = { ...bearer(alice), 'atproto-proxy': `${other.did}#bsky_appview` }
  assert.deepEqual(urisOf(await pds.get('app.bsky.feed.getTimeline', {}, headers)), [fresh.uri])
  assert.equal(appView.asked.length, 0)
})
