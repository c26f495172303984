import assert from 'node:assert/strict'
import { request } from 'node:http'
import { test } from 'node:test'
import { asHandle, type Did } from '@millisky/core/syntax'
import { failure, signUp, startNetworkedPds } from '../testing-network.ts'
import { startTestPds, type TestPds } from '../testing-pds.ts'

/** A GET with a Host header of one's own, which fetch does not allow. */
function getAs(pds: TestPds, host: string, path: string): Promise<{ status: number; type: string; body: string }> {
  return new Promise((resolve, reject) => {
    const asking = request(new URL(path, pds.url), { headers: { host } }, reply => {
      let body = ''
      reply.setEncoding('utf8').on('data', chunk => {
        body += chunk
      })
      reply.on('end', () => resolve({ status: reply.statusCode!, type: reply.headers['content-type'] ?? '', body }))
    })
    asking.on('error', reject).end()
  })
}

test('the server describes itself', async t => {
  const pds = await startTestPds(t, {
    PDS_HOSTNAME: 'pds.example.com',
    PDS_SERVICE_HANDLE_DOMAINS: 'pds.example.com,.Other.example.com',
    PDS_INVITE_REQUIRED: 'true',
    PDS_BLOB_UPLOAD_LIMIT: '5242880',
    PDS_PRIVACY_POLICY_URL: 'https://example.com/privacy',
    PDS_TERMS_OF_SERVICE_URL: 'https://example.com/terms',
    PDS_CONTACT_EMAIL_ADDRESS: 'ops@example.com',
  })
  const described = await pds.get('com.atproto.server.describeServer')
  assert.deepEqual(described.json, {
    did: 'did:web:pds.example.com',
    availableUserDomains: ['.pds.example.com', '.other.example.com'],
    inviteCodeRequired: true,
    blobUploadLimit: 5_242_880,
    links: { privacyPolicy: 'https://example.com/privacy', termsOfService: 'https://example.com/terms' },
    contact: { email: 'ops@example.com' },
  })
  const bare = await (await startTestPds(t)).get('com.atproto.server.describeServer')
  assert.deepEqual(
    [bare.json.did, bare.json.availableUserDomains, bare.json.inviteCodeRequired, bare.json.links, bare.json.contact],
    ['did:web:localhost', ['.test'], false, {}, {}],
  )
})

test('handles of this server, and of nobody', async t => {
  const pds = await startNetworkedPds(t, { PDS_SERVICE_HANDLE_DOMAINS: '.test,.pds.example.com' })
  const alice = await signUp(pds, 'alice')
  const resolve = (handle: string) => pds.get('com.atproto.identity.resolveHandle', { handle })
  assert.deepEqual((await resolve('alice.test')).json, { did: alice.did })
  assert.deepEqual((await resolve('ALICE.test')).json, { did: alice.did })
  for (const handle of ['bob.test', 'bob.pds.example.com', 'pds.example.com']) {
    assert.deepEqual(failure(await resolve(handle)), [400, 'HandleNotFound', 'Unable to resolve handle'], handle)
  }
  assert.deepEqual(failure(await resolve('nobody.invalid')), [400, 'InvalidRequest', 'Unable to resolve handle'])
  const malformed = await resolve('no handle')
  assert.deepEqual([malformed.status, malformed.json.error], [400, 'InvalidRequest'])
})

test('the well-known file of a handle is found by its host name', async t => {
  const pds = await startNetworkedPds(t, { PDS_SERVICE_HANDLE_DOMAINS: '.test,.pds.example.com' })
  const alice = await signUp(pds, 'alice')
  const path = '/.well-known/atproto-did'
  const found = await getAs(pds, 'alice.test', path)
  assert.deepEqual([found.status, found.body], [200, alice.did])
  assert.match(found.type, /^text\/plain/)
  assert.equal((await getAs(pds, 'ALICE.test:443', path)).body, alice.did)
  const proxied = await fetch(new URL(path, pds.url), { headers: { 'x-forwarded-host': 'alice.test' } })
  assert.equal(await proxied.text(), alice.did, 'a proxy that is trusted says which host was asked for')
  for (const host of ['bob.test', 'localhost', 'pds.example.com', '[::1]:80']) {
    const missing = await getAs(pds, host, path)
    assert.deepEqual([missing.status, missing.body], [404, 'User not found'], host)
  }
  await pds.lifecycle.setHandle(alice.did as Did, asHandle('pds.example.com'))
  assert.equal((await getAs(pds, 'pds.example.com', path)).body, alice.did, 'the bare name can be a handle too')
  await pds.lifecycle.takedown(alice.did as Did, 'case')
  assert.equal((await getAs(pds, 'pds.example.com', path)).body, alice.did, 'identity may always be served')
})

test('pages for people, crawlers, certificates and monitors', async t => {
  const pds = await startTestPds(t, { PDS_HOSTNAME: 'pds.example.com' }, { version: '1.2.3' })
  const home = await getAs(pds, 'pds.example.com', '/')
  assert.deepEqual([home.status, home.type], [200, 'text/plain; charset=utf-8'])
  assert.match(home.body, /AT Protocol/)
  // biome-ignore lint/suspicious/noControlCharactersInRegex: that is the point
  assert.match(home.body, /^[\x00-\x7f]*$/)
  assert.match((await getAs(pds, 'pds.example.com', '/robots.txt')).body, /^User-agent: \*\nAllow: \/$/m)
  const health = await fetch(new URL('/xrpc/_health', pds.url))
  assert.deepEqual([health.status, await health.json()], [200, { version: '1.2.3' }])
  const document = await getAs(pds, 'pds.example.com', '/.well-known/did.json')
  assert.equal(JSON.parse(document.body).id, 'did:web:pds.example.com')
  assert.equal((await getAs(pds, 'alice.pds.example.com', '/.well-known/did.json')).status, 404)
  const tls = async (query: string) => (await getAs(pds, 'pds.example.com', `/tls-check${query}`)).status
  await pds.user('alice')
  assert.deepEqual(
    [
      await tls('?domain=pds.example.com'),
      await tls('?domain=alice.test'),
      await tls('?domain=bob.test'),
      await tls(''),
      await tls('?domain=alice.test&domain=bob.test'),
    ],
    [200, 200, 404, 400, 400],
  )
})

test('a server whose database does not answer is sick', async t => {
  const pds = await startTestPds(t, {}, { version: '1.2.3' })
  pds.store.ping = async () => {
    throw new Error('the disk is gone')
  }
  const health = await fetch(new URL('/xrpc/_health', pds.url))
  assert.equal(health.status, 503)
  assert.deepEqual(await health.json(), { version: '1.2.3', error: 'Service Unavailable' })
})
