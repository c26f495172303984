/** Load over HTTP/1.1 from the process of the benchmark: light connections, so that the server gets the machine. */
import { connect, type Socket } from 'node:net'
import type { Measured } from './measure.ts'
import type { Server } from './pds-servers.ts'

/** A connection that sends one request after the other. */
export class Client {
  readonly #socket: Socket
  readonly #parts: Buffer[] = []
  #received = 0
  /** Bytes of the whole answer, once its head has come. */
  #expected = Number.POSITIVE_INFINITY
  #answered: ((answer: Buffer) => void) | null = null

  constructor(port: number) {
    this.#socket = connect({ port, host: '127.0.0.1', noDelay: true })
    this.#socket.on('data', (data: Buffer) => this.#take(data))
  }

  #take(data: Buffer): void {
    this.#parts.push(data)
    this.#received += data.length
    if (this.#expected === Number.POSITIVE_INFINITY) this.#expected = lengthOf(this.#whole())
    if (this.#received >= this.#expected) this.#answered?.(this.#whole())
  }

  #whole(): Buffer {
    if (this.#parts.length > 1) this.#parts.splice(0, this.#parts.length, Buffer.concat(this.#parts))
    return this.#parts[0]!
  }

  /** Sends a request and resolves to the answer with its head. @throws Error unless it is a 200 */
  async call(request: string | Uint8Array): Promise<Buffer> {
    this.#parts.length = 0
    this.#received = 0
    this.#expected = Number.POSITIVE_INFINITY
    const answer = new Promise<Buffer>(resolve => {
      this.#answered = resolve
    })
    this.#socket.write(request)
    const got = await answer
    if (got.toString('latin1', 9, 12) !== '200') throw new Error(got.toString('utf8', 0, 2_000))
    return got
  }

  close(): void {
    this.#socket.destroy()
  }
}

/** Infinity while the head is not whole. Answers in chunks end with their empty one. */
function lengthOf(received: Buffer): number {
  const head = received.indexOf('\r\n\r\n')
  if (head < 0) return Number.POSITIVE_INFINITY
  const text = received.toString('latin1', 0, head)
  const length = /content-length: (\d+)/i.exec(text)
  if (length) return head + 4 + Number(length[1])
  const end = received.lastIndexOf('0\r\n\r\n')
  return end === received.length - 5 ? received.length : Number.POSITIVE_INFINITY
}

export interface Load<T> {
  name: string
  /** What one call sends; `n` counts up over all connections. */
  request: (of: T, n: number) => string | Uint8Array
  /** Calls of one round. */
  calls: number
  connections?: number
}

/** Calls per CPU-second of each server, in alternating rounds; the first server's share comes as `ratio` of the others. */
export async function loadServers<T>(
  servers: readonly { server: Server; users: readonly T[] }[],
  { name, request, calls, connections = 64 }: Load<T>,
  rounds = 5,
): Promise<Measured[]> {
  const rates: number[][] = servers.map(() => [])
  for (let round = -1; round < rounds; round++) {
    for (const [i, { server, users }] of servers.entries()) {
      const count = Math.ceil(calls * server.pace)
      const rate = await oneRound(server, users, request, count, Math.min(connections, count))
      if (round >= 0) rates[i]!.push(rate)
    }
  }
  return servers.map(({ server }, i) => {
    const sorted = rates[i]!.toSorted((a, b) => a - b)
    const ratios = rates[i]!.map((rate, round) => rates[0]![round]! / rate).sort((a, b) => a - b)
    return {
      name: `${name}, ${server.name}`,
      opsPerCpuSecond: sorted[sorted.length >> 1]!,
      low: sorted[0]!,
      high: sorted.at(-1)!,
      ratio: ratios[ratios.length >> 1]!,
    }
  })
}

let counter = 0

async function oneRound<T>(
  server: Server,
  users: readonly T[],
  request: Load<T>['request'],
  count: number,
  connections: number,
): Promise<number> {
  const clients = Array.from({ length: connections }, () => new Client(Number(new URL(server.url).port)))
  const before = await server.cpuSeconds()
  let sent = 0
  await Promise.all(
    clients.map(async client => {
      while (sent < count) {
        sent++
        const n = counter++
        await client.call(request(users[(n * 7) % users.length]!, n))
      }
    }),
  )
  const spent = (await server.cpuSeconds()) - before
  for (const client of clients) client.close()
  return count / spent
}
