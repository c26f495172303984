/** Resolving handles: DNS and HTTPS at the same time, DNS preferred. Source: handle spec. */
import { Resolver, lookup as systemLookup } from 'node:dns/promises'
import { isIP } from 'node:net'
import { HANDLE_ANSWER_BYTES_MAX } from '@millisky/core/limits'
import { type Did, type Handle, isDid } from '@millisky/core/syntax'
import type { FetchBytes } from '../fetch.ts'

/** Gives the TXT records of a name, each as its chunks; none when there are none. Rejects when nobody could say. */
export type ResolveTxt = (name: string) => Promise<string[][]>

/** What one way of asking came to: a DID, or why not. `isFinal` when asking again soon would give the same. */
export type WayReport =
  | { did: Did; problem: null; isFinal: true }
  | { did: null; problem: string; isFinal: boolean; isAmbiguous?: true }

/** Step by step, how a handle was resolved or why it was not. */
export interface HandleReport {
  handle: Handle
  did: Did | null
  dns: WayReport
  /** Not waited for when DNS had an answer; then its problem says so. */
  https: WayReport
}

export interface HandleSources {
  resolveTxt: ResolveTxt
  fetch: FetchBytes
  timeoutMs: number
  /** Where a handle's well-known file is; default by https on the handle's own host. */
  wellKnownUrl?: ((handle: Handle) => string) | undefined
}

/** Asks the world for a handle's DID. Whether the DID claims the handle is not checked here. Never throws. */
export async function lookUpHandle(handle: Handle, sources: HandleSources): Promise<HandleReport> {
  const stop = new AbortController()
  const httpsAnswer = askHttps(handle, sources, stop.signal)
  const dns = await didOfTxt(`_atproto.${handle}`, sources)
  if (dns.did !== null || dns.isAmbiguous) {
    stop.abort()
    const problem = 'not asked, since DNS decides'
    return { handle, did: dns.did, dns, https: { did: null, problem, isFinal: true } }
  }
  const https = await httpsAnswer
  return { handle, did: https.did, dns, https }
}

/** The DID that the TXT records of a name give as `did=…`. Never throws. */
export async function didOfTxt(
  name: string,
  { resolveTxt, timeoutMs }: Pick<HandleSources, 'resolveTxt' | 'timeoutMs'>,
): Promise<WayReport> {
  let records: string[]
  try {
    const chunked = await inTime(resolveTxt(name), timeoutMs)
    records = chunked.map(chunks => chunks.join('')).filter(record => record.startsWith('did='))
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error)
    return { did: null, problem: `the TXT records of ${name} cannot be read: ${why}`, isFinal: false }
  }
  if (records.length === 0) return { did: null, problem: `${name} has no TXT record did=…`, isFinal: true }
  const dids = new Set(records.map(record => record.slice(4)).filter(isDid))
  const [did] = dids
  if (did === undefined) return { did: null, problem: `the TXT record of ${name} holds no valid DID`, isFinal: true }
  if (dids.size === 1) return { did, problem: null, isFinal: true }
  const problem = `${name} has TXT records with different DIDs: ${[...dids].join(', ').slice(0, 300)}`
  return { did: null, problem, isFinal: true, isAmbiguous: true }
}

async function askHttps(handle: Handle, sources: HandleSources, signal: AbortSignal): Promise<WayReport> {
  const url = sources.wellKnownUrl?.(handle) ?? `https://${handle}/.well-known/atproto-did`
  const { timeoutMs } = sources
  try {
    const answer = await sources.fetch(url, { timeoutMs, signal, redirectsMax: 3, bytesMax: HANDLE_ANSWER_BYTES_MAX })
    if (answer.status < 200 || answer.status > 299) {
      return { did: null, problem: `${url} answered ${answer.status}`, isFinal: answer.status < 500 }
    }
    const text = new TextDecoder().decode(answer.bytes).trim()
    if (isDid(text)) return { did: text, problem: null, isFinal: true }
    return { did: null, problem: `${url} does not hold a DID`, isFinal: true }
  } catch (error) {
    return { did: null, problem: error instanceof Error ? error.message : String(error), isFinal: false }
  }
}

async function inTime<T>(work: Promise<T>, ms: number): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(new Error('no answer in time')), ms)
  })
  try {
    return await Promise.race([work, late])
  } finally {
    clearTimeout(timer)
  }
}

/** What DNS servers say when there is nothing, as against when they could not say. */
const NOTHING = new Set(['ENODATA', 'ENOTFOUND', 'NXDOMAIN'])

/**
 * TXT records from the system's DNS servers, or from `servers`. Where those have none or cannot say, each of `backup` is
 * asked in turn: addresses, with `:port` if need be, or host names.
 */
export function dnsTxt(
  options: { servers?: readonly string[]; backup?: readonly string[]; timeoutMs?: number } = {},
): ResolveTxt {
  const { timeoutMs = 1_500 } = options
  const resolverOf = (servers: readonly string[] | undefined) => {
    const resolver = new Resolver({ timeout: timeoutMs, tries: 2 })
    if (servers && servers.length > 0) resolver.setServers(servers)
    return resolver
  }
  const ask = async (resolver: Resolver, name: string): Promise<string[][]> => {
    try {
      return await resolver.resolveTxt(name)
    } catch (error) {
      if (error instanceof Error && 'code' in error && NOTHING.has(String(error.code))) return []
      throw error
    }
  }
  const first = resolverOf(options.servers)
  let backups: Promise<Resolver[]> | undefined
  return async name => {
    let failure: unknown = null
    const found = await ask(first, name).catch(error => {
      failure = error
      return []
    })
    if (found.length > 0) return found
    backups ??= Promise.all((options.backup ?? []).map(async server => resolverOf(await addressesOf(server))))
    for (const resolver of await backups.catch(() => [])) {
      const other = await ask(resolver, name).catch(() => [])
      if (other.length > 0) return other
    }
    if (failure) throw failure
    return []
  }
}

async function addressesOf(server: string): Promise<string[]> {
  const host = server.replace(/:\d+$/, '')
  if (isIP(server) !== 0 || isIP(host) !== 0 || server.startsWith('[')) return [server]
  const port = server.slice(host.length)
  const found = await systemLookup(host, { all: true })
  return found.map(({ address, family }) => (family === 6 && port !== '' ? `[${address}]${port}` : address + port))
}
