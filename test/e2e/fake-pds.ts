// A PDS that does what it is told: its accounts are real (keys, DIDs in the directory, signed repositories), but it sends
// whatever frames a test wants. It stands in for hosts that are broken or hostile.
import { once } from 'node:events'
import { createServer, type Server } from 'node:http'
import { setTimeout as wait } from 'node:timers/promises'
import { Blocks } from '@millisky/core/blocks'
import { utf8 } from '@millisky/core/bytes'
import { encode } from '@millisky/core/cbor'
import { Cid } from '@millisky/core/cid'
import { SigningKey } from '@millisky/core/crypto'
import { accountEvent, commitEvent, type Event, encodeFrame, identityEvent, withSeq } from '@millisky/core/event'
import { sha256 } from '@millisky/core/hash'
import { type PlcUpdate, plcDidOf, signPlcOperation } from '@millisky/core/plc'
import { apply, type Change, type Head, type Write } from '@millisky/core/repo'
import type { Datetime, Did } from '@millisky/core/syntax'
import { TidClock } from '@millisky/core/tid'
import { type WebSocket, WebSocketServer } from 'ws'

const clock = new TidClock({ now: Date.now, clockId: 5 })
export const now = () => new Date().toISOString() as Datetime

/** A repository with its own key, registered in the directory as living at one host. */
export class FakeAccount {
  readonly did: Did
  readonly key: SigningKey
  readonly blocks = new Blocks()
  head: Head | null = null

  constructor(did: Did, key: SigningKey) {
    this.did = did
    this.key = key
  }

  /** The change that writes one post, applied unless `keep` is false. */
  post(text: string, options: { key?: SigningKey; keep?: boolean } = {}): Change {
    const bytes = encode({ $type: 'app.bsky.feed.post', text, createdAt: now() })
    const path = `app.bsky.feed.post/${clock.next()}`
    const write: Write = { action: 'create', path, cid: Cid.ofCbor(bytes), bytes }
    const rev = clock.next(this.head?.rev)
    const { did, head, blocks } = this
    const change = apply({ did, head, blocks, writes: [write], rev, key: options.key ?? this.key })
    if (options.keep !== false) this.adopt(change)
    return change
  }

  adopt(change: Change): void {
    this.head = change.head
    for (const block of [change.commit, ...change.nodes]) this.blocks.add(block)
  }
}

export class FakePds {
  readonly url: string
  readonly server: Server
  readonly #sockets = new Set<WebSocket>()
  readonly #frames: { seq: number; data: Uint8Array | string }[] = []
  #seq = 0
  /** How often the Relay connected. */
  connections = 0

  private constructor(server: Server, url: string) {
    this.server = server
    this.url = url
    const sockets = new WebSocketServer({ noServer: true })
    server.on('upgrade', (request, socket, head) => {
      sockets.handleUpgrade(request, socket, head, client => {
        this.connections++
        this.#sockets.add(client)
        client.on('close', () => this.#sockets.delete(client))
        client.on('error', () => {})
        const cursor = new URL(request.url ?? '/', url).searchParams.get('cursor')
        if (cursor !== null) for (const { seq, data } of this.#frames) if (seq > Number(cursor)) client.send(data)
      })
    })
  }

  static async start(): Promise<FakePds> {
    const server = createServer((request, reply) => {
      reply.setHeader('content-type', 'application/json')
      if (request.url?.startsWith('/xrpc/com.atproto.server.describeServer')) {
        reply.end(JSON.stringify({ did: 'did:web:localhost', availableUserDomains: ['.test'] }))
      } else {
        reply.statusCode = 501
        reply.end(JSON.stringify({ error: 'MethodNotImplemented', message: 'Method Not Implemented' }))
      }
    }).listen(0, '127.0.0.1')
    await once(server, 'listening')
    return new FakePds(server, `http://localhost:${(server.address() as { port: number }).port}`)
  }

  /** Registers a new DID in the directory whose PDS is `host`, this one unless said. */
  async createAccount(plc: string, name: string, host = this.url): Promise<FakeAccount> {
    const key = SigningKey.fromPrivate('k256', sha256(utf8(`${name} ${this.url}`)))
    const operation = signPlcOperation<PlcUpdate>(
      {
        type: 'plc_operation',
        rotationKeys: [key.didKey],
        verificationMethods: { atproto: key.didKey },
        alsoKnownAs: [`at://${name}.test`],
        services: { atproto_pds: { type: 'AtprotoPersonalDataServer', endpoint: host } },
        prev: null,
      },
      key,
    )
    const did = plcDidOf(operation)
    const reply = await fetch(`${plc}/${did}`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(operation),
    })
    if (!reply.ok) throw new Error(`directory: ${reply.status} ${await reply.text()}`)
    return new FakeAccount(did, key)
  }

  async requestCrawl(relay: string): Promise<Response> {
    return await fetch(`${relay}/xrpc/com.atproto.sync.requestCrawl`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ hostname: new URL(this.url).host }),
    })
  }

  /** Sends an event under the next seq. */
  send(event: Event): void {
    this.sendRaw(withSeq(encodeFrame(event), this.#seq + 1))
  }

  /** Sends bytes (or, wrongly, text) as they are; they take a seq all the same, so that a replay repeats them. */
  sendRaw(data: Uint8Array | string, options: { once?: boolean } = {}): void {
    this.#seq++
    if (!options.once) this.#frames.push({ seq: this.#seq, data })
    for (const socket of this.#sockets) socket.send(data)
  }

  announce(account: FakeAccount): void {
    this.send(identityEvent({ did: account.did }, now()))
    this.send(accountEvent({ did: account.did, active: true }, now()))
  }

  sendPost(account: FakeAccount, text: string): Change {
    const change = account.post(text)
    this.send(commitEvent(change, now()))
    return change
  }

  async connected(): Promise<void> {
    while (this.#sockets.size === 0) await wait(10)
  }

  async close(): Promise<void> {
    for (const socket of this.#sockets) socket.terminate()
    this.server.closeAllConnections()
    this.server.close()
    await once(this.server, 'close')
  }
}
