/**
 * Lexicons as their authors publish them: from an NSID by DNS to an account, and from that account's repository the
 * schema, proven by the signature of its owner.
 *
 * Source: protocol.md §11.3; atproto.com/specs/lexicon, "Publication and resolution".
 */
import { Blocks } from '@millisky/core/blocks'
import { readCar } from '@millisky/core/car'
import { decode, type Obj } from '@millisky/core/cbor'
import { type Cid, hashMatches } from '@millisky/core/cid'
import { decodeCommit, verifyCommit } from '@millisky/core/commit'
import { PublicKey } from '@millisky/core/crypto'
import type { Identity } from '@millisky/core/did'
import { Malformed, Refused, Unavailable } from '@millisky/core/errors'
import { verifyProof } from '@millisky/core/mst/proof'
import type { AtUri, Did, Nsid } from '@millisky/core/syntax'
import type { FetchBytes } from '@millisky/server/fetch'
import type { Identities, ResolveTxt } from '@millisky/server/identity'
import { didOfTxt } from '@millisky/server/identity/handles'
import { Memory } from '@millisky/server/identity/memory'

const COLLECTION = 'com.atproto.lexicon.schema'
/** A proof is a path of tree nodes and one record. */
const PROOF_BYTES_MAX = 4_000_000
const ENTRIES_MAX = 2_000
/** Schemas change rarely, and a new version is compatible with the old one. */
const STALE_MS = 3_600_000
const MAX_MS = 7 * 86_400_000

/** A schema as its author keeps it. */
export interface ResolvedLexicon {
  uri: AtUri
  cid: Cid
  /** The record, `$type` included. Beyond its name and version nothing of it is checked. */
  schema: Obj
}

export interface LexiconsParts {
  identities: Pick<Identities, 'resolveDid'>
  resolveTxt: ResolveTxt
  /** For hosts that strangers name. */
  fetch: FetchBytes
  timeoutMs: number
  /** Milliseconds since 1970. */
  now: () => number
  /** DID whose schemas count for every NSID, for development and closed networks. */
  authority?: Did | undefined
}

/** Resolves and remembers lexicons. */
export class Lexicons {
  readonly #parts: LexiconsParts
  readonly #memory: Memory<Nsid, ResolvedLexicon>

  constructor(parts: LexiconsParts) {
    this.#parts = parts
    this.#memory = new Memory(
      { load: nsid => this.#load(nsid), isFinal: error => error instanceof Refused, now: parts.now },
      { entriesMax: ENTRIES_MAX, staleMs: STALE_MS, maxMs: MAX_MS },
    )
  }

  /** @throws Refused LexiconNotFound @throws Unavailable when nobody could say */
  resolve(nsid: Nsid, options: { fresh?: boolean } = {}): Promise<ResolvedLexicon> {
    return this.#memory.get(nsid, options)
  }

  async #load(nsid: Nsid): Promise<ResolvedLexicon> {
    const did = await this.#authorityOf(nsid)
    const identity = await this.#parts.identities.resolveDid(did).catch(error => {
      throw error instanceof Refused ? notFound(nsid, error.message) : error
    })
    return readLexicon(nsid, identity, await this.#proof(nsid, identity))
  }

  async #authorityOf(nsid: Nsid): Promise<Did> {
    const { authority, resolveTxt, timeoutMs } = this.#parts
    if (authority !== undefined) return authority
    const found = await didOfTxt(lexiconName(nsid), { resolveTxt, timeoutMs })
    if (found.did !== null) return found.did
    const why = `Could not resolve the authority of ${nsid}: ${found.problem}`
    throw found.isFinal ? new Refused('LexiconNotFound', why) : new Unavailable('LexiconResolutionFailed', why, 502)
  }

  async #proof(nsid: Nsid, { did, pds }: Identity): Promise<Uint8Array> {
    if (pds === null) throw notFound(nsid, `${did} has no PDS`)
    const { fetch, timeoutMs } = this.#parts
    const query = new URLSearchParams({ did, collection: COLLECTION, rkey: nsid })
    const url = `${pds}/xrpc/com.atproto.sync.getRecord?${query}`
    const { status, bytes } = await fetch(url, { bytesMax: PROOF_BYTES_MAX, timeoutMs: 2 * timeoutMs })
    if (status === 200) return bytes
    const why = `${pds} answered ${status}`
    if (status >= 400 && status < 500 && status !== 429) throw notFound(nsid, why)
    throw new Unavailable('LexiconResolutionFailed', `Could not resolve ${nsid}: ${why}`, 502)
  }
}

/** Where DNS says whose the NSIDs of an authority are: of `com.example.feed.post`, `_lexicon.feed.example.com`. */
export function lexiconName(nsid: Nsid): string {
  return `_lexicon.${nsid.split('.').slice(0, -1).reverse().join('.')}`
}

/** The schema out of a proof, checked from the signature down. @throws Refused LexiconNotFound */
export function readLexicon(nsid: Nsid, { did, signingKey }: Identity, car: Uint8Array): ResolvedLexicon {
  try {
    const { cid, schema } = provenRecord({ did, path: `${COLLECTION}/${nsid}`, signingKey, car })
    if (schema.$type !== COLLECTION || schema.lexicon !== 1 || schema.id !== nsid) {
      throw new Malformed('the record is not the schema of this name')
    }
    return { uri: `at://${did}/${COLLECTION}/${nsid}` as AtUri, cid, schema }
  } catch (error) {
    if (error instanceof Malformed || (error instanceof Error && error.name === 'MissingBlock')) {
      throw notFound(nsid, error.message)
    }
    throw error
  }
}

interface Proven {
  did: Did
  /** `collection/rkey` */
  path: string
  signingKey: string | null
  car: Uint8Array
}

/** The record that a CAR of `com.atproto.sync.getRecord` proves. @throws Malformed, MissingBlock */
function provenRecord({ did, path, signingKey, car }: Proven): { cid: Cid; schema: Obj } {
  if (signingKey === null) throw new Malformed(`${did} has no signing key`)
  const { roots, blocks: list } = readCar(car)
  const blocks = new Blocks(list)
  const block = (cid: Cid | undefined): Uint8Array => {
    const bytes = cid && blocks.get(cid)
    if (!bytes || !hashMatches(cid, bytes)) throw new Malformed(`the proof lacks the block ${cid}`)
    return bytes
  }
  const bytes = block(roots[0])
  const commit = decodeCommit(bytes)
  if (commit.did !== did) throw new Malformed('the commit is of another account')
  if (!verifyCommit(commit, PublicKey.parseDidKey(signingKey), bytes)) throw new Malformed('the signature is wrong')
  const cid = verifyProof(commit.data, blocks, path)
  if (cid === null) throw new Malformed(`there is no record ${path}`)
  return { cid, schema: decode(block(cid)) as Obj }
}

function notFound(nsid: Nsid, why: string): Refused {
  return new Refused('LexiconNotFound', `Could not resolve ${nsid}: ${why}`)
}
