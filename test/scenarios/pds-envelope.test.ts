// What clients of a PDS depend on, whatever the method: errors, verbs, bodies, headers, limits, pages. The numbers are those of the list
// of behaviours; B16 to B37 are in pds-sessions.test.ts.
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { brotliCompressSync, deflateSync, gzipSync } from 'node:zlib'
import { signUp, startNetworkedPds } from '@millisky/pds/testing-network'
import { type Ask, ask, bearer, failure, JSON_TYPE, post, type Told } from './pds-asking.ts'

const SERVER = 'com.atproto.server'
const DESCRIBE = `${SERVER}.describeServer`
const LOGIN = `${SERVER}.createSession`
const pds = await startNetworkedPds({ after }, { PDS_HOSTNAME: 'pds.example.com', PDS_SERVICE_HANDLE_DOMAINS: '.test' })
const alice = await signUp(pds, 'alice')
const credentials = { identifier: 'alice.test', password: alice.password }
const say = (path: string, options?: Ask) => ask(pds.url, path, options)
const MEMBERS_OF_OBJECTS = ['constructor', 'toString', 'hasOwnProperty', 'valueOf']

/** An error and nothing but an error, in the envelope. */
function assertError(told: Told, status: number, error: string, message?: string): void {
  const about = `${told.status} ${told.text}`
  assert.equal(told.status, status, about)
  assert.match(told.headers['content-type'] ?? '', /^application\/json\b/, about)
  assert.deepEqual(Object.keys(told.json), ['error', 'message'], about)
  assert.equal(told.json.error, error, about)
  if (message !== undefined) assert.equal(told.json.message, message, about)
  assert.equal(told.headers['access-control-allow-origin'], '*', 'web pages have to see errors, too')
}

test('B1 every error is a name and a message in JSON', async () => {
  assertError(await say('/nowhere'), 404, 'NotFound', 'Not Found')
  assertError(await say('/', { method: 'POST' }), 404, 'NotFound', 'Not Found')
  for (const path of ['/xrpc', '/xrpc/', '/xrpc/no-nsid', '/xrpc/..', `/xrpc/${DESCRIBE}/more`])
    assertError(await say(path), 400, 'InvalidRequest', 'invalid xrpc path')
  assertError(await say('/xrpc/%zz'), 400, 'InvalidRequest')
  assertError(await say(`${SERVER}.getSession`), 401, 'AuthMissing', 'Authentication Required')
  const json = { method: 'POST', headers: JSON_TYPE }
  for (const body of ['{', '', '  ', '[]', 'null', '"text"', '1']) {
    assertError(await say(LOGIN, { ...json, body }), 400, 'InvalidRequest')
  }
  assertError(await say(LOGIN, { ...json, body: Buffer.of(0x22, 0xff, 0x22) }), 400, 'InvalidRequest')
})

test('B1 the cause of a failure inside is not told', async () => {
  const { accounts } = pds.store
  const { byDid } = accounts
  accounts.byDid = async () => {
    throw new Error('the secret of the database')
  }
  try {
    const told = await say(`${SERVER}.getSession`, { headers: alice.auth })
    assertError(told, 500, 'InternalServerError', 'Internal Server Error')
  } finally {
    accounts.byDid = byDid
  }
})

test('B2 a method that nobody serves is not implemented', async () => {
  const unknown = [
    'com.example.unheard',
    `${SERVER}.unheard`,
    'app.bsky.feed.getTimeline',
    'com.atproto.sync.listHosts',
  ]
  for (const nsid of unknown) {
    for (const headers of [{}, alice.auth])
      assertError(await say(nsid, { headers }), 501, 'MethodNotImplemented', 'Method Not Implemented')
  }
  const posted = await post(pds.url, 'com.example.unheard', {})
  assertError(posted, 501, 'MethodNotImplemented', 'Method Not Implemented')
  assert.equal((await say('com.example.unheard', { method: 'HEAD' })).status, 501)
})

test('B3 a method of another verb says which verb it has', async () => {
  for (const [nsid, expected] of [
    [DESCRIBE, 'GET'],
    [LOGIN, 'POST'],
    ['com.atproto.admin.updateAccountSigningKey', 'POST'],
  ]) {
    for (const method of ['GET', 'POST', 'PUT', 'PATCH', 'DELETE']) {
      if (method === expected) continue
      const told = await say(nsid!, { method })
      assertError(told, 400, 'InvalidRequest', `Incorrect HTTP method (${method}) expected ${expected}`)
    }
  }
  assert.equal((await say(LOGIN, { method: 'HEAD' })).status, 400)
  const head = await say(DESCRIBE, { method: 'HEAD' })
  assert.deepEqual([head.status, head.text], [200, ''])
})

test('B4 what is wrong with parameters and bodies is said with a path', async () => {
  const LIST = 'com.atproto.repo.listRecords'
  const params = `repo=${alice.did}&collection=com.example.note`
  const cases: [query: string, message: RegExp][] = [
    ['', /^Invalid com\.atproto\.repo\.listRecords params: Missing required key "repo" at \$/],
    [`${params}&limit=0`, /integer too small \(minimum 1, got 0\) at \$\.limit$/],
    [`${params}&limit=101`, /integer too big \(maximum 100, got 101\) at \$\.limit$/],
    [`${params}&limit=abc`, /Expected integer value type \(got "abc"\) at \$\.limit$/],
    [`${params}&limit=1.5`, /at \$\.limit$/],
    [`${params}&limit=1&limit=2`, /at \$\.limit$/],
    [`${params}&reverse=yes`, /Expected boolean value type \(got "yes"\) at \$\.reverse$/],
    ['repo=x&collection=com.example.note', /at \$\.repo$/],
  ]
  for (const [query, message] of cases) {
    const told = await say(`${LIST}?${query}`)
    assertError(told, 400, 'InvalidRequest')
    assert.match(told.json.message, message, query)
  }
  for (const query of ['__proto__=1', 'a=1&__proto__=1', '__proto__[]=1', '%5F_proto__=1'])
    assertError(await say(`${DESCRIBE}?${query}`), 400, 'InvalidQueryParameter')
  const ignored = ['limit=', 'unheard=of', '=1', '&&', '%', ...MEMBERS_OF_OBJECTS.map(name => `${name}=1`)]
  for (const query of ignored) assert.equal((await say(`${LIST}?${params}&${query}`)).status, 200, query)
  const bodies: [body: unknown, message: string][] = [
    [{}, 'Missing required key "identifier" at $'],
    [{ identifier: 'a' }, 'Missing required key "password" at $'],
    [{ identifier: 5, password: 'a' }, 'Expected string value type (got 5) at $.identifier'],
    [{ identifier: null, password: 'a' }, 'Expected string value type (got null) at $.identifier'],
    [[], 'Expected object value type (got []) at $'],
  ]
  for (const [body, message] of bodies) assertError(await post(pds.url, LOGIN, body), 400, 'InvalidRequest', message)
})

test('B4 bodies are of the type that a method takes', async () => {
  const body = JSON.stringify(credentials)
  const typed = (type: string | undefined, text: string = body) =>
    say(LOGIN, { method: 'POST', body: text, headers: type === undefined ? {} : { 'content-type': type } })
  for (const type of ['application/json', 'Application/JSON; charset=UTF-8', 'application/json;charset="utf-8"'])
    assert.equal((await typed(type)).status, 200, type)
  assertError(
    await typed(undefined),
    400,
    'InvalidRequest',
    'Request encoding (Content-Type) required but not provided',
  )
  for (const type of ['text/plain', 'application/octet-stream', 'application/x-www-form-urlencoded', 'text/json'])
    assertError(await typed(type), 400, 'InvalidRequest', `Wrong request encoding (Content-Type): ${type}`)
  const none = await say(LOGIN, { method: 'POST' })
  assertError(none, 400, 'InvalidRequest', 'A request body is expected but none was provided')
  const marked = await say(LOGIN, { method: 'POST', body: Buffer.from(`\ufeff${body}`), headers: JSON_TYPE })
  assert.equal(marked.status, 200, 'a byte order mark is passed over')
  const more = await post(pds.url, `${LOGIN}?unheard=of`, { ...credentials, unheard: { of: [1] } })
  assert.equal(more.status, 200, 'what is not known is passed over')
})

const BIG = [413, 'PayloadTooLarge', 'request entity too large']

test('B5 JSON of more than 150 KiB is too large', async () => {
  const padded = (bytes: number) => {
    const bare = JSON.stringify({ ...credentials, pad: '' })
    return JSON.stringify({ ...credentials, pad: 'a'.repeat(bytes - bare.length) })
  }
  const send = (body: string | Uint8Array, more: Ask = {}) =>
    say(LOGIN, { method: 'POST', body, ...more, headers: { ...JSON_TYPE, ...more.headers } })
  assert.equal((await send(padded(150 * 1024))).status, 200)
  for (const bytes of [150 * 1024 + 1, 1_000_000, 3_000_000]) assert.deepEqual(failure(await send(padded(bytes))), BIG)
  assert.deepEqual(failure(await send(padded(200_000), { isChunked: true })), BIG)
  const inflated = gzipSync(padded(2_000_000))
  assert.ok(inflated.length < 10_000)
  assert.deepEqual(failure(await send(inflated, { headers: { 'content-encoding': 'gzip' } })), BIG)
  assertError(await send(padded(200_000)), 413, 'PayloadTooLarge', 'request entity too large')
  const preferences = [{ $type: 'app.bsky.actor.defs#adultContentPref', enabled: true, pad: 'a'.repeat(160_000) }]
  assert.deepEqual(failure(await post(pds.url, 'app.bsky.actor.putPreferences', { preferences }, alice.auth)), BIG)
})

test('B5 JSON that writes records may be of 1,000,000 bytes', async () => {
  const write = { repo: alice.did, collection: 'com.example.note', rkey: 'big' }
  const create = { $type: 'com.atproto.repo.applyWrites#create', collection: write.collection }
  const inputs: [method: string, make: (pad: string) => object][] = [
    ['createRecord', pad => ({ ...write, record: { pad } })],
    ['putRecord', pad => ({ ...write, record: { pad } })],
    ['applyWrites', pad => ({ repo: alice.did, writes: [{ ...create, value: { pad } }] })],
  ]
  for (const [method, make] of inputs) {
    const sized = (bytes: number) => make('a'.repeat(bytes - JSON.stringify(make('')).length))
    const send = (bytes: number) => post(pds.url, `com.atproto.repo.${method}`, sized(bytes), alice.auth)
    const fits = await send(1_000_000)
    assert.equal(fits.status, 200, `${method}: ${fits.text}`)
    assert.deepEqual(failure(await send(1_000_001)), BIG, method)
  }
})

test('B6 content encodings that are not known are 415', async () => {
  const body = Buffer.from(JSON.stringify(credentials))
  const send = (encoding: string, bytes: Uint8Array = body) =>
    say(LOGIN, { method: 'POST', body: bytes, headers: { ...JSON_TYPE, 'content-encoding': encoding } })
  for (const encoding of ['zip', 'compress', 'zstd'])
    assertError(await send(encoding), 415, 'UnsupportedMediaType', `unsupported content encoding "${encoding}"`)
  const known: [string, Uint8Array][] = [
    ['identity', body],
    ['gzip', gzipSync(body)],
    ['GZIP', gzipSync(body)],
    ['deflate', deflateSync(body)],
    ['br', brotliCompressSync(body)],
  ]
  for (const [encoding, bytes] of known) assert.equal((await send(encoding, bytes)).status, 200, encoding)
  assertError(await send('gzip'), 400, 'InvalidRequest')
  const charset = { 'content-type': 'application/json; charset=latin1' }
  const foreign = await say(LOGIN, { method: 'POST', body, headers: charset })
  assertError(foreign, 415, 'UnsupportedMediaType', 'unsupported charset "LATIN1"')
})

test('B7 methods without input take an empty body however it is sent', async () => {
  const end = (more: Ask) =>
    say(`${SERVER}.deleteSession`, {
      method: 'POST',
      ...more,
      headers: { ...bearer(alice.refreshJwt), ...more.headers },
    })
  const empty: [name: string, Ask][] = [
    ['none', {}],
    ['of length 0', { headers: { 'content-length': '0' } }],
    ['of JSON', { headers: { ...JSON_TYPE, 'content-length': '0' } }],
    ['in chunks', { isChunked: true }],
    ['of JSON in chunks', { isChunked: true, headers: JSON_TYPE }],
  ]
  for (const [name, more] of empty) {
    const told = await end(more)
    assert.deepEqual([told.status, told.text], [200, ''], `${name}: ${told.text}`)
  }
  const full: Ask[] = [
    { body: '{}', headers: JSON_TYPE },
    { body: '{}', headers: JSON_TYPE, isChunked: true },
    { body: 'a' },
  ]
  for (const more of full)
    assertError(await end(more), 400, 'InvalidRequest', 'A request body was provided when none was expected')
  assert.equal((await say(DESCRIBE, { isChunked: true, headers: JSON_TYPE })).status, 200)
})

test('B8 OPTIONS on any path of XRPC lets every web page ask', async () => {
  const origin = { origin: 'https://a.example', 'access-control-request-method': 'POST' }
  for (const path of [DESCRIBE, LOGIN, 'com.example.unheard', '/xrpc/_health', '/xrpc/', '/.well-known/atproto-did']) {
    const asked = 'authorization,atproto-proxy,content-type'
    const headers = { ...origin, 'access-control-request-headers': asked }
    const told = await say(path, { method: 'OPTIONS', headers })
    assert.deepEqual([told.status, told.text], [204, ''], path)
    assert.equal(told.headers['access-control-allow-origin'], '*')
    assert.equal(told.headers['access-control-max-age'], '86400')
    assert.equal(told.headers['access-control-allow-headers'], asked)
    assert.equal(told.headers['access-control-allow-methods'], 'GET,HEAD,PUT,PATCH,POST,DELETE')
    assert.equal(told.headers['access-control-allow-credentials'], undefined)
  }
  assert.equal((await say(DESCRIBE, { method: 'OPTIONS' })).headers['access-control-max-age'], '86400')
})

test('B9 what web pages may read of replies is exposed', async () => {
  const needed = [
    'RateLimit-Limit',
    'RateLimit-Remaining',
    'RateLimit-Reset',
    'RateLimit-Policy',
    'Retry-After',
    'DPoP-Nonce',
    'WWW-Authenticate',
    'Atproto-Repo-Rev',
    'Atproto-Content-Labelers',
  ]
  for (const told of [await say(DESCRIBE), await say(`${SERVER}.getSession`), await post(pds.url, LOGIN, {})]) {
    const exposed = told.headers['access-control-expose-headers']!.toLowerCase().split(/, */)
    assert.deepEqual(
      needed.filter(name => !exposed.includes(name.toLowerCase())),
      [],
    )
    assert.equal(told.headers['access-control-allow-origin'], '*')
    assert.equal(told.headers['access-control-allow-credentials'], undefined)
  }
})

test('B11 replies to somebody are for nobody else', async () => {
  const about = ({ headers }: Told) => [headers['cache-control'], headers.vary]
  const personal = ['private', 'Authorization']
  for (const headers of [alice.auth, {}, bearer('nonsense')])
    assert.deepEqual(about(await say(`${SERVER}.getSession`, { headers })), personal)
  assert.deepEqual(about(await say('com.atproto.admin.getInviteCodes')), personal)
  assert.deepEqual(about(await say(DESCRIBE)), [undefined, undefined])
})

test('B12 whether it is well', async () => {
  const told = await say('/xrpc/_health')
  assert.deepEqual([told.status, Object.keys(told.json), typeof told.json.version], [200, ['version'], 'string'])
  const { ping } = pds.store
  pds.store.ping = () => Promise.reject(new Error('the disk is gone'))
  try {
    const sick = await say('/xrpc/_health')
    assert.deepEqual([sick.status, sick.json], [503, { version: told.json.version, error: 'Service Unavailable' }])
  } finally {
    pds.store.ping = ping
  }
})

test('B13 pages for people and crawlers are plain', async () => {
  const home = await say('/')
  assert.deepEqual([home.status, home.headers['content-type']], [200, 'text/plain; charset=utf-8'])
  // biome-ignore lint/suspicious/noControlCharactersInRegex: that is the point
  assert.match(home.text, /^[\x00-\x7f]+$/)
  const robots = await say('/robots.txt')
  assert.match(robots.headers['content-type']!, /^text\/plain/)
  assert.match(robots.text, /^User-agent: \*\nAllow: \/$/m)
  assert.equal((await say('/robots.txt', { method: 'HEAD' })).status, 200)
})

test('B14 whose handle the host name is', async () => {
  const of = (host: string, method?: string) =>
    say('/.well-known/atproto-did', { headers: { host }, ...(method ? { method } : {}) })
  for (const host of ['alice.test', 'ALICE.test', 'alice.test:443']) {
    const told = await of(host)
    assert.deepEqual([told.status, told.text], [200, alice.did], host)
    assert.match(told.headers['content-type']!, /^text\/plain/)
    assert.equal(told.headers['access-control-allow-origin'], '*')
  }
  for (const host of ['nobody.test', 'pds.example.com', '127.0.0.1', '[::1]'])
    assert.deepEqual([(await of(host)).status, (await of(host)).text], [404, 'User not found'], host)
  assert.equal((await of('alice.test', 'HEAD')).status, 200)
})

test('B15 which names may have certificates', async () => {
  const status = async (query: string) => (await say(`/tls-check${query}`)).status
  for (const domain of ['pds.example.com', 'alice.test', 'ALICE.test'])
    assert.equal(await status(`?domain=${domain}`), 200, domain)
  for (const query of [
    '',
    '?domain=',
    '?domain=nobody.test',
    '?domain=x.pds.example.com',
    '?domain=alice.test&domain=b.test',
  ]) {
    const refused = await say(`/tls-check${query}`)
    assert.ok(refused.status >= 400 && refused.status < 500, query)
    assert.deepEqual(Object.keys(refused.json), ['error', 'message'])
  }
})
