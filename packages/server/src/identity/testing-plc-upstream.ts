/** A did:plc directory's export for tests, that says whatever it is told to: also what no directory would. */
import { once } from 'node:events'
import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { WebSocketServer } from 'ws'

export class TestPlcUpstream {
  readonly url: string
  readonly #server: Server
  readonly #sockets = new WebSocketServer({ noServer: true })
  /** Lines by seq, as text, in order. */
  lines: { seq: number; text: string }[] = []
  /** Called for each page; may give another body. */
  tamper: (body: string) => string = body => body
  /** Requests for pages so far. */
  pages = 0
  connections = 0
  /** Answers so many requests for pages with 429 and a wait of 30 seconds. */
  busy = 0
  /** Closes each stream with this reason at once. */
  refuseStream: string | null = null

  private constructor(server: Server, url: string) {
    this.#server = server
    this.url = url
    server.on('request', (request, reply) => {
      const { searchParams } = new URL(request.url ?? '/', url)
      const [after, count] = [Number(searchParams.get('after')), Number(searchParams.get('count'))]
      this.pages++
      if (this.busy > 0) {
        this.busy--
        reply.writeHead(429, { 'retry-after': '30' }).end()
        return
      }
      const page = this.lines.filter(({ seq }) => seq > after).slice(0, count)
      reply.end(this.tamper(page.map(({ text }) => text).join('\n')))
    })
    server.on('upgrade', (request, socket, head) => {
      this.#sockets.handleUpgrade(request, socket, head, client => {
        this.connections++
        client.on('error', () => {})
        const cursor = Number(new URL(request.url ?? '/', url).searchParams.get('cursor'))
        if (this.refuseStream !== null) client.close(1008, this.refuseStream)
        else if (cursor > (this.lines.at(-1)?.seq ?? 0)) client.close(1008, 'FutureCursor')
        else for (const { seq, text } of this.lines) if (seq > cursor) client.send(text)
      })
    })
  }

  static async start(): Promise<TestPlcUpstream> {
    const server = createServer().listen(0, '127.0.0.1')
    await once(server, 'listening')
    return new TestPlcUpstream(server, `http://127.0.0.1:${(server.address() as AddressInfo).port}`)
  }

  /** Adds a line and tells it to those who listen. */
  say(seq: number, line: object): void {
    const text = JSON.stringify({ type: 'sequenced_op', seq, ...line })
    this.lines.push({ seq, text })
    this.send(text)
  }

  /** Sends a message to those who listen, and nothing else. */
  send(text: string | Uint8Array): void {
    for (const client of this.#sockets.clients) client.send(text)
  }

  /** Cuts all streams. */
  cut(): void {
    for (const client of this.#sockets.clients) client.terminate()
  }

  async close(): Promise<void> {
    this.cut()
    this.#server.closeAllConnections()
    this.#server.close()
    await once(this.#server, 'close')
  }
}
