/**
 * Which headers cross the server, in each direction. Everything else stays where it is: credentials, cookies, DPoP proofs,
 * addresses of the caller on the way out; cookies, redirects, policies, hop-by-hop headers on the way back.
 *
 * Source: pds.md #58; the lists are the reference's.
 */
import type { IncomingHttpHeaders } from 'node:http'

const ASKED: readonly string[] = ['accept-language', 'atproto-accept-labelers', 'x-bsky-topics']
/** What begins so is meant for services, whichever. */
const ASKED_PREFIX = 'x-atproto-'
const ASKED_WITH_BODY: readonly string[] = ['content-type', 'content-encoding', 'content-length']
const ANSWERED: readonly string[] = ['atproto-repo-rev', 'atproto-content-labelers', 'retry-after']
const ANSWERED_WITH_BODY: readonly string[] = ['content-type', 'content-encoding', 'content-language', 'content-length']
/** Of one header that comes back. */
const VALUE_LENGTH_MAX = 4_096
/** What may stand in a header; nothing that could begin another one. */
const VALUE = /^[\t\x20-\x7e\x80-\xff]*$/

function pick(headers: IncomingHttpHeaders, names: readonly string[], picked: Record<string, string>): void {
  for (const name of names) {
    const value = headers[name]
    if (value === undefined) continue
    const text = Array.isArray(value) ? value.join(', ') : value
    if (text.length <= VALUE_LENGTH_MAX && VALUE.test(text)) picked[name] = text
  }
}

/** The caller's headers that go on. `content-*` only with a body. */
export function askedHeaders(headers: IncomingHttpHeaders, hasBody: boolean): Record<string, string> {
  const picked: Record<string, string> = {}
  pick(headers, ASKED, picked)
  pick(
    headers,
    Object.keys(headers).filter(name => name.startsWith(ASKED_PREFIX)),
    picked,
  )
  if (hasBody) pick(headers, ASKED_WITH_BODY, picked)
  // Without it any encoding would do.
  picked['accept-encoding'] = headers['accept-encoding']?.toString() || 'identity'
  return picked
}

/** The service's headers that come back; `content-*` only with its body. */
export function answeredHeaders(headers: IncomingHttpHeaders, withBody: boolean): Record<string, string> {
  const picked: Record<string, string> = {}
  pick(headers, ANSWERED, picked)
  if (!withBody) return picked
  pick(headers, ANSWERED_WITH_BODY, picked)
  if (!/^\d{1,15}$/.test(picked['content-length'] ?? '')) delete picked['content-length']
  // What a stranger says is not to be taken for a page of this server.
  picked['x-content-type-options'] = 'nosniff'
  picked['content-security-policy'] = "default-src 'none'; sandbox"
  return picked
}

const CODINGS = ['gzip', 'deflate', 'br'] as const

/**
 * What to ask for when the answer may have to be read here: encodings that the caller and this server both understand.
 *
 * @param preferCompressed - For services far away; near ones had better not compress at all.
 */
export function sharedEncodings(accepted: string | undefined, preferCompressed: boolean): string {
  const refused = new Set<string>()
  const wanted = new Set<string>()
  for (const entry of (accepted ?? '').toLowerCase().split(',')) {
    const [name = '', ...params] = entry.split(';').map(part => part.trim())
    if (name === '') continue
    if (params.some(param => /^q=0(\.0*)?$/.test(param))) refused.add(name)
    else wanted.add(name)
  }
  const shared = CODINGS.filter(name => !refused.has(name) && (wanted.has(name) || wanted.has('*')))
  const weights = preferCompressed ? ['1', '0.9', '0.8'] : ['0.3', '0.2', '0.1']
  const codings = shared.map((name, i) => `${name};q=${weights[i]}`)
  return [...codings, preferCompressed && codings.length > 0 ? 'identity;q=0.1' : 'identity'].join(', ')
}
