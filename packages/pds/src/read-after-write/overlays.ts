/**
 * What an account has just written, laid over what the app view answers. Each overlay gives a new answer and leaves what
 * it does not touch as it came, also what no lexicon names.
 */
import type { JsonObject, JsonValue } from '@millisky/core/json'
import type { LocalRecord } from './local.ts'
import { at, isObject, type LocalViews, objectsIn } from './views.ts'

/** One method's; `params` are those of the query. */
export type Overlay<P> = (original: JsonObject, views: LocalViews, params: P) => JsonObject | Promise<JsonObject>

export const overProfile: Overlay<unknown> = (original, views) => views.refreshedProfile(original)

export const overProfiles: Overlay<unknown> = (original, views) =>
  mapList(original, 'profiles', profile => views.refreshedProfile(profile))

/** Only authors: new likes are the app view's to know. */
export const overLikes: Overlay<unknown> = (original, views) => refreshAuthors(original, views)

export const overTimeline: Overlay<{ cursor?: string | undefined }> = (original, views, { cursor }) =>
  insertPosts(refreshAuthors(original, views), views, cursor, views.news.posts)

export interface AuthorFeedParams {
  actor: string
  cursor?: string | undefined
  filter?: string | undefined
}

export const overAuthorFeed: Overlay<AuthorFeedParams> = (original, views, { actor, cursor, filter }) => {
  const { did, handle } = views.news.account
  const refreshed = refreshAuthors(original, views)
  if (actor !== did && actor.toLowerCase() !== handle) return refreshed
  const posts = views.news.posts.filter(post => passesFilter(post, filter, did))
  return insertPosts(refreshed, views, cursor, posts)
}

const MEDIA: readonly unknown[] = ['app.bsky.embed.images', 'app.bsky.embed.gallery', 'app.bsky.embed.video']

function passesFilter({ value }: LocalRecord, filter: string | undefined, did: string): boolean {
  const isOwn = (uri: JsonValue | undefined) => typeof uri === 'string' && uri.startsWith(`at://${did}/`)
  switch (filter) {
    case 'posts_no_replies':
      return value.reply === undefined
    case 'posts_and_author_threads':
      return (
        value.reply === undefined || (isOwn(at(value.reply, 'root', 'uri')) && isOwn(at(value.reply, 'parent', 'uri')))
      )
    case 'posts_with_media':
      return MEDIA.includes(at(value.embed, '$type')) || MEDIA.includes(at(value.embed, 'media', '$type'))
    case 'posts_with_video':
      // Videos of fresh posts cannot be shown.
      return false
    default:
      return true
  }
}

/** Where there is a list of that name, a copy with each of its objects changed. */
function mapList(original: JsonObject, name: string, change: (item: JsonObject) => JsonObject): JsonObject {
  const list = original[name]
  if (!Array.isArray(list)) return original
  return { ...original, [name]: list.map(item => (isObject(item) ? change(item) : item)) }
}

function refreshAuthors(original: JsonObject, views: LocalViews): JsonObject {
  return mapList(original, 'feed', item => {
    const author = at(item, 'post', 'author')
    const fresh = views.refreshed(author)
    return fresh === author ? item : { ...item, post: { ...(item.post as JsonObject), author: fresh! } }
  })
}

/** Puts posts where they belong by time; none on later pages, where they would appear twice. */
async function insertPosts(
  original: JsonObject,
  views: LocalViews,
  cursor: string | undefined,
  posts: readonly LocalRecord[],
): Promise<JsonObject> {
  if (cursor || !Array.isArray(original.feed)) return original
  const feed = [...original.feed]
  const known = new Set(objectsIn(feed).map(item => at(item, 'post', 'uri')))
  const last = feed.length === 0 ? 0 : timeOf(feed.at(-1)!)
  const news = posts.filter(({ uri, committedAt }) => !known.has(uri) && committedAt > last)
  const shown = await Promise.all(news.map(post => views.post(post)))
  for (const [i, post] of shown.entries()) {
    const place = feed.findIndex(item => timeOf(item) < news[i]!.committedAt)
    feed.splice(place < 0 ? feed.length : place, 0, { post })
  }
  return { ...original, feed }
}

/** When an item of a feed came into it, in milliseconds; what is pinned stays on top. */
function timeOf(item: JsonValue): number {
  if (at(item, 'reason', '$type') === 'app.bsky.feed.defs#reasonPin') return Number.POSITIVE_INFINITY
  const time = at(item, 'reason', 'indexedAt') ?? at(item, 'post', 'indexedAt')
  return typeof time === 'string' ? Date.parse(time) : Number.NaN
}

const THREAD = 'app.bsky.feed.defs#threadViewPost'

export const overThread: Overlay<unknown> = async (original, views) => {
  const { thread } = original
  return isThread(thread) ? { ...original, thread: await withReplies(thread, views, views.news.posts) } : original
}

const isThread = (view: JsonValue | undefined): view is JsonObject => isObject(view) && view.$type === THREAD

/** The thread of one new post, with what was said below it since. */
export async function threadOf(post: LocalRecord, views: LocalViews): Promise<JsonObject> {
  const thread: JsonObject = { $type: THREAD, post: await views.post(post), replies: [] }
  return withReplies(thread, views, views.news.posts)
}

async function withReplies(thread: JsonObject, views: LocalViews, posts: readonly LocalRecord[]): Promise<JsonObject> {
  const root = at(thread, 'post', 'record', 'reply', 'root', 'uri') ?? at(thread, 'post', 'uri')
  let grown = thread
  // The oldest first, so that an answer to a new post finds it.
  for (const post of posts) {
    if (at(post.value, 'reply', 'root', 'uri') === root) grown = await withReply(grown, views, post)
  }
  return grown
}

async function withReply(view: JsonObject, views: LocalViews, post: LocalRecord): Promise<JsonObject> {
  const replies = Array.isArray(view.replies) ? view.replies : []
  if (at(view, 'post', 'uri') === at(post.value, 'reply', 'parent', 'uri')) {
    if (replies.some(reply => at(reply, 'post', 'uri') === post.uri)) return view
    return { ...view, replies: [{ $type: THREAD, post: await views.post(post), replies: [] }, ...replies] }
  }
  if (replies.length === 0) return view
  const grown = await Promise.all(replies.map(reply => (isThread(reply) ? withReply(reply, views, post) : reply)))
  return { ...view, replies: grown }
}
