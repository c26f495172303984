/** Addresses to listen on, as operators write them. */
import { SettingsError } from '@millisky/server/config'

/** `host:port`, or `:port` for every address of the machine. @throws SettingsError */
export function parseAddress(bind: string): { host: string; port: number } {
  const [, host = '', port = ''] = /^(.*):(\d+)$/.exec(bind) ?? []
  if (port === '' || Number(port) > 65_535) {
    throw new SettingsError('relay', [`an address to listen on is host:port or :port, not ${JSON.stringify(bind)}`])
  }
  return { host: host.replace(/^\[|\]$/g, '') || '::', port: Number(port) }
}
