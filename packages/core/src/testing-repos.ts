/** Repositories for tests and benchmarks: real keys, real signatures, nothing random, nothing stored. */
import { Blocks } from './blocks.ts'
import { base32, utf8 } from './bytes.ts'
import { encode, type Obj } from './cbor.ts'
import { Cid } from './cid.ts'
import { type Curve, SigningKey } from './crypto.ts'
import { commitEvent, decodeFrame, type Event, encodeFrame, type Frame, withSeq } from './event.ts'
import { sha256 } from './hash.ts'
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
      data: head?.data.bytes ?? null,
      commit: head?.commit.bytes ?? null,
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
