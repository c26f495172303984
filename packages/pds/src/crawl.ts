/**
 * Asking relays to come: at start, and when there is news and the last time was a while ago; again until they answer.
 *
 * Source: pds.md #96; a request that fails is repeated with growing waits instead of being lost until the next write.
 */
import { setTimeout as systemSleep } from 'node:timers/promises'
import type { FetchBytes } from '@millisky/server/fetch'
import type { Logger } from '@millisky/server/trace'

/** No relay is asked more often than this, unless it did not answer. */
const INTERVAL_MS = 20 * 60_000
const RETRY_MIN_MS = 1_000
const RETRY_MAX_MS = 10 * 60_000
const TIMEOUT_MS = 10_000

export interface CrawlersParts {
  /** URLs of relays. */
  relays: readonly string[]
  /** The name this server is to be crawled under. */
  publicHost: string
  fetch: FetchBytes
  log: Logger
  /** Milliseconds since 1970. */
  now: () => number
  sleep?: (ms: number, signal: AbortSignal) => Promise<unknown>
}

export class Crawlers {
  readonly #parts: CrawlersParts
  readonly #stop = new AbortController()
  readonly #askedAt = new Map<string, number>()
  readonly #asking = new Map<string, Promise<void>>()

  constructor(parts: CrawlersParts) {
    this.#parts = parts
  }

  /** There is something new here, for every relay or one. Returns at once. */
  notify(only?: string): void {
    if (this.#stop.signal.aborted) return
    for (const relay of only === undefined ? this.#parts.relays : [only]) {
      const before = this.#askedAt.get(relay) ?? Number.NEGATIVE_INFINITY
      if (this.#asking.has(relay) || this.#parts.now() - before < INTERVAL_MS) continue
      this.#asking.set(
        relay,
        this.#askUntilAnswered(relay).finally(() => this.#asking.delete(relay)),
      )
    }
  }

  async close(): Promise<void> {
    this.#stop.abort()
    await Promise.allSettled(this.#asking.values())
  }

  async #askUntilAnswered(relay: string): Promise<void> {
    const { log } = this.#parts
    const { signal } = this.#stop
    const sleep = this.#parts.sleep ?? ((ms, signal) => systemSleep(ms, undefined, { signal }))
    for (let wait = RETRY_MIN_MS; !signal.aborted; wait = Math.min(RETRY_MAX_MS, wait * 2)) {
      const problem = await this.#ask(relay)
      if (problem === null) {
        this.#askedAt.set(relay, this.#parts.now())
        log.info({ relay }, 'asked to be crawled')
        return
      }
      if (!signal.aborted)
        log.warn({ relay, problem, retryMs: wait }, 'a relay does not take our request to be crawled')
      await sleep(wait, signal).catch(() => {})
    }
  }

  /** What went wrong, or null. */
  async #ask(relay: string): Promise<string | null> {
    const { fetch, publicHost } = this.#parts
    try {
      const answer = await fetch(new URL('/xrpc/com.atproto.sync.requestCrawl', relay), {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ hostname: publicHost }),
        timeoutMs: TIMEOUT_MS,
        bytesMax: 65_536,
        signal: this.#stop.signal,
      })
      if (answer.status < 300) return null
      return `${answer.status} ${Buffer.from(answer.bytes).toString('utf8').slice(0, 300)}`
    } catch (error) {
      return (error as Error).message
    }
  }
}
