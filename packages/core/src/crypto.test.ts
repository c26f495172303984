import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { test } from 'node:test'
import { inspect, promisify } from 'node:util'
import { Worker } from 'node:worker_threads'
import fc from 'fast-check'
import { hex, unhex, utf8 } from './bytes.ts'
import { type Curve, cryptoDriver, PublicKey, SigningKey } from './crypto.ts'
import { type Ecdsa, nativeK256, nodeEcdsa } from './ecdsa.ts'
import { Malformed } from './errors.ts'

const ORDER: Record<Curve, bigint> = {
  k256: 0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141n,
  p256: 0xffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551n,
}
const CURVES: Curve[] = ['k256', 'p256']
const native = nativeK256()
const DRIVERS: [curve: Curve, driver: Ecdsa][] = [
  ['k256', nodeEcdsa('k256')],
  ['p256', nodeEcdsa('p256')],
]
if (native !== null) DRIVERS.push(['k256', native])

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

test('the native and the node driver of K-256 accept each other', {
  skip: native === null && 'no native binary',
}, () => {
  const node = nodeEcdsa('k256')
  fc.assert(
    fc.property(secret, message, (seed, text) => {
      const a = native!.signer(seed)
      const b = node.signer(seed)
      assert.deepEqual(a.compressed, b.compressed)
      assert.ok(node.verifier(a.compressed).verify(text, a.sign(text)))
      assert.ok(native!.verifier(a.compressed).verify(text, b.sign(text)))
      assert.deepEqual(a.sign(text), a.sign(text), 'native signatures are deterministic')
    }),
    { numRuns: 10 },
  )
})

test('where no native binary loads, node:crypto takes over and says so', async () => {
  assert.equal(
    nativeK256(() => {
      throw new Error('No native build was found')
    }),
    null,
  )
  const program = `
    import { registerHooks } from 'node:module'
    registerHooks({ resolve(name, context, next) {
      if (name.startsWith('secp256k1')) throw new Error('no prebuild')
      return next(name, context)
    } })
    const { cryptoDriver, PublicKey, SigningKey } = await import(${JSON.stringify(import.meta.resolve('./crypto.ts'))})
    const key = SigningKey.fromPrivate('k256', Buffer.alloc(32, 7))
    const sound = PublicKey.parseDidKey(key.didKey).verify(Buffer.from('hi'), key.sign(Buffer.from('hi')))
    process.stdout.write(cryptoDriver + ' ' + sound + ' ' + key.didKey)`
  const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '-e', program])
  assert.equal(stdout, `node true ${SigningKey.fromPrivate('k256', new Uint8Array(32).fill(7)).didKey}`)
  assert.equal(cryptoDriver, native === null ? 'node' : 'native')
})

test('the native driver loads in a worker thread too', { skip: native === null && 'no native binary' }, async () => {
  const program = `import(${JSON.stringify(import.meta.resolve('./crypto.ts'))}).then(({ cryptoDriver, SigningKey }) => {
    const key = SigningKey.fromPrivate('k256', new Uint8Array(32).fill(7))
    require('node:worker_threads').parentPort.postMessage([cryptoDriver, key.publicKey.verify(key.privateBytes, key.sign(key.privateBytes))])
  })`
  const answers = await Promise.all(
    [1, 2].map(() => {
      const worker = new Worker(program, { eval: true })
      return new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject))
    }),
  )
  assert.deepEqual(answers, [
    ['native', true],
    ['native', true],
  ])
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
  const seed = new Uint8Array(32).fill(0xab)
  const key = SigningKey.fromPrivate('k256', seed)
  const before = key.sign(utf8('x'))
  seed.fill(1)
  key.privateBytes.fill(1)
  assert.ok(key.publicKey.verify(utf8('x'), key.sign(utf8('x'))))
  assert.ok(key.publicKey.verify(utf8('x'), before))
  for (const text of [inspect(key, { depth: 9, showHidden: true }), JSON.stringify(key)]) {
    assert.ok(!/abab|171|q6ur/.test(text), text)
  }
})
