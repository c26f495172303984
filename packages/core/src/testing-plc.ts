/** Identities of a did:plc directory, for tests. */
import { SigningKey } from './crypto.ts'
import { type PlcUpdate, plcDidOf, plcGenesis, signPlcOperation } from './plc.ts'
import type { Did } from './syntax.ts'

const keyOf = (curve: 'k256' | 'p256', n: number) => SigningKey.fromPrivate(curve, new Uint8Array(32).fill(n))

/** The rotation keys of {@link testGenesis}, the stronger one first, and the key it signs with, which may not rotate. */
export const strongKey: SigningKey = keyOf('k256', 1)
export const weakKey: SigningKey = keyOf('p256', 2)
export const signingKey: SigningKey = keyOf('k256', 3)

/** The first operation of a DID, another one for each number, with the handle `a<n>.example.com`. */
export function testGenesis(n = 0): { did: Did; first: PlcUpdate } {
  const unsigned = plcGenesis({
    rotationKeys: [strongKey.didKey, weakKey.didKey],
    signingKey: signingKey.didKey,
    handle: `a${n}.example.com`,
    pds: 'https://pds.example.com',
  })
  const first = signPlcOperation<PlcUpdate>(unsigned, weakKey)
  return { did: plcDidOf(first), first }
}
