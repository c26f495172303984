// Where this server means to differ from the reference, and why. All else that differs is a mistake of ours.
import type { Said } from './reference-side.ts'

interface Difference {
  /** Steps by name. */
  steps: RegExp
  why: string
  /** Only this may differ; default anything. */
  only?: 'message' | 'headers' | 'name and message'
}

/** Methods that the reference leaves to its app view, or does not have. */
const OURS_ALONE =
  /^(admin\.searchAccounts|admin\.updateAccountSigningKey|identity\.(refreshIdentity|resolveDid|resolveIdentity)|lexicon\.resolveLexicon|sync\.listReposByCollection|temp\.(checkHandleAvailability|dereferenceScope|revokeAccountCredentials)) /

const DIFFERENCES: Difference[] = [
  { steps: OURS_ALONE, why: 'served here' },
  { steps: / put$/, only: 'message', why: 'the verb is wrong for a known method, which is said so of every verb' },
  { steps: / wrong verb$/, why: 'a known method that is not served has its verb all the same' },
  { steps: /^proxy: known verb$/, why: 'the verb is checked before a request is passed on' },
  {
    steps: / body: (broken|a string|null|compressed unheard-of|huge)$/,
    only: 'name and message',
    why: 'the error is InvalidRequest, PayloadTooLarge or UnsupportedMediaType, not the name of a JavaScript class',
  },
  {
    steps:
      /^written: (charset (latin1|nonsense)|nothing but space|encoded as (zip|compress)|compressed and huge|of 153601 bytes)$/,
    only: 'name and message',
    why: 'as above',
  },
  { steps: / by DPoP$/, why: 'a token that is no token is told by the scheme alone' },
  {
    steps: /^(admin|repo|server|sync|temp|identity|moderation|lexicon)\..* by one gone$/,
    why: 'one who is gone is always told 403 AccountNotFound',
  },
  {
    steps: /^gone: /,
    why: 'one who is gone is always told 403 AccountNotFound; getHead names the error of its lexicon',
  },
  { steps: /^GET \//, why: 'pages around the API are of no framework; /tls-check is served here' },
  {
    steps: /^(no NSID|NSID in upper case|proto key itself)$/,
    why: 'names are checked before callers, and are case-sensitive',
  },
  {
    steps: /^answer of .*: 500 named as such$|^feed: broken app view$/,
    only: 'name and message',
    why: 'a failure inside a service is an UpstreamFailure',
  },
  {
    steps: /^answer of .*: (418|520) (empty|text|no name|no message)$|: 400 empty texts$/,
    only: 'name and message',
    why: 'every error has a name',
  },
  {
    steps: /^answer of .*: (400|429) with headers$/,
    only: 'headers',
    why: 'what a service says of its errors is passed on',
  },
  { steps: /^answer of app\.bsky\..*: 20[0-4]/, why: 'what cannot be brought up to date passes as it came' },
  { steps: /^answer of com\.example\.get: 204$/, only: 'headers', why: 'nothing has no type' },
  { steps: /^answer of report: /, why: 'errors of this service are told like those of any other' },
  { steps: /^fresh/, only: 'headers', why: 'what the app view says of its answer stays' },
  { steps: /^fresh, .*: broken timeline, headers$/, why: 'how old an answer is holds for every answer' },
  {
    steps: /^fresh, .*: timeline$|^fresh.*: thread( |$)/,
    why: 'authors are as they are now; a new post has no replies, which is said',
  },
  { steps: /^feed: record of no DID$/, only: 'name and message', why: 'the error is that of the lexicon' },
  { steps: /^arrived: resolved$/, why: 'who somebody is may be told in any state: protocol.md §4.8' },
  {
    steps: /^(arrived: new handle|plc: submit by another key|web: (sign|submit))$/,
    only: 'message',
    why: 'says what is wrong',
  },
  { steps: /^events: of <(zoe|web)>$/, why: 'an identity is told with its handle' },
  { steps: /^subscribeRepos without a socket$/, why: '426 says what is missing' },
  { steps: /^sign-up: (bad recovery key)$/, why: 'refused here, before the directory does' },
  { steps: /^app password: (twice|long name)$/, why: 'a name is refused with a reason' },
  { steps: /^app passwords/, why: 'see "long name"' },
  { steps: /^records: (a bad link|bad bytes|a fraction)$/, why: 'what is not of the data model is not stored' },
  {
    steps: /^records: (profile|profile again|writes: none)$/,
    why: 'the key that a schema fixes is filled in; what changes nothing makes no commit',
  },
  {
    steps: /^events: of (<ann>|did:plc:aaaa)/,
    why: 'see the bad links and bytes, and the blobs that do not fit; nothing is told of nobody',
  },
  { steps: /: writes by owner$/, why: 'what changes nothing makes no commit' },
  { steps: /^reads: by handle in capitals$/, why: 'handles are compared without regard to case' },
  { steps: /^reads: list: (all|range|reversed)$/, why: 'see the bad link and bytes, which were not written' },
  { steps: /^blobs: (loose, own|hidden, own|hidden, admin)$/, why: 'owners see what nothing refers to yet' },
  {
    steps: /^blobs: (other type|other size|type not allowed|too large)$/,
    why: 'references have to say what was uploaded, by the names of pds.md #76',
  },
  {
    steps: /^blobs: (in use|head|back)$/,
    only: 'headers',
    why: 'public blobs may be cached, come in parts and have tags',
  },
  { steps: /, bad cursor$/, why: 'a cursor that nobody gave is refused' },
  { steps: /resolveHandle by/, why: 'who somebody is may be told in any state: protocol.md §4.8' },
  { steps: /checkAccountStatus by/, why: 'blobs that nothing refers to are not counted as imported' },
  {
    steps: /^takendown: .* by visitor$/,
    why: 'who is taken down may read what is theirs, and go elsewhere: protocol.md §4.8',
  },
  {
    steps: /^takendown: (app\.bsky\.|com\.example\.|proxied|com\.atproto\.identity\.getRecommended).* ?by owner$/,
    why: 'a session of before the takedown speaks to nobody else',
  },
  { steps: /^takendown: proxied by owner$/, why: 'a session of before the takedown speaks to nobody else' },
  {
    steps: /^(record: list|record: that is not|nobody|blob that is not)$/,
    why: 'what is not there is not taken down; pages go on behind what is hidden',
  },
  {
    steps: /^(admin: (password of nobody|email nonsense|email taken)|invites: bar nobody)$/,
    why: 'what could not be done is not said to be done',
  },
  { steps: /^identity: submit /, only: 'message', why: 'says what is wrong with the operation' },
  { steps: /^proxy: chat without a name$/, why: 'private conversations have no default service' },
  { steps: /^server\.createInviteCodes with codeCount too large$/, why: 'a call makes 10,000 codes at most' },
  { steps: /^limits: (by a token that will not do|unknown method)$/, why: 'requests that are refused count too' },
  { steps: /^sync\.listRepos /, why: 'no cursor on the last page' },
  { steps: /^sync\.(getCheckout|getRepo) with /, only: 'headers', why: 'exports may be kept by caches that ask again' },
  { steps: / body: of a nonsense type$/, why: 'a type that is none is told before the caller is looked at' },
  { steps: /^identity\.submitPlcOperation with an unknown field$/, only: 'message', why: 'says what is wrong' },
  {
    steps: /^repo\.uploadBlob by a service token$/,
    why: 'a token of this server is none of a service, whatever it names',
  },
  { steps: /^server\.checkAccountStatus /, why: 'blobs that nothing refers to are not counted as imported' },
  { steps: /^server\.requestPasswordReset with an unknown field$/, why: 'nobody is told who has an account here' },
  { steps: /^(temp\.checkSignupQueue|server\.getSession) by one waiting$/, why: 'nobody waits here' },
]

/** What is compared of an answer; undefined for nothing. */
export function intended(name: string, ours: Said | undefined, theirs: Said): [unknown, unknown] {
  // A failure inside the reference is no example.
  if (theirs.status === 500 && ours && ours.status < 500) return [null, null]
  const skipped = new Set<keyof Said>()
  for (const { steps, only } of DIFFERENCES) {
    if (!steps.test(name)) continue
    if (only === undefined) return [null, null]
    if (only === 'headers') skipped.add('headers')
    else skipped.add('message')
    if (only === 'name and message') skipped.add('error')
  }
  return [ours && compared(ours, skipped), compared(theirs, skipped)]
}

/** On errors caches are told nothing that matters; what strangers answer is fenced in here. */
const FENCES = ['content-security-policy', 'x-content-type-options']

function compared({ status, error, message, body, headers }: Said, skipped: Set<keyof Said>): Partial<Said> {
  const kept = { ...headers }
  if (!/\bimage\b|octet/.test(headers['content-type'] ?? '')) for (const name of FENCES) delete kept[name]
  if (status >= 400) {
    delete kept['cache-control']
    delete kept.vary
  }
  if (kept['content-type']?.startsWith('application/json')) kept['content-type'] = 'application/json'
  if (kept.vary === 'Access-Control-Request-Headers') delete kept.vary
  return {
    status,
    body,
    // Where in the parameters something is wrong is said here.
    ...(skipped.has('message') ? {} : { message: message?.replace(/ at \$\S*$/, '') }),
    ...(skipped.has('error') ? {} : { error }),
    ...(skipped.has('headers') ? {} : { headers: kept }),
  }
}
