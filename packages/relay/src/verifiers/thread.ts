/** One worker thread as the verifiers see it. */
import { Worker } from 'node:worker_threads'
import type { Group, Outcome } from './job.ts'
import { packedSize, packGroups, Texts, unpackOutcomes } from './packing.ts'
import type { Batch, BatchAnswer } from './worker.ts'

const BUFFER_BYTES = 512 * 1024
const SPARE_BUFFERS = 8

/** Something that judges batches, one after the other. */
export interface Judge<G extends Group> {
  /** Batches sent and not answered. */
  readonly outstanding: number
  send(groups: G[]): void
  close(): Promise<void>
}

export interface JudgeParts<G extends Group> {
  now: () => number
  /** `outcomes[i]` is that of `groups[i]`. */
  onDone(groups: G[], outcomes: Outcome[][]): void
  /** The thread died with these batches unanswered; there is a new one already. */
  onLost(batches: G[][], error: unknown): void
}

export class ThreadJudge<G extends Group> implements Judge<G> {
  readonly #parts: JudgeParts<G>
  readonly #sent = new Map<number, G[]>()
  readonly #spare: ArrayBuffer[] = []
  #worker: Worker
  #nextId = 1
  #closed = false

  constructor(parts: JudgeParts<G>) {
    this.#parts = parts
    this.#worker = this.#start()
  }

  get outstanding(): number {
    return this.#sent.size
  }

  send(groups: G[]): void {
    let size = 0
    for (const group of groups) size += packedSize(group)
    const buffer =
      (size <= BUFFER_BYTES ? this.#spare.pop() : undefined) ?? new ArrayBuffer(Math.max(size, BUFFER_BYTES))
    const texts = new Texts()
    const bytes = packGroups(groups, texts, Buffer.from(buffer))
    const id = this.#nextId++
    this.#sent.set(id, groups)
    const batch: Batch = { id, buffer, bytes, groups: groups.length, texts: texts.list, now: this.#parts.now() }
    this.#worker.postMessage(batch, [buffer])
  }

  async close(): Promise<void> {
    this.#closed = true
    await this.#worker.terminate()
  }

  #start(): Worker {
    const worker = new Worker(new URL('./worker.ts', import.meta.url), {
      name: 'verifier',
      // What a batch leaves behind is garbage before long; with more room for the young it is never copied.
      resourceLimits: { maxYoungGenerationSizeMb: 64 },
    })
    worker.on('message', (answer: BatchAnswer) => this.#answered(answer))
    let problem: unknown
    worker.on('error', error => {
      problem = error
    })
    worker.on('exit', code => this.#ended(worker, problem ?? new Error(`verifier exited with ${code}`)))
    return worker
  }

  #answered({ id, buffer, outcomes, texts }: BatchAnswer): void {
    const groups = this.#sent.get(id)!
    this.#sent.delete(id)
    if (buffer.byteLength === BUFFER_BYTES && this.#spare.length < SPARE_BUFFERS) this.#spare.push(buffer)
    this.#parts.onDone(groups, unpackOutcomes(outcomes, groups.length, texts))
  }

  #ended(worker: Worker, error: unknown): void {
    if (this.#closed || worker !== this.#worker) return
    const lost = [...this.#sent.values()]
    this.#sent.clear()
    this.#worker = this.#start()
    this.#parts.onLost(lost, error)
  }
}
