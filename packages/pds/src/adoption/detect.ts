/** Which program's data a path holds. */
import { existsSync, statSync } from 'node:fs'
import { isMillipds, openMillipds } from './millipds.ts'
import { isReferenceFolder, openReference, type ReferencePaths } from './reference.ts'
import type { ForeignServer } from './source.ts'

/** @throws Error, for people, when there is nothing that can be taken over */
export function openForeignServer(path: string, options: Omit<ReferencePaths, 'folder'> = {}): ForeignServer {
  if (!existsSync(path)) throw new Error(`there is no ${path}`)
  if (statSync(path).isDirectory()) {
    if (isReferenceFolder(path)) return openReference({ folder: path, ...options })
    throw new Error(`${path} has no account.sqlite: give the data directory of a PDS`)
  }
  if (isMillipds(path)) return openMillipds(path)
  throw new Error(`${path} is neither the data directory of the reference PDS nor a database of millipds`)
}
