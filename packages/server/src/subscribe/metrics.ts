import type { Metrics } from '../trace.ts'
import { CONSUMER_ENDS, type ConsumerEnd } from './consumer.ts'

/** Kinds of forms, as the names of forms begin. */
export const FORM_KINDS = ['cbor', 'json', 'jetstream'] as const
export type FormKind = (typeof FORM_KINDS)[number]

/** Sums over all consumers there have been; `lagMax` is that of the consumer furthest behind now. */
export interface SubscribeTotals {
  consumers: number
  forms: Record<FormKind, number>
  events: number
  bytes: number
  lagMax: number
}

/** Counts what a stream does. Once per registry. */
export function countStream(metrics: Metrics, totals: () => SubscribeTotals) {
  const told = { events: 0, bytes: 0 }
  // Sums are read at each scrape. This gauge is made before the counters that it feeds, so it is also read before them.
  const consumers = metrics.gauge('subscribe_consumers', 'Consumers of the event stream.', {
    collect: () => {
      const now = totals()
      consumers.set({}, now.consumers)
      for (const form of FORM_KINDS) forms.set({ form }, now.forms[form])
      lag.set({}, now.lagMax)
      events.inc({}, now.events - told.events)
      bytes.inc({}, now.bytes - told.bytes)
      Object.assign(told, { events: now.events, bytes: now.bytes })
    },
  })
  const forms = metrics.gauge('subscribe_forms', 'Consumers, by how events are put for them.', {
    labels: { form: FORM_KINDS },
  })
  const lag = metrics.gauge('subscribe_lag_max', 'Events that the consumer furthest behind has yet to get.')
  const events = metrics.counter('subscribe_events_sent_total', 'Events sent, to all consumers together.')
  const bytes = metrics.counter('subscribe_bytes_sent_total', 'Bytes of events sent, to all consumers together.')
  const ends = metrics.counter('subscribe_ends_total', 'Consumers gone, by why.', { why: CONSUMER_ENDS })
  const refused = metrics.counter('subscribe_refused_total', 'Consumers refused before the handshake.', {
    status: ['400', '429', '503'],
  })
  return {
    ended: (why: ConsumerEnd) => ends.inc({ why }),
    refused: (status: number) => refused.inc({ status: String(status) }),
  }
}
