/** Blobs as files, as the reference has them: `<root>/<did>/<cid>`, `<root>/quarantine/<did>/<cid>`; staged in a folder beside. */
import { randomUUID } from 'node:crypto'
import { type FileHandle, mkdir, open, readdir, rename, rm, stat, unlink } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import type { Readable } from 'node:stream'
import { concat } from '@millisky/core/bytes'
import type { Cid } from '@millisky/core/cid'
import type { Did } from '@millisky/core/syntax'
import type { BlobDriver, ByteRange } from '../blobs.ts'

export interface DiskPaths {
  /** Folder of the blobs; made if absent. */
  root: string
  /** Folder of uploads under way, on the same file system; made if absent. */
  staging: string
}

const WRITE_BYTES = 256 * 1024

/** A driver on a local file system. Names of DIDs and CIDs hold no slash, so each is one folder or file. */
export function createDiskBlobs({ root, staging }: DiskPaths): BlobDriver {
  const quarantine = join(root, 'quarantine')
  const folderOf = (did: Did) => join(root, did)
  const fileOf = (did: Did, cid: Cid) => join(folderOf(did), cid.toString())
  const quarantineOf = (did: Did) => join(quarantine, did)
  return {
    async stage(body) {
      const name = randomUUID()
      const path = join(staging, name)
      const file = await create(path, staging)
      try {
        await writeDurably(file, body)
      } catch (error) {
        await discard(path)
        throw error
      }
      return name
    },
    // What is there already has the same name, so the same bytes.
    keep: (staged, did, cid) => moveDurably(join(staging, staged), folderOf(did), cid),
    discard: staged => discard(join(staging, staged)),
    async open(did, cid, range) {
      return openPart(fileOf(did, cid), range)
    },
    async remove(did, cids) {
      for (const cid of cids) await discard(fileOf(did, cid))
    },
    async removeAll(did) {
      for (const folder of [folderOf(did), quarantineOf(did)]) await rm(folder, { recursive: true, force: true })
    },
    quarantine: (did, cid) => moveDurably(fileOf(did, cid), quarantineOf(did), cid).catch(ifAbsent(undefined)),
    restore: (did, cid) =>
      moveDurably(join(quarantineOf(did), cid.toString()), folderOf(did), cid).catch(ifAbsent(undefined)),
    async stale(cutoff) {
      const old: string[] = []
      for (const name of await readdir(staging).catch(ifAbsent([]))) {
        const about = await stat(join(staging, name)).catch(ifAbsent(null))
        if (about && about.mtimeMs < cutoff) old.push(name)
      }
      return old
    },
  }
}

/** A new file in a folder that is made if absent. */
async function create(path: string, folder: string): Promise<FileHandle> {
  const flags = 'wx'
  const file = await open(path, flags, 0o600).catch(ifAbsent(null))
  if (file) return file
  await mkdir(folder, { recursive: true })
  return await open(path, flags, 0o600)
}

/** Writes much at a time: each call goes to another thread and back. Closes the file. */
async function writeDurably(file: FileHandle, body: AsyncIterable<Uint8Array>): Promise<void> {
  let gathered: Uint8Array[] = []
  let bytes = 0
  try {
    for await (const chunk of body) {
      gathered.push(chunk)
      bytes += chunk.length
      if (bytes < WRITE_BYTES) continue
      await writeAll(file, gathered, bytes)
      for (const written of gathered) release(written)
      gathered = []
      bytes = 0
    }
    if (bytes > 0) await writeAll(file, gathered, bytes)
    for (const written of gathered) release(written)
    await file.datasync()
  } finally {
    await file.close()
  }
}

/**
 * Frees the memory of a chunk that is alone in it, as those of requests are, instead of waiting for the garbage collector:
 * it goes through the whole heap whenever some tens of MB of such memory have come, which took a third of an upload.
 */
function release({ buffer, byteLength }: Uint8Array): void {
  if (byteLength > 0 && buffer.byteLength === byteLength && buffer instanceof ArrayBuffer) buffer.transfer(0)
}

async function writeAll(file: FileHandle, chunks: Uint8Array[], bytes: number): Promise<void> {
  const { bytesWritten } = await file.writev(chunks)
  // Rare, as when the disk is nearly full: the rest as one.
  if (bytesWritten < bytes) await file.writeFile(concat(chunks).subarray(bytesWritten))
}

/** Into a folder that is made if absent. @throws Error ENOENT if there is nothing to move */
async function moveDurably(from: string, folder: string, cid: Cid): Promise<void> {
  const to = join(folder, cid.toString())
  const isMoved = await rename(from, to).then(() => true, ifAbsent(false))
  if (!isMoved) {
    const made = await mkdir(folder, { recursive: true })
    await rename(from, to)
    for (let at = folder; made !== undefined && at.length >= made.length; at = dirname(at))
      await syncFolder(dirname(at))
  }
  await syncFolder(folder)
}

function discard(path: string): Promise<void> {
  return unlink(path).catch(ifAbsent(undefined))
}

async function openPart(path: string, range: ByteRange | undefined): Promise<Readable | null> {
  const file = await open(path, 'r').catch(ifAbsent(null))
  return file?.createReadStream({ ...range, highWaterMark: 256 * 1024 }) ?? null
}

/** Makes the names in a folder durable. */
async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, 'r')
  try {
    await folder.sync()
  } finally {
    await folder.close()
  }
}

function ifAbsent<T>(value: T): (error: unknown) => T {
  return error => {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return value
    throw error
  }
}
