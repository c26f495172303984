/**
 * What is read off a method's schema: the types its handler sees, and which way its JSON is parsed and written.
 */

import { l } from '@atproto/lex-schema'
import type { Obj } from '@millisky/core/cbor'
import type { Cid } from '@millisky/core/cid'
import type { AtUri, Datetime, Did, Handle, Nsid, Uri } from '@millisky/core/syntax'

export type Method = l.Query | l.Procedure

/** Whether a string type is a pattern such as `did:${string}:${string}`, rather than `string` or a literal. */
type IsPattern<T extends string> = string extends T ? false : Record<never, 1> extends Record<T, 1> ? true : false

/** The brand of core for what the schema has checked. Formats that the schema's types do not tell apart stay `string`. */
type Brand<T extends string> =
  IsPattern<T> extends false
    ? T
    : T extends l.AtUriString
      ? AtUri
      : T extends l.DatetimeString
        ? Datetime
        : T extends l.DidString
          ? Did
          : T extends l.NsidString
            ? Nsid
            : T extends l.HandleString
              ? Handle
              : T extends l.UriString
                ? Uri
                : T

/** Input and parameters in the types of core: branded strings, `Cid`, and `Obj` where the schema says "any object". */
export type Parsed<T> = T extends string
  ? Brand<T>
  : T extends number | boolean | null | undefined | Uint8Array
    ? T
    : T extends l.Cid
      ? Cid
      : T extends readonly (infer E)[]
        ? Parsed<E>[]
        : T extends object
          ? string extends keyof T
            ? Obj
            : { [K in keyof T]: Parsed<T[K]> }
          : T

/** A reply as a handler may write it: any string where a format is asked for (the schema checks it in development). */
export type Written<T> = T extends string
  ? IsPattern<T> extends true
    ? string
    : T
  : T extends number | boolean | null | undefined | Uint8Array
    ? T
    : T extends l.Cid
      ? Cid
      : T extends readonly (infer E)[]
        ? readonly Written<E>[]
        : T extends object
          ? string extends keyof T
            ? object
            : { readonly [K in keyof T]: Written<T[K]> }
          : T

/** Schemas that hold nothing but strings, numbers and booleans need none of the steps for links and bytes. */
const PLAIN = new Set(['string', 'integer', 'boolean', 'literal', 'enum', 'null', 'token', 'never'])

/** Whether values of a schema may hold links, bytes or anything at all, which have a JSON form of their own. */
export function holdsData(schema: unknown, seen: Set<unknown> = new Set()): boolean {
  if (schema === undefined || schema === null || seen.has(schema)) return false
  seen.add(schema)
  if (schema instanceof l.ObjectSchema || schema instanceof l.ParamsSchema) {
    return Object.values(schema.shape).some(inner => holdsData(inner, seen))
  }
  if (schema instanceof l.TypedObjectSchema) return holdsData(schema.schema, seen)
  if (schema instanceof l.ArraySchema || schema instanceof l.OptionalSchema) return holdsData(schema.validator, seen)
  if (schema instanceof l.NullableSchema || schema instanceof l.WithDefaultSchema)
    return holdsData(schema.validator, seen)
  if (schema instanceof l.RefSchema || schema instanceof l.TypedRefSchema) return holdsData(schema.validator, seen)
  // An open union admits objects of any other type too.
  if (schema instanceof l.TypedUnionSchema) {
    return !schema.closed || [...schema.validatorsMap.values()].some(inner => holdsData(inner, seen))
  }
  return !PLAIN.has((schema as { type?: string }).type ?? '')
}

const bytesMarker = (bytes: Uint8Array) => ({
  $bytes: Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('base64').replace(/=+$/, ''),
})

/** Not in every TypeScript library yet: a number with its own digits. */
const { rawJSON } = JSON as unknown as { rawJSON(text: string): unknown }

function replace(this: unknown, key: string, value: unknown): unknown {
  const own = (this as Record<string, unknown>)[key]
  if (own instanceof Uint8Array) return bytesMarker(own)
  return typeof own === 'bigint' ? rawJSON(String(own)) : value
}

/** Whether bytes or integers beyond 2^53 are inside, which the built-in writer does not know. Links write themselves. */
function isSpecial(value: unknown): boolean {
  if (typeof value === 'bigint') return true
  if (typeof value !== 'object' || value === null) return false
  if (value instanceof Uint8Array) return true
  if (Array.isArray(value)) return value.some(isSpecial)
  for (const key in value) if (isSpecial((value as Record<string, unknown>)[key])) return true
  return false
}

/** The JSON of a reply, in which `undefined` members are left out. */
export function replyJson(value: unknown, mayHoldData: boolean): string {
  return JSON.stringify(value, mayHoldData && isSpecial(value) ? replace : undefined)
}
