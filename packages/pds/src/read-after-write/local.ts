/** What an account has written here that an app view has not seen yet. */
import { decode } from '@millisky/core/cbor'
import { type JsonObject, toJson } from '@millisky/core/json'
import { type Did, isTid, type Nsid, type Tid } from '@millisky/core/syntax'
import { decodeTid } from '@millisky/core/tid'
import type { Account, Store, StoredRecord } from '../store/store.ts'

/** A record as it is shown to apps. */
export interface LocalRecord {
  uri: string
  cid: string
  /** When it was committed, in milliseconds since 1970. */
  committedAt: number
  value: JsonObject
}

/** The news of one account, for its own eyes. */
export interface LocalNews {
  account: Account
  /** The profile as it is now, whether it is new or not; null if there is none. */
  profile: JsonObject | null
  /** Whether the profile is news. */
  isProfileNew: boolean
  /** New posts, the oldest first. */
  posts: LocalRecord[]
  /** Age of the oldest of it all, in milliseconds. */
  lagMs: number
}

const PROFILE = 'app.bsky.actor.profile'
const POST = 'app.bsky.feed.post' as Nsid
/** More than this is not a moment's delay; the app view will have to catch up by itself. */
const POSTS_MAX = 20
/** Clients make record keys by their own clocks, which may be wrong by this much. */
const CLOCK_SLACK_MS = 24 * 3_600_000
/** The account's row is made a moment before or after its first commit. */
const CREATION_SLACK_MS = 60_000

/**
 * Finds what is newer than the rev that an app view says it has; null if nothing is.
 *
 * A rev from before the account came here says nothing about records that came with it. And a post whose key is much older
 * than the rev is no new post: it was imported or edited.
 *
 * @param now - Milliseconds since 1970.
 */
export async function readLocalNews(
  { accounts, repos }: Pick<Store, 'accounts' | 'repos'>,
  did: Did,
  rev: Tid,
  now: number,
): Promise<LocalNews | null> {
  const state = await repos.state(did)
  if (!state || state.head.rev <= rev) return null
  const account = await accounts.byDid(did)
  const seenAt = millis(rev)
  if (!account || seenAt < account.createdAt - CREATION_SLACK_MS) return null
  const kept = await repos.record(account.id, `${PROFILE}/self`)
  const latest = await repos.records(account.id, { collection: POST, limit: POSTS_MAX })
  const isPost = ({ path, rev: written }: StoredRecord) => {
    const rkey = path.slice(POST.length + 1)
    return written > rev && !(isTid(rkey) && millis(rkey) < seenAt - CLOCK_SLACK_MS)
  }
  const posts = latest.filter(isPost).map(record => shown(did, record))
  posts.sort((a, b) => a.committedAt - b.committedAt)
  const profile = kept && shown(did, kept)
  const isProfileNew = kept !== null && kept.rev > rev
  const news = isProfileNew ? [profile!, ...posts] : posts
  if (news.length === 0) return null
  const oldest = Math.min(...news.map(({ committedAt }) => committedAt))
  return { account, profile: profile?.value ?? null, isProfileNew, posts, lagMs: Math.max(0, now - oldest) }
}

const millis = (tid: Tid) => Math.floor(decodeTid(tid).micros / 1000)

function shown(did: Did, { path, cid, rev, bytes }: StoredRecord): LocalRecord {
  const value = toJson(decode(bytes)) as JsonObject
  return { uri: `at://${did}/${path}`, cid: cid.toString(), committedAt: millis(rev), value }
}
