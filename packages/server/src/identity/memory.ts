/** A new answer: as far as the budget for forced refreshes goes, or always, for askers who are limited by other means. */
export type Freshness = boolean | 'always'

/** How long answers are believed, and how many are kept. */
export interface MemorySettings {
  /** Answers kept; the least recently used go first. */
  entriesMax: number
  /** Up to this age an answer is given as it is; default 1 h. */
  staleMs: number
  /** Up to this age it is still given, while a new one is fetched; default 24 h. */
  maxMs: number
  /** For this long nobody asks again after a failure; default 2 min. */
  failureMs: number
  /** Forced refreshes of one key in {@link refreshWindowMs}; those beyond are answered from memory. Default 5. */
  refreshesMax: number
  /** Default 5 min. */
  refreshWindowMs: number
}

export const MEMORY_DEFAULTS: Readonly<MemorySettings> = {
  entriesMax: 20_000,
  staleMs: 3_600_000,
  maxMs: 86_400_000,
  failureMs: 120_000,
  refreshesMax: 5,
  refreshWindowMs: 300_000,
}

/** An answer and when it was true, in milliseconds since the epoch. */
export interface Dated<V> {
  readonly value: V
  readonly at: number
}

/** Where answers outlive the process. A failing store is a bug of its own, not a reason to have no answer. */
export interface MemoryStore<K, V> {
  /** As `get`, where the answer can be had without waiting; null also where it cannot. */
  peek?(key: K): Dated<V> | null
  get(key: K): Promise<Dated<V> | null> | Dated<V> | null
  put(key: K, dated: Dated<V>): Promise<void> | void
  delete(key: K): Promise<void> | void
}

export interface MemoryParts<K, V> {
  load: (key: K) => Promise<V>
  /** Tells whether a failure is an answer, so that what was known before is no longer true. */
  isFinal: (error: unknown) => boolean
  now: () => number
  store?: MemoryStore<K, V> | undefined
  /** Told of errors of the store. */
  onStoreError?: ((error: unknown) => void) | undefined
}

interface Entry<V> {
  known: Dated<V> | null
  failure: { error: unknown; at: number } | null
  /** Somebody said that `known` is no longer true: it only serves while no better can be had. */
  isExpired: boolean
  /** Times of forced refreshes, oldest first; null before the first. */
  refreshes: number[] | null
  running: Promise<V> | null
  /** A load that starts when {@link running} ends, for those to whom one that already runs is too old. */
  next: Promise<V> | null
}

/**
 * Answers to questions that are slow, remembered.
 *
 * Whoever asks the same at the same time shares one load. An answer that is getting old is given at once while a new one
 * is fetched; when fetching fails, the old one serves until it is too old. A failure is remembered too.
 */
export class Memory<K, V> {
  readonly #settings: MemorySettings
  readonly #parts: MemoryParts<K, V>
  readonly #entries = new Map<K, Entry<V>>()

  constructor(parts: MemoryParts<K, V>, settings: Partial<MemorySettings> = {}) {
    this.#parts = parts
    this.#settings = { ...MEMORY_DEFAULTS, ...settings }
  }

  get size(): number {
    return this.#entries.size
  }

  /** The answer, from memory or fetched. `fresh` demands one fetched from now on, as far as the budget goes. */
  async get(key: K, { fresh = false }: { fresh?: Freshness } = {}): Promise<V> {
    const entry = this.#entry(key)
    if (fresh === 'always' || (fresh && this.#spend(entry))) return this.#loadAnew(key, entry)
    const known = this.#believable(entry)
    if (known) {
      this.#refreshIfStale(key, entry, known)
      return known.value
    }
    if (this.#hasFailed(entry)) throw entry.failure?.error
    return this.#load(key, entry)
  }

  /** The answer if it is in memory, without waiting; one that is getting old starts a fetch. */
  peek(key: K): V | null {
    const entry = this.#entries.get(key) ?? this.#fetchedNow(key)
    const known = entry && this.#believable(entry)
    if (!known) return null
    this.#touch(key, entry)
    this.#refreshIfStale(key, entry, known)
    return known.value
  }

  /**
   * Somebody says that the answer has changed: the next question fetches it. The old one is kept for the case that this
   * fails. False when the budget for this key is spent and nothing was done.
   */
  expire(key: K): boolean {
    const entry = this.#entry(key)
    if (!this.#spend(entry)) return false
    entry.failure = null
    entry.isExpired = true
    return true
  }

  /** Takes an answer that the caller knows for certain and has stored, if there is one in memory that it replaces. */
  revise(key: K, value: V): void {
    const entry = this.#entries.get(key)
    if (entry) this.#accept(entry, { value, at: this.#parts.now() })
  }

  /** Forgets what is in memory, so that the next question goes to the store. */
  forget(key: K): void {
    const entry = this.#entries.get(key)
    if (entry) entry.known = null
  }

  /** Takes an answer that the caller knows for certain. */
  set(key: K, value: V): void {
    this.#learn(key, this.#entry(key), { value, at: this.#parts.now() })
  }

  #entry(key: K): Entry<V> {
    let entry = this.#entries.get(key)
    if (entry) this.#touch(key, entry)
    else {
      entry = { known: null, failure: null, isExpired: false, refreshes: null, running: null, next: null }
      this.#entries.set(key, entry)
      if (this.#entries.size > this.#settings.entriesMax) {
        for (const oldest of this.#entries.keys()) {
          this.#entries.delete(oldest)
          break
        }
      }
    }
    return entry
  }

  #touch(key: K, entry: Entry<V>): void {
    this.#entries.delete(key)
    this.#entries.set(key, entry)
  }

  #believable(entry: Entry<V>): Dated<V> | null {
    const { known } = entry
    if (!known || this.#parts.now() - known.at >= this.#settings.maxMs) return null
    return entry.isExpired && !this.#hasFailed(entry) ? null : known
  }

  #hasFailed({ failure }: Entry<V>): boolean {
    return failure !== null && this.#parts.now() - failure.at < this.#settings.failureMs
  }

  #spend(entry: Entry<V>): boolean {
    const now = this.#parts.now()
    const { refreshWindowMs, refreshesMax } = this.#settings
    entry.refreshes = (entry.refreshes ?? []).filter(at => now - at < refreshWindowMs)
    if (entry.refreshes.length >= refreshesMax) return false
    entry.refreshes.push(now)
    return true
  }

  #refreshIfStale(key: K, entry: Entry<V>, known: Dated<V>): void {
    if (this.#parts.now() - known.at < this.#settings.staleMs || this.#hasFailed(entry)) return
    this.#load(key, entry).catch(() => {})
  }

  #load(key: K, entry: Entry<V>): Promise<V> {
    entry.running ??= this.#run(key, entry, false).finally(() => {
      entry.running = null
    })
    return entry.running
  }

  #loadAnew(key: K, entry: Entry<V>): Promise<V> {
    if (!entry.running) {
      entry.running = this.#run(key, entry, true).finally(() => {
        entry.running = null
      })
      return entry.running
    }
    entry.next ??= entry.running
      .catch(() => {})
      .then(() => {
        entry.next = null
        return this.#loadAnew(key, entry)
      })
    return entry.next
  }

  async #run(key: K, entry: Entry<V>, fresh: boolean): Promise<V> {
    const { load, now, isFinal } = this.#parts
    const at = now()
    if (!fresh && !entry.isExpired) {
      // Others may have learned more since.
      const stored = await this.#fromStore(key)
      if (stored && stored.at > (entry.known?.at ?? 0) && now() - stored.at < this.#settings.maxMs) {
        entry.known = stored
        if (now() - stored.at < this.#settings.staleMs) return stored.value
      }
    }
    try {
      const value = await load(key)
      // Told while the question was under way: that is newer.
      if (entry.known && entry.known.at > at) return entry.known.value
      this.#learn(key, entry, { value, at })
      return value
    } catch (error) {
      entry.failure = { error, at: now() }
      if (isFinal(error)) {
        entry.known = null
        entry.isExpired = false
        this.#store(() => this.#parts.store?.delete(key))
      }
      const known = fresh ? null : this.#believable(entry)
      if (known) return known.value
      throw error
    }
  }

  #learn(key: K, entry: Entry<V>, dated: Dated<V>): void {
    this.#accept(entry, dated)
    this.#store(() => this.#parts.store?.put(key, dated))
  }

  #accept(entry: Entry<V>, dated: Dated<V>): void {
    entry.known = dated
    entry.failure = null
    entry.isExpired = false
  }

  /** An entry made of what the store says without being waited for. */
  #fetchedNow(key: K): Entry<V> | undefined {
    const { store, now, onStoreError } = this.#parts
    if (!store?.peek) return undefined
    let stored: Dated<V> | null = null
    try {
      stored = store.peek(key)
    } catch (error) {
      onStoreError?.(error)
    }
    if (!stored || now() - stored.at >= this.#settings.maxMs) return undefined
    const entry = this.#entry(key)
    entry.known = stored
    return entry
  }

  async #fromStore(key: K): Promise<Dated<V> | null> {
    try {
      return (await this.#parts.store?.get(key)) ?? null
    } catch (error) {
      this.#parts.onStoreError?.(error)
      return null
    }
  }

  #store(work: () => Promise<void> | void | undefined): void {
    Promise.resolve()
      .then(work)
      .catch(error => this.#parts.onStoreError?.(error))
  }
}
