// The contract of all drivers is in crypto.test.ts. Here: when this one is not used.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { systemK256 } from './ecdsa-system.ts'
import { type Ffi, type ForeignFunction, loadFfi } from './ffi.ts'

const real = loadFfi()
const skip = real === null ? 'no node:ffi' : systemK256(real) === null && 'no libsecp256k1 in the system'

type Functions = Record<string, ForeignFunction>

/** An ffi whose libraries have other functions than the real ones. */
function changed({ DynamicLibrary, ...ffi }: Ffi, change: (real: Functions, name: string) => Functions): Ffi {
  return {
    ...ffi,
    DynamicLibrary: class extends DynamicLibrary {
      readonly #name: string
      constructor(name: string) {
        super(name)
        this.#name = name
      }

      override getFunctions(signatures: Parameters<InstanceType<Ffi['DynamicLibrary']>['getFunctions']>[0]): Functions {
        const real = super.getFunctions(signatures)
        return { ...real, ...change(real, this.#name) }
      }
    },
  }
}

/** One that has no library but this, whose functions all give `answer`. */
function pretending(names: string[], answer: number): Ffi {
  return {
    suffix: 'so',
    getRawPointer: () => 4096n,
    DynamicLibrary: class {
      constructor(name: string) {
        names.push(name)
        if (name !== 'libsecp256k1.so.1') throw new Error(`${name}: cannot open shared object file`)
      }

      getFunctions(signatures: object): Functions {
        return Object.fromEntries(
          Object.keys(signatures).map(name => [name, () => (/create$/.test(name) ? 4096n : answer)]),
        )
      }
    },
  }
}

test('a library is looked for by bare names, and one that says yes or no to everything is not used', () => {
  for (const answer of [0, 1]) {
    const names: string[] = []
    assert.equal(systemK256(pretending(names, answer)), null)
    assert.deepEqual(names, ['libsecp256k1.so.6', 'libsecp256k1.so.5', 'libsecp256k1.so.2', 'libsecp256k1.so.1'])
  }
  const names: string[] = []
  assert.equal(systemK256({ ...pretending(names, 1), suffix: 'dylib' }), null)
  assert.deepEqual(names, [])
})

test('a library in which anything differs is not used', { skip }, () => {
  const yes = () => 1
  const no = () => 0
  const wrongs: Record<string, (real: Functions) => Functions> = {
    'no context': () => ({ secp256k1_context_create: () => 0n }),
    'no blinding': () => ({ secp256k1_context_randomize: no }),
    'verifies everything': () => ({ secp256k1_ecdsa_verify: yes }),
    'verifies nothing': () => ({ secp256k1_ecdsa_verify: no }),
    'takes r and s beyond the order': ({ secp256k1_ecdsa_signature_parse_compact: parse }) => ({
      secp256k1_ecdsa_signature_parse_compact: (...args) => {
        parse!(...args)
        return 1
      },
      secp256k1_ecdsa_verify: yes,
    }),
    'takes every point': () => ({ secp256k1_ec_pubkey_parse: yes }),
    'takes no point': () => ({ secp256k1_ec_pubkey_parse: no }),
    'does not sign': () => ({ secp256k1_ecdsa_sign: no }),
    'signs without writing': () => ({ secp256k1_ecdsa_sign: yes }),
    'signs with a nonce of its own': ({ secp256k1_ecdsa_sign: sign, secp256k1_ec_pubkey_create: create }) => {
      assert.ok(create)
      // The digest in the place of the secret: a signature like any other, only not that by RFC 6979.
      return {
        secp256k1_ecdsa_sign: (context, out, digest, _secret, ...rest) =>
          sign!(context!, out!, digest!, digest!, ...rest),
      }
    },
    'has another order of arguments': ({ secp256k1_ecdsa_verify: verify }) => ({
      secp256k1_ecdsa_verify: (context, a, b, c) => verify!(context!, a!, c!, b!),
    }),
    throws: () => ({
      secp256k1_ecdsa_sign: () => {
        throw new TypeError('another Node')
      },
    }),
  }
  for (const [name, change] of Object.entries(wrongs)) assert.equal(systemK256(changed(real!, change)), null, name)
  assert.equal(systemK256(changed(real!, () => ({})))?.name, 'system')
})

test('takes high s: not used', { skip }, () => {
  // What a library that normalises by itself would do: the lower s in the place of the higher.
  const ffi = changed(real!, ({ secp256k1_ecdsa_verify: verify }) => {
    let calls = 0
    return {
      secp256k1_ecdsa_verify: (...args) => {
        const verdict = verify!(...args)
        return ++calls === 3 ? 1 : verdict
      },
    }
  })
  assert.equal(systemK256(ffi), null)
})

test('the secret does not stay where the library read it', { skip }, () => {
  let shared: ArrayBuffer | undefined
  const driver = systemK256({
    ...real!,
    getRawPointer(memory) {
      shared = memory
      return real!.getRawPointer(memory)
    },
  })
  const secret = Buffer.alloc(32, 0x5a)
  const signer = driver!.signer(secret)
  signer.sign(Buffer.from('x'))
  assert.equal(Buffer.from(shared!).indexOf(secret.subarray(0, 8)), -1)
  assert.ok(Buffer.from(shared!).some(byte => byte !== 0))
})
