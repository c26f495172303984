/** Parameters of admin routes: of the query or of a JSON body, whichever has it. */
import { Refused } from '@millisky/core/errors'
import { asDid, type Did, isDid } from '@millisky/core/syntax'
import type { FastifyRequest } from 'fastify'

/** The first of these names that is given. @throws {Refused} when none is */
export function given(request: FastifyRequest, ...names: string[]): string {
  const value = optional(request, ...names)
  if (value === null) throw new Refused('InvalidRequest', `must pass ${names[0]}`)
  return value
}

/** The first of these names that is given, or null. */
export function optional(request: FastifyRequest, ...names: string[]): string | null {
  const query = request.query as Record<string, unknown>
  const body = (typeof request.body === 'object' && request.body !== null ? request.body : {}) as Record<
    string,
    unknown
  >
  for (const name of names) {
    const value = body[name] ?? query[name]
    if (typeof value === 'string' && value !== '') return value
    if (typeof value === 'number' || typeof value === 'boolean') return String(value)
  }
  return null
}

/** @throws {Refused} unless it is a decimal integer, zero or greater */
export function integer(text: string): number {
  const value = Number(text)
  if (!/^\d+$/.test(text) || !Number.isSafeInteger(value)) throw new Refused('InvalidRequest', `not a number: ${text}`)
  return value
}

/** As Go's ParseBool, by which scripts were written: `true`, `T` and `1` alike. @throws {Refused} when it is neither */
export function flag(text: string): boolean {
  if (/^(1|t|true)$/i.test(text)) return true
  if (/^(0|f|false)$/i.test(text)) return false
  throw new Refused('InvalidRequest', `neither true nor false: ${text}`)
}

/** @throws {Refused} unless one is given */
export function didOf(request: FastifyRequest): Did {
  const did = given(request, 'did')
  if (!isDid(did)) throw new Refused('InvalidRequest', 'did is not a DID')
  return asDid(did)
}
