import assert from 'node:assert/strict'
import { existsSync, readFileSync } from 'node:fs'
import { test } from 'node:test'
import { unbase58, unbase64, unhex } from '@millisky/core/bytes'
import { type Curve, PublicKey, SigningKey } from '@millisky/core/crypto'

const FOLDER = new URL('../../../shared/fixtures/atproto-interop/crypto/', import.meta.url)
const skip = existsSync(FOLDER) ? false : 'the interop vectors are not beside this checkout'

function vectors<T>(name: string): T[] {
  return JSON.parse(readFileSync(new URL(name, FOLDER), 'utf8')) as T[]
}

interface SignatureVector {
  comment: string
  messageBase64: string
  algorithm: 'ES256' | 'ES256K'
  publicKeyDid: string
  publicKeyMultibase: string
  signatureBase64: string
  validSignature: boolean
}

test('signatures: every vector', { skip }, () => {
  const all = vectors<SignatureVector>('signature-fixtures.json')
  assert.ok(all.length > 0)
  for (const vector of all) {
    const key = PublicKey.parseDidKey(vector.publicKeyDid)
    const curve: Curve = vector.algorithm === 'ES256' ? 'p256' : 'k256'
    assert.equal(key.curve, curve)
    assert.equal(key.jwtAlg, vector.algorithm)
    assert.equal(PublicKey.parseLegacyMultibase(curve, vector.publicKeyMultibase).didKey, key.didKey)
    const valid = key.verify(unbase64(vector.messageBase64), unbase64(vector.signatureBase64))
    assert.equal(valid, vector.validSignature, vector.comment)
  }
})

test('did:key: every vector of both curves', { skip }, () => {
  const k256 = vectors<{ privateKeyBytesHex: string; publicDidKey: string }>('w3c_didkey_K256.json')
  const p256 = vectors<{ privateKeyBytesBase58: string; publicDidKey: string }>('w3c_didkey_P256.json')
  assert.ok(k256.length > 0 && p256.length > 0)
  for (const vector of k256) {
    assert.equal(SigningKey.fromPrivate('k256', unhex(vector.privateKeyBytesHex)).didKey, vector.publicDidKey)
  }
  for (const vector of p256) {
    assert.equal(SigningKey.fromPrivate('p256', unbase58(vector.privateKeyBytesBase58)).didKey, vector.publicDidKey)
  }
})
