/** `app.bsky.actor.getPreferences` and `putPreferences`: an app's settings, kept for the account, seen by nobody else. */
import type { Obj } from '@millisky/core/cbor'
import { Refused } from '@millisky/core/errors'
import { jsonToValue, valueToJson } from '@millisky/core/json'
import { main as getPreferences } from '@millisky/core/lexicon/gen/app/bsky/actor/getPreferences'
import { main as putPreferences } from '@millisky/core/lexicon/gen/app/bsky/actor/putPreferences'
import type { Xrpc } from '@millisky/server/xrpc'
import type { PdsAccess, SessionUser } from '../access.ts'
import type { Preference, Store } from '../store/store.ts'

const NAMESPACE = 'app.bsky.'
/** Of the reference: what only the account's own password may see and change. */
const FULL_ACCESS_ONLY = new Set(['app.bsky.actor.defs#personalDetailsPref'])
const PREFERENCES_MAX = 200
const PREFERENCES_BYTES_MAX = 1_000_000

export interface PreferencesApiParts {
  store: Store
  access: PdsAccess
}

/** Adds the methods. */
export function addPreferencesApi(xrpc: Xrpc, { store, access }: PreferencesApiParts): void {
  const accountId = async ({ did }: SessionUser) => {
    const account = await store.accounts.byDid(did)
    if (!account) throw new Refused('AccountNotFound', `Could not find account: ${did}`, 403)
    return account.id
  }
  xrpc.query(getPreferences, { auth: access.user }, async ({ auth }) => {
    const kept = await store.accounts.preferences(await accountId(auth))
    const visible = kept.filter(({ type }) => auth.isFull || !FULL_ACCESS_ONLY.has(type))
    return { preferences: visible.map(({ json }) => jsonToValue(json) as Obj) as never }
  })
  xrpc.procedure(
    putPreferences,
    { auth: access.user, bodyBytesMax: PREFERENCES_BYTES_MAX },
    async ({ input, auth }) => {
      const given = (input.preferences as readonly Obj[]).map(toPreference)
      if (given.length > PREFERENCES_MAX)
        throw new Refused('InvalidRequest', `Too many preferences. Max: ${PREFERENCES_MAX}`)
      const id = await accountId(auth)
      if (auth.isFull) return store.accounts.setPreferences(id, given)
      if (given.some(({ type }) => FULL_ACCESS_ONLY.has(type))) {
        throw new Refused('InvalidRequest', 'Do not have authorization to set preferences.')
      }
      // What this caller cannot see stays as it is.
      const hidden = (await store.accounts.preferences(id)).filter(({ type }) => FULL_ACCESS_ONLY.has(type))
      await store.accounts.setPreferences(id, [...given, ...hidden])
    },
  )
}

function toPreference(preference: Obj): Preference {
  const type = preference.$type
  if (typeof type !== 'string') throw new Refused('InvalidRequest', 'Preference is missing a $type')
  if (!type.startsWith(NAMESPACE)) {
    throw new Refused('InvalidRequest', 'Some preferences are not in the app.bsky namespace')
  }
  return { type, json: valueToJson(preference) }
}
