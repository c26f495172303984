import assert from 'node:assert/strict'
import { test } from 'node:test'
import { decode } from '@millisky/core/cbor'
import { commitEvent, encodeFrame, type Frame, withSeq } from '@millisky/core/event'
import { jsonToValue, valueToJson } from '@millisky/core/json'
import { batches, TestRepo, TIME } from '@millisky/core/testing-repos'
import fc from 'fast-check'
import { scanWire, toWire } from '../log/frame-wire.ts'
import { Entry } from './digest.ts'
import { jetstreamEvents } from './jetstream-event.ts'

function entryOf(frame: Frame['bytes']): Entry {
  const wire = toWire(frame)
  const span = scanWire(wire, 0)
  assert.ok(span !== null && span !== 'bad')
  return new Entry(wire, wire.subarray(span.start, span.end))
}

test('every write of any commit is told, in order, with the record as it was written', () => {
  fc.assert(
    fc.property(batches({ size: 6, count: 4 }), list => {
      const repo = new TestRepo('any')
      for (const writes of list) {
        if (writes.length === 0) continue
        const change = repo.write(...writes)
        const entry = entryOf(withSeq(encodeFrame(commitEvent(change, TIME)), 9))
        const told = jetstreamEvents(entry, 77).map(event => JSON.parse(event.json() ?? 'null'))
        // The order is that of the commit's operations.
        const byPath = new Map(writes.map(write => [write.path, write]))
        const expected = change.ops.map(({ path }) => {
          const write = byPath.get(path)!
          const [collection, rkey] = path.split('/')
          const what =
            write.action === 'delete'
              ? {}
              : { record: JSON.parse(valueToJson(decode(write.bytes))), cid: write.cid.toString() }
          const commit = { rev: change.head.rev, operation: write.action, collection, rkey, ...what }
          return { did: repo.did, time_us: 77, kind: 'commit', commit }
        })
        assert.deepEqual(told, expected)
        assert.deepEqual([...entry.collections].sort(), [...new Set(expected.map(e => e.commit.collection))].sort())
      }
    }),
    { numRuns: 30 },
  )
})

test('a frame that is not as it should be is passed over, in every form, without an error', () => {
  const repo = new TestRepo('broken')
  const change = repo.write(...[1, 2].map(i => ({ action: 'create' as const, path: `a.b.c/${i}`, ...record(i) })))
  const whole = withSeq(encodeFrame(commitEvent(change, TIME)), 9)
  fc.assert(
    fc.property(fc.array(fc.tuple(fc.nat(whole.length - 1), fc.nat(255)), { minLength: 1, maxLength: 4 }), harm => {
      const frame = whole.slice()
      for (const [at, byte] of harm) frame[at] = byte
      const entry = entryOf(frame)
      for (const event of jetstreamEvents(entry, 77)) JSON.parse(event.json() ?? 'null')
      for (const packing of ['json', 'json+deflate', 'cbor+deflate'] as const) entry.as(packing)
      const json = entry.as('json')
      if (json) jsonToValue(Buffer.from(json.subarray(json[1]! < 126 ? 2 : 4)).toString(), { floats: true })
      assert.equal(Buffer.compare(entry.as('cbor')!, toWire(frame)), 0)
    }),
    { numRuns: 500 },
  )
})

function record(i: number) {
  const repo = new TestRepo(`record ${i}`)
  const { commit } = repo.write()
  return { cid: commit.cid, bytes: commit.bytes }
}
