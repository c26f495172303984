// Whatever is sent to whichever method, by whomever: an answer of the protocol, never a failure of the server.
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { procedures, queries } from '@millisky/core/lexicon/gen/methods'
import { testDatabases } from '@millisky/server/db/testing'
import fc from 'fast-check'
import { startMailbox } from '../testing-mail.ts'
import { signUp, startNetworkedPds } from '../testing-network.ts'
import { basic } from '../testing-pds.ts'

interface Schema {
  type: string
  format?: string
  properties?: Record<string, Schema>
  items?: Schema
}

/** `npm test` shows that it works; campaigns draw ten thousand. */
const CALLS = Number(process.env.MILLISKY_TEST_CALLS ?? 1_500)
const AT_ONCE = 24
const lexicons = join(import.meta.dirname, '../../../../lexicons')

const UNHEARD_OF = 'com.example.unheardOf'

function definition(nsid: string): { parameters?: Schema; input?: { encoding: string; schema?: Schema } } {
  if (nsid === UNHEARD_OF) return {}
  return JSON.parse(readFileSync(join(lexicons, `${nsid.replaceAll('.', '/')}.json`), 'utf8')).defs.main
}

const cid = 'bafyreidfayvfuwqa7qlnopdjiqrxzs6blmoeu4rujcjtnci5beludirz2a'
const nasty = fc.constantFrom<unknown>(
  '',
  ' ',
  '\0',
  '../../etc/passwd',
  "'; drop table account; --",
  '%00',
  'a'.repeat(5_000),
  // One that does not compress, for keys of an index.
  randomBytes(9_000).toString('base64'),
  'a\0b',
  '\0@example.com',
  '\ud800',
  'handle.invalid',
  'did:plc:',
  'did:web:localhost%3A1',
  'did:web:a/b',
  'at://x',
  -1,
  0,
  2 ** 53,
  1e300,
  0.5,
  true,
  null,
  [],
  {},
  [[]],
  { $link: 'x' },
  { $bytes: '!' },
  { __proto__: 1 },
  { $type: 'x' },
)

/** Values that fit, nearly fit, and do not fit at all. */
function anyOf(schema: Schema, dids: string[]): fc.Arbitrary<unknown> {
  const fitting = (): fc.Arbitrary<unknown> => {
    switch (schema.format ?? schema.type) {
      case 'did':
      case 'at-identifier':
        return fc.constantFrom(...dids, 'alice.test', 'bob.test')
      case 'handle':
        return fc.constantFrom('alice.test', 'carol.test', 'x.example.com', 'admin.test')
      case 'cid':
        return fc.constant(cid)
      case 'nsid':
        return fc.constantFrom('com.example.note', 'app.bsky.feed.post', 'chat.bsky.convo.sendMessage')
      case 'datetime':
        return fc.constant('2026-08-20T12:00:00Z')
      case 'at-uri':
        return fc.constantFrom(...dids.map(did => `at://${did}/com.example.note/a`))
      case 'record-key':
        return fc.constantFrom('a', 'self', '3jui7kd54zh2y')
      case 'integer':
        return fc.integer({ min: -5, max: 1_000 })
      case 'boolean':
        return fc.boolean()
      case 'array':
        return fc.array(anyOf(schema.items!, dids), { maxLength: 3 })
      case 'string':
        return fc.oneof(fc.string({ maxLength: 30 }), fc.constantFrom('alice@example.com', 'AAAAA-AAAAA', cid))
      default:
        return fc.oneof(
          fc.object({ maxDepth: 2 }),
          fc.constant({ $type: 'com.atproto.admin.defs#repoRef', did: dids[0] }),
        )
    }
  }
  return fc.oneof({ arbitrary: fitting(), weight: 5 }, { arbitrary: nasty, weight: 1 })
}

/** As a URL can say it; an object may have a `toString` that is none. */
function asText(params: Record<string, unknown>): Record<string, unknown> {
  const text = (value: unknown) => (typeof value === 'object' ? JSON.stringify(value) : String(value))
  const all = Object.entries(params).map(([name, value]) => [
    name,
    Array.isArray(value) ? value.map(text) : text(value),
  ])
  return Object.fromEntries(all)
}

function objectOf(schema: Schema | undefined, dids: string[]): fc.Arbitrary<Record<string, unknown>> {
  const properties = Object.entries(schema?.properties ?? {})
  return fc.record(Object.fromEntries(properties.map(([name, of]) => [name, anyOf(of, dids)])), { requiredKeys: [] })
}

/** What a body may be said to be, whatever it is. */
const TYPES = [
  'application/json',
  'application/json',
  'application/json; charset=utf-16',
  'text/plain',
  'application/cbor',
  'application/vnd.ipld.car',
  'application/octet-stream',
  'application/x-www-form-urlencoded',
  'multipart/form-data; boundary=x',
  'image/png',
  '*/*',
  'json',
  ';',
]

/** Bytes besides those of JSON: nothing, noise, broken JSON, and CBOR that promises more than there is. */
const rawBody = fc.oneof(
  fc.constant(new Uint8Array()),
  fc.uint8Array({ maxLength: 200 }),
  fc
    .constantFrom('{', '[', '"', 'nul', '{"a":1e999}', '{"a":1,"a":2}', '['.repeat(5_000), '\ufeff{}')
    .map(text => Buffer.from(text)),
  fc
    .constantFrom('9f', 'bf', '1bffffffffffffffff', '5bffffffffffffffff', '3aa265726f6f747380', 'd82a5825000171')
    .map(hex => Buffer.from(hex, 'hex')),
)

// PostgreSQL takes offence at other texts than SQLite does.
for (const { name, skip, url } of testDatabases()) {
  test(`no input makes the server fail: ${name}`, { skip }, async t => callAtRandom(t, await url(t)))
}

async function callAtRandom(t: TestContext, databaseUrl: string): Promise<void> {
  const mailbox = await startMailbox(t)
  const pds = await startNetworkedPds(t, { ...mailbox.env, PDS_DEV_MODE: 'true', PDS_DATABASE_URL: databaseUrl })
  const [alice, bob] = [await signUp(pds, 'alice'), await signUp(pds, 'bob')]
  const dids = [alice.did, bob.did, 'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa', 'did:web:nobody.invalid']
  const app = await pds.post('com.atproto.server.createAppPassword', { name: 'app' }, null, alice.auth)
  const limited = await pds.post('com.atproto.server.createSession', {
    identifier: alice.did,
    password: app.json.password,
  })
  const callers: Record<string, string>[] = [
    {},
    alice.auth,
    alice.auth,
    bob.auth,
    basic(),
    basic(),
    basic('wrong'),
    { authorization: `Bearer ${alice.refreshJwt}` },
    { authorization: `Bearer ${limited.json.accessJwt}` },
    { authorization: 'Bearer' },
    { authorization: `Bearer ${'.'.repeat(3_000)}` },
    { authorization: 'DPoP x' },
    { authorization: 'Basic ?' },
    { authorization: `Bearer ${forged({ alg: 'none' }, alice.did)}` },
    { 'atproto-proxy': 'did:web:localhost%3A1#x', ...alice.auth },
    { 'atproto-proxy': '#' },
    { 'if-none-match': '*', range: 'bytes=9-1', ...alice.auth },
    { 'content-encoding': 'gzip' },
    { 'x-forwarded-for': "1.2.3.4, '; --" },
  ]
  const probe = (nsid: string) => (queries.has(nsid) ? pds.get(nsid) : pds.post(nsid, undefined, null))
  const methods: string[] = []
  for (const nsid of [...queries, ...procedures]) if ((await probe(nsid)).status !== 501) methods.push(nsid)
  // Beside them one that is known and not here, and one that nobody knows.
  methods.push('app.bsky.feed.getTimeline', UNHEARD_OF)
  const call = fc.constantFrom(...methods).chain(nsid => {
    const { parameters, input } = definition(nsid)
    const body = input?.schema ? fc.oneof({ arbitrary: objectOf(input.schema, dids), weight: 9 }, nasty) : nasty
    return fc.record({
      raw: fc.option(rawBody, { freq: 4 }),
      type: fc.constantFrom(...TYPES),
      nsid: fc.constant(nsid),
      params: objectOf(parameters, dids).map(asText),
      body,
      headers: fc.constantFrom(...callers),
    })
  })
  const calls = fc.sample(call, { numRuns: CALLS, seed: Number(process.env.MILLISKY_TEST_SEED ?? 20_260_820) })
  const statuses = new Map<number, number>()
  const called = new Set<string>()
  const worker = async () => {
    for (let next = calls.pop(); next; next = calls.pop()) {
      const { nsid, params, body, headers, raw, type } = next
      const sent = raw === null ? headers : { ...headers, 'content-type': type }
      const reply = queries.has(nsid)
        ? await pds.get(nsid, params, headers)
        : await pds.post(nsid, raw ?? body, null, sent)
      statuses.set(reply.status, (statuses.get(reply.status) ?? 0) + 1)
      called.add(nsid)
      assert.notEqual(reply.status, 500, JSON.stringify(next))
      if (reply.status >= 400 && nsid !== 'com.atproto.sync.subscribeRepos') {
        assert.equal(typeof reply.json?.error, 'string', JSON.stringify(next))
        assert.equal(typeof reply.json?.message, 'string', JSON.stringify(next))
      }
    }
  }
  await Promise.all(Array.from({ length: AT_ONCE }, worker))
  assert.ok((statuses.get(200) ?? 0) > 20, 'some get through')
  assert.ok((statuses.get(400) ?? 0) > 200, 'most do not')
  for (const page of [
    'tls-check?domain=%00',
    `tls-check?domain=${'a.'.repeat(4_000)}`,
    'tls-check?domain[]=a',
    '%00',
    '?%00',
  ]) {
    assert.ok((await fetch(`${pds.url}/${page}`)).status < 500, page)
  }
  assert.ok(called.size > methods.length * 0.9, 'every method has its turn')
  await pds.store.ping()
}

/** A token whose signature nobody made. */
function forged(header: object, sub: string): string {
  const part = (value: object) => Buffer.from(JSON.stringify(value)).toString('base64url')
  return `${part({ typ: 'at+jwt', ...header })}.${part({ scope: 'com.atproto.access', sub, aud: 'did:web:localhost', exp: 2e9 })}.`
}
