// Traces and metrics of real daemons reach a collector that the standard variable names.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { createServer } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { Daemon } from './network.ts'
import { freePort } from './ports.ts'

interface Attribute {
  key: string
  value: { stringValue?: string }
}
interface Resource {
  resource: { attributes: Attribute[] }
  scopeSpans?: { spans: { name: string; kind: number }[] }[]
  scopeMetrics?: { metrics: { name: string }[] }[]
}

test('a Relay and a PDS export traces and metrics', async t => {
  const folder = await mkdtemp(join(tmpdir(), 'millisky-telemetry-'))
  t.after(() => rm(folder, { recursive: true, force: true }))
  const spans = new Map<string, Set<string>>()
  const metrics = new Map<string, Set<string>>()
  const add = (to: Map<string, Set<string>>, { resource }: Resource, names: string[]) => {
    const service = resource.attributes.find(({ key }) => key === 'service.name')?.value.stringValue ?? ''
    to.set(service, new Set([...(to.get(service) ?? []), ...names]))
  }
  const collector = createServer(async (request, reply) => {
    let text = ''
    for await (const chunk of request) text += chunk
    const body = JSON.parse(text) as { resourceSpans?: Resource[]; resourceMetrics?: Resource[] }
    for (const one of body.resourceSpans ?? []) {
      add(
        spans,
        one,
        one.scopeSpans!.flatMap(scope => scope.spans.map(({ name }) => name)),
      )
    }
    for (const one of body.resourceMetrics ?? []) {
      add(
        metrics,
        one,
        one.scopeMetrics!.flatMap(scope => scope.metrics.map(({ name }) => name)),
      )
    }
    reply.end('{}')
  }).listen(0, '127.0.0.1')
  await once(collector, 'listening')
  t.after(() => {
    collector.closeAllConnections()
    collector.close()
  })
  const endpoint = `http://127.0.0.1:${(collector.address() as { port: number }).port}`
  const [relayPort, pdsPort] = [await freePort(), await freePort()]
  const relay = new Daemon('relay', relayPort, {
    OTEL_EXPORTER_OTLP_ENDPOINT: endpoint,
    RELAY_API_BIND: `127.0.0.1:${relayPort}`,
    RELAY_PERSIST_DIR: join(folder, 'log'),
    DATABASE_URL: `sqlite://${join(folder, 'relay.sqlite')}`,
    RELAY_VERIFY_WORKERS: '0',
  })
  const pds = new Daemon('pds', pdsPort, {
    OTEL_EXPORTER_OTLP_ENDPOINT: endpoint,
    OTEL_SERVICE_NAME: 'our-pds',
    PDS_PORT: String(pdsPort),
    PDS_HOSTNAME: 'localhost',
    PDS_DATA_DIRECTORY: join(folder, 'pds'),
    PDS_DEV_MODE: 'true',
    PDS_ADMIN_PASSWORD: 'pds-admin',
    PDS_JWT_SECRET: '0123456789abcdef0123456789abcdef',
    PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX: '11'.repeat(32),
  })
  t.after(() => Promise.all([relay.stop(), pds.stop()]))
  await Promise.all([relay.start(), pds.start()])
  await fetch(`${relay.url}/xrpc/com.atproto.sync.listHosts`)
  await fetch(`${pds.url}/xrpc/com.atproto.server.describeServer`)
  // What is left is exported when they stop.
  await Promise.all([relay.stop(), pds.stop()])
  assert.ok(spans.get('millisky-relay')?.has('GET com.atproto.sync.listHosts'), [...spans].join())
  assert.ok(spans.get('our-pds')?.has('GET com.atproto.server.describeServer'))
  for (const name of ['relay_hosts', 'http_request_duration_seconds', 'process_cpu_seconds_total']) {
    assert.ok(metrics.get('millisky-relay')?.has(name), name)
  }
  assert.ok(metrics.get('our-pds')?.has('http_request_duration_seconds'))
})
