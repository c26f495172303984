import assert from 'node:assert/strict'
import { once } from 'node:events'
import { test } from 'node:test'
import { WebSocket } from 'ws'
import { startTestPds } from './testing-pds.ts'

test('stopping lets consumers of the stream go, and does not wait for them to leave', { timeout: 60_000 }, async t => {
  const pds = await startTestPds(t)
  const consumer = new WebSocket(`${pds.url.replace('http', 'ws')}/xrpc/com.atproto.sync.subscribeRepos?cursor=0`)
  const events: unknown[] = []
  consumer.on('message', data => events.push(data))
  await once(consumer, 'open')
  await pds.user('alice')
  const closed = once(consumer, 'close')
  await pds.close()
  assert.equal((await closed)[0], 1012)
  assert.ok(events.length > 0)
})
