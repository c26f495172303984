/** The files of a segment log, and the few operations on them. */
import { close, fdatasync, fsync, open, read, write } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'

export const openFile = promisify(open)
export const closeFile = promisify(close)
export const syncFile = promisify(fdatasync)
const readFile = promisify(read) as (
  fd: number,
  buffer: Buffer,
  offset: number,
  length: number,
  position: number,
) => Promise<{ bytesRead: number }>
const writeFile = promisify(write) as (
  fd: number,
  buffer: Buffer,
  offset: number,
  length: number,
  position: number,
) => Promise<{ bytesWritten: number }>

/** Names sort like the seq they start with. */
export const dataPath = (folder: string, first: number): string => join(folder, `${nameOf(first)}.log`)
export const indexPath = (folder: string, first: number): string => join(folder, `${nameOf(first)}.idx`)
export const nameOf = (first: number): string => String(first).padStart(16, '0')
export const SEGMENT_FILE = /^(\d{16})\.(log|idx)$/

/** One segment as readers and the writer know it. */
export interface Segment {
  /** Seq of its first event; its name. */
  readonly first: number
  /** Name of the segment before, 0 if there was none. */
  readonly previous: number
  /** The rest counts only what is visible to readers. */
  last: number
  events: number
  dataBytes: number
  firstTime: number
  lastTime: number
  /** While it is written: how many of its events have `lastTime`. */
  lastTimeEvents?: number
}

/** Reads `length` bytes at `position`, fewer only at the end of the file; into `into` if they fit, else into new memory. */
export async function readAt(fd: number, position: number, length: number, into?: Uint8Array): Promise<Buffer> {
  const buffer =
    into && into.length >= length ? Buffer.from(into.buffer, into.byteOffset, length) : Buffer.allocUnsafeSlow(length)
  let done = 0
  while (done < length) {
    const { bytesRead } = await readFile(fd, buffer, done, length - done, position + done)
    if (bytesRead === 0) return buffer.subarray(0, done)
    done += bytesRead
  }
  return buffer
}

export async function writeAt(fd: number, bytes: Buffer, position: number): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    done += (await writeFile(fd, bytes, done, bytes.length - done, position + done)).bytesWritten
  }
}

/** Makes the coming and going of files in a folder durable. */
export async function syncFolder(folder: string): Promise<void> {
  const fd = await openFile(folder, 'r')
  try {
    await promisify(fsync)(fd)
  } finally {
    await closeFile(fd)
  }
}

interface Handles {
  readonly data: number
  readonly index: number
}

interface Slot {
  readonly handles: Promise<Handles>
  users: number
  /** Close when the last user is done. */
  doomed: boolean
}

/** Open files for reading, the least recently used closed first. A file in use stays open even when it is deleted meanwhile. */
export class OpenSegments {
  readonly #folder: string
  readonly #max: number
  readonly #slots = new Map<number, Slot>()

  constructor(folder: string, max: number) {
    this.#folder = folder
    this.#max = max
  }

  /** Segments whose files are open. */
  get size(): number {
    return this.#slots.size
  }

  async use<T>(segment: Segment, fn: (handles: Handles) => Promise<T>): Promise<T> {
    const slot = this.#slots.get(segment.first) ?? this.#open(segment.first)
    this.#slots.delete(segment.first)
    this.#slots.set(segment.first, slot)
    slot.users++
    try {
      return await fn(await slot.handles)
    } catch (error) {
      // Files that could not be opened may be there next time.
      if (this.#slots.get(segment.first) === slot && slot.users === 1) this.forget(segment.first)
      throw error
    } finally {
      slot.users--
      if (slot.doomed && slot.users === 0) void closeBoth(slot)
    }
  }

  /** Closes a segment's files as soon as nobody reads them. */
  forget(first: number): void {
    const slot = this.#slots.get(first)
    if (!slot) return
    this.#slots.delete(first)
    slot.doomed = true
    if (slot.users === 0) void closeBoth(slot)
  }

  async close(): Promise<void> {
    for (const first of [...this.#slots.keys()]) this.forget(first)
  }

  #open(first: number): Slot {
    for (const [oldest, slot] of this.#slots) {
      if (this.#slots.size < this.#max) break
      if (slot.users === 0) this.forget(oldest)
    }
    const handles = openBoth(this.#folder, first)
    handles.catch(() => {})
    const slot: Slot = { handles, users: 0, doomed: false }
    this.#slots.set(first, slot)
    return slot
  }
}

async function openBoth(folder: string, first: number): Promise<Handles> {
  const data = await openFile(dataPath(folder, first), 'r')
  try {
    return { data, index: await openFile(indexPath(folder, first), 'r') }
  } catch (error) {
    await closeFile(data)
    throw error
  }
}

async function closeBoth(slot: Slot): Promise<void> {
  const handles = await slot.handles.catch(() => null)
  if (!handles) return
  await closeFile(handles.data)
  await closeFile(handles.index)
}
