// Certificates are checked by both kinds of outgoing connection, and names are sent for servers with many of them.
import assert from 'node:assert/strict'
import { createServer } from 'node:https'
import type { AddressInfo } from 'node:net'
import { test } from 'node:test'
import { getCACertificates, setDefaultCACertificates, type TLSSocket } from 'node:tls'
import { Unavailable } from '@millisky/core/errors'
import { WebSocketServer } from 'ws'
import { Fetcher } from './fetch.ts'
import { Follow, type FollowEnd } from './follow.ts'

/** Of nobody: made for this test, valid for `localhost` until 2126, trusted nowhere. */
const KEY = `-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgpv5bVVDwABW9mTBU
HgRODrffX7GShcWf8AcWHB1JYGyhRANCAAR1UyJKVUCAxiBUFqTYb72EE5LVuXvV
AIEM/nXSXim0vhDK+zWgMTeh91uAY++O3ViAnKsAujZp+8r9+2HkkyRb
-----END PRIVATE KEY-----`
const CERTIFICATE = `-----BEGIN CERTIFICATE-----
MIIBljCCATugAwIBAgIUN5676cvXxToGpTsYEam7vqRwPXcwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMTAxMTUxOVoYDzIxMjYxMDI4
MDExNTE5WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAAR1UyJKVUCAxiBUFqTYb72EE5LVuXvVAIEM/nXSXim0vhDK+zWgMTeh
91uAY++O3ViAnKsAujZp+8r9+2HkkyRbo2kwZzAdBgNVHQ4EFgQU0JNxoffeq0d8
NVOfhP1QMqNcrZswHwYDVR0jBBgwFoAU0JNxoffeq0d8NVOfhP1QMqNcrZswFAYD
VR0RBA0wC4IJbG9jYWxob3N0MA8GA1UdEwEB/wQFMAMBAf8wCgYIKoZIzj0EAwID
SQAwRgIhAOG8F7b/Sf45INATSrerfxPhfAOAE8CB/DG5FV2nQpg1AiEAlCqfkLEJ
gGSBQFgn+9raIzDDO7XfWnaIgzTgUaUJHVI=
-----END CERTIFICATE-----`

const REACH = { allowPrivate: true }

/** How a first connection goes: the reason it ended, or `frame` when one came. */
function firstWord(url: string): Promise<FollowEnd | 'frame'> {
  return new Promise(resolve => {
    const follow = new Follow({
      url,
      reach: REACH,
      userAgent: 'test',
      onFrames: () => {
        resolve('frame')
        void follow.stop()
      },
      onEnd: end => {
        resolve(end)
        void follow.stop()
      },
    })
  })
}

test('TLS: unknown certificates and wrong names are refused, known ones work', async t => {
  const names: unknown[] = []
  const server = createServer({ key: KEY, cert: CERTIFICATE }, (_request, response) => response.end('hello'))
  server.on('secureConnection', (socket: TLSSocket & { servername?: unknown }) => names.push(socket.servername))
  const sockets = new WebSocketServer({ server })
  sockets.on('connection', socket => socket.send(Buffer.from([0xa2])))
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as AddressInfo
  const fetcher = new Fetcher({ ...REACH, userAgent: 'test' })
  const trusted = getCACertificates('default')
  t.after(async () => {
    setDefaultCACertificates(trusted)
    await fetcher.close()
    for (const client of sockets.clients) client.terminate()
    server.closeAllConnections()
    server.close()
  })

  await assert.rejects(fetcher.fetch(`https://localhost:${port}/`), Unavailable)
  const untrusted = await firstWord(`wss://localhost:${port}/`)
  assert.ok(untrusted !== 'frame' && untrusted.reason === 'unreachable' && /self.signed/.test(untrusted.detail))

  setDefaultCACertificates([...trusted, CERTIFICATE])
  names.length = 0
  const answer = await fetcher.fetch(`https://localhost:${port}/`)
  assert.equal(Buffer.from(answer.bytes).toString(), 'hello')
  assert.equal(await firstWord(`wss://localhost:${port}/`), 'frame')
  assert.deepEqual(names, ['localhost', 'localhost'])

  await assert.rejects(fetcher.fetch(`https://127.0.0.1:${port}/`), Unavailable)
  const misnamed = await firstWord(`wss://127.0.0.1:${port}/`)
  assert.ok(misnamed !== 'frame' && misnamed.reason === 'unreachable')
})
