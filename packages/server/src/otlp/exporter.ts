/** Sends spans and metrics to a collector: OTLP over HTTP, as JSON. A collector that is away costs a bounded memory. */
import { randomBytes, randomUUID } from 'node:crypto'
import type { FetchBytes } from '../fetch.ts'
import type { Span } from '../telemetry.ts'
import type { Logger, Metrics } from '../trace.ts'
import { type Attributes, encodeAttributes, encodeMetrics, encodeSpan, type PlacedSpan } from './encode.ts'

/** Spans that wait, and spans in one request. */
const WAITING_MAX = 4_096
const BATCH = 512
const FLUSH_MS = 5_000
const TIMEOUT_MS = 10_000
const CLOSE_MS = 3_000
const SCOPE = { name: 'millisky' }

export interface ExporterParts {
  name: string
  version: string
  tracesUrl: string | undefined
  metricsUrl: string | undefined
  /** `name=value,name=value` with percent-encoded values. */
  headers: string | undefined
  attributes: string | undefined
  sampleRatio: number
  metricsIntervalMs: number
  metrics: Metrics
  fetch: FetchBytes
  log: Logger
  now: () => number
}

export class Exporter {
  readonly #parts: ExporterParts
  readonly #headers: Record<string, string>
  readonly #resource: { attributes: ReturnType<typeof encodeAttributes> }
  readonly #startMs: number
  readonly #timers: NodeJS.Timeout[] = []
  readonly #count: (result: 'sent' | 'lost', spans: number) => void
  #waiting: PlacedSpan[] = []
  #sending: Promise<void> | null = null
  /** What went wrong last, so that it is logged once. */
  #problem: string | null = null

  constructor(parts: ExporterParts) {
    this.#parts = parts
    this.#startMs = parts.now()
    this.#headers = { 'content-type': 'application/json', ...pairsOf(parts.headers) }
    const given: Attributes = { 'service.name': parts.name, 'service.version': parts.version }
    const attributes = { ...given, 'service.instance.id': randomUUID(), ...pairsOf(parts.attributes) }
    this.#resource = { attributes: encodeAttributes({ ...attributes, 'service.name': parts.name }) }
    const spans = parts.metrics.counter('otlp_spans_total', 'Spans for the collector, by what became of them.', {
      result: ['sent', 'lost'],
    })
    this.#count = (result, count) => spans.inc({ result }, count)
    if (parts.tracesUrl) this.#every(FLUSH_MS, () => this.flush())
    if (parts.metricsUrl) this.#every(parts.metricsIntervalMs, () => this.sendMetrics())
  }

  record({ traceparent, ...span }: Span): void {
    const place = this.#placeOf(traceparent)
    if (place === null) return
    if (this.#waiting.length >= WAITING_MAX) {
      this.#count('lost', 1)
      return
    }
    this.#waiting.push({ ...span, ...place, spanId: randomBytes(8).toString('hex'), endMs: this.#parts.now() })
    if (this.#waiting.length >= BATCH) void this.flush()
  }

  /** Sends the spans that wait. */
  flush(): Promise<void> {
    this.#sending ??= this.#sendSpans().finally(() => {
      this.#sending = null
    })
    return this.#sending
  }

  async sendMetrics(): Promise<void> {
    const { metrics, metricsUrl, now } = this.#parts
    if (!metricsUrl) return
    const encoded = encodeMetrics(await metrics.registry.getMetricsAsJSON(), { startMs: this.#startMs, nowMs: now() })
    const scopeMetrics = [{ scope: SCOPE, metrics: encoded }]
    await this.#post(metricsUrl, { resourceMetrics: [{ resource: this.#resource, scopeMetrics }] })
  }

  /** Sends the rest. */
  async close(): Promise<void> {
    for (const timer of this.#timers) clearInterval(timer)
    const late = Promise.withResolvers<void>()
    const timer = setTimeout(late.resolve, CLOSE_MS)
    await Promise.race([late.promise, Promise.all([this.flush(), this.sendMetrics()])])
    clearTimeout(timer)
  }

  #every(ms: number, run: () => Promise<void>): void {
    const timer = setInterval(() => void run(), ms)
    timer.unref()
    this.#timers.push(timer)
  }

  /** Null for a span that is not wanted. The caller's word counts; without one, chance decides. */
  #placeOf(traceparent: string | undefined): { traceId: string; parentSpanId: string | undefined } | null {
    const parent = /^00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})$/.exec(traceparent ?? '')
    if (parent !== null) {
      const isSampled = (Number.parseInt(parent[3]!, 16) & 1) === 1
      return isSampled ? { traceId: parent[1]!, parentSpanId: parent[2] } : null
    }
    const bytes = randomBytes(16)
    const { sampleRatio } = this.#parts
    if (sampleRatio < 1 && bytes.readUInt32BE(0) / 2 ** 32 >= sampleRatio) return null
    return { traceId: bytes.toString('hex'), parentSpanId: undefined }
  }

  async #sendSpans(): Promise<void> {
    const { tracesUrl } = this.#parts
    while (tracesUrl && this.#waiting.length > 0) {
      const batch = this.#waiting.slice(0, BATCH)
      const scopeSpans = [{ scope: SCOPE, spans: batch.map(encodeSpan) }]
      const result = await this.#post(tracesUrl, { resourceSpans: [{ resource: this.#resource, scopeSpans }] })
      // The next flush tries again; what comes in the meantime waits behind it.
      if (result === 'later') return
      this.#waiting.splice(0, batch.length)
      this.#count(result, batch.length)
    }
  }

  async #post(url: string, body: object): Promise<'sent' | 'later' | 'lost'> {
    const { fetch } = this.#parts
    try {
      const { status, bytes } = await fetch(url, {
        method: 'POST',
        headers: this.#headers,
        body: JSON.stringify(body),
        timeoutMs: TIMEOUT_MS,
        bytesMax: 1_048_576,
      })
      if (status < 300) {
        this.#note(null)
        return 'sent'
      }
      this.#note(`HTTP ${status} ${Buffer.from(bytes).toString('utf8').slice(0, 200)}`)
      return status === 429 || status >= 502 ? 'later' : 'lost'
    } catch (error) {
      this.#note((error as Error).message)
      return 'later'
    }
  }

  #note(problem: string | null): void {
    if ((problem === null) === (this.#problem === null)) return
    this.#problem = problem
    if (problem === null) this.#parts.log.info('the collector takes telemetry again')
    else this.#parts.log.warn({ problem }, 'telemetry does not reach the collector')
  }
}

/** `a=1,b=two%20words` */
function pairsOf(text: string | undefined): Record<string, string> {
  const pairs: Record<string, string> = {}
  for (const part of (text ?? '').split(',')) {
    const [name = '', ...value] = part.split('=')
    if (name.trim() === '' || value.length === 0) continue
    const written = value.join('=').trim()
    pairs[name.trim()] = /%[0-9a-f]{2}/i.test(written) ? decoded(written) : written
  }
  return pairs
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text)
  } catch {
    return text
  }
}
