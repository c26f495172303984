import assert from 'node:assert/strict'
import { test } from 'node:test'
import { checkHandle, isOwnHandle } from './handles.ts'

const rules = { domains: ['.pds.test', '.other.example.com'] }
const refused = (error: string, message: string) => (thrown: { error?: string; message: string }) =>
  thrown.error === error && thrown.message === message

test("handles below the server's domains follow its rules", () => {
  assert.equal(checkHandle('Alice.PDS.test', rules), 'alice.pds.test')
  assert.equal(checkHandle('bob-2.other.example.com', rules), 'bob-2.other.example.com')
  assert.throws(() => checkHandle('al.pds.test', rules), refused('InvalidHandle', 'Handle too short'))
  assert.throws(() => checkHandle(`${'a'.repeat(19)}.pds.test`, rules), refused('InvalidHandle', 'Handle too long'))
  assert.throws(() => checkHandle('a.b.pds.test', rules), refused('InvalidHandle', 'Invalid characters in handle'))
  assert.throws(() => checkHandle('admin.pds.test', rules), refused('HandleNotAvailable', 'Reserved handle'))
})

test('slurs stand in no handle, but where the operator says so', () => {
  const refusal = refused('InvalidHandle', 'Inappropriate language in handle')
  for (const handle of [
    'faggot.pds.test',
    'a-f4gg0t.pds.test',
    'ch1nk.example.com',
    'ni-gg-er.pds.test',
    'xnigger1.pds.test',
  ]) {
    assert.throws(() => checkHandle(handle, rules), refusal, handle)
  }
  assert.equal(checkHandle('kike.example.com', rules, { anyValid: true }), 'kike.example.com')
  for (const handle of ['raccoon.pds.test', 'cooney.pds.test', 'fagan.pds.test', 'nigel.pds.test', 'niger.pds.test'])
    assert.equal(checkHandle(handle, rules), handle)
})

test('names that stand for the service or for famous people are reserved, unless the operator gives them', () => {
  for (const front of ['www', 'bsky', 'xrpc', 'support', 'nasa', 'well-known'])
    assert.throws(
      () => checkHandle(`${front}.pds.test`, rules),
      refused('HandleNotAvailable', 'Reserved handle'),
      front,
    )
  assert.equal(checkHandle('support.pds.test', rules, { anyValid: true }), 'support.pds.test')
  assert.equal(checkHandle('support.example.com', rules), 'support.example.com')
})

test('foreign handles only have to be possible', () => {
  assert.equal(checkHandle('al.example.com', rules), 'al.example.com')
  assert.equal(checkHandle('jay.bsky.team', rules), 'jay.bsky.team')
  const disallowed = refused('InvalidHandle', 'Handle TLD is invalid or disallowed')
  for (const tld of ['alt', 'arpa', 'example', 'internal', 'invalid', 'local', 'localhost', 'onion'])
    assert.throws(() => checkHandle(`alice.${tld}`, rules), disallowed)
  assert.equal(checkHandle('alice.test', rules), 'alice.test')
  const malformed = refused('InvalidHandle', 'Input/handle must be a valid handle')
  for (const text of ['alice', 'al_ice.example.com', '-a.example.com', 'a..b', '', 'alice@example.com', 'a.b.c.']) {
    assert.throws(() => checkHandle(text, rules), malformed, text)
  }
})

test('a domain is a suffix on a label, not of a word', () => {
  assert.equal(isOwnHandle('alice.pds.test', rules), true)
  assert.equal(isOwnHandle('alicepds.test', rules), false)
  assert.equal(isOwnHandle('pds.test', rules), false)
})
