import type { Compilable, CompiledQuery, QueryExecutorProvider, RawBuilder } from 'kysely'

/** Something Kysely can compile: a query builder or an `sql` template. */
export type Query<R> = Compilable<R> | RawBuilder<R>

/** Stands for a parameter while a prepared query is built; it has no value yet, so using it as one is an error. */
class Slot {
  readonly at: number

  constructor(at: number) {
    this.at = at
  }

  [Symbol.toPrimitive](): never {
    throw new Error('a parameter of a prepared statement has no value while the statement is built')
  }

  toJSON(): never {
    return this[Symbol.toPrimitive]()
  }
}

/** A query compiled once. Belongs to the database that prepared it; run it through that database or a transaction of it. */
export class Statement<P extends readonly unknown[], R> {
  readonly sql: string
  /** False for a plain select, which may be answered from a snapshot. */
  readonly writes: boolean
  readonly #values: readonly unknown[]
  readonly #plain: boolean
  /** Only for the type checker. */
  declare readonly shape: (params: P) => R

  constructor(compiled: CompiledQuery<R>) {
    this.sql = compiled.sql
    this.writes = isWrite(compiled)
    this.#values = compiled.parameters
    this.#plain = compiled.parameters.every((value, i) => value instanceof Slot && value.at === i)
  }

  /** The driver's parameters in order of the SQL's placeholders. @throws TypeError for undefined and booleans. */
  bind(params: P): readonly unknown[] {
    if (this.#plain) return checkValues(params)
    return checkValues(this.#values.map(value => (value instanceof Slot ? params[value.at] : value)))
  }
}

/** Refuses what the two databases understand differently. */
export function checkValues(values: readonly unknown[]): readonly unknown[] {
  for (const value of values) {
    if (value === undefined || typeof value === 'boolean') throw new TypeError(`${value} cannot be a parameter`)
  }
  return values
}

/**
 * Compiles a query or a function that builds one from its parameters.
 *
 * The function is called once, with stand-ins: each may be used as a value anywhere in the query, also several times, but not computed with.
 * @throws Error when the function has default or rest parameters: they cannot be counted.
 */
export function compileStatement<P extends readonly unknown[], R>(
  kysely: QueryExecutorProvider,
  query: Query<R> | ((...params: P) => Query<R>),
): CompiledQuery<R> {
  if (typeof query !== 'function') return query.compile(kysely)
  const slots = Array.from({ length: query.length }, (_, at) => new Slot(at))
  const compiled = query(...(slots as unknown as P)).compile(kysely)
  const used = new Set(compiled.parameters.map(value => (value instanceof Slot ? value.at : -1)))
  const unused = slots.find(slot => !used.has(slot.at))
  if (unused) throw new Error(`parameter ${unused.at + 1} is not used by the statement: ${compiled.sql}`)
  return compiled
}

/** Whether a query may change data; raw SQL counts as a change unless it begins with `select`. */
export function isWrite(compiled: CompiledQuery): boolean {
  if (compiled.query.kind === 'SelectQueryNode') return false
  return !(compiled.query.kind === 'RawNode' && /^\s*select\b/i.test(compiled.sql))
}
