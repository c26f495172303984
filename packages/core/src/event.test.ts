import assert from 'node:assert/strict'
import { test } from 'node:test'
import { decodeFirst as atcuteDecodeFirst } from '@atcute/cbor'
import { parseCommitAuthenticated } from '@atproto/sync'
import { decode as ipldDecode } from '@ipld/dag-cbor'
import fc from 'fast-check'
import { concat, hex, utf8 } from './bytes.ts'
import { decodeAll, encode, type Obj, type Value } from './cbor.ts'
import { Cid } from './cid.ts'
import { Malformed } from './errors.ts'
import {
  accountEvent,
  commitEvent,
  decodeFrame,
  encodeFrame,
  errorFrame,
  identityEvent,
  infoFrame,
  peek,
  readAccount,
  readCommit,
  readError,
  readIdentity,
  readInfo,
  readSync,
  rewriteFrame,
  syncEvent,
  withSeq,
} from './event.ts'
import * as subscribeRepos from './lexicon/gen/com/atproto/sync/subscribeRepos.ts'
import { FRAME_BYTES_MAX, SEQ_MAX } from './limits.ts'
import type { Handle } from './syntax.ts'
import { create, frameOf, remove, TestRepo, TIME, testDid, update } from './testing-repos.ts'

const did = testDid('alice')
const path = 'app.bsky.feed.post/1'

function changes() {
  const repo = new TestRepo('alice')
  const first = repo.write(create(path, 'one'), create('app.bsky.feed.post/2', 'two'))
  const second = repo.write(update(path, 'three'), remove('app.bsky.feed.post/2'), create('app.bsky.feed.like/1', ''))
  return { repo, first, second }
}

/** One event of each kind. */
function events() {
  const { first, second } = changes()
  return [
    commitEvent(first, TIME),
    commitEvent(second, TIME),
    syncEvent({ did, rev: first.head.rev, commit: first.commit }, TIME),
    identityEvent({ did, handle: 'alice.test' as Handle }, TIME),
    identityEvent({ did }, TIME),
    accountEvent({ did, active: true }, TIME),
    accountEvent({ did, active: false, status: 'deactivated' }, TIME),
  ]
}

test('the headers are the bytes of the specification', () => {
  for (const event of events()) {
    const header = hex(concat([Uint8Array.of(0xa2, 0x61, 0x74, 0x60 + event.t.length), utf8(event.t)]))
    assert.ok(hex(encodeFrame(event)).startsWith(`${header}626f7001`), event.t)
  }
  assert.ok(hex(errorFrame('FutureCursor')).startsWith('a1626f7020a1'))
  assert.ok(hex(infoFrame('OutdatedCursor')).startsWith('a261746523696e666f626f7001a1'))
})

test('error and info frames say what they were given', () => {
  const error = decodeFrame(errorFrame('ConsumerTooSlow', 'Stream consumer too slow'))
  assert.equal(error.op, -1)
  assert.equal(error.t, null)
  assert.deepEqual(readError(error.body), { error: 'ConsumerTooSlow', message: 'Stream consumer too slow' })
  assert.deepEqual(decodeFrame(errorFrame('FutureCursor')).body, { error: 'FutureCursor' })
  const info = decodeFrame(infoFrame('OutdatedCursor', 'some are gone'))
  assert.deepEqual([info.op, info.t], [1, '#info'])
  assert.deepEqual(readInfo(info.body), { name: 'OutdatedCursor', message: 'some are gone' })
  assert.deepEqual(readInfo({ name: 'X' }), { name: 'X', message: null })
})

test('a #commit carries all fields, the deprecated ones and explicit nulls too', () => {
  const { first, second } = changes()
  const genesis = commitEvent(first, TIME).body
  const fields = ['ops', 'rev', 'seq', 'repo', 'time', 'blobs', 'since', 'blocks', 'commit', 'rebase', 'tooBig']
  assert.deepEqual(Object.keys(genesis).sort(), fields.toSorted())
  assert.equal(genesis.since, null)
  assert.deepEqual([genesis.rebase, genesis.tooBig, genesis.blobs], [false, false, []])
  const { body } = commitEvent(second, TIME)
  assert.deepEqual(Object.keys(body).sort(), [...fields, 'prevData'].sort())
  assert.equal(body.since, first.head.rev)
  assert.ok(first.head.data.equals(body.prevData as Cid))
  const ops = (body.ops as Obj[]).map(op => [op.action, Object.keys(op), op.cid === null])
  assert.deepEqual(ops, [
    ['update', ['action', 'path', 'cid', 'prev'], false],
    ['delete', ['action', 'path', 'cid', 'prev'], true],
    ['create', ['action', 'path', 'cid'], false],
  ])
})

test('messages read back through their readers', () => {
  const { first, second } = changes()
  const commit = readCommit(decodeFrame(frameOf(commitEvent(second, TIME), 77)).body)
  assert.deepEqual(commit, {
    seq: 77,
    rebase: false,
    tooBig: false,
    repo: did,
    commit: second.head.commit,
    rev: second.head.rev,
    since: first.head.rev,
    blocks: second.car,
    ops: second.ops,
    prevData: first.head.data,
    time: TIME,
  })
  assert.equal(readCommit(decodeFrame(frameOf(commitEvent(first, TIME))).body).prevData, null)
  const { rev } = first.head
  const sync = readSync(decodeFrame(frameOf(syncEvent({ did, rev, commit: first.commit }, TIME), 5)).body)
  assert.deepEqual({ ...sync, blocks: null }, { seq: 5, did, rev, time: TIME, blocks: null })
  const identity = decodeFrame(frameOf(identityEvent({ did, handle: 'alice.test' as Handle }, TIME)))
  assert.deepEqual(readIdentity(identity.body), { seq: 1, did, time: TIME, handle: 'alice.test' })
  assert.equal(readIdentity(decodeFrame(frameOf(identityEvent({ did }, TIME))).body).handle, null)
  const account = decodeFrame(frameOf(accountEvent({ did, active: false, status: 'invented' }, TIME)))
  assert.deepEqual(readAccount(account.body), { seq: 1, did, time: TIME, active: false, status: 'invented' })
  assert.equal(readAccount(decodeFrame(frameOf(accountEvent({ did, active: false }, TIME))).body).status, null)
})

test('other decoders read the frames, and the lexicon approves of them', () => {
  for (const event of events()) {
    const frame = frameOf(event, 12)
    const [header, rest] = atcuteDecodeFirst(frame)
    assert.deepEqual({ ...header }, { t: event.t, op: 1 })
    assert.deepEqual(atcuteDecodeFirst(rest)[1].length, 0)
    const body = ipldDecode(rest) as Record<string, unknown>
    assert.deepEqual(Object.keys(body), Object.keys(decodeFrame(frame).body))
    const message = { $type: `com.atproto.sync.subscribeRepos${event.t}`, ...decodeFrame(frame).body }
    const result = subscribeRepos.$message.safeParse(message as never)
    assert.ok(result.success, `${event.t}: ${!result.success && result.reason}`)
  }
})

test('the reference’s consumer authenticates our commits and finds every operation', async () => {
  const { repo, first, second } = changes()
  const didKey = repo.key.publicKey.didKey
  const idResolver = { did: { resolveAtprotoKey: async () => didKey } }
  for (const change of [first, second]) {
    const [, rest] = atcuteDecodeFirst(frameOf(commitEvent(change, TIME), 12))
    const found = await parseCommitAuthenticated(idResolver as never, ipldDecode(rest) as never)
    assert.deepEqual(
      found.map(event => [event.event, `${event.collection}/${event.rkey}`, event.seq]),
      change.ops.map(op => [op.action, op.path, 12]),
    )
  }
})

test('malformed frames are refused', () => {
  const header = encode({ t: '#commit', op: 1 })
  const bad: [string, Uint8Array][] = [
    ['nothing', new Uint8Array(0)],
    ['header only', header],
    ['header not a map', concat([encode(['#commit']), encode({})])],
    ['no op', concat([encode({ t: '#commit' }), encode({})])],
    ['op as text', concat([encode({ t: '#commit', op: '1' }), encode({})])],
    ['no t', concat([encode({ op: 1 }), encode({})])],
    ['t not a text', concat([encode({ op: 1, t: 4 }), encode({})])],
    ['body not a map', concat([header, encode([])])],
    ['body a link', concat([header, encode(Cid.ofCbor(header))])],
    ['error not a map', concat([encode({ op: -1 }), encode('no')])],
    ['bytes behind', concat([header, encode({}), Uint8Array.of(0)])],
    ['a third item', concat([header, encode({}), encode({})])],
    ['cut short', concat([header, encode({ a: 'b' })]).subarray(0, -1)],
    ['not canonical', concat([header, Uint8Array.of(0xa1, 0x61, 0x61, 0x18, 0x01)])],
    ['too many items', concat([header, encode({ b: Array.from({ length: 2 }, () => new Array(70_000).fill({})) })])],
    ['too large', concat([header, encode({ b: new Uint8Array(FRAME_BYTES_MAX) })])],
  ]
  for (const [what, bytes] of bad) assert.throws(() => decodeFrame(bytes), Malformed, what)
})

test('what is unknown is represented, not refused', () => {
  const type = decodeFrame(concat([encode({ t: '#later', op: 1, more: [1] }), encode({ x: 1 })]))
  assert.deepEqual([type.op, type.t, type.header.more, type.body], [1, '#later', [1], { x: 1 }])
  const op = decodeFrame(concat([encode({ op: 2, t: '#commit' }), encode([1, 2])]))
  assert.deepEqual([op.op, op.t, op.body], [2, null, {}])
  const float = decodeFrame(concat([encode({ t: '#commit', op: 1 }), encode({ f: 1.5 }, { floats: true })]))
  assert.equal(float.body.f, 1.5)
})

test('rewriting changes the named fields and keeps the others', () => {
  const odd = { ...accountEvent({ did, active: true }, TIME).body, unknown: [{ deep: -1 }], f: 1.5 }
  const frame = decodeFrame(encodeFrame({ t: '#account', body: odd }))
  const rewritten = decodeFrame(rewriteFrame(frame, { active: false, status: 'takendown' }))
  assert.deepEqual(rewritten.body, { ...odd, active: false, status: 'takendown' })
  assert.deepEqual(rewritten.header, frame.header)
  const handle = decodeFrame(frameOf(identityEvent({ did, handle: 'alice.test' as Handle }, TIME), 9))
  assert.deepEqual(rewriteFrame(handle, { handle: undefined }), frameOf(identityEvent({ did }, TIME), 9))
})

test('readers refuse what the lexicon refuses', () => {
  const { second } = changes()
  const { body } = commitEvent(second, TIME)
  const op = (fields: Obj) => ({ ...body, ops: [{ ...(body.ops as Obj[])[0], ...fields }] })
  const without = (name: string) => {
    const { [name]: _, ...rest } = body
    return rest
  }
  const optional = ['rebase', 'tooBig', 'blobs', 'prevData']
  for (const name of Object.keys(body)) {
    if (optional.includes(name)) assert.ok(readCommit(without(name)), name)
    else assert.throws(() => readCommit(without(name)), Malformed, name)
    if (name !== 'blobs') assert.throws(() => readCommit({ ...body, [name]: 'x' }), Malformed, name)
  }
  const bad: Obj[] = [
    { ...body, seq: -1 },
    { ...body, seq: 2n ** 53n },
    { ...body, time: '2026-02-30T00:00:00Z' },
    { ...body, ops: [1] },
    op({ action: 'replace' }),
    op({ path: 1 }),
    op({ cid: 'bafy' }),
    op({ prev: 'bafy' }),
  ]
  for (const each of bad) assert.throws(() => readCommit(each), Malformed)
  const { cid: _, ...noCid } = (body.ops as Obj[])[0]!
  assert.throws(() => readCommit({ ...body, ops: [noCid] }), Malformed)
  assert.equal(readCommit(op({ prev: null })).ops[0]!.prev, null)
  assert.throws(() => readAccount({ seq: 1, did, time: TIME }), Malformed)
  assert.throws(() => readAccount({ seq: 1, did, time: TIME, active: false, status: 3 }), Malformed)
  assert.throws(() => readIdentity({ seq: 1, did: 'alice', time: TIME }), Malformed)
  assert.throws(() => readIdentity({ seq: 1, did, time: TIME, handle: 1 }), Malformed)
  assert.throws(() => readSync({ seq: 1, did, time: TIME, rev: second.head.rev }), Malformed)
  assert.throws(() => readInfo({}), Malformed)
  assert.throws(() => readError({}), Malformed)
})

const cids = fc.uint8Array({ minLength: 1, maxLength: 4 }).map(bytes => Cid.ofCbor(bytes))
/** Any data, floats among it. */
const { value: values } = fc.letrec<{ value: Value }>(tie => ({
  value: fc.oneof(
    { maxDepth: 3 },
    fc.constantFrom<Value>(null, true, false, 2n ** 63n, -(2n ** 60n)),
    fc.maxSafeInteger(),
    fc.double({ noNaN: true, noDefaultInfinity: true }).filter(n => !Number.isInteger(n)),
    fc.string({ unit: 'binary' }),
    fc.uint8Array({ maxLength: 300 }),
    cids,
    fc.array(tie('value'), { maxLength: 4 }),
    fc.dictionary(fc.string({ maxLength: 6 }), tie('value'), { maxKeys: 4 }),
  ),
}))
const names = fc.oneof(
  fc.constantFrom('did', 'repo', 'ops', 'rev', 'blocks', 'sea', 'seq2'),
  fc.string({ maxLength: 6 }),
)
const seqs = fc.oneof(
  fc.constantFrom(0, 23, 24, 255, 256, 65_535, 65_536, 2 ** 32 - 1, 2 ** 32, SEQ_MAX),
  fc.integer({ min: 0, max: SEQ_MAX }),
)
const bodies = fc.dictionary(names, values, { maxKeys: 6 })
const headers = fc.record({ t: fc.constantFrom('#commit', '#sync', '#later'), extra: values })

test('another seq changes that integer alone, whatever else a frame holds', () => {
  fc.assert(
    fc.property(headers, bodies, seqs, seqs, (header, body, before, after) => {
      const bytesWith = (seq: number) =>
        concat([encode({ ...header, op: 1 }, { floats: true }), encode({ ...body, seq }, { floats: true })])
      const frame = bytesWith(before)
      const copy = frame.slice()
      assert.deepEqual(withSeq(frame, after), bytesWith(after))
      assert.deepEqual(frame, copy)
    }),
    { numRuns: 500 },
  )
})

test('a frame without seq cannot be given one', () => {
  assert.throws(() => withSeq(infoFrame('OutdatedCursor'), 1), Malformed)
  assert.throws(() => withSeq(errorFrame('FutureCursor'), 1), Malformed)
  assert.throws(() => withSeq(encodeFrame({ t: '#commit', body: { seq: 'one' } }), 1), Malformed)
  for (const seq of [-1, 1.5, SEQ_MAX + 1, Number.NaN]) {
    assert.throws(() => withSeq(encodeFrame({ t: '#sync', body: { seq: 0 } }), seq), RangeError)
  }
})

test('the result of withSeq is the caller’s own', () => {
  const frame = frameOf(identityEvent({ did }, TIME), 1)
  const [a, b] = [withSeq(frame, 2), withSeq(frame, 3)]
  a.fill(0)
  assert.deepEqual(b, frameOf(identityEvent({ did }, TIME), 3))
})

test('peeking finds what decoding finds', () => {
  for (const event of events()) {
    assert.deepEqual(peek(frameOf(event, 99)), { op: 1, t: event.t, did, seq: 99 })
  }
  assert.deepEqual(peek(errorFrame('FutureCursor')), { op: -1, t: null, did: null, seq: null })
  assert.deepEqual(peek(infoFrame('OutdatedCursor')), { op: 1, t: '#info', did: null, seq: null })
  fc.assert(
    fc.property(headers, bodies, fc.option(seqs), (header, body, seq) => {
      const fields = seq === null ? body : { ...body, seq }
      const bytes = concat([encode({ ...header, op: 1 }, { floats: true }), encode(fields, { floats: true })])
      const who = body[header.t === '#commit' ? 'repo' : 'did']
      const found = peek(bytes)
      assert.deepEqual([found.op, found.t, found.seq], [1, header.t, seq])
      // Beyond ASCII it is garbled, but not mistaken for nothing.
      if (typeof who === 'string' && /^[\0-\x7f]*$/.test(who)) assert.equal(found.did, who)
      else assert.equal(found.did === null, typeof who !== 'string')
    }),
    { numRuns: 500 },
  )
})

test('any bytes at all end as a value or as Malformed', () => {
  const whole = events().map(event => frameOf(event, 3))
  const damaged = fc
    .tuple(fc.constantFrom(...whole), fc.nat(), fc.nat(255), fc.nat())
    .map(([frame, at, byte, length]) => {
      const copy = frame.slice(0, frame.length - (length % 3 === 0 ? length % frame.length : 0))
      if (copy.length > 0) copy[at % Math.min(copy.length, 300)] = byte
      return copy
    })
  fc.assert(
    fc.property(fc.oneof(damaged, fc.uint8Array({ maxLength: 60 })), bytes => {
      for (const look of [peek, decodeFrame, (b: Uint8Array) => withSeq(b, 7)]) {
        try {
          look(bytes)
        } catch (error) {
          assert.ok(error instanceof Malformed, `${error}`)
        }
      }
    }),
    { numRuns: 2000 },
  )
})

test('a frame is two items, each canonical', () => {
  for (const event of events()) {
    const frame = frameOf(event, 4)
    const items = decodeAll(frame)
    assert.equal(items.length, 2)
    assert.deepEqual(concat(items.map(item => encode(item))), frame)
    assert.ok(!('$type' in (items[1] as Obj)))
  }
})
