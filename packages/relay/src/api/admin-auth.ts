/** Who is an administrator: passwords as Bearer or Basic, compared in constant time; who guesses has to wait. */
import { timingSafeEqual } from 'node:crypto'
import { utf8 } from '@millisky/core/bytes'
import { Refused } from '@millisky/core/errors'
import { sha256 } from '@millisky/core/hash'
import { Guesses } from '@millisky/server/guesses'
import type { FastifyRequest } from 'fastify'
import type { Asked } from '../administration.ts'
import { isFromRelay } from '../siblings.ts'

/** Requests that bore a right password. */
const proven = new WeakSet<FastifyRequest>()

export const isAdministrator = (request: FastifyRequest): boolean => proven.has(request)

/** The password that a request carries, as Bearer or as Basic of the user `admin`; null without one. */
function passwordOf({ headers }: FastifyRequest): string | null {
  const [, scheme = '', value = ''] = /^(\S+) +(.*)$/.exec(headers.authorization ?? '') ?? []
  if (/^bearer$/i.test(scheme)) return value
  if (!/^basic$/i.test(scheme)) return null
  const [, user, password = null] = /^([^:]*):([\s\S]*)$/.exec(Buffer.from(value, 'base64').toString()) ?? []
  return user === 'admin' ? password : null
}

/**
 * Lets administrators pass, and says how they ask.
 * @throws {Refused} 401, 403 where no password is set, 429 where too many wrong ones came from
 */
export function adminGuard(passwords: readonly string[], now: () => number): (request: FastifyRequest) => Asked {
  // Hashes are of equal length, and comparing all of them takes as long whichever fits.
  const digests = passwords.map(password => sha256(utf8(password)))
  const isRight = (digest: Uint8Array) => digests.filter(known => timingSafeEqual(known, digest)).length > 0
  const guesses = new Guesses({ now })
  return request => {
    if (passwords.length === 0) throw new Refused('Forbidden', 'No admin password is set', 403)
    const password = passwordOf(request)
    if (password !== null && guesses.check(request, sha256(utf8(password)), isRight)) {
      proven.add(request)
      return askedBy(request)
    }
    const headers = { 'www-authenticate': 'Basic realm="admin", charset="UTF-8"' }
    throw new Refused('AuthenticationRequired', 'Invalid admin credentials', 401, headers)
  }
}

export const askedBy = ({ headers }: FastifyRequest): Asked => ({ bySibling: isFromRelay(headers) })
