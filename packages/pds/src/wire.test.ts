// Bytes that two servers in a row might read differently, and names that might lead out of where they belong.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { connect } from 'node:net'
import { test } from 'node:test'
import { bearer, startTestPds, type TestPds } from './testing-pds.ts'

const QUIET_MS = 120

/** What came back: status codes in their order, and everything as text. */
interface Said {
  statuses: number[]
  text: string
  closed: boolean
}

/** Sends bytes and listens until the connection ends, or nothing more comes after so many answers. */
async function say(pds: TestPds, bytes: string, answers = Number.POSITIVE_INFINITY): Promise<Said> {
  const { port, hostname } = new URL(pds.url)
  const socket = connect(Number(port), hostname)
  let text = ''
  let closed = false
  socket.on('error', () => {})
  socket.setEncoding('latin1')
  await once(socket, 'connect')
  socket.write(Buffer.from(bytes, 'latin1'))
  const said = () => [...text.matchAll(/HTTP\/1\.1 (\d{3}) /g)].map(match => Number(match[1]))
  await new Promise<void>(done => {
    let timer = setTimeout(done, 30_000)
    socket.on('data', chunk => {
      text += chunk
      if (said().length < answers) return
      clearTimeout(timer)
      timer = setTimeout(done, QUIET_MS)
    })
    socket.once('close', () => {
      closed = true
      clearTimeout(timer)
      done()
    })
  })
  socket.destroy()
  return { statuses: said(), text, closed }
}

const POST = 'POST /xrpc/com.atproto.server.createSession HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n'
const GET = 'GET /xrpc/_health HTTP/1.1\r\nhost: x\r\n'
const HIDDEN = `${GET}x-hidden: 1\r\n\r\n`

test('a request whose end could be in two places is refused, and what is behind it never read', async t => {
  const pds = await startTestPds(t)
  const ambiguous: Record<string, string> = {
    'length and chunks': `${POST}content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n${HIDDEN}`,
    'chunks and length': `${POST}transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n${HIDDEN}`,
    'two lengths': `${POST}content-length: 0\r\ncontent-length: 50\r\n\r\n${HIDDEN}`,
    'the same length twice': `${POST}content-length: 0\r\ncontent-length: 0\r\n\r\n${HIDDEN}`,
    'a list of lengths': `${POST}content-length: 0, 0\r\n\r\n${HIDDEN}`,
    'a length with a sign': `${POST}content-length: +0\r\n\r\n${HIDDEN}`,
    'a negative length': `${POST}content-length: -1\r\n\r\n${HIDDEN}`,
    'a length in hex': `${POST}content-length: 0x0\r\n\r\n${HIDDEN}`,
    'a length beyond numbers': `${POST}content-length: 99999999999999999999999\r\n\r\n${HIDDEN}`,
    'no chunks at the end': `${POST}transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n${HIDDEN}`,
    'chunks of another name': `${POST}transfer-encoding: xchunked\r\n\r\n0\r\n\r\n${HIDDEN}`,
    'chunks with a tab': `${POST}transfer-encoding: chunked\x0b\r\n\r\n0\r\n\r\n${HIDDEN}`,
    'two ways to send chunks': `${POST}transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n${HIDDEN}`,
    'a space before the colon': `${POST}content-length : 0\r\n\r\n${HIDDEN}`,
    'a folded line': `${POST}x-a: b\r\n content-length: 50\r\n\r\n${HIDDEN}`,
    'a return alone': `${POST}x-a: b\rcontent-length: 50\r\n\r\n${HIDDEN}`,
    'a NUL': `${POST}x-a: b\0c\r\ncontent-length: 0\r\n\r\n${HIDDEN}`,
    'a header without a name': `${POST}: b\r\n\r\n${HIDDEN}`,
    'a header without a colon': `${POST}transfer-encoding\r\n\r\n${HIDDEN}`,
    'a huge chunk': `${POST}transfer-encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF1\r\n${HIDDEN}`,
    'a chunk in another notation': `${POST}transfer-encoding: chunked\r\n\r\n0x0\r\n\r\n${HIDDEN}`,
    'a negative chunk': `${POST}transfer-encoding: chunked\r\n\r\n-1\r\n\r\n${HIDDEN}`,
    'a chunk that is longer than it says': `${POST}transfer-encoding: chunked\r\n\r\n1\r\n{}{}\r\n0\r\n\r\n${HIDDEN}`,
    'an endless extension of a chunk': `${POST}transfer-encoding: chunked\r\n\r\n0;${'a'.repeat(40_000)}\r\n\r\n${HIDDEN}`,
    'chunks ended by a line feed alone': `${POST}transfer-encoding: chunked\r\n\r\n0\n\n${HIDDEN}`,
    'no host': `GET /xrpc/_health HTTP/1.1\r\n\r\n${HIDDEN}`,
    'another protocol': `GET /xrpc/_health HTTP/3.0\r\nhost: x\r\n\r\n${HIDDEN}`,
    'no protocol': `GET /xrpc/_health\r\n\r\n${HIDDEN}`,
    'headers without end': `${GET}x-a: ${'a'.repeat(40_000)}\r\n\r\n${HIDDEN}`,
  }
  const outcomes = await Promise.all(
    Object.entries(ambiguous).map(async ([what, bytes]) => [what, await say(pds, bytes)] as const),
  )
  for (const [what, { statuses, text, closed }] of outcomes) {
    assert.ok(statuses.length <= 1, `${what}: ${text.slice(0, 400)}`)
    assert.ok(
      statuses.every(status => status >= 400 && status < 500),
      `${what}: ${statuses}`,
    )
    assert.ok(closed, `${what}: the connection is over`)
  }
  // What is said clearly is answered, one after the other.
  assert.deepEqual((await say(pds, `${GET}\r\n${HIDDEN}`, 2)).statuses, [200, 200])
  assert.deepEqual((await say(pds, `${POST}content-length: 2\r\n\r\n{}${HIDDEN}`, 2)).statuses, [400, 200])
  const chunks = `${POST}transfer-encoding: Chunked\r\n\r\n1;a=b\r\n{\r\n1\r\n}\r\n0\r\nx-trailer: 1\r\n\r\n${HIDDEN}`
  assert.deepEqual((await say(pds, chunks, 2)).statuses, [400, 200])
})

test('no path leads out of where it belongs, and no name into a header', async t => {
  const pds = await startTestPds(t)
  const alice = await pds.user('alice')
  const up = [
    '..',
    '%2e%2e',
    '.%2e',
    '%252e%252e',
    '..;',
    '..%2f',
    '..%5c',
    '%c0%ae%c0%ae',
    '%00',
    '..%00',
    '%ff',
    '%',
    '%zz',
  ]
  const paths = [
    ...up.flatMap(step => [
      `/${step}/${step}/etc/passwd`,
      `/xrpc/${step}/package.json`,
      `/.well-known/${step}/${step}/pds.sqlite`,
      `/xrpc/com.atproto.sync.getBlob/${step}/x`,
      `/xrpc/com.atproto.sync.getBlob?did=${alice.did}&cid=${step}/${step}/${step}/etc/passwd`,
      `/xrpc/com.atproto.sync.getBlob?did=${step}/${step}&cid=bafkreidfayvfuwqa7qlnopdjiqrxzs6blmoeu4rujcjtnci5beludirz2a`,
      `/xrpc/com.atproto.repo.getRecord?repo=${alice.did}&collection=com.example.note&rkey=${step}/${step}`,
      `/xrpc/com.atproto.identity.resolveHandle?handle=${step}/${step}/x.test`,
      `/tls-check?domain=${step}`,
    ]),
    '//evil.example/xrpc/_health',
    '/\\evil.example',
    'http://evil.example/xrpc/com.atproto.server.getSession',
    '/xrpc/com.atproto.sync.getRecord#?did=x',
    '/xrpc/?a=b',
    '/xrpc/.',
    '/xrpc/__proto__',
    '/xrpc/constructor.prototype.toString',
    `/${'a/'.repeat(5_000)}`,
    `/xrpc/${'a'.repeat(3_000)}.b.c`,
  ]
  for (const path of paths) {
    const { statuses, text } = await say(pds, `GET ${path} HTTP/1.1\r\nhost: alice.test\r\nconnection: close\r\n\r\n`)
    assert.equal(statuses.length, 1, path)
    assert.ok(statuses[0]! >= 400 && statuses[0]! < 502 && statuses[0] !== 500, `${path}: ${statuses}`)
    assert.doesNotMatch(text, /root:|SQLite format|"workspaces"/, path)
  }
  for (const method of ['CONNECT', 'TRACE', 'PROPFIND', 'PURGE']) {
    const { statuses } = await say(pds, `${method} /xrpc/_health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n`)
    assert.ok(statuses.every(status => status >= 400 && status < 500) && statuses.length <= 1, `${method}: ${statuses}`)
  }
  // Each would begin a header of its own if it got into one as it is.
  const inject = '%0d%0ax-injected:%201'
  for (const [line, headers] of [
    [`/xrpc/com.atproto.server.getSession?${inject}`, ''],
    [`/xrpc/com.atproto.sync.getBlob?did=${alice.did}&cid=${inject}`, ''],
    [`/xrpc/com.atproto.repo.listRecords?repo=${alice.did}&collection=${inject}`, ''],
    [`/.well-known/atproto-did?${inject}`, 'x-forwarded-host: a%0d%0ax-injected: 1\r\n'],
    ['/xrpc/_health', 'x-request-id: a%0d%0ax-injected: 1\r\norigin: http://a%0d%0ax-injected\r\n'],
    ['/xrpc/com.atproto.sync.getLatestCommit?did=a', 'atproto-proxy: did:web:a%0d%0ax-injected:1#b\r\n'],
  ]) {
    const { text } = await say(pds, `GET ${line} HTTP/1.1\r\nhost: x\r\n${headers}connection: close\r\n\r\n`)
    assert.doesNotMatch(text.split('\r\n\r\n')[0]!, /^x-injected/im, line)
  }
})

test('the type that a blob is said to have is no way into the headers it is served with', async t => {
  const pds = await startTestPds(t)
  const alice = await pds.user('alice')
  const auth = { ...bearer(alice) }
  for (const type of [
    'text/html',
    'text/html; charset="\xff"',
    'image/svg+xml',
    'a/b;c=%0d%0ax-injected:1',
    'x'.repeat(8_000),
  ]) {
    const bytes = new TextEncoder().encode(`<script>alert(${JSON.stringify(type.slice(0, 50))})</script>`)
    const uploaded = await pds.post('com.atproto.repo.uploadBlob', bytes, null, { ...auth, 'content-type': type })
    if (uploaded.status !== 200) {
      assert.ok(uploaded.status < 500, type)
      continue
    }
    const cid = uploaded.json.blob.ref.$link
    const { headers, status } = await pds.get('com.atproto.sync.getBlob', { did: alice.did, cid }, auth)
    assert.equal(status, 200, type)
    assert.equal(headers.get('x-content-type-options'), 'nosniff')
    assert.equal(headers.get('content-security-policy'), "default-src 'none'; sandbox")
    assert.match(headers.get('content-disposition')!, /^attachment; filename="b[a-z2-7]+"$/)
    assert.equal(headers.get('x-injected'), null)
  }
})
