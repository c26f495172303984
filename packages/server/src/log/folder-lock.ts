import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'

/**
 * Keeps a folder to one writer, also within this process. The operating system lets go of the lock when the process ends, however it ends.
 *
 * Node has no file locks of its own; an exclusive SQLite transaction on an empty file is one.
 * @returns a function that unlocks. @throws Error when the folder is in use.
 */
export function lockFolder(folder: string): () => void {
  const db = new DatabaseSync(join(folder, 'lock'), { timeout: 0 })
  try {
    db.exec('begin exclusive')
  } catch (cause) {
    db.close()
    throw new Error(`The log in ${folder} is in use by another process, or by another part of this one.`, { cause })
  }
  return () => db.close()
}
