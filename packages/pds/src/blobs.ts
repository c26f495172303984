/**
 * Blobs: bytes that records refer to, kept beside the database.
 *
 * A blob belongs to one account. Its life: uploaded (private, collected after a grace if nothing refers to it) → referred
 * to by a record (public) → loose again when the last such record goes. What is known about it is the store's; here are
 * the bytes, behind a driver with a handful of operations.
 */
import { createHash } from 'node:crypto'
import type { Readable } from 'node:stream'
import { Cid, CODEC_RAW } from '@millisky/core/cid'
import { Refused } from '@millisky/core/errors'
import type { Did } from '@millisky/core/syntax'
import type { Lanes } from '@millisky/server/lanes'
import type { RawInput } from '@millisky/server/xrpc'
import { fileTypeFromBuffer } from 'file-type'
import { assertWritable } from './repos.ts'
import { type Account, type AccountId, type Store, type StoredBlob, statusOf } from './store/store.ts'

/** Bytes at the start that tell a file's type. Source: file-type's own sample size. */
const SAMPLE_BYTES = 4_100
/** The protocol's firm minimum before an unreferenced blob may go. Source: blob spec. */
export const BLOB_GRACE_MS_MIN = 3_600_000
const COLLECT_AT_ONCE = 500

/** Part of a blob: both ends included. */
export interface ByteRange {
  start: number
  end: number
}

/** Where blobs' bytes lie. Operations of one account's blobs do not overlap, see `Lanes`. */
export interface BlobDriver {
  /** Takes bytes into a private place under a name of its own, durably. The chunks are its own to free. Cleans up if `body` fails. */
  stage(body: AsyncIterable<Uint8Array>): Promise<string>
  /** Makes staged bytes a blob of the account, durably. They are no longer staged then. */
  keep(staged: string, did: Did, cid: Cid): Promise<void>
  /** Lets staged bytes go. Nothing happens if they are not there. */
  discard(staged: string): Promise<void>
  /** Null if it is not there. The caller consumes or destroys the stream. */
  open(did: Did, cid: Cid, range?: ByteRange): Promise<Readable | null>
  /** Nothing happens to those that are not there. */
  remove(did: Did, cids: readonly Cid[]): Promise<void>
  /** All blobs of an account, those in quarantine too. */
  removeAll(did: Did): Promise<void>
  /** Puts a blob where {@link open} does not find it. Nothing happens if it is not there. */
  quarantine(did: Did, cid: Cid): Promise<void>
  /** Puts it back. Nothing happens if it is not in quarantine. */
  restore(did: Did, cid: Cid): Promise<void>
  /** Staged before `cutoff` (milliseconds since 1970) and never kept: left by a crash. */
  stale(cutoff: number): Promise<string[]>
}

export interface BlobsParts {
  driver: BlobDriver
  store: Store
  lanes: Lanes
  now: () => number
  /** Largest upload. */
  bytesMax: number
  /** How long a blob that nothing refers to is kept; at least an hour. */
  graceMs: number
  /** What the blobs of one account may come to, loose ones and those taken down too. Default: unlimited. */
  accountBytesMax?: number | undefined
}

/** What a collection removed, or would remove. */
export interface Collected {
  blobs: number
  bytes: number
  staged: number
}

export class Blobs {
  readonly bytesMax: number
  readonly accountBytesMax: number | undefined
  readonly #parts: BlobsParts

  constructor(parts: BlobsParts) {
    this.#parts = parts
    this.bytesMax = parts.bytesMax
    this.accountBytesMax = parts.accountBytesMax
  }

  /**
   * Stores an upload as a loose blob of the account. The type found in the bytes beats the one declared.
   * @throws Refused 413 from the body, AccountTakedown, BlobQuotaExceeded
   */
  async upload(
    did: Did,
    { body, encoding, size: announced }: Pick<RawInput, 'body' | 'encoding' | 'size'>,
  ): Promise<StoredBlob> {
    const { driver, store, lanes, now } = this.#parts
    if (announced !== undefined) await this.#assertRoom(await store.accounts.byDid(did), announced)
    const meter = new Meter()
    const staged = await driver.stage(meter.through(body))
    try {
      if (announced !== undefined && announced !== meter.size) {
        throw new Refused('InvalidRequest', `Content-Length says ${announced} bytes, ${meter.size} came`)
      }
      const mimeType = (await meter.sniff()) ?? declared(encoding)
      const found = { cid: meter.cid(), mimeType, size: meter.size }
      return await lanes.run(did, async () => {
        const account = await this.#welcome(did, found)
        await driver.keep(staged, did, found.cid)
        return await store.blobs.put(account.id, found, now())
      })
    } catch (error) {
      await driver.discard(staged)
      throw error
    }
  }

  /** The account, if it may have this blob. @throws Refused */
  async #welcome(did: Did, { cid, size }: { cid: Cid; size: number }): Promise<Account> {
    const { store } = this.#parts
    const account = await store.accounts.byDid(did)
    if (!account) throw new Refused('AccountNotFound', 'Account not found', 403)
    // One that moves here brings its blobs before it is active.
    const status = statusOf(account)
    if (status !== 'deactivated') assertWritable(status)
    const known = await store.blobs.get(account.id, cid)
    if (known?.takedown) throw new Refused('InvalidRequest', 'Blob has been takendown, cannot re-upload')
    if (!known) await this.#assertRoom(account, size)
    return account
  }

  /** Uploads of one account count one after the other, since they are kept in its lane. @throws Refused BlobQuotaExceeded */
  async #assertRoom(account: Account | null, size: number): Promise<void> {
    const { store } = this.#parts
    const most = this.accountBytesMax
    if (most === undefined || !account) return
    const { bytes } = await store.blobs.usage(account.id)
    if (bytes + size <= most) return
    const message = `Blobs of this account take ${bytes} of ${most} bytes; another ${size} do not fit`
    throw new Refused('BlobQuotaExceeded', message)
  }

  /**
   * Takes a blob down, or lifts that when `reference` is null; returns whether there is such a blob. The row goes first one
   * way and last the other: it decides what is shown, whatever a crash leaves half done.
   */
  takedown({ id, did }: Account, cid: Cid, reference: string | null): Promise<boolean> {
    const { driver, store, lanes } = this.#parts
    return lanes.run(did, async () => {
      if (reference === null) await driver.restore(did, cid)
      if (!(await store.blobs.takedown(id, cid, reference))) return false
      if (reference !== null) await driver.quarantine(did, cid)
      return true
    })
  }

  /** The bytes, all or a part; null if they are not there, or in quarantine. */
  open(did: Did, cid: Cid, range?: ByteRange): Promise<Readable | null> {
    return this.#parts.driver.open(did, cid, range)
  }

  /** After an account is gone, unless it has come back meanwhile. */
  removeAll(did: Did): Promise<void> {
    const { driver, store, lanes } = this.#parts
    return lanes.run(did, async () => {
      if (!(await store.accounts.byDid(did))) await driver.removeAll(did)
    })
  }

  /** Removes blobs that nothing has referred to for the grace, and what crashes left behind; or only counts them. */
  async collect({ dryRun = false }: { dryRun?: boolean } = {}): Promise<Collected> {
    const { driver, store, now } = this.#parts
    const cutoff = now() - Math.max(this.#parts.graceMs, BLOB_GRACE_MS_MIN)
    const sum: Collected = { blobs: 0, bytes: 0, staged: 0 }
    for (;;) {
      const loose = await store.blobs.loose(cutoff, dryRun ? Number.MAX_SAFE_INTEGER : COLLECT_AT_ONCE)
      const ofAccount = Map.groupBy(loose, ({ account }) => account)
      for (const [account, found] of ofAccount) {
        const { did } = found[0]!
        const blobs = found.map(({ blob }) => blob)
        const gone = dryRun ? blobs : await this.#collectOf(account, did, blobs, cutoff)
        sum.blobs += gone.length
        for (const { size } of gone) sum.bytes += size
      }
      if (dryRun || loose.length < COLLECT_AT_ONCE) break
    }
    const stale = await driver.stale(cutoff)
    sum.staged = stale.length
    if (!dryRun) for (const staged of stale) await driver.discard(staged)
    return sum
  }

  /** Rows go first: bytes without a row are garbage, a row without bytes would be a lie. */
  #collectOf(account: AccountId, did: Did, blobs: StoredBlob[], cutoff: number): Promise<StoredBlob[]> {
    const { driver, store, lanes } = this.#parts
    return lanes.run(did, async () => {
      const cids = blobs.map(({ cid }) => cid)
      const gone = await store.blobs.removeLoose(account, cids, cutoff)
      await driver.remove(did, gone)
      const keys = new Set(gone.map(({ key }) => key))
      return blobs.filter(({ cid }) => keys.has(cid.key))
    })
  }
}

function declared(encoding: string): string {
  return encoding === '' || encoding === '*/*' ? 'application/octet-stream' : encoding
}

/** Hashes and counts what flows through, and keeps the beginning. */
class Meter {
  size = 0
  readonly #hash = createHash('sha256')
  readonly #sample: Uint8Array[] = []
  #sampled = 0

  async *through(body: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
    for await (const chunk of body) {
      this.#hash.update(chunk)
      this.size += chunk.length
      if (this.#sampled < SAMPLE_BYTES) {
        // A copy, also of what is a Buffer.
        this.#sample.push(Uint8Array.from(chunk.subarray(0, SAMPLE_BYTES - this.#sampled)))
        this.#sampled += this.#sample.at(-1)!.length
      }
      yield chunk
    }
  }

  cid(): Cid {
    return Cid.fromDigest(CODEC_RAW, this.#hash.digest())
  }

  async sniff(): Promise<string | undefined> {
    return (await fileTypeFromBuffer(Buffer.concat(this.#sample)))?.mime
  }
}
