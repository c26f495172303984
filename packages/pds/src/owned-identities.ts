/**
 * New identities on a server that holds no rotation key: their owners sign the first operation, offline, and bring it along
 * when they sign up. The server then signs commits and nothing else.
 *
 * That the operation is unknown to the directory is what proves it: only its signer can have it. One that is registered
 * already is public, and its DID has to be proven by a service token like any other.
 */
import { Refused } from '@millisky/core/errors'
import { type PlcUpdate, plcDidOf, plcSigner } from '@millisky/core/plc'
import type { Did, Handle } from '@millisky/core/syntax'
import type { ServiceNames } from './config.ts'
import { asUpdate, PDS_TYPE } from './did-updates.ts'
import { lastOperation, type PlcDirectory } from './plc-client.ts'
import type { Store, StoredKey } from './store/store.ts'

export interface OwnedIdentity {
  did: Did
  operation: PlcUpdate
  /** `did:key` of the reserved key that it names. */
  signingKey: string
  key: StoredKey
}

export interface OwnedIdentityParts {
  store: Store
  names: ServiceNames
  directory: PlcDirectory
}

/**
 * Reads a first operation that is to make an account here.
 *
 * @param wanted.did - What the caller believes it to make.
 * @throws Refused InvalidRequest, saying what does not fit
 */
export async function readFirstOperation(
  json: unknown,
  wanted: { handle: Handle; did: Did | undefined },
  { store, names, directory }: OwnedIdentityParts,
): Promise<OwnedIdentity> {
  const operation = asUpdate(json)
  const refuse = (message: string): never => {
    throw new Refused('InvalidRequest', message)
  }
  if (operation.prev !== null) refuse('The operation is not the first of a DID')
  if (plcSigner(operation, operation.rotationKeys) < 0) refuse('The operation is signed by none of its rotation keys')
  const did = plcDidOf(operation)
  if (wanted.did !== undefined && wanted.did !== did) refuse(`The operation makes ${did}`)
  const service = operation.services.atproto_pds
  if (service?.type !== PDS_TYPE) refuse('Incorrect type on atproto_pds service')
  if (service?.endpoint !== names.publicUrl) refuse('Incorrect endpoint on atproto_pds service')
  if (operation.alsoKnownAs[0] !== `at://${wanted.handle}`) refuse('Incorrect handle in alsoKnownAs')
  const signingKey = operation.verificationMethods.atproto ?? ''
  const key = await store.tickets.reservedKey(signingKey)
  if (!key)
    throw new Refused('InvalidRequest', 'The signing key is not reserved on this server: call reserveSigningKey')
  if (await isRegistered(directory, did)) refuse(`${did} exists already: prove it with a service token`)
  return { did, operation, signingKey, key }
}

async function isRegistered(directory: PlcDirectory, did: Did): Promise<boolean> {
  try {
    await lastOperation(directory, did)
    return true
  } catch (error) {
    if (error instanceof Refused) return false
    throw error
  }
}
