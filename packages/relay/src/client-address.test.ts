import assert from 'node:assert/strict'
import type { IncomingMessage } from 'node:http'
import { test } from 'node:test'
import { clientAddress } from './client-address.ts'

const request = (remoteAddress: string, forwarded?: string) =>
  ({
    socket: { remoteAddress },
    headers: forwarded === undefined ? {} : { 'x-forwarded-for': forwarded },
  }) as IncomingMessage

test('only those who are trusted are believed, from the nearest on', () => {
  const of = clientAddress(['loopback', '10.1.0.0/16'])
  assert.equal(of(request('203.0.113.9', '1.1.1.1')), '203.0.113.9')
  assert.equal(of(request('127.0.0.1', '1.1.1.1')), '1.1.1.1')
  assert.equal(of(request('::ffff:127.0.0.1', '6.6.6.6, 1.1.1.1, 10.1.2.3')), '1.1.1.1')
  assert.equal(of(request('::1', '2001:db8::1')), '2001:db8::1')
  assert.equal(of(request('127.0.0.1')), '127.0.0.1')
  assert.equal(of(request('127.0.0.1', 'unknown, 10.1.2.3')), '10.1.2.3')
  assert.equal(clientAddress([])(request('127.0.0.1', '1.1.1.1')), '127.0.0.1')
})

test('what is no address is told at once', () => {
  assert.throws(() => clientAddress(['proxy.example.com']), /proxy\.example\.com/)
})
