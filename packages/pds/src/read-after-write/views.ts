/** Local records in the form in which the app view shows them. Source: app.bsky lexicons; what the reference shows. */
import type { JsonObject, JsonValue } from '@millisky/core/json'
import { HANDLE_INVALID, isAtUri, parseAtUri } from '@millisky/core/syntax'
import type { LocalNews, LocalRecord } from './local.ts'

export type PictureKind = 'avatar' | 'banner' | 'feed_thumbnail' | 'feed_fullsize'

export interface ViewsParts {
  news: LocalNews
  /** Where a picture of an account is shown from. */
  pictureUrl: (kind: PictureKind, did: string, cid: string) => string
  /** Asks the app view, in the account's name. Null if there is none or it does not know. */
  ask: (method: string, params: Record<string, string>) => Promise<JsonObject | null>
}

export const isObject = (value: JsonValue | undefined): value is JsonObject =>
  typeof value === 'object' && value !== null && !Array.isArray(value)
export const objectsIn = (value: JsonValue | undefined): JsonObject[] =>
  Array.isArray(value) ? value.filter(isObject) : []
/** The member of a member of …; undefined where the way ends. */
export function at(value: JsonValue | undefined, ...path: string[]): JsonValue | undefined {
  let found = value
  for (const name of path) found = isObject(found) ? found[name] : undefined
  return found
}

/** Makes views of one account's news. */
export class LocalViews {
  readonly news: LocalNews
  readonly #parts: ViewsParts

  constructor(parts: ViewsParts) {
    this.#parts = parts
    this.news = parts.news
  }

  get did(): string {
    return this.news.account.did
  }

  /** profileViewBasic of the account. */
  get author(): JsonObject {
    const { account, profile } = this.news
    const author: JsonObject = { did: account.did, handle: account.handle ?? HANDLE_INVALID }
    return profile ? this.#withBasics(author, profile) : author
  }

  /** Somebody's view as an author, with the account's new name and picture if it is the account's and these are new. */
  refreshed(view: JsonValue | undefined): JsonValue | undefined {
    const { isProfileNew, profile } = this.news
    if (!isProfileNew || !profile || !isObject(view) || view.did !== this.did) return view
    return this.#withBasics(view, profile)
  }

  /** profileViewDetailed, with everything the account wrote into its profile; counts and the rest stay. */
  refreshedProfile(view: JsonObject): JsonObject {
    const { isProfileNew, profile } = this.news
    if (!isProfileNew || !profile || view.did !== this.did) return view
    const fresh = this.#withBasics(view, profile)
    for (const name of ['description', 'website', 'pinnedPost']) set(fresh, name, profile[name])
    set(fresh, 'banner', this.#picture('banner', profile.banner))
    return fresh
  }

  #withBasics(view: JsonObject, profile: JsonObject): JsonObject {
    const fresh = { ...view }
    set(fresh, 'displayName', profile.displayName)
    set(fresh, 'pronouns', profile.pronouns)
    set(fresh, 'avatar', this.#picture('avatar', profile.avatar))
    return fresh
  }

  #picture(kind: PictureKind, blob: JsonValue | undefined): string | undefined {
    const cid = at(blob, 'ref', '$link')
    return typeof cid === 'string' ? this.#parts.pictureUrl(kind, this.did, cid) : undefined
  }

  /** postView of a new post; nobody has had the time to like it. */
  async post({ uri, cid, committedAt, value }: LocalRecord): Promise<JsonObject> {
    const view: JsonObject = {
      uri,
      cid,
      author: this.author,
      record: value,
      replyCount: 0,
      repostCount: 0,
      likeCount: 0,
      quoteCount: 0,
      indexedAt: new Date(committedAt).toISOString(),
    }
    set(view, 'embed', await this.#embed(value.embed))
    return view
  }

  async #embed(embed: JsonValue | undefined): Promise<JsonObject | undefined> {
    if (!isObject(embed)) return undefined
    if (embed.$type === 'app.bsky.embed.record') return this.#recordEmbed(embed)
    if (embed.$type !== 'app.bsky.embed.recordWithMedia') return this.#mediaEmbed(embed)
    const media = isObject(embed.media) ? this.#mediaEmbed(embed.media) : undefined
    if (!media || !isObject(embed.record)) return undefined
    return { $type: 'app.bsky.embed.recordWithMedia#view', record: await this.#recordEmbed(embed.record), media }
  }

  /** Of pictures and links; a video has to be made ready first, which only its own service does. */
  #mediaEmbed(embed: JsonObject): JsonObject | undefined {
    switch (embed.$type) {
      case 'app.bsky.embed.images':
        return {
          $type: 'app.bsky.embed.images#view',
          images: objectsIn(embed.images).map(i => this.#image(i, 'thumb')),
        }
      case 'app.bsky.embed.gallery': {
        const items = objectsIn(embed.items).map(item => {
          return { $type: 'app.bsky.embed.gallery#viewImage', ...this.#image(item, 'thumbnail') }
        })
        return { $type: 'app.bsky.embed.gallery#view', items }
      }
      case 'app.bsky.embed.external': {
        const external: JsonObject = {}
        for (const name of ['uri', 'title', 'description']) set(external, name, at(embed.external, name))
        set(external, 'thumb', this.#picture('feed_thumbnail', at(embed.external, 'thumb')))
        return { $type: 'app.bsky.embed.external#view', external }
      }
      default:
        return undefined
    }
  }

  #image({ image, alt, aspectRatio }: JsonObject, thumbName: string): JsonObject {
    const view: JsonObject = {}
    set(view, thumbName, this.#picture('feed_thumbnail', image))
    set(view, 'fullsize', this.#picture('feed_fullsize', image))
    set(view, 'alt', alt)
    set(view, 'aspectRatio', aspectRatio)
    return view
  }

  async #recordEmbed({ record }: JsonObject): Promise<JsonObject> {
    const uri = at(record, 'uri')
    const found = isAtUri(uri) ? await this.#quoted(uri) : null
    const missing = { $type: 'app.bsky.embed.record#viewNotFound', uri: uri ?? '', notFound: true }
    return { $type: 'app.bsky.embed.record#view', record: found ?? missing }
  }

  async #quoted(uri: string): Promise<JsonObject | null> {
    const { ask } = this.#parts
    switch (parseAtUri(uri).collection) {
      case 'app.bsky.feed.post':
        return this.#quotedPost(uri)
      case 'app.bsky.feed.generator': {
        const view = at((await ask('app.bsky.feed.getFeedGenerator', { feed: uri })) ?? undefined, 'view')
        return isObject(view) ? { ...view, $type: 'app.bsky.feed.defs#generatorView' } : null
      }
      case 'app.bsky.graph.list': {
        const list = at((await ask('app.bsky.graph.getList', { list: uri, limit: '1' })) ?? undefined, 'list')
        return isObject(list) ? { ...list, $type: 'app.bsky.graph.defs#listView' } : null
      }
      default:
        return null
    }
  }

  async #quotedPost(uri: string): Promise<JsonObject | null> {
    const own = this.news.posts.find(post => post.uri === uri)
    const asked = own ? null : await this.#parts.ask('app.bsky.feed.getPosts', { uris: uri })
    // What a fresh post quotes in turn is left out, so that no circle of quotes can form.
    const post = own ? await this.post({ ...own, value: { ...own.value, embed: null } }) : objectsIn(asked?.posts)[0]
    if (!post) return null
    const view: JsonObject = { $type: 'app.bsky.embed.record#viewRecord' }
    for (const name of ['uri', 'cid', 'author', 'labels', 'indexedAt']) set(view, name, post[name])
    set(view, 'value', own ? own.value : post.record)
    if (post.embed) view.embeds = [post.embed]
    return view
  }
}

/** Sets or, where there is nothing to set, removes. */
function set(target: JsonObject, name: string, value: JsonValue | undefined): void {
  if (value === undefined) delete target[name]
  else target[name] = value
}
