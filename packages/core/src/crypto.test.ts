import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { test } from 'node:test'
import { inspect, promisify } from 'node:util'
import { Worker } from 'node:worker_threads'
import fc from 'fast-check'
import { hex, unhex, utf8 } from './bytes.ts'
import { type Curve, cryptoDriver, PublicKey, SigningKey } from './crypto.ts'
import { type Ecdsa, nativeK256, nodeEcdsa, type Verifier } from './ecdsa.ts'
import { systemK256 } from './ecdsa-system.ts'
import { Malformed } from './errors.ts'

const ORDER: Record<Curve, bigint> = {
  k256: 0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141n,
  p256: 0xffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551n,
}
const CURVES: Curve[] = ['k256', 'p256']
const native = nativeK256()
const system = systemK256()
const K256 = [nodeEcdsa('k256'), native, system].filter(driver => driver !== null)
const DRIVERS: [curve: Curve, driver: Ecdsa][] = [['p256', nodeEcdsa('p256')]]
for (const driver of K256) DRIVERS.push(['k256', driver])

const bytes32 = fc.uint8Array({ minLength: 32, maxLength: 32 })
const secret = bytes32.filter(b => b.slice(0, 16).some(byte => byte !== 0 && byte !== 255))
const message = fc.uint8Array({ maxLength: 200 })

function scalar(value: bigint): Uint8Array {
  return unhex(value.toString(16).padStart(64, '0'))
}

function withS(signature: Uint8Array, change: (s: bigint) => bigint): Uint8Array {
  const changed = signature.slice()
  changed.set(scalar(change(BigInt(`0x${hex(signature.slice(32))}`))), 32)
  return changed
}

for (const [curve, driver] of DRIVERS) {
  test(`${curve} by ${driver.name}: signs with low s, verifies that and nothing else`, () => {
    fc.assert(
      fc.property(secret, message, fc.nat(511), (seed, text, bit) => {
        const signer = driver.signer(seed)
        const verifier = driver.verifier(signer.compressed)
        const signature = signer.sign(text)
        assert.equal(signature.length, 64)
        assert.ok(BigInt(`0x${hex(signature.slice(32))}`) <= ORDER[curve] / 2n)
        assert.equal(verifier.verify(text, signature), true)
        assert.equal(verifier.verify(Buffer.from(text), Buffer.from(signature)), true)
        const highS = withS(signature, s => ORDER[curve] - s)
        assert.equal(verifier.verify(text, highS), false)
        const flipped = signature.slice()
        flipped[bit >> 3]! ^= 1 << (bit & 7)
        assert.equal(verifier.verify(text, flipped), false)
        assert.equal(verifier.verify(utf8(`${hex(text)}!`), signature), false)
      }),
      { numRuns: 20 },
    )
  })

  test(`${curve} by ${driver.name}: a signature of any shape is true or false`, () => {
    const verifier = driver.verifier(driver.signer(scalar(7n)).compressed)
    const edge = fc.constantFrom(0n, 1n, ORDER[curve] - 1n, ORDER[curve], ORDER[curve] / 2n, 2n ** 256n - 1n)
    const edges = fc.tuple(edge, edge).map(([r, s]) => Buffer.concat([scalar(r), scalar(s)]))
    fc.assert(
      fc.property(message, fc.oneof(edges, fc.uint8Array({ maxLength: 80 })), (text, signature) => {
        assert.equal(verifier.verify(text, signature), false)
      }),
    )
  })

  test(`${curve} by ${driver.name}: points compress, and what is no point is Malformed`, () => {
    for (const n of [1n, 2n, 3n, 7n, ORDER[curve] - 1n]) {
      const { compressed } = driver.signer(scalar(n))
      assert.deepEqual(driver.verifier(compressed).compressed, compressed)
    }
    fc.assert(
      fc.property(
        fc.oneof(
          fc.uint8Array({ maxLength: 70 }),
          bytes32.map(x => Uint8Array.of(2, ...x)),
        ),
        point => {
          try {
            assert.deepEqual(driver.verifier(point).compressed, point)
          } catch (error) {
            assert.ok(error instanceof Malformed)
          }
        },
      ),
    )
    const uncompressed = new Uint8Array(65)
    for (const first of [0, 4, 6, 7]) {
      uncompressed[0] = first
      assert.throws(() => driver.verifier(uncompressed), Malformed)
    }
  })

  test(`${curve} by ${driver.name}: secrets are 32 bytes from 1 to below the order`, () => {
    for (const bad of [
      scalar(0n),
      scalar(ORDER[curve]),
      scalar(2n ** 256n - 1n),
      new Uint8Array(31),
      new Uint8Array(0),
    ]) {
      assert.throws(() => driver.signer(bad), Malformed)
    }
  })
}

test('every driver of K-256 is here', {
  skip: K256.length < 3 && `only ${K256.map(({ name }) => name).join(', ')}`,
}, () => {
  assert.deepEqual(
    K256.map(({ name }) => name),
    ['node', 'native', 'system'],
  )
})

test('all drivers of K-256 accept each other, and those of libsecp256k1 sign the same', () => {
  fc.assert(
    fc.property(secret, message, (seed, text) => {
      const signers = K256.map(driver => driver.signer(seed))
      const deterministic = new Set<string>()
      for (const [i, { compressed, sign }] of signers.entries()) {
        assert.deepEqual(compressed, signers[0]!.compressed)
        const signature = sign(text)
        for (const driver of K256) assert.ok(driver.verifier(compressed).verify(text, signature), driver.name)
        if (K256[i]!.name !== 'node') deterministic.add(hex(signature)).add(hex(sign(text)))
      }
      assert.ok(deterministic.size <= 1)
    }),
    { numRuns: 10 },
  )
})

test('known signatures by RFC 6979', { skip: K256.length < 2 && 'no libsecp256k1' }, () => {
  for (const [secret, text, signature] of [
    [
      '1',
      'Satoshi Nakamoto',
      '934b1ea10a4b3c1757e2b0c017d0b6143ce3c9a7e6a4a49860d7a6ab210ee3d82442ce9d2b916064108014783e923ec36b49743e2ffa1c4496f01a512aafd9e5',
    ],
    [
      'fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364140',
      'Satoshi Nakamoto',
      'fd567d121db66e382991534ada77a6bd3106f0a1098c231e47993447cd6af2d06b39cd0eb1bc8603e159ef5c20a5c8ad685a45b06ce9bebed3f153d10d93bed5',
    ],
    [
      'f8b8af8ce3c7cca5e300d33939540c10d45ce001b8f252bfbc57ba0342904181',
      'Alan Turing',
      '7063ae83e7f62bbb171798131b4a0564b956930092b33b07b395615d9ec7e15c58dfcc1e00a35e1572f366ffe34ba0fc47db1e7189759b9fb233c5b05ab388ea',
    ],
  ] as const) {
    for (const driver of K256) {
      const signer = driver.signer(scalar(BigInt(`0x${secret}`)))
      if (driver.name !== 'node') assert.equal(hex(signer.sign(utf8(text))), signature, driver.name)
      assert.ok(driver.verifier(signer.compressed).verify(utf8(text), unhex(signature)), driver.name)
    }
  }
})

test('all drivers of K-256 come to the same verdict on whatever is called a signature, a point or a secret', () => {
  const text = utf8('whatever')
  const seed = scalar(0xabcdefn)
  const signer = K256[0]!.signer(seed)
  const good = signer.sign(text)
  const order = ORDER.k256
  const r = BigInt(`0x${hex(good.slice(0, 32))}`)
  const s = BigInt(`0x${hex(good.slice(32))}`)
  const edge = [0n, 1n, r, s, order - r, order - s, order - 1n, order, order + 1n, order / 2n, order / 2n + 1n]
  const edges = fc.constantFrom(...edge, 2n ** 256n - 1n)
  const signatures = fc.oneof(
    fc.tuple(edges, edges).map(([a, b]) => Buffer.concat([scalar(a), scalar(b)])),
    fc.nat(511).map(bit => {
      const flipped = good.slice()
      flipped[bit >> 3]! ^= 1 << (bit & 7)
      return flipped
    }),
    fc.nat(66).map(length => Buffer.concat([good, good]).subarray(0, length)),
  )
  const verifiers = K256.map(driver => driver.verifier(signer.compressed))
  fc.assert(
    fc.property(signatures, signature => {
      const verdicts = verifiers.map(verifier => verifier.verify(text, signature))
      assert.equal(new Set(verdicts).size, 1, `${hex(signature)}: ${verdicts}`)
    }),
  )
  const { x, y } = { x: signer.compressed.slice(1), y: scalar(1n) }
  const points = fc.oneof(
    fc.tuple(fc.nat(8), fc.oneof(bytes32, fc.constant(x), edges.map(scalar))).map(([first, at]) => {
      return Uint8Array.of(first, ...at)
    }),
    fc.tuple(fc.nat(8), bytes32).map(([first, at]) => Uint8Array.of(first, ...x, ...at)),
    fc.constant(Uint8Array.of(4, ...x, ...y)),
  )
  fc.assert(
    fc.property(points, point => {
      const outcomes = K256.map(driver => {
        const verifier = outcome(() => driver.verifier(point))
        return typeof verifier === 'string' ? verifier : `${hex(verifier.compressed)} ${verifier.verify(text, good)}`
      })
      assert.equal(new Set(outcomes).size, 1, `${hex(point)}: ${outcomes}`)
    }),
  )
  fc.assert(
    fc.property(fc.oneof(edges.map(scalar), fc.uint8Array({ maxLength: 40 })), given => {
      const outcomes = K256.map(driver => {
        const made = outcome(() => driver.signer(given))
        return typeof made === 'string' ? made : hex(made.compressed)
      })
      assert.equal(new Set(outcomes).size, 1, `${hex(given)}: ${outcomes}`)
    }),
  )
})

/** What it gives, or the message it is Malformed with. */
function outcome<T extends Verifier | { compressed: Uint8Array }>(make: () => T): T | string {
  try {
    return make()
  } catch (error) {
    assert.ok(error instanceof Malformed, String(error))
    return error.message
  }
}

/** A program that imports what is below `hidden` as if it were not there, and makes a key. */
function programWithout(...hidden: string[]): string {
  return `
    import { registerHooks } from 'node:module'
    registerHooks({ resolve(name, context, next) {
      if (${JSON.stringify(hidden)}.some(start => name.startsWith(start))) throw new Error('not here')
      return next(name, context)
    } })
    const { cryptoDriver, PublicKey, SigningKey } = await import(${JSON.stringify(import.meta.resolve('./crypto.ts'))})
    const key = SigningKey.fromPrivate('k256', Buffer.alloc(32, 7))
    const sound = PublicKey.parseDidKey(key.didKey).verify(Buffer.from('hi'), key.sign(Buffer.from('hi')))
    process.stdout.write(cryptoDriver + ' ' + sound + ' ' + key.didKey)`
}

test('the system comes first, then the package, then node:crypto, without a word on stderr', async () => {
  assert.equal(
    nativeK256(() => {
      throw new Error('No native build was found')
    }),
    null,
  )
  assert.equal(systemK256(null), null)
  const { didKey } = SigningKey.fromPrivate('k256', new Uint8Array(32).fill(7))
  for (const [hidden, drivers] of [
    [[], [system, native]],
    [['node:ffi'], [native]],
    [['node:ffi', 'secp256k1'], []],
  ] as const) {
    const args = ['--input-type=module', '-e', programWithout(...hidden)]
    const { stdout, stderr } = await promisify(execFile)(process.execPath, args)
    const name = drivers.find(driver => driver !== null)?.name ?? 'node'
    assert.deepEqual([stdout, stderr], [`${name} true ${didKey}`, ''])
  }
  assert.equal(cryptoDriver, (system ?? native)?.name ?? 'node')
})

test('worker threads have the same driver, each for itself, without a word on stderr', async () => {
  const program = `import(${JSON.stringify(import.meta.resolve('./crypto.ts'))}).then(({ cryptoDriver, SigningKey }) => {
    const key = SigningKey.fromPrivate('k256', new Uint8Array(32).fill(7))
    const isSound = n => key.publicKey.verify(Buffer.of(n), key.sign(Buffer.of(n)))
    require('node:worker_threads').parentPort.postMessage([cryptoDriver, Array.from({ length: 300 }, (_, n) => isSound(n)).every(Boolean)])
  })`
  const answers = await Promise.all(
    [1, 2, 3].map(async () => {
      const worker = new Worker(program, { eval: true, stderr: true })
      let stderr = ''
      worker.stderr.setEncoding('utf8').on('data', text => {
        stderr += text
      })
      const exit = once(worker, 'exit')
      const [answer] = await once(worker, 'message')
      await exit
      return [...answer, stderr]
    }),
  )
  assert.deepEqual(answers, Array(3).fill([cryptoDriver, true, '']))
})

test('keys survive their text forms', () => {
  fc.assert(
    fc.property(fc.constantFrom(...CURVES), secret, message, (curve, seed, text) => {
      const key = SigningKey.fromPrivate(curve, seed)
      const signature = key.sign(text)
      assert.deepEqual(key.privateBytes, seed)
      assert.equal(key.curve, curve)
      assert.ok(key.didKey.startsWith(curve === 'k256' ? 'did:key:zQ3s' : 'did:key:zDn'))
      for (const read of [
        PublicKey.parseDidKey(key.didKey),
        PublicKey.parseMultibase(key.publicKey.multibase),
        PublicKey.fromBytes(curve, key.publicKey.bytes),
      ]) {
        assert.equal(read.didKey, key.didKey)
        assert.equal(read.curve, curve)
        assert.deepEqual(read.bytes, key.publicKey.bytes)
        assert.ok(read.verify(text, signature))
      }
    }),
    { numRuns: 20 },
  )
})

test('any text is a key or Malformed', () => {
  const good = SigningKey.fromPrivate('k256', scalar(5n)).didKey
  const mutated = fc.tuple(fc.nat(good.length - 1), fc.string({ maxLength: 2 })).map(([at, text]) => {
    return good.slice(0, at) + text + good.slice(at + 1)
  })
  fc.assert(
    fc.property(
      fc.oneof(
        mutated,
        fc.string(),
        fc.string().map(s => `did:key:z${s}`),
      ),
      text => {
        const readers = [
          PublicKey.parseDidKey,
          PublicKey.parseMultibase,
          (s: string) => PublicKey.parseLegacyMultibase('p256', s),
          (s: string) => PublicKey.parseLegacyMultibase('k256', s),
        ]
        for (const read of readers) {
          try {
            assert.ok(read(text).didKey.length > 0)
          } catch (error) {
            assert.ok(error instanceof Malformed, String(error))
          }
        }
      },
    ),
  )
  for (const bad of ['', 'z', 'did:key:', 'did:key:z', 'did:key:m9wE', `did:key:z${'z'.repeat(1e6)}`, 'did:web:a.b']) {
    assert.throws(() => PublicKey.parseDidKey(bad), Malformed)
  }
  // ed25519: a multicodec that is none of ours
  assert.throws(() => PublicKey.parseDidKey('did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK'), Malformed)
})

test('a signing key keeps its secret to itself, whatever happens to the bytes it was made of', () => {
  for (const seed of [new Uint8Array(32).fill(0xab), Buffer.alloc(32, 0xab)]) {
    const key = SigningKey.fromPrivate('k256', seed)
    const before = key.sign(utf8('x'))
    seed.fill(1)
    key.privateBytes.fill(1)
    assert.deepEqual(key.privateBytes, new Uint8Array(32).fill(0xab))
    assert.ok(key.publicKey.verify(utf8('x'), key.sign(utf8('x'))))
    assert.ok(key.publicKey.verify(utf8('x'), before))
    for (const text of [inspect(key, { depth: 9, showHidden: true }), JSON.stringify(key)]) {
      assert.ok(!/abab|171|q6ur/.test(text), text)
    }
  }
})
