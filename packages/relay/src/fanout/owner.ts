/** Whose seqs a log has. To go on with those of another relay would give one seq to two events. */
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { SettingsError } from '@millisky/server/config'

const NAME = 'upstream.json'

/**
 * Makes sure that the log in a folder has the seqs of this relay, which may be begun.
 * @param upstream - origin of the relay that gives the seqs; null for those of our own
 * @throws SettingsError
 */
export function assertOwner(folder: string, upstream: string | null): void {
  const path = join(folder, NAME)
  const known = existsSync(path) ? (JSON.parse(readFileSync(path, 'utf8')) as { upstream: string }).upstream : null
  const isNew = known === null && !(existsSync(folder) && readdirSync(folder).some(name => name.endsWith('.log')))
  if (known !== upstream && !isNew) {
    const whose = known === null ? 'of a relay that gives its own' : `of ${known}`
    throw new SettingsError('relay', [`the log in ${folder} has the seqs ${whose}: use another folder (--persist-dir)`])
  }
  if (upstream === null || known !== null) return
  mkdirSync(folder, { recursive: true })
  writeFileSync(path, `${JSON.stringify({ upstream })}\n`, { flush: true })
}

/** What to keep when the log is begun anew. */
export const isOwnerFile = (name: string): boolean => name === NAME
