import assert from 'node:assert/strict'
import { test } from 'node:test'
import { createLog, createMetrics } from './trace.ts'

function lines() {
  const written: Record<string, unknown>[] = []
  return { written, destination: { write: (line: string) => void written.push(JSON.parse(line)) } }
}

test('a line is a JSON object with level, time and name', () => {
  const { written, destination } = lines()
  createLog({ name: 'pds', destination }).info({ did: 'did:web:x' }, 'hello')
  const [line] = written
  assert.equal(line?.level, 'info')
  assert.equal(line?.name, 'pds')
  assert.equal(line?.msg, 'hello')
  assert.match(String(line?.time), /^\d{4}-\d\d-\d\dT/)
})

test('levels below the chosen one are not written', () => {
  const { written, destination } = lines()
  const log = createLog({ name: 'x', level: 'warn', destination })
  log.info('no')
  log.warn('yes')
  assert.deepEqual(
    written.map(line => line.msg),
    ['yes'],
  )
})

test('credentials are never written, wherever they stand', () => {
  const { written, destination } = lines()
  const log = createLog({ name: 'x', destination })
  const secret = 'hunter2'
  log.info({ password: secret, token: secret })
  log.info({ headers: { authorization: secret, cookie: secret, dpop: secret, 'x-ratelimit-bypass': secret } })
  log.info({ req: { headers: { authorization: secret }, body: { refreshJwt: secret } } })
  assert.equal(written.length, 3)
  assert.ok(!JSON.stringify(written).includes(secret))
  assert.equal(written[0]?.password, '(secret)')
})

test('labels outside their set are counted as other', async () => {
  const metrics = createMetrics()
  const drops = metrics.counter('drops_total', 'Drops.', { reason: ['stale', 'bad'] })
  drops.inc({ reason: 'stale' })
  drops.inc({ reason: 'invented' }, 2)
  drops.inc({ reason: 'other' })
  const text = await metrics.text()
  assert.match(text, /drops_total\{reason="stale"\} 1/)
  assert.match(text, /drops_total\{reason="other"\} 3/)
  assert.ok(!text.includes('invented'))
})

test('an open set keeps the first so many values', async () => {
  const metrics = createMetrics()
  const events = metrics.counter('events_total', 'Events.', { host: 3 })
  for (let i = 0; i < 1000; i++) events.inc({ host: `host-${i}` })
  events.inc({ host: 'host-0' })
  const text = await metrics.text()
  assert.match(text, /events_total\{host="host-0"\} 2/)
  assert.match(text, /events_total\{host="other"\} 997/)
  assert.equal(text.match(/^events_total\{/gm)?.length, 4)
})

test('gauges are read at each scrape, histograms have their buckets, labels are not changed', async () => {
  const metrics = createMetrics()
  let size = 1
  metrics.gauge('queue', 'Queue.', { collect: gauge => gauge.set({}, size) })
  const seconds = metrics.histogram('seconds', 'Time.', { labels: { code: ['2xx'] }, buckets: [1, 2] })
  const labels = Object.freeze({ code: '999' })
  seconds.observe(labels, 1.5)
  assert.match(await metrics.text(), /queue 1\n/)
  size = 5
  const text = await metrics.text()
  assert.match(text, /queue 5\n/)
  assert.match(text, /seconds_bucket\{le="2",code="other"\} 1/)
})

test('two registries do not share anything', () => {
  for (let i = 0; i < 2; i++) createMetrics({ process: true }).counter('same_total', 'Same.')
})
