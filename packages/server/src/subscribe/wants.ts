/**
 * Which events a consumer wants: parameters in the words of Jetstream.
 *
 * `wantedCollections` (NSIDs, or prefixes such as `app.bsky.*`) narrows commits alone: other events are about accounts, and whoever follows some
 * of their records needs them. `wantedDids` narrows all events, and so does `wantedKinds`.
 */
import { Refused } from '@millisky/core/errors'
import { isDid, isNsid } from '@millisky/core/syntax'

export const WANTED_COLLECTIONS_MAX = 100
export const WANTED_DIDS_MAX = 10_000
/** Kinds of events of `subscribeRepos`. */
export const KINDS = ['commit', 'sync', 'identity', 'account'] as const
export type Kind = (typeof KINDS)[number]

/** What is known of an event for choosing. */
export interface Subject {
  /** Null for what is no event of a known kind. */
  readonly kind: string | null
  readonly did: string | null
  /** Of a commit's operations. */
  readonly collections: readonly string[]
}

export interface WantsText {
  readonly collections?: readonly string[]
  readonly dids?: readonly string[]
  readonly kinds?: readonly string[]
}

/** Remembered so that consumers who want the same share what is made for them. */
const SHARED_MAX = 256
const SHARED_KEY_LENGTH_MAX = 4_096
const shared = new Map<string, Wants>()

/** A consumer's choice. Nothing chosen means everything. */
export class Wants {
  readonly #collections: ReadonlySet<string>
  /** With their last dot. */
  readonly #prefixes: ReadonlySet<string>
  readonly #dids: ReadonlySet<string>
  readonly #kinds: ReadonlySet<string>

  private constructor({ collections = [], dids = [], kinds = [] }: WantsText) {
    this.#collections = new Set(collections.filter(name => !name.endsWith('*')))
    this.#prefixes = new Set(collections.filter(name => name.endsWith('*')).map(name => name.slice(0, -1)))
    this.#dids = new Set(dids)
    this.#kinds = new Set(kinds)
  }

  /**
   * The choice that these texts stand for; null when nothing is chosen.
   *
   * @throws Refused when one is malformed, or there are too many.
   */
  static parse(text: WantsText): Wants | null {
    const { collections = [], dids = [] } = text
    const kinds = (text.kinds ?? []).map(kind => kind.replace(/^#/, ''))
    const refused = (message: string) => new Refused('InvalidRequest', message)
    if (collections.length > WANTED_COLLECTIONS_MAX) {
      throw refused(`too many wanted collections: ${collections.length} of at most ${WANTED_COLLECTIONS_MAX}`)
    }
    if (dids.length > WANTED_DIDS_MAX)
      throw refused(`too many wanted DIDs: ${dids.length} of at most ${WANTED_DIDS_MAX}`)
    if (kinds.length > KINDS.length) throw refused(`too many wanted kinds: ${kinds.length} of ${KINDS.length}`)
    for (const name of collections) {
      if (!isCollection(name)) throw refused(`not a collection, nor a prefix that ends in ".*": ${shown(name)}`)
    }
    for (const did of dids) if (!isDid(did)) throw refused(`not a DID: ${shown(did)}`)
    for (const kind of kinds) {
      if (!(KINDS as readonly string[]).includes(kind)) {
        throw refused(`not a kind of event (${KINDS.join(', ')}): ${shown(kind)}`)
      }
    }
    if (collections.length + dids.length + kinds.length === 0) return null
    return share({ collections, dids, kinds })
  }

  /** For {@link parse}. */
  static of(text: WantsText): Wants {
    return new Wants(text)
  }

  admits({ kind, did, collections }: Subject): boolean {
    if (kind === null) return false
    if (this.#kinds.size > 0 && !this.#kinds.has(kind)) return false
    if (this.#dids.size > 0 && (did === null || !this.#dids.has(did))) return false
    return kind !== 'commit' || this.#anyCollection || collections.some(name => this.admitsCollection(name))
  }

  admitsCollection(name: string): boolean {
    if (this.#anyCollection || this.#collections.has(name)) return true
    if (this.#prefixes.size === 0) return false
    for (let dot = name.indexOf('.'); dot >= 0; dot = name.indexOf('.', dot + 1)) {
      if (this.#prefixes.has(name.slice(0, dot + 1))) return true
    }
    return false
  }

  get #anyCollection(): boolean {
    return this.#collections.size === 0 && this.#prefixes.size === 0
  }
}

function share(text: WantsText): Wants {
  const key = JSON.stringify([text.collections, text.dids, text.kinds].map(list => [...(list ?? [])].sort()))
  if (key.length > SHARED_KEY_LENGTH_MAX) return Wants.of(text)
  const wants = shared.get(key) ?? Wants.of(text)
  shared.delete(key)
  shared.set(key, wants)
  if (shared.size > SHARED_MAX) shared.delete(shared.keys().next().value!)
  return wants
}

function isCollection(name: string): boolean {
  if (!name.endsWith('.*')) return isNsid(name)
  const front = name.slice(0, -1)
  return isNsid(`${front}x`) || isNsid(`${front}x.x`)
}

const shown = (text: string): string => JSON.stringify(text.length > 80 ? `${text.slice(0, 80)}…` : text)
