// Three PDS processes at one database while one is killed and others lose the connections that their locks belong to: what was
// acknowledged is there and told once, and nothing is there by half. The long form is `scripts/campaign.mjs --cuts 50`.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setTimeout as wait } from 'node:timers/promises'
import { decodeFrame } from '@millisky/core/event'
import { OTHER_CONNECTIONS } from '@millisky/server/db/testing'
import { until } from '@millisky/server/testing-until'
import pg from 'pg'
import { randomOf } from './kills.ts'
import type { Daemon } from './network.ts'
import {
  assertWhole,
  bearer,
  follow,
  hasCommit,
  type Person,
  post,
  recordsOf,
  type Seen,
  type Several,
  startSeveral,
  withoutPostgres,
} from './several.ts'

const cuts = Number(process.env.MILLISKY_TEST_CUTS ?? 2)
const seed = Number(process.env.MILLISKY_TEST_SEED ?? 20_260_820)

/** Writes through one process until told to stop, two accounts in turn; what was answered with 200 is acknowledged. */
async function storm(several: Several, pds: Daemon, people: Person[], stop: AbortSignal, into: Storm): Promise<void> {
  for (let n = 0; !stop.aborted; n++) {
    const reply = await several.write(pds, people[n % people.length]!, n).catch(() => null)
    if (reply?.status === 200) into.acknowledged.set(reply.json.uri, reply.json.cid)
    else {
      // The process is gone, or says that it cannot now; never that it did not understand, or that it broke.
      if (reply && reply.status !== 503) into.wrong.push(`${reply.status} ${JSON.stringify(reply.json)}`)
      await wait(20)
    }
  }
}

interface Storm {
  acknowledged: Map<string, string>
  wrong: string[]
}

/** Ends connections that hold a lock of some account just now. */
async function cutLocks(admin: pg.Client): Promise<number> {
  const { rowCount } = await admin.query(
    `select pg_terminate_backend(pid) from pg_stat_activity where ${OTHER_CONNECTIONS}
       and pid in (select pid from pg_locks where locktype = 'advisory' and granted)`,
  )
  return rowCount ?? 0
}

const created = (seen: readonly Seen[]) =>
  seen.flatMap(({ bytes }) => {
    const { t, body } = decodeFrame(Buffer.from(bytes, 'latin1'))
    if (t !== '#commit') return []
    return (body.ops as { action: string; path: string }[]).map(({ path }) => `at://${body.repo}/${path}`)
  })

test('processes that are killed or lose their locks lose, repeat and halve nothing', {
  skip: withoutPostgres,
  timeout: 300_000 + cuts * 10_000,
}, async t => {
  t.diagnostic(`seed ${seed}`)
  const random = randomOf(seed)
  const several = await startSeveral(3)
  const admin = new pg.Client(several.databaseUrl)
  t.after(async () => {
    await admin.end()
    await several.end()
  })
  await admin.connect()
  const [one, two, three] = several.daemons as [Daemon, Daemon, Daemon]
  const people = [await several.person('hal'), await several.person('ida')]
  const consumer = follow(one, 0)
  const into: Storm = { acknowledged: new Map(), wrong: [] }
  const stop = new AbortController()
  const writers = several.daemons.flatMap(pds => [0, 1].map(() => storm(several, pds, people, stop.signal, into)))
  const goesOn = async (what: string) => {
    const before = into.acknowledged.size
    await until(what, () => into.acknowledged.size > before + 20)
  }
  let lost = 0
  try {
    await goesOn('the storm has begun')
    for (let cut = 0; cut < cuts; cut++) {
      await wait(random() * 200)
      lost += await until('somebody holds a lock', () => cutLocks(admin))
      if (cut % 2 === 1) await three.kill()
      await goesOn('the others go on')
      if (cut % 2 === 1) await three.start()
    }
    await goesOn('the storm survives')
  } finally {
    stop.abort()
    await Promise.all(writers)
  }
  assert.deepEqual(into.wrong, [])
  // Each process writes as ever, and each tells the same.
  for (const pds of several.daemons) assert.equal((await several.write(pds, people[0]!, 0)).status, 200, pds.url)
  const last = await post(
    two,
    'repo.createRecord',
    { repo: people[1]!.did, collection: 'com.example.last', record: {} },
    bearer(people[1]!.accessJwt),
  )
  const consumers = [consumer, follow(two, 0), follow(three, 0)]
  await until('all have all', () => consumers.every(({ seen }) => hasCommit(seen, last)))
  for (const { seen, close } of consumers) {
    close()
    assert.deepEqual(seen, consumer.seen)
  }
  assertWhole(consumer.seen)
  const told = created(consumer.seen)
  assert.equal(new Set(told).size, told.length, 'each record was told once')
  for (const { did } of people) {
    const held = await recordsOf(one, did)
    for (const [uri, cid] of into.acknowledged) if (uri.startsWith(`at://${did}/`)) assert.equal(held.get(uri), cid)
    assert.deepEqual(told.filter(uri => uri.startsWith(`at://${did}/`)).sort(), [...held.keys()].sort())
  }
  t.diagnostic(`${lost} connections were cut, ${into.acknowledged.size} writes acknowledged`)
})
