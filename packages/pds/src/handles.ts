/** Which handles this server gives out. Source: pds.md #39, #43; messages as the reference's clients show them. */
import { Refused } from '@millisky/core/errors'
import { type Handle, isHandle, isResolvableHandle, normalizeHandle } from '@millisky/core/syntax'

const FRONT_LENGTH_MIN = 3
const FRONT_LENGTH_MAX = 18

/** First labels that would be mistaken for the service itself, or that machines look up by themselves. */
const RESERVED = new Set(
  `
    about abuse access account accounts activate ad address admin administration administrator admins ads adult
    agent all alpha analytics anonymous announcements answers api apis app apple apps archive archives assets at
    atp atproto atprotocol auth authentication authorize avatar backup banner beta billing blob blobs blog blogs
    bluesky board bookmarks bot bots bsky bugs business cache calendar callback captcha careers cart cdn cgi
    changelog chat check checkout client clients cloud code codes comments community company compare config
    confirm connect console contact contacts content contribute copyright core cpanel create css customer
    dashboard data db debug default delete demo deploy design desktop dev devel developer developers did
    directory discover discuss dist dmca dns doc docs documentation domain domains donate download downloads
    edit editor education email embed employment enterprise error errors event events example explore export faq
    features feed feedback feeds file files firehose follow followers following forgot forum forums free friends
    ftp gateway git github graph graphql group groups guest guide guides handle handles health help home host
    hosting hostmaster html http https icon icons identity image images imap img import inbox index info
    internal invite invites invoice ios irc issues jetstream job jobs join js json labeler labels legal lex
    lexicon license link links linux list lists live local localhost log login logout logs mail mailer main
    maintenance manage manager map maps marketing me media member members message messages metrics mobile mod
    moderation moderator mods monitor mx my name names network new news newsletter nil nobody noreply notes
    notification notifications notify nsid null oauth office official oidc online openid operations operator ops
    order orders owner page pages password passwords pay payment payments pds people phone photo photos plc
    podcast policies policy pop pop3 popular portal post postmaster posts preferences premium press pricing
    privacy private prod production profile profiles project projects promo protocol proxy public purchase push
    query queue redirect refund register registration relay repo report reports reset resources robots root rss
    sales sandbox schema search secure security self server servers service services session sessions settings
    setup shop sign signin signout signup site sitemap smtp social source spam sql ssh ssl staff stage staging
    static stats status storage store stream subscribe suggest superuser support survey suspended sync sysadmin
    system tag tags team teams terms test testing tid token tools tos trust tutorial tv unsubscribe update
    updates upload uploads url user username users validate verified verify video videos wallet web webhook
    webhooks webmail webmaster websocket welcome well-known wellknown wiki wpad www www1 www2 xrpc you your
  `.match(/\S+/g),
)

export interface HandleRules {
  /** Each with a leading dot. */
  domains: readonly string[]
  /** Also handles under `.test`. */
  development: boolean
}

/** Whether it lies below one of the server's own domains. */
export function isOwnHandle(handle: string, { domains }: HandleRules): boolean {
  return domains.some(domain => handle.endsWith(domain))
}

/** Whether it lies below one of the server's own domains or is such a domain itself: nobody else may hand it out. */
export function isOwnName(handle: string, { domains }: HandleRules): boolean {
  return domains.some(domain => handle.endsWith(domain) || handle === domain.slice(1))
}

/**
 * Checks and normalizes a handle somebody wants. One under a foreign domain is left to be resolved by the caller.
 *
 * @param options.anyValid - The operator asks: reserved names and any length will do.
 * @throws Refused InvalidHandle, HandleNotAvailable
 */
export function checkHandle(wanted: string, rules: HandleRules, { anyValid = false } = {}): Handle {
  const text = wanted.toLowerCase()
  if (!isHandle(text)) throw new Refused('InvalidHandle', 'Input/handle must be a valid handle')
  const handle = normalizeHandle(text)
  const domain = rules.domains.find(domain => handle.endsWith(domain))
  if (domain === undefined) {
    if (!isResolvableHandle(handle, { allowTest: rules.development }) && !isOwnName(handle, rules)) {
      throw new Refused('InvalidHandle', 'Handle TLD is invalid or disallowed')
    }
    return handle
  }
  const front = handle.slice(0, -domain.length)
  if (front.includes('.')) throw new Refused('InvalidHandle', 'Invalid characters in handle')
  if (front.length < FRONT_LENGTH_MIN) throw new Refused('InvalidHandle', 'Handle too short')
  if (front.length > FRONT_LENGTH_MAX) throw new Refused('InvalidHandle', 'Handle too long')
  if (!anyValid && RESERVED.has(front)) throw new Refused('HandleNotAvailable', 'Reserved handle')
  return handle
}
