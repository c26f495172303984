/** Settings of how a Relay is operated: hosts to begin with, sibling relays, the audit log. */
import { type Setting, SettingsError } from '@millisky/server/config'

export const operationSettings = {
  seedHosts: {
    type: 'list',
    default: [],
    env: ['RELAY_SEED_HOSTS'],
    flag: '--seed-hosts',
    doc: 'Hosts that are taken up at the start if they are not known yet. `millisky host pull` takes over those of another relay.',
    section: 'Hosts',
  },
  siblings: {
    type: 'list',
    default: [],
    env: ['RELAY_SIBLING_RELAYS'],
    flag: '--sibling-relays',
    doc: 'URLs of relays of the same operator, which are told what administrators change here and which hosts ask to be crawled.',
    section: 'Siblings',
  },
  siblingPassword: {
    type: 'string',
    secret: true,
    env: ['RELAY_SIBLING_PASSWORD'],
    flag: '--sibling-password',
    doc: 'Admin password of the siblings. Default: the first one of this relay.',
    section: 'Siblings',
  },
  nextCrawlers: {
    type: 'list',
    default: [],
    env: ['RELAY_NEXT_CRAWLER'],
    flag: '--next-crawler',
    doc: 'URLs of relays that are only told which hosts ask to be crawled.',
    section: 'Siblings',
  },
  auditKeepMs: {
    type: 'duration',
    default: 365 * 86_400_000,
    env: ['RELAY_AUDIT_KEEP'],
    flag: '--audit-keep',
    doc: 'How long it is remembered what administrators did.',
    section: 'Storage',
  },
  auditEntriesMax: {
    type: 'int',
    min: 0,
    default: 100_000,
    env: ['RELAY_AUDIT_ENTRIES_MAX'],
    flag: '--audit-entries-max',
    doc: 'How much of it is remembered at the most, whatever its age.',
    section: 'Storage',
  },
} as const satisfies Record<string, Setting>

/** Origins of relays, as operators write them. @throws SettingsError */
export function originsOf(name: string, urls: readonly string[]): string[] {
  return urls.map(text => {
    const url = URL.parse(/^https?:\/\//.test(text) ? text : `https://${text}`)
    if (url && url.pathname === '/' && url.username === '') return url.origin
    throw new SettingsError(name, [`a relay is named by its URL, not ${JSON.stringify(text)}`])
  })
}
