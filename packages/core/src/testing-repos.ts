/** Repositories for tests and benchmarks: real keys, real signatures, nothing random, nothing stored. */
import fc from 'fast-check'
import { type Block, Blocks } from './blocks.ts'
import { base32, utf8 } from './bytes.ts'
import { writeCar } from './car.ts'
import { encode, type Obj } from './cbor.ts'
import { Cid } from './cid.ts'
import { signCommit } from './commit.ts'
import { type Curve, SigningKey } from './crypto.ts'
import { commitEvent, decodeFrame, type Event, encodeFrame, type Frame, type RepoOp, withSeq } from './event.ts'
import { sha256 } from './hash.ts'
import { keyHeight } from './mst/key.ts'
import { apply, type Change, type Head, type Write } from './repo.ts'
import type { Datetime, Did, Tid } from './syntax.ts'
import { decodeTid, encodeTid } from './tid.ts'
import { type AccountState, type JudgeInput, judge, type KnownIdentity, type Policy, type Verdict } from './verify.ts'

export const HOST = 'pds.test'
/** The moment at which the tests take place. */
export const NOW = Date.parse('2026-08-20T12:00:00.000Z')
export const TIME = '2026-08-20T12:00:00.000Z' as Datetime

export function testKey(name: string | number, curve: Curve = 'k256'): SigningKey {
  return SigningKey.fromPrivate(curve, sha256(utf8(`key ${name}`)))
}

export function testDid(name: string | number): Did {
  return `did:plc:${base32(sha256(utf8(`did ${name}`))).slice(0, 24)}` as Did
}

/** A record as its block. */
export function testRecord(text: string, more: Obj = {}): { cid: Cid; bytes: Uint8Array } {
  const bytes = encode({ $type: 'app.bsky.feed.post', text, createdAt: TIME, ...more })
  return { cid: Cid.ofCbor(bytes), bytes }
}

export function create(path: string, text: string, more?: Obj): Write {
  return { action: 'create', path, ...testRecord(text, more) }
}
export function update(path: string, text: string, more?: Obj): Write {
  return { action: 'update', path, ...testRecord(text, more) }
}
export function remove(path: string): Write {
  return { action: 'delete', path }
}

/** Paths in few collections, so that trees of some height come about. */
const POOL = Array.from({ length: 90 }, (_, i) => `app.bsky.feed.${['like', 'post', 'repost'][i % 3]}/${i}`)

/**
 * Random batches of writes that fit one after the other on an empty repository. `size` bounds the writes of a batch,
 * `count` the batches. Deletions come often enough to empty it, and equal records often enough to be met again.
 */
export function batches({ size = 12, count = 12 }: { size?: number; count?: number } = {}): fc.Arbitrary<Write[][]> {
  const picks = fc.uniqueArray(fc.tuple(fc.nat(POOL.length - 1), fc.integer({ min: 0, max: 5 }), fc.boolean()), {
    maxLength: size,
    selector: ([n]) => n,
  })
  return fc.array(picks, { minLength: 1, maxLength: count }).map(list => {
    const there = new Set<string>()
    return list.map(batch =>
      batch.map(([n, text, keep]): Write => {
        const path = POOL[n]!
        if (!there.has(path)) {
          there.add(path)
          return create(path, `${text}`)
        }
        if (keep) return update(path, `${text}`)
        there.delete(path)
        return remove(path)
      }),
    )
  })
}

/** A repository that remembers everything: what it holds, and every block it ever had. */
export class TestRepo {
  readonly did: Did
  key: SigningKey
  head: Head | null = null
  readonly blocks = new Blocks()
  readonly records = new Map<string, Cid>()
  rev: Tid

  constructor(name: string | number, options: { curve?: Curve; since?: number } = {}) {
    this.did = testDid(name)
    this.key = testKey(name, options.curve)
    this.rev = encodeTid((options.since ?? NOW - 86_400_000) * 1000, 7)
  }

  /** The next rev, one millisecond on. */
  nextRev(): Tid {
    return encodeTid(decodeTid(this.rev).micros + 1000, 7)
  }

  /** Applies writes and keeps the result. */
  write(...writes: Write[]): Change {
    const rev = this.nextRev()
    const { did, head, blocks, key } = this
    const change = apply({ did, head, blocks, writes, rev, key })
    this.rev = rev
    this.head = change.head
    for (const block of [change.commit, ...change.nodes]) blocks.add(block)
    for (const write of writes) {
      if (write.action === 'delete') this.records.delete(write.path)
      else {
        this.records.set(write.path, write.cid)
        blocks.add({ cid: write.cid, bytes: write.bytes })
      }
    }
    return change
  }

  get identity(): KnownIdentity {
    return { pds: `https://${HOST}`, key: this.key.publicKey }
  }

  /** What a relay knows that has seen everything up to `head`. */
  stateAt(head: Head | null): AccountState {
    return {
      rev: head?.rev ?? null,
      data: head?.data.key ?? null,
      commit: head?.commit.key ?? null,
      active: true,
      status: null,
      local: null,
      host: HOST,
    }
  }
}

/** The bytes of an event with a seq. */
export function frameOf(event: Event, seq = 1): Uint8Array {
  return withSeq(encodeFrame(event), seq)
}

/** The `#commit` of a change, as a relay gets it. */
export function commitFrame(change: Change, seq = 1): Frame {
  return decodeFrame(frameOf(commitEvent(change, TIME), seq))
}

/** A frame with some fields of its body replaced, or removed where undefined. */
export function tampered(frame: Frame, fields: { [name: string]: Obj[string] | undefined }): Frame {
  const body: Obj = { ...frame.body }
  for (const [name, value] of Object.entries(fields)) {
    if (value === undefined) delete body[name]
    else body[name] = value
  }
  return decodeFrame(encodeFrame({ t: frame.t!, body }))
}

/** Judges a frame of a repository as a strict relay that has seen everything up to `prior`. */
export function judgeFrame(
  repo: TestRepo,
  frame: Frame,
  prior: Head | null,
  more: Partial<JudgeInput> & { policy?: Policy } = {},
): Verdict {
  return judge({
    frame,
    host: HOST,
    now: NOW,
    policy: 'strict',
    prior: repo.stateAt(prior),
    identity: { ...repo.identity, fresh: true },
    ...more,
  })
}

/** Record paths of these heights, in ascending order. */
export function pathsOfHeights(...heights: number[]): string[] {
  return heights.map((height, i) => {
    let n = 0
    while (keyHeight(`app.test.path/${i}-${n}`) !== height) n++
    return `app.test.path/${i}-${n}`
  })
}

/** The verdict on a commit over a tree and records that its owner put together by hand, and signed. */
export function handmade(
  options: { tree: Block[]; root: Cid; records?: Block[]; ops: RepoOp[]; prevData?: Cid; did?: Did },
  more: Partial<JudgeInput> = {},
) {
  const repo = new TestRepo('mallory')
  const rev = repo.nextRev()
  const { block } = signCommit({ did: options.did ?? repo.did, data: options.root, rev }, repo.key)
  const body: Obj = {
    seq: 1,
    rebase: false,
    tooBig: false,
    repo: repo.did,
    commit: block.cid,
    rev,
    since: null,
    blocks: writeCar([block.cid], [block, ...options.tree, ...(options.records ?? [])]),
    ops: options.ops.map(({ prev, ...op }): Obj => (prev ? { ...op, prev } : op)),
    blobs: [],
    time: TIME,
  }
  if (options.prevData) body.prevData = options.prevData
  return judgeFrame(repo, decodeFrame(encodeFrame({ t: '#commit', body })), null, more)
}

export const createOp = (path: string, cid: Cid): RepoOp => ({ action: 'create', path, cid, prev: null })

/** Blocks without one of them. */
export const dropped = (blocks: Block[], cid: Cid) => blocks.filter(block => !block.cid.equals(cid))
