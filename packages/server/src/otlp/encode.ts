/** OTLP's JSON form of spans and metrics. Source: opentelemetry-proto 1.x, "JSON Protobuf Encoding". */
import type { MetricObjectWithValues, MetricValue } from 'prom-client'
import type { Span } from '../telemetry.ts'

export type Attributes = Readonly<Record<string, string | number | boolean>>

const SPAN_KINDS = { internal: 1, server: 2 } as const
const STATUS_ERROR = 2
const CUMULATIVE = 2

/** Milliseconds since 1970 → nanoseconds, as 64-bit integers are written. */
const nanos = (ms: number) => `${Math.floor(ms)}${String(Math.floor((ms % 1) * 1_000_000)).padStart(6, '0')}`

function otlpValue(value: string | number | boolean) {
  if (typeof value === 'string') return { stringValue: value }
  if (typeof value === 'boolean') return { boolValue: value }
  return Number.isSafeInteger(value) ? { intValue: String(value) } : { doubleValue: value }
}

export function encodeAttributes(attributes: Attributes) {
  return Object.entries(attributes).map(([key, value]) => ({ key, value: otlpValue(value) }))
}

/** A span with its place in a trace; ids are hex. */
export interface PlacedSpan extends Omit<Span, 'traceparent'> {
  traceId: string
  spanId: string
  parentSpanId: string | undefined
  endMs: number
}

export function encodeSpan(span: PlacedSpan) {
  const { traceId, spanId, parentSpanId, name, kind, endMs, durationMs, attributes = {}, failure } = span
  return {
    traceId,
    spanId,
    ...(parentSpanId === undefined ? {} : { parentSpanId }),
    name,
    kind: SPAN_KINDS[kind],
    startTimeUnixNano: nanos(endMs - durationMs),
    endTimeUnixNano: nanos(endMs),
    attributes: encodeAttributes(attributes),
    ...(failure === undefined ? {} : { status: { code: STATUS_ERROR, message: failure } }),
  }
}

interface Times {
  startMs: number
  nowMs: number
}

type Values = readonly (MetricValue<string> & { metricName?: string })[]

/** Counters, gauges and histograms as prom-client gives them; what is of another kind is left out. */
export function encodeMetrics(metrics: readonly MetricObjectWithValues<MetricValue<string>>[], times: Times): object[] {
  return metrics.flatMap((metric): object[] => {
    const { name, help: description, values } = metric
    // Newer versions give names, older ones numbers.
    const type = String(metric.type)
    if (values.length === 0) return []
    if (type === 'histogram') return [{ name, description, histogram: histogramOf(name, values, times) }]
    const dataPoints = values.map(({ value, labels }) => point(labels, times, { asDouble: value }))
    if (type === 'gauge') return [{ name, description, gauge: { dataPoints } }]
    if (type !== 'counter') return []
    return [{ name, description, sum: { dataPoints, aggregationTemporality: CUMULATIVE, isMonotonic: true } }]
  })
}

function point<T extends object>(labels: object, { startMs, nowMs }: Times, value: T) {
  const attributes = encodeAttributes(labels as Attributes)
  return { attributes, startTimeUnixNano: nanos(startMs), timeUnixNano: nanos(nowMs), ...value }
}

/** Buckets come cumulative, one value each, and are wanted apart, all in one. */
function histogramOf(name: string, values: Values, times: Times) {
  const series = new Map<string, { labels: object; bounds: number[]; counts: number[]; sum: number; count: number }>()
  for (const { labels, value, metricName } of values) {
    const { le, ...rest } = labels as Record<string, string | number>
    const key = JSON.stringify(Object.entries(rest).sort())
    let one = series.get(key)
    if (!one) series.set(key, (one = { labels: rest, bounds: [], counts: [], sum: 0, count: 0 }))
    if (metricName === `${name}_sum`) one.sum = value
    else if (metricName === `${name}_count`) one.count = value
    else {
      if (le !== '+Inf') one.bounds.push(Number(le))
      one.counts.push(value)
    }
  }
  const dataPoints = Array.from(series.values(), ({ labels, bounds, counts, sum, count }) => {
    const bucketCounts = counts.map((upTo, i) => String(upTo - (counts[i - 1] ?? 0)))
    return point(labels, times, { count: String(count), sum, bucketCounts, explicitBounds: bounds })
  })
  return { dataPoints, aggregationTemporality: CUMULATIVE }
}
