// What the tests of the codecs share: arbitrary values, and damage done to bytes.
import fc from 'fast-check'
import type { Obj, Value } from './cbor.ts'
import { Cid } from './cid.ts'

/** How many cases to draw. Which ones is decided by the seed that all tests share, see scripts/seed.mjs. */
export const runs = (numRuns: number): { numRuns: number } => ({ numRuns })

export const anyBytes: fc.Arbitrary<Uint8Array> = fc.uint8Array({ maxLength: 60 })

export const anyCid: fc.Arbitrary<Cid> = fc.oneof(
  { weight: 4, arbitrary: anyBytes.map(bytes => Cid.ofCbor(bytes)) },
  { weight: 2, arbitrary: anyBytes.map(bytes => Cid.ofRaw(bytes)) },
  // Foreign: another codec, another hash, a short digest.
  fc.uint8Array({ maxLength: 90 }).map(d => Cid.fromBytes(Uint8Array.from([1, 0x70, 0x13, d.length, ...d]))),
)

export const anyInteger: fc.Arbitrary<number | bigint> = fc.oneof(
  fc.integer({ min: -300, max: 300 }),
  fc.maxSafeInteger().map(n => n + 0),
  fc.constantFrom(23, 24, 255, 256, 65_535, 65_536, 2 ** 32 - 1, 2 ** 32, 2 ** 53 - 1, -(2 ** 32) - 1, 1 - 2 ** 53),
  fc.bigInt({ min: -(2n ** 64n), max: 2n ** 64n - 1n }).filter(n => !Number.isSafeInteger(Number(n))),
)

export const anyText: fc.Arbitrary<string> = fc.oneof(
  fc.string({ maxLength: 80 }),
  fc.string({ unit: 'binary', maxLength: 40 }),
  fc.constantFrom(
    '',
    '\ufffd',
    '\ufeffbom',
    'did:plc:ewvi7nxzyoun6zhxrhs64oiz',
    '3l3pte3p2e325',
    'é'.repeat(12),
    '\u0000',
  ),
)

const anyKey: fc.Arbitrary<string> = fc.oneof(
  fc.string({ maxLength: 3 }),
  fc.string({ unit: 'binary', maxLength: 4 }),
  fc.constantFrom('__proto__', 'constructor', 'toString', '$type', 'createdAt', 'text', '1', '10', '', 'k'.repeat(30)),
)

/** Any value of the data model; of any depth that the default limit allows. */
export const anyValue: fc.Arbitrary<Value> = fc.letrec<{ value: Value }>(tie => ({
  value: fc.oneof(
    { depthSize: 'medium', maxDepth: 8 },
    fc.oneof(fc.constantFrom(null, true, false), anyInteger, anyText, anyBytes, anyCid),
    fc.array(tie('value'), { maxLength: 6 }),
    fc.array(fc.tuple(anyKey, tie('value')), { maxLength: 8 }).map(objectOf),
  ),
})).value

/** An object with these as own properties, `__proto__` included. */
export function objectOf(entries: readonly (readonly [string, Value])[]): Obj {
  const object: Obj = {}
  for (const [key, value] of entries) {
    Object.defineProperty(object, key, { value, enumerable: true, configurable: true, writable: true })
  }
  return object
}

export type Damage = { kind: 'flip' | 'set' | 'cut' | 'insert' | 'remove'; at: number; byte: number }

export const anyDamage: fc.Arbitrary<Damage[]> = fc.array(
  fc.record({
    kind: fc.constantFrom<Damage['kind'][]>('flip', 'flip', 'set', 'cut', 'insert', 'remove'),
    at: fc.nat(0xffff),
    byte: fc.oneof(fc.nat(255), fc.constantFrom(0x18, 0x1b, 0x5f, 0x7f, 0x9f, 0xbf, 0xd8, 0xf7, 0xfb, 0xff)),
  }),
  { minLength: 1, maxLength: 4 },
)

/** The bytes with a few of them flipped, replaced, added or taken away. */
export function damaged(bytes: Uint8Array, damage: readonly Damage[]): Uint8Array {
  let list = [...bytes]
  for (const { kind, at, byte } of damage) {
    const i = list.length === 0 ? 0 : at % list.length
    if (kind === 'flip') list[i] = (list[i] ?? 0) ^ (1 << (byte & 7))
    else if (kind === 'set') list[i] = byte
    else if (kind === 'cut') list = list.slice(0, i)
    else if (kind === 'insert') list.splice(i, 0, byte)
    else list.splice(i, 1)
  }
  return Uint8Array.from(list)
}
