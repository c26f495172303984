/**
 * Keys of accounts and services: making and checking signatures, and the text forms `did:key` and Multikey.
 *
 * ```ts
 * const key = SigningKey.fromPrivate('k256', randomBytes(32))
 * const signature = key.sign(message)
 * PublicKey.parseDidKey(key.didKey).verify(message, signature) // true
 * ```
 *
 * Source: atproto.com/specs/cryptography.
 */
import { base58, concat, unbase58 } from './bytes.ts'
import { type Curve, type DriverName, type Ecdsa, nativeK256, nodeEcdsa, type Signer, type Verifier } from './ecdsa.ts'
import { systemK256 } from './ecdsa-system.ts'
import { Malformed } from './errors.ts'
import { MULTIBASE_KEY_LENGTH_MAX } from './limits.ts'

export type { Curve } from './ecdsa.ts'

const ECDSA: Record<Curve, Ecdsa> = {
  k256: systemK256() ?? nativeK256() ?? nodeEcdsa('k256'),
  p256: nodeEcdsa('p256'),
}

/**
 * Which implementation of K-256 this thread has: the `system`'s library where it is installed, else the `native` package's
 * (about 0.7 of the speed), else `node` (a seventh of that). For logs.
 */
export const cryptoDriver: DriverName = ECDSA.k256.name

/** The multicodec of each curve as varint bytes: 0xe7 and 0x1200. */
const MULTICODEC: Record<Curve, Uint8Array> = { k256: Uint8Array.of(0xe7, 0x01), p256: Uint8Array.of(0x80, 0x24) }

function unmultibase(text: string): Uint8Array {
  if (text.length > MULTIBASE_KEY_LENGTH_MAX || text[0] !== 'z') throw new Malformed('not a base58 multibase key')
  return unbase58(text.slice(1))
}

/**
 * A public key, its point decoded once so that every verification after it is as fast as it can be: keep the instance.
 * Holding one costs some hundred bytes.
 */
export class PublicKey {
  readonly curve: Curve
  readonly #verifier: Verifier
  #multibase: string | undefined

  private constructor(curve: Curve, verifier: Verifier) {
    this.curve = curve
    this.#verifier = verifier
  }

  /**
   * @param point 33 bytes compressed or 65 uncompressed; copied.
   * @throws {@link Malformed} when it is not a point of the curve.
   */
  static fromBytes(curve: Curve, point: Uint8Array): PublicKey {
    return new PublicKey(curve, ECDSA[curve].verifier(point))
  }

  /** @throws {@link Malformed} unless it is a `did:key` of one of the two curves. */
  static parseDidKey(text: string): PublicKey {
    if (!text.startsWith('did:key:')) throw new Malformed('not a did:key')
    return PublicKey.parseMultibase(text.slice(8))
  }

  /**
   * Reads a Multikey: `z`, base58 of multicodec and compressed point.
   * @throws {@link Malformed} on any other encoding or curve.
   */
  static parseMultibase(text: string): PublicKey {
    const bytes = unmultibase(text)
    for (const curve of ['k256', 'p256'] as const) {
      const [first, second] = MULTICODEC[curve]
      if (bytes.length !== 35 || bytes[0] !== first || bytes[1] !== second) continue
      const key = PublicKey.fromBytes(curve, bytes.subarray(2))
      key.#multibase = text
      return key
    }
    throw new Malformed('not a K-256 or P-256 key')
  }

  /**
   * Reads the multibase of the verification methods that came before Multikey (`EcdsaSecp256k1VerificationKey2019`,
   * `EcdsaSecp256r1VerificationKey2019`): the point without multicodec, uncompressed by the specification, compressed
   * in some documents.
   * @throws {@link Malformed}
   */
  static parseLegacyMultibase(curve: Curve, text: string): PublicKey {
    return PublicKey.fromBytes(curve, unmultibase(text))
  }

  /** The compressed point, 33 bytes; do not write to it. */
  get bytes(): Uint8Array {
    return this.#verifier.compressed
  }

  /** The Multikey form, `z…`. */
  get multibase(): string {
    return (this.#multibase ??= `z${base58(concat([MULTICODEC[this.curve], this.bytes]))}`)
  }

  /** `did:key:` and the Multikey: the one text form by which keys can be compared. */
  get didKey(): string {
    return `did:key:${this.multibase}`
  }

  /** The name of the signature algorithm in a JWT header. */
  get jwtAlg(): 'ES256K' | 'ES256' {
    return this.curve === 'k256' ? 'ES256K' : 'ES256'
  }

  /**
   * Checks an ECDSA signature over SHA-256 of `message`; hashing is done here.
   * Never throws: DER, high-S and out-of-range signatures are false like any other that does not fit.
   *
   * @param signature r and s, 64 bytes
   */
  verify(message: Uint8Array, signature: Uint8Array): boolean {
    return this.#verifier.verify(message, signature)
  }
}

/** A private key. It does not show in logs or JSON; only {@link SigningKey.privateBytes} gives it away. */
export class SigningKey {
  readonly publicKey: PublicKey
  readonly #signer: Signer
  readonly #secret: Uint8Array

  private constructor(curve: Curve, secret: Uint8Array) {
    // Not slice: that of a Buffer shares its memory.
    this.#secret = new Uint8Array(secret)
    this.#signer = ECDSA[curve].signer(this.#secret)
    this.publicKey = PublicKey.fromBytes(curve, this.#signer.compressed)
  }

  /**
   * @param secret 32 bytes, random ones for a new key; copied.
   * @throws {@link Malformed} when they are not a private key (zero, or not below the order: never by chance).
   */
  static fromPrivate(curve: Curve, secret: Uint8Array): SigningKey {
    return new SigningKey(curve, secret)
  }

  get curve(): Curve {
    return this.publicKey.curve
  }

  get didKey(): string {
    return this.publicKey.didKey
  }

  /** The 32 secret bytes, a copy, for storing them. */
  get privateBytes(): Uint8Array {
    return this.#secret.slice()
  }

  /** Signs SHA-256 of `message`; hashing is done here. Gives 64 bytes, r and s, with a low s. */
  sign(message: Uint8Array): Uint8Array {
    return this.#signer.sign(message)
  }
}
