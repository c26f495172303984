/**
 * What has to be remembered of a did:plc log to judge the operations to come, in about a hundred bytes: who may sign next,
 * and what could still be undone.
 *
 * `applyPlcOperation` judges with the whole log. A reader of a directory's export who keeps no logs judges with a chain
 * and comes to the same: only the operations of the last 72 hours, and the one before them, can be continued.
 */
import { concat, fromUtf8, utf8 } from './bytes.ts'
import { Cid } from './cid.ts'
import { Malformed, Refused } from './errors.ts'
import { packDidKey, unpackDidKey } from './key-bytes.ts'
import { PLC_RECOVERY_MS } from './limits.ts'
import { type PlcOperation, plcCid, plcData, plcDidOf, plcSigner } from './plc.ts'
import type { Did } from './syntax.ts'

/** One operation in force. */
export interface PlcLink {
  readonly cid: string
  /** When the directory accepted it, milliseconds. */
  readonly at: number
  /** Who may continue it, the most powerful first; null after a tombstone. */
  readonly rotationKeys: readonly string[] | null
  /** Which of the keys of the link before signed it; 0 in the first. */
  readonly power: number
}

/** Operations in force, oldest first, without those that nothing can continue any more. Never empty once there is one. */
export type PlcChain = readonly PlcLink[]

/**
 * The chain after an operation. Limits are not checked.
 *
 * @param at when the directory accepted it, milliseconds
 * @throws {@link Refused} `GenesisMismatch`, `Misordered`, `InvalidSignature` or `LateRecovery`; {@link Malformed}
 */
export function extendPlcChain(did: Did, chain: PlcChain, operation: PlcOperation, at: number): PlcChain {
  const cid = plcCid(operation)
  const rotationKeys = plcData(operation)?.rotationKeys ?? null
  if (chain.length === 0) {
    if (rotationKeys === null || operation.prev !== null) throw new Refused('Misordered', 'the DID does not exist')
    if (plcDidOf(operation) !== did) throw new Refused('GenesisMismatch', 'the operation hashes to another DID')
    signer(operation, rotationKeys)
    return [{ cid, at, rotationKeys, power: 0 }]
  }
  if (operation.prev === null) throw new Refused('Misordered', 'prev is null, but the DID exists')
  const before = chain.findIndex(link => link.cid === operation.prev)
  if (before < 0) throw new Refused('Misordered', 'prev is no operation that can be continued')
  const keys = chain[before]!.rotationKeys
  if (keys === null) throw new Refused('Misordered', 'nothing follows a tombstone')
  const disputed = chain[before + 1]
  const power = signer(operation, disputed === undefined ? keys : keys.slice(0, disputed.power))
  if (disputed !== undefined && !(at - disputed.at <= PLC_RECOVERY_MS)) {
    throw new Refused('LateRecovery', 'operations can be undone for 72 hours, and these are older')
  }
  return pruned([...chain.slice(0, before + 1), { cid, at, rotationKeys, power }], at)
}

function signer(operation: PlcOperation, keys: readonly string[]): number {
  const power = plcSigner(operation, keys)
  if (power < 0) throw new Refused('InvalidSignature', 'not signed by a rotation key that may make this operation')
  return power
}

/** A link whose successor cannot be undone any more has done its part. */
function pruned(chain: PlcLink[], now: number): PlcChain {
  let first = 0
  while (first + 1 < chain.length && now - chain[first + 1]!.at > PLC_RECOVERY_MS) first++
  return first === 0 ? chain : chain.slice(first)
}

const ENDED = 0xff
const CID_PREFIX = Uint8Array.of(1, 0x71, 0x12, 0x20)

/** A chain as bytes: for each link power, time, digest, and its keys in 33 bytes each. */
export function packPlcChain(chain: PlcChain): Uint8Array {
  const parts: Uint8Array[] = []
  for (const { cid, at, rotationKeys, power } of chain) {
    const head = new Uint8Array(8)
    const view = new DataView(head.buffer)
    head[0] = power
    view.setUint16(1, Math.floor(at / 2 ** 32))
    view.setUint32(3, at % 2 ** 32)
    head[7] = rotationKeys === null ? ENDED : rotationKeys.length
    parts.push(head, Cid.parse(cid).bytes.subarray(CID_PREFIX.length))
    for (const key of rotationKeys ?? []) {
      // Old operations name keys of other kinds: nobody can sign with those, but they have their place.
      const bytes = packDidKey(key) ?? utf8(key).subarray(0, 32)
      parts.push(Uint8Array.of(bytes.length), bytes)
    }
  }
  return concat(parts)
}

/** @throws {@link Malformed} on bytes that {@link packPlcChain} does not give */
export function unpackPlcChain(bytes: Uint8Array): PlcChain {
  const chain: PlcLink[] = []
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
  for (let at = 0; at < bytes.length; ) {
    if (at + 40 > bytes.length) throw new Malformed('a chain is cut off')
    const time = view.getUint16(at + 1) * 2 ** 32 + view.getUint32(at + 3)
    const count = bytes[at + 7]!
    const cid = Cid.fromBytes(concat([CID_PREFIX, bytes.subarray(at + 8, at + 40)])).toString()
    const power = bytes[at]!
    at += 40
    const keys: string[] = []
    for (let i = 0; count !== ENDED && i < count; i++) {
      const end = at + 1 + (bytes[at] ?? 0)
      if (at >= bytes.length || end > bytes.length) throw new Malformed('a chain is cut off')
      const key = bytes.subarray(at + 1, end)
      keys.push(key.length === 33 ? unpackDidKey(key) : fromUtf8(key))
      at = end
    }
    chain.push({ cid, at: time, rotationKeys: count === ENDED ? null : keys, power })
  }
  return chain
}
