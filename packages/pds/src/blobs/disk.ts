/** Blobs as files, as the reference has them: `<root>/<did>/<cid>`, `<root>/quarantine/<did>/<cid>`; staged in a folder beside. */
import { randomUUID } from 'node:crypto'
import { constants } from 'node:fs'
import { access, mkdir, open, readdir, rename, rm, stat } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import type { Readable } from 'node:stream'
import type { Cid } from '@millisky/core/cid'
import type { Did } from '@millisky/core/syntax'
import type { BlobDriver, ByteRange } from '../blobs.ts'

export interface DiskPaths {
  /** Folder of the blobs; made if absent. */
  root: string
  /** Folder of uploads under way, on the same file system; made if absent. */
  staging: string
}

/** A driver on a local file system. Names of DIDs and CIDs hold no slash, so each is one folder or file. */
export function createDiskBlobs({ root, staging }: DiskPaths): BlobDriver {
  const quarantine = join(root, 'quarantine')
  const folderOf = (did: Did) => join(root, did)
  const fileOf = (did: Did, cid: Cid) => join(folderOf(did), cid.toString())
  const quarantineOf = (did: Did) => join(quarantine, did)
  return {
    async stage(body) {
      await mkdir(staging, { recursive: true })
      const name = randomUUID()
      const path = join(staging, name)
      try {
        await writeDurably(path, body)
      } catch (error) {
        await rm(path, { force: true })
        throw error
      }
      return name
    },
    async keep(staged, did, cid) {
      const target = fileOf(did, cid)
      if (await exists(target)) return
      await moveDurably(join(staging, staged), folderOf(did), cid)
    },
    discard: staged => rm(join(staging, staged), { force: true }),
    async open(did, cid, range) {
      return openPart(fileOf(did, cid), range)
    },
    async remove(did, cids) {
      for (const cid of cids) await rm(fileOf(did, cid), { force: true })
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

async function writeDurably(path: string, body: AsyncIterable<Uint8Array>): Promise<void> {
  const file = await open(path, 'wx', 0o600)
  try {
    for await (const chunk of body) await file.writeFile(chunk)
    await file.datasync()
  } finally {
    await file.close()
  }
}

/** Into a folder that is made if absent. */
async function moveDurably(from: string, folder: string, cid: Cid): Promise<void> {
  const made = await mkdir(folder, { recursive: true })
  await rename(from, join(folder, cid.toString()))
  await syncFolder(folder)
  if (made === undefined) return
  for (let at = folder; at.length >= made.length; at = dirname(at)) await syncFolder(dirname(at))
}

async function openPart(path: string, range: ByteRange | undefined): Promise<Readable | null> {
  const file = await open(path, 'r').catch(ifAbsent(null))
  return file?.createReadStream({ ...range, highWaterMark: 256 * 1024 }) ?? null
}

async function exists(path: string): Promise<boolean> {
  return access(path, constants.F_OK).then(
    () => true,
    () => false,
  )
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
