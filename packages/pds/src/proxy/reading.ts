/** Bodies of other services, read whole and undone of their encoding, within bounds. */
import type { Readable } from 'node:stream'
import { promisify } from 'node:util'
import { brotliDecompress, gunzip, inflate } from 'node:zlib'
import { Unavailable } from '@millisky/core/errors'
import { type JsonObject, type JsonValue, parseJson } from '@millisky/core/json'

const DECODERS = {
  gzip: promisify(gunzip),
  'x-gzip': promisify(gunzip),
  deflate: promisify(inflate),
  br: promisify(brotliDecompress),
} as const

const unreadable = () => new Unavailable('UpstreamFailure', 'Upstream answer cannot be read', 502)

/** All of a stream; it is destroyed when longer. @throws Unavailable; what the stream fails with */
export async function readAll(body: Readable, bytesMax: number): Promise<Buffer> {
  const chunks: Buffer[] = []
  let size = 0
  for await (const chunk of body as AsyncIterable<Buffer>) {
    size += chunk.length
    if (size > bytesMax) throw unreadable()
    chunks.push(chunk)
  }
  return chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks, size)
}

/** @throws Unavailable unless it is a JSON object, in any encoding that is known here */
export async function readObject(bytes: Buffer, encoding: string | undefined, bytesMax: number): Promise<JsonObject> {
  const text = (await decode(bytes, encoding, bytesMax)).toString()
  let value: JsonValue
  try {
    value = parseJson(text)
  } catch {
    throw unreadable()
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw unreadable()
  return value
}

/**
 * Undoes one encoding; a small body that would inflate beyond the bound is given up there.
 *
 * @throws Unavailable for other encodings, several at once, broken data and too much of it
 */
export async function decode(bytes: Buffer, encoding: string | undefined, bytesMax: number): Promise<Buffer> {
  const name = encoding?.trim().toLowerCase() ?? ''
  if (name === '' || name === 'identity') return bytes
  if (!Object.hasOwn(DECODERS, name)) throw unreadable()
  try {
    return await DECODERS[name as keyof typeof DECODERS](bytes, { maxOutputLength: bytesMax })
  } catch {
    throw unreadable()
  }
}
