/** Who is at the other end of a WebSocket handshake when proxies stand in between. */
import type { IncomingMessage } from 'node:http'
import { BlockList, isIP } from 'node:net'

/** Names of networks, as `trustProxy` of the HTTP server knows them. */
const NAMED: Record<string, readonly string[]> = {
  loopback: ['127.0.0.0/8', '::1'],
  linklocal: ['169.254.0.0/16', 'fe80::/10'],
  uniquelocal: ['10.0.0.0/8', '172.16.0.0/12', '192.168.0.0/16', 'fc00::/7'],
}

/**
 * Reads `X-Forwarded-For` from its end as long as the one who wrote it is trusted, and gives the first who is not.
 *
 * @param trusted - Addresses, CIDR ranges, `loopback`, `linklocal`, `uniquelocal`.
 * @throws Error when one of them is none of these
 */
export function clientAddress(trusted: readonly string[]): (request: IncomingMessage) => string {
  const networks = new BlockList()
  for (const network of trusted.flatMap(name => NAMED[name] ?? [name])) {
    const [address = '', bits] = network.split('/')
    const family = isIP(address)
    if (family === 0) throw new Error(`a trusted proxy has to be an address or a range of them, not ${network}`)
    const type = family === 4 ? 'ipv4' : 'ipv6'
    if (bits === undefined) networks.addAddress(address, type)
    else networks.addSubnet(address, Number(bits), type)
  }
  const isTrusted = (address: string) => {
    const family = isIP(address)
    return family !== 0 && networks.check(address, family === 4 ? 'ipv4' : 'ipv6')
  }
  return request => {
    let address = plain(request.socket.remoteAddress ?? 'unknown')
    const claimed = [request.headers['x-forwarded-for'] ?? []].flat().join(',').split(',')
    while (isTrusted(address)) {
      const before = plain(claimed.pop()?.trim() ?? '')
      if (isIP(before) === 0) break
      address = before
    }
    return address
  }
}

function plain(address: string): string {
  return address.replace(/^::ffff:(?=\d+\.)/i, '')
}
