/**
 * Identities that outlive the process, so that a restart asks nobody. Written a moment later, many at once; read one by one
 * where the database answers at once, else all that are asked for in the same moment.
 */
import type { Identity } from '@millisky/core/did'
import type { Did, Handle } from '@millisky/core/syntax'
import type { Dated, MemoryStore } from '@millisky/server/identity/memory'
import type { IdentityStore, StoredIdentity } from './store/store.ts'

/** A crash loses what was learned in this time; it is asked for again. */
const FLUSH_MS = 2_000
/** Origins of PDSs that are held once, however many accounts name them. */
const ORIGINS_MAX = 20_000

export interface KnownIdentitiesParts {
  store: IdentityStore
  onError: (error: unknown) => void
}

export class KnownIdentities implements MemoryStore<Did, Identity> {
  readonly #parts: KnownIdentitiesParts
  readonly #timer: NodeJS.Timeout
  #trueAt: (did: Did) => number | null = () => null
  #unsaved = new Map<Did, StoredIdentity>()
  #asked = new Map<Did, PromiseWithResolvers<StoredIdentity | null>>()
  readonly #origins = new Map<string, string>()

  constructor(parts: KnownIdentitiesParts) {
    this.#parts = parts
    this.#timer = setInterval(() => void this.flush(), FLUSH_MS)
    this.#timer.unref()
  }

  peek(did: Did): Dated<Identity> | null {
    const { store } = this.#parts
    const unsaved = this.#unsaved.get(did)
    if (unsaved) return this.#dated(unsaved)
    if (!store.isImmediate) return null
    const [stored] = store.load([did]) as StoredIdentity[]
    return stored ? this.#dated(stored) : null
  }

  async get(did: Did): Promise<Dated<Identity> | null> {
    if (this.#parts.store.isImmediate) return this.peek(did)
    const stored = this.#unsaved.get(did) ?? (await this.#ask(did))
    return stored && this.#dated(stored)
  }

  put(did: Did, { value, at }: Dated<Identity>): void {
    const { signingKey: key, pds, handle } = value
    this.#unsaved.set(did, { did, at, key, pds, handle })
  }

  async delete(did: Did): Promise<void> {
    this.#unsaved.delete(did)
    await this.#parts.store.delete(did)
  }

  /** `trueAt` tells up to when nothing that is stored of a DID can have changed unnoticed; null where nobody tells. */
  rely(trueAt: (did: Did) => number | null): void {
    this.#trueAt = trueAt
  }

  /** Drops what was fetched and is not saved yet. */
  supersede(did: Did): void {
    this.#unsaved.delete(did)
  }

  /** What is kept of an identity in memory: what verification asks for, and not the document. */
  readonly slim = ({ did, handle, signingKey, pds }: Identity): Identity => ({
    did,
    handle,
    signingKey,
    pds: pds === null ? null : this.#origin(pds),
    doc: { id: did },
  })

  async flush(): Promise<void> {
    const unsaved = [...this.#unsaved.values()]
    this.#unsaved = new Map()
    if (unsaved.length > 0) await this.#parts.store.put(unsaved).catch(this.#parts.onError)
  }

  /** Saves the rest. */
  async close(): Promise<void> {
    clearInterval(this.#timer)
    await this.flush()
  }

  #dated({ did, at, key, pds, handle }: StoredIdentity): Dated<Identity> {
    const value = this.slim({ did, handle: handle as Handle | null, signingKey: key, pds, doc: { id: did } })
    return { value, at: Math.max(at, this.#trueAt(did) ?? 0) }
  }

  #origin(text: string): string {
    const known = this.#origins.get(text)
    if (known !== undefined) return known
    if (this.#origins.size >= ORIGINS_MAX) this.#origins.clear()
    this.#origins.set(text, text)
    return text
  }

  #ask(did: Did): Promise<StoredIdentity | null> {
    let answer = this.#asked.get(did)
    if (!answer) {
      answer = Promise.withResolvers()
      this.#asked.set(did, answer)
      if (this.#asked.size === 1) queueMicrotask(() => void this.#askAll())
    }
    return answer.promise
  }

  async #askAll(): Promise<void> {
    const asked = this.#asked
    this.#asked = new Map()
    try {
      const found = new Map((await this.#parts.store.load([...asked.keys()])).map(stored => [stored.did, stored]))
      for (const [did, { resolve }] of asked) resolve(found.get(did) ?? null)
    } catch (error) {
      for (const { reject } of asked.values()) reject(error)
    }
  }
}
