/** `app.bsky.actor.getPreferences` and `putPreferences`: an app's settings, kept for the account, seen by nobody else. */
import type { Obj } from '@millisky/core/cbor'
import { Refused } from '@millisky/core/errors'
import { jsonToValue, valueToJson } from '@millisky/core/json'
import { main as getPreferences } from '@millisky/core/lexicon/gen/app/bsky/actor/getPreferences'
import { main as putPreferences } from '@millisky/core/lexicon/gen/app/bsky/actor/putPreferences'
import type { MethodOptions, Xrpc } from '@millisky/server/xrpc'
import type { PdsAccess, SessionUser } from '../access.ts'
import type { Preference, Store } from '../store/store.ts'

const NAMESPACE = 'app.bsky.'
/** Of the reference: what only the account's own password may see and change. */
const FULL_ACCESS_ONLY = new Set(['app.bsky.actor.defs#personalDetailsPref'])
/** Made from the birth date for those who may not see that; never kept. */
const DECLARED_AGE = 'app.bsky.actor.defs#declaredAgePref'
const PREFERENCES_MAX = 200

export interface PreferencesApiParts {
  store: Store
  access: PdsAccess
  /** Answers what is meant for another app view. */
  elsewhere: MethodOptions<never, never>['instead'] & {}
  /** Milliseconds since 1970. */
  now: () => number
}

/** Adds the methods. */
export function addPreferencesApi(xrpc: Xrpc, { store, access, elsewhere, now }: PreferencesApiParts): void {
  const accountId = async ({ did }: SessionUser) => {
    const account = await store.accounts.byDid(did)
    if (!account) throw new Refused('AccountNotFound', 'Account not found', 403)
    return account.id
  }
  xrpc.query(
    getPreferences,
    { auth: access.sessionOrModService({ takendown: true }), instead: elsewhere },
    async ({ auth }) => {
      const kept = await store.accounts.preferences(await accountId(auth))
      const values = kept.map(({ json }) => jsonToValue(json) as Obj)
      const visible = values.filter(({ $type }) => auth.isFull || !FULL_ACCESS_ONLY.has($type as string))
      return { preferences: [...visible, ...declaredAge(values, now())] as never }
    },
  )
  xrpc.procedure(
    putPreferences,
    { auth: access.session({ unlessTakendown: true }), instead: elsewhere },
    async ({ input, auth }) => {
      const given = (input.preferences as readonly Obj[]).map(toPreference).filter(({ type }) => type !== DECLARED_AGE)
      if (given.length > PREFERENCES_MAX)
        throw new Refused('InvalidRequest', `Too many preferences. Max: ${PREFERENCES_MAX}`)
      const id = await accountId(auth)
      if (auth.isFull) return store.accounts.setPreferences(id, given)
      const forbidden = given.map(({ type }) => type).filter(type => FULL_ACCESS_ONLY.has(type))
      if (forbidden.length > 0) {
        throw new Refused('InvalidRequest', `Do not have authorization to set preferences: ${forbidden.join(', ')}`)
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

/** What apps may know of the age: which thresholds it is above. */
function declaredAge(preferences: Obj[], now: number): Obj[] {
  const birthDate = preferences.find(({ $type, birthDate }) => FULL_ACCESS_ONLY.has($type as string) && birthDate)
  const born = new Date(birthDate?.birthDate as string)
  if (Number.isNaN(born.getTime())) return []
  const today = new Date(now)
  const hadBirthday =
    today.getUTCMonth() > born.getUTCMonth() ||
    (today.getUTCMonth() === born.getUTCMonth() && today.getUTCDate() >= born.getUTCDate())
  const age = today.getUTCFullYear() - born.getUTCFullYear() - (hadBirthday ? 0 : 1)
  return [{ $type: DECLARED_AGE, isOverAge13: age >= 13, isOverAge16: age >= 16, isOverAge18: age >= 18 }]
}
