/** What the methods need to know about who is calling; `access.ts` finds it out from the request. */
import type { Did } from '@millisky/core/syntax'
import type { Auth } from '@millisky/server/xrpc'

/** Somebody signed in. */
export interface User {
  did: Did
  /** @throws Refused 403 if what the caller holds does not extend to this */
  mayWrite(action: 'create' | 'update' | 'delete', collection: string): void
  /** @throws Refused 403 */
  mayUpload(mimeType: string): void
}

/** Anybody, signed in or not. */
export interface Viewer {
  /** Whether this caller sees the account also while it is inactive: its owner and the admin do. */
  sees(did: Did): boolean
}

/** Ways to require a caller, for the `auth` of a method. */
export interface Access {
  /** @throws Refused 401 AuthMissing, 400 ExpiredToken, 400 InvalidToken … */
  user: Auth<User>
  /** Nothing is required; credentials that are given and will not do are refused. */
  viewer: Auth<Viewer>
}
