/**
 * Traces and metrics for an OpenTelemetry collector. The exporter is loaded when the settings name one, and not before.
 *
 * A span is recorded when it is over, by a call of {@link Trace}: nothing is carried along while work is under way, so it
 * costs nothing where nobody listens.
 */
import type { Setting } from './config.ts'
import type { Logger, Metrics } from './trace.ts'

/** Something that is over. */
export interface Span {
  /** Out of a small set, such as names of methods. */
  name: string
  kind: 'server' | 'internal'
  durationMs: number
  attributes?: Readonly<Record<string, string | number | boolean>>
  /** What went wrong, if anything did. */
  failure?: string
  /** W3C `traceparent` of the caller. */
  traceparent?: string | undefined
}

/** Records a span that ends now. */
export type Trace = (span: Span) => void

const SECTION = 'Telemetry'

/** For the settings table of a daemon; names as OpenTelemetry has them. */
export const telemetrySettings = {
  otlpEndpoint: {
    type: 'url',
    env: ['OTEL_EXPORTER_OTLP_ENDPOINT'],
    flag: '--otel-exporter-otlp-endpoint',
    doc: 'An OpenTelemetry collector that takes OTLP over HTTP as JSON, such as `http://localhost:4318`. Without one nothing is exported.',
    section: SECTION,
  },
  otlpTracesEndpoint: {
    type: 'url',
    env: ['OTEL_EXPORTER_OTLP_TRACES_ENDPOINT'],
    doc: 'Where traces go, as it is. Default: `/v1/traces` of the collector.',
    section: SECTION,
  },
  otlpMetricsEndpoint: {
    type: 'url',
    env: ['OTEL_EXPORTER_OTLP_METRICS_ENDPOINT'],
    doc: 'Where metrics go, as it is. Default: `/v1/metrics` of the collector.',
    section: SECTION,
  },
  otlpHeaders: {
    type: 'string',
    secret: true,
    env: ['OTEL_EXPORTER_OTLP_HEADERS'],
    doc: 'Headers for the collector: `name=value,name=value`, with values percent-encoded.',
    section: SECTION,
  },
  otlpProtocol: {
    type: 'enum',
    values: ['http/json', 'http/protobuf', 'grpc'],
    env: ['OTEL_EXPORTER_OTLP_PROTOCOL'],
    doc: 'Only `http/json` is spoken; collectors take it where they take `http/protobuf`.',
    section: SECTION,
  },
  otelServiceName: {
    type: 'string',
    env: ['OTEL_SERVICE_NAME'],
    doc: 'Name of the service in traces and metrics.',
    section: SECTION,
  },
  otelResourceAttributes: {
    type: 'string',
    env: ['OTEL_RESOURCE_ATTRIBUTES'],
    doc: 'More about the service: `name=value,name=value`, with values percent-encoded.',
    section: SECTION,
  },
  otelSampleRatio: {
    type: 'number',
    min: 0,
    max: 1,
    default: 1,
    env: ['OTEL_TRACES_SAMPLER_ARG'],
    doc: 'The part of traces that is exported, unless the caller has decided it.',
    section: SECTION,
  },
  otelMetricsIntervalMs: {
    type: 'duration',
    default: 60_000,
    env: ['OTEL_METRIC_EXPORT_INTERVAL'],
    doc: 'How often metrics are exported.',
    section: SECTION,
  },
  otelDisabled: {
    type: 'bool',
    default: false,
    env: ['OTEL_SDK_DISABLED'],
    doc: 'Exports nothing, whatever else is set.',
    section: SECTION,
  },
} as const satisfies Record<string, Setting>

export interface TelemetrySettings {
  readonly otlpEndpoint: string | undefined
  readonly otlpTracesEndpoint: string | undefined
  readonly otlpMetricsEndpoint: string | undefined
  readonly otlpHeaders: string | undefined
  readonly otlpProtocol: string | undefined
  readonly otelServiceName: string | undefined
  readonly otelResourceAttributes: string | undefined
  readonly otelSampleRatio: number
  readonly otelMetricsIntervalMs: number
  readonly otelDisabled: boolean
}

export interface TelemetryParts {
  /** Name of the service unless the settings have one. */
  name: string
  version: string
  /** What is exported; only asked for when anything is. */
  metrics: () => Metrics
  log: Logger
  now: () => number
}

export interface Telemetry {
  /** Absent when nobody listens. */
  trace?: Trace
  metrics?: Metrics
  /** Exports what is left, for a few seconds at the most. */
  close(): Promise<void>
}

/** Begins to export, if the settings say where to. */
export async function startTelemetry(settings: TelemetrySettings, parts: TelemetryParts): Promise<Telemetry> {
  const base = settings.otlpEndpoint?.replace(/\/+$/, '')
  const traces = settings.otlpTracesEndpoint ?? (base && `${base}/v1/traces`)
  const metrics = settings.otlpMetricsEndpoint ?? (base && `${base}/v1/metrics`)
  if (settings.otelDisabled || (!traces && !metrics)) return { close: async () => {} }
  if (settings.otlpProtocol !== undefined && settings.otlpProtocol !== 'http/json') {
    parts.log.warn({ asked: settings.otlpProtocol }, 'OTLP is exported as http/json')
  }
  const [{ Exporter }, { Fetcher }] = await Promise.all([import('./otlp/exporter.ts'), import('./fetch.ts')])
  // The operator names the collector, so it may be anywhere.
  const fetcher = new Fetcher({ allowPrivate: true, userAgent: `${parts.name}/${parts.version}` })
  const registered = parts.metrics()
  const exporter = new Exporter({
    ...parts,
    metrics: registered,
    fetch: fetcher.fetch,
    name: settings.otelServiceName ?? parts.name,
    tracesUrl: traces,
    metricsUrl: metrics,
    headers: settings.otlpHeaders,
    attributes: settings.otelResourceAttributes,
    sampleRatio: settings.otelSampleRatio,
    metricsIntervalMs: settings.otelMetricsIntervalMs,
  })
  return {
    ...(traces ? { trace: (span: Span) => exporter.record(span) } : {}),
    metrics: registered,
    async close() {
      await exporter.close()
      await fetcher.close()
    },
  }
}
