import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import {
  type Checkpoint,
  cidOf,
  decodeCheckpoint,
  EventList,
  EventListWriter,
  fromJson,
  linkOf,
  Replay,
  signCheckpoint,
  toJson,
} from './checkpoint.ts'
import { Cid } from './cid.ts'
import { Malformed } from './errors.ts'
import { encodeFrame, infoFrame, withSeq } from './event.ts'
import { TIME, testDid, testKey } from './testing-repos.ts'

const key = testKey('relay')
const frameAt = (seq: number, what = 'x') =>
  withSeq(encodeFrame({ t: '#identity', body: { seq: 0, did: testDid(what), time: TIME } }), seq)

function signed(seqs: readonly number[], { after = 0, prev = null as Cid | null, count = seqs.length } = {}) {
  const writer = new EventListWriter()
  for (const seq of seqs) writer.add(frameAt(seq))
  const last = seqs.at(-1)!
  const unsigned = { after, last, count, events: Cid.ofRaw(writer.bytes), prev, time: TIME }
  return { ...signCheckpoint(unsigned, key), list: writer.bytes }
}

const risingSeqs = fc
  .uniqueArray(fc.integer({ min: 1, max: 60 }), { minLength: 1, maxLength: 40 })
  .map(seqs => seqs.sort((a, b) => a - b))

test('what is left out, altered or put in is found, and nothing else', () => {
  fc.assert(
    fc.property(
      risingSeqs,
      fc.nat(60),
      fc.array(fc.constantFrom('send', 'send', 'withhold', 'alter'), { minLength: 60, maxLength: 60 }),
      fc.boolean(),
      (seqs, from, deeds, extra) => {
        const { checkpoint, list } = signed(seqs)
        const replay = new Replay(new EventList(checkpoint, list), from)
        const expected = { matched: 0, withheld: [] as number[], altered: [] as number[], unsigned: [] as number[] }
        for (let seq = from + 1; seq <= checkpoint.last; seq++) {
          const deed = deeds[seq % 60]!
          if (!seqs.includes(seq)) {
            if (!extra || deed !== 'alter') continue
            replay.take(seq, frameAt(seq))
            expected.unsigned.push(seq)
          } else if (deed === 'withhold') expected.withheld.push(seq)
          else {
            replay.take(seq, frameAt(seq, deed === 'alter' ? 'y' : 'x'))
            if (deed === 'alter') expected.altered.push(seq)
            else expected.matched++
          }
        }
        assert.deepEqual(replay.finish(), expected)
      },
    ),
    { numRuns: 200 },
  )
})

test('a checkpoint survives CBOR and JSON, and says its own CID', () => {
  const first = signed([3, 4, 9])
  const second = signed([10, 1_000_000], { after: 9, prev: first.cid })
  for (const { checkpoint, bytes, cid } of [first, second]) {
    assert.deepEqual(decodeCheckpoint(bytes), checkpoint)
    const json = JSON.parse(JSON.stringify(toJson(checkpoint)))
    assert.deepEqual(fromJson(json), checkpoint)
    assert.equal(json.cid, cid.toString())
    assert.ok(cidOf(fromJson(json)).equals(cid))
  }
  assert.equal(linkOf(first.checkpoint, second.checkpoint), 'follows')
  const late = signed([20], { after: 15, prev: first.cid })
  assert.equal(linkOf(first.checkpoint, late.checkpoint), 'hole')
  const overlapping = signed([12], { after: 8, prev: first.cid })
  assert.throws(() => linkOf(first.checkpoint, overlapping.checkpoint), Malformed)
  for (const prev of [null, second.cid]) {
    assert.throws(() => linkOf(first.checkpoint, signed([12], { after: 9, prev }).checkpoint), Malformed)
  }
})

test('whatever is changed in a checkpoint, it is not believed', () => {
  const json = toJson(signed([3, 4, 9]).checkpoint)
  const other = toJson(signed([3, 4, 10], { after: 1, prev: Cid.ofRaw(Uint8Array.of(1)) }).checkpoint)
  const changes: object[] = [
    { after: 1 },
    { last: 10 },
    { last: 0 },
    { count: 4 },
    { count: 2 },
    { after: -1 },
    { after: 1.5 },
    { count: 200_000, last: 300_000 },
    { events: other.events },
    { prev: other.prev },
    { time: '2026-08-20T12:00:01.000Z' },
    { time: 'now' },
    { key: testKey('another').didKey },
    { key: 'x' },
    { sig: other.sig },
    { sig: '' },
    { events: undefined },
  ]
  for (const change of changes) {
    assert.throws(() => fromJson({ ...json, ...change } as typeof json), Malformed, JSON.stringify(change))
  }
  assert.throws(() => decodeCheckpoint(Uint8Array.of(0xa0)), Malformed)
})

test('a list that is not the one that was signed is refused', () => {
  const { checkpoint, list } = signed([3, 4, 9])
  assert.throws(() => new EventList(checkpoint, list.subarray(40)), Malformed)
  const broken = (more: Partial<Checkpoint>, bytes: Uint8Array) =>
    assert.throws(() => new EventList({ ...checkpoint, ...more, events: Cid.ofRaw(bytes) }, bytes), Malformed)
  broken({ count: 2 }, list)
  broken({ last: 10 }, list)
  broken({ after: 3 }, list)
  const swapped = new Uint8Array([...list.subarray(40, 80), ...list.subarray(0, 40), ...list.subarray(80)])
  broken({}, swapped)
  broken({}, list.subarray(0, 119))
})

test('lists are of events with rising seq, however many', () => {
  const writer = new EventListWriter()
  assert.throws(() => writer.add(infoFrame('x')), Malformed)
  for (let seq = 1; seq <= 1_000; seq++) writer.add(frameAt(seq))
  assert.throws(() => writer.add(frameAt(1_000)), Malformed)
  assert.deepEqual([writer.count, writer.last, writer.bytes.length], [1_000, 1_000, 40_000])
})
