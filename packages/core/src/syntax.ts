/**
 * The identifier grammars of the protocol: DID, handle, NSID, record key, TID, AT-URI, datetime, language, URI.
 *
 * Each grammar is a branded type with `isX(value)`, a guard that takes anything and never throws, and `asX(value)`,
 * which returns the same string or throws {@link Malformed}. Strings are never changed here; only
 * {@link normalizeHandle} lowercases. Lengths are checked before anything is scanned, and every scan is linear.
 * CID strings are parsed by `cid.ts`.
 *
 * Source: atproto.com/specs/{did,handle,nsid,record-key,tid,at-uri-scheme,lexicon}.
 */
import { Malformed } from './errors.ts'
import {
  AT_URI_LENGTH_MAX,
  DATETIME_LENGTH_MAX,
  DID_LENGTH_MAX,
  DNS_LABEL_LENGTH_MAX,
  HANDLE_LENGTH_MAX,
  LANGUAGE_LENGTH_MAX,
  NSID_LENGTH_MAX,
  RKEY_LENGTH_MAX,
  URI_LENGTH_MAX,
} from './limits.ts'

declare const brand: unique symbol
type Branded<Names extends string> = string & { readonly [brand]: { readonly [Name in Names]: true } }

/** `did:plc:…`, `did:web:…` or a DID of a method not yet known; at most 2,048 characters. */
export type Did = Branded<'Did'>
/** A host name used as account name, in any letter case; at most 253 characters. */
export type Handle = Branded<'Handle'>
/** A lexicon name such as `app.bsky.feed.post`; at most 317 characters. */
export type Nsid = Branded<'Nsid'>
/** A record key; 1 to 512 characters. */
export type Rkey = Branded<'Rkey'>
/** A 13 character timestamp identifier; as strings they sort by time. Every TID is a record key too. */
export type Tid = Branded<'Tid' | 'Rkey'>
/** `at://authority[/collection[/rkey]]`, the restricted form that lexicons use. */
export type AtUri = Branded<'AtUri'>
/** A DID or a handle. */
export type AtIdentifier = Did | Handle
/** An RFC 3339 timestamp with time zone, kept as it was written. */
export type Datetime = Branded<'Datetime'>
/** A BCP 47 language tag. */
export type Language = Branded<'Language'>
/** Any URI of RFC 3986. */
export type Uri = Branded<'Uri'>
/** `collection/rkey`: the key of a record in a repository's tree. */
export type RepoPath = Branded<'RepoPath'>

/** The handle that stands for "no handle was confirmed in both directions". */
export const HANDLE_INVALID = 'handle.invalid' as Handle

const LETTER = 1
const DIGIT = 2
const HYPHEN = 4
const KIND = new Uint8Array(128)
for (let c = 0; c < 26; c++) KIND[97 + c] = KIND[65 + c] = LETTER
for (let c = 0; c < 10; c++) KIND[48 + c] = DIGIT
KIND[45] = HYPHEN

function kindAt(s: string, at: number): number {
  const code = s.charCodeAt(at)
  return code < 128 ? KIND[code]! : 0
}

/**
 * Counts the dot-separated DNS labels of `s[from, to)`.
 * Each is 1 to 63 letters, digits and hyphens without a hyphen at either edge; 0 when one of them is not.
 */
function countLabels(s: string, from: number, to: number): number {
  let count = 0
  let start = from
  for (let i = from; i <= to; i++) {
    if (i < to && s.charCodeAt(i) !== 46) {
      if (kindAt(s, i) === 0) return 0
      continue
    }
    const length = i - start
    if (length === 0 || length > DNS_LABEL_LENGTH_MAX) return 0
    if (kindAt(s, start) === HYPHEN || kindAt(s, i - 1) === HYPHEN) return 0
    count++
    start = i + 1
  }
  return count
}

const DID = /^did:[a-z]+:[a-zA-Z0-9._:%-]*[a-zA-Z0-9._-]$/
const RKEY = /^[A-Za-z0-9._:~-]+$/
const TID = /^[2-7a-j][2-7a-z]{12}$/
const PLC_DID = /^did:plc:[a-z2-7]{24}$/

/** Tells whether `value` is a DID of any method. Percent-encoding is not looked into. */
export function isDid(value: unknown): value is Did {
  return typeof value === 'string' && value.length <= DID_LENGTH_MAX && DID.test(value)
}

/** Tells whether `value` is a `did:plc` DID with its 24 base32 characters. */
export function isPlcDid(value: unknown): value is Did {
  return typeof value === 'string' && value.length === 32 && PLC_DID.test(value)
}

/**
 * Tells whether `value` has the syntax of a handle, in any letter case.
 * Reserved top-level domains pass here; see {@link isResolvableHandle}.
 */
export function isHandle(value: unknown): value is Handle {
  if (typeof value !== 'string' || value.length > HANDLE_LENGTH_MAX) return false
  if (countLabels(value, 0, value.length) < 2) return false
  return kindAt(value, value.lastIndexOf('.') + 1) === LETTER
}

const TLDS_RESERVED: ReadonlySet<string> = new Set([
  'alt',
  'arpa',
  'example',
  'internal',
  'invalid',
  'local',
  'localhost',
  'onion',
])

/**
 * Tells whether a handle could belong to somebody: its top-level domain is none of those that never resolve.
 * `.test` counts as one of them unless `allowTest` (development) is set. Source: handle spec, "disallowed TLDs".
 */
export function isResolvableHandle(handle: Handle, options: { allowTest?: boolean } = {}): boolean {
  const tld = handle.slice(handle.lastIndexOf('.') + 1).toLowerCase()
  return tld === 'test' ? options.allowTest === true : !TLDS_RESERVED.has(tld)
}

/** Tells whether `value` is a DID (it then starts with `did:`) or a handle. */
export function isAtIdentifier(value: unknown): value is AtIdentifier {
  return typeof value === 'string' && (value.startsWith('did:') ? isDid(value) : isHandle(value))
}

/** Tells whether `value` is a namespaced identifier: a reversed domain of two or more labels and a name. */
export function isNsid(value: unknown): value is Nsid {
  if (typeof value !== 'string' || value.length > NSID_LENGTH_MAX) return false
  const dot = value.lastIndexOf('.')
  if (dot < 0 || dot > HANDLE_LENGTH_MAX) return false
  const nameLength = value.length - dot - 1
  if (nameLength === 0 || nameLength > DNS_LABEL_LENGTH_MAX) return false
  if (kindAt(value, dot + 1) !== LETTER || kindAt(value, 0) !== LETTER) return false
  for (let i = dot + 2; i < value.length; i++) if ((kindAt(value, i) & (LETTER | DIGIT)) === 0) return false
  return countLabels(value, 0, dot) >= 2
}

/** Tells whether `value` is a record key; `.` and `..` are not. */
export function isRkey(value: unknown): value is Rkey {
  if (typeof value !== 'string' || value.length > RKEY_LENGTH_MAX || !RKEY.test(value)) return false
  return value !== '.' && value !== '..'
}

/** Tells whether `value` is a TID. Like the specification's pattern it lets the (never generated) top bit pass. */
export function isTid(value: unknown): value is Tid {
  return typeof value === 'string' && value.length === 13 && TID.test(value)
}

/** Tells whether `value` is `collection/rkey`. */
export function isRepoPath(value: unknown): value is RepoPath {
  if (typeof value !== 'string' || value.length > NSID_LENGTH_MAX + 1 + RKEY_LENGTH_MAX) return false
  const slash = value.indexOf('/')
  return slash > 0 && isNsid(value.slice(0, slash)) && isRkey(value.slice(slash + 1))
}

/**
 * Takes a repository path apart.
 * @throws {@link Malformed} unless it is an NSID, one slash and a record key.
 */
export function parseRepoPath(path: string): { collection: Nsid; rkey: Rkey } {
  if (!isRepoPath(path)) throw new Malformed('not a repository path')
  const slash = path.indexOf('/')
  return { collection: path.slice(0, slash) as Nsid, rkey: path.slice(slash + 1) as Rkey }
}

/** The parts of an AT-URI; a `rkey` never comes without a `collection`. */
export interface AtUriParts {
  authority: AtIdentifier
  collection?: Nsid
  rkey?: Rkey
}

function splitAtUri(value: unknown): AtUriParts | null {
  if (typeof value !== 'string' || value.length > AT_URI_LENGTH_MAX || !value.startsWith('at://')) return null
  const slash = value.indexOf('/', 5)
  const authority = slash < 0 ? value.slice(5) : value.slice(5, slash)
  if (!isAtIdentifier(authority)) return null
  if (slash < 0) return { authority }
  const second = value.indexOf('/', slash + 1)
  const collection = second < 0 ? value.slice(slash + 1) : value.slice(slash + 1, second)
  if (!isNsid(collection)) return null
  if (second < 0) return { authority, collection }
  const rkey = value.slice(second + 1)
  return isRkey(rkey) ? { authority, collection, rkey } : null
}

/** Tells whether `value` is an AT-URI of the restricted form: no query, fragment, trailing slash or escapes. */
export function isAtUri(value: unknown): value is AtUri {
  return splitAtUri(value) !== null
}

/**
 * Takes an AT-URI of the restricted form apart.
 * @throws {@link Malformed}
 */
export function parseAtUri(uri: string): AtUriParts {
  const parts = splitAtUri(uri)
  if (parts === null) throw new Malformed('not an AT-URI')
  return parts
}

/** Writes an AT-URI from its parts. */
export function makeAtUri(authority: AtIdentifier, collection?: Nsid, rkey?: Rkey): AtUri {
  let uri = `at://${authority}`
  if (collection !== undefined) uri += `/${collection}`
  if (collection !== undefined && rkey !== undefined) uri += `/${rkey}`
  return uri as AtUri
}

const DATETIME =
  /^(\d{4})-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])T([01]\d|2[0-3]):([0-5]\d):[0-5]\d(?:\.\d+)?(?:Z|([+-])([01]\d|2[0-3]):([0-5]\d))$/
/** Most of them: in UTC, on a day that every month has, so there is nothing left to ask. */
const PLAIN_DATETIME = /^\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8])T(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d+)?Z$/
const DAYS = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]

function daysIn(year: number, month: number): number {
  const leap = year % 4 === 0 && (year % 100 !== 0 || year % 400 === 0)
  return month === 2 && leap ? 29 : DAYS[month - 1]!
}

/**
 * Tells whether `value` is a datetime that exists: RFC 3339, ISO 8601 and WHATWG at once, so capital T and Z, seconds
 * and zone mandatory, no `-00:00`, no leap second, no 30 February, and in UTC a year from 0000 to 9999.
 */
export function isDatetime(value: unknown): value is Datetime {
  if (typeof value !== 'string' || value.length > DATETIME_LENGTH_MAX) return false
  if (PLAIN_DATETIME.test(value)) return true
  const match = DATETIME.exec(value)
  if (match === null) return false
  const year = Number(match[1])
  if (Number(match[3]) > daysIn(year, Number(match[2]))) return false
  const sign = match[6]
  if (sign === undefined) return true
  const offset = Number(match[7]) * 60 + Number(match[8])
  if (sign === '-' && offset === 0) return false
  if (year !== 0 && year !== 9999) return true
  const minutes = Number(match[4]) * 60 + Number(match[5]) + (sign === '+' ? -offset : offset)
  const day = value.slice(0, 10)
  return !(day === '0000-01-01' && minutes < 0) && !(day === '9999-12-31' && minutes >= 1440)
}

const GRANDFATHERED: ReadonlySet<string> = new Set(
  (
    'en-GB-oed i-ami i-bnn i-default i-enochian i-hak i-klingon i-lux i-mingo i-navajo i-pwn i-tao i-tay i-tsu ' +
    'sgn-BE-FR sgn-BE-NL sgn-CH-DE art-lojban cel-gaulish no-bok no-nyn zh-guoyu zh-hakka zh-min zh-min-nan zh-xiang'
  ).split(' '),
)
const LANGUAGE_PRIMARY = /^[a-z]{2,3}$/
const LANGUAGE_VARIANT = /^(?:[a-z0-9]{5,8}|[0-9][a-z0-9]{3})$/
const LANGUAGE_SUBTAG = /^[a-z0-9]{1,8}$/

/**
 * Tells whether `value` is a BCP 47 language tag: RFC 5646's grammar, no variant or extension twice, and a primary
 * language of two or three lowercase letters (the vectors refuse `JA` and `jaja`). Subtags are not looked up.
 */
export function isLanguage(value: unknown): value is Language {
  if (typeof value !== 'string' || value.length > LANGUAGE_LENGTH_MAX) return false
  if (GRANDFATHERED.has(value)) return true
  const tags = value.split('-')
  for (let i = 1; i < tags.length; i++) {
    tags[i] = tags[i]!.toLowerCase()
    if (!LANGUAGE_SUBTAG.test(tags[i]!)) return false
  }
  if (tags[0] === 'x' || tags[0] === 'X') return tags.length > 1
  if (!LANGUAGE_PRIMARY.test(tags[0]!)) return false
  let at = 1
  const take = (pattern: RegExp) => at < tags.length && pattern.test(tags[at]!) && ++at > 0
  for (let n = 0; n < 3 && take(/^[a-z]{3}$/); n++);
  take(/^[a-z]{4}$/)
  take(/^(?:[a-z]{2}|[0-9]{3})$/)
  const seen = new Set<string>()
  while (take(LANGUAGE_VARIANT)) if (seen.size === seen.add(tags[at - 1]!).size) return false
  while (take(/^[0-9a-wyz]$/)) {
    if (seen.size === seen.add(tags[at - 1]!).size || !take(/^.{2,8}$/)) return false
    while (take(/^.{2,8}$/));
  }
  return at === tags.length || (tags[at] === 'x' && at + 1 < tags.length)
}

const URI = /^[a-zA-Z][a-zA-Z0-9+.-]*:[\x21-\x7e]+$/

/** Tells whether `value` is a URI of any scheme: printable ASCII without spaces. Only the scheme is looked into. */
export function isUri(value: unknown): value is Uri {
  return typeof value === 'string' && value.length <= URI_LENGTH_MAX && URI.test(value)
}

/** @throws {@link Malformed} unless {@link isDid}. */
export function asDid(value: unknown): Did {
  if (!isDid(value)) throw new Malformed('not a DID')
  return value
}

/** @throws {@link Malformed} unless {@link isHandle}. */
export function asHandle(value: unknown): Handle {
  if (!isHandle(value)) throw new Malformed('not a handle')
  return value
}

/**
 * Checks a handle and lowercases it, which is the form to store and compare.
 * @throws {@link Malformed}
 */
export function normalizeHandle(value: unknown): Handle {
  return asHandle(value).toLowerCase() as Handle
}

/** @throws {@link Malformed} unless {@link isAtIdentifier}. */
export function asAtIdentifier(value: unknown): AtIdentifier {
  if (!isAtIdentifier(value)) throw new Malformed('neither a DID nor a handle')
  return value
}

/** @throws {@link Malformed} unless {@link isNsid}. */
export function asNsid(value: unknown): Nsid {
  if (!isNsid(value)) throw new Malformed('not an NSID')
  return value
}

/** @throws {@link Malformed} unless {@link isRkey}. */
export function asRkey(value: unknown): Rkey {
  if (!isRkey(value)) throw new Malformed('not a record key')
  return value
}

/** @throws {@link Malformed} unless {@link isTid}. */
export function asTid(value: unknown): Tid {
  if (!isTid(value)) throw new Malformed('not a TID')
  return value
}

/** @throws {@link Malformed} unless {@link isAtUri}. */
export function asAtUri(value: unknown): AtUri {
  if (!isAtUri(value)) throw new Malformed('not an AT-URI')
  return value
}

/** @throws {@link Malformed} unless {@link isDatetime}. */
export function asDatetime(value: unknown): Datetime {
  if (!isDatetime(value)) throw new Malformed('not a datetime')
  return value
}

/** @throws {@link Malformed} unless {@link isLanguage}. */
export function asLanguage(value: unknown): Language {
  if (!isLanguage(value)) throw new Malformed('not a language tag')
  return value
}

/** @throws {@link Malformed} unless {@link isUri}. */
export function asUri(value: unknown): Uri {
  if (!isUri(value)) throw new Malformed('not a URI')
  return value
}
