// What hostile hosts do, each with what the Relay's public report is to say of it.
import { randomBytes } from 'node:crypto'
import { setTimeout as wait } from 'node:timers/promises'
import { writeCar } from '@millisky/core/car'
import { encode, type Value } from '@millisky/core/cbor'
import { Cid } from '@millisky/core/cid'
import { signCommit } from '@millisky/core/commit'
import { SigningKey } from '@millisky/core/crypto'
import {
  accountEvent,
  commitEvent,
  type Event,
  encodeFrame,
  errorFrame,
  identityEvent,
  infoFrame,
  syncEvent,
  withSeq,
} from '@millisky/core/event'
import type { Did } from '@millisky/core/syntax'
import { TidClock } from '@millisky/core/tid'
import { FakeAccount, now } from './fake-pds.ts'
import { type Attack, wire } from './hostile-host.ts'

/** What is public of a host. */
export interface Report {
  status: string
  reason?: string
  connected: boolean
  lastEnd?: string
  eventsSeen: number
  eventsPassed: number
  eventsUnderWay: number
  accountsRefused: number
  delays: { name: string; count: number }[]
  rejects: { name: string; count: number }[]
  latestRejects: { seq?: number; did?: string; reason: string; text: string }[]
  history: { what: string; detail: string }[]
}

export interface Hostility {
  name: string
  /** Accounts that the host has, by the directory. */
  accounts?: number
  attack(world: { own: FakeAccount[]; victims: Did[]; slow: Did[] }): Attack
  /** Whether the report says what happened. */
  told(report: Report): boolean
}

const rejected =
  (...names: string[]) =>
  (report: Report) =>
    names.some(name => report.rejects.some(reject => reject.name === name && reject.count > 0)) &&
    report.latestRejects.some(
      ({ reason, did, seq }) => names.includes(reason) && (did !== undefined || seq !== undefined),
    )
const ended = (what: RegExp) => (report: Report) => what.test(report.lastEnd ?? '') && report.eventsPassed === 0
const broken = (report: Report) => report.rejects.some(({ name }) => name === 'undecodable')
/** What has no seq is told without one. */
const seen = (report: Report) => report.rejects.some(({ name }) => name === 'undecodable' || name === 'no-seq')
const delayed = (name: string) => (report: Report) =>
  report.delays.some(delay => delay.name === name && delay.count > 0)

/** Events of a host under seqs that rise over all its connections. */
function stream(next: () => Event, more: { burst?: number } = {}): Attack {
  let seq = 0
  return async line => {
    line.accept()
    await line.flood(() => {
      const frames: Buffer[] = []
      for (let i = 0; i < (more.burst ?? 4); i++) frames.push(wire(withSeq(encodeFrame(next()), ++seq)))
      return Buffer.concat(frames)
    }, 2)
  }
}

/** Bytes again and again, as fast as they are read, over each connection. */
function repeating(bytes: Uint8Array, pauseMs = 1): Attack {
  return async line => {
    line.accept()
    await line.flood(() => bytes, pauseMs)
  }
}

const raw = (t: string, payload: Uint8Array) => {
  const head = encodeFrame({ t, body: {} })
  return wire(Buffer.concat([head.subarray(0, head.length - 1), payload]))
}

const randomDid = () =>
  `did:plc:${randomBytes(15)
    .toString('base64url')
    .toLowerCase()
    .replace(/[^a-z2-7]/g, 'a')
    .padEnd(24, 'a')
    .slice(0, 24)}` as Did
const clock = new TidClock({ now: Date.now, clockId: 6 })
const someOf = <T>(list: readonly T[]) => list[Math.floor(Math.random() * list.length)]!

/** A commit, signed as it should be, with these blocks beside it; its tree is the last of them. */
function commitOver({ did, key }: FakeAccount, nodes: Uint8Array[]): Event {
  const data = Cid.ofCbor(nodes.at(-1)!)
  const rev = clock.next()
  const { block } = signCommit({ did, data, rev }, key)
  const blocks = writeCar([block.cid], [block, ...nodes.map(bytes => ({ cid: Cid.ofCbor(bytes), bytes }))])
  const record = Cid.ofCbor(new Uint8Array([0xa0]))
  const ops = [{ action: 'create', path: 'app.bsky.feed.post/3kaaaaaaaaa2a', cid: record }]
  const fields = { repo: did, commit: block.cid, rev, since: null, blocks, ops, blobs: [], time: now() }
  return { t: '#commit', body: { seq: 0, rebase: false, tooBig: false, ...fields } } as Event
}

/** A tree that is nothing but a way down. */
function deepTree(depth: number): Uint8Array[] {
  const nodes = [encode({ l: null, e: [] } as Value)]
  for (let i = 0; i < depth; i++) nodes.push(encode({ l: Cid.ofCbor(nodes.at(-1)!), e: [] } as Value))
  return nodes
}

const floods: Hostility[] = [
  {
    name: 'new accounts',
    accounts: 40,
    attack({ own }) {
      let i = 0
      return stream(() => {
        const account = own[(i >> 1) % own.length]!
        return i++ % 2 ? accountEvent({ did: account.did, active: true }, now()) : identityEvent(account, now())
      })
    },
    told: report => rejected('account-quota')(report) && report.accountsRefused > 0 && report.reason !== undefined,
  },
  {
    name: '#sync',
    accounts: 1,
    attack({ own: [own] }) {
      return stream(() => {
        const rev = clock.next()
        const { block } = signCommit({ did: own!.did, data: Cid.ofCbor(new Uint8Array([0xa0])), rev }, own!.key)
        return syncEvent({ did: own!.did, rev, commit: block }, now())
      })
    },
    told: rejected('account-rate'),
  },
  {
    name: '#account of its own',
    accounts: 1,
    attack: ({ own }) => stream(() => accountEvent({ did: own[0]!.did, active: Math.random() < 0.5 }, now())),
    told: rejected('account-rate'),
  },
  {
    name: '#identity of strangers',
    attack: ({ victims }) => stream(() => identityEvent({ did: someOf(victims) }, now()), { burst: 20 }),
    // They wait behind what the accounts' own host says, or are cut off.
    told: report => rejected('identity-rate')(report) || report.eventsUnderWay > 100,
  },
  {
    name: '#account of strangers',
    attack: ({ victims }) => stream(() => accountEvent({ did: someOf(victims), active: false }, now())),
    told: rejected('wrong-host'),
  },
  {
    name: 'DIDs that there are not',
    attack: () => stream(() => accountEvent({ did: randomDid(), active: true }, now())),
    told: rejected('no-pds'),
  },
  {
    name: 'DIDs whose documents are slow',
    attack: ({ slow }) => stream(() => accountEvent({ did: someOf(slow), active: true }, now())),
    told: report => delayed('identities')(report) || report.eventsUnderWay > 0,
  },
]

const contents: Hostility[] = [
  {
    name: 'deep trees',
    accounts: 1,
    attack({ own }) {
      const tree = deepTree(5_000)
      return stream(() => commitOver(own[0]!, tree), { burst: 1 })
    },
    told: rejected('bad-tree', 'too-many-blocks', 'tree-incomplete'),
  },
  {
    name: 'many blocks',
    accounts: 1,
    attack({ own }) {
      const blocks = Array.from({ length: 20_000 }, (_, i) => encode(i))
      return stream(() => commitOver(own[0]!, blocks), { burst: 1 })
    },
    told: rejected('too-many-blocks'),
  },
  {
    name: 'blocks that are too large',
    accounts: 1,
    attack({ own }) {
      const blocks = [randomBytes(1_500_000), randomBytes(1_500_000)].map(bytes => encode(bytes))
      return stream(() => commitOver(own[0]!, blocks), { burst: 1 })
    },
    told: rejected('blocks-too-large'),
  },
  {
    name: 'forged commits',
    attack({ victims }) {
      const forger = new FakeAccount(victims[0]!, SigningKey.fromPrivate('k256', randomBytes(32)))
      return stream(() => commitEvent(forger.post('forged'), now()))
    },
    told: rejected('wrong-host', 'rev-stale', 'bad-signature'),
  },
  { name: 'deep nesting', attack: () => repeating(raw('#commit', Buffer.alloc(4_000_000, 0x81))), told: seen },
  {
    name: 'lengths beyond all bounds',
    attack: () => repeating(raw('#commit', Buffer.from('a1617a9b7fffffffffffffff', 'hex'))),
    told: broken,
  },
  {
    name: 'very many keys',
    attack() {
      const key = (i: number) =>
        Buffer.concat([Buffer.from([0x66]), Buffer.from(String(100_000 + i)), Buffer.from([0])])
      const keys = Array.from({ length: 200_000 }, (_, i) => key(i))
      return repeating(raw('#commit', Buffer.concat([Buffer.from('ba00030d40', 'hex'), ...keys])), 5)
    },
    told: seen,
  },
  {
    name: 'text that is no UTF-8',
    attack: () => repeating(raw('#identity', Buffer.from('a16364696464fffefdfc', 'hex'))),
    told: seen,
  },
  { name: 'garbage of 5 MB', attack: () => repeating(wire(Buffer.alloc(5_000_000, 0x9f))), told: broken },
  { name: 'frames above 5 MB', attack: () => repeating(wire(Buffer.alloc(5_000_001))), told: ended(/frame-too-big/) },
  {
    name: 'seqs that jump',
    accounts: 1,
    attack({ own }) {
      const seqs = [5, 3, 2 ** 53 - 1, 7, 1, 0, 2 ** 40]
      return async line => {
        line.accept()
        await line.flood(() => {
          const event = accountEvent({ did: own[0]!.did, active: true }, now())
          return wire(withSeq(encodeFrame(event), someOf(seqs)))
        }, 2)
      }
    },
    told: rejected('seq-not-rising'),
  },
]

const sockets: Hostility[] = [
  {
    name: 'a handshake that never ends',
    attack: () => async line => {
      await line.write('HTTP/1.1 101 Switching Protocols\r\nX-Slow: ')
      await line.flood(() => Buffer.from('a'), 50)
    },
    told: report => !report.connected && report.eventsSeen === 0,
  },
  {
    name: 'a frame byte by byte',
    attack: () => async line => {
      line.accept()
      const bytes = wire(Buffer.alloc(4_000_000))
      let at = 0
      await line.flood(() => bytes.subarray(at, ++at), 1)
    },
    told: report => report.eventsSeen === 0,
  },
  {
    name: 'a message of very many fragments',
    attack: () => async line => {
      line.accept()
      await line.write(wire(Buffer.alloc(1), { fin: false }))
      const some = Buffer.concat(Array.from({ length: 1_000 }, () => wire(Buffer.alloc(1), { opcode: 0, fin: false })))
      await line.flood(() => some)
    },
    told: ended(/protocol|too-big/),
  },
  {
    name: 'a message without end',
    attack: () => async line => {
      line.accept()
      await line.write(wire(Buffer.alloc(1), { fin: false }))
      const some = wire(Buffer.alloc(100_000), { opcode: 0, fin: false })
      await line.flood(() => some)
    },
    told: ended(/frame-too-big/),
  },
  {
    name: 'pings without end',
    attack: () => repeating(Buffer.concat(Array.from({ length: 500 }, () => wire(randomBytes(125), { opcode: 9 })))),
    told: ended(/protocol: .*pings/),
  },
  {
    name: 'compression that was not asked for',
    attack: () => async line => {
      line.accept(['Sec-WebSocket-Extensions: permessage-deflate'])
      await line.flood(() => wire(Buffer.alloc(1_000), { rsv1: true }))
    },
    told: ended(/./),
  },
  {
    name: 'compressed frames all the same',
    attack: () => repeating(wire(Buffer.alloc(1_000), { rsv1: true })),
    told: ended(/protocol/),
  },
  {
    name: 'a redirect',
    attack: () => line => {
      line.socket.end('HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n')
    },
    told: ended(/redirected: HTTP 302/),
  },
  {
    name: 'no socket at all',
    attack: () => line => {
      line.socket.end('HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n')
    },
    told: ended(/refused: HTTP 404/),
  },
  {
    name: 'a handshake answered without end',
    attack: () => async line => {
      await line.write('HTTP/1.1 200 OK\r\n\r\n')
      await line.flood(() => Buffer.alloc(65_536))
    },
    told: ended(/refused: HTTP 200/),
  },
  {
    name: 'connect and close',
    attack: () => async line => {
      line.accept()
      await wait(1)
      line.socket.destroy()
    },
    told: ended(/lost|closed/),
  },
  {
    name: 'error frames',
    attack: () => repeating(wire(errorFrame('FutureCursor', 'x'.repeat(10_000)))),
    told: ended(/error-frame: FutureCursor/),
  },
  {
    name: '#info without end',
    attack: () => repeating(wire(infoFrame('OutdatedCursor', 'x'.repeat(1_000)))),
    told: report => report.history.some(({ what }) => what === 'gap'),
  },
  { name: 'text', attack: () => repeating(wire(Buffer.from('hello'), { opcode: 1 })), told: ended(/text-frame/) },
]

/** All of them. */
export const HOSTILITIES: readonly Hostility[] = [...floods, ...contents, ...sockets]
