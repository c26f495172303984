/** The services that this PDS turns to by itself, and which of them a method goes to. */
import { originOf } from '@millisky/core/did'
import { type Did, isDid, type Nsid } from '@millisky/core/syntax'
import { SettingsError } from '@millisky/server/config'
import type { PdsSettings } from '../config.ts'

/** One service of somebody: where requests go and for whom their tokens are. */
export interface Service {
  did: Did
  /** The id in the DID document, without `#`. */
  id: string
  /** Without a slash at its end. */
  origin: string
  /** Named by the operator, so it may lie in a private network. */
  isTrusted: boolean
}

/** Null is "there is none". */
export interface Services {
  appView: Service | null
  moderation: Service | null
  /** Where reports go; the moderation service unless told. */
  reports: Service | null
}

type ServiceSettings = Pick<
  PdsSettings,
  'appViewUrl' | 'appViewDid' | 'modServiceUrl' | 'modServiceDid' | 'reportServiceUrl' | 'reportServiceDid'
>

/** Reads them from the settings. @throws SettingsError when one is half given or not sound */
export function servicesOf(settings: ServiceSettings): Services {
  const problems: string[] = []
  const read = (prefix: string, id: string, url: string | undefined, did: string | undefined): Service | null => {
    if (url === undefined) return null
    const origin = originOf(url)
    if (origin === null) problems.push(`${prefix}_URL: an origin such as https://host.example is expected, not ${url}`)
    if (!isDid(did)) problems.push(`${prefix}_DID: the DID of ${url} is expected, not ${did ?? 'nothing'}`)
    return origin !== null && isDid(did) ? { did, id, origin, isTrusted: true } : null
  }
  const { appViewUrl, appViewDid, modServiceUrl, modServiceDid, reportServiceUrl, reportServiceDid } = settings
  const appView = read('PDS_BSKY_APP_VIEW', 'bsky_appview', appViewUrl, appViewDid)
  const moderation = read('PDS_MOD_SERVICE', 'atproto_labeler', modServiceUrl, modServiceDid)
  const reports = read('PDS_REPORT_SERVICE', 'atproto_labeler', reportServiceUrl, reportServiceDid) ?? moderation
  if (problems.length > 0) throw new SettingsError('pds', problems)
  return { appView, moderation, reports }
}

/** Where a method goes when the caller does not say; null if nowhere. */
export function defaultService(nsid: Nsid, { appView, moderation, reports }: Services): Service | null {
  if (nsid.startsWith('tools.ozone.')) return moderation
  if (nsid === 'com.atproto.moderation.createReport') return reports
  // Private conversations have no default: who carries them is for the caller to say.
  return nsid.startsWith('chat.bsky.') ? null : appView
}
