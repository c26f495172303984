// Wherever a stranger can have this server ask somebody, it asks nobody whom only this machine can reach.
import assert from 'node:assert/strict'
import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import type { LookupAddress } from 'node:dns'
import { test } from 'node:test'
import { SigningKey } from '@millisky/core/crypto'
import { signServiceJwt } from '@millisky/core/jwt'
import type { asDid } from '@millisky/core/syntax'
import { bearer, startTestPds } from './testing-pds.ts'
import { json, startStandIn } from './testing-services.ts'

/** Names that strangers own, and what their DNS says. */
const NAMES: Record<string, string[]> = {
  'loopback.example': ['127.0.0.1'],
  'loopback6.example': ['::1'],
  'private.example': ['10.0.0.1', '192.168.1.1', '172.16.0.1'],
  'carrier.example': ['100.64.0.1'],
  'metadata.example': ['169.254.169.254'],
  'link.example': ['fe80::1'],
  'unique.example': ['fd00::1'],
  'zero.example': ['0.0.0.0'],
  'unspecified.example': ['::'],
  'mapped.example': ['::ffff:127.0.0.1'],
  'compatible.example': ['::7f00:1'],
  'nat64.example': ['64:ff9b::7f00:1'],
  'sixto4.example': ['2002:7f00:1::1'],
  'teredo.example': ['2001:0:7f00:1::'],
  'broadcast.example': ['255.255.255.255'],
  'multicast.example': ['224.0.0.1', 'ff02::1'],
}
/** Hosts that are no names. The first part of a did:web, or of a URL. */
const LITERALS = [
  '127.0.0.1',
  '127.1',
  '2130706433',
  '0x7f000001',
  '0x7f.1',
  '017700000001',
  '0',
  '10.0.0.1',
  '169.254.169.254',
  'localhost',
  'localhost%3A80',
  '%5B%3A%3A1%5D',
  'localhost.',
  '127.0.0.1.',
]
const PLC_DID = 'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa'

interface Attempt {
  connectParams: { host: string }
  error?: { error?: string; message: string; code?: string }
}

test('every way out is guarded', async t => {
  const plc = await startStandIn(t)
  let endpoint = ''
  plc.answer = (_asked, response) => {
    json(response, {
      id: PLC_DID,
      service: [{ id: '#atproto_pds', type: 'AtprotoPersonalDataServer', serviceEndpoint: endpoint }],
    })
  }
  const failures: Attempt[] = []
  const connected: string[] = []
  const onFailure = (message: unknown) => void failures.push(message as Attempt)
  const onConnected = (message: unknown) => void connected.push((message as Attempt).connectParams.host)
  subscribe('undici:client:connectError', onFailure)
  subscribe('undici:client:connected', onConnected)
  t.after(async () => {
    unsubscribe('undici:client:connectError', onFailure)
    unsubscribe('undici:client:connected', onConnected)
  })
  let txt = ''
  const pds = await startTestPds(
    t,
    { PDS_DEV_MODE: 'false', PDS_BIND: '127.0.0.1', PDS_DISABLE_SSRF_PROTECTION: 'false', PDS_DID_PLC_URL: plc.url },
    {
      lookup: (name, _options, callback) => {
        const found = (NAMES[name] ?? ['127.0.0.1']).map((address): LookupAddress => {
          return { address, family: address.includes(':') ? 6 : 4 }
        })
        callback(null, found)
      },
      resolveTxt: async name => (name.startsWith('_lexicon.') ? [[`did=${txt}`]] : []),
    },
  )
  const alice = await pds.user('alice')
  const key = SigningKey.fromPrivate('k256', new Uint8Array(32).fill(1))
  const iat = Math.floor(Date.now() / 1000)
  const lxm = 'com.atproto.repo.uploadBlob'
  let count = 0
  /** The ways out, each a call that a stranger or an account may make. */
  const ways: Record<string, (host: string) => Promise<{ status: number }>> = {
    'a did:web': host => pds.get('com.atproto.identity.resolveDid', { did: `did:web:${host}` }),
    'an identity': host => pds.get('com.atproto.identity.resolveIdentity', { identifier: `did:web:${host}` }),
    'a refreshed identity': host =>
      pds.post('com.atproto.identity.refreshIdentity', { identifier: `did:web:${host}` }, null),
    'a handle': host => pds.get('com.atproto.identity.resolveHandle', { handle: host }),
    "a handle of one's own": host => pds.post('com.atproto.identity.updateHandle', { handle: host }, alice),
    'a lexicon': host => {
      txt = `did:web:${host}`
      return pds.get('com.atproto.lexicon.resolveLexicon', { nsid: `com.example.a${count}.note` })
    },
    'the home of a lexicon': host => {
      txt = PLC_DID
      endpoint = `https://${decodeURIComponent(host)}`
      return pds.get('com.atproto.lexicon.resolveLexicon', { nsid: `com.example.b${count}.note` })
    },
    'a service': host =>
      pds.get('com.example.unheardOf', {}, { ...bearer(alice), 'atproto-proxy': `did:web:${host}#x` }),
    'an issuer': host => {
      const iss = `did:web:${host}` as ReturnType<typeof asDid>
      const token = signServiceJwt({ iss, aud: pds.names.did, lxm, iat, exp: iat + 60, jti: String(count) }, key)
      return pds.post(lxm, new Uint8Array(3), null, { authorization: `Bearer ${token}`, 'content-type': 'text/plain' })
    },
  }
  for (const host of [...Object.keys(NAMES), ...LITERALS]) {
    for (const [what, ask] of Object.entries(ways)) {
      count++
      const before = failures.length
      const { status } = await ask(host)
      assert.ok(status >= 400, `${what} at ${host}: ${status}`)
      for (const { error } of failures.slice(before)) {
        assert.equal(error?.error, 'ForbiddenAddress', `${what} at ${host}: ${error?.code} ${error?.message}`)
      }
    }
  }
  assert.ok(failures.length > Object.keys(NAMES).length, 'names were looked up and then refused')
  const own = new URL(plc.url).host
  assert.deepEqual(
    connected.filter(host => host !== own && host !== new URL(pds.url).host),
    [],
  )
})
