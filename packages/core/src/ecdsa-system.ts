/**
 * K-256 by the system's own libsecp256k1 (`apt-get install libsecp256k1-1`), where there is one: years newer than the one
 * that the npm package carries, and faster. Decision 0005.
 *
 * Every thread has a context of its own and memory of its own that the library reads from and writes to. That memory is
 * there for as long as the thread is: no address is ever taken of memory that may move or be freed. A call copies what it
 * needs into it, some 200 bytes.
 */
import { randomFillSync } from 'node:crypto'
import { hex, unhex, utf8 } from './bytes.ts'
import { assertSecret, compress, type Ecdsa, isPointShape } from './ecdsa.ts'
import { Malformed } from './errors.ts'
import { type Ffi, type ForeignFunction, type Library, loadFfi, type Signature } from './ffi.ts'
import { sha256Latin1 } from './hash.ts'

/**
 * The versions from 0.2 to 0.7, newest first. What is used of them has been the same since 2015. The first, `.so.0`, is as
 * old as that of the npm package.
 */
const SONAMES = ['libsecp256k1.so.6', 'libsecp256k1.so.5', 'libsecp256k1.so.2', 'libsecp256k1.so.1']

const PREFIX = 'secp256k1_'

/** By their names without the prefix. They give 1 for yes. A `size_t` is as wide as a pointer. */
const SIGNATURES = {
  context_create: { return: 'pointer', arguments: ['u32'] },
  context_randomize: { return: 'i32', arguments: ['pointer', 'pointer'] },
  ec_pubkey_parse: { return: 'i32', arguments: ['pointer', 'pointer', 'pointer', 'pointer'] },
  ec_pubkey_create: { return: 'i32', arguments: ['pointer', 'pointer', 'pointer'] },
  ec_pubkey_serialize: { return: 'i32', arguments: ['pointer', 'pointer', 'pointer', 'pointer', 'u32'] },
  ecdsa_signature_parse_compact: { return: 'i32', arguments: ['pointer', 'pointer', 'pointer'] },
  ecdsa_signature_serialize_compact: { return: 'i32', arguments: ['pointer', 'pointer', 'pointer'] },
  ecdsa_verify: { return: 'i32', arguments: ['pointer', 'pointer', 'pointer', 'pointer'] },
  ecdsa_sign: { return: 'i32', arguments: ['pointer', 'pointer', 'pointer', 'pointer', 'pointer', 'pointer'] },
} as const satisfies Record<string, Signature>

type Functions = Record<keyof typeof SIGNATURES, ForeignFunction>

/** The memory shared with the library: where each thing lies in it. */
const DIGEST = 0
const SECRET = 32
/** r and s. */
const COMPACT = 64
/** A signature and a key as the library has them, 64 bytes each. */
const SIGNATURE = 128
const KEY = 192
/** 33 or 65 bytes. */
const POINT = 256
/** A `size_t`. */
const LENGTH = 328
const SEED = 336
const MEMORY_BYTES = 368

/** `SECP256K1_CONTEXT_NONE` and `SECP256K1_EC_COMPRESSED`. */
const CONTEXT_NONE = 1
const COMPRESSED = 258

const NULL = 0n

/** Referenced for good, so that no library goes away while something of it can still be called. */
const libraries: Library[] = []

function load(ffi: Ffi): Functions | null {
  for (const soname of SONAMES) {
    try {
      const library = new ffi.DynamicLibrary(soname)
      libraries.push(library)
      const signatures = Object.entries(SIGNATURES).map(([name, signature]) => [PREFIX + name, signature])
      const found = library.getFunctions(Object.fromEntries(signatures))
      return Object.fromEntries(Object.keys(SIGNATURES).map(name => [name, found[PREFIX + name]])) as Functions
    } catch {
      // Not there, or for another machine: the next one.
    }
  }
  return null
}

/**
 * The system's driver of K-256, or null where there is no library, Node cannot call it, or it does not do exactly what is
 * expected of it. An operator turns it off with `NODE_OPTIONS=--no-experimental-ffi`.
 *
 * @param ffi replaces Node's, for tests
 */
export function systemK256(ffi: Ffi | null = loadFfi()): Ecdsa | null {
  // Elsewhere a bare name is looked for in the current folder, too.
  if (ffi === null || ffi.suffix !== 'so') return null
  const functions = load(ffi)
  if (functions === null) return null
  try {
    const driver = bind(ffi, functions)
    return driver !== null && isSound(driver) ? driver : null
  } catch {
    return null
  }
}

/** Known signatures by RFC 6979: secret, public key, message, r, s. The last is the larger s of the same signature. */
const KNOWN = [
  [
    '0000000000000000000000000000000000000000000000000000000000000001',
    '0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798',
    'Satoshi Nakamoto',
    '934b1ea10a4b3c1757e2b0c017d0b6143ce3c9a7e6a4a49860d7a6ab210ee3d8',
    '2442ce9d2b916064108014783e923ec36b49743e2ffa1c4496f01a512aafd9e5',
    'dbbd3162d46e9f9bef7feb87c16dc13b4f6568a87f4e83f728e2443ba586675c',
  ],
  [
    'f8b8af8ce3c7cca5e300d33939540c10d45ce001b8f252bfbc57ba0342904181',
    '0292df7b245b81aa637ab4e867c8d511008f79161a97d64f2ac709600352f7acbc',
    'Alan Turing',
    '7063ae83e7f62bbb171798131b4a0564b956930092b33b07b395615d9ec7e15c',
    '58dfcc1e00a35e1572f366ffe34ba0fc47db1e7189759b9fb233c5b05ab388ea',
    'a72033e1ff5ca1ea8d0c99001cb45f0272d3be7525d3049c0d9e98dc7582b857',
  ],
] as const
const ORDER = 'fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141'
const ZERO = '0'.repeat(64)
/** No point has this x. */
const NO_POINT = '020000000000000000000000000000000000000000000000000000000000000005'
/** G, and G with another y. */
const UNCOMPRESSED =
  '0479be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798483ada7726a3c4655da4fbfc0e1108a8fd17b448a68554199c47d08ffb10d4b8'

/** Whether it signs as is known and accepts that in every form of the key, and nothing near it. A millisecond. */
function isSound(driver: Ecdsa): boolean {
  const refuses = (point: string) => {
    try {
      driver.verifier(unhex(point))
      return false
    } catch {
      return true
    }
  }
  const signs = KNOWN.every(([secret, point, text, r, s, highS], i) => {
    const message = utf8(text)
    const signer = driver.signer(unhex(secret))
    if (hex(signer.compressed) !== point || hex(signer.sign(message)) !== r + s) return false
    const verifier = driver.verifier(unhex(point))
    const wrong = [r + highS, s + r, r + ORDER, ORDER + s, r + ZERO, ZERO + s, ZERO + ZERO, KNOWN[1 - i]![3] + s]
    return (
      verifier.verify(message, unhex(r + s)) &&
      !verifier.verify(utf8(`${text}.`), unhex(r + s)) &&
      !wrong.some(signature => verifier.verify(message, unhex(signature)))
    )
  })
  const [, , text, r, s] = KNOWN[0]
  const whole = driver.verifier(unhex(UNCOMPRESSED))
  return (
    signs &&
    whole.verify(utf8(text), unhex(r + s)) &&
    hex(whole.compressed) === KNOWN[0][1] &&
    refuses(NO_POINT) &&
    refuses(`${UNCOMPRESSED.slice(0, -2)}b9`)
  )
}

/** Null when the context cannot be had. */
function bind(ffi: Ffi, secp: Functions): Ecdsa | null {
  const memory = new ArrayBuffer(MEMORY_BYTES)
  const bytes = new Uint8Array(memory)
  const start = ffi.getRawPointer(memory)
  const at = (offset: number) => start + BigInt(offset)
  const [digest, secret, compact, signature] = [at(DIGEST), at(SECRET), at(COMPACT), at(SIGNATURE)]
  const [key, point, length, seed] = [at(KEY), at(POINT), at(LENGTH), at(SEED)]
  // Never destroyed: it is as long-lived as the thread, and 200 bytes.
  const context = secp.context_create(CONTEXT_NONE)
  if (context === NULL) return null
  // Blinds what is computed with secrets against those who measure it, and changes no result.
  randomFillSync(bytes, SEED, 32)
  const blinded = secp.context_randomize(context, seed)
  bytes.fill(0, SEED, SEED + 32)
  if (blinded !== 1) return null
  const putDigest = (message: Uint8Array) => {
    const text = sha256Latin1(message)
    for (let i = 0; i < 32; i++) bytes[DIGEST + i] = text.charCodeAt(i)
  }
  return {
    name: 'system',
    verifier(given) {
      if (!isPointShape(given)) throw new Malformed('not a public key')
      bytes.set(given, POINT)
      const isPoint = secp.ec_pubkey_parse(context, key, point, BigInt(given.length)) === 1
      if (!isPoint) throw new Malformed('public key is not on the curve')
      const own = bytes.slice(KEY, KEY + 64)
      return {
        compressed: given.length === 33 ? new Uint8Array(given) : compress(given),
        verify(message, signed) {
          if (signed.length !== 64) return false
          putDigest(message)
          bytes.set(signed, COMPACT)
          bytes.set(own, KEY)
          // The first refuses what is not below the order, the second a high s.
          return (
            secp.ecdsa_signature_parse_compact(context, signature, compact) === 1 &&
            secp.ecdsa_verify(context, signature, digest, key) === 1
          )
        },
      }
    },
    signer(given) {
      assertSecret(given, 'k256')
      const own = new Uint8Array(given)
      /** Has the library do something with the secret, which is nowhere but in `own` afterwards. */
      const withSecret = (call: () => number | bigint) => {
        bytes.set(own, SECRET)
        try {
          // Not for any input: the secret is in range, and the nonce by RFC 6979 is as good as never out of it.
          if (call() !== 1) throw new Error('libsecp256k1 refused a private key')
        } finally {
          bytes.fill(0, SECRET, SECRET + 32)
        }
      }
      withSecret(() => secp.ec_pubkey_create(context, key, secret))
      new BigUint64Array(memory, LENGTH, 1)[0] = 33n
      secp.ec_pubkey_serialize(context, point, length, key, COMPRESSED)
      return {
        compressed: bytes.slice(POINT, POINT + 33),
        sign(message) {
          putDigest(message)
          withSecret(() => secp.ecdsa_sign(context, signature, digest, secret, NULL, NULL))
          secp.ecdsa_signature_serialize_compact(context, compact, signature)
          return bytes.slice(COMPACT, COMPACT + 64)
        },
      }
    },
  }
}
