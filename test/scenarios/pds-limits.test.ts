// How often a client of a PDS may ask for what, and how it is told.
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { signUp, startNetworkedPds } from '@millisky/pds/testing-network'
import { ask, failure, post, type Told } from './pds-asking.ts'

const BYPASS = { 'x-ratelimit-bypass': 'let me in' }
const pds = await startNetworkedPds(
  { after },
  { PDS_RATE_LIMITS_ENABLED: 'true', PDS_RATE_LIMIT_BYPASS_KEY: 'let me in' },
)
const alice = await signUp(pds, 'alice')
const server = (name: string) => `com.atproto.server.${name}`
const rename = () => post(pds.url, 'com.atproto.identity.updateHandle', { handle: 'alice.test' }, alice.auth)
const login = (identifier: string, headers = {}) =>
  post(pds.url, server('createSession'), { identifier, password: 'x' }, headers)
const bare = (name: string) => ask(pds.url, server(name), { method: 'POST', headers: alice.auth })
const policyOf = ({ headers }: Told) => headers['ratelimit-policy']
const leftOf = ({ headers }: Told) => Number(headers['ratelimit-remaining'])

/** What the headers say of a call that was not refused. */
function assertTold(told: Told, policy: string, about: string): void {
  assert.notEqual(told.status, 429, about)
  assert.equal(policyOf(told), policy, about)
  const [points, seconds] = policy.split(';w=').map(Number) as [number, number]
  assert.equal(told.headers['ratelimit-limit'], String(points), about)
  assert.ok(leftOf(told) < points && leftOf(told) >= 0, about)
  const reset = Number(told.headers['ratelimit-reset']) - Date.now() / 1000
  assert.ok(reset > -2 && reset < seconds + 2, `${about}: in seconds since 1970`)
  assert.equal(told.headers['retry-after'], undefined, about)
}

test('B10 each limited method says its policy', async () => {
  const upload = () =>
    ask(pds.url, 'com.atproto.repo.uploadBlob', {
      method: 'POST',
      body: 'hello',
      headers: { ...alice.auth, 'content-type': 'text/plain' },
    })
  const signUpOf = { handle: 'bob.test', email: 'bob@mailinator.com', password: 'x' }
  const table: [what: string, policy: string, call: () => Promise<Told>][] = [
    ['describeServer', '3000;w=300', () => ask(pds.url, server('describeServer'))],
    ['unknown method', '3000;w=300', () => ask(pds.url, 'com.example.unheard')],
    ['refused caller', '3000;w=300', () => ask(pds.url, server('getSession'))],
    ['getRepo', '6000;w=300', () => ask(pds.url, `com.atproto.sync.getRepo?did=${alice.did}`)],
    ['createSession', '30;w=300', () => login('table.test')],
    ['createAccount', '100;w=300', () => post(pds.url, server('createAccount'), signUpOf)],
    [
      'deleteAccount',
      '50;w=300',
      () => post(pds.url, server('deleteAccount'), { did: alice.did, password: 'x', token: 'x' }),
    ],
    ['resetPassword', '50;w=300', () => post(pds.url, server('resetPassword'), { token: 'x', password: 'x' })],
    [
      'requestPasswordReset',
      '15;w=3600',
      () => post(pds.url, server('requestPasswordReset'), { email: 'x@example.com' }),
    ],
    ['requestAccountDelete', '5;w=3600', () => bare('requestAccountDelete')],
    ['requestEmailConfirmation', '5;w=3600', () => bare('requestEmailConfirmation')],
    ['requestEmailUpdate', '5;w=3600', () => bare('requestEmailUpdate')],
    ['updateHandle', '10;w=300', rename],
    ['uploadBlob', '1000;w=86400', upload],
  ]
  for (const [what, policy, call] of table) {
    const first = await call()
    assertTold(first, policy, what)
    const second = await call()
    assertTold(second, policy, what)
    assert.equal(leftOf(second), leftOf(first) - 1, what)
  }
  const health = await ask(pds.url, '/xrpc/_health')
  assert.equal(policyOf(health), undefined, 'monitors are not counted')
})

test('B10 writes cost points: 3 for a record created, 2 for one put, 1 for one deleted', async () => {
  const collection = 'com.example.note'
  const note = { repo: alice.did, collection }
  const $type = 'com.atproto.repo.applyWrites#create'
  const writes = Array.from({ length: 200 }, (_, i) => ({ $type, collection, value: { i } }))
  const write = (method: string, body: object) => post(pds.url, `com.atproto.repo.${method}`, body, alice.auth)
  // Until it is this limit that is nearest to its end.
  for (let i = 0; i < 4; i++) await write('applyWrites', { repo: alice.did, writes })
  const left = async (method: string, body: object) => {
    const told = await write(method, body)
    assertTold(told, '5000;w=3600', `${method} ${told.text}`)
    return leftOf(told)
  }
  const created = await left('createRecord', { ...note, rkey: 'a', record: { a: 1 } })
  const put = await left('putRecord', { ...note, rkey: 'a', record: { a: 2 } })
  const deleted = await left('deleteRecord', { ...note, rkey: 'a' })
  const applied = await left('applyWrites', { repo: alice.did, writes: writes.slice(0, 2) })
  assert.deepEqual([created, put, deleted, applied], [5_000 - 2_403, created - 2, put - 1, deleted - 6])
})

test('B10 who asks too often is told when to come again', async () => {
  const refused = (told: Told, policy: string) => {
    assert.deepEqual(failure(told), [429, 'RateLimitExceeded', 'Rate Limit Exceeded'])
    assert.deepEqual([policyOf(told), leftOf(told)], [policy, 0])
    const seconds = Number(told.headers['retry-after'])
    assert.ok(Number.isInteger(seconds) && seconds > 0 && seconds <= Number(policy.split('=')[1]), `${seconds} s`)
  }
  const logins = await Promise.all(Array.from({ length: 30 }, (_, i) => login(i % 2 ? 'often.test' : 'OFTEN.test')))
  assert.ok(logins.every(({ status }) => status === 401))
  refused(await login('often.test'), '30;w=300')
  assert.equal((await login('seldom.test')).status, 401, 'names are counted apart')
  assert.equal((await login('often.test', BYPASS)).status, 401)
  assert.equal(policyOf(await login('often.test', BYPASS)), undefined)
  refused(await login('often.test', { 'x-ratelimit-bypass': 'let me' }), '30;w=300')

  const repeat = async (times: number, call: () => Promise<Told>) => {
    let told = await call()
    for (let i = 0; told.status !== 429 && i < times; i++) told = await call()
    return told
  }
  refused(await repeat(5, () => bare('requestEmailConfirmation')), '5;w=3600')
  refused(await repeat(5, () => bare('requestEmailUpdate')), '5;w=3600')
  refused(await repeat(5, () => bare('requestAccountDelete')), '5;w=3600')
  refused(await repeat(10, rename), '10;w=300')
  const forget = () => post(pds.url, server('requestPasswordReset'), { email: 'x@example.com' })
  refused(await repeat(15, forget), '15;w=3600')
})
