/** Request bodies: read whole or as a stream, decompressed, and never larger than allowed. */

import type { IncomingMessage } from 'node:http'
import { pipeline, type Readable, Transform } from 'node:stream'
import { createBrotliDecompress, createGunzip, createInflate } from 'node:zlib'
import { Malformed, Refused } from '@millisky/core/errors'

/** Silence of the sender after which a body is given up. */
export const BODY_IDLE_MS = 60_000
/** Encodings on top of each other in one request; one is what anybody sends. */
const ENCODINGS_MAX = 2

const tooLarge = () => new Refused('PayloadTooLarge', 'request entity too large', 413)

/** Whether the request says that it has a body; one that is sent in chunks may still turn out empty. */
export function hasBody({ headers }: IncomingMessage): boolean {
  if (headers['transfer-encoding'] !== undefined) return true
  return headers['content-length'] !== undefined && headers['content-length'] !== '0'
}

/**
 * The body as a stream of decompressed bytes, which errors with 413 behind `bytesMax` of them.
 *
 * The caller owns the stream and has to consume or destroy it.
 *
 * @throws Refused 413 if the length is announced and too large, 415 for an unknown `Content-Encoding`.
 */
export function bodyStream(request: IncomingMessage, bytesMax: number): Readable {
  const decoders = decodersOf(request)
  const length = request.headers['content-length']
  if (length !== undefined && Number(length) > bytesMax) throw tooLarge()
  let bytes = 0
  const idle = setTimeout(
    () => meter.destroy(new Refused('RequestTimeout', 'request body timed out', 408)),
    BODY_IDLE_MS,
  )
  const meter = new Transform({
    transform(chunk: Uint8Array, _encoding, done) {
      idle.refresh()
      bytes += chunk.length
      if (bytes > bytesMax) done(tooLarge())
      else done(null, chunk)
    },
  })
  // Errors reach whoever reads the meter, which `pipeline` destroys with them.
  pipeline([request, ...decoders, meter], () => clearTimeout(idle))
  return meter
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

function collect(source: Readable, bytesMax: number): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = []
    let bytes = 0
    const stop = (error: Error) => {
      clearTimeout(idle)
      source.removeListener('data', take)
      // What is still under way is read and dropped by the HTTP server, so that the client gets to read the reply.
      source.resume()
      reject(error)
    }
    const idle = setTimeout(stop, BODY_IDLE_MS, new Refused('RequestTimeout', 'request body timed out', 408))
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
    source.once('error', error => stop(error instanceof Refused ? error : new Malformed(unreadable(error))))
    source.once('close', () => {
      if (!source.readableEnded) stop(new Malformed('request body cut short'))
    })
  })
}

function unreadable(error: NodeJS.ErrnoException): string {
  return error.code?.startsWith('Z_') || error.code?.startsWith('ERR_')
    ? 'request body does not decompress'
    : 'request body cut short'
}

function decodersOf(request: IncomingMessage): Transform[] {
  const header = request.headers['content-encoding']
  if (header === undefined) return []
  const names = header
    .split(',')
    .map(name => name.trim().toLowerCase())
    .filter(name => name !== 'identity' && name !== '')
  if (names.length > ENCODINGS_MAX) throw unsupported()
  // They are listed in the order they were applied.
  return names.reverse().map(decoderOf)
}

const unsupported = () => new Refused('UnsupportedMediaType', 'unsupported content-encoding', 415)

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
      throw unsupported()
  }
}
