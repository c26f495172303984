// How requests may be written, and what callers say of themselves: what every method has in common.
import { gzipSync } from 'node:zlib'
import { ADMIN, type Ask, NONE, type Side, type Someone } from './reference-side.ts'

const LOGIN = 'com.atproto.server.createSession'
const CODES = 'com.atproto.admin.getInviteCodes'

export async function envelopes(side: Side, ann: Someone): Promise<void> {
  await bodies(side, ann)
  await parameters(side)
  await credentials(side, ann)
}

async function bodies(side: Side, { handle, password }: Someone): Promise<void> {
  const text = JSON.stringify({ identifier: handle, password })
  const bytes = new TextEncoder().encode(text)
  const say = (what: string, body: unknown, headers: Record<string, string>) =>
    side.say(`written: ${what}`, LOGIN, { verb: 'POST', body, headers })
  const json = 'application/json'
  for (const charset of ['utf-8', 'UTF-8', 'latin1', 'nonsense'])
    await say(`charset ${charset}`, text, { 'content-type': `${json}; charset=${charset}` })
  await say('with a mark of byte order', `\ufeff${text}`, { 'content-type': json })
  await say('with space around', `\n ${text} \n`, { 'content-type': json })
  await say('nothing but space', '  ', { 'content-type': json })
  await say('the same key twice', `{"identifier":"a",${text.slice(1)}`, { 'content-type': json })
  await say('with a fraction', `{"more":1.5,${text.slice(1)}`, { 'content-type': json })
  for (const type of [
    'text/json',
    'application/ld+json',
    'application/octet-stream',
    'multipart/form-data; boundary=x',
    '*/*',
  ])
    await say(`as ${type}`, bytes, { 'content-type': type })
  for (const encoding of ['identity', 'zip', 'compress'])
    await say(`encoded as ${encoding}`, text, { 'content-type': json, 'content-encoding': encoding })
  await say('compressed', gzipSync(text), { 'content-type': json, 'content-encoding': 'gzip' })
  const huge = JSON.stringify({ identifier: handle, password, pad: 'a'.repeat(2_000_000) })
  await say('compressed and huge', gzipSync(huge), { 'content-type': json, 'content-encoding': 'gzip' })
  for (const size of [150 * 1024, 150 * 1024 + 1]) {
    const padded = `${text.slice(0, -1)},"pad":"${'a'.repeat(size - text.length - 9)}"}`
    await say(`of ${padded.length} bytes`, padded, { 'content-type': json })
  }
}

async function parameters(side: Side): Promise<void> {
  const limits = ['', '1', '0', '500', '501', '-1', 'abc', '1.0', '01', '1e2', '%201', '99999999999999999999']
  const queries = [...limits.map(limit => `limit=${limit}`), 'limit=1&limit=2', 'limit', '&&', '=1', '%', 'LIMIT=0']
  const sorts = ['sort=usage', 'sort=recent', 'sort=', 'sort=nonsense', 'cursor=nonsense', 'cursor=1::x']
  for (const query of [...queries, ...sorts])
    await side.say(`asked: ?${query}`, `/xrpc/${CODES}?${query}`, { auth: ADMIN })
}

async function credentials(side: Side, ann: Someone): Promise<void> {
  const [, password] = Buffer.from(ADMIN.slice('Basic '.length), 'base64').toString().split(':')
  const basic = (text: string) => `Basic ${Buffer.from(text).toString('base64')}`
  const admins: Record<string, string> = {
    'in lower case': ADMIN.replace('Basic', 'basic'),
    'a wrong name': basic(`root:${password}`),
    'a name in capitals': basic(`Admin:${password}`),
    'no name': basic(`:${password}`),
    'no password': basic('admin:'),
    'no colon': basic('admin'),
    'a password and a space': basic(`admin:${password} `),
    'not encoded': `Basic admin:${password}`,
    nonsense: 'Basic %%%',
  }
  for (const [what, auth] of Object.entries(admins)) await side.say(`admin: by ${what}`, CODES, { auth })
  const session = (what: string, auth: string) => side.say(`bearer: ${what}`, 'com.atproto.server.getSession', { auth })
  const token = ann.accessJwt
  await session('in lower case', `bearer ${token}`)
  await session('two spaces', `Bearer  ${token}`)
  await session('no scheme', token)
  await session('with a space behind', `Bearer ${token} `)
  await session('cut', `Bearer ${token.slice(0, -3)}`)
  await session('one part more', `Bearer ${token}.x`)
  const none = Buffer.from('{"alg":"none","typ":"at+jwt"}').toString('base64url')
  await session('not signed', `Bearer ${none}.${token.split('.')[1]}.`)
  await claims(side, ann.did)
}

/** Tokens as only the server could sign them. */
async function claims(side: Side, sub: string): Promise<void> {
  const scope = 'com.atproto.access'
  const past = Math.floor(Date.now() / 1000) - 60
  const access: Record<string, [Record<string, unknown>, Parameters<Side['token']>[1]?]> = {
    'no subject': [{ scope }],
    'a handle for subject': [{ scope, sub: 'ann.test' }],
    'a list for scope': [{ scope: [scope], sub }],
    'not yet': [{ scope, sub, nbf: past + 3_600 }],
    'an issuer': [{ scope, sub, iss: 'did:web:a.example' }],
    'expired for another server': [
      { scope, sub },
      { exp: -60, aud: 'did:web:other.example' },
    ],
    'expired and bound': [{ scope, sub, cnf: { jkt: 'x' } }, { exp: -60 }],
    'type in capitals': [{ scope, sub }, { typ: 'AT+JWT' }],
    'a plain type': [{ scope, sub }, { typ: 'JWT' }],
  }
  for (const [what, args] of Object.entries(access)) {
    const auth = `Bearer ${await side.token(...args)}`
    await side.say(`claims: ${what}`, 'com.atproto.server.getSession', { auth })
  }
  const refresh: Record<string, Record<string, unknown>> = {
    'unknown id': { jti: 'unknown', sub },
    'no id': { sub },
    'an empty id': { jti: '', sub },
    'a number for id': { jti: 5, sub },
    nobody: { jti: 'unknown', sub: 'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa' },
  }
  for (const [what, more] of Object.entries(refresh)) {
    for (const exp of [3_600, -60]) {
      const token = await side.token({ scope: 'com.atproto.refresh', ...more }, { typ: 'refresh+jwt', exp })
      const ask: Ask = { verb: 'POST', body: NONE, auth: `Bearer ${token}` }
      for (const method of ['refreshSession', 'deleteSession'])
        await side.say(`claims: ${method}, ${what}, ${exp}`, `com.atproto.server.${method}`, ask)
    }
  }
}
