import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { base58, concat } from './bytes.ts'
import { SigningKey } from './crypto.ts'
import {
  buildDidDocument,
  type DidDocument,
  didMethod,
  didWebUrl,
  originOf,
  parseDidDocument,
  parseServiceRef,
  serviceEndpoint,
  verificationKey,
} from './did.ts'
import { Malformed } from './errors.ts'
import { asDid } from './syntax.ts'

const did = asDid('did:plc:44ybard66vv44zksje25o7dz')
const k256 = SigningKey.fromPrivate('k256', new Uint8Array(32).fill(1)).publicKey
const p256 = SigningKey.fromPrivate('p256', new Uint8Array(32).fill(2)).publicKey
const content = {
  alsoKnownAs: ['at://alice.example.com'],
  verificationMethods: { atproto: k256.didKey },
  services: { atproto_pds: { type: 'AtprotoPersonalDataServer', endpoint: 'https://pds.example.com' } },
}
const written = buildDidDocument(did, content)

function read(change: Record<string, unknown>) {
  return parseDidDocument({ ...written, ...change }, did)
}

test('a written document reads back', () => {
  const identity = parseDidDocument(JSON.parse(JSON.stringify(written)), did)
  assert.deepEqual(
    { ...identity, doc: null },
    { did, handle: 'alice.example.com', signingKey: k256.didKey, pds: 'https://pds.example.com', doc: null },
  )
  assert.equal(identity.doc.id, did)
})

test('documents are written as the directory writes them', () => {
  assert.deepEqual(
    buildDidDocument(did, { ...content, verificationMethods: { atproto: k256.didKey, x: p256.didKey } }),
    {
      '@context': [
        'https://www.w3.org/ns/did/v1',
        'https://w3id.org/security/multikey/v1',
        'https://w3id.org/security/suites/secp256k1-2019/v1',
        'https://w3id.org/security/suites/ecdsa-2019/v1',
      ],
      id: did,
      alsoKnownAs: ['at://alice.example.com'],
      verificationMethod: [
        { id: `${did}#atproto`, type: 'Multikey', controller: did, publicKeyMultibase: k256.multibase },
        { id: `${did}#x`, type: 'Multikey', controller: did, publicKeyMultibase: p256.multibase },
      ],
      service: [{ id: '#atproto_pds', type: 'AtprotoPersonalDataServer', serviceEndpoint: 'https://pds.example.com' }],
    },
  )
})

test('the handle is the first of valid syntax, lowercased', () => {
  const cases: [unknown, string | null][] = [
    [['https://x.com', 'at://did:plc:x', 'at://a.com/', 'at://Alice.Example.com', 'at://b.com'], 'alice.example.com'],
    [['at://no_handle.com', 5, null, 'at://b.com'], 'b.com'],
    [[], null],
    ['at://a.com', null],
    [undefined, null],
  ]
  for (const [alsoKnownAs, handle] of cases) assert.equal(read({ alsoKnownAs }).handle, handle)
})

test('the signing key is the first valid one under the id, controlled by the DID', () => {
  const method = { id: '#atproto', type: 'Multikey', controller: did, publicKeyMultibase: k256.multibase }
  const raw = (key: typeof k256) => `z${base58(key.bytes)}`
  const uncompressed = concat([Uint8Array.of(4), new Uint8Array(64)])
  const cases: [unknown, string | null][] = [
    [[method], k256.didKey],
    [[{ ...method, id: `${did}#atproto` }], k256.didKey],
    [[{ ...method, id: 'did:plc:other#atproto' }], null],
    [[{ ...method, id: 'atproto' }], null],
    [[{ ...method, id: '#atproto_label' }], null],
    [[{ ...method, controller: 'did:plc:other' }], null],
    [[{ ...method, controller: undefined }], null],
    [[{ ...method, type: 'JsonWebKey' }], null],
    [[{ ...method, publicKeyMultibase: 'zzz' }], null],
    [[{ ...method, publicKeyMultibase: 7 }], null],
    [[null, 3, {}, { ...method, controller: 'x' }, method], k256.didKey],
    [[{ ...method, type: 'EcdsaSecp256k1VerificationKey2019', publicKeyMultibase: raw(k256) }], k256.didKey],
    [[{ ...method, type: 'EcdsaSecp256r1VerificationKey2019', publicKeyMultibase: raw(p256) }], p256.didKey],
    [[{ ...method, type: 'EcdsaSecp256k1VerificationKey2019', publicKeyMultibase: `z${base58(uncompressed)}` }], null],
    [{ 0: method }, null],
  ]
  for (const [verificationMethod, key] of cases) assert.equal(read({ verificationMethod }).signingKey, key)
})

test('a legacy key is the uncompressed point without multicodec', () => {
  // The generator of secp256k1, whose private key is 1.
  const one = SigningKey.fromPrivate(
    'k256',
    Uint8Array.from({ length: 32 }, (_, i) => (i === 31 ? 1 : 0)),
  )
  const y = '483ada7726a3c4655da4fbfc0e1108a8fd17b448a68554199c47d08ffb10d4b8'
  const point = concat([Uint8Array.of(4), one.publicKey.bytes.subarray(1), Buffer.from(y, 'hex')])
  const verificationMethod = [
    {
      id: '#atproto',
      type: 'EcdsaSecp256k1VerificationKey2019',
      controller: did,
      publicKeyMultibase: `z${base58(point)}`,
    },
  ]
  assert.equal(read({ verificationMethod }).signingKey, one.didKey)
})

test('the PDS is an origin under the right id and type', () => {
  const pds = { id: '#atproto_pds', type: 'AtprotoPersonalDataServer', serviceEndpoint: 'https://pds.example.com' }
  const other = { ...pds, type: 'Other', serviceEndpoint: 'https://other.example.com' }
  const cases: [unknown, string | null][] = [
    [[pds], 'https://pds.example.com'],
    [[{ ...pds, id: `${did}#atproto_pds` }], 'https://pds.example.com'],
    [[other], null],
    [[other, pds], 'https://pds.example.com'],
    [[{ ...pds, serviceEndpoint: 'https://first.example.com/path' }, pds], null],
    [[{ ...pds, id: '#pds' }], null],
    [[{ ...pds, serviceEndpoint: { url: 'https://x.com' } }], null],
  ]
  for (const [service, origin] of cases) assert.equal(read({ service }).pds, origin)
})

test('an origin has a scheme, a host, perhaps a port, and nothing more', () => {
  const good: [string, string][] = [
    ['https://pds.example.com', 'https://pds.example.com'],
    ['https://PDS.example.com/', 'https://pds.example.com'],
    ['https://pds.example.com:443', 'https://pds.example.com'],
    ['https://pds.example.com:8443', 'https://pds.example.com:8443'],
    ['http://localhost:2583', 'http://localhost:2583'],
    ['http://[::1]:2583', 'http://[::1]:2583'],
  ]
  for (const [text, origin] of good) assert.equal(originOf(text), origin)
  const bad = ['', 'pds.example.com', 'ftp://a.com', 'https://', 'https://a.com/x', 'https://a.com//', 'https://a.com?']
  bad.push(
    'https://a.com#',
    'https://a.com/?',
    'https://u@a.com',
    'https://@a.com',
    'https://a.com\n',
    ' https://a.com',
  )
  bad.push(
    'https://a.\tcom',
    'https://a.com\\',
    'https://a.com:99999',
    'https:a.com',
    'HTTPS://a.com',
    'https://a.com/.',
  )
  for (const text of bad) assert.equal(originOf(text), null, JSON.stringify(text))
  assert.equal(originOf(null), null)
})

test('any service can be named, with or without the hash', () => {
  const service = [{ id: '#bsky_appview', type: 'BskyAppView', serviceEndpoint: 'https://api.example.com/base' }]
  const doc = read({ service }).doc
  assert.equal(serviceEndpoint(doc, did, 'bsky_appview'), 'https://api.example.com/base')
  assert.equal(serviceEndpoint(doc, did, '#bsky_appview', 'BskyAppView'), 'https://api.example.com/base')
  assert.equal(serviceEndpoint(doc, did, '#bsky_appview', 'Other'), null)
  assert.equal(serviceEndpoint(doc, did, '#constructor'), null)
  assert.equal(verificationKey(doc, did, 'atproto')?.didKey, k256.didKey)
})

test('a document of another DID, or none, is Malformed', () => {
  for (const doc of [null, undefined, 7, 'x', [], {}, { id: 'did:plc:other' }, { ...written, id: `${did}#` }]) {
    assert.throws(() => parseDidDocument(doc, did), Malformed)
  }
})

test('any JSON is an identity or Malformed', () => {
  const entry = fc.record(
    {
      id: fc.constantFrom('#atproto', '#atproto_pds', 7),
      type: fc.constantFrom('Multikey', 'AtprotoPersonalDataServer', null),
      controller: fc.constantFrom(did, null),
      publicKeyMultibase: fc.oneof(fc.string(), fc.jsonValue({ maxDepth: 2 })),
      serviceEndpoint: fc.oneof(
        fc.constant('https://a.example.com:8443'),
        fc.string().map(s => `https://${s}`),
        fc.jsonValue({ maxDepth: 2 }),
      ),
    },
    { requiredKeys: [] },
  )
  const list = fc.oneof(fc.array(fc.oneof(entry, fc.jsonValue({ maxDepth: 2 }))), fc.jsonValue({ maxDepth: 2 }))
  const doc = fc.record({ id: fc.constant(did), alsoKnownAs: list, verificationMethod: list, service: list })
  fc.assert(
    fc.property(fc.oneof(doc, fc.jsonValue({ maxDepth: 2 })), value => {
      try {
        const identity = parseDidDocument(value, did)
        assert.equal(originOf(identity.pds), identity.pds)
      } catch (error) {
        assert.ok(error instanceof Malformed, String(error))
      }
    }),
    { numRuns: 150 },
  )
})

test('did:web names a host, and localhost in development only', () => {
  const url = (text: string, development?: boolean) => didWebUrl(asDid(text), development ? { development } : {})
  assert.equal(url('did:web:example.com'), 'https://example.com/.well-known/did.json')
  assert.equal(url('did:web:localhost%3A2583', true), 'http://localhost:2583/.well-known/did.json')
  assert.equal(url('did:web:localhost', true), 'http://localhost/.well-known/did.json')
  assert.equal(url('did:web:pds.test', true), 'https://pds.test/.well-known/did.json')
  const never = [
    'example.com:path',
    'example.com%3A443',
    '127.0.0.1',
    'host',
    'a.local',
    'x.onion',
    'localhost%3A99999',
  ]
  never.push('localhost%3A0', 'localhost%2Fx', 'a.com%2Fx', 'localhost:2583')
  for (const host of never) {
    assert.throws(() => url(`did:web:${host}`), Malformed, host)
    assert.throws(() => url(`did:web:${host}`, true), Malformed, host)
  }
  for (const host of ['localhost', 'localhost%3A2583', 'pds.test']) {
    assert.throws(() => url(`did:web:${host}`), Malformed, host)
  }
  assert.throws(() => didWebUrl(did), Malformed)
  assert.equal(didMethod(did), 'plc')
  assert.equal(didMethod(asDid('did:web:a.b')), 'web')
  assert.equal(didMethod(asDid('did:key:zQ3sh')), null)
})

test('service references have one hash, a DID before and an id behind it', () => {
  assert.deepEqual(parseServiceRef(`${did}#bsky_appview`), { did, id: 'bsky_appview' })
  for (const bad of ['', '#', did, `${did}#`, '#x', `${did}#a#b`, `${did}#a b`, 'alice.com#x', `${did}#a\n`]) {
    assert.throws(() => parseServiceRef(bad), Malformed)
  }
  const asDocument: DidDocument = { id: did }
  assert.equal(serviceEndpoint(asDocument, did, 'x'), null)
})
