/**
 * Whole repositories, and what changed in them since a rev, as CAR files that are made while they are sent.
 *
 * The order is that of streamable CARs: the commit, then the tree in pre-order with each record at its place. A subtree
 * whose top node is not newer than `since` was there then as it is now, with all below it; so what changed is found by
 * walking down from the root, at a cost that grows with the change and not with the repository. One collection is a range of
 * keys: the nodes on the way to it and all below, which prove that nothing of it is left out.
 */
import { pipeline, Readable, type Transform, type Writable } from 'node:stream'
import { constants, createGzip, createZstdCompress } from 'node:zlib'
import type { Cid } from '@millisky/core/cid'
import { Refused, Unavailable } from '@millisky/core/errors'
import type { Head } from '@millisky/core/repo'
import type { Nsid } from '@millisky/core/syntax'
import type { Awaitable } from '@millisky/server/db/db'
import { blockChunks, CHUNK_BYTES, ChunkMemory, exportChunks } from './exports/chunks.ts'
import type { AccountId, RepoSnapshot, Store } from './store/store.ts'

export interface ExportLimits {
  /** Exports at a time; each holds a view of the database open. */
  atOnceMax: number
  /** Of one reader. */
  perReaderMax: number
  /** A reader that takes nothing for this long is given up, and one that takes a chunk in this long eight times over. */
  stallMs: number
}

export const EXPORT_LIMITS: ExportLimits = { atOnceMax: 64, perReaderMax: 24, stallMs: 60_000 }

/** Each chunk that is taken buys this share of the time for a stall: 120 KB in 7.5 s, when that is a minute. */
const CHUNKS_PER_STALL = 8

export type Encoding = 'gzip' | 'zstd'

export interface ExportOptions {
  /** Only what came after this rev. */
  since?: string | undefined
  /** Only records of this collection. */
  collection?: Nsid | undefined
  encoding?: Encoding | undefined
  /** Whom to count for, such as an address. */
  reader?: string | undefined
  /** What the body will be piped into: memory of chunks that have left it is used again, so they are nobody's to keep. */
  taker?: Writable | undefined
}

/** An export under way. `body` has to be read or destroyed. */
export interface Export {
  head: Head
  body: Readable
}

export class Exports {
  readonly #store: Store
  readonly #limits: ExportLimits
  readonly #readers = new Map<string, number>()
  #running = 0

  constructor(store: Store, limits: ExportLimits = EXPORT_LIMITS) {
    this.#store = store
    this.#limits = limits
  }

  /** How many are under way. */
  get running(): number {
    return this.#running
  }

  /** Begins the CAR of an account's repository as it is now. @throws Unavailable, Refused 429 */
  open(account: AccountId, options: ExportOptions = {}): Promise<Export> {
    return this.#open(account, options, (view, memory) => exportChunks(view, options, memory))
  }

  /** Begins a CAR of some blocks. @throws Refused if one is not there; Unavailable, Refused 429 */
  openBlocks(
    account: AccountId,
    cids: readonly Cid[],
    options: Pick<ExportOptions, 'reader' | 'taker'>,
  ): Promise<Export> {
    return this.#open(account, options, async (view, memory) => {
      const lacking: Cid[] = []
      for (const cid of cids) if (!(await view.has(cid))) lacking.push(cid)
      if (lacking.length > 0) throw new Refused('InvalidRequest', `Could not find cids: ${lacking.join(',')}`)
      return blockChunks(view, cids, memory)
    })
  }

  #open(
    account: AccountId,
    { reader = '', encoding, taker }: Pick<ExportOptions, 'reader' | 'encoding' | 'taker'>,
    begin: (view: RepoSnapshot, memory: ChunkMemory) => Awaitable<AsyncGenerator<Uint8Array>>,
  ): Promise<Export> {
    const leave = this.#enter(reader)
    const { promise, resolve, reject } = Promise.withResolvers<Export>()
    this.#store.repos
      .snapshot(account, async view => {
        const memory = new ChunkMemory()
        const { source, body } = this.#begin(await begin(view, memory), memory, { encoding, taker })
        const closed = new Promise(resolve => source.once('close', resolve))
        resolve({ head: view.head, body })
        // The reader may still have to take the rest.
        await closed
      })
      .catch(reject)
      .finally(leave)
    return promise
  }

  /** @returns what frees the place again. */
  #enter(reader: string): () => void {
    const { atOnceMax, perReaderMax } = this.#limits
    if (this.#running >= atOnceMax) {
      throw new Unavailable('NotEnoughResources', 'Too many repositories are being exported', 503, 10)
    }
    const own = this.#readers.get(reader) ?? 0
    if (own >= perReaderMax) {
      throw new Refused('RateLimitExceeded', 'Too many exports at a time', 429, { 'retry-after': '10' })
    }
    this.#readers.set(reader, own + 1)
    this.#running++
    return () => {
      this.#running--
      const left = this.#readers.get(reader)! - 1
      if (left === 0) this.#readers.delete(reader)
      else this.#readers.set(reader, left)
    }
  }

  /** @returns what reads the database, and what of it goes to the reader. */
  #begin(
    chunks: AsyncGenerator<Uint8Array>,
    memory: ChunkMemory,
    { encoding, taker }: Pick<ExportOptions, 'encoding' | 'taker'>,
  ): { source: Readable; body: Readable } {
    const patience = new Patience(this.#limits.stallMs, () => {
      body.destroy(new Unavailable('NotEnoughResources', 'the reader of an export has stalled'))
    })
    const source = new Source(chunks, memory, patience)
    const compressor = encoding && createCompressor(encoding)
    source.watch(compressor ?? taker)
    const body = compressor ? pipeline(source, compressor, () => {}) : source
    body.once('close', () => patience.end())
    return { source, body }
  }
}

/** Little is read ahead: what a reader does not take stays in the database. Everybody else has a turn before each chunk. */
class Source extends Readable {
  readonly #chunks: AsyncGenerator<Uint8Array>
  readonly #memory: ChunkMemory
  readonly #patience: Patience
  /** Where the chunks go from here, once they do; and those of which it is not known that they have left that, too. */
  #taker: Writable | undefined
  readonly #given: Uint8Array[] = []

  constructor(chunks: AsyncGenerator<Uint8Array>, memory: ChunkMemory, patience: Patience) {
    super({ highWaterMark: CHUNK_BYTES })
    this.#chunks = chunks
    this.#memory = memory
    this.#patience = patience
  }

  /** Has the memory of chunks used again that were piped into `taker` from here, without anything between. */
  watch(taker: Writable | undefined): void {
    taker?.once('pipe', from => {
      if (from === this) this.#taker = taker
    })
  }

  override _read(): void {
    this.#patience.add()
    setImmediate(() => {
      if (this.destroyed) return
      this.#collect()
      this.#chunks.next().then(
        ({ value }) => {
          if (value && this.#taker) this.#given.push(value)
          this.push(value ?? null)
        },
        error => this.destroy(error),
      )
    })
  }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    // Waits for a chunk that is being read.
    this.#chunks.return(undefined).then(() => done(error), done)
  }

  /** What is neither here nor with the taker any more has been sent. Both pass on what came first. */
  #collect(): void {
    if (!this.#taker) return
    let sent = this.#given.length
    let held = this.readableLength + this.#taker.writableLength
    while (held > 0 && sent > 0) held -= this.#given[--sent]!.length
    for (const chunk of this.#given.splice(0, sent)) this.#memory.giveBack(chunk)
  }
}

/**
 * Runs out when nothing is added for a time, and also when too little is. It is used up share by share, so that a time in which
 * nothing ran here costs the reader one share and no more.
 */
class Patience {
  readonly #timer: NodeJS.Timeout
  #shares = CHUNKS_PER_STALL

  constructor(ms: number, over: () => void) {
    this.#timer = setInterval(() => {
      if (--this.#shares > 0) return
      this.end()
      over()
    }, ms / CHUNKS_PER_STALL)
  }

  add(): void {
    this.#shares = Math.min(CHUNKS_PER_STALL, this.#shares + 1)
  }

  end(): void {
    clearInterval(this.#timer)
  }
}

function createCompressor(encoding: Encoding): Transform {
  switch (encoding) {
    case 'zstd':
      return createZstdCompress({
        chunkSize: CHUNK_BYTES,
        // A window of 256 KiB: some 1.5 MB of memory for each export.
        params: { [constants.ZSTD_c_compressionLevel]: 3, [constants.ZSTD_c_windowLog]: 18 },
      })
    case 'gzip':
      return createGzip({ chunkSize: CHUNK_BYTES, level: 4 })
  }
}
