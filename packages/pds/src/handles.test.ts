import assert from 'node:assert/strict'
import { test } from 'node:test'
import { checkHandle, isOwnHandle } from './handles.ts'

const rules = { domains: ['.pds.test', '.other.example.com'], development: true }
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

test('foreign handles only have to be possible', () => {
  assert.equal(checkHandle('al.example.com', rules), 'al.example.com')
  assert.equal(checkHandle('jay.bsky.team', rules), 'jay.bsky.team')
  const disallowed = refused('InvalidHandle', 'Handle TLD is invalid or disallowed')
  assert.throws(() => checkHandle('alice.local', rules), disallowed)
  assert.throws(() => checkHandle('alice.test', { ...rules, development: false }), disallowed)
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
