import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { Block } from './blocks.ts'
import { base32, utf8 } from './bytes.ts'
import { readCar, writeCar } from './car.ts'
import { encode, type Obj } from './cbor.ts'
import { Cid } from './cid.ts'
import { decodeCommit, signCommit } from './commit.ts'
import { accountEvent, decodeFrame, type Frame, identityEvent, infoFrame, syncEvent } from './event.ts'
import { COMMIT_BLOCK_COUNT_MAX, FRAME_BYTES_MAX } from './limits.ts'
import { SlowTree } from './mst/testing-trees.ts'
import { Tree } from './mst/tree.ts'
import type { Change, Head, Write } from './repo.ts'
import type { Did, Handle, Tid } from './syntax.ts'
import {
  commitFrame,
  create,
  createOp,
  dropped,
  frameOf,
  HOST,
  handmade,
  judgeFrame,
  NOW,
  pathsOfHeights,
  TestRepo,
  TIME,
  tampered,
  testDid,
  testKey,
  testRecord,
  update,
} from './testing-repos.ts'
import { encodeTid } from './tid.ts'
import { type AccountState, type JudgeInput, judge, REASON_TEXT, REASONS, type Reason, type Verdict } from './verify.ts'

const path = 'app.bsky.feed.post/1'

/** A repository with some records, the frame of one more commit, and where it stood before. */
function scene(...writes: Write[]) {
  const repo = new TestRepo('alice')
  for (let i = 0; i < 40; i += 10) {
    repo.write(...Array.from({ length: 10 }, (_, j) => create(`app.bsky.feed.like/${i + j}`, `${i + j}`)))
  }
  const prior = repo.head!
  const change = repo.write(
    ...(writes.length > 0 ? writes : [create(path, 'hello'), update('app.bsky.feed.like/7', 'x')]),
  )
  return { repo, prior, change, frame: commitFrame(change) }
}

type More = Partial<JudgeInput>
/** The verdict on the scene's commit with fields of the event replaced. */
function withFields(fields: { [name: string]: Obj[string] | undefined }, more: More = {}): Verdict {
  const { repo, prior, frame } = scene()
  return judgeFrame(repo, tampered(frame, fields), prior, more)
}

/** The verdict on the scene's commit with its blocks replaced. */
function withBlocks(edit: (blocks: Block[], change: Change) => Block[], more: More = {}): Verdict {
  const { repo, prior, change, frame } = scene()
  const { roots, blocks } = readCar(change.car)
  return judgeFrame(repo, tampered(frame, { blocks: writeCar(roots, edit(blocks, change)) }), prior, more)
}

/** The verdict on the scene's commit with its operations replaced. */
function withOps(edit: (ops: Obj[]) => Obj[], more: More = {}): Verdict {
  const { repo, prior, frame } = scene()
  return judgeFrame(repo, tampered(frame, { ops: edit(frame.body.ops as Obj[]) }), prior, more)
}

/** The verdict on the scene's commit with other things remembered. */
function withPrior(fields: (prior: Head, change: Change) => Partial<AccountState>, more: More = {}): Verdict {
  const { repo, prior, change, frame } = scene()
  return judgeFrame(repo, frame, prior, { prior: { ...repo.stateAt(prior), ...fields(prior, change) }, ...more })
}

/** A first commit with records of any bytes. */
function ofRecords(...contents: Uint8Array[]): Verdict {
  const records = contents.map(bytes => ({ cid: Cid.ofCbor(bytes), bytes }))
  const entries = records.map(({ cid }, i) => [`a.b.c/${i}`, cid] as const)
  const tree = Tree.build(entries)
  return handmade({
    tree: [...tree.nodes()],
    root: tree.root,
    records,
    ops: entries.map(([path, cid]) => createOp(path, cid)),
  })
}

/** A commit over the same tree, signed as given, in the place of the scene's. */
function recommitted(fields: { did?: Did; rev?: Tid; key?: string; raw?: Obj }, event: Obj = {}): Verdict {
  const { repo, prior, change, frame } = scene()
  const { did, rev, data } = { ...change.head, ...fields }
  let { block } = signCommit({ did, rev, data }, fields.key ? testKey(fields.key) : repo.key)
  if (fields.raw) {
    const bytes = encode({ ...decodeCommit(block.bytes), ...fields.raw } as unknown as Obj)
    block = { cid: Cid.ofCbor(bytes), bytes }
  }
  const blocks = [block, ...readCar(change.car).blocks.slice(1)]
  const slice = { blocks: writeCar([block.cid], blocks), commit: block.cid }
  return judgeFrame(repo, tampered(frame, { ...slice, ...event }), prior)
}

function syncFrame(change: Change, did = change.head.did): Frame {
  return decodeFrame(frameOf(syncEvent({ did, rev: change.head.rev, commit: change.commit }, TIME)))
}

/** A one-node tree whose keys stand on whatever layer, or anything else that decodes as one should not. */
function badTree(): Verdict {
  const keys = pathsOfHeights(0, 1)
  const { cid } = testRecord('x')
  const tree = new SlowTree(
    keys.map(key => [key, cid] as const),
    () => 0,
  )
  return handmade({
    tree: tree.nodes,
    root: tree.nodes[0]!.cid,
    records: [{ cid, bytes: testRecord('x').bytes }],
    ops: keys.map(key => createOp(key, cid)),
  })
}

const otherCid = testRecord('other').cid

/** How each reason comes about. */
const CAUSES: Record<Reason, () => Verdict> = {
  'frame-too-large': () => {
    const { repo, prior, frame } = scene()
    return judgeFrame(repo, { ...frame, bytes: new Uint8Array(FRAME_BYTES_MAX + 1) }, prior)
  },
  'unknown-type': () => {
    const { repo, prior } = scene()
    return judgeFrame(repo, decodeFrame(infoFrame('OutdatedCursor')), prior)
  },
  'bad-fields': () => withFields({ since: undefined }),
  'unsupported-did': () => withFields({ repo: 'did:key:zQ3shokFTS3brHcDQrn82RUDfCZESWL1ZdCEJwekUDPQiYBme' }),
  'blocks-too-large': () => withFields({ blocks: new Uint8Array(2_000_001) }),
  'too-many-ops': () => withFields({ ops: Array.from({ length: 201 }, () => ({})) }),
  'too-big-flag': () => withFields({ tooBig: true }),
  'rebase-flag': () => withFields({ rebase: true }),
  'account-inactive': () => withPrior(() => ({ active: false, status: 'deactivated' })),
  'account-blocked': () => withPrior(() => ({ local: 'takendown' })),
  unresolved: () => withFields({}, { identity: null }),
  'no-pds': () => withFields({}, { identity: { pds: null, key: testKey('alice').publicKey, fresh: true } }),
  'no-key': () => withFields({}, { identity: { pds: `https://${HOST}`, key: null, fresh: true } }),
  'wrong-host': () => withFields({}, { host: 'evil.test' }),
  'bad-signature': () => recommitted({ key: 'mallory' }),
  'rev-stale': () => withPrior(() => ({ rev: encodeTid(NOW * 1000, 0) })),
  'rev-reused': () => withPrior((_, change) => ({ rev: change.head.rev })),
  'rev-future': () => withFields({ rev: encodeTid((NOW + 301_000) * 1000, 0) }),
  'sync-unchanged': () => {
    const { repo, change } = scene()
    return judgeFrame(repo, syncFrame(change), change.head)
  },
  'bad-car': () => withFields({ blocks: utf8('not a CAR') }),
  'too-many-blocks': () => {
    const tiny = { cid: Cid.ofRaw(new Uint8Array(0)), bytes: new Uint8Array(0) }
    return withBlocks(blocks => [...blocks, ...Array.from({ length: COMMIT_BLOCK_COUNT_MAX }, () => tiny)])
  },
  'bad-block-hash': () => withBlocks(blocks => [...blocks, { cid: otherCid, bytes: utf8('not it') }]),
  'commit-not-root': () => withFields({ commit: otherCid }),
  'no-commit-block': () => withBlocks((blocks, change) => dropped(blocks, change.commit.cid)),
  'bad-commit': () => recommitted({ raw: { version: 4 } }),
  'did-mismatch': () => recommitted({ did: testDid('bob') }),
  'rev-mismatch': () => recommitted({}, { rev: encodeTid((NOW - 1000) * 1000, 0) }),
  'bad-op': () => withOps(([op, ...rest]) => [{ ...op, prev: otherCid }, ...rest]),
  'duplicate-path': () => withOps(ops => [...ops, ops[0]!]),
  'record-too-large': () => ofRecords(encode({ text: 'x'.repeat(1_000_000) })),
  'bad-record': () => ofRecords(encode({ fine: true }), encode('no map')),
  'bad-tree': badTree,
  'op-not-in-tree': () => withOps(([op, ...rest]) => [{ ...op, path: 'app.bsky.feed.post/other' }, ...rest]),
  'record-missing': () => withBlocks(blocks => dropped(blocks, testRecord('hello').cid)),
  'op-without-prev': () => withOps(([op, { prev: _, ...rest } = {}]) => [op!, rest as Obj]),
  'no-prev-data': () => withFields({ prevData: undefined }),
  'tree-incomplete': () => withBlocks((blocks, change) => dropped(blocks, change.head.data)),
  'inversion-mismatch': () => withFields({ prevData: otherCid }),
  'prev-data-break': () => withPrior(() => ({ data: otherCid.key })),
  'since-break': () => withPrior(({ rev }) => ({ rev: rev.replace(/...$/, '222') as Tid })),
}

const notesOnly: Reason[] = ['prev-data-break', 'since-break']
const ratcheted: Reason[] = [
  'too-big-flag',
  'rebase-flag',
  'record-missing',
  'op-without-prev',
  'no-prev-data',
  'tree-incomplete',
  'inversion-mismatch',
]

test('the list of reasons is closed, named for labels, and explained', () => {
  assert.deepEqual([...REASONS].sort(), Object.keys(CAUSES).sort())
  for (const reason of REASONS) {
    assert.match(reason, /^[a-z]+(-[a-z]+)*$/)
    assert.ok(REASON_TEXT[reason].length > 10)
  }
})

test('the scene is admitted as it is', () => {
  const { repo, prior, change, frame } = scene()
  const next = { ...repo.stateAt(change.head), host: HOST }
  assert.deepEqual(judgeFrame(repo, frame, prior), { kind: 'admit', notes: [], next })
})

for (const [reason, cause] of Object.entries(CAUSES) as [Reason, () => Verdict][]) {
  test(`${reason}: ${REASON_TEXT[reason]}`, () => {
    const verdict = cause()
    if (notesOnly.includes(reason)) {
      assert.equal(verdict.kind, 'admit')
      assert.deepEqual(verdict.kind === 'admit' && verdict.notes, [reason])
    } else if (reason === 'unresolved') assert.deepEqual(verdict, { kind: 'retry-identity', reason })
    else assert.deepEqual({ ...verdict, detail: null }, { kind: 'drop', reason, detail: null })
  })
}

test('observing admits what cannot be proven, with a note, and nothing else', () => {
  const observe: More = { policy: 'observe' }
  const causes: [Reason, Verdict][] = [
    ['too-big-flag', withFields({ tooBig: true }, observe)],
    ['rebase-flag', withFields({ rebase: true }, observe)],
    ['record-missing', withBlocks(blocks => dropped(blocks, testRecord('hello').cid), observe)],
    ['op-without-prev', withOps(([op, { prev: _, ...rest } = {}]) => [op!, rest as Obj], observe)],
    ['no-prev-data', withFields({ prevData: undefined }, observe)],
    ['tree-incomplete', withBlocks((blocks, change) => dropped(blocks, change.head.data), observe)],
    ['inversion-mismatch', withFields({ prevData: otherCid }, observe)],
  ]
  assert.deepEqual(
    causes.map(([reason]) => reason),
    ratcheted,
  )
  for (const [reason, verdict] of causes) {
    assert.equal(verdict.kind, 'admit', reason)
    assert.equal(verdict.kind === 'admit' && verdict.notes[0], reason)
  }
  const never: Verdict[] = [
    withFields({ commit: otherCid }, observe),
    withFields({}, { ...observe, host: 'evil.test' }),
    withFields(
      {},
      { ...observe, identity: { pds: `https://${HOST}`, key: testKey('mallory').publicKey, fresh: true } },
    ),
    withOps(ops => [...ops, ops[0]!], observe),
    withOps(([op, ...rest]) => [{ ...op, cid: otherCid }, ...rest], observe),
    withBlocks(blocks => [...blocks, { cid: otherCid, bytes: utf8('not it') }], observe),
  ]
  for (const verdict of never) assert.equal(verdict.kind, 'drop')
})

test('an operation that is provably wrong is not excused by another that cannot be seen', () => {
  const paths = pathsOfHeights(0, 3, 0)
  const repo = new TestRepo('alice')
  repo.write(...paths.map(path => create(path, 'old')))
  const prior = repo.head!
  const change = repo.write(...paths.map(path => update(path, 'new')))
  const left = Tree.load(change.head.data, repo.blocks).path(paths[0]!).at(-1)!
  const blocks = dropped(readCar(change.car).blocks, left.cid)
  const frame = tampered(commitFrame(change), { blocks: writeCar([change.commit.cid], blocks) })
  const incomplete = judgeFrame(repo, frame, prior, { policy: 'observe' })
  assert.deepEqual(incomplete.kind === 'admit' && incomplete.notes, ['tree-incomplete'])
  const ops = (frame.body.ops as Obj[]).map(op => (op.path === paths[2] ? { ...op, cid: otherCid } : op))
  const verdict = judgeFrame(repo, tampered(frame, { ops }), prior, { policy: 'observe' })
  assert.equal(verdict.kind === 'drop' && verdict.reason, 'op-not-in-tree')
})

test('doubt about who speaks asks for a fresh identity once', () => {
  const { repo, prior, frame } = scene()
  const { identity } = repo
  const stale: [Reason, More][] = [
    ['unresolved', { identity: null }],
    ['no-pds', { identity: { ...identity, pds: null } }],
    ['no-key', { identity: { ...identity, key: null } }],
    ['wrong-host', { identity, host: 'evil.test' }],
    ['wrong-host', { identity: { ...identity, pds: 'https://elsewhere.test' } }],
    ['bad-signature', { identity: { ...identity, key: testKey('old').publicKey } }],
  ]
  for (const [reason, more] of stale) {
    assert.deepEqual(judgeFrame(repo, frame, prior, more), { kind: 'retry-identity', reason })
    if (!more.identity) continue
    const again = judgeFrame(repo, frame, prior, { ...more, identity: { ...more.identity, fresh: true } })
    assert.deepEqual(again, { kind: 'drop', reason })
  }
})

test('a host is known by name and port, in any case', () => {
  const { repo, prior, frame } = scene()
  const kind = (pds: string, host: string) =>
    judgeFrame(repo, frame, prior, { host, identity: { ...repo.identity, pds, fresh: true } }).kind
  assert.equal(kind('https://PDS.test', 'pds.test'), 'admit')
  assert.equal(kind('http://localhost:2583', 'localhost:2583'), 'admit')
  assert.equal(kind('http://localhost:2583', 'localhost:2584'), 'drop')
  assert.equal(kind('https://evil.pds.test', 'pds.test'), 'drop')
  assert.equal(kind('https://pds.test.evil', 'pds.test'), 'drop')
})

test('P-256 accounts are judged alike', () => {
  const repo = new TestRepo('alice', { curve: 'p256' })
  const change = repo.write(create(path, 'hello'))
  assert.equal(judgeFrame(repo, commitFrame(change), null).kind, 'admit')
  const forged = judgeFrame(repo, commitFrame(change), null, {
    identity: { ...repo.identity, key: testKey('eve', 'p256').publicKey, fresh: true },
  })
  assert.equal(forged.kind === 'drop' && forged.reason, 'bad-signature')
})

test('a first commit needs no prevData as long as it holds all there is', () => {
  const repo = new TestRepo('alice')
  const first = repo.write(create(path, 'hello'))
  const second = repo.write(create('app.bsky.feed.post/2', 'more'))
  assert.equal(judgeFrame(repo, commitFrame(first), null).kind, 'admit')
  assert.equal(judgeFrame(repo, tampered(commitFrame(first), { prevData: Tree.empty.root }), null).kind, 'admit')
  const later = judgeFrame(repo, tampered(commitFrame(second), { prevData: undefined }), null)
  assert.equal(later.kind === 'drop' && later.reason, 'no-prev-data')
  // Known for the first time in the middle of its life: no break, as nothing was seen before.
  assert.deepEqual(judgeFrame(repo, commitFrame(second), null).kind === 'admit', true)
})

test('an empty commit is judged by its tree', () => {
  const { repo, change } = scene()
  const empty = repo.write()
  const frame = commitFrame(empty)
  const verdict = judgeFrame(repo, frame, change.head)
  assert.deepEqual(verdict.kind === 'admit' && verdict.notes, [])
  const alone = tampered(frame, { blocks: writeCar([empty.commit.cid], [empty.commit]) })
  assert.equal(judgeFrame(repo, alone, change.head).kind, 'admit')
  const wrong = judgeFrame(repo, tampered(frame, { prevData: otherCid }), change.head)
  assert.equal(wrong.kind === 'drop' && wrong.reason, 'inversion-mismatch')
  const genesis = new TestRepo('bob')
  assert.equal(judgeFrame(genesis, commitFrame(genesis.write()), null).kind, 'admit')
})

test('a discontinuity is admitted, counted, and becomes the new state', () => {
  const { repo, prior } = scene()
  const last = repo.write(create('app.bsky.feed.post/after', 'gap'))
  const verdict = judgeFrame(repo, commitFrame(last), prior)
  assert.ok(verdict.kind === 'admit')
  assert.deepEqual(verdict.notes, ['prev-data-break', 'since-break'])
  assert.deepEqual(verdict.next, repo.stateAt(last.head))
  const noSince = judgeFrame(repo, tampered(commitFrame(last), { since: null }), prior)
  assert.deepEqual(noSince.kind === 'admit' && noSince.notes, ['prev-data-break'])
})

test('a repository that starts over continues with a break', () => {
  const { repo, change } = scene()
  const again = new TestRepo('alice', { since: NOW - 1000 })
  const first = again.write(create(path, 'new life'))
  const verdict = judgeFrame(repo, commitFrame(first), change.head)
  assert.deepEqual(verdict.kind === 'admit' && verdict.notes, ['prev-data-break'])
})

test('the same commit twice is stale, quietly', () => {
  const { repo, change, frame } = scene()
  assert.deepEqual(judgeFrame(repo, frame, change.head), { kind: 'drop', reason: 'rev-stale' })
})

test('what is unknown in an event does no harm', () => {
  assert.equal(withFields({ later: [1, { deep: otherCid }], blobs: 'odd' }).kind, 'admit')
  assert.equal(withBlocks(blocks => [...blocks, { cid: otherCid, bytes: testRecord('other').bytes }]).kind, 'admit')
  assert.equal(withBlocks(blocks => [...blocks, ...blocks].reverse()).kind, 'admit')
})

test('records may hold floats and foreign links', () => {
  const foreign = Cid.fromBytes(Uint8Array.of(1, 0x71, 0x1e, 32, ...new Uint8Array(32)))
  assert.equal(ofRecords(encode({ f: 0.5 }, { floats: true }), encode({ foreign })).kind, 'admit')
})

test('the next state does not hold on to the frame', () => {
  const { repo, prior, change, frame } = scene()
  const verdict = judgeFrame(repo, frame, prior)
  assert.ok(verdict.kind === 'admit')
  frame.bytes.fill(0)
  assert.deepEqual(verdict.next, repo.stateAt(change.head))
})

// #sync, #identity, #account

test('a #sync replaces the state, whatever it was', () => {
  const { repo, prior, change } = scene()
  const unrelated = { ...repo.stateAt(prior), data: otherCid.key }
  for (const before of [repo.stateAt(prior), unrelated, null]) {
    const verdict = judgeFrame(repo, syncFrame(change), null, { prior: before })
    assert.deepEqual(verdict, { kind: 'admit', notes: [], next: repo.stateAt(change.head) })
  }
})

test('a #sync is checked as a commit is', () => {
  const { repo, prior, change } = scene()
  const frame = syncFrame(change)
  const reason = (frame: Frame, more: More = {}, head = prior) => {
    const verdict = judgeFrame(repo, frame, head, more)
    return verdict.kind === 'drop' && verdict.reason
  }
  assert.equal(reason(tampered(frame, { did: testDid('bob') })), 'did-mismatch')
  assert.equal(reason(tampered(frame, { rev: encodeTid((NOW - 1000) * 1000, 0) })), 'rev-mismatch')
  assert.equal(reason(tampered(frame, { blocks: new Uint8Array(10_001) })), 'blocks-too-large')
  assert.equal(reason(tampered(frame, { blocks: writeCar([], [change.commit]) })), 'bad-car')
  assert.equal(reason(tampered(frame, { blocks: writeCar([change.commit.cid], []) })), 'no-commit-block')
  assert.equal(reason(tampered(frame, { rev: encodeTid((NOW + 301_000) * 1000, 0) })), 'rev-future')
  assert.equal(reason(frame, { host: 'evil.test' }), 'wrong-host')
  assert.equal(
    reason(frame, { identity: { ...repo.identity, key: testKey('eve').publicKey, fresh: true } }),
    'bad-signature',
  )
  assert.equal(reason(frame, { prior: { ...repo.stateAt(prior), active: false } }), 'account-inactive')
  assert.equal(reason(frame, { prior: { ...repo.stateAt(prior), local: 'throttled' } }), 'account-blocked')
  const later = repo.write()
  assert.equal(reason(frame, {}, later.head), 'rev-stale')
  assert.equal(reason(frame, { prior: { ...repo.stateAt(change.head), commit: otherCid.key } }), 'rev-reused')
  assert.equal(reason(tampered(frame, { did: 'did:example:1' })), 'unsupported-did')
})

test('an #identity passes from anybody, with a note unless from the account’s host', () => {
  const { repo, prior } = scene()
  const frame = decodeFrame(frameOf(identityEvent({ did: repo.did, handle: 'alice.test' as Handle }, TIME)))
  const next = repo.stateAt(prior)
  assert.deepEqual(judgeFrame(repo, frame, prior), { kind: 'admit', notes: [], next })
  assert.deepEqual(judgeFrame(repo, frame, prior, { host: 'evil.test' }), {
    kind: 'admit',
    notes: ['wrong-host'],
    next,
  })
  const unknown = judgeFrame(repo, frame, null, { prior: null, identity: null })
  assert.ok(unknown.kind === 'admit')
  assert.deepEqual([unknown.notes, unknown.next.rev, unknown.next.active], [['unresolved'], null, true])
  const bad = judgeFrame(repo, tampered(frame, { handle: 7 }), prior)
  assert.equal(bad.kind === 'drop' && bad.reason, 'bad-fields')
})

test('an #account is believed from the account’s host only', () => {
  const { repo, prior } = scene()
  const frameFor = (active: boolean, status?: string) =>
    decodeFrame(frameOf(accountEvent({ did: repo.did, active, status: status ?? null }, TIME)))
  const off = judgeFrame(repo, frameFor(false, 'deactivated'), prior)
  assert.deepEqual(off, {
    kind: 'admit',
    notes: [],
    next: { ...repo.stateAt(prior), active: false, status: 'deactivated' },
  })
  const odd = judgeFrame(repo, frameFor(false, 'hibernating'), prior)
  assert.equal(odd.kind === 'admit' && odd.next.status, 'hibernating')
  const on = judgeFrame(repo, frameFor(true), prior, {
    prior: { ...repo.stateAt(prior), active: false, local: 'takendown' },
  })
  assert.deepEqual(on.kind === 'admit' && [on.next.active, on.next.status, on.next.local], [true, null, 'takendown'])
  assert.deepEqual(judgeFrame(repo, frameFor(false), prior, { host: 'evil.test' }), {
    kind: 'drop',
    reason: 'wrong-host',
  })
  assert.deepEqual(judgeFrame(repo, frameFor(false), prior, { identity: null }), {
    kind: 'retry-identity',
    reason: 'unresolved',
  })
})

test('when the identity is gone its last host may still say that the account is', () => {
  const { repo, prior } = scene()
  const gone: More = { identity: { pds: null, key: null, fresh: true } }
  const frameFor = (active: boolean) =>
    decodeFrame(frameOf(accountEvent({ did: repo.did, active, status: active ? null : 'deleted' }, TIME)))
  assert.equal(judgeFrame(repo, frameFor(false), prior, gone).kind, 'admit')
  assert.equal(judgeFrame(repo, frameFor(true), prior, gone).kind, 'drop')
  assert.equal(judgeFrame(repo, frameFor(false), prior, { ...gone, host: 'evil.test' }).kind, 'drop')
  const stale: More = { identity: { pds: null, key: null } }
  assert.equal(judgeFrame(repo, frameFor(false), prior, stale).kind, 'retry-identity')
})

test('a DID is one of the two methods, well formed', () => {
  const { repo, prior, frame } = scene()
  for (const did of [`did:plc:${base32(new Uint8Array(9))}`, 'did:plc:abc', 'did:example:x', 'did:key:z6Mk']) {
    const verdict = judgeFrame(repo, tampered(frame, { repo: did }), prior)
    assert.equal(verdict.kind === 'drop' && verdict.reason, 'unsupported-did', did)
  }
  const web = judgeFrame(repo, tampered(frame, { repo: 'did:web:alice.test' }), prior)
  assert.equal(web.kind === 'drop' && web.reason, 'did-mismatch')
})

test('judging needs no more than what it is given', () => {
  const { repo, prior, frame } = scene()
  const input = {
    frame,
    host: HOST,
    now: NOW,
    policy: 'strict',
    prior: repo.stateAt(prior),
    identity: repo.identity,
  } as const
  assert.deepEqual(judge(input), judge(input))
})
