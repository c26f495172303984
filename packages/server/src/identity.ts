/**
 * Who is who: DIDs to documents, handles to DIDs, and whether the two agree. Answers are remembered for a while.
 *
 * Source: did and handle specs; ages as in the reference.
 */
import type { Identity } from '@millisky/core/did'
import { Refused, Unavailable } from '@millisky/core/errors'
import {
  type AtIdentifier,
  type Did,
  HANDLE_INVALID,
  type Handle,
  isDid,
  isHandle,
  isPlcDid,
  isResolvableHandle,
  normalizeHandle,
} from '@millisky/core/syntax'
import type { FetchBytes } from './fetch.ts'
import {
  type DocumentSources,
  fetchDidDocument,
  type ResolutionFailure,
  resolutionFailure,
} from './identity/documents.ts'
import { dnsTxt, type HandleReport, type HandleSources, lookUpHandle, type ResolveTxt } from './identity/handles.ts'
import { type Freshness, Memory, type MemorySettings, type MemoryStore } from './identity/memory.ts'

export { dnsTxt, type HandleReport, type ResolutionFailure, type ResolveTxt, resolutionFailure }

/**
 * Answers that need no question, such as a PDS's own accounts. `undefined` is "ask elsewhere"; `null`, for a handle,
 * is "there is none", as for a free name below the server's own domain.
 */
export interface LocalIdentities {
  did?(did: Did): Promise<Identity | undefined> | Identity | undefined
  handle?(handle: Handle): Promise<Did | null | undefined> | Did | null | undefined
}

export interface IdentitySettings {
  /** For documents; see `identity/memory.ts`. */
  dids: Partial<MemorySettings>
  handles: Partial<MemorySettings>
  /** For one HTTP exchange, and for DNS; default 3 s. */
  timeoutMs: number
  /** Lookups in flight, of did:plc and of all else each; more wait. Default 256. */
  lookupsMax: number
  /** Lookups waiting; more are refused. Default 10,000. */
  waitingMax: number
}

export interface IdentitiesParts {
  /** Origin of the did:plc directory. */
  plcUrl: string
  /** For hosts that strangers name: that of a guarded `Fetcher`. */
  fetch: FetchBytes
  /** For the directory, which the operator names; default `fetch`. */
  plcFetch?: FetchBytes
  /** Default the system's DNS servers. */
  resolveTxt?: ResolveTxt
  local?: LocalIdentities
  /** Where documents outlive the process. */
  store?: MemoryStore<Did, Identity>
  /** What of a fetched identity is remembered; default all of it. */
  slim?: (identity: Identity) => Identity
  settings?: Partial<IdentitySettings>
  /**
   * Development: `did:web:localhost%3A1234`, and handles under `.test` and `.localhost`, whose well-known file is
   * looked for where `wellKnownUrl` says.
   */
  development?: { wellKnownUrl?: (handle: Handle) => string }
  /** Milliseconds since the epoch. */
  now?: () => number
  /** Told of each question asked of the world, and of errors of the store. */
  observer?: {
    asked?(method: 'plc' | 'web' | 'handle', outcome: 'found' | ResolutionFailure): void
    storeFailed?(error: unknown): void
  }
}

/** An identity with its handle confirmed in both directions. */
export interface ConfirmedIdentity extends Identity {
  /** `handle.invalid` when the document names none, or one that is not resolved back to the DID. */
  handle: Handle
}

/** Resolves and remembers identities. */
export class Identities {
  readonly #parts: IdentitiesParts
  readonly #dids: Memory<Did, Identity>
  readonly #handles: Memory<Handle, Did>
  readonly #handleSources: HandleSources
  readonly #gate: Gate
  /** Of the directory, for which nobody waits because hosts that strangers name are slow. */
  readonly #plcGate: Gate

  constructor(parts: IdentitiesParts) {
    this.#parts = parts
    const { settings = {}, fetch, plcFetch = fetch, now = Date.now, development } = parts
    const { timeoutMs = 3_000 } = settings
    const gate = () => new Gate(settings.lookupsMax ?? 256, settings.waitingMax ?? 10_000)
    this.#gate = gate()
    this.#plcGate = gate()
    const plcUrl = parts.plcUrl.replace(/\/+$/, '')
    const sources: DocumentSources = { plcUrl, fetch, plcFetch, timeoutMs, development: development !== undefined }
    const wellKnownUrl = development?.wellKnownUrl
    this.#handleSources = { fetch, timeoutMs, resolveTxt: parts.resolveTxt ?? dnsTxt(), wellKnownUrl }
    this.#dids = new Memory(
      {
        load: did => (isPlcDid(did) ? this.#plcGate : this.#gate).run(() => this.#askForDid(did, sources)),
        isFinal: error => error instanceof Refused,
        now,
        store: parts.store,
        onStoreError: error => parts.observer?.storeFailed?.(error),
      },
      settings.dids,
    )
    this.#handles = new Memory(
      {
        load: handle => this.#gate.run(() => this.#askForHandle(handle)),
        isFinal: error => error instanceof Refused,
        now,
      },
      settings.handles,
    )
  }

  /**
   * The identity that a DID's document states; its handle is the document's claim, not confirmed.
   *
   * `fresh` demands a document fetched from now on, as far as the budget for this DID goes (5 in 5 minutes); beyond it
   * the answer is from memory. `'always'` is for the owner of the DID, who is limited by other means.
   *
   * @throws {Refused} `InvalidDid`, `UnsupportedDidMethod`, `DidNotFound`, `DidDeactivated`
   * @throws {Unavailable} `DidResolutionFailed`. {@link resolutionFailure} tells them apart.
   */
  async resolveDid(did: Did, options: { fresh?: Freshness } = {}): Promise<Identity> {
    return (await this.#parts.local?.did?.(did)) ?? (await this.#dids.get(did, options))
  }

  /** The identity if it is in memory and not too old, without waiting. Local answers are not asked for. */
  peek(did: Did): Identity | null {
    return this.#dids.peek(did)
  }

  /**
   * Says that an identity may have changed, as an `#identity` event does: the next question is asked of the world. The
   * budget is that of forced refreshes; false when it is spent and nothing was done.
   */
  expire(did: Did): boolean {
    const known = this.#dids.peek(did)
    if (known?.handle) this.#handles.expire(known.handle)
    return this.#dids.expire(did)
  }

  /** Takes a document that the caller knows for certain and has stored: one that is in memory is replaced. */
  revise(identity: Identity): void {
    this.#dids.revise(identity.did, identity)
  }

  /** Forgets what is in memory of a DID, not what is stored. */
  forget(did: Did): void {
    this.#dids.forget(did)
  }

  /** Takes a document that the caller knows for certain, such as one it has just registered. */
  learn(identity: Identity): void {
    this.#dids.set(identity.did, identity)
  }

  /**
   * The DID that a handle points to. Whether that DID claims the handle is not checked; see {@link resolve}.
   *
   * @throws {Refused} `HandleNotFound`; the message says what was asked and what came
   * @throws {Unavailable} `HandleResolutionFailed`
   */
  async resolveHandle(handle: Handle, options: { fresh?: Freshness } = {}): Promise<Did> {
    const name = this.#checkHandle(handle)
    const local = await this.#parts.local?.handle?.(name)
    if (local !== undefined) {
      if (local === null) throw new Refused('HandleNotFound', 'Unable to resolve handle')
      return local
    }
    this.#checkResolvable(name)
    return this.#handles.get(name, options)
  }

  /** Resolves a handle without memory and tells each step, for people who wonder why theirs is not found. */
  async explainHandle(handle: Handle): Promise<HandleReport> {
    const name = this.#checkHandle(handle)
    this.#checkResolvable(name)
    return this.#gate.run(() => lookUpHandle(name, this.#handleSources))
  }

  /**
   * Resolves a handle or DID to an identity, with the handle confirmed in both directions.
   *
   * @throws as {@link resolveDid}, and as {@link resolveHandle} when given a handle. A handle whose DID does not claim it
   *   back is an identity with `handle.invalid`.
   */
  async resolve(id: AtIdentifier, options: { fresh?: Freshness } = {}): Promise<ConfirmedIdentity> {
    const did = isDid(id) ? id : await this.resolveHandle(id as Handle, options)
    const identity = await this.resolveDid(did, options)
    if (!isDid(id))
      return { ...identity, handle: identity.handle === normalizeHandle(id) ? identity.handle : HANDLE_INVALID }
    return { ...identity, handle: await this.confirmHandle(identity, options) }
  }

  /** The identity's handle if it is resolved back to its DID, else `handle.invalid`. Never throws for want of an answer. */
  async confirmHandle(identity: Identity, options: { fresh?: Freshness } = {}): Promise<Handle> {
    if (identity.handle === null) return HANDLE_INVALID
    try {
      return (await this.resolveHandle(identity.handle, options)) === identity.did ? identity.handle : HANDLE_INVALID
    } catch (error) {
      if (error instanceof Refused || error instanceof Unavailable) return HANDLE_INVALID
      throw error
    }
  }

  #checkHandle(handle: Handle): Handle {
    if (!isHandle(handle)) throw new Refused('InvalidRequest', `Not a handle: ${String(handle).slice(0, 300)}`)
    return normalizeHandle(handle)
  }

  #checkResolvable(handle: Handle): void {
    const isDevelopment = this.#parts.development !== undefined
    if (isResolvableHandle(handle, { allowTest: isDevelopment }) || (isDevelopment && handle.endsWith('.localhost')))
      return
    throw new Refused('HandleNotFound', `Unable to resolve handle: ${handle} is under a domain that never resolves`)
  }

  async #askForDid(did: Did, sources: DocumentSources): Promise<Identity> {
    const method = did.startsWith('did:plc:') ? 'plc' : 'web'
    try {
      const identity = await fetchDidDocument(did, sources)
      this.#parts.observer?.asked?.(method, 'found')
      return this.#parts.slim?.(identity) ?? identity
    } catch (error) {
      this.#parts.observer?.asked?.(method, resolutionFailure(error) ?? 'failed')
      throw error
    }
  }

  async #askForHandle(handle: Handle): Promise<Did> {
    const { did, dns, https } = await lookUpHandle(handle, this.#handleSources)
    const isFinal = dns.isFinal && https.isFinal
    this.#parts.observer?.asked?.('handle', did ? 'found' : isFinal ? 'not-found' : 'failed')
    if (did) return did
    const why = `Unable to resolve handle: DNS: ${dns.problem}; HTTPS: ${https.problem}`
    throw isFinal ? new Refused('HandleNotFound', why) : new Unavailable('HandleResolutionFailed', why, 502)
  }
}

/** Lets so many through at a time. */
class Gate {
  readonly #most: number
  readonly #waitingMax: number
  readonly #waiting: (() => void)[] = []
  #running = 0

  constructor(most: number, waitingMax: number) {
    this.#most = most
    this.#waitingMax = waitingMax
  }

  async run<T>(work: () => Promise<T>): Promise<T> {
    if (this.#running >= this.#most) {
      if (this.#waiting.length >= this.#waitingMax) {
        throw new Unavailable('DidResolutionFailed', 'Too many identities are being looked up', 503, 10)
      }
      // Whoever leaves hands its place over.
      await new Promise<void>(resolve => this.#waiting.push(resolve))
    } else this.#running++
    try {
      return await work()
    } finally {
      const next = this.#waiting.shift()
      if (next) next()
      else this.#running--
    }
  }
}
