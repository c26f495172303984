/**
 * Sibling relays of the same operator: what is changed here is passed on to them, in the words of the admin routes that
 * all relays of their kind know.
 *
 * A request is in the database before the one who asked for it is answered, and stays there until the sibling has taken
 * or refused it, or for three days. Each sibling gets its requests in order, one at a time, so that "block, unblock" never
 * ends as a block. What came from a sibling is not passed on.
 *
 * Source: indigo's `--sibling-relays` (which sends each request once, without order) and bigsky's `--next-crawler`.
 */
import { setTimeout as systemSleep } from 'node:timers/promises'
import type { FetchBytes } from '@millisky/server/fetch'
import type { OutboxItem, OutboxStore } from './store/store.ts'
import { RELAY_MARKER } from './upstreams.ts'

const RETRY_MIN_MS = 1_000
const RETRY_MAX_MS = 10 * 60_000
const TIMEOUT_MS = 10_000
export const EXPIRY_MS = 3 * 86_400_000
const EXPIRE_EVERY_MS = 3_600_000
/** Requests that wait for one sibling; beyond that, requests to crawl are not taken for it. */
const WAITING_CRAWLS_MAX = 5_000
/** A host is passed on once in this time, however often it asks to be crawled. */
const CRAWL_AGAIN_MS = 3_600_000
const CRAWLS_REMEMBERED = 10_000
/** Answers that say something about the sibling, not about the request. */
const PASSING: ReadonlySet<number> = new Set([408, 425, 429, 502, 503, 504])
/** The password is not that of the sibling, which its operator will notice. */
const LOCKED: ReadonlySet<number> = new Set([401, 403])
/** Deployed relays answer 500 also to what they will never do, so these have so many attempts. */
const FAILURES_MAX = 5
const CRAWL_PATH = '/xrpc/com.atproto.sync.requestCrawl'

/** How the way of a request ended: `failed` is an attempt that is to be repeated. */
export const DELIVERIES = ['delivered', 'refused', 'failed', 'expired', 'overflow'] as const
export type Delivery = (typeof DELIVERIES)[number]

export interface SiblingsParts {
  /** Origins of relays that are told everything. */
  relays: readonly string[]
  /** Origins of relays that are told of hosts alone, without credentials. */
  crawlers: readonly string[]
  store: OutboxStore
  fetch: FetchBytes
  /** Admin password of the siblings. */
  password: string | undefined
  now: () => number
  sleep?: (ms: number, signal: AbortSignal) => Promise<unknown>
  observe?: (delivery: Delivery, item: Pick<OutboxItem, 'sibling' | 'path' | 'attempts'>, detail?: string) => void
  onError: (error: unknown) => void
}

/**
 * Tells whether a request came from a relay that tells the others itself. The user agent would say the same of a fan-out,
 * which only passes on what somebody asked of it.
 */
export function isFromRelay({ via }: { via?: string | undefined }): boolean {
  return via?.includes(RELAY_MARKER) ?? false
}

export class Siblings {
  readonly #parts: SiblingsParts
  readonly #stop = new AbortController()
  readonly #running = new Map<string, Promise<void>>()
  readonly #waiting = new Map<string, number>()
  /** Siblings for which something was added since the database was last asked. */
  readonly #added = new Set<string>()
  readonly #crawled = new Map<string, number>()
  #expiry: NodeJS.Timeout | undefined

  constructor(parts: SiblingsParts) {
    this.#parts = parts
  }

  /** All there are, each once. */
  get origins(): string[] {
    return [...new Set([...this.#parts.relays, ...this.#parts.crawlers])]
  }

  /** Requests that wait, by sibling. */
  get waiting(): ReadonlyMap<string, number> {
    return this.#waiting
  }

  /** Goes on with what waits since before the start. */
  async start(): Promise<void> {
    const origins = this.origins
    await this.#expire()
    for (const [sibling, count] of await this.#parts.store.count()) this.#waiting.set(sibling, count)
    if (origins.length === 0) return
    this.#expiry = setInterval(() => void this.#expire().catch(this.#parts.onError), EXPIRE_EVERY_MS)
    this.#expiry.unref()
    for (const sibling of origins) this.#wake(sibling)
  }

  /** Passes on what an administrator did. Resolves when that is sure to happen. */
  async tell(path: string, body?: object): Promise<void> {
    await this.#add(this.#parts.relays, path, body)
  }

  /** Passes on that a host asks to be crawled. */
  async tellCrawl(hostname: string): Promise<void> {
    const { now } = this.#parts
    const origins = this.origins
    if (origins.length === 0) return
    if (now() - (this.#crawled.get(hostname) ?? Number.NEGATIVE_INFINITY) < CRAWL_AGAIN_MS) return
    this.#crawled.delete(hostname)
    this.#crawled.set(hostname, now())
    if (this.#crawled.size > CRAWLS_REMEMBERED) this.#crawled.delete(this.#crawled.keys().next().value!)
    const free = origins.filter(sibling => (this.#waiting.get(sibling) ?? 0) < WAITING_CRAWLS_MAX)
    for (const sibling of origins) {
      if (!free.includes(sibling)) this.#parts.observe?.('overflow', { sibling, path: CRAWL_PATH, attempts: 0 })
    }
    await this.#add(free, CRAWL_PATH, { hostname })
  }

  /** Ends what is under way; what was not delivered stays for the next start. */
  async close(): Promise<void> {
    this.#stop.abort()
    clearInterval(this.#expiry)
    await Promise.allSettled(this.#running.values())
  }

  async #add(siblings: readonly string[], path: string, body?: object): Promise<void> {
    if (siblings.length === 0) return
    const text = body === undefined ? '' : JSON.stringify(body)
    await this.#parts.store.add(siblings.map(sibling => ({ sibling, path, body: text, at: this.#parts.now() })))
    for (const sibling of siblings) {
      this.#waiting.set(sibling, (this.#waiting.get(sibling) ?? 0) + 1)
      this.#added.add(sibling)
      this.#wake(sibling)
    }
  }

  #wake(sibling: string): void {
    if (this.#stop.signal.aborted || this.#running.has(sibling)) return
    const running = this.#run(sibling).finally(() => {
      this.#running.delete(sibling)
      if (this.#added.has(sibling)) this.#wake(sibling)
    })
    this.#running.set(sibling, running)
  }

  async #run(sibling: string): Promise<void> {
    const { store, now, onError } = this.#parts
    while (!this.#stop.signal.aborted) {
      try {
        this.#added.delete(sibling)
        const item = await store.first(sibling)
        if (item === null) {
          if (this.#added.has(sibling)) continue
          this.#waiting.set(sibling, 0)
          return
        }
        await this.#pause(item.nextAt - now())
        if (this.#stop.signal.aborted) return
        if (item.at < now() - EXPIRY_MS) await this.#over('expired', item, item.error ?? undefined)
        else await this.#try(item)
      } catch (error) {
        if (this.#stop.signal.aborted) return
        onError(error)
        await this.#pause(RETRY_MIN_MS)
      }
    }
  }

  async #pause(ms: number): Promise<void> {
    const sleep = this.#parts.sleep ?? ((ms, signal) => systemSleep(ms, undefined, { signal, ref: false }))
    if (ms > 0) await sleep(ms, this.#stop.signal).catch(() => {})
  }

  async #try(item: OutboxItem): Promise<void> {
    const { now, store, observe } = this.#parts
    const { end, error } = await this.#send(item)
    if (end !== null) return this.#over(end, item, error ?? undefined)
    // Nobody's fault: it is asked again after the start.
    if (this.#stop.signal.aborted) return
    const attempts = item.attempts + 1
    const wait = Math.min(RETRY_MAX_MS, RETRY_MIN_MS * 2 ** Math.min(20, item.attempts))
    await store.failed(item.id, { attempts, nextAt: now() + wait, error })
    observe?.('failed', { ...item, attempts }, error ?? undefined)
  }

  async #over(delivery: Delivery, item: OutboxItem, detail?: string): Promise<void> {
    await this.#parts.store.remove(item.id)
    this.#waiting.set(item.sibling, Math.max(0, (this.#waiting.get(item.sibling) ?? 0) - 1))
    this.#parts.observe?.(delivery, item, detail)
  }

  /** One attempt; `end` is null when another one is to follow. */
  async #send(item: OutboxItem): Promise<{ end: Delivery | null; error: string | null }> {
    const { sibling, path, body } = item
    const { fetch, password } = this.#parts
    const isAdmin = path.startsWith('/admin/')
    const basic = password === undefined ? '' : Buffer.from(`admin:${password}`).toString('base64')
    try {
      const { status, bytes } = await fetch(`${sibling}${path}`, {
        method: 'POST',
        headers: {
          via: `1.1 ${RELAY_MARKER}`,
          ...(isAdmin && basic !== '' ? { authorization: `Basic ${basic}` } : {}),
          ...(body === '' ? {} : { 'content-type': 'application/json' }),
        },
        ...(body === '' ? {} : { body }),
        timeoutMs: TIMEOUT_MS,
        bytesMax: 65_536,
        signal: this.#stop.signal,
      })
      if (status < 300) return { end: 'delivered', error: null }
      const error = `HTTP ${status} ${Buffer.from(bytes).toString('utf8').slice(0, 300)}`
      if (PASSING.has(status) || (isAdmin && LOCKED.has(status))) return { end: null, error }
      return { end: status >= 500 && item.attempts + 1 < FAILURES_MAX ? null : 'refused', error }
    } catch (error) {
      return { end: null, error: (error as Error).message }
    }
  }

  async #expire(): Promise<void> {
    const { store, now } = this.#parts
    if ((await store.expire(now() - EXPIRY_MS)) === 0) return
    this.#waiting.clear()
    for (const [sibling, count] of await store.count()) this.#waiting.set(sibling, count)
  }
}
