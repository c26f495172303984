/**
 * Blobs in an S3 bucket, under the keys of the reference: `blocks/<did>/<cid>`, `quarantine/<did>/<cid>`.
 *
 * An upload that fits into one part stays in memory until it is kept and costs one request; a larger one is sent in parts to
 * `tmp/millisky/` while it comes, and copied on the server's side. So an upload holds a part's bytes at most. Uploads in parts
 * that a crash cut off are invisible and cost space. They are ended with what else is stale; where a service does not list them, or
 * may not for us, the bucket needs a rule for those (`AbortIncompleteMultipartUpload`).
 */
import { randomUUID } from 'node:crypto'
import type { Readable } from 'node:stream'
import {
  type AbortMultipartUploadRequest,
  type CompletedPart,
  type ListMultipartUploadsRequest,
  type MultipartUpload,
  type ObjectIdentifier,
  S3,
  type S3ClientConfig,
  S3ServiceException,
} from '@aws-sdk/client-s3'
import { concat } from '@millisky/core/bytes'
import type { Cid } from '@millisky/core/cid'
import { Unavailable } from '@millisky/core/errors'
import type { Did } from '@millisky/core/syntax'
import type { BlobDriver } from '../blobs.ts'

/** The least that S3 takes for a part that is not the last. */
const PART_BYTES = 5 * 1024 * 1024
/** What one request may delete. Source: S3's DeleteObjects. */
const KEYS_AT_ONCE = 1_000
const STAGED_PREFIX = 'tmp/millisky/'
/** An upload in parts may take as long as this before it is held for what a crash has left. */
const UPLOAD_MS_MAX = 24 * 3_600_000
const NOT_IMPLEMENTED = 501
const CONNECT_TIMEOUT_MS = 5_000
/** Downloads last as long as their readers take, so there may be many at a time. */
const SOCKETS_MAX = 512

export interface S3Place {
  bucket: string
  /** Default: what the environment or the machine's role says, as with every tool of AWS. */
  region?: string | undefined
  /** Of a service other than AWS. */
  endpoint?: string | undefined
  /** `endpoint/bucket/key` instead of `bucket.endpoint/key`. */
  forcePathStyle?: boolean | undefined
  /** Default: as with the region. */
  credentials?: { accessKeyId: string; secretAccessKey: string } | undefined
  /** For sending one part. */
  uploadTimeoutMs: number
  /** Until a request is answered; of a download, until it begins. */
  requestTimeoutMs: number
}

/** A driver on a bucket. Nothing is asked of it before the first use. */
export function createS3Blobs(place: S3Place): BlobDriver {
  return new S3Blobs(place)
}

class S3Blobs implements BlobDriver {
  readonly #client: S3
  readonly #bucket: string
  readonly #uploadTimeoutMs: number
  /** Staged uploads of one part. */
  readonly #small = new Map<string, Uint8Array>()

  constructor(place: S3Place) {
    this.#client = new S3(configOf(place))
    this.#bucket = place.bucket
    this.#uploadTimeoutMs = place.uploadTimeoutMs
  }

  async stage(body: AsyncIterable<Uint8Array>): Promise<string> {
    const name = randomUUID()
    const parts = inParts(body)
    const first = (await parts.next()).value ?? new Uint8Array(0)
    const second = await parts.next()
    if (second.done) this.#small.set(name, first)
    else await this.#sendParts(STAGED_PREFIX + name, [first, second.value], parts)
    return name
  }

  async keep(staged: string, did: Did, cid: Cid): Promise<void> {
    const key = keyOf('blocks', did, cid)
    const small = this.#small.get(staged)
    if (small) {
      await asked(this.#client.putObject({ Bucket: this.#bucket, Key: key, Body: small }, this.#timeLimit()))
      this.#small.delete(staged)
      return
    }
    await asked(this.#copy(STAGED_PREFIX + staged, key))
    // It is kept; what is left of its first place is collected in time.
    await this.discard(staged).catch(() => {})
  }

  async discard(staged: string): Promise<void> {
    if (this.#small.delete(staged)) return
    const [name, UploadId] = staged.split(' ')
    if (UploadId !== undefined) return this.#abort({ Bucket: this.#bucket, Key: STAGED_PREFIX + name, UploadId })
    await asked(this.#client.deleteObject({ Bucket: this.#bucket, Key: STAGED_PREFIX + staged }))
  }

  async open(did: Did, cid: Cid, range?: { start: number; end: number }): Promise<Readable | null> {
    try {
      const { Body } = await asked(
        this.#client.getObject({
          Bucket: this.#bucket,
          Key: keyOf('blocks', did, cid),
          ...(range ? { Range: `bytes=${range.start}-${range.end}` } : {}),
        }),
      )
      return (Body as Readable | undefined) ?? null
    } catch (error) {
      if (isAbsent(error)) return null
      throw error
    }
  }

  remove(did: Did, cids: readonly Cid[]): Promise<void> {
    return this.#removeKeys(cids.map(cid => keyOf('blocks', did, cid)))
  }

  async removeAll(did: Did): Promise<void> {
    for (const place of ['blocks', 'quarantine'] as const) {
      for await (const page of this.#list(`${place}/${did}/`)) await this.#removeKeys(page.map(({ Key }) => Key!))
    }
  }

  async stale(cutoff: number): Promise<string[]> {
    const old: string[] = []
    for await (const page of this.#list(STAGED_PREFIX)) {
      for (const { Key, LastModified } of page) {
        if (LastModified!.getTime() < cutoff) old.push(Key!.slice(STAGED_PREFIX.length))
      }
    }
    for await (const { Key, UploadId, Initiated } of this.#uploads()) {
      if (Initiated!.getTime() < cutoff - UPLOAD_MS_MAX) old.push(`${Key!.slice(STAGED_PREFIX.length)} ${UploadId}`)
    }
    return old
  }

  quarantine(did: Did, cid: Cid): Promise<void> {
    return this.#move(keyOf('blocks', did, cid), keyOf('quarantine', did, cid))
  }

  restore(did: Did, cid: Cid): Promise<void> {
    return this.#move(keyOf('quarantine', did, cid), keyOf('blocks', did, cid))
  }

  async #sendParts(key: string, first: Uint8Array[], rest: AsyncIterable<Uint8Array>): Promise<void> {
    const upload = { Bucket: this.#bucket, Key: key }
    const { UploadId } = await asked(this.#client.createMultipartUpload(upload))
    const Parts: CompletedPart[] = []
    const send = async (bytes: Uint8Array) => {
      const PartNumber = Parts.length + 1
      const part = { ...upload, UploadId, PartNumber, Body: bytes }
      const { ETag } = await asked(this.#client.uploadPart(part, this.#timeLimit()))
      Parts.push({ ETag, PartNumber })
    }
    try {
      // Let go of each part once it is sent.
      for (let part = first.shift(); part; part = first.shift()) await send(part)
      for await (const part of rest) await send(part)
      await asked(this.#client.completeMultipartUpload({ ...upload, UploadId, MultipartUpload: { Parts } }))
    } catch (error) {
      // What failed first is what is told; what is left is stale in time.
      await this.#abort({ ...upload, UploadId }).catch(() => {})
      throw error
    }
  }

  async #abort(upload: AbortMultipartUploadRequest): Promise<void> {
    try {
      await asked(this.#client.abortMultipartUpload(upload))
    } catch (error) {
      if (!(error instanceof S3ServiceException && error.name === 'NoSuchUpload')) throw error
    }
  }

  /** Uploads in parts that are under way or were cut off; none where nobody may know. */
  async *#uploads(): AsyncGenerator<MultipartUpload> {
    for (let from: Pick<ListMultipartUploadsRequest, 'KeyMarker' | 'UploadIdMarker'> = {}; ; ) {
      const wanted = { Bucket: this.#bucket, Prefix: STAGED_PREFIX, ...from }
      const page = await asked(this.#client.listMultipartUploads(wanted)).catch(passedOver)
      yield* page?.Uploads ?? []
      if (!page?.IsTruncated) return
      from = { KeyMarker: page.NextKeyMarker, UploadIdMarker: page.NextUploadIdMarker }
    }
  }

  /** @throws S3ServiceException NoSuchKey */
  #copy(from: string, to: string) {
    // The source stands in a header and is decoded there: DIDs may hold percent signs.
    const CopySource = encodeURI(`${this.#bucket}/${from}`)
    return this.#client.copyObject({ Bucket: this.#bucket, CopySource, Key: to })
  }

  async #move(from: string, to: string): Promise<void> {
    try {
      await asked(this.#copy(from, to))
    } catch (error) {
      if (isAbsent(error)) return
      throw error
    }
    await asked(this.#client.deleteObject({ Bucket: this.#bucket, Key: from }))
  }

  async #removeKeys(keys: readonly string[]): Promise<void> {
    for (let i = 0; i < keys.length; i += KEYS_AT_ONCE) {
      const Objects: ObjectIdentifier[] = keys.slice(i, i + KEYS_AT_ONCE).map(Key => ({ Key }))
      const { Errors = [] } = await asked(
        this.#client.deleteObjects({ Bucket: this.#bucket, Delete: { Objects, Quiet: true } }),
      )
      if (Errors.length > 0) throw new Error(`${Errors.length} blobs were not deleted: ${Errors[0]!.Message}`)
    }
  }

  async *#list(prefix: string) {
    for (let from: string | undefined; ; ) {
      const page = await asked(
        this.#client.listObjectsV2({ Bucket: this.#bucket, Prefix: prefix, ContinuationToken: from }),
      )
      if (page.Contents) yield page.Contents
      from = page.NextContinuationToken
      if (from === undefined) return
    }
  }

  #timeLimit() {
    return { abortSignal: AbortSignal.timeout(this.#uploadTimeoutMs) }
  }
}

const keyOf = (place: 'blocks' | 'quarantine', did: Did, cid: Cid) => `${place}/${did}/${cid}`

function configOf({ region, endpoint, forcePathStyle, credentials, requestTimeoutMs }: S3Place): S3ClientConfig {
  const agent = { keepAlive: true, maxSockets: SOCKETS_MAX }
  const given = { region, endpoint, forcePathStyle, credentials }
  return {
    ...(Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined)) as S3ClientConfig),
    // Services that speak S3 do not all know the checksums that the SDK would add; a blob's name is its hash anyway.
    requestChecksumCalculation: 'WHEN_REQUIRED',
    responseChecksumValidation: 'WHEN_REQUIRED',
    requestHandler: {
      connectionTimeout: CONNECT_TIMEOUT_MS,
      requestTimeout: requestTimeoutMs,
      throwOnRequestTimeout: true,
      httpAgent: agent,
      httpsAgent: agent,
    },
  }
}

/** The bytes in parts of {@link PART_BYTES}, the last one smaller; nothing if there are none. */
async function* inParts(body: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array, undefined> {
  let gathered: Uint8Array[] = []
  let bytes = 0
  for await (const chunk of body) {
    for (let rest = chunk; rest.length > 0; ) {
      const fitting = rest.subarray(0, PART_BYTES - bytes)
      gathered.push(fitting)
      bytes += fitting.length
      rest = rest.subarray(fitting.length)
      if (bytes < PART_BYTES) continue
      yield concat(gathered)
      gathered = []
      bytes = 0
    }
  }
  if (bytes > 0) yield concat(gathered)
}

const isAbsent = (error: unknown) =>
  error instanceof S3ServiceException && (error.name === 'NoSuchKey' || error.name === 'NotFound')

/** What a service cannot do, or not for us. @throws whatever else went wrong */
function passedOver(error: unknown): null {
  const status = error instanceof S3ServiceException ? error.$metadata.httpStatusCode : undefined
  if (status === 403 || status === 405 || status === NOT_IMPLEMENTED) return null
  throw error
}

/** Names what is not our doing. @throws Unavailable, S3ServiceException if we asked wrongly or may not */
async function asked<T>(request: Promise<T>): Promise<T> {
  try {
    return await request
  } catch (error) {
    const { name } = error as Error
    if (name === 'TimeoutError' || name === 'AbortError') throw unavailable('UpstreamTimeout', 'timed out', 504, error)
    const status = (error as { $metadata?: { httpStatusCode?: number } }).$metadata?.httpStatusCode
    const isNetwork = typeof (error as { code?: unknown }).code === 'string'
    if (isNetwork || (status !== undefined && status >= 500 && status !== NOT_IMPLEMENTED)) {
      throw unavailable('UpstreamFailure', 'failed', 502, error)
    }
    throw error
  }
}

function unavailable(error: string, what: string, status: 502 | 504, cause: unknown): Unavailable {
  const unavailable = new Unavailable(error, `Blob storage ${what}`, status)
  unavailable.cause = cause
  return unavailable
}
