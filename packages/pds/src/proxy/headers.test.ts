import assert from 'node:assert/strict'
import type { IncomingHttpHeaders } from 'node:http'
import { test } from 'node:test'
import { Refused } from '@millisky/core/errors'
import fc from 'fast-check'
import { answeredHeaders, askedHeaders, sharedEncodings } from './headers.ts'
import { parseProxyHeader } from './targets.ts'

test('encodings that both sides understand', () => {
  const cases: [string | undefined, string, string][] = [
    [undefined, 'identity', 'identity'],
    ['', 'identity', 'identity'],
    ['identity', 'identity', 'identity'],
    ['zstd', 'identity', 'identity'],
    ['gzip', 'gzip;q=0.3, identity', 'gzip;q=1, identity;q=0.1'],
    ['GZIP;q=0.5, deflate;q=0, br', 'gzip;q=0.3, br;q=0.2, identity', 'gzip;q=1, br;q=0.9, identity;q=0.1'],
    ['*', 'gzip;q=0.3, deflate;q=0.2, br;q=0.1, identity', 'gzip;q=1, deflate;q=0.9, br;q=0.8, identity;q=0.1'],
    ['*, br;q=0.0', 'gzip;q=0.3, deflate;q=0.2, identity', 'gzip;q=1, deflate;q=0.9, identity;q=0.1'],
  ]
  for (const [accepted, near, far] of cases) {
    assert.equal(sharedEncodings(accepted, false), near, String(accepted))
    assert.equal(sharedEncodings(accepted, true), far, String(accepted))
  }
})

test('headers that are not on the lists stay, whatever they are called', () => {
  const allowed = new Set(['accept-encoding', 'accept-language', 'atproto-accept-labelers', 'x-bsky-topics'])
  const backAllowed =
    /^(atproto-repo-rev|atproto-content-labelers|retry-after|content-(type|encoding|language|length|security-policy)|x-content-type-options)$/
  fc.assert(
    fc.property(fc.dictionary(fc.string(), fc.oneof(fc.string(), fc.array(fc.string()))), given => {
      const headers = given as IncomingHttpHeaders
      for (const name of Object.keys(askedHeaders(headers, false))) {
        assert.ok(allowed.has(name) || name.startsWith('x-atproto-'), name)
      }
      for (const [name, value] of Object.entries(answeredHeaders(headers, true))) {
        assert.match(name, backAllowed)
        assert.doesNotMatch(value, /[\r\n\0]/)
      }
    }),
  )
})

test('a value that would begin another header is left out', () => {
  const back = (value: string) => answeredHeaders({ 'atproto-repo-rev': value, 'content-length': value }, true)
  for (const value of ['a\r\nset-cookie: b', 'a\nb', 'a\0', '\u{1f600}', 'x'.repeat(5000)]) {
    assert.equal(back(value)['atproto-repo-rev'], undefined)
  }
  assert.equal(back('12')['content-length'], '12')
  for (const length of ['-1', '1e3', '1, 1', '0x10', ' '])
    assert.equal(back(length)['content-length'], undefined, length)
})

test('any text for a proxy header is taken apart or refused', () => {
  const text = fc.string({ unit: fc.constantFrom('#', ' ', 'd', ':', '%', '\u{e9}') })
  fc.assert(
    fc.property(text, header => {
      try {
        const { did, id } = parseProxyHeader(header)
        assert.equal(`${did}#${id}`, header)
        assert.ok(did !== '' && id !== '' && !/[# ]/.test(did + id))
      } catch (error) {
        assert.ok(error instanceof Refused && error.status === 400)
      }
    }),
  )
})
