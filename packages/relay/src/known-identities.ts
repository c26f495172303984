/** Identities that outlive the process, so that a restart asks nobody. Written a moment later, many at once. */
import type { Identity } from '@millisky/core/did'
import type { Did, Handle } from '@millisky/core/syntax'
import type { Dated, MemoryStore } from '@millisky/server/identity/memory'
import type { IdentityStore, StoredIdentity } from './store/store.ts'

/** A crash loses what was learned in this time; it is asked for again. */
const FLUSH_MS = 2_000

export class KnownIdentities implements MemoryStore<Did, Identity> {
  readonly #store: IdentityStore
  readonly #onError: (error: unknown) => void
  readonly #timer: NodeJS.Timeout
  #unsaved = new Map<Did, StoredIdentity>()

  constructor(store: IdentityStore, onError: (error: unknown) => void) {
    this.#store = store
    this.#onError = onError
    this.#timer = setInterval(() => void this.flush(), FLUSH_MS)
    this.#timer.unref()
  }

  async get(did: Did): Promise<Dated<Identity> | null> {
    const stored = this.#unsaved.get(did) ?? (await this.#store.get(did))
    return stored && dated(stored)
  }

  put(did: Did, { value, at }: Dated<Identity>): void {
    const { signingKey: key, pds, handle } = value
    this.#unsaved.set(did, { did, at, key, pds, handle })
  }

  async delete(did: Did): Promise<void> {
    this.#unsaved.delete(did)
    await this.#store.delete(did)
  }

  async flush(): Promise<void> {
    const unsaved = [...this.#unsaved.values()]
    this.#unsaved = new Map()
    if (unsaved.length > 0) await this.#store.put(unsaved).catch(this.#onError)
  }

  /** Saves the rest. */
  async close(): Promise<void> {
    clearInterval(this.#timer)
    await this.flush()
  }
}

/** The document itself is not kept: verification asks for nothing else of it. */
function dated({ did, at, key, pds, handle }: StoredIdentity): Dated<Identity> {
  return { value: { did, handle: handle as Handle | null, signingKey: key, pds, doc: { id: did } }, at }
}
