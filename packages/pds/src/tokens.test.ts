import assert from 'node:assert/strict'
import { createHmac } from 'node:crypto'
import { test } from 'node:test'
import type { Did } from '@millisky/core/syntax'
import { SCOPES, Tokens } from './tokens.ts'

const alice = 'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa' as Did
const SECRET = 'a secret of the server'
let now = Date.parse('2026-08-20T12:00:00Z')
const tokens = new Tokens(SECRET, 'did:web:pds.test', () => now)

const part = (value: unknown) => Buffer.from(JSON.stringify(value)).toString('base64url')
/** A token signed with any secret over any header and claims. */
function forge(header: object, claims: object, secret = SECRET): string {
  const signed = `${part(header)}.${part(claims)}`
  return `${signed}.${createHmac('sha256', secret).update(signed).digest('base64url')}`
}
const access = { typ: 'at+jwt', alg: 'HS256' }
const claims = () => ({
  scope: SCOPES.access,
  sub: alice,
  aud: 'did:web:pds.test',
  iat: Math.floor(now / 1000),
  exp: Math.floor(now / 1000) + 60,
})
const refused = (error: string, message?: RegExp) => (thrown: { error?: string; status?: number; message: string }) =>
  thrown.error === error && thrown.status === 400 && (message?.test(thrown.message) ?? true)

test('an access token says who and what for, in the form clients know', async () => {
  const token = await tokens.access(alice, SCOPES.access)
  const [header, payload] = token.split('.', 2).map(text => JSON.parse(Buffer.from(text, 'base64url').toString()))
  assert.deepEqual(header, { typ: 'at+jwt', alg: 'HS256' })
  const iat = Math.floor(now / 1000)
  assert.deepEqual(payload, { scope: SCOPES.access, sub: alice, aud: 'did:web:pds.test', iat, exp: iat + 7200 })
  const { did, scope } = await tokens.readAccess(token)
  assert.deepEqual({ did, scope }, { did: alice, scope: SCOPES.access })
})

test('a refresh token carries the session and lives 90 days', async () => {
  const token = await tokens.refresh({ did: alice, id: 'session-1' })
  assert.deepEqual(await tokens.readRefresh(token), { did: alice, id: 'session-1' })
  now += 91 * 86_400_000
  await assert.rejects(tokens.readRefresh(token), refused('ExpiredToken', /^Token has expired$/))
  assert.deepEqual(await tokens.readRefresh(token, { expired: true }), { did: alice, id: 'session-1' })
})

test('an access token expires after two hours, also when it is remembered', async () => {
  const token = await tokens.access(alice, SCOPES.appPass)
  await tokens.readAccess(token)
  now += 7_199_000
  await tokens.readAccess(token)
  now += 1_000
  await assert.rejects(tokens.readAccess(token), refused('ExpiredToken', /^Token has expired$/))
  await assert.rejects(tokens.readAccess(token), refused('ExpiredToken'))
})

test('one kind of token does not pass for another', async () => {
  const refresh = await tokens.refresh({ did: alice, id: 's' })
  const accessToken = await tokens.access(alice, SCOPES.access)
  await assert.rejects(tokens.readAccess(refresh), refused('InvalidToken'))
  await assert.rejects(tokens.readRefresh(accessToken), refused('InvalidToken'))
  await assert.rejects(
    tokens.readAccess(forge(access, { ...claims(), scope: SCOPES.refresh })),
    refused('InvalidToken', /Bad token scope/),
  )
  await assert.rejects(tokens.readAccess(forge({ typ: 'JWT', alg: 'HS256' }, claims())), refused('InvalidToken'))
})

test('what is not ours, or bound to something else, is refused', async () => {
  await tokens.readAccess(forge(access, claims()))
  const bad: [string, string][] = [
    ['another secret', forge(access, claims(), 'another')],
    ['another audience', forge(access, { ...claims(), aud: 'did:web:elsewhere.test' })],
    ['DPoP-bound', forge(access, { ...claims(), cnf: { jkt: 'x' } })],
    ['for one method', forge(access, { ...claims(), lxm: 'com.atproto.repo.createRecord' })],
    ['not a DID', forge(access, { ...claims(), sub: 'alice' })],
    ['no end', forge(access, { ...claims(), exp: undefined })],
    ['unknown scope', forge(access, { ...claims(), scope: 'everything' })],
    ['no algorithm', `${part({ typ: 'at+jwt', alg: 'none' })}.${part(claims())}.`],
    ['no token', 'x'],
    ['empty', ''],
    ['dots', '..'],
  ]
  for (const [name, token] of bad) await assert.rejects(tokens.readAccess(token), refused('InvalidToken'), name)
})
