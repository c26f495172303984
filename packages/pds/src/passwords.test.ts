import assert from 'node:assert/strict'
import { scryptSync } from 'node:crypto'
import { test } from 'node:test'
import { hashPassword, isOutdatedHash, passwordMatches } from './passwords.ts'

const salt = new Uint8Array(16).fill(7)

test('a password matches its own hash and nothing else', async () => {
  const kept = await hashPassword('correct horse', salt)
  assert.match(kept, /^\$argon2id\$v=19\$m=19456,t=2,p=1\$[A-Za-z0-9+/]{22}\$[A-Za-z0-9+/]{43}$/)
  assert.equal(await passwordMatches('correct horse', kept), true)
  assert.equal(await passwordMatches('correct horsf', kept), false)
  assert.equal(await passwordMatches('', kept), false)
  assert.equal(isOutdatedHash(kept), false)
})

test('the same password under another salt has another hash', async () => {
  assert.notEqual(await hashPassword('x', salt), await hashPassword('x', new Uint8Array(16)))
  await assert.rejects(hashPassword('x', new Uint8Array(8)), /16 bytes/)
})

test('passwords are text of any script', async () => {
  const kept = await hashPassword('пароль🔑', salt)
  assert.equal(await passwordMatches('пароль🔑', kept), true)
  assert.equal(await passwordMatches('пароль', kept), false)
})

test("the reference's scrypt hashes are understood and outdated", async () => {
  const hexSalt = '00112233445566778899aabbccddeeff'
  const kept = `${hexSalt}:${scryptSync('old password', hexSalt, 64).toString('hex')}`
  assert.equal(await passwordMatches('old password', kept), true)
  assert.equal(await passwordMatches('new password', kept), false)
  assert.equal(isOutdatedHash(kept), true)
})

test('argon2id hashes of other strength are understood and outdated; those of absurd cost match nothing', async () => {
  const kept = await hashPassword('x', salt)
  const weaker = kept.replace('t=2', 't=1')
  assert.equal(await passwordMatches('x', weaker), false)
  assert.equal(isOutdatedHash(weaker), true)
  assert.equal(await passwordMatches('x', kept.replace('m=19456', 'm=9999999')), false)
  for (const text of ['', 'x', '$argon2id$', 'plain:text', kept.slice(1)]) {
    assert.equal(await passwordMatches('x', text), false, text)
  }
})
