/** How the commands about a Relay reach it. */
import { readFile } from 'node:fs/promises'
import { type Command, InvalidArgumentError, Option } from 'commander'
import type { PrintOptions } from './print.ts'
import { XrpcClient } from './xrpc-client.ts'

const RELAY_DEFAULT = 'http://localhost:2470'
export const ADMIN = 'net.millisky.relay.admin'

export interface RelayOptions extends PrintOptions {
  relay: string
  adminPassword?: string
}

/** A command that talks to a Relay as its administrator. Its options stand with it, wherever they are given. */
export function relayCommand(group: Command, usage: string, description: string): Command {
  return group
    .command(usage)
    .description(description)
    .addOption(new Option('--relay <url>', 'the Relay').env('MILLISKY_RELAY').default(RELAY_DEFAULT))
    .addOption(new Option('--admin-password <password>', "the Relay's admin password").env('RELAY_ADMIN_PASSWORD'))
    .addOption(new Option('--json', 'print JSON'))
}

export function relayClient({ relay, adminPassword }: Pick<RelayOptions, 'relay' | 'adminPassword'>): XrpcClient {
  // The Relay itself takes several from the same variable.
  const [password] = adminPassword?.split(',').flatMap(one => one.trim() || []) ?? []
  if (password === undefined) {
    throw new Error('the admin password is needed: set RELAY_ADMIN_PASSWORD, or give --admin-password')
  }
  return new XrpcClient(relay, password)
}

/** Pages of a method that is read by cursor. */
export async function* pagesOf<T extends { cursor?: string }>(
  client: XrpcClient,
  method: string,
  params: Record<string, string | number | undefined> = {},
): AsyncGenerator<T> {
  let cursor: string | undefined
  do {
    const page: T = await client.query<T>(method, { ...params, cursor })
    yield page
    if (page.cursor === cursor) return
    cursor = page.cursor
  } while (cursor !== undefined)
}

/** Calls `work` for each item, some at a time. */
export async function eachOf<T>(items: readonly T[], atOnce: number, work: (item: T) => Promise<void>): Promise<void> {
  let next = 0
  const run = async () => {
    while (next < items.length) await work(items[next++]!)
  }
  await Promise.all(Array.from({ length: Math.min(atOnce, items.length) }, run))
}

/** The text of a file, or of standard input for `-`. */
export async function readText(path: string): Promise<string> {
  if (path !== '-') return await readFile(path, 'utf8')
  let text = ''
  for await (const chunk of process.stdin.setEncoding('utf8')) text += chunk
  return text
}

/**
 * Entries of a list: a JSON array, JSON on each line, or plain lines. What follows a `#` at the start of a line or after
 * a space is a remark.
 */
export function entriesOf(text: string): unknown[] {
  const trimmed = text.trim()
  if (trimmed.startsWith('[')) return JSON.parse(trimmed) as unknown[]
  const lines = trimmed
    .split(/\r?\n/)
    .map(line => (/^\s*[{"]/.test(line) ? line : line.replace(/(^|\s)#.*$/, '')).trim())
  return lines.filter(line => line !== '').map(line => (/^[{"]/.test(line) ? (JSON.parse(line) as unknown) : line))
}

export function wholeNumber(text: string): number {
  if (!/^\d{1,12}$/.test(text)) throw new InvalidArgumentError('A whole number.')
  return Number(text)
}

/** A number, or `auto` for what the host comes to by itself. */
export function limit(text: string): number | 'auto' {
  if (text === 'auto') return text
  if (!/^\d{1,12}$/.test(text)) throw new InvalidArgumentError('A whole number, or "auto".')
  return Number(text)
}
