/**
 * Changing what an account's DID says: in the did:plc directory by this server's rotation key, or, for a DID of another
 * method or with other keys, by its owner, which is then only checked here.
 *
 * Source: pds.md #44-#45 and its table of identity methods; messages are the reference's.
 */
import type { SigningKey } from '@millisky/core/crypto'
import { type Identity, parseDidDocument } from '@millisky/core/did'
import { Malformed, Refused, Unavailable } from '@millisky/core/errors'
import {
  assertPlcOperation,
  type PlcData,
  type PlcUpdate,
  plcData,
  plcToDocument,
  plcUpdate,
  signPlcOperation,
} from '@millisky/core/plc'
import type { Did, Handle } from '@millisky/core/syntax'
import type { Identities } from '@millisky/server/identity'
import type { Lanes } from '@millisky/server/lanes'
import type { Accounts } from './accounts.ts'
import type { ServiceNames } from './config.ts'
import type { Lifecycle } from './lifecycle.ts'
import { lastOperation, type PlcDirectory, submitOperation } from './plc-client.ts'
import type { Repos } from './repos.ts'
import { type Account, type Store, statusOf, Taken } from './store/store.ts'

export const PDS_TYPE = 'AtprotoPersonalDataServer'

export interface DidUpdatesParts {
  store: Store
  lanes: Lanes
  repos: Repos
  lifecycle: Lifecycle
  identities: Identities
  accounts: Accounts
  names: ServiceNames
  directory: PlcDirectory
  /** Without it owners sign what concerns their DIDs, and this server signs commits alone. */
  rotationKey: SigningKey | null
  recoveryDidKey: string | undefined
}

/** What a DID says of the things that matter here. */
interface Claims {
  /** Undefined where the method has none. */
  rotationKeys: readonly string[] | undefined
  pds: string | null
  signingKey: string | null
}

export class DidUpdates {
  readonly #parts: DidUpdatesParts

  constructor(parts: DidUpdatesParts) {
    this.#parts = parts
  }

  /** What the DID should say for the account to live here. */
  async recommended(account: Account) {
    const { rotationKey, recoveryDidKey, names } = this.#parts
    const rotationKeys = [recoveryDidKey, rotationKey?.didKey].filter(key => key !== undefined)
    return {
      ...(account.handle === null ? {} : { alsoKnownAs: [`at://${account.handle}`] }),
      verificationMethods: { atproto: await this.#signingKey(account.did) },
      // None are no wish: an operation must have one.
      ...(rotationKeys.length > 0 ? { rotationKeys } : {}),
      services: { atproto_pds: { type: PDS_TYPE, endpoint: names.publicUrl } },
    }
  }

  /** @throws Refused unless the DID says that the account lives here, with the key it has here */
  async assertLivesHere(did: Did): Promise<void> {
    const { rotationKey, names } = this.#parts
    const { rotationKeys, pds, signingKey } = await this.#claims(did)
    const refuse = (message: string) => {
      throw new Refused('InvalidRequest', message)
    }
    if (rotationKeys && rotationKey && !rotationKeys.includes(rotationKey.didKey)) {
      refuse('Server rotation key not included in PLC DID data')
    }
    if (pds !== names.publicUrl) {
      refuse('DID document atproto_pds service endpoint does not match PDS public url')
    }
    if (signingKey !== (await this.#signingKey(did))) {
      refuse('DID document verification method does not match expected signing key')
    }
  }

  /** Whether {@link assertLivesHere} finds nothing wrong. */
  livesHere(did: Did): Promise<boolean> {
    return this.assertLivesHere(did).then(
      () => true,
      () => false,
    )
  }

  /** @throws Refused AccountNotFound, and as {@link assertLivesHere} */
  async activate(did: Did): Promise<void> {
    await this.assertLivesHere(did)
    const account = await this.#parts.store.accounts.byDid(did)
    if (!account || statusOf(account) === 'takendown') throw new Refused('AccountNotFound', 'user not found')
    await this.#parts.lifecycle.activate(did)
  }

  /**
   * Gives the account another handle, in its DID too; the same one announces the identity again.
   *
   * @param options.anyValid - The operator asks: reserved names will do.
   * @throws Refused InvalidHandle, HandleNotAvailable, InvalidRequest
   */
  async changeHandle(did: Did, wanted: string, options: { anyValid?: boolean } = {}): Promise<void> {
    const { store, accounts, lanes, lifecycle } = this.#parts
    if (!(await store.accounts.byDid(did))) throw new Refused('InvalidRequest', 'Account not found')
    // Callers are limited to a few changes; what they have just put into their DNS has to count.
    const handle = await accounts.assertMayHave(wanted, did, { ...options, fresh: 'always' })
    await lanes.run(`handle:${handle}`, async () => {
      const taken = new Refused('HandleNotAvailable', `Handle already taken: ${handle}`)
      const holder = await store.accounts.byHandle(handle)
      if (holder && holder.did !== did) throw taken
      await this.#registerHandle(did, handle)
      await lifecycle.setHandle(did, handle).catch(error => {
        throw error instanceof Taken ? taken : error
      })
    })
  }

  async #registerHandle(did: Did, handle: Handle): Promise<void> {
    const unready = new Refused('InvalidRequest', 'DID is not properly configured for handle')
    if (!did.startsWith('did:plc:')) {
      if ((await this.#document(did)).handle !== handle) throw unready
      return
    }
    const { last, data } = await this.#current(did)
    const at = data.alsoKnownAs.findIndex(name => name.startsWith('at://'))
    const alias = `at://${handle}`
    if (data.alsoKnownAs[at] === alias) return this.#learn(did, data)
    const alsoKnownAs = at < 0 ? [alias, ...data.alsoKnownAs] : data.alsoKnownAs.with(at, alias)
    if (!this.#mayUpdate(data)) throw unready
    await this.#update(did, last, { alsoKnownAs })
  }

  /**
   * An operation signed by this server that its caller may submit.
   *
   * @throws Refused InvalidRequest for a tombstone, for what the directory would not take, or without a key to sign with
   */
  async sign(did: Did, change: Partial<PlcData>): Promise<PlcUpdate> {
    const { last } = await this.#current(did)
    return this.#signed(last, change)
  }

  /** Submits an operation that somebody has signed, if it leaves the account here, and announces it. @throws Refused */
  async submit(account: Account, operation: unknown): Promise<void> {
    const { names, rotationKey, directory, lifecycle } = this.#parts
    const { did, handle } = account
    assertPlc(did)
    const op = asUpdate(operation)
    const refuse = (message: string) => {
      throw new Refused('InvalidRequest', message)
    }
    if (rotationKey && !op.rotationKeys.includes(rotationKey.didKey)) {
      refuse("Rotation keys do not include server's rotation key")
    }
    const service = op.services.atproto_pds
    if (service?.type !== PDS_TYPE) refuse('Incorrect type on atproto_pds service')
    if (service?.endpoint !== names.publicUrl) refuse('Incorrect endpoint on atproto_pds service')
    if (op.verificationMethods.atproto !== (await this.#signingKey(did))) refuse('Incorrect signing key')
    if (handle !== null && op.alsoKnownAs[0] !== `at://${handle}`) refuse('Incorrect handle in alsoKnownAs')
    await submitOperation(directory, did, op)
    this.#learn(did, op)
    await lifecycle.announceIdentity(did)
  }

  /**
   * Lets the account sign with a key that was reserved here, in its DID first, and makes a commit with it.
   *
   * @param didKey - As `reserveSigningKey` gave it.
   * @throws Refused InvalidRequest
   */
  async changeKey(did: Did, didKey: string): Promise<void> {
    const { store, lifecycle, repos } = this.#parts
    const key = await store.tickets.reservedKey(didKey)
    if (!key)
      throw new Refused('InvalidRequest', 'The key is not reserved on this server: call reserveSigningKey first')
    await lifecycle.changeKey(did, key, async () => {
      if (!did.startsWith('did:plc:')) {
        if ((await this.#document(did)).signingKey === didKey) return
        throw new Refused('InvalidRequest', 'DID document verification method does not match expected signing key')
      }
      const { last, data } = await this.#current(did)
      if (data.verificationMethods.atproto === didKey) return this.#learn(did, data)
      await this.#update(did, last, { verificationMethods: { ...data.verificationMethods, atproto: didKey } })
    })
    await store.tickets.removeReservedKey(didKey)
    const account = await store.accounts.byDid(did)
    if (account && statusOf(account) === 'active') await repos.resign(did)
  }

  async #claims(did: Did): Promise<Claims> {
    if (!did.startsWith('did:plc:')) {
      const { pds, signingKey } = await this.#document(did)
      return { rotationKeys: undefined, pds, signingKey }
    }
    const { data } = await this.#current(did)
    this.#learn(did, data)
    const { rotationKeys, services, verificationMethods } = data
    return {
      rotationKeys,
      pds: services.atproto_pds?.endpoint ?? null,
      signingKey: verificationMethods.atproto ?? null,
    }
  }

  /** What the page of a did:web says now, however often its owner has changed it. @throws Refused InvalidRequest */
  #document(did: Did): Promise<Identity> {
    return this.#parts.identities.resolveDid(did, { fresh: 'always' }).catch(error => {
      if (!(error instanceof Refused || error instanceof Unavailable)) throw error
      throw new Refused('InvalidRequest', 'Could not resolve DID')
    })
  }

  async #current(did: Did) {
    assertPlc(did)
    const last = await lastOperation(this.#parts.directory, did)
    const data = plcData(last)
    if (data === null) throw new Refused('InvalidRequest', 'Did is tombstoned')
    return { last, data }
  }

  async #update(did: Did, last: PlcUpdate | Parameters<typeof plcUpdate>[0], change: Partial<PlcData>): Promise<void> {
    const operation = this.#signed(last, change)
    await submitOperation(this.#parts.directory, did, operation)
    this.#learn(did, operation)
  }

  #signed(last: Parameters<typeof plcUpdate>[0], change: Partial<PlcData>): PlcUpdate {
    const { rotationKey } = this.#parts
    if (!rotationKey) throw new Refused('InvalidRequest', 'This server has no rotation key: sign with your own')
    const operation = signPlcOperation<PlcUpdate>(plcUpdate(last, change), rotationKey)
    return asUpdate(operation)
  }

  #mayUpdate({ rotationKeys }: PlcData): boolean {
    const { rotationKey } = this.#parts
    return rotationKey !== null && rotationKeys.includes(rotationKey.didKey)
  }

  #learn(did: Did, data: PlcData): void {
    this.#parts.identities.learn(parseDidDocument(plcToDocument(did, data), did))
  }

  async #signingKey(did: Did): Promise<string> {
    const state = await this.#parts.store.repos.state(did)
    if (!state) throw new Refused('AccountNotFound', 'Account not found', 403)
    return this.#parts.repos.signingKey(state.key).didKey
  }
}

function assertPlc(did: Did): void {
  if (!did.startsWith('did:plc:')) throw new Refused('InvalidRequest', 'Only a did:plc has operations')
}

/** @throws Refused InvalidRequest unless a directory would take it, its signature apart */
export function asUpdate(operation: unknown): PlcUpdate {
  try {
    assertPlcOperation(operation)
  } catch (error) {
    if (!(error instanceof Refused || error instanceof Malformed)) throw error
    throw new Refused('InvalidRequest', `Invalid operation: ${error.message}`)
  }
  if (operation.type !== 'plc_operation') throw new Refused('InvalidRequest', 'Invalid operation')
  return operation
}
