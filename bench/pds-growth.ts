/**
 * What a write costs as the repository grows: one account alone in its database, in process, without HTTP. Each write is a
 * transaction that syncs to disk, so it is all that createRecord does behind its checks of the request.
 *
 * Printed is the cost as a multiple of that in the smallest repository, beside what a cost that grows with the logarithm
 * would come to.
 */
import { encode } from '@millisky/core/cbor'
import { Cid } from '@millisky/core/cid'
import { signCommit } from '@millisky/core/commit'
import { Tree } from '@millisky/core/mst/tree'
import { asNsid, type RepoPath } from '@millisky/core/syntax'
import { encodeTid } from '@millisky/core/tid'
import { prepareRecord } from '@millisky/pds/records'
import { startTestPds, type TestPds, type TestUser } from '@millisky/pds/testing-pds'
import type { Report } from './codec.ts'
import { type Case, compare, machine, printTable } from './measure.ts'
import { postRecord } from './pds-servers.ts'

const SIZES = [1_000, 100_000, 1_000_000]
const COLLECTIONS = ['app.bsky.feed.like', 'app.bsky.feed.post', 'app.bsky.feed.repost', 'app.bsky.graph.follow'].map(
  asNsid,
)
const START_MICROS = Date.parse('2024-01-01T00:00:00Z') * 1_000
const SPAN_MICROS = Date.parse('2026-01-01T00:00:00Z') * 1_000 - START_MICROS

interface Grown {
  pds: TestPds
  user: TestUser
}

/** Records are all the same: the tree and the rows know them by their keys. */
async function grow(cleanups: (() => Promise<void>)[], records: number): Promise<Grown> {
  const pds = await startTestPds({ after: fn => cleanups.push(fn) })
  const user = await pds.user('alice', { deactivated: true })
  const bytes = encode(postRecord(1))
  const cid = Cid.ofCbor(bytes)
  const paths = Array.from({ length: records }, (_, i) => {
    const rkey = encodeTid(START_MICROS + Math.floor((i / records) * SPAN_MICROS), 7)
    return `${COLLECTIONS[i % COLLECTIONS.length]}/${rkey}` as RepoPath
  }).sort()
  const tree = Tree.build(paths.map(path => [path, cid] as const))
  const { store, repos } = pds
  const state = (await store.repos.state(user.did))!
  const rev = repos.nextRev(state.head.rev)
  const { block } = signCommit({ did: user.did, data: tree.root, rev }, repos.signingKey(state.key))
  await store.repos.import({
    account: state.account,
    prev: state.head,
    head: { did: user.did, commit: block.cid, rev, data: tree.root },
    commit: block,
    nodes: () => tree.nodes(),
    records: () => paths.values().map(path => ({ action: 'create', path, cid, bytes, blobs: [], subject: null })),
    events: [],
    now: repos.now(),
    hidden: true,
  })
  repos.forget(state.account)
  await pds.lifecycle.activate(user.did)
  return { pds, user }
}

/** @param nextMicros - Where in time the record's key lies. */
function writing({ pds: { repos }, user: { did } }: Grown, name: string, nextMicros: () => number): Case {
  let n = 0
  return {
    name,
    async fn() {
      const rkey = encodeTid(nextMicros(), 9)
      const collection = COLLECTIONS[n % COLLECTIONS.length]!
      const record = { ...postRecord(n++), $type: collection }
      const prepared = prepareRecord({ collection, rkey, record, validate: false, nextRkey: () => repos.nextRkey() })
      await repos.write(did, [{ action: 'create', record: prepared }])
    },
  }
}

export async function run(report: Report): Promise<void> {
  const cleanups: (() => Promise<void>)[] = []
  try {
    const grown: Grown[] = []
    for (const size of SIZES) grown.push(await grow(cleanups, size))
    const logarithms = SIZES.map(size => (Math.log(size) / Math.log(SIZES[0]!)).toFixed(2))
    const names = SIZES.map((size, i) => `${size} records (logarithm ${logarithms[i]}x)`)
    let now = START_MICROS + SPAN_MICROS
    const newest = grown.map((one, i) => writing(one, names[i]!, () => (now += 1_000)))
    report('PDS, a new record on top, writes per CPU-second', await compare(newest, { seconds: 6 }), '')
    let state = 1
    const anywhere = () => {
      state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0
      return START_MICROS + Math.floor((state / 2 ** 32) * SPAN_MICROS)
    }
    const spread = grown.map((one, i) => writing(one, names[i]!, anywhere))
    report('PDS, a new record in any place, writes per CPU-second', await compare(spread, { seconds: 6 }), '')
  } finally {
    for (const cleanup of cleanups) await cleanup()
  }
}

if (import.meta.main) {
  console.log(machine())
  await run((title, rows, unit) => printTable(title, rows, unit))
}
