// What passes and what does not, event by event. The numbers are those of the list of behaviours that relays are held to.
import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { utf8 } from '@millisky/core/bytes'
import { writeCar } from '@millisky/core/car'
import { encode, type Value } from '@millisky/core/cbor'
import { Cid } from '@millisky/core/cid'
import { signCommit } from '@millisky/core/commit'
import { SigningKey } from '@millisky/core/crypto'
import { accountEvent, commitEvent, type Event, encodeFrame, syncEvent, withSeq } from '@millisky/core/event'
import { sha256 } from '@millisky/core/hash'
import { apply, type Change } from '@millisky/core/repo'
import { encodeTid } from '@millisky/core/tid'
import { until } from '@millisky/server/testing-until'
import { FakeAccount, type FakePds, now } from '../e2e/fake-pds.ts'
import { type Consumer, World } from './world.ts'

function patched(event: Event, fields: Record<string, unknown>): Event {
  return { ...event, body: { ...event.body, ...fields } as Event['body'] }
}
const commitOf = (change: Change) => commitEvent(change, now())
const syncOf = (change: Change) =>
  syncEvent({ did: change.head.did, rev: change.head.rev, commit: change.commit }, now())
const post = (account: FakeAccount) => commitOf(account.post('hello'))
const draft = (account: FakeAccount) => commitOf(account.post('never kept', { keep: false }))
const ops = (event: Event) => event.body.ops as { path: string; action: string; cid: unknown; prev?: unknown }[]
const EMPTY: Uint8Array = new Uint8Array([0xa0])
const OTHER_CID = Cid.ofCbor(EMPTY)

function broken(bytes: Uint8Array): Uint8Array {
  const copy = bytes.slice()
  copy[copy.length - 5]! ^= 1
  return copy
}

/** A commit without operations, dated so many milliseconds ahead. */
function empty(account: FakeAccount, aheadMs = 1): Event {
  const { did, head, blocks, key } = account
  const rev = encodeTid((Date.now() + aheadMs) * 1000, 9)
  const change = apply({ did, head, blocks, writes: [], rev, key })
  account.adopt(change)
  return commitOf(change)
}

/** A commit that creates one record. */
function writing(account: FakeAccount, record: Value): Event {
  const { did, head, blocks, key } = account
  const bytes = encode(record)
  const path = `com.example.record/${encodeTid(Date.now() * 1000, 11)}`
  const rev = encodeTid((Date.now() + 1) * 1000, 9)
  const change = apply({
    did,
    head,
    blocks,
    writes: [{ action: 'create', path, cid: Cid.ofCbor(bytes), bytes }],
    rev,
    key,
  })
  account.adopt(change)
  return commitOf(change)
}

/** A commit that is signed as it should be, over a tree whose root is these bytes. */
function crafted({ did, key }: FakeAccount, root: Uint8Array, path: string, record = EMPTY): Event {
  const data = Cid.ofCbor(root)
  const rev = encodeTid(Date.now() * 1000, 12)
  const { block } = signCommit({ did, data, rev }, key)
  const cid = Cid.ofCbor(record)
  const blocks = writeCar([block.cid], [block, { cid: data, bytes: root }, { cid, bytes: record }])
  const op = { action: 'create', path, cid }
  const fields = { repo: did, commit: block.cid, rev, since: null, blocks, ops: [op], blobs: [], time: now() }
  return { t: '#commit', body: { seq: 0, rebase: false, tooBig: false, ...fields } } as Event
}

/** Events of one account in order; each passes (null) or does not, for this reason. */
type Case = [name: string, play: (account: FakeAccount, neighbour: FakeAccount) => [Event, string | null][]]

const CASES: Case[] = [
  [
    'T39 blocks of more than 2,000,000 bytes',
    a => [[patched(draft(a), { blocks: new Uint8Array(2_000_001) }), 'blocks-too-large']],
  ],
  [
    'T40 more than 200 operations',
    a => {
      const event = draft(a)
      return [[patched(event, { ops: Array.from({ length: 201 }, () => ops(event)[0]) }), 'too-many-ops']]
    },
  ],
  [
    'T41 a record of more than 1,000,000 bytes',
    a => {
      const record = encode({ $type: 'com.example.record', text: 'x'.repeat(1_000_000) })
      const path = 'com.example.record/3kaaaaaaaaa2a'
      const root = encode({ l: null, e: [{ p: 0, k: utf8(path), v: Cid.ofCbor(record), t: null }] })
      return [[crafted(a, root, path, record), 'record-too-large']]
    },
  ],
  [
    'T59 trees that are none',
    a => {
      const path = (n: number) => `app.bsky.feed.post/3kaaaaaaaaa2${'abcdefgh'[n]}`
      const entry = (n: number, p = 0) => ({ p, k: utf8(path(n).slice(p)), v: OTHER_CID, t: null })
      const nodes = [
        { l: null, e: [entry(2), entry(1)] },
        { l: null, e: [entry(1, 3)] },
        { l: null, e: [entry(1), entry(2, 99)] },
        { l: null, e: [] as unknown[], more: true },
        { l: null },
        [],
      ]
      return nodes.map(node => [crafted(a, encode(node as Value), path(1)), 'bad-tree'])
    },
  ],
  [
    'T60 CIDs that nobody has heard of, and records of unknown kind',
    a => {
      const strange = Cid.fromBytes(new Uint8Array([1, 0x55, 0x00, 3, 7, 7, 7]))
      return [[writing(a, { $type: 'com.example.unheard.of', strange }), null]]
    },
  ],
  [
    'T72 times that are long ago or far ahead pass, what is no time does not',
    a => [
      [patched(post(a), { time: '1985-04-12T23:20:50.123Z' }), null],
      [patched(post(a), { time: '2985-04-12T23:20:50.123Z' }), null],
      [patched(draft(a), { time: 'yesterday' }), 'bad-fields'],
    ],
  ],
  [
    'T42 a #sync of more than 10,000 bytes',
    a => [[patched(syncOf(a.post('x')), { blocks: new Uint8Array(10_001) }), 'blocks-too-large']],
  ],
  [
    'T43 a block that is not what its CID says',
    a => {
      const event = draft(a)
      return [[patched(event, { blocks: broken(event.body.blocks as Uint8Array) }), 'bad-block-hash']]
    },
  ],
  ['T43 blocks that are no CAR', a => [[patched(draft(a), { blocks: new Uint8Array([1, 2, 3]) }), 'bad-car']]],
  ['T44 a commit that is not the root', a => [[patched(draft(a), { commit: OTHER_CID }), 'commit-not-root']]],
  ["T45 another account's commit", (a, neighbour) => [[patched(draft(a), { repo: neighbour.did }), 'did-mismatch']]],
  [
    'T45 a rev that is not that of the commit',
    a => [[patched(draft(a), { rev: encodeTid(Date.now() * 1000, 3) }), 'rev-mismatch']],
  ],
  [
    'T46 a signature of another key',
    a => {
      const key = SigningKey.fromPrivate('k256', sha256(new Uint8Array([1])))
      return [
        [commitOf(a.post('forged', { key, keep: false })), 'bad-signature'],
        [post(a), null],
      ]
    },
  ],
  [
    'T47 a DID that there is not',
    a => [[commitOf(new FakeAccount(`did:plc:${'z'.repeat(24)}` as never, a.key).post('x')), 'no-pds']],
  ],
  [
    'T49 a rev that is not above the last one',
    a => {
      const stale = draft(a)
      const [first, second] = [post(a), post(a)]
      return [
        [first, null],
        [second, null],
        [stale, 'rev-stale'],
        [second, 'rev-stale'],
        [post(a), null],
      ]
    },
  ],
  ['T49 a rev of the future', a => [[empty(a, 600_000), 'rev-future']]],
  [
    'T51 T57 a commit that does not follow the last one is passed on, and what follows it too',
    a => {
      const first = post(a)
      post(a)
      return [
        [first, null],
        [post(a), null],
        [post(a), null],
      ]
    },
  ],
  [
    'T52 operations that do not lead back to prevData',
    a => {
      const first = post(a)
      return [
        [first, null],
        [patched(draft(a), { prevData: OTHER_CID }), 'inversion-mismatch'],
        [post(a), null],
      ]
    },
  ],
  [
    'T52 an operation that is not told',
    a => [
      [post(a), null],
      [patched(draft(a), { ops: [] }), 'inversion-mismatch'],
      [post(a), null],
    ],
  ],
  [
    'T53 operations of a wrong shape',
    a => {
      const event = draft(a)
      const [op] = ops(event)
      return [
        [patched(event, { ops: [{ ...op, prev: OTHER_CID }] }), 'bad-op'],
        [patched(event, { ops: [{ ...op, cid: null }] }), 'bad-op'],
        [patched(event, { ops: [{ ...op, path: 'no-slash' }] }), 'bad-op'],
        [patched(event, { ops: [op, op] }), 'duplicate-path'],
        [patched(event, { ops: [{ ...op, cid: OTHER_CID }] }), 'op-not-in-tree'],
        [patched(event, { ops: [{ ...op, action: 'rename' }] }), 'bad-fields'],
      ]
    },
  ],
  [
    'T54 an empty commit passes',
    a => [
      [post(a), null],
      [empty(a), null],
    ],
  ],
  [
    'T55 a first commit passes, with and without what was before',
    a => {
      post(a)
      return [[post(a), null]]
    },
  ],
  [
    'T56 tooBig and rebase',
    a => [
      [patched(draft(a), { tooBig: true }), 'too-big-flag'],
      [patched(draft(a), { rebase: true }), 'rebase-flag'],
    ],
  ],
  [
    'T58 a #sync: newer passes, the same and older do not',
    a => {
      const [first, second] = [a.post('1'), a.post('2')]
      return [
        [commitOf(first), null],
        [syncOf(second), null],
        [syncOf(second), 'sync-unchanged'],
        [syncOf(first), 'rev-stale'],
        [post(a), null],
      ]
    },
  ],
  [
    'T66 commits of an account that its host said is inactive',
    a => [
      [post(a), null],
      [accountEvent({ did: a.did, active: false, status: 'deactivated' }, now()), null],
      [post(a), 'account-inactive'],
      [accountEvent({ did: a.did, active: true }, now()), null],
      [post(a), null],
    ],
  ],
  [
    'T67 statuses that nobody has heard of, and inactivity without one',
    a => [
      [accountEvent({ did: a.did, active: false, status: 'on-holiday' }, now()), null],
      [accountEvent({ did: a.did, active: false }, now()), null],
      [accountEvent({ did: a.did, active: false, status: 'x'.repeat(65) }, now()), 'bad-fields'],
    ],
  ],
]

for (const workers of ['0', '1']) {
  describe(`commits, ${workers === '0' ? 'judged in process' : 'judged by a thread'}`, () => {
    let world: World
    let consumer: Consumer
    let pds: FakePds
    let name: string
    let seq = 0
    before(async () => {
      world = await World.start({ env: { RELAY_VERIFY_WORKERS: workers } })
      ;({ pds, name } = await world.host())
      consumer = await world.consumer()
    })
    after(() => world.stop())

    for (const [i, [title, play]] of CASES.entries()) {
      test(title, async () => {
        const account = await pds.createAccount(world.plc.url, `case${i}`)
        const neighbour = await pds.createAccount(world.plc.url, `neighbour${i}`)
        const start = consumer.frames.length
        const passing: Event[] = []
        const expected: Record<string, number> = {}
        const rejectedBefore = await world.rejects(name)
        for (const [event, reason] of play(account, neighbour)) {
          if (reason === null) passing.push(event)
          else expected[reason] = (expected[reason] ?? 0) + 1
          pds.send(event)
          seq++
        }
        await world.settled(pds, seq)
        const rejected = await world.rejects(name)
        const fresh = Object.fromEntries(
          Object.entries(rejected).flatMap(([reason, count]) => {
            const more = count - (rejectedBefore[reason] ?? 0)
            return more > 0 ? [[reason, more]] : []
          }),
        )
        assert.deepEqual(fresh, expected)
        await until('all that passes has come', () => consumer.frames.length >= start + passing.length)
        const bytes = passing.map((event, n) => withSeq(encodeFrame(event), consumer.seqs[start + n]!))
        assert.deepEqual(
          consumer.raw.slice(start).map(raw => Buffer.from(raw).toString('hex')),
          bytes.map(raw => Buffer.from(raw).toString('hex')),
        )
      })
    }

    test('T48 an account of another host', async () => {
      const { pds: other, name: otherName } = await world.host()
      const foreign = await other.createAccount(world.plc.url, 'foreign')
      const start = consumer.frames.length
      for (const event of [
        post(foreign),
        accountEvent({ did: foreign.did, active: false, status: 'deleted' }, now()),
      ]) {
        pds.send(event)
        seq++
      }
      await world.settled(pds, seq)
      assert.equal((await world.rejects(name))['wrong-host'], 2)
      assert.equal(consumer.frames.length, start)
      assert.deepEqual(await world.rejects(otherName), {})
    })
  })
}
