import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Refused } from '@millisky/core/errors'
import { domainsOf, parseDomain, parseHostname } from './hostname.ts'

const strict = (text: string) => parseHostname(text, { insecure: false })
const loose = (text: string) => parseHostname(text, { insecure: true })

test('T35 a host name or a URL of one is accepted, in lower case', () => {
  for (const text of ['pds.example.com', 'PDS.example.com', 'https://pds.example.com', 'wss://pds.example.com/']) {
    assert.deepEqual(strict(text), { hostname: 'pds.example.com', noTls: false }, text)
  }
  assert.deepEqual(strict('https://pds.example.com:443'), { hostname: 'pds.example.com', noTls: false })
})

test('T35 addresses, ports, paths, credentials and single labels are refused', () => {
  for (const text of [
    '',
    'localhost',
    'localhost:2583',
    'x.localhost',
    '10.0.0.1',
    '2130706433',
    '0x7f.1',
    '[::1]',
    'https://[::ffff:127.0.0.1]',
    'pds.example.com:8080',
    'https://user@pds.example.com',
    'https://pds.example.com/xrpc',
    'https://pds.example.com?x',
    'pds',
    'ftp://pds.example.com',
    'http://pds.example.com',
    'pds_1.example.com',
    `${'a'.repeat(300)}.com`,
  ]) {
    assert.throws(() => strict(text), Refused, text)
  }
})

test('the development switch admits this machine, ports and no TLS', () => {
  assert.deepEqual(loose('localhost:2583'), { hostname: 'localhost:2583', noTls: true })
  assert.deepEqual(loose('http://127.0.0.1:99'), { hostname: '127.0.0.1:99', noTls: true })
  assert.deepEqual(loose('https://localhost:2583'), { hostname: 'localhost:2583', noTls: false })
  assert.deepEqual(loose('http://pds.example.com'), { hostname: 'pds.example.com', noTls: true })
  assert.deepEqual(loose('pds.example.com:8443'), { hostname: 'pds.example.com:8443', noTls: false })
  assert.deepEqual(loose('pds.example.com'), { hostname: 'pds.example.com', noTls: false })
  assert.throws(() => loose('https://user:x@localhost:1'), Refused)
})

test('a ban of a domain covers the names below it', () => {
  assert.deepEqual([...domainsOf('a.b.example.com:99')], ['a.b.example.com', 'b.example.com', 'example.com', 'com'])
  assert.equal(parseDomain(' *.Example.com. '), 'example.com')
  assert.equal(parseDomain('.noisy.pds.com'), 'noisy.pds.com')
  for (const text of ['', '*', 'a b', 'https://x.com']) assert.throws(() => parseDomain(text), Refused, text)
})
