import assert from 'node:assert/strict'
import { test } from 'node:test'
import { fromUint8Array } from '@atcute/car'
import { readCar as readCarOfReference } from '@atproto/repo'
import fc from 'fast-check'
import type { Block } from './blocks.ts'
import { concat, encodeVarint, unhex } from './bytes.ts'
import { CarDecoder, type CarOptions, carBlock, carHeader, readCar, writeCar } from './car.ts'
import { decode, encode, type Value } from './cbor.ts'
import { Cid } from './cid.ts'
import { Malformed } from './errors.ts'
import { anyDamage, damaged, runs } from './testing-values.ts'

const cbor = (value: Value): Block => {
  const bytes = encode(value)
  return { cid: Cid.ofCbor(bytes), bytes }
}
const raw = (length: number): Block => {
  const bytes = new Uint8Array(length).map((_, i) => i + length)
  return { cid: Cid.ofRaw(bytes), bytes }
}
const sample = [cbor({ a: 1 }), raw(0), raw(1), raw(91), raw(92), cbor(['x'.repeat(300)]), raw(20_000), cbor({ a: 1 })]
const sampleCar = writeCar([sample[0]!.cid], sample)
const entry = (...parts: Uint8Array[]) => {
  const content = concat(parts)
  return concat([encodeVarint(content.length), content])
}
const header = carHeader([sample[0]!.cid])
const anyBlocks = fc.array(
  fc.uint8Array({ maxLength: 300 }).map(bytes => ({ cid: Cid.ofRaw(bytes), bytes })),
  {
    maxLength: 8,
  },
)

/** Everything a CAR gives, or that it is malformed. */
function inOne(car: Uint8Array, options?: CarOptions): { roots: Cid[]; blocks: Block[] } | 'malformed' {
  try {
    return readCar(car, options)
  } catch (error) {
    if (error instanceof Malformed) return 'malformed'
    throw error
  }
}

/** The same by way of the stream decoder, the CAR cut into pieces of these lengths. */
function inPieces(car: Uint8Array, lengths: readonly number[], options?: CarOptions): ReturnType<typeof inOne> {
  const decoder = new CarDecoder(options)
  const blocks: Block[] = []
  try {
    let at = 0
    for (const length of lengths) {
      blocks.push(...decoder.push(car.slice(at, at + length)))
      at += length
    }
    blocks.push(...decoder.push(car.slice(at)))
    decoder.end()
    return { roots: decoder.roots!, blocks }
  } catch (error) {
    if (error instanceof Malformed) return 'malformed'
    throw error
  }
}

test('what is written is read, in order and with repeats', () => {
  const { roots, blocks } = readCar(sampleCar)
  assert.deepEqual(roots, [sample[0]!.cid])
  assert.deepEqual(blocks, sample)
  assert.deepEqual(readCar(writeCar([], [])), { roots: [], blocks: [] })
  assert.deepEqual(concat([header, ...sample.map(carBlock)]), sampleCar)
  const lazily = writeCar([sample[0]!.cid], new Set(sample.slice(0, 3)))
  assert.deepEqual(readCar(lazily).blocks, sample.slice(0, 3))
})

test('blocks are views', () => {
  const { blocks } = readCar(Buffer.from(sampleCar.buffer))
  for (const block of blocks) {
    assert.equal(block.bytes.buffer, sampleCar.buffer)
    assert.equal(block.bytes.constructor, Uint8Array)
  }
})

test('agrees with two other readers', async () => {
  const unique = sample.slice(0, -1)
  const car = writeCar([unique[0]!.cid], unique)
  const theirs = await readCarOfReference(car)
  assert.deepEqual(theirs.roots.map(String), [String(unique[0]!.cid)])
  assert.deepEqual(
    [...theirs.blocks.entries()].map(({ cid, bytes }) => [String(cid), bytes]),
    unique.map(({ cid, bytes }) => [String(cid), bytes]),
  )
  const entries = [...fromUint8Array(car)]
  assert.deepEqual(
    entries.map(({ cid, bytes }) => [cid.bytes, bytes]),
    unique.map(({ cid, bytes }) => [cid.bytes, bytes]),
  )
})

test('a block that does not match its CID is refused, unless asked not to look', () => {
  const [a, b] = [raw(10), raw(11)]
  const car = writeCar([a.cid], [{ cid: a.cid, bytes: b.bytes }])
  assert.throws(() => readCar(car), Malformed)
  assert.deepEqual(readCar(car, { verify: false }).blocks, [{ cid: a.cid, bytes: b.bytes }])
  // A hash that cannot be computed is no reason to believe it.
  const foreign = Cid.fromBytes(Uint8Array.from([1, 0x55, 0x1e, 4, 1, 2, 3, 4]))
  const unknown = writeCar([a.cid], [{ cid: foreign, bytes: b.bytes }])
  assert.throws(() => readCar(unknown), Malformed)
  assert.deepEqual(readCar(unknown, { verify: false }).blocks, [{ cid: foreign, bytes: b.bytes }])
})

const malformed: Record<string, Uint8Array> = {
  nothing: new Uint8Array(),
  'header of no length': unhex('00'),
  'header of no length, then blocks': concat([unhex('00'), carBlock(sample[0]!)]),
  'header cut short': header.subarray(0, -1),
  'header that is no CBOR': entry(unhex('ff')),
  'header with bytes behind': entry(encode({ roots: [], version: 1 }), unhex('00')),
  'header that is no map': entry(encode([1])),
  'header that is null': entry(encode(null)),
  'header without version': entry(encode({ roots: [] })),
  'version 2': entry(encode({ version: 2 })),
  'version as text': entry(encode({ version: '1', roots: [] })),
  'no roots': entry(encode({ version: 1 })),
  'roots that are no links': entry(encode({ version: 1, roots: ['a'] })),
  'length prefix not minimal': concat([unhex('8000'), header]),
  'length beyond 2^53': concat([header, unhex('ffffffffffffff7f')]),
  'length of ten bytes': concat([header, unhex('80808080808080808001')]),
  'length of nine bytes that go on': concat([header, unhex('808080808080808080')]),
  'length cut short': concat([header, unhex('80')]),
  'block of no length': concat([header, unhex('00')]),
  'block shorter than a CID': concat([header, entry(sample[0]!.cid.bytes.subarray(0, 35))]),
  'block with no CID': concat([header, entry(new Uint8Array(40).fill(5))]),
  'block cut short': sampleCar.subarray(0, -1),
  'block of another version of CID': concat([header, entry(Uint8Array.of(2), sample[0]!.cid.bytes.subarray(1))]),
}

test('what is not a CAR is refused, at once and in pieces', () => {
  for (const [why, car] of Object.entries(malformed)) {
    assert.equal(inOne(car), 'malformed', why)
    for (const size of [1, 2, 37, 1000]) {
      const lengths = Array.from({ length: Math.floor(car.length / size) }, () => size)
      assert.equal(inPieces(car, lengths), 'malformed', `${why}, in pieces of ${size}`)
    }
  }
})

test('limits on header, block and number of blocks', () => {
  const many = writeCar(
    Array.from({ length: 2000 }, () => sample[0]!.cid),
    [],
  )
  const cases: [Uint8Array, CarOptions, CarOptions][] = [
    [many, {}, { headerBytesMax: 100_000 }],
    [sampleCar, { blockBytesMax: 19_999 }, { blockBytesMax: 20_000 }],
    [sampleCar, { blocksMax: 7 }, { blocksMax: 8 }],
  ]
  for (const [car, tooLow, enough] of cases) {
    assert.equal(inOne(car, tooLow), 'malformed')
    assert.equal(inPieces(car, [10, 1000], tooLow), 'malformed')
    assert.notEqual(inOne(car, enough), 'malformed')
    assert.notEqual(inPieces(car, [10, 1000], enough), 'malformed')
  }
  // Refused by the prefix, before anything is waited for.
  assert.throws(() => new CarDecoder().push(encodeVarint(70_000)), Malformed)
  assert.throws(() => new CarDecoder().push(concat([header, encodeVarint(9_000_000)])), Malformed)
})

test('a stream gives the same as the whole, however it is cut', () => {
  const whole = inOne(sampleCar)
  for (const size of [1, 2, 3, 35, 36, 37, 59, 100, 8192, 1e6]) {
    const lengths = Array.from({ length: Math.floor(sampleCar.length / size) }, () => size)
    assert.deepEqual(inPieces(sampleCar, lengths), whole, `pieces of ${size}`)
  }
  fc.assert(
    fc.property(anyBlocks, fc.array(fc.nat(200), { maxLength: 30 }), (blocks, lengths) => {
      const car = writeCar(
        blocks.slice(0, 1).map(block => block.cid),
        blocks,
      )
      assert.deepEqual(inPieces(car, lengths), { roots: readCar(car).roots, blocks })
    }),
    runs(300),
  )
})

test('damage ends in Malformed or in blocks, at once and in pieces alike', () => {
  fc.assert(
    fc.property(anyBlocks, anyDamage, fc.array(fc.nat(200), { maxLength: 10 }), (blocks, damage, lengths) => {
      const car = damaged(
        writeCar(
          blocks.slice(0, 1).map(block => block.cid),
          blocks,
        ),
        damage,
      )
      for (const verify of [true, false]) assert.deepEqual(inPieces(car, lengths, { verify }), inOne(car, { verify }))
    }),
    runs(500),
  )
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 80 }), fc.nat(80), (car, at) => {
      assert.deepEqual(inPieces(car, [at]), inOne(car))
    }),
    runs(500),
  )
})

test('roots are there as soon as the header is', () => {
  const decoder = new CarDecoder()
  assert.equal(decoder.roots, undefined)
  assert.deepEqual(decoder.push(header.subarray(0, 20)), [])
  assert.equal(decoder.roots, undefined)
  assert.deepEqual(decoder.push(header.subarray(20)), [])
  assert.deepEqual(decoder.roots, [sample[0]!.cid])
  assert.deepEqual(decoder.push(new Uint8Array()), [])
  decoder.end()
})

test('after a failure nothing more is taken', () => {
  const decoder = new CarDecoder()
  assert.throws(() => decoder.push(unhex('00')), Malformed)
  assert.throws(() => decoder.push(sampleCar), Malformed)
  assert.throws(() => decoder.end(), Malformed)
})

test('a block in very small pieces holds no more memory than itself', () => {
  const car = writeCar([], [raw(300_000)])
  const decoder = new CarDecoder()
  const blocks: Block[] = []
  for (let i = 0; i < car.length; i++) blocks.push(...decoder.push(car.subarray(i, i + 1)))
  decoder.end()
  assert.equal(blocks.length, 1)
  assert.ok(blocks[0]!.bytes.buffer.byteLength < 2 * car.length)
})

test('the header that nearly all CARs have is read as any other', () => {
  /** By way of the generic codec alone. */
  const slowRoots = (bytes: Uint8Array): string | null => {
    try {
      const { version, roots } = decode(bytes) as { version?: unknown; roots?: Value[] }
      const isHeader = version === 1 && Array.isArray(roots) && roots.every(root => root instanceof Cid)
      return isHeader ? roots.join() : null
    } catch {
      return null
    }
  }
  const roots = (bytes: Uint8Array): string | null => {
    try {
      return readCar(entry(bytes)).roots.join()
    } catch (error) {
      if (error instanceof Malformed) return null
      throw error
    }
  }
  const good = encode({ version: 1, roots: [sample[0]!.cid] })
  let read = 0
  for (let i = 0; i < good.length; i++) {
    for (let byte = 0; byte < 256; byte++) {
      const changed = good.with(i, byte)
      const expected = slowRoots(changed)
      assert.equal(roots(changed), expected, `byte ${i} = ${byte}`)
      if (expected !== null) read++
    }
  }
  assert.ok(read > 32 * 256, 'the digest may be anything')
})
