/** Which server makes a feed. */
import { decode, type Obj } from '@millisky/core/cbor'
import { Refused } from '@millisky/core/errors'
import { type JsonValue, parseJson } from '@millisky/core/json'
import { asNsid, type Did, isDid, isRepoPath, parseAtUri } from '@millisky/core/syntax'
import type { ServiceProxy } from '../proxy.ts'
import type { Store } from '../store/store.ts'
import type { Service } from './services.ts'

export interface FeedGeneratorsParts {
  store: Pick<Store, 'accounts' | 'repos'>
  proxy: Pick<ServiceProxy, 'ask'>
  /** Milliseconds since 1970. */
  now: () => number
}

const KNOWN_MAX = 5_000
const KNOWN_MS = 10 * 60_000
const COLLECTION = 'app.bsky.feed.generator'
const GET_RECORD = asNsid('com.atproto.repo.getRecord')
const GET_FEED_GENERATOR = asNsid('app.bsky.feed.getFeedGenerator')

/** Finds them; what was found is remembered for some minutes. */
export class FeedGenerators {
  readonly #parts: FeedGeneratorsParts
  readonly #known = new Map<string, { did: Did; until: number }>()

  constructor(parts: FeedGeneratorsParts) {
    this.#parts = parts
  }

  /**
   * The DID of the server that makes a feed, as its record says.
   *
   * @param asking - In whose name the service is asked.
   * @throws Refused UnknownFeed, and what the service refuses; Unavailable
   */
  async didOf(feed: string, asking: Did, service: Service): Promise<Did> {
    const key = `${service.origin} ${feed}`
    const known = this.#known.get(key)
    if (known && known.until > this.#parts.now()) return known.did
    const did = (await this.#local(feed)) ?? (await this.#remote(feed, asking, service))
    if (!isDid(did)) throw new Refused('UnknownFeed', 'could not resolve feed did')
    this.#known.delete(key)
    if (this.#known.size >= KNOWN_MAX) this.#known.delete(this.#known.keys().next().value!)
    this.#known.set(key, { did, until: this.#parts.now() + KNOWN_MS })
    return did
  }

  /** Of a feed whose record is kept here. */
  async #local(feed: string): Promise<unknown> {
    const { accounts, repos } = this.#parts.store
    const { authority, collection, rkey } = parseAtUri(feed)
    const path = `${collection}/${rkey}`
    if (collection !== COLLECTION || !isRepoPath(path)) throw new Refused('UnknownFeed', 'could not resolve feed did')
    const account = isDid(authority) ? await accounts.byDid(authority) : await accounts.byHandle(authority)
    const record = account && (await repos.record(account.id, path))
    return record ? (decode(record.bytes) as Obj).did : undefined
  }

  /** The record is public; an app view that does not keep records may still know the feed. */
  async #remote(feed: string, asking: Did, service: Service): Promise<unknown> {
    const { proxy } = this.#parts
    const { authority, rkey } = parseAtUri(feed)
    const params = { repo: authority, collection: COLLECTION, rkey: rkey! }
    try {
      const answer = await proxy.ask(null, service, GET_RECORD, params)
      return member(member(parseJson(answer), 'value'), 'did')
    } catch (error) {
      const answer = await proxy.ask(asking, service, GET_FEED_GENERATOR, { feed }).catch(() => {
        throw error
      })
      return member(member(parseJson(answer), 'view'), 'did')
    }
  }
}

function member(value: JsonValue | undefined, name: string): JsonValue | undefined {
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? value[name] : undefined
}
