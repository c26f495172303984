/**
 * Passwords as they are kept: argon2id in PHC text form, by Node's own implementation.
 *
 * App passwords are kept as salted SHA-256, see {@link hashAppPassword}. The reference's scrypt hashes (`salt:hash` in hex) are understood too, for accounts that were imported; such a hash is
 * to be replaced at the next login.
 *
 * Source: OWASP password storage guidance for argon2id (19 MiB, 2 passes, 1 lane); RFC 9106 for the text form.
 */
import { argon2, createHash, scrypt, timingSafeEqual } from 'node:crypto'
import { promisify } from 'node:util'
import { Refused } from '@millisky/core/errors'

const argon2Async = promisify(argon2)
const scryptAsync = promisify(scrypt) as (password: string, salt: string, length: number) => Promise<Buffer>

const MEMORY_KIB = 19_456
const PASSES = 2
const LANES = 1
const SALT_BYTES = 16
const HASH_BYTES = 32
/** What a foreign hash may make us spend. */
const MEMORY_KIB_MAX = 262_144
const PASSES_MAX = 16
const LANES_MAX = 16

/** Longest password that is looked at. Source: pds.md #27. */
const PASSWORD_LENGTH_MAX = 512
/** Longest password that can be set. */
export const NEW_PASSWORD_LENGTH_MAX = 256

/** Refuses what is never looked at, with a word for owners of such passwords of old. @throws Refused 401 */
export function assertPasswordLength(password: string): void {
  if (password.length <= PASSWORD_LENGTH_MAX) return
  throw new Refused('AuthenticationRequired', 'Password too long. Consider resetting your password.', 401)
}

const PHC = /^\$argon2id\$v=19\$m=(\d{1,7}),t=(\d{1,3}),p=(\d{1,3})\$([A-Za-z0-9+/]{11,86})\$([A-Za-z0-9+/]{22,86})$/
const SCRYPT = /^([0-9a-f]{32}):([0-9a-f]{128})$/

const SHA256 = /^sha256:([0-9a-f]{32}):([0-9a-f]{64})$/

function unpadded(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('base64').replace(/=+$/, '')
}

/** The text to keep for a password. @param salt - 16 random bytes */
export async function hashPassword(password: string, salt: Uint8Array): Promise<string> {
  if (salt.length !== SALT_BYTES) throw new Error(`a salt has ${SALT_BYTES} bytes`)
  const hash = await argon2Async('argon2id', {
    message: password,
    nonce: salt,
    memory: MEMORY_KIB,
    passes: PASSES,
    parallelism: LANES,
    tagLength: HASH_BYTES,
  })
  return `$argon2id$v=19$m=${MEMORY_KIB},t=${PASSES},p=${LANES}$${unpadded(salt)}$${unpadded(hash)}`
}

const salted = (password: string, salt: string) => createHash('sha256').update(`${salt}:${password}`).digest()

/**
 * The text to keep for a password that was made here by chance, of 80 bits: nobody can try them all, so a quick hash will
 * do, and looking through an account's app passwords costs nothing. @param salt - 16 random bytes
 */
export function hashAppPassword(password: string, salt: Uint8Array): string {
  const hex = Buffer.from(salt).toString('hex')
  return `sha256:${hex}:${salted(password, hex).toString('hex')}`
}

/** Whether it is the password that was kept. Text that is no hash matches nothing. */
export async function passwordMatches(password: string, kept: string): Promise<boolean> {
  const quick = SHA256.exec(kept)
  if (quick) return timingSafeEqual(salted(password, quick[1]!), Buffer.from(quick[2]!, 'hex'))
  const old = SCRYPT.exec(kept)
  if (old) {
    const expected = Buffer.from(old[2]!, 'hex')
    return timingSafeEqual(await scryptAsync(password, old[1]!, expected.length), expected)
  }
  const match = PHC.exec(kept)
  if (!match) return false
  const [memory, passes, parallelism] = [Number(match[1]), Number(match[2]), Number(match[3])]
  if (memory > MEMORY_KIB_MAX || passes > PASSES_MAX || parallelism > LANES_MAX) return false
  const expected = Buffer.from(match[5]!, 'base64')
  const hash = await argon2Async('argon2id', {
    message: password,
    nonce: Buffer.from(match[4]!, 'base64'),
    memory,
    passes,
    parallelism,
    tagLength: expected.length,
  })
  return timingSafeEqual(hash, expected)
}

/** Whether the text is a hash of any form that can be compared with; see {@link passwordMatches}. */
export function isKnownHash(kept: string): boolean {
  return PHC.test(kept) || SCRYPT.test(kept)
}

/** Whether the hash should be made anew, with the password at hand. */
export function isOutdatedHash(kept: string): boolean {
  return !kept.startsWith(`$argon2id$v=19$m=${MEMORY_KIB},t=${PASSES},p=${LANES}$`)
}
