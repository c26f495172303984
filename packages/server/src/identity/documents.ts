/** Fetching DID documents. */
import { didMethod, didWebUrl, type Identity, parseDidDocument } from '@millisky/core/did'
import { Malformed, Refused, Unavailable } from '@millisky/core/errors'
import { DID_DOCUMENT_BYTES_MAX } from '@millisky/core/limits'
import { type Did, isDid, isPlcDid } from '@millisky/core/syntax'
import type { Answer, FetchBytes } from '../fetch.ts'

/**
 * Why there is no identity:
 * - `bad-syntax` no such DID can exist; `unsupported-method` it is not `did:plc` or `did:web`
 * - `not-found` there is none; `tombstoned` there was one
 * - `failed` nothing is known: no answer, or one that is no DID document
 */
export type ResolutionFailure = 'bad-syntax' | 'unsupported-method' | 'not-found' | 'tombstoned' | 'failed'

const FAILURE_OF: Readonly<Record<string, ResolutionFailure>> = {
  InvalidDid: 'bad-syntax',
  UnsupportedDidMethod: 'unsupported-method',
  DidNotFound: 'not-found',
  DidDeactivated: 'tombstoned',
  DidResolutionFailed: 'failed',
}

/** Which failure an error thrown by `Identities.resolveDid` stands for; null for any other error. */
export function resolutionFailure(error: unknown): ResolutionFailure | null {
  return error instanceof Refused || error instanceof Unavailable ? (FAILURE_OF[error.error] ?? null) : null
}

export interface DocumentSources {
  /** Origin of the did:plc directory. */
  plcUrl: string
  /** For hosts that strangers name. */
  fetch: FetchBytes
  /** For the directory, which the operator names. */
  plcFetch: FetchBytes
  timeoutMs: number
  /** `did:web:localhost%3A1234` by plain http, and the domain `.test`. */
  development: boolean
}

/**
 * Asks the source that a DID names for its document.
 *
 * @throws {Refused} `InvalidDid`, `UnsupportedDidMethod`, `DidNotFound` or `DidDeactivated`
 * @throws {Unavailable} `DidResolutionFailed`
 */
export async function fetchDidDocument(did: Did, sources: DocumentSources): Promise<Identity> {
  const { url, fetch } = locate(did, sources)
  let answer: Answer
  try {
    const headers = { accept: 'application/did+ld+json, application/json' }
    answer = await fetch(url, { headers, timeoutMs: sources.timeoutMs, bytesMax: DID_DOCUMENT_BYTES_MAX })
  } catch (error) {
    throw failed(did, error instanceof Error ? error.message : String(error), error)
  }
  if (answer.status === 404) throw new Refused('DidNotFound', `${did} is not registered`)
  if (answer.status === 410) throw new Refused('DidDeactivated', `${did} has been deactivated`)
  if (answer.status !== 200) throw failed(did, `${new URL(url).origin} answered ${answer.status}`)
  try {
    return parseDidDocument(JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(answer.bytes)), did)
  } catch (error) {
    throw failed(did, error instanceof Malformed ? error.message : 'the answer is not JSON')
  }
}

function locate(did: Did, { plcUrl, plcFetch, fetch, development }: DocumentSources) {
  if (!isDid(did)) throw new Refused('InvalidDid', `Not a DID: ${String(did).slice(0, 200)}`)
  const method = didMethod(did)
  if (method === null) throw new Refused('UnsupportedDidMethod', `The method of ${did} is not supported`)
  if (method === 'plc') {
    if (!isPlcDid(did)) throw new Refused('InvalidDid', `${did} is not a did:plc`)
    return { url: `${plcUrl}/${did}`, fetch: plcFetch }
  }
  try {
    return { url: didWebUrl(did, { development }), fetch }
  } catch (error) {
    throw new Refused('InvalidDid', `${did}: ${error instanceof Error ? error.message : error}`)
  }
}

function failed(did: Did, why: string, cause?: unknown): Unavailable {
  const status = cause instanceof Unavailable ? cause.status : 502
  return new Unavailable('DidResolutionFailed', `${did} cannot be resolved: ${why}`, status)
}
