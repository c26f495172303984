/**
 * Verification, spread over threads. An account's events always go to the same thread, in order, and from each host in
 * turn, so that no flood of one host or account makes others wait for more than a few batches.
 */
import { type Group, judgeGroup, Keys, type Outcome } from './verifiers/job.ts'
import { isPackable } from './verifiers/packing.ts'
import { type Judge, type JudgeParts, ThreadJudge } from './verifiers/thread.ts'

/** Jobs in one batch: enough to make the way to a thread and back cheap, few enough for others not to wait long. */
const BATCH_JOBS = 64
const BATCH_BYTES = 384 * 1024
/** Batches a thread has at a time: while it works on one, the next one lies ready. */
const BATCHES_OUTSTANDING = 2

/** Events of one account, to be judged. At most one group of an account may be under way. */
export interface Request extends Group {
  /** Chooses the thread: the account's DID. */
  account: string
  /** Whose turn it uses: the host's id. */
  from: number
  /** Called once. Fewer outcomes than jobs: the last one says why, and the rest was not judged. */
  done(outcomes: Outcome[]): void
}

export interface VerifiersParts {
  /** Threads; 0 judges in this one. */
  workers: number
  /** Milliseconds since 1970. */
  now: () => number
  /** A thread died and was replaced. */
  onCrash?: (error: unknown) => void
}

export class Verifiers {
  readonly #shards: Shard[]

  constructor(parts: VerifiersParts) {
    this.#shards = Array.from({ length: Math.max(1, parts.workers) }, () => new Shard(parts))
  }

  /** Requests that wait or are being judged. */
  get pending(): number {
    return this.#shards.reduce((sum, shard) => sum + shard.pending, 0)
  }

  submit(request: Request): void {
    this.#shards[hash(request.account) % this.#shards.length]!.submit(request)
  }

  /** Ends the threads; what is under way is never answered. */
  async close(): Promise<void> {
    await Promise.all(this.#shards.map(shard => shard.close()))
  }
}

/** Spreads DIDs; their ends are what differs. */
function hash(text: string): number {
  let value = 0
  for (let i = Math.max(0, text.length - 8); i < text.length; i++) value = (value * 31 + text.charCodeAt(i)) >>> 0
  return value
}

/** One thread, and who waits for it. */
class Shard {
  readonly #judge: Judge<Request>
  readonly #onCrash: (error: unknown) => void
  /** By host; the order of the map is whose turn is next. */
  readonly #waiting = new Map<number, Request[]>()
  /** Were with a thread when it died, and go alone now. */
  readonly #suspects: Request[] = []
  readonly #tried = new WeakSet<Request>()
  #scheduled = false
  pending = 0

  constructor({ workers, now, onCrash = () => {} }: VerifiersParts) {
    this.#onCrash = onCrash
    const parts: JudgeParts<Request> = {
      now,
      onDone: (requests, outcomes) => {
        this.#pump()
        this.#answer(requests, outcomes)
      },
      onLost: (batches, error) => this.#lost(batches, error),
    }
    this.#judge = workers > 0 ? new ThreadJudge(parts) : new LocalJudge(parts)
  }

  submit(request: Request): void {
    this.pending++
    const queue = this.#waiting.get(request.from)
    if (queue) queue.push(request)
    else this.#waiting.set(request.from, [request])
    if (this.#scheduled) return
    this.#scheduled = true
    // What is submitted in one go travels together.
    queueMicrotask(() => {
      this.#scheduled = false
      this.#pump()
    })
  }

  close(): Promise<void> {
    return this.#judge.close()
  }

  #pump(): void {
    while (this.#judge.outstanding < BATCHES_OUTSTANDING) {
      const suspect = this.#judge.outstanding === 0 ? this.#suspects.pop() : undefined
      const batch = suspect ? [suspect] : this.#suspects.length > 0 ? [] : this.#nextBatch()
      if (batch.length === 0) return
      this.#judge.send(batch)
      if (suspect) return
    }
  }

  #nextBatch(): Request[] {
    const batch: Request[] = []
    let [jobs, bytes] = [0, 0]
    while (jobs < BATCH_JOBS && bytes < BATCH_BYTES) {
      const turn = this.#waiting.entries().next().value
      if (turn === undefined) break
      const [from, queue] = turn
      const request = queue.shift()!
      this.#waiting.delete(from)
      if (queue.length > 0) this.#waiting.set(from, queue)
      if (!isPackable(request)) {
        this.#answer([request], [[{ kind: 'failed', detail: 'key or CID of impossible length' }]])
        continue
      }
      batch.push(request)
      jobs += request.jobs.length
      for (const { frame } of request.jobs) bytes += frame.length
    }
    return batch
  }

  #answer(requests: Request[], outcomes: Outcome[][]): void {
    this.pending -= requests.length
    for (let i = 0; i < requests.length; i++) requests[i]!.done(outcomes[i]!)
  }

  #lost(batches: Request[][], error: unknown): void {
    this.#onCrash(error)
    for (const request of batches.flat()) {
      if (this.#tried.has(request)) this.#answer([request], [[{ kind: 'failed', detail: 'the verifier died of it' }]])
      else {
        this.#tried.add(request)
        this.#suspects.push(request)
      }
    }
    this.#pump()
  }
}

/** Judges in this thread, a little at a time. */
class LocalJudge implements Judge<Request> {
  readonly #parts: JudgeParts<Request>
  readonly #keys = new Keys()
  #closed = false
  outstanding = 0

  constructor(parts: JudgeParts<Request>) {
    this.#parts = parts
  }

  send(requests: Request[]): void {
    this.outstanding++
    setImmediate(() => {
      if (this.#closed) return
      const outcomes = requests.map(request => judgeGroup(request, this.#parts.now(), this.#keys))
      this.outstanding--
      this.#parts.onDone(requests, outcomes)
    })
  }

  async close(): Promise<void> {
    this.#closed = true
  }
}
