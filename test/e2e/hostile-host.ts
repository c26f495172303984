// A host that answers as a PDS does and then does whatever it likes with the socket, byte by byte.
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { createServer, type Server } from 'node:http'
import type { Socket } from 'node:net'
import { setTimeout as wait } from 'node:timers/promises'
import type { Did } from '@millisky/core/syntax'

const MAGIC = '258EAFA5-E914-47DA-95CA-C5AB0DC85B11'

/** One WebSocket frame of a server. */
export function wire(payload: Uint8Array, { opcode = 2, fin = true, rsv1 = false } = {}): Buffer {
  const first = (fin ? 0x80 : 0) | (rsv1 ? 0x40 : 0) | opcode
  const { length } = payload
  const head = Buffer.alloc(length < 126 ? 2 : length < 65_536 ? 4 : 10)
  head[0] = first
  if (length < 126) head[1] = length
  else if (length < 65_536) {
    head[1] = 126
    head.writeUInt16BE(length, 2)
  } else {
    head[1] = 127
    head.writeBigUInt64BE(BigInt(length), 2)
  }
  return Buffer.concat([head, payload])
}

/** A connection of the Relay to a hostile host. */
export class Line {
  readonly socket: Socket
  readonly key: string

  constructor(socket: Socket, key: string) {
    this.socket = socket
    this.key = key
  }

  get open(): boolean {
    return !this.socket.destroyed && this.socket.writable
  }

  /** The answer to the handshake, with more headers if given. */
  accept(more: string[] = []): void {
    const accept = createHash('sha1')
      .update(this.key + MAGIC)
      .digest('base64')
    const lines = ['HTTP/1.1 101 Switching Protocols', 'Upgrade: websocket', 'Connection: Upgrade', ...more]
    this.socket.write(`${[...lines, `Sec-WebSocket-Accept: ${accept}`].join('\r\n')}\r\n\r\n`)
  }

  /** Waits while the Relay does not read. */
  async write(bytes: Uint8Array | string): Promise<void> {
    const { socket } = this
    if (!this.open || socket.write(bytes)) return
    const { promise, resolve } = Promise.withResolvers<void>()
    socket.once('drain', resolve).once('close', resolve)
    await promise
    socket.off('drain', resolve).off('close', resolve)
  }

  /** Sends what there is for as long as there is somebody to read it; others get their turn in between. */
  async flood(next: () => Uint8Array, pauseMs = 0): Promise<void> {
    for (let i = 0; this.open; i++) {
      await this.write(next())
      if (pauseMs > 0) await wait(pauseMs)
      else if (i % 8 === 7) await new Promise(setImmediate)
    }
  }
}

export type Attack = (line: Line, nth: number) => void | Promise<void>

export class HostileHost {
  readonly url: string
  #connections = 0

  private constructor(server: Server, attack: Attack) {
    this.url = `http://localhost:${(server.address() as { port: number }).port}`
    server.on('connection', socket => socket.on('error', () => {}))
    server.on('upgrade', (request, socket) => {
      socket.resume()
      const line = new Line(socket as Socket, request.headers['sec-websocket-key'] ?? '')
      Promise.resolve(attack(line, ++this.#connections)).catch(error => {
        if (line.open) console.error(error)
      })
    })
  }

  /** Without an attack it takes connections and never answers them. */
  static async start(attack: Attack): Promise<HostileHost> {
    const server = createServer((request, reply) => {
      reply.setHeader('content-type', 'application/json')
      reply.end(
        request.url?.includes('describeServer') ? '{"did":"did:web:localhost","availableUserDomains":[]}' : '{}',
      )
    }).listen(0, '127.0.0.1')
    await once(server, 'listening')
    return new HostileHost(server, attack)
  }

  get hostname(): string {
    return new URL(this.url).host
  }
}

/** Servers that take a question for a DID document and answer it slowly, without end, or never; gives their did:webs. */
export async function slowDirectories(count: number): Promise<Did[]> {
  const dids: Did[] = []
  for (let i = 0; i < count; i++) {
    const server = createServer((_request, reply) => {
      if (i % 3 === 0) return
      reply.writeHead(200, { 'content-type': 'application/json' })
      const chunk = i % 3 === 1 ? Buffer.alloc(65_536, 0x20) : ' '
      const drip = setInterval(() => reply.write(chunk), i % 3 === 1 ? 5 : 200)
      reply.on('close', () => clearInterval(drip)).on('error', () => {})
    }).listen(0, '127.0.0.1')
    await once(server, 'listening')
    dids.push(`did:web:localhost%3A${(server.address() as { port: number }).port}` as Did)
  }
  return dids
}
