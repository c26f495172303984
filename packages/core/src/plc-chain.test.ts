import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { SigningKey } from './crypto.ts'
import { Malformed, Refused } from './errors.ts'
import { packDidKey, unpackDidKey } from './key-bytes.ts'
import {
  applyPlcOperation,
  type PlcEntry,
  type PlcOperation,
  type PlcUpdate,
  plcDidOf,
  plcGenesis,
  plcTombstone,
  plcUpdate,
  signPlcOperation,
} from './plc.ts'
import { extendPlcChain, type PlcChain, packPlcChain, unpackPlcChain } from './plc-chain.ts'

const HOUR = 3_600_000
const START = Date.parse('2026-01-01T00:00:00Z')
const keys = [1, 2, 3, 4].map(n => SigningKey.fromPrivate(n % 2 ? 'k256' : 'p256', new Uint8Array(32).fill(n)))
const genesis = signPlcOperation<PlcUpdate>(
  plcGenesis({
    rotationKeys: keys.slice(0, 3).map(key => key.didKey),
    signingKey: keys[3]!.didKey,
    handle: 'alice.example.com',
    pds: 'https://pds.example.com',
  }),
  keys[2]!,
)
const did = plcDidOf(genesis)

test('keys come through their 33 bytes, and what is no key has none', () => {
  for (const { didKey } of keys) {
    assert.equal(packDidKey(didKey)?.length, 33)
    assert.equal(unpackDidKey(packDidKey(didKey)!), didKey)
  }
  for (const text of [
    '',
    'did:key:',
    'did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK',
    `${keys[0]!.didKey}1`,
  ]) {
    assert.equal(packDidKey(text), null)
  }
})

/** What the whole log says, against what the chain says. */
class Both {
  log: PlcEntry[] = []
  chain: PlcChain = []
  readonly operations: PlcOperation[] = []

  take(operation: PlcOperation, at: number): boolean {
    const wholly = outcome(() => applyPlcOperation(did, this.log, operation, at))
    const briefly = outcome(() => extendPlcChain(did, unpackPlcChain(packPlcChain(this.chain)), operation, at))
    assert.equal(typeof briefly, typeof wholly, `${JSON.stringify(wholly)} ${JSON.stringify(briefly)}`)
    if (typeof wholly === 'string' || typeof briefly === 'string') return false
    this.chain = briefly
    assert.deepEqual(unpackPlcChain(packPlcChain(this.chain)), this.chain)
    this.log = this.log.map(entry => (wholly.nullified.includes(entry.cid) ? { ...entry, nullified: true } : entry))
    const createdAt = new Date(at).toISOString()
    this.log.push({ did, operation, cid: wholly.cid, createdAt, nullified: false })
    this.operations.push(operation)
    const inForce = this.log.filter(entry => !entry.nullified)
    assert.equal(this.chain.at(-1)?.cid, inForce.at(-1)?.cid)
    assert.ok(this.chain.length <= inForce.length)
    return true
  }
}

function outcome<T>(work: () => T): T | string {
  try {
    return work()
  } catch (error) {
    if (error instanceof Refused || error instanceof Malformed) return error.message
    throw error
  }
}

test('a chain accepts what the whole log accepts, also recoveries, and nothing else', () => {
  const step = fc.record({
    /** How far before the last operation the one stands that this continues. */
    back: fc.nat(3),
    key: fc.nat(3),
    hours: fc.constantFrom(0, 1, 30, 71, 73, 200),
    what: fc.constantFrom('rename', 'rename', 'rename', 'rotate', 'end'),
  })
  let recovered = 0
  fc.assert(
    fc.property(fc.array(step, { minLength: 1, maxLength: 12 }), steps => {
      const both = new Both()
      let at = START
      assert.ok(both.take(genesis, at))
      for (const [n, { back, key, hours, what }] of steps.entries()) {
        at += hours * HOUR
        const last = both.operations.at(-1 - Math.min(back, both.operations.length - 1))!
        if (last.type === 'plc_tombstone') continue
        const change =
          what === 'rotate'
            ? { rotationKeys: [keys[n % 3]!.didKey, keys[(n + 1) % 3]!.didKey] }
            : { alsoKnownAs: [`at://n${n}.example.com`] }
        const unsigned = what === 'end' ? plcTombstone(last) : plcUpdate(last, change)
        const operation = signPlcOperation<PlcOperation>(unsigned as PlcUpdate, keys[key]!)
        if (both.take(operation, at) && both.log.some(entry => entry.nullified)) recovered++
      }
    }),
    { numRuns: 60 },
  )
  assert.ok(recovered > 0)
})

test('a chain stays short however long the log is', () => {
  const both = new Both()
  both.take(genesis, START)
  for (let n = 1; n <= 30; n++) {
    const next = plcUpdate(both.operations.at(-1)!, { alsoKnownAs: [`at://n${n}.example.com`] })
    assert.ok(both.take(signPlcOperation<PlcUpdate>(next, keys[0]!), START + n * 24 * HOUR))
  }
  assert.ok(both.chain.length <= 5)
  assert.ok(packPlcChain(both.chain.slice(-1)).length < 150)
})

test('bytes that are no chain are refused', () => {
  const bytes = packPlcChain(extendPlcChain(did, [], genesis, START))
  for (let length = 1; length < bytes.length; length++) {
    assert.throws(() => unpackPlcChain(bytes.subarray(0, length)), Malformed)
  }
  assert.throws(() => extendPlcChain('did:plc:aaaaaaaaaaaaaaaaaaaaaaaa' as typeof did, [], genesis, START), Refused)
})
