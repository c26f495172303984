/** Request bodies: read whole or as a stream, decompressed, and never larger than allowed. */

import { IncomingMessage } from 'node:http'
import { type Readable, Transform } from 'node:stream'
import { createBrotliDecompress, createGunzip, createInflate } from 'node:zlib'
import { fromUtf8 } from '@millisky/core/bytes'
import { Malformed, Refused } from '@millisky/core/errors'

/** Silence of the sender after which a body is given up. */
export const BODY_IDLE_MS = 60_000
/** Encodings on top of each other in one request; one is what anybody sends. */
const ENCODINGS_MAX = 2

/** How long an unwanted body is still read. */
const LINGER_MS = 10_000

const CUT_SHORT = 'request body cut short'
const timedOut = () => new Refused('RequestTimeout', 'request body timed out', 408)
const tooLarge = () => new Refused('PayloadTooLarge', 'request entity too large', 413)

/** Whether the request says that it has a body; one that is sent in chunks may still turn out empty. */
export function hasBody({ headers }: IncomingMessage): boolean {
  if (headers['transfer-encoding'] !== undefined) return true
  return headers['content-length'] !== undefined && headers['content-length'] !== '0'
}

/**
 * The body as a stream of decompressed bytes, which errors with 413 behind `bytesMax` of them.
 *
 * The caller owns the stream and has to consume or destroy it. What it leaves unread is read and dropped, so that the
 * client gets to read the reply.
 *
 * @param options.asIs - Nothing is decompressed: for passing the body on with its `Content-Encoding`.
 * @throws Refused 413 if the length is announced and too large, 415 for an unknown `Content-Encoding`.
 */
export function bodyStream(request: IncomingMessage, bytesMax: number, { asIs = false } = {}): Readable {
  const decoders = asIs ? [] : decodersOf(request)
  const length = request.headers['content-length']
  if (length !== undefined && Number(length) > bytesMax) throw tooLarge()
  let bytes = 0
  const meter = new Transform({
    transform(chunk: Uint8Array, _encoding, done) {
      idle.refresh()
      bytes += chunk.length
      if (bytes > bytesMax) done(tooLarge())
      else done(null, chunk)
    },
  })
  const idle = setTimeout(() => meter.destroy(timedOut()), BODY_IDLE_MS)
  // `pipeline` would destroy the request when anything behind it fails, and the connection with it.
  const stages = [...decoders, meter]
  stages.reduce<Readable>((from, to) => from.pipe(to), request)
  // Who begins to read later finds the error then; until that nobody listens, and Node would end the process.
  meter.on('error', () => {})
  const fail = (error: NodeJS.ErrnoException) => meter.destroy(new Malformed(unreadable(error)))
  for (const decoder of decoders) decoder.on('error', fail)
  const onClose = () => {
    if (!request.readableEnded) meter.destroy(new Malformed(CUT_SHORT))
  }
  request.on('error', fail)
  request.on('close', onClose)
  meter.once('close', () => {
    clearTimeout(idle)
    request.removeListener('close', onClose)
    for (const decoder of decoders) decoder.destroy()
    if (!request.readableEnded) drop(request)
  })
  return meter
}

/** Reads what is still under way and forgets it, for a while: a client that is cut off does not see the reply. */
function drop(request: IncomingMessage): void {
  request.unpipe()
  request.resume()
  const timer = setTimeout(() => {
    if (!request.complete) request.destroy()
  }, LINGER_MS)
  timer.unref()
  request.once('end', () => clearTimeout(timer))
}

/**
 * The whole body, decompressed.
 *
 * @throws Refused 413 if larger than `bytesMax`, 415 for an unknown `Content-Encoding`, 408 if the sender falls silent;
 *   Malformed if it does not decompress or is cut short.
 */
export function readBody(request: IncomingMessage, bytesMax: number): Promise<Buffer> {
  const encoded = request.headers['content-encoding'] !== undefined
  if (Number(request.headers['content-length'] ?? 0) > bytesMax) {
    if (encoded) decodersOf(request)
    throw tooLarge()
  }
  return collect(encoded ? bodyStream(request, bytesMax) : request, bytesMax)
}

/** UTF-8, and what is a part of it. */
const CHARSETS = ['utf-8', 'utf8', 'us-ascii', 'ascii']
const CHARSET = /;\s*charset\s*=\s*"?([^\s";]+)/i

/** The whole body as text, without the mark of its byte order. @throws what `readBody` does; Refused 415 for another charset than UTF-8 */
export async function readText(request: IncomingMessage, bytesMax: number): Promise<string> {
  const charset = CHARSET.exec(request.headers['content-type'] ?? '')?.[1]
  if (charset !== undefined && !CHARSETS.includes(charset.toLowerCase())) {
    throw new Refused('UnsupportedMediaType', `unsupported charset "${charset.slice(0, 100).toUpperCase()}"`, 415)
  }
  const text = fromUtf8(await readBody(request, bytesMax))
  return text.startsWith('\ufeff') ? text.slice(1) : text
}

function collect(source: Readable, bytesMax: number): Promise<Buffer> {
  // A small body mostly comes along with the head: then there is nothing to wait for.
  if (source instanceof IncomingMessage && source.complete && !source.destroyed) {
    const body: Buffer = source.read() ?? Buffer.alloc(0)
    return body.length > bytesMax ? Promise.reject(tooLarge()) : Promise.resolve(body)
  }
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = []
    let bytes = 0
    const stop = (error: Error) => {
      clearTimeout(idle)
      source.removeListener('data', take)
      if (source instanceof IncomingMessage) drop(source)
      else source.destroy()
      reject(error)
    }
    const idle = setTimeout(() => stop(timedOut()), BODY_IDLE_MS)
    const take = (chunk: Buffer) => {
      idle.refresh()
      bytes += chunk.length
      if (bytes > bytesMax) stop(tooLarge())
      else chunks.push(chunk)
    }
    source.on('data', take)
    source.once('end', () => {
      clearTimeout(idle)
      resolve(chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks, bytes))
    })
    source.once('error', error =>
      stop(error instanceof Refused || error instanceof Malformed ? error : new Malformed(unreadable(error))),
    )
    source.once('close', () => {
      if (!source.readableEnded) stop(new Malformed(CUT_SHORT))
    })
  })
}

function unreadable(error: NodeJS.ErrnoException): string {
  return error.code?.startsWith('Z_') || error.code?.startsWith('ERR_') ? 'request body does not decompress' : CUT_SHORT
}

function decodersOf(request: IncomingMessage): Transform[] {
  const header = request.headers['content-encoding']
  if (header === undefined) return []
  const names = header
    .split(',')
    .map(name => name.trim().toLowerCase())
    .filter(name => name !== 'identity' && name !== '')
  if (names.length > ENCODINGS_MAX) throw unsupported(header)
  // They are listed in the order they were applied.
  return names.reverse().map(decoderOf)
}

const unsupported = (encoding: string) =>
  new Refused('UnsupportedMediaType', `unsupported content encoding "${encoding.slice(0, 100)}"`, 415)

function decoderOf(name: string): Transform {
  switch (name) {
    case 'gzip':
    case 'x-gzip':
      return createGunzip()
    case 'deflate':
      return createInflate()
    case 'br':
      return createBrotliDecompress()
    default:
      throw unsupported(name)
  }
}
