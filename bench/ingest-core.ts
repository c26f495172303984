// What a relay does with every event: take the frame apart, judge it, give it another seq. #commit frames of about
// 5 kB, signed with K-256, each of another account, so that no cache helps. The rival is what the reference's consumer
// does (and it neither undoes the operations nor checks what the relay has to).
import { pathToFileURL } from 'node:url'
import { parseCid } from '@atproto/lex-data'
import { verifyProofs } from '@atproto/repo'
import { Blocks } from '@millisky/core/blocks'
import { Cid } from '@millisky/core/cid'
import { commitEvent, decodeFrame, encodeFrame, peek, withSeq } from '@millisky/core/event'
import { Tree } from '@millisky/core/mst/tree'
import { apply, type Head } from '@millisky/core/repo'
import { create, HOST, NOW, TIME, testDid, testKey, testRecord } from '@millisky/core/testing-repos'
import { encodeTid } from '@millisky/core/tid'
import { type AccountState, judge, type KnownIdentity } from '@millisky/core/verify'
import { compare, type Measured, machine, printTable } from './measure.ts'

const ACCOUNTS = 256
const RECORDS = 3_000
const COLLECTIONS = ['app.bsky.feed.like', 'app.bsky.feed.post', 'app.bsky.feed.repost', 'app.bsky.graph.follow']

/** A relay runs for months: what it takes until everything is compiled is not measured. */
const LONG = { seconds: 8, rounds: 8 }

interface Sample {
  frame: Uint8Array
  prior: AccountState
  identity: KnownIdentity
}

/** One account with thousands of records, and the frame of one more record. */
export function sample(n: number): Sample {
  const did = testDid(n)
  const key = testKey(n)
  const start = NOW - 1e9 + n * 1000
  const value = testRecord(`old ${n}`).cid
  const pairs: [string, Cid][] = []
  for (let i = 0; i < RECORDS; i++) {
    pairs.push([`${COLLECTIONS[i & 3]}/${encodeTid((start + i * 1e5) * 1000, n & 1023)}`, value])
  }
  const tree = Tree.build(pairs.sort(([a], [b]) => (a < b ? -1 : 1)))
  const blocks = new Blocks(tree.nodes())
  const head: Head = { did, commit: Cid.ofCbor(value.bytes), rev: encodeTid((start + 5e8) * 1000, 1), data: tree.root }
  const path = `${COLLECTIONS[n & 3]}/${encodeTid((start + RECORDS * 1e5) * 1000, n & 1023)}`
  const writes = [create(path, `hello ${n} `.repeat(120), { langs: ['en'] })]
  const change = apply({ did, head, blocks, writes, rev: encodeTid((start + 6e8) * 1000, 1), key })
  const { data, commit } = head
  return {
    frame: withSeq(encodeFrame(commitEvent(change, TIME)), 20_000_000_000 + n),
    identity: { pds: `https://${HOST}`, key: key.publicKey },
    prior: {
      rev: head.rev,
      data: data.key,
      commit: commit.key,
      active: true,
      status: null,
      local: null,
      host: HOST,
    },
  }
}

export async function run(report: (title: string, rows: Measured[], unit?: string) => void): Promise<void> {
  const samples = Array.from({ length: ACCOUNTS }, (_, n) => sample(n))
  const bytes = samples.reduce((sum, { frame }) => sum + frame.length, 0) / ACCOUNTS
  let i = 0
  let seq = 30_000_000_000
  const next = () => samples[i++ % ACCOUNTS]!
  const whole = () => {
    const { frame, prior, identity } = next()
    const verdict = judge({ frame: decodeFrame(frame), host: HOST, now: NOW, policy: 'strict', prior, identity })
    if (verdict.kind !== 'admit') throw new Error(`not admitted: ${JSON.stringify(verdict)}`)
    return withSeq(frame, seq++)
  }
  const verifyOnly = () => {
    const { identity } = next()
    return identity.key!.verify(message, signature)
  }
  const message = new Uint8Array(200)
  const signature = testKey(0).sign(message)
  const rival = async () => {
    const { frame, identity } = next()
    const { body } = decodeFrame(frame)
    const [op] = body.ops as unknown as { path: string; cid: Cid }[]
    const [collection, rkey] = op!.path.split('/') as [string, string]
    const claims = [{ collection, rkey, cid: parseCid(op!.cid.toString()) }]
    const { verified } = await verifyProofs(
      body.blocks as Uint8Array,
      claims,
      body.repo as string,
      identity.key!.didKey,
    )
    if (verified.length !== 1) throw new Error('rival does not agree')
  }
  const ours = { name: 'decodeFrame + judge strict + withSeq', fn: whole }
  report(
    `Ingest of one #commit, ${Math.round(bytes)} bytes, K-256`,
    await compare([ours, { name: 'its signature check alone', fn: verifyOnly }], LONG),
    'events/CPU-s',
  )
  report(
    'The same against the reference',
    await compare([ours, { name: '@atproto/repo verifyProofs (frame decoded by us)', fn: rival }], LONG),
    'events/CPU-s',
  )
  report(
    'Parts of it',
    await compare([
      { name: 'decodeFrame', fn: () => decodeFrame(next().frame) },
      { name: 'withSeq', fn: () => withSeq(next().frame, seq++) },
      { name: 'peek', fn: () => peek(next().frame) },
    ]),
  )
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  console.log(machine())
  await run(printTable)
}
