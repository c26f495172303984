import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { Answer, FetchBytes } from '@millisky/server/fetch'
import { silentLog } from '@millisky/server/trace'
import { Crawlers } from './crawl.ts'

/** A world in which relays answer as told and waiting takes no time. */
function world(answers: (number | Error)[]) {
  const asked: { url: string; body: string }[] = []
  const waits: number[] = []
  let now = 0
  const fetch: FetchBytes = async (url, options) => {
    asked.push({ url: String(url), body: String(options?.body) })
    const answer = answers.shift() ?? 200
    if (answer instanceof Error) throw answer
    return { status: answer, bytes: new Uint8Array(), headers: new Headers(), url: String(url) } as unknown as Answer
  }
  const crawlers = new Crawlers({
    relays: ['https://relay.test'],
    publicHost: 'pds.test',
    fetch,
    log: silentLog,
    now: () => now,
    sleep: async ms => {
      waits.push(ms)
    },
  })
  return { asked, waits, crawlers, pass: (ms: number) => (now += ms) }
}
const settled = () => new Promise(done => setImmediate(() => setImmediate(done)))

test('a relay is told the host name, and not again for twenty minutes', async () => {
  const { asked, crawlers, pass } = world([])
  crawlers.notify()
  crawlers.notify()
  await settled()
  assert.deepEqual(asked, [
    { url: 'https://relay.test/xrpc/com.atproto.sync.requestCrawl', body: '{"hostname":"pds.test"}' },
  ])
  pass(19 * 60_000)
  crawlers.notify()
  await settled()
  assert.equal(asked.length, 1)
  pass(60_000)
  crawlers.notify()
  await settled()
  assert.equal(asked.length, 2)
  await crawlers.close()
})

test('a request that fails is repeated with growing waits until it is answered', async () => {
  const { asked, waits, crawlers } = world([new Error('down'), 500, 429, 200])
  crawlers.notify()
  await settled()
  assert.equal(asked.length, 4)
  assert.deepEqual(waits, [1_000, 2_000, 4_000])
  await crawlers.close()
})

test('closing ends the attempts', async () => {
  const { crawlers, asked } = world([])
  await crawlers.close()
  crawlers.notify()
  await settled()
  assert.equal(asked.length, 0)
})
