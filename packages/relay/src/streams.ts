/** What consumers are offered: the firehose with its extras, and a stream like Jetstream's. */
import { readFileSync } from 'node:fs'
import { SettingsError } from '@millisky/server/config'
import type { SegmentLog } from '@millisky/server/log/segments'
import { type SubscribeSettings, Subscription } from '@millisky/server/subscribe'
import { JetstreamEndpoint } from '@millisky/server/subscribe/jetstream'
import type { Extras } from '@millisky/server/subscribe/repos'
import type { Logger, Metrics } from '@millisky/server/trace'
import { refusePlain } from '@millisky/server/upgrade'
import type { FastifyInstance } from 'fastify'
import { clientAddress } from './client-address.ts'
import type { RelaySettings } from './config.ts'

export const JETSTREAM_PATH = '/subscribe'

export interface StreamParts {
  settings: RelaySettings
  events: SegmentLog
  log: Logger
  metrics: Metrics
  userAgent: string
  /** Milliseconds since 1970. */
  now: () => number
}

/** The firehose over a log, as the settings want it. */
export function createSubscription(
  { settings, events, log, metrics, userAgent, now }: StreamParts,
  deviations: Partial<SubscribeSettings> = {},
): Subscription {
  return new Subscription({
    log: events,
    now,
    metrics,
    product: userAgent,
    addressOf: clientAddress(settings.trustProxy),
    extras: extrasOf(settings),
    settings: {
      coalesceMs: settings.coalesceMs,
      consumersMax: settings.consumersMax,
      consumersPerAddressMax: settings.consumersPerAddressMax,
      ...deviations,
    },
    observer: {
      opened: ({ id, address, userAgent, cursor }) => log.info({ id, address, userAgent, cursor }, 'consumer'),
      ended: ({ id, events }, end) => log.info({ id, events, end }, 'consumer left'),
      failed: error => log.error({ err: error }, 'the log could not be read for a consumer'),
    },
  })
}

/** What may be asked for on the firehose. */
function extrasOf({ streamFilters, streamCompression, streamJson }: RelaySettings): Extras {
  return { filters: streamFilters, compression: streamCompression, json: streamJson }
}

/** Serves `/subscribe`, unless it is switched off. @throws SettingsError when its dictionary cannot be read */
export function addJetstream(
  http: FastifyInstance,
  subscription: Subscription,
  { settings, events, now }: Pick<StreamParts, 'settings' | 'events' | 'now'>,
): void {
  if (!settings.jetstream) return
  refusePlain(http, JETSTREAM_PATH)
  const dictionary = readDictionary(settings.jetstreamDictionary)
  const { socket } = subscription
  subscription.attach(http.server, JETSTREAM_PATH, new JetstreamEndpoint({ log: events, dictionary, now, socket }))
}

function readDictionary(path: string | undefined): Buffer | null {
  if (path === undefined) return null
  try {
    return readFileSync(path)
  } catch (error) {
    throw new SettingsError('relay', [`the Zstandard dictionary cannot be read: ${(error as Error).message}`])
  }
}
