/** Who is an administrator: passwords as Bearer or Basic, compared in constant time. */
import { timingSafeEqual } from 'node:crypto'
import { utf8 } from '@millisky/core/bytes'
import { Refused } from '@millisky/core/errors'
import { sha256 } from '@millisky/core/hash'
import type { FastifyRequest } from 'fastify'
import type { Asked } from '../administration.ts'
import { isFromRelay } from '../siblings.ts'

/** Tells whether a request carries one of the passwords, as Bearer or as Basic of the user `admin`. */
export function adminCheck(passwords: readonly string[]): (request: FastifyRequest) => boolean {
  // Hashes are of equal length, and comparing all of them takes as long whichever fits.
  const digests = passwords.map(password => sha256(utf8(password)))
  return request => {
    const [scheme = '', value = ''] = (request.headers.authorization ?? '').split(' ', 2)
    let given = ''
    if (/^bearer$/i.test(scheme)) given = value
    else if (/^basic$/i.test(scheme)) {
      const [, user, password] = /^([^:]*):([\s\S]*)$/.exec(Buffer.from(value, 'base64').toString()) ?? []
      if (user !== 'admin' || password === undefined) return false
      given = password
    } else return false
    const digest = sha256(Buffer.from(given))
    return digests.filter(known => timingSafeEqual(known, digest)).length > 0
  }
}

/** Lets administrators pass, and says how they ask. @throws {Refused} 401, or 403 where no password is set */
export function adminGuard(passwords: readonly string[]): (request: FastifyRequest) => Asked {
  const isAdmin = adminCheck(passwords)
  return request => {
    if (passwords.length === 0) throw new Refused('Forbidden', 'No admin password is set', 403)
    if (isAdmin(request)) return askedBy(request)
    const headers = { 'www-authenticate': 'Basic realm="admin", charset="UTF-8"' }
    throw new Refused('AuthenticationRequired', 'Invalid admin credentials', 401, headers)
  }
}

export const askedBy = ({ headers }: FastifyRequest): Asked => ({ bySibling: isFromRelay(headers) })
