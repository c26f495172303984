import { setTimeout as wait } from 'node:timers/promises'

/**
 * Polls until `probe` gives something else than undefined, null or false. For tests: what they wait for comes soon when all is well, so the bound
 * is generous.
 */
export async function until<T>(
  what: string,
  probe: () => T | Promise<T>,
  timeoutMs = 30_000,
): Promise<Exclude<T, undefined | null | false>> {
  const deadline = Date.now() + timeoutMs
  for (;;) {
    const value = await probe()
    if (value !== undefined && value !== null && value !== false) return value as Exclude<T, undefined | null | false>
    if (Date.now() > deadline) throw new Error(`waited ${timeoutMs} ms in vain: ${what}`)
    await wait(5)
  }
}
