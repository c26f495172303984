import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer } from 'node:http'
import { test } from 'node:test'
import { defineSettings, readSettings } from './config.ts'
import { createHttp, listen } from './http.ts'
import { encodeMetrics } from './otlp/encode.ts'
import { Exporter, type ExporterParts } from './otlp/exporter.ts'
import { startTelemetry, telemetrySettings } from './telemetry.ts'
import { createMetrics, silentLog } from './trace.ts'

type After = { after(fn: () => Promise<unknown> | unknown): void }

interface Attribute {
  key: string
  value: { stringValue?: string }
}
interface SentSpan {
  traceId: string
  spanId: string
  parentSpanId?: string
  name: string
  kind: number
  status?: { code: number }
}
interface Point {
  attributes: Attribute[]
  asDouble?: number
  count?: string
  sum?: number
  bucketCounts?: string[]
  explicitBounds?: number[]
}
interface SentMetric {
  name: string
  sum?: { dataPoints: Point[]; isMonotonic: boolean }
  gauge?: { dataPoints: Point[] }
  histogram?: { dataPoints: Point[] }
}
interface Body {
  resourceSpans?: { resource: { attributes: Attribute[] }; scopeSpans: { spans: SentSpan[] }[] }[]
  resourceMetrics?: { scopeMetrics: { metrics: SentMetric[] }[] }[]
}

/** A collector that keeps what it is sent, and answers as told. */
async function collector(t: After) {
  const got: { path: string; headers: Record<string, unknown>; body: Body }[] = []
  const answers: number[] = []
  const server = createServer(async (request, reply) => {
    let text = ''
    for await (const chunk of request) text += chunk
    const status = answers.shift() ?? 200
    if (status === 200) got.push({ path: request.url ?? '', headers: request.headers, body: JSON.parse(text) as Body })
    reply.writeHead(status).end('{}')
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.after(() => {
    server.closeAllConnections()
    server.close()
  })
  const { port } = server.address() as { port: number }
  return { url: `http://127.0.0.1:${port}`, got, answers, spans: () => got.flatMap(({ body }) => spansOf(body)) }
}

const spansOf = (body: Body) => (body.resourceSpans ?? []).flatMap(({ scopeSpans }) => scopeSpans[0]!.spans)
const table = defineSettings('x', telemetrySettings)
const settingsOf = (env: Record<string, string>) => readSettings(table, [], { env })
const parts = { name: 'millisky-x', version: '1.2.3', log: silentLog, now: () => 1_700_000_000_123.5 }

test('without a collector nothing is loaded or recorded', async () => {
  let asked = 0
  for (const env of [{}, { OTEL_EXPORTER_OTLP_ENDPOINT: 'http://localhost:1', OTEL_SDK_DISABLED: 'true' }] as Record<
    string,
    string
  >[]) {
    const telemetry = await startTelemetry(settingsOf(env), {
      ...parts,
      metrics: () => {
        asked++
        return createMetrics()
      },
    })
    assert.deepEqual([telemetry.trace, telemetry.metrics], [undefined, undefined])
    await telemetry.close()
  }
  assert.equal(asked, 0)
})

test('spans and metrics reach the collector with what the settings say of the service', async t => {
  const { url, got } = await collector(t)
  const metrics = createMetrics()
  metrics.counter('things_total', 'Things.', { kind: ['a', 'b'] }).inc({ kind: 'a' }, 3)
  const telemetry = await startTelemetry(
    settingsOf({
      OTEL_EXPORTER_OTLP_ENDPOINT: `${url}/`,
      OTEL_EXPORTER_OTLP_HEADERS: 'authorization=Bearer%20x,x-tenant=7',
      OTEL_RESOURCE_ATTRIBUTES: 'deployment.environment=test',
      OTEL_SERVICE_NAME: 'our-relay',
    }),
    { ...parts, metrics: () => metrics },
  )
  telemetry.trace?.({ name: 'work', kind: 'internal', durationMs: 2.25, attributes: { n: 1, f: 0.5, s: 'x', b: true } })
  await telemetry.close()
  const traces = got.find(({ path }) => path === '/v1/traces')!
  assert.equal(traces.headers['content-type'], 'application/json')
  assert.deepEqual([traces.headers.authorization, traces.headers['x-tenant']], ['Bearer x', '7'])
  const resource = new Map(
    traces.body.resourceSpans![0]!.resource.attributes.map(({ key, value }) => [key, value.stringValue]),
  )
  assert.deepEqual(
    [resource.get('service.name'), resource.get('service.version'), resource.get('deployment.environment')],
    ['our-relay', '1.2.3', 'test'],
  )
  const { traceId, spanId, ...span } = spansOf(traces.body)[0]!
  assert.match(traceId, /^[0-9a-f]{32}$/)
  assert.match(spanId, /^[0-9a-f]{16}$/)
  assert.deepEqual(span, {
    name: 'work',
    kind: 1,
    startTimeUnixNano: '1700000000121250000',
    endTimeUnixNano: '1700000000123500000',
    attributes: [
      { key: 'n', value: { intValue: '1' } },
      { key: 'f', value: { doubleValue: 0.5 } },
      { key: 's', value: { stringValue: 'x' } },
      { key: 'b', value: { boolValue: true } },
    ],
  })
  const sent = got.find(({ path }) => path === '/v1/metrics')!.body.resourceMetrics![0]!.scopeMetrics[0]!.metrics
  const things = sent.find(({ name }) => name === 'things_total')
  assert.deepEqual(things?.sum?.dataPoints[0]?.attributes, [{ key: 'kind', value: { stringValue: 'a' } }])
  assert.deepEqual([things?.sum?.dataPoints[0]?.asDouble, things?.sum?.isMonotonic], [3, true])
})

test('requests are spans, part of the trace of their caller', async t => {
  const { url, spans } = await collector(t)
  const telemetry = await startTelemetry(settingsOf({ OTEL_EXPORTER_OTLP_ENDPOINT: url }), {
    ...parts,
    now: Date.now,
    metrics: () => createMetrics(),
  })
  const http = createHttp({ log: silentLog, product: 'x', trace: telemetry.trace })
  http.get('/fine', () => ({}))
  http.get('/broken', () => {
    throw new Error('a bug')
  })
  const at = await listen(http, { port: 0 })
  const traceId = '0af7651916cd43dd8448eb211c80319c'
  const call = (path: string, flags?: string) =>
    fetch(at + path, flags === undefined ? {} : { headers: { traceparent: `00-${traceId}-b7ad6b7169203331-${flags}` } })
  await call('/fine', '01')
  // The caller does not want this one.
  await call('/fine', '00')
  await call('/broken?secret=1')
  await http.close()
  await telemetry.close()
  const found = spans().map(({ name, kind, status, parentSpanId }) => ({
    name,
    kind,
    failed: status?.code,
    parentSpanId,
  }))
  assert.deepEqual(found, [
    { name: 'GET /fine', kind: 2, failed: undefined, parentSpanId: 'b7ad6b7169203331' },
    { name: 'GET /broken', kind: 2, failed: 2, parentSpanId: undefined },
  ])
  assert.equal(spans()[0]!.traceId, traceId)
  assert.doesNotMatch(JSON.stringify(spans()), /secret/)
})

function exporter(more: Partial<ExporterParts>) {
  const metrics = createMetrics()
  const sent: number[] = []
  const made = new Exporter({
    ...parts,
    tracesUrl: 'http://collector/v1/traces',
    metricsUrl: undefined,
    headers: undefined,
    attributes: undefined,
    sampleRatio: 1,
    metricsIntervalMs: 60_000,
    metrics,
    fetch: async (_url, options) => {
      sent.push(spansOf(JSON.parse(String(options?.body)) as Body).length)
      return { status: 200, headers: new Headers(), url: '', bytes: new Uint8Array() }
    },
    ...more,
  })
  return { made, metrics, sent }
}

test('a collector that is away costs a bounded memory, and gets what is left when it is back', async () => {
  let isAway = true
  const sent: number[] = []
  const { made, metrics } = exporter({
    fetch: async (_url, options) => {
      if (isAway) throw new Error('nobody is there')
      sent.push(spansOf(JSON.parse(String(options?.body)) as Body).length)
      return { status: 200, headers: new Headers(), url: '', bytes: new Uint8Array() }
    },
  })
  for (let i = 0; i < 5_000; i++) made.record({ name: 'work', kind: 'internal', durationMs: 1 })
  await made.flush()
  isAway = false
  await made.close()
  assert.equal(
    sent.reduce((a, b) => a + b, 0),
    4_096,
  )
  assert.match(await metrics.text(), /otlp_spans_total\{result="lost"\} 904\n.*"sent"\} 4096/)
})

test('only a part of the traces is kept when the settings say so', async () => {
  const { made, sent } = exporter({ sampleRatio: 0.25 })
  for (let i = 0; i < 2_000; i++) made.record({ name: 'work', kind: 'internal', durationMs: 1 })
  await made.close()
  const kept = sent.reduce((a, b) => a + b, 0)
  assert.ok(kept > 300 && kept < 700, `${kept}`)
})

test('histograms are given apart what prom-client sums up', async () => {
  const metrics = createMetrics()
  const seconds = metrics.histogram('seconds', 'Time.', { labels: { kind: ['a', 'b'] }, buckets: [1, 2, 5] })
  for (const value of [0.5, 1.5, 1.5, 9]) seconds.observe({ kind: 'a' }, value)
  seconds.observe({ kind: 'b' }, 3)
  metrics.gauge('level', 'A level.').set({}, 7)
  const encoded = encodeMetrics(await metrics.registry.getMetricsAsJSON(), { startMs: 0, nowMs: 1 }) as SentMetric[]
  const points = encoded[0]!.histogram!.dataPoints.map(({ attributes, count, sum, bucketCounts, explicitBounds }) => {
    return [attributes[0]!.value.stringValue, count, sum, bucketCounts, explicitBounds]
  })
  assert.deepEqual(points, [
    ['a', '4', 12.5, ['1', '2', '0', '1'], [1, 2, 5]],
    ['b', '1', 3, ['0', '0', '1', '0'], [1, 2, 5]],
  ])
  assert.equal(encoded[1]!.gauge!.dataPoints[0]!.asDouble, 7)
})
