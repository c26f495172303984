/**
 * Records against the lexicons that are part of the project.
 *
 * Loads the schemas of all record types when it is first imported (about 50 small files), so only what checks records
 * imports it.
 *
 * Source: protocol.md §11.2, pds.md #67, #69.
 */

import type { l } from '@atproto/lex-schema'
import type { Obj } from '../cbor.ts'
import { Refused } from '../errors.ts'
import { checkAsIs } from './check.ts'
import { records } from './gen/records.ts'

/** The schema of a record type, if its lexicon is part of the project. */
export function recordSchema(nsid: string): l.RecordSchema | undefined {
  return records.get(nsid)
}

/**
 * Checks a record and its key against a schema.
 *
 * @param record - Its `$type` is the schema's, or it is refused.
 * @throws Refused `InvalidRequest` that says what is wrong and where.
 */
export function checkRecord(schema: l.RecordSchema, record: Obj, rkey: string): void {
  const { $type: type } = schema
  const result = checkAsIs(schema, record)
  if ('problem' in result) throw new Refused('InvalidRequest', `Invalid ${type} record: ${result.problem}`)
  if (!schema.keySchema.matches(rkey)) {
    throw new Refused('InvalidRequest', `Invalid record key for ${type}: ${JSON.stringify(rkey)}`)
  }
}
