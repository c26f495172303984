import assert from 'node:assert/strict'
import { type TestContext, test } from 'node:test'
import { setTimeout as wait } from 'node:timers/promises'
import { SigningKey } from '@millisky/core/crypto'
import { type PlcUpdate, plcCid, plcDidOf, plcGenesis, signPlcOperation } from '@millisky/core/plc'
import { Fetcher } from '../fetch.ts'
import { until } from '../testing-until.ts'
import { type ExportLine, type ExportPosition, PlcExport, type PlcExportSink } from './plc-export.ts'
import { TestPlcUpstream } from './testing-plc-upstream.ts'

const NOW = Date.parse('2026-06-01T00:00:00Z')
const key = SigningKey.fromPrivate('k256', new Uint8Array(32).fill(1))

/** Another account's first operation for each number. */
function line(n: number) {
  const pds = 'https://pds.example.com'
  const unsigned = plcGenesis({
    rotationKeys: [key.didKey],
    signingKey: key.didKey,
    handle: `a${n}.example.com`,
    pds,
  })
  const operation = signPlcOperation<PlcUpdate>(unsigned, key)
  const createdAt = new Date(NOW - 1_000 + n).toISOString()
  return { did: plcDidOf(operation), operation, cid: plcCid(operation), createdAt }
}

class Sink implements PlcExportSink {
  at: ExportPosition = { seq: 0, cid: null, trueAt: null }
  seqs: number[] = []
  unreadable: number[] = []
  cleared = 0
  delayMs = 0
  inHand = 0
  mostInHand = 0

  async position() {
    return this.at
  }

  async take(lines: readonly ExportLine[], position: ExportPosition) {
    this.inHand += lines.length
    this.mostInHand = Math.max(this.mostInHand, this.inHand)
    if (this.delayMs > 0) await wait(this.delayMs)
    this.seqs.push(...lines.map(({ seq }) => seq))
    this.unreadable.push(...lines.flatMap(one => ('entry' in one ? [] : one.seq)))
    this.at = position
    this.inHand -= lines.length
  }
}

async function stage(t: TestContext, upstream: TestPlcUpstream, sink: PlcExportSink, page = 1_000) {
  const fetcher = new Fetcher({ allowPrivate: true, userAgent: 'test' })
  const troubles: string[] = []
  const follower = new PlcExport({
    url: upstream.url,
    fetcher,
    userAgent: 'test',
    sink,
    now: () => NOW,
    onTrouble: (problem, state) => troubles.push(`${state}: ${problem}`),
    settings: { retryMinMs: 5, retryMaxMs: 20, page },
  })
  await follower.start()
  let stopping: Promise<void> | null = null
  const stop = () => (stopping ??= follower.stop().then(() => fetcher.close()))
  t.after(stop)
  return { follower, troubles, stop }
}

async function upstreamOf(t: TestContext, count: number): Promise<TestPlcUpstream> {
  const upstream = await TestPlcUpstream.start()
  t.after(() => upstream.close())
  for (let n = 1; n <= count; n++) upstream.say(n, line(n))
  return upstream
}

const upTo = (n: number) => Array.from({ length: n }, (_, i) => i + 1)

test('pages are read to the end, then the stream, each line once; a restart goes on', async t => {
  const upstream = await upstreamOf(t, 25)
  const sink = new Sink()
  const first = await stage(t, upstream, sink, 10)
  await until('it has come so far', () => first.follower.state === 'live')
  assert.equal(upstream.pages, 3)
  assert.equal(sink.at.trueAt, NOW)
  upstream.say(27, line(27))
  await until('it has come so far', () => sink.seqs.length === 26)
  upstream.cut()
  upstream.say(30, line(30))
  await until('it has come so far', () => sink.seqs.length === 27)
  await first.stop()
  upstream.say(31, line(31))
  const second = await stage(t, upstream, sink, 10)
  assert.equal(second.follower.trueAt, NOW)
  await until('it has come so far', () => second.follower.state === 'live' && sink.seqs.length === 28)
  assert.deepEqual(sink.seqs, [...upTo(25), 27, 30, 31])
  assert.equal(second.follower.trueAt, NOW)
})

test('a page that is cut off is read up to there, and the rest asked for again', async t => {
  const upstream = await upstreamOf(t, 20)
  let cuts = 3
  upstream.tamper = body => (cuts-- > 0 ? body.slice(0, body.length / 2) : body)
  const sink = new Sink()
  const { follower } = await stage(t, upstream, sink)
  await until('it has come so far', () => follower.state === 'live')
  assert.deepEqual(sink.seqs, upTo(20))
})

test('a line that holds no operation is handed over as that; one without a place ends the stream', async t => {
  const upstream = await upstreamOf(t, 2)
  upstream.say(3, { did: 'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa', operation: { type: 'new' } })
  upstream.say(4, { ...line(4), cid: line(5).cid })
  const sink = new Sink()
  const { follower, troubles } = await stage(t, upstream, sink)
  await until('it has come so far', () => follower.state === 'live')
  assert.deepEqual([sink.seqs, sink.unreadable], [upTo(4), [3, 4]])
  for (const bad of ['{', '{"seq": "5"}', JSON.stringify({ seq: 2, ...line(2) }), Uint8Array.of(1)]) {
    const before = troubles.length
    upstream.send(bad)
    await until('it has come so far', () => troubles.length > before)
    await until('it has come so far', () => follower.state === 'live')
  }
  upstream.say(5, line(5))
  await until('it has come so far', () => sink.seqs.length === 5)
  assert.deepEqual(sink.seqs, upTo(5))
})

test('what the stream no longer holds is read in pages', async t => {
  const upstream = await upstreamOf(t, 5)
  upstream.refuseStream = 'OutdatedCursor'
  const sink = new Sink()
  const { troubles } = await stage(t, upstream, sink)
  await until('it has come so far', () => troubles.some(trouble => trouble.includes('OutdatedCursor')))
  const { pages } = upstream
  await until('it has come so far', () => upstream.pages >= pages + 2)
  upstream.refuseStream = null
  upstream.say(6, line(6))
  await until('it has come so far', () => sink.seqs.length === 6)
})

test('a directory that was put back in time is told, and nothing of it is taken', async t => {
  const upstream = await upstreamOf(t, 5)
  const sink = new Sink()
  const first = await stage(t, upstream, sink)
  await until('it has come so far', () => first.follower.state === 'live')
  upstream.lines.length = 3
  upstream.cut()
  await until('it has come so far', () => first.follower.state === 'behind')
  for (const n of [14, 15, 16]) upstream.say(n - 10, line(n))
  await until('it has come so far', () => first.follower.state === 'diverged')
  await wait(50)
  assert.deepEqual(sink.seqs, upTo(5))
  await first.stop()
  const willing = Object.assign(sink, {
    async clear() {
      sink.cleared++
      sink.seqs = []
      sink.at = { seq: 0, cid: null, trueAt: null }
    },
  })
  const second = await stage(t, upstream, willing)
  await until('it has come so far', () => second.follower.state === 'live')
  assert.deepEqual([sink.cleared, sink.seqs], [1, upTo(6)])
})

test('no more is in hand than one page, however slow the sink is', async t => {
  const upstream = await upstreamOf(t, 60)
  const sink = new Sink()
  sink.delayMs = 5
  const { follower } = await stage(t, upstream, sink, 10)
  await until('it has come so far', () => follower.state === 'live')
  assert.deepEqual([sink.mostInHand, sink.seqs.length], [10, 60])
})

test('pages out of order are refused', async t => {
  const upstream = await upstreamOf(t, 4)
  upstream.lines.reverse()
  const sink = new Sink()
  const { troubles } = await stage(t, upstream, sink)
  await until('it has come so far', () => troubles.length > 0)
  assert.match(troubles[0]!, /not in order/)
  assert.deepEqual(sink.seqs, [])
})

test('a directory that wants to be left alone for a while is', async t => {
  const upstream = await upstreamOf(t, 3)
  upstream.busy = 1
  const sink = new Sink()
  const { follower, troubles } = await stage(t, upstream, sink)
  await until('it has come so far', () => troubles.length === 1)
  // Without the directory's word it would have tried again several times.
  await wait(100)
  assert.deepEqual([upstream.pages, follower.state, sink.seqs], [1, 'waiting', []])
})
