/** Names of hosts, as requestCrawl and administrators write them. Source: relay practice (T35). */
import { isIP } from 'node:net'
import { Refused } from '@millisky/core/errors'
import { isHandle } from '@millisky/core/syntax'

export interface HostName {
  /** Lower case, with its port unless that is the scheme's own. */
  hostname: string
  /** Plain http: and ws:, which only the development switch allows. */
  noTls: boolean
}

const refuse = (message: string) => new Refused('InvalidRequest', message)

/**
 * Reads `pds.example.com` or a URL of it. With `insecure`, the development switch, also `localhost:2583`, IP addresses,
 * ports and plain http.
 *
 * @throws {Refused} `InvalidRequest`
 */
export function parseHostname(text: string, { insecure }: { insecure: boolean }): HostName {
  const hasScheme = /^[a-z][a-z0-9+.-]*:\/\//i.test(text)
  const url = text.length > 300 ? null : URL.parse(hasScheme ? text : `https://${text}`)
  if (!url || url.hostname === '') throw refuse('hostname is neither a host name nor a URL')
  if (!/^(https?|wss?):$/.test(url.protocol))
    throw refuse(`hostname with the scheme ${url.protocol}// is not supported`)
  if (url.username !== '' || url.password !== '') throw refuse('hostname has a user name or password')
  if ((url.pathname !== '/' && url.pathname !== '') || url.search !== '' || url.hash !== '') {
    throw refuse('hostname has a path or query')
  }
  const isLocal = url.hostname === 'localhost' || url.hostname.endsWith('.localhost')
  const isAddress = isIP(url.hostname.replace(/^\[|\]$/g, '')) !== 0
  if (insecure && (isLocal || isAddress || url.port !== '')) {
    const noTls = hasScheme ? url.protocol === 'http:' || url.protocol === 'ws:' : isLocal || isAddress
    // Parsed as https, port 80 of plain http would be kept.
    return { hostname: noTls ? url.host.replace(/:80$/, '') : url.host, noTls }
  }
  if (isAddress) throw refuse('hostname is an IP address; a host name is expected')
  if (isLocal) throw refuse('hostname is of this machine only')
  if (url.port !== '') throw refuse('hostname has a port')
  if (!isHandle(url.hostname)) throw refuse('hostname is not a name of the public DNS')
  const noTls = url.protocol === 'http:' || url.protocol === 'ws:'
  if (noTls && !insecure) throw refuse('this relay requires TLS of hosts')
  return { hostname: url.hostname, noTls }
}

/** The name and the domains above it, the longest first: `a.b.c` → `a.b.c`, `b.c`, `c`. Without the port. */
export function* domainsOf(hostname: string): Generator<string> {
  let domain = hostname.replace(/:\d+$/, '')
  for (;;) {
    yield domain
    const dot = domain.indexOf('.')
    if (dot < 0) return
    domain = domain.slice(dot + 1)
  }
}

/** Reads the name of a domain to be banned. @throws {Refused} `InvalidRequest` */
export function parseDomain(text: string): string {
  const domain = text
    .trim()
    .toLowerCase()
    .replace(/^\*?\./, '')
    .replace(/\.$/, '')
  if (!/^[a-z0-9-]+(\.[a-z0-9-]+)*$/.test(domain) || domain.length > 253) throw refuse('not a domain')
  return domain
}
