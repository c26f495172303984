import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { base64url, fromUtf8, hex, unbase64url, unhex, utf8 } from './bytes.ts'
import { SigningKey } from './crypto.ts'
import { Refused } from './errors.ts'
import {
  checkServiceClaims,
  checkServiceJwt,
  checkServiceSignature,
  readServiceJwt,
  type ServiceClaims,
  signServiceJwt,
} from './jwt.ts'
import { asDid } from './syntax.ts'

const k256 = SigningKey.fromPrivate('k256', new Uint8Array(32).fill(1))
const p256 = SigningKey.fromPrivate('p256', new Uint8Array(32).fill(2))
const iss = asDid('did:plc:44ybard66vv44zksje25o7dz')
const aud = 'did:web:pds.example.com'
const lxm = 'com.atproto.server.createAccount'
const claims: ServiceClaims = { iss, aud, lxm, iat: 1_800_000_000, exp: 1_800_000_060, jti: '0123456789abcdef' }
const expect = { aud: [aud, `${aud}#atproto_pds`], lxm, now: 1_800_000_030_000 }

function refuses(error: string, run: () => unknown): void {
  assert.throws(run, (thrown: unknown) => {
    return thrown instanceof Refused && thrown.error === error && thrown.status === 401
  })
}

/** Signs any header and payload, sound or not. */
function forge(header: unknown, payload: unknown, key = k256): string {
  const part = (value: unknown) => base64url(utf8(typeof value === 'string' ? value : JSON.stringify(value)))
  const signed = `${part(header)}.${part(payload)}`
  return `${signed}.${base64url(key.sign(utf8(signed)))}`
}

const header = { typ: 'JWT', alg: 'ES256K' }

test('a token is signed and verified on both curves', () => {
  for (const key of [k256, p256]) {
    const token = signServiceJwt(claims, key)
    const jwt = readServiceJwt(token)
    assert.deepEqual(jwt.payload, claims)
    assert.deepEqual(jwt.header, { typ: 'JWT', alg: key === k256 ? 'ES256K' : 'ES256' })
    const issuer = { iss, keyId: '#atproto', jti: claims.jti, exp: claims.exp }
    assert.deepEqual(checkServiceJwt(jwt, expect, key.publicKey), issuer)
    refuses('BadJwtSignature', () => checkServiceSignature(jwt, (key === k256 ? p256 : k256).publicKey))
  }
})

test('a token is written as the reference writes it', () => {
  const [first, second, third] = signServiceJwt(claims, k256).split('.')
  assert.equal(fromUtf8(unbase64url(first!)), '{"typ":"JWT","alg":"ES256K"}')
  assert.equal(
    fromUtf8(unbase64url(second!)),
    `{"iat":1800000000,"iss":"${iss}","aud":"${aud}","exp":1800000060,"lxm":"${lxm}","jti":"0123456789abcdef"}`,
  )
  assert.equal(unbase64url(third!).length, 64)
  const { lxm: _, ...bare } = claims
  assert.equal('lxm' in readServiceJwt(signServiceJwt(bare, k256)).payload, false)
})

test('what is no such token is BadJwt', () => {
  const good = signServiceJwt(claims, k256)
  const bad = ['', 'a.b.c', `${good}.x`, good.slice(0, good.lastIndexOf('.')), `${good}=`, `${good} `, `Bearer ${good}`]
  bad.push(forge('[', claims), forge('null', claims), forge(header, 'null'), forge(header, '[]'), forge({}, claims))
  bad.push(
    forge({ ...header, alg: 1 }, claims),
    forge({ ...header, typ: 1 }, claims),
    forge({ ...header, kid: 1 }, claims),
  )
  bad.push(forge({ ...header, crit: ['exp'] }, claims), forge(header, '{"exp":1e999,"iss":"x","aud":"y"}'))
  for (const member of ['iss', 'aud', 'exp']) {
    bad.push(forge(header, { ...claims, [member]: undefined }), forge(header, { ...claims, [member]: {} }))
  }
  for (const member of ['iat', 'lxm', 'jti']) bad.push(forge(header, { ...claims, [member]: {} }))
  bad.push(forge(header, { ...claims, exp: String(claims.exp) }), forge(header, { ...claims, more: 'x'.repeat(9000) }))
  for (const token of bad) refuses('BadJwt', () => readServiceJwt(token))
})

test('tokens of other kinds do not stand in for it', () => {
  for (const typ of ['at+jwt', 'refresh+jwt', 'dpop+jwt', 'AT+JWT', 'application/at+jwt']) {
    refuses('BadJwtType', () => readServiceJwt(forge({ ...header, typ }, claims)))
  }
  for (const typ of [undefined, 'JWT', 'jwt']) {
    checkServiceJwt(readServiceJwt(forge({ ...header, typ }, claims)), expect, k256.publicKey)
  }
})

test('claims have to be exactly the ones expected', () => {
  const check = (change: object, demand: object = {}) => {
    return checkServiceClaims(readServiceJwt(forge(header, { ...claims, ...change })), { ...expect, ...demand })
  }
  check({}, { now: claims.exp * 1000 })
  refuses('JwtExpired', () => check({}, { now: claims.exp * 1000 + 1 }))
  check({ aud: `${aud}#atproto_pds` })
  refuses('BadJwtAudience', () => check({ aud: 'did:web:other.example.com' }))
  refuses('BadJwtAudience', () => check({ aud: `${aud}#other` }))
  refuses('BadJwtAudience', () => check({}, { aud: [`${aud}#atproto_pds`] }))
  refuses('BadJwtAudience', () => check({}, { aud: [] }))
  refuses('BadJwtLexiconMethod', () => check({ lxm: 'com.atproto.repo.createRecord' }))
  refuses('BadJwtLexiconMethod', () => check({ lxm: undefined }))
  refuses('BadJwtLexiconMethod', () => check({ lxm: lxm.toLowerCase() }))
  check({ lxm: undefined }, { lxm: null })
  for (const bad of ['', 'alice.com', 'did:plc:', `${iss}#`, `${iss}#atproto`, `${iss}#x#atproto_labeler`]) {
    refuses('BadJwtIss', () => check({ iss: bad }))
  }
  assert.equal(check({ jti: undefined }).jti, null)
})

test('only expected keys may sign', () => {
  const check = (kid: string | undefined, change: object = {}, keyIds?: string[]) => {
    const jwt = readServiceJwt(forge({ ...header, kid }, { ...claims, ...change }))
    return checkServiceClaims(jwt, { ...expect, ...(keyIds && { keyIds }) }).keyId
  }
  assert.equal(check('#atproto'), '#atproto')
  const labeler = { iss: `${iss}#atproto_labeler` }
  for (const kid of ['#atproto_label', 'atproto', `${iss}#atproto`, '']) refuses('BadJwtSignature', () => check(kid))
  refuses('BadJwtSignature', () => check(undefined, labeler))
  assert.equal(check('#atproto_label', {}, ['#atproto', '#atproto_label']), '#atproto_label')
  assert.equal(check(undefined, labeler, ['#atproto', '#atproto_label']), '#atproto_label')
})

test('the algorithm is that of the key, and the signature raw and low-S', () => {
  const verify = (token: string) => checkServiceSignature(readServiceJwt(token), k256.publicKey)
  verify(forge(header, claims))
  for (const alg of ['none', 'HS256', 'ES256', 'es256k', '']) {
    refuses('BadJwtSignature', () => verify(forge({ ...header, alg }, claims)))
  }
  const good = forge(header, claims)
  const signed = good.slice(0, good.lastIndexOf('.'))
  const sig = unbase64url(good.slice(signed.length + 1))
  const order = 0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141n
  const highS = sig.slice()
  highS.set(unhex((order - BigInt(`0x${hex(sig.slice(32))}`)).toString(16).padStart(64, '0')), 32)
  for (const other of [highS, new Uint8Array(64), new Uint8Array(0), sig.slice(1)]) {
    refuses('BadJwtSignature', () => verify(`${signed}.${base64url(other)}`))
  }
})

test('any text is a token or refused', () => {
  const good = signServiceJwt(claims, k256)
  const mutated = fc
    .tuple(
      fc.nat(good.length),
      fc.uint16Array({ maxLength: 3 }).map(codes => String.fromCharCode(...codes)),
    )
    .map(([at, text]) => good.slice(0, at) + text + good.slice(at + text.length))
  const forged = fc
    .tuple(fc.jsonValue({ maxDepth: 2 }), fc.jsonValue({ maxDepth: 2 }))
    .map(([h, p]) => forge(JSON.stringify(h), JSON.stringify(p)))
  fc.assert(
    fc.property(
      fc.oneof(
        mutated,
        forged,
        fc.uint16Array({ maxLength: 20 }).map(codes => String.fromCharCode(...codes)),
      ),
      token => {
        try {
          checkServiceJwt(readServiceJwt(token), expect, k256.publicKey)
          assert.equal(token, good)
        } catch (error) {
          assert.ok(error instanceof Refused && error.status === 401, String(error))
        }
      },
    ),
    { numRuns: 150 },
  )
})
