/**
 * Making accounts: checks, a new identity in the directory or proof of an existing one, then the account itself.
 *
 * Source: pds.md #38-#47; the order of the checks is the reference's, so that of several faults the same one is named.
 */
import { randomBytes } from 'node:crypto'
import { PublicKey, SigningKey } from '@millisky/core/crypto'
import { type Identity, parseDidDocument } from '@millisky/core/did'
import { Refused } from '@millisky/core/errors'
import { type PlcUpdate, plcDidOf, plcGenesis, plcToDocument, plcTombstone, signPlcOperation } from '@millisky/core/plc'
import type { Did, Handle } from '@millisky/core/syntax'
import type { Identities } from '@millisky/server/identity'
import type { Freshness } from '@millisky/server/identity/memory'
import type { Lanes } from '@millisky/server/lanes'
import type { Logger } from '@millisky/server/trace'
import type { ServiceNames } from './config.ts'
import { checkEmail } from './emails.ts'
import { checkHandle, type HandleRules, isOwnHandle, isOwnName } from './handles.ts'
import type { Lifecycle } from './lifecycle.ts'
import { readFirstOperation } from './owned-identities.ts'
import { hashPassword, NEW_PASSWORD_LENGTH_MAX } from './passwords.ts'
import { type PlcDirectory, submitOperation } from './plc-client.ts'
import { type Account, type Store, type StoredKey, statusOf, Taken } from './store/store.ts'

export interface WantedAccount {
  handle: string
  email?: string
  /** Without one nobody signs in until it has been set, by mail or by the operator. */
  password?: string
  inviteCode?: string
  /** did:key that is put first among the rotation keys. */
  recoveryKey?: string
  /** The first operation of a DID, signed by its owner: for a server without a rotation key. */
  plcOperation?: unknown
  /** An identity that exists already; `provenBy` must be the same. */
  did?: Did
  /** Whose service token came with the request. */
  provenBy: Did | null
  /** The operator wants it: no invite code is needed. */
  byOperator?: boolean
}

export interface AccountsParts {
  store: Store
  /** Keyed by `handle:` and the name here, so that of two who want it one is asked to choose before a DID is made. */
  lanes: Lanes
  lifecycle: Lifecycle
  identities: Identities
  names: ServiceNames
  handles: HandleRules
  inviteRequired: boolean
  /** Without it no identities are made here. */
  rotationKey: SigningKey | null
  recoveryDidKey: string | undefined
  directory: PlcDirectory
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

  constructor(parts: AccountsParts) {
    this.#parts = parts
  }

  /**
   * Makes an account. One for an existing identity is made deactivated and sends no events.
   *
   * @throws Refused InvalidHandle, HandleNotAvailable, UnsupportedDomain, InvalidInviteCode, InvalidRequest
   */
  async create(wanted: WantedAccount): Promise<Account> {
    checkNewPassword(wanted.password)
    if (this.#parts.inviteRequired && !wanted.inviteCode && !wanted.byOperator) {
      throw new Refused('InvalidInviteCode', 'No invite code provided')
    }
    if (!wanted.email) throw new Refused('InvalidRequest', 'Email is required')
    const email = checkEmail(wanted.email)
    const handle = await this.assertMayHave(wanted.handle, wanted.did)
    return this.#parts.lanes.run(`handle:${handle}`, () => this.#create(handle, email, wanted))
  }

  async #create(handle: Handle, email: string, wanted: WantedAccount): Promise<Account> {
    const { store, lifecycle } = this.#parts
    const { inviteCode, password } = wanted
    if (inviteCode && this.#parts.inviteRequired) await this.#assertInvite(inviteCode)
    // Whoever moves here and asks again is told that, and not that somebody has their handle.
    if (wanted.did && wanted.provenBy === wanted.did) await this.#assertNew(wanted.did)
    if (await store.accounts.byHandle(handle)) throw taken('Handle', handle)
    if (await store.accounts.byEmail(email)) throw taken('Email', wanted.email!)
    if (wanted.did && wanted.plcOperation === undefined) assertProven(wanted.did, wanted.provenBy)
    // One that is not asked for is looked at last, and before an identity is made in vain.
    if (inviteCode && !this.#parts.inviteRequired) await this.#assertInvite(inviteCode)
    if (wanted.plcOperation !== undefined) return this.#createOwned(handle, email, wanted)
    const hash = password ? await hashPassword(password, randomBytes(16)) : null
    const identity = wanted.did
      ? await this.#existingIdentity(wanted.did)
      : await this.#newIdentity(handle, wanted.recoveryKey)
    const { did, key } = identity
    try {
      const account = await lifecycle.open({
        did,
        handle,
        email,
        password: hash,
        key,
        ...(inviteCode ? { invite: inviteCode } : {}),
        deactivated: wanted.did !== undefined,
      })
      if (wanted.did) await store.tickets.removeReservedKey(wanted.did)
      return account
    } catch (error) {
      await identity.undo()
      throw asRefusal(error, { handle, email: wanted.email! })
    }
  }

  /** The account comes first, so that whatever ends half way can be gone on with by its owner: submit, activate. */
  async #createOwned(
    handle: Handle,
    email: string,
    { did: wanted, inviteCode, password, plcOperation }: WantedAccount,
  ) {
    const { store, lifecycle, identities, directory } = this.#parts
    const { did, operation, signingKey, key } = await readFirstOperation(
      plcOperation,
      { handle, did: wanted },
      this.#parts,
    )
    const hash = password ? await hashPassword(password, randomBytes(16)) : null
    const invite = inviteCode ? { invite: inviteCode } : {}
    const coming = { did, handle, email, password: hash, key, ...invite, deactivated: true }
    const account = await lifecycle.open(coming).catch(error => {
      throw asRefusal(error, coming)
    })
    try {
      await submitOperation(directory, did, operation)
    } catch (error) {
      if (error instanceof Refused) await store.accounts.withdraw(account.id)
      throw error
    }
    identities.learn(parseDidDocument(plcToDocument(did, operation), did))
    await lifecycle.activate(did)
    await store.tickets.removeReservedKey(signingKey)
    return (await store.accounts.byDid(did))!
  }

  /**
   * The handle, normalized, if this DID may have it: below one of the server's domains, or pointing to the DID already. A
   * coming account, without a DID, gets one of the server's.
   *
   * @throws Refused InvalidHandle, HandleNotAvailable, UnsupportedDomain, InvalidRequest
   */
  async assertMayHave(
    wanted: string,
    did: Did | undefined,
    { anyValid = false, fresh = true }: { anyValid?: boolean; fresh?: Freshness } = {},
  ): Promise<Handle> {
    const { handles, identities } = this.#parts
    const handle = checkHandle(wanted, handles, { anyValid })
    // The server's own name is the operator's to give.
    if (isOwnHandle(handle, handles) || (anyValid && isOwnName(handle, handles))) return handle
    if (did === undefined) throw new Refused('UnsupportedDomain', 'Not a supported handle domain')
    const resolved = await identities.resolveHandle(handle, { fresh }).catch(() => null)
    if (resolved !== did) throw new Refused('InvalidRequest', 'External handle did not resolve to DID')
    return handle
  }

  async #assertInvite(code: string): Promise<void> {
    const { tickets, accounts } = this.#parts.store
    const invite = await tickets.invite(code)
    const giver = invite && invite.forAccount !== 'admin' ? await accounts.byDid(invite.forAccount as Did) : null
    const isOpen = invite && !invite.disabled && invite.usedBy.length < invite.uses
    if (!isOpen || (giver && statusOf(giver) === 'takendown')) {
      throw new Refused('InvalidInviteCode', 'Provided invite code not available')
    }
  }

  async #newIdentity(handle: Handle, recoveryKey: string | undefined): Promise<NewIdentity> {
    const { names, recoveryDidKey, directory, identities, rotationKey: server, log } = this.#parts
    if (!server) throw new Refused('InvalidRequest', 'This server makes no new identities: bring your own DID')
    if (recoveryKey !== undefined && !isKey(recoveryKey)) {
      throw new Refused('InvalidRequest', 'recoveryKey is not a did:key of P-256 or K-256')
    }
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

  async #assertNew(did: Did): Promise<void> {
    if (await this.#parts.store.accounts.byDid(did)) throw isHere()
  }

  /** Where the DID lives now is checked at activation. */
  async #existingIdentity(did: Did): Promise<NewIdentity> {
    const key = await this.#parts.store.tickets.reservedKey(did)
    return { did, key: key ?? { curve: 'k256', secret: randomBytes(32) }, undo: async () => {} }
  }

  /** What this server knows of itself, so that it need not ask the world: for `Identities`. */
  async localHandle(handle: Handle): Promise<Did | null | undefined> {
    const { store, handles } = this.#parts
    const account = await store.accounts.byHandle(handle)
    if (account) return account.did
    return isOwnHandle(handle, handles) ? null : undefined
  }

  /** The DID document as the directory has it, or had it lately, if it can be had. */
  async document(did: Did, { fresh = false }: { fresh?: Freshness } = {}): Promise<Identity['doc'] | undefined> {
    const identity = await this.#parts.identities.resolveDid(did, { fresh }).catch(() => null)
    return identity?.doc
  }
}

function isKey(text: string): boolean {
  try {
    return PublicKey.parseDidKey(text).didKey === text
  } catch {
    return false
  }
}

/** @throws Refused */
function checkNewPassword(password: string | undefined): void {
  if (password !== undefined && password.length > NEW_PASSWORD_LENGTH_MAX) {
    throw new Refused('InvalidRequest', `Password too long. Maximum length is ${NEW_PASSWORD_LENGTH_MAX} characters.`)
  }
}

/** @throws Refused */
function assertProven(did: Did, provenBy: Did | null): void {
  if (provenBy === did) return
  throw new Refused('AuthenticationRequired', `Missing auth to create account with did: ${did}`, 401)
}

/** The name by which tools that move accounts know that they have been here before. */
function isHere(): Refused {
  return new Refused('AlreadyExists', 'Repo already exists')
}

/** What a caller is told of a value that somebody else was quicker to take. */
function asRefusal(error: unknown, { handle, email }: { handle: Handle; email: string }): unknown {
  if (!(error instanceof Taken)) return error
  if (error.what === 'did') return isHere()
  return error.what === 'handle' ? taken('Handle', handle) : taken('Email', email)
}

function taken(what: 'Handle' | 'Email', value: string): Refused {
  return new Refused('InvalidRequest', `${what} already taken: ${value}`)
}
