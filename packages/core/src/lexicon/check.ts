/**
 * Values of the data model against lexicon schemas.
 *
 * The schemas are those of the reference's SDK and take core's values as they are: {@link Cid} for links, `Uint8Array`
 * for bytes. One thing they do not know is an integer beyond 2^53, which JSON text and CBOR may hold and core keeps as
 * `bigint`; such values are checked as numbers and handed back untouched.
 */
import type { l } from '@atproto/lex-schema'
import { Cid } from '../cid.ts'

export type Checked = { readonly value: unknown } | { readonly problem: string; readonly issues: readonly string[] }

/** Checks a value and fills in defaults. What is not changed is shared with the given value. */
export function check(schema: l.Schema<unknown>, value: unknown): Checked {
  if (!fillsIn(schema)) {
    // Nothing is filled in, so looking is enough, which makes no error for an optional member that is absent.
    const result = checkAsIs(schema, value)
    if ('value' in result) return result
  }
  return checkBy(value, given => withoutStacks(() => schema.safeParse(given)))
}

/** Checks a value as it is: defaults are not filled in, since what is stored is what was given. */
export function checkAsIs(schema: l.Schema<unknown>, value: unknown): Checked {
  return checkBy(value, given => withoutStacks(() => schema.safeValidate(given)))
}

function checkBy(value: unknown, run: (given: unknown) => l.ValidationResult<unknown>): Checked {
  const result = run(value)
  if (result.success) return { value: result.value }
  if (!holdsBigint(value)) return refusal(result.reason)
  const rounded = run(round(value))
  return rounded.success ? { value: restore(rounded.value, value) } : refusal(rounded.reason)
}

/**
 * Runs a check with errors that hold no stack. The schemas make an error object for every optional member that is
 * absent, and capturing where costs more than all the rest (42 → 11 µs for a small post).
 */
export function withoutStacks<T>(work: () => T): T {
  const { stackTraceLimit } = Error
  Error.stackTraceLimit = 0
  try {
    return work()
  } finally {
    Error.stackTraceLimit = stackTraceLimit
  }
}

/** Kinds of schemas that have no parts. */
const LEAVES = new Set('string integer boolean bytes cid blob literal enum null token never lexMap lexValue'.split(' '))
const filling = new WeakMap<object, boolean>()

/** Where the kinds of schemas have their parts. */
interface Parts {
  type?: string
  shape?: Record<string, object>
  schema?: object
  validator?: object
}

/** Whether a schema has defaults anywhere; also where its kind is not known here. */
function fillsIn(root: object): boolean {
  const known = filling.get(root)
  if (known !== undefined) return known
  const seen = new Set<object>()
  const search = (schema: object): boolean => {
    if (seen.has(schema)) return false
    seen.add(schema)
    const { type = '', shape, schema: inner, validator } = schema as Parts
    if (LEAVES.has(type)) return false
    if (shape) return Object.values(shape).some(search)
    const part = inner ?? validator
    return type === 'withDefault' || part === undefined || search(part)
  }
  const fills = search(root)
  filling.set(root, fills)
  return fills
}

const refusal = ({ message, issues }: l.LexValidationError): Checked => ({
  problem: message,
  issues: issues.map(String),
})

function isContainer(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !(value instanceof Uint8Array) && !(value instanceof Cid)
}

function holdsBigint(value: unknown): boolean {
  return typeof value === 'bigint' || (isContainer(value) && Object.values(value).some(holdsBigint))
}

/** A copy with numbers for bigints. */
function round(value: unknown): unknown {
  if (typeof value === 'bigint') return Number(value)
  if (Array.isArray(value)) return value.map(round)
  if (!isContainer(value)) return value
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, round(inner)]))
}

/** Puts the bigints of `original` back into its rounded copy, which it changes. */
function restore(copy: unknown, original: unknown): unknown {
  if (typeof original === 'bigint') return original
  if (!isContainer(original) || !isContainer(copy)) return copy
  for (const [key, inner] of Object.entries(original)) copy[key] = restore(copy[key], inner)
  return copy
}
