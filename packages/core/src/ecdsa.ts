/**
 * ECDSA over SHA-256 on the protocol's two curves, by drivers of one contract: libsecp256k1 as a native module (K-256
 * only, seven times as fast) and `node:crypto` (both curves, everywhere Node runs). A third, for K-256 by the system's own
 * libsecp256k1, is in `ecdsa-system.ts`.
 *
 * Signatures are 64 raw bytes, r then s, and s is never in the upper half of the curve's order: such ones are made and
 * only such ones verify. Keys and their text forms are in `crypto.ts`, which is what other modules use.
 *
 * Source: atproto.com/specs/cryptography.
 */
import { createECDH, createPrivateKey, createPublicKey, type KeyObject, sign, verify } from 'node:crypto'
import { createRequire } from 'node:module'
import { concat, hex, unhex } from './bytes.ts'
import { Malformed } from './errors.ts'
import { sha256 } from './hash.ts'

/** `k256` is secp256k1 (ES256K), `p256` is secp256r1 (ES256). */
export type Curve = 'k256' | 'p256'

/** A public key made ready. `verify` never throws: a signature of any wrong shape is just not valid. */
export interface Verifier {
  /** The point, 33 bytes. */
  readonly compressed: Uint8Array
  verify(message: Uint8Array, signature: Uint8Array): boolean
}

/** A private key made ready. */
export interface Signer {
  readonly compressed: Uint8Array
  /** 64 bytes. K-256 by libsecp256k1 is deterministic (RFC 6979); OpenSSL mixes in its own randomness. */
  sign(message: Uint8Array): Uint8Array
}

/** `system` and `native` are libsecp256k1, the system's and the npm package's; `node` is OpenSSL. */
export type DriverName = 'system' | 'native' | 'node'

/** One implementation of one curve. */
export interface Ecdsa {
  readonly name: DriverName
  /** @param point 33 (compressed) or 65 bytes (uncompressed). @throws {@link Malformed} when it is not on the curve. */
  verifier(point: Uint8Array): Verifier
  /** @param secret 32 bytes. @throws {@link Malformed} when it is zero or not below the order. */
  signer(secret: Uint8Array): Signer
}

interface CurveFacts {
  opensslName: string
  order: bigint
  /** floor(order / 2), the largest permitted s, big-endian. */
  halfOrder: Uint8Array
  /** The DER of a SubjectPublicKeyInfo up to the point, for a point of 33 and of 65 bytes. */
  spki33: Uint8Array
  spki65: Uint8Array
  /** The DER of a PKCS #8 key up to the secret, and between it and the uncompressed point. */
  pkcs8: Uint8Array
}

const PKCS8_POINT = unhex('a144034200')

const CURVES: Record<Curve, CurveFacts> = {
  k256: {
    opensslName: 'secp256k1',
    order: 0xffffffff_ffffffff_ffffffff_fffffffe_baaedce6_af48a03b_bfd25e8c_d0364141n,
    halfOrder: unhex('7fffffffffffffffffffffffffffffff5d576e7357a4501ddfe92f46681b20a0'),
    spki33: unhex('3036301006072a8648ce3d020106052b8104000a032200'),
    spki65: unhex('3056301006072a8648ce3d020106052b8104000a034200'),
    pkcs8: unhex('308184020100301006072a8648ce3d020106052b8104000a046d306b0201010420'),
  },
  p256: {
    opensslName: 'prime256v1',
    order: 0xffffffff_00000000_ffffffff_ffffffff_bce6faad_a7179e84_f3b9cac2_fc632551n,
    halfOrder: unhex('7fffffff800000007fffffffffffffffde737d56d38bcf4279dce5617e3192a8'),
    spki33: unhex('3039301306072a8648ce3d020106082a8648ce3d030107032200'),
    spki65: unhex('3059301306072a8648ce3d020106082a8648ce3d030107034200'),
    pkcs8: unhex('308187020100301306072a8648ce3d020106082a8648ce3d030107046d306b0201010420'),
  },
}

/** Whether it has the length and the first byte of a point, compressed or not. */
export function isPointShape(point: Uint8Array): boolean {
  return point.length === 33 ? point[0] === 2 || point[0] === 3 : point.length === 65 && point[0] === 4
}

/** Whether s, the second half of `signature`, is at most `halfOrder`. */
function isLowS(signature: Uint8Array, halfOrder: Uint8Array): boolean {
  for (let i = 0; i < 32; i++) {
    const difference = signature[32 + i]! - halfOrder[i]!
    if (difference !== 0) return difference < 0
  }
  return true
}

function toLowS(signature: Uint8Array, { order, halfOrder }: CurveFacts): Uint8Array {
  if (!isLowS(signature, halfOrder)) {
    const s = order - BigInt(`0x${hex(signature.subarray(32))}`)
    signature.set(unhex(s.toString(16).padStart(64, '0')), 32)
  }
  return signature
}

/** Makes sure of what every driver asks of a private key, and with one message for all. @throws {@link Malformed} */
export function assertSecret(secret: Uint8Array, curve: Curve): void {
  if (secret.length !== 32) throw new Malformed('a private key has 32 bytes')
  const scalar = BigInt(`0x${hex(secret)}`)
  if (scalar === 0n || scalar >= CURVES[curve].order) throw new Malformed('private key out of range')
}

/** The 33 bytes of a point that has 65. */
export function compress(uncompressed: Uint8Array): Uint8Array {
  const point = new Uint8Array(uncompressed.subarray(0, 33))
  point[0] = 2 + (uncompressed[64]! & 1)
  return point
}

/** The `node:crypto` driver. */
export function nodeEcdsa(curve: Curve): Ecdsa {
  const facts = CURVES[curve]
  return {
    name: 'node',
    verifier(point) {
      if (!isPointShape(point)) throw new Malformed('not a public key')
      let key: KeyObject
      try {
        const prefix = point.length === 33 ? facts.spki33 : facts.spki65
        key = createPublicKey({ key: concat([prefix, point]) as Buffer, format: 'der', type: 'spki' })
      } catch {
        throw new Malformed('public key is not on the curve')
      }
      const options = { key, dsaEncoding: 'ieee-p1363' } as const
      return {
        compressed: point.length === 33 ? new Uint8Array(point) : compress(point),
        verify(message, signature) {
          if (signature.length !== 64 || !isLowS(signature, facts.halfOrder)) return false
          try {
            return verify('sha256', message, options, signature)
          } catch {
            return false
          }
        },
      }
    },
    signer(secret) {
      assertSecret(secret, curve)
      const ecdh = createECDH(facts.opensslName)
      ecdh.setPrivateKey(secret)
      const point = new Uint8Array(ecdh.getPublicKey())
      const der = concat([facts.pkcs8, secret, PKCS8_POINT, point])
      const key = createPrivateKey({ key: der as Buffer, format: 'der', type: 'pkcs8' })
      const options = { key, dsaEncoding: 'ieee-p1363' } as const
      return {
        compressed: compress(point),
        sign: message => toLowS(new Uint8Array(sign('sha256', message, options)), facts),
      }
    },
  }
}

/** What is used of the `secp256k1` package, version 5. */
interface Secp256k1 {
  publicKeyConvert(point: Uint8Array, compressed: boolean): Uint8Array
  publicKeyCreate(secret: Uint8Array): Uint8Array
  /** Refuses a high s. Throws when r or s is not below the order. */
  ecdsaVerify(signature: Uint8Array, digest: Uint8Array, point: Uint8Array): boolean
  /** Always gives a low s. */
  ecdsaSign(digest: Uint8Array, secret: Uint8Array): { signature: Uint8Array }
}

/**
 * The native driver of K-256, or null where the package has no binary for this machine.
 * It is loaded by its `bindings.js`: the main entry would fall back to JavaScript in silence, 26 times slower in a relay.
 *
 * @param load replaces `require`, for tests
 */
export function nativeK256(load: (name: string) => unknown = createRequire(import.meta.url)): Ecdsa | null {
  let secp: Secp256k1
  try {
    secp = load('secp256k1/bindings.js') as Secp256k1
  } catch {
    return null
  }
  return {
    name: 'native',
    verifier(point) {
      if (!isPointShape(point)) throw new Malformed('not a public key')
      let uncompressed: Uint8Array
      try {
        uncompressed = secp.publicKeyConvert(point, false)
      } catch {
        throw new Malformed('public key is not on the curve')
      }
      return {
        compressed: compress(uncompressed),
        verify(message, signature) {
          if (signature.length !== 64) return false
          try {
            return secp.ecdsaVerify(signature, sha256(message), uncompressed)
          } catch {
            return false
          }
        },
      }
    },
    signer(secret) {
      assertSecret(secret, 'k256')
      const own = new Uint8Array(secret)
      return {
        compressed: secp.publicKeyCreate(own),
        sign: message => secp.ecdsaSign(sha256(message), own).signature,
      }
    },
  }
}
