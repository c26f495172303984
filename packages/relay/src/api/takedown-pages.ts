/** Takedowns in pages as scripts for indigo's relay read them. */
import type { Did } from '@millisky/core/syntax'
import { accountNumber } from '../accounts.ts'
import type { Moderation } from '../moderation.ts'

const TAKEDOWNS_PAGE = 500
const TAKEDOWNS_READ = 1_000

/**
 * A page of accounts that are taken down. Scripts read the cursor as an integer, so the order is that of numbers; there
 * are few enough to look at all of them for each page.
 */
export async function takedownsAfter(
  moderation: Pick<Moderation, 'takedowns'>,
  after: number,
): Promise<{ dids: Did[]; cursor?: number }> {
  const found: { did: Did; number: number }[] = []
  for (let last = '', page: Did[] = []; ; last = page.at(-1)!) {
    page = await moderation.takedowns(last, TAKEDOWNS_READ)
    for (const did of page) {
      const number = accountNumber(did)
      if (number > after) found.push({ did, number })
    }
    if (page.length < TAKEDOWNS_READ) break
  }
  const shown = found.sort((a, b) => a.number - b.number).slice(0, TAKEDOWNS_PAGE)
  const dids = shown.map(({ did }) => did)
  return found.length > shown.length ? { dids, cursor: shown.at(-1)!.number } : { dids }
}
