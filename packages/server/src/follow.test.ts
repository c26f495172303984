import assert from 'node:assert/strict'
import { createServer, type IncomingMessage, type RequestListener } from 'node:http'
import { type AddressInfo, createServer as createTcpServer, type Socket } from 'node:net'
import { afterEach, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { encodeFrame, errorFrame, infoFrame } from '@millisky/core/event'
import { type WebSocket, WebSocketServer } from 'ws'
import { Follow, type FollowEnd, type FollowParts, type FollowState } from './follow.ts'
import { release } from './receive-memory.ts'

const cleanups: (() => unknown)[] = []
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup()
})

const frame = (seq: number) => Buffer.from(encodeFrame({ t: '#identity', body: { seq } }))

interface Host {
  url: string
  /** Requests of handshakes, in order. */
  requests: IncomingMessage[]
}

/** A host whose behaviour is `onConnect`; plain requests, and handshakes when `onConnect` is null, get `onRequest`. */
async function host(
  onConnect: ((socket: WebSocket, nth: number) => void) | null,
  onRequest: RequestListener = (_request, response) => response.writeHead(404).end(),
): Promise<Host> {
  const requests: IncomingMessage[] = []
  const server = createServer((request, response) => {
    requests.push(request)
    onRequest(request, response)
  })
  const sockets = new WebSocketServer({ noServer: true, autoPong: true })
  if (onConnect) {
    server.on('upgrade', (request, socket, head) => {
      requests.push(request)
      sockets.handleUpgrade(request, socket, head, client => {
        client.on('error', () => {})
        onConnect(client, requests.length)
      })
    })
  }
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  cleanups.push(() => {
    for (const client of sockets.clients) client.terminate()
    server.closeAllConnections()
    server.close()
  })
  return { url: `ws://127.0.0.1:${(server.address() as AddressInfo).port}/xrpc/x`, requests }
}

interface Following {
  follow: Follow
  got: Buffer[]
  ends: FollowEnd[]
  /** Resolves with the first `count` ends. */
  ended(count: number): Promise<FollowEnd[]>
  /** Resolves when `count` frames were taken. */
  taken(count: number): Promise<Buffer[]>
}

function following(url: string, parts: Partial<FollowParts> = {}): Following {
  const [got, ends]: [Buffer[], FollowEnd[]] = [[], []]
  const follow = new Follow({
    url,
    reach: { allowPrivate: true },
    userAgent: 'test',
    onFrames: frames => {
      for (const each of frames) got.push(Buffer.from(each))
    },
    onEnd: end => ends.push(end),
    ...parts,
    settings: { retryMinMs: 1, retryMaxMs: 20, ...parts.settings },
  })
  cleanups.push(() => follow.stop())
  const until = async <T>(list: T[], count: number): Promise<T[]> => {
    for (let i = 0; list.length < count; i++) {
      if (i > 10_000) assert.fail(`${list.length} of ${count} came`)
      await sleep(2)
    }
    return list.slice(0, count)
  }
  return { follow, got, ends, ended: count => until(ends, count), taken: count => until(got, count) }
}

test('frames arrive in order, and the next connection asks behind what was taken', async () => {
  const { url, requests } = await host((socket, nth) => {
    for (let i = 1; i <= 3; i++) socket.send(frame(nth * 10 + i))
    socket.close(1012, 'restart')
  })
  let cursor: number | null = null
  const { taken, ended, follow } = following(url, {
    cursor: () => cursor,
    onFrames: frames => {
      for (const each of frames) got.push(Buffer.from(each))
      cursor = got.length
    },
  })
  const got: Buffer[] = []
  assert.equal(follow.state, 'connecting')
  const [first] = await ended(2)
  await taken(0)
  assert.deepEqual(got.slice(0, 6), [11, 12, 13, 21, 22, 23].map(frame))
  assert.deepEqual(
    requests.slice(0, 2).map(request => request.url),
    ['/xrpc/x', '/xrpc/x?cursor=3'],
  )
  assert.equal(requests[0]?.headers['user-agent'], 'test')
  assert.equal(requests[0]?.headers['sec-websocket-extensions'], undefined)
  assert.equal(first?.reason, 'closed')
  assert.equal(first?.code, 1012)
  assert.equal(first?.detail, 'restart')
  assert.equal(first?.frames, 3)
  assert.equal(first?.failures, 0)
})

test('text, too much, broken framing and a cut line each have their name', async () => {
  const rude: [FollowEnd['reason'], (socket: WebSocket) => void][] = [
    ['text-frame', socket => socket.send('hello')],
    ['frame-too-big', socket => socket.send(Buffer.alloc(2_000))],
    ['protocol', socket => (socket as unknown as { _socket: Socket })._socket.write(Buffer.from([0xf3, 0x05, 1, 2]))],
    ['lost', socket => socket.terminate()],
    ['protocol', socket => [...Array(300)].forEach((_, i) => void (i % 2 ? socket.ping() : socket.pong()))],
  ]
  const { url } = await host((socket, nth) => {
    socket.send(frame(nth))
    rude[(nth - 1) % rude.length]?.[1](socket)
  })
  const { ended, got } = following(url, { settings: { frameBytes: 1_000 } })
  const ends = await ended(5)
  assert.deepEqual(
    ends.map(end => end.reason),
    rude.map(([reason]) => reason),
  )
  assert.deepEqual(got.slice(0, 5), [1, 2, 3, 4, 5].map(frame), 'what came before the offence counts')
})

test('frames may be released at once or late, however a host cuts, mixes and breaks them', async () => {
  const EVENTS = 2_000
  /** Tells its number all over. */
  const body = (n: number) => Buffer.concat([frame(n), Buffer.alloc(n % 97 === 0 ? 150_000 : (n * 37) % 3_000, n)])
  const { url } = await host(socket => {
    const wire: Buffer[] = []
    const put = (first: number, bytes: Uint8Array) => {
      const { length } = bytes
      const head = Buffer.alloc(length < 126 ? 2 : length < 65_536 ? 4 : 10)
      head[0] = first
      head[1] = length < 126 ? length : length < 65_536 ? 126 : 127
      if (length >= 126) head.writeUIntBE(length, length < 65_536 ? 2 : 4, length < 65_536 ? 2 : 6)
      wire.push(head, Buffer.from(bytes))
    }
    for (let n = 1; n <= EVENTS; n++) {
      const bytes = body(n)
      if (n % 40 === 0) put(0x89, Buffer.from('ping'))
      if (n % 3 > 0) put(0x82, bytes)
      else {
        // In two fragments, sometimes with a ping between them.
        put(0x02, bytes.subarray(0, bytes.length >> 1))
        if (n % 60 === 0) put(0x89, Buffer.from('between'))
        put(0x80, bytes.subarray(bytes.length >> 1))
      }
    }
    const all = Buffer.concat(wire)
    const raw = (socket as unknown as { _socket: Socket })._socket
    for (let at = 0, i = 1; at < all.length; at += (i * 7_919) % 90_000, i++) {
      raw.write(all.subarray(at, Math.min(all.length, at + ((i * 7_919) % 90_000))))
    }
  })
  const late: [number, Uint8Array][] = []
  let count = 0
  const check = (n: number, bytes: Uint8Array) => {
    assert.ok(body(n).equals(bytes), `frame ${n}`)
    release(bytes)
  }
  const { ended } = following(url, {
    onFrames: frames => {
      for (const bytes of frames) {
        if (++count % 5 === 0) late.push([count, bytes])
        else check(count, bytes)
      }
      while (late.length > 30) check(...late.splice((count * 13) % late.length, 1)[0]!)
      if (count === EVENTS) throw new Error('done')
    },
  })
  const [end] = await ended(1)
  assert.equal(end?.detail, 'done')
  for (const each of late) check(...each)
})

test('an error frame ends the connection and is no progress; an info frame is a frame', async () => {
  const { url } = await host(socket => {
    socket.send(errorFrame('FutureCursor', 'no such seq'))
    socket.send(frame(1))
  })
  const { ended, got } = following(url)
  const [, second] = await ended(2)
  assert.equal(second?.reason, 'error-frame')
  assert.equal(second?.error, 'FutureCursor')
  assert.equal(second?.detail, 'no such seq')
  assert.equal(second?.failures, 2)
  assert.deepEqual(got, [])
  const info = Buffer.from(infoFrame('OutdatedCursor'))
  const other = await host(socket => socket.send(info))
  assert.deepEqual(await following(other.url).taken(1), [info])
})

test('answers that are no handshake: redirects are not followed', async () => {
  let target = ''
  const { url, requests } = await host(null, (_request, response) => {
    if (requests.length === 1) response.writeHead(302, { location: target }).end()
    else response.writeHead(429, { 'retry-after': '1' }).end('slow down')
  })
  const other = await host(socket => socket.send(frame(1)))
  target = other.url
  const [redirected, refused] = await following(url).ended(2)
  assert.equal(redirected?.reason, 'redirected')
  assert.equal(redirected?.status, 302)
  assert.equal(refused?.reason, 'refused')
  assert.equal(refused?.status, 429)
  assert.equal(other.requests.length, 0)
})

test('nobody there, and somebody who never answers', async () => {
  const server = createTcpServer(socket => socket.on('error', () => {}))
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  const url = `ws://127.0.0.1:${(server.address() as AddressInfo).port}/`
  const silent = following(url, { settings: { handshakeMs: 50 } })
  assert.equal((await silent.ended(1))[0]?.reason, 'unreachable')
  await silent.follow.stop()
  server.close()
  const gone = following(url)
  const [end] = await gone.ended(1)
  assert.equal(end?.reason, 'unreachable')
  assert.match(end?.detail ?? '', /ECONNREFUSED/)
  assert.equal(end?.openMs, 0)
})

test('without the development switch private addresses and ws: are out of reach', async () => {
  const { url, requests } = await host(socket => socket.send(frame(1)))
  const port = new URL(url).port
  const reach = { allowPrivate: false, ports: [Number(port)] }
  const lookup: NonNullable<FollowParts['reach']['lookup']> = (_host, _options, callback) =>
    callback(null, [{ address: '127.0.0.1', family: 4 }])
  for (const [to, how] of [
    [url, reach],
    [`wss://127.0.0.1:${port}/`, reach],
    [`wss://[::ffff:127.0.0.1]:${port}/`, reach],
    [`wss://rebound.example:${port}/`, { ...reach, lookup }],
    ['wss://pds.example:8443/', { allowPrivate: false }],
    ['nonsense', reach],
  ] as const) {
    const { ended } = following(to, { reach: how })
    assert.equal((await ended(1))[0]?.reason, 'forbidden', to)
  }
  assert.equal(requests.length, 0)
})

test('a caller that throws ends the connection, also at the handshake', async () => {
  const { url } = await host(socket => {
    socket.send(frame(1))
    socket.send(frame(2))
  })
  const boom = new Error('not canonical')
  const thrown = following(url, {
    onFrames: () => {
      throw boom
    },
  })
  const [, end] = await thrown.ended(2)
  assert.equal(end?.reason, 'rejected')
  assert.equal(end?.detail, 'not canonical')
  assert.equal(end?.cause, boom)
  assert.equal(end?.failures, 2)
  const atOnce = following(url, {
    onOpen: headers => {
      assert.equal(headers.upgrade, 'websocket')
      throw new Error('a relay')
    },
  })
  assert.equal((await atOnce.ended(1))[0]?.detail, 'a relay')
  assert.deepEqual(atOnce.got, [])
})

test('waits grow with every failure, with jitter, also of a host that accepts and closes, and fall back on progress', async () => {
  let give = false
  const { url } = await host(socket => {
    if (give) socket.send(frame(1))
    socket.close()
  })
  const waits: number[] = []
  let resume = () => {}
  const { ended, ends } = following(url, {
    settings: { retryMinMs: 1_000, retryMaxMs: 10_000 },
    random: () => (waits.length % 2 === 0 ? 0 : 0.999_999),
    sleep: async (ms, signal) => {
      waits.push(ms)
      if (waits.length === 7) await new Promise<void>(resolve => (resume = resolve))
      if (waits.length > 8) await new Promise(resolve => signal.addEventListener('abort', resolve))
    },
  })
  await ended(7)
  assert.deepEqual(waits, [500, 2_000, 2_000, 8_000, 5_000, 10_000, 5_000])
  assert.deepEqual(
    ends.map(end => end.retryMs),
    waits,
  )
  give = true
  resume()
  await ended(8)
  assert.equal(ends[7]?.failures, 0)
  assert.equal(ends[7]?.retryMs, 1_000)
})

test('a long quiet connection is progress too', async () => {
  const opened = Promise.withResolvers<void>()
  const { url } = await host(socket => opened.promise.then(() => setTimeout(() => socket.close(), 30)))
  const [end] = await following(url, { settings: { stableMs: 10 }, onOpen: () => opened.resolve() }).ended(1)
  assert.equal(end?.failures, 0)
  assert.equal(end?.frames, 0)
})

test('a host that goes silent is given up, one that answers pings is not', async () => {
  const quiet = await host(() => {})
  const dead = createTcpServer(socket => {
    socket.on('error', () => {})
    // Accepts the handshake, then says nothing more.
    socket.once('data', async data => {
      const { createHash } = await import('node:crypto')
      const key = /sec-websocket-key: (.*)\r\n/i.exec(data.toString())?.[1]
      const accept = createHash('sha1').update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest('base64')
      const lines = ['HTTP/1.1 101 Switching Protocols', 'Upgrade: websocket', 'Connection: Upgrade']
      socket.write([...lines, `Sec-WebSocket-Accept: ${accept}`, '', ''].join('\r\n'))
    })
  })
  await new Promise<void>(resolve => dead.listen(0, '127.0.0.1', resolve))
  cleanups.push(() => dead.close())
  const settings = { pingMs: 20, deadMs: 60 }
  const alive = following(quiet.url, { settings })
  const silent = following(`ws://127.0.0.1:${(dead.address() as AddressInfo).port}/`, { settings })
  assert.equal((await silent.ended(1))[0]?.reason, 'silent')
  await silent.follow.stop()
  await sleep(60)
  assert.deepEqual(alive.ends, [])
  assert.equal(alive.follow.state, 'open')
})

test('who was held up itself does not think that the other side is silent', async () => {
  let pings = 0
  const { url } = await host(socket => {
    // Whenever the answer is on the way, nothing runs for longer than it has.
    socket.on('ping', () => {
      pings++
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 150)
    })
  })
  const { ends } = following(url, { settings: { pingMs: 20, deadMs: 60 } })
  while (pings < 4) await sleep(2)
  assert.deepEqual(ends, [])
})

test('while the caller is busy the socket is not read', async () => {
  const chunk = Buffer.concat([frame(1), Buffer.alloc(50_000)])
  let sent = 0
  const { url } = await host(socket => {
    const more = (): void => {
      if (socket.readyState !== socket.OPEN || sent === 2_000) return
      sent++
      socket.send(chunk, more)
    }
    more()
  })
  const release = Promise.withResolvers<void>()
  let [calls, taken] = [0, 0]
  const { follow } = following(url, {
    settings: { waitingBytes: 200_000 },
    onFrames: async frames => {
      calls++
      await release.promise
      taken += frames.length
    },
  })
  while (calls < 1) await sleep(5)
  // Until nothing more leaves the host.
  for (let before = -1; before !== sent; ) {
    before = sent
    await sleep(100)
  }
  const held = sent
  assert.equal(calls, 1)
  assert.ok(held < 1_000, `${held} frames left the host`)
  release.resolve()
  for (let i = 0; taken < 2_000; i++) {
    if (i > 6_000) assert.fail(`${taken} taken`)
    await sleep(5)
  }
  assert.equal(follow.state, 'open')
})

test('stop waits for the caller, gives it nothing more, and does not connect again', async () => {
  const { url, requests } = await host(socket => {
    let seq = 0
    const timer = setInterval(() => socket.send(frame(++seq)), 1)
    socket.on('close', () => clearInterval(timer))
  })
  let [busy, calls] = [false, 0]
  const { follow, ends } = following(url, {
    onFrames: async () => {
      busy = true
      calls++
      await sleep(30)
      busy = false
    },
  })
  while (calls < 1) await sleep(1)
  await follow.stop()
  assert.equal(busy, false)
  assert.equal(follow.state, 'stopped')
  const before = calls
  await sleep(40)
  assert.equal(calls, before)
  assert.equal(requests.length, 1)
  assert.equal(ends.at(-1)?.reason, 'stopped')
  await follow.stop()
})

test('a wait can be ended, a connection dropped', async () => {
  const { url, requests } = await host(() => {})
  const { follow, ended } = following(url, { settings: { retryMinMs: 60_000, retryMaxMs: 60_000 } })
  const reach = async (state: FollowState) => {
    while (follow.state !== state) await sleep(1)
  }
  await reach('open')
  follow.drop('banned')
  const [end] = await ended(1)
  assert.equal(end?.reason, 'dropped')
  assert.equal(end?.detail, 'banned')
  await reach('waiting')
  follow.retryNow()
  await reach('open')
  assert.equal(requests.length, 2)
})
