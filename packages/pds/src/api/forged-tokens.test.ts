// Tokens that look right and are not: of the wrong kind, by the wrong key, in the wrong words.
import assert from 'node:assert/strict'
import { createHmac } from 'node:crypto'
import { test } from 'node:test'
import { base64url, utf8 } from '@millisky/core/bytes'
import type { SigningKey } from '@millisky/core/crypto'
import { type NetworkedPds, type Person, signUp, startNetworkedPds } from '../testing-network.ts'
import { basic, JWT_SECRET } from '../testing-pds.ts'

const part = (value: unknown) => base64url(utf8(typeof value === 'string' ? value : JSON.stringify(value)))
type Header = Record<string, unknown>
type Claims = Record<string, unknown>

const hmac = (header: unknown, claims: unknown, secret: string | Uint8Array = JWT_SECRET, hash = 'sha256') => {
  const signed = `${part(header)}.${part(claims)}`
  return `${signed}.${createHmac(hash, secret).update(signed).digest('base64url')}`
}
const ecdsa = (header: unknown, claims: unknown, key: SigningKey) => {
  const signed = `${part(header)}.${part(claims)}`
  return `${signed}.${base64url(key.sign(utf8(signed)))}`
}

async function keyOf(pds: NetworkedPds, { did }: Person): Promise<SigningKey> {
  return pds.repos.signingKey((await pds.store.repos.state(did as never))!.key)
}

/** Seconds, as tokens have them. */
const secondsNow = () => Math.floor(Date.now() / 1000)

test('nothing but an access token of this server opens a session', async t => {
  const iat = secondsNow()
  const pds = await startNetworkedPds(t)
  const alice = await signUp(pds, 'alice')
  const key = await keyOf(pds, alice)
  const aud = pds.names.did
  const typ = 'at+jwt'
  const header: Header = { typ, alg: 'HS256' }
  const claims: Claims = { scope: 'com.atproto.access', sub: alice.did, aud, iat, exp: iat + 600 }
  const without = (name: string) => Object.fromEntries(Object.entries(claims).filter(([key]) => key !== name))
  const [, , good = ''] = alice.accessJwt.split('.')
  const serviceClaims = { iss: alice.did, aud, iat, exp: iat + 60, jti: 'x', lxm: 'com.atproto.server.getSession' }
  const forgeries: Record<string, string> = {
    'a refresh token': alice.refreshJwt,
    'alg none, no signature': `${part({ typ, alg: 'none' })}.${part(claims)}.`,
    'alg none, any signature': `${part({ typ, alg: 'none' })}.${part(claims)}.${good}`,
    'alg NonE': `${part({ typ, alg: 'NonE' })}.${part(claims)}.`,
    'no alg': hmac({ typ }, claims),
    'another hash of the right secret': hmac({ typ, alg: 'HS512' }, claims, JWT_SECRET, 'sha512'),
    'an empty secret': hmac(header, claims, ''),
    "the account's public key as secret": hmac(header, claims, key.publicKey.didKey),
    "the account's public bytes as secret": hmac(header, claims, key.publicKey.bytes),
    "the account's key": ecdsa({ typ, alg: 'ES256K' }, claims, key),
    "the account's key, said to be ours": ecdsa(header, claims, key),
    'a key that it brings along': hmac({ ...header, jwk: { kty: 'oct', k: base64url(utf8('x')) } }, claims, 'x'),
    'a key from elsewhere': hmac({ ...header, jku: 'http://127.0.0.1/k', kid: '../../etc/passwd' }, claims, 'x'),
    'extensions that nobody knows': hmac({ ...header, crit: ['b64'], b64: false }, claims),
    'the claims of another': `${part(header)}.${part({ ...claims, sub: 'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa' })}.${good}`,
    'typ of a refresh token': hmac({ typ: 'refresh+jwt', alg: 'HS256' }, claims),
    'typ of a proof': hmac({ typ: 'dpop+jwt', alg: 'HS256' }, claims),
    'no typ': hmac({ alg: 'HS256' }, claims),
    'scope of a refresh token': hmac(header, { ...claims, scope: 'com.atproto.refresh' }),
    'two scopes': hmac(header, { ...claims, scope: 'com.atproto.access com.atproto.refresh' }),
    'scopes as a list': hmac(header, { ...claims, scope: ['com.atproto.access'] }),
    'no scope': hmac(header, without('scope')),
    'a scope of OAuth': hmac(header, { ...claims, scope: 'atproto transition:generic' }),
    'bound to a proof': hmac(header, { ...claims, cnf: { jkt: 'x' } }),
    'bound to a method': hmac(header, { ...claims, lxm: 'com.atproto.server.getSession' }),
    'for another server': hmac(header, { ...claims, aud: 'did:web:elsewhere.test' }),
    'for a server whose name begins so': hmac(header, { ...claims, aud: `${aud}.evil.test` }),
    'for nobody': hmac(header, without('aud')),
    'of nobody': hmac(header, without('sub')),
    'of no DID': hmac(header, { ...claims, sub: 'alice.test' }),
    'of a list': hmac(header, { ...claims, sub: [alice.did] }),
    'without an end': hmac(header, without('exp')),
    'with an end that is no number': hmac(header, { ...claims, exp: String(iat + 600) }),
    'ended long ago': hmac(header, { ...claims, exp: 0 }),
    'ended before time began': hmac(header, { ...claims, exp: -1e300 }),
    'not yet valid': hmac(header, { ...claims, nbf: iat + 3_600 }),
    'a service token for this very method': ecdsa({ typ: 'JWT', alg: 'ES256K' }, serviceClaims, key),
    'claims that are a list': hmac(header, [claims]),
    'claims that are no JSON': hmac(header, '{"sub":'),
    'four parts': `${alice.accessJwt}.${good}`,
    'two parts': alice.accessJwt.slice(0, alice.accessJwt.lastIndexOf('.')),
    'a signature of other letters': alice.accessJwt.replace(/.$/, '*'),
    padding: `${alice.accessJwt}==`,
    'nothing between the dots': '..',
    'very long': `${part(header)}.${part({ ...claims, x: 'x'.repeat(20_000) })}.${good}`,
    'a proto': hmac(header, '{"__proto__":{"sub":"x"},"scope":"com.atproto.access"}'),
  }
  for (const [what, token] of Object.entries(forgeries)) {
    const headers = { authorization: `Bearer ${token}` }
    const asked = await pds.get('com.atproto.server.getSession', {}, headers)
    assert.ok(asked.status === 400 || asked.status === 401, `${what}: ${asked.status}`)
    assert.match(asked.json.error, /^(InvalidToken|ExpiredToken)$/, what)
    const record = { repo: alice.did, collection: 'com.example.note', record: { $type: 'com.example.note' } }
    const written = await pds.post('com.atproto.repo.createRecord', record, null, headers)
    assert.ok([400, 401].includes(written.status), `${what} writes: ${written.status}`)
    // What is public stays so for those who may see more: no token of theirs is passed over in silence.
    assert.equal((await pds.get('com.atproto.sync.getRepo', { did: alice.did }, headers)).status, 400, what)
  }
  for (const authorization of [
    `Bearer ${alice.accessJwt} ${alice.accessJwt}`,
    `Bearer ${alice.accessJwt}, Bearer x`,
    alice.accessJwt,
    `DPoP ${alice.accessJwt}`,
    `Basic ${alice.accessJwt}`,
    `${basic().authorization}, Bearer ${alice.accessJwt}`,
  ]) {
    const { status } = await pds.get('com.atproto.server.getSession', {}, { authorization })
    assert.ok(status === 400 || status === 401, authorization.slice(0, 20))
  }
  assert.equal((await pds.get('com.atproto.server.getSession', {}, alice.auth)).status, 200)
})

test('nothing but its own refresh token renews a session', async t => {
  const pds = await startNetworkedPds(t)
  const [alice, bob] = [await signUp(pds, 'alice'), await signUp(pds, 'bob')]
  const bobs = JSON.parse(Buffer.from(bob.refreshJwt.split('.')[1]!, 'base64url').toString())
  const header = { typ: 'refresh+jwt', alg: 'HS256' }
  const forgeries: Record<string, string> = {
    'an access token': alice.accessJwt,
    'without an id': hmac(header, { ...bobs, jti: undefined }),
    "another's session": hmac(header, { ...bobs, sub: alice.did }),
    'an id that is no text': hmac(header, { ...bobs, jti: { $ne: null } }),
    'the scope of an access token': hmac(header, { ...bobs, scope: 'com.atproto.access' }),
    'the typ of an access token': hmac({ typ: 'at+jwt', alg: 'HS256' }, bobs),
    'alg none': `${part({ ...header, alg: 'none' })}.${part(bobs)}.`,
  }
  for (const [what, token] of Object.entries(forgeries)) {
    const headers = { authorization: `Bearer ${token}` }
    const { status } = await pds.post('com.atproto.server.refreshSession', undefined, null, headers)
    assert.ok(status === 400 || status === 401, `${what}: ${status}`)
    const ended = (await pds.post('com.atproto.server.deleteSession', undefined, null, headers)).status
    if (what !== "another's session") assert.ok(ended === 400 || ended === 401, `${what} ends: ${ended}`)
  }
})

test('nothing but a token of its key stands for an account at this server', async t => {
  const pds = await startNetworkedPds(t)
  const [alice, bob] = [await signUp(pds, 'alice'), await signUp(pds, 'bob')]
  const [key, bobsKey] = [await keyOf(pds, alice), await keyOf(pds, bob)]
  const lxm = 'com.atproto.repo.uploadBlob'
  const iat = secondsNow()
  const header: Header = { typ: 'JWT', alg: 'ES256K' }
  const claims: Claims = { iss: alice.did, aud: pds.names.did, iat, exp: iat + 60, jti: 'a', lxm }
  const upload = (token: string) =>
    pds.post(lxm, new Uint8Array(8), null, { authorization: `Bearer ${token}`, 'content-type': 'text/plain' })
  assert.equal((await upload(ecdsa(header, claims, key))).status, 200)
  const forgeries: Record<string, string> = {
    "another's key": ecdsa(header, claims, bobsKey),
    'the public key as secret': hmac({ typ: 'JWT', alg: 'HS256' }, claims, key.publicKey.didKey),
    'the public key as secret, said to be ES256K': hmac(header, claims, key.publicKey.bytes),
    'alg none': `${part({ typ: 'JWT', alg: 'none' })}.${part(claims)}.`,
    'another curve': ecdsa({ typ: 'JWT', alg: 'ES256' }, claims, key),
    'for another server': ecdsa(header, { ...claims, aud: 'did:web:elsewhere.test' }, key),
    'for another service of this server': ecdsa(header, { ...claims, aud: `${pds.names.did}#other` }, key),
    'for several': ecdsa(header, { ...claims, aud: [pds.names.did] }, key),
    'for another method': ecdsa(header, { ...claims, lxm: 'com.atproto.repo.createRecord' }, key),
    'for every method': ecdsa(header, { ...claims, lxm: '*' }, key),
    'for no method': ecdsa(header, { ...claims, lxm: undefined }, key),
    over: ecdsa(header, { ...claims, exp: iat - 1 }, key),
    'without an end': ecdsa(header, { ...claims, exp: undefined }, key),
    'with an end beyond numbers': ecdsa(header, JSON.stringify(claims).replace(/"exp":\d+/, '"exp":1e999'), key),
    'by a key of another name': ecdsa({ ...header, kid: '#atproto_label' }, claims, key),
    'by its label key': ecdsa(header, { ...claims, iss: `${alice.did}#atproto_labeler` }, key),
    'of somebody on this machine': ecdsa(header, { ...claims, iss: 'did:web:localhost%3A1' }, key),
    'as an access token': ecdsa({ ...header, typ: 'at+jwt' }, claims, key),
    'as a proof': ecdsa({ ...header, typ: 'dpop+jwt' }, claims, key),
    'with extensions': ecdsa({ ...header, crit: ['x'] }, claims, key),
  }
  for (const [what, token] of Object.entries(forgeries)) {
    const { status, json } = await upload(token)
    // A DID that cannot be looked up proves nothing either way.
    const refused = status === 400 || status === 401 || json.error === 'DidResolutionFailed'
    assert.ok(refused, `${what}: ${status} ${JSON.stringify(json)}`)
  }
  const moving = ecdsa(header, { ...claims, lxm: 'com.atproto.server.createAccount' }, bobsKey)
  const taken = await pds.post(
    'com.atproto.server.createAccount',
    { handle: 'mallory.test', email: 'm@example.com', password: 'mallory-password', did: alice.did },
    null,
    { authorization: `Bearer ${moving}` },
  )
  assert.equal(taken.status, 401)
})
