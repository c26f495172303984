/** Metrics alone, on an address that is not public. */
import { createHttp, listen } from '@millisky/server/http'
import type { Logger, Metrics } from '@millisky/server/trace'
import { parseAddress } from './address.ts'
import type { RelaySettings } from './config.ts'

export interface MetricsListenerParts {
  settings: Pick<RelaySettings, 'metricsBind'>
  log: Logger
  metrics: Metrics
  userAgent: string
}

/** The second listener, unless the settings want none. @throws SettingsError when its address is none */
export function createMetricsListener({ settings, log, metrics, userAgent }: MetricsListenerParts) {
  if (settings.metricsBind === undefined) return null
  const address = parseAddress(settings.metricsBind)
  const http = createHttp({ log, product: userAgent, cors: () => false })
  http.get('/metrics', async (_request, reply) => reply.type(metrics.contentType).send(await metrics.text()))
  return {
    listen: () => listen(http, address),
    close: () => http.close(),
  }
}
