import pg from 'pg'

/** What PostgreSQL sends as text, as the JavaScript values that SQLite would give. Object ids: PostgreSQL's pg_type. */
const PARSERS = new Map<number, (text: string) => unknown>([
  [17, bytea],
  [20, safeInteger],
  // What sum() of 64-bit integers gives.
  [1700, Number],
  [114, text => text],
  [3802, text => text],
])

function bytea(text: string): Uint8Array {
  const bytes = Buffer.from(text.slice(2), 'hex')
  return new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.length)
}

function safeInteger(text: string): number {
  const value = Number(text)
  if (!Number.isSafeInteger(value)) throw new RangeError(`the integer ${text} is too large to be represented exactly`)
  return value
}

/** The value parsers of a connection. */
export const POSTGRES_TYPES: pg.CustomTypesConfig = {
  getTypeParser: (id, format) => PARSERS.get(id) ?? pg.types.getTypeParser(id, format),
}
