/**
 * Memory of what comes off a socket, given back by hand.
 *
 * Each read of a socket is a chunk of its own outside V8's heap, up to 64 KB, and messages are views of it. Left to be collected,
 * some thousand messages make V8 mark its whole heap, which costs more than anything else done with them but checking
 * signatures. So whoever is done with a message may say so; a message of which nobody says so is collected as ever.
 */
import type { WebSocket } from 'ws'

/** One read, of which all messages that were read so far are known. */
interface Chunk {
  readonly memory: ArrayBuffer
  /** Messages that are not released. */
  held: number
  /** No more messages will be views of it. */
  isRead: boolean
}

/** Those of which there are messages. */
const chunks = new WeakMap<ArrayBufferLike, Chunk>()

/** Gives back what is done with. Views that are left have no length from then on. */
function free(chunk: Chunk): void {
  if (chunk.held === 0 && chunk.isRead) chunk.memory.transfer(0)
}

/** Of one connection: which messages lie in which chunk. */
export class ReceiveMemory {
  /** The chunk that came last, if all of its memory is its own. */
  #latest: Chunk | null = null
  /** The chunk that the last message was a view of, while there may be more in it. */
  #open: Chunk | null = null

  /** Watches the socket of a client that is about to connect; only its messages are left to be told of. */
  watch(client: WebSocket): void {
    client.once('upgrade', ({ socket }) => {
      client.once('open', () => socket.prependListener('data', (chunk: Buffer) => this.came(chunk)))
    })
    // Its data goes into the answer, perhaps as the view that it is, and perhaps later.
    client.on('ping', () => this.keep())
  }

  /** To be told before anything is read of a chunk. */
  came({ buffer, byteLength }: Uint8Array): void {
    const isWhole = buffer instanceof ArrayBuffer && buffer.byteLength === byteLength
    this.#latest = isWhole ? { memory: buffer, held: 0, isRead: false } : null
  }

  /** To be told of each message, in the order in which they came. Those that are copies, as they came in pieces, are none of this. */
  read(message: Uint8Array): void {
    const chunk = this.#latest
    if (chunk === null || message.buffer !== chunk.memory) return
    if (chunk !== this.#open) {
      // Messages are read in order, so all of the chunk before has been taken or copied.
      const before = this.#open
      this.#open = chunk
      chunks.set(chunk.memory, chunk)
      if (before !== null) {
        before.isRead = true
        free(before)
      }
    }
    chunk.held++
    if (message.byteOffset + message.byteLength === chunk.memory.byteLength) {
      chunk.isRead = true
      this.#open = null
    }
  }

  /** Leaves the chunk that came last to be collected, as somebody else has a view of it. */
  keep(): void {
    if (this.#latest !== null) this.#latest.held++
  }
}

/**
 * Says that a message, as it came, will not be looked at again, nor anything that is a view of it; to be said once. Its
 * memory is gone when all messages next to it are released, too. Does nothing for what is no such message.
 */
export function release(message: Uint8Array): void {
  const chunk = chunks.get(message.buffer)
  if (chunk === undefined) return
  chunk.held--
  free(chunk)
}
