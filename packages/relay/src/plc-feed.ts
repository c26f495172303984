/**
 * Identities from the export of the did:plc directory: each operation is verified and its outcome kept, so that nobody has
 * to be asked, neither after a restart nor when an account moves.
 *
 * Nothing is kept of a log but a short chain. A DID whose chain breaks is asked for as if there were no export.
 */
import { setImmediate as nextRound } from 'node:timers/promises'
import { type Identity, parseDidDocument } from '@millisky/core/did'
import { Malformed, Refused } from '@millisky/core/errors'
import { type PlcEntry, plcData, plcToDocument } from '@millisky/core/plc'
import { extendPlcChain, type PlcChain, packPlcChain, unpackPlcChain } from '@millisky/core/plc-chain'
import { type Did, isPlcDid } from '@millisky/core/syntax'
import type { Identities } from '@millisky/server/identity'
import type { ExportLine, ExportPosition, PlcExportSink } from '@millisky/server/identity/plc-export'
import type { PlcChange, PlcStore, RefusedDid } from './store/plc.ts'
import type { StoredIdentity } from './store/store.ts'

/** Operations verified between two looks at what else there is to do, about a millisecond. */
const SLICE = 8
/** With more DIDs refused than these, it is no directory that can be relied on. */
const REFUSED_MAX = 10_000

export interface PlcFeedParts {
  /** Of the directory. */
  origin: string
  store: PlcStore
  identities: Pick<Identities, 'revise' | 'forget'>
  /** What was fetched of these DIDs and is not saved yet is out of date. */
  supersede: (did: Did) => void
  now: () => number
  onRefused: (refused: RefusedDid) => void
}

export class PlcFeed implements PlcExportSink {
  readonly #parts: PlcFeedParts
  #refused = new Set<Did>()

  constructor(parts: PlcFeedParts) {
    this.#parts = parts
  }

  /** DIDs with an operation that broke the rules. */
  get refused(): number {
    return this.#refused.size
  }

  /** Whether the export may speak for a DID. */
  covers(did: Did): boolean {
    return isPlcDid(did) && !this.#refused.has(did) && this.#refused.size <= REFUSED_MAX
  }

  async position(): Promise<ExportPosition> {
    const { store, origin } = this.#parts
    const position = await store.position(origin)
    if (position === null) await store.clear()
    this.#refused = new Set(await store.refused())
    return position ?? { seq: 0, cid: null, trueAt: null }
  }

  /** Identities stay: as long as nothing else is heard they age like any others. */
  async clear(): Promise<void> {
    await this.#parts.store.clear()
    this.#refused = new Set()
  }

  async take(lines: readonly ExportLine[], position: ExportPosition, isLive: boolean): Promise<void> {
    const { store, origin, identities, supersede, onRefused } = this.#parts
    const outcome = await this.#judge(lines, isLive)
    const stored = [...outcome.identities].flatMap(([did, identity]) => identity ?? { did, gone: true as const })
    const change: PlcChange = {
      origin,
      position,
      chains: outcome.chains,
      identities: stored.flatMap(one => ('gone' in one ? [] : one)),
      gone: stored.flatMap(one => ('gone' in one ? one.did : [])),
      refused: outcome.refused,
    }
    for (const did of outcome.identities.keys()) if (isLive) supersede(did)
    await store.save(change)
    for (const { did, at, key, pds, handle } of change.identities) {
      const identity = { did, handle, signingKey: key, pds, doc: { id: did } } as Identity
      // News is newer than anything in memory; of the past the store knows which is.
      if (isLive && at > 0) identities.revise(identity)
      else identities.forget(did)
    }
    for (const did of change.gone) identities.forget(did)
    for (const refused of outcome.refused) {
      this.#refused.add(refused.did)
      onRefused(refused)
    }
  }

  async #judge(lines: readonly ExportLine[], isLive: boolean) {
    const dids = new Set(lines.flatMap(line => ('entry' in line ? line.entry.did : [])))
    const known = await this.#parts.store.chains([...dids])
    const chains = new Map<Did, Uint8Array>()
    const identities = new Map<Did, StoredIdentity | null>()
    const refused: RefusedDid[] = []
    const isRefused = (did: Did) => this.#refused.has(did) || refused.some(one => one.did === did)
    for (const [i, line] of lines.entries()) {
      if (i % SLICE === SLICE - 1) await nextRound()
      const did = 'entry' in line ? line.entry.did : line.did
      if (did === null || isRefused(did)) continue
      const packed = chains.get(did) ?? known.get(did)
      try {
        if (!('entry' in line)) throw new Malformed(line.problem)
        const chain = extend(line.entry, packed ? unpackPlcChain(packed) : [])
        chains.set(did, packPlcChain(chain))
        identities.set(did, this.#identityOf(line.entry, isLive))
      } catch (error) {
        if (!(error instanceof Refused || error instanceof Malformed)) throw error
        refused.push({ did, seq: line.seq, reason: error.message })
        identities.set(did, null)
      }
    }
    return { chains, identities, refused }
  }

  /** Null after a tombstone. What comes live is true now, whatever the directory's clock says. */
  #identityOf({ did, operation, createdAt }: PlcEntry, isLive: boolean): StoredIdentity | null {
    const data = plcData(operation)
    if (data === null) return null
    const { handle, signingKey: key, pds } = parseDidDocument(plcToDocument(did, data), did)
    const at = Date.parse(createdAt)
    return { did, at: isLive ? Math.max(at, this.#parts.now()) : at, key, pds, handle }
  }
}

const extend = ({ did, operation, createdAt }: PlcEntry, chain: PlcChain) =>
  extendPlcChain(did, chain, operation, Date.parse(createdAt))
