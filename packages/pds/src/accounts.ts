/**
 * Making accounts: checks, a new identity in the directory or proof of an existing one, then the account itself.
 *
 * Source: pds.md #38-#47.
 */
import { randomBytes } from 'node:crypto'
import { SigningKey } from '@millisky/core/crypto'
import { type Identity, parseDidDocument } from '@millisky/core/did'
import { Refused } from '@millisky/core/errors'
import { type PlcUpdate, plcDidOf, plcGenesis, plcToDocument, plcTombstone, signPlcOperation } from '@millisky/core/plc'
import { type Did, type Handle, isDid } from '@millisky/core/syntax'
import type { FetchBytes } from '@millisky/server/fetch'
import type { Identities } from '@millisky/server/identity'
import type { Logger } from '@millisky/server/trace'
import type { ServiceNames } from './config.ts'
import { checkHandle, type HandleRules, isOwnHandle } from './handles.ts'
import type { Lifecycle } from './lifecycle.ts'
import { hashPassword, NEW_PASSWORD_LENGTH_MAX } from './passwords.ts'
import { submitOperation } from './plc-client.ts'
import { type Account, type Store, type StoredKey, Taken } from './store/store.ts'

const EMAIL = /^[^\s@<>()[\],;:"\\]{1,64}@[^\s@<>()[\],;:"\\]{1,190}\.[^\s@.]{2,}$/
const EMAIL_LENGTH_MAX = 254

export interface WantedAccount {
  handle: string
  email?: string
  password?: string
  inviteCode?: string
  /** did:key that is put first among the rotation keys. */
  recoveryKey?: string
  /** An identity that exists already; `provenBy` must be the same. */
  did?: Did
  /** Whose service token came with the request. */
  provenBy: Did | null
}

export interface AccountsParts {
  store: Store
  lifecycle: Lifecycle
  identities: Identities
  names: ServiceNames
  handles: HandleRules
  inviteRequired: boolean
  /** secp256k1, 32 bytes. Without it no identities are made here. */
  plcRotationKey: Uint8Array | undefined
  recoveryDidKey: string | undefined
  directory: { plcUrl: string; fetch: FetchBytes }
  log: Logger
}

interface NewIdentity {
  did: Did
  key: StoredKey
  /** Ends the identity again when the account could not be made. */
  undo: () => Promise<void>
}

export class Accounts {
  readonly #parts: AccountsParts
  readonly #rotationKey: SigningKey | null

  constructor(parts: AccountsParts) {
    this.#parts = parts
    this.#rotationKey = parts.plcRotationKey ? SigningKey.fromPrivate('k256', parts.plcRotationKey) : null
  }

  /**
   * Makes an account. One for an existing identity is made deactivated and sends no events.
   *
   * @throws Refused InvalidHandle, HandleNotAvailable, UnsupportedDomain, InvalidPassword, InvalidInviteCode, InvalidRequest
   */
  async create(wanted: WantedAccount): Promise<Account> {
    const { store, lifecycle, handles } = this.#parts
    const handle = checkHandle(wanted.handle, handles)
    const email = checkEmail(wanted.email)
    const password = checkPassword(wanted.password)
    await this.#checkInvite(wanted.inviteCode)
    if (await store.accounts.byHandle(handle)) throw taken('Handle', handle)
    if (await store.accounts.byEmail(email)) throw taken('Email', email)
    const hash = await hashPassword(password, randomBytes(16))
    const identity = wanted.did
      ? await this.#existingIdentity(wanted.did, handle, wanted)
      : await this.#newIdentity(handle, wanted)
    try {
      return await lifecycle.open({
        did: identity.did,
        handle,
        email,
        password: hash,
        key: identity.key,
        ...(wanted.inviteCode ? { invite: wanted.inviteCode } : {}),
        deactivated: wanted.did !== undefined,
      })
    } catch (error) {
      await identity.undo()
      if (error instanceof Taken) {
        if (error.what === 'did') throw new Refused('InvalidRequest', `Account already exists: ${identity.did}`)
        throw error.what === 'handle' ? taken('Handle', handle) : taken('Email', email)
      }
      throw error
    }
  }

  async #checkInvite(code: string | undefined): Promise<void> {
    const { inviteRequired, store } = this.#parts
    if (!code) {
      if (inviteRequired) throw new Refused('InvalidInviteCode', 'No invite code provided')
      return
    }
    const invite = await store.tickets.invite(code)
    if (!invite || invite.disabled || invite.usedBy.length >= invite.uses) {
      throw new Refused('InvalidInviteCode', 'Provided invite code not available')
    }
  }

  async #newIdentity(handle: Handle, { recoveryKey }: WantedAccount): Promise<NewIdentity> {
    const { names, handles, recoveryDidKey, directory, identities, log } = this.#parts
    const server = this.#rotationKey
    if (!server) throw new Refused('InvalidRequest', 'This server makes no new identities: bring your own DID')
    if (!isOwnHandle(handle, handles)) throw new Refused('UnsupportedDomain', 'Not a supported handle domain')
    const key: StoredKey = { curve: 'k256', secret: randomBytes(32) }
    const signing = SigningKey.fromPrivate(key.curve, key.secret)
    const rotationKeys = [recoveryKey, recoveryDidKey, server.didKey].filter(text => text !== undefined)
    const genesis = signPlcOperation<PlcUpdate>(
      plcGenesis({
        rotationKeys: [...new Set(rotationKeys)],
        signingKey: signing.didKey,
        handle,
        pds: names.publicUrl,
      }),
      server,
    )
    const did = plcDidOf(genesis)
    await submitOperation(directory, did, genesis)
    identities.learn(parseDidDocument(plcToDocument(did, genesis), did))
    const undo = () =>
      submitOperation(directory, did, signPlcOperation(plcTombstone(genesis), server)).catch(error =>
        log.error({ err: error, did }, 'an identity without an account is left in the directory'),
      )
    return { did, key, undo }
  }

  /** The caller must have proven to be the DID; where it lives now is checked at activation. */
  async #existingIdentity(did: Did, handle: Handle, { provenBy }: WantedAccount): Promise<NewIdentity> {
    const { store, handles, identities } = this.#parts
    if (provenBy !== did) {
      throw new Refused('AuthenticationRequired', `Missing auth to create account with did: ${did}`, 401)
    }
    if (await store.accounts.byDid(did)) throw new Refused('InvalidRequest', `Account already exists: ${did}`)
    if (!isOwnHandle(handle, handles)) {
      const resolved = await identities.resolveHandle(handle, { fresh: true }).catch(() => null)
      if (resolved !== did) throw new Refused('InvalidHandle', 'External handle did not resolve to DID')
    }
    const key = (await store.tickets.reservedKey(did)) ?? { curve: 'k256', secret: randomBytes(32) }
    return { did, key, undo: async () => {} }
  }

  /** What this server knows of itself, so that it need not ask the world: for `Identities`. */
  async localHandle(handle: Handle): Promise<Did | null | undefined> {
    const { store, handles } = this.#parts
    const account = await store.accounts.byHandle(handle)
    if (account) return account.did
    return isOwnHandle(handle, handles) ? null : undefined
  }

  /** The DID document as the directory has it, if it can be had. */
  async document(did: Did): Promise<Identity['doc'] | undefined> {
    const identity = await this.#parts.identities.resolveDid(did).catch(() => null)
    return identity?.doc
  }
}

function checkEmail(email: string | undefined): string {
  if (!email) throw new Refused('InvalidRequest', 'Email is required')
  const address = email.trim().toLowerCase()
  if (address.length > EMAIL_LENGTH_MAX || !EMAIL.test(address) || isDid(address)) {
    throw new Refused('InvalidRequest', 'This email address is not supported, please use a different email.')
  }
  return address
}

function checkPassword(password: string | undefined): string {
  if (!password) throw new Refused('InvalidRequest', 'Password is required')
  if (password.length > NEW_PASSWORD_LENGTH_MAX) {
    throw new Refused('InvalidPassword', `Password too long. Maximum length is ${NEW_PASSWORD_LENGTH_MAX} characters.`)
  }
  return password
}

function taken(what: 'Handle' | 'Email', value: string): Refused {
  return new Refused('InvalidRequest', `${what} already taken: ${value}`)
}
