/** Query strings of XRPC calls, read as the reference reads them. */

import { l } from '@atproto/lex-schema'
import { Refused } from '@millisky/core/errors'
import { withoutStacks } from '@millisky/core/lexicon/check'
import type { Method } from './schema.ts'

/** `foo[]=bar` and `foo[0]=bar`, as some clients write lists. */
const LIST_KEY = /^([^[]*)\[\d*\]$/

/** Names that every object has would be taken for values that were given before. No lexicon has a parameter of such a name. */
const isInherited = (name: string) => name in Object.prototype

/** The part of a URL behind its first question mark, without it. */
export function queryOf(url: string): string {
  const mark = url.indexOf('?')
  return mark < 0 ? '' : url.slice(mark + 1)
}

/**
 * Makes the reader of one method's parameters: text → checked values with defaults filled in.
 *
 * Empty values count as absent, a repeated key is a list, keys that the schema does not name are kept as strings.
 */
export function paramsReader(schema: Method): (query: string) => unknown {
  const { nsid, parameters } = schema
  const read = (entries: [string, string][]): unknown => {
    try {
      return withoutStacks(() => parameters.fromURLSearchParams(entries))
    } catch (error) {
      if (!(error instanceof l.LexValidationError)) throw error
      throw new Refused('InvalidRequest', `Invalid ${nsid} params: ${error.issues.map(String).join(', ')}`)
    }
  }
  // A call without parameters is common and always gives the same.
  let absent: unknown
  return query => {
    if (query === '') return (absent ??= Object.freeze(read([])))
    const given = new URLSearchParams(query)
    if (given.has('__proto__')) throw new Refused('InvalidQueryParameter', 'Invalid query parameter: __proto__')
    const hasLists = query.includes(']') || query.includes('%5D') || query.includes('%5d')
    const entries = hasLists ? withLists(given) : [...given]
    return read(entries.some(([name]) => isInherited(name)) ? entries.filter(([name]) => !isInherited(name)) : entries)
  }
}

function withLists(given: URLSearchParams): [string, string][] {
  const entries = [...given].map(([key, value]): [string, string] => [LIST_KEY.exec(key)?.[1] ?? key, value])
  if (entries.some(([key]) => key === '__proto__')) {
    throw new Refused('InvalidQueryParameter', 'Invalid query parameter: __proto__')
  }
  return entries
}
