// What services answer and what becomes of it on the way back; each step under a name of its own.
import type { ServerResponse } from 'node:http'
import { brotliCompressSync, gzipSync } from 'node:zlib'
import type { Asked, StandIn } from '../../packages/pds/src/testing-services.ts'
import { NONE, type Reply, type Side, type Someone } from './reference-side.ts'

const server = (name: string) => `com.atproto.server.${name}`
const REPORT = 'com.atproto.moderation.createReport'

/** Lets the app view say something for a while. */
async function whileSaying<T>(service: StandIn, answer: StandIn['answer'], run: () => Promise<T>): Promise<T> {
  const usual = service.answer
  service.answer = answer
  try {
    return await run()
  } finally {
    service.answer = usual
  }
}

const says =
  (status: number, headers: Record<string, string>, body: string | Uint8Array = '') =>
  (_asked: Asked, response: ServerResponse) =>
    void response.writeHead(status, headers).end(body)
const JSON_TYPE = { 'content-type': 'application/json' }
const asJson = (body: unknown, headers: Record<string, string> = {}, status = 200) =>
  says(status, { ...JSON_TYPE, ...headers }, JSON.stringify(body))

type Answers = [string, StandIn['answer']][]

const ANSWERS: Answers = [
  ...[200, 201, 204, 400, 401, 402, 403, 404, 405, 406, 408, 409, 410, 413, 415, 418, 422, 429, 431, 451].map(
    status => [`${status}`, asJson({ error: 'Named', message: 'said so' }, {}, status)] as Answers[number],
  ),
  ...[500, 501, 502, 503, 504, 505, 520, 599].map(
    status => [`${status}`, asJson({ error: 'Named', message: 'said so' }, {}, status)] as Answers[number],
  ),
  ...[400, 401, 403, 404, 413, 418, 429, 500, 501, 502, 503, 504, 520].flatMap(status => [
    [`${status} empty`, says(status, {})] as Answers[number],
    [`${status} text`, says(status, { 'content-type': 'text/plain' }, 'no')] as Answers[number],
    [`${status} no name`, asJson({ message: 'said so' }, {}, status)] as Answers[number],
    [`${status} no message`, asJson({ error: 'Named' }, {}, status)] as Answers[number],
  ]),
  ['500 named as such', asJson({ error: 'InternalServerError', message: 'Internal Server Error' }, {}, 500)],
  ['400 broken JSON', says(400, JSON_TYPE, '{"error":')],
  ['400 a list', asJson(['Named'], {}, 400)],
  ['400 numbers', asJson({ error: 1, message: 2 }, {}, 400)],
  ['400 empty texts', asJson({ error: '', message: '' }, {}, 400)],
  [
    '400 compressed',
    says(400, { ...JSON_TYPE, 'content-encoding': 'gzip' }, gzipSync('{"error":"Named","message":"m"}')),
  ],
  [
    '400 with headers',
    asJson({ error: 'Named' }, { 'retry-after': '3', 'atproto-repo-rev': '3kzzzzzzzzz2a', 'x-a': '1' }, 400),
  ],
  ['429 with headers', asJson({ error: 'RateLimitExceeded' }, { 'retry-after': '3', 'ratelimit-limit': '5' }, 429)],
  ['200 text', says(200, { 'content-type': 'text/plain' }, 'hello')],
  ['200 html', says(200, { 'content-type': 'text/html' }, '<p>')],
  ['200 without a type', says(200, {}, 'hello')],
  ['200 empty', says(200, {})],
  [
    '200 with headers',
    asJson(
      { a: 1 },
      {
        'atproto-repo-rev': '3kzzzzzzzzz2a',
        'atproto-content-labelers': 'did:web:a;redact',
        'content-language': 'de',
        'cache-control': 'public',
        vary: 'x',
        etag: '"a"',
        'set-cookie': 'a=b',
        'www-authenticate': 'Basic',
        'retry-after': '4',
      },
    ),
  ],
  ['200 gzip', says(200, { ...JSON_TYPE, 'content-encoding': 'gzip' }, gzipSync('{"a":1}'))],
  ['200 br', says(200, { ...JSON_TYPE, 'content-encoding': 'br' }, brotliCompressSync('{"a":1}'))],
]

/** Besides those that are always compared. */
const EXTRA = ['content-language', 'set-cookie', 'ratelimit-limit']

function extras(side: Side, name: string, { headers }: Reply): void {
  const lag = headers.has('atproto-upstream-lag')
  side.note(`${name}, headers`, { lag, others: EXTRA.map(header => headers.get(header)) })
}

export async function answers(side: Side): Promise<void> {
  const una = await side.signUp('una')
  const { appView } = side.server
  for (const method of ['com.example.get', 'app.bsky.feed.getTimeline', 'app.bsky.actor.getProfile']) {
    for (const [name, answer] of ANSWERS) {
      const params = method.endsWith('Profile') ? { actor: una.did } : {}
      const title = `answer of ${method}: ${name}`
      const reply = await whileSaying(appView, answer, () => side.say(title, method, { auth: una, params }))
      extras(side, title, reply)
    }
  }
  for (const [name, answer] of ANSWERS) {
    const body = {
      reasonType: 'com.atproto.moderation.defs#reasonSpam',
      subject: { $type: 'com.atproto.admin.defs#repoRef', did: una.did },
    }
    await whileSaying(appView, answer, () => side.say(`answer of report: ${name}`, REPORT, { auth: una, body }))
  }
}

/** What of a request arrives. */
export async function requests(side: Side): Promise<void> {
  const uli = await side.signUp('uli')
  const { appView } = side.server
  const seen = (name: string) => {
    const last = appView.asked.at(-1)!
    const {
      host: _h,
      connection: _c,
      authorization: _a,
      'user-agent': _u,
      'accept-encoding': _e,
      ...headers
    } = last.headers
    side.note(`request: ${name}`, { method: last.method, path: last.path, headers, body: last.body.toString() })
  }
  const headers = {
    'accept-language': 'de, en;q=0.5',
    'atproto-accept-labelers': 'did:plc:a;redact, did:plc:b',
    'x-bsky-topics': 'cats',
    'x-atproto-thing': 'y',
    'x-custom': '1',
    'user-agent': 'test',
    accept: 'application/json',
    cookie: 'a=b',
    'if-none-match': '"a"',
    'accept-encoding': 'gzip, br',
    'x-forwarded-for': '1.2.3.4',
    origin: 'https://a.example',
    referer: 'https://a.example/x',
    'atproto-proxy': `${appView.did}#bsky_appview`,
  }
  const ask = async (name: string, method: string, ask: object) => {
    await side.ask(method, { auth: uli, headers, ...ask })
    seen(name)
  }
  await ask('query', 'com.example.get', { params: { a: ['1', '2'], b: 'ü &=' } })
  await ask('query brought up to date', 'app.bsky.feed.getTimeline', { params: { limit: 3 } })
  await ask('posted', 'com.example.put', { body: { a: 1 } })
  await ask('posted as text', 'com.example.put', { body: 'a', headers: { ...headers, 'content-type': 'text/plain' } })
  await ask('posted with a query', 'com.example.put', { body: { a: 1 }, params: { b: 2 } })
  await ask('head', 'com.example.get', { verb: 'HEAD' })
  await ask('list of parameters', 'app.bsky.actor.getProfiles', { params: { actors: ['a.test', 'b.test'] } })
  await ask('list of parameters in brackets', 'app.bsky.actor.getProfiles', {
    params: { 'actors[]': ['a.test', 'b.test'] },
  })
  await ask('known, not valid', 'app.bsky.actor.getProfile', {})
}

const RECENT = () => new Date().toISOString()

/** Lists of the app view that lack what was just written. */
export async function fresh(side: Side): Promise<void> {
  const ute = await side.signUp('ute')
  const { appView } = side.server
  const write = async (collection: string, rkey: string, record: object) =>
    (await side.ask('com.atproto.repo.putRecord', { auth: ute, body: { repo: ute.did, collection, rkey, record } }))
      .json
  const post = (rkey: string, more: object = {}) =>
    write('app.bsky.feed.post', rkey, { $type: 'app.bsky.feed.post', text: rkey, createdAt: RECENT(), ...more })
  const author = { did: ute.did, handle: 'ute.test', displayName: 'old' }
  const old = await post('3l222222222aa')
  const { commit } = await write('app.bsky.actor.profile', 'self', {
    $type: 'app.bsky.actor.profile',
    displayName: 'first',
  })
  const rev = { 'atproto-repo-rev': commit.rev, 'atproto-content-labelers': 'did:web:a' }
  const known = {
    uri: old.uri,
    cid: old.cid,
    author,
    record: { $type: 'app.bsky.feed.post', text: 'old', createdAt: '2026-01-01T00:00:00.000Z' },
    indexedAt: '2026-01-01T00:00:00.000Z',
  }
  const tests = (phase: string) => async () => {
    const ask = async (
      name: string,
      method: string,
      answer: object,
      params: object,
      headers: Record<string, string> = rev,
    ) => {
      const title = `fresh, ${phase}: ${name}`
      const reply = await whileSaying(appView, asJson(answer, headers), () =>
        side.say(title, method, { auth: ute, params: params as Record<string, unknown> }),
      )
      extras(side, title, reply)
    }
    const actor = ute.did
    await ask('profile', 'app.bsky.actor.getProfile', { ...author, postsCount: 3 }, { actor })
    await ask(
      'profile of another',
      'app.bsky.actor.getProfile',
      { ...author, did: appView.did },
      { actor: appView.did },
    )
    await ask(
      'profiles',
      'app.bsky.actor.getProfiles',
      { profiles: [author, { ...author, did: appView.did }] },
      { actors: [actor, appView.did] },
    )
    await ask('author feed', 'app.bsky.feed.getAuthorFeed', { feed: [{ post: known }] }, { actor })
    await ask('author feed, no rev', 'app.bsky.feed.getAuthorFeed', { feed: [{ post: known }] }, { actor }, {})
    await ask(
      'author feed of another',
      'app.bsky.feed.getAuthorFeed',
      { feed: [{ post: { ...known, author: { ...author, did: appView.did } } }] },
      { actor: appView.did },
    )
    await ask('likes', 'app.bsky.feed.getActorLikes', { feed: [{ post: known }] }, { actor })
    await ask('timeline', 'app.bsky.feed.getTimeline', { feed: [{ post: known }], cursor: 'c' }, {})
    await ask('empty timeline', 'app.bsky.feed.getTimeline', { feed: [] }, {})
    await ask('broken timeline', 'app.bsky.feed.getTimeline', { nonsense: 1 }, {})
    await ask(
      'thread',
      'app.bsky.feed.getPostThread',
      { thread: { $type: 'app.bsky.feed.defs#threadViewPost', post: known, replies: [] } },
      { uri: old.uri },
    )
  }
  await tests('nothing new')()
  await write('app.bsky.actor.profile', 'self', {
    $type: 'app.bsky.actor.profile',
    displayName: 'new',
    description: 'words',
  })
  await tests('profile')()
  const late = (n: number) => `3z22222222${n}aa`
  const one = await post(late(2), {
    embed: { $type: 'app.bsky.embed.external', external: { uri: 'https://a.example/', title: 't', description: 'd' } },
  })
  const root = { uri: old.uri, cid: old.cid }
  await post(late(3), { reply: { root, parent: root } })
  await tests('posts')()
  const missing = asJson({ error: 'NotFound', message: 'Post not found' }, rev, 400)
  const thread = (name: string, uri: string, answer = missing) =>
    whileSaying(appView, answer, () =>
      side.say(`fresh: ${name}`, 'app.bsky.feed.getPostThread', { auth: ute, params: { uri } }),
    )
  await thread('thread not known yet', one.uri)
  await thread('thread not known yet, by handle', one.uri.replace(ute.did, 'ute.test'))
  await thread('thread of a reply not known yet', `at://${ute.did}/app.bsky.feed.post/${late(3)}`)
  await thread('thread of nothing', `at://${ute.did}/app.bsky.feed.post/${late(4)}`)
  await thread('thread of another', `at://${appView.did}/app.bsky.feed.post/a`)
  await thread('thread without a rev', one.uri, asJson({ error: 'NotFound', message: 'Post not found' }, {}, 400))
  await thread('thread refused', one.uri, asJson({ error: 'InvalidRequest', message: 'no' }, rev, 400))
}

export async function feedsAndReports(side: Side): Promise<void> {
  const uwe = await side.signUp('uwe')
  const { appView } = side.server
  const feed = `at://did:web:feeds.example/app.bsky.feed.generator/cats`
  const generator = (value: object) => (asked: Asked, response: ServerResponse) => {
    if (asked.path.includes('com.atproto.repo.getRecord'))
      return asJson({ uri: feed, cid: 'bafyreidfayvfuwqa7qlnopdjiqrxzs6blmoeu4rujcjtnci5beludirz2a', value })(
        asked,
        response,
      )
    const { aud, lxm } = asked.token?.payload ?? {}
    asJson({ feed: [], aud, lxm })(asked, response)
  }
  const get = (name: string, params: object, answer: StandIn['answer'], auth: Someone | undefined = uwe) =>
    whileSaying(appView, answer, () =>
      side.say(`feed: ${name}`, 'app.bsky.feed.getFeed', {
        ...(auth ? { auth } : {}),
        params: params as Record<string, unknown>,
      }),
    )
  const good = generator({
    $type: 'app.bsky.feed.generator',
    did: 'did:web:makes.feeds',
    displayName: 'x',
    createdAt: RECENT(),
  })
  await get('good', { feed, limit: 3 }, good)
  await get('without a feed', {}, good)
  await get('no URI', { feed: 'x' }, good)
  const other = feed.replace('cats', 'dogs')
  await get('record of no DID', { feed: other }, generator({ $type: 'app.bsky.feed.generator' }))
  await get(
    'unknown record',
    { feed: other },
    asJson({ error: 'RecordNotFound', message: 'Could not locate record' }, {}, 400),
  )
  await get('broken app view', { feed: other }, asJson({ error: 'InternalServerError', message: 'x' }, {}, 500))
  const report = (name: string, body: object, ask: object = {}) =>
    side.say(`report: ${name}`, REPORT, { auth: uwe, body, ...ask })
  const subject = { $type: 'com.atproto.admin.defs#repoRef', did: uwe.did }
  const reasonType = 'com.atproto.moderation.defs#reasonSpam'
  await report('good', { reasonType, subject, reason: 'spam' })
  await report('of a record', {
    reasonType,
    subject: {
      $type: 'com.atproto.repo.strongRef',
      uri: feed,
      cid: 'bafyreidfayvfuwqa7qlnopdjiqrxzs6blmoeu4rujcjtnci5beludirz2a',
    },
  })
  await report('of another kind', { reasonType: 'tools.ozone.report.defs#reasonHarassmentTroll', subject })
  await report('unheard reason', { reasonType: 'com.example.reason', subject })
  await report('no reason type', { subject })
  await report('no subject', { reasonType })
  await report('unheard subject', { reasonType, subject: { $type: 'com.example.thing', a: 1 } })
  await report('a subject without a type', { reasonType, subject: { did: uwe.did } })
  await report('with more', { reasonType, subject, modTool: { name: 'x', meta: { a: 1 } }, extra: 1 })
  await report('long reason', { reasonType, subject, reason: 'a'.repeat(3_000) })
  await report('too long reason', { reasonType, subject, reason: 'a'.repeat(30_000) })
  await report(
    'to the labeler named',
    { reasonType, subject },
    { headers: { 'atproto-proxy': `${appView.did}#atproto_labeler` } },
  )
  await report(
    'to the app view',
    { reasonType, subject },
    { headers: { 'atproto-proxy': `${appView.did}#bsky_appview` } },
  )
  await report('to none', { reasonType, subject }, { headers: { 'atproto-proxy': `${appView.did}#none` } })
  await report('with a bad header', { reasonType, subject }, { headers: { 'atproto-proxy': appView.did } })
  await side.say('report: by nobody', REPORT, { body: { reasonType, subject } })
  await side.say('report: queried', REPORT, { auth: uwe })
  const { aud, lxm, iss } = appView.asked.at(-1)!.token!.payload
  side.note('report: token', { aud, lxm, iss, path: appView.asked.at(-1)!.path })
  const token = (name: string, params: object) =>
    side.say(`service token: ${name}`, server('getServiceAuth'), {
      auth: uwe,
      params: params as Record<string, unknown>,
    })
  const aud2 = 'did:web:a.example'
  const now = Math.floor(Date.now() / 1000)
  await token('no audience', {})
  await token('did:plc with a service', { aud: `${uwe.did}#bsky_appview` })
  await token('did:web with a port', { aud: 'did:web:localhost%3A3000' })
  await token('did:web with a path', { aud: 'did:web:a.example:b' })
  await token('short did:plc', { aud: 'did:plc:abc' })
  await token('in capitals', { aud: 'DID:web:a.example' })
  await token('too long', { aud: `did:web:${'a'.repeat(2100)}.example` })
  await token('exp text', { aud: aud2, exp: 'x' })
  await token('exp fraction', { aud: aud2, exp: '1.5' })
  await token('exp negative', { aud: aud2, exp: -1 })
  await token('exactly an hour', { aud: aud2, lxm: 'com.example.get', exp: now + 3600 })
  await token('exactly a minute, no method', { aud: aud2, exp: now + 60 })
  await token('protected and too long', { aud: aud2, lxm: server('getSession'), exp: now + 9_000 })
  await token('protected in capitals', { aud: aud2, lxm: server('getSession').replace('get', 'GET') })
  await token('empty method', { aud: aud2, lxm: '' })
  await token('chat', { aud: aud2, lxm: 'chat.bsky.convo.listConvos' })
  for (const name of [
    'server.deleteAccount',
    'server.requestPasswordReset',
    'server.resetPassword',
    'server.refreshSession',
    'server.createSession',
    'identity.submitPlcOperation',
    'server.checkAccountStatus',
    'repo.importRepo',
  ])
    await token(name, { aud: aud2, lxm: `com.atproto.${name}` })
  for (const name of [
    'server.requestAccountDelete',
    'server.updateEmail',
    'server.confirmEmail',
    'server.deactivateAccount',
    'server.revokeAppPassword',
    'server.listAppPasswords',
  ])
    await token(name, { aud: aud2, lxm: `com.atproto.${name}` })
  await side.say('service token: posted', server('getServiceAuth'), { auth: uwe, verb: 'POST', body: NONE })
}
