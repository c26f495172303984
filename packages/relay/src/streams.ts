/** What consumers are offered: the firehose with its extras, and a stream like Jetstream's. */
import { readFileSync } from 'node:fs'
import { SettingsError } from '@millisky/server/config'
import type { SegmentLog } from '@millisky/server/log/segments'
import type { Subscription } from '@millisky/server/subscribe'
import { JetstreamEndpoint } from '@millisky/server/subscribe/jetstream'
import type { Extras } from '@millisky/server/subscribe/repos'
import { notWebSocket } from '@millisky/server/upgrade'
import type { FastifyInstance } from 'fastify'
import type { RelaySettings } from './config.ts'

export const JETSTREAM_PATH = '/subscribe'

/** What may be asked for on the firehose. */
export function extrasOf({ streamFilters, streamCompression, streamJson }: RelaySettings): Extras {
  return { filters: streamFilters, compression: streamCompression, json: streamJson }
}

/** Serves `/subscribe`, unless it is switched off. @throws SettingsError when its dictionary cannot be read */
export function addJetstream(
  http: FastifyInstance,
  subscription: Subscription,
  { settings, events, now }: { settings: RelaySettings; events: SegmentLog; now: () => number },
): void {
  if (!settings.jetstream) return
  http.all(JETSTREAM_PATH, request => {
    throw notWebSocket(request.method)
  })
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
