/**
 * Answers of the app view with what the caller has written a moment ago.
 *
 * The app view says in `Atproto-Repo-Rev` how far it knows the caller's repository. Where that is behind, the answer is
 * read and changed, and `Atproto-Upstream-Lag` says by how many milliseconds; else it passes through unread. Whatever goes
 * wrong with changing it, the caller gets the app view's own answer.
 *
 * Source: pds.md #64, #65.
 */
import { Refused } from '@millisky/core/errors'
import { type JsonObject, parseJson, stringifyJson } from '@millisky/core/json'
import { asNsid, type Did, isTid, type Nsid } from '@millisky/core/syntax'
import type { Logger } from '@millisky/server/trace'
import { type Call, type RawReply, raw } from '@millisky/server/xrpc'
import type { SessionUser } from './access.ts'
import { decode, readAll } from './proxy/reading.ts'
import type { Service } from './proxy/services.ts'
import { passedReply, type ServiceProxy } from './proxy.ts'
import { type LocalNews, readLocalNews } from './read-after-write/local.ts'
import { type Overlay, threadOf } from './read-after-write/overlays.ts'
import { at, isObject, LocalViews, type PictureKind } from './read-after-write/views.ts'
import type { Store } from './store/store.ts'

export interface ReadAfterWriteParts {
  store: Pick<Store, 'accounts' | 'repos'>
  proxy: ServiceProxy
  /** With `%s` for kind, DID and CID; without one, pictures come from this server. */
  cdnUrlPattern: string | undefined
  /** Of this server, without a slash at its end. */
  publicUrl: string
  /** Milliseconds since 1970. */
  now: () => number
  log: Logger
}

/** What is read to be changed; anything larger passes as it is. */
const ANSWER_BYTES_MAX = 5_000_000
/** As the service sent it, already bounded by the proxy. */
const WIRE_BYTES_MAX = Number.MAX_SAFE_INTEGER

/** Serves queries of the app view. */
export class ReadAfterWrite {
  readonly #parts: ReadAfterWriteParts

  constructor(parts: ReadAfterWriteParts) {
    this.#parts = parts
  }

  /** Passes the query on and lays the news over its answer. @throws as `ServiceProxy.pass` */
  async serve<P>({ request, auth, signal, params }: QueryCall<P>, nsid: Nsid, overlay: Overlay<P>): Promise<RawReply> {
    const passed = await this.#parts.proxy.pass({ request, nsid, user: auth, isRead: true, signal })
    if (request.method === 'HEAD' || !isJson(passed.headers)) return passedReply(passed)
    const news = await this.#newsSince(auth.did, passed.headers)
    if (!news) return passedReply(passed)
    const bytes = await readAll(passed.body, WIRE_BYTES_MAX)
    const { log } = this.#parts
    try {
      const text = await decode(bytes, passed.headers['content-encoding'], ANSWER_BYTES_MAX)
      const original = parseJson(text.toString())
      if (!isObject(original)) throw new TypeError('the answer is no object')
      const service = await this.#parts.proxy.serviceOf(request, nsid)
      return changedReply(await overlay(original, this.#views(news, service), params), passed.headers, news)
    } catch (error) {
      log.warn({ err: error, method: nsid }, 'an answer could not be brought up to date')
      return raw(passed.headers['content-type'], bytes, withoutType(passed.headers), passed.status)
    }
  }

  /**
   * The thread of a post that the app view does not know yet, if it is a new post of the caller's.
   *
   * @param refused - What the app view said.
   * @throws `refused` if it is anything else
   */
  async serveUnknownThread(call: QueryCall<ThreadParams>, refused: unknown): Promise<RawReply> {
    if (!(refused instanceof Refused && refused.error === 'NotFound')) throw refused
    const headers = refused.headers ?? {}
    try {
      const news = await this.#newsSince(call.auth.did, headers)
      const post = news?.posts.find(({ uri }) => uri === canonicalUri(call.params.uri, news))
      if (!news || !post) throw refused
      const service = await this.#parts.proxy.serviceOf(call.request, GET_POST_THREAD)
      const thread = await threadOf(post, this.#views(news, service))
      const parent = await this.#parentOf(post.value, call, service)
      return changedReply({ thread: parent ? { ...thread, parent } : thread }, headers, news)
    } catch (error) {
      if (error !== refused) this.#parts.log.warn({ err: error }, 'a new thread could not be shown')
      throw refused
    }
  }

  async #newsSince(did: Did, headers: Readonly<Record<string, string>>): Promise<LocalNews | null> {
    const { store, now, log } = this.#parts
    const rev = headers['atproto-repo-rev']
    if (!isTid(rev)) return null
    try {
      return await readLocalNews(store, did, rev, now())
    } catch (error) {
      log.warn({ err: error }, 'local news could not be read')
      return null
    }
  }

  #views(news: LocalNews, service: Service): LocalViews {
    const { cdnUrlPattern, publicUrl } = this.#parts
    const pictureUrl = (kind: PictureKind, did: string, cid: string) => {
      if (cdnUrlPattern === undefined) return `${publicUrl}/xrpc/com.atproto.sync.getBlob?did=${did}&cid=${cid}`
      const values = [kind, did, cid]
      return cdnUrlPattern.replace(/%s/g, () => values.shift() ?? '')
    }
    const ask = (method: string, params: Record<string, string>) =>
      this.#ask(news.account.did, service, asNsid(method), params)
    return new LocalViews({ news, pictureUrl, ask })
  }

  async #ask(did: Did, service: Service, nsid: Nsid, params: Record<string, string>): Promise<JsonObject | null> {
    try {
      const answer = parseJson(await this.#parts.proxy.ask(did, service, nsid, params))
      return isObject(answer) ? answer : null
    } catch (error) {
      // What is quoted is then shown as missing.
      this.#parts.log.debug({ err: error, method: nsid }, 'the app view did not say')
      return null
    }
  }

  /** What a new post answers, with all that is above it. */
  async #parentOf(post: JsonObject, { auth, params }: QueryCall<ThreadParams>, service: Service) {
    const uri = at(post, 'reply', 'parent', 'uri')
    if (typeof uri !== 'string') return null
    const parentHeight = String(params.parentHeight ?? 80)
    const answer = await this.#ask(auth.did, service, GET_POST_THREAD, { uri, parentHeight, depth: '0' })
    const thread = answer?.thread
    return isObject(thread) ? thread : null
  }
}

const GET_POST_THREAD = asNsid('app.bsky.feed.getPostThread')

export interface ThreadParams {
  uri: string
  parentHeight?: number | undefined
}

type QueryCall<P> = Pick<Call, 'request' | 'signal'> & { params: P; auth: SessionUser }

const isJson = (headers: Readonly<Record<string, string>>) =>
  /^application\/(?:[\w.-]+\+)?json\b/i.test(headers['content-type'] ?? 'application/json')

/** The URI with the DID in it, where it names the account by its handle. */
function canonicalUri(uri: string, { account }: LocalNews): string {
  const prefix = `at://${account.handle}/`
  return account.handle !== null && uri.startsWith(prefix) ? `at://${account.did}/${uri.slice(prefix.length)}` : uri
}

function withoutType({ 'content-type': _, ...others }: Record<string, string>): Record<string, string> {
  return others
}

function changedReply(body: JsonObject, headers: Readonly<Record<string, string>>, { lagMs }: LocalNews): RawReply {
  const kept: Record<string, string> = { 'atproto-upstream-lag': String(lagMs) }
  for (const name of ['atproto-repo-rev', 'atproto-content-labelers']) {
    if (headers[name] !== undefined) kept[name] = headers[name]
  }
  return raw('application/json; charset=utf-8', stringifyJson(body), kept)
}
