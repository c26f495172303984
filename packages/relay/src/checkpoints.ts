/**
 * Signs what the log holds, stretch by stretch, from time to time: see `core/checkpoint`.
 *
 * Events are read back from disk, so what is signed is what a replay will send. Their list goes to a file, then the
 * checkpoint to the store: what was signed has its list. A list is kept as long as its events are.
 */
import { randomBytes } from 'node:crypto'
import { closeSync, fsyncSync, mkdirSync, openSync, readFileSync, writeSync } from 'node:fs'
import { open, readdir, readFile, rename, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { hex, unhex } from '@millisky/core/bytes'
import {
  type CheckpointJson,
  decodeCheckpoint,
  EventListWriter,
  signCheckpoint,
  toJson,
} from '@millisky/core/checkpoint'
import { Cid } from '@millisky/core/cid'
import { SigningKey } from '@millisky/core/crypto'
import { CHECKPOINT_EVENTS_MAX } from '@millisky/core/limits'
import type { Datetime } from '@millisky/core/syntax'
import { framesOf } from '@millisky/server/log/frame-wire'
import type { SegmentLog } from '@millisky/server/log/segments'
import type { CheckpointStore } from './store/store.ts'

/** Read and hashed at a time: about half a millisecond of work. */
const READ_BYTES = 262_144
const LIST_FILE = /^(\d{16})\.events$/
const nameOf = (last: number) => `${String(last).padStart(16, '0')}.events`

export interface CheckpointsParts {
  log: Pick<SegmentLog, 'head' | 'oldest' | 'sync' | 'readUnmasked'>
  store: CheckpointStore
  /** Of the key and the lists; made if need be. */
  folder: string
  /** Milliseconds since 1970. */
  now: () => number
  /** Events in one checkpoint. */
  eventsMax?: number
}

export class Checkpoints {
  readonly #parts: CheckpointsParts
  readonly #key: SigningKey
  readonly #memory = Buffer.allocUnsafeSlow(READ_BYTES)
  #running: Promise<number> | null = null
  #closed = false
  /** Last seq that is signed, as far as it was looked; 0 before the first run. */
  last = 0

  constructor(parts: CheckpointsParts) {
    this.#parts = parts
    mkdirSync(parts.folder, { recursive: true })
    this.#key = keyIn(join(parts.folder, 'key'))
  }

  /** `did:key:…` by which its checkpoints are signed. */
  get key(): string {
    return this.#key.didKey
  }

  /**
   * Signs all that is in the log and not signed yet, and drops lists whose events are gone. Calls while it runs share it.
   * @returns how many checkpoints were made
   */
  run(): Promise<number> {
    this.#running ??= this.#run().finally(() => {
      this.#running = null
    })
    return this.#running
  }

  /** Those that end after a seq, oldest first. */
  async list(after: number, limit: number): Promise<CheckpointJson[]> {
    return (await this.#parts.store.list(after, limit)).map(({ bytes }) => toJson(decodeCheckpoint(bytes)))
  }

  /** The list of the checkpoint that ends with this seq; null when there is none, or its events are gone. */
  async events(last: number): Promise<Uint8Array | null> {
    try {
      return await readFile(join(this.#parts.folder, nameOf(last)))
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null
      throw error
    }
  }

  /** Ends a run under way; what it has not signed is signed after the next start. */
  async close(): Promise<void> {
    this.#closed = true
    await this.#running?.catch(() => {})
  }

  async #run(): Promise<number> {
    let made = 0
    while (!this.#closed && (await this.#make())) made++
    await this.#dropLists()
    return made
  }

  /** Signs the next stretch; false when there is nothing to sign. */
  async #make(): Promise<boolean> {
    const { log, store, now } = this.#parts
    const before = await store.latest()
    this.last = before?.last ?? 0
    // What was gone before it could be signed leaves a hole that shows.
    const after = Math.max(before?.last ?? 0, log.oldest - 1)
    if (log.head <= after) return false
    await log.sync()
    const list = await this.#read(after, log.head)
    // Events that were dropped meanwhile would seem never to have been there.
    if (list === null || list.count === 0 || log.oldest - 1 > after) return false
    const { last, count } = list
    const bytes = list.bytes.slice()
    const time = new Date(now()).toISOString() as Datetime
    const prev = before && Cid.fromBytes(before.cid)
    const signed = signCheckpoint({ after, last, count, events: Cid.ofRaw(bytes), prev, time }, this.#key)
    await writeDurably(this.#parts.folder, nameOf(last), bytes)
    await store.add({ last, cid: signed.cid.bytes, bytes: signed.bytes })
    return true
  }

  async #read(after: number, head: number): Promise<EventListWriter | null> {
    const { log, eventsMax = CHECKPOINT_EVENTS_MAX } = this.#parts
    const list = new EventListWriter()
    for (let cursor = after; cursor < head; ) {
      if (this.#closed) return null
      const { last, wire } = await log.readUnmasked(cursor, { bytes: READ_BYTES, into: this.#memory })
      if (last === cursor) break
      for (const frame of framesOf(wire)) {
        if (list.count === eventsMax) return list
        list.add(frame)
      }
      cursor = last
    }
    return list
  }

  async #dropLists(): Promise<void> {
    const { folder, log } = this.#parts
    for (const name of await readdir(folder)) {
      const [, last] = LIST_FILE.exec(name) ?? []
      if (last !== undefined && Number(last) < log.oldest) await rm(join(folder, name), { force: true })
    }
  }
}

/** The key in a file that only its owner can read, made the first time. */
function keyIn(path: string): SigningKey {
  try {
    return SigningKey.fromPrivate('k256', unhex(readFileSync(path, 'utf8').trim()))
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') {
      throw new Error(`${path} holds no key of 64 hexadecimal digits`, { cause: error })
    }
  }
  const key = SigningKey.fromPrivate('k256', randomBytes(32))
  const fd = openSync(path, 'wx', 0o600)
  try {
    writeSync(fd, `${hex(key.privateBytes)}\n`)
    fsyncSync(fd)
  } finally {
    closeSync(fd)
  }
  return key
}

async function writeDurably(folder: string, name: string, bytes: Uint8Array): Promise<void> {
  const path = join(folder, name)
  const file = await open(`${path}.new`, 'w')
  try {
    await file.writeFile(bytes)
    await file.sync()
  } finally {
    await file.close()
  }
  await rename(`${path}.new`, path)
}
